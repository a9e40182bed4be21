"""What is told of a column, against plain computations over the same rows."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import Column, categorical, numeric
from mlprod.etl.alone import auc
from mlprod.etl.profile import BINS, CATEGORIES, FREQUENT, LONGEST, bin_edges, ks, profiles, psi
from mlprod.etl.settle import LABEL
from mlprod.features import Feature, FeatureSpec
from tests.rows import number

FLOATS = st.lists(st.floats(-1e300, 1e300) | st.integers(-3, 3).map(float), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(FLOATS, FLOATS)
def test_ks_is_the_largest_distance_between_the_distribution_functions(a, b):
    distances = [abs(sum(v <= x for v in a) / len(a) - sum(v <= x for v in b) / len(b)) for x in [*a, *b]]
    assert ks(np.sort(a), np.sort(b)) == max(distances)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_auc_is_the_share_of_pairs_in_order(rows):
    ups, downs = ([score for score, positive in rows if positive is wanted] for wanted in (True, False))
    found = auc(np.array([score for score, _ in rows]), np.array([positive for _, positive in rows]))
    if not ups or not downs:
        assert found is None
    else:
        wins = sum((up > down) + 0.5 * (up == down) for up in ups for down in downs)
        assert found == pytest.approx(wins / (len(ups) * len(downs)), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12))
def test_psi_is_the_sum_over_bins(rows):
    e, a = np.array(rows, np.int64).T
    shares = [[(n + 0.5) / (sum(part) + 0.5 * len(part)) for n in part] for part in (e.tolist(), a.tolist())]
    assert psi(e, a) == pytest.approx(sum((y - x) * math.log(y / x) for x, y in zip(*shares, strict=True)), abs=1e-12)
    assert psi(e, a) == pytest.approx(psi(a, e), abs=1e-12)
    assert psi(e, a) >= 0
    assert psi(e, e) == 0


@settings(deadline=None, max_examples=40)
@given(FLOATS)
def test_bins_of_numbers_ascend_and_hold_the_bulk(values):
    ordered = np.sort(np.array(values))
    edges = bin_edges(ordered, whole=False)
    if ordered[0] == ordered[-1]:
        assert len(edges) == 0
    else:
        assert len(edges) <= BINS + 1
        assert (np.diff(edges) > 0).all()
        assert edges[0] <= ordered[(len(ordered) - 1) // 2] <= edges[-1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=60))
def test_bins_of_integers_hold_as_many_of_them_each(values):
    ordered = np.sort(np.array(values, np.float64))
    edges = bin_edges(ordered, whole=True)
    if len(edges):
        assert len(set(np.diff(edges).tolist())) == 1
        assert np.diff(edges)[0] % 1 == 0
        assert edges[0] % 1 == 0.5
        assert 1 < len(edges) <= BINS + 1


# ---- a table, column by column -----------------------------------------------------------------------------------------

SIZES = {"train": 500, "eval": 200, "test": 100}
COLUMNS = (
    numeric("x"), numeric("n", type="int64"), categorical("word"), Column(name="at", type="timestamp", role="time"),
    numeric("flag", type="bool"), Column(name="id", type="int64", role="group"),
)  # fmt: skip
WORDS = [f"w{i:02d}" for i in range(30)]
SPEC = FeatureSpec(
    features=(
        Feature(name="x", kind="numeric", fill=0.25), Feature(name="n", kind="numeric"),
        Feature(name="word", kind="categorical", vocabulary=tuple(WORDS[:25])), Feature(name="flag", kind="numeric"),
    )
)  # fmt: skip


def a_row(i: int) -> dict[str, object]:
    """Row `i`: x shifts behind the training rows, a tenth of it is missing; words are not equally frequent."""
    x = None if number(i, 1) < 0.1 else number(i, 2) + (i >= SIZES["train"]) * 0.3
    word = None if number(i, 3) < 0.05 else WORDS[int(number(i, 4) ** 2 * 30)]
    return {
        "x": x, "n": int(number(i, 5) * 7), "word": word, "at": i * 10**12, "flag": number(i, 6) < 0.3, "id": i,
        LABEL: float(number(i, 7) < 0.2 + 0.5 * (x or 0)),
    }  # fmt: skip


def a_table(start: int, rows: int) -> pa.Table:
    types = {
        "x": pa.float64(),
        "n": pa.int64(),
        "word": pa.string(),
        "at": pa.timestamp("us"),
        "flag": pa.bool_(),
        "id": pa.int64(),
    }
    schema = pa.schema([*types.items(), (LABEL, pa.float32())])
    return pa.Table.from_pylist([a_row(i) for i in range(start, start + rows)], schema)


TABLES = {"train": a_table(0, 500), "eval": a_table(500, 200), "test": a_table(700, 100)}
SEEN = profiles(TABLES, COLUMNS, SPEC)


def values(name: str, split: str) -> list:
    return TABLES[split][name].to_pylist()


def there(name: str, split: str) -> list:
    return [v for v in values(name, split) if v is not None]


@pytest.mark.parametrize("name", [c.name for c in COLUMNS])
def test_counts(name):
    assert SEEN[name].rows == SIZES
    assert SEEN[name].missing == {split: values(name, split).count(None) for split in SIZES}
    assert SEEN[name].distinct == len(set(there(name, "train")))


@pytest.mark.parametrize("name", ["x", "n", "id"])
def test_ends_median_and_histogram(name):
    seen, train = SEEN[name], sorted(there(name, "train"))
    everywhere = [v for split in SIZES for v in there(name, split)]
    assert (seen.low, seen.high, seen.median) == (min(everywhere), max(everywhere), train[(len(train) - 1) // 2])
    edges = seen.histogram["edges"]
    for split in SIZES:
        at = [sum(e <= v for e in edges) - 1 - (v == edges[-1]) for v in there(name, split) if edges[0] <= v <= edges[-1]]
        assert seen.histogram[split] == [at.count(i) for i in range(len(edges) - 1)]
    assert sum(seen.histogram["train"]) >= 0.98 * len(train)
    assert seen.frequent is None


def test_drift_of_numbers_is_told_on_the_deciles_of_train():
    train = sorted(there("x", "train"))
    cuts = sorted({train[k * len(train) // 10] for k in range(1, 10)})
    bins = {
        split: [*(sum(lo < v <= hi for v in there("x", split)) for lo, hi in zip([-9, *cuts], [*cuts, 9], strict=True)),
                values("x", split).count(None)]
        for split in ("train", "eval")
    }  # fmt: skip
    assert SEEN["x"].psi == psi(np.array(bins["train"]), np.array(bins["eval"]))
    assert SEEN["x"].psi > 0.25 > SEEN["n"].psi
    assert SEEN["x"].ks == ks(np.sort(there("x", "train")), np.sort(there("x", "eval")))
    assert SEEN["word"].ks is None


def test_the_most_frequent_values_and_their_drift():
    counts = {split: Counter(there("word", split)) for split in SIZES}
    order = sorted(counts["train"], key=lambda v: (-counts["train"][v], v))
    wanted = [{"value": v, **{split: counts[split][v] for split in SIZES}} for v in order[:FREQUENT]]
    assert SEEN["word"].frequent == wanted
    bins = [
        [
            *(n[v] for v in order[:CATEGORIES]),
            sum(n.values()) - sum(n[v] for v in order[:CATEGORIES]),
            values("word", split).count(None),
        ]
        for split, n in counts.items()
    ]
    assert SEEN["word"].psi == psi(np.array(bins[0]), np.array(bins[1]))
    assert SEEN["word"].histogram is None


def test_auc_alone_is_that_of_what_a_model_sees():
    """Of the filled number; of a category, by the share of positives among its training rows, an unknown one by that of all."""
    positive = np.array(values(LABEL, "eval")) > 0.5
    assert SEEN["x"].alone == auc(np.array([0.25 if v is None else v for v in values("x", "eval")], np.float32), positive)
    seen = [v if v is None or v in WORDS[:25] else "rare" for v in values("word", "train")]
    labels = dict.fromkeys(seen)
    labels = {v: [y for w, y in zip(seen, values(LABEL, "train"), strict=True) if w == v] for v in labels}
    scores = [np.mean(labels[v if v is None or v in WORDS[:25] else "rare"]) for v in values("word", "eval")]
    assert SEEN["word"].alone == auc(np.array(scores), positive)
    assert SEEN["id"].alone is None


def test_times_are_told_as_text():
    """A row every million seconds: ends of all rows, the median of the training rows, a histogram between times."""
    seen = SEEN["at"]
    assert (seen.low, seen.median, seen.high) == ("1970-01-01 00:00:00", "1977-11-21 22:40:00", "1995-04-27 16:26:40")
    assert len(seen.histogram["edges"]) == BINS + 1
    assert seen.histogram["edges"] == sorted(seen.histogram["edges"])
    assert seen.psi > 1


def test_a_long_value_is_cut():
    table = pa.table({"t": ["a" * 1000, "b"], LABEL: pa.array([0.0, 1.0], pa.float32())})
    seen = profiles({"train": table}, [Column(name="t", type="string", role="input")], FeatureSpec(features=()))["t"]
    assert [len(v["value"]) for v in seen.frequent] == [LONGEST, 1]
    assert (seen.psi, seen.alone) == (None, None)


def test_a_column_without_a_value_tells_nothing():
    table = pa.table({"x": pa.array([None, None], pa.float64()), LABEL: pa.array([0.0, 1.0], pa.float32())})
    seen = profiles({"train": table, "eval": table}, [Column(name="x", type="float64", role="input")], FeatureSpec(features=()))
    assert (seen["x"].distinct, seen["x"].low, seen["x"].histogram, seen["x"].psi) == (0, None, None, None)
