"""How large a model is, what a batch is and how long it trains: by rows, and by cores where it is many rows."""

import math
from dataclasses import dataclass
from typing import Any

from mlprod.config import CheckpointConfig, EvalConfig, LoaderConfig, OptimConfig
from mlprod.init.literal import literal
from mlprod.models.tabular import TabularConfig

EXAMPLES_PER_CORE = 2e6  # some three minutes of two cores, where columns are few
MOST_CORES = 8  # of use to so small a model
EVAL_STEPS = 25  # between two evaluations, at least: each that is better is saved


@dataclass(frozen=True)
class Sizes:
    """The second half of a config."""

    model: Any
    epochs: float
    optim: OptimConfig
    loader: LoaderConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig

    def classes(self) -> set[str]:
        """Returns the names that the config file imports from `mlprod.config`."""
        return {type(section).__name__ for section in (self.optim, self.loader, self.eval, self.checkpoint)}

    def imports(self) -> str:
        """Returns the line that imports the model."""
        return f"from {type(self.model).__module__} import {type(self.model).__name__}"

    def lines(self) -> str:
        """Returns the lines of the config, with what to change."""
        return f"""        model={literal(self.model)},
        epochs={self.epochs:g},  # at most: the run ends when config.eval.patience evaluations were not better
        optim={literal(self.optim)},
        loader={literal(self.loader)},
        eval={literal(self.eval)},
        checkpoint={literal(self.checkpoint)},"""


def sizes_for(rows: int, cores: int) -> Sizes:
    """Returns sizes for so many training rows on so many cores."""
    batch = 2 ** round(math.log2(min(max(rows / 64, 32), 1024)))
    steps = max(rows // batch, 1)
    epochs = min(max(EXAMPLES_PER_CORE * min(cores, MOST_CORES) / rows, 4.0), 60.0)
    return Sizes(
        model=TabularConfig(), epochs=round(epochs),
        optim=OptimConfig(peak_lr=8e-3, weight_decay=0.2, warmup_steps=100, average=0.99),
        loader=LoaderConfig(global_batch=batch),
        eval=EvalConfig(batch=1024, every=steps * -(-EVAL_STEPS // steps), patience=15, use="best"),
        checkpoint=CheckpointConfig(every=0, keep_last=1),
    )  # fmt: skip
