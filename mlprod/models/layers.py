"""Layers that more than one family uses."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mlprod.errors import ConfigError
from mlprod.features import MISSING, Feature, FeatureSpec
from mlprod.models.protocol import Constant, Table


def in_weights_dtype(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Returns (input, kernel, ...) with the input in the kernel's dtype, for `nnx.Linear(promote_dtype=...)`: what comes in is
    float32, and would otherwise make the layer compute in it."""
    x, kernel, *others = arrays
    return (x.astype(kernel.dtype), kernel, *others)


class Shape(nnx.Module):
    """Cuts numbers at their limits, and takes the logarithms of some: sign(x) log(1 + |x|)."""

    def __init__(self, features: Sequence[Feature]) -> None:
        """What each feature says."""
        self.low, self.high = (Constant(_float32(getattr(f, name) for f in features)) for name in ("clip_low", "clip_high"))
        self.log = Constant(_float32(float(f.log) for f in features))

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F] from float32[B, F]."""
        x = jnp.clip(numeric, self.low[None], self.high[None])
        return jnp.where(self.log[None] > 0, jnp.sign(x) * jnp.log1p(jnp.abs(x)), x)


def shape_of(features: Sequence[Feature]) -> Shape | None:
    """Returns how numbers are cut and bent; None where they enter as they are."""
    return Shape(features) if any(_is_shaped(f) for f in features) else None


def _is_shaped(f: Feature) -> bool:
    return f.log or f.clip_low > -math.inf or f.clip_high < math.inf


def shaped(f: Feature) -> Feature:
    """Returns a number with its fill, quantiles, mean and deviation behind `Shape`: the last two as its quantiles tell them."""
    if not _is_shaped(f):
        return f

    def bent(values: Sequence[float]) -> np.ndarray:
        x = np.clip(np.asarray(values, np.float64), f.clip_low, f.clip_high)
        return np.sign(x) * np.log1p(np.abs(x)) if f.log else x

    fill, q = float(bent([f.fill])[0]), bent(f.quantiles)
    if len(q) < 2:
        return replace(f, fill=fill, mean=fill, std=1.0)
    low, high = q[:-1], q[1:]  # as many rows lie between any two, evenly
    mean, square = float((low + high).mean() / 2), float((low**2 + low * high + high**2).mean() / 3)
    std = math.sqrt(max(square - mean**2, 0.0))
    return replace(f, fill=fill, quantiles=tuple(q.tolist()), mean=mean, std=std if std > 1e-6 * (1 + abs(mean)) else 1.0)


def pieces_of(feature: Feature, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (low ends, 1 / widths), float32[bins] each; of bins that equal quantiles leave out, width 1 / 0: always 0."""
    edges = np.unique(np.array(feature.quantiles[:: (len(feature.quantiles) - 1) // bins], np.float64))
    low, inverse = np.zeros(bins, np.float32), np.zeros(bins, np.float32)
    low[: len(edges) - 1] = edges[:-1]
    inverse[: len(edges) - 1] = np.minimum(1 / np.diff(edges), np.finfo(np.float32).max)
    return low, inverse


class Pieces(nnx.Module):
    """How much of each part between two quantiles lies below a number: 0 to 1 (arXiv:2203.05556, section 3.2)."""

    def __init__(self, features: Sequence[Feature], bins: int) -> None:
        """`bins`: parts of a number; 64 or a divisor of it."""
        low, inverse = (np.stack(part) for part in zip(*(pieces_of(f, bins) for f in features), strict=True))
        self.low, self.inverse = Constant(jnp.asarray(low)), Constant(jnp.asarray(inverse))

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F, bins] from float32[B, F]."""
        return jnp.clip((numeric[:, :, None] - self.low[None]) * self.inverse[None], 0.0, 1.0)


class Ranks(nnx.Module):
    """Where a number is among the training rows' quantiles: -1 at the least, 1 at the greatest, linear in between."""

    def __init__(self, features: Sequence[Feature]) -> None:
        """A value that many rows have gets the middle of their ranks."""
        self.parts = Pieces(features, 64)
        first, mass = (np.stack(part) for part in zip(*(_masses(f) for f in features), strict=True))
        self.first, self.mass = Constant(jnp.asarray(first)), Constant(jnp.asarray(mass))

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, F] from float32[B, F]."""
        return self.first[None] + (self.parts(numeric) * self.mass[None]).sum(axis=2)


def _masses(feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rank of the least value, how much the rank grows over each part), float32[] and float32[64]."""
    last = len(feature.quantiles) - 1
    _, counts = np.unique(np.array(feature.quantiles, np.float64), return_counts=True)
    ranks = 2 * (np.cumsum(counts) - (counts + 1) / 2) / last - 1
    mass = np.zeros(64, np.float32)
    mass[: len(ranks) - 1] = np.diff(ranks)
    return np.asarray(ranks[0], np.float32), mass


PIECES = 16  # of a number of scale "piecewise"


class Standardize(nnx.Module):
    """Numbers as they enter a network: by the training split's mean and deviation, outliers cut at `limit`; or as their columns
    want it. `width`: numbers that come out of a row."""

    def __init__(self, features: FeatureSpec, limit: float) -> None:
        """`limit`: in standard deviations.

        Raises:
            ConfigError: a column wants quantiles, and the dataset has none.
        """
        self.shape = shape_of(features.numeric)
        numbers = [shaped(f) for f in features.numeric]
        self.mean = Constant(_float32(f.mean for f in numbers))
        self.scale = Constant(_float32(1.0 / f.std for f in numbers))
        self.limit = limit
        self.standard, self.raw, ranked, pieced = (
            tuple(i for i, f in enumerate(numbers) if f.scale in scales)
            for scales in (("model", "standard"), ("none",), ("quantile",), ("piecewise",))
        )
        check_quantiles([numbers[i] for i in (*ranked, *pieced)])
        self.ranked, self.pieced = ranked, pieced
        self.ranks = Ranks([numbers[i] for i in ranked]) if ranked else None
        self.pieces = Pieces([numbers[i] for i in pieced], PIECES) if pieced else None
        self.width = len(numbers) + (PIECES - 1) * len(pieced)

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Returns float32[B, width] from float32[B, F]."""
        x = numeric if self.shape is None else self.shape(numeric)
        standard = jnp.clip((x - self.mean[None, :]) * self.scale[None, :], -self.limit, self.limit)
        if len(self.standard) == numeric.shape[1]:
            return standard
        parts = [standard[:, np.array(self.standard, int)], x[:, np.array(self.raw, int)]]
        if self.ranks is not None:
            parts.append(self.ranks(x[:, np.array(self.ranked)]))
        if self.pieces is not None:
            parts.append(self.pieces(x[:, np.array(self.pieced)]).reshape(x.shape[0], -1))
        return jnp.concatenate(parts, axis=1)


def check_quantiles(features: Sequence[Feature]) -> None:
    """Raises ConfigError where a dataset has no quantiles of a number that needs them."""
    lacking = [f.name for f in features if not f.quantiles]
    if lacking:
        raise ConfigError(f"config.model: the dataset has no quantiles of {lacking[0]!r}; build it anew by `mlprod etl`")


def _float32(values: Iterable[float]) -> jax.Array:
    return jnp.array(list(values), jnp.float32)


class Embedding(nnx.Module):
    """A lookup table; ids outside it are a bug of ours, for ETL's ids are always inside."""

    def __init__(self, num_ids: int, width: int, rngs: nnx.Rngs) -> None:
        """Rows start normal with deviation 1/sqrt(width), so that a row's norm is about 1."""
        self.table = Table(jax.random.normal(rngs.params(), (num_ids, width)) * width**-0.5)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns float32[B, width] from int32[B]."""
        return self.table[ids]


class Bag(Embedding):
    """A lookup table for lists: what a row's values have on the mean, of an empty list what the missing slot has."""

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Returns float32[B, width] from int32[B, length]."""
        there = (ids != MISSING)[:, :, None]
        count = there.sum(axis=1)
        total = jnp.where(there, self.table[ids], 0.0).sum(axis=1)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), self.table[MISSING][None])


def embedding_width(num_ids: int, limit: int) -> int:
    """Returns the usual width for a table of `num_ids` rows: 1.6 n^0.56 (fastai's rule of thumb), at most `limit`."""
    return min(limit, math.ceil(1.6 * math.pow(num_ids, 0.56)))


def embeddings(features: FeatureSpec, limit: int, rngs: nnx.Rngs) -> tuple[nnx.Dict[Embedding], int]:
    """Returns (what makes vectors of the ids of each feature that has some, by its name; how wide they are together)."""
    widths = {f.name: embedding_width(f.num_ids, limit) for f in (*features.categorical, *features.lists)}
    tables = {f.name: Embedding(f.num_ids, widths[f.name], rngs) for f in features.categorical}
    bags = {f.name: Bag(f.num_ids, widths[f.name], rngs) for f in features.lists}
    return nnx.Dict({**tables, **bags}), sum(widths.values())
