"""A sign of life that a process leaves for its supervisor in a small file: what it does, its last step, and until when.

Promise: it outlives the process, however that ended. Nobody waits for anybody.
Price: one write of half a kilobyte every `BEAT_S` seconds.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "MLPROD_PULSE"  # the file's path, in the environment of what a supervisor starts
BEAT_S = 0.5
JOIN = "join"  # the activity of waiting for the other processes to come
SIZE = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What a process does."""

    step: int  # last one done, -1 before the first
    position: int  # example that comes next
    activity: str
    deadline: float  # of the activity, on the machine's steady clock; infinite where there is none
    at: float  # when this was written, on the same clock


class Pulse:
    """Writes beats; where no supervisor asked for any, nowhere."""

    def __init__(self, path: str) -> None:
        """`path`: an existing file; "": nowhere."""
        self._file = os.open(path, os.O_WRONLY) if path else -1

    def beat(self, step: int, position: int, activity: str, deadline: float) -> None:
        """Says what is being done."""
        self._write(Beat(step=step, position=position, activity=activity, deadline=deadline, at=time.monotonic()))

    def last(self, step: int, position: int, activity: str) -> None:
        """Says what comes now, and that no sign of life is to be missed meanwhile: it has a limit of its own."""
        self._write(Beat(step=step, position=position, activity=activity, deadline=math.inf, at=math.inf))
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, beat: Beat) -> None:
        if self._file >= 0:
            os.pwrite(self._file, json.dumps(asdict(beat)).encode().ljust(SIZE), 0)


def read_beat(path: Path) -> Beat | None:
    """Returns the last beat; None where there is none yet."""
    try:
        return Beat(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
