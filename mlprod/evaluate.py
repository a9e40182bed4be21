"""Metrics of a state on a whole split, and the verb `evaluate`.

Promise: every row once, in the order of seed 0 and epoch 0, padded with weight 0; counts are equal on any layout, sums within
float32 rounding of one batch.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlprod import runtime
from mlprod.checkpoint.copies import Copies
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import Config
from mlprod.data.loader import eval_batches
from mlprod.errors import ConfigError, DataError, WorkdirError
from mlprod.metrics import binary_metrics
from mlprod.parallel.place import fetch, placed_ahead
from mlprod.plan import Plan, make_plan
from mlprod.state import TrainState
from mlprod.step import Score, compile_score

Sink = Callable[[dict[str, np.ndarray]], None]


def scored_batches(
    plan: Plan, score: Score, state: TrainState, split: str, limit: int | None
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Yields (fetched `metrics.batch_sums`, host batch) over a split; `limit`: at most so many batches."""
    batches = eval_batches(plan.cfg, plan.store, plan.manifest, split, plan.eval_ranges)
    size, depth = plan.eval_order.global_batch, plan.cfg.loader.on_device

    def waiting(seconds: float) -> None:
        print(f"mlprod: evaluation has waited {seconds:.0f} s for data of {plan.cfg.dataset}", file=sys.stderr, flush=True)

    with placed_ahead(batches, plan.placement.batch(size), plan.eval_ranges, size, depth, waiting) as placed:
        for host, batch in islice(placed, limit):
            yield fetch(score(state, batch)), dict(host)


def evaluate(
    plan: Plan, score: Score, state: TrainState, split: str, *, limit: int | None = None, sink: Sink | None = None
) -> dict[str, float]:
    """Returns the metrics of `state` on a split by name; `sink` is given each batch's row ids, labels and scores."""
    metrics = binary_metrics(plan.cfg.eval.auc_rows)
    for sums, batch in scored_batches(plan, score, state, split, limit):
        for metric in metrics:
            metric.merge(sums)
        if sink is not None:
            real = batch["weight"] > 0
            ids = np.ascontiguousarray(batch["row_id"]).view("<u8")[:, 0]
            sink({"row_id": ids[real], "label": batch["label"][real], "score": sums["score"][real]})
    return {name: value for metric in metrics for name, value in metric.finish().items()}


def restore_for(plan: Plan, step: int) -> tuple[TrainState, RunState]:
    """Returns a trained state and its run JSON: of `step`, or of the newest good step (-1).

    Raises:
        WorkdirError: the run has no checkpoint, or not that one.
        ConfigError: the run was trained on another dataset.
    """
    workdir = Path(plan.cfg.workdir)
    saved, strict = SavedSteps(workdir), plan.cfg.checkpoint.strict
    if plan.cfg.checkpoint.copies and (step not in saved.steps() if step >= 0 else not saved.steps()):
        Copies(plan.cfg.checkpoint.copies).bring(saved, lambda there: step in (-1, there), strict=strict)
    if not saved.root.is_dir():
        raise WorkdirError(
            f"config.workdir={plan.cfg.workdir!r} has no checkpoints; run `mlprod train` with the same config first"
        )
    if step >= 0 and step not in saved.steps():
        raise WorkdirError(f"--step={step}: {workdir} has no such checkpoint; it has {saved.steps()}")
    if step >= 0:
        found: tuple[TrainState, RunState] | None = saved.restore(step, plan.abstract, plan.where)
    else:
        found = saved.restore_newest(plan.abstract, plan.where, strict=strict)
    if found is None:
        raise WorkdirError(
            f"config.workdir={plan.cfg.workdir!r} has no checkpoints; run `mlprod train` with the same config first"
        )
    if found[1].dataset_id != plan.manifest.dataset_id:
        raise ConfigError(
            f"the run was trained on dataset_id {found[1].dataset_id}, {plan.cfg.dataset} is {plan.manifest.dataset_id}"
        )
    return found


def check_output(option: str, path: str) -> Path:
    """Returns the path of a file to be written.

    Raises:
        WorkdirError: it is a folder, or lies below what is no folder.
    """
    if Path(path).is_dir():
        raise WorkdirError(f"{option}={path} cannot be written: it is a folder; give a file's name")
    runtime.check_writable(f"{option}={path}", Path(path))
    return Path(path)


class ScoreFile:
    """A Parquet file of row ids, labels and scores, written batch by batch."""

    def __init__(self, path: str) -> None:
        """Opens the file."""
        schema = pa.schema([("row_id", pa.uint64()), ("label", pa.float32()), ("score", pa.float32())])
        try:
            self._writer = pq.ParquetWriter(path, schema)
        except OSError as error:
            raise WorkdirError(f"--scores={path} cannot be written: {error}") from error

    def __call__(self, rows: dict[str, np.ndarray]) -> None:
        """Adds rows: arrays [K] by column."""
        self._writer.write_table(pa.table(rows, schema=self._writer.schema))

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def show(metrics: dict[str, float], title: str) -> None:
    """Prints metrics as a small table."""
    console = Console(highlight=False)
    console.print(title)
    table = Table("metric", "value", box=SIMPLE_HEAD, pad_edge=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:,.0f}" if name == "rows" else f"{value:.6f}")
    console.print(table)


def main(cfg: Config, options: argparse.Namespace) -> None:
    """The verb `evaluate`: prints metrics of a checkpoint on a split, and keeps them as JSON in the run's folder."""
    if options.scores:
        check_output("--scores", options.scores)
    plan = make_plan(cfg, jax.devices())
    if not plan.manifest.num_rows(options.split):
        raise DataError(f"--split={options.split} of {cfg.dataset} has no rows; raise its share in config.etl.split")
    state, run = restore_for(plan, options.step)
    sink = ScoreFile(options.scores) if options.scores else None
    metrics = evaluate(plan, compile_score(plan.model, plan.placement), state, options.split, sink=sink)
    if sink is not None:
        sink.close()
    show(metrics, f"{cfg.name}, step {run.step}, {options.split} split")
    path = Path(cfg.workdir) / "evaluations" / f"{options.split}-{run.step:08d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"step": run.step, "split": options.split, "dataset_id": run.dataset_id, "metrics": metrics}, indent=1)
    )
