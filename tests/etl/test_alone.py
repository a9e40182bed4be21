"""What one feature alone tells of a number or of classes: exact on values, by bins of numbers, nothing by chance."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, r2_score

from mlprod.etl.alone import BINS, FEW, told_alone
from mlprod.etl.settle import LABEL
from mlprod.features import Feature, Target

NUMBER, CLASSES = Target(task="regression", mean=0.0, std=1.0), Target(task="classes", classes=("a", "b", "c"), counts=(1, 1, 1))
X, WORD = Feature(name="x", kind="numeric"), Feature(name="x", kind="categorical", vocabulary=("u", "v", "w"))


def tables(x: np.ndarray, label: list[float] | list[str], held_out: int) -> tuple[pa.Table, pa.Table]:
    """Returns (training rows, the last `held_out` rows)."""
    rows = pa.table({"x": x, LABEL: pa.array(label, pa.string() if isinstance(label[0], str) else pa.float32())})
    return rows.slice(0, len(rows) - held_out), rows.slice(len(rows) - held_out)


def test_a_number_that_is_the_label_tells_all() -> None:
    """Up to the width of a bin; a number without relation tells nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000)
    told = told_alone(*tables(x, (3 * x + 7).tolist(), 1000), X, NUMBER)
    assert told["tells_all"]
    assert told["alone"] > 1 - 8 / BINS
    told = told_alone(*tables(x, rng.normal(size=4000).tolist(), 1000), X, NUMBER)
    assert not told["tells_all"]
    assert abs(told["alone"]) < 0.1


def test_a_category_is_scored_by_its_training_mean() -> None:
    """As scikit-learn has R2; a value that training has not seen counts as the mean of all."""
    rng = np.random.default_rng(1)
    words = np.array(["u", "v", "w", "new"])[rng.integers(0, 3, 600)]
    words[-20:] = "new"
    label = ({"u": 1.0, "v": 2.0, "w": 5.0, "new": 2.0}[w] + rng.normal() for w in words)
    train, held_out = tables(words, list(label), 200)
    means = {
        w: np.mean([y for v, y in zip(train["x"].to_pylist(), train[LABEL].to_pylist(), strict=True) if v == w]) for w in "uvw"
    }
    scores = [means.get(w, np.mean(train[LABEL].to_pylist())) for w in held_out["x"].to_pylist()]
    told = told_alone(train, held_out, WORD, NUMBER)
    assert told["alone"] == pytest.approx(r2_score(held_out[LABEL].to_pylist(), scores), rel=1e-6)
    assert not told["tells_all"]


def test_classes_are_scored_by_the_most_frequent() -> None:
    """As scikit-learn has accuracy; a category that is the class tells all."""
    rng = np.random.default_rng(2)
    words = np.array(["u", "v", "w"])[rng.integers(0, 3, 900)]
    kinds = [{"u": "a", "v": "b", "w": "c"}[w] if rng.random() < 0.8 else "a" for w in words]
    train, held_out = tables(words, kinds, 300)
    expected = accuracy_score(held_out[LABEL].to_pylist(), [{"u": "a", "v": "b", "w": "c"}[w] for w in held_out["x"].to_pylist()])
    told = told_alone(train, held_out, WORD, CLASSES)
    assert told == {"alone": pytest.approx(expected), "tells_all": False}
    exact = [{"u": "a", "v": "b", "w": "c"}[w] for w in words]
    assert told_alone(*tables(words, exact, 300), WORD, CLASSES) == {"alone": 1.0, "tells_all": True}


def test_few_rows_and_a_class_that_nearly_all_have_tell_nothing() -> None:
    """What is right by chance is no leak."""
    x = np.arange(200.0)
    assert not told_alone(*tables(x, x.tolist(), FEW - 1), X, NUMBER)["tells_all"]
    kinds = ["b" if i % 150 == 0 else "a" for i in range(600)]
    told = told_alone(*tables(np.arange(600.0), kinds, 200), X, CLASSES)
    assert told["alone"] > 0.99
    assert not told["tells_all"]


def test_labels_that_are_all_one_cannot_be_told() -> None:
    """R2 of a constant is not defined."""
    assert told_alone(*tables(np.arange(200.0), [1.0] * 200, 100), X, NUMBER) == {}
