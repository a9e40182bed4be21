"""Scores as columns of a Parquet file: of a label or number one, of classes the likeliest and the probability of each."""

import numpy as np
import pyarrow as pa

from mlprod.features import Target


def score_fields(target: Target) -> list[pa.Field]:
    """Returns the columns of scores: "score" float32; of classes "prediction", its probability "score", and each one's."""
    fields = [pa.field("score", pa.float32())]
    if target.task != "classes":
        return fields
    return [pa.field("prediction", pa.string()), *fields, *(pa.field(f"probability_{c}", pa.float32()) for c in target.classes)]


def class_names(target: Target, numbers: np.ndarray) -> pa.Array:
    """Returns string[B]: the classes of these numbers, of any dtype."""
    return pa.array(target.classes, pa.string()).take(pa.array(numbers.astype(np.int64)))


def score_columns(target: Target, scores: np.ndarray, there: np.ndarray | None = None) -> dict[str, pa.Array]:
    """Returns the columns of `score_fields` from scores float32[B], of classes [B, C]; null where bool[B] `there` is False."""
    missing = None if there is None else ~there
    if target.task != "classes":
        return {"score": pa.array(scores, pa.float32(), mask=missing)}
    names = class_names(target, scores.argmax(axis=1))
    columns = {"prediction": names if missing is None else pa.array(names.to_pylist(), pa.string(), mask=missing)}
    columns["score"] = pa.array(scores.max(axis=1), pa.float32(), mask=missing)
    for i, name in enumerate(target.classes):
        columns[f"probability_{name}"] = pa.array(scores[:, i], pa.float32(), mask=missing)
    return columns
