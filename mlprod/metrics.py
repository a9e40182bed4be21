"""Metrics of a binary classifier as (zero, update, merge, finish): small sums leave the device, the host adds them.

Promise: sums leave as float32 and are added in float64, counts are integers, so a metric is the same on any layout up to
the device's own rounding of one batch. AUC is exact from stored scores up to a size, and beyond it within a stated bound.
Price: AUC keeps 9 bytes a row up to that size, 1 MiB beyond.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mlprod.models.protocol import Batch

BINS = 1 << 16


def batch_sums(logits: jax.Array, loss: tuple[jax.Array, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """The `update` on the device: "score" float32[B], "positive" bool[B], "real" bool[B] (with weight), and sums of one batch.

    "rows" and "correct" are int32 counts of rows with weight; "loss" and "weight" float32 sums. All of the global batch, for a
    process of several has the rows of its devices alone.
    """
    real, positive = batch["weight"] > 0, batch["label"] > 0.5
    correct = real & ((logits > 0) == positive)
    return {
        "loss": loss[0],
        "weight": loss[1],
        "rows": real.sum(dtype=jnp.int32),
        "correct": correct.sum(dtype=jnp.int32),
        "score": jax.nn.sigmoid(logits.astype(jnp.float32)),
        "positive": positive,
        "real": real,
    }


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the exact area under the ROC curve; `scores` [N], `labels` [N] in {0, 1}. Ties count a half; NaN for one class.

    The Mann-Whitney statistic (Hanley, McNeil, Radiology 143, 1982).
    """
    order = np.argsort(scores, kind="stable")
    _, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    positive = np.add.reduceat((labels[order] > 0.5).astype(np.int64), first) if len(first) else np.zeros(0, np.int64)
    return _area(positive, counts - positive)[0]


def _area(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Returns (area, bound of its error) from counts per ascending score bin, int64[K] each, ties counted a half."""
    below = np.cumsum(negative) - negative
    pairs = int(positive.sum()) * int(negative.sum())
    if not pairs:
        return float("nan"), 0.0
    tied = int((positive * negative).sum())
    return (2 * int((positive * below).sum()) + tied) / (2 * pairs), tied / (2 * pairs)


class Metric(Protocol):
    """One metric over an evaluation: starts at zero, merges batches on the host, finishes to values."""

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: its fetched `batch_sums`."""
        ...

    def finish(self) -> dict[str, float]:
        """Returns the metric's values by name."""
        ...


@dataclass
class LogLoss:
    """Mean binary cross-entropy, weighted."""

    total: float = 0.0
    weight: float = 0.0

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's sum and weight."""
        self.total += float(sums["loss"])
        self.weight += float(sums["weight"])

    def finish(self) -> dict[str, float]:
        """Returns {"log_loss": mean}."""
        return {"log_loss": self.total / self.weight if self.weight else float("nan")}


@dataclass
class Accuracy:
    """Share of rows whose score is on the label's side of 0.5."""

    rows: int = 0
    correct: int = 0

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's counts."""
        self.rows += int(sums["rows"])
        self.correct += int(sums["correct"])

    def finish(self) -> dict[str, float]:
        """Returns {"accuracy": share, "rows": count}."""
        return {"accuracy": self.correct / self.rows if self.rows else float("nan"), "rows": float(self.rows)}


@dataclass
class Auc:
    """Area under the ROC curve: exact while there are at most `limit` rows, from 2^16 bins beyond."""

    limit: int
    scores: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    rows: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros((2, BINS), np.int64))  # [label, score bin]

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds the scores and labels of a batch's real rows."""
        score, label = (np.asarray(sums[name])[sums["real"]] for name in ("score", "positive"))
        self.rows += len(score)
        at = np.clip((score.astype(np.float64) * BINS).astype(np.int64), 0, BINS - 1)
        for code in (0, 1):
            self.bins[code] += np.bincount(at[label == bool(code)], minlength=BINS)
        if self.rows <= self.limit:
            self.scores.append(score)
            self.labels.append(label)
        else:
            self.scores, self.labels = [], []

    def finish(self) -> dict[str, float]:
        """Returns {"auc": area} and, where it comes from bins, {"auc_bound": how far it can be off}."""
        if self.rows <= self.limit:
            empty = [np.zeros(0, np.float32)]
            return {"auc": auc(np.concatenate(self.scores or empty), np.concatenate(self.labels or empty))}
        area, bound = _area(self.bins[1], self.bins[0])
        return {"auc": area, "auc_bound": bound}


def binary_metrics(auc_rows: int) -> Sequence[Metric]:
    """Returns fresh metrics of a binary label."""
    return (LogLoss(), Auc(limit=auc_rows), Accuracy())
