"""Cross-entropy over a large vocabulary, a chunk of it at a time, so that logits never exist whole.

Promise: the loss and gradients of a softmax over all of the vocabulary, in float32; in memory are the logits of one chunk.
Price: the backward pass computes logits again: 8 N V D operations in place of 6.

The running maximum and sum are those of Milakov, Gimelshein: "Online normalizer calculation for softmax", arXiv:1805.02867.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mlprod.models.spread import Spread


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def token_losses(
    hidden: jax.Array, weights: jax.Array, targets: jax.Array, num_ids: int, chunks: int, spread: Spread
) -> jax.Array:
    """Returns float32[N]: -log softmax(hidden weights^T)[target] of each token.

    Args:
        hidden: [N, D].
        weights: [R, D], this device's rows, in their order those of all devices; the first `num_ids` of all are the
            vocabulary's. `chunks` divides R.
        targets: int32[N], below `num_ids`.
        num_ids: ids of the vocabulary; the other rows take no part.
        chunks: parts of a device's rows.
        spread: the devices that have the others.
    """
    return _forward(hidden, weights, targets, num_ids, chunks, spread)[0]


def _parts(weights: jax.Array, chunks: int, spread: Spread) -> tuple[jax.Array, jax.Array]:
    """Returns (ids of the rows of each part, int32[chunks, R / chunks]; the rows [chunks, R / chunks, D])."""
    ids = spread.index() * weights.shape[0] + jnp.arange(weights.shape[0])
    return ids.reshape(chunks, -1), weights.reshape(chunks, -1, weights.shape[1])


def _logits(hidden: jax.Array, part: jax.Array, ids: jax.Array, num_ids: int) -> jax.Array:
    """Returns float32[N, K] logits of a part whose rows are `ids`, int32[K]."""
    logits = jax.lax.dot_general(hidden, part, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    return jnp.where(ids[None, :] < num_ids, logits, -jnp.inf)


Sums = tuple[jax.Array, jax.Array, jax.Array]  # of each token: highest logit, sum of the others' exponentials, its target's
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _forward(
    hidden: jax.Array, weights: jax.Array, targets: jax.Array, num_ids: int, chunks: int, spread: Spread
) -> tuple[jax.Array, Residuals]:
    def add(carry: Sums, rows: tuple[jax.Array, jax.Array]) -> tuple[Sums, None]:
        highest, total, chosen = carry
        ids, part = rows
        logits = _logits(hidden, part, ids, num_ids)
        higher = jnp.maximum(highest, logits.max(axis=1))
        total = total * jnp.exp(highest - higher) + jnp.exp(logits - higher[:, None]).sum(axis=1)
        chosen += jnp.where(ids[None, :] == targets[:, None], logits, 0.0).sum(axis=1)
        return (higher, total, chosen), None

    none = jnp.zeros(targets.shape, jnp.float32)
    lowest = jnp.full(targets.shape, np.finfo(np.float32).min, jnp.float32)
    (mine, total, chosen), _ = jax.lax.scan(add, (lowest, none, none), _parts(weights, chunks, spread))
    highest = spread.highest(mine)
    normalizer = highest + jnp.log(spread.total(total * jnp.exp(mine - highest)))
    return normalizer - spread.total(chosen), (hidden, weights, targets, normalizer)


def _backward(
    num_ids: int, chunks: int, spread: Spread, kept: Residuals, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    hidden, weights, targets, normalizer = kept
    gradient = spread.total(gradient)  # of a token's loss, whichever of the devices uses it

    def add(so_far: jax.Array, rows: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids, part = rows
        share = jnp.exp(_logits(hidden, part, ids, num_ids) - normalizer[:, None])
        of_logits = ((share - (ids[None, :] == targets[:, None])) * gradient[:, None]).astype(hidden.dtype)
        back = jax.lax.dot_general(of_logits, part, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
        return so_far + back, jax.lax.dot_general(of_logits, hidden, (((0,), (0,)), ((), ())))

    of_hidden, parts = jax.lax.scan(add, jnp.zeros(hidden.shape, jnp.float32), _parts(weights, chunks, spread))
    return of_hidden.astype(hidden.dtype), parts.reshape(weights.shape).astype(weights.dtype), None


token_losses.defvjp(_forward, _backward)
