"""A model whose loss is no number on batches that hold certain rows, as bad data would make it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mlprod.config import knob
from mlprod.features import FeatureSpec
from mlprod.models.mlp import MLP, MLPConfig
from mlprod.models.protocol import Batch, Sums


@dataclass(kw_only=True, slots=True)
class PoisonedConfig(MLPConfig):
    """The MLP, and what its loss cannot bear."""

    poison: tuple[float, ...] = knob((), "values of the first numeric feature")
    becomes: str = knob("nan", "the loss of a batch that has one", choices=("nan", "inf", "-inf"))

    def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the model."""
        return Poisoned(self, features, rngs)


class Poisoned(MLP):
    """See `PoisonedConfig`."""

    def __init__(self, cfg: PoisonedConfig, features: FeatureSpec, rngs: nnx.Rngs) -> None:
        """Keeps the poison beside the layers."""
        super().__init__(cfg, features, rngs)
        self.poison, self.becomes = cfg.poison, float(cfg.becomes)

    def loss(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns {"loss": (sum, weight)}; outputs [B]."""
        total, weight = super().loss(outputs, batch)["loss"]
        values = batch["numeric"][:, 0]
        bad = jnp.stack([(values == jnp.float32(value)).any() for value in self.poison]).any()
        return {"loss": (total * jnp.where(bad, self.becomes, 1.0), weight)}
