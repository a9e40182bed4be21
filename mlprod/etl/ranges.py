"""A database's rows in parts: ranges of an integer key, which tasks read at once, each on a connection of its own.

Promise: together the parts are the rows of the source, each once; where a table is cut is decided once a build.
Price: a table without a primary key of one integer column, a view and a query are one part. The key is read once more, in order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from mlprod.config import Column, SqlSource
from mlprod.etl import postgres
from mlprod.etl.connection import connect, named, reached_before
from mlprod.etl.schema import Loose
from mlprod.etl.sql import Tables, check_joins, filters, integer_key, loose, opened, row_of_query, statement

PART_CHUNKS = 4  # of a part, about: a connection and a task's files cost as much as some thousand rows


@dataclass(frozen=True, slots=True)
class Ranged:
    """A source and where its rows are cut. `key`: a column; `cuts`: its values with which the second and later parts begin."""

    source: SqlSource
    key: str
    cuts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Rows with low <= key < high. `query`: them, as PostgreSQL takes it; "": SQLAlchemy reads them."""

    low: int | None  # None: from the first
    high: int | None  # None: to the last
    query: str


def cut(source: SqlSource, chunk_rows: int) -> dict[str, Any]:
    """Returns the key and the cuts of `Ranged`, as JSON data, so that a part has `PART_CHUNKS` chunks.

    Raises:
        DataError: a table or a column is missing, or a join's key stands twice.
        ConnectionLost: the connection broke.
    """
    with reached_before(), opened(source) as (connection, tables):
        check_joins(connection, tables, source)
        table = tables[source.table]
        key = integer_key(table)
        if key is None:
            return {"key": "", "cuts": []}
        position = sa.func.row_number().over(order_by=key).label("position")
        rows = sa.select(key.label("cut"), position).where(*filters(table, source)).subquery()
        every = (rows.c.position - 1) % (chunk_rows * PART_CHUNKS) == 0
        cuts = connection.execute(sa.select(rows.c.cut).where(every, rows.c.position > 1).order_by(rows.c.cut)).scalars().all()
    # A SQLite column holds what it likes, whatever it is declared as.
    return {"key": key.name, "cuts": list(cuts) if all(type(value) is int for value in cuts) else []}


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
    ends = [None, *ranged.cuts, None]
    with reached_before(), opened(ranged.source) as (connection, tables):
        select = statement(tables, ranged.source, names)
        found = []
        for low, high in pairwise(ends):
            part = select.where(*_between(ranged, tables, low, high))
            found.append(KeyRange(low, high, postgres.sent(part, connection.engine)))
        return found


def _between(ranged: Ranged, tables: Tables, low: int | None, high: int | None) -> list[sa.ColumnElement[bool]]:
    """Returns low <= key < high as conditions; rows without a key, which SQLite allows, are in the first range."""
    if low is None and high is None:
        return []
    key = tables[ranged.source.table].c[ranged.key]
    if low is None:
        return [sa.or_(key < high, key.is_(None))] if getattr(key, "nullable", True) else [key < high]
    return [key >= low] if high is None else [key >= low, key < high]


def _which(ranged: Ranged, part: KeyRange) -> str:
    """Returns a range in words; "" where it is all rows."""
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
    source, names, which = ranged.source, [c.name for c in columns], _which(ranged, part)
    with reached_before():
        if part.query:
            with postgres.reader(connect(source.url).url, part.query, named(source)) as batches:
                if postgres.readable(batches.schema):
                    yield from postgres.typed(batches, columns, chunk_rows, partial(row_of_query, source, which))
                    return
        with opened(source) as (connection, tables):
            select = statement(tables, source, names).where(*_between(ranged, tables, part.low, part.high))
            yield from loose(connection, select, source, names, chunk_rows, which)
