"""A decoder language model over packed text: pre-norm blocks of rotary attention and a gated MLP, without biases.

As in Llama (Touvron et al., arXiv:2302.13971): RMSNorm (Zhang, Sennrich, arXiv:1910.07467), SwiGLU (Shazeer, arXiv:2002.05202),
and grouped queries as `attention.py` tells. The blocks' arrays are stacked, one dim "layer" in front, and scanned over: the
program, and so its compile time, does not grow with their number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from mlprod.config import MUST, knob
from mlprod.errors import ConfigError, LayoutError
from mlprod.features import FeatureSpec
from mlprod.models.attention import Rotation, attend, positions, rotated, rotation
from mlprod.models.cross_entropy import token_losses
from mlprod.models.protocol import Batch, Sums
from mlprod.models.spread import COLLECTIVE, Spread, Spreads

# What a block keeps of its forward pass for the backward pass; the rest is computed again.
REMAT: Mapping[str, Callable[[Any], Any]] = {
    "none": lambda block: block,
    "dots": partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "collectives": partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(COLLECTIVE)),
    "full": jax.checkpoint,
}
ROWS = 128  # the embedding has a multiple of so many rows a chunk, so that meshes of many sizes divide it


@dataclass(kw_only=True, slots=True)
class TransformerConfig:
    """Sizes of the transformer."""

    layers: int = knob(6, "blocks", rule=MUST, low=1)
    width: int = knob(384, "of the residual stream", rule=MUST, low=1)
    heads: int = knob(6, "of queries in a block", rule=MUST, low=1)
    kv_heads: int = knob(2, "of keys and values in a block: a divisor of heads", rule=MUST, low=1)
    head_width: int = knob(64, "even", rule=MUST, low=2)
    hidden: int = knob(1024, "of the gated MLP", rule=MUST, low=1)
    tied: bool = knob(False, "the output layer has the embedding's weights", rule=MUST)
    rope_base: float = knob(10_000.0, "of the rotary positions; longer rows want more", rule=MUST, low=2.0)
    norm_epsilon: float = knob(1e-5, "added to mean squares", rule=MUST, low=0.0)
    remat: str = knob(
        "full", "what is computed again in the backward pass: all of a block, all but its `dots` with weights, or but what came "
        "from other devices (`collectives`), or `none`", choices=tuple(REMAT),
    )  # fmt: skip
    vocab_chunk: int = knob(8192, "of the vocabulary, whose logits are computed at once, about", unit="ids", rule=MUST, low=1)

    def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the transformer for a dataset of packed text."""
        if features.target.task != "tokens":
            raise ConfigError(
                f"config.model: a transformer learns the next token, the dataset's label is {features.target.column!r}; "
                f"set config.etl.label=NextToken(...), or take another model"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"config.model.kv_heads={self.kv_heads} must divide config.model.heads={self.heads}")
        if self.head_width % 2:
            raise ConfigError(f"config.model.head_width={self.head_width} must be even: halves of a head are rotated")
        return Transformer(self, features, rngs)


class Block(nnx.Module):
    """Attention, then a gated MLP, each behind a norm and added to what came in."""

    def __init__(self, cfg: TransformerConfig, rngs: nnx.Rngs) -> None:
        """Kernels start normal with deviation 1/sqrt(fan in), those that end on the residual stream 1/sqrt(2 layers) of it."""
        linear = partial(nnx.Linear, use_bias=False, rngs=rngs)
        ending = partial(linear, kernel_init=nnx.initializers.variance_scaling(0.5 / cfg.layers, "fan_in", "truncated_normal"))
        norm = partial(nnx.RMSNorm, cfg.width, epsilon=cfg.norm_epsilon, rngs=rngs)
        self.head_width = cfg.head_width
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.query = linear(cfg.width, cfg.heads * cfg.head_width)
        self.key = linear(cfg.width, cfg.kv_heads * cfg.head_width)
        self.value = linear(cfg.width, cfg.kv_heads * cfg.head_width)
        self.mix = ending(cfg.heads * cfg.head_width, cfg.width)
        self.gate = linear(cfg.width, cfg.hidden)
        self.up = linear(cfg.width, cfg.hidden)
        self.down = ending(cfg.hidden, cfg.width)

    def __call__(self, h: jax.Array, turn: Rotation, segments: jax.Array, spread: Spread) -> jax.Array:
        """Returns [B, T, width] from [B, T, width], of this device's tokens; `segments`: int32[B, T], of all."""
        x = spread.whole(self.attention_norm(h))
        query, key, value = (layer(x).reshape(*x.shape[:2], -1, self.head_width) for layer in (self.query, self.key, self.value))
        seen = attend(rotated(query, turn), rotated(key, turn), value, segments)
        h = h + spread.added(self.mix(seen.reshape(*x.shape[:2], -1)))
        x = spread.whole(self.mlp_norm(h))
        return h + spread.added(self.down(jax.nn.silu(self.gate(x)) * self.up(x)))


class Transformer(Spreads, nnx.Module):
    """Hidden states of packed tokens, and the loss of the next token."""

    DIMS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        r"(embed|head)/embedding": ("token", "width"),
        r"blocks/(attention_norm|mlp_norm)/scale": ("layer", "norm"),
        r"blocks/(query|key|value|gate|up)/kernel": ("layer", "in", "out"),
        r"blocks/(mix|down)/kernel": ("layer", "inner", "back"),
        r"norm/scale": ("norm",),
    }
    TABLES: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, cfg: TransformerConfig, features: FeatureSpec, rngs: nnx.Rngs) -> None:
        """The embedding starts normal with deviation 1/sqrt(width), as the output layer does."""
        (tokens,) = (f for f in features.sequences if f.name == "tokens")
        self.cfg, self.num_ids, self.length = cfg, tokens.num_ids, tokens.length - 1
        self.chunks = -(-tokens.num_ids // cfg.vocab_chunk)
        rows = -(-tokens.num_ids // (ROWS * self.chunks)) * ROWS * self.chunks
        table = partial(nnx.Embed, rows, cfg.width, embedding_init=nnx.initializers.normal(cfg.width**-0.5), rngs=rngs)
        self.embed = table()
        self.blocks = nnx.vmap(partial(Block, cfg), in_axes=0, out_axes=0)(rngs.split(cfg.layers))
        self.norm = nnx.RMSNorm(cfg.width, epsilon=cfg.norm_epsilon, rngs=rngs)
        self.head = None if cfg.tied else table()

    def check_shared(self, devices: int) -> None:
        """Raises LayoutError where so many devices do not divide heads, the MLP or the tokens of a row."""
        sizes = {f"model.{name}": getattr(self.cfg, name) for name in ("heads", "kv_heads", "hidden")}
        for name, size in {**sizes, "etl.label.length": self.length}.items():
            if size % devices:
                way = "lower it, or take config.mesh.layout=fsdp"
                raise LayoutError(f"config.mesh.tensor={devices} does not divide config.{name}={size}; {way}")

    def gathers(self, path: str, microbatches: int) -> int:
        """Returns 1, but of a block's weights once a microbatch, and again where the backward pass computes the block anew."""
        return microbatches * (1 if self.cfg.remat == "none" else 2) if path.startswith("blocks/") else 1

    def exchanged(self, rows: int) -> int:
        """Returns, for `rows` rows: before and behind attention and MLP of each block and once more for the embedding and for the
        loss, forward and backward."""
        return (8 * self.cfg.layers + 4) * rows * self.length * self.cfg.width

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns hidden states [B, T, width] of this device's tokens; the last of each row only follows, and has none."""
        tokens, segments = batch["tokens"][:, :-1], batch["segments"][:, :-1]
        turn = rotation(positions(segments), self.cfg.head_width, self.cfg.rope_base)
        graph, arrays = nnx.split(self.blocks)

        def block(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graph, layer)(h, turn, segments, self.spread), None

        h, _ = jax.lax.scan(REMAT[self.cfg.remat](block), self._embedded(tokens), arrays)
        states: jax.Array = self.norm(h)
        return states

    def _embedded(self, tokens: jax.Array) -> jax.Array:
        """Returns [B, T, width] of this device's tokens, from int32[B, T] ids of all and the rows that this device has."""
        rows = self.embed.embedding[...]
        at = tokens - self.spread.index() * rows.shape[0]
        inside = (at >= 0) & (at < rows.shape[0])
        return self.spread.added(jnp.where(inside[:, :, None], rows[at], 0.0))

    def loss(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns {"loss": (sum over predicted tokens, their number)}, rows weighted: a token that another of its document
        precedes is predicted."""
        segments, weights = batch["segments"], (self.head or self.embed).embedding[...]
        predicted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        hidden, targets = self.spread.whole(outputs), batch["tokens"][:, 1:].reshape(-1)
        found = token_losses(hidden.reshape(-1, hidden.shape[-1]), weights, targets, self.num_ids, self.chunks, self.spread)
        losses = self.spread.mine(found.reshape(predicted.shape))
        each = jnp.where(self.spread.mine(predicted), batch["weight"][:, None], 0.0)
        return {"loss": ((losses * each).sum(), each.sum())}
