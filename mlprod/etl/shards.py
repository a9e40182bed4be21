"""Parquet files of one split: row groups as they come, a new file every so many, and what a reader needs to check each.

Promise: what is said of a file is read back from it after it was closed and is on the disk: bytes, checksums, SHA-256.
Price: each file is read once from the page cache.

The columns that training reads stand first, so that a row group is one range of bytes for a reader. lz4, no dictionary, no
statistics: decoding is what training waits for.
"""

import os
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mlprod.manifest import Shard, sha256_file


class ShardWriter:
    """Writes one split's row groups, in order, as files `PREFIX-00000.parquet`, ..."""

    def __init__(self, dataset: Path, prefix: str, schema: pa.Schema, trained: Collection[str], file_groups: int) -> None:
        """`prefix`: of the files, below `dataset`; `trained`: the columns that training reads."""
        first = [field.with_nullable(False) for field in schema if field.name in trained]
        self._schema = pa.schema([*first, *(field for field in schema if field.name not in trained)])
        self._dataset, self._prefix, self._num_trained, self._file_groups = dataset, prefix, len(first), file_groups
        self._writer: pq.ParquetWriter | None = None
        self._groups: list[int] = []
        self._sums: list[str] = []
        self.shards: list[Shard] = []
        (dataset / prefix).parent.mkdir(parents=True, exist_ok=True)

    def add(self, group: pa.Table, content_sum: str) -> None:
        """Writes a row group; `content_sum`: 32 hex digits over its examples."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path(), self._schema, compression="lz4", use_dictionary=False, write_statistics=False, store_schema=True
            )
        self._writer.write_table(group.select(self._schema.names).cast(self._schema), row_group_size=group.num_rows)
        self._groups.append(group.num_rows)
        self._sums.append(content_sum)
        if len(self._groups) == self._file_groups:
            self.close()

    def close(self) -> tuple[Shard, ...]:
        """Ends the file that is open and returns all of them."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            path = self._path()
            _to_disk(path)
            _to_disk(path.parent)
            self.shards.append(self._described(path))
            self._groups, self._sums = [], []
        return tuple(self.shards)

    def _path(self) -> Path:
        return self._dataset / f"{self._prefix}-{len(self.shards):05d}.parquet"

    def _described(self, path: Path) -> Shard:
        metadata, size = pq.read_metadata(path), path.stat().st_size
        spans = [_span(metadata.row_group(i), self._num_trained) for i in range(metadata.num_row_groups)]
        with path.open("rb") as file:

            def checksum(start: int, stop: int) -> str:
                file.seek(start)
                return xxhash.xxh3_64_hexdigest(file.read(stop - start))

            file.seek(size - 8)
            footer = int.from_bytes(file.read(4), "little") + 8  # its length is the word before the closing magic
            return Shard(
                path=str(path.relative_to(self._dataset)), groups=tuple(self._groups), sums=tuple(self._sums), spans=tuple(spans),
                checksums=tuple(checksum(a, b) for a, b in spans), footer=(footer, checksum(size - footer, size)), bytes=size,
                sha256=sha256_file(path),
            )  # fmt: skip


def _span(group: pq.RowGroupMetaData, num_columns: int) -> tuple[int, int]:
    """Returns the bytes [a, b) of a row group's first columns, which pyarrow writes one after the other."""
    columns = [group.column(i) for i in range(num_columns)]
    starts = [column.data_page_offset for column in columns]
    stop = starts[0]
    for start, column in zip(starts, columns, strict=True):
        if start != stop or column.has_dictionary_page:
            raise AssertionError(
                f"column {column.path_in_schema} begins at byte {start}, not {stop}: this pyarrow writes otherwise"
            )
        stop += column.total_compressed_size
    return starts[0], stop


def _to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a manifest never names what a power cut took."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
