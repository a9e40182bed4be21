"""The fitted transform as data, and the one function that applies it: raw columns in, the arrays a model sees out.

Promise: ETL, `predict` and anything that serves a model call the same `apply`, so a row gives the same bits everywhere.
Price: numpy only; a categorical value costs one binary search in its vocabulary.

A categorical's ids: 0 unknown, 1 missing, then the vocabulary in sorted order; a list has some of these, then 1 up to its length.
A numeric is filled and stored as float32; centring and scaling are the model's first layer, with the constants kept here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import numpy as np

from mlprod import documents
from mlprod.compare import as_json
from mlprod.config import Column, Made
from mlprod.errors import DataError
from mlprod.hashing import key_of_text
from mlprod.made import RawColumn, as_text, with_made
from mlprod.manifest import canonical

UNKNOWN, MISSING, FIRST = 0, 1, 2
MOST_IDS, MOST_LENGTH = 1 << 30, 1 << 24  # of a feature, as `config.Column` has them; a length is of a packed text too
OF_MODEL = ("clip_low", "clip_high", "log", "scale")  # which no dataset holds
_MADE = {cls.__name__: cls for cls in get_args(Made)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """What was fitted for one feature on the training split."""

    name: str
    kind: str  # "numeric", "categorical" or "list"
    fill: float = 0.0  # numeric: the training median
    mean: float = 0.0  # numeric: of the filled training values
    std: float = 1.0  # numeric: of the filled training values; 1 where they are constant
    quantiles: tuple[float, ...] = ()  # numeric: 65, from least to greatest, of the first training rows' values that are there
    vocabulary: tuple[str, ...] = ()  # categorical, list: values as text, sorted
    buckets: int = 0  # categorical, list: that values are hashed into, in place of a vocabulary
    length: int = 0  # list: ids a row
    separator: str = "|"  # list: between the values in a text
    # numeric: what the config wants of the model, not of the dataset; see `config.Column`
    clip_low: float = -math.inf
    clip_high: float = math.inf
    log: bool = False
    scale: str = "model"

    @property
    def num_ids(self) -> int:
        """Rows of the embedding table: the vocabulary, or the buckets, and the two reserved slots."""
        return (self.buckets or len(self.vocabulary)) + FIRST

    @property
    def words(self) -> tuple[str, ...]:
        """What each id of a category stands for, for people; of a bucket many values."""
        known = tuple(f"(bucket {i})" for i in range(self.buckets)) if self.buckets else self.vocabulary
        return ("(unknown)", "(missing)", *known)


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
    made: Mapping[str, Made] = field(default_factory=dict)  # columns made of others, each of those before it

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """The features that make the `numeric` matrix of a batch, in its column order."""
        return tuple(f for f in self.features if isinstance(f, Feature) and f.kind == "numeric")

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """The features that are one array of ids each in a batch."""
        return tuple(f for f in self.features if isinstance(f, Feature) and f.kind == "categorical")

    @property
    def lists(self) -> tuple[Feature, ...]:
        """The features that are a matrix of ids each in a batch, of categories that a row has several of."""
        return tuple(f for f in self.features if isinstance(f, Feature) and f.kind == "list")

    @property
    def matrices(self) -> tuple[Feature | Sequence, ...]:
        """The features that are a matrix of ids each in a batch, in the order in which they are stored."""
        return (*self.lists, *self.sequences)

    @property
    def fitted(self) -> tuple[Feature, ...]:
        """The features that come of columns, in the order in which they are stored: numeric, categorical, lists."""
        return (*self.numeric, *self.categorical, *self.lists)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """The features that are a matrix of ids each in a batch."""
        return tuple(f for f in self.features if isinstance(f, Sequence))


def _encode(feature: Feature, raw: RawColumn) -> np.ndarray:
    """Returns int32[B] ids of a categorical column."""
    ids = np.full(len(raw.valid), MISSING, np.int32)
    if not (feature.vocabulary or feature.buckets) or not raw.valid.any():
        return np.where(raw.valid, np.int32(UNKNOWN), ids)
    if raw.codes is None:
        values, inverse = np.unique(raw.values[raw.valid], return_inverse=True)  # search each distinct value once
    else:
        values, inverse = raw.values, raw.codes[raw.valid]
    ids[raw.valid] = _ids_of(feature, as_text(values))[inverse]
    return ids


def _encode_list(feature: Feature, raw: RawColumn) -> np.ndarray:
    """Returns int32[B, length] ids of a column of lists, each filled up with the missing slot."""
    texts, codes = (raw.values, raw.codes) if raw.codes is not None else np.unique(raw.values, return_inverse=True)
    lists = [values_of(feature, text) for text in texts.tolist()]
    ids = np.full((len(lists) + 1, feature.length), MISSING, np.int32)  # the last one: of rows without a list
    words = np.array([word for words in lists for word in words], np.str_)
    if len(words):
        distinct, inverse = np.unique(words, return_inverse=True)
        known = feature.vocabulary or feature.buckets
        of_words = np.where(distinct == "", MISSING, _ids_of(feature, distinct) if known else UNKNOWN)
        there = np.arange(feature.length) < np.array([len(words) for words in lists])[:, None]
        ids[:-1][there] = of_words[inverse]
    return ids[np.where(raw.valid, codes, len(lists))]


def values_of(column: Column | Feature, text: str) -> list[str]:
    """Returns the values of a list that a model sees, the first ones: what its text has between separators; "" is missing."""
    length = column.max_len if isinstance(column, Column) else column.length
    return text.split(column.separator)[:length] if text else []


def _ids_of(feature: Feature, text: np.ndarray) -> np.ndarray:
    """Returns int[K]: the ids of values as text [K]."""
    if feature.buckets:
        return np.array([key_of_text(value) % feature.buckets + FIRST for value in text.tolist()])
    vocabulary = np.array(feature.vocabulary, np.str_)
    at = np.minimum(np.searchsorted(vocabulary, text), len(vocabulary) - 1)
    found: np.ndarray = np.where(vocabulary[at] == text, at + FIRST, UNKNOWN)
    return found


def _fill(feature: Feature, raw: RawColumn) -> np.ndarray:
    """Returns float32[B]: the values, with the training median where there is none."""
    with np.errstate(over="ignore"):  # ETL refuses such a value, and `predict` gives its row a reason instead of a score
        return np.where(raw.valid, raw.values, feature.fill).astype(np.float32)


def apply(spec: FeatureSpec, columns: Mapping[str, RawColumn]) -> dict[str, np.ndarray]:
    """Returns {"numeric": float32[B, F]}, and by their names int32[B] of ids per categorical feature, int32[B, length] per list.

    A column that is made of others is made here, unless it is given.

    Raises:
        KeyError: `columns` lacks a feature of `spec`, or what one is made of.
    """
    num_rows = len(next(iter(columns.values())).valid)
    columns = with_made(spec.made, columns, [f.name for f in spec.fitted])
    numeric = [_fill(f, columns[f.name]) for f in spec.numeric]
    arrays = {"numeric": np.stack(numeric, axis=1) if numeric else np.zeros((num_rows, 0), np.float32)}
    arrays |= {f.name: _encode(f, columns[f.name]) for f in spec.categorical}
    return arrays | {f.name: _encode_list(f, columns[f.name]) for f in spec.lists}


def for_model(spec: FeatureSpec, columns: Iterable[Column]) -> FeatureSpec:
    """Returns the transform with what the columns of a config want of the model."""
    wanted = {c.name: {name: getattr(c, name) for name in OF_MODEL} for c in columns}
    told = [replace(f, **wanted.get(f.name, {})) if isinstance(f, Feature) else f for f in spec.features]
    return replace(spec, features=tuple(told))


def dumps(spec: FeatureSpec) -> str:
    """Returns the transform as canonical JSON text: what was fitted. What an older mlprod had no word for is left out where it
    says nothing."""
    body = asdict(spec)
    for feature in body["features"]:
        for name in OF_MODEL:
            feature.pop(name, None)
        if not feature.get("buckets", 1):
            del feature["buckets"]
        if not feature.get("length", 1):
            del feature["length"], feature["separator"]
    body["made"] = {name: as_json(made) for name, made in spec.made.items()}
    return canonical(body if spec.made else {name: value for name, value in body.items() if name != "made"})


def _with_tuples(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}


def loads(text: str) -> FeatureSpec:
    """Reads what `dumps` wrote.

    Raises:
        DataError: the text is not a fitted transform.
    """
    try:
        body: dict[str, Any] = documents.parse(text)
        features = [(Sequence if f["kind"] == "sequence" else Feature)(**_with_tuples(f)) for f in body["features"]]
        target = Target(**_with_tuples(body.get("target", {})))
        made = {name: _made(each) for name, each in body.get("made", {}).items()}
        _check(features)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a fitted transform: {type(error).__name__}: {error}; build the dataset again") from error
    return FeatureSpec(features=tuple(features), target=target, made=made)


def _check(features: Iterable[Feature | Sequence]) -> None:
    """Raises ValueError where a size is none that a column can have: a table or a batch is made of it."""
    for f in features:
        sizes = (f.length, f.num_ids if isinstance(f, Sequence) else f.buckets)
        if not all(map(documents.is_count, sizes)) or f.length > MOST_LENGTH or sizes[1] > MOST_IDS:
            raise ValueError(f"{f.name!r} has {sizes[1]} ids and a length of {f.length}")
        numbers = () if isinstance(f, Sequence) else (f.fill, f.mean, f.std)
        if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
            raise ValueError(f"{f.name!r} has {numbers} for numbers")


def _made(body: Mapping[str, Any]) -> Made:
    fields = {name: value for name, value in body.items() if name != "class"}
    made: Made = _MADE[body["class"]](**_with_tuples(fields))
    return made
