"""Rows out of PostgreSQL as Arrow batches, through ADBC.

Promise: what SQLAlchemy's cursor would give, value for value, in about a fifth of the time. A column of a type that is not known
to be so is not read here at all.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

try:
    from adbc_driver_manager import Error as DriverError
    from adbc_driver_postgresql import dbapi
except ModuleNotFoundError:  # the extra `postgres` is not installed
    dbapi = None

from mlprod.config import Column
from mlprod.errors import DataError
from mlprod.etl.columnar import as_declared, objects
from mlprod.etl.connection import READ_ONLY, Unreachable, lost, one_line
from mlprod.etl.schema import Loose

# Types whose values come as SQLAlchemy's cursor gives them, or can be made so; and every other that comes as text, as enums do.
KNOWN = {
    "int2", "int4", "int8", "float4", "float8", "bool", "numeric", "timestamp", "timestamptz", "date", "uuid",
}  # fmt: skip
BATCH_BYTES = 16 << 20
# The years 1 to 9999, which Python's times can hold: in days and in microseconds.
FIRST_DAY, DAYS_END = -719_162, 2_932_897
DAY_US = 86_400_000_000


def sent(select: sa.Select[Any], engine: sa.Engine) -> str:
    """Returns a select as PostgreSQL takes it, its values in it; "" where ADBC cannot send it.

    PostgreSQL sends no binary rows of a statement with parameters.
    """
    if engine.dialect.name != "postgresql" or engine.dialect.paramstyle != "pyformat" or dbapi is None:
        return ""
    text = str(select.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True}))
    return text % ()  # percent signs are doubled for a driver that fills in parameters


@contextmanager
def reader(url: sa.URL, query: str, where: str) -> Iterator[pa.RecordBatchReader]:
    """Gives the batches of a query, read in a transaction that only reads; `where`: named in messages.

    Raises:
        Unreachable: there is no connection to be had.
        ConnectionLost: it broke.
        DataError: the database refused the query, or a value in it.
    """
    try:
        connection = dbapi.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    except DriverError as error:
        raise Unreachable(f"database {url.render_as_string()}: {_said(error, url)}") from error
    with connection, connection.cursor() as cursor:
        try:
            for statement in READ_ONLY["postgresql"]:
                cursor.execute(statement)
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
            cursor.execute(query)
            yield cursor.fetch_record_batch()
        except (DriverError, OSError) as error:
            told = f"{where}: {_said(error, url)}"
            raise DataError(told) if _alive(connection) else lost(told) from error


def _said(error: BaseException, url: sa.URL) -> str:
    """Returns what the server said: neither the driver's words around it nor the query."""
    return re.sub(r"^.*?ERROR: +|^[A-Z_]+: |\[libpq\] |Failed to execute query '.*?': | Query was: .*$", "", one_line(error, url))


def _alive(connection: Any) -> bool:
    """Returns whether a connection still answers; the driver tells a refused value and a server that is gone alike."""
    try:
        connection.rollback()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DriverError, OSError):
        return False
    return True


def readable(schema: pa.Schema) -> bool:
    """Returns whether every column is of a type whose values come as SQLAlchemy's cursor gives them."""
    return all(pa.types.is_string(f.type) or f.metadata[b"POSTGRESQL:type"].decode() in KNOWN for f in schema)


def typed(
    batches: pa.RecordBatchReader, columns: Sequence[Column], chunk_rows: int, where: Callable[[int, int], str]
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
        array, beyond = _within_years(_by_digits(array))
        arrays.append(array)
        for i in beyond:
            broken.setdefault(i, f"column {c.name!r} holds a time beyond the years 1 to 9999")
    declared = [None if broken else _as_declared(array, c.type) for array, c in zip(arrays, columns, strict=True)]
    names = [c.name for c in columns]
    if all(array is not None for array in declared):
        return pa.table(dict(zip(names, declared, strict=True)))
    return Loose(dict(zip(names, map(_objects, arrays), strict=True)), batch.num_rows, where, broken)


def _by_digits(array: pa.Array) -> pa.Array:
    """Returns a `real` as the double of its shortest digits, as its text has them; other columns as they are."""
    return pc.cast(pc.cast(array, pa.string()), pa.float64()) if pa.types.is_float32(array.type) else array


def _within_years(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """Returns (a column whose times beyond Python's are null, their rows); infinity is such a time."""
    if pa.types.is_date(array.type):
        counts, low, end = pc.cast(array, pa.int32()), FIRST_DAY, DAYS_END
    elif pa.types.is_timestamp(array.type):
        counts, low, end = pc.cast(array, pa.int64()), FIRST_DAY * DAY_US, DAYS_END * DAY_US
    else:
        return array, []
    beyond = pc.fill_null(pc.or_(pc.less(counts, low), pc.greater_equal(counts, end)), False)
    rows: list[int] = pc.indices_nonzero(beyond).to_pylist()
    return (pc.if_else(beyond, pa.scalar(None, array.type), array), rows) if rows else (array, rows)


def _is_numeric(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.OpaqueType) and kind.type_name == "numeric"


def _as_declared(array: pa.Array, type_name: str) -> pa.Array | None:
    if not _is_numeric(array.type):
        return as_declared(array, type_name)
    try:
        return as_declared(pc.cast(array.storage, pa.float64()), type_name) if type_name == "float64" else None
    except pa.ArrowException:  # digits beyond a double
        return None


def _objects(array: pa.Array) -> list[Any]:
    if _is_numeric(array.type):
        return [None if digits is None else Decimal(digits) for digits in array.storage.to_pylist()]
    return objects(array)
