"""The tabular model: standardised numerics and one embedding per categorical or list, through ReLU layers with dropout."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mlprod.config import MUST, knob
from mlprod.features import FeatureSpec
from mlprod.models.layers import Standardize, embeddings, in_weights_dtype
from mlprod.models.protocol import Batch, Sums
from mlprod.objective import objective_of, weighted


@dataclass(kw_only=True, slots=True)
class MLPConfig:
    """Sizes of the MLP."""

    hidden: tuple[int, ...] = knob((256, 256), "width of each hidden layer", rule=MUST, low=1)
    max_embedding: int = knob(32, "widest embedding; a table of n ids gets about 1.6 n^0.56", rule=MUST, low=1)
    dropout: float = knob(0.1, "share of hidden units left out", low=0.0, high=0.99)
    clip: float = knob(5.0, "of standardised numerics", unit="standard deviations", rule=MUST, low=0.1)

    def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the MLP for a dataset's features."""
        return MLP(self, features, rngs)


class MLP(nnx.Module):
    """Outputs of any task from tabular features."""

    DIMS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        r"embed/.+/table": ("vocab", "embed"),
        r"standardize/((mean|scale)|shape/(low|high|log)|ranks/first)": ("feature",),
        r"standardize/(pieces|ranks|ranks/parts)/(low|inverse|mass)": ("feature", "bin"),
        r"hidden/\d+/kernel": ("in", "out"),
        r"hidden/\d+/bias": ("out",),
        r"head/kernel": ("in", "logit"),
        r"head/bias": ("logit",),
    }
    TABLES: ClassVar[Mapping[str, tuple[str, ...]]] = {r"embed/(.+)/table": (r"\1",)}

    def __init__(self, cfg: MLPConfig, features: FeatureSpec, rngs: nnx.Rngs) -> None:
        """Widths follow from `cfg`, tables from the features' vocabularies."""
        self.standardize = Standardize(features, cfg.clip)
        self.embed, width = embeddings(features, cfg.max_embedding, rngs)
        sizes = [self.standardize.width + width, *cfg.hidden]
        linear = partial(nnx.Linear, promote_dtype=in_weights_dtype, rngs=rngs)
        self.hidden = nnx.List([linear(a, b) for a, b in pairwise(sizes)])
        self.dropout = nnx.Dropout(cfg.dropout)
        self.objective = objective_of(features.target)
        self.head = linear(sizes[-1], self.objective.num_outputs)

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns outputs, see `objective.py`; dropout is on where `rngs` is given."""
        h = jnp.concatenate([self.standardize(batch["numeric"]), *(e(batch[name]) for name, e in self.embed.items())], axis=1)
        for layer in self.hidden:
            h = self.dropout(jax.nn.relu(layer(h)), deterministic=rngs is None, rngs=rngs)
        outputs: jax.Array = self.objective.outputs(self.head(h))
        return outputs

    def loss(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns {"loss": (sum, weight)} of outputs."""
        return {"loss": weighted(self.objective.losses(outputs, batch["label"]), batch["weight"])}
