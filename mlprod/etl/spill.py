"""An external sort's first half: rows on disk, in files of Arrow batches that each belong to one bucket.

Promise: a bucket's rows are found again over all files, whoever wrote them and in which order; a file is there when it is whole.
Price: every row is written and read once more, as uncompressed Arrow.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

Index = Mapping[str, Sequence[int]]  # file -> the bucket of each of its batches


def num_bits(expected_bytes: int, memory_bytes: int) -> int:
    """Returns how many bits of the hash to cut by, so that a bucket takes about a sixteenth of the memory; at most 8.

    A sixteenth: sorting takes a bucket several times over (its rows, their order, the sorted copy, the encoded arrays).
    """
    buckets = max(1, -(-expected_bytes * 16 // memory_bytes))
    return min((buckets - 1).bit_length(), 8)


def bucket_of(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Returns int64[B]: the top `bits` bits of uint64[B], so that buckets in order, each sorted, are all rows sorted."""
    return (hashes >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(hashes), np.int64)


class Spill:
    """Writes tables into one file. A context manager; left without an error, the file is there."""

    def __init__(self, path: Path) -> None:
        """`path`: of the file, whose folder is there. A file without rows is not made."""
        self._path, self._half = path, path.with_suffix(".half")
        self._writer: pa.RecordBatchFileWriter | None = None
        self.buckets: list[int] = []

    def add(self, table: pa.Table, bucket: np.ndarray) -> None:
        """Adds rows; `bucket`: int64[B], not negative. Rows of a bucket keep their order."""
        if (np.diff(bucket) < 0).any():
            order = np.argsort(bucket, kind="stable")
            table, bucket = table.take(order), bucket[order]
        counts = np.bincount(bucket)
        table, start = table.combine_chunks(), 0
        for i in np.flatnonzero(counts).tolist():
            if self._writer is None:
                self._writer = pa.ipc.new_file(str(self._half), table.schema)
            for batch in table.slice(start, int(counts[i])).to_batches():
                self._writer.write_batch(batch)
                self.buckets.append(i)
            start += int(counts[i])

    def __enter__(self) -> "Spill":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes the file, and gives it its name unless something went wrong."""
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                os.replace(self._half, self._path)


def read_bucket(folder: Path, index: Index, bucket: int, columns: Sequence[str] = ()) -> pa.Table | None:
    """Returns the rows of a bucket over the mapped files of a folder, only what is touched is read; None where there are none.

    Args:
        columns: those wanted; none: all.
    """
    batches = list[pa.RecordBatch]()
    for name, buckets in index.items():
        wanted = [i for i, found in enumerate(buckets) if found == bucket]
        if wanted:
            with pa.memory_map(str(folder / name)) as file:
                reader = pa.ipc.open_file(file)
                batches += [reader.get_batch(i) for i in wanted]
    if not batches:
        return None
    table = pa.Table.from_batches(batches)
    return table.select(list(columns)) if columns else table
