"""Fits the transform on the training split: exact medians, complete vocabularies.

Promise: the same for any chunk size, order of reading or number of buckets. A median is the lower middle element, so it is
a value of the column.
Price: four passes over the numeric columns (a radix selection, 16 bits a pass) and 512 KiB a column; a vocabulary is held
in memory.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column
from mlprod.errors import DataError
from mlprod.etl.schema import combined
from mlprod.features import Feature, FeatureSpec, as_text

_DIGIT = 16
_SIGN = np.uint64(1 << 63)

# Gives a function each of the tables and yields what it returns, in the tables' order.
Over = Callable[[Callable[[pa.Table], Any]], Iterable[Any]]


def sortable(values: np.ndarray) -> np.ndarray:
    """Returns uint64[B] whose unsigned order is the numeric order of `values` (float64 or int64 [B])."""
    bits = np.ascontiguousarray(values).view(np.uint64)
    if values.dtype == np.int64:
        return bits ^ _SIGN
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def unsortable(word: int, dtype: np.dtype) -> float:
    """Returns the number whose `sortable` word is `word`."""
    bits = np.array([word], np.uint64)
    if dtype == np.int64:
        return int((bits ^ _SIGN).view(np.int64)[0])
    return float(np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float64)[0])


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the values of a column that are not null, int64 or float64 [K]."""
    array = combined(pc.drop_null(column))
    return np.asarray(pc.cast(array, pa.int64()) if pa.types.is_boolean(array.type) else array)


def lower_medians(over: Over, columns: Sequence[Column]) -> dict[str, float]:
    """Returns {column: its lower middle element} over all tables, exactly.

    A radix selection: each pass counts the next 16 bits of the values that share the prefix found so far.

    Raises:
        DataError: a column without any value.
    """
    prefix = {c.name: 0 for c in columns}
    rank: dict[str, int] = {}
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        counts = _summed(over(partial(_digits, [c.name for c in columns], shift, prefix)))
        for c in columns:
            below = np.cumsum(counts[c.name])
            if not below[-1]:
                raise DataError(f"column {c.name!r} has no value in the training split; leave it out of config.etl.columns")
            wanted = rank.get(c.name, (int(below[-1]) - 1) // 2)
            digit = int(np.searchsorted(below, wanted, side="right"))
            rank[c.name] = wanted - (int(below[digit - 1]) if digit else 0)
            prefix[c.name] = (prefix[c.name] << _DIGIT) | digit
    return {c.name: unsortable(prefix[c.name], np.dtype(np.float64 if c.type == "float64" else np.int64)) for c in columns}


def _digits(names: Sequence[str], shift: int, prefix: Mapping[str, int], table: pa.Table) -> dict[str, np.ndarray]:
    """Returns {column: int64[65536], how many values with the column's prefix have each next digit}."""
    counts = {}
    for name in names:
        words = sortable(_numbers(table[name]))
        if shift < 64 - _DIGIT:
            words = words[words >> np.uint64(shift + _DIGIT) == np.uint64(prefix[name])]
        digits = (words >> np.uint64(shift)) & np.uint64((1 << _DIGIT) - 1)
        counts[name] = np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT)
    return counts


def _summed(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for part in parts:
        for name, counts in part.items():
            total[name] = total[name] + counts if name in total else counts
    return total


def vocabularies(over: Over, columns: Sequence[Column]) -> dict[str, tuple[str, ...]]:
    """Returns {column: its training values as text, sorted}, those rarer than `min_count` left to the unknown slot.

    Raises:
        DataError: a column without any value.
    """
    counts: dict[str, Counter[str]] = {c.name: Counter() for c in columns}
    for found in over(partial(_value_counts, columns)):
        for name, values in found.items():
            counts[name].update(values)
    for c in columns:
        if not counts[c.name]:
            raise DataError(f"column {c.name!r} has no value in the training split; leave it out of config.etl.columns")
    return {c.name: tuple(sorted(v for v, n in counts[c.name].items() if n >= c.min_count)) for c in columns}


def _value_counts(columns: Sequence[Column], table: pa.Table) -> dict[str, dict[str, int]]:
    counts = {}
    for c in columns:
        found = pc.value_counts(combined(pc.drop_null(table[c.name])))
        values = found.field("values")
        text = values.to_pylist() if c.type == "string" else as_text(values.to_numpy(zero_copy_only=False)).tolist()
        counts[c.name] = dict(zip(text, found.field("counts").to_pylist(), strict=True))
    return counts


def fit(over: Over, columns: Sequence[Column]) -> FeatureSpec:
    """Fits the features among `columns` over the tables of the training split; means and scales follow when it is written."""
    features = [c for c in columns if c.role == "feature"]
    medians = lower_medians(over, [c for c in features if c.kind == "numeric"])
    words = vocabularies(over, [c for c in features if c.kind == "categorical"])
    return FeatureSpec(
        features=tuple(
            Feature(name=c.name, kind=c.kind, fill=float(medians[c.name]))
            if c.kind == "numeric"
            else Feature(name=c.name, kind=c.kind, vocabulary=words[c.name])
            for c in features
        )
    )
