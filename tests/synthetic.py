"""Datasets with row groups of any sizes, written by the ETL's own writer; a row's values follow from where it is stored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlprod.etl.shards import ShardWriter
from mlprod.manifest import FORMAT, Manifest, Shard, StoredColumn, sha256_file

NUMERIC, IDS = 3, 2
SCHEMA = pa.schema(
    [
        ("packed_float32", pa.binary(4 * NUMERIC)),
        ("packed_int32", pa.binary(4 * IDS)),
        ("label", pa.float32()),
        ("row_id", pa.uint64()),
    ]
)


def row_id(group: int, row: int) -> int:
    """What identifies a stored row."""
    return group << 32 | row


def values_of(row_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {"numeric": float32[B, 3], "ids": int32[B, 2], "label": float32[B]} of uint64[B] row ids."""
    group, row = (row_ids >> np.uint64(32)).astype(np.int64), (row_ids & np.uint64(0xFFFFFFFF)).astype(np.int64)
    numeric = np.stack([group + 0.5, row * 0.25, group * 1000.0 + row], axis=1).astype(np.float32)
    return {"numeric": numeric, "ids": np.stack([group, row], axis=1).astype(np.int32), "label": (row % 2).astype(np.float32)}


def _column(name: str, kind: str, dtype: str, stored_in: str) -> StoredColumn:
    return StoredColumn(
        name=name, type="float64", dtype=dtype, shape=(), role="feature", kind=kind, stored_in=stored_in, vocabulary_size=0,
        missing="fill", sensitive=False,
    )  # fmt: skip


def _packed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(values[:1].nbytes), len(values), [None, pa.py_buffer(values.tobytes())])


def empty_file(dataset: Path, name: str) -> Shard:
    """Writes a real Parquet file without a row group."""
    path = dataset / "files" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.ParquetWriter(path, SCHEMA).close()
    return Shard(
        path=f"files/{name}", groups=(), sums=(), spans=(), checksums=(), offsets={}, bytes=path.stat().st_size,
        sha256=sha256_file(path),
    )  # fmt: skip


def _file(dataset: Path, name: int, groups: Sequence[tuple[int, int]]) -> Shard:
    """Writes a file of these (group, rows)."""
    writer = ShardWriter(dataset, f"files/train-{name:05d}.parquet", SCHEMA, SCHEMA.names)
    for group, size in groups:
        ids = np.array([row_id(group, row) for row in range(size)], np.uint64)
        values = values_of(ids)
        columns = [_packed(values["numeric"]), _packed(values["ids"]), values["label"], ids]
        writer.add(pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA), "0" * 32)
    return writer.close()


def write_dataset(dataset: Path, sizes: Sequence[int], group_rows: int, file_groups: int = 3) -> Manifest:
    """Writes groups of these sizes, `file_groups` a file and an empty file in front and behind; returns what describes them."""
    numbered = list(enumerate(sizes))
    files = [_file(dataset, i, numbered[i : i + file_groups]) for i in range(0, len(sizes), file_groups)]
    shards = (empty_file(dataset, "first.parquet"), *files, empty_file(dataset, "last.parquet"))
    columns = (
        *(_column(f"x{i}", "numeric", "float32", "packed_float32") for i in range(NUMERIC)),
        *(_column(f"c{i}", "categorical", "int32", "packed_int32") for i in range(IDS)),
    )
    return Manifest(
        format=FORMAT, version=1, parent=0, build_key="", dataset_id="", config={}, group_rows=group_rows, hash_version=1,
        hash_seed=0, storage="packed", hash_order=True, columns=columns, splits={"train": shards}, features="",
        features_sha256="", report="", source={},
    )  # fmt: skip
