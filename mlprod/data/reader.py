"""Row groups of a dataset as numpy arrays.

Promise: what is decoded is what was checked: a group's bytes are read once, compared with the manifest's checksum at every
read, and only then decoded. Either storage gives the same arrays. A file that was cut, replaced or removed, or a flipped bit,
is one error that names file and group.
Price: one read a group; the checksum is about a twentieth of reading and decoding packed features. A file's footer is read
with its first group and kept, about 3 KB a row group with 3 columns: 64 groups take 0.7 ms to parse, so a dataset of many
more than `KEPT_GROUPS` groups reads more slowly.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from mlprod.errors import TrainingError
from mlprod.manifest import Manifest, Shard
from mlprod.store import Store

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]
FLOAT32, INT32, UINT64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint64)
KEPT_GROUPS = 16_384  # row groups whose files' footers are kept


class _Bytes:
    """A file of which one range is in memory: what pyarrow decodes a row group from."""

    closed = False

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0
        self._start, self._held = 0, memoryview(b"")

    def hold(self, start: int, data: Any) -> None:
        """Makes `data` the bytes from `start` on; all others are not there."""
        self._start, self._held = start, memoryview(data)

    def read(self, size: int) -> memoryview:
        """Returns the next bytes; raises ValueError for bytes that are not held."""
        a = self._at - self._start
        self._at += size
        if a < 0 or a + size > len(self._held):
            raise ValueError(f"its table of contents asks for bytes {self._at - size} to {self._at}, which the group has not")
        return self._held[a : a + size]

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to `offset`, from the start (0) or the end (2)."""
        self._at = offset if whence == 0 else self._size + offset
        return self._at

    def tell(self) -> int:
        """Returns where the next read begins."""
        return self._at

    def readable(self) -> bool:
        """Returns True, as pyarrow asks."""
        return True

    def seekable(self) -> bool:
        """Returns True, as pyarrow asks."""
        return True

    def close(self) -> None:
        """Nothing is open."""


class _Footer:
    """A file's table of contents, and decoders that no thread is using: one decoder serves one thread at a time."""

    def __init__(self, metadata: pq.FileMetaData, size: int) -> None:
        self._metadata, self._size = metadata, size
        self._idle: deque[tuple[_Bytes, pq.ParquetFile]] = deque()

    def decode(self, group: int, names: list[str], start: int, data: bytes) -> pa.Table:
        """Returns columns of a row group whose bytes, from `start` of the file on, are `data`."""
        try:
            held, file = self._idle.pop()
        except IndexError:
            held = _Bytes(self._size)
            file = pq.ParquetFile(pa.PythonFile(held, mode="r"), metadata=self._metadata, pre_buffer=False)
        held.hold(start, data)
        table = file.read_row_group(group, columns=names, use_threads=False)
        held.hold(0, b"")
        self._idle.append((held, file))
        return table


class GroupReader:
    """Decodes row groups of one split. Safe to use from several threads."""

    def __init__(self, store: Store, manifest: Manifest, split: str) -> None:
        """`manifest` must describe files in `store`."""
        self._store = store
        self._where: list[tuple[Shard, int]] = [(s, i) for s in manifest.splits[split] for i in range(len(s.groups))]
        kinds = {"numeric": ("numeric", FLOAT32), "ids": ("categorical", INT32)}
        features = {name: [c for c in manifest.columns if c.kind == kind] for name, (kind, _) in kinds.items()}
        self._widths = {name: sum(math.prod(c.shape) for c in features[name]) for name in kinds}
        self._matrices = {name: ((self._widths[name],), dtype) for name, (_, dtype) in kinds.items() if features[name]}
        self._stored = {name: list(dict.fromkeys(c.stored_in for c in columns)) for name, columns in features.items()}
        self._weight = next((c for c in manifest.columns if c.role == "weight"), None)
        self._names = [name for stored in self._stored.values() for name in stored] + ["label", "row_id"]
        self._names += [self._weight.stored_in] if self._weight else []
        self._packed = manifest.storage == "packed"
        self._lock = threading.Lock()
        self._footers: OrderedDict[str, _Footer] = OrderedDict()
        self._kept = max(1, KEPT_GROUPS // max((len(s.groups) for s in manifest.splits[split]), default=1))

    def shapes(self) -> Shapes:
        """Returns {array name: (shape of one row, dtype)} of what `read` returns: "numeric" and "ids" where there are such
        features, "weight" where one is stored, "label" and "row_id" always."""
        return {
            **self._matrices,
            "label": ((), FLOAT32),
            "row_id": ((), UINT64),
            **({"weight": ((), FLOAT32)} if self._weight else {}),
        }

    def read(self, group: int) -> Arrays:
        """Returns the arrays of one row group.

        Raises:
            TrainingError: the file is gone, cut, or not the one that was written.
        """
        shard, index = self._where[group]
        start, stop = shard.spans[index]
        try:
            footer = self._footer(shard)
            data = self._checked(shard, start, stop - start, shard.checksums[index])
            table = footer.decode(index, self._names, start, data)
        except (OSError, ValueError, KeyError, IndexError, pa.ArrowException) as error:  # ArrowInvalid is a ValueError
            raise TrainingError(f"{self._store.location}/{shard.path}, row group {index}: {_told(error)}") from error
        if table.num_rows != shard.groups[index]:
            raise TrainingError(
                f"{self._store.location}/{shard.path}, row group {index}: {table.num_rows} rows, "
                f"the manifest says {shard.groups[index]}; build the dataset again"
            )
        columns = dict(zip(table.column_names, table.columns, strict=True))
        arrays = {name: self._matrix(columns, name, shape[0], dtype) for name, (shape, dtype) in self._matrices.items()}
        arrays |= {"label": _values(columns["label"], FLOAT32), "row_id": _values(columns["row_id"], UINT64)}
        if self._weight:
            arrays["weight"] = _values(pc.cast(columns[self._weight.stored_in], pa.float32(), safe=False), FLOAT32)
        return arrays

    def _checked(self, shard: Shard, start: int, size: int, wanted: str) -> bytes:
        """Returns a range of a file's bytes after comparing them with their checksum."""
        data = self._store.read_range(shard.path, start, size)
        if len(data) != size:
            raise ValueError(f"the file ends {size - len(data)} bytes too early; restore it, or build the dataset again")
        found = xxhash.xxh3_64_hexdigest(data)
        if found != wanted:
            raise ValueError(
                f"checksum {found}, the manifest says {wanted}: it is not what was written; restore the file, "
                f"or build the dataset again"
            )
        return data

    def _footer(self, shard: Shard) -> _Footer:
        """Returns a file's footer; it is read when the first group of the file is."""
        with self._lock:
            if shard.path in self._footers:
                self._footers.move_to_end(shard.path)
                return self._footers[shard.path]
        size, checksum = shard.footer
        data = self._checked(shard, shard.bytes - size, size, checksum)
        footer = _Footer(pq.read_metadata(pa.BufferReader(data)), shard.bytes)
        with self._lock:
            while len(self._footers) >= self._kept:
                self._footers.popitem(last=False)
            return self._footers.setdefault(shard.path, footer)

    def _matrix(self, columns: Mapping[str, pa.ChunkedArray], name: str, width: int, dtype: np.dtype) -> np.ndarray:
        """Returns [n, width] of one dtype, from a packed column or from plain ones."""
        stored = self._stored[name]
        if self._packed:
            return _values(columns[stored[0]], dtype).reshape(-1, width)
        return np.stack([_values(columns[column], dtype) for column in stored], axis=1)


def _values(column: pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    """Returns the values of a column without nulls as one flat array of `dtype`; without a copy, for a row group is one chunk."""
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    size = len(chunk) * (chunk.type.byte_width // dtype.itemsize)
    start = chunk.offset * (chunk.type.byte_width // dtype.itemsize)
    return np.frombuffer(chunk.buffers()[1], dtype, size, start * dtype.itemsize)


def _told(error: Exception) -> str:
    """Returns an error as one line; pyarrow's are told with their class, ours as they are."""
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        return "the file is gone; restore it, or build the dataset again"
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
