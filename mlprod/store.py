"""Where files lie: a local folder, or one of an object store through pyarrow's filesystems (`s3://`, `gs://`, `fsspec+...://`).

Promise: a remote call that fails is tried again with growing pauses until `PATIENCE_S` have passed, then it is an error; what is
not there, or not allowed, is said at once. No password is ever shown or accepted: an address ends in logs and checkpoints.
Price: one listing a folder; one ranged request a row group, and one more for a file's size when it is opened. `OPEN_FILES`
files are kept open, shared by all threads.
"""

import errno
import os
import re
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from mlprod import documents
from mlprod.errors import DataError

OPEN_FILES = 128
PATIENCE_S = 32.0  # no attempt starts later: 8 of them when each fails at once
PAUSE_S = 0.25  # before the second attempt; twice as long before each further one
TIMEOUT_S = 5.0  # of an S3 connection that says nothing; in the middle of an answer it is noticed after about 12 s
COPIED_BYTES = 16 << 20  # at once, of a file that is copied
GCS_RETRY_S = 5  # Google's client tries for 15 minutes by default
CREDENTIALS = "put it into the environment or the provider's own credentials file"
S3_OPTIONS = ("region", "scheme", "endpoint_override")  # of an address, behind `?`
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # the same at the next attempt
FULL = (errno.ENOSPC, errno.EDQUOT)  # so is a full disk
DENIED = re.compile(r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED|HTTP status (301|40[013])")
PASSWORD = re.compile(r"(?<=://)([^/:@?]*):.*@")  # up to the last @: an unescaped password may hold / and @

T = TypeVar("T")


class _File(Protocol):
    """An open file, for several threads at once; it closes when nothing refers to it."""

    def read_into(self, start: int, out: memoryview) -> int:
        """See `Store.read_into`."""
        ...


class _LocalFile:
    """A file of this machine, read straight into the caller's memory: pyarrow would allocate its own."""

    def __init__(self, path: str) -> None:
        self._descriptor = -1  # for `__del__`, when there is no such file
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, start: int, out: memoryview) -> int:
        return os.preadv(self._descriptor, [out], start)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class _RemoteFile:
    """A file of a pyarrow filesystem."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._size = file.size()  # before other threads have it: of a Python file, it moves the position that reads use

    def read_into(self, start: int, out: memoryview) -> int:
        data = self._file.read_at(len(out), start) if start < self._size else b""
        out[: len(data)] = data
        return len(data)


class Store:
    """A folder of files, those that are read in parts immutable. Safe to use from several threads.

    Every method raises OSError when the store does not do what it is asked, DataError for a path that leads out of the folder:
    by itself, or by a link.
    """

    def __init__(self, location: str, filesystem: Any, root: str, patience_s: float) -> None:
        """Opens nothing yet.

        Args:
            location: for people.
            root: of the folder in `filesystem`.
            patience_s: how long a read that fails is tried again; 0: never.
        """
        self.location = location
        self._fs, self._root, self._patience_s = filesystem, root.rstrip("/"), patience_s
        self._local = isinstance(filesystem, pafs.LocalFileSystem)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _File] = OrderedDict()

    def read(self, path: str) -> bytes:
        """Returns a small file whole; raises FileNotFoundError where there is none, DataError where it is none."""
        where = self._where(path)

        def whole() -> bytes:
            if self._local:
                return documents.read(Path(where))
            with self._fs.open_input_file(where) as file:
                if file.size() > documents.LONGEST:
                    raise ValueError(f"it has {file.size():,} bytes, more than {documents.LONGEST:,}")
                return bytes(file.read())

        try:
            return self._again(whole)
        except ValueError as error:
            raise DataError(f"{self.location}/{path}: {error}; restore it from a copy") from error

    def read_into(self, path: str, start: int, out: memoryview) -> int:
        """Fills uint8[B] with a file's bytes from `start` on; returns how many there were, fewer than B at the file's end.

        Of a remote file that became shorter while it was open, bytes behind its end may be anything: compare a checksum.
        Raises OSError when they cannot be read.
        """

        def part() -> int:
            try:
                return self._file(path).read_into(start, out)
            except OSError:
                self._forget(path)  # opened again, it may turn out to be gone or another
                raise

        return self._again(part)

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns {file name: bytes} of the files right below a folder; empty where there is none."""
        selector = pafs.FileSelector(self._where(folder), allow_not_found=True)
        found = self._again(lambda: self._fs.get_file_info(selector))
        return {info.base_name: info.size for info in found if info.is_file}

    def tree(self) -> dict[str, int]:
        """Returns {path: bytes} of all files, at any depth; empty where there is no folder."""
        selector = pafs.FileSelector(self._root, allow_not_found=True, recursive=True)
        found = self._again(lambda: self._fs.get_file_info(selector))
        return {info.path.removeprefix(f"{self._root}/"): info.size for info in found if info.is_file}

    def stamp(self, path: str) -> tuple[int, int]:
        """Returns (bytes, time of change in ns) of a file; raises FileNotFoundError where there is none."""
        info = self._again(lambda: self._fs.get_file_info(self._where(path)))
        if not info.is_file:
            raise FileNotFoundError(path)
        return info.size, info.mtime_ns or 0

    def stream(self, path: str) -> Any:
        """Opens a file to be read once, as it lies: a pyarrow.NativeFile, whose reads are not tried again."""
        return self._again(lambda: self._fs.open_input_stream(self._where(path), compression=None))

    def open(self, path: str) -> Any:
        """Opens a file to be read in parts, here and there: a pyarrow.NativeFile, whose reads are not tried again."""
        return self._again(lambda: self._fs.open_input_file(self._where(path)))

    def fetch(self, path: str, to: Path) -> None:
        """Copies one of these files to a new local file."""

        def copy() -> None:
            with self._fs.open_input_file(self._where(path)) as source, open(to, "wb") as file:
                shutil.copyfileobj(source, file, COPIED_BYTES)

        self._again(copy)

    def put(self, path: str, source: Path) -> None:
        """Copies a local file to one of these, which another may read whole or not at all in an object store."""

        def copy() -> None:
            with open(source, "rb") as file, self._new(path) as target:
                shutil.copyfileobj(file, target, COPIED_BYTES)

        self._again(copy)

    def write(self, path: str, body: bytes) -> None:
        """Writes a small file, over another of its name; a reader sees the one or the other."""

        def whole() -> None:
            named = f"{path}.half" if self._local else path  # an object is there when it is whole
            with self._new(named) as file:
                file.write(body)
            if self._local:
                os.replace(f"{self._root}/{named}", f"{self._root}/{path}")

        self._again(whole)

    def remove(self, path: str) -> None:
        """Removes a folder with what is in it, or a file, where it is."""
        where = self._where(path)

        def away() -> None:
            kind = self._fs.get_file_info(where).type
            if kind == pafs.FileType.Directory:
                self._fs.delete_dir(where)
            elif kind == pafs.FileType.File:
                self._fs.delete_file(where)

        self._again(away)

    def _where(self, path: str) -> str:
        """Returns where one of these files lies in the filesystem; raises DataError for one that does not lie in this folder."""
        where = f"{self._root}/{path}"
        inside = not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
        if inside and self._local:
            root, real = os.path.realpath(self._root), os.path.realpath(where)
            inside = (real == root or real.startswith(f"{root.rstrip('/')}/")) and not os.path.islink(real)  # a link to itself
        if not inside:
            raise DataError(f"{self.location}: {path!r} leads out of the folder, by name or link; put the file itself there")
        return where

    def _new(self, path: str) -> Any:
        where = self._where(path)
        if self._local:
            Path(where).parent.mkdir(parents=True, exist_ok=True)
        return self._fs.open_output_stream(where)

    def _file(self, path: str) -> "_File":
        """Returns an open file; the one used longest ago is let go, and closes when no read of it is under way."""
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        where = self._where(path)
        file = _LocalFile(where) if self._local else _RemoteFile(self._fs.open_input_file(where))
        with self._lock:
            opened = self._open.setdefault(path, file)
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
            return opened

    def _forget(self, path: str) -> None:
        with self._lock:
            self._open.pop(path, None)

    def _again(self, call: Callable[[], T]) -> T:
        began, pause = time.monotonic(), PAUSE_S
        while True:
            try:
                return call()
            except FINAL:
                raise
            except OSError as error:
                if time.monotonic() - began + pause > self._patience_s or error.errno in FULL or DENIED.search(str(error)):
                    raise
            time.sleep(pause)
            pause *= 2


def is_remote(location: str) -> bool:
    """Whether a location is an address, not a folder of this machine."""
    return "://" in location


def open_store(location: str, option: str = "config.dataset") -> Store:
    """Opens a folder. Credentials come from the environment or the provider's own files, as pyarrow finds them.

    Args:
        option: what gives the location, for messages.

    Raises:
        DataError: an address that no filesystem knows, or one with a password.
    """
    if not is_remote(location):
        return Store(location, pafs.LocalFileSystem(), str(Path(location).absolute()), patience_s=0.0)
    shown = PASSWORD.sub(r"\1:***@", location).partition("?")[0].rstrip("/")
    if PASSWORD.search(location):
        raise DataError(f"{option}={shown!r} holds a password, which would end in logs and checkpoints; {CREDENTIALS}")
    try:
        filesystem, root = _filesystem(location)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"{option}={shown!r}: {told}; give a folder, s3://, gs:// or fsspec+PROTOCOL://") from error
    return Store(shown, filesystem, root, PATIENCE_S)


def _filesystem(address: str) -> tuple[Any, str]:
    """Returns the filesystem and the folder in it of an address, with clients that give up in seconds: we try again."""
    options = dict(parse_qsl(urlsplit(address).query))
    if address.startswith("gs://") and "retry_limit_seconds" not in options:
        address += f"{'&' if options else '?'}retry_limit_seconds={GCS_RETRY_S}"
    filesystem, root = pafs.FileSystem.from_uri(address)
    if not root.strip("/"):
        raise ValueError("it names no folder")
    if filesystem.type_name != "s3":
        return filesystem, root
    # Made from an address, it would send a request 31 times: 6 s when each fails at once, 100 s when none is answered.
    unknown = sorted(options.keys() - set(S3_OPTIONS))
    if unknown:
        raise ValueError(f"option {unknown[0]!r} is not used; known: {', '.join(S3_OPTIONS)}")
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    region = {"region": filesystem.region}  # looked up from the bucket's name where none is given
    given = {"connect_timeout": TIMEOUT_S, "request_timeout": TIMEOUT_S, "retry_strategy": once}
    return pafs.S3FileSystem(**options | region, **given, allow_delayed_open=True), root  # a small file is one request
