"""From events to what came before each of them: mlprod's stage against DuckDB's windows and ASOF join over the same files.

    pip install -c constraints.txt -e '.[test]'
    python benchmarks/point_in_time.py [--rows N] [--rounds N] [--memory MB] [--quick] [--json FILE]

Job: events (user, time, item, shop; some users have a hundred times the events of others) in Parquet; of each the items of the 20
newest events of its user before it, and the price of its shop at its time. Both write what they make.
Promise: contenders take turns in processes of their own, on all cores, with the same limit of memory; a ratio compares walls of
the same round, imports count for none; both must give the same sum of history lengths and of prices.
Price: mlprod also reads the labels and keeps where each row stood; its rows go on to be hashed, which is not timed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from _figures import Figure, parser_for, publish

from mlprod.config import Column, EtlConfig, Label, ParquetSource, categorical, histories, join_as_of, multivalued, numeric
from mlprod.console import PhaseLines
from mlprod.etl import identity
from mlprod.etl.extract import plan_reading
from mlprod.etl.gather import gather, sized
from mlprod.etl.growth import Unread
from mlprod.etl.identity import Identity
from mlprod.etl.pool import crew_of
from mlprod.etl.tasks import Tasks

ROWS, QUICK_ROWS, MEMORY = 2_000_000, 20_000, 1024
LENGTH = 20


def make(num_rows: int, folder: Path) -> None:
    """Writes events.parquet and prices.parquet."""
    random = np.random.default_rng(0)
    users = (random.pareto(1.0, num_rows) * 3).astype(np.int64) % max(num_rows // 20, 1)
    times = random.permutation(num_rows) * 1_000_000  # each its own, so that both have one answer
    events = pa.table({
        "id": np.arange(num_rows), "user": users, "at": pa.array(times, pa.timestamp("us")),
        "shop": random.integers(1000, size=num_rows),
        "item": random.integers(50_000, size=num_rows), "y": random.integers(2, size=num_rows),
    })  # fmt: skip
    pq.write_table(events, folder / "events.parquet", row_group_size=1 << 16)
    changes = num_rows // 10
    prices = pa.table({
        "shop": random.integers(1000, size=changes), "at": pa.array(random.permutation(changes) * 10_000_000, pa.timestamp("us")),
        "price": random.integers(1000, size=changes).astype(float),
    })  # fmt: skip
    pq.write_table(prices, folder / "prices.parquet", row_group_size=1 << 16)


def about(path: Path) -> Identity:
    """What a build reckons a file's rows take; its digest, which takes longer, is left out."""
    there = pq.ParquetFile(path).metadata
    rows_bytes = identity.rows_bytes(there.num_rows, there.num_columns)
    return Identity(description={}, expected_bytes=rows_bytes, stable=True, rows=there.num_rows)


def of_mlprod(folder: Path, megabytes: int) -> tuple[int, float]:
    """The stage of a build, from the files on."""
    etl = EtlConfig(
        source=ParquetSource(path=str(folder / "events.parquet")), label=Label(column="y"), memory_bytes=megabytes << 20,
        columns=(
            Column(name="id", type="int64", role="group"), categorical("user", type="int64"), multivalued("past", LENGTH),
            Column(name="at", type="timestamp", role="input"), categorical("item", type="int64"),
            categorical("shop", type="int64"), numeric("price"),
        ),
        gathered=(
            join_as_of(ParquetSource(path=str(folder / "prices.parquet")), by="shop", time="at", columns=("price",)),
            histories(by="user", order="at", max_len=LENGTH, columns={"past": "item"}),
        ),
    )  # fmt: skip
    lengths, prices, work = 0, 0.0, folder / "work"
    work.mkdir()
    events, prices_there = (about(folder / f"{name}.parquet") for name in ("events", "prices"))
    expected = sized(etl, events, [prices_there]).expected_bytes
    with crew_of(etl, work) as crew, PhaseLines(wanted="never") as lines:
        tasks = Tasks(work, crew, lines)
        found = gather(etl, tasks, plan_reading(etl, tasks, expected, Unread(etl.source)))

        def written(number: int, parts: list[int]) -> tuple[int, float]:
            tables = [some.rows for some in found.rows(etl, parts)]
            table = pa.concat_tables(tables)
            pq.write_table(table, folder / f"out-{number}.parquet")
            words = pc.sum(pc.add(pc.count_substring(table["past"], "|"), 1)).as_py() or 0
            return words, pc.sum(table["price"]).as_py() or 0.0

        for future in [crew.pool.submit(written, i, parts) for i, parts in enumerate(found.parts())]:
            lengths, prices = lengths + future.result()[0], prices + future.result()[1]
    return lengths, prices


def of_duckdb(folder: Path, megabytes: int) -> tuple[int, float]:
    """A window of the rows before, and an ASOF join."""
    with duckdb.connect() as connection:
        connection.execute(
            f"SET memory_limit='{megabytes}MB'; SET temp_directory='{folder}/spill'; SET preserve_insertion_order=false"
        )
        connection.execute(f"""
            COPY (
                SELECT e.*, p.price, list(item) OVER (
                    PARTITION BY "user" ORDER BY e.at ROWS BETWEEN {LENGTH} PRECEDING AND 1 PRECEDING
                ) AS past
                FROM '{folder}/events.parquet' e ASOF LEFT JOIN '{folder}/prices.parquet' p ON e.shop = p.shop AND e.at >= p.at
            ) TO '{folder}/out.parquet'
        """)
        told = connection.execute(f"SELECT sum(len(past)), sum(price) FROM '{folder}/out.parquet'").fetchone()
    assert told is not None
    return int(told[0]), float(told[1])


CONTENDERS = {"mlprod": of_mlprod, "DuckDB": of_duckdb}


def _run(name: str, folder: str, megabytes: str) -> None:
    began = time.perf_counter()
    told = CONTENDERS[name](Path(folder), int(megabytes))
    wall = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(wall, peak / 1e3, *told)


def measure(name: str, source: Path, megabytes: int) -> tuple[float, float, tuple[int, float]]:
    """Returns (wall seconds, peak MB, what it made) of a contender in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mlprod-histories-") as folder:
        for path in source.iterdir():
            (Path(folder) / path.name).symlink_to(path)
        command = [sys.executable, __file__, "--contender", name, folder, str(megabytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr[-400:]}")
    wall, peak, lengths, prices = done.stdout.split()[-4:]
    return float(wall), float(peak), (int(lengths), float(prices))


def main() -> None:
    """Measures, compares, prints."""
    parser = parser_for(__doc__ or "")
    parser.add_argument("--rows", type=int, default=0, help=f"events (default {ROWS:,})")
    parser.add_argument("--rounds", type=int, default=0, help="default 3; 1 with --quick")
    parser.add_argument("--memory", type=int, default=MEMORY, help=f"MB that each is told to take at most (default {MEMORY})")
    options = parser.parse_args()
    num_rows = options.rows or (QUICK_ROWS if options.quick else ROWS)
    runs = dict[str, list[tuple[float, float, tuple[int, float]]]]()
    with tempfile.TemporaryDirectory(prefix="mlprod-events-") as folder:
        make(num_rows, Path(folder))
        for _ in range(options.rounds or (1 if options.quick else 3)):
            for name in CONTENDERS:
                runs.setdefault(name, []).append(measure(name, Path(folder), options.memory))
                print(f"{name}: {runs[name][-1][0]:.1f} s, {runs[name][-1][1]:,.0f} MB", flush=True)
    if len({told for each in runs.values() for _, _, told in each}) != 1:
        raise AssertionError(f"they made different things: {runs}")
    figures = list[Figure]()

    def add(name: str, values: list[float], unit: str) -> None:
        low, high = min(values), max(values)
        figures.append(Figure(name=name, value=median(values), low=low, high=high, unit=unit, runs=len(values)))

    for name, each in runs.items():
        add(f"{name}, events", [num_rows / wall / 1e3 for wall, _, _ in each], "thousand/s")
        add(f"{name}, peak", [peak for _, peak, _ in each], "MB")
    pairs = zip(runs["mlprod"], runs["DuckDB"], strict=True)
    add("mlprod / DuckDB", [ours[0] / theirs[0] for ours, theirs in pairs], "of its wall")
    publish(figures, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        _run(*sys.argv[2:])
    else:
        main()
