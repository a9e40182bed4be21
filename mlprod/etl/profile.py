"""What each column of a dataset looks like, split by split: the figures of the data report.

Promise: the same for any chunk size, number of workers and order of reading, as the rows are: the first in stored order.
Price: up to 70 ms of processor time a column, for 65,536 rows of each of three splits.

Drift between train and eval is told by two measures. The population stability index, the sum over bins of (a - e) ln(a / e) for
the shares e of train and a of eval (Siddiqi: "Credit Risk Scorecards", Wiley 2006): bins are the deciles of train, or its
`CATEGORIES` most frequent values and the rest; missing values are a bin; half a row is added to every bin, so that an empty one
has a logarithm. And the two-sample Kolmogorov-Smirnov statistic, the largest distance between the two distribution functions
(Hodges: "The significance probability of the Smirnov two-sample test", Arkiv för Matematik 3, 1958).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column
from mlprod.etl.alone import told_alone
from mlprod.etl.schema import combined
from mlprod.features import Feature, FeatureSpec, Target

BINS = 20  # of a histogram
TAIL = 0.005  # share of the training rows that a histogram leaves out at each end
CATEGORIES = 20  # bins of a categorical column, besides the rest and the missing
FREQUENT = 10  # values that are listed
LONGEST = 200  # characters of a listed value


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """What is seen of one column. Counts by split are of the rows looked at."""

    rows: Mapping[str, int]
    missing: Mapping[str, int]
    distinct: int  # values in the training rows looked at
    low: Any = None  # in the rows looked at; of a timestamp as text, like `median`
    high: Any = None
    median: Any = None  # the lower middle one of the training rows looked at
    histogram: Mapping[str, Any] | None = None  # {"edges": [K + 1], split: rows in each of the K bins}
    frequent: Sequence[Mapping[str, Any]] | None = None  # [{"value": text, split: rows with it}], most frequent in train first
    psi: float | None = None
    psi_by_chance: float = 0.0  # what few rows give where there is no drift
    ks: float | None = None
    alone: float | None = None  # what the feature alone tells of the label, on eval: see `alone.py`
    tells_all: bool = False  # which is too good to be true

    def shown(self, *, sensitive: bool) -> dict[str, Any]:
        """Returns what may be seen of the column, as JSON data: of a sensitive one, counts alone."""
        counts = {"missing_seen": dict(self.missing), "distinct": self.distinct}
        figures = ("median", "histogram", "frequent", "psi", "ks", "alone")
        return counts | {name: None if sensitive else getattr(self, name) for name in figures}


def is_number(c: Column) -> bool:
    """Whether a column is looked at as a number, not value by value."""
    return c.type in ("int64", "float64", "timestamp") and not (c.role == "feature" and c.kind == "categorical")


def profiles(tables: Mapping[str, pa.Table], columns: Sequence[Column], spec: FeatureSpec) -> dict[str, Profile]:
    """Returns {column: what is seen of it} from the rows of each split, see `stored.sample`."""
    fitted = {f.name: f for f in (*spec.numeric, *spec.categorical)}
    return {c.name: _profile(tables, c, fitted.get(c.name), spec.target) for c in columns}


def _profile(tables: Mapping[str, pa.Table], c: Column, feature: Feature | None, target: Target) -> Profile:
    parts = {split: combined(table[c.name]) for split, table in tables.items()}
    told: dict[str, Any] = _of_numbers(parts) if is_number(c) else _of_values(parts)
    if c.type == "timestamp":
        told = _as_times(told)
    if feature and "eval" in tables:
        told |= told_alone(tables["train"], tables["eval"], feature, target)
    return Profile(
        rows={split: len(part) for split, part in parts.items()},
        missing={split: part.null_count for split, part in parts.items()},
        distinct=pc.count_distinct(parts["train"]).as_py(),
        **told,
    )


# ---- numbers -----------------------------------------------------------------------------------------------------------


def _of_numbers(parts: Mapping[str, pa.Array]) -> dict[str, Any]:
    numbers = {split: np.sort(_numbers(part)) for split, part in parts.items()}
    train, held_out = numbers["train"], numbers.get("eval", np.zeros(0))
    if not len(train):
        return {}
    ends = [values for values in numbers.values() if len(values)]
    told: dict[str, Any] = {
        "low": min(float(values[0]) for values in ends), "high": max(float(values[-1]) for values in ends),
        "median": float(train[(len(train) - 1) // 2]),
    }  # fmt: skip
    edges = bin_edges(train, whole=not pa.types.is_floating(parts["train"].type))
    if len(edges) > 1:
        counts = {split: np.histogram(values, edges)[0].tolist() for split, values in numbers.items()}
        told["histogram"] = {"edges": edges.tolist(), **counts}
    if "eval" in parts:
        deciles = np.unique(train[(np.arange(1, 10) * len(train)) // 10])
        told |= drift(*(decile_counts(numbers[split], deciles, parts[split].null_count) for split in ("train", "eval")))
    return told | ({"ks": ks(train, held_out)} if len(held_out) else {})


def _numbers(part: pa.Array) -> np.ndarray:
    """Returns float64[K]: the values that are not null; of timestamps, microseconds."""
    values = pc.drop_null(part)
    return np.asarray(pc.cast(values, pa.int64()) if pa.types.is_timestamp(part.type) else values).astype(np.float64)


def bin_edges(values: np.ndarray, *, whole: bool) -> np.ndarray:
    """Returns the edges of a histogram of float64[K], ascending, over all but the `TAIL`s; none where all are one value.

    Args:
        whole: they are integers, so each bin holds as many of them as every other.
    """
    low, high = (float(values[int(at * (len(values) - 1))]) for at in (TAIL, 1 - TAIL))
    if low == high:
        low, high = float(values[0]), float(values[-1])
    if low == high:
        return np.zeros(0)
    if whole:
        width = -(-(high - low + 1) // BINS)
        edges = low - 0.5 + width * np.arange(min(-(-(high - low + 1) // width), BINS) + 1)
        return np.unique(np.append(edges[:-1], max(edges[-1], high)))  # beyond 2^53 not every integer is a float64
    at = np.linspace(0.0, 1.0, BINS + 1)
    return np.unique(low * (1 - at) + high * at)  # high - low may be beyond float64


def decile_counts(values: np.ndarray, deciles: np.ndarray, missing: int) -> np.ndarray:
    """Returns how many of float64[K] lie up to each decile, above the last, and are missing."""
    return np.append(np.bincount(np.searchsorted(deciles, values), minlength=len(deciles) + 1), missing)


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the two-sample Kolmogorov-Smirnov statistic of float64[N] and float64[M], both sorted."""
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


def _as_times(told: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is told of a timestamp's microseconds with times as text, UTC, to the second."""

    def text(us: float) -> str:
        return str(np.datetime64(round(us), "us").astype("datetime64[s]")).replace("T", " ")

    times: dict[str, Any] = {name: text(told[name]) for name in ("low", "high", "median") if name in told}
    if "histogram" in told:
        times["histogram"] = told["histogram"] | {"edges": [text(us) for us in told["histogram"]["edges"]]}
    return {**told, **times}


# ---- values ------------------------------------------------------------------------------------------------------------


def _of_values(parts: Mapping[str, pa.Array]) -> dict[str, Any]:
    encoded = pa.chunked_array([pc.cast(part, pa.string()) for part in parts.values()]).combine_chunks().dictionary_encode()
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    codes = np.split(np.asarray(pc.fill_null(encoded.indices, len(encoded.dictionary))), ends)
    counts = {split: np.bincount(code, minlength=len(encoded.dictionary) + 1) for split, code in zip(parts, codes, strict=True)}
    seen = pa.table({"value": encoded.dictionary, "train": counts["train"][:-1]})
    at = np.asarray(pc.select_k_unstable(seen, CATEGORIES, [("train", "descending"), ("value", "ascending")])).astype(np.int64)
    told: dict[str, Any] = {"frequent": _listed(encoded.dictionary, counts, at[:FREQUENT])}
    if "eval" in parts:
        told |= drift(*(_category_counts(counts[split], at) for split in ("train", "eval")))
    return told


def _listed(values: pa.Array, counts: Mapping[str, np.ndarray], at: np.ndarray) -> list[dict[str, Any]]:
    """Returns the values at `at` with their rows in each split; long ones are cut."""
    texts = [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in values.take(pa.array(at)).to_pylist()]
    return [
        {"value": text} | {split: int(n[i]) for split, n in counts.items()} for text, i in zip(texts, at.tolist(), strict=True)
    ]


def _category_counts(counts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the rows of the values at `at`, of all others together, and of the missing, which stand last in `counts`."""
    return np.append(counts[at], [counts[:-1].sum() - counts[at].sum(), counts[-1]])


# ---- drift -------------------------------------------------------------------------------------------------------------


def psi(expected: np.ndarray, actual: np.ndarray) -> float:
    """Returns the population stability index of rows in each bin, int64[K] each."""
    e, a = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (expected, actual))
    return float(((a - e) * np.log(a / e)).sum())


def drift(train: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Returns the index of rows in each bin, int64[K] each, and the one that only one in thousands of samples has by chance.

    Without drift it is (1/N + 1/M) times a chi-square of K - 1 (Yurdakul, Naranjo: "Statistical properties of the population
    stability index", Journal of Risk Model Validation 14, 2020): its mean and four deviations.
    """
    there = (train + held_out) > 0
    free = max(int(there.sum()) - 1, 0)
    by_chance = (1 / train.sum() + 1 / held_out.sum()) * (free + 4 * (2 * free) ** 0.5)
    return {"psi": psi(train[there], held_out[there]), "psi_by_chance": float(by_chance)}
