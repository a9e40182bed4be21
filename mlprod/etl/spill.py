"""An external sort's first half: rows on disk, in files of Arrow batches that each belong to one bucket.

Promise: a bucket's rows are found again over all files, whoever wrote them and in which order; a file is there when it is whole,
and is never written again: its name is its own, and what says where its batches are names it.
Price: every row is written and read once more, as uncompressed Arrow.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa

from mlprod.etl.whole import HALF

Batches = Sequence[Sequence[int]]  # of a file: (bucket, first byte, byte behind the last) of each
Index = Mapping[str, Batches]  # by file
Buckets = Mapping[int, Index]  # by bucket, each the batches of its own: what a task is given


def num_bits(expected_bytes: int, memory_bytes: int) -> int:
    """Returns how many bits of the hash to cut by, so that a bucket takes at most about a sixth of the memory.

    A sixth: a bucket is gathered into one table, sorted into another, and encoded. More buckets are smaller reads of every
    part: at most 10 bits, which is enough for rows that take 170 times the memory.
    """
    buckets = max(1, -(-expected_bytes * 6 // memory_bytes))
    return min((buckets - 1).bit_length(), 10)


def bucket_of(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Returns uint16[B]: the top `bits` bits of uint64[B], so that buckets in order, each sorted, are all rows sorted."""
    return (hashes >> np.uint64(64 - bits)).astype(np.uint16) if bits else np.zeros(len(hashes), np.uint16)


class Spill:
    """Writes tables into one file. A context manager; left without an error, the file is there."""

    def __init__(self, path: Path, held_bytes: int = 0) -> None:
        """Writes nothing yet; a file without rows is not made.

        Args:
            path: of the file, whose folder is there.
            held_bytes: of rows that are gathered before they are written: the larger, the fewer and larger are the batches.
        """
        self._path, self._half, self._held_bytes = path, path.with_suffix(HALF), held_bytes
        self._held = list[tuple[pa.Table, np.ndarray]]()
        self._file: pa.NativeFile | None = None
        self._writer: pa.RecordBatchStreamWriter | None = None
        self.batches: list[tuple[int, int, int]] = []

    def add(self, table: pa.Table, bucket: np.ndarray) -> None:
        """Adds rows; `bucket`: uint16[B]. Rows of a bucket keep their order."""
        self._held.append((table, bucket))
        if sum(held.nbytes for held, _ in self._held) > self._held_bytes:
            self._sort()

    def _sort(self) -> None:
        """Writes the rows that were gathered, bucket by bucket."""
        if not self._held:
            return
        table, bucket = pa.concat_tables(held for held, _ in self._held), np.concatenate([of for _, of in self._held])
        self._held.clear()
        if (bucket[1:] < bucket[:-1]).any():
            table = table.take(pa.array(np.argsort(bucket, kind="stable")))  # a radix sort, of 16 bits
        counts = np.bincount(bucket)
        table, start = table.combine_chunks(), 0
        for i in np.flatnonzero(counts).tolist():
            for batch in table.slice(start, int(counts[i])).to_batches():
                self._write(i, batch)
            start += int(counts[i])

    def _write(self, bucket: int, batch: pa.RecordBatch) -> None:
        if self._writer is None or self._file is None:
            self._file = pa.OSFile(str(self._half), "wb")
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        before = self._file.tell() or len(batch.schema.serialize())  # which the writer puts in front of the first batch
        self._writer.write_batch(batch)
        self.batches.append((bucket, before, self._file.tell()))

    def __enter__(self) -> "Spill":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what is left, closes the file, and gives it its name unless something went wrong."""
        try:
            if kind is None:
                self._sort()
            if self._writer is not None and self._file is not None:
                self._writer.close()
                self._file.close()
                if kind is None:
                    os.replace(self._half, self._path)
        finally:
            self._half.unlink(missing_ok=True)
            if self._file is not None:
                self._file.close()  # else a disk that is full stays so until it is collected

    def told(self) -> dict[str, Any]:
        """Returns what `index_of` needs of the file, as JSON data."""
        return {"file": self._path.name, "batches": self.batches}


def own_name(folder: Path, name: str) -> Path:
    """Returns where a spill goes: two that are made of the same rows, by two processes, may lie in another order."""
    return folder / f"{name}-{uuid4().hex}.arrow"


def task_of(file: str) -> str:
    """Returns the name by which `own_name` was made: of a piece, the number of its bucket."""
    return Path(file).stem.rpartition("-")[0]


def index_of(told: Iterable[Mapping[str, Any]]) -> dict[str, Batches]:
    """Returns the index of all files that were told of."""
    return {each["file"]: each["batches"] for each in told}


def by_bucket(index: Index) -> dict[int, dict[str, list[Sequence[int]]]]:
    """Returns an index cut by bucket: with many buckets a task that is sent its own is sent a small part."""
    found: dict[int, dict[str, list[Sequence[int]]]] = {}
    for name, batches in index.items():
        for batch in batches:
            found.setdefault(batch[0], {}).setdefault(name, []).append(batch)
    return found


def read_bucket(folder: Path, index: Index, bucket: int, columns: Sequence[str] = ()) -> pa.Table | None:
    """Returns the rows of a bucket over the mapped files of a folder, only what is touched is read; None where there are none.

    Args:
        columns: those wanted; none: all.
    """
    found, schema = list[pa.RecordBatch](), None
    for name, batches in index.items():
        wanted = [(a, b) for of, a, b in batches if of == bucket]
        if wanted:
            with pa.OSFile(str(folder / name)) as file:
                schema = schema or pa.ipc.read_schema(file)
                found += [pa.ipc.read_record_batch(file.read_at(b - a, a), schema) for a, b in wanted]
    if not found:
        return None
    table = pa.Table.from_batches(found)
    return table.select(list(columns)) if columns else table
