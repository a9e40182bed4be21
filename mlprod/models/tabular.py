"""The tabular model for tables nobody has tuned it to: numbers cut at their quantiles, and an ensemble that shares its weights.

A number enters as an embedding that is piecewise linear in it, with bends at quantiles of the training rows (Gorishniy, Rubachev,
Babenko: "On Embeddings for Numerical Features in Tabular Deep Learning", NeurIPS 2022, arXiv:2203.05556), behind a ReLU; and as
itself, scaled by its quartiles and softly clipped (as Holzmüller, Grinsztajn, Steinwart have it: "Better by default", NeurIPS
2024, arXiv:2407.04491). The layers are shared by `members` networks, each of which scales and shifts the units of the first in a
way of its own, has biases and a head of its own; they are trained side by side on the same batch, and their scores averaged
(after Gorishniy, Kotelnikov, Babenko: "TabM: Advancing Tabular Deep Learning with Parameter-Efficient Ensembling", ICLR 2025,
arXiv:2410.24210, where members differ from the input on: behind the first layer they cost less and did better on our tables).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlprod.config import MUST, knob
from mlprod.errors import ConfigError
from mlprod.features import Feature, FeatureSpec
from mlprod.models.layers import check_quantiles, embeddings, in_weights_dtype, pieces_of, shape_of, shaped
from mlprod.models.protocol import Batch, Constant, Sums
from mlprod.objective import objective_of, weighted


@dataclass(kw_only=True, slots=True)
class TabularConfig:
    """Sizes of the tabular model."""

    hidden: tuple[int, ...] = knob((128, 128), "width of each hidden layer", rule=MUST, low=1)
    members: int = knob(8, "networks that share the layers", rule=MUST, low=1)
    bins: int = knob(32, "parts into which a number is cut: 64 or a divisor of it", rule=MUST, low=1, high=64)
    embedding: int = knob(16, "width of a number's embedding", rule=MUST, low=1)
    max_embedding: int = knob(32, "widest embedding; a table of n ids gets about 1.6 n^0.56", rule=MUST, low=1)
    dropout: float = knob(0.1, "share of hidden units left out", low=0.0, high=0.99)

    def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the model for a dataset's features."""
        if 64 % self.bins:
            raise ConfigError(f"config.model.bins={self.bins} must divide 64, the parts of the quantiles that a dataset holds")
        check_quantiles(features.numeric)
        other = next((f for f in features.numeric if f.scale != "model"), None)
        if other is not None:
            raise ConfigError(
                f"config.etl.columns: {other.name!r} has scale={other.scale!r}, but TabularConfig scales numbers in its own way; "
                f"leave scale='model', or take MLPConfig"
            )
        return Tabular(self, features, rngs)


class Numbers(nnx.Module):
    """Numbers scaled by their quartiles and softly clipped, and embeddings of them that are piecewise linear, behind a ReLU."""

    def __init__(self, features: tuple[Feature, ...], bins: int, width: int, rngs: nnx.Rngs) -> None:
        """The piecewise part starts at 0, so that an embedding begins as a line."""
        self.shape, features = shape_of(features), tuple(map(shaped, features))
        low, inverse = (np.stack(part) for part in zip(*(pieces_of(f, bins) for f in features), strict=True))
        center, scale = (np.array(part, np.float32) for part in zip(*(_quartiles(f) for f in features), strict=True))
        self.low, self.inverse = Constant(jnp.asarray(low)), Constant(jnp.asarray(inverse))
        self.center, self.scale = Constant(jnp.asarray(center)), Constant(jnp.asarray(scale))
        shape = (len(features), width)
        self.slope = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jax.random.normal(rngs.params(), shape) * 0.1)
        self.pieces = nnx.Param(jnp.zeros((len(features), bins, width)))

    def scaled(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F]: x / sqrt(1 + (x / 3)^2) of numbers in deviations from their medians."""
        z = (numeric - self.center[None]) * self.scale[None]
        return z * jax.lax.rsqrt(1 + (z / 3) ** 2)

    def embedded(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F, width], before the ReLU."""
        part = jnp.clip((numeric[:, :, None] - self.low[None]) * self.inverse[None], 0.0, 1.0)
        pieces = jnp.einsum("fbt,ftd->fbd", part.transpose(1, 0, 2), self.pieces[...]).transpose(1, 0, 2)
        return pieces + self.scaled(numeric)[:, :, None] * self.slope[None] + self.bias[None]

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F + F width] from float32[B, F]."""
        numeric = numeric if self.shape is None else self.shape(numeric)
        embedded = jax.nn.relu(self.embedded(numeric)).reshape(numeric.shape[0], -1)
        return jnp.concatenate([self.scaled(numeric), embedded], axis=1)


def _quartiles(feature: Feature) -> tuple[float, float]:
    """Returns (median, 1 / deviation): that of a normal distribution of these quartiles; where they are equal, its own."""
    quarter = (len(feature.quantiles) - 1) // 4
    lower, middle, upper = (feature.quantiles[i * quarter] for i in (1, 2, 3))
    return middle, 1.35 / (upper - lower) if upper > lower else 1 / feature.std


class Tabular(nnx.Module):
    """Outputs of any task from tabular features: in training those of each member, else their average."""

    DIMS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        r"embed/.+/table": ("vocab", "embed"),
        r"numbers/(low|inverse)": ("feature", "bin"),
        r"numbers/(center|scale|shape/(low|high|log))": ("feature",),
        r"numbers/(slope|bias)": ("feature", "embed"),
        r"numbers/pieces": ("feature", "bin", "embed"),
        r"member_scale": ("member", "out"),
        r"hidden/\d+/kernel": ("in", "out"),
        r"biases/\d+/bias": ("member", "out"),
        r"head/kernel": ("member", "in", "logit"),
        r"head/bias": ("member", "logit"),
    }
    TABLES: ClassVar[Mapping[str, tuple[str, ...]]] = {r"embed/(.+)/table": (r"\1",)}

    def __init__(self, cfg: TabularConfig, features: FeatureSpec, rngs: nnx.Rngs) -> None:
        """Widths follow from `cfg`, tables from the features' vocabularies. Kernels start as He et al. have them (2015)."""
        self.numbers = Numbers(features.numeric, cfg.bins, cfg.embedding, rngs) if features.numeric else None
        self.embed, width = embeddings(features, cfg.max_embedding, rngs)
        numbers = len(features.numeric) * (1 + cfg.embedding)
        sizes, he = [numbers + width, *cfg.hidden], nnx.initializers.he_normal()
        linear = partial(nnx.Linear, use_bias=False, kernel_init=he, promote_dtype=in_weights_dtype, rngs=rngs)
        self.hidden = nnx.List([linear(a, b) for a, b in pairwise(sizes)])
        self.member_scale = nnx.Param(1 + 0.5 * jax.random.normal(rngs.params(), (cfg.members, sizes[1])))
        self.biases = nnx.List([Bias(cfg.members, size, 0.0 if i else 0.3, rngs) for i, size in enumerate(sizes[1:])])
        self.dropout = nnx.Dropout(cfg.dropout, broadcast_dims=(1,))  # members lose the same units
        self.objective = objective_of(features.target)
        self.head = Heads(cfg.members, sizes[-1], self.objective.num_outputs, rngs)

    def __call__(self, batch: Batch, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Returns outputs [B] or [B, C]; where `rngs` is given, dropout is on and they are of K members: [B, K] or [B, K, C]."""
        parts = [self.numbers(batch["numeric"])] if self.numbers is not None else []
        h = jnp.concatenate([*parts, *(table(batch[name]) for name, table in self.embed.items())], axis=1)[:, None, :]
        for i, (layer, bias) in enumerate(zip(self.hidden, self.biases, strict=True)):
            h = layer(h) if i else layer(h) * self.member_scale[None]
            h = self.dropout(jax.nn.relu(bias(h)), deterministic=rngs is None, rngs=rngs)
        outputs: jax.Array = self.objective.outputs(self.head(h))
        return self.objective.averaged(outputs) if rngs is None else outputs

    def loss(self, outputs: jax.Array, batch: Batch) -> Sums:
        """Returns {"loss": (sum, weight)}; of members, the mean of their losses."""
        return {"loss": weighted(self.objective.losses(outputs, batch["label"]), batch["weight"])}


class Bias(nnx.Module):
    """A bias of its own for each member."""

    def __init__(self, members: int, width: int, deviation: float, rngs: nnx.Rngs) -> None:
        """Starts normal with this deviation."""
        self.bias = nnx.Param(jax.random.normal(rngs.params(), (members, width)) * deviation)

    def __call__(self, h: jax.Array) -> jax.Array:
        """Returns float32[B, K, width] from [B, K, width] or [B, 1, width]."""
        return h + self.bias[None]


class Heads(nnx.Module):
    """A linear layer of its own for each member."""

    def __init__(self, members: int, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        """Kernels start normal with deviation 1/sqrt(width)."""
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (members, width, outputs)) * width**-0.5)
        self.bias = nnx.Param(jnp.zeros((members, outputs)))

    def __call__(self, h: jax.Array) -> jax.Array:
        """Returns float32[B, K, outputs] from [B, K, width]."""
        return jnp.einsum("bki,kio->bko", h, self.kernel[...]) + self.bias[None]
