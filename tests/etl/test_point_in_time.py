"""What a row sees of other rows: against the plain meaning, whatever the order, parts and buckets; and never what comes later."""

import dataclasses
import datetime as dt
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import (
    AsOf,
    Column,
    Config,
    CsvSource,
    Label,
    LoaderConfig,
    Lookup,
    NotNull,
    ParquetSource,
    categorical,
    histories,
    join_as_of,
    multivalued,
    numeric,
)
from mlprod.errors import ConfigError, DataError
from mlprod.etl import dry_run
from mlprod.etl.point_in_time import with_as_of, with_histories
from mlprod.etl.report import quarantine
from mlprod.etl.run import build
from mlprod.etl.schema import Loose
from mlprod.plan import make_plan
from mlprod.predict import model_arrays, ready_rows, typed_etl, typed_rows, whole_rows
from mlprod.train import train
from mlprod.validation import validate
from tests.plain import ID, small_config, stored, table_text

STEP = histories(by="user", order="at", max_len=3, columns={"items": "item", "kinds": "kind"})
SEPARATORS = {"items": "|", "kinds": "|"}
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", None]), st.none() | st.integers(0, 5), st.none() | st.sampled_from("abc"), st.booleans()
    ),
    max_size=14,
)


def table(events: list[tuple[Any, ...]]) -> pa.Table:
    user, at, item, kind = zip(*events, strict=True) if events else ((), (), (), ())
    return pa.table({
        "user": pa.array(user, pa.string()), "at": pa.array(at, pa.int64()), "item": pa.array(item, pa.string()),
        "kind": pa.array(kind, pa.bool_()),
    })  # fmt: skip


def seen_plainly(events: list[tuple[Any, ...]], i: int, size: int = 3) -> list[list[str]]:
    """The newest events of the user before row i, each distinct one once: as sets of those of one time, newest time first."""
    user, at, _, _ = events[i]
    if user is None or at is None:
        return []
    before = {event for event in events if event[0] == user and event[1] is not None and event[1] < at}
    return [sorted(f"{e[2] or ''}{int(e[3])}" for e in before if e[1] == time) for time in sorted({e[1] for e in before})[::-1]]


def seen(found: pa.Table) -> list[list[str] | None]:
    items, kinds = (found[name].to_pylist() for name in ("items", "kinds"))
    return [
        None if a is None else [x + y for x, y in zip(a.split("|"), b.split("|"), strict=True)]
        for a, b in zip(items, kinds, strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False))
def test_a_history_is_what_came_before(events, random):
    """The newest `max_len`, those of one time in an order that the rows' order does not decide; nothing of that time or later."""
    found, kept = with_histories(table(events), STEP, SEPARATORS, once=True)
    assert kept.tolist() == list(range(len(events)))
    for i, history in enumerate(seen(found)):
        left = list(history or [])
        for group in seen_plainly(events, i):
            some, left = left[: len(group)], left[len(group) :]
            assert sorted(some) == group or (not left and set(some) <= set(group))
        assert not left
        assert len(history or []) == min(3, sum(map(len, seen_plainly(events, i))))
        assert history is None or history
    order = list(range(len(events)))
    random.shuffle(order)
    again, _ = with_histories(table([events[i] for i in order]), STEP, SEPARATORS, once=True)
    assert seen(again) == [seen(found)[i] for i in order]


@settings(max_examples=100, deadline=None)
@given(EVENTS, st.integers(0, 5))
def test_what_comes_later_changes_nothing(events, time):
    """Rows up to a time see the same whether or not there are any from then on."""
    early = [event for event in events if event[1] is not None and event[1] <= time]
    whole, _ = with_histories(table(early + [e for e in events if e not in early]), STEP, SEPARATORS, once=True)
    alone, _ = with_histories(table(early), STEP, SEPARATORS, once=True)
    assert seen(whole)[: len(early)] == seen(alone)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_the_last_of_each(events):
    step = dataclasses.replace(STEP, each="last")
    found, kept = with_histories(table(events), step, SEPARATORS, once=True)
    usable = [event for event in events if event[0] is not None and event[1] is not None]
    newest = {user: max(e[1] for e in usable if e[0] == user) for user, *_ in usable}
    assert {events[i][0]: events[i][1] for i in kept.tolist()} == newest
    assert len(kept) == len(newest)
    every, _ = with_histories(table(events), STEP, SEPARATORS, once=True)
    assert found.to_pylist() == every.take(pa.array(kept)).to_pylist()


def test_equal_rows_count_once_or_each():
    events = [("u", 1, "a", True)] * 3 + [("u", 2, "b", True)]
    assert seen(with_histories(table(events), STEP, SEPARATORS, once=True)[0])[3] == ["a1"]
    assert seen(with_histories(table(events), STEP, SEPARATORS, once=False)[0])[3] == ["a1"] * 3


def test_a_value_with_the_separator_is_refused():
    with pytest.raises(DataError, match=r"'items' would hold has its separator '\|' inside; set another separator"):
        with_histories(table([("u", 1, "a|b", True)]), STEP, SEPARATORS, once=True)


PRICES = AsOf(source=CsvSource(path="x"), by={"shop": "shop", "item": "thing"}, time="at", since="from", columns={"price": "p"})
SHOPS, ITEMS = st.sampled_from(["s", "t", None]), st.sampled_from([1, 2])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(SHOPS, ITEMS, st.none() | st.integers(0, 6)), max_size=10),
    st.dictionaries(st.tuples(SHOPS, ITEMS, st.none() | st.integers(0, 6)), st.none() | st.floats(0, 9), max_size=10),
    st.booleans(),
)
def test_as_of(rows, prices, same_time):
    def made(keys: list[tuple[Any, ...]]) -> dict[str, pa.Array]:
        return {
            name: pa.array([key[i] for key in keys], kind)
            for i, (name, kind) in enumerate({"shop": pa.string(), "item": pa.int64(), "at": pa.int64()}.items())
        }

    other = pa.table({**made(list(prices)), "price": pa.array(list(prices.values()), pa.float64())})
    found = with_as_of(pa.table(made(rows)), dataclasses.replace(PRICES, same_time=same_time), other)["price"].to_pylist()
    for (shop, item, at), price in zip(rows, found, strict=True):
        known = (
            {}
            if at is None or shop is None
            else {
                since: value
                for (s, i, since), value in prices.items()
                if (s, i) == (shop, item)
                and shop
                and at is not None
                and since is not None
                and (since < at or (same_time and since == at))
            }
        )
        assert price == (known[max(known)] if known else None)


def test_two_rows_of_one_time_are_refused():
    other = pa.table({"shop": ["s", "s"], "item": [1, 1], "at": [1, 1], "price": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"1 row\(s\) of x have shop, thing and from of another row, and other values"):
        with_as_of(other.drop_columns(["price"]), PRICES, other)
    same = pa.concat_tables([other.slice(0, 1)] * 2)
    assert with_as_of(same.drop_columns(["price"]), PRICES, same)["price"].to_pylist() == [1.0, 1.0]


# ---- builds ------------------------------------------------------------------------------------------------------------

BEGIN = dt.datetime(2024, 5, 1)
USERS, NUM_EVENTS = 17, 400
COLUMNS = (
    ID, categorical("user"), Column(name="at", type="timestamp", role="input"), categorical("item", type="int64"),
    multivalued("past", 5), multivalued("same_shop", 3, separator=" "), categorical("shop"), numeric("price"),
)  # fmt: skip


def events() -> list[tuple[Any, ...]]:
    random = np.random.default_rng(3)
    return [
        (
            i, f"u{random.integers(USERS)}", (BEGIN + dt.timedelta(minutes=int(random.integers(3000)))).isoformat(),
            int(random.integers(30)), "xyz"[random.integers(3)], int(random.integers(2)),
        )
        for i in range(NUM_EVENTS)
    ]  # fmt: skip


def price_rows() -> list[tuple[Any, ...]]:
    return [("xyz"[i % 3], (BEGIN + dt.timedelta(minutes=70 * i)).isoformat(), i / 4) for i in range(40)]


def config(folder: Path, rows: list[tuple[Any, ...]], columns: tuple[Column, ...] = COLUMNS, **etl: Any) -> Config:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prices.csv").write_text(table_text("name,since,price", *price_rows()))
    steps = (
        histories(by="user", order="at", max_len=5, columns={"past": "item"}),
        join_as_of(CsvSource(path=str(folder / "prices.csv")), by={"shop": "name"}, time="at", since="since", columns=("price",)),
        histories(by=("user", "shop"), order="at", max_len=3, columns={"same_shop": "item"}),
    )
    text = table_text("id,user,at,item,shop,y", *rows)
    cfg = small_config(folder, text, columns, **{"gathered": steps, **etl})
    cfg = dataclasses.replace(cfg, loader=LoaderConfig(global_batch=8), steps=3)
    validate(cfg)
    return cfg


def by_id(cfg: Config) -> dict[int, dict[str, Any]]:
    """The stored features of each row, as words."""
    published, _ = build(cfg)
    plan, found = make_plan(cfg, jax.devices()[:1]), {}
    for split in published.splits:
        if not published.num_rows(split):
            continue
        kept = stored(Path(cfg.dataset), published, split)
        names = [(f.name, f.words, 1) for f in plan.features.categorical] + [
            (f.name, f.words, f.length) for f in plan.features.lists
        ]
        for id_, ids, number in zip(kept["id"], kept["ids"], kept["numeric"], strict=True):
            row, at = {"price": number.tolist()}, 0
            for name, words, width in names:
                row[name] = [words[i] for i in ids[at : at + width]]
                at += width
            found[int(id_)] = row
    return found


def plainly(rows: list[tuple[Any, ...]], i: int) -> dict[str, list[str]]:
    """What row i should see; rows of one time are told apart by nothing here, so the test has none."""
    _, user, at, _, shop, _ = rows[i]
    before = sorted((r for r in rows if r[1] == user and r[2] < at), key=lambda r: r[2], reverse=True)
    past, same = [str(r[3]) for r in before[:5]], [str(r[3]) for r in before if r[4] == shop][:3]
    return {"past": past + ["(missing)"] * (5 - len(past)), "same_shop": same + ["(missing)"] * (3 - len(same))}


def distinct_times(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list({row[2]: row for row in rows}.values())


def test_a_dataset_with_what_other_rows_tell(tmp_path):
    """Out of core or at once, whatever the chunks and workers: the same bytes, and the plain meaning; and it trains."""
    rows = distinct_times(events())
    cfg = config(tmp_path / "a", rows)
    found = by_id(cfg)
    assert len(found) == len(rows)
    for i, row in enumerate(rows):
        told = plainly(rows, i)
        assert {name: found[row[0]][name] for name in told} == told
        prices = [price for name, since, price in price_rows() if name == row[4] and since <= row[2]]
        if prices:
            assert found[row[0]]["price"] == [prices[-1]]
    train(cfg, jax.devices()[:1])
    first = build(cfg)[0]
    for name, more in {
        "small": {"chunk_rows": 7, "memory_bytes": 1 << 20, "workers": 3}, "processes": {"executor": "processes", "workers": 2},
    }.items():  # fmt: skip
        other = dataclasses.replace(cfg, dataset=str(tmp_path / name), etl=dataclasses.replace(cfg.etl, **more))
        again, _ = build(other)
        assert again.dataset_id == first.dataset_id
        assert [s.sha256 for s in again.splits["train"]] == [s.sha256 for s in first.splits["train"]]
    shuffled = config(tmp_path / "shuffled", [rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    assert build(shuffled)[0].dataset_id == first.dataset_id


def loose(rows: list[tuple[Any, ...]]) -> Loose:
    names = ("id", "user", "at", "item", "shop")
    return Loose({name: [str(row[i]) for row in rows] for i, name in enumerate(names)}, len(rows), str, {})


def test_predict_sees_what_the_dataset_has(tmp_path):
    """The rows in their order; one that is none gets a reason, and no other row sees it."""
    rows = distinct_times(events())
    cfg = config(tmp_path, rows, bad_rows="drop")
    published, _ = build(cfg)
    plan = make_plan(cfg, jax.devices()[:1])
    etl = dataclasses.replace(typed_etl(plan), chunk_rows=64)
    bad = (9999, "u1", "2024-05-01T00:00:30", "what", "x", 1)
    given = [*rows[:50], bad, *rows[50:]]
    chunks = (typed_rows(etl, loose(given[i : i + 90]), []) for i in range(0, len(given), 90))
    ready = [ready_rows(etl, *each) for each in whole_rows(etl, chunks)]
    assert [row for table, _ in ready for row in table["id"].to_pylist()] == [row[0] for row in given]
    reasons = [reason for _, told in ready for reason in told]
    assert [i for i, reason in enumerate(reasons) if reason] == [50]
    assert "'item'" in str(reasons[50])
    arrays = [model_arrays(plan, table) for table, _ in ready]
    of_id = {row[0]: i for i, row in enumerate(given)}
    for split in published.splits:
        kept = stored(tmp_path / "dataset", published, split)
        at = [of_id[int(i)] for i in kept["id"]]
        for name in ("numeric", "ids"):
            assert np.concatenate([part[name] for part in arrays])[at].tobytes() == kept[name].tobytes()


def test_where_a_row_stood_is_kept(tmp_path):
    """A rule that a row breaks names its file and line, behind three steps."""
    rows = distinct_times(events())
    cfg = config(tmp_path, rows, rules=(NotNull(column="price"),), chunk_rows=50)
    with pytest.raises(DataError, match=r"\.csv line \d+") as told:
        build(cfg)
    line = int(str(told.value).split(".csv line ")[1].split(":")[0].split()[0])
    row = rows[line - 2]
    assert not [1 for name, since, _ in price_rows() if name == row[4] and since <= row[2]]


def test_bad_and_excluded_rows_are_counted_and_seen_by_none(tmp_path):
    rows = distinct_times(events())
    wrong = rows[200]
    broken = [*rows[:200], (*wrong[:3], "what", *wrong[4:]), *rows[201:]]
    without = [row for row in rows if row[0] not in (wrong[0], rows[300][0])]
    (tmp_path / "gone.csv").write_text(f"id\n{rows[300][0]}\n")
    cfg = config(
        tmp_path / "a", broken, bad_rows="quarantine", exclude_keys=str(tmp_path / "gone.csv"), key=("id",)
    )  # fmt: skip
    assert by_id(cfg) == by_id(config(tmp_path / "b", without, key=("id",)))
    published = build(cfg)[0]
    report = json.loads((Path(cfg.dataset) / published.report).read_text())
    told = json.dumps(report)
    assert '"bad": 1' in told
    assert '"excluded": 1' in told
    quarantined = Path(cfg.dataset) / quarantine(published.version)
    (line,) = quarantined.read_text().splitlines()
    assert ".csv line 202" in json.loads(line)["where"]


def test_another_source_that_is_wrong_is_told_before_the_rows_are_read(tmp_path, monkeypatch):
    cfg = config(tmp_path, distinct_times(events()))
    (tmp_path / "prices.csv").write_text("name,since,price\nx,2024-05-01,much\n")
    monkeypatch.setattr("mlprod.etl.gather.spill_part", lambda *_: pytest.fail("a row was read"))
    with pytest.raises(DataError, match=r"prices\.csv line 2: column 'price': 'much' is not float64"):
        build(cfg)


def test_a_dry_run_looks_at_the_first_rows_of_the_other_source(tmp_path, monkeypatch, capsys):
    cfg = config(tmp_path, distinct_times(events()))
    monkeypatch.setattr(dry_run, "SAMPLE_ROWS", 3)  # prices of x, y and z, at the very beginning
    seen = dry_run.look(cfg.etl).rows.to_pylist()
    assert len(seen) == 3
    assert [row["price"] for row in seen] == [price_rows()["xyz".index(row["shop"])][2] for row in seen]
    dry_run.main(cfg)
    assert "what other rows tell is of these rows" in capsys.readouterr().out


def test_another_source_that_changed_is_another_build(tmp_path):
    cfg = config(tmp_path, distinct_times(events()))
    first, _ = build(cfg)
    assert build(cfg) == (first, False)
    with open(tmp_path / "prices.csv", "a") as file:
        file.write("x,2024-05-01T00:00:01,77\n")
    second, fresh = build(cfg)
    assert fresh
    assert second.dataset_id != first.dataset_id


def test_a_build_that_was_killed_goes_on(tmp_path, monkeypatch):
    """Stages that are done are not done again: the same bytes."""
    rows = distinct_times(events())
    whole, _ = build(config(tmp_path / "whole", rows))
    cfg = config(tmp_path / "killed", rows)

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("mlprod.etl.run.settle_all", fail)
        with pytest.raises(RuntimeError):
            build(cfg)
    with monkeypatch.context() as patch:
        patch.setattr("mlprod.etl.gather.spill_part", fail)
        assert build(cfg)[0].dataset_id == whole.dataset_id


@pytest.mark.parametrize(
    "etl, told",
    [
        ({"grow": "append"}, "grow='append' is not for config.etl.gathered"),
        ({"gathered": (histories(by="who", order="at", max_len=2, columns={"past": "item"}),)}, "'who' is no column"),
        (
            {"gathered": (histories(by="user", order="shop", max_len=2, columns={"past": "item"}),)},
            "'shop' is string; it must be",
        ),
        ({"gathered": (histories(by="user", order="at", max_len=2, columns={"new": "item"}),)}, "makes 'new'; declare it"),
        ({"gathered": (histories(by="user", order="at", max_len=2, columns={"price": "item"}),)}, "makes 'price', a list"),
        ({"gathered": (histories(by="user", order="at", max_len=2, columns={"past": "at"}),)}, "a history is of string, int64"),
        ({"columns": (*COLUMNS[:7], numeric("price", type="auto"))}, "'price' is made of other rows; declare its type"),
        ({"key": ("price",)}, "config.etl.key: 'price' is made of other rows"),
        ({"lookups": (Lookup(path="x.csv", key="price", columns={"shop": "shop"}),)}, "config.etl.lookups: 'price' is made of"),
        ({"gathered": (join_as_of(CsvSource(path=""), by="shop", time="at", columns=("price",)),)}, r"\[0\]\.source\.path=''"),
    ],
)
def test_what_a_config_cannot_say(etl, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, [], **etl)


def test_a_parquet_source_and_no_rows_in_the_other(tmp_path):
    """Prices that begin later are not seen; a label of all events is learned."""
    rows = distinct_times(events())[:60]
    names = ("id", "user", "at", "item", "shop", "y")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    columns["at"] = [dt.datetime.fromisoformat(text) for text in columns["at"]]
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    (tmp_path / "later.csv").write_text("shop,at,price\nx,2030-01-01,5\n")
    step = join_as_of(CsvSource(path=str(tmp_path / "later.csv")), by="shop", time="at", columns=("price",))
    cfg = config(
        tmp_path, rows, source=ParquetSource(path=str(tmp_path / "events.parquet")), gathered=(step,), label=Label(column="y"),
        columns=(*COLUMNS[:4], dataclasses.replace(COLUMNS[7], missing="constant", constant=-1.0), COLUMNS[6]),
    )  # fmt: skip
    assert {row["price"][0] for row in by_id(cfg).values()} == {-1.0}
