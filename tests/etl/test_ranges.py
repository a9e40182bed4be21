"""Key ranges and queries, against SQLite: each row once, whatever the key holds; a dataset that parts do not change."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from mlprod.config import Column, SqlSource
from mlprod.errors import ConfigError, DataError
from mlprod.etl import ranges, sources
from mlprod.etl.dry_run import look
from mlprod.etl.run import build
from mlprod.predict import input_source
from mlprod.validation import validate_etl
from tests.plain import numbered, small_config

ROWS = [(i, i * 0.5, i % 2) for i in range(300)]


def database(folder: Path, *statements: str, key: str = "id INTEGER PRIMARY KEY") -> str:
    """Returns the URL of a file with a table `t` of 300 rows `id, x, y`, on which the statements were run."""
    with contextlib.closing(sqlite3.connect(folder / "rows.db")) as db, db:
        db.execute(f"CREATE TABLE t ({key}, x REAL, y INTEGER)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", ROWS)
        for statement in statements:
            db.execute(statement)
    return f"sqlite:///{folder / 'rows.db'}"


def ids_of(source: SqlSource, chunk_rows: int) -> list[list]:
    """Returns the key of every row, a list a part."""
    ranged = sources.planned(source, chunk_rows, lambda tasks: {name: task() for name, task in tasks.items()})
    columns = [Column(name="id", type="string")]
    parts = sources.parts(ranged, ["id"], chunk_rows)
    return [[i for chunk in ranges.read(ranged, part, columns, chunk_rows) for i in chunk.columns["id"]] for part in parts]


def test_the_same_dataset_in_ranges_and_from_a_csv(tmp_path):
    """By a table, cut or whole, and by a query."""
    wanted = build(small_config(tmp_path / "csv", numbered(300)))[0].dataset_id
    url = database(tmp_path)
    queried = SqlSource(url=url, query="SELECT id, x, y FROM t -- all", watermark="id")
    for i, (source, chunk_rows) in enumerate(
        [(SqlSource(url=url, table="t"), 10), (SqlSource(url=url, table="t"), 999), (queried, 7)]
    ):
        made = build(small_config(tmp_path / str(i), source=source, chunk_rows=chunk_rows, workers=2))[0]
        assert made.dataset_id == wanted


def test_a_table_without_a_watermark_is_told_by_count_and_last_key(tmp_path):
    """So a build of it goes on after a kill, and is not made twice; a row that changes in place does not show."""
    source = SqlSource(url=database(tmp_path), table="t")
    cfg = small_config(tmp_path, source=source)
    assert build(cfg)[1]
    assert not build(cfg)[1]
    seen = [sources.identify(source, ["id"])]
    assert seen[0].stable
    assert "299" not in str(seen[0].description)  # the column may be sensitive
    for statement in ("UPDATE t SET id = 999 WHERE id = 299", "DELETE FROM t WHERE id = 7"):
        with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as db, db:
            db.execute(statement)
        seen.append(sources.identify(source, ["id"]))
    assert len({str(found.description) for found in seen}) == 3
    queried = SqlSource(url=source.url, query="SELECT id FROM t")
    assert not sources.identify(queried, ["id"]).stable  # it has neither


def test_parts_have_four_chunks_of_rows(tmp_path):
    source = SqlSource(url=database(tmp_path, "DELETE FROM t WHERE id BETWEEN 20 AND 119"), table="t")
    assert [len(ids) for ids in ids_of(source, 10)] == [40] * 5
    assert [len(ids) for ids in ids_of(source, 50)] == [200]


def test_rows_without_a_key_are_in_the_first_part(tmp_path):
    """SQLite's `INT PRIMARY KEY` may be NULL."""
    source = SqlSource(
        url=database(tmp_path, "INSERT INTO t VALUES (NULL, 1, 1), (NULL, 2, 0)", key="id INT PRIMARY KEY"), table="t"
    )
    found = ids_of(source, 10)
    assert [len(ids) for ids in found] == [40, *[40] * 6, 22]
    assert found[0].count(None) == 2
    assert sorted(i for ids in found for i in ids if i is not None) == list(range(300))


def test_a_key_that_is_no_integer_after_all_is_not_cut(tmp_path):
    """As SQLite allows."""
    source = SqlSource(url=database(tmp_path, "UPDATE t SET id = 'a' || id", key="id INT PRIMARY KEY"), table="t")
    assert [len(ids) for ids in ids_of(source, 10)] == [300]


@pytest.mark.parametrize("start, stop, wanted", [("290", "", 10), ("", "7", 7), ("100", "110", 10)])
def test_start_and_stop_apply_to_a_query(tmp_path, start, stop, wanted):
    """As values of the type that the column has, though the query declares none."""
    url = database(tmp_path)
    source = SqlSource(url=url, query="SELECT id + 0 AS id, x, y FROM t", watermark="id", start=start, stop=stop)
    assert len(ids_of(source, 100)[0]) == wanted
    assert sources.identify(source, ["id"]).description["rows"] == wanted


def test_a_column_that_stands_twice_is_refused(tmp_path):
    source = SqlSource(url=database(tmp_path), query="SELECT id, x, x, y FROM t")
    with pytest.raises(DataError, match="the query has several columns 'x'"):
        sources.identify(source, ["id"])


def test_another_query_is_another_build(tmp_path):
    url = database(tmp_path)
    found = [sources.identify(SqlSource(url=url, query=f"SELECT * FROM t{more}"), ["id"]) for more in ("", " WHERE id >= 0")]
    assert found[0].description["rows"] == found[1].description["rows"]
    assert found[0] != found[1]


def test_a_dry_run_knows_the_columns_of_a_query(tmp_path):
    seen = look(small_config(tmp_path, source=SqlSource(url=database(tmp_path), query="SELECT *, 1 AS z FROM t")).etl)
    assert (seen.unused, seen.rows.num_rows) == (["z"], 300)


def test_predictions_take_a_query_to_another_database(tmp_path):
    """Its `--input` is a URL: the query stays."""
    etl = small_config(tmp_path, source=SqlSource(url="sqlite:///none.db", query="SELECT id, x FROM t WHERE id < 3")).etl
    chunks = list(sources.chunks(input_source(etl, database(tmp_path)), ["id", "x"], 2))
    assert [chunk.columns["id"] for chunk in chunks] == [(0, 1), (2,)]


@pytest.mark.parametrize("fields, told", [
    ({"table": "t", "query": "SELECT 1"}, "give a table's name or a query"), ({}, "give a table's name or a query"),
    ({"query": " "}, "give a table's name or a query"),
])  # fmt: skip
def test_a_source_is_a_table_or_a_query(tmp_path, fields, told):
    with pytest.raises(ConfigError, match=told):
        validate_etl(small_config(tmp_path, source=SqlSource(url="sqlite:///x.db", **fields)).etl)


# ---- ranges of a column that is named ----------------------------------------------------------------------------------


def test_cut_by_does_not_change_the_dataset(tmp_path):
    """Of a table without a key, a view and a query; nulls in the first part."""
    url = database(
        tmp_path, "ALTER TABLE t ADD COLUMN g INTEGER", "UPDATE t SET g = id / 3 WHERE id % 7",
        "CREATE VIEW v AS SELECT * FROM t", key="id INTEGER",
    )  # fmt: skip
    forms = [{"table": "t"}, {"table": "v"}, {"query": "SELECT * FROM t"}]
    whole = [SqlSource(url=url, watermark="id", **form) for form in forms]
    wanted = build(small_config(tmp_path / "whole", source=whole[0]))[0].dataset_id
    for i, source in enumerate(whole):
        cut = replace(source, cut_by="g")
        parts = ids_of(cut, 10)
        assert sorted(i for ids in parts for i in ids) == list(range(300))
        assert len(parts) > 5
        assert set(range(0, 300, 7)) <= set(parts[0])
        cfg = small_config(tmp_path / str(i), source=cut, chunk_rows=10, workers=2)
        made, fresh = build(cfg)
        assert (made.dataset_id, fresh) == (wanted, True)
        cfg.etl.source.cut_by = ""
        assert not build(cfg)[1]  # it is the same build


@pytest.mark.parametrize("form", [{"table": "t"}, {"query": "SELECT * FROM t"}])
@pytest.mark.parametrize("name, told", [
    ("idd", "config.etl.source.cut_by: .* has no column 'idd'; did you mean 'id'?"),
    ("s", "config.etl.source.cut_by='s' holds a str, no integer; name an integer column of"),
    ("x", "config.etl.source.cut_by='x' holds a float, no integer"),
])  # fmt: skip
def test_cut_by_is_an_integer_column(tmp_path, form, name, told):
    url = database(tmp_path, "ALTER TABLE t ADD COLUMN s TEXT DEFAULT 'secret'")
    with pytest.raises(DataError, match=told) as caught:
        build(small_config(tmp_path, source=SqlSource(url=url, cut_by=name, watermark="id", **form)))
    assert ("\n" in str(caught.value), "secret" in str(caught.value)) == (False, False)


def test_a_column_with_one_value_is_one_range_of_rows(tmp_path):
    source = SqlSource(url=database(tmp_path, "ALTER TABLE t ADD COLUMN g INTEGER DEFAULT 5"), table="t", cut_by="g")
    assert [len(ids) for ids in ids_of(source, 10) if ids] == [300]


def test_a_locked_file_is_waited_for_and_told(tmp_path):
    source = SqlSource(url=database(tmp_path), table="t", timeout_s=1.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DataError, match="database is locked"):
            build(small_config(tmp_path, source=source))


def test_an_option_that_cannot_be_is_told(tmp_path):
    source = SqlSource(url=f"{database(tmp_path)}?timeout=soon", table="t")
    with pytest.raises(DataError, match="could not convert string to float: 'soon'; mend the URL"):
        build(small_config(tmp_path, source=source))
