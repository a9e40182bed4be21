"""Losses, as weighted sums and weights: means are taken once, at the end, so that no split into parts changes them."""

import jax
import jax.numpy as jnp
import optax


def binary_cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (weighted sum, sum of weights), float32 scalars: -log likelihood of `labels` in {0, 1}; all inputs [B].

    Stable for large logits: max(x, 0) - x y + log(1 + exp(-|x|)).
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
    return (losses * weight).sum(), weight.sum()
