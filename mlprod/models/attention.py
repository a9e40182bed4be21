"""Causal attention among the tokens of a document, with rotary positions.

Promise: a token sees those before it in its own segment, and itself, nothing else; softmax in float32.
Price: on a TPU the kernel of `jax.experimental.pallas` keeps no scores; elsewhere XLA's own attention holds one [T, T] matrix of
them a head and row while it runs.

Rotary embedding: Su et al., "RoFormer", arXiv:2104.09864, halves rotated as Llama has them. Groups of queries that share keys and
values: Ainslie et al., "GQA", arXiv:2305.13245.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as flash

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, float32[B, T, width / 2] each


def positions(segments: jax.Array) -> jax.Array:
    """Returns int32[B, T]: how many tokens of its segment stand before each; `segments`: int32[B, T], ascending."""
    at = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32)[None], segments.shape)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)


def rotation(positions: jax.Array, width: int, base: float) -> Rotation:
    """Returns the rotation of heads of `width` at int32[B, T] positions: angle i is position / base^(2 i / width)."""
    rates = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = positions[:, :, None].astype(jnp.float32) * rates[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotated(heads: jax.Array, by: Rotation) -> jax.Array:
    """Returns heads [B, T, H, width], each rotated by its token's position; computed in float32."""
    a, b = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cos, sin = (part[:, :, None, :] for part in by)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(heads.dtype)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    """Returns [B, T, H, width] from queries [B, T, H, width], keys and values [B, T, K, width], K a divisor of H.

    Args:
        segments: int32[B, T].
    """
    out: jax.Array = jax.lax.platform_dependent(query, key, value, segments, tpu=_on_tpu, default=_anywhere)
    return out


def _anywhere(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=same, is_causal=True)


def _on_tpu(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
    length, width = query.shape[1], query.shape[3]
    if length % flash.NUM_LANES or width % flash.NUM_LANES:
        return _anywhere(query, key, value, segments)  # the kernel takes whole tiles
    group = query.shape[2] // key.shape[2]
    heads = [x.swapaxes(1, 2) for x in (query, jnp.repeat(key, group, axis=2), jnp.repeat(value, group, axis=2))]
    out: jax.Array = flash.flash_attention(
        *heads, segment_ids=flash.SegmentIds(segments, segments), causal=True, sm_scale=width**-0.5
    )
    return out.swapaxes(1, 2)
