"""Kills placed in a phase of a run by what is seen from outside: lines of its log and files of its folder. No hooks.

A run that ends by itself before its phase, and not well, is a crash loop, not bad luck: the driver stops with its output.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlprod.checkpoint.saved import SavedSteps
from mlprod.tracking import read_log
from tests.chaos.harness import LIMIT_S, Run

POLL_S = 0.001
UNFINISHED = re.compile(r"([0-9]{8,})\.orbax-checkpoint-tmp.*")
GENTLE = 0.2  # share of kills that ask (SIGTERM) first

Row = dict[str, Any]


@dataclass
class View:
    """What is seen of a run since it was started last."""

    run: Run
    old_lines: int = 0
    old_steps: list[int] = field(default_factory=list)
    ever: set[int] = field(default_factory=set)  # steps that were seen since training began

    def __post_init__(self) -> None:
        """Looks before the start."""
        self.old_lines = len(list(read_log(self.run.workdir)))
        self.old_steps = self.steps()

    def lines(self) -> list[Mapping[str, Any]]:
        """The log's lines of this start."""
        return list(read_log(self.run.workdir))[self.old_lines :]

    def trained(self) -> int:
        """The last step that was logged since the start, -1 before the first."""
        return max((line["step"] for line in self.lines() if line["kind"] == "train"), default=-1)

    def steps(self) -> list[int]:
        """The saved steps."""
        return SavedSteps(self.run.workdir).steps()

    def new_steps(self, aim: int) -> list[int]:
        """The steps from `aim` on that were saved since the start."""
        return [step for step in self.steps() if step >= aim and step not in self.old_steps]

    def folders(self) -> list[str]:
        """What lies among the steps."""
        try:
            return [path.name for path in (self.run.workdir / "checkpoints").iterdir()]
        except FileNotFoundError:
            return []


@dataclass(frozen=True)
class Phase:
    """`seen`: whether the run is in it, at step `aim` or later; `delay_s`: the most that is waited before the kill."""

    seen: Callable[[View, int], bool]
    delay_s: float


def _compiling(view: View, aim: int) -> bool:
    return any(line["kind"] == "start" for line in view.lines())


def _writing(view: View, aim: int) -> bool:
    return any(int(found[1]) >= aim for name in view.folders() if (found := UNFINISHED.fullmatch(name)))


def _reading_back(view: View, aim: int) -> bool:
    return any(view.trained() > step for step in view.new_steps(aim))


def _pruning(view: View, aim: int) -> bool:
    if view.trained() < aim:  # what an earlier kill left there is no sign
        return False
    there = set(view.steps())
    view.ever |= there
    return "going" in view.folders() or not view.ever <= there


def _evaluating(view: View, aim: int) -> bool:
    lines, every = view.lines(), view.run.cfg.eval.every
    return bool(lines) and lines[-1]["kind"] == "train" and lines[-1]["step"] >= aim and lines[-1]["step"] % every == 0


def phases(per_epoch: int) -> dict[str, Phase]:
    """The phases of training by name; `per_epoch`: batches."""
    edges = {per_epoch * epoch + near for epoch in range(1, 100) for near in (-1, 0, 1)}
    return {
        "compile": Phase(_compiling, 0.3),
        "step": Phase(lambda view, aim: view.trained() >= aim, 0.01),
        "save: writing": Phase(_writing, 0.02),
        "save: commit": Phase(lambda view, aim: bool(view.new_steps(aim)), 0.002),
        "read-back": Phase(_reading_back, 0.02),
        "prune": Phase(_pruning, 0.002),
        "evaluate": Phase(_evaluating, 0.02),
        "epoch edge": Phase(lambda view, aim: view.trained() >= aim and view.trained() in edges, 0.005),
    }


def kill_in(run: Run, name: str, phase: Phase, wanted: int, dice: random.Random) -> list[Row]:
    """Kills a run up to `wanted` times in a phase, each time further on; fewer when it ends well before; then lets it end."""
    rows: list[Row] = []
    while len(rows) < wanted:
        aim, view = run.last_step() + 1, View(run)
        process, deadline = run.start(), time.monotonic() + LIMIT_S
        while process.exitcode is None and not phase.seen(view, aim):
            assert time.monotonic() < deadline, f"{name} was not seen\n{run.output()}"
            time.sleep(POLL_S)
        time.sleep(dice.random() * phase.delay_s)
        sign = signal.SIGTERM if dice.random() < GENTLE else signal.SIGKILL
        if process.exitcode is None:
            os.kill(process.pid, sign)
        process.join(LIMIT_S)
        if process.exitcode == 0:
            break
        assert process.exitcode in (-sign, 75), f"a crash loop: it ended by itself with {process.exitcode}\n{run.output()}"
        rows.append({"phase": name, "aim": aim, "log at": run.last_step(), "signal": sign.name, "exit": process.exitcode})
    assert run.last_step() or not rows or name == "compile", "no start ever reached a step"
    assert run.finish() == 0, run.output()
    return rows
