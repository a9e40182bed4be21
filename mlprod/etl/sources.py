"""Rows out of a source, a part and a chunk at a time, joined with small tables; and what identifies a source.

Promise: every column is checked by name before a row is read. What a source is made of (CSV here, `sql.py`, `columnar.py`) does
not matter to the rest.
Price: a lookup is held in memory.
"""

import csv
import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column, CsvSource, JsonLinesSource, Lookup, ParquetSource, SqlSource
from mlprod.errors import DataError
from mlprod.etl import blocks, columnar
from mlprod.etl.files import (
    Copies,
    copy_plain,
    file_identity,
    files_of,
    is_plain,
    is_utf8,
    open_plain,
    places,
    stamps,
    told_of_file,
)
from mlprod.etl.files import shown as shown_file
from mlprod.etl.identity import Identity, of_files
from mlprod.etl.schema import NULLS, Loose, cast_strictly, require, shown
from mlprod.etl.sql import sql_chunks, sql_identity
from mlprod.store import is_remote

UNPACKED = 4  # about how much larger a compressed file is unpacked

# ---- CSV files ---------------------------------------------------------------------------------------------------------


def _csv_header(reader: Any, path: str) -> list[str]:
    header = next(reader, None)
    if not header:
        raise DataError(f"{path} is empty; it must begin with a line of column names")
    return [name.strip() for name in header]


def _undecodable(path: str, encoding: str) -> int:
    """Returns the first line of a file that is not UTF-8."""
    with open_plain(path, encoding) as plain, io.BufferedReader(plain) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0


@contextmanager
def _told_of_csv(path: str, encoding: str) -> Iterator[None]:
    """Turns what a CSV file refuses into a DataError."""
    try:
        with told_of_file(path):
            yield
    except UnicodeError as error:
        where, way = shown_file(path), "name the right one"
        if is_utf8(encoding):
            where, way = f"{where} line {_undecodable(path, encoding)}", "write the file anew in that encoding, or name its own"
        raise DataError(f"{where}: not {encoding.upper()} text; {way} in config.etl.source.encoding") from error


def _csv_rows(
    path: str, delimiter: str, start: int = 0, stop: int = -1, encoding: str = "utf-8"
) -> Generator[tuple[int, list[str]], None, None]:
    """Yields (line on which the record begins, counted from `start`, fields) of a CSV file's bytes [start, stop)."""
    line = 1
    with _told_of_csv(path, encoding), open_plain(path, encoding) as raw:
        if start:
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
            raise DataError(f"{shown_file(path)} line {where}: {error}; mend the line, its quotes must be closed") from error


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
    return f"{shown_file(path)} line {_lines_before(path, start) + lines[i]}"


def _csv_places(path: str, delimiter: str, names: Sequence[str], encoding: str = "utf-8") -> tuple[list[str], list[int]]:
    """Returns the header of a CSV file and where the columns `names` stand in it."""
    with closing(_csv_rows(path, delimiter, encoding=encoding)) as rows:
        header = _csv_header((fields for _, fields in rows), shown_file(path))
    for name in names:
        require(name, header, shown_file(path))
        if header.count(name) > 1:
            raise DataError(f"{shown_file(path)}: the header names {name!r} twice; rename one of them")
    return header, [header.index(name) for name in names]


def csv_chunks(
    path: str, delimiter: str, names: Sequence[str], chunk_rows: int, start: int = 0, stop: int = -1, encoding: str = "utf-8"
) -> Iterator[Loose]:
    """Yields the columns `names` of a CSV file as text in chunks; '' and NA are None.

    A row with another number of fields than the header is `broken`, its values None.

    Args:
        start: of the bytes that are read; 0: from the header on. Of a packed file, 0.
        stop: of the bytes that are read; -1: to the end. Of a packed file, -1.
    """
    header, at = _csv_places(path, delimiter, names, encoding)
    rows = islice(_csv_rows(path, delimiter, start, stop, encoding), 0 if start else 1, None)
    while batch := list(islice(rows, chunk_rows)):
        broken = {i: f"has {len(f)} fields, the header {len(header)}" for i, (_, f) in enumerate(batch) if len(f) != len(header)}
        whole: list[list[str | None]] = [[None] * len(header) if i in broken else f for i, (_, f) in enumerate(batch)]  # type: ignore[misc]
        columns = {name: [None if row[j] in NULLS else row[j] for row in whole] for name, j in zip(names, at, strict=True)}
        lines = [line for line, _ in batch]
        yield Loose(columns, len(batch), partial(_line_of_file, path, start, lines), broken)


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


chunks.register(SqlSource, sql_chunks)
identify.register(SqlSource, sql_identity)


@chunks.register
def _(source: CsvSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    for path in files_of(source.path):
        yield from csv_chunks(path, source.delimiter, names, chunk_rows, encoding=source.encoding)


@chunks.register
def _(source: ParquetSource | JsonLinesSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    with TemporaryDirectory() as folder:
        plain, copies = unpacked(source, Path(folder), lambda tasks: {name: task() for name, task in tasks.items()})
        for part in parts(plain, names, chunk_rows):
            for chunk in columnar.loose(part, names, chunk_rows):
                yield replace(chunk, where=partial(_where_in_original, chunk.where, copies))


def _where_in_original(where: Callable[[int], str], copies: Copies, i: int) -> str:
    return copies.original(where(i))


Run = Callable[[Mapping[str, Callable[[], Any]]], Any]  # of named tasks


def unpacked(source: Any, folder: Path, run: Run) -> tuple[Any, Copies]:
    """Returns a source whose files are plain: the same where they are so already, else with copies that `run` makes in `folder`.

    Raises:
        DataError: a file is missing, damaged or not in its encoding.
    """
    if isinstance(source, SqlSource):
        return source, Copies("", {})
    encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
    copies = places(source.path, encoding, folder)
    if not copies.names:
        return source, copies
    folder.mkdir(parents=True, exist_ok=True)
    run({Path(to).stem: partial(copy_plain, name, encoding, Path(to)) for to, name in copies.names.items()})
    changed = {"encoding": "utf-8"} if isinstance(source, CsvSource) else {}
    return replace(source, path=copies.path, **changed), copies


def unchanged(source: Any, names: Sequence[str], identity: Identity) -> bool:
    """Returns whether a source is what it was when it was identified: files by their size and time, a table by a second look."""
    if identity.stamps:
        return stamps(source.path) == identity.stamps
    return identify(source, names).description == identity.description


@identify.register
def _(source: CsvSource, names: Sequence[str]) -> Identity:
    return of_files(source.path, sum(_about_rows(path, source.encoding) for path in _there(source.path)), len(names))


@identify.register
def _(source: ParquetSource, names: Sequence[str]) -> Identity:
    plain = all(is_plain(path, "utf-8") for path in files_of(source.path))
    rows = columnar.num_rows(source.path) if plain else sum(_about_rows(path, "utf-8") for path in _there(source.path))
    return of_files(source.path, rows, len(names))


@identify.register
def _(source: JsonLinesSource, names: Sequence[str]) -> Identity:
    return of_files(source.path, sum(_about_rows(path, "utf-8") for path in _there(source.path)), len(names))


def _there(path: str) -> list[str]:
    """Returns the files that a path names and that are there; a missing one is told of where it is read."""
    return [name for name in files_of(path) if is_remote(name) or Path(name).is_file()]


def _about_rows(name: str, encoding: str) -> int:
    """Returns about how many lines a file has."""
    size = stamps(name)[0][0] * (1 if is_plain(name, encoding) else UNPACKED)
    return -(-size // _row_bytes(name, encoding))


@singledispatch
def parts(source: Any, names: Sequence[str], chunk_rows: int) -> list[Any]:
    """Returns small descriptions of what may be read on its own: together the rows of a source, each once.

    Raises:
        DataError: a file or, where that is seen without reading rows, one of the columns `names` is missing.
    """
    return [None]


@parts.register
def _(source: CsvSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    found = []
    for path in files_of(source.path):
        _csv_places(path, source.delimiter, names)
        with told_of_file(path):
            found += blocks.cut(path, source.delimiter, chunk_rows * _row_bytes(path))
    return found


@parts.register
def _(source: ParquetSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    return columnar.row_groups(source.path, names)


@parts.register
def _(source: JsonLinesSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    found = []
    for path in files_of(source.path):
        with told_of_file(path):
            found += columnar.lines(path, chunk_rows * _row_bytes(path))
    return found


def _row_bytes(path: str, encoding: str = "utf-8") -> int:
    """Returns about how many bytes a line of a file has, unpacked."""
    with _told_of_csv(path, encoding), open_plain(path, encoding) as file:
        head = file.read(1 << 16)
    return -(-len(head) // max(head.count(b"\n"), 1)) or 1


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


@read.register
def _(source: ParquetSource, part: columnar.RowGroup, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    return columnar.typed(part, columns, chunk_rows)


@read.register
def _(source: JsonLinesSource, part: columnar.Lines, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    yield from columnar.loose(part, [c.name for c in columns], chunk_rows)


def lookup_identity(lookup: Lookup) -> dict[str, Any]:
    """Returns what identifies a lookup's file."""
    return file_identity(lookup.path)


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
