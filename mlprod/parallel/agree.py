"""What all processes do after the same step, though one of them asks for it: save, because time is up, or stop.

Promise: every process gets the same answer at the same step. One process alone is answered at once.
Price: with several, one small all-reduce beside each step, and an answer that comes a step late.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlprod.parallel.place import fetch


class Agreement:
    """The processes' wishes after each step. Every process must ask after every step."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.alone = jax.process_count() == 1
        self._asked: jax.Array | None = None
        mesh = Mesh(np.array(jax.devices()), ("devices",))
        self._split = NamedSharding(mesh, PartitionSpec("devices"))
        self._any = jax.jit(lambda wishes: jnp.max(wishes, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, *, save: bool, stop: bool) -> tuple[bool, bool]:
        """Returns whether all save and whether all stop now: process 0 decides on a save, any one on a stop."""
        if self.alone:
            return save, stop
        answer = fetch(self._asked) if self._asked is not None else np.zeros(2, np.int32)
        wish = [save and jax.process_index() == 0 and not answer[0], stop]  # a save that was agreed on is done now
        local = np.tile(np.array(wish, np.int32), (jax.local_device_count(), 1))
        self._asked = self._any(jax.make_array_from_process_local_data(self._split, local))
        return bool(answer[0]), bool(answer[1])
