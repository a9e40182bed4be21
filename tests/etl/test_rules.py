"""Rows that break a rule: told, left out or written down, alike for any way of reading them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlprod.config import (
    AnyRule,
    Column,
    CsvSource,
    Holds,
    JsonLinesSource,
    Matches,
    NotNull,
    OneOf,
    ParquetSource,
    UniqueKey,
    Within,
    numeric,
)
from mlprod.errors import ConfigError, DataError
from mlprod.etl import report as reports
from mlprod.etl.dry_run import main as dry_run
from mlprod.etl.rules import breaks
from mlprod.etl.run import build
from mlprod.validation import validate
from tests.plain import ID, small_config, stored_table

COLUMNS = (
    ID, numeric("x"), Column(name="kind", type="string", role="input"), Column(name="at", type="timestamp", role="input"),
    Column(name="secret", type="string", role="input", sensitive=True), Column(name="flag", type="bool", role="input"),
)  # fmt: skip
ROWS = pa.table({
    "x": pa.array([-1.0, 0.0, 5.0, 5.5, None]),
    "kind": pa.array(["a", "b", "ab", "", None]),
    "at": pa.array([0, 10**6, 2 * 10**6, 3 * 10**6, None], pa.timestamp("us", "UTC")),
    "flag": pa.array([True, False, True, False, None]),
    "n": pa.array([1, 2, 3, 4, None], pa.int64()),
})  # fmt: skip


@pytest.mark.parametrize(
    "rule, broken",
    [
        (Within(column="x", low="0", high="5"), [0, 3]),
        (Within(column="x", high="-2"), [0, 1, 2, 3]),
        (Within(column="at", low="1970-01-01T00:00:01", high="1970-01-01T00:00:02"), [0, 3]),
        (OneOf(column="kind", values=("a", "ab")), [1, 3]),
        (OneOf(column="flag", values=("1",)), [1, 3]),
        (OneOf(column="n", values=("1", "4")), [1, 2]),
        (NotNull(column="kind"), [4]),
        (Matches(column="kind", pattern="a|b"), [2, 3]),
        (Matches(column="kind", pattern="a?b?"), []),
        (Holds(expression="x > 0 or flag"), [1]),
        (Holds(expression="not flag"), [0, 2]),
        (Holds(expression="kind == 'a'"), [1, 2, 3]),
        (Holds(expression="n < x"), [0, 1]),
        (Holds(expression="at < '1970-01-01 00:00:02'"), [2, 3]),
        (Holds(expression="kind.str.len() > 0"), [3]),
    ],
)
def test_which_rows_break_a_rule(rule: AnyRule, broken):
    """A missing value breaks none but NotNull."""
    assert np.flatnonzero(breaks(rule, ROWS)).tolist() == broken


@pytest.mark.parametrize(
    "rule, told",
    [
        (Holds(expression="x + 1"), "gives Float64 values; it must be true or false of each row"),
        (Holds(expression="x >"), "SyntaxError"),
        (Holds(expression="y > 1"), "names no column"),
        (Holds(expression="x > z"), "UndefinedVariableError: name 'z' is not defined"),
        (Within(column="x", low="much"), r"config\.etl\.rules: 'x' is float64, and 'much' is not"),
        (Matches(column="kind", pattern="(?=a)"), "write it as RE2 takes it"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_told(rule: AnyRule, told):
    with pytest.raises(DataError, match=told):
        breaks(rule, ROWS)


# ---- builds ------------------------------------------------------------------------------------------------------------

BROKEN = {  # row -> what stands there
    3: {"x": 99.0},
    11: {"kind": "z"},
    12: {"kind": None, "x": -5.0},
    20: {"secret": "canary"},
    33: {"x": 1.0, "at": "2031-01-01"},
}
RULES = (
    Within(column="x", low="0", high="50"), NotNull(column="kind"), OneOf(column="kind", values=("a", "b")),
    Matches(column="secret", pattern="s[0-9]+"), Within(column="at", high="2025-01-01"), Holds(expression="x >= 0 and id >= 0"),
)  # fmt: skip


def rows(changed: dict[int, dict[str, object]] = BROKEN) -> list[dict[str, object]]:
    plain = [
        {"id": i, "x": i * 0.5, "kind": "ab"[i % 2], "at": "2024-01-01", "secret": f"s{i}", "flag": True, "y": i % 2}
        for i in range(40)
    ]
    return [row | changed.get(i, {}) for i, row in enumerate(plain)]


def written(folder: Path, kind: str, found: list[dict[str, object]]) -> object:
    """Returns a source of these rows."""
    folder.mkdir(exist_ok=True)
    path = folder / f"rows.{kind}"
    if kind == "csv":
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in found]
        path.write_text("\n".join([",".join(found[0]), *lines]) + "\n")
        return CsvSource(path=str(path))
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in found))
        return JsonLinesSource(path=str(path))
    pq.write_table(pa.Table.from_pylist(found), path, row_group_size=9)
    return ParquetSource(path=str(path))


def built(folder: Path, kind: str, rules: tuple[AnyRule, ...], found=None, **etl):
    source = written(folder, kind, rows() if found is None else found)
    cfg = small_config(folder, None, COLUMNS, source=source, rules=rules, **etl)
    validate(cfg)
    published, _ = build(cfg)
    dataset = folder / "dataset"
    return published, json.loads((dataset / published.report).read_text()), dataset


def with_policy(policy: str) -> tuple[AnyRule, ...]:
    return tuple(dataclasses.replace(rule, otherwise=policy) for rule in RULES)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("chunk_rows, workers", [(1, 3), (7, 1), (1000, 2)])
def test_they_are_left_out_counted_and_written_down(kind, chunk_rows, workers, tmp_path):
    """The dataset is that of the other rows; the quarantine has each once, in order, where it stands and why."""
    good = built(tmp_path / "good", kind, (), [row for i, row in enumerate(rows()) if i not in BROKEN])[0]
    published, report, dataset = built(tmp_path, kind, with_policy("quarantine"), chunk_rows=chunk_rows, workers=workers)
    assert published.dataset_id == good.dataset_id
    assert (report["rows"]["read"], report["rows"]["broken"], report["rows"]["kept"]) == (40, 5, 35)
    assert report["rules"] == {
        "x from 0 to 50": 2, "kind is one of a, b": 1, "secret matches s[0-9]+": 1, "at to 2025-01-01": 1
    }  # fmt: skip
    found = [json.loads(line) for line in (dataset / report["quarantine"]).read_text().splitlines()]
    place = {"csv": ("line", 2), "jsonl": ("line", 1), "parquet": ("row", 1)}[kind]
    assert [row["where"] for row in found] == [f"{tmp_path}/rows.{kind} {place[0]} {i + place[1]}" for i in BROKEN]
    assert found[0]["why"] == "column 'x': 99.0, not so: x from 0 to 50"
    assert found[3]["why"] == "column 'secret': a value (hidden: the column is sensitive), not so: secret matches s[0-9]+"
    assert (found[0]["values"]["x"], found[0]["values"]["y"]) == ("99.0", "1.0")
    assert not [path for path in dataset.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


def test_dropped_rows_are_counted_and_not_written_down(tmp_path, capsys):
    _, report, dataset = built(tmp_path, "csv", with_policy("drop"))
    assert report["rows"]["broken"] == 5
    assert not (dataset / "quarantine").exists()
    reports.show(report)
    told = capsys.readouterr().out
    assert "5 left out: they break a rule\n" in told
    assert "  2 not so: x from 0 to 50\n" in told


def test_the_first_one_ends_the_build(tmp_path):
    with pytest.raises(DataError, match=r"rows\.csv line 5: column 'x': 99\.0, not so: x from 0 to 50; mend the row"):
        built(tmp_path, "csv", RULES)


@pytest.mark.parametrize("most, ends", [(0.05, False), (0.049, True)])
def test_more_than_a_share_end_the_build(most, ends, tmp_path):
    """2 of 40 rows break it."""
    rule = Within(column="x", low="0", high="50", otherwise="drop", most=most)
    if not ends:
        assert built(tmp_path, "csv", (rule,))[1]["rows"]["broken"] == 2
        return
    told = r"2 of 40 rows break a rule of config\.etl\.rules: x from 0 to 50; most=0\.049 are allowed\. The first: .*line 5"
    with pytest.raises(DataError, match=told):
        built(tmp_path, "csv", (rule,))


def test_more_bad_rows_than_a_share_end_the_build(tmp_path):
    (tmp_path / "bad.csv").write_text(
        "id,x,kind,at,secret,flag,y\n" + "1,z,a,2024-01-01,s,1,1\n" + "2,1,a,2024-01-01,s,1,1\n" * 9
    )
    cfg = small_config(
        tmp_path, None, COLUMNS, source=CsvSource(path=str(tmp_path / "bad.csv")), bad_rows="drop", most_bad=0.05
    )  # fmt: skip
    with pytest.raises(DataError, match=r"1 of 10 rows are not what config\.etl\.columns says, more than .*most_bad=0\.05"):
        build(cfg)


def test_an_expression_that_looks_at_other_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not row-wise: what it says of a row depends on the rows beside it"):
        built(tmp_path, "csv", (Holds(expression="x >= x.mean()", otherwise="drop"),), rows({}))


@pytest.mark.parametrize("policy", ["drop", "quarantine", "refuse"])
@pytest.mark.parametrize("memory_bytes", [1 << 20, 1 << 29])
def test_all_rows_of_a_key_that_stands_twice(policy, memory_bytes, tmp_path):
    """Equal rows are one; different rows with one key are all left out."""
    found = rows({})
    found = [*found, found[3], found[5] | {"x": 7.0}, found[5] | {"x": 8.0}, found[9] | {"kind": "a"}]
    changed = {"key": ("id",), "memory_bytes": memory_bytes}
    if policy == "refuse":
        with pytest.raises(DataError, match=r"key id [59]: another row has its key, not so: the key is unique; mend the row"):
            built(tmp_path, "csv", (UniqueKey(),), found, **changed)
        return
    published, report, dataset = built(tmp_path, "csv", (UniqueKey(otherwise=policy),), found, **changed)
    assert (report["rows"]["broken"], report["rows"]["duplicates"], report["rows"]["kept"]) == (5, 1, 38)
    ids = [i for split in published.splits for i in stored_table(dataset, published, split)["key_id"].to_pylist()]
    assert sorted(ids) == [i for i in range(40) if i not in (5, 9)]
    if policy == "quarantine":
        lines = [json.loads(line) for line in (dataset / report["quarantine"]).read_text().splitlines()]
        assert sorted((line["values"]["id"], line["values"]["x"]) for line in lines) == [
            ("5", "2.5"), ("5", "7.0"), ("5", "8.0"), ("9", "4.5"), ("9", "4.5"),
        ]  # fmt: skip


def test_a_share_of_doubled_keys_too(tmp_path):
    found = [*rows({}), rows({})[5] | {"x": 7.0}]
    with pytest.raises(DataError, match=r"2 of 41 rows break a rule of .*: the key is unique; most=0\.01"):
        built(tmp_path, "csv", (UniqueKey(otherwise="drop", most=0.01),), found, key=("id",))


@pytest.mark.parametrize(
    "missing, constant, wanted", [("fill", 0.0, 2.0), ("mean", 0.0, 2.0), ("constant", -7.0, -7.0), ("drop", 0.0, None)]
)
def test_missing_numbers(missing, constant, wanted, tmp_path):
    found = rows({7: {"x": None}})
    columns = (ID, numeric("x", missing=missing, constant=constant), *COLUMNS[2:])
    cfg = small_config(tmp_path, None, columns, source=written(tmp_path, "csv", found), storage="columns")
    validate(cfg)
    published, _ = build(cfg)
    tables = {split: stored_table(tmp_path / "dataset", published, split) for split in published.splits}
    stored = {i: x for table in tables.values() for i, x in zip(table["id"].to_pylist(), table["x"].to_pylist(), strict=True)}
    there = [i * 0.5 for i in tables["train"]["id"].to_pylist() if i != 7]
    if missing == "drop":
        assert sorted(stored) == [i for i in range(40) if i != 7]
    elif missing == "mean":
        assert stored[7] == np.float32(sum(there) / len(there))
    elif missing == "fill":
        assert stored[7] == np.float32(sorted(there)[(len(there) - 1) // 2])
    else:
        assert stored[7] == wanted


def test_a_dry_run_tells_how_many_break_a_rule(tmp_path, capsys):
    source = written(tmp_path, "csv", rows())
    dry_run(small_config(tmp_path, None, COLUMNS, source=source, rules=RULES))
    assert "  2 of 40 break a rule: x from 0 to 50\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "etl, told",
    [
        ({"rules": (Within(column="z", low="0"),)}, r"rules\[0\]\.column='z' is not in config\.etl\.columns"),
        ({"rules": (Within(column="x"),)}, "has neither low nor high"),
        ({"rules": (Within(column="kind", low="a"),)}, "'kind' is string; Within is for columns of int64, float64, timestamp"),
        ({"rules": (Matches(column="x", pattern="1"),)}, "'x' is float64; Matches is for columns of string"),
        ({"rules": (Matches(column="kind", pattern="("),)}, "is no regular expression"),
        ({"rules": (UniqueKey(),)}, "needs config.etl.key and dedup='exact'"),
        ({"rules": (NotNull(column="x", otherwise="ignore"),)}, "must be one of 'refuse', 'drop', 'quarantine'"),
        ({"rules": (NotNull(column="x", most=2.0),)}, "must be from 0"),
        ({"columns": (ID, numeric("x", constant=1.0))}, "set missing='constant'"),
        ({"columns": (ID, Column(name="x", type="string", kind="categorical", missing="mean"))}, "is for numeric features"),
    ],
)
def test_what_a_config_cannot_say(etl, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        validate(small_config(tmp_path, None, **{"columns": COLUMNS, **etl}))
