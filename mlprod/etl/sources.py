"""Rows out of databases and CSV files, a chunk at a time, joined with small tables; and what identifies a source.

Promise: every table and column is checked by name against the source before a row is read; values travel as bound
parameters, names as quoted identifiers; a join never multiplies rows.
Price: SQL rows pass through SQLAlchemy's cursor (about 230,000 rows/s); a lookup is held in memory.
"""

import csv
import datetime as dt
import glob
import io
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial, singledispatch
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from mlprod.config import Column, CsvSource, Join, Lookup, On, SqlSource
from mlprod.errors import DataError, nearest
from mlprod.etl import blocks
from mlprod.etl.schema import NULLS, Loose, cast_strictly, require, shown
from mlprod.manifest import sha256_file

_VALUE_BYTES, _HASH_BYTES = 16, 96  # of a value, and of a row's hashes and row id, in a spilled row


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What tells whether a source changed since it was read. `stable`: equal identities mean equal rows."""

    description: dict[str, Any]
    expected_bytes: int  # in memory, roughly: sizes the external sort
    stable: bool
    stamps: tuple[tuple[int, int], ...] = ()  # size and time of change of each file, where the source is files


# ---- databases ---------------------------------------------------------------------------------------------------------


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


def _sql_chunks(source: SqlSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
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


def _sql_identity(source: SqlSource, names: Sequence[str]) -> Identity:
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
    return Identity(
        description=query, expected_bytes=rows * (len(names) * _VALUE_BYTES + _HASH_BYTES), stable=bool(source.watermark)
    )


# ---- CSV files ---------------------------------------------------------------------------------------------------------


def _csv_header(reader: Any, path: str) -> list[str]:
    header = next(reader, None)
    if not header:
        raise DataError(f"{path} is empty; it must begin with a line of column names")
    return [name.strip() for name in header]


def _undecodable(path: str) -> int:
    """Returns the first line of a file that is not UTF-8."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


@contextmanager
def _told_of_csv(path: str) -> Iterator[None]:
    """Turns what a CSV file refuses into a DataError."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"there is no CSV file {path!r}; create it, or mend the path in the config") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {_undecodable(path)}: not UTF-8 text; write the file anew in that encoding") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _csv_rows(path: str, delimiter: str, start: int = 0, stop: int = -1) -> Generator[tuple[int, list[str]], None, None]:
    """Yields (line on which the record begins, counted from `start`, fields) of a CSV file's bytes [start, stop)."""
    line = 1
    with _told_of_csv(path), open(path, "rb") as raw:
        raw.seek(start)
        bytes_ = raw if stop < 0 else io.BytesIO(raw.read(stop - start))
        file = io.TextIOWrapper(bytes_, encoding="utf-8" if start else "utf-8-sig", newline="")
        try:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            where = line + _lines_before(path, start)
            raise DataError(f"{path} line {where}: {error}; mend the line, its quotes must be closed") from error


def _lines_before(path: str, start: int) -> int:
    """Returns how many lines end in the first `start` bytes of a file: by a line feed, a return, or both."""
    count, last = 0, b""
    with open(path, "rb") as file:
        while start > 0 and (piece := file.read(min(start, 1 << 20))):
            start -= len(piece)
            pair = (last + piece).count(b"\r\n")
            count, last = count + piece.count(b"\n") + piece.count(b"\r") - pair, piece[-1:]
    return count


def _line_of_file(path: str, start: int, lines: Sequence[int], i: int) -> str:
    return f"{path} line {_lines_before(path, start) + lines[i]}"


def _csv_places(path: str, delimiter: str, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Returns the header of a CSV file and where the columns `names` stand in it."""
    with closing(_csv_rows(path, delimiter)) as rows:
        header = _csv_header((fields for _, fields in rows), path)
    for name in names:
        require(name, header, path)
        if header.count(name) > 1:
            raise DataError(f"{path}: the header names {name!r} twice; rename one of them")
    return header, [header.index(name) for name in names]


def csv_chunks(
    path: str, delimiter: str, names: Sequence[str], chunk_rows: int, start: int = 0, stop: int = -1
) -> Iterator[Loose]:
    """Yields the columns `names` of a CSV file as text in chunks; '' and NA are None.

    A row with another number of fields than the header is `broken`, its values None.

    Args:
        start: of the bytes that are read; 0: from the header on.
        stop: of the bytes that are read; -1: to the end.
    """
    header, at = _csv_places(path, delimiter, names)
    rows = islice(_csv_rows(path, delimiter, start, stop), 0 if start else 1, None)
    while batch := list(islice(rows, chunk_rows)):
        broken = {i: f"has {len(f)} fields, the header {len(header)}" for i, (_, f) in enumerate(batch) if len(f) != len(header)}
        whole: list[list[str | None]] = [[None] * len(header) if i in broken else f for i, (_, f) in enumerate(batch)]  # type: ignore[misc]
        columns = {name: [None if row[j] in NULLS else row[j] for row in whole] for name, j in zip(names, at, strict=True)}
        lines = [line for line, _ in batch]
        yield Loose(columns, len(batch), partial(_line_of_file, path, start, lines), broken)


def files_of(path: str) -> list[str]:
    """Returns the files that a path or a pattern (`rows-*.csv`, `**` for any depth) names, sorted.

    Raises:
        DataError: a pattern that no file fits.
    """
    if Path(path).exists() or not re.search(r"[*?\[]", path):
        return [path]
    found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
    if not found:
        raise DataError(f"no file fits {path!r}; mend the path in the config")
    return found


# ---- one interface -----------------------------------------------------------------------------------------------------


@singledispatch
def chunks(source: Any, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    """Yields the columns `names` of a source, at most `chunk_rows` rows at a time.

    Raises:
        DataError: the source, a table or a column is missing, or the source breaks while it is read.
    """
    raise AssertionError(f"no reader for {type(source).__name__}")


@singledispatch
def identify(source: Any, names: Sequence[str]) -> Identity:
    """Returns what identifies the rows that `chunks` would read."""
    raise AssertionError(f"no identity for {type(source).__name__}")


chunks.register(SqlSource, _sql_chunks)
identify.register(SqlSource, _sql_identity)


@chunks.register
def _(source: CsvSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    for path in files_of(source.path):
        yield from csv_chunks(path, source.delimiter, names, chunk_rows)


def unchanged(source: Any, names: Sequence[str], identity: Identity) -> bool:
    """Returns whether a source is what it was when it was identified: files by their size and time, a table by a second look."""
    if identity.stamps:
        return _stamps(source.path) == identity.stamps
    return identify(source, names).description == identity.description


def _stamps(path: str) -> tuple[tuple[int, int], ...]:
    found = [os.stat(name) for name in files_of(path) if os.path.exists(name)]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


@identify.register
def _(source: CsvSource, names: Sequence[str]) -> Identity:
    stamps = _stamps(source.path)
    files = [_file_identity(path) for path in files_of(source.path)]
    described = files[0] if len(files) == 1 else {"bytes": sum(file["bytes"] for file in files), "files": files}
    rows = sum(-(-file["bytes"] // max(_row_bytes(path), 1)) for file, path in zip(files, files_of(source.path), strict=True))
    expected = rows * (len(names) * _VALUE_BYTES + _HASH_BYTES)
    return Identity(description=described, expected_bytes=expected, stable=True, stamps=stamps)


@singledispatch
def parts(source: Any, chunk_rows: int) -> list[Any]:
    """Returns small descriptions of what may be read on its own: together the rows of a source, each once."""
    return [None]


@parts.register
def _(source: CsvSource, chunk_rows: int) -> list[Any]:
    found = []
    for path in files_of(source.path):
        with _told_of_csv(path):
            found += blocks.cut(path, source.delimiter, chunk_rows * _row_bytes(path))
    return found


def _row_bytes(path: str) -> int:
    """Returns about how long a line of a file is."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return -(-len(head) // max(head.count(b"\n"), 1))


@singledispatch
def read(source: Any, part: Any, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    """Yields the rows of a part, in their types where that is known to be right, else as the source has them."""
    yield from chunks(source, [c.name for c in columns], chunk_rows)


@read.register
def _(source: CsvSource, part: blocks.Part, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    names = [c.name for c in columns]
    header, _ = _csv_places(part.path, source.delimiter, names)
    if part.regular:
        table = blocks.read(part, source.delimiter, header, columns)
        if table is not None:
            yield table
            return
    yield from csv_chunks(part.path, source.delimiter, names, chunk_rows, part.start, part.stop)


def _file_identity(path: str) -> dict[str, Any]:
    """Returns a file's size and SHA-256."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no CSV file {path!r}; create it, or mend the path in the config")
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def lookup_identity(lookup: Lookup) -> dict[str, Any]:
    """Returns what identifies a lookup's file."""
    return _file_identity(lookup.path)


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A lookup in memory: its unique keys and the columns it adds."""

    key: str
    keys: pa.Array
    values: pa.Table

    def join(self, rows: pa.Table) -> pa.Table:
        """Returns `rows` with the lookup's columns; null where the key is not found. Rows keep their number and order."""
        at = pc.index_in(rows[self.key], value_set=self.keys, skip_nulls=True)  # a missing key finds nothing
        for name in self.values.column_names:
            rows = rows.append_column(name, self.values[name].take(at))
        return rows


def read_lookup(lookup: Lookup, columns: Sequence[Column]) -> LookupTable:
    """Reads a lookup's file in the types that `columns` declares for its columns and its key.

    Raises:
        DataError: the file or a column is missing, a value is not of its type, or a key stands there twice.
    """
    declared = {column.name: column for column in columns}
    wanted = {lookup.key: lookup.key, **lookup.columns}
    for name in wanted:
        require(name, list(declared), "config.etl.columns, for lookup " + repr(lookup.path) + ",")
    tables = []
    for chunk in csv_chunks(lookup.path, ",", list(wanted.values()), 1 << 16):
        named = Loose({name: chunk.columns[theirs] for name, theirs in wanted.items()}, chunk.num_rows, chunk.where, chunk.broken)
        tables.append(cast_strictly(named, [declared[name] for name in wanted]))
    if not tables:
        raise DataError(f"{lookup.path} has no rows")
    table = pa.concat_tables(tables).combine_chunks()
    keys = table[lookup.key].combine_chunks()
    if len(keys.unique()) != len(keys):
        double = next(v["values"] for v in pc.value_counts(keys).to_pylist() if v["counts"] > 1)
        raise DataError(
            f"{lookup.path} has several rows with {lookup.key} = {shown(declared[lookup.key], double)}; a lookup needs one"
        )
    return LookupTable(lookup.key, keys, table.drop_columns([lookup.key]))
