"""Metrics by task as (zero, merge, finish): small sums and scores leave the device, the host adds them.

Promise: sums leave as float32 and are added in float64, counts are integers, so a metric is the same on any layout up to
the device's own rounding of one batch. What is ranked is exact from stored scores up to a size, and beyond it within a stated
bound.
Price: ranking keeps 9 bytes a row up to that size, 1 MiB beyond; a number's figures are of its first rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np

from mlprod.features import Target
from mlprod.models.protocol import Batch
from mlprod.objective import Objective

BINS = 1 << 16
POINTS = 200  # of a curve, at most
CALIBRATION = 10  # bins of equal width
THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN = 1 << 20  # rows whose residuals are drawn: the first in the order of evaluation, which is that of a hash
LARGEST_EXPONENT = math.log(np.finfo(np.float64).max)
CONFUSED = 64  # classes of which a confusion table is kept


def batch_sums(objective: Objective, outputs: jax.Array, loss: tuple[jax.Array, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """What leaves the device of a batch: "loss" and "weight", float32 sums, and what the objective tells of its rows.

    All of the global batch, for a process of several has the rows of its devices alone.
    """
    return {"loss": loss[0], "weight": loss[1], **objective.told(outputs, batch)}


def row_losses(target: Target, score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns float64[B], the loss of each row by its score; no probability counts as less than 2^-24, as float32 has them."""
    if target.task == "regression":
        return np.asarray(((label.astype(np.float64) - score) / target.std) ** 2)
    of_label = np.take_along_axis(score, label.astype(np.int64)[:, None], 1)[:, 0] if score.ndim > 1 else abs(1 - label - score)
    return np.asarray(-np.log(np.maximum(of_label.astype(np.float64), 2.0**-24)))


class Metric(Protocol):
    """One metric over an evaluation: starts at zero, merges batches on the host, finishes to values and figures."""

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch: its fetched `batch_sums`."""
        ...

    def finish(self) -> dict[str, float]:
        """Returns the metric's values by name."""
        ...

    def figures(self) -> dict[str, Any]:
        """Returns curves and tables by name, as JSON data."""
        ...


# ---- binary ------------------------------------------------------------------------------------------------------------


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the exact area under the ROC curve; `scores` [N], `labels` [N] in {0, 1}. Ties count a half; NaN for one class.

    The Mann-Whitney statistic (Hanley, McNeil, Radiology 143, 1982).
    """
    _, positive, negative = _by_score(scores, labels)
    return _area(positive, negative)[0]


def _by_score(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (distinct scores, ascending; rows with label 1 of each; rows with label 0 of each)."""
    order = np.argsort(scores, kind="stable")
    distinct, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    positive = np.add.reduceat((labels[order] > 0.5).astype(np.int64), first) if len(first) else np.zeros(0, np.int64)
    return distinct, positive, counts - positive


def _area(positive: np.ndarray, negative: np.ndarray) -> tuple[float, float]:
    """Returns (area, bound of its error) from counts per ascending score bin, int64[K] each, ties counted a half."""
    below = np.cumsum(negative) - negative
    pairs = int(positive.sum()) * int(negative.sum())
    if not pairs:
        return float("nan"), 0.0
    tied = int((positive * negative).sum())
    return (2 * int((positive * below).sum()) + tied) / (2 * pairs), tied / (2 * pairs)


def _above(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many rows with label 1, and with label 0, have at least each score, from counts per ascending score [K]."""
    return np.cumsum(positive[::-1])[::-1], np.cumsum(negative[::-1])[::-1]


def average_precision(positive: np.ndarray, negative: np.ndarray) -> float:
    """Returns the area under the precision-recall curve from counts per ascending score; NaN where no row is positive.

    The sum of precisions at each score, weighted by the recall it adds, without interpolation between them (Davis, Goadrich,
    "The relationship between precision-recall and ROC curves", ICML 2006, tell why).
    """
    hits, misses = _above(positive, negative)
    if not positive.sum():
        return float("nan")
    return float((positive / positive.sum() * (hits / np.maximum(hits + misses, 1))).sum())


@dataclass
class LogLoss:
    """Mean cross-entropy, weighted; and that of a constant, the training rows' share of each class."""

    shares: Sequence[float]  # of each class in the training rows
    total: float = 0.0
    weight: float = 0.0
    of_class: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's sum and weights."""
        self.total += float(sums["loss"])
        self.weight += float(sums["weight"])
        weights = np.asarray(sums["weight_of"], np.float64)
        found = np.bincount(np.asarray(sums["label"]).astype(np.int64), weights, minlength=len(self.shares))
        self.of_class = self.of_class + found if len(self.of_class) else found

    def finish(self) -> dict[str, float]:
        """Returns {"log_loss": mean, "constant_log_loss": of the constant}; the latter not where the shares are not known."""
        if not self.weight:
            return {"log_loss": float("nan")}
        told = {"log_loss": self.total / self.weight}
        if all(share > 0 for share, there in zip(self.shares, self.of_class, strict=True) if there):
            pairs = zip(self.shares, self.of_class, strict=True)
            told["constant_log_loss"] = -sum(math.log(share) * there for share, there in pairs if there) / self.weight
        return told

    def figures(self) -> dict[str, Any]:
        """Returns none."""
        return {}


@dataclass
class Accuracy:
    """Share of rows, weights apart, whose likeliest class is the label's: of a binary label, on its side of 0.5."""

    rows: int = 0
    correct: int = 0

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's counts."""
        score, label = _real(sums)
        told = score > 0.5 if score.ndim == 1 else score.argmax(axis=1)
        self.rows += len(label)
        self.correct += int((told == label.astype(np.int64)).sum())

    def finish(self) -> dict[str, float]:
        """Returns {"accuracy": share, "rows": count}."""
        return {"accuracy": self.correct / self.rows if self.rows else float("nan"), "rows": float(self.rows)}

    def figures(self) -> dict[str, Any]:
        """Returns none."""
        return {}


def _real(sums: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (scores, labels) of a batch's rows with weight."""
    real = np.asarray(sums["weight_of"]) > 0
    return np.asarray(sums["score"])[real], np.asarray(sums["label"])[real]


@dataclass
class Ranking:
    """Areas under the ROC and precision-recall curves, and the curves: exact while there are at most `limit` rows, from 2^16 bins
    beyond."""

    limit: int
    scores: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    rows: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros((2, BINS), np.int64))  # [label, score bin]

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds the scores and labels of a batch's real rows."""
        score, label = _real(sums)
        positive = label > 0.5
        self.rows += len(score)
        at = np.clip((score.astype(np.float64) * BINS).astype(np.int64), 0, BINS - 1)
        for code in (0, 1):
            self.bins[code] += np.bincount(at[positive == bool(code)], minlength=BINS)
        if self.rows <= self.limit:
            self.scores.append(score)
            self.labels.append(positive)
        else:
            self.scores, self.labels = [], []

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.rows <= self.limit:
            empty = [np.zeros(0, np.float32)]
            return _by_score(np.concatenate(self.scores or empty), np.concatenate(self.labels or empty))
        return np.arange(BINS) / BINS, self.bins[1], self.bins[0]

    def finish(self) -> dict[str, float]:
        """Returns {"auc": area, "pr_auc": area} and, where they come from bins, {"auc_bound": how far the first can be off}."""
        _, positive, negative = self._counts()
        area, bound = _area(positive, negative)
        told = {"auc": area, "pr_auc": average_precision(positive, negative)}
        return told if self.rows <= self.limit else {**told, "auc_bound": bound}

    def figures(self) -> dict[str, Any]:
        """Returns "roc" [[fpr, tpr]], "pr" [[recall, precision]], "thresholds" [[threshold, precision, recall, flagged share]]
        and "scores", a histogram; nothing where there is one class alone."""
        scores, positive, negative = self._counts()
        hits, misses = _above(positive, negative)
        if not len(hits) or not hits[0] or not misses[0]:
            return {}
        tpr, fpr = np.append(hits / hits[0], 0.0)[::-1], np.append(misses / misses[0], 0.0)[::-1]
        precision = hits / np.maximum(hits + misses, 1)
        thresholds = []
        for threshold in THRESHOLDS:
            at = int(np.searchsorted(scores, threshold))
            if at < len(hits):
                flagged = (hits[at] + misses[at]) / (hits[0] + misses[0])
                thresholds.append([threshold, float(precision[at]), float(hits[at] / hits[0]), float(flagged)])
        width = self.bins.shape[1] // 32
        return {
            "roc": _thinned(fpr, tpr), "pr": _thinned((hits / hits[0])[::-1], precision[::-1]), "thresholds": thresholds,
            "scores": {
                "edges": [i / 32 for i in range(33)],
                **{n: self.bins[c].reshape(32, width).sum(axis=1).tolist() for c, n in enumerate(("negative", "positive"))},
            },
        }  # fmt: skip


def _thinned(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """Returns at most `POINTS` points of a curve along which `x` ascends, the first and last among them."""
    at = np.unique(np.searchsorted(x, np.linspace(float(x[0]), float(x[-1]), POINTS - 1)).clip(0, len(x) - 1))
    at = np.unique(np.concatenate([at, [0, len(x) - 1]]))
    return [[float(x[i]), float(y[i])] for i in at]


@dataclass
class Calibration:
    """How far scores are from the shares they foretell: the expected calibration error, over ten bins of equal width, each by its
    rows (Naeini, Cooper, Hauskrecht, AAAI 2015). Of classes, of the likeliest one."""

    sums: np.ndarray = field(default_factory=lambda: np.zeros((3, CALIBRATION)))  # scores, hits, rows of each bin

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's rows."""
        score, label = _real(sums)
        hit = label > 0.5 if score.ndim == 1 else score.argmax(axis=1) == label.astype(np.int64)
        sure = score if score.ndim == 1 else score.max(axis=1)
        at = np.clip((sure * CALIBRATION).astype(np.int64), 0, CALIBRATION - 1)
        for row, weights in enumerate((sure.astype(np.float64), hit.astype(np.float64), np.ones(len(hit)))):
            self.sums[row] += np.bincount(at, weights, minlength=CALIBRATION)

    def finish(self) -> dict[str, float]:
        """Returns {"calibration_error": mean distance}."""
        scores, hits, rows = self.sums
        return {"calibration_error": float(np.abs(scores - hits).sum() / rows.sum()) if rows.sum() else float("nan")}

    def figures(self) -> dict[str, Any]:
        """Returns "calibration" [[mean score, observed share, rows]]."""
        scores, hits, rows = self.sums
        return {"calibration": [[float(s / n), float(h / n), int(n)] for s, h, n in zip(scores, hits, rows, strict=True) if n]}


# ---- a number ----------------------------------------------------------------------------------------------------------


@dataclass
class Errors:
    """Of a number: root of the mean squared error and mean absolute error in the column's unit, weighted, and R2."""

    std: float  # of the training labels
    mean: float
    total: float = 0.0
    weight: float = 0.0
    absolute: float = 0.0
    labels: float = 0.0
    squares: float = 0.0
    rows: int = 0
    kept: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's sums, and its rows."""
        self.total += float(sums["loss"])
        self.weight += float(sums["weight"])
        score, label, weight = (np.asarray(sums[name], np.float64) for name in ("score", "label", "weight_of"))
        off = (label - self.mean) / self.std
        self.absolute += float((np.abs(score - label) * weight).sum())
        self.labels += float((off * weight).sum())
        self.squares += float((off * off * weight).sum())
        self.rows += int((weight > 0).sum())
        if self.rows <= SHOWN:
            self.kept.append(_real(sums))

    def finish(self) -> dict[str, float]:
        """Returns {"rmse", "mae", "r2", "constant_rmse": of the training mean, "rows"}."""
        if not self.weight:
            return {name: float("nan") for name in ("rmse", "mae", "r2", "constant_rmse")} | {"rows": 0.0}
        spread = self.squares / self.weight - (self.labels / self.weight) ** 2
        return {
            "rmse": self.std * math.sqrt(self.total / self.weight), "mae": self.absolute / self.weight,
            "r2": 1 - self.total / self.weight / spread if spread > 0 else float("nan"),
            "constant_rmse": self.std * math.sqrt(self.squares / self.weight), "rows": float(self.rows),
        }  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """Returns "residuals", a histogram of label - score between their 1st and 99th percentile, and "predicted"
        [[mean score, mean label, rows]] over 20 bins of as many rows."""
        score, label = (np.concatenate([pair[i] for pair in self.kept] or [np.zeros(0)]).astype(np.float64) for i in (0, 1))
        if not len(score):
            return {}
        residuals = label - score
        low, high = np.quantile(residuals, [0.01, 0.99])
        counts, edges = np.histogram(residuals, np.linspace(low, high, 41) if low < high else 1)
        bins = np.array_split(np.argsort(score, kind="stable"), min(20, len(score)))
        predicted = [[float(score[at].mean()), float(label[at].mean()), len(at)] for at in bins]
        return {"residuals": {"edges": edges.tolist(), "counts": counts.tolist()}, "predicted": predicted}


# ---- classes -----------------------------------------------------------------------------------------------------------


@dataclass
class Confusion:
    """How many rows of each class were told as each, of at most `CONFUSED` classes."""

    classes: Sequence[str]
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's rows."""
        size = len(self.classes)
        score, label = _real(sums)
        if size <= CONFUSED:
            found = np.bincount(label.astype(np.int64) * size + score.argmax(axis=1), minlength=size * size)
            self.counts = self.counts + found if len(self.counts) else found

    def finish(self) -> dict[str, float]:
        """Returns none: accuracy has one of its own."""
        return {}

    def figures(self) -> dict[str, Any]:
        """Returns "classes" and "confusion" [[rows of class i told as j]]; nothing where there are more classes."""
        if not len(self.counts):
            return {}
        return {"classes": list(self.classes), "confusion": self.counts.reshape(len(self.classes), -1).tolist()}


# ---- tokens ------------------------------------------------------------------------------------------------------------


@dataclass
class Perplexity:
    """Mean cross-entropy of a predicted token, weighted by its row, and the number of equally likely tokens that has it."""

    total: float = 0.0
    weight: float = 0.0
    rows: int = 0

    def merge(self, sums: Mapping[str, np.ndarray]) -> None:
        """Adds a batch's sums and its real rows."""
        self.total += float(sums["loss"])
        self.weight += float(sums["weight"])
        self.rows += int((np.asarray(sums["weight_of"]) > 0).sum())

    def finish(self) -> dict[str, float]:
        """Returns {"log_loss": nats a token, "perplexity", "tokens": predicted, "rows": count}."""
        mean = self.total / self.weight if self.weight else float("nan")
        perplexity = math.exp(mean) if not mean > LARGEST_EXPONENT else float("inf")
        return {"log_loss": mean, "perplexity": perplexity, "tokens": self.weight, "rows": float(self.rows)}

    def figures(self) -> dict[str, Any]:
        """Returns none."""
        return {}


def metrics_of(target: Target, auc_rows: int) -> Sequence[Metric]:
    """Returns fresh metrics of a task."""
    if target.task == "regression":
        return (Errors(std=target.std, mean=target.mean),)
    if target.task == "tokens":
        return (Perplexity(),)
    if target.task == "classes":
        rows = max(sum(target.counts), 1)
        return (LogLoss([count / rows for count in target.counts]), Accuracy(), Calibration(), Confusion(target.classes))
    return (LogLoss([1 - target.mean, target.mean]), Ranking(limit=auc_rows), Calibration(), Accuracy())
