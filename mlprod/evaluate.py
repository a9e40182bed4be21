"""Metrics of a state on a whole split, and the verb `evaluate`.

Promise: every row once, in the order of seed 0 and epoch 0, padded with weight 0; counts are equal on any layout, sums within
float32 rounding of one batch.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlprod import runtime, segments
from mlprod.checkpoint.copies import Copies
from mlprod.checkpoint.retention import best_step
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps, trained_on
from mlprod.config import Config
from mlprod.data.loader import eval_batches
from mlprod.errors import ConfigError, DataError, WorkdirError
from mlprod.features import Target
from mlprod.manifest import write_atomically
from mlprod.metrics import Metric, metrics_of
from mlprod.parallel.place import fetch, placed_ahead
from mlprod.plan import Plan, make_plan, score_of
from mlprod.scores import class_names, open_table_file, score_columns, score_fields
from mlprod.state import TrainState
from mlprod.step import Score

Sink = Callable[[dict[str, np.ndarray]], None]
Alive = Callable[[], None]
COUNTS = ("rows", "tokens")  # among the metrics
SHOWN_CLASSES = 12  # whose confusion has room in a terminal


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
    plan: Plan, score: Score, state: TrainState, split: str, alive: Alive = lambda: None, *, limit: int | None = None
) -> dict[str, float]:
    """Returns the metrics of `state` on a split by name.

    Args:
        alive: called after every batch.
        limit: of at most so many batches.
    """
    return values_of(measure(plan, score, state, split, limit=limit, alive=alive))


def values_of(metrics: Sequence[Metric]) -> dict[str, float]:
    """Returns all values by name."""
    return {name: value for metric in metrics for name, value in metric.finish().items()}


def measure(
    plan: Plan, score: Score, state: TrainState, split: str, *, limit: int | None = None, sinks: Sequence[Sink] = (),
    alive: Alive = lambda: None,
) -> Sequence[Metric]:  # fmt: skip
    """Returns the metrics of `state` on a split; `sinks` are given each batch's row ids, labels, weights and scores."""
    metrics = metrics_of(plan.features.target, plan.cfg.eval.auc_rows)
    for sums, batch in scored_batches(plan, score, state, split, limit):
        alive()
        for metric in metrics:
            metric.merge(sums)
        if sinks:
            real = batch["weight"] > 0
            ids = np.ascontiguousarray(batch["row_id"]).view("<u8")[:, 0]
            rows = {"row_id": ids, "label": batch["label"], "weight": batch["weight"], "score": sums["score"]}
            for sink in sinks:
                sink({name: values[real] for name, values in rows.items()})
    return metrics


def restore_for(plan: Plan, step: int) -> tuple[TrainState, RunState]:
    """Returns a trained state and its run JSON: of `step`; -1: of the newest good one, or the best, as `eval.use` says.

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
    if step < 0 and plan.cfg.eval.use == "best":
        runs = {at: run.metrics for at, run in saved.runs().items() if isinstance(run, RunState)}
        step = best_step(runs, plan.cfg.checkpoint.keep_best)
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
    same = found[1].dataset_id == plan.manifest.dataset_id
    if not same and found[1].features_sha256 != plan.manifest.features_sha256:  # a version that was appended to has the same
        raise ConfigError(
            f"config.workdir={plan.cfg.workdir!r} was trained on dataset_id {found[1].dataset_id}, {plan.cfg.dataset} is "
            f"{plan.manifest.dataset_id}; give the config of that run"
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
    """A file, Parquet or CSV by its name, of row ids, labels and scores, written batch by batch."""

    def __init__(self, path: str, target: Target) -> None:
        """Opens the file."""
        self._target = target
        label = pa.string() if target.task == "classes" else pa.float32()
        self._schema = pa.schema([("row_id", pa.uint64()), ("label", label), *score_fields(target)])
        try:
            self._writer = open_table_file(Path(path), path, self._schema)
        except OSError as error:
            raise WorkdirError(f"--scores={path} cannot be written: {error}") from error

    def __call__(self, rows: dict[str, np.ndarray]) -> None:
        """Adds rows: arrays [K] by column."""
        label = class_names(self._target, rows["label"]) if self._target.task == "classes" else pa.array(rows["label"])
        columns = {"row_id": pa.array(rows["row_id"]), "label": label, **score_columns(self._target, rows["score"])}
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def shown(name: str, value: float) -> str:
    """Returns a metric as a few words."""
    return f"{name} {value:,.0f}" if name in COUNTS else f"{name} {value:.5f}"


def show(metrics: dict[str, float], title: str) -> None:
    """Prints metrics as a small table."""
    console = Console(highlight=False)
    console.print(title)
    table = Table("metric", "value", box=SIMPLE_HEAD, pad_edge=False)
    for name, value in metrics.items():
        table.add_row(name, f"{value:,.0f}" if name in COUNTS else f"{value:.6g}")
    console.print(table)


def show_figures(figures: Mapping[str, Any]) -> None:
    """Prints the tables that decide on a threshold, or tell which classes are taken for which."""
    console = Console(highlight=False)
    if "thresholds" in figures:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for head in ("positive from score", "precision", "recall", "share of rows"):
            table.add_column(head, justify="right")
        for threshold, *shares in figures["thresholds"]:
            table.add_row(f"{threshold:g}", *(f"{part:.4f}" for part in shares))
        console.print(table)
    if 0 < len(figures.get("classes", ())) <= SHOWN_CLASSES:
        table = Table("class, told as", box=SIMPLE_HEAD, pad_edge=False)
        for name in figures["classes"]:
            table.add_column(Text(name), justify="right")
        for name, counts in zip(figures["classes"], figures["confusion"], strict=True):
            table.add_row(Text(name), *(f"{count:,}" for count in counts))
        console.print(table)


def _check_scores(cfg: Config, options: argparse.Namespace) -> None:
    """Raises ConfigError for an option that needs a score a row, where there is none."""
    given = [f"--{name}={value}" for name, value in (("by", " ".join(options.by)), ("scores", options.scores)) if value]
    if given and cfg.etl.label.task == "tokens":
        raise ConfigError(
            f"{given[0]} needs a score a row, and config.etl.label=NextToken() has none: its rows are packed of several texts; "
            f"`mlprod evaluate --split` tells log loss and perplexity of a split"
        )


def main(cfg: Config, options: argparse.Namespace) -> None:
    """The verb `evaluate`: prints metrics of a checkpoint on a split, and keeps them as JSON in the run's folder."""
    _check_scores(cfg, options)
    if options.scores:
        check_output("--scores", options.scores)
    plan = make_plan(cfg, jax.devices(), trained_on(cfg.workdir))
    if not plan.manifest.num_rows(options.split):
        raise DataError(f"--split={options.split} of {cfg.dataset} has no rows; raise its share in config.etl.split")
    columns = segments.check_columns(plan, options.by)
    state, run = restore_for(plan, options.step)
    written = ScoreFile(options.scores, plan.features.target) if options.scores else None
    scored = segments.Scored() if columns else None
    sinks: list[Sink] = [sink for sink in (written, scored) if sink is not None]
    found = measure(plan, score_of(plan), state, options.split, sinks=sinks)
    if written is not None:
        written.close()
    metrics, figures = values_of(found), {name: figure for metric in found for name, figure in metric.figures().items()}
    rows = scored.rows() if scored is not None else {}
    by = {column.name: segments.by_segment(plan, options.split, column, rows) for column in columns}
    show(metrics, f"{cfg.name}, step {run.step}, {options.split} split")
    show_figures(figures)
    segments.show(by)
    path = Path(cfg.workdir) / "evaluations" / f"{options.split}-{run.step:08d}.json"
    told = {"step": run.step, "split": options.split, "dataset_id": plan.manifest.dataset_id, "task": plan.features.target.task}
    write_atomically(path, json.dumps({**told, "metrics": metrics, "by": by, "figures": figures}, indent=1))
