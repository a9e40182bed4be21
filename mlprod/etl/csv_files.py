"""Rows out of CSV files, record by record: any encoding, packing, quotes and line ends; and how many rows a text file has, about.

Promise: a row that the header does not fit and a file that is not in its encoding are told of with file and line.
Price: about 300,000 rows/s and core; files that `blocks.py` can read in columns do not come here.
"""

import csv
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from typing import Any

from mlprod.errors import DataError
from mlprod.etl.files import bounded_lines, is_plain, is_utf8, open_plain, shown, stamps, told_of_file
from mlprod.etl.schema import NULLS, Loose, require

UNPACKED = 4  # about how much larger a compressed file is unpacked
OTHER_KINDS = {  # by the first bytes
    b"PAR1": "a Parquet file: give it to ParquetSource",
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save it as CSV",
    b"SQLite format 3": "an SQLite database: give it to SqlSource(url='sqlite:///...')",
    b"\x1f\x8b": "packed by gzip: let its name end with .gz",
}


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


def _other_kind(path: str) -> str:
    """Returns what a file is by its first bytes, and the way out, where it is one of what is often taken for CSV; else ''."""
    try:
        with open_plain(path, "utf-8") as plain:
            begin = plain.read(16)
    except OSError:
        return ""
    return next((told for magic, told in OTHER_KINDS.items() if begin.startswith(magic)), "")


@contextmanager
def told_of_csv(path: str, encoding: str) -> Iterator[None]:
    """Turns what a CSV file refuses into a DataError."""
    try:
        with told_of_file(path):
            yield
    except UnicodeError as error:
        other = _other_kind(path)
        if other:
            raise DataError(f"{shown(path)} is no CSV file but {other}") from error
        where, way = shown(path), "name the right one"
        if is_utf8(encoding):
            where, way = f"{where} line {_undecodable(path, encoding)}", "write the file anew in that encoding, or name its own"
        raise DataError(f"{where}: not {encoding.upper()} text; {way} in config.etl.source.encoding") from error


def _csv_rows(
    path: str, delimiter: str, start: int = 0, stop: int = -1, encoding: str = "utf-8"
) -> Generator[tuple[int, list[str]], None, None]:
    """Yields (line on which the record begins, counted from `start`, fields) of a CSV file's bytes [start, stop)."""
    line = 1
    with told_of_csv(path, encoding), open_plain(path, encoding) as raw:
        if start:
            raw.seek(start)
        bytes_ = raw if stop < 0 else io.BytesIO(raw.read(stop - start))
        file = io.TextIOWrapper(bytes_, encoding="utf-8" if start else "utf-8-sig", newline="")
        try:
            reader = csv.reader(bounded_lines(file, path), delimiter=delimiter, strict=True)
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            where = line + _lines_before(path, start)
            raise DataError(f"{shown(path)} line {where}: {error}; mend the line, its quotes must be closed") from error


def _lines_before(path: str, start: int) -> int:
    """Returns how many lines end in the first `start` bytes of a file: by a line feed, a return, or both."""
    count, last = 0, b""
    with told_of_file(path), open(path, "rb") as file:
        while start > 0 and (piece := file.read(min(start, 1 << 20))):
            start -= len(piece)
            pair = (last + piece).count(b"\r\n")
            count, last = count + piece.count(b"\n") + piece.count(b"\r") - pair, piece[-1:]
    return count


def _line_of_file(path: str, start: int, lines: Sequence[int], i: int) -> str:
    return f"{shown(path)} line {_lines_before(path, start) + lines[i]}"


def csv_place(path: str, delimiter: str, start: int, stop: int, i: int) -> str:
    """Returns where record i of the bytes [start, stop) of a UTF-8 file stands; see `csv_chunks`."""
    with closing(_csv_rows(path, delimiter, start, stop)) as rows:
        line, _ = next(islice(rows, i if start else i + 1, None))
    return _line_of_file(path, start, [line], 0)


def csv_places(path: str, delimiter: str, names: Sequence[str], encoding: str = "utf-8") -> tuple[list[str], list[int]]:
    """Returns the header of a CSV file and where the columns `names` stand in it."""
    with closing(_csv_rows(path, delimiter, encoding=encoding)) as rows:
        header = _csv_header((fields for _, fields in rows), shown(path))
    for name in names:
        require(name, header, shown(path))
        if header.count(name) > 1:
            raise DataError(f"{shown(path)}: the header names {name!r} twice; rename one of them")
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
    header, at = csv_places(path, delimiter, names, encoding)
    rows = islice(_csv_rows(path, delimiter, start, stop, encoding), 0 if start else 1, None)
    while batch := list(islice(rows, chunk_rows)):
        broken = {i: f"has {len(f)} fields, the header {len(header)}" for i, (_, f) in enumerate(batch) if len(f) != len(header)}
        # mypy takes both kinds of row for list[None].
        whole: list[list[str | None]] = [[None] * len(header) if i in broken else f for i, (_, f) in enumerate(batch)]  # type: ignore[misc]
        columns = {name: [None if row[j] in NULLS else row[j] for row in whole] for name, j in zip(names, at, strict=True)}
        lines = [line for line, _ in batch]
        yield Loose(columns, len(batch), partial(_line_of_file, path, start, lines), broken)


def row_bytes(path: str, encoding: str = "utf-8") -> int:
    """Returns about how many bytes a line of a file has, unpacked."""
    with told_of_csv(path, encoding), open_plain(path, encoding) as file:
        head = file.read(1 << 16)
    return -(-len(head) // max(head.count(b"\n"), 1)) or 1


def about_rows(name: str, encoding: str) -> int:
    """Returns about how many lines a file has."""
    size = stamps(name)[0][0] * (1 if is_plain(name, encoding) else UNPACKED)
    return -(-size // row_bytes(name, encoding))
