"""Which saved steps stay. A pure function: the store does what it says.

Promise: the newest good step, and all that are newer, always stay; a step stays if any rule wants it.
"""

import math
from collections.abc import Mapping

from mlprod.config import CheckpointConfig

HIGHER_IS_BETTER = ("auc", "pr_auc", "accuracy", "r2")

Metrics = Mapping[str, float]


def reasons(steps: Mapping[int, Metrics], cfg: CheckpointConfig) -> dict[int, list[str]]:
    """Returns why each saved step stays: any of "last", "every", "best", "pinned"; none: it may go.

    Args:
        steps: the metrics of each step's own evaluation; none where it was not evaluated.
    """
    wanted = {
        "last": sorted(steps)[-cfg.keep_last :],
        "every": [step for step in steps if cfg.keep_every and step % cfg.keep_every == 0],
        "best": [best_step(steps, cfg.keep_best)],
        "pinned": cfg.pins,
    }
    return {step: [why for why, kept in wanted.items() if step in kept] for step in steps}


def best_step(steps: Mapping[int, Metrics], metric: str) -> int:
    """Returns the step that is best by a metric, the later of equal ones; -1 where none has it. NaN is never best."""
    values = {step: quality(metrics, metric) for step, metrics in steps.items()}
    return max((step for step in steps if values[step] > -math.inf), key=lambda step: (values[step], step), default=-1)


def quality(metrics: Metrics, metric: str) -> float:
    """Returns a metric so that more is better; minus infinity where it is not there, or NaN. `auto`: the task's own."""
    name = main_metric(metrics) if metric == "auto" else metric
    value = metrics.get(name, math.nan)
    if not math.isfinite(value):
        return -math.inf
    return value if name in HIGHER_IS_BETTER else -value


def main_metric(metrics: Metrics) -> str:
    """Returns the metric of a task that its loss is."""
    return "log_loss" if "log_loss" in metrics else "rmse"


def superfluous(steps: Mapping[int, Metrics], good: int, cfg: CheckpointConfig) -> list[int]:
    """Returns the steps that may go when step `good` was read back and is good, ascending."""
    kept = reasons(steps, cfg)
    return [step for step in sorted(steps) if step < good and not kept[step]]
