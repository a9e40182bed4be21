"""The charts of one run: how it was trained, and what its evaluations found.

Promise: a figure that is not there has no card.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from mlprod.config import METRICS
from mlprod.report import charts
from mlprod.report.charts import Series
from mlprod.report.past import Attempt, Past

LABELS = {
    "log_loss": "log loss (nats)", "auc": "AUC", "pr_auc": "average precision", "accuracy": "accuracy (share)",
    "perplexity": "perplexity",
    "calibration_error": "calibration error (share)", "rmse": "RMSE (label's unit)", "mae": "mean absolute error (label's unit)",
    "r2": "R²",
}  # fmt: skip
RATE_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class Card:
    """A chart with its words."""

    title: str
    picture: Markup
    keys: Sequence[tuple[int, str]] = ()  # (number of a series, what it is)
    note: str = ""


def label_of(metric: str) -> str:
    """Returns the label of a metric's axis."""
    return LABELS.get(metric, metric.replace("_", " "))


def loss_label(run: Past) -> str:
    """Returns the label of the training loss' axis."""
    number = run.config.get("etl", {}).get("label", {}).get("class") == "Number"
    return "loss (label's variances)" if number else "loss (nats)"


# ---- training ----------------------------------------------------------------------------------------------------------


def evals_of(run: Past, metric: str) -> tuple[list[float], list[float]]:
    """Returns (steps, values) of a metric of the evaluations in training."""
    found = [(line["step"], line["values"][metric][0]) for line in run.evals if metric in line["values"]]
    return [step for step, _ in found], [value for _, value in found]


def rates(run: Past) -> tuple[list[float], list[float]]:
    """Returns (steps, examples a second up to each) by the clock of the log; what lies between two attempts does not count."""
    steps, times, attempts = run.train.steps, run.train.times, run.train.attempts
    shown = range(0, len(steps), max(len(steps) // RATE_POINTS, 1))
    pairs = [(a, b) for a, b in pairwise(shown) if attempts[a] == attempts[b] and times[b] > times[a]]
    return [steps[b] for _, b in pairs], [(steps[b] - steps[a]) * run.batch / (times[b] - times[a]) for a, b in pairs]


def training(run: Past) -> list[Card]:
    """Returns the charts of training."""
    marks = [attempt.start for attempt in run.attempts[1:]]

    def card(title: str, y: str, series: Sequence[Series], keys: Sequence[str] = (), note: str = "", **more: Any) -> Card:
        picture = charts.curves("step", y, series, marks, **more)
        return Card(title=title, picture=picture, keys=tuple(enumerate(keys)), note=note)

    found = [_loss(run, marks)]
    for metric in metrics_of(run):
        x, y = evals_of(run, metric)
        found.append(card(f"Eval: {label_of(metric).partition(' (')[0]}", label_of(metric), [Series(x=x, y=y, points=True)]))
    for name, title, label in (
        ("rate", "Learning rate", "learning rate"),
        ("grad_norm", "Gradient norm", "norm before clipping"),
    ):
        found.append(card(title, label, [Series(x=run.train.steps, y=run.train.values[name], band=True)]))
    if run.batch:
        x, y = rates(run)
        note = "By the clock, so evaluations and saves are in it."
        found.append(card("Throughput", "examples / s", [Series(x=x, y=y)], note=note, unit=" ", zero=True))
    used = [_used(number, kind, attempt) for attempt in run.attempts for number, kind in enumerate(SHARES)]
    found.append(card("Where the time goes", "share of time (%)", used, SHARES, zero=True))
    memory = [_memory(number, kind, attempt) for attempt in run.attempts for number, kind in enumerate(MEMORY)]
    told = [kind for kind in MEMORY if any(use[kind] for attempt in run.attempts for use in attempt.uses)]
    memory = [series for series in memory if any(series.y)]
    found.append(card("Memory, most so far", "memory", memory, [MEMORY[kind] for kind in told], unit="B", zero=True))
    return [card for card in found if card.picture]


def metrics_of(run: Past) -> list[str]:
    """Returns the metrics that evaluations in training told of, in their usual order."""
    there = {name for line in run.evals for name in line["values"]}
    return [name for name in dict.fromkeys(name for names in METRICS.values() for name in names) if name in there]


def _loss(run: Past, marks: Sequence[float]) -> Card:
    """Returns training's loss and, where it is the same quantity, that of the eval split."""
    series, keys = [Series(x=run.train.steps, y=run.train.values["loss"], band=True)], [(0, "train")]
    x, y = evals_of(run, "log_loss")
    if y and run.config.get("loss", {}).get("class_weight", "none") == "none":
        series, keys = [*series, Series(x=x, y=y, number=1, points=True)], [*keys, (1, "eval")]
    note = "The band: least and largest of neighbouring steps." if len(run.train.steps) > charts.POINTS else ""
    return Card(title="Loss", picture=charts.curves("step", loss_label(run), series, marks), keys=keys, note=note)


SHARES = ("data wait", "evaluate", "save")
MEMORY = {"host_bytes": "process", "device_bytes": "fullest device"}


def _used(number: int, activity: str, attempt: Attempt) -> Series:
    """Returns the percent of time that an activity took between two lines of an attempt."""
    x, y = [], []
    spent, elapsed = 0.0, 0.0
    for use in attempt.uses:
        now = use["seconds"].get(activity, 0.0)
        if use["elapsed"] > elapsed:
            x.append(use["step"])
            y.append(100 * (now - spent) / (use["elapsed"] - elapsed))
        spent, elapsed = now, use["elapsed"]
    return Series(x=x, y=y, number=number, points=len(x) < 20)


def _memory(number: int, kind: str, attempt: Attempt) -> Series:
    uses = attempt.uses
    return Series(x=[use["step"] for use in uses], y=[use[kind] for use in uses], number=number, points=len(uses) < 20)


# ---- evaluation --------------------------------------------------------------------------------------------------------


def evaluation(task: str, figures: Mapping[str, Any]) -> list[Card]:
    """Returns the charts of an evaluation's figures."""
    return list(_figures(task, figures))


def _figures(task: str, figures: Mapping[str, Any]) -> Iterator[Card]:
    if figures.get("roc"):
        picture = charts.shares("false positive rate", "true positive rate", figures["roc"], line=True, diagonal=True)
        yield Card(title="ROC", picture=picture, note="Dashed: scores that tell nothing.")
    if figures.get("pr"):
        yield Card(
            title="Precision and recall", picture=charts.shares("recall", "precision", figures["pr"], line=True, diagonal=False)
        )
    if figures.get("calibration"):
        score = "mean score of the likeliest class" if task == "classes" else "mean score"
        share = "share that is it" if task == "classes" else "observed share of positives"
        picture = charts.shares(score, share, figures["calibration"], line=False, diagonal=True)
        yield Card(title="Calibration", picture=picture, note="Dashed: scores that are the shares.")
    if figures.get("scores"):
        scores = figures["scores"]
        picture = charts.histogram("score", "rows", scores["edges"], [scores["negative"], scores["positive"]])
        yield Card(title="Scores", picture=picture, keys=((0, "negative"), (1, "positive")))
    if figures.get("residuals"):
        residuals = figures["residuals"]
        picture = charts.histogram("observed less predicted (label's unit)", "rows", residuals["edges"], [residuals["counts"]])
        yield Card(title="Residuals", picture=picture, note="Without one percent of the rows at each end.")
    if figures.get("predicted"):
        picture = charts.against("mean predicted (label's unit)", "mean observed (label's unit)", figures["predicted"])
        yield Card(title="Predicted and observed", picture=picture, note="Parts of as many rows each. Dashed: both are equal.")
