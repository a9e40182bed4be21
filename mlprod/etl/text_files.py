"""Documents out of text files in UTF-8: rows of the columns `text` and `file`.

Promise: the pieces of a document, one after the other, are the document; where it is cut follows from its own bytes, never from
the parts in which a file is read. No piece is longer than `max_bytes`, none ends inside a character, none is empty.
Price: a piece and a block of a file are in memory, however long a document is; a document is read by one task.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column, TextSource
from mlprod.errors import DataError
from mlprod.etl.csv_files import UNPACKED, about_rows
from mlprod.etl.files import Copies, Told, files_of, is_plain, open_plain, shown, stamps, told_of_file
from mlprod.etl.identity import Identity, of_files
from mlprod.etl.schema import Loose
from mlprod.store import is_remote

NAMES = ["text", "file"]  # of the columns
PART_BYTES = 8 << 20  # that are read on their own, about
CHUNK_BYTES = 4 << 20  # of documents that are handed over together, about
BLOCK = 1 << 20  # bytes that are read at once
MARK = b"\xef\xbb\xbf"  # that some programs begin a UTF-8 file with

Piece = tuple[int, bytes]  # where in its file it begins, and its bytes


class Readable(Protocol):
    """A file that is read from where it stands."""

    def read(self, nbytes: int, /) -> bytes:
        """Returns at most so many bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Named:
    """Text files of this machine, unpacked, with the name that each had. `source.path`: of the files as they lie."""

    source: TextSource
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes [start, stop) of a file: whole documents."""

    path: str
    start: int
    stop: int


# ---- names and identity ------------------------------------------------------------------------------------------------


def named(source: TextSource, copies: Copies) -> Named:
    """Returns a source with the names of its files below the folder that its path names; `copies`: of those packed or remote."""
    base = _folder(shown(source.path))
    plain = replace(source, path=copies.path)
    originals = {path: shown(copies.names.get(path, path)) for path in files_of(plain.path)}
    return Named(plain, {path: os.path.relpath(name, base) for path, name in originals.items()})


def _folder(path: str) -> str:
    """Returns the folder that a path, an address or a pattern names, or in which its file lies."""
    if Path(path).is_dir() or (is_remote(path) and path.endswith("/")):
        return path
    fixed = path if Path(path).exists() else re.split(r"[*?\[]", path)[0]
    return fixed.rpartition("/")[0] or "."


def identity(source: TextSource, names: Sequence[str], told: Told) -> Identity:
    """Returns what identifies the documents that `read` would read: the files' bytes and, where they are rows' values, names."""
    size, documents = about(source)
    found = of_files(source.path, documents, len(names), told)
    files = {"names": sorted(named(source, Copies(source.path, {})).names.values())} if "file" in names else {}
    return replace(found, description=found.description | files, expected_bytes=found.expected_bytes + size)


def about(source: TextSource) -> tuple[int, int]:
    """Returns about (bytes of text, documents) of a source."""
    names = [name for name in files_of(source.path) if is_remote(name) or Path(name).is_file()]
    sizes = [stamps(name)[0][0] * (1 if is_plain(name, "utf-8") else UNPACKED) for name in names]
    if source.separator:
        return sum(sizes), sum(about_rows(name, "utf-8") for name in names)
    return sum(sizes), sum(-(-size // source.max_bytes) for size in sizes)


# ---- parts -------------------------------------------------------------------------------------------------------------


def parts(files: Named, chunk_rows: int) -> list[Any]:
    """Returns what may be read on its own: ranges of files that make about `PART_BYTES` together, or `chunk_rows` lines."""
    found: list[list[Range]] = []
    room = 0
    for path in files.names:
        for each in _ranges(path, files.source.separator.encode(), chunk_rows):
            if room <= 0:
                found.append([])
                room = PART_BYTES
            found[-1].append(each)
            room -= max(each.stop - each.start, PART_BYTES // max(chunk_rows, 1))
    return found


def _ranges(path: str, separator: bytes, chunk_rows: int) -> Iterator[Range]:
    """Yields the ranges of a file: all of it where nothing separates documents."""
    with told_of_file(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        few = min(PART_BYTES, max(chunk_rows, 1) * about_line(path))
        ends = [0]
        while separator and ends[-1] + few < size:
            ends.append(_behind(file, ends[-1] + few, size, separator))
    yield from (Range(path, a, b) for a, b in pairwise([*ends, size]) if a < b)


def about_line(path: str) -> int:
    """Returns about how many bytes a line of a file has."""
    with told_of_file(path), open(path, "rb") as file:
        head = file.read(1 << 16)
    return -(-len(head) // max(head.count(b"\n"), 1)) or 1


def _behind(file: Any, target: int, size: int, separator: bytes) -> int:
    """Returns the first place behind `target` where a document surely begins, or `size`.

    Separators are found from a file's beginning on, and what one takes is no part of the next: in a run of them, such as of line
    feeds, only the first is one whatever stands before.
    """
    width = len(separator)
    at, before, held = max(target - width + 1, 0), -width, b""
    file.seek(at)
    while block := file.read(BLOCK):
        held += block
        i = held.find(separator)
        while i >= 0:
            if at + i >= target and at + i - before >= width:
                return int(at + i + width)
            before = at + i
            i = held.find(separator, i + 1)
        kept = held[max(len(held) - width + 1, 0) :]
        at, held = at + len(held) - len(kept), kept
    return size


# ---- documents ---------------------------------------------------------------------------------------------------------


def read(files: Named, part: Sequence[Range], columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table]:
    """Yields the documents of a part, at most `chunk_rows` or about `CHUNK_BYTES` at a time.

    Raises:
        DataError: a file that cannot be read, or is not UTF-8.
    """
    for each in part:
        with told_of_file(each.path), open(each.path, "rb") as file:
            file.seek(each.start)
            for texts in _chunks(file, each, files.source, chunk_rows):
                values = {"text": texts, "file": pa.array([files.names[each.path]] * len(texts), pa.string())}
                yield pa.table({c.name: values[c.name] for c in columns})


def place(files: Named, part: Sequence[Range], i: int) -> str:
    """Returns where document i of a part stands."""
    for each in part:
        with told_of_file(each.path), open(each.path, "rb") as file:
            file.seek(each.start)
            for texts in _chunks(file, each, files.source, 1 << 10):
                if i < len(texts):
                    return f"{each.path}, a document behind byte {each.start:,}"
                i -= len(texts)
    raise AssertionError(f"the part has no document {i}")


def head(source: TextSource, names: Sequence[str], num_rows: int) -> Loose | None:
    """Returns the first documents of the first file, packed or not; None where there are none."""
    path = files_of(source.path)[0]
    name = os.path.relpath(shown(path), _folder(shown(source.path)))
    with told_of_file(path), open_plain(path, "utf-8") as file:
        texts = next(_chunks(file, Range(path, 0, 1 << 62), source, num_rows), None)
    if texts is None:
        return None
    values = {"text": texts.to_pylist(), "file": [name] * len(texts)}
    return Loose({column: values[column] for column in names}, len(texts), lambda i: f"{shown(path)} document {i + 1}", {})


def _chunks(file: Readable, where: Range, source: TextSource, chunk_rows: int) -> Iterator[pa.Array]:
    """Yields string[K] of the documents of a range, at which the file stands."""
    held, size = list[Piece](), 0
    for found in pieces(file, where.start, where.stop, source.separator.encode(), source.max_bytes):
        held, size = held + found, size + sum(len(text) for _, text in found)
        while len(held) >= chunk_rows or size >= CHUNK_BYTES:
            yield _as_text(held[:chunk_rows], where.path)
            held = held[chunk_rows:]
            size = sum(len(text) for _, text in held)
    if held:
        yield _as_text(held, where.path)


def _as_text(found: Sequence[Piece], path: str) -> pa.Array:
    array = pa.array([text for _, text in found], pa.binary())
    try:
        return pc.cast(array, pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {_wrong(found)}; write the file as UTF-8, such as by iconv -t utf-8") from error


def _wrong(found: Sequence[Piece]) -> str:
    """Returns what is no UTF-8, and at which byte of the file."""
    for at, text in found:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return f"byte {at + error.start:,} (0x{text[error.start]:02x}) is not UTF-8"
    return f"the text at byte {found[0][0]:,} is not UTF-8"


def pieces(file: Readable, start: int, stop: int, separator: bytes, max_bytes: int) -> Iterator[list[Piece]]:
    """Yields the documents of bytes [start, stop) of a file, at which it stands: those longer than `max_bytes` as several."""
    at, held, left = start, b"", stop - start
    while block := file.read(min(BLOCK, left)):
        left -= len(block)
        held += block
        if at == 0 and held.startswith(MARK):
            at, held = len(MARK), held[len(MARK) :]
        *whole, held = held.split(separator) if separator else [held]
        found = list[Piece]()
        for document in whole:
            found += _cut(document, at, max_bytes)
            at += len(document) + len(separator)
        cut = _cut(held, at, max_bytes, unsure=max(len(separator) - 1, 0))
        at, held = cut.pop() if cut else (at, b"")  # of which the end is still to come
        yield found + cut
    yield _cut(held, at, max_bytes)


def _cut(document: bytes, at: int, max_bytes: int, unsure: int = 0) -> list[Piece]:
    """Returns the pieces of a document that begins at `at`; none of an empty one. `unsure`: of its last bytes, may be no part."""
    found, begin = list[Piece](), 0
    while len(document) - begin - unsure > max_bytes:
        end = _piece_end(document, begin, begin + max_bytes)
        found.append((at + begin, document[begin:end]))
        begin = end
    return [*found, (at + begin, document[begin:])] if begin < len(document) else found


def _piece_end(document: bytes, begin: int, limit: int) -> int:
    """Returns where a piece ends, at most `limit`: behind the last line that ends before, else between two characters."""
    line = document.rfind(b"\n", begin, limit) + 1
    if line > begin:
        return line
    return next((end for end in range(limit, limit - 4, -1) if document[end] & 0xC0 != 0x80), limit)
