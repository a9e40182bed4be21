"""The verb `run`: a parent that starts a command, and starts it again while that is worth it.

Promise: the exit code is one of the table in the README, however the command died: a signal, an abort inside a library, no sign
of life. A command that dies again and again without a new step is not restarted for ever. Nothing that it started stays behind.
Price: a process of a few megabytes, without JAX, and what the command prints on stderr going through it.

It asks nothing of the command. One of ours tells its steps in a small file (`pulse.py`); of any other no step is ever seen.
"""

import argparse
import ctypes
import fcntl
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mlprod.errors import ConfigError, UserError
from mlprod.processes.pulse import JOIN, VARIABLE, Beat, read_beat
from mlprod.processes.rank import Rank, find_rank, make_rank

DONE, FAILED, BAD_INPUT, AGAIN = 0, 1, 2, 75
POLL_S = 0.2
LATE_S = 5.0  # that a command may take to end itself after a limit of its own has passed
STACKS_S = 3.0  # to print where its threads stand, when it is ended for that
LONGEST_PAUSE_S = 60.0
TAIL_BYTES = 1 << 14  # of what it printed last that is searched for a culprit
PR_SET_PDEATHSIG = 1
NUMBER = re.compile(r"(\d+)\s")  # of a process, at the end of its name
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main(options: argparse.Namespace) -> None:
    """Runs the command line's command and exits with its code.

    Raises:
        UserError: there is no command, or the rank contradicts itself.
    """
    mark, *command = options.command or ["--"]
    if mark != "--":
        raise UserError(f"the command stands behind --, as in: mlprod run -- {' '.join(options.command)}")
    if not command:
        raise UserError("no command to run; give one behind --: mlprod run -- python -m mlprod.train --config FILE")
    limits = Limits(
        restarts=options.restarts, deaths=max(options.deaths, 1), pause_s=options.pause_s, silent_s=options.silent_s,
        grace_s=options.grace_s,
    )  # fmt: skip
    sys.exit(Supervisor(command, _rank(options), limits).run())


def _rank(options: argparse.Namespace) -> Rank:
    given = {name: vars(options)[name] for name in ("process_id", "num_processes", "coordinator")}
    if not any(given.values()):
        return find_rank()
    missing = [f"--{name.replace('_', '-')}" for name, value in given.items() if not value]
    if missing and given["num_processes"] != "1":
        raise ConfigError(f"{' and '.join(missing)} must be given beside the others")
    return make_rank(given["process_id"] or "0", given["num_processes"], given["coordinator"], "the flags")


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How a start of the command came to its end."""

    code: int  # one of ours
    why: str  # "" where the code says it all


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a supervisor puts up with."""

    restarts: int
    deaths: int  # so many ends in a row without a new step are in vain
    pause_s: float  # before it starts the command again; twice as long after each end in vain
    silent_s: float  # without a sign of life, after which the command is ended
    grace_s: float  # from a signal that asks to stop until it is ended


class Supervisor:
    """Runs one command until it is done, or until starting it again is in vain."""

    def __init__(self, command: Sequence[str], rank: Rank, limits: Limits) -> None:
        """Nothing is started yet."""
        self._command, self._rank, self._limits = command, rank, limits
        self._asked, self._asked_at = 0, math.inf  # how often this process was asked to stop, and when first
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Returns the exit code."""
        furthest, in_vain, starts = -1, 0, 0
        with tempfile.TemporaryDirectory(prefix="mlprod-run-") as folder, self._signals():
            while True:
                pulse = Path(folder) / f"pulse-{starts}"
                pulse.touch()
                end, starts = self._start(pulse), starts + 1
                beat = read_beat(pulse)
                reached = beat.step if beat else -1
                if end.why:
                    self._say(f"{end.why}{_where(beat)}: exit code {end.code}")
                if end.code != AGAIN or self._asked or starts > self._limits.restarts:
                    return end.code
                in_vain, furthest = (0 if reached > furthest else in_vain + 1), max(furthest, reached)
                if in_vain >= self._limits.deaths:
                    what = f"{self._limits.deaths} ends in a row without a step beyond {max(furthest, 0)}"
                    if beat and beat.activity == JOIN:
                        self._say(f"{what}, the last for want of others: exit code {AGAIN}")
                        return AGAIN
                    self._say(f"{what}: starting again does not help; exit code {FAILED}")
                    return FAILED
                pause = min(self._limits.pause_s * 2 ** max(in_vain - 1, 0), LONGEST_PAUSE_S)
                self._say(f"starting again in {pause:g} s (start {starts + 1})")
                if self._asked_within(pause):
                    return AGAIN

    def _start(self, pulse: Path) -> End:
        """Runs the command once."""
        out_of_memory = _killed_for_memory()
        variables = self._rank.variables() if self._rank.count > 1 else {}
        ours, theirs = pty.openpty() if sys.stderr.isatty() else os.pipe()
        if os.isatty(theirs):
            _like_ours(theirs)
        try:
            self._child = subprocess.Popen(
                self._command,
                env={**os.environ, **variables, VARIABLE: str(pulse)},
                stderr=theirs,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        except OSError as error:
            os.close(ours)
            raise UserError(f"{self._command[0]!r} cannot be started: {error.strerror}; give a command as in a shell") from error
        finally:
            os.close(theirs)
        for number in range(self._asked):  # a signal that came before there was anyone to pass it on to
            self._pass_on(signal.SIGKILL if number else signal.SIGTERM)
        try:
            tail, late = self._watch(self._child, ours, pulse)
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)  # what it started and left behind
            os.close(ours)
        return self._told(self._child.returncode, tail, late, out_of_memory < _killed_for_memory())

    def _watch(self, child: subprocess.Popen[bytes], stderr: int, pulse: Path) -> tuple[bytes, str]:
        """Passes on what the command prints until it ends; ends it when it is silent for too long. Returns (last bytes, why)."""
        tail, late, began = b"", "", time.monotonic()
        while child.poll() is None:
            tail = self._drain(stderr, tail, POLL_S)
            if not late and (late := self._overdue(read_beat(pulse), began)):
                self._say(f"{late}; ending it")
                self._pass_on(signal.SIGABRT)  # a Python of ours prints where its threads stand
                tail = self._drain_for(stderr, tail, child)
                self._pass_on(signal.SIGKILL)
        return self._drain(stderr, tail, 0.0), late

    def _drain_for(self, stderr: int, tail: bytes, child: subprocess.Popen[bytes]) -> bytes:
        deadline = time.monotonic() + STACKS_S
        while child.poll() is None and time.monotonic() < deadline:
            tail = self._drain(stderr, tail, POLL_S)
        return tail

    def _drain(self, stderr: int, tail: bytes, wait_s: float) -> bytes:
        """Copies what is there to our stderr; returns the last of all."""
        while select.select([stderr], [], [], wait_s)[0]:
            try:
                got = os.read(stderr, 1 << 16)
            except OSError:  # of a terminal whose other end was closed
                got = b""
            if not got:
                time.sleep(wait_s)
                break
            os.write(2, got)
            tail, wait_s = (tail + got)[-TAIL_BYTES:], 0.0
        return tail

    def _overdue(self, beat: Beat | None, began: float) -> str:
        """Returns why the command is to be ended; "" while it is alive, and of one that has never given a sign of life."""
        now = time.monotonic()
        if now > self._asked_at + self._limits.grace_s:
            return f"it was asked to stop {self._limits.grace_s:.0f} s ago (--grace-s)"
        if beat is None or beat.at < began:
            return ""
        if now - beat.at > self._limits.silent_s:
            return f"no sign of life for {now - beat.at:.0f} s (--silent-s)"
        if now > beat.deadline + LATE_S:
            return f"{beat.activity or 'the loop'} is {now - beat.deadline:.0f} s over its limit, and it does not end itself"
        return ""

    def _told(self, code: int, tail: bytes, late: str, out_of_memory: bool) -> End:
        """Returns our exit code for the command's, and why."""
        number = -code if code < 0 else code - 128 if 128 < code < 192 else 0
        if late:
            return End(code=AGAIN, why=f"it was ended: {late}")
        if not number:
            return End(
                code=code if code in (DONE, BAD_INPUT, AGAIN) else FAILED,
                why="" if code in (DONE, FAILED, BAD_INPUT, AGAIN) else f"it ended with exit code {code}",
            )
        if self._asked:
            return End(code=AGAIN, why=f"it was ended by {_name(number)} when asked to stop")
        if culprit := lost_process(tail.decode(errors="replace"), self._rank):
            return End(code=AGAIN, why=f"it was aborted ({_name(number)}): {culprit}")
        memory = ", for the machine was out of memory" if out_of_memory and number == signal.SIGKILL else ""
        return End(code=AGAIN, why=f"it was ended by {_name(number)}{memory}")

    # ---- signals ----

    @contextmanager
    def _signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._handle) for number in PASSED_ON}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number not in (signal.SIGUSR1, signal.SIGUSR2):
            self._asked, self._asked_at = self._asked + 1, min(self._asked_at, time.monotonic())
            number = signal.SIGTERM if number == signal.SIGHUP else number  # a line that broke asks to stop, as a terminal's end
        self._pass_on(signal.SIGKILL if self._asked > 1 else number)

    def _pass_on(self, number: int) -> None:
        """Sends a signal to the command; SIGKILL to all that it started."""
        if self._child is not None and self._child.poll() is None:
            with suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self._child.pid, number)
                else:
                    os.kill(self._child.pid, number)

    def _asked_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._asked and time.monotonic() < deadline:
            time.sleep(POLL_S / 2)
        return bool(self._asked)

    def _say(self, line: str) -> None:
        who = f"process {self._rank.index} of {self._rank.count}: " if self._rank.count > 1 else ""
        os.write(2, f"mlprod run: {who}{line}\n".encode())


def lost_process(printed: str, rank: Rank) -> str:
    """Returns which process was lost, by what JAX's coordination service printed in an aborted one; "" where none was."""
    missed = re.search(r"stopped sending heartbeats\):\s*((?:\S*\d+\s+)+)", printed)
    if missed:
        return f"process {', '.join(NUMBER.findall(missed[1]))} gave no sign of life"
    if "Terminating process because the JAX distributed service detected fatal errors" not in printed:
        return ""
    if rank.index and re.search(r"UNAVAILABLE|DEADLINE_EXCEEDED|CANCELLED", printed):
        return f"process 0, at {rank.coordinator}, is gone or does not answer"
    return "another process is gone"


def _where(beat: Beat | None) -> str:
    return f" ({beat.activity or 'the loop'} after step {max(beat.step, 0)}, next example {beat.position:,})" if beat else ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _killed_for_memory() -> int:
    """Returns how many processes this machine has killed for want of memory; 0 where it does not tell."""
    with suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def end_with_parent() -> None:
    """Asks Linux to stop this process (SIGTERM) when its parent is gone, however that went."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _like_ours(terminal: int) -> None:
    """Gives a terminal the size of ours; lines are ended by ours alone."""
    with suppress(OSError, termios.error):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(2, termios.TIOCGWINSZ, bytes(8)))
        modes = termios.tcgetattr(terminal)
        modes[1] &= ~termios.OPOST
        termios.tcsetattr(terminal, termios.TCSANOW, modes)
