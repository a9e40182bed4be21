"""The verb `checkpoints`: what a run has saved, what is in a step, and whether it is what was saved.

Promise: no device computes, and nothing is changed: it may be asked while the run trains.
"""

import argparse
import datetime as dt
import json
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlprod.checkpoint import retention
from mlprod.checkpoint.copies import Copies
from mlprod.checkpoint.retention import main_metric
from mlprod.checkpoint.run_state import Damaged, RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import CheckpointConfig, Config
from mlprod.errors import CheckpointError, RestoreError, WorkdirError


def main(cfg: Config, options: argparse.Namespace) -> None:
    """Does what `options.action` says."""
    workdir = Path(cfg.workdir)
    saved = SavedSteps(workdir)
    steps = saved.steps()
    if not steps:
        raise WorkdirError(f"config.workdir={cfg.workdir!r} has no checkpoints; run `mlprod train` first")
    if options.step >= 0 and options.step not in steps:
        raise WorkdirError(f"--step={options.step}: {workdir} has no such checkpoint; it has {steps}")
    console = Console(highlight=False)
    if options.action == "ls":
        console.print(listing(saved, cfg.checkpoint))
        if cfg.checkpoint.copies:
            console.print(told_of_copies(Copies(cfg.checkpoint.copies)), markup=False, soft_wrap=True)
    elif options.action == "show":
        show(saved, options.step if options.step >= 0 else steps[-1], console)
    else:
        verify(saved, [options.step] if options.step >= 0 else steps, console)


def listing(saved: SavedSteps, cfg: CheckpointConfig) -> Table:
    """Returns a row a step: position, the metric that decides which is best, size, when it was saved, and why it stays."""
    runs = saved.runs()
    kept = retention.reasons({step: run.metrics for step, run in runs.items() if isinstance(run, RunState)}, cfg)
    table = Table("step", "next example", cfg.keep_best or "metrics", "MB", "saved", "stays as", box=SIMPLE_HEAD, pad_edge=False)
    for step, run in runs.items():
        size, when = _on_disk(saved.folder(step))
        if isinstance(run, Damaged):
            table.add_row(str(step), "", "", size, when, "damaged")
        else:
            metric = _of_interest(run.metrics, cfg.keep_best)
            table.add_row(str(step), f"{run.next_example:,}", metric, size, when, ", ".join(kept[step]))
    return table


def told_of_copies(copies: Copies) -> str:
    """Returns a line on which steps are copied; raises CheckpointError where they cannot be read."""
    try:
        return f"copied to {copies.location}: {', '.join(map(str, copies.steps())) or 'none'}"
    except OSError as error:
        raise CheckpointError(copies.refusal("read", error)) from error


def show(saved: SavedSteps, step: int, console: Console) -> None:
    """Prints a step's run JSON, less the config, and its arrays; raises RestoreError when it is damaged."""
    try:
        run = saved.read_run(step)
    except Damaged as error:
        raise RestoreError(f"{saved.folder(step)} is damaged: {error}") from error
    told = {
        "run": f"{run.run_id}, attempt {run.attempt}", "dataset_id": run.dataset_id, "next example": f"{run.next_example:,}",
        "left out": ", ".join(f"[{a}, {b})" for a, b in run.skipped) or "nothing", "metrics": _told(run.metrics) or "none",
        "order": json.dumps(run.order), "environment": json.dumps(run.environment),
        "seconds": ", ".join(f"{name} {seconds:.1f}" for name, seconds in run.ledger.items()),
    }  # fmt: skip
    console.print(f"{saved.folder(step)}")
    for name, text in told.items():
        console.print(f"  {name}: {text}", soft_wrap=True, markup=False)
    table = Table("array", "dtype", "shape", "digest", box=SIMPLE_HEAD, pad_edge=False)
    for path, row in run.leaves.items():
        table.add_row(path, row["dtype"], str(tuple(row["shape"])), row["digest"])
    console.print(table)


def verify(saved: SavedSteps, steps: list[int], console: Console) -> None:
    """Reads steps again and says of each whether it is what was saved; raises CheckpointError when one is not."""
    damaged = []
    for step in steps:
        try:
            saved.verify(step)
        except Damaged as error:
            damaged.append(step)
            console.print(f"step {step}: damaged: {error}", markup=False, soft_wrap=True)
        else:
            console.print(f"step {step}: good")
    if damaged:
        raise CheckpointError(f"{len(damaged)} of {len(steps)} steps are damaged: {damaged}; a resume goes back to a good one")


def _told(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.5f}" for name, value in metrics.items())


def _of_interest(metrics: Mapping[str, float], metric: str) -> str:
    """Returns the metric that decides which step is best, or all where none does, as text."""
    name = main_metric(metrics) if metric == "auto" else metric
    return f"{metrics[name]:.5f}" if name in metrics else ("" if metric else _told(metrics))


def _on_disk(folder: Path) -> tuple[str, str]:
    """Returns megabytes and the time of a step's files, as text."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 1e6:.1f}", f"{dt.datetime.fromtimestamp(folder.stat().st_mtime):%Y-%m-%d %H:%M:%S}"
