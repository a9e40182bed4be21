"""Row groups of a dataset as numpy arrays.

Promise: what is returned is what was checked: a group's bytes are read once and compared with the manifest's checksum at every
read. Either storage gives the same arrays. A file that was cut, replaced or removed, or a flipped bit, is one error that names
file and group.
Price: one read a group, into memory that was used before, and the checksum, about a fifth of that. Nothing is decoded: values
lie in a file as they lie in memory, where the manifest says.
"""

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import xxhash

from mlprod.data.memory import Scratch
from mlprod.errors import TrainingError
from mlprod.manifest import Manifest, Shard
from mlprod.store import Store

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]
FLOAT32, INT32, UINT64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint64)
KINDS = {
    "numeric": (("numeric",), FLOAT32),
    "ids": (("categorical", "list", "sequence"), INT32),
}  # array -> kinds of features, dtype


class GroupReader:
    """Reads row groups of one split. Safe to use from several threads."""

    def __init__(self, store: Store, manifest: Manifest, split: str) -> None:
        """`manifest` must describe files in `store`."""
        self._store, self._scratch = store, Scratch()
        self._where: list[tuple[Shard, int]] = [(s, i) for s in manifest.splits[split] for i in range(len(s.groups))]
        self._stored = _stored(manifest)
        self._shapes: Shapes = {name: (shape, dtype) for name, (shape, dtype, _) in self._stored.items()}
        self._rows = {name: row_type(*shape) for name, shape in self._shapes.items()}

    def shapes(self) -> Shapes:
        """Returns {array name: (shape of one row, dtype)} of what `read` returns the bytes of: "numeric" and "ids" where there
        are such features, "weight" where one is stored, "label" and "row_id" always."""
        return self._shapes

    def read(self, group: int) -> Arrays:
        """Returns the arrays of one row group, [n] rows of bytes each (`row_type`): they stand until this thread reads again.

        Raises:
            TrainingError: the file is gone, cut, or not the one that was written.
        """
        shard, index = self._where[group]
        try:
            data = self._checked(shard, index)
            offsets = shard.offsets[shard.groups[index]]
            return {name: self._array(data, name, offsets, shard.groups[index]) for name in self._rows}
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise TrainingError(f"{self._store.location}/{shard.path}, row group {index}: {_told(error)}") from error

    def _checked(self, shard: Shard, index: int) -> np.ndarray:
        """Returns a row group's bytes, uint8[B], after comparing them with their checksum."""
        start, stop = shard.spans[index]
        data = self._scratch.take("group", stop - start)
        size = self._store.read_into(shard.path, start, data.data)
        if size != len(data):
            raise ValueError(f"the file ends {len(data) - size} bytes too early; restore it, or build the dataset again")
        found = xxhash.xxh3_64_hexdigest(data.data)
        if found != shard.checksums[index]:
            raise ValueError(
                f"checksum {found}, the manifest says {shard.checksums[index]}: it is not what was written; restore the file, "
                f"or build the dataset again"
            )
        return data

    def _array(self, data: np.ndarray, name: str, offsets: Mapping[str, int], num_rows: int) -> np.ndarray:
        """Returns the rows of one array out of a row group's bytes: a view where they lie in one column, as packed ones do."""
        _, dtype, stored = self._stored[name]
        if len(stored) == 1:
            return np.frombuffer(data, self._rows[name], num_rows, offsets[next(iter(stored))])
        columns = [np.frombuffer(data, dtype, num_rows * width, offsets[column]) for column, width in stored.items()]
        return np.concatenate([column.reshape(num_rows, -1) for column in columns], axis=1).view(self._rows[name])[:, 0]


def _stored(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], np.dtype, dict[str, int]]]:
    """Returns {array name: (shape of one row, dtype, {Parquet column that holds of it: values a row})}."""
    found: dict[str, tuple[tuple[int, ...], np.dtype, dict[str, int]]] = {}
    for name, (kinds, dtype) in KINDS.items():
        columns = [c for c in manifest.columns if c.kind in kinds]
        if columns:
            widths = dict.fromkeys((c.stored_in for c in columns), 0)
            for c in columns:
                widths[c.stored_in] += math.prod(c.shape)
            found[name] = (sum(widths.values()),), dtype, widths
    found |= {"label": ((), FLOAT32, {"label": 1}), "row_id": ((), UINT64, {"row_id": 1})}
    weights = {c.stored_in: 1 for c in manifest.columns if c.role == "weight"}
    return found | ({"weight": ((), FLOAT32, weights)} if weights else {})


def row_type(shape: tuple[int, ...], dtype: np.dtype) -> np.dtype:
    """Returns the dtype of a row as nothing but bytes: it is copied at once, whatever its numbers are and however aligned."""
    return np.dtype((np.void, math.prod(shape) * dtype.itemsize))


def _told(error: Exception) -> str:
    """Returns an error as one line; those of libraries are told with their class, ours as they are."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return "the file is gone; restore it, or build the dataset again"
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
