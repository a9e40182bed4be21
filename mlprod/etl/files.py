"""The files that a source names, wherever they lie and however they are packed, as plain files of this machine.

Promise: what is compressed (by its suffix), in another encoding than UTF-8, or remote (s3://, gs://) is copied once into plain
files, which are then read like any other; lines keep their numbers, and messages name the original.
Price: the disk space of the copies until the dataset is built.
"""

import codecs
import glob
import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

from mlprod.errors import DataError
from mlprod.etl.whole import half_of, whole
from mlprod.store import FULL, Store, is_remote, open_store

OPTION = "config.etl.source.path"
COPIED_BYTES = 1 << 20  # at once
TIMES, ALWAYS_BYTES = 200, 64 << 20  # tables shrink to a fifth or a tenth; of one value a column, to a hundredth
LONGEST_LINE = 64 << 20  # of a line or record, which is in memory as a whole
SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}


Told = Callable[[int], Any]  # is given the bytes of a piece that was read


def untold(num_bytes: int) -> None:
    """Tells nobody."""


class Unreadable(DataError):
    """A source's file is not there, or the machine refuses to read it: input that is wrong at first, a failure later on."""


def files_of(path: str) -> list[str]:
    """Returns the files that a path, an address or a pattern of one (`rows-*.csv`, `**` for any depth) names, sorted.

    A folder (remote: an address that ends with a slash) names all files below it, but for those that begin with `_` or `.`.

    Raises:
        DataError: a pattern or a folder without files, or a folder or store that may not be asked.
    """
    if is_remote(path):
        return _remote_files(path)
    with told_of_file(path):
        if Path(path).is_dir():
            found = sorted(
                str(file) for file in Path(path).rglob("*") if file.is_file() and _is_data(str(file.relative_to(path)))
            )
        elif Path(path).exists() or not re.search(r"[*?\[]", path):
            return [path]
        else:
            found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
    if not found:
        told = "there is no file below" if Path(path).is_dir() else "no file fits"
        raise DataError(f"{told} {path!r}; mend the path in the config")
    return found


def _is_data(name: str) -> bool:
    """Returns whether a file below a folder holds rows: neither it nor a folder of it is one that Spark and others hide."""
    return not any(part.startswith(("_", ".")) for part in name.split("/"))


def partitions(name: str) -> dict[str, str | None]:
    """Returns {column: value} that the folders of a file name as `column=value`, as Hive and Spark write them."""
    pairs = (folder.split("=", 1) for folder in shown(name).split("/")[:-1] if "=" in folder)
    return {unquote(column): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value) for column, value in pairs}


def _remote_files(address: str) -> list[str]:
    head, _, options = address.partition("?")
    whole = head.endswith("/")
    if not whole and not re.search(r"[*\[]", head):
        return [address]
    folder = re.split(r"[*\[]", head)[0].rpartition("/")[0]
    with told_of_file(head):
        tree = open_store(_with(folder, options), OPTION).tree()
        found = sorted(name for name in tree if (_is_data(name) if whole else _fits(f"{folder}/{name}", head)))
    if not found:
        raise DataError(f"no file fits {head!r}; mend the path in the config")
    return [_with(f"{folder}/{quote(name, safe='/=+,:@ ')}", options) for name in found]


def _with(address: str, options: str) -> str:
    return f"{address}?{options}" if options else address


def _fits(name: str, pattern: str) -> bool:
    """Returns whether a name fits a pattern, in which `*` ends at a `/` and `**/` stands for any depth."""
    text = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*").replace(r"\[", "[").replace(r"\]", "]")
    return re.fullmatch(text, name) is not None


def _store_of(address: str) -> tuple[Store, str]:
    """Returns the folder of a remote file, and its name in there."""
    head, _, options = address.partition("?")
    folder, _, name = head.rpartition("/")
    return open_store(_with(folder, options), OPTION), unquote(name)


def shown(name: str) -> str:
    """Returns a file's name for people: an address without its options, and its key as it is."""
    return unquote(name.partition("?")[0]) if is_remote(name) else name


@contextmanager
def told_of_file(name: str) -> Iterator[None]:
    """Turns what a file refuses into a DataError: an `Unreadable` one but where it is damaged. A full disk is not the file's."""
    name = shown(name)
    try:
        yield
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Unreadable(f"there is no file {name!r}; create it, or mend the path in the config") from error
    except OSError as error:
        if error.errno in FULL:
            raise
        kind, told = (Unreadable, os.strerror(error.errno)) if error.errno else (DataError, " ".join(str(error).split())[:200])
        way = "; is it whole, and what its name says?" if kind is DataError else ""
        raise kind(f"{name} cannot be read: {told}{way}") from error


def stamps(path: str) -> tuple[tuple[int, int], ...]:
    """Returns (size, time of change in ns) of each file that a path names and that is there."""
    if is_remote(path):
        return tuple(_remote_stamp(name) for name in files_of(path))
    found = [os.stat(name) for name in files_of(path) if os.path.exists(name)]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


def _remote_stamp(address: str) -> tuple[int, int]:
    with told_of_file(address):
        store, name = _store_of(address)
        return store.stamp(name)


def file_identity(name: str, told: Told = untold) -> dict[str, Any]:
    """Returns a file's size and SHA-256; of a remote one, which would be read twice, its size and time of change."""
    placed = {"partitions": found} if (found := partitions(name)) else {}
    if is_remote(name):
        size, changed = _remote_stamp(name)
        return {"bytes": size, "changed": changed, **placed}
    with told_of_file(name):
        if not Path(name).is_file():
            raise FileNotFoundError
        return {"bytes": os.path.getsize(name), "sha256": _sha256(name, told), **placed}


def _sha256(name: str, told: Told) -> str:
    digest = hashlib.sha256()
    with open(name, "rb", buffering=0) as file:
        while piece := file.read(COPIED_BYTES):
            digest.update(piece)
            told(len(piece))
    return digest.hexdigest()


# ---- plain copies ------------------------------------------------------------------------------------------------------


def is_utf8(encoding: str) -> bool:
    """Whether text in an encoding is UTF-8 as it is."""
    return codecs.lookup(encoding).name == "utf-8"


def is_plain(name: str, encoding: str) -> bool:
    """Whether a file is read as it lies."""
    return not is_remote(name) and Path(name).suffix.lower() not in SUFFIXES and is_utf8(encoding)


def bounded_lines(file: Any, name: str) -> Iterator[Any]:
    """Yields the lines of an open file, of bytes or text; raises DataError at one that is longer than `LONGEST_LINE`."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE and line[-1:] not in ("\n", b"\n"):
            raise endless(name)
        yield line


def endless(name: str) -> DataError:
    """Returns that a file has a line that is too long to be one."""
    return DataError(f"{shown(name)} has a line of more than {LONGEST_LINE:,} bytes; is it a table, and are its quotes closed?")


class _Unpacked(io.RawIOBase):
    """What a packed file becomes, up to `TIMES` its size: a few kilobytes may be made to fill a disk, or a line the memory."""

    def __init__(self, stream: Any, name: str, packed_bytes: int) -> None:
        self._stream, self._name = stream, name
        self._left, self._most = (max(TIMES * packed_bytes, ALWAYS_BYTES),) * 2

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        self._left -= len(piece)
        if self._left < 0:
            told = f"{self._name} becomes more than {self._most:,} bytes, {TIMES} times its size"
            raise DataError(f"{told}; if it is what it should be, unpack it yourself and name the plain file")
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def open_plain(name: str, encoding: str) -> pa.NativeFile:
    """Opens a file for reading from its beginning, unpacked, as UTF-8 where `encoding` is another.

    Raises:
        OSError: there, and when what is read is cut or damaged.
        UnicodeError: when it is read and is not in that encoding.
    """
    plain: pa.NativeFile
    if is_remote(name):
        store, inside = _store_of(name)
        plain = store.stream(inside)
    else:
        plain = pa.OSFile(name)
    packed = SUFFIXES.get(Path(shown(name)).suffix.lower())
    if packed:
        size = stamps(name)[0][0]
        plain = pa.PythonFile(_Unpacked(pa.CompressedInputStream(plain, packed), shown(name), size), "r")
    return plain if is_utf8(encoding) else pa.transcoding_input_stream(plain, encoding, "utf-8")


def copy_plain(name: str, encoding: str, to: Path) -> dict[str, Any]:
    """Makes a plain copy of a file, or a link to one that is plain; returns its size.

    Raises:
        DataError: it cannot be read, is damaged, or is not in its encoding.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    if is_plain(name, encoding):
        with whole(to) as half:
            half.symlink_to(Path(name).absolute())
        return {"bytes": os.path.getsize(name) if Path(name).exists() else 0}
    with _here(name, to) as local, whole(to) as half:
        with open(half, "wb") as target, told_of_file(name), _told_of_text(name, encoding), open_plain(local, encoding) as source:
            while piece := source.read(COPIED_BYTES):
                target.write(piece)
    return {"bytes": to.stat().st_size}


@contextmanager
def _here(name: str, beside: Path) -> Iterator[str]:
    """Yields a file as this machine has it: a remote one is fetched whole, with patience, before it is unpacked."""
    if not is_remote(name):
        yield name
        return
    half = half_of(beside)
    fetched = half.with_name(half.name + Path(shown(name)).suffix)  # by which it is unpacked
    try:
        with told_of_file(name):
            store, inside = _store_of(name)
            store.fetch(inside, fetched)
        yield str(fetched)
    finally:
        fetched.unlink(missing_ok=True)


@contextmanager
def _told_of_text(name: str, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise DataError(f"{shown(name)} is not {encoding} text ({error}); mend config.etl.source.encoding") from error


@dataclass(frozen=True, slots=True)
class Copies:
    """Plain copies of files. `path`: a pattern that they fit, in the order of `files_of`; `names`: {copy: original}."""

    path: str
    names: Mapping[str, str]

    def original(self, text: str) -> str:
        """Returns a message with the names of the originals instead of their copies'."""
        for copy, name in self.names.items():
            text = text.replace(copy, shown(name))
        return text

    @contextmanager
    def told(self) -> Iterator[None]:
        """Lets errors name the originals."""
        try:
            yield
        except DataError as error:
            raise type(error)(*map(self.original, error.args)) from error


def places(path: str, encoding: str, folder: Path, without: Collection[str] = ()) -> Copies:
    """Returns where the plain copies of a path's files belong below `folder`; no copies where all are plain as they lie.

    Args:
        without: files that are not wanted; copies, or links, are then made of all others.
    """
    names = [name for name in files_of(path) if name not in without]
    if not without and all(is_plain(name, encoding) for name in names):
        return Copies(path, {})
    copies = {}
    for i, name in enumerate(names):
        kept = [part for part in shown(name).split("/")[:-1] if "=" in part]  # columns of its rows
        copies[str(folder.joinpath(f"{i:06d}", *kept, f"{i:06d}.plain"))] = name
    return Copies(f"{glob.escape(str(folder))}/**/*.plain", copies)


def check_seen(copies: Copies) -> None:
    """Raises Unreadable where a pattern does not find all the copies that were made: a shared folder may list them late."""
    missing = copies.names.keys() - set(files_of(copies.path))
    if missing:
        told = f"{len(missing)} of the {len(copies.names)} copies that were made are not seen here, such as {min(missing)}"
        raise Unreadable(f"{told}; is the dataset's folder a shared one that shows files late?")


def absolute(name: str) -> str:
    """Returns the name of a file or pattern, or an address, as any working folder has it."""
    if is_remote(name) or os.path.isabs(name):
        return name
    here = os.getcwd()
    return os.path.join(here if os.path.exists(name) else glob.escape(here), name)


def by_absolute_names(plain: Copies) -> Copies:
    """Returns plain files by absolute names; messages name them as they were given."""
    path = absolute(plain.path)
    if path == plain.path:
        return plain
    return Copies(path, dict(zip(files_of(path), files_of(plain.path), strict=True)))
