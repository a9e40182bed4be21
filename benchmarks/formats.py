"""What a million rows cost in each file format: seconds to write, seconds to read, megabytes.

    python benchmarks/formats.py [--rounds N] [--quick] [--json FILE]      # about 1 minute

Job: 1 million rows of 5 numeric columns (4 float64 of six digits, 1 int64) out of memory into a file and back, formats
in turn, the median of the rounds; the files are in the page cache when they are read.
How to read: the published figures that are often quoted for this are 4.2 s, 1.9 s and 73 MB for CSV, 0.4, 0.15 and 38 for Parquet
without compression, 0.5, 0.16 and 27 with snappy; their rows are not known.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from _figures import Figure, parser_for, publish

ROWS, QUICK_ROWS = 1_000_000, 20_000
PUBLISHED = {
    "CSV, pandas": (4.2, 1.9, 73), "Parquet uncompressed, pandas": (0.4, 0.15, 38), "Parquet snappy, pandas": (0.5, 0.16, 27),
}  # fmt: skip
Pair = tuple[Callable[[Path], Any], Callable[[Path], Any]]  # what writes a file and what reads it


def formats(rows: pd.DataFrame) -> dict[str, Pair]:
    """Returns the formats by name."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    found: dict[str, Pair] = {
        "CSV, pandas": (partial(rows.to_csv, index=False), pd.read_csv),
        "CSV, pyarrow": (partial(pacsv.write_csv, table), pacsv.read_csv),
    }
    for codec in ("uncompressed", "snappy", "zstd"):
        given: Any = None if codec == "uncompressed" else codec
        found[f"Parquet {codec}, pandas"] = (partial(rows.to_parquet, compression=given), pd.read_parquet)
        writer = partial(pq.write_table, table, compression=given or "none", use_dictionary=False)
        found[f"Parquet {codec}, pyarrow, no dictionaries"] = (writer, pq.read_table)
    return found


def seconds(act: Callable[[Path], Any], path: Path) -> float:
    """Returns how long it takes."""
    began = time.perf_counter()
    act(path)
    return time.perf_counter() - began


def main() -> None:
    """Writes and reads, format after format, round after round; prints a line a format."""
    parser = parser_for(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    chance, num_rows = np.random.default_rng(0), QUICK_ROWS if given.quick else ROWS
    numbers = {f"x{i}": np.round(chance.normal(size=num_rows) * 10**i, 6) for i in range(4)}
    rows = pd.DataFrame({**numbers, "n": chance.integers(0, 10**6, num_rows)})
    taken = {name: list[tuple[float, float, float]]() for name in formats(rows)}
    with tempfile.TemporaryDirectory(prefix="mlprod-formats-") as folder:
        for _ in range(given.rounds):
            for i, (name, (write, read)) in enumerate(formats(rows).items()):
                path = Path(folder) / str(i)
                taken[name].append((seconds(write, path), seconds(read, path), path.stat().st_size / 1e6))
    figures = []
    for name, runs in taken.items():
        columns = list(zip(*runs, strict=True))
        published = PUBLISHED.get(name)
        told = " / ".join(f"{median(column):.2f}" for column in columns)
        print(f"{name}: write / read / MB {told}" + (f", published {' / '.join(map(str, published))}" if published else ""))
        for column, what, unit in zip(columns, ("write", "read", "size"), ("s", "s", "MB"), strict=True):
            figures.append(
                Figure(
                    name=f"{name}, {what}", value=median(column), low=min(column), high=max(column), unit=unit, runs=len(column)
                )
            )
    publish(figures, given.json)


if __name__ == "__main__":
    main()
