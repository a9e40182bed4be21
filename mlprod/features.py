"""The fitted transform as data, and the one function that applies it: raw columns in, the arrays a model sees out.

Promise: ETL, `predict` and anything that serves a model call the same `apply`, so a row gives the same bits everywhere.
Price: numpy only; a categorical value costs one binary search in its vocabulary.

A categorical's ids: 0 unknown, 1 missing, then the vocabulary in sorted order. A numeric is filled and stored as float32;
centring and scaling are the model's first layer, with the constants kept here.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlprod.errors import DataError
from mlprod.manifest import canonical

UNKNOWN, MISSING, FIRST = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class RawColumn:
    """A column before the transform. `values`: [B] int64, float64, bool or str; `valid`: bool[B], False where null.

    With `codes`, int[B], `values` holds distinct ones alone, [K], and row i has `values[codes[i]]`.
    """

    values: np.ndarray
    valid: np.ndarray
    codes: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """What was fitted for one feature on the training split."""

    name: str
    kind: str  # "numeric" or "categorical"
    fill: float = 0.0  # numeric: the training median
    mean: float = 0.0  # numeric: of the filled training values
    std: float = 1.0  # numeric: of the filled training values; 1 where they are constant
    quantiles: tuple[float, ...] = ()  # numeric: 65, from least to greatest, of the first training rows' values that are there
    vocabulary: tuple[str, ...] = ()  # categorical: values as text, sorted

    @property
    def num_ids(self) -> int:
        """Rows of the embedding table: the vocabulary and the two reserved slots."""
        return len(self.vocabulary) + FIRST


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequence:
    """A feature of many ids a row, as many in every row. Packed text has two: "tokens", and "segments", of which each is one
    document's tokens in a row: 1, 2, ... in their order, 0 for padding."""

    name: str
    length: int  # ids a row
    num_ids: int  # that there are
    kind: str = "sequence"
    vocabulary: str = ""  # SHA-256 of the tokenizer's file; "": the ids are no tokens of a file's


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is learned, as the training split has it."""

    task: str = "binary"  # or "regression", "classes", "tokens"
    column: str = ""  # that it comes from
    mean: float = 0.0  # of the labels: the share of positives
    std: float = 1.0  # of the labels
    classes: tuple[str, ...] = ()  # as text, sorted, of all splits; a label is its number
    counts: tuple[int, ...] = ()  # training rows of each class


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """The whole fitted transform, in the order in which features are stored."""

    features: tuple[Feature | Sequence, ...]
    target: Target = Target()

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """The features that make the `numeric` matrix of a batch, in its column order."""
        return tuple(f for f in self.features if isinstance(f, Feature) and f.kind == "numeric")

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """The features that are one array of ids each in a batch."""
        return tuple(f for f in self.features if isinstance(f, Feature) and f.kind == "categorical")

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The features that are a matrix of ids each in a batch."""
        return tuple(f for f in self.features if isinstance(f, Sequence))


def as_text(values: np.ndarray) -> np.ndarray:
    """Returns [B] categorical values as numpy text: integers and bools in decimal."""
    if values.dtype == bool:
        values = values.astype(np.int64)
    return values.astype(np.str_)


def _encode(feature: Feature, raw: RawColumn) -> np.ndarray:
    """Returns int32[B] ids of a categorical column."""
    ids = np.full(len(raw.valid), MISSING, np.int32)
    if not feature.vocabulary or not raw.valid.any():
        return np.where(raw.valid, np.int32(UNKNOWN), ids)
    if raw.codes is None:
        values, inverse = np.unique(raw.values[raw.valid], return_inverse=True)  # search each distinct value once
    else:
        values, inverse = raw.values, raw.codes[raw.valid]
    text, vocabulary = as_text(values), np.array(feature.vocabulary, np.str_)
    at = np.minimum(np.searchsorted(vocabulary, text), len(vocabulary) - 1)
    found = np.where(vocabulary[at] == text, at + FIRST, UNKNOWN)
    ids[raw.valid] = found[inverse]
    return ids


def _fill(feature: Feature, raw: RawColumn) -> np.ndarray:
    """Returns float32[B]: the values, with the training median where there is none."""
    with np.errstate(over="ignore"):  # ETL refuses such a value, and `predict` gives its row a reason instead of a score
        return np.where(raw.valid, raw.values, feature.fill).astype(np.float32)


def apply(spec: FeatureSpec, columns: Mapping[str, RawColumn]) -> dict[str, np.ndarray]:
    """Returns {"numeric": float32[B, F]} and one int32[B] of ids per categorical feature, by its name.

    Raises:
        KeyError: `columns` lacks a feature of `spec`.
    """
    num_rows = len(next(iter(columns.values())).valid)
    numeric = [_fill(f, columns[f.name]) for f in spec.numeric]
    arrays = {"numeric": np.stack(numeric, axis=1) if numeric else np.zeros((num_rows, 0), np.float32)}
    return arrays | {f.name: _encode(f, columns[f.name]) for f in spec.categorical}


def dumps(spec: FeatureSpec) -> str:
    """Returns the transform as canonical JSON text."""
    return canonical(asdict(spec))


def _with_tuples(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}


def loads(text: str) -> FeatureSpec:
    """Reads what `dumps` wrote.

    Raises:
        DataError: the text is not a fitted transform.
    """
    try:
        body: dict[str, Any] = json.loads(text)
        features = [(Sequence if f["kind"] == "sequence" else Feature)(**_with_tuples(f)) for f in body["features"]]
        target = Target(**_with_tuples(body.get("target", {})))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a fitted transform: {type(error).__name__}: {error}; build the dataset again") from error
    return FeatureSpec(features=tuple(features), target=target)
