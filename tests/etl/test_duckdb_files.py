"""DuckDB files: Arrow batches against the cursor and a CSV, types that are right or refused by name, and files that cannot be."""

import dataclasses
import datetime as dt
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from mlprod import cli
from mlprod.config import Column, SqlSource, categorical, multivalued, numeric
from mlprod.errors import DataError
from mlprod.etl import duckdb_files, ranges, sources, sql
from mlprod.etl.run import build
from mlprod.etl.schema import Loose, cast_chunk
from tests.plain import ID, small_config


def database(folder: Path, *statements: str, rows: list[tuple] | None = None) -> SqlSource:
    """Returns the table `t` of a file on which the statements were run; `rows`: taken by the last."""
    with duckdb.connect(str(folder / "rows.duckdb")) as connection:
        for statement in statements[: -1 if rows else None]:
            connection.execute(statement)
        if rows:
            connection.executemany(statements[-1], rows)
    return SqlSource(url=f"duckdb:///{folder / 'rows.duckdb'}", table="t")


def typed_by(source: SqlSource, columns: list[Column], chunk_rows: int = 1000) -> list:
    """Returns what a build reads, chunk by chunk."""
    ranged = sources.planned(source, chunk_rows, lambda tasks: {name: task() for name, task in tasks.items()})
    parts = sources.parts(ranged, [c.name for c in columns], chunk_rows)
    return [chunk for part in parts for chunk in sources.read(ranged, part, columns, chunk_rows)]


# ---- values ------------------------------------------------------------------------------------------------------------

KINDS = {  # kind -> values, and the types that may be declared for it
    "TINYINT": ("-128, 127", "int64 float64 string"),
    "UBIGINT": ("0, 18446744073709551615", "int64 string"),
    "BIGINT": ("-9223372036854775808, 9223372036854775807", "int64 float64 string"),
    "HUGEINT": ("1, 170141183460469231731687303715884105727", "int64 string"),
    "UHUGEINT": ("1, 340282366920938463463374607431768211455", "string"),
    "FLOAT": ("0.1, 16777216, -0.0", "float64 string"),
    "DOUBLE": ("0.1, 'NaN', 1e300, 5e-324, -0.0", "float64 string int64"),
    "DECIMAL(38, 10)": ("1.5, -7, 1234567890123456789012345678.0123456789", "float64 string int64"),
    "BOOLEAN": ("true, false", "bool string"),
    "VARCHAR": ("'', 'a', 'A', 'naïve;''\"%', '😀', 'line\nbreak', '12'", "string int64 bool"),
    "JSON": ("'{\"b\": [1],\"a\": 2}'", "string"),
    "UUID": ("'00000000-0000-0000-0000-0000000000ff'", "string"),
    "ENUM('glad', 'sad')": ("'glad', 'sad'", "string int64"),
    "DATE": ("'2024-02-29', '0001-01-01', '9999-12-31'", "timestamp string"),
    "TIME": ("'01:02:03.5', '23:59:59'", "string"),
    "TIMESTAMP": ("'2024-02-29 01:02:03.123456', '0001-01-01', '9999-12-31 23:59:59'", "timestamp string"),
    "TIMESTAMP_S": ("'2024-02-29 01:02:03', '1900-01-01'", "timestamp string"),
    "TIMESTAMP_MS": ("'2024-02-29 01:02:03.123'", "timestamp string"),
    "TIMESTAMP_NS": ("'2024-02-29 01:02:03.123456789', '1900-01-01 00:00:00.0000009'", "timestamp string"),
    "TIMESTAMPTZ": ("'2024-02-29 01:02:03+02', '1970-01-01 00:00:00+00'", "timestamp string"),
    "INTERVAL": ("'1 day 02:00:00'", "string"),
    "BIT": ("'0101'", "string"),
    "TIMETZ": ("'01:02:03+02'", "string"),
    "INTEGER": ("NULL", "int64 float64 string bool timestamp"),
}  # fmt: skip


def test_batches_give_what_the_cursor_gives(tmp_path):
    """The same values and the same refused, for every type that may be declared."""
    statements = [f"CREATE TABLE t{i} (v {kind})" for i, kind in enumerate(KINDS)]
    for i, (values, _) in enumerate(KINDS.values()):
        statements.append(f"INSERT INTO t{i} VALUES (NULL), {', '.join(f'({value})' for value in values.split(', '))}")
    source, read = database(tmp_path, *statements), set()
    for i, (kind, (_, types)) in enumerate(KINDS.items()):
        table = dataclasses.replace(source, table=f"t{i}")
        as_objects = next(sql.sql_chunks(table, ["v"], 10_000))
        for declared in types.split():
            columns = [Column(name="v", type=declared)]
            wanted, bad = cast_chunk(as_objects, columns)
            with duckdb_files.rows(table, f"SELECT v FROM t{i}", columns, 10_000, lambda *at: "") as chunks:
                if chunks is None:
                    continue
                read.add(kind)
                (found,) = chunks
            found, told = cast_chunk(found, columns) if isinstance(found, Loose) else (found, {})
            assert (told, found.equals(wanted)) == (bad, True), (kind, declared, found, wanted)
    assert set(KINDS) - read == {"HUGEINT", "UHUGEINT", "TIMESTAMP_NS", "INTERVAL", "BIT", "TIMETZ"}  # left to the cursor


def test_types_that_are_left_to_the_cursor(tmp_path):
    kinds = {"h": "HUGEINT", "n": "TIMESTAMP_NS", "i": "INTERVAL", "b": "BIT", "z": "TIMETZ"}
    made = f"CREATE TABLE t ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})"
    big, at = (1 << 127) - 1, "1900-01-01 00:00:00.0000009"
    source = database(tmp_path, made, f"INSERT INTO t VALUES ({big}, '{at}', '1 day', '0101', '01:02:03+02')")
    columns = [Column(name=name, type="string") for name in kinds]
    wanted = {"h": str(big), "n": "1900-01-01 00:00:00.000001", "i": "1 day, 0:00:00", "b": "0101", "z": "01:02:03+02:00"}
    assert cast_chunk(typed_by(source, columns)[0], columns)[0].to_pylist() == [wanted]
    told = {0: f"column 'h': {big} is not int64"}
    assert cast_chunk(typed_by(source, columns)[0], [Column(name="h", type="int64")])[1] == told


@pytest.mark.parametrize("kind, values", [("VARCHAR[]", "['a', NULL, 'b c']"), ("INTEGER[]", "[1, NULL, -2]")])
def test_lists_of_categories(kind, values, tmp_path):
    """By Arrow batches and by the cursor: one text each."""
    rows = f"(1, {values}), (2, []), (3, NULL)"
    source = database(tmp_path, f"CREATE TABLE t (id INTEGER PRIMARY KEY, tags {kind})", f"INSERT INTO t VALUES {rows}")
    columns = [ID, multivalued("tags", 3)]
    (found,) = typed_by(source, columns)
    if isinstance(found, Loose):
        found = cast_chunk(found, columns)[0]
    (loose,) = sources.chunks(source, ["id", "tags"], 100)
    wanted = "a||b c" if kind == "VARCHAR[]" else "1||-2"
    assert cast_chunk(loose, columns)[0]["tags"].to_pylist() == found["tags"].to_pylist() == [wanted, "", None]


@pytest.mark.parametrize("kind", ["INTEGER[]", "STRUCT(a INTEGER)", "BLOB", "UNION(a INTEGER)"])
def test_what_no_type_can_hold_is_refused_by_name(tmp_path, kind):
    source = database(tmp_path, f"CREATE TABLE t (id INTEGER, y INTEGER, odd {kind})", "INSERT INTO t VALUES (1, 1, NULL)")
    with pytest.raises(DataError, match=r"table 't': column 'odd' is .*; leave it out, or take a part of it by") as caught:
        build(small_config(tmp_path, source=source, columns=(ID, categorical("odd"))))
    assert "\n" not in str(caught.value)
    assert typed_by(source, [ID])[0]["id"].to_pylist() == [1]


@pytest.mark.parametrize(
    "kind, value", [("TIMESTAMP", "infinity"), ("DATE", "-infinity"), ("TIMESTAMPTZ", "infinity"), ("TIMESTAMP_S", "12345-01-01")]
)
def test_times_that_cannot_be_are_told_with_their_row(tmp_path, kind, value):
    source = database(tmp_path, f"CREATE TABLE t (v {kind})", f"INSERT INTO t VALUES ('2024-01-01'), ('{value}')")
    columns = [Column(name="v", type="timestamp")]
    _, bad = cast_chunk(typed_by(source, columns)[0], columns)
    assert bad == {1: "column 'v' holds a time beyond the years 1 to 9999"}


TEXTS = [None, "a", "A", "é\n", "\\0", "naïve;'%", "😀", "x" * 50, ":x"]
COLUMNS = (
    ID, numeric("x"), numeric("n", "auto"), categorical("s"), Column(name="t", type="auto", role="time"),
    categorical("b", "auto"),
)  # fmt: skip


def test_the_same_dataset_from_a_table_a_query_and_a_csv(tmp_path):
    """The same `dataset_id`, by one worker or more, in parts or whole."""
    draw = random.Random(7)
    rows = [
        (
            i * 3, draw.choice([None, 0.1, 1e30, -0.0, 5e-324, i / 7]), draw.choice([None, Decimal("1.50"), Decimal(i)]),
            draw.choice(TEXTS), dt.datetime(2024, 1, 1) + dt.timedelta(seconds=i), draw.choice([True, False]), i % 2,
        )
        for i in range(300)
    ]  # fmt: skip
    made = "CREATE TABLE t (id BIGINT PRIMARY KEY, x DOUBLE, n DECIMAL(10, 2), s VARCHAR, t TIMESTAMP, b BOOLEAN, y INTEGER)"
    source = database(tmp_path, made, f"INSERT INTO t VALUES ({', '.join('?' * 7)})", rows=rows)
    lines = [",".join("" if v is None else f'"{v}"' if isinstance(v, str) else str(v) for v in row) for row in rows]
    wanted = build(small_config(tmp_path / "csv", "\n".join(["id,x,n,s,t,b,y", *lines]) + "\n", COLUMNS))[0]
    query = SqlSource(url=source.url, query="SELECT *, '%(x)s :y' AS more FROM t -- all", cut_by="y")
    for i, (form, etl) in enumerate([(source, {}), (source, {"chunk_rows": 20, "workers": 3}), (query, {"chunk_rows": 30})]):
        found = build(small_config(tmp_path / str(i), None, COLUMNS, source=form, **etl))[0]
        assert (found.dataset_id, found.source["types"]) == (wanted.dataset_id, {"n": "float64", "t": "timestamp", "b": "bool"})


# ---- ranges and queries ------------------------------------------------------------------------------------------------


def test_ranges_hold_every_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "PART_CHUNKS", 1)
    source = database(
        tmp_path, "CREATE TABLE t (id BIGINT PRIMARY KEY, g HUGEINT)", "INSERT INTO t SELECT i, i // 3 FROM range(100) r(i)"
    )
    for form in (
        source,
        dataclasses.replace(source, cut_by="g"),
        SqlSource(url=source.url, query="SELECT id, g FROM t", cut_by="g"),
    ):
        found = [chunk["id"].to_pylist() for chunk in typed_by(form, [ID], 10)]
        assert sorted(i for ids in found for i in ids) == list(range(100))
        assert len(found) >= 9


def test_a_query_is_sent_as_it_is_written(tmp_path):
    """Colons, percent signs and a comment at its end; start and stop apply to it; its time zone is UTC."""
    source = database(tmp_path, "CREATE TABLE t (id INTEGER)", "INSERT INTO t SELECT range FROM range(9)")
    at = "TIMESTAMPTZ '2024-01-01 00:00:00+00'::VARCHAR"
    query = f"SELECT id::INTEGER AS id, 'a:b % \\:c %(x)s' AS s, {at} AS \"T%\" FROM t -- done"
    form = SqlSource(url=source.url, query=query, watermark="id", start="3", stop="5")
    columns = [Column(name=name, type="string") for name in ("id", "s", "T%")]
    (found,) = typed_by(form, columns)
    table = cast_chunk(found, columns)[0] if isinstance(found, Loose) else found
    assert table.to_pylist() == [{"id": str(i), "s": "a:b % \\:c %(x)s", "T%": "2024-01-01 00:00:00+00"} for i in (3, 4)]
    for text, told in {
        "SELEC 1": "syntax error",
        "INSERT INTO t VALUES (1)": "syntax error",
        "SELECT * FROM tt": "tt does not exist",
    }.items():
        with pytest.raises(DataError, match=f"the query: .*{told}") as caught:
            build(small_config(tmp_path, source=SqlSource(url=source.url, query=text)))
        assert "\n" not in str(caught.value)


def test_a_value_that_breaks_a_query_is_told(tmp_path):
    source = database(
        tmp_path, "CREATE TABLE t (id INTEGER, s VARCHAR)", "INSERT INTO t SELECT range, if(range = 7, 'x', '1') FROM range(9)"
    )
    with pytest.raises(DataError, match="the query: Conversion Error: Could not convert string 'x' to INT32"):
        typed_by(SqlSource(url=source.url, query="SELECT s::INTEGER AS id FROM t"), [ID])


def test_an_option_of_the_url_stays(tmp_path):
    source = database(tmp_path, "CREATE SEQUENCE counted", "CREATE TABLE t (id INTEGER)", "INSERT INTO t VALUES (1)")
    form = SqlSource(url=f"{source.url}?threads=1&access_mode=READ_WRITE", query="SELECT current_setting('threads') AS id")
    assert typed_by(form, [ID])[0]["id"].to_pylist() == [1]
    with pytest.raises(DataError, match="read-only"):
        typed_by(dataclasses.replace(form, query="SELECT nextval('counted') AS id"), [ID])


# ---- files -------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_told_and_not_made(tmp_path):
    for name in ("gone.duckdb", ":memory:", "md:mine"):
        with pytest.raises(DataError, match="there is no database file") as caught:
            build(small_config(tmp_path, source=SqlSource(url=f"duckdb:///{name}", table="t")))
        assert caught.value.exit_code == 2
    assert not (tmp_path / "gone.duckdb").exists()


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "odd.duckdb").write_text("hello" * 1000)
    with pytest.raises(DataError, match="not a valid DuckDB database file") as caught:
        build(small_config(tmp_path, source=SqlSource(url=f"duckdb:///{tmp_path}/odd.duckdb", table="t")))
    assert "\n" not in str(caught.value)


def test_a_file_that_another_process_writes_is_told(tmp_path):
    source = database(tmp_path, "CREATE TABLE t (id INTEGER, x DOUBLE, y INTEGER)")
    script = (
        f"import duckdb, sys; c = duckdb.connect({str(tmp_path / 'rows.duckdb')!r}); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(DataError, match=f"Could not set lock on file.*PID {other.pid}") as caught:
            build(small_config(tmp_path, source=source))
        assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    finally:
        other.communicate()


def test_init_takes_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    database(
        tmp_path,
        "CREATE TABLE t AS SELECT i, i % 17 * 1.5 AS size, i % 17 * 3.25 + hash(i) % 9 AS price FROM range(600) r(i)",
    )
    assert cli.run(["init", "rows.duckdb", "--target", "price", "--name", "mine"]) == 0, capsys.readouterr().err
    assert 'url="duckdb:///rows.duckdb"' in Path("configs/mine.py").read_text()


def test_a_dialect_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(DataError, match="install the database's driver"):
        build(small_config(tmp_path, source=SqlSource(url="quackdb:///x", table="t")))
