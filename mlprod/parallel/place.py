"""Host rows onto devices, and device values back: the two doors of the loop.

Promise: a process reads just the row ranges of the batch that its devices hold; device values leave through `fetch` alone.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mlprod.parallel.ahead import Ahead, Source

Ranges = tuple[tuple[int, int], ...]
Rows = Mapping[str, np.ndarray]
WAITING_EVERY_S = 10.0  # between two lines that say that data is late


def local_ranges(sharding: NamedSharding, global_batch: int) -> Ranges:
    """Returns the sorted, disjoint row ranges [a, b) of a batch that this process's devices hold."""
    return ranges_of(sharding, global_batch, sharding.addressable_devices)


def ranges_of(sharding: NamedSharding, global_batch: int, devices: Collection[jax.Device]) -> Ranges:
    """Returns the sorted, disjoint row ranges [a, b) of a batch that `devices` hold together."""
    held = sharding.devices_indices_map((global_batch,))
    spans = sorted({held[device][0].indices(global_batch)[:2] for device in devices})
    merged: list[tuple[int, int]] = []
    for a, b in spans:
        if merged and a <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
        else:
            merged.append((a, b))
    return tuple(merged)


def _offset(ranges: Ranges, row: int) -> int:
    """Returns where the batch row `row` stands among the rows of `ranges`."""
    before = 0
    for a, b in ranges:
        if a <= row < b:
            return before + row - a
        before += b - a
    raise AssertionError(f"row {row} is not in {ranges}")


def to_devices(batch: Rows, sharding: NamedSharding, ranges: Ranges, global_batch: int) -> dict[str, jax.Array]:
    """Returns the global batch: arrays [global_batch, ...] split by `sharding`.

    Args:
        batch: this process's rows, [rows of `ranges`, ...], in their order.
    """
    return _placer(sharding, ranges, global_batch)(batch)


def _placer(sharding: NamedSharding, ranges: Ranges, global_batch: int) -> Callable[[Rows], dict[str, jax.Array]]:
    """Returns what puts a batch on the devices, see `to_devices`; made once for many batches.

    One device gets it as arguments of a program that does nothing: `device_put` takes 60 us of Python an array, in which no
    other thread gets on, the program 10.
    """
    if len(sharding.device_set) == 1:
        placed: Callable[[Rows], dict[str, jax.Array]] = jax.jit(_same, out_shardings=sharding)
        return lambda batch: placed(dict(batch))
    spans = {d: s[0].indices(global_batch)[:2] for d, s in sharding.addressable_devices_indices_map((global_batch,)).items() if s}
    at = {d: (_offset(ranges, a), b - a) for d, (a, b) in spans.items()}

    def assemble(rows: np.ndarray) -> jax.Array:
        parts = [jax.device_put(rows[start : start + size], d) for d, (start, size) in at.items()]
        full = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec, *(None,) * (rows.ndim - 1)))
        return jax.make_array_from_single_device_arrays((global_batch, *rows.shape[1:]), full, parts)

    return lambda batch: {name: assemble(rows) for name, rows in batch.items()}


def _same(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return batch


def placed_ahead(
    source: Source[Rows], sharding: NamedSharding, ranges: Ranges, global_batch: int, depth: int, waiting: Callable[[float], None]
) -> Ahead[Rows, tuple[Rows, dict[str, jax.Array]]]:
    """Returns (host rows, global batch) pairs, put on the devices up to `depth` batches ahead on a thread of its own.

    Args:
        waiting: called with the seconds waited so far, every `WAITING_EVERY_S` seconds that the next batch is late.
    """
    placed = _placer(sharding, ranges, global_batch)
    return Ahead(source, lambda rows: (rows, placed(rows)), depth, waiting, WAITING_EVERY_S)


def fetch(tree: Any) -> Any:
    """Returns device values as numpy, waiting for them. The only way out of the devices in the loop."""
    if isinstance(tree, jax.Array):
        return np.asarray(tree)  # as device_get does, but for 30 us of its own
    return jax.device_get(tree)


def wait(tree: Any) -> None:
    """Waits until device values are computed, without copying them."""
    jax.block_until_ready(tree)
