"""From one CSV file to a clean dataset: mlprod's ETL against DuckDB and Polars asked for the same, and chunked pandas.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/etl.py [--rows N] [--rounds N] [--quick] [--json FILE]      # 1 GB of disk a 2 million rows
    python benchmarks/etl.py --peaks 2000000 10000000 30000000                    # mlprod's memory alone, at several sizes

Job: 20 columns (12 float64 with 5% missing, 4 int64, 2 of few strings, 1 of nearly unique ones, a time), 3% of the rows scattered
copies. Of each contender: duplicates dropped over the whole file, split by a hash, lower medians of the training rows in place of
missing values, the label made, numbers as float32, Parquet in the order of the hash.
Promise: the peers get the types declared and no order to keep; contenders take turns in processes of their own, a ratio compares
walls of the same round; imports count for none. All but pandas must keep the same number of rows.
How to read: memory is anonymous memory at its peak, imports included, of a contender's processes together. The local Dask cluster
(a scheduler and two workers of one thread, skipped without the extra "dask") is there, with its imports, before the clock starts.
"limited" is DuckDB with a database file and twice mlprod's limit; where it gives up, there is no figure. "parsing alone" is what
mlprod's threads need to read the file's parts and drop them.
Price: about 3 minutes for 2 million rows and one round on 2 cores.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv as pacsv
from _figures import Figure, parser_for, publish

from mlprod.config import ByHash, Column, Config, CsvSource, EtlConfig, Label, categorical, numeric
from mlprod.etl import sources
from mlprod.etl.extract import source_columns
from mlprod.etl.label import label_column
from mlprod.etl.run import build
from mlprod.models.mlp import MLPConfig

ROWS, QUICK_ROWS = 2_000_000, 50_000
FLOATS, INTS = [f"x{i}" for i in range(12)], [f"n{i}" for i in range(4)]
NUMBERS = [*FLOATS, *INTS[1:]]  # n0 makes the label
TEXTS = ["c0", "c1", "name"]
MEMORY = 1 << 29
GOAL, LIMITED_GOAL = 0.9, 0.6


def write_rows(path: Path, num_rows: int) -> None:
    """Writes the CSV file, half a million rows at a time; copies lie in their own half million or the one behind it."""
    chance, before = np.random.default_rng(0), None
    with path.open("wb") as file:
        for start in range(0, num_rows, 500_000):
            size = min(500_000, num_rows - start)
            new = size - int(size * 0.03)
            table = pa.table(_columns(chance, new))
            copied = table if before is None else before
            table = pa.concat_tables([table, copied.take(chance.integers(0, copied.num_rows, size - new))])
            before = table.slice(0, new)
            options = pacsv.WriteOptions(include_header=start == 0, quoting_style="needed")
            pacsv.write_csv(table.take(chance.permutation(size)), file, options)


def _columns(chance: np.random.Generator, size: int) -> dict[str, pa.Array]:
    numbers = {
        name: pa.array(np.round(chance.normal(size=size) * (i + 1), 6), mask=chance.random(size) < 0.05)
        for i, name in enumerate(FLOATS)
    }
    integers = {name: pa.array(chance.integers(0, 10 ** (i + 2), size)) for i, name in enumerate(INTS)}
    few, many = np.array(["red", "green", "blue", "black"]), np.array([f"cat{i:03d}" for i in range(200)])
    texts = {"c0": few[chance.integers(0, 4, size)], "c1": many[chance.integers(0, 200, size)]}
    texts["name"] = np.char.add("user", chance.integers(0, 10**9, size).astype(str))
    times = (1_600_000_000 + chance.integers(0, 10**8, size)).astype("datetime64[s]")
    return numbers | integers | {name: pa.array(values) for name, values in texts.items()} | {"t": pa.array(times)}


# ---- contenders: each gets the file and an empty folder, and returns the rows it kept ------------------------------------


def config(csv: Path, folder: Path) -> Config:
    """mlprod's recipe of the job."""
    columns = (
        *(numeric(name) for name in FLOATS), *(numeric(name, type="int64") for name in INTS[1:]), categorical("c0"),
        categorical("c1"), Column(name="name", type="string", role="group"), Column(name="t", type="timestamp", role="time"),
    )  # fmt: skip
    etl = EtlConfig(
        source=CsvSource(path=str(csv)), columns=columns, label=Label(column="n0", above=50.0), split=ByHash(),
        memory_bytes=MEMORY,
    )  # fmt: skip
    return Config(name="rows", workdir=str(folder / "run"), dataset=str(folder / "dataset"), steps=1, model=MLPConfig(), etl=etl)


def mlprod(csv: Path, folder: Path) -> int:
    """The ETL as it is."""
    published, _ = build(config(csv, folder))
    return sum(published.num_rows(split) for split in published.splits)


DASK = "mlprod, local Dask cluster, 2 workers"


def mlprod_on_dask(csv: Path, folder: Path) -> int:
    """The ETL on the cluster that `local_cluster` has started in the folder."""
    cfg = config(csv, folder)
    address = json.loads((folder / "scheduler.json").read_text())["address"]
    published, _ = build(replace(cfg, etl=replace(cfg.etl, executor=address.replace("tcp://", "dask://"))))
    return sum(published.num_rows(split) for split in published.splits)


@contextmanager
def local_cluster(folder: Path) -> Iterator[None]:
    """Starts a scheduler and two workers of one thread each on this machine, and ends them."""
    told, started = folder / "scheduler.json", list[subprocess.Popen[bytes]]()

    def start(program: str, *given: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--host", "127.0.0.1", "--no-dashboard", *given]
        started.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    try:
        start("dask_scheduler", "--port", "0", "--scheduler-file", str(told))
        while not told.exists() or not told.stat().st_size:
            time.sleep(0.1)
        for _ in range(2):
            start("dask_worker", "--scheduler-file", str(told), "--nthreads", "1", "--no-nanny", "--memory-limit", "0")
        import distributed

        with distributed.Client(scheduler_file=str(told), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            client.run(importlib.import_module, "mlprod.etl.run")
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def parsing(csv: Path, folder: Path) -> int:
    """The floor: the parts of the file, read in their types and dropped."""
    etl = config(csv, folder).etl
    columns = [*source_columns(etl), label_column(etl.label)]
    parts = sources.parts(etl.source, [c.name for c in columns], etl.chunk_rows)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(lambda part: sum(c.num_rows for c in sources.read(etl.source, part, columns, etl.chunk_rows)), parts))


def duckdb_ordered(csv: Path, folder: Path) -> int:
    """DuckDB in memory."""
    return _duckdb(csv, folder, ordered=True, limit=0)


def duckdb_limited(csv: Path, folder: Path) -> int:
    """DuckDB with a file and twice the memory that mlprod is given."""
    return _duckdb(csv, folder, ordered=True, limit=2 * MEMORY)


def duckdb_unordered(csv: Path, folder: Path) -> int:
    """DuckDB in memory, rows in any order: less than what is asked."""
    return _duckdb(csv, folder, ordered=False, limit=0)


def _duckdb(csv: Path, folder: Path, *, ordered: bool, limit: int) -> int:
    import duckdb

    db = duckdb.connect(str(folder / "rows.duckdb") if limit else ":memory:")
    db.execute("SET preserve_insertion_order = false")
    if limit:
        db.execute(f"SET memory_limit = '{limit >> 20}MiB'")
        db.execute(f"SET temp_directory = '{folder / 'spill'}'")
    types = dict.fromkeys(FLOATS, "DOUBLE") | dict.fromkeys(INTS, "BIGINT") | dict.fromkeys(TEXTS, "VARCHAR") | {"t": "TIMESTAMP"}
    declared = ", ".join(f"'{name}': '{kind}'" for name, kind in types.items())
    names = ", ".join(types)
    read = f"read_csv('{csv}', header = true, columns = {{{declared}}}, nullstr = ['', 'NA'])"
    db.execute(f"CREATE TABLE rows AS SELECT {names}, hash({names}) AS h FROM (SELECT DISTINCT {names} FROM {read})")
    middle = ", ".join(f"quantile_disc({name}, 0.5)" for name in NUMBERS)
    medians = db.execute(f"SELECT {middle} FROM rows WHERE h % 10 > 1").fetchone()
    assert medians is not None
    filled = ", ".join(f"coalesce({n}, {m})::FLOAT AS {n}" for n, m in zip(NUMBERS, medians, strict=True))
    for split, chosen in (("train", "> 1"), ("eval", "= 0"), ("test", "= 1")):
        rows = f"SELECT {filled}, {', '.join(TEXTS)}, t, (n0 > 50)::FLOAT AS label, h FROM rows WHERE h % 10 {chosen}"
        order = "ORDER BY h" if ordered else ""
        db.execute(f"COPY ({rows} {order}) TO '{folder / split}.parquet' (FORMAT parquet, COMPRESSION uncompressed)")
    kept = db.execute("SELECT count(*) FROM rows").fetchone()
    assert kept is not None
    return int(kept[0])


def polars(csv: Path, folder: Path) -> int:
    """Polars' streaming engine."""
    import polars as pl

    types = dict.fromkeys(FLOATS, pl.Float64) | dict.fromkeys(INTS, pl.Int64) | dict.fromkeys([*TEXTS, "t"], pl.String)
    rows = pl.scan_csv(csv, schema=types, null_values=["", "NA"]).unique()
    rows = rows.with_columns(pl.col("t").str.to_datetime("%Y-%m-%d %H:%M:%S")).with_columns(h=pl.struct(pl.all()).hash())
    kept = rows.collect(engine="streaming")
    digit = pl.col("h") % 10
    medians = kept.filter(digit > 1).select(pl.col(name).quantile(0.5, "lower") for name in NUMBERS).row(0)
    filled = [pl.col(n).fill_null(m).cast(pl.Float32) for n, m in zip(NUMBERS, medians, strict=True)]
    label = (pl.col("n0") > 50).cast(pl.Float32).alias("label")
    for split, chosen in (("train", digit > 1), ("eval", digit == 0), ("test", digit == 1)):
        stored = kept.lazy().filter(chosen).with_columns([*filled, label]).sort("h")
        stored.sink_parquet(folder / f"{split}.parquet", compression="uncompressed", engine="streaming")
    return kept.height


def pandas_chunks(csv: Path, folder: Path) -> int:
    """Chunked pandas as it is commonly written: duplicates and medians of a chunk alone, so neither is right."""
    import pandas as pd

    kept = 0
    for i, chunk in enumerate(pd.read_csv(csv, chunksize=500_000, parse_dates=["t"])):
        rows = chunk.drop_duplicates()
        rows = rows.assign(label=(rows["n0"] > 50).astype("float32"), **{n: rows[n].fillna(rows[n].median()) for n in NUMBERS})
        rows.to_parquet(folder / f"{i:05d}.parquet")
        kept += len(rows)
    return kept


CONTENDERS: dict[str, Callable[[Path, Path], int]] = {
    "mlprod": mlprod, DASK: mlprod_on_dask, "DuckDB": duckdb_ordered, "DuckDB, limited": duckdb_limited, "Polars": polars,
    "DuckDB, no order": duckdb_unordered, "pandas chunks": pandas_chunks, "parsing alone": parsing,
}  # fmt: skip


# ---- measuring ---------------------------------------------------------------------------------------------------------


def _anonymous(pid: int) -> int:
    """Returns the anonymous memory of a process and those it started in bytes, 0 when it is gone."""
    found = 0
    with suppress(OSError, psutil.Error):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    found += int(line.split()[1]) << 10
    return found


def measure(name: str, csv: Path) -> tuple[float, int, int]:
    """Returns (wall seconds, peak bytes, rows kept) of a contender in a process of its own; NaN where it gives up."""
    with tempfile.TemporaryDirectory(dir=csv.parent) as folder:
        command = [sys.executable, __file__, "--contender", name, str(csv), folder]
        process, peak = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True), 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.1)
        assert process.stdout is not None
        told = process.stdout.read().split()
    return (float(told[-2]), peak, int(told[-1])) if process.returncode == 0 else (float("nan"), peak, 0)


def _run(name: str, csv: str, folder: str) -> None:
    with local_cluster(Path(folder)) if name == DASK else nullcontext():
        began = time.perf_counter()
        kept = CONTENDERS[name](Path(csv), Path(folder))
        wall = time.perf_counter() - began
    print(wall, kept)


def figures_of(measured: dict[str, list[tuple[float, int, int]]], kept: int) -> Iterator[Figure]:
    """Yields walls, peaks and ratios."""
    ours = [wall for wall, _, _ in measured["mlprod"]]
    for name, runs in measured.items():
        walls = [wall for wall, _, _ in runs]
        if any(map(math.isnan, walls)):
            print(f"{name} gave up")
            continue
        if name in ("mlprod", DASK, "DuckDB", "DuckDB, no order", "Polars") and any(rows != kept for _, _, rows in runs):
            raise AssertionError(f"{name} kept {[rows for _, _, rows in runs]} rows, not {kept}")
        yield Figure(name=f"{name}, wall", value=median(walls), low=min(walls), high=max(walls), unit="s", runs=len(runs))
        peaks = [peak / 1e6 for _, peak, _ in runs]
        yield Figure(name=f"{name}, peak", value=median(peaks), low=min(peaks), high=max(peaks), unit="MB", runs=len(runs))
        if name in ("DuckDB", "Polars", "DuckDB, limited"):
            ratios = [a / b for a, b in zip(ours, walls, strict=True)]
            goal = {"max": LIMITED_GOAL if name == "DuckDB, limited" else GOAL}
            yield Figure(
                name=f"mlprod / {name}", value=median(ratios), low=min(ratios), high=max(ratios), unit="of its wall",
                runs=len(runs), goal=goal,
            )  # fmt: skip
    if DASK in measured:
        ratios = [run[0] / one for run, one in zip(measured[DASK], ours, strict=True)]
        told = Figure(
            name=f"{DASK} / mlprod", value=median(ratios), low=min(ratios), high=max(ratios), unit="of its wall", runs=len(ratios)
        )
        yield told
    print("rows kept:", {name: runs[0][2] for name, runs in measured.items()})


def peaks(sizes: Sequence[int]) -> Iterator[Figure]:
    """Yields the peak memory and the wall of mlprod's build of so many rows."""
    for num_rows in sizes:
        with tempfile.TemporaryDirectory(prefix="mlprod-etl-") as folder:
            csv = Path(folder) / "rows.csv"
            write_rows(csv, num_rows)
            wall, peak, _ = measure("mlprod", csv)
        for what, value, unit in (("peak", peak / 1e6, "MB"), ("wall", wall, "s")):
            goal = {"max": MEMORY / 1e6} if what == "peak" else None
            yield Figure(name=f"{num_rows:,} rows, {what}", value=value, low=value, high=value, unit=unit, runs=1, goal=goal)


def main() -> None:
    """Writes the rows, lets the contenders take turns, prints."""
    parser = parser_for(__doc__ or "")
    parser.add_argument("--rows", type=int, default=0, help=f"of the CSV file (default {ROWS:,})")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--peaks", type=int, nargs="*", default=[], metavar="N", help="measure mlprod's memory at these sizes alone"
    )
    given = parser.parse_args()
    if given.peaks:
        publish(list(peaks(given.peaks)), given.json)
        return
    num_rows = given.rows or (QUICK_ROWS if given.quick else ROWS)
    with tempfile.TemporaryDirectory(prefix="mlprod-etl-") as folder:
        csv = Path(folder) / "rows.csv"
        write_rows(csv, num_rows)
        print(f"{num_rows:,} rows, {csv.stat().st_size / 1e6:,.0f} MB")
        there = [name for name in CONTENDERS if name != DASK or importlib.util.find_spec("distributed")]
        measured: dict[str, list[tuple[float, int, int]]] = {name: [] for name in there}
        for _ in range(given.rounds):
            for name, runs in measured.items():
                runs.append(measure(name, csv))
                print(f"{name}: {runs[-1][0]:.1f} s, {runs[-1][1] / 1e6:,.0f} MB, {runs[-1][2]:,} rows", flush=True)
        publish(list(figures_of(measured, measured["mlprod"][0][2])), given.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--contender"]:
        _run(*sys.argv[2:5])
    else:
        main()
