"""The trackers of a run, as its config says.

Promise: a start waits for them at most `tracking.start_s` in all, an end at most `tracking.finish_s`, and `HURRY_S` where the run
was stopped or failed, less after Ctrl-C; who is not ready then goes on beside the run, or is left behind, and a line says so.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mlprod.config import TrackingConfig
from mlprod.trackers.follow import Follower, Service
from mlprod.trackers.run import TrackedRun, of_config
from mlprod.trackers.tensorboard import TensorBoard
from mlprod.trackers.wandb_run import Wandb
from mlprod.tracking import FILE, LocalLog, Tracker, Trackers

SWITCH_S = 0.0005  # for which a thread may keep Python's lock when the loop wants it; 5 ms otherwise
HURRY_S = 5.0  # within the grace period of a stop, which has a save to end as well
LOOK_S = 0.1  # how soon a stop is seen while a tracker is waited for
LeaveBy = Callable[[float, float], float]


def open_trackers(
    cfg: TrackingConfig,
    workdir: Path,
    name: str,
    run_id: str,
    attempt: int,
    config: Mapping[str, Any],
    others: Sequence[Tracker] = (),
    step: int = 0,
    good: Sequence[int] = (),
    leave_by: LeaveBy = lambda began, hurry_s: math.inf,
) -> Trackers:
    """Returns the run's trackers: the local log, `others`, and what follows the log; on process 0 alone, none elsewhere.

    Args:
        step: that the run goes on from.
        good: the saved steps that were read back; grows.
        leave_by: see `Signals.leave_by`.

    Raises:
        ConfigError: a package that the config needs is not installed.
    """
    if jax.process_index():
        return Trackers([])
    about = TrackedRun(workdir=workdir, name=name, run_id=run_id, attempt=attempt, step=step, config=of_config(config))
    services = list(_services(cfg, about))
    local = LocalLog(workdir, run_id, attempt, cfg.log_bytes)
    switched = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S if services else switched)
    followers = [Follower(who, opened, workdir / FILE, step, good) for who, opened in services]
    began = time.monotonic()
    for follower in followers:
        ready = _waited(follower.wait_open, began, began + cfg.start_s, lambda began: leave_by(began, 0.0))
        if not ready and not math.isfinite(leave_by(began, 0.0)):
            told = f"is not ready after {cfg.start_s:g} s (config.tracking.start_s): the run begins, and it gets every line later"
            print(f"mlprod: {follower.name} {told}", file=sys.stderr, flush=True)
    return Trackers([local, *others], functools.partial(_end, followers, cfg.finish_s, switched, leave_by))


def _waited(wait: Callable[[float], bool], began: float, deadline: float, leave_by: Callable[[float], float]) -> bool:
    """Waits until a moment, or less long where the process is asked to stop meanwhile; returns what it waited for."""
    while not wait(min(max(deadline - time.monotonic(), 0.0), LOOK_S)):
        deadline = min(deadline, leave_by(began))
        if time.monotonic() >= deadline:
            return False
    return True


def _services(cfg: TrackingConfig, run: TrackedRun) -> Iterator[tuple[str, Callable[[], Service]]]:
    """Yields (name, what opens it) of the trackers that follow the log."""
    if cfg.tensorboard:
        events = TensorBoard(run)  # here, so that a package that is missing ends the start
        yield "TensorBoard", lambda: events
    if cfg.wandb != "off":
        yield "W&B", functools.partial(Wandb, cfg, run)
    for other in cfg.others:
        yield type(other).__name__, functools.partial(other.open, run)


def _end(followers: Sequence[Follower], finish_s: float, switched: float, leave_by: LeaveBy, code: int) -> None:
    """Gives the trackers their time to take what is left; `code`: the run's exit code."""
    sys.setswitchinterval(switched)
    limit_s = min(finish_s, HURRY_S) if code else finish_s
    began = time.monotonic()
    for follower in followers:
        follower.end(code)
    for follower in followers:
        if not _waited(follower.wait_end, began, began + limit_s, lambda began: leave_by(began, HURRY_S)):
            told = f"did not take everything within {min(limit_s, time.monotonic() - began):.2g} s"
            field = "it was asked to stop" if math.isfinite(leave_by(began, HURRY_S)) else "config.tracking.finish_s"
            print(f"mlprod: {follower.name} {told} ({field}); the next start gives it the rest", file=sys.stderr, flush=True)
