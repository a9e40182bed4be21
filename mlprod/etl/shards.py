"""A Parquet file of examples: row groups as they come, and what a reader needs to check each.

Promise: what is said of a file is read back from it after it was closed: bytes, checksums, SHA-256, and that
the values of every trained column lie there as they lie in memory.
Price: each file is read from the page cache again: its trained columns twice, and all of it for the SHA-256; trained columns are
not compressed.

The columns that training reads stand first, so that a row group is one range of bytes for a reader, each in one plain page
without nulls, dictionary or compression: the page's bytes are an array, and nothing is left to decode. It was two fifths of the
work of making batches, and numbers as models learn from hardly compress. All other columns are lz4.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mlprod.etl.whole import half_of
from mlprod.manifest import Shard, sha256_file

ONE_PAGE = (1 << 31) - 1  # bytes and rows of a page: all of a row group
OTHERWISE = "this pyarrow writes otherwise"


class Description(TypedDict):
    """What is said of a file's row groups in its `Shard`, under the same names."""

    spans: tuple[tuple[int, int], ...]
    checksums: tuple[str, ...]
    offsets: Mapping[int, Mapping[str, int]]


class ShardWriter:
    """Writes the row groups of one file, in order."""

    def __init__(self, dataset: Path, name: str, schema: pa.Schema, trained: Collection[str], halves: Path | None = None) -> None:
        """Begins a file, which is there when it is closed.

        Args:
            name: of the file, below `dataset`.
            trained: the columns that training reads, of types of fixed width.
            halves: folder of the dataset's disk where the file is until then: where that is removed, the file never comes to be.
        """
        first = [field.with_nullable(False) for field in schema if field.name in trained]
        self._schema = pa.schema([*first, *(field for field in schema if field.name not in trained)])
        self._dataset, self._path, self._trained = dataset, dataset / name, first
        self._groups: list[int] = []
        self._sums: list[str] = []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._half = half_of((halves or self._path.parent) / self._path.name)
        codecs = ["none"] * len(first) + ["lz4"] * (len(self._schema) - len(first))
        self._writer = pq.ParquetWriter(
            self._half, self._schema, compression=dict(zip(self._schema.names, codecs, strict=True)), use_dictionary=False,
            write_statistics=False, store_schema=True, data_page_size=ONE_PAGE, max_rows_per_page=ONE_PAGE,
        )  # fmt: skip

    def add(self, group: pa.Table, content_sum: str) -> None:
        """Writes a row group; `content_sum`: 32 hex digits over its examples."""
        self._writer.write_table(group.select(self._schema.names).cast(self._schema), row_group_size=group.num_rows)
        self._groups.append(group.num_rows)
        self._sums.append(content_sum)

    def close(self) -> Shard:
        """Ends the file, waits until it is on the disk, and returns what is to be known of it."""
        self._writer.close()
        to_disk(self._half)
        shard = Shard(
            path=str(self._path.relative_to(self._dataset)), groups=tuple(self._groups), sums=tuple(self._sums),
            bytes=self._half.stat().st_size, sha256=sha256_file(self._half),
            **described(self._half, self._groups, self._trained),
        )  # fmt: skip
        os.replace(self._half, self._path)
        return shard

    def abandon(self) -> None:
        """Removes what was written of a file that is not to be."""
        self._half.unlink(missing_ok=True)
        with suppress(OSError, pa.ArrowException):  # of a full disk, whose space is free only when the file is closed
            self._writer.close()


def described(path: Path, groups: Sequence[int], trained: Sequence[pa.Field]) -> Description:
    """Returns how a file with row groups of `groups` rows lies there; `trained`: its first columns, those that training reads.

    Raises:
        AssertionError: a value is not where a reader looks for it.
    """
    spans: list[tuple[int, int]] = []
    checksums: list[str] = []
    offsets: dict[int, dict[str, int]] = {}
    with path.open("rb") as file, pq.ParquetFile(path) as parquet:
        for i, num_rows in enumerate(groups):
            start, stop, found = _layout(parquet.metadata.row_group(i), trained)
            file.seek(start)
            span = file.read(stop - start)
            _assert_plain(span, found, parquet.read_row_group(i, columns=list(found)))
            if offsets.setdefault(num_rows, found) != found:
                raise AssertionError(f"{num_rows} rows begin at {found} and at {offsets[num_rows]}: {OTHERWISE}")
            spans.append((start, stop))
            checksums.append(xxhash.xxh3_64_hexdigest(span))
    return {"spans": tuple(spans), "checksums": tuple(checksums), "offsets": offsets}


def _layout(group: pq.RowGroupMetaData, trained: Sequence[pa.Field]) -> tuple[int, int, dict[str, int]]:
    """Returns the bytes [a, b) of a row group's first columns, and where in them each column's values begin."""
    start = stop = group.column(0).data_page_offset
    offsets = {}
    for i, field in enumerate(trained):
        column = group.column(i)
        if column.data_page_offset != stop:
            raise AssertionError(f"column {field.name} begins at byte {column.data_page_offset}, not {stop}: {OTHERWISE}")
        stop += column.total_compressed_size
        offsets[field.name] = stop - start - group.num_rows * field.type.byte_width  # behind the page's header
    return start, stop, offsets


def _assert_plain(span: bytes, offsets: Mapping[str, int], decoded: pa.Table) -> None:
    """Asserts that the values of a row group's columns stand in its bytes as Arrow has them in memory."""
    for name, at in offsets.items():
        values = decoded[name].combine_chunks()
        width, start = values.type.byte_width, values.offset
        wanted = values.buffers()[1].slice(start * width, len(values) * width)
        if not pa.py_buffer(span).slice(at, len(values) * width).equals(wanted):
            raise AssertionError(f"the values of column {name} are not in one plain page: {OTHERWISE}")


def to_disk(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a manifest never names what a power cut took."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
