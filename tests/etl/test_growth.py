"""A source that grows: new rows are appended once, to what was fitted before; other versions are built anew."""

import dataclasses
import datetime as dt
import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlprod import datasets, manifest
from mlprod.config import ByTime, Classes, Column, CsvSource, ParquetSource, SqlSource, UniqueKey, categorical, numeric
from mlprod.errors import ConfigError, DataError
from mlprod.etl import publish
from mlprod.etl.growth import earlier
from mlprod.etl.run import build
from mlprod.etl.settle import Known
from mlprod.hashing import Hash128
from mlprod.manifest import Manifest
from mlprod.store import open_store
from mlprod.validation import validate
from tests.plain import ID, small_config, stored_table

COLUMNS = (ID, numeric("x"), categorical("kind"))
Row = tuple[int, float, str, int]


def row(i: int) -> Row:
    return i, i * 0.25, "abcd"[i % 4], i % 2


def write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["id,x,kind,y", *(",".join(map(str, r)) for r in rows)]) + "\n")


def config(folder: Path, **etl):
    usual = {"source": CsvSource(path=str(folder / "rows")), "grow": "append", "group_rows": 8, "columns": COLUMNS}
    cfg = small_config(folder, None, **{**usual, **etl})
    validate(cfg)
    return cfg


def ids(folder: Path, published: Manifest, name: str = "id") -> list[int]:
    return sorted(i for s in published.splits for i in stored_table(folder / "dataset", published, s)[name].to_pylist())


def splits_of(folder: Path, published: Manifest) -> dict[int, str]:
    return {i: s for s in published.splits for i in stored_table(folder / "dataset", published, s)["id"].to_pylist()}


def verified(folder: Path, cfg) -> None:
    with (folder / "log").open("a") as log:
        datasets.verify(open_store(cfg.dataset), cfg, 0, Console(file=log))


@pytest.mark.parametrize("key", [(), ("id",)])
@pytest.mark.parametrize("dedup", ["exact", "none", "key"])
def test_new_files_are_appended(key, dedup, tmp_path, capsys):
    """Old files are neither read nor written again; the transform is the same text; no row moves; rows are there once."""
    if dedup == "key" and not key:
        pytest.skip("dedup='key' needs a key")
    cfg = config(
        tmp_path,
        key=key,
        dedup=dedup,
        columns=COLUMNS if not key else (Column(name="id", type="int64", role="input"), *COLUMNS[1:]),
    )
    name = "key_id" if key else "id"
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    first, fresh = build(cfg)
    assert fresh
    before = {p: p.read_bytes() for p in (tmp_path / "dataset").rglob("*") if p.is_file() and "work" not in p.parts}

    write(tmp_path / "rows" / "2.csv", [row(i) for i in range(60, 100)])
    second, fresh = build(cfg)
    assert fresh
    assert (second.version, second.parent) == (2, 1)
    assert ids(tmp_path, second, name) == list(range(100))
    assert (second.features, second.features_sha256) == (first.features, first.features_sha256)
    for split in first.splits:
        assert second.splits[split][: len(first.splits[split])] == first.splits[split]
    assert all(path.read_bytes() == body for path, body in before.items())
    report = json.loads((tmp_path / "dataset" / second.report).read_text())
    assert (report["rows"]["read"], report["rows"]["kept"], report["appended"]["rows_before"]) == (40, 40, 60)
    assert build(cfg) == (second, False)
    verified(tmp_path, cfg)
    assert "anew" not in capsys.readouterr().err


@pytest.mark.parametrize("workers, chunk_rows", [(1, 7), (3, 1000)])
def test_what_is_appended_does_not_depend_on_how_it_is_read(workers, chunk_rows, tmp_path):
    versions = []
    for name, more in (("a", {}), ("b", {"workers": workers, "chunk_rows": chunk_rows, "memory_bytes": 1 << 20})):
        cfg = config(tmp_path / name, **more)
        for part, few in enumerate((range(50), range(40, 90), range(90, 120))):
            write(tmp_path / name / "rows" / f"{part}.csv", [row(i) for i in few])
            versions.append(build(cfg)[0].dataset_id)
    assert versions[:3] == versions[3:]


def test_rows_that_come_again_are_known(tmp_path):
    """Of dedup `exact` equal rows, of `key` rows of a key that is there."""
    write(tmp_path / "a" / "rows" / "1.csv", [row(i) for i in range(50)])
    write(tmp_path / "b" / "rows" / "1.csv", [row(i) for i in range(50)])
    again = [*[row(i) for i in range(10, 60)], (5, 77.0, "a", 1)]
    exact, key = (
        config(tmp_path / "a"),
        config(tmp_path / "b", dedup="key", key=("id",), columns=(Column(name="id", type="int64", role="input"), *COLUMNS[1:])),
    )
    for cfg, folder, known, kept, name in ((exact, "a", 40, 11, "id"), (key, "b", 41, 10, "key_id")):
        build(cfg)
        write(tmp_path / folder / "rows" / "2.csv", again)
        second, _ = build(cfg)
        rows = json.loads((tmp_path / folder / "dataset" / second.report).read_text())["rows"]
        assert (rows["read"], rows["known"], rows["kept"]) == (51, known, kept)
        found = ids(tmp_path / folder, second, name)
        assert found == sorted([*range(60), *([5] if folder == "a" else [])])


def test_a_file_that_grew_is_read_again(tmp_path, capsys):
    """A file with more lines is another file: its old rows are known, its new ones are appended."""
    cfg = config(tmp_path)
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(50)])
    build(cfg)
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(70)])
    second, _ = build(cfg)
    assert ids(tmp_path, second) == list(range(70))
    assert "1 file(s) that version 1 was built from are changed or gone" in capsys.readouterr().err


def test_copies_are_counted_on(tmp_path):
    """Of dedup `none`: a copy in a later version has another row id than those before."""
    cfg = config(tmp_path, dedup="none")
    for part in range(3):
        write(tmp_path / "rows" / f"{part}.csv", [row(i) for i in range(30)])
        published, _ = build(cfg)
    assert ids(tmp_path, published) == sorted([*range(30)] * 3)
    row_ids = ids(tmp_path, published, "row_id")
    whole, _ = build(config(tmp_path / "whole", dedup="none", grow="refit", source=cfg.etl.source))
    assert row_ids == ids(tmp_path / "whole", whole, "row_id")
    assert len(set(row_ids)) == 90


def test_nothing_new_is_no_version(tmp_path):
    cfg = config(tmp_path)
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(50)])
    first, _ = build(cfg)
    write(tmp_path / "rows" / "2.csv", [row(i) for i in range(10)])
    assert build(cfg) == (first, False)
    assert not list((tmp_path / "dataset" / "work").glob("*/"))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"hash_seed": 1}, "etl.hash_seed is not as it was for version 1"),
        ({"columns": (ID, numeric("x"))}, "is not as it was for version 1"),
    ],
)
def test_another_config_is_built_anew(change, told, tmp_path, capsys):
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(50)])
    build(config(tmp_path))
    write(tmp_path / "rows" / "2.csv", [row(i) for i in range(50, 70)])
    second, _ = build(config(tmp_path, **change))
    assert (second.version, second.parent) == (2, 0)
    assert told in capsys.readouterr().err


def test_refit_builds_anew_and_append_begins_anew_behind_it(tmp_path, capsys):
    """A version without an index cannot be appended to: the next one is built anew, with one."""
    cfg, refit = config(tmp_path), config(tmp_path, grow="refit")
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(50)])
    build(refit)
    write(tmp_path / "rows" / "2.csv", [row(i) for i in range(50, 70)])
    second, _ = build(cfg)
    assert second.parent == 0
    assert "has no index of its rows" in capsys.readouterr().err
    write(tmp_path / "rows" / "3.csv", [row(i) for i in range(70, 90)])
    third, _ = build(cfg)
    assert third.parent == 2
    fourth, fresh = build(refit)
    assert (fourth.version, fourth.parent, fresh) == (4, 0, True)
    assert ids(tmp_path, fourth) == list(range(90))
    assert build(refit) == (fourth, False)
    verified(tmp_path, cfg)


def test_a_version_that_was_appended_to_gives_what_the_source_gives(tmp_path):
    """The rows are those of a build of all at once, each in the same split."""
    cfg = config(tmp_path)
    for part in range(4):
        write(tmp_path / "rows" / f"{part}.csv", [row(i) for i in range(part * 25, part * 25 + 30)])
        published, _ = build(cfg)
    whole, _ = build(config(tmp_path / "whole", grow="refit", source=cfg.etl.source))
    assert splits_of(tmp_path, published) == splits_of(tmp_path / "whole", whole)
    assert ids(tmp_path, published, "row_id") == ids(tmp_path / "whole", whole, "row_id")


# ---- tables ------------------------------------------------------------------------------------------------------------


def insert(folder: Path, rows: list[tuple[int, float, str, int, str]]) -> None:
    folder.mkdir(exist_ok=True)
    with sqlite3.connect(folder / "rows.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS t (id INTEGER, x REAL, kind TEXT, y INTEGER, at TIMESTAMP)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", rows)
    db.close()


def timed(i: int, minute: int) -> tuple[int, float, str, int, str]:
    return (*row(i), str(dt.datetime(2024, 1, 1) + dt.timedelta(minutes=minute)))


def table_config(folder: Path, late: float = 0.0, **etl):
    source = SqlSource(url=f"sqlite:///{folder}/rows.db", table="t", watermark="at", late=late)
    return config(folder, source=source, **etl)


@pytest.mark.parametrize("late, found", [(0.0, 101), (600.0, 102)])
def test_nightly_loads_by_watermark(late, found, tmp_path, capsys):
    """From the newest watermark on, itself included; rows that come late are read as far behind it as the config says."""
    cfg = table_config(tmp_path, late)
    insert(tmp_path, [timed(i, i) for i in range(60)])
    build(cfg)
    insert(tmp_path, [timed(i, i) for i in range(60, 100)])
    insert(tmp_path, [timed(200, 59), timed(201, 50)])  # at the newest watermark, and nine minutes before
    second, _ = build(cfg)
    report = json.loads((tmp_path / "dataset" / second.report).read_text())["rows"]
    assert len(ids(tmp_path, second)) == found
    assert report["read"] == (42 if late == 0.0 else 52)
    assert "2 row(s) came late behind the watermark 2024-01-01 00:59:00" in capsys.readouterr().err
    insert(tmp_path, [timed(300, 150)])
    third, _ = build(cfg)
    assert (third.parent, len(ids(tmp_path, third))) == (2, found + 1)
    verified(tmp_path, cfg)


def test_late_rows_are_not_looked_for_before_the_start(tmp_path):
    """What the config leaves out by `start` stays out, however far behind the watermark rows are read again."""
    source = SqlSource(url=f"sqlite:///{tmp_path}/rows.db", table="t", watermark="at", late=86_400.0, start="2024-01-01 00:20:00")
    cfg = config(tmp_path, source=source)
    insert(tmp_path, [timed(i, i) for i in range(80)])
    first, _ = build(cfg)
    found = ids(tmp_path, first)
    assert min(found) >= 20
    insert(tmp_path, [timed(i, i) for i in range(80, 120)])
    second, _ = build(cfg)
    assert (second.parent, ids(tmp_path, second)) == (1, [*found, *range(80, 120)])


def test_rows_that_went_are_told_and_stay(tmp_path, capsys):
    cfg = table_config(tmp_path)
    insert(tmp_path, [timed(i, i) for i in range(60)])
    build(cfg)
    with sqlite3.connect(tmp_path / "rows.db") as db:
        db.execute("DELETE FROM t WHERE id < 3")
    db.close()
    insert(tmp_path, [timed(i, i) for i in range(60, 80)])
    second, _ = build(cfg)
    assert ids(tmp_path, second) == list(range(80))
    assert "3 row(s) went behind the watermark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "watermark, by, wanted",
    [
        ("100", 7.9, "93"), ("100.5", 0.25, "100.25"), ("2024-03-01", 1.0, "2024-02-29"), ("2024-03-01", 86401.0, "2024-02-28"),
        ("2024-03-01 00:00:10", 11.0, "2024-02-29 23:59:59"),
        ("2024-03-01 00:00:00.500000+00:00", 0.5, "2024-02-29 23:59:59.500000+00:00"),
    ],
)  # fmt: skip
def test_how_far_behind_a_watermark(watermark, by, wanted):
    assert earlier(watermark, by) == wanted


def test_a_table_without_a_watermark_is_read_whole(tmp_path):
    source = SqlSource(url=f"sqlite:///{tmp_path}/rows.db", table="t")
    cfg = config(tmp_path, source=source)
    insert(tmp_path, [timed(i, i) for i in range(60)])
    build(cfg)
    insert(tmp_path, [timed(i, i) for i in range(60, 80)])
    second, _ = build(cfg)
    assert (second.parent, ids(tmp_path, second)) == (1, list(range(80)))
    assert build(cfg) == (second, False)


# ---- what does not fit what was fitted ---------------------------------------------------------------------------------


def test_a_class_that_is_new_is_refused(tmp_path):
    cfg = config(tmp_path, label=Classes(column="kind"), columns=(ID, numeric("x")))
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    build(cfg)
    write(tmp_path / "rows" / "2.csv", [(100, 1.0, "new", 1)])
    with pytest.raises(DataError, match=r"1 class\(es\) of 'kind' that version 1 does not know, such as 'new'; build anew"):
        build(cfg)


def test_a_key_that_would_be_in_two_splits_is_refused(tmp_path):
    columns = (Column(name="id", type="int64", role="input"), numeric("x"), categorical("kind"))
    cfg = config(tmp_path, key=("id",), columns=columns, split=ByTime(column="x", eval="12.0"))
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    build(cfg)
    write(tmp_path / "rows" / "2.csv", [(5, 99.0, "a", 1)])
    with pytest.raises(DataError, match=r"1 new row\(s\) have a key whose rows of a version before are in another split"):
        build(cfg)


def test_a_key_that_is_there_already_breaks_a_unique_key(tmp_path):
    columns = (Column(name="id", type="int64", role="input"), numeric("x"), categorical("kind"))
    cfg = config(tmp_path, key=("id",), columns=columns, rules=(UniqueKey(otherwise="drop"),))
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    build(cfg)
    write(tmp_path / "rows" / "2.csv", [(5, 99.0, "a", 1), row(70)])
    second, _ = build(cfg)
    assert ids(tmp_path, second, "key_id") == [*range(60), 70]


def test_how_new_rows_differ_is_told(tmp_path, capsys):
    cfg = config(tmp_path)
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(400)])
    build(cfg)
    write(tmp_path / "rows" / "2.csv", [(i, 500.0 + i, "new" if i % 3 else "a", i % 2) for i in range(400, 800)])
    second, _ = build(cfg)
    report = json.loads((tmp_path / "dataset" / second.report).read_text())
    told = "\n".join(report["warnings"])
    assert "column 'x' has drifted: population stability index" in told
    assert "column 'kind': 66.8% of the new rows have a value that is in no vocabulary (before 0.0%)" in told
    page = (tmp_path / "dataset" / second.report).with_suffix(".html").read_text()
    assert "These rows are appended to version 1, which has 400 rows" in page
    same = config(tmp_path / "same")
    write(tmp_path / "same" / "rows" / "1.csv", [row(i) for i in range(800) if i % 8 < 4])
    build(same)
    write(tmp_path / "same" / "rows" / "2.csv", [row(i) for i in range(800) if i % 8 >= 4])
    report = json.loads((tmp_path / "same" / "dataset" / build(same)[0].report).read_text())
    assert [line for line in report["warnings"] if "drifted" in line and "'x'" in line] == []


# ---- columns that are not what they were -------------------------------------------------------------------------------


def test_a_new_or_missing_column_is_refused_unless_the_config_takes_it(tmp_path):
    cfg, wide = config(tmp_path), config(tmp_path, drift="widen")
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    build(cfg)
    path = tmp_path / "rows" / "2.csv"
    path.write_text("id,x,kind,y,z\n70,1.5,a,1,9\n")
    with pytest.raises(DataError, match=r"2\.csv: column 'z' is new since version 1; add it to config\.etl\.columns .*'widen'"):
        build(cfg)
    second, _ = build(wide)
    assert ids(tmp_path, second) == [*range(60), 70]
    path = tmp_path / "rows" / "3.csv"
    path.write_text("id,x,y\n80,1.5,1\n")
    with pytest.raises(DataError, match=r"3\.csv: column 'kind' of version 2 is missing; mend the source, or .*'widen'"):
        build(cfg)
    third, _ = build(wide)
    assert ids(tmp_path, third) == [*range(60), 70, 80]


def test_a_column_of_another_type_is_refused_with_both_types(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    table = pa.table({"id": list(range(60)), "x": [i * 0.5 for i in range(60)], "kind": ["a", "b"] * 30, "y": [0, 1] * 30})
    pq.write_table(table, folder / "1.parquet")
    cfg = config(tmp_path, source=ParquetSource(path=str(folder)))
    build(cfg)
    more = pa.table({"id": [100, 101], "x": ["1.5", "2.5"], "kind": ["a", "b"], "y": [0, 1]})
    pq.write_table(more, folder / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet: column 'x' is string, for version 1 it was double; mend the source"):
        build(cfg)
    second, _ = build(config(tmp_path, source=ParquetSource(path=str(folder)), drift="widen"))
    assert ids(tmp_path, second) == [*range(60), 100, 101]


# ---- deletion and retention --------------------------------------------------------------------------------------------

CANARY = "canary-4711"


def people(folder: Path, few: range, canary: bool = False) -> None:
    rows = [(f"person-{i}", i * 0.5, f"town-{i}", i % 2) for i in few]
    rows += [(CANARY, 3.25, f"only-{CANARY}", 1), (CANARY, "bad", f"only-{CANARY}", 1)] if canary else []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{few.start}.csv").write_text("who,x,kind,y\n" + "".join(",".join(map(str, r)) + "\n" for r in rows))


@pytest.mark.parametrize("grow", ["append", "refit"])
def test_an_excluded_key_is_nowhere(grow, tmp_path, capsys):
    """Not in rows, vocabularies, reports, the index or the quarantine, once the versions before are gone; nor comes it again."""
    columns = (Column(name="who", type="string", role="input"), numeric("x"), categorical("kind"))
    more = {"key": ("who",), "columns": columns, "bad_rows": "quarantine", "grow": grow}
    people(tmp_path / "rows", range(60), canary=True)
    build(config(tmp_path, **more))
    there = [p for p in (tmp_path / "dataset").rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    assert {p.parent.name for p in there} >= {"features", "quarantine", "000001"}
    forget = tmp_path / "forget.csv"
    forget.write_text(f"who\n{CANARY}\nperson-3\n")
    cfg = config(tmp_path, **more, exclude_keys=str(forget), keep_versions=1)
    second, fresh = build(cfg)
    assert (fresh, second.parent) == (True, 0)
    assert [p for p in (tmp_path / "dataset").rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()] == []
    assert manifest.versions(open_store(cfg.dataset)) == [2]
    report = json.loads((tmp_path / "dataset" / second.report).read_text())["rows"]
    assert (report["excluded"], report["bad"], report["kept"]) == (3, 0, 59)
    people(tmp_path / "rows", range(60, 70), canary=True)
    third, _ = build(cfg)
    assert [p for p in (tmp_path / "dataset").rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()] == []
    assert sum(map(third.num_rows, third.splits)) == 69
    assert (third.parent == 2) == (grow == "append")
    verified(tmp_path, cfg)


def test_a_key_that_the_source_calls_otherwise(tmp_path):
    """Rows that cannot be read are known by it too."""
    people(tmp_path / "rows", range(60), canary=True)
    (tmp_path / "forget.csv").write_text(f"name\n{CANARY}\n")
    columns = (Column(name="name", source="who", type="string", role="input"), numeric("x"), categorical("kind"))
    cfg = config(tmp_path, key=("name",), columns=columns, bad_rows="quarantine", exclude_keys=str(tmp_path / "forget.csv"))
    build(cfg)
    assert [p for p in (tmp_path / "dataset").rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()] == []


@pytest.mark.parametrize(
    "text, told",
    [
        ("other\n1\n", "has no column 'id'"),
        ("id\nx\n", "'x' is not int64"),
        ("id\n", "names no key"),
    ],
)
def test_a_list_of_keys_that_cannot_be_read(text, told, tmp_path):
    (tmp_path / "forget.csv").write_text(text)
    columns = (Column(name="id", type="int64", role="input"), *COLUMNS[1:])
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    with pytest.raises(DataError, match=told):
        build(config(tmp_path, key=("id",), columns=columns, exclude_keys=str(tmp_path / "forget.csv")))


@pytest.mark.parametrize("grow", ["append", "refit"])
def test_old_versions_go(grow, tmp_path):
    """Files that a version that stays names stay; each version that stays is whole."""
    for keep, part in ((0, 0), (0, 1), (0, 2), (2, 3), (1, 4)):
        write(tmp_path / "rows" / f"{part}.csv", [row(i) for i in range(part * 30, part * 30 + 30)])
        cfg = config(tmp_path, grow=grow, keep_versions=keep)
        published, _ = build(cfg)
        known = manifest.versions(open_store(cfg.dataset))
        assert known == list(range(1 if not keep else part + 2 - keep, part + 2))
        verified(tmp_path, cfg)
    assert ids(tmp_path, published) == list(range(150))
    named = {p.parent.name for p in (tmp_path / "dataset" / "files").rglob("*.parquet")}
    assert named == ({f"{i:06d}" for i in range(1, 6)} if grow == "append" else {"000005"})


@pytest.mark.parametrize(
    "etl, told",
    [
        ({"exclude_keys": "forget.csv"}, r"exclude_keys='forget\.csv' needs config\.etl\.key"),
        ({"source": SqlSource(url="sqlite:///a.db", table="t", watermark="x"), "dedup": "none"}, "needs dedup='exact' or 'key'"),
        ({"grow": "appended"}, "must be one of 'refit', 'append'"),
    ],
)
def test_what_a_config_cannot_say(etl, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        config(tmp_path, **etl)


# ---- the index ---------------------------------------------------------------------------------------------------------

WORD = st.integers(0, 3)
PAIR = st.tuples(WORD, WORD, WORD, WORD)


def hashes(words: list[tuple[int, ...]]) -> tuple[Hash128, Hash128]:
    array = np.array(words, np.uint64).reshape(-1, 4)
    return Hash128(array[:, 0], array[:, 1]), Hash128(array[:, 2], array[:, 3])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PAIR, max_size=20), st.lists(PAIR, max_size=20))
def test_what_is_known_of_a_row(known, rows):
    """Against a plain count."""
    known = sorted(known)
    split = {pair[:2]: sum(pair[:2]) % 3 for pair in known}
    index = Known(*hashes(known), np.array([split[pair[:2]] for pair in known], np.int8))
    of_key, equal, of_split = index.counts(*hashes(rows))
    assert of_key.tolist() == [sum(k[:2] == r[:2] for k in known) for r in rows]
    assert equal.tolist() == [known.count(r) for r in rows]
    assert of_split.tolist() == [split.get(r[:2], -1) for r in rows]


def test_a_kill_between_versions_leaves_the_one_before(tmp_path, monkeypatch):
    """An append that breaks off leaves the version; the same command goes on."""
    cfg = config(tmp_path)
    write(tmp_path / "rows" / "1.csv", [row(i) for i in range(60)])
    first, _ = build(cfg)
    write(tmp_path / "rows" / "2.csv", [row(i) for i in range(60, 90)])
    with monkeypatch.context() as patched:
        patched.setattr(publish.manifest, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(Exception, match="was stopped"):
            build(cfg)
    assert manifest.read(open_store(cfg.dataset)) == first
    second, _ = build(cfg)
    assert ids(tmp_path, second) == list(range(90))
    verified(tmp_path, cfg)
    assert dataclasses.replace(second, version=1).version == 1
