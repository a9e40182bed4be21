"""What one feature alone tells of the label: measured on eval by what the training rows say of its values.

Promise: a feature that is the label in disguise is told; what few rows may give by chance is not taken for that.
Price: it sees the rows that `profile` sees.

Of a binary label by the area under the ROC curve, of a number by R2, of classes by accuracy. A feature's score is a number's
value, or what the training rows with the same value, or in the same of `BINS` bins, have on the mean (or most often).
"""

from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.etl.label import stored_labels
from mlprod.etl.schema import raw_column
from mlprod.etl.settle import LABEL
from mlprod.features import Feature, FeatureSpec, Target, apply

MEASURES = {"binary": "AUC", "regression": "R2", "classes": "accuracy"}
TELLS_ALL = 0.99  # by each measure; an AUC below 1 - 0.99 does so too
BINS = 64  # of a number
FEW = 30  # eval rows, of which a number or classes are told by chance


def told_alone(train: pa.Table, held_out: pa.Table, feature: Feature, target: Target) -> dict[str, Any]:
    """Returns {"alone": the measure on eval, None where it cannot be told; "tells_all": whether it is too good}."""
    values = [_values(table, feature) for table in (train, held_out)]
    labels = [stored_labels(target, table[LABEL]) for table in (train, held_out)]
    if target.task == "binary":
        return _area(feature, values, [part > 0.5 for part in labels])
    bins = values if feature.kind == "categorical" else _binned(*values)
    if target.task == "regression":
        return _explained(bins, [part.astype(np.float64) for part in labels])
    return _right(bins, [part.astype(np.int64) for part in labels], len(target.classes))


def _values(table: pa.Table, feature: Feature) -> np.ndarray:
    """Returns a feature as a model sees it: float32[B], or int32[B] of ids."""
    arrays = apply(FeatureSpec(features=(feature,)), {feature.name: raw_column(table[feature.name])})
    return arrays["numeric"][:, 0] if feature.kind == "numeric" else arrays[feature.name]


def _binned(train: np.ndarray, held_out: np.ndarray) -> list[np.ndarray]:
    """Returns the bin of each number, int64[N] and int64[M]: between quantiles of the training rows."""
    edges = np.unique(np.sort(train)[(np.arange(1, BINS) * len(train)) // BINS])
    return [np.searchsorted(edges, part) for part in (train, held_out)]


def _area(feature: Feature, values: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, Any]:
    """Of labels bool[N] and bool[M]. Four deviations of an area without any relation are chance."""
    scores, positive = values[1], labels[1]
    if feature.kind == "categorical":
        scores = _means(values[0], values[1], labels[0].astype(np.float64))
    area, pairs = auc(scores, positive), int(positive.sum()) * int((~positive).sum())
    by_chance = 4 * ((len(positive) + 1) / (12 * pairs)) ** 0.5 if pairs else 0.0
    return {"alone": area, "tells_all": area is not None and abs(area - 0.5) > max(TELLS_ALL - 0.5, by_chance)}


def _means(train: np.ndarray, held_out: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64[M]: the mean of `labels`, float64[N], over the training rows with the same value; of a new one, of all."""
    size = int(max(train.max(), held_out.max())) + 1
    rows, sums = np.bincount(train, minlength=size), np.bincount(train, labels, minlength=size)
    means: np.ndarray = np.where(rows > 0, sums / np.maximum(rows, 1), labels.mean())[held_out]
    return means


def _explained(bins: list[np.ndarray], labels: list[np.ndarray]) -> dict[str, Any]:
    """Of numbers float64[N] and float64[M]: 1 - squared errors / squared distances from their mean."""
    off, spread = labels[1] - _means(bins[0], bins[1], labels[0]), labels[1] - labels[1].mean()
    if not spread.any():
        return {}
    r2 = float(1 - (off @ off) / (spread @ spread))
    return {"alone": r2, "tells_all": r2 > TELLS_ALL and len(off) >= FEW}


def _right(bins: list[np.ndarray], labels: list[np.ndarray], num_classes: int) -> dict[str, Any]:
    """Of class numbers int64[N] and int64[M]: how often the class that most training rows of the value have is the right one."""
    size = int(max(part.max() for part in bins)) + 1
    counts = np.zeros((size, num_classes), np.int64)
    np.add.at(counts, (bins[0], labels[0]), 1)
    seen = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), np.bincount(labels[0]).argmax())
    right, usual = float((seen[bins[1]] == labels[1]).mean()), float(np.bincount(labels[1]).max() / len(labels[1]))
    return {"alone": right, "tells_all": right > max(TELLS_ALL, (1 + usual) / 2) and len(labels[1]) >= FEW}


def auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Returns the area under the ROC curve of scores [N] for bool[N], ties counted a half; None for one class."""
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of tied scores, the mean of theirs
    above = ranks[inverse][positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))
