"""The files' layout, of which training reads bytes: as the manifest says, for any groups, and never taken on trust."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlprod.etl import shards
from mlprod.etl.shards import ShardWriter

TRAINED = {"f": np.dtype(np.float32), "i": np.dtype(np.int32), "u": np.dtype(np.uint64)}


def table_of(num_rows: int, width: int) -> pa.Table:
    """Rows of three trained columns, one of them packed, between columns that training does not read."""
    chance = np.random.default_rng(num_rows)
    packed = chance.random((num_rows, width), np.float32)
    return pa.table(
        {
            "text": pa.array([f"row {i % 3}" if i % 5 else None for i in range(num_rows)], pa.string()),
            "f": pa.FixedSizeBinaryArray.from_buffers(pa.binary(4 * width), num_rows, [None, pa.py_buffer(packed)]),
            "i": chance.integers(0, 9, num_rows, np.int32),
            "b": [bool(i % 2) for i in range(num_rows)],
            "u": chance.integers(0, 1 << 63, num_rows, np.uint64),
        }
    )


@pytest.mark.parametrize("width", [1, 3, 700])
def test_values_lie_where_the_manifest_says(width, tmp_path):
    """Of groups of one row, of odd ones and of more rows than pyarrow puts into a page by itself; other tools read the file."""
    tables = [table_of(num_rows, width) for num_rows in (1, 5, 64, 64, 999, 30_000 // width + 5)]
    writer = ShardWriter(tmp_path, "files/train-00000.parquet", tables[0].schema, TRAINED)
    for table in tables:
        writer.add(table, "0" * 32)
    shard = writer.close()
    assert shard.groups == (1, 5, 64, 64, 999, 30_000 // width + 5)
    whole, file = (tmp_path / shard.path).read_bytes(), pq.ParquetFile(tmp_path / shard.path)
    for i, (table, num_rows, (start, stop)) in enumerate(zip(tables, shard.groups, shard.spans, strict=True)):
        for name in TRAINED:
            wanted = table[name].combine_chunks().buffers()[1].to_pybytes()
            at = start + shard.offsets[num_rows][name]
            assert whole[at : at + len(wanted)] == wanted
            assert at + len(wanted) <= stop
        assert file.read_row_group(i, columns=table.column_names).select(table.column_names).to_pydict() == table.to_pydict()


@pytest.mark.parametrize("page, told", [(1 << 10, "not in one plain page"), (shards.ONE_PAGE, "")])
def test_another_layout_is_never_described(page, told, tmp_path, monkeypatch):
    """Should pyarrow once write several pages, or pages of another kind, then no manifest says otherwise."""
    monkeypatch.setattr(shards, "ONE_PAGE", page)
    writer = ShardWriter(tmp_path, "files/train-00000.parquet", table_of(1, 3).schema, TRAINED)
    writer.add(table_of(20_000, 3), "0" * 32)
    if not told:
        assert writer.close().groups == (20_000,)
        return
    with pytest.raises(AssertionError, match=told):
        writer.close()
