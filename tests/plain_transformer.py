"""A decoder language model and AdamW in plain lines: loops over layers, whole logits, jax.numpy and its gradient alone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Arrays = dict[str, Any]


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root mean square norm."""
    return x / jnp.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale.reshape(1, 1, -1)


def rotate(x: jax.Array, position: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + half) of each head by position / 10000^(i / half)."""
    half = x.shape[-1] // 2
    turn = position[:, :, None, None] / 10_000 ** (jnp.arange(half).reshape(1, 1, 1, -1) / half)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(turn) - b * jnp.sin(turn), b * jnp.cos(turn) + a * jnp.sin(turn)], axis=-1)


def position_of(segments: jax.Array) -> jax.Array:
    """Counts the earlier tokens of the same segment."""
    same = segments[:, :, None] == segments[:, None, :]
    earlier = jnp.arange(segments.shape[1])[:, None] > jnp.arange(segments.shape[1])[None, :]
    return (same & earlier[None]).sum(axis=2)


def attention(x: jax.Array, layer: Arrays, segments: jax.Array, width: int) -> jax.Array:
    """Softmax over the earlier tokens of the same segment."""
    batch, length, _ = x.shape
    query, key, value = ((x @ layer[n]["kernel"]).reshape(batch, length, -1, width) for n in ("query", "key", "value"))
    query, key = rotate(query, position_of(segments)), rotate(key, position_of(segments))
    group = query.shape[2] // key.shape[2]
    key, value = jnp.repeat(key, group, axis=2), jnp.repeat(value, group, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(float(width))
    same = segments[:, :, None] == segments[:, None, :]
    seen = same & (jnp.arange(length)[:, None] >= jnp.arange(length)[None, :])[None]
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, length, -1) @ layer["mix"]["kernel"]


def gated(x: jax.Array, layer: Arrays) -> jax.Array:
    """The MLP."""
    gate = x @ layer["gate"]["kernel"]
    return (gate / (1 + jnp.exp(-gate)) * (x @ layer["up"]["kernel"])) @ layer["down"]["kernel"]


def mean_loss(params: Arrays, batch: Mapping[str, jax.Array], width: int, num_ids: int) -> jax.Array:
    """Mean -log likelihood of the tokens that another of their segment precedes."""
    tokens, segments = batch["tokens"][:, :-1], batch["segments"][:, :-1]
    h = params["embed"]["embedding"][tokens]
    for i in range(params["blocks"]["query"]["kernel"].shape[0]):
        layer = jax.tree.map(lambda stack, i=i: stack[i], params["blocks"])
        h = h + attention(norm(h, layer["attention_norm"]["scale"]), layer, segments, width)
        h = h + gated(norm(h, layer["mlp_norm"]["scale"]), layer)
    output = params.get("head", params["embed"])["embedding"][:num_ids]
    logits = norm(h, params["norm"]["scale"]) @ output.T
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["tokens"][:, 1:, None], axis=2)[:, :, 0]
    after = batch["segments"][:, 1:]
    predicted = ((after == segments) & (after > 0)) * batch["weight"][:, None]
    return -(chosen * predicted).sum() / predicted.sum()


def train(params: Arrays, batches: list[Mapping[str, jax.Array]], rates: list[float], width: int, num_ids: int) -> list[float]:
    """Losses of AdamW (0.9, 0.999, decay 0.1 of matrices), gradients clipped to a global norm of 1."""
    first = jax.tree.map(jnp.zeros_like, params)
    second = first
    losses = []
    step = jax.jit(jax.value_and_grad(lambda p, batch: mean_loss(p, batch, width, num_ids)))
    for t, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        loss, gradient = step(params, batch)
        losses.append(float(loss))
        length = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g: g / jnp.maximum(length, 1.0), gradient)  # noqa: B023 (used at once)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, gradient)

        def moved(path: Any, p: jax.Array, m: jax.Array, v: jax.Array, t: int = t, rate: float = rate) -> jax.Array:
            decay = 0.0 if path[-1].key == "scale" else 0.1
            return p - rate * (m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p)

        params = jax.tree_util.tree_map_with_path(moved, params, first, second)
    return losses
