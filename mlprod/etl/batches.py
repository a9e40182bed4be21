"""Arrow batches out of a database's own driver, as rows in their types.

Promise: a value that is not of its column's type, and a time that Python cannot hold, is told with its row, as for any other
source.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column
from mlprod.etl.columnar import as_column, objects
from mlprod.etl.schema import Loose

# The years 1 to 9999, which Python's times can hold, in days.
FIRST_DAY, DAYS_END = -719_162, 2_932_897
IN_A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
INT64 = 1 << 63


def typed(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], chunk_rows: int, where: Callable[[int, int], str]
) -> Iterator[pa.Table | Loose]:
    """Yields rows in their types, or as Python objects where a value may not be of its type.

    Args:
        where: of (rows before, i): where row i of a chunk stands.
    """
    before = 0
    for batch in batches:
        for start in range(0, batch.num_rows, chunk_rows):
            chunk = batch.slice(start, chunk_rows)
            yield _typed(chunk, columns, partial(where, before))
            before += chunk.num_rows


def _typed(batch: pa.RecordBatch, columns: Sequence[Column], where: Callable[[int], str]) -> pa.Table | Loose:
    arrays, broken = list[pa.Array](), dict[int, str]()
    for array, c in zip(batch.columns, columns, strict=True):
        array, beyond = _within_years(array)
        arrays.append(array)
        for i in beyond:
            broken.setdefault(i, f"column {c.name!r} holds a time beyond the years 1 to 9999")
    declared = [None if broken else _as_declared(array, c) for array, c in zip(arrays, columns, strict=True)]
    names = [c.name for c in columns]
    if all(array is not None for array in declared):
        return pa.table(dict(zip(names, declared, strict=True)))
    return Loose(dict(zip(names, map(_objects, arrays), strict=True)), batch.num_rows, where, broken)


def _within_years(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """Returns (a column whose times beyond Python's are null, their rows); infinity is such a time."""
    if pa.types.is_date(array.type):
        counts, low, end = pc.cast(array, pa.int32()), FIRST_DAY, DAYS_END
    elif pa.types.is_timestamp(array.type):
        counts, day = pc.cast(array, pa.int64()), IN_A_DAY[array.type.unit]
        low, end = max(FIRST_DAY * day, -INT64), min(DAYS_END * day, INT64 - 1)
    else:
        return array, []
    beyond = pc.fill_null(pc.or_(pc.less(counts, low), pc.greater_equal(counts, end)), False)
    rows: list[int] = pc.indices_nonzero(beyond).to_pylist()
    return (pc.if_else(beyond, pa.scalar(None, array.type), array), rows) if rows else (array, rows)


def _is_numeric(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.OpaqueType) and kind.type_name == "numeric"


def _as_declared(array: pa.Array, column: Column) -> pa.Array | None:
    if not _is_numeric(array.type):
        return as_column(array, column)
    try:
        return as_column(pc.cast(array.storage, pa.float64()), column) if column.type == "float64" else None
    except pa.ArrowException:  # digits beyond a double
        return None


def _objects(array: pa.Array) -> list[Any]:
    if _is_numeric(array.type):
        return [None if digits is None else Decimal(digits) for digits in array.storage.to_pylist()]
    return objects(array)
