"""Row groups of a dataset as numpy arrays, and windows of them in shuffled order.

Promise: either storage gives the same arrays; a file that was cut, replaced or removed is one error that names it.
Price: one `ParquetFile` per thread and file (a shared one is not safe), one window and the next in memory; each file is hashed
once, when it is first opened (about 0.6 s a GB).
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlprod.errors import TrainingError
from mlprod.manifest import Manifest, Shard, StoredColumn, sha256_file
from mlprod.order import Epoch

Arrays = dict[str, np.ndarray]
WINDOWS_KEPT = 3  # in use, next, and one still wanted by a slower thread


class GroupReader:
    """Decodes row groups of one split into {"numeric": float32[n, F], "ids": int32[n, M], "label", "weight", "row_id"}."""

    def __init__(self, dataset: Path, manifest: Manifest, split: str) -> None:
        """`manifest` must describe files below `dataset`."""
        self._dataset = dataset
        self._where: list[tuple[Shard, int]] = [(s, i) for s in manifest.splits[split] for i in range(len(s.groups))]
        self._numeric = [c for c in manifest.columns if c.kind == "numeric"]
        self._ids = [c for c in manifest.columns if c.kind == "categorical"]
        self._weight = next((c for c in manifest.columns if c.role == "weight"), None)
        columns = [*self._numeric, *self._ids, *([self._weight] if self._weight else [])]
        self._names = list(dict.fromkeys([c.stored_in for c in columns] + ["label", "row_id"]))
        self._packed = manifest.storage == "packed"
        self._local = threading.local()
        self._lock = threading.Lock()
        self._verified: set[str] = set()

    @property
    def id_names(self) -> list[str]:
        """Names of the categorical features, in the order of the columns of "ids"."""
        return [c.name for c in self._ids]

    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Returns {array name: (shape of one row, dtype)} of what `read` returns."""
        return {
            "numeric": ((len(self._numeric),), np.dtype(np.float32)),
            "ids": ((len(self._ids),), np.dtype(np.int32)),
            "label": ((), np.dtype(np.float32)),
            "weight": ((), np.dtype(np.float32)),
            "row_id": ((), np.dtype(np.uint64)),
        }

    def read(self, group: int) -> Arrays:
        """Returns the arrays of one row group.

        Raises:
            TrainingError: the file is gone or is not the Parquet file that was written.
        """
        shard, index = self._where[group]
        try:
            table = self._file(shard).read_row_group(index, columns=self._names)
        except (OSError, pa.ArrowException, IndexError, KeyError) as error:
            raise TrainingError(f"{self._dataset / shard.path}, row group {index}: {type(error).__name__}: {error}") from error
        if table.num_rows != shard.groups[index]:
            raise TrainingError(
                f"{self._dataset / shard.path}, row group {index}: {table.num_rows} rows, the manifest says {shard.groups[index]}"
            )
        weight = (
            table[self._weight.stored_in].to_numpy().astype(np.float32) if self._weight else np.ones(table.num_rows, np.float32)
        )
        return {
            "numeric": self._matrix(table, self._numeric, np.dtype(np.float32)),
            "ids": self._matrix(table, self._ids, np.dtype(np.int32)),
            "label": table["label"].to_numpy(),
            "weight": weight,
            "row_id": table["row_id"].to_numpy(),
        }

    def _file(self, shard: Shard) -> pq.ParquetFile:
        files: dict[str, pq.ParquetFile] = self._local.__dict__.setdefault("files", {})
        if shard.path not in files:
            self._verify(shard)
            files[shard.path] = pq.ParquetFile(self._dataset / shard.path, pre_buffer=False)
        return files[shard.path]

    def _verify(self, shard: Shard) -> None:
        """Compares a file's bytes with the manifest's SHA-256, once a process; they are read again from the page cache."""
        with self._lock:
            if shard.path in self._verified:
                return
            path = self._dataset / shard.path
            if sha256_file(path) != shard.sha256:
                raise TrainingError(
                    f"{path}: its SHA-256 differs from the manifest's; restore the file, or build the dataset again"
                )
            self._verified.add(shard.path)

    def _matrix(self, table: pa.Table, columns: Sequence[StoredColumn], dtype: np.dtype) -> np.ndarray:
        """Returns [n, len(columns)] of one dtype, from a packed column or from plain ones."""
        if not columns:
            return np.zeros((table.num_rows, 0), dtype)
        if self._packed:
            packed = table[columns[0].stored_in].combine_chunks()
            start = packed.offset * len(columns)
            values = np.frombuffer(packed.buffers()[1], dtype)[start : start + table.num_rows * len(columns)]
            return values.reshape(table.num_rows, len(columns))
        return np.stack([table[c.stored_in].to_numpy() for c in columns], axis=1)


class Windows:
    """Windows of an order, decoded and shuffled, for the lanes of one process; each is loaded by one thread, others wait."""

    def __init__(self, reader: GroupReader, lanes: np.ndarray) -> None:
        """`lanes`: int64[K], sorted, the lanes this process reads."""
        self._reader, self._lanes = reader, lanes
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[int, int], Future[Arrays]] = OrderedDict()

    def get(self, epoch: Epoch, window: int) -> Arrays:
        """Returns {array name: [K * slots, ...]}: row lane_index * slots + slot, slots as of `slots_in`."""
        key = (epoch.number, window)
        with self._lock:
            future = self._loaded.get(key)
            mine = future is None
            if future is None:
                future = self._loaded[key] = Future()
                while len(self._loaded) > WINDOWS_KEPT:
                    self._loaded.popitem(last=False)
        if mine:
            try:
                future.set_result(self._load(epoch, window))
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def slots_in(self, epoch: Epoch, window: int) -> int:
        """Returns how many slots a lane has in a window's buffers."""
        return -(-epoch.window_rows(window) // epoch.spec.num_lanes)

    def _load(self, epoch: Epoch, window: int) -> Arrays:
        slots = self.slots_in(epoch, window)
        size = len(self._lanes) * slots
        out: Arrays = {name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in self._reader.shapes().items()}
        for first, last in _runs(self._lanes):
            shuffled = epoch.window_slots(window, self._lanes[first:last])
            dest = np.concatenate([slot + (first + i) * slots for i, slot in enumerate(shuffled)])
            start = epoch.lane_bounds(window, int(self._lanes[first]))[0]
            for group, row, count, position in epoch.pieces(start, start + len(dest)):
                arrays, to = self._reader.read(group), dest[position - start : position - start + count]
                for name, values in arrays.items():
                    out[name][to] = values[row : row + count]
        return out


def _runs(lanes: np.ndarray) -> list[tuple[int, int]]:
    """Returns [first, last) index ranges of consecutive lanes (int64[K]), whose positions in a window are contiguous."""
    breaks = np.flatnonzero(np.diff(lanes) != 1) + 1
    edges = [0, *breaks.tolist(), len(lanes)]
    return list(pairwise(edges))


def as_batch(arrays: Mapping[str, Any], id_names: Sequence[str]) -> Arrays:
    """Returns rows [B] as the model's batch: ids apart by name, `row_id` as uint32[B, 2] (low word, high word)."""
    ids = arrays["ids"]
    batch: Arrays = {name: arrays[name] for name in ("numeric", "label", "weight")}
    batch |= {name: np.ascontiguousarray(ids[:, i]) for i, name in enumerate(id_names)}
    batch["row_id"] = np.ascontiguousarray(arrays["row_id"]).astype("<u8").view("<u4").reshape(-1, 2)
    return batch
