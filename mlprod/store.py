"""Where a dataset lies: a local folder, or an object store through pyarrow's filesystems (`s3://`, `gs://`, `fsspec+...://`).

Promise: a remote read that fails is tried again, a bounded number of times with growing pauses; what is not there is said at
once.
Price: one listing a folder and one ranged request a row group; at most `OPEN_FILES` open files, shared by all threads.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from mlprod.errors import DataError

OPEN_FILES = 128
ATTEMPTS = 5  # of a remote read; the filesystem's own client tries again below that
PAUSE_S = 0.2  # before the second attempt; twice as long before each further one: 3 s in all
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # the same at the next attempt

T = TypeVar("T")


class Store:
    """A folder of immutable files. Safe to use from several threads."""

    def __init__(self, location: str, filesystem: Any, root: str, attempts: int) -> None:
        """`root`: of the folder in `filesystem`."""
        self.location = location
        self._fs, self._root, self._attempts = filesystem, root.rstrip("/"), attempts
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Any] = OrderedDict()

    def read(self, path: str) -> bytes:
        """Returns a whole file; raises FileNotFoundError where there is none, OSError when it cannot be read."""

        def whole() -> bytes:
            with self._fs.open_input_file(f"{self._root}/{path}") as file:
                return bytes(file.read())

        return self._again(whole)

    def read_range(self, path: str, start: int, size: int) -> bytes:
        """Returns `size` bytes from `start` on, fewer at the file's end; raises OSError when they cannot be read."""
        return self._again(lambda: bytes(self._file(path).read_at(size, start)))

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns {file name: bytes} of the files right below a folder; empty where there is none."""
        selector = pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        found = self._again(lambda: self._fs.get_file_info(selector))
        return {info.base_name: info.size for info in found if info.is_file}

    def _file(self, path: str) -> Any:
        """Returns an open file; the one used longest ago is let go, and closes when no read of it is under way."""
        with self._lock:
            if path in self._open:
                self._open.move_to_end(path)
                return self._open[path]
        file = self._fs.open_input_file(f"{self._root}/{path}")
        with self._lock:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)
            return self._open.setdefault(path, file)

    def _again(self, call: Callable[[], T]) -> T:
        for attempt in range(1, self._attempts):
            try:
                return call()
            except FINAL:
                raise
            except OSError:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
        return call()


def is_remote(location: str) -> bool:
    """Whether a dataset's location is an address, not a folder of this machine."""
    return "://" in location


def open_store(location: str) -> Store:
    """Opens the folder of a dataset. Credentials come from the environment or the provider's own files, as pyarrow finds them.

    Raises:
        DataError: an address that no filesystem knows.
    """
    if not is_remote(location):
        return Store(location, pafs.LocalFileSystem(), str(Path(location).absolute()), attempts=1)
    try:
        filesystem, root = pafs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        told = " ".join(str(error).split())
        raise DataError(f"config.dataset={location!r}: {told}; give a folder, s3://, gs:// or fsspec+PROTOCOL://") from error
    return Store(location, filesystem, root, ATTEMPTS)
