"""Whether devices that should hold the same values do: a wrong one among them would be saved, or not, by chance.

Promise: each process compares the copies on its own devices, bit by bit, before a save; nothing moves between devices.
Price: one more pass over the arrays of which a process holds a part more than once; none where each part is held once.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlprod.checkpoint.leaves import some_of
from mlprod.digest import digest
from mlprod.errors import CheckpointError
from mlprod.parallel.place import fetch


def check_replicas(leaves: Mapping[str, jax.Array]) -> None:
    """Compares what this process's devices hold of the same parts of arrays, {path: array of any shape}, on one mesh.

    Raises:
        CheckpointError: two devices hold other values, by path and device.
    """
    copied = {path: leaf for path, leaf in leaves.items() if _is_copied(leaf)}
    if not copied:
        return
    digests = _digests_by_device(copied)
    wrong = [told for path, leaf in copied.items() for told in _differing(path, leaf, digests[path])]
    if wrong:
        raise CheckpointError(
            f"devices that should hold the same values do not: {some_of(wrong, '; ')}; nothing was saved. Start again: that goes "
            f"back to the last good step; leave a device out that is named again"
        )


def _is_copied(leaf: jax.Array) -> bool:
    """Returns whether this process has a part of an array on several devices."""
    shards = leaf.addressable_shards
    return len({str(shard.index) for shard in shards}) < len(shards)


def _digests_by_device(leaves: Mapping[str, jax.Array]) -> dict[str, dict[int, np.ndarray]]:
    """Returns {path: {id of a device of this process: digest of what it holds, uint32[1, 2]}}."""
    shardings = [leaf.sharding for leaf in leaves.values() if isinstance(leaf.sharding, NamedSharding)]
    specs = tuple(sharding.spec for sharding in shardings)
    found = dict(zip(leaves, _own_digests(tuple(leaves.values()), shardings[0].mesh, specs), strict=True))
    own = {path: {shard.device.id: shard.data for shard in words.addressable_shards} for path, words in found.items()}
    fetched: dict[str, dict[int, np.ndarray]] = fetch(own)
    return fetched


@partial(jax.jit, static_argnums=(1, 2))
def _own_digests(leaves: tuple[jax.Array, ...], mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> list[jax.Array]:
    """Returns uint32[devices, 2] of each array: every device's digest of what it holds itself, which is also where it lies."""

    def own(parts: tuple[jax.Array, ...]) -> list[jax.Array]:
        return [digest(part)[None] for part in parts]

    everywhere = PartitionSpec(mesh.axis_names)
    digests: list[jax.Array] = jax.shard_map(own, mesh=mesh, in_specs=(specs,), out_specs=everywhere, check_vma=False)(leaves)
    return digests


def _differing(path: str, leaf: jax.Array, digests: Mapping[int, np.ndarray]) -> Iterator[str]:
    """Yields where a device holds other values than the first that holds the same part."""
    first = dict[str, jax.Device]()
    for shard in leaf.addressable_shards:
        other = first.setdefault(str(shard.index), shard.device)
        if (digests[shard.device.id] != digests[other.id]).any():
            yield f"{path} on {shard.device} and on {other}"
