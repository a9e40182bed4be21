"""What a process is asked by signals: to stop (SIGTERM, Ctrl-C), or to trace its next steps (SIGUSR1).

Promise: a signal is known at once to a thread that reads `arrived`, also while the main thread is inside a library that does not
return for minutes: Python runs a handler in the main thread alone, and only between two of its instructions.

JAX has a handler of its own for SIGTERM in a run of several processes, from which they learn a common step 10 to 20 steps later.
These take its place: the processes agree by `parallel/agree.py`, which knows of Ctrl-C and of saves too, one step later.
"""

import os
import signal
import socket
from types import FrameType
from typing import Any

from mlprod.processes.pulse import VARIABLE

STOPS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """What this process was asked. A context manager around the run, in the main thread."""

    def __init__(self) -> None:
        """Nothing is installed before the block."""
        self.stop = False
        self.trace = False
        self.arrived, self._written = socket.socketpair()  # a byte a signal, its number, at the moment it comes
        for end in (self.arrived, self._written):
            end.setblocking(False)
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.trace = True
            return
        if self.stop and VARIABLE not in os.environ:  # under a supervisor a second one is for that to act on
            os._exit(128 + number)
        self.stop = True

    def asked_to_stop(self) -> bool:
        """Reads the signals that have arrived; returns whether one of them asks to stop. For one thread."""
        try:
            return any(number in STOPS for number in self.arrived.recv(4096))
        except BlockingIOError:
            return False

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
