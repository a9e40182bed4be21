"""Metrics equal scikit-learn's, on any cut of the rows into batches."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)

from mlprod.features import Target
from mlprod.metrics import Accuracy, LogLoss, Ranking, auc, batch_sums, metrics_of, row_losses
from mlprod.objective import objective_of


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
    return {
        "loss": np.float32((score.T * weight).sum()), "weight": np.float32(weight.sum()),
        "score": score, "label": label, "weight_of": weight,
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 500])
def test_batches_do_not_matter_and_padding_does_not_count(size: int) -> None:
    """Any batch size gives the same AUC, accuracy and weights; rows of weight 0 are not there."""
    rng = np.random.default_rng(0)
    score, label = rng.random(500).astype(np.float32), (rng.random(500) < 0.3).astype(np.float32)
    weight = (rng.random(500) < 0.9).astype(np.float32)
    metrics = (LogLoss([0.7, 0.3]), Accuracy(), Ranking(limit=10_000), Ranking(limit=10))
    for start in range(0, 500, size):
        part = slice(start, start + size)
        for metric in metrics:
            metric.merge(sums(score[part], label[part], weight[part]))
    loss, accuracy, exact, binned = (metric.finish() for metric in metrics)
    real = weight > 0
    assert metrics[0].weight == real.sum()
    assert loss["log_loss"] == pytest.approx(score[real].sum() / real.sum(), rel=1e-5)
    assert loss["constant_log_loss"] == pytest.approx(log_loss(label[real], np.full(real.sum(), 0.3)), rel=1e-12)
    assert accuracy == {"accuracy": ((score > 0.5) == (label > 0.5))[real].mean(), "rows": real.sum()}
    assert exact == {
        "auc": pytest.approx(roc_auc_score(label[real], score[real]), rel=1e-12),
        "pr_auc": pytest.approx(average_precision_score(label[real], score[real]), rel=1e-12),
    }
    assert abs(binned["auc"] - exact["auc"]) <= binned["auc_bound"] < 1e-3


def measured(target: Target, score: np.ndarray, label: np.ndarray, weight: np.ndarray, size: int) -> tuple[dict, dict]:
    """Values and figures of rows that come in batches."""
    metrics = metrics_of(target, 10_000)
    for start in range(0, len(label), size):
        part = slice(start, start + size)
        losses = row_losses(target, score[part], label[part])
        for metric in metrics:
            metric.merge({**sums(score[part], label[part], weight[part]), "loss": (losses * weight[part]).sum()})
    figures = {name: figure for metric in metrics for name, figure in metric.figures().items()}
    return {name: value for metric in metrics for name, value in metric.finish().items()}, figures


@pytest.mark.parametrize("size", [1, 64, 500])
def test_a_number_is_measured_as_scikit_learn_does(size: int) -> None:
    """Root mean squared and mean absolute error in the column's unit, and R2, with weights; rows of weight 0 are not there."""
    rng = np.random.default_rng(1)
    label = rng.normal(1000, 20, 500).astype(np.float32)
    score, weight = (label + rng.normal(0, 5, 500)).astype(np.float32), rng.integers(0, 3, 500).astype(np.float32)
    found, figures = measured(Target(task="regression", mean=990.0, std=20.0), score, label, weight, size)
    y, p = label.astype(np.float64), score.astype(np.float64)
    assert found == {
        "rmse": pytest.approx(root_mean_squared_error(y, p, sample_weight=weight), rel=1e-6),
        "mae": pytest.approx(mean_absolute_error(y, p, sample_weight=weight), rel=1e-6),
        "r2": pytest.approx(r2_score(y, p, sample_weight=weight), rel=1e-4),
        "constant_rmse": pytest.approx(root_mean_squared_error(y, np.full(500, 990.0), sample_weight=weight), rel=1e-6),
        "rows": (weight > 0).sum(),
    }
    real = weight > 0
    assert sum(rows for _, _, rows in figures["predicted"]) == real.sum()
    assert np.average([p for p, _, _ in figures["predicted"]], weights=[n for *_, n in figures["predicted"]]) == pytest.approx(
        p[real].mean(), rel=1e-9
    )
    counts, edges = figures["residuals"]["counts"], figures["residuals"]["edges"]
    assert sum(counts) == (((y - p)[real] >= edges[0]) & ((y - p)[real] <= edges[-1])).sum()


@pytest.mark.parametrize("size", [1, 64, 500])
def test_classes_are_measured_as_scikit_learn_does(size: int) -> None:
    """Log loss, accuracy and the confusion table; and the log loss of the training shares."""
    rng = np.random.default_rng(2)
    label, weight = rng.integers(0, 3, 500).astype(np.float32), np.ones(500, np.float32)
    logits = rng.normal(0, 1, (500, 3)) + 2 * np.eye(3)[label.astype(int)]
    score = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    target = Target(task="classes", classes=("a", "b", "c"), counts=(50, 30, 20))
    found, figures = measured(target, score, label, weight, size)
    shares = np.tile([0.5, 0.3, 0.2], (500, 1))
    assert found["log_loss"] == pytest.approx(log_loss(label, score.astype(np.float64)), rel=1e-6)
    assert found["constant_log_loss"] == pytest.approx(log_loss(label, shares), rel=1e-9)
    assert found["accuracy"] == (score.argmax(axis=1) == label).mean()
    assert figures["confusion"] == confusion_matrix(label, score.argmax(axis=1)).tolist()
    assert figures["classes"] == ["a", "b", "c"]
    assert sum(rows for *_, rows in figures["calibration"]) == 500


def test_figures_of_a_binary_label() -> None:
    """The threshold table is scikit-learn's; curves begin and end where they must, and calibration counts every row once."""
    rng = np.random.default_rng(3)
    score = rng.random(2000).astype(np.float32)
    label = (rng.random(2000) < score).astype(np.float32)
    found, figures = measured(Target(mean=0.5), score, label, np.ones(2000, np.float32), 300)
    for threshold, precision, recall, flagged in figures["thresholds"]:
        told = score >= np.float32(threshold)
        assert (precision, recall) == (pytest.approx(precision_score(label, told)), pytest.approx(recall_score(label, told)))
        assert flagged == pytest.approx(told.mean())
    assert (figures["roc"][0], figures["roc"][-1]) == ([0.0, 0.0], [1.0, 1.0])
    assert figures["roc"] == sorted(figures["roc"])
    assert figures["pr"][-1] == [1.0, pytest.approx(label.mean())]
    assert len(figures["roc"]) <= 201
    x, y = np.array(figures["roc"]).T
    assert np.trapezoid(y, x) == pytest.approx(found["auc"], abs=0.01)
    assert sum(rows for *_, rows in figures["calibration"]) == 2000
    assert found["calibration_error"] < 0.05
    assert sum(figures["scores"]["positive"]) == label.sum()


# ---- tokens ------------------------------------------------------------------------------------------------------------


def test_perplexity_is_of_sums_over_tokens_not_a_mean_of_means() -> None:
    """Batches count by their tokens; padded rows are no rows."""
    (metric,) = metrics_of(Target(task="tokens"), auc_rows=10)
    metric.merge({"loss": np.float32(6.0), "weight": np.float32(3.0), "weight_of": np.array([1, 1, 0], np.float32)})
    metric.merge({"loss": np.float32(1.0), "weight": np.float32(4.0), "weight_of": np.array([1, 0, 0], np.float32)})
    assert metric.finish() == {"log_loss": 1.0, "perplexity": pytest.approx(np.e), "tokens": 7.0, "rows": 3.0}
    assert metric.figures() == {}


def test_perplexity_of_nothing_and_of_a_hopeless_model() -> None:
    """NaN and infinity, no error."""
    (empty,), (hopeless,) = (metrics_of(Target(task="tokens"), auc_rows=10) for _ in range(2))
    assert np.isnan(empty.finish()["perplexity"])
    hopeless.merge({"loss": np.float32(1e6), "weight": np.float32(1.0), "weight_of": np.ones(1, np.float32)})
    assert hopeless.finish()["perplexity"] == float("inf")


def test_what_leaves_the_device_of_tokens_is_sums_and_weights() -> None:
    """No score a row: a batch of them would be larger than the batch."""
    batch = {"label": jnp.ones(4), "weight": jnp.ones(4)}
    told = batch_sums(objective_of(Target(task="tokens")), jnp.zeros((4, 3, 9)), (jnp.float32(2), jnp.float32(12)), batch)
    assert {name: value.shape for name, value in told.items()} == {"loss": (), "weight": (), "weight_of": (4,)}
