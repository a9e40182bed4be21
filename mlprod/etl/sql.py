"""Rows out of a database: tables, left joins, filters and queries, checked by name against the database itself.

Promise: every table and column is checked before a row is read; values travel as bound parameters, names as quoted identifiers;
a join never multiplies rows.
Price: rows pass through SQLAlchemy's cursor (about 230,000 rows/s), but for those of PostgreSQL and DuckDB (see `postgres.py`,
`duckdb_files.py`).
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import sqlalchemy as sa

from mlprod.config import Join, On, SqlSource
from mlprod.errors import DataError, QuotingError, nearest, wordless
from mlprod.etl import duckdb_files, mysql, query
from mlprod.etl.connection import WHY, connected, named, refused
from mlprod.etl.databases import shown
from mlprod.etl.files import Told, untold
from mlprod.etl.identity import Identity, rows_bytes
from mlprod.etl.patience import answered, rows_in_time
from mlprod.etl.schema import Loose, require
from mlprod.hashing import key_of_text

Tables = Mapping[str, sa.FromClause]  # by name; a query's is ""
# PostgreSQL's numbers of types, where one of ours holds every value.
STORED = {20: "int64", 21: "int64", 23: "int64", 700: "float64", 701: "float64", 16: "bool"} | {
    1082: "timestamp", 1114: "timestamp", 1184: "timestamp",
}  # fmt: skip


@contextmanager
def opened(source: SqlSource) -> Iterator[tuple[sa.Connection, Tables]]:
    """Gives a connection and the tables of `source` as the database describes them; raises DataError, ConnectionLost."""
    with connected(source) as connection:
        if source.query:
            yield connection, {"": query.described(connection, source)}
            return
        try:
            tables = _reflect(connection, source)
        except sa.exc.DBAPIError as error:
            url = connection.engine.url
            raise refused(f"database {shown(url)}", error, url) from wordless(error, WHY)
        yield connection, tables


def _reflect(connection: sa.Connection, source: SqlSource) -> Tables:
    inspector = sa.inspect(connection)
    known = [*inspector.get_table_names(), *inspector.get_view_names()]
    names = (source.table, *(join.table for join in source.joins))
    for name in names:
        if name not in known:
            raise DataError(f"database {shown(connection.engine.url)} has no table {name!r}{nearest(name, known)}")
    dialect = connection.dialect.name
    listeners = [("column_reflect", partial(_read_as, dialect))]
    return {name: sa.Table(name, sa.MetaData(), autoload_with=connection, listeners=listeners) for name in dict.fromkeys(names)}


def _read_as(dialect: str, inspector: Any, table: sa.Table, column: dict[str, Any]) -> None:
    """Lets a column be read as what it is, where SQLAlchemy would make something else of it."""
    if dialect in mysql.NAMES:
        column["type"] = mysql.plain(column["type"])
    elif dialect == "duckdb" and isinstance(column["type"], sa.JSON):
        column["type"] = sa.Text()


def _bound(column: sa.ColumnElement[Any], name: str, text: str, field: str) -> Any:
    """Returns the text of a filter as a value of the column's own type, to be bound as a parameter."""
    try:
        kind = column.type.python_type
    except NotImplementedError:  # a column without a declared type, as SQLite has them
        kind = str
    try:
        return kind.fromisoformat(text) if issubclass(kind, dt.date | dt.time) else kind(text)
    except (ValueError, TypeError, ArithmeticError) as error:
        told = f"is not a {kind.__name__}, as column {name!r} is"
        raise QuotingError(f"config.etl.source.{field}={text!r} {told}", f"config.etl.source.{field} {told}") from error


def filters(table: sa.FromClause, source: SqlSource) -> list[sa.ColumnElement[bool]]:
    """Returns start <= watermark < stop as conditions with bound parameters."""
    if not source.watermark:
        if source.start or source.stop:
            raise DataError("config.etl.source.start and .stop need config.etl.source.watermark, the column they apply to")
        return []
    require(source.watermark, list(table.c.keys()), named(source))
    column = table.c[source.watermark]
    low = [column >= _bound(column, source.watermark, source.start, "start")] if source.start else []
    high = [column < _bound(column, source.watermark, source.stop, "stop")] if source.stop else []
    return [*low, *high]


def integer_key(table: sa.FromClause) -> sa.Column[Any] | None:
    """Returns the integer column that is a table's primary key, alone."""
    columns = list(table.primary_key) if isinstance(table, sa.Table) else []
    return columns[0] if len(columns) == 1 and isinstance(columns[0].type, sa.Integer) else None


def check_joins(connection: sa.Connection, tables: Tables, source: SqlSource) -> None:
    """Raises DataError when two rows of a joined table have the same key, for a join would then multiply rows."""
    for join in source.joins:
        keys = [tables[join.table].c[on.right] for on in join.on]
        statement = sa.select(*keys).where(*(k.is_not(None) for k in keys)).group_by(*keys).having(sa.func.count() > 1).limit(1)
        double = connection.execute(statement).first()
        if double is not None:
            names = ", ".join(on.right for on in join.on)
            told = [
                f"table {join.table!r} has several rows with {what}; a join needs one"
                for what in (f"{names} = {tuple(double)}", f"one {names}")
            ]
            raise QuotingError(*told)


def _check_plus(on: On, left: sa.ColumnElement[Any], right: sa.ColumnElement[Any]) -> None:
    """Raises DataError when a shifted key is not an integer."""
    if on.plus and not all(isinstance(column.type, sa.Integer) for column in (left, right)):
        raise DataError(f"config.etl.source.joins: plus={on.plus} needs integer columns, as {on.left!r} and {on.right!r} are not")


def _joined(main: sa.FromClause, source: SqlSource, joins: Sequence[tuple[Join, sa.FromClause]]) -> sa.FromClause:
    """Returns the main table left-joined with each alias on its join's equalities."""
    clause: sa.FromClause = main
    for join, right in joins:
        for on in join.on:
            require(on.left, list(main.c.keys()), named(source))
            require(on.right, list(right.c.keys()), f"table {join.table!r}")
            _check_plus(on, main.c[on.left], right.c[on.right])
        # The shift stands on the main table's side: the joined table's column is bare, so its index can be used.
        equal = [(main.c[on.left] - on.plus if on.plus else main.c[on.left]) == right.c[on.right] for on in join.on]
        clause = sa.outerjoin(clause, right, sa.and_(*equal))
    return clause


def statement(tables: Tables, source: SqlSource, names: Sequence[str]) -> sa.Select[Any]:
    """Returns the select of the columns `names`, left-joined and filtered."""
    main = tables[source.table]
    joins = [(join, tables[join.table].alias(f"join_{i}")) for i, join in enumerate(source.joins)]
    home = {name: (f"table {join.table!r}", right) for join, right in joins for name in join.columns}
    clause = _joined(main, source, joins)
    for name in names:
        where, table = home.get(name, (named(source), main))
        require(name, list(table.c.keys()), where)
    chosen = [home[name][1].c[name] if name in home else main.c[name] for name in names]
    return sa.select(*chosen).select_from(clause).where(*filters(main, source))


def row_of_query(source: SqlSource, which: str, before: int, i: int) -> str:
    """Returns where row i of a chunk stands, behind `before` rows of the query; `which`: of all, such as " with id below 9"."""
    return f"{named(source)}, row {before + i + 1} of the query{which}"


def loose(
    connection: sa.Connection, select: sa.Select[Any], source: SqlSource, names: Sequence[str], chunk_rows: int, which: str = ""
) -> Iterator[Loose]:
    """Yields the rows of a select, its columns called `names`, at most `chunk_rows` at a time; `which`: of the source's rows.

    Raises:
        DataError: the driver cannot read a value.
    """
    done, result = 0, connection.execution_options(stream_results=True).execute(select)
    try:
        for rows in result.partitions(chunk_rows):
            columns = dict(zip(names, zip(*rows, strict=True), strict=True))
            yield Loose(columns, len(rows), partial(row_of_query, source, which, done), {})
            done += len(rows)
    except (ValueError, TypeError) as error:  # a driver that cannot make its column's type of a value
        told = f"{named(source)}, after row {done} of the query: "
        raise QuotingError(f"{told}{error}; mend the value", f"{told}the driver cannot read a value; mend it") from error
    finally:
        if mysql.let_go(result.cursor) and not connection.invalidated:
            connection.invalidate()


@rows_in_time
def sql_chunks(source: SqlSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    """Yields the columns `names` of the source, at most `chunk_rows` rows at a time; raises DataError, ConnectionLost."""
    with opened(source) as (connection, tables):
        select = statement(tables, source, names)
        check_joins(connection, tables, source)
        yield from loose(connection, select, source, names, chunk_rows)


@answered
def sql_head(source: SqlSource, names: Sequence[str], num_rows: int) -> Loose | None:
    """Returns the first rows that the database gives; raises DataError, ConnectionLost. Joins are not looked at."""
    with opened(source) as (connection, tables):
        return next(loose(connection, statement(tables, source, names).limit(num_rows), source, names, num_rows), None)


@answered
def sql_column_names(source: SqlSource) -> list[str]:
    """Returns the columns of the source's table or query, and those that its joins add."""
    with opened(source) as (_, tables):
        return _all_names(tables, source)


@answered
def sql_count(source: SqlSource) -> int:
    """Returns how many rows the table or query has; raises DataError, ConnectionLost."""
    with opened(source) as (connection, tables):
        count: int = connection.execute(sa.select(sa.func.count()).select_from(tables[source.table])).scalar_one()
        return count


def tables_of(url: str) -> list[str]:
    """Returns the tables and views of a database, by name; raises DataError, ConnectionLost."""
    return _known_tables(SqlSource(url=url))


@answered
def _known_tables(source: SqlSource) -> list[str]:
    with connected(source) as connection:
        inspector = sa.inspect(connection)
        return sorted([*inspector.get_table_names(), *inspector.get_view_names()])


def _all_names(tables: Tables, source: SqlSource) -> list[str]:
    return list(dict.fromkeys([*tables[source.table].c.keys(), *(name for join in source.joins for name in join.columns)]))


@answered
def sql_stored_types(source: SqlSource) -> dict[str, str]:
    """Returns {column: type} where PostgreSQL or DuckDB says it; a column of another database may hold anything."""
    with opened(source) as (connection, tables):
        names = _all_names(tables, source)
        if connection.dialect.name == "duckdb":
            text = duckdb_files.sent(statement(tables, source, names), connection.engine)
            return duckdb_files.stored_types(connection, text, source)
        if connection.dialect.name != "postgresql":
            return {}
        found = connection.execute(statement(tables, source, names).where(sa.false())).cursor
        assert found is not None
        kinds = [column[1] for column in found.description]
    return {name: STORED[kind] for name, kind in zip(names, kinds, strict=True) if kind in STORED}


@answered
def declared_types(source: SqlSource) -> dict[str, str]:
    """Returns {column: the type that the database declares} of the table and what its joins add; "" where none is known."""
    with opened(source) as (_, tables):
        declared = {name: _declared(column) for name, column in tables[source.table].c.items()}
        for join in source.joins:
            declared |= {name: _declared(tables[join.table].c[name]) for name in join.columns if name in tables[join.table].c}
    return declared


def _declared(column: sa.ColumnElement[Any]) -> str:
    return "" if isinstance(column.type, sa.types.NullType) else str(column.type)


@answered
def rows_until(source: SqlSource, watermark: str) -> int:
    """Returns how many of the source's rows have a watermark up to one, itself included."""
    bounded = source if source.start else replace(source, start=watermark)  # by which a query's column gets its type
    with opened(bounded) as (connection, tables):
        main = tables[source.table]
        last = main.c[source.watermark] <= _bound(main.c[source.watermark], source.watermark, watermark, "watermark")
        count = sa.select(sa.func.count()).select_from(main).where(last, *filters(main, source))
        found: int = connection.execute(count).scalar_one()
        return found


@answered
def sql_identity(source: SqlSource, names: Sequence[str], told: Told = untold) -> Identity:
    """Returns the query as it is sent, its count, and its newest watermark or, where it has none, its last key as a hash.

    A source with neither is not stable: it may change while both queries and counts stay.
    """
    with opened(source) as (connection, tables):
        select, main, engine = statement(tables, source, names), tables[source.table], connection.engine
        key = None if source.watermark else integer_key(main)
        mark = sa.func.max(main.c[source.watermark]) if source.watermark else sa.null() if key is None else sa.func.max(key)
        rows, newest = connection.execute(sa.select(sa.func.count(), mark).select_from(main).where(*filters(main, source))).one()
        joined = [
            connection.execute(sa.select(sa.func.count()).select_from(tables[join.table])).scalar_one() for join in source.joins
        ]
    compiled = select.compile(engine)
    parameters = {k: str(v) for k, v in compiled.params.items()}
    database = engine.url.set(username=None, password=None, query={}).render_as_string()
    description = {
        "database": database,
        "query": str(compiled),
        "parameters": parameters,
        "rows": rows,
        "joined_rows": joined,
        "watermark": str(newest) if key is None else "",
    }
    if key is not None:
        description["last_key"] = f"{key_of_text(str(newest)):016x}"  # the column may be sensitive
    return Identity(
        description=description,
        expected_bytes=rows_bytes(rows, len(names)),
        rows=rows,
        stable=bool(source.watermark) or key is not None,
    )
