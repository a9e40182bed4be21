"""How a parameter is used on the devices that hold parts of it: cast, gathered where it is used, its gradient summed back.

Promise: a weight crosses the wire in the dtype it computes in, once for each use; its gradient comes back as a sum over all
devices that lies where the weight lies, by one collective a mesh axis: reduce-scatter over those that split it, then all-reduce
of what is left over the others. Models do not know of it: a parameter that is read is the whole parameter.
Price: everything runs in `shard_map`, each device on its rows of the batch. What is computed across rows, or from random keys,
would differ from the compiler's own partition (`models/spread.py` says which models are free of both).

Why not leave it to the compiler: its own partition sums gradients by all-reduces, twice the bytes and more (docs/layouts.md).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlprod.collectives import Axes, gathered, sum_scattered


@dataclass(frozen=True, slots=True)
class Use:
    """How one array is used on a device."""

    dtype: Any  # that it computes in, and crosses the wire in
    sum_dtype: Any  # that its gradient is summed in
    split: tuple[Axes, ...] = ()  # of each dim, the axes over which it is gathered
    others: Axes = ()  # along which devices have equal parts

    def __call__(self, value: jax.Array) -> jax.Array:
        """Returns the whole of a part; of an array with fewer dims than `split`, such as a layer of a stack, its last ones."""
        split = self.split[len(self.split) - value.ndim :] if value.ndim else ()
        return _whole(value, self.dtype, self.sum_dtype, split, self.others)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _whole(part: jax.Array, dtype: Any, sum_dtype: Any, split: tuple[Axes, ...], others: Axes) -> jax.Array:
    whole = part.astype(dtype)
    for dim, axes in enumerate(split):
        whole = gathered(whole, axes, dim)
    return whole


def _whole_forward(part: jax.Array, dtype: Any, sum_dtype: Any, split: tuple[Axes, ...], others: Axes) -> tuple[jax.Array, None]:
    return _whole(part, dtype, sum_dtype, split, others), None


def _whole_backward(
    dtype: Any, sum_dtype: Any, split: tuple[Axes, ...], others: Axes, kept: None, gradient: jax.Array
) -> tuple[jax.Array]:
    part = gradient.astype(sum_dtype)
    for dim, axes in enumerate(split):
        part = sum_scattered(part, axes, dim)
    return ((jax.lax.psum(part, others) if others else part).astype(jnp.float32),)


_whole.defvjp(_whole_forward, _whole_backward)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a program uses its parameters. Without axes of the batch the compiler partitions it, and a use is a cast."""

    uses: Mapping[str, Use] = field(default_factory=dict)  # by path of the parameter; one that is not there is read as it is
    batch: Axes = ()  # that split the rows
    sequence: Axes = ()  # that split a row, see `models.spread`

    @property
    def rows(self) -> PartitionSpec:
        """Of what has a row of the batch in its first dim."""
        return PartitionSpec(self.batch)

    def on_each_device(self, act: Callable[..., Any], mesh: Mesh, inputs: Any, outputs: Any) -> Callable[..., Any]:
        """Returns `act` as each device runs it on its part; `inputs`, `outputs`: trees of specs."""
        if not self.batch:
            return act
        mapped: Callable[..., Any] = jax.shard_map(act, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
        return mapped

    def total(self, part: jax.Array) -> jax.Array:
        """Returns the sum over the devices of what each has of its rows and tokens."""
        return jax.lax.psum(part, self.batch + self.sequence) if self.batch else part


def policy_of(
    shardings: Mapping[str, NamedSharding], batch: Axes, sequence: Axes, compute: str, in_float32: Sequence[str], sum_in: str
) -> Policy:
    """Returns the policy of a model's parameters.

    Args:
        shardings: by path.
        batch: axes that split the rows; (): the compiler partitions.
        sequence: axes that split a row, over which weights are not gathered.
        compute: name of the dtype that parameters compute in.
        in_float32: patterns of paths that compute in float32 all the same.
        sum_in: name of the dtype that gradients are summed in; "compute": that of the computation.
    """

    def use(path: str, where: NamedSharding) -> Use:
        dtype = jnp.dtype("float32" if any(re.fullmatch(pattern, path) for pattern in in_float32) else compute)
        split = tuple((axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in where.spec)
        gathered = tuple(tuple(axis for axis in axes if axis in batch) for axes in split)
        others = tuple(axis for axis in batch + sequence if all(axis not in axes for axes in split))
        return Use(dtype, dtype if sum_in == "compute" else jnp.dtype(sum_in), gathered, others)

    if not batch and compute == "float32":
        return Policy()
    return Policy({path: use(path, where) for path, where in shardings.items()}, batch, sequence)
