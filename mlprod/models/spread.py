"""How the devices that share a row of the batch divide its work: each has some of the tokens, and a part of each large weight.

A model that `Spreads` is one whose devices may each compute a part of the loss by themselves: of their rows, which must not
depend on other rows or on random keys, and, where a layout splits the dim "sequence", of their tokens. Between blocks a device
holds its tokens; before a weight that is split by its outputs it gets all tokens (`whole`), and behind one that is split by its
inputs the parts are added up, each device keeping its tokens (`added`): Korthikanti et al., "Reducing activation recomputation in
large transformer models", arXiv:2205.05198. On one device, and where no layout splits a row, nothing is done.
"""

from dataclasses import dataclass

import jax
from jax.ad_checkpoint import checkpoint_name

from mlprod.collectives import gathered, sum_scattered
from mlprod.errors import LayoutError

COLLECTIVE = "collective"  # name, for remat policies, of what came over the wire


@dataclass(frozen=True, slots=True)
class Spread:
    """The devices along `axes` share a row. Sequences are dim 1 of what is given."""

    axes: tuple[str, ...] = ()

    def whole(self, mine: jax.Array) -> jax.Array:
        """Returns all tokens [B, T, ...] of this device's [B, T / n, ...]."""
        return checkpoint_name(gathered(mine, self.axes, 1), COLLECTIVE) if self.axes else mine

    def added(self, part: jax.Array) -> jax.Array:
        """Returns this device's tokens [B, T / n, ...] of the sum of all devices' [B, T, ...]."""
        return checkpoint_name(sum_scattered(part, self.axes, 1), COLLECTIVE) if self.axes else part

    def mine(self, whole: jax.Array) -> jax.Array:
        """Returns this device's tokens [B, T / n, ...] of [B, T, ...], which every device has."""
        size = whole.shape[1] // jax.lax.axis_size(self.axes) if self.axes else whole.shape[1]
        return jax.lax.dynamic_slice_in_dim(whole, self.index() * size, size, 1) if self.axes else whole

    def index(self) -> jax.Array | int:
        """Returns this device's number among those that share a row."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def highest(self, x: jax.Array) -> jax.Array:
        """Returns the maximum over the devices, element by element."""
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def total(self, x: jax.Array) -> jax.Array:
        """Returns the sum over the devices, element by element."""
        return jax.lax.psum(x, self.axes) if self.axes else x


class Spreads:
    """What a model says of itself that may be computed this way. Its `spread` is set where devices share rows."""

    spread = Spread()

    def check_shared(self, devices: int) -> None:
        """Raises LayoutError where so many devices cannot share a row."""
        raise LayoutError(f"{type(self).__name__} has rows that devices cannot share; take config.mesh.layout=fsdp")

    def gathers(self, path: str, microbatches: int) -> int:
        """Returns how often a step must gather a parameter: once, if it can stay gathered to the end of the step."""
        return 1

    def exchanged(self, rows: int) -> int:
        """Returns how many numbers of `rows` rows' activations a step gathers or sums among the devices that share them."""
        return 0
