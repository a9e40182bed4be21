"""A file of JSON lines that is kept in pieces, so that it never grows beyond a limit: `log.jsonl` of a run.

`log.jsonl` is the piece under way. When it is full it is renamed to `log-000001.jsonl`, the next one to `log-000002.jsonl`, and a
new one begins; when all would take more than the limit, the oldest goes. Read in the order of their numbers, the one under way
last, the pieces are one file.

Promise: no line is cut in two, and a reader in another thread or process sees each line once and in order, whatever is renamed
meanwhile; it is told of pieces that went before it came to them. A kill between any two calls leaves a log that is whole: without
a piece under way, or with one piece too many, which the next start sets right.
Price: a rename a piece. To free a piece's space takes a file system milliseconds, and is done by a thread.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlprod import documents
from mlprod.locks import open_own

NUM_PIECES = 16  # that the limit is divided into
LONGEST_LINE = 16 << 20  # bytes of a line, which is in memory as a whole: ours have kilobytes


class Place(NamedTuple):
    """Where a line is."""

    piece: int
    offset: int  # bytes


def open_to_add(path: Path) -> BinaryIO:
    """Opens a file of JSON lines to add to it; a last line that a kill cut short is removed first.

    Raises:
        WorkdirError: it is a link, or no file.
    """
    file: BinaryIO = open_own(path, "ab+")
    size = file.seek(0, os.SEEK_END)
    back = min(size, 1 << 20)
    file.seek(size - back)
    tail = file.read(back)
    whole = tail.rfind(b"\n") + 1
    if whole < len(tail):
        file.truncate(size - back + whole)
    return file


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file as JSON objects; a torn last line is left out, and a file that is not there has none.

    Raises:
        ValueError: it is no regular file, or a line is too long, or no JSON within our limits.
    """
    with suppress(FileNotFoundError, NotADirectoryError), documents.open_regular(path) as file:
        yield from (documents.parse(line, finite=False) for line in whole_lines(file))


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file up to one without an end, which may still be written; raises ValueError at one too long."""
    while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
        yield line
    if len(line) == LONGEST_LINE:
        raise ValueError(f"a line of more than {LONGEST_LINE:,} bytes")


def full_pieces(path: Path) -> list[int]:
    """Returns the numbers of the pieces that are full and still there, ascending; `path`: of the one under way."""
    name = re.compile(rf"{re.escape(path.stem)}-(\d{{6,}}){re.escape(path.suffix)}")
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(int(found[1]) for entry in os.listdir(path.parent) if (found := name.fullmatch(entry)))
    return []


def piece_path(path: Path, number: int) -> Path:
    """Returns where the piece of a number lies once it is full."""
    return path.with_name(f"{path.stem}-{number:06d}{path.suffix}")


def first_piece(path: Path) -> int:
    """Returns the number of the oldest piece that is there; more than 1: older ones are gone."""
    return min(full_pieces(path), default=1)


def end_of(path: Path) -> Place:
    """Returns where the next line will be written; nobody may be writing."""
    return Place(max(full_pieces(path), default=0) + 1, path.stat().st_size if path.exists() else 0)


class Writer:
    """Adds lines to the piece under way. One process and thread at a time."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Opens it; a last line that a kill cut short is removed first. `limit_bytes`: that all pieces may take together."""
        self.path, self._limit, self._piece_bytes = path, limit_bytes, limit_bytes // NUM_PIECES
        self._number = max(full_pieces(path), default=0) + 1
        self._file = open_to_add(path)
        self._size = self._file.seek(0, os.SEEK_END)

    def write(self, line: bytes) -> None:
        """Writes a whole line and hands it to the operating system. Raises OSError where there is no space, or no file."""
        if self._size and self._size + len(line) > self._piece_bytes:
            self._begin_piece()
        self._file.write(line)
        self._file.flush()
        self._size += len(line)

    def close(self) -> None:
        """Closes the file; what could not be written was told when it was."""
        with suppress(OSError):
            self._file.close()

    def _begin_piece(self) -> None:
        self._file.close()
        with suppress(FileNotFoundError):  # someone removed it
            self.path.rename(piece_path(self.path, self._number))
        self._file, self._size, self._number = self.path.open("ab"), 0, self._number + 1
        going = [piece_path(self.path, number) for number in self._superfluous()]
        if going:
            threading.Thread(target=_remove, args=(going,), name="mlprod-log-pieces", daemon=True).start()

    def _superfluous(self) -> list[int]:
        """Returns the oldest pieces that have no room beside a whole one under way; the newest full one always stays."""
        full, left = full_pieces(self.path), self._limit - self._piece_bytes
        for i, number in enumerate(reversed(full)):
            with suppress(FileNotFoundError):
                left -= piece_path(self.path, number).stat().st_size
            if left < 0 and i:
                return full[: len(full) - i]
        return []


def _remove(paths: list[Path]) -> None:
    for path in paths:  # the oldest first: a kill leaves no gap
        with suppress(OSError):  # the next full piece is another occasion
            path.unlink(missing_ok=True)


class Reader:
    """Reads the pieces as one file, and goes on where it was when there is more. A context manager."""

    def __init__(self, path: Path, start: Place | None = None, gone: Callable[[int], None] = lambda pieces: None) -> None:
        """Opens nothing yet.

        Args:
            path: of the piece under way.
            start: where to begin; None: at the oldest line that is there.
            gone: called with how many pieces were removed before this reader came to them.
        """
        self._path, self._gone = path, gone
        self._number, self._offset = start or Place(first_piece(path), 0)
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Reader":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the piece it was reading."""
        self._close()

    def lines(self) -> Iterator[tuple[Place, bytes]]:
        """Yields the whole lines that there are now; one that is being written is left for the next call."""
        while True:
            full = max(full_pieces(self._path), default=0) >= self._number  # asked first: what it holds by then is all
            if self._file is None and (file := _opened(self._path, self._number)):
                file.seek(self._offset)
                self._file = file
            if self._file is not None:
                yield from self._whole_lines(self._file)
            elif full:
                self._skip_what_is_gone()
                continue
            if not full:
                return
            self._close()
            self._number, self._offset = self._number + 1, 0

    def _whole_lines(self, file: BinaryIO) -> Iterator[tuple[Place, bytes]]:
        for line in whole_lines(file):
            place, self._offset = Place(self._number, self._offset), self._offset + len(line)
            yield place, line
        file.seek(self._offset)

    def _skip_what_is_gone(self) -> None:
        there = full_pieces(self._path)
        following = min((number for number in there if number > self._number), default=max(there, default=0) + 1)
        self._gone(following - self._number)
        self._number, self._offset = following, 0

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _opened(path: Path, number: int) -> BinaryIO | None:
    """Returns the piece of a number, full or under way, opened; None: it is gone, or not begun."""
    while True:
        with suppress(FileNotFoundError):
            return documents.open_regular(piece_path(path, number))
        file = None
        with suppress(FileNotFoundError):
            file = documents.open_regular(path)
        if max(full_pieces(path), default=0) < number:  # none was renamed since: this is the one
            return file
        if file is not None:
            file.close()
        if not piece_path(path, number).exists():
            return None
