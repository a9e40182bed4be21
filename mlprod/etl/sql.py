"""Rows out of a database: tables, left joins and filters, checked by name against the database itself.

Promise: every table and column is checked before a row is read; values travel as bound parameters, names as quoted identifiers;
a join never multiplies rows.
Price: rows pass through SQLAlchemy's cursor (about 230,000 rows/s).
"""

import datetime as dt
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from mlprod.config import Join, On, SqlSource
from mlprod.errors import DataError, nearest
from mlprod.etl.files import Told, untold
from mlprod.etl.identity import Identity, rows_bytes
from mlprod.etl.schema import Loose, require


def connect(url: str) -> sa.Engine:
    """Returns an engine for a database that exists.

    Raises:
        DataError: a URL that SQLAlchemy cannot read, a driver that is not installed, or a missing SQLite file.
    """
    for name in re.findall(r"\$\{?(\w+)", url):
        if name not in os.environ:
            raise DataError(f"config.etl.source.url={url!r}: the environment variable {name} is not set")
    try:
        parsed = sa.make_url(os.path.expandvars(url))
        engine = sa.create_engine(parsed)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise DataError(f"config.etl.source.url={url!r}: {error}") from error
    except ValueError as error:  # its text may hold a part of a password
        raise DataError(
            f"config.etl.source.url={url!r}: the port is not a number, or a password holds '/', ':' or '@'"
        ) from error
    if parsed.get_backend_name() == "sqlite" and not (parsed.database and Path(parsed.database).is_file()):
        raise DataError(
            f"config.etl.source.url={url!r}: there is no database file {parsed.database!r}; create it, or mend the path"
        )
    return engine


def _reflect(engine: sa.Engine, source: SqlSource) -> dict[str, sa.Table]:
    """Returns the tables of `source` as the database describes them."""
    try:
        inspector = sa.inspect(engine)
        known = [*inspector.get_table_names(), *inspector.get_view_names()]
        for name in (source.table, *(join.table for join in source.joins)):
            if name not in known:
                raise DataError(f"database {engine.url.render_as_string()} has no table {name!r}{nearest(name, known)}")
        names = {source.table, *(join.table for join in source.joins)}
        return {name: sa.Table(name, sa.MetaData(), autoload_with=engine) for name in names}
    except sa.exc.DBAPIError as error:
        raise DataError(f"database {engine.url.render_as_string()}: {error.orig}") from error


def _bound(column: sa.Column[Any], text: str, field: str) -> Any:
    """Returns the text of a filter as a value of the column's own type, to be bound as a parameter."""
    try:
        kind = column.type.python_type
    except NotImplementedError:  # a column without a declared type, as SQLite has them
        kind = str
    try:
        return kind.fromisoformat(text) if issubclass(kind, dt.date | dt.time) else kind(text)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise DataError(f"config.etl.source.{field}={text!r} is not a {kind.__name__}, as column {column.name!r} is") from error


def _filters(table: sa.Table, source: SqlSource) -> list[sa.ColumnElement[bool]]:
    """Returns start <= watermark < stop as conditions with bound parameters."""
    if not source.watermark:
        if source.start or source.stop:
            raise DataError("config.etl.source.start and .stop need config.etl.source.watermark, the column they apply to")
        return []
    require(source.watermark, list(table.c.keys()), f"table {source.table!r}")
    column = table.c[source.watermark]
    low = [column >= _bound(column, source.start, "start")] if source.start else []
    high = [column < _bound(column, source.stop, "stop")] if source.stop else []
    return [*low, *high]


def _check_unique(connection: sa.Connection, table: sa.Table, join: Join) -> None:
    """Raises DataError when two rows of a joined table have the same key, for a join would then multiply rows."""
    keys = [table.c[on.right] for on in join.on]
    statement = sa.select(*keys).where(*(k.is_not(None) for k in keys)).group_by(*keys).having(sa.func.count() > 1).limit(1)
    double = connection.execute(statement).first()
    if double is not None:
        names = ", ".join(on.right for on in join.on)
        raise DataError(f"table {join.table!r} has several rows with {names} = {tuple(double)}; a join needs one")


def _check_plus(on: On, left: sa.ColumnElement[Any], right: sa.ColumnElement[Any]) -> None:
    """Raises DataError when a shifted key is not an integer."""
    if on.plus and not all(isinstance(column.type, sa.Integer) for column in (left, right)):
        raise DataError(f"config.etl.source.joins: plus={on.plus} needs integer columns, as {on.left!r} and {on.right!r} are not")


def _joined(main: sa.Table, joins: Sequence[tuple[Join, sa.FromClause]]) -> sa.FromClause:
    """Returns the main table left-joined with each alias on its join's equalities."""
    clause: sa.FromClause = main
    for join, right in joins:
        for on in join.on:
            require(on.left, list(main.c.keys()), f"table {main.name!r}")
            require(on.right, list(right.c.keys()), f"table {join.table!r}")
            _check_plus(on, main.c[on.left], right.c[on.right])
        # The shift stands on the main table's side: the joined table's column is bare, so its index can be used.
        equal = [(main.c[on.left] - on.plus if on.plus else main.c[on.left]) == right.c[on.right] for on in join.on]
        clause = sa.outerjoin(clause, right, sa.and_(*equal))
    return clause


def _statement(tables: dict[str, sa.Table], source: SqlSource, names: Sequence[str]) -> sa.Select[Any]:
    """Returns the select of the columns `names`, left-joined and filtered."""
    main = tables[source.table]
    joins = [(join, tables[join.table].alias(f"join_{i}")) for i, join in enumerate(source.joins)]
    home = {name: (join.table, right) for join, right in joins for name in join.columns}
    clause = _joined(main, joins)
    for name in names:
        where, table = home.get(name, (source.table, main))
        require(name, list(table.c.keys()), f"table {where!r}")
    chosen = [home[name][1].c[name] if name in home else main.c[name] for name in names]
    return sa.select(*chosen).select_from(clause).where(*_filters(main, source))


def _row_of_query(table: str, before: int, i: int) -> str:
    return f"table {table!r}, row {before + i + 1} of the query"


@contextmanager
def _told(source: SqlSource) -> Iterator[None]:
    """Turns what a database or its driver refuses into a DataError."""
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.StatementError) as error:
        raise DataError(f"table {source.table!r}: {getattr(error, 'orig', None) or error}") from error


def sql_chunks(source: SqlSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    """Yields the columns `names` of the query, at most `chunk_rows` rows at a time; raises DataError."""
    engine = connect(source.url)
    tables = _reflect(engine, source)
    statement = _statement(tables, source, names)
    done = 0
    try:
        with _told(source), engine.connect() as connection:
            for join in source.joins:
                _check_unique(connection, tables[join.table], join)
            result = connection.execution_options(stream_results=True).execute(statement)
            for rows in result.partitions(chunk_rows):
                columns = dict(zip(names, zip(*rows, strict=True), strict=True))
                yield Loose(columns, len(rows), partial(_row_of_query, source.table, done), {})
                done += len(rows)
    except (ValueError, TypeError) as error:  # a driver that cannot make its column's type of a value
        raise DataError(f"table {source.table!r}, after row {done} of the query: {error}; mend the value") from error
    finally:
        engine.dispose()


def sql_identity(source: SqlSource, names: Sequence[str], told: Told = untold) -> Identity:
    """Returns the query as it is sent, its count and its newest watermark."""
    engine = connect(source.url)
    tables = _reflect(engine, source)
    statement = _statement(tables, source, names)
    main = tables[source.table]
    mark = sa.func.max(main.c[source.watermark]) if source.watermark else sa.null()
    with _told(source), engine.connect() as connection:
        rows, newest = connection.execute(sa.select(sa.func.count(), mark).select_from(main).where(*_filters(main, source))).one()
        joined = [
            connection.execute(sa.select(sa.func.count()).select_from(tables[join.table])).scalar_one() for join in source.joins
        ]
    engine.dispose()
    compiled = statement.compile(engine)
    parameters = {k: str(v) for k, v in compiled.params.items()}
    database = engine.url.set(username=None, password=None, query={}).render_as_string()
    query = {
        "database": database,
        "query": str(compiled),
        "parameters": parameters,
        "rows": rows,
        "joined_rows": joined,
        "watermark": str(newest),
    }
    return Identity(description=query, expected_bytes=rows_bytes(rows, len(names)), stable=bool(source.watermark))
