"""Rows out of PostgreSQL as Arrow batches, through ADBC.

Promise: what SQLAlchemy's cursor would give, value for value, in about a fifth of the time. A column of a type that is not known
to be so is not read here at all.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

try:
    from adbc_driver_manager import Error as DriverError
    from adbc_driver_postgresql import dbapi
except ModuleNotFoundError:  # the extra `postgres` is not installed
    dbapi = None

from mlprod.config import Column, SqlSource
from mlprod.errors import wordless
from mlprod.etl.batches import typed as of_batches
from mlprod.etl.connection import WHY, Unreachable, connect, lost, named, one_line, quoting
from mlprod.etl.databases import DATABASES, shown
from mlprod.etl.schema import Loose

# Types whose values come as SQLAlchemy's cursor gives them, or can be made so; and every other that comes as text, as enums do.
KNOWN = {
    "int2", "int4", "int8", "float4", "float8", "bool", "numeric", "timestamp", "timestamptz", "date", "uuid",
}  # fmt: skip
BATCH_BYTES = 16 << 20


def sent(select: sa.Select[Any], engine: sa.Engine) -> str:
    """Returns a select as PostgreSQL takes it, its values in it; "" where ADBC cannot send it.

    PostgreSQL sends no binary rows of a statement with parameters.
    """
    if engine.dialect.name != "postgresql" or engine.dialect.paramstyle != "pyformat" or dbapi is None:
        return ""
    text = str(select.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True}))
    return text % ()  # percent signs are doubled for a driver that fills in parameters


@contextmanager
def reader(source: SqlSource, query: str) -> Iterator[pa.RecordBatchReader]:
    """Gives the batches of a query, read in a transaction that only reads; `source`: whose rows it selects.

    Raises:
        Unreachable: there is no connection to be had.
        ConnectionLost: it broke.
        DataError: the database refused the query, or a value in it.
    """
    url = connect(source).url
    try:
        connection = dbapi.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    except DriverError as error:
        raise Unreachable(f"database {shown(url)}: {_said(error, url)}") from wordless(error, WHY)
    with connection, connection.cursor() as cursor:
        try:
            for statement in DATABASES["postgresql"].begin:
                cursor.execute(statement)
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
            cursor.execute(query)
            yield cursor.fetch_record_batch()
        except (DriverError, OSError) as error:
            if not _alive(connection):
                raise lost(f"{named(source)}: {_said(error, url)}") from wordless(error, WHY)
            raise quoting(named(source), error, url, _said(error, url)) from wordless(error, WHY)


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


@contextmanager
def rows(
    source: SqlSource, query: str, columns: Sequence[Column], chunk_rows: int, where: Callable[[int, int], str]
) -> Iterator[Iterator[pa.Table | Loose] | None]:
    """Gives the rows of a query, see `reader` and `typed`; None where a column is of a type that is not known to be right."""
    with reader(source, query) as batches:
        yield typed(batches, columns, chunk_rows, where) if readable(batches.schema) else None


def readable(schema: pa.Schema) -> bool:
    """Returns whether every column is of a type whose values come as SQLAlchemy's cursor gives them."""
    return all(pa.types.is_string(f.type) or f.metadata[b"POSTGRESQL:type"].decode() in KNOWN for f in schema)


def typed(
    batches: Iterable[pa.RecordBatch], columns: Sequence[Column], chunk_rows: int, where: Callable[[int, int], str]
) -> Iterator[pa.Table | Loose]:
    """Yields rows in their types, see `batches.typed`."""
    return of_batches(map(_by_digits, batches), columns, chunk_rows, where)


def _by_digits(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Returns every `real` as the double of its shortest digits, as its text has them; other columns as they are."""
    arrays = [pc.cast(pc.cast(a, pa.string()), pa.float64()) if pa.types.is_float32(a.type) else a for a in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, batch.schema.names)
