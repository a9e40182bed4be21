"""Metrics equal scikit-learn's, on any cut of the rows into batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from mlprod.metrics import Accuracy, Auc, LogLoss, auc


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=2, max_size=60))
def test_auc_equals_scikit_learn_with_ties(rows: list[tuple[float, bool]]) -> None:
    """Ties count a half; one class alone has no AUC."""
    score, label = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows])
    if label.all() or not label.any():
        assert np.isnan(auc(score, label))
    else:
        assert auc(score, label) == pytest.approx(roc_auc_score(label, score), rel=1e-12)


def sums(score: np.ndarray, label: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """What `batch_sums` would leave the device with."""
    real = weight > 0
    return {
        "loss": np.float32(score.sum()),
        "weight": np.float32(weight.sum()),
        "rows": np.int32(real.sum()),
        "correct": np.int32((real & ((score > 0.5) == (label > 0.5))).sum()),
        "score": score,
        "positive": label > 0.5,
        "real": real,
    }


@pytest.mark.parametrize("size", [1, 7, 500])
def test_batches_do_not_matter_and_padding_does_not_count(size: int) -> None:
    """Any batch size gives the same AUC, accuracy and weights; rows of weight 0 are not there."""
    rng = np.random.default_rng(0)
    score, label = rng.random(500).astype(np.float32), (rng.random(500) < 0.3).astype(np.float32)
    weight = (rng.random(500) < 0.9).astype(np.float32)
    metrics = (LogLoss(), Accuracy(), Auc(limit=10_000), Auc(limit=10))
    for start in range(0, 500, size):
        part = slice(start, start + size)
        for metric in metrics:
            metric.merge(sums(score[part], label[part], weight[part]))
    loss, accuracy, exact, binned = (metric.finish() for metric in metrics)
    real = weight > 0
    assert metrics[0].weight == real.sum()
    assert loss["log_loss"] == pytest.approx(score.sum() / real.sum(), rel=1e-5)
    assert accuracy == {"accuracy": ((score > 0.5) == (label > 0.5))[real].mean(), "rows": real.sum()}
    assert exact == {"auc": pytest.approx(roc_auc_score(label[real], score[real]), rel=1e-12)}
    assert abs(binned["auc"] - exact["auc"]) <= binned["auc_bound"] < 1e-3
