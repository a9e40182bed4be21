"""The work folder of a build: held by one process, with room on its disk, and what becomes of a build that fails in it.

Promise: a folder that cannot be written, or a disk that cannot hold the rows, is told before a row is read. What the machine
refuses later ends the build with one line; the tasks that are done stay, and the same command goes on with those that are left.
Price: the room is a guess on the safe side: a disk may still fill up.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from mlprod.errors import BuildError, Preempted, WorkdirError
from mlprod.etl.files import Unreadable
from mlprod.etl.pool import TaskKills
from mlprod.etl.whole import removed
from mlprod.locks import holder_of, open_own
from mlprod.store import FULL

FOLDERS = ("files", "features", "vocab", "reports", "quarantine", "index", "manifests")
LEAST_SHARE = 64  # a build takes about as much disk as its rows take memory: half of it to one and a half
LEAST_BYTES = 4096  # of the manifest alone
GOES_ON = "then the same command goes on with the tasks that are left"


def work_folder(dataset: Path, key: str) -> Path:
    """Returns where a build with this key keeps what it has done."""
    return dataset / "work" / key


@contextmanager
def held(dataset: Path) -> Iterator[None]:
    """Holds the dataset against a second build; the lock dies with the process.

    Raises:
        WorkdirError: the folder cannot be written, or another build holds it.
    """
    try:
        (dataset / "work").mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open_own(dataset / "work" / "lock", "a+")
    except OSError as error:
        raise _unwritable(dataset, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise WorkdirError(
                f"{dataset} is being built by {lock.read().strip() or 'another process'}; wait for it to end"
            ) from error
        try:
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()}".encode())
        except OSError as error:
            raise _unwritable(dataset, error) from error
        yield


def holder(dataset: Path) -> str:
    """Returns which process is building in a dataset's folder, such as "process 12"; "" where none is.

    Writes nothing. A build that starts in the microsecond in which this asks takes it for another.
    """
    return holder_of(dataset / "work" / "lock")


def _unwritable(folder: Path, error: OSError) -> WorkdirError:
    return WorkdirError(f"config.dataset={str(folder)!r} cannot be written: {error.strerror}; give another folder")


def check_folders(dataset: Path) -> None:
    """Raises WorkdirError where a folder of the dataset is there and this user may not write it."""
    for folder in (dataset, *(dataset / name for name in FOLDERS)):
        if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise _unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def sweep(dataset: Path, work: Path) -> None:
    """Removes what other builds left that were killed, and whose source or config then changed; and files that were half made."""
    for other in (dataset / "work").iterdir():
        if other.is_dir() and other.name != work.name:
            removed(other)
    for name in FOLDERS:
        for half in (dataset / name).glob(".*.tmp"):
            half.unlink()


def check_room(dataset: Path, work: Path, expected_bytes: int) -> None:
    """Raises WorkdirError when the disk cannot hold a build whose rows take about `expected_bytes` of memory.

    Needed is a 64th of that, less what an attempt before has in `work`: rows without a label take no disk (one in thirty may
    have one), and how many rows a text file has is guessed from its first lines.
    """
    there = sum(map(_size, work.rglob("*")))
    needed = max(expected_bytes // LEAST_SHARE - there, LEAST_BYTES)
    free = shutil.disk_usage(dataset).free
    if free < needed:
        raise WorkdirError(
            f"config.dataset={str(dataset)!r}: its disk has {free:,} bytes free, a build of these rows needs {needed:,} at "
            f"the very least; make space, or give a folder on another disk"
        )


def _size(path: Path) -> int:
    """Returns the bytes of a file; 0 of a folder, and of what is gone."""
    with suppress(OSError):
        return path.stat().st_size if path.is_file() else 0
    return 0


@contextmanager
def told_of_failures(dataset: Path, work: Path) -> Iterator[None]:
    """Turns what the machine refuses a build under way into a BuildError, and Ctrl-C into Preempted. Work stays.

    Work of which something is gone is removed: the next attempt begins anew.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Preempted(f"the build of {dataset} was stopped; the same command goes on with the tasks that are left") from stop
    except Unreadable as error:
        raise BuildError(f"{error}; {GOES_ON}") from error
    except BrokenExecutor as error:
        who = str(error) if isinstance(error, TaskKills) else "one of its processes was killed"
        raise BuildError(
            f"building {dataset} failed: {who} (out of memory?); lower config.etl.workers or .memory_bytes, {GOES_ON}"
        ) from error
    except OSError as error:
        if not error.errno:  # said by a library of what it read: a bug
            raise
        cause = f"{error.filename or dataset}: {os.strerror(error.errno)}"  # pyarrow's words repeat themselves
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            removed(work)
            raise BuildError(f"{cause}; was a folder of {dataset} removed? The same command begins anew") from error
        way = "make space" if error.errno in FULL else "let this user read and write there, or mend the disk"
        raise BuildError(f"building {dataset} failed: {cause}; {way}, {GOES_ON}") from error
