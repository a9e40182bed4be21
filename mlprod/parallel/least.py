"""The fewest bytes that a device must send in a training step, in closed form, from shapes and layout alone.

Promise: no program whose weights are split this way, gathered where they are used and their gradients summed over all devices
sends less by ring algorithms. What a compiled program sends (`traffic.py`) is told as a multiple of it.
Price: it knows nothing of programs that move activations in the place of weights, which may send less for a small batch.

A gather or a reduce-scatter over n devices sends (n-1)/n of the whole array, an all-reduce twice that of what each has
(Rajbhandari et al., "ZeRO", arXiv:1910.02054, section 7; for rows that devices share Korthikanti et al., arXiv:2205.05198,
section 4.2.2).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding

from mlprod.parallel.gather import Policy, Use


@dataclass(frozen=True, slots=True)
class Least:
    """Bytes that a device must send in a step."""

    weights: float  # gathered
    gradients: float  # summed
    activations: float  # of rows that devices share

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.activations


def least_bytes(
    arrays: Mapping[str, Any],
    shardings: Mapping[str, NamedSharding],
    policy: Policy,
    gathers: Mapping[str, int],
    sums: int,
    exchanged: int,
) -> Least:
    """Returns the fewest bytes of a step.

    Args:
        arrays: shapes and dtypes of the parameters, by path.
        shardings: of them, by path.
        policy: how they are used.
        gathers: how often each is gathered in a step.
        sums: how often gradients are summed in a step.
        exchanged: numbers of a batch's activations, of one device's rows in whole, that are gathered or summed in a step.
    """
    weights = gradients = 0.0
    for path, array in arrays.items():
        use, sizes = policy.uses[path], shardings[path].mesh.shape
        split, others = (math.prod(sizes[a] for a in axes) for axes in (sum(use.split, ()), use.others))
        held = math.prod(shardings[path].shard_shape(array.shape))
        weights += gathers[path] * use.dtype.itemsize * held * (split - 1)
        gradients += sums * use.sum_dtype.itemsize * held * (split - 1 + 2 * (others - 1) / others)
    sharing = math.prod(next(iter(shardings.values())).mesh.shape[a] for a in policy.sequence)
    of_activations = _compute_dtype(policy).itemsize * exchanged * (sharing - 1) / sharing
    return Least(weights, gradients, of_activations)


def _compute_dtype(policy: Policy) -> Any:
    """Returns the narrowest dtype that parameters compute in: that of activations."""
    uses: list[Use] = list(policy.uses.values())
    return min((use.dtype for use in uses), key=lambda dtype: int(dtype.itemsize))
