"""Ctrl-C ends a process within `LIMIT_S`, whatever it does, and says so in one line.

The main thread gets a KeyboardInterrupt and may put things in order. But it may be inside a library that does not come back for
minutes, a library may take the exception for something else, and a pool waits for what its threads are doing. So a thread counts
from the moment the signal comes, and ends the process when time is up. That does no harm: all that lasts is written so that a
kill at any moment leaves what was there before. While modules are imported there is no exception at all, and the process ends at
once: in a library's C++ it would be an abort.

Promise: the signal is known at once, by a byte that Python's own handler in C writes. A second Ctrl-C ends at once. Where Ctrl-C
is ignored, as in a shell's background, it stays ignored.
Price: one thread that sleeps.
"""

import functools
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import ParamSpec, TypeVar

LIMIT_S = 4.6  # the process is gone within 5
AGAIN, STOPPED = 75, 128 + signal.SIGINT
SECOND = "stopped by a second Ctrl-C"

P = ParamSpec("P")
T = TypeVar("T")


class CtrlC:
    """Watches this process. A context manager around all that it does, in the main thread."""

    def __init__(self, code: int, told: str) -> None:
        """Nothing is watched before the block; `code`, `told`: how the process ends when its time is up."""
        self._code, self._told = code, told
        self._at_once, self._times = False, 0
        self._arrived, self._written = socket.socketpair()  # a byte a signal, its number
        self._written.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="mlprod-ctrl-c", daemon=True)
        self._woken_before = -1

    def __enter__(self) -> "CtrlC":
        """Begins to watch."""
        self._woken_before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends it."""
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(self._woken_before)
        self._written.close()  # the thread reads an end
        self._thread.join()
        self._arrived.close()

    def at_once(self, act: Callable[P, T]) -> Callable[P, T]:
        """Returns what does the same, during which Ctrl-C ends the process at once."""

        @functools.wraps(act)
        def acts(*given: P.args, **named: P.kwargs) -> T:
            self._at_once = True
            try:
                return act(*given, **named)
            finally:
                self._at_once = False

        return acts

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._times += 1
        if self._times > 1 or self._at_once:
            self._thread.join(LIMIT_S)  # which ends the process: one line, whoever hears the signal first
        raise KeyboardInterrupt

    def _run(self) -> None:
        ends, times = math.inf, 0
        while True:
            left = max(ends - time.monotonic(), 0.0) if times else None
            if not select.select([self._arrived], [], [], left)[0]:
                end_now(self._code, self._told)
            came = self._arrived.recv(4096)
            if not came:
                return
            times += came.count(signal.SIGINT)
            if times > 1:
                end_now(STOPPED, SECOND)
            if times and self._at_once:
                end_now(self._code, self._told)
            if times == 1:
                ends = min(ends, time.monotonic() + LIMIT_S)


def end_now(code: int, told: str) -> None:
    """Ends the process from any thread, with a line."""
    os.write(2, f"mlprod: {told}\n".encode())
    os._exit(code)
