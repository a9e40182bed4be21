"""A thread that ends a process which is stuck: every part of a run has a time limit of its own.

Promise: the thread runs also while the main thread waits in a collective that never ends, in a read that hangs, or in a compiler.
It prints where every thread stands, what was done last and which limit was passed, tells the other processes, and ends with exit
code 75: what was saved is not touched, and the same command goes on from there. Asked to stop, the process ends within
`limits.grace_s`, saved or not; after Ctrl-C within 5 s.
Price: it looks twice a second at what the ledger says is being done; the loop pays nothing.

What holds Python's lock inside a library, or was stopped from outside, stops this thread too: then it is the supervisor that sees
no more sign of life (`pulse.py`).
"""

import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from mlprod.config import LimitsConfig
from mlprod.ledger import Ledger
from mlprod.processes.peers import HEARD_S, Peers
from mlprod.processes.pulse import BEAT_S, VARIABLE, Pulse
from mlprod.processes.signals import CTRL_C_S, Signals

STUCK = 75
GRACE_PART = 0.95  # of the grace period, so that the process is gone when it is over
HURRY_S = 1.0  # to tell the others, where the grace period is at its end
HASTE_S = 0.3  # the same after Ctrl-C
DEBUGGERS = ("/bdb.py", "/pdb.py", "/pydevd.py")


class Watchdog:
    """Watches one run. A context manager around it."""

    def __init__(self, limits: LimitsConfig, ledger: Ledger, signals: Signals, peers: Peers) -> None:
        """Nothing is watched before the block; `ledger`: says what is being done; `signals`: what was asked of the process."""
        self._limits, self.ledger, self.signals, self.peers = limits, ledger, signals, peers
        self._done, self._saved = (-1, 0), -1
        self._over = threading.Event()
        self._pulse = Pulse(os.environ.get(VARIABLE, ""))
        self._thread = threading.Thread(target=self._run, name="mlprod-watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends it; what follows has limits of its own."""
        self._over.set()
        self.signals.wake()
        self._thread.join(2 * BEAT_S)
        self._pulse.last(*self._done, "the end")

    def done(self, step: int, position: int) -> None:
        """Tells that `step` steps are done, and the example that comes next."""
        self._done = step, position

    def saved(self, step: int) -> None:
        """Tells that a save of `step` has begun."""
        self._saved = step

    def _run(self) -> None:
        ends, ctrl_c, asked = math.inf, False, 0
        while not self._over.is_set():
            select.select([self.signals.arrived], [], [], max(0.0, min(BEAT_S, ends - time.monotonic())))
            for number in self.signals.came():
                asked, ctrl_c = asked + 1, ctrl_c or number == signal.SIGINT
                if asked > 1 and VARIABLE not in os.environ:  # the handler does so too, where the main thread can run it
                    os._exit(128 + number)
                lasts_s = CTRL_C_S if number == signal.SIGINT else GRACE_PART * self._limits.grace_s
                ends = min(ends, time.monotonic() + lasts_s)
            activity, deadline = self._beat()
            now = time.monotonic()
            if now > deadline and not _debugged():
                took = f"has taken {now - self.ledger.now[1]:.0f} s, {self._limit(activity)}"
                self._end(f"{self._at(activity)} {took}", stacks=True)
            if now > ends and ctrl_c:
                longer = f"SIGTERM leaves it {self._limits.grace_s:.0f} s (config.limits.grace_s)"
                self._end(
                    f"Ctrl-C, and {CTRL_C_S:g} s later still in {self._at(activity)}: left as it is; {longer}", limit_s=HASTE_S
                )
            if now > ends:
                asked_to = f"asked to stop {self._limits.grace_s:.0f} s ago (config.limits.grace_s)"
                self._end(f"{asked_to}, still in {self._at(activity)}", limit_s=HURRY_S)

    def _beat(self) -> tuple[str, float]:
        """Gives a sign of life; returns what is being done and until when."""
        activity, since = self.ledger.now
        deadline = since + limit_of(activity, self._limits)[1]
        self._pulse.beat(*self._done, activity, deadline)
        return activity, deadline

    def _at(self, activity: str) -> str:
        return f"{activity or 'the loop'} after step {max(self._done[0], 0)} (next example {self._done[1]:,})"

    def _limit(self, activity: str) -> str:
        field, limit_s = limit_of(activity, self._limits)
        return f"and config.limits.{field} is {limit_s:g}"

    def _end(self, why: str, *, stacks: bool = False, limit_s: float = HEARD_S) -> None:
        """Ends the process, to be started again; `limit_s`: that telling the others may take."""
        rank = self.peers.rank
        who = "" if self.peers.alone else f"process {rank.index} of {rank.count}: "
        kept = f"the last save that began is of step {self._saved}" if self._saved >= 0 else "nothing was saved by this start"
        told = f"mlprod: {who}{why}; {kept}, the same command goes on from there\n"
        os.write(2, ((_stacks() if stacks else "") + told).encode())
        self.peers.fail(STUCK, why, limit_s)
        os._exit(STUCK)


@contextmanager
def watched(limits: LimitsConfig, ledger: Ledger, peers: Peers) -> Iterator[Watchdog]:
    """Watches what is done in the block, and listens to signals, in the main thread."""
    with Signals() as signals, Watchdog(limits, ledger, signals, peers) as watchdog:
        yield watchdog


def limit_of(activity: str, limits: LimitsConfig) -> tuple[str, float]:
    """Returns the limit of an activity of the ledger: its field, and seconds. What is not named here is part of the start."""
    match activity:
        case "data wait" | "step" | "trace":
            return "step_s", limits.step_s
        case "first batch" | "first step":
            return "compile_s", limits.compile_s
        case "evaluate":
            return "evaluate_s", limits.evaluate_s
        case "save":
            return "save_s", limits.save_s
    return "start_s", limits.start_s


def _stacks() -> str:
    """Returns where every thread stands, the main thread last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] == threading.main_thread().ident)
    return "".join(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames)


def _debugged() -> bool:
    """Whether someone looks at this process with a debugger: its time is theirs."""
    frames = [frame for top in sys._current_frames().values() for frame, _ in traceback.walk_stack(top)]
    return any(frame.f_code.co_filename.endswith(DEBUGGERS) for frame in frames)
