"""PostgreSQL, a real one: ADBC against SQLAlchemy and a CSV; key ranges; queries; connections that break."""

import contextlib
import dataclasses
import datetime as dt
import json
import math
import random
import time
import traceback
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

from mlprod.config import Column, Config, SqlSource, categorical, multivalued, numeric
from mlprod.discreet import discreet, is_sensitive
from mlprod.errors import ConnectionLost, DataError
from mlprod.etl import dry_run, patience, postgres, ranges, sources, sql, tasks
from mlprod.etl.connection import connect
from mlprod.etl.run import build
from mlprod.etl.schema import Loose, cast_chunk
from tests.plain import ID, small_config, table_text
from tests.postgres_server import PASSWORD
from tests.postgres_server import postgres as server
from tests.proxy import Proxy


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    with server() as port:
        yield port


def url_of(port: int, password: str = "$PGPW", database: str = "postgres") -> str:
    return f"postgresql://postgres:{password}@127.0.0.1:{port}/{database}"


@pytest.fixture
def url(port, monkeypatch) -> Iterator[str]:
    """The URL of an empty database."""
    monkeypatch.setenv("PGPW", PASSWORD)
    monkeypatch.setattr(tasks, "PAUSES", (0.0, 0.0))
    execute(url_of(port, PASSWORD), "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    return url_of(port)


def execute(url: str, *statements: str) -> None:
    engine = sa.create_engine(url.replace("$PGPW", PASSWORD))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def insert(url: str, columns: dict[str, str], rows: list[tuple]) -> None:
    """Makes a table `t` of these columns and rows."""
    engine = sa.create_engine(url.replace("$PGPW", PASSWORD))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE t ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        if rows:
            connection.exec_driver_sql(f"INSERT INTO t VALUES ({', '.join(['%s'] * len(columns))})", rows)
    engine.dispose()


def numbered_table(url: str, n: int, step: int = 1) -> None:
    execute(
        url, "CREATE TABLE t (id BIGINT PRIMARY KEY, x DOUBLE PRECISION, y INTEGER)",
        f"INSERT INTO t SELECT i * {step}, i * 0.5, mod(i, 2) FROM generate_series(0, {n - 1}) i",
    )  # fmt: skip


def typed_by(source: SqlSource, columns: list[Column], chunk_rows: int = 1000) -> list[tuple[pa.Table, dict[int, str]]]:
    """Returns what a build reads, chunk by chunk: rows in their types, and why others are not."""
    ranged = sources.planned(source, chunk_rows, lambda tasks: {name: task() for name, task in tasks.items()})
    chunks = [
        chunk
        for part in sources.parts(ranged, [c.name for c in columns], chunk_rows)
        for chunk in sources.read(ranged, part, columns, chunk_rows)
    ]
    return [cast_chunk(chunk, columns) if isinstance(chunk, Loose) else (chunk, {}) for chunk in chunks]


def by_sqlalchemy(source: SqlSource, columns: list[Column]) -> tuple[pa.Table, dict[int, str]]:
    return cast_chunk(next(sql.sql_chunks(source, [c.name for c in columns], 10_000)), columns)


# ---- values ------------------------------------------------------------------------------------------------------------

KINDS = {
    "i2": ("SMALLINT", "int64 float64 string"), "i8": ("BIGINT", "int64 float64 string"), "f4": ("REAL", "float64 string int64"),
    "f8": ("DOUBLE PRECISION", "float64 string"), "b": ("BOOLEAN", "bool string"), "n": ("NUMERIC", "float64 string int64"),
    "s": ("TEXT", "string int64"), "v": ("VARCHAR(9)", "string bool"), "ch": ("CHAR(4)", "string"),
    "d": ("DATE", "timestamp string"),
    "ts": ("TIMESTAMP", "timestamp string"), "tz": ("TIMESTAMPTZ", "timestamp string"), "u": ("UUID", "string"),
    "m": ("mood", "string"), "nothing": ("INTEGER", "int64 float64 string bool"),
}  # fmt: skip


def value_of(kind: str, draw: random.Random) -> object:
    """Returns a value of a column, ordinary or at an edge; None one time in five."""
    if kind == "nothing" or draw.random() < 0.2:
        return None
    day = dt.datetime(1, 1, 1) + dt.timedelta(
        days=draw.choice([0, 719_162, 738_000, 3_652_058]), microseconds=draw.choice([0, 1])
    )
    edges = {
        "i2": [0, 1, -32768, 32767], "i8": [0, 1 << 62, -(1 << 63), (1 << 63) - 1], "f4": [0.1, -0.0, 1e38, 16777217.0],
        "f8": [0.1, -0.0, math.nan, 1e300, 5e-324, 1.0], "b": [True, False],
        "n": [Decimal(x) for x in ("1.50", "2.00", "0.0000000001", "NaN", "123456789012345678901234567890.5", "-7", "0.1")],
        "s": ["a", "b c", "é\n", "\\0", "12", "x" * 50, "naïve;'\"%"], "v": ["true", "no", "t"], "ch": ["a", "abcd"],
        "u": ["00000000-0000-0000-0000-0000000000ff"], "m": ["glad", "sad"],
        "d": [day.date()], "ts": [day], "tz": [day.replace(tzinfo=dt.UTC)],
    }  # fmt: skip
    return draw.choice(edges[kind])


@pytest.mark.parametrize("seed", range(3))
def test_adbc_gives_what_sqlalchemy_gives(url, seed):
    """For every type of a column and every type that may be declared for it: the same values, and the same refused."""
    draw = random.Random(seed)
    execute(url, "CREATE TYPE mood AS ENUM ('glad', 'sad')")
    rows = [(i, *(value_of(name, draw) for name in KINDS)) for i in range(60)]
    insert(url, {"id": "BIGINT PRIMARY KEY", **{name: kind for name, (kind, _) in KINDS.items()}}, rows)
    execute(url, "ALTER DATABASE postgres SET timezone = 'Asia/Kolkata'")
    source, names = SqlSource(url=url, table="t"), list(KINDS)
    as_objects = next(sql.sql_chunks(source, names, 10_000))
    with postgres.reader(source, f"SELECT {', '.join(names)} FROM t") as batches:
        assert postgres.readable(batches.schema)
        (batch,) = batches
    for name, (_, types) in KINDS.items():
        for declared in types.split():
            columns = [Column(name=name, type=declared)]
            (found,) = postgres.typed([batch.select([name])], columns, 10_000, lambda *at: "")
            wanted, bad = cast_chunk(as_objects, columns)
            found, told = cast_chunk(found, columns) if isinstance(found, Loose) else (found, {})
            assert told == bad, (name, declared)
            assert found.equals(wanted), (name, declared)
    execute(url, "ALTER DATABASE postgres RESET timezone")


def test_other_types_go_through_sqlalchemy(url):
    """An interval, JSON, bytes, money: whatever ADBC would make of them."""
    kinds = {"id": "BIGINT PRIMARY KEY", "i": "INTERVAL", "m": "MONEY", "o": "OID", "x": "INET"}
    insert(url, kinds, [(1, dt.timedelta(days=400, seconds=1), "12.50", 4_000_000_000, "10.0.0.1")])
    source = SqlSource(url=url, table="t")
    for name in ("i", "m", "o", "x"):
        columns = [Column(name=name, type="string")]
        assert typed_by(source, columns) == [by_sqlalchemy(source, columns)]
    assert typed_by(source, [Column(name="o", type="int64")])[0][0]["o"].to_pylist() == [4_000_000_000]


def test_arrays_are_lists(url):
    insert(
        url, {"id": "BIGINT PRIMARY KEY", "tags": "TEXT[]", "n": "BIGINT[]"}, [(1, ["a", None, "b c"], [1, -2]), (2, [], None)]
    )
    columns = [multivalued("tags", 3), multivalued("n", 2)]
    assert typed_by(SqlSource(url=url, table="t"), columns)[0][0].to_pylist() == [
        {"tags": "a||b c", "n": "1|-2"}, {"tags": "", "n": None},
    ]  # fmt: skip


def test_times_and_numbers_that_cannot_be_are_told_with_their_row(url):
    insert(url, {"id": "BIGINT PRIMARY KEY", "ts": "TIMESTAMP", "d": "DATE", "x": "DOUBLE PRECISION", "n": "NUMERIC"}, [])
    execute(
        url, "INSERT INTO t VALUES (1, '2024-01-01', '2024-01-01', 1, 1), (2, 'infinity', '2024-01-01', 1, 1)",
        "INSERT INTO t VALUES (3, '2024-01-01', '10000-01-01', 1, 1), (4, '2024-01-01', '0001-01-01 BC', 'Infinity', 1)",
        "INSERT INTO t VALUES (5, '2024-01-01', NULL, 1, '-Infinity')",
    )  # fmt: skip
    source = SqlSource(url=url, table="t")

    def bad(name, declared):
        return typed_by(source, [Column(name=name, type=declared)])[0][1]

    beyond = "column {!r} holds a time beyond the years 1 to 9999"
    assert bad("ts", "timestamp") == {1: beyond.format("ts")}
    assert bad("d", "timestamp") == {2: beyond.format("d"), 3: beyond.format("d")}
    assert bad("x", "float64") == {3: "column 'x': inf is not float64"}
    assert bad("n", "float64") == {4: "column 'n': Decimal('-Infinity') is not float64"}
    with pytest.raises(DataError, match="table 't', row 2 of the query: column 'ts' holds a time beyond"):
        build(config(Path("/nowhere"), source, Column(name="ts", type="timestamp", role="input"), numeric("n"), label="x"))


# ---- whole builds ------------------------------------------------------------------------------------------------------

DEFAULT = (ID, numeric("x"))


def config(folder: Path, source: SqlSource, *columns: Column, label: str = "y", **etl) -> Config:
    cfg = small_config(folder, None, columns or DEFAULT, source=source, **etl)
    return dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, label=dataclasses.replace(cfg.etl.label, column=label)))


COLUMNS = (
    ID, numeric("x"), numeric("n", "auto"), categorical("s"), Column(name="t", type="timestamp", role="time"),
    categorical("b", "auto"),
)  # fmt: skip


def test_the_same_dataset_from_a_table_a_query_and_a_csv(url, tmp_path):
    """The same `dataset_id`, types found or declared, by one worker or more, in parts or whole."""
    draw = random.Random(7)
    rows = [
        (
            i * 3, draw.choice([None, 0.1, 1e300, -0.0, i / 7]), draw.choice([None, Decimal("1.50"), Decimal(i)]),
            draw.choice([None, "red", "blue, or not"]), dt.datetime(2024, 1, 1) + dt.timedelta(seconds=i),
            draw.choice([True, False]), i % 2,
        )
        for i in range(400)
    ]  # fmt: skip
    small = [(a, None if b is None else min(b, 1e30), *rest) for a, b, *rest in rows]
    kinds = ("BIGINT PRIMARY KEY", "DOUBLE PRECISION", "NUMERIC(10, 2)", "TEXT", "TIMESTAMP", "BOOLEAN", "INTEGER")
    names = ("id", "x", "n", "s", "t", "b", "y")
    insert(url, dict(zip(names, kinds, strict=True)), small)
    quoted = [tuple(f'"{v}"' if isinstance(v, str) else v for v in row) for row in small]
    text = table_text(",".join(names), *quoted)
    wanted = build(small_config(tmp_path / "csv", text, COLUMNS))[0].dataset_id
    table, query = SqlSource(url=url, table="t"), SqlSource(url=url, query="select *, 1 AS more from t -- all of it")
    for i, (source, etl) in enumerate([(table, {}), (table, {"chunk_rows": 30, "workers": 3}), (query, {"chunk_rows": 90})]):
        made = build(config(tmp_path / str(i), source, *COLUMNS, **etl))[0]
        assert (made.dataset_id, made.source["types"]) == (wanted, {"n": "float64", "b": "bool"})


# ---- ranges ------------------------------------------------------------------------------------------------------------


def cuts_of(source: SqlSource, chunk_rows: int) -> list[tuple[int | None, int | None]]:
    ranged = sources.planned(source, chunk_rows, lambda tasks: {name: task() for name, task in tasks.items()})
    return [(part.low, part.high) for part in ranges.parts(ranged, ["id"], chunk_rows)]


def test_parts_are_ranges_of_the_key_that_hold_every_row_once(url, monkeypatch):
    """Holes and negative keys allowed; a filter cuts what it leaves."""
    monkeypatch.setattr(ranges, "PART_CHUNKS", 1)
    insert(url, {"id": "BIGINT PRIMARY KEY"}, [(i,) for i in [-9, -5, 0, 1, 2, 1 << 40, 1 << 50]])
    source = SqlSource(url=url, table="t")
    assert cuts_of(source, 3) == [(None, 1), (1, 1 << 50), (1 << 50, None)]
    assert cuts_of(source, 100) == [(None, None)]
    assert cuts_of(dataclasses.replace(source, watermark="id", start="0", stop="3"), 2) == [(None, 2), (2, None)]
    for chunk_rows in (2, 7):
        found = [
            i for table, _ in typed_by(source, [Column(name="id", type="int64")], chunk_rows) for i in table["id"].to_pylist()
        ]
        assert sorted(found) == [-9, -5, 0, 1, 2, 1 << 40, 1 << 50]


@pytest.mark.parametrize("kind", ["id BIGINT", "id BIGINT, z BIGINT DEFAULT 0, PRIMARY KEY (id, z)", "id TEXT PRIMARY KEY"])
def test_without_an_integer_key_a_table_is_one_part(url, kind):
    execute(url, f"CREATE TABLE t ({kind})", "INSERT INTO t (id) SELECT i FROM generate_series(1, 50) i")
    assert cuts_of(SqlSource(url=url, table="t"), 1) == [(None, None)]


def test_a_place_names_the_range(url, tmp_path):
    numbered_table(url, 20)
    execute(url, "ALTER TABLE t ADD COLUMN s TEXT DEFAULT '1'", "UPDATE t SET s = 'one' WHERE id = 13")
    with pytest.raises(
        DataError, match=r"table 't', row [1-8] of the query with id from 8 below 16: column 's': 'one' is not int64"
    ):
        build(config(tmp_path, SqlSource(url=url, table="t"), *DEFAULT, numeric("s", "int64"), chunk_rows=2, workers=2))


def test_ranges_by_a_column_that_is_not_unique(url, monkeypatch):
    """Of a table, a view and a query: equal values and nulls in one part each; beyond 32 bits."""
    monkeypatch.setattr(ranges, "PART_CHUNKS", 1)
    rows = [(i, None if i % 7 == 0 else i // 3 * (1 << 40)) for i in range(60)]
    insert(url, {"id": "BIGINT", "g": "BIGINT"}, rows)
    execute(url, "CREATE VIEW v AS SELECT * FROM t")
    whole = SqlSource(url=url, table="t", cut_by="g")
    for source in (whole, dataclasses.replace(whole, table="v"), dataclasses.replace(whole, table="", query="SELECT * FROM t")):
        found = [table["id"].to_pylist() for table, _ in typed_by(source, [Column(name="id", type="int64")], 10)]
        assert sorted(i for ids in found for i in ids) == list(range(60))
        assert len(found) > 4


# ---- queries -----------------------------------------------------------------------------------------------------------

REFUSED = {
    "a column twice": ("SELECT id, x, x, y FROM t", "the query has several columns 'x'; name each of them once"),
    "a missing column": ("SELECT id, y FROM t", "the query has no column 'x'"),
    "no SQL": ("SELEC id FROM t", "the query: syntax error at or near"),
    "an unknown table": ("SELECT * FROM tt", 'the query: relation "tt" does not exist'),
    "an insert": ("INSERT INTO t VALUES (99) RETURNING id, x, y", "the query: syntax error"),
    "an insert inside": (
        "WITH w AS (INSERT INTO t VALUES (99) RETURNING *) SELECT * FROM w",
        "the query: WITH clause containing a",
    ),
    "a function that writes": ("SELECT *, nextval('counted') FROM t", "the query: cannot execute nextval() in a read-only"),
    "two": ("SELECT * FROM t; SELECT * FROM t", 'the query: syntax error at or near ";"'),
    "another value": ("SELECT id, 1 / (id - 7) AS x, y FROM t", "the query: division by zero"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_query_that_cannot_be_is_refused_in_one_line(url, tmp_path, name):
    numbered_table(url, 10)
    execute(url, "CREATE SEQUENCE counted")
    query, told = REFUSED[name]
    with pytest.raises(DataError) as caught:
        build(config(tmp_path, SqlSource(url=url, query=query)))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_query_is_sent_as_it_is_written(url):
    """Colons, percent signs, backslashes and a comment at its end; start and stop apply to it; its time zone is UTC."""
    numbered_table(url, 10)
    query = r"""SELECT id::int, 'a:b % \:c %(x)s' AS s, '2024-01-01'::timestamptz::text AS "T%" FROM t; -- done"""
    source = SqlSource(url=url, query=query.replace("; --", " --"), watermark="id", start="3", stop="5")
    columns = [Column(name=name, type="string") for name in ("id", "s", "T%")]
    (found, _) = typed_by(source, columns)[0]
    assert found.to_pylist() == [{"id": str(i), "s": r"a:b % \:c %(x)s", "T%": "2024-01-01 00:00:00+00"} for i in (3, 4)]
    assert found.equals(by_sqlalchemy(source, columns)[0])
    with pytest.raises(DataError, match=r"start='x' is not a int, as column 'id' is"):
        typed_by(dataclasses.replace(source, start="x"), columns)


@pytest.mark.parametrize(
    "kind, start", [("TIMESTAMP", "2024-01-02"), ("DATE", "2024-01-02"), ("TIMESTAMPTZ", "2024-01-02T02:00:00+02:00")]
)
def test_watermarks_of_time(url, kind, start):
    """Of a table and of a query, by ADBC and by SQLAlchemy."""
    insert(url, {"id": "BIGINT PRIMARY KEY", "at": kind}, [(i, f"2024-01-0{i}T00:00:00Z") for i in range(1, 5)])
    for source in (SqlSource(url=url, table="t"), SqlSource(url=url, query="SELECT * FROM t")):
        marked = dataclasses.replace(source, watermark="at", start=start, stop=start.replace("02T", "04T").replace("-02", "-04"))
        assert typed_by(marked, [ID])[0][0]["id"].to_pylist() == [2, 3]
        assert by_sqlalchemy(marked, [ID])[0]["id"].to_pylist() == [2, 3]


def test_a_dry_run_shows_a_query(url, tmp_path, capsys):
    numbered_table(url, 10)
    dry_run.main(config(tmp_path, SqlSource(url=url, query="SELECT *, 5 AS left_over FROM t"), ID, numeric("x", "auto")))
    out = capsys.readouterr().out
    assert "the query; nothing is built" in out
    assert "float64*" in out
    assert "left in the source: left_over" in out
    assert not (tmp_path / "dataset").exists()


# ---- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, told", [
    ({"password": "wrong"}, "password authentication failed"), ({"database": "nope"}, 'database "nope" does not exist'),
    ({"port": 1}, "Connection refused"),
])  # fmt: skip
def test_what_is_wrong_at_the_start_is_told_without_the_password(url, port, tmp_path, wrong, told, monkeypatch):
    monkeypatch.setenv("PGPW", wrong.get("password", PASSWORD))
    source = SqlSource(url=url_of(wrong.get("port", port), database=wrong.get("database", "postgres")), table="t")
    with pytest.raises(DataError) as caught:
        build(config(tmp_path, source))
    assert told in str(caught.value)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("sensitive", [True, False])
def test_a_value_that_the_server_refuses_is_told_unless_a_column_is_sensitive(url, tmp_path, sensitive, installed, monkeypatch):
    """In the message, and in all that stands behind it in a traceback; a name that is not there is told all the same."""
    if not installed:
        monkeypatch.setattr(postgres, "dbapi", None)
    numbered_table(url, 50)
    execute(url, "ALTER TABLE t ADD COLUMN s TEXT", "UPDATE t SET s = 'kanari-' || id")
    columns = (*DEFAULT, numeric("n", "int64"), Column(name="s", type="string", role="input", sensitive=sensitive))
    told = {}
    for name, field in (("value", "CAST(s AS INTEGER)"), ("name", "nope")):
        cfg = config(tmp_path / name, SqlSource(url=url, query=f"SELECT *, {field} AS n FROM t"), *columns)
        with pytest.raises(DataError) as caught, discreet(is_sensitive(cfg.etl)):
            build(cfg)
        told[name] = "".join(traceback.format_exception(caught.value))
        assert "\n" not in str(caught.value)
    assert ("kanari-" in told["value"], "refused a value" in told["value"]) == (not sensitive, sensitive)
    assert 'column "nope" does not exist' in told["name"]


def test_a_password_that_a_url_must_escape_is_told_in_no_form(port, tmp_path, monkeypatch):
    monkeypatch.setenv("PGPW", "kanari%2Fa%40b")
    cfg = config(tmp_path, SqlSource(url=url_of(port) + "?sslpassword=$PGPW", table="t"))
    with pytest.raises(DataError, match="password authentication failed") as caught:
        build(cfg)
    assert "kanari" not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def wide(url, monkeypatch) -> str:
    """A table of five parts of 300 rows, each above a megabyte: more than a driver reads of the catalog when it connects."""
    monkeypatch.setattr(postgres, "BATCH_BYTES", 1 << 18)
    numbered_table(url, 1500)
    execute(url, "ALTER TABLE t ADD COLUMN s TEXT", "UPDATE t SET s = repeat('x', 4000 + mod(id, 9)::int)")
    return url


def cut_config(folder: Path, port: int, **more) -> Config:
    source = SqlSource(url=url_of(port), table="t", watermark="id", **more)
    return config(folder, source, *DEFAULT, categorical("s"), chunk_rows=75, workers=1)


@pytest.mark.parametrize("installed", [True, False])
def test_a_connection_that_breaks_once_does_not_count(wide, port, tmp_path, installed, monkeypatch):
    if not installed:
        monkeypatch.setattr(postgres, "dbapi", None)
    wanted = build(cut_config(tmp_path / "whole", port))[0]
    proxy = Proxy(port, after=900_000, cuts=1)
    made = build(cut_config(tmp_path / "cut", proxy.port))[0]
    proxy.close()
    assert proxy.cuts == 0
    assert (made.dataset_id, made.splits) == (wanted.dataset_id, wanted.splits)


def test_a_connection_that_stays_broken_ends_with_75_and_the_next_attempt_goes_on(wide, port, tmp_path, capsys, monkeypatch):
    wanted = build(cut_config(tmp_path / "whole", port))[0]
    read, proxy, done = ranges.read, Proxy(port, after=900_000), []

    def reading(ranged, part, *args):
        proxy.cuts = -1 if len(done) == 2 else 0
        yield from read(ranged, part, *args)
        done.append((part.low, part.high))

    monkeypatch.setattr(sources, "read", reading)
    cfg = cut_config(tmp_path / "cut", proxy.port)
    with pytest.raises(ConnectionLost, match="the same command goes on") as caught:
        build(cfg)
    assert caught.value.exit_code == 75
    assert PASSWORD not in str(caught.value)
    work = next((tmp_path / "cut" / "dataset" / "work").glob("*/*/cut/cuts.json"))
    assert json.loads(work.read_text())["cuts"] == list(range(300, 1500, 300))
    done.append((None, None))
    assert build(cfg)[0].dataset_id == wanted.dataset_id
    assert len(done) == 6
    assert "3 task(s) had been done by an attempt before" in capsys.readouterr().err
    proxy.close()


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 0.1)
    monkeypatch.setattr(tasks, "PAUSES", ())


@pytest.mark.parametrize("installed", [True, False])
def test_a_server_that_falls_silent_ends_with_75(wide, port, tmp_path, installed, monkeypatch, impatient):
    """On a connection that stays open, where neither libpq nor TCP sees anything: by ADBC and by SQLAlchemy's cursor."""
    if not installed:
        monkeypatch.setattr(postgres, "dbapi", None)
    with contextlib.closing(Proxy(port, after=900_000, cuts=-1, silent=True)) as proxy:
        cfg, began = cut_config(tmp_path, proxy.port, timeout_s=1.0), time.monotonic()
        with pytest.raises(ConnectionLost, match=r"gave nothing for config.etl.source.timeout_s=1 seconds; .* goes on") as caught:
            build(cfg)
        assert (caught.value.exit_code, PASSWORD in str(caught.value)) == (75, False)
        assert time.monotonic() - began < 2 * 1.1 + 15  # two tasks were begun; a machine may be slow
        proxy.cuts, cfg.etl.source.timeout_s = 0, 60.0
        assert build(cfg)[1]


def test_a_server_that_says_nothing_at_the_start_is_given_up(url, port, tmp_path):
    with contextlib.closing(Proxy(port, after=1, cuts=-1, silent=True)) as proxy:
        began = time.monotonic()
        with pytest.raises(DataError, match="timeout expired") as caught:
            build(config(tmp_path, SqlSource(url=url_of(proxy.port), table="t", timeout_s=2.0)))
        assert caught.value.exit_code == 2
        assert time.monotonic() - began < 15


def test_limits_reach_both_drivers(url):
    """As options of libpq; what the URL says itself stays."""
    found = connect(SqlSource(url=f"{url}?keepalives_idle=7&application_name=mine", table="t", timeout_s=40.0)).url.query
    assert dict(found) == {
        "connect_timeout": "30", "keepalives": "1", "keepalives_idle": "7", "keepalives_interval": "10", "keepalives_count": "3",
        "tcp_user_timeout": "40000", "application_name": "mine",
    }  # fmt: skip
    with postgres.reader(
        SqlSource(url=f"{url}?application_name=mine"), "SELECT current_setting('application_name') AS x"
    ) as batches:
        assert batches.read_all()["x"].to_pylist() == ["mine"]


def test_a_server_that_is_gone_at_the_end_is_worth_another_attempt(wide, port, tmp_path, monkeypatch):
    """It was there when the build began."""
    source, proxy = SqlSource(url=url_of(port), table="t"), Proxy(port)
    identity = sources.identify(dataclasses.replace(source, url=url_of(proxy.port)), ["id"])
    proxy.close()
    with pytest.raises(ConnectionLost, match="Connection refused"):
        sources.unchanged(dataclasses.replace(source, url=url_of(proxy.port)), ["id"], identity)
