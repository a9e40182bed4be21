"""What a process is asked by signals: to stop (SIGTERM, Ctrl-C), or to trace its next steps (SIGUSR1).

Promise: a signal is known at once to a thread that reads `arrived`, also while the main thread is inside a library that does not
return for minutes: Python runs a handler in the main thread alone, and only between two of its instructions.

SIGTERM has the grace of a scheduler, in which a save may end. Ctrl-C has a person, who is not to wait for more than 5 s.

JAX has a handler of its own for SIGTERM in a run of several processes, from which they learn a common step 10 to 20 steps later.
These take its place: the processes agree by `parallel/agree.py`, which knows of Ctrl-C and of saves too, one step later.
"""

import math
import os
import signal
import socket
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from mlprod.processes.pulse import VARIABLE

STOPS = (signal.SIGTERM, signal.SIGINT)
CTRL_C_S = 4.2  # from Ctrl-C to the end of the process; `interrupt.py` counts too, a little longer
LEAVE_PART = 0.7  # of it, after which what is not training and no save is left


class Signals:
    """What this process was asked. A context manager around the run, in the main thread."""

    def __init__(self) -> None:
        """Nothing is installed before the block."""
        self.stop = False
        self.trace = False
        self._asked_at, self._interrupted_at = math.inf, math.inf
        self.arrived, self._written = socket.socketpair()  # a byte a signal, its number, at the moment it comes
        for end in (self.arrived, self._written):
            end.setblocking(False)
        self._before: dict[int, Any] = {}
        self._woken_before = -1

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.trace = True
            return
        if self.stop and VARIABLE not in os.environ:  # under a supervisor a second one is for that to act on
            os._exit(128 + number)
        self.stop, self._asked_at = True, time.monotonic()
        if number == signal.SIGINT:
            self._interrupted_at = self._asked_at

    def came(self) -> list[int]:
        """Reads the signals that have arrived; returns those that ask to stop. For one thread.

        Who heard signals before hears of Ctrl-C as well: its 5 s go on when this block has ended.
        """
        try:
            numbers = [number for number in self.arrived.recv(4096) if number in STOPS]
        except BlockingIOError:
            return []
        if signal.SIGINT in numbers and self._woken_before >= 0:
            with suppress(OSError):
                os.write(self._woken_before, bytes(n for n in numbers if n == signal.SIGINT))
        return numbers

    def leave_by(self, began: float, hurry_s: float) -> float:
        """Returns until when what began at a moment may be waited for, on the steady clock; inf: nobody asked to stop.

        Args:
            began: the moment.
            hurry_s: from SIGTERM, or from `began` where that was later.
        """
        if not self.stop:
            return math.inf
        return min(self._interrupted_at + LEAVE_PART * CTRL_C_S, max(began, self._asked_at) + hurry_s)

    def wake(self) -> None:
        """Wakes who waits for a signal."""
        self._written.send(b"\0")

    def __enter__(self) -> "Signals":
        """Installs the handlers."""
        for number in (*STOPS, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)
        self._woken_before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the former handlers back."""
        signal.set_wakeup_fd(self._woken_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for end in (self.arrived, self._written):
            end.close()
