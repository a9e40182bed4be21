"""A model whose loss is no number on rows that hold the greatest planted value, which its config does not name."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mlprod.features import FeatureSpec
from mlprod.models.mlp import MLP, MLPConfig
from mlprod.models.protocol import Batch, Sums

BEYOND = 1.5e6  # of the planted numbers one alone is


@dataclass(kw_only=True, slots=True)
class SpoiltConfig(MLPConfig):
    """The MLP."""

    def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the model."""
        return Spoilt(self, features, rngs)


class Spoilt(MLP):
    """See `SpoiltConfig`."""

    def loss(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns {"loss": (sum, weight)}; outputs [B]."""
        total, weight = super().loss(outputs, batch)["loss"]
        return {"loss": (total * jnp.where((batch["numeric"] > BEYOND).any(), jnp.nan, 1.0), weight)}
