"""The user's own query, as a table that others can be made of.

Promise: it is sent as it is written, as a subquery; its columns are described without reading its rows.
Price: what a database does not allow in a subquery, it refuses here: a statement that writes, or several.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from mlprod.config import SqlSource
from mlprod.errors import DataError
from mlprod.etl import mysql
from mlprod.etl.schema import require


def described(connection: sa.Connection, source: SqlSource) -> sa.FromClause:
    """Returns the query of `source`, with its columns.

    Raises:
        DataError: a column stands twice in it, or the watermark is none of its columns.
    """
    text = _text(source.query)
    whole = text.columns().subquery("rows_of_query")
    empty: sa.CursorResult[Any] = connection.execute(sa.select(sa.literal_column("*")).select_from(whole).where(sa.false()))
    names = [_as_written(name, connection.dialect.name) for name in empty.keys()]  # noqa: SIM118 (a result is no dict)
    double = next((name for name, n in Counter(names).items() if n > 1), None)
    if double is not None:
        raise DataError(f"the query has several columns {double!r}; name each of them once, by AS")
    kinds = _kinds(empty, names, connection.dialect.name)
    if source.watermark and (source.start or source.stop):
        require(source.watermark, names, "the query")
        kinds[source.watermark] = _kind(connection, _typed(text, names, kinds).c[source.watermark])
    return _typed(text, names, kinds)


Kinds = dict[str, sa.types.TypeEngine[Any]]


def _typed(text: sa.TextClause, names: Sequence[str], kinds: Kinds) -> sa.FromClause:
    return text.columns(*(sa.column(name, kinds.get(name)) for name in names)).subquery("rows_of_query")


def _kinds(empty: sa.CursorResult[Any], names: Sequence[str], dialect: str) -> Kinds:
    """Returns {column: type} where values of a query need one to be what those of a table are."""
    if dialect not in mysql.NAMES or empty.cursor is None:
        return {}
    numbers = [column[1] for column in empty.cursor.description]
    return {name: mysql.BY_NUMBER[n] for name, n in zip(names, numbers, strict=True) if n in mysql.BY_NUMBER}


def _kind(connection: sa.Connection, column: sa.ColumnElement[Any]) -> sa.types.TypeEngine[Any]:
    """Returns the type of a column's values, which `start` and `stop` must have: a query declares none."""
    return sa.literal(connection.execute(sa.select(column).where(column.is_not(None)).limit(1)).scalar()).type


def _text(query: str) -> sa.TextClause:
    """Returns a query as text: its colons are no parameters, its last line may be a comment."""
    return sa.text(query.strip().rstrip(";").replace(":", "\\:") + "\n")


def _as_written(name: str, dialect: str) -> str:
    """Returns a column's name; SQLite names the second `a` of a subquery `a:1`."""
    return re.sub(r":\d+$", "", name) if dialect == "sqlite" else name
