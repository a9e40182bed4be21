"""What one would write with torch's own DataLoader, tuned by hand: the peers of `loader.py`.

Promise: files in random order, row groups in random order, rows shuffled inside their group; batches of exactly the size asked
for, the rest left out. Every row is copied once, from where Arrow decoded it to its place in the batch, and a tensor is the
batch's own memory. Not promised, as mlprod does: rows of different groups in one batch, a position to go back to, a checksum.
Price: imports torch.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from _datasets import Arrays, packed_arrays, plain_arrays
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

WORKERS = 0  # on 2 cores 2 workers were 3 to 9 times slower, whatever the batch: each batch goes through shared memory
BLOCK_ROWS = 4096  # columns are stacked so many rows at a time

Tensors = dict[str, torch.Tensor]


class Batches(IterableDataset[Tensors]):
    """Shuffled batches of Parquet files."""

    def __init__(self, paths: Sequence[Path], batch: int, group_arrays: Callable[[pq.ParquetFile, int], Arrays]) -> None:
        """`group_arrays`: returns a file's row group as arrays [n, ...]."""
        self._paths, self._batch, self._group_arrays = paths, batch, group_arrays

    def __iter__(self) -> Iterator[Tensors]:
        """Yields an epoch; of several workers, each its own files."""
        rng, worker = np.random.default_rng(0), get_worker_info()
        shuffled = rng.permutation(len(self._paths))
        mine = shuffled[worker.id :: worker.num_workers] if worker else shuffled
        return _batches(self._groups([self._paths[i] for i in mine], rng), self._batch, rng)

    def _groups(self, paths: Sequence[Path], rng: np.random.Generator) -> Iterator[Arrays]:
        for path in paths:
            file = pq.ParquetFile(path, pre_buffer=False)
            for group in rng.permutation(file.num_row_groups):
                yield self._group_arrays(file, int(group))


def _batches(groups: Iterator[Arrays], batch: int, rng: np.random.Generator) -> Iterator[Tensors]:
    """Yields batches of exactly `batch` rows; each group's rows are shuffled and taken once, straight into place."""
    out: Arrays = {}
    filled = 0
    for rows in groups:
        order = rng.permutation(len(rows["label"]))
        while len(order):
            out = out or {name: np.empty((batch, *values.shape[1:]), values.dtype) for name, values in rows.items()}
            taken, order = np.split(order, [batch - filled])
            for name, values in rows.items():  # "clip": "raise" would go through a copy
                np.take(values, taken, axis=0, out=out[name][filled : filled + len(taken)], mode="clip")
            filled += len(taken)
            if filled == batch:
                yield {name: torch.from_numpy(values) for name, values in out.items()}
                out, filled = {}, 0


def _packed_group(file: pq.ParquetFile, group: int) -> Arrays:
    return packed_arrays(file.read_row_group(group, use_threads=False))  # two columns of any size: threads only cost


def _column_group(file: pq.ParquetFile, group: int) -> Arrays:
    """Returns a row group of plain columns as arrays, "numeric" stacked to [n, columns]."""
    table = file.read_row_group(group)  # with Arrow's threads: never slower here
    rows = plain_arrays(table)
    numbers = [rows.pop(name) for name in table.column_names if name.startswith("numeric")]
    numeric = np.empty((table.num_rows, len(numbers)), np.float32)
    for at in range(0, table.num_rows, BLOCK_ROWS):  # in cache: 1.7 times as fast as np.stack
        for i, values in enumerate(numbers):
            numeric[at : at + BLOCK_ROWS, i] = values[at : at + BLOCK_ROWS]
    return {"numeric": numeric, **rows}


def packed(paths: Sequence[Path], batch: int, workers: int = WORKERS) -> DataLoader[Tensors]:
    """Returns the loader of the packed files that mlprod reads as well."""
    return DataLoader(Batches(paths, batch, _packed_group), batch_size=None, num_workers=workers, collate_fn=_as_it_is)


def columns(paths: Sequence[Path], batch: int, workers: int = WORKERS) -> DataLoader[Tensors]:
    """Returns the loader of the usual files: a column per number, 64k rows a group."""
    return DataLoader(Batches(paths, batch, _column_group), batch_size=None, num_workers=workers, collate_fn=_as_it_is)


def _as_it_is(batch: Tensors) -> Tensors:
    return batch
