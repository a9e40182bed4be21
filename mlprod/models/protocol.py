"""What a model family is: any nnx module whose config can build it. A user's own, in their own config file, is as good.

A batch is a dict of arrays with fixed shapes: "numeric" float32[B, F], one int32[B] of ids per categorical feature by its
name, int32[B, length] per list or sequence, "label" float32[B], "weight" float32[B] (0 for padding), "row_id" uint32[B, 2] (low
word, high word).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
from flax import nnx

from mlprod.features import FeatureSpec

Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (weighted sum, weight), scalars


class Table(nnx.Variable[Any]):
    """An embedding table, rows by ids: apart from `nnx.Param`, so that decay and averages leave it out."""


class Constant(nnx.Variable[Any]):
    """An array that is part of the model and never trained, such as the centring of its input."""


class Model(Protocol):
    """What the step calls. `DIMS`: parameter path (a regular expression) -> names of its dims, for the layout.
    `TABLES`: table path -> batch keys (templates over the path's groups) whose ids are its rows. A model that
    `Spreads` lets each device compute its part of the loss by itself: see `spread.py`."""

    DIMS: ClassVar[Mapping[str, tuple[str, ...]]]
    TABLES: ClassVar[Mapping[str, tuple[str, ...]]]

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns outputs as `objective.py` says, float32[B] or [B, C]; `rngs` turns on what is of training alone."""
        ...

    def loss(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns {"loss": (weighted sum, weight)} and whatever else is worth logging; `outputs`: of a call."""
        ...


class ModelConfig(Protocol):
    """A dataclass of sizes that builds its model."""

    def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the model for a dataset's features."""
        ...
