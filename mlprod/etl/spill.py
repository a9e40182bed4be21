"""An external sort's first half: rows on disk, partitioned by the top bits of a hash.

Promise: bucket i holds just the rows whose hash begins with i, so that buckets in order, each sorted, are all rows sorted.
Price: every row is written and read once more, as uncompressed Arrow.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa


def num_bits(expected_bytes: int, memory_bytes: int) -> int:
    """Returns how many bits of the hash to cut by, so that a bucket takes about a sixteenth of the memory; at most 8.

    A sixteenth: sorting takes a bucket several times over (its rows, their order, the sorted copy, the encoded arrays).
    """
    buckets = max(1, -(-expected_bytes * 16 // memory_bytes))
    return min((buckets - 1).bit_length(), 8)


class Spill:
    """Writes tables into 2^`bits` Arrow stream files of a folder. A context manager; closed files can be read."""

    def __init__(self, folder: Path, bits: int) -> None:
        """`folder` is made; `bits` from 0 to 8."""
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = [folder / f"{i:03d}.arrow" for i in range(1 << bits)]
        self._bits = bits
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, table: pa.Table, hashes: np.ndarray) -> None:
        """Adds rows; `hashes`: uint64[B], whose top bits choose the bucket."""
        bucket = (hashes >> np.uint64(64 - self._bits)).astype(np.int64) if self._bits else np.zeros(len(hashes), np.int64)
        order = np.argsort(bucket, kind="stable")
        counts = np.bincount(bucket, minlength=len(self.paths))
        table, start = table.take(order), 0
        for i in np.flatnonzero(counts).tolist():
            part = table.slice(start, int(counts[i]))
            start += int(counts[i])
            if i not in self._writers:
                self._writers[i] = pa.ipc.new_stream(str(self.paths[i]), table.schema)
            self._writers[i].write_table(part)

    def __enter__(self) -> "Spill":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes every bucket's file."""
        for writer in self._writers.values():
            writer.close()


def buckets(folder: Path) -> list[Path]:
    """Returns the files of a spill's non-empty buckets, in the order of their hashes."""
    return sorted(folder.glob("*.arrow"))


def read_bucket(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Returns a bucket as a table over the mapped file; only what is touched is read."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    return table if columns is None else table.select(columns)


def read_all(folder: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yields every bucket of a spill in the order of their hashes."""
    for path in buckets(folder):
        yield read_bucket(path, columns)
