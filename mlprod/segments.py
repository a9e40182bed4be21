"""Metrics of parts of a split: `evaluate --by COLUMN`.

Promise: each row is in one segment of each column; a segment's metrics are those of a split that has no other rows.
Price: the column, and a score a row, of the whole split in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlprod.config import METRICS
from mlprod.errors import DataError, nearest
from mlprod.etl.write import stored_values
from mlprod.manifest import StoredColumn
from mlprod.metrics import metrics_of, row_losses
from mlprod.plan import Plan

MOST = 20  # segments of a column: the largest, and all others as one
PARTS = 10  # of a number, each with as many rows


@dataclass
class Scored:
    """The rows of a split as they were scored, in any order."""

    parts: list[Mapping[str, np.ndarray]] = field(default_factory=list)

    def __call__(self, rows: Mapping[str, np.ndarray]) -> None:
        """Takes rows: a sink of `evaluate`."""
        self.parts.append(rows)

    def rows(self) -> dict[str, np.ndarray]:
        """Returns all rows, in the order of their ids."""
        rows = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.argsort(rows["row_id"])
        return {name: values[order] for name, values in rows.items()}


def check_columns(plan: Plan, names: Sequence[str]) -> list[StoredColumn]:
    """Returns the stored columns of these names.

    Raises:
        DataError: one is not stored, of lists, or sensitive.
    """
    known = {c.name: c for c in plan.manifest.columns if c.name not in ("label", "row_id")}
    for name in names:
        if name not in known:
            raise DataError(f"--by={name}: {plan.cfg.dataset} stores no such column{nearest(name, known)}")
        if known[name].kind == "list":
            raise DataError(f"--by={name} is of lists, by which rows cannot be told apart; take another column")
        if known[name].sensitive:
            raise DataError(f"--by={name} is a sensitive column, whose values are not shown; take another")
    return [known[name] for name in names]


def by_segment(plan: Plan, split: str, column: StoredColumn, rows: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns [{"value": text, "rows": count, metric: value, ...}] of a column, the largest first; of a number, in its order.

    Args:
        rows: of the split, in the order of their ids, see `Scored.rows`.
    """
    texts, ordered = _texts(plan, split, column, rows["row_id"])
    values, segment, counts = np.unique(texts, return_inverse=True, return_counts=True)
    largest = np.argsort(-counts, kind="stable")
    told = [{"value": str(values[i]), **_metrics(plan, rows, segment == i)} for i in largest[:MOST]]
    if len(values) > MOST:
        rest = np.isin(segment, largest[MOST:])
        told.append({"value": f"({len(values) - MOST} others)", **_metrics(plan, rows, rest)})
    return sorted(told, key=lambda row: ordered.index(row["value"])) if ordered else told


def _metrics(plan: Plan, rows: Mapping[str, np.ndarray], inside: np.ndarray) -> dict[str, float]:
    """Returns the metrics of the rows at bool[N]."""
    target = plan.features.target
    score, label, weight = (rows[name][inside] for name in ("score", "label", "weight"))
    loss = (row_losses(target, score, label) * weight).sum()
    metrics = metrics_of(target, plan.cfg.eval.auc_rows)
    for metric in metrics:
        metric.merge({"loss": loss, "weight": weight.sum(), "score": score, "label": label, "weight_of": weight})
    found = {name: value for metric in metrics for name, value in metric.finish().items()}
    return {"rows": int(found["rows"]), **{name: found[name] for name in METRICS[target.task]}}


def _texts(plan: Plan, split: str, column: StoredColumn, row_ids: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns (the segment of each row, in the order of `row_ids`, ascending; the segments in order where there is one)."""
    found = list(_values(plan, split, column))
    ids, values = np.concatenate([part for part, _ in found]), pa.concat_arrays([part for _, part in found])
    values = values.take(pa.array(np.argsort(ids)))
    assert len(values) == len(row_ids)
    if column.kind == "categorical":
        words = next(f.words for f in plan.features.categorical if f.name == column.name)
        return np.array(words)[np.asarray(values)], []
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        return _cut(values)
    return np.asarray(pc.fill_null(pc.cast(values, pa.string()), "(missing)"), np.str_), []


def _cut(values: pa.Array) -> tuple[np.ndarray, list[str]]:
    """Returns (the text of each number's range, the ranges in order): one a value where there are few."""
    numbers = np.asarray(pc.cast(values, pa.float64(), safe=False).fill_null(np.nan))
    there = np.sort(numbers[~np.isnan(numbers)])
    distinct = np.unique(there)
    if len(distinct) <= PARTS:
        names, at = [f"{value:g}" for value in distinct], np.searchsorted(distinct, numbers)
    else:
        edges = np.unique(there[(np.arange(1, PARTS) * len(there)) // PARTS])
        ends = [f"{edge:g}" for edge in edges]
        names = [f"below {ends[0]}", *(f"{a} to {b}" for a, b in pairwise(ends)), f"{ends[-1]} and more"]
        at = np.searchsorted(edges, numbers, side="right")
    names.append("(missing)")
    return np.array(names)[np.where(np.isnan(numbers), len(names) - 1, at)], names


def _values(plan: Plan, split: str, column: StoredColumn) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yields (row ids, a column's values as they are stored) of each file of a split."""
    wanted = [c for c in plan.manifest.columns if c.stored_in in (column.stored_in, "row_id")]
    for shard in plan.manifest.splits[split]:
        with pq.ParquetFile(plan.store.open(shard.path)) as file:
            table = file.read(columns=["row_id", column.stored_in], use_threads=False)
        values = stored_values(wanted, table)
        found = values[column.stored_in if column.kind == "plain" else column.name]
        yield table["row_id"].to_numpy(), found if isinstance(found, pa.Array) else pa.array(found)


def show(by: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Prints a table a column."""
    console = Console(highlight=False)
    for name, segments in by.items():
        figures = [figure for figure in segments[0] if figure != "value"]
        table = Table(name, box=SIMPLE_HEAD, pad_edge=False)
        for figure in figures:
            table.add_column(figure, justify="right")
        for segment in segments:
            cells = (f"{segment[f]:,}" if f == "rows" else f"{segment[f]:.5f}" for f in figures)
            table.add_row(Text(segment["value"]), *cells)
        console.print(table)
