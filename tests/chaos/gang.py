"""Runs of several processes, each under its supervisor, to which something happens; and the table of what came of it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mlprod.config import Config
from mlprod.processes.supervise import end_with_parent
from mlprod.tracking import read_log
from tests.conftest import COMPILED, RECIPE

LIMIT_S = 180.0
# Short limits, so that a test can wait for them; the ones of a real run are minutes.
QUICK = (
    "--config.limits.heartbeat_s=6",
    "--config.limits.step_s=12",
    "--config.limits.evaluate_s=12",
    "--config.limits.grace_s=10",
    "--config.limits.join_s=60",
)


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Gang:
    """A run on `count` processes of one device each, under supervisors that make exit codes ours."""

    cfg: Config
    count: int
    given: Sequence[str] = ()  # overrides of every process
    each: Sequence[Sequence[str]] = ()  # overrides of one process each
    faults: Mapping[int, str] = field(default_factory=dict)  # process -> see `broken.py`
    port: int = 0
    options: Sequence[str] = ("--restarts", "0", "--silent-s", "15")  # of the supervisors
    supervisors: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *, only: Sequence[int] | None = None) -> None:
        """Starts the supervisors, of all processes or only of some."""
        paths = {"workdir": self.cfg.workdir, "dataset": self.cfg.dataset, "etl.source.path": self.cfg.etl.source.path}
        paths |= {"runtime.compile_cache": COMPILED, "mesh.fsdp": str(self.count)}
        argv = ["--config", str(RECIPE), *(f"--config.{name}={value}" for name, value in paths.items()), *QUICK, *self.given]
        self.port = self.port or free_port()
        for i in range(self.count):
            if only is not None and i not in only:
                continue
            rank = ("--coordinator", f"127.0.0.1:{self.port}", "--num-processes", str(self.count), "--process-id", str(i))
            more = self.each[i] if self.each else ()
            program = ("mlprod.train",) if not self.faults.get(i) else ("tests.chaos.broken", self.faults[i], "train")
            command = (sys.executable, "-m", *program)
            with open(self.output_file(i), "ab") as output:
                words = [str(Path(sys.executable).parent / "mlprod"), "run", *rank, *self.options, "--", *command, *argv, *more]
                self.supervisors.append(subprocess.Popen(words, stdout=output, stderr=output, preexec_fn=end_with_parent))

    def output_file(self, i: int) -> Path:
        """Where process `i` and its supervisor print."""
        return Path(f"{self.cfg.workdir}.{i}.out")

    def output(self, i: int) -> str:
        """What they have printed."""
        return self.output_file(i).read_text(errors="replace")

    def child(self, i: int) -> int:
        """The process id of what supervisor `i` runs now."""
        return int(psutil.Process(self.supervisors[i].pid).children()[0].pid)

    def wait_for_step(self, step: int) -> None:
        """Waits until the run's log tells of a step."""
        deadline = time.monotonic() + LIMIT_S
        while max((line["step"] for line in read_log(Path(self.cfg.workdir))), default=0) < step:
            assert time.monotonic() < deadline, "\n".join(self.output(i) for i in range(self.count))
            assert any(each.poll() is None for each in self.supervisors), "\n".join(self.output(i) for i in range(self.count))
            time.sleep(0.01)

    def ended(self, began: float) -> tuple[list[int], list[float]]:
        """Waits for all; returns exit codes, and seconds since `began` at which each supervisor ended."""
        seconds = [0.0] * len(self.supervisors)
        while any(each.poll() is None for each in self.supervisors) and time.monotonic() < began + LIMIT_S:
            for i, each in enumerate(self.supervisors):
                if each.poll() is None:
                    seconds[i] = time.monotonic() - began
            time.sleep(0.02)
        return [each.returncode for each in self.supervisors], seconds

    def end(self) -> None:
        """Ends whatever is left."""
        for each in self.supervisors:
            for process in [*psutil.Process(each.pid).children(recursive=True)] if each.poll() is None else []:
                process.kill()
            if each.poll() is None:
                each.kill()
            each.wait()


def last_line(text: str) -> str:
    """The last line of ours, without what the machine is called."""
    ours = [line for line in text.splitlines() if line.startswith("mlprod")]
    return re.sub(r"/\S*/", ".../", ours[-1]) if ours else ""


Harm = Callable[[Gang], None]


def send(number: int, *to: int) -> Harm:
    """Sends a signal to the training processes `to`."""
    return lambda gang: [os.kill(gang.child(i), number) for i in to] and None


def tell(number: int, *to: int) -> Harm:
    """Sends a signal to the supervisors `to`."""
    return lambda gang: [os.kill(gang.supervisors[i].pid, number) for i in to] and None


@dataclass(frozen=True)
class Case:
    """Something that happens to a run, what must come of it, and who must be named."""

    harm: Harm | None = None  # when some steps are done
    faults: Mapping[int, str] = field(default_factory=dict)
    each: Sequence[Sequence[str]] = ()
    given: Sequence[str] = ()  # overrides of all
    codes: int | tuple[int, ...] = 75  # of all
    within_s: float = 60.0  # of the harm, or of the start
    told: tuple[str, ...] = ()  # by some process each


def on(i: int, *given: str) -> Sequence[Sequence[str]]:
    """Overrides of process `i` of two."""
    return [given if j == i else () for j in range(2)]


CASES: dict[str, Case] = {
    "SIGKILL to process 1": Case(send(signal.SIGKILL, 1), told=("process 1 gave no sign of life",)),
    "SIGKILL to process 0, the coordinator": Case(send(signal.SIGKILL, 0), told=("is gone or does not answer",)),
    "SIGSTOP to process 1": Case(send(signal.SIGSTOP, 1), told=("process 1 gave no sign of life", "no sign of life for 15 s")),
    "SIGSTOP to process 0, the coordinator": Case(send(signal.SIGSTOP, 0), told=("is gone or does not answer",)),
    "SIGTERM to process 1": Case(send(signal.SIGTERM, 1), within_s=10, told=("which is saved",)),
    "SIGTERM to supervisor 1": Case(tell(signal.SIGTERM, 1), within_s=10, told=("which is saved",)),
    "SIGTERM to all supervisors": Case(tell(signal.SIGTERM, 0, 1), within_s=10, told=("which is saved",)),
    "two SIGTERMs to supervisor 1": Case(lambda gang: twice(gang, 1), told=("SIGKILL when asked to stop",)),
    "a read that hangs in process 1, in training": Case(
        faults={1: "loader"}, given=("--config.eval.every=0",), told=("data wait after step", "config.limits.step_s is 12")
    ),
    "a read that hangs in process 1": Case(faults={1: "loader"}, told=("has taken 12 s, and config.limits.", "s for data of")),
    "process 1 does not get its devices": Case(
        faults={1: "devices"}, given=("--config.limits.start_s=10",), told=("process 1 of 2: devices after step 0",)
    ),
    "process 1 is stuck in its step": Case(faults={1: "stuck"}, told=("and config.limits.step_s is 12",)),
    "process 1 holds Python's lock": Case(faults={1: "locked"}, told=("no sign of life for 15 s",)),
    "a bug in process 1": Case(faults={1: "bug"}, codes=1, told=("process 1 ended with exit code 1", "RuntimeError: a bug")),
    "a bug in process 0": Case(faults={0: "bug"}, codes=1, told=("process 0 ended with exit code 1", "RuntimeError: a bug")),
    "a bug in both, in 1 later": Case(faults={0: "bug", 1: "late-bug"}, codes=1, told=("RuntimeError: a bug",)),
    "process 1 leaves": Case(faults={1: "out"}, codes=(75, 1), told=("process 1 gave no sign of life", "exit code 3")),
    "another config": Case(each=on(1, "--config.optim.peak_lr=0.5"), codes=2, told=("config.optim.peak_lr=0.5, not 0.01",)),
    "another dataset": Case(
        each=on(1, "--config.dataset=elsewhere"),
        codes=2,
        told=("elsewhere has no dataset version", "process 1 ended with exit code 2"),
    ),
}


def twice(gang: Gang, i: int) -> None:
    """Two SIGTERMs to a supervisor whose process cannot react."""
    os.kill(gang.child(i), signal.SIGSTOP)
    for _ in range(2):
        os.kill(gang.supervisors[i].pid, signal.SIGTERM)
        time.sleep(0.5)
