"""Rows out of a DuckDB file as Arrow batches, through DuckDB's own reader.

Promise: what SQLAlchemy's cursor would give, value for value, many times as fast and a batch at a time; but a time that Python
cannot hold, of which the cursor makes the last of the year 9999, is refused. Types that are not known to be so are left to the
cursor; structs, bytes, and lists of columns that are none are refused by name.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from mlprod.config import Column, SqlSource
from mlprod.errors import DataError, wordless
from mlprod.etl.batches import typed
from mlprod.etl.columnar import type_of
from mlprod.etl.connection import WHY, connected, named, quoting
from mlprod.etl.schema import Loose

# DuckDB's names of types whose values come as its cursor gives them.
KNOWN = {
    "boolean", "tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint", "float", "double",
    "decimal", "varchar", "enum", "uuid", "date", "time", "timestamp", "timestamp_s", "timestamp_ms",
    "timestamp with time zone", "null",
}  # fmt: skip
NO_VALUES = {"list", "array", "struct", "map", "union", "blob", "geometry", "variant"}  # of which no type of ours can be made


def sent(select: sa.Select[Any], engine: sa.Engine) -> str:
    """Returns a select with its values in it; "" where it is not DuckDB's."""
    if engine.dialect.name != "duckdb":
        return ""
    return str(select.compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True}))


def check(connection: sa.Connection, query: str, source: SqlSource, columns: Sequence[Column]) -> dict[str, str]:
    """Returns {column: the name of its type in DuckDB, of a list's values} of a query.

    Raises:
        DataError: a column is of a type of which no value of ours can be made.
    """
    relation = _native(connection).sql(query)
    lists = {c.name for c in columns if c.kind == "list"}
    kinds = {name: _name(kind, name in lists) for name, kind in zip(relation.columns, relation.types, strict=True)}
    for (name, kind), full in zip(kinds.items(), relation.types, strict=True):
        if kind in NO_VALUES:
            raise DataError(
                f"{named(source)}: column {name!r} is {str(full)[:60]}, which no type here can hold; leave it out, or take a "
                f"part of it by config.etl.source.query, such as {name}[1], {name}.part or hex({name})"
            )
    return kinds


def _name(kind: Any, may_be_list: bool) -> str:
    return str(kind.child.id) if may_be_list and str(kind.id) == "list" else str(kind.id)


@contextmanager
def rows(
    source: SqlSource, query: str, columns: Sequence[Column], chunk_rows: int, where: Callable[[int, int], str]
) -> Iterator[Iterator[pa.Table | Loose] | None]:
    """Gives the rows of a query in their types; None where a column is of a type that is not known to be right.

    Raises:
        DataError: the query, or a value in it, is refused.
    """
    with connected(source) as connection, _told(connection, source):
        kinds = check(connection, query, source, columns)
        batches = _native(connection).sql(query).to_arrow_reader(chunk_rows) if set(kinds.values()) <= KNOWN else None
        yield None if batches is None else typed(batches, columns, chunk_rows, where)


def stored_types(connection: sa.Connection, query: str, source: SqlSource) -> dict[str, str]:
    """Returns {column: type} of those columns whose type holds every value that there may be."""
    with _told(connection, source):
        schema = _native(connection).sql(f"SELECT * FROM ({query}) LIMIT 0").to_arrow_reader(1).schema
    return {field.name: type_of(field.type) for field in schema if type_of(field.type)}


def _native(connection: sa.Connection) -> Any:
    """Returns DuckDB's own connection."""
    return connection.connection.driver_connection


@contextmanager
def _told(connection: sa.Connection, source: SqlSource) -> Iterator[None]:
    """Tells what DuckDB refuses; raises DataError."""
    try:
        yield
    except (connection.dialect.loaded_dbapi.Error, pa.ArrowException) as error:
        raise quoting(named(source), error, connection.engine.url) from wordless(error, WHY)
