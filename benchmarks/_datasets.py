"""Synthetic datasets on disk, the same bytes on every machine: what the loader is measured on.

Promise: a folder that is there is whole, for it gets its name last; it is made once and used again. Files are written by the
writer that `mlprod etl` uses, with a manifest; "usual" files are what a pipeline without mlprod would write, by pyarrow's
defaults, without one. Numbers are normal, so nothing compresses them, and the dictionaries that pyarrow makes by default cost
readers of usual files about a fifth; ids are drawn so that id k is about 1/k as frequent as the first, as categories and words
are. Content sums are zeros and features have no fitted transform: no reader looks at them.
Price: about 6 s and 0.7 GB for 5 million rows of 32 numbers. The name begins with "_": `make bench` does not run it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlprod import manifest
from mlprod.etl.shards import ShardWriter
from mlprod.etl.write import PACKED
from mlprod.hashing import HASH_VERSION, mix_array
from mlprod.manifest import Manifest, Shard, StoredColumn

FILE_GROUPS = 64  # row groups a file
USUAL_GROUP_ROWS, USUAL_FILE_GROUPS = 1 << 16, 8
STORAGES = ("packed", "columns", "usual")
KIND = {"numeric": "numeric", "ids": "categorical"}  # array of a batch -> kind of its features

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Rows of a dataset: `numeric` float32 and `ids` int32 numbers each, a float32 label and a uint64 row id."""

    name: str
    num_rows: int
    group_rows: int
    numeric: int = 0
    ids: int = 0
    vocabulary_size: int = 1000
    one_feature: bool = False  # all ids of a row are one feature, as tokens are; else one feature each

    @property
    def widths(self) -> dict[str, int]:
        """Numbers of a row, of each kind that it has."""
        return {name: width for name, width in (("numeric", self.numeric), ("ids", self.ids)) if width}

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's arrays."""
        return 4 * (self.numeric + self.ids) + 12


def made(shape: Shape, storage: str, where: Path) -> Path:
    """Returns the folder of the dataset below `where`, made now unless it is there; `storage`: one of `STORAGES`."""
    folder = where / f"{shape.name}-{shape.num_rows}-{storage}"
    if not folder.is_dir():
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        unfinished.mkdir(parents=True)
        _write_usual(shape, unfinished) if storage == "usual" else _write(shape, storage, unfinished)
        os.sync()  # or the disk would still be at work while the first loader is measured
        unfinished.rename(folder)
    return folder


def parquet_files(folder: Path) -> list[Path]:
    """Returns the dataset's files, in the order in which they were written."""
    return sorted(folder.rglob("*.parquet"))


def read_once(folder: Path) -> int:
    """Reads every file of a dataset, so that it is in the page cache as far as it fits; returns the bytes."""
    total = 0
    for path in parquet_files(folder):
        with path.open("rb", buffering=0) as file:
            while size := len(file.read(1 << 22)):
                total += size
    return total


def plain_arrays(table: pa.Table) -> Arrays:
    """Returns a row group of plain columns as arrays [n], without copying them; `to_numpy` would import pandas first."""
    return {name: _flat(table[name], np.dtype(table[name].type.to_pandas_dtype())) for name in table.column_names}


def packed_arrays(table: pa.Table) -> Arrays:
    """Returns a row group of packed files as arrays [n, width], "label" [n] and "row_id" uint64[n], without copying them."""
    packed = {name: PACKED[kind] for name, kind in KIND.items() if PACKED[kind][0] in table.column_names}
    features = {name: _flat(table[column], dtype).reshape(table.num_rows, -1) for name, (column, dtype) in packed.items()}
    return features | plain_arrays(table.select(["label", "row_id"]))


def _flat(column: pa.ChunkedArray, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(column.chunk(0).buffers()[1], dtype)  # one chunk: a row group


def _features(shape: Shape, storage: str) -> tuple[StoredColumn, ...]:
    """Returns the manifest's features."""

    def stored(name: str, kind: str, column: str, values: tuple[int, ...] = ()) -> StoredColumn:
        place = PACKED[kind][0] if storage == "packed" else column
        vocabulary = shape.vocabulary_size if kind == "categorical" else 0
        return StoredColumn(
            name=name, type="float64" if kind == "numeric" else "int64", dtype=PACKED[kind][1].name, shape=values, role="feature",
            kind=kind, stored_in=place, vocabulary_size=vocabulary, missing="fill", sensitive=False,
        )  # fmt: skip

    numeric = tuple(stored(f"numeric_{i}", "numeric", f"numeric_{i}") for i in range(shape.numeric))
    if shape.one_feature:
        return (*numeric, stored("tokens", "categorical", "tokens", (shape.ids,)))
    return (*numeric, *(stored(f"ids_{i}", "categorical", f"ids_{i}") for i in range(shape.ids)))


def _groups(shape: Shape, group_rows: int) -> Iterator[Arrays]:
    """Yields the dataset's rows, `group_rows` at a time: the same rows, however they are cut."""
    numeric, ids, label = (np.random.default_rng(seed) for seed in range(3))  # one for each array, or the cut would matter
    for start in range(0, shape.num_rows, group_rows):
        n = min(group_rows, shape.num_rows - start)
        rows: Arrays = {}
        if shape.numeric:
            rows["numeric"] = numeric.standard_normal((n, shape.numeric), dtype=np.float32)
        if shape.ids:
            spread = ids.random((n, shape.ids), dtype=np.float32) * np.float32(np.log(shape.vocabulary_size))
            rows["ids"] = np.exp(spread).astype(np.int32) % np.int32(shape.vocabulary_size)  # rounding can reach the end itself
        rows["label"] = (label.random(n) < 0.2).astype(np.float32)
        rows["row_id"] = mix_array(np.arange(start, start + n, dtype=np.uint64))
        yield rows


def _packed(rows: Arrays) -> pa.Table:
    """Returns rows as a table with one column per dtype."""

    def binary(values: np.ndarray) -> pa.Array:
        kind = pa.binary(values[0].nbytes)
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)])

    return pa.table({PACKED[KIND[name]][0]: binary(rows[name]) for name in KIND if name in rows} | _plain(rows))


def _columns(rows: Arrays) -> pa.Table:
    """Returns rows as a table with one column per number."""
    numbers = {f"{name}_{i}": column for name in KIND if name in rows for i, column in enumerate(rows[name].T)}
    return pa.table({name: pa.array(np.ascontiguousarray(values)) for name, values in numbers.items()} | _plain(rows))


def _plain(rows: Arrays) -> dict[str, pa.Array]:
    return {name: pa.array(rows[name]) for name in ("label", "row_id")}


def _write(shape: Shape, storage: str, folder: Path) -> None:
    """Writes the files and, last, the manifest."""
    made_of = _packed if storage == "packed" else _columns
    groups, shards = iter(_groups(shape, shape.group_rows)), list[Shard]()
    while of_file := list(islice(groups, FILE_GROUPS)):
        tables = [made_of(rows) for rows in of_file]
        name = f"files/000001/train-{len(shards):05d}.parquet"
        writer = ShardWriter(folder, name, tables[0].schema, tables[0].column_names)
        for table in tables:
            writer.add(table, content_sum="0" * 32)
        shards.append(writer.close())
    manifest.write(folder, _manifest(shape, storage, tuple(shards)))


def _manifest(shape: Shape, storage: str, shards: tuple[Shard, ...]) -> Manifest:
    return Manifest(
        format=manifest.FORMAT, version=1, parent=0, build_key="", dataset_id="", config={}, group_rows=shape.group_rows,
        hash_version=HASH_VERSION, hash_seed=0, storage=storage, hash_order=True, columns=_features(shape, storage),
        splits={"train": shards, "eval": (), "test": ()}, features="", features_sha256="", report="", source={},
    )  # fmt: skip


def _write_usual(shape: Shape, folder: Path) -> None:
    """Writes plain columns as pyarrow does by itself: snappy, dictionaries, statistics."""
    writer: pq.ParquetWriter | None = None
    for i, rows in enumerate(_groups(shape, USUAL_GROUP_ROWS)):
        table = _columns(rows)
        if i % USUAL_FILE_GROUPS == 0:
            if writer:
                writer.close()
            writer = pq.ParquetWriter(folder / f"{i // USUAL_FILE_GROUPS:05d}.parquet", table.schema)
        writer.write_table(table, row_group_size=USUAL_GROUP_ROWS)
    if writer:
        writer.close()
