"""When a run has stopped getting better: counted over its evaluations, and saved with it.

Promise: what is counted follows from the evaluations before a step alone, so a run that was killed stops where the straight one
does.
"""

from collections.abc import Mapping

from mlprod.checkpoint.retention import quality
from mlprod.config import Config

Progress = Mapping[str, float]  # "best", so that more is better; "step" of it; "waited", evaluations since; or nothing so far
WORST = -1e300  # what JSON can hold of "not a number"


def after(before: Progress, step: int, metrics: Mapping[str, float], cfg: Config) -> Progress:
    """Returns the progress with one more evaluation."""
    value = max(quality(metrics, cfg.checkpoint.keep_best), WORST)
    if not before or value > before["best"] + cfg.eval.min_delta:
        return {"best": value, "step": step, "waited": 0}
    return {**before, "waited": before["waited"] + 1}


def is_over(progress: Progress, cfg: Config) -> bool:
    """Returns whether the run has waited long enough."""
    return 0 < cfg.eval.patience <= progress.get("waited", 0)
