"""Fits the transform on the training split: exact medians and means, complete vocabularies.

Promise: the same for any chunk size, order of reading or number of buckets. A median is the lower middle element, so it is
a value of the column.
Price: two passes over the columns, up to five more over those whose values crowd around the middle; a vocabulary is held in
memory, and of each numeric column up to a twentieth of its values.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column
from mlprod.errors import DataError
from mlprod.etl.derive import made_columns
from mlprod.etl.schema import combined
from mlprod.features import Feature, FeatureSpec, Target, values_of
from mlprod.made import as_text

_DIGIT = 16
_LAST = (1 << 64) - 1
TOGETHER = 1 << 19  # values of a column that are looked at at once
WIDEST = 0.05  # share of a column's values in a bracket
FEW = 1 << 14  # distinct values of a column that are counted one by one
_SIGN = np.uint64(1 << 63)


class Over(Protocol):
    """The tables that are fitted on, wherever they are looked at."""

    def __call__(self, act: Callable[[pa.Table], Any], most: int | None = None, /) -> Iterable[Any]:
        """Gives a function each of the tables, or the first `most`, and yields what it returns, in the tables' order."""
        ...


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


def _nothing(name: str) -> DataError:
    return DataError(f"column {name!r} has no value in the training split; leave it out of config.etl.columns")


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the values of a column that are not null, int64 or float64 [K]."""
    array = combined(pc.drop_null(column))
    return np.asarray(pc.cast(array, pa.int64()) if pa.types.is_boolean(array.type) else array)


@dataclass
class _Search:
    """Where a column's median is: among `left` words whose bits above the lowest `low_bits` are `prefix`, at place `rank`."""

    prefix: int
    low_bits: int
    rank: int
    left: int

    def among(self, words: np.ndarray) -> np.ndarray:
        """Returns those of uint64[K] that may be the median."""
        return words[words >> np.uint64(self.low_bits) == np.uint64(self.prefix)] if self.low_bits < 64 else words

    def narrow(self, counts: np.ndarray) -> None:
        """Goes on with the digit in which the rank falls; `counts`: int64[2^bits] of the next digits."""
        below = np.cumsum(counts)
        digit = int(np.searchsorted(below, self.rank, side="right"))
        self.rank -= int(below[digit - 1]) if digit else 0
        bits = min(_DIGIT, self.low_bits)
        self.prefix, self.low_bits, self.left = (self.prefix << bits) | digit, self.low_bits - bits, int(counts[digit])


def lower_medians(over: Over, columns: Sequence[Column]) -> dict[str, float]:
    """Returns {column: its lower middle element} over all tables, exactly. The first table is taken for a sample of all.

    One pass gathers the values of a bracket, which the sample says holds the median, and counts those below it; of a column whose
    bracket would hold many it counts each value, where they are few. Where neither tells, a radix selection counts 16 bits of the
    values a pass.

    Raises:
        DataError: a column without any value.
    """
    names = [c.name for c in columns]
    if not names:
        return {}
    (sample,) = over(partial(_words_of, names), 1)
    brackets = {name: _bracket(words) for name, words in sample.items()}
    seen = {name: _Seen() for name in names}
    for looks in over(partial(_first_look, brackets)):
        for name, look in looks.items():
            seen[name].add(look)
    words, searches = dict[str, int](), dict[str, _Search]()
    for name, column in seen.items():
        if not column.rows:
            raise _nothing(name)
        found = column.middle()
        if found is None:
            searches[name] = column.search()
        else:
            words[name] = found
    words |= _radix(over, searches)
    return {c.name: unsortable(words[c.name], np.dtype(np.float64 if c.type == "float64" else np.int64)) for c in columns}


def _words_of(names: Sequence[str], table: pa.Table) -> dict[str, np.ndarray]:
    """Returns {column: uint64[K], its values that are not null, see `sortable`}."""
    return {name: sortable(_numbers(table[name])) for name in names}


def _bracket(sample: np.ndarray) -> tuple[int, int]:
    """Returns words (low, high) between which the median is, as uint64[K] tells; (1, 0), which holds nothing, when many are."""
    if not len(sample):
        return 1, 0
    ordered, off = np.sort(sample), int(2 * len(sample) ** 0.5) + 1  # four standard deviations of the median's rank
    low, high = (int(ordered[min(max(len(sample) // 2 + by, 0), len(sample) - 1)]) for by in (-off, off))
    share = np.count_nonzero((sample >= np.uint64(low)) & (sample <= np.uint64(high))) / len(sample)
    return (low, high) if share <= WIDEST or len(sample) <= TOGETHER // 64 else (1, 0)


@dataclass(frozen=True)
class _Look:
    """What one pass sees of a column in a table. `inside`: those in its bracket; `tally`: see `_tally`, where there is none."""

    rows: int
    low: int
    high: int
    below: int
    inside: np.ndarray
    tally: tuple[np.ndarray, np.ndarray] | None


def _first_look(brackets: Mapping[str, tuple[int, int]], table: pa.Table) -> dict[str, _Look]:
    """Returns {column: how many values there are, their range, and what its bracket needs}."""
    looks = {}
    for name, (low, high) in brackets.items():
        words = sortable(_numbers(table[name]))
        ends = (int(words.min()), int(words.max())) if len(words) else (_LAST, 0)
        if low > high:
            looks[name] = _Look(len(words), *ends, 0, words[:0], _tally(words, np.ones(len(words), np.int64)))
            continue
        under = words < np.uint64(low)
        inside = words[~under & (words <= np.uint64(high))]
        looks[name] = _Look(len(words), *ends, int(np.count_nonzero(under)), inside, None)
    return looks


def _tally(words: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns (distinct words, ascending, how often each) of uint64[K], each there so often; None where more than `FEW` are."""
    distinct, which = np.unique(words, return_inverse=True)
    return (distinct, np.bincount(which, counts, len(distinct)).astype(np.int64)) if len(distinct) <= FEW else None


@dataclass
class _Seen:
    """What the looks at all tables say of a column."""

    rows: int = 0
    low: int = _LAST
    high: int = 0
    below: int = 0
    inside: list[np.ndarray] = field(default_factory=list)
    tally: tuple[np.ndarray, np.ndarray] | None = (np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def add(self, look: _Look) -> None:
        """Goes on with the next table."""
        self.rows, self.below = self.rows + look.rows, self.below + look.below
        self.low, self.high = min(self.low, look.low), max(self.high, look.high)
        self.inside.append(look.inside)
        both = self.tally and look.tally and [np.concatenate(pair) for pair in zip(self.tally, look.tally, strict=True)]
        self.tally = _tally(*both) if both else None

    @property
    def rank(self) -> int:
        """The place of the lower middle word."""
        return (self.rows - 1) // 2

    def middle(self) -> int | None:
        """Returns the lower middle word, None where it is not known."""
        if self.tally is not None:
            words, counts = self.tally
            return int(words[np.searchsorted(np.cumsum(counts), self.rank, side="right")])
        inside, at = np.concatenate(self.inside), self.rank - self.below
        return int(np.partition(inside, at)[at]) if 0 <= at < len(inside) else None

    def search(self) -> _Search:
        """Returns where a radix selection begins."""
        low_bits = (self.low ^ self.high).bit_length()
        return _Search(self.low >> low_bits, low_bits, self.rank, self.rows)


def _radix(over: Over, searches: dict[str, _Search]) -> dict[str, int]:
    """Returns {column: the word that its search ends at}."""
    words = dict[str, int]()
    while searches:
        told = list(over(partial(_looked_at, searches)))
        for name, search in dict(searches).items():
            parts = [part[name] for part in told]
            if search.left > TOGETHER and search.low_bits:
                search.narrow(np.sum(parts, axis=0))
            else:
                words[name] = int(np.partition(np.concatenate(parts), search.rank)[search.rank])
                del searches[name]
    return words


def _looked_at(searches: Mapping[str, _Search], table: pa.Table) -> dict[str, np.ndarray]:
    """Returns {column: the words that may be its median, or, of many, how many there are of each next digit}."""
    told = {}
    for name, search in searches.items():
        words = search.among(sortable(_numbers(table[name])))
        if search.left > TOGETHER and search.low_bits:
            bits = min(_DIGIT, search.low_bits)
            digits = (words >> np.uint64(search.low_bits - bits)) & np.uint64((1 << bits) - 1)
            told[name] = np.bincount(digits.astype(np.int64), minlength=1 << bits)
        else:
            told[name] = words
    return told


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
            raise _nothing(c.name)
    return {c.name: tuple(sorted(v for v, n in counts[c.name].items() if n >= c.min_count)) for c in columns}


def _value_counts(columns: Sequence[Column], table: pa.Table) -> dict[str, dict[str, int]]:
    counts = {}
    for c in columns:
        found = pc.value_counts(combined(pc.drop_null(table[c.name])))
        values, times = found.field("values"), found.field("counts").to_pylist()
        text = values.to_pylist() if c.type == "string" else as_text(values.to_numpy(zero_copy_only=False)).tolist()
        of_texts = dict(zip(text, times, strict=True))
        counts[c.name] = _in_lists(c, of_texts) if c.kind == "list" else of_texts
    return counts


def _in_lists(column: Column, counts: Mapping[str, int]) -> dict[str, int]:
    """Returns {value: in how many places of lists it is}; `counts`: rows of each list's text."""
    found = Counter[str]()
    for text, rows in counts.items():
        for word in values_of(column, text):
            found[word] += rows
    found.pop("", None)  # is missing
    return found


def classes(over: Mapping[str, Over], column: Column) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns (classes as text, sorted; training rows of each) from the labels of every split."""
    counts: dict[str, Counter[str]] = {split: Counter() for split in over}
    for split, some in over.items():
        for found in some(partial(_value_counts, [column])):
            counts[split].update(found[column.name])
    names = tuple(sorted(set().union(*counts.values())))
    return names, tuple(counts["train"][name] if "train" in counts else 0 for name in names)


def _fills(over: Over, columns: Sequence[Column]) -> dict[str, float]:
    """Returns {column: what stands for a missing number}."""
    constants = {c.name: c.constant for c in columns if c.missing == "constant"}
    means = exact_means(over, [c.name for c in columns if c.missing == "mean"])
    medians = lower_medians(over, [c for c in columns if c.name not in (constants.keys() | means.keys())])
    return {name: float(fill) for name, fill in (constants | means | medians).items()}


def exact_means(over: Over, names: Sequence[str]) -> dict[str, float]:
    """Returns {column: the mean of its values, rounded once}, whatever the tables are.

    Raises:
        DataError: a column without any value.
    """
    if not names:
        return {}
    sums, counts = dict.fromkeys(names, Fraction()), Counter[str]()
    for found in over(partial(_exact_sums, names)):
        for name, (total, count) in found.items():
            sums[name] += total
            counts[name] += count
    for name in names:
        if not counts[name]:
            raise _nothing(name)
    return {name: float(sums[name] / counts[name]) for name in names}


def _exact_sums(names: Sequence[str], table: pa.Table) -> dict[str, tuple[Fraction, int]]:
    """Returns {column: (the exact sum of its values, how many there are)}."""
    return {name: (exact_sum(_numbers(table[name])), len(table) - table[name].null_count) for name in names}


def exact_sum(values: np.ndarray) -> Fraction:
    """Returns the sum of float64[K] or int64[K] without any rounding: mantissas are added up by their exponents."""
    if values.dtype == np.int64:
        high, low = values >> 32, values & 0xFFFFFFFF
        return Fraction((int(high.sum()) << 32) + int(low.sum()))
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    total = Fraction()
    for exponent in np.unique(exponents).tolist():
        total += exact_sum(whole[exponents == exponent]) * Fraction(2) ** (exponent - 53)
    return total


def _feature(c: Column, fill: float, words: tuple[str, ...]) -> Feature:
    if c.kind == "numeric":
        return Feature(name=c.name, kind=c.kind, fill=fill)
    feature = Feature(name=c.name, kind=c.kind, vocabulary=words, buckets=c.buckets)
    return replace(feature, length=c.max_len, separator=c.separator) if c.kind == "list" else feature


def fit(over: Over, columns: Sequence[Column], target: Target) -> FeatureSpec:
    """Fits the features among `columns` over the tables of the training split; means and scales follow when it is written."""
    features = [c for c in columns if c.role == "feature"]
    fills = _fills(over, [c for c in features if c.kind == "numeric"])
    words = vocabularies(over, [c for c in features if c.kind != "numeric" and not c.buckets])
    return FeatureSpec(
        features=tuple(_feature(c, fills.get(c.name, 0.0), words.get(c.name, ())) for c in features),
        target=target,
        made=made_columns(columns),
    )
