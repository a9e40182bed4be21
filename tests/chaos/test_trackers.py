"""A W&B server that is down, refuses, never answers or is slow: the run does not notice, and the log is complete."""

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlprod.tracking import read_log
from tests.chaos.harness import LIMIT_S, ONE_DEVICE, Run
from tests.conftest import MakeConfig
from tests.wandb_server import HTTP, MODES, Server, running

BOUND_S = 1.5  # of start and of finish; twice that for a server that is to answer at first
SPARE_S = 1.0  # for the machine, which others use too
BLOCKED_S = 0.005
STEPS = 60


@contextmanager
def server_in(mode: str) -> Iterator[tuple[str, Server | None]]:
    """Yields the address of a server in a mode, and the server; None: it is down."""
    if mode == "down":
        yield f"{HTTP}127.0.0.1:9", None
    else:
        with running("well" if mode.startswith("then ") else mode) as server:
            yield server.url, server


def variables(url: str, home: Path) -> dict[str, str]:
    """The environment of a user who is logged in to a server."""
    return {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "HOME": str(home)}


def tracked_run(make_config: MakeConfig, name: str, bound_s: float = 2 * BOUND_S, **changed: Any) -> Run:
    """A run that W&B is to have; `bound_s`: of start and of finish."""
    given = (
        "--config.tracking.wandb=online",
        f"--config.tracking.start_s={bound_s}",
        f"--config.tracking.finish_s={bound_s}",
        "--config.checkpoint.every=0",
    )
    return Run(make_config(name, **changed), ONE_DEVICE, given=given)


def took_of(run: Run) -> dict[str, list[float]]:
    """Returns {"start", "log", "wall", "finish"}: seconds that tracking kept the run."""
    took: dict[str, list[float]] = json.loads(Path(f"{run.cfg.workdir}.out.took").read_text())
    return took


def row(mode: str, took: dict[str, list[float]], code: int, lines: int) -> str:
    """A line of the table."""
    log = sorted(took["log"])
    p99, worst = log[len(log) * 99 // 100], log[-1]
    told = f"{took['start'][0]:.2f} | {1e3 * worst:.2f} | {1e3 * p99:.2f} | {took['finish'][0]:.2f} | {code} | {lines}"
    return f"| {mode} | {told} |"


@pytest.mark.parametrize("mode", ["down", "refusing", "silent", "slow", "then silent"])
def test_a_server_that_misbehaves_is_no_matter(mode: str, make_config: MakeConfig, tmp_path: Path) -> None:
    """No record keeps the loop 5 ms, start and finish are bounded, the log has every step, the exit code is the run's own."""
    late = mode.startswith("then ")
    bound_s = 2 * BOUND_S if late else BOUND_S
    run = tracked_run(make_config, "run", bound_s)
    with server_in(mode) as (url, server):
        process = run.start_timed(variables(url, tmp_path), pause_s=0.01)
        if late and server is not None:
            while run.last_step() < STEPS // 3 and process.exitcode is None:
                time.sleep(0.01)
            server.mode = mode.removeprefix("then ")
        process.join(LIMIT_S)
    assert time.time() - Path(f"{run.cfg.workdir}.out.took").stat().st_mtime < SPARE_S, "the process ended right after"
    lines, took = list(read_log(run.workdir)), took_of(run)
    print(row(mode, took, process.exitcode, len(lines)))
    assert process.exitcode == 0, run.output()
    assert ("not everything was taken in time" if late else "cannot be reached") in run.output()
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert took["start"][0] < bound_s + SPARE_S
    assert took["finish"][0] < bound_s + SPARE_S
    assert max(took["log"]) < BLOCKED_S
    assert sorted(took["wall"])[len(lines) * 9 // 10] < BLOCKED_S, "by the clock alone, for what is taken off is no excuse"


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_ten_minutes_of_a_server_that_changes_its_mind(make_config: MakeConfig, tmp_path: Path) -> None:
    """Nothing is noticed on the way; at the next start, which has nothing left to do, the server gets what it lacks, once."""
    steps, dice = 30_000, random.Random(7)
    run = tracked_run(make_config, "run", steps=steps)
    run = dataclasses.replace(run, given=(*run.given, f"--config.steps={steps}"))
    with running("well") as server:
        process = run.start_timed(variables(server.url, tmp_path), pause_s=0.02)
        modes = ["well"]
        while run.last_step() < steps and process.exitcode is None:
            time.sleep(dice.uniform(2.0, 20.0))
            server.mode = dice.choice(MODES) if run.last_step() else "well"
            modes.append(server.mode)
        process.join(LIMIT_S)
        took, lines = took_of(run), list(read_log(run.workdir))
        over, had = sum(s > BLOCKED_S for s in took["log"]), sum(map(len, server.history.values()))
        print(row("all in turn", took, process.exitcode, len(lines)))
        by_clock = sum(s > BLOCKED_S for s in took["wall"])
        print(
            f"{over} of {len(took['log'])} took over 5 ms, {by_clock} by the clock; the server had {had} rows; {len(modes)} turns"
        )
        server.mode = "well"
        again = run.start_timed(variables(server.url, tmp_path), "--config.tracking.finish_s=100")
        again.join(LIMIT_S)
        (rows,) = server.history.values()
    assert (process.exitcode, again.exitcode) == (0, 0)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))
    assert [r["_step"] for r in rows] == list(range(1, steps + 1))
    losses = {line["step"]: line["values"]["loss"][0] for line in lines if line["kind"] == "train"}
    assert {r["_step"]: r["train/loss"] for r in rows} == losses
    assert over == 0
    assert by_clock <= len(took["wall"]) // 1000
