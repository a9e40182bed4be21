"""Layers that more than one family uses."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mlprod.features import FeatureSpec
from mlprod.models.protocol import Constant, Table


def in_weights_dtype(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Returns (input, kernel, ...) with the input in the kernel's dtype, for `nnx.Linear(promote_dtype=...)`: what comes in is
    float32, and would otherwise make the layer compute in it."""
    x, kernel, *others = arrays
    return (x.astype(kernel.dtype), kernel, *others)


class Standardize(nnx.Module):
    """Centres and scales the numeric matrix by the training split's mean and deviation, and cuts outliers at `limit`."""

    def __init__(self, features: FeatureSpec, limit: float) -> None:
        """`limit`: in standard deviations."""
        self.mean = Constant(jnp.array([f.mean for f in features.numeric], jnp.float32))
        self.scale = Constant(jnp.array([1.0 / f.std for f in features.numeric], jnp.float32))
        self.limit = limit

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F] from float32[B, F]."""
        return jnp.clip((numeric - self.mean[None, :]) * self.scale[None, :], -self.limit, self.limit)


class Embedding(nnx.Module):
    """A lookup table; ids outside it are a bug of ours, for ETL's ids are always inside."""

    def __init__(self, num_ids: int, width: int, rngs: nnx.Rngs) -> None:
        """Rows start normal with deviation 1/sqrt(width), so that a row's norm is about 1."""
        self.table = Table(jax.random.normal(rngs.params(), (num_ids, width)) * width**-0.5)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns float32[B, width] from int32[B]."""
        return self.table[ids]
