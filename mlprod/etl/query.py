"""The user's own query, as a table that others can be made of.

Promise: it is sent as it is written, as a subquery; its columns are described without reading its rows.
Price: what a database does not allow in a subquery, it refuses here: a statement that writes, or several.
"""

import re
from collections import Counter
from typing import Any

import sqlalchemy as sa

from mlprod.config import SqlSource
from mlprod.errors import DataError
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
    clause = text.columns(*map(sa.column, names)).subquery("rows_of_query")
    if not (source.watermark and (source.start or source.stop)):
        return clause
    require(source.watermark, names, "the query")
    mark = clause.c[source.watermark]
    value = connection.execute(sa.select(mark).where(mark.is_not(None)).limit(1)).scalar()
    kinds = {source.watermark: sa.literal(value).type}  # the type that `start` and `stop` must have: a query declares none
    return text.columns(*(sa.column(name, kinds.get(name)) for name in names)).subquery("rows_of_query")


def _text(query: str) -> sa.TextClause:
    """Returns a query as text: its colons are no parameters, its last line may be a comment."""
    return sa.text(query.strip().rstrip(";").replace(":", "\\:") + "\n")


def _as_written(name: str, dialect: str) -> str:
    """Returns a column's name; SQLite names the second `a` of a subquery `a:1`."""
    return re.sub(r":\d+$", "", name) if dialect == "sqlite" else name
