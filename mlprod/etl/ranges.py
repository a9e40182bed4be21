"""A database's rows in parts: ranges of an integer key, which tasks read at once, each on a connection of its own.

Promise: together the parts are the rows of the source, each once; where a table is cut is decided once a build.
Price: a table without a primary key of one integer column, a view and a query are one part, unless `cut_by` names a column. That
is read once more, in order; rows that share a value of it are in one part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from mlprod.config import Column, SqlSource
from mlprod.errors import DataError
from mlprod.etl import duckdb_files, postgres
from mlprod.etl.connection import connect, named, reached_before
from mlprod.etl.patience import answered, patiently
from mlprod.etl.schema import Loose, require
from mlprod.etl.sql import Tables, check_joins, filters, integer_key, loose, opened, row_of_query, statement

READERS = {"postgresql": postgres, "duckdb": duckdb_files}  # by SQLAlchemy's name of the dialect: `sent` and `rows`
PART_CHUNKS = 4  # of a part, about: a connection and a task's files cost as much as some thousand rows


@dataclass(frozen=True, slots=True)
class Ranged:
    """A source and where its rows are cut. `key`: a column; `cuts`: its values with which the second and later parts begin;
    `discreet`: they are told in no message."""

    source: SqlSource
    key: str
    cuts: tuple[int, ...]
    discreet: bool = False


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Rows with low <= key < high. `query`: them, as the database's own reader takes it; "": SQLAlchemy reads them."""

    low: int | None  # None: from the first
    high: int | None  # None: to the last
    query: str


@answered
def cut(source: SqlSource, chunk_rows: int) -> dict[str, Any]:
    """Returns the key and the cuts of `Ranged`, as JSON data, so that a part has `PART_CHUNKS` chunks.

    Raises:
        DataError: a table or a column is missing, `cut_by` is no integer column, or a join's key stands twice.
        ConnectionLost: the connection broke.
    """
    with reached_before(), opened(source) as (connection, tables):
        check_joins(connection, tables, source)
        table = tables[source.table]
        key = _named_key(connection, table, source) if source.cut_by else integer_key(table)
        if key is None:
            return {"key": "", "cuts": []}
        position = sa.func.row_number().over(order_by=key).label("position")
        rows = sa.select(key.label("cut"), position).where(*filters(table, source)).subquery()
        chosen = ((rows.c.position - 1) % (chunk_rows * PART_CHUNKS) == 0, rows.c.position > 1, rows.c.cut.is_not(None))
        cuts = connection.execute(sa.select(rows.c.cut).where(*chosen).order_by(rows.c.cut)).scalars().all()
    if not all(map(_is_integer, cuts)):  # a SQLite column holds what it likes, whatever it is declared as
        if source.cut_by:
            raise _no_integer(source, next(value for value in cuts if not _is_integer(value)))
        cuts = []
    return {"key": key.name, "cuts": sorted({int(value) for value in cuts})}


def _named_key(connection: sa.Connection, table: sa.FromClause, source: SqlSource) -> Any:
    """Returns the column that `cut_by` names; of a query, and of what says no type, a value tells whether it is an integer."""
    require(source.cut_by, list(table.c.keys()), f"config.etl.source.cut_by: {named(source)}")
    key = table.c[source.cut_by]
    if not isinstance(key.type, sa.Integer):
        value = connection.execute(sa.select(key).where(key.is_not(None)).limit(1)).scalar()
        if value is not None and not _is_integer(value):
            raise _no_integer(source, value)
    return key


def _is_integer(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value())


def _no_integer(source: SqlSource, value: Any) -> DataError:
    kind = type(value).__name__  # the value itself may be sensitive
    return DataError(
        f"config.etl.source.cut_by={source.cut_by!r} holds a {kind}, no integer; name an integer column of {named(source)}"
    )


@answered
def spread(source: SqlSource, about: int, rows: int, places: int) -> tuple[Ranged, list[KeyRange]]:
    """Returns a source and ranges of some `rows` rows each from all over it, read as the database has them, not in their types.

    No ranges where its table has no integer key.

    Args:
        about: rows of the source.
        rows: of a range, about: where keys are missing it has fewer.
        places: ranges, 2 or more.

    Raises:
        DataError: a table is missing.
        ConnectionLost: the connection broke.
    """
    with reached_before(), opened(source) as (connection, tables):
        key = integer_key(tables[source.table])
        low, high = (None, None) if key is None else connection.execute(sa.select(sa.func.min(key), sa.func.max(key))).one()
    if key is None or type(low) is not int or type(high) is not int:  # a SQLite column holds what it likes
        return Ranged(source, "", ()), []
    width = max((high - low + 1) * rows // about, 1)
    starts = [low + (high + 1 - low - width) * i // (places - 1) for i in range(places)]
    return Ranged(source, key.name, ()), [KeyRange(start, start + width, "") for start in starts]


def parts(ranged: Ranged, names: Sequence[str], chunk_rows: int) -> list[Any]:
    """Returns the ranges, in the key's order; raises DataError, ConnectionLost."""
    return _parts(ranged.source, ranged, names)


@answered
def _parts(source: SqlSource, ranged: Ranged, names: Sequence[str]) -> list[Any]:
    ends = [None, *ranged.cuts, None]
    with reached_before(), opened(source) as (connection, tables):
        select = statement(tables, source, names)
        reader = READERS.get(connection.dialect.name)
        found = []
        for low, high in pairwise(ends):
            part = select.where(*_between(ranged, tables, low, high))
            found.append(KeyRange(low, high, reader.sent(part, connection.engine) if reader else ""))
        return found


def _between(ranged: Ranged, tables: Tables, low: int | None, high: int | None) -> list[sa.ColumnElement[bool]]:
    """Returns low <= key < high as conditions; rows without a key are in the first range."""
    if low is None and high is None:
        return []
    key = tables[ranged.source.table].c[ranged.key]
    if low is None:
        nullable = getattr(key, "nullable", True) or ranged.source.cut_by  # a view may say that its columns are not
        return [sa.or_(key < high, key.is_(None))] if nullable else [key < high]
    return [key >= low] if high is None else [key >= low, key < high]


def _which(ranged: Ranged, part: KeyRange) -> str:
    """Returns a range in words; "" where it is all rows."""
    if ranged.discreet and ranged.cuts:
        number = 1 if part.low is None else ranged.cuts.index(part.low) + 2
        return f" in range {number} of {len(ranged.cuts) + 1} by {ranged.key}"
    low = f" from {part.low}" if part.low is not None else ""
    high = f" below {part.high}" if part.high is not None else ""
    return f" with {ranged.key}{low}{high}" if low or high else ""


def place(ranged: Ranged, part: KeyRange, i: int) -> str:
    """Returns where row i of a range stands: in the order in which the database gave it."""
    return row_of_query(ranged.source, _which(ranged, part), 0, i)


def read(ranged: Ranged, part: KeyRange, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    """Yields the rows of a range, in their types where that is known to be right, else as the database has them.

    Raises:
        ConnectionLost: the connection broke, or cannot be made again.
        DataError: the database refused a value.
    """
    with reached_before():
        yield from patiently(ranged.source, _read(ranged, part, columns, chunk_rows))


def _read(ranged: Ranged, part: KeyRange, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    source, names, which = ranged.source, [c.name for c in columns], _which(ranged, part)
    if part.query:
        where = partial(row_of_query, source, which)
        with READERS[connect(source).dialect.name].rows(source, part.query, columns, chunk_rows, where) as rows:
            if rows is not None:
                yield from rows
                return
    with opened(source) as (connection, tables):
        select = statement(tables, source, names).where(*_between(ranged, tables, part.low, part.high))
        yield from loose(connection, select, source, names, chunk_rows, which)
