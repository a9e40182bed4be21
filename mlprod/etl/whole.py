"""What several processes may write at once: a file is there when it is whole, and of two results of a task the first counts.

Promise: a process that was thought dead, and works on beside the one that took its place, spoils nothing. It writes under names
of its own, what it returns late is not taken, and where a folder was removed it finds nothing to write into.
Price: what a process that was killed has written stays on the disk until the build ends or begins again.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from mlprod.manifest import write_synced

HALF = ".half"  # suffix of what is being written
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system without hard links


def half_of(path: Path) -> Path:
    """Returns a name beside `path` that nobody else writes."""
    return path.with_name(f".{path.name}.{uuid4().hex}{HALF}")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a name to write to; what was written takes the place of `path` when the block ends well, and is gone otherwise."""
    half = half_of(path)
    try:
        yield half
        os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def keep_first(path: Path, text: str) -> str:
    """Writes a text file unless it is there, all of it or nothing; returns what is there then: of several that write, one's.

    Raises:
        OSError: the folder is gone, or the disk is full.
    """
    half = half_of(path)
    try:
        write_synced(half, text)
        try:
            os.link(half, path)
        except FileExistsError:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            os.replace(half, path)  # the last one counts: as good where one process writes
        return text
    finally:
        with suppress(OSError):
            half.unlink()


def removed(folder: Path) -> None:
    """Removes a folder with all that is in it, as far as this user may. Whoever writes there meanwhile finds no folder."""
    with suppress(OSError):
        os.rename(folder, folder.with_name(f".{folder.name}.{uuid4().hex}.tmp"))
    for doomed in _doomed(folder):
        shutil.rmtree(doomed, ignore_errors=True)


def is_left(folder: Path) -> bool:
    """Whether something of a folder is there, if only what a kill left of its removal."""
    return folder.exists() or bool(_doomed(folder))


def _doomed(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f".{folder.name}.*.tmp"))


def remove_halves(folder: Path) -> None:
    """Removes what was being written below a folder when its process ended."""
    for half in folder.rglob(f"*{HALF}*"):
        half.unlink(missing_ok=True)
