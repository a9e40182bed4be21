"""Starts real training processes, kills them at random moments, starts them again, and compares the end with a straight run.

No hooks in the product: a moment is placed by what can be seen from outside (lines of the run's log, time since the start).
"""

import dataclasses
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import Config
from mlprod.plan import make_plan
from mlprod.state import flatten
from mlprod.tracking import read_log
from tests.chaos.child import broken_reader, command, one_of_several, timed_tracking
from tests.chaos.gang import free_port
from tests.conftest import COMPILED, RECIPE

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.chaos.child"])
LIMIT_S = 120.0

ONE_DEVICE = ("--config.runtime.num_cpu_devices=1",)
EIGHT_DEVICES = ("--config.runtime.num_cpu_devices=8", "--config.mesh.fsdp=8")


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run in its own folder, on certain devices."""

    cfg: Config
    devices: tuple[str, ...]
    printed: str = ""  # file of what its processes print; '': beside the workdir
    recipe: Path = RECIPE
    given: tuple[str, ...] = ()  # overrides of every start

    @property
    def workdir(self) -> Path:
        """The run's folder."""
        return Path(self.cfg.workdir)

    def start(self, *more: str) -> Any:
        """Starts a process of the run."""
        return self._start(command, more)

    def start_broken(self, *more: str, good_reads: int, fault: str, waiting_every_s: float = 10.0) -> Any:
        """Starts a process of the run whose reader breaks after some row groups: see `child.broken_reader`."""
        return self._start(broken_reader, more, good_reads, fault, waiting_every_s)

    def start_timed(self, variables: Mapping[str, str], *more: str, pause_s: float = 0.0) -> Any:
        """Starts a process of the run that times its tracking: see `child.timed_tracking`."""
        return self._start(timed_tracking, more, dict(variables), pause_s)

    def start_several(self, count: int, *more: str) -> list[Any]:
        """Starts the processes of the run, which train together; each has the run's devices."""
        port = free_port()
        return [self._start(one_of_several, more, port, index, count) for index in range(count)]

    def output(self) -> str:
        """What its processes printed."""
        return Path(self.printed or f"{self.cfg.workdir}.out").read_text()

    def start_etl(self) -> Any:
        """Starts a process that builds the run's dataset."""
        return self._start(command, (), verb="etl")

    def _start(self, target: Any, more: Sequence[str], *given_to_it: Any, verb: str = "train") -> Any:
        paths = {"workdir": self.cfg.workdir, "dataset": self.cfg.dataset, "etl.source.path": self.cfg.etl.source.path}
        paths["runtime.compile_cache"] = COMPILED  # as on GPUs and TPUs, where a kill may also tear a compiled program
        given = [f"--config.{field}={value}" for field, value in paths.items()]
        argv = [verb, "--config", str(self.recipe), *given, *self.devices, *self.given, *more]
        process = CONTEXT.Process(target=target, args=(argv, self.printed or f"{self.cfg.workdir}.out", *given_to_it))
        process.start()
        return process

    def finish(self, *more: str) -> int:
        """Runs to the end and returns the exit code."""
        process = self.start(*more)
        process.join(LIMIT_S)
        if process.exitcode is None:
            process.kill()
        return process.exitcode

    def last_step(self) -> int:
        """The last step that the log tells of, 0 before the first."""
        return max((line["step"] for line in read_log(self.workdir)), default=0)


def kill_at(run: Run, step: int, delay_s: float, sign: int = signal.SIGKILL) -> tuple[int, int]:
    """Starts the run, kills it `delay_s` after its log tells of `step` (or of the start), and returns (step seen, exit code)."""
    lines = len(list(read_log(run.workdir)))
    process, deadline = run.start(), time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.exitcode is None:
        fresh = list(read_log(run.workdir))[lines:]
        if step == 0 or any(line["step"] >= step for line in fresh):
            break
        time.sleep(0.002)
    time.sleep(delay_s)
    seen = run.last_step()
    if process.exitcode is None:
        os.kill(process.pid, sign)
    process.join(LIMIT_S)
    return seen, process.exitcode


def random_kills(run: Run, number: int, seed: int) -> list[dict[str, Any]]:
    """Kills the run `number` times at random moments, before the first step included; returns what was seen of each."""
    dice, table = random.Random(seed), []
    for i in range(number):
        done = run.last_step()
        step = 0 if dice.random() < 0.2 else dice.randint(done + 1, max(done + 1, run.cfg.steps - (number - i) * 4))
        delay = dice.random() * (2.0 if step == 0 else 0.05)
        seen, code = kill_at(run, step, delay)
        table.append({"kill": i + 1, "aimed at step": step, "after s": round(delay, 3), "log at": seen, "exit": code})
    return table


def last_lines(workdir: Path) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Returns {(kind, step): the last attempt's (position, values, ids)} of a run's log."""
    return {
        (line["kind"], line["step"]): {name: line[name] for name in ("position", "values", "ids")}
        for line in read_log(workdir)
        if line["kind"] != "start"
    }


def final_arrays(run: Run) -> dict[str, np.ndarray]:
    """Returns {path: array} of the run's last checkpoint, restored onto one device."""
    plan = make_plan(run.cfg, jax.devices()[:1])
    store = SavedSteps(run.workdir)
    state, _ = store.restore(store.steps()[-1], plan.abstract, plan.where)
    return {path: np.asarray(leaf) for path, leaf in flatten(state).items()}


def assert_same_end(run: Run, straight: Run) -> None:
    """Asserts that two runs ended with the same bits: parameters, optimizer state, and every line of the log."""
    assert last_lines(run.workdir) == last_lines(straight.workdir)
    ours, theirs = final_arrays(run), final_arrays(straight)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert array.tobytes() == theirs[path].tobytes(), f"{path} differs"
