"""Files of ours in a folder that others may have made: opened to be written, and asked who holds one without taking it.

Promise: what is written stays in the folder. To ask writes nothing. A lock dies with its process, however it died: what a file
says of a holder that is gone counts for nothing.
Price: whoever tries to take the lock in the microsecond in which this asks is refused.
"""

import errno
import fcntl
import io
import os
from pathlib import Path
from typing import Any

from mlprod.errors import WorkdirError


def open_own(path: Path, mode: str) -> Any:
    """Opens a file of ours, made where there is none, as `open` does.

    Raises:
        OSError: it cannot be opened.
        WorkdirError: it is a link, by which any file of the user's might be cut and written to, or no file.
    """
    try:
        return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR) or isinstance(error, io.UnsupportedOperation):
            raise WorkdirError(f"{path} is a link, or no file: what is written would go elsewhere; remove it") from error
        raise


def holder_of(lock: Path) -> str:
    """Returns what a held lock file says of its holder, such as "process 12"; "" where nobody holds it, or there is none.

    Raises:
        OSError: it is there and this user may not read it.
    """
    try:
        with open(lock, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:  # a pipe is not waited for
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except (FileNotFoundError, NotADirectoryError):
        pass
    return ""
