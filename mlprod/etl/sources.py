"""Rows out of a source, a part and a chunk at a time, joined with small tables; and what identifies a source.

Promise: every column is checked by name before a row is read. What a source is made of (CSV here, `sql.py`, `columnar.py`) does
not matter to the rest.
Price: a lookup is held in memory.
"""

import csv
import io
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial, singledispatch
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column, CsvSource, JsonLinesSource, Lookup, ParquetSource, SqlSource
from mlprod.errors import DataError
from mlprod.etl import blocks, columnar
from mlprod.etl.identity import Identity, file_identity, files_of, of_files, stamps
from mlprod.etl.schema import NULLS, Loose, cast_strictly, require, shown
from mlprod.etl.sql import sql_chunks, sql_identity

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
def _told_of_file(path: str) -> Iterator[None]:
    """Turns what a file refuses into a DataError."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"there is no file {path!r}; create it, or mend the path in the config") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} line {_undecodable(path)}: not UTF-8 text; write the file anew in that encoding") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _csv_rows(path: str, delimiter: str, start: int = 0, stop: int = -1) -> Generator[tuple[int, list[str]], None, None]:
    """Yields (line on which the record begins, counted from `start`, fields) of a CSV file's bytes [start, stop)."""
    line = 1
    with _told_of_file(path), open(path, "rb") as raw:
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
        yield from csv_chunks(path, source.delimiter, names, chunk_rows)


@chunks.register
def _(source: ParquetSource | JsonLinesSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    for part in parts(source, names, chunk_rows):
        yield from columnar.loose(part, names, chunk_rows)


def unchanged(source: Any, names: Sequence[str], identity: Identity) -> bool:
    """Returns whether a source is what it was when it was identified: files by their size and time, a table by a second look."""
    if identity.stamps:
        return stamps(source.path) == identity.stamps
    return identify(source, names).description == identity.description


@identify.register
def _(source: CsvSource, names: Sequence[str]) -> Identity:
    files = [path for path in files_of(source.path) if Path(path).is_file()]
    return of_files(source.path, sum(-(-os.path.getsize(path) // _row_bytes(path)) for path in files), len(names))


@identify.register
def _(source: ParquetSource, names: Sequence[str]) -> Identity:
    return of_files(source.path, columnar.num_rows(source.path), len(names))


@identify.register
def _(source: JsonLinesSource, names: Sequence[str]) -> Identity:
    files = [path for path in files_of(source.path) if Path(path).is_file()]
    return of_files(source.path, sum(-(-os.path.getsize(path) // _row_bytes(path)) for path in files), len(names))


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
        with _told_of_file(path):
            found += blocks.cut(path, source.delimiter, chunk_rows * _row_bytes(path))
    return found


@parts.register
def _(source: ParquetSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    return columnar.row_groups(source.path, names)


@parts.register
def _(source: JsonLinesSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    found = []
    for path in files_of(source.path):
        with _told_of_file(path):
            found += columnar.lines(path, chunk_rows * _row_bytes(path))
    return found


def _row_bytes(path: str) -> int:
    """Returns about how long a line of a file is."""
    with open(path, "rb") as file:
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
