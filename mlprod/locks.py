"""Who holds a lock file, asked without taking it.

Promise: nothing is written. A lock dies with its process, however it died: what a file says of a holder that is gone counts
for nothing.
Price: whoever tries to take the lock in the microsecond in which this asks is refused.
"""

import fcntl
from pathlib import Path


def holder_of(lock: Path) -> str:
    """Returns what a held lock file says of its holder, such as "process 12"; "" where nobody holds it, or there is none.

    Raises:
        OSError: it is there and this user may not read it.
    """
    try:
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except (FileNotFoundError, NotADirectoryError):
        pass
    return ""
