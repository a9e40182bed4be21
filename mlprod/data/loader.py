"""Batches of this process, ahead of the step, in the order of `order.py`.

Promise: batch k is a pure function of the order's constants and k: not of threads, prefetch or restarts; a position is
restored by asking for it. `process_index` appears nowhere: what is read follows from the batch's sharding.
Price: `prefetch` batches and two to three windows of memory; Grain costs about 75 us a batch.
"""

from collections.abc import Generator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import SupportsIndex

import grain
import numpy as np

from mlprod.config import Config
from mlprod.data.reader import Arrays, GroupReader, Windows, as_batch
from mlprod.errors import ConfigError
from mlprod.hashing import PAD_ID
from mlprod.manifest import Manifest
from mlprod.order import Epoch, OrderSpec, batches_per_epoch, default_lanes, default_window, lanes_of, locate, plan_epoch


def example_bytes(manifest: Manifest) -> int:
    """Returns the bytes of one stored example's arrays."""
    return sum(4 for c in manifest.columns if c.kind in ("numeric", "categorical")) + 12


def train_order(cfg: Config, manifest: Manifest) -> OrderSpec:
    """Returns the constants of the training order, defaults resolved.

    Raises:
        ConfigError: a window that is not a multiple of the lanes, or holds fewer than 4 row groups.
    """
    batch, rows = cfg.loader.global_batch, manifest.group_rows
    lanes = cfg.loader.num_lanes or default_lanes(batch)
    window = cfg.loader.window_rows or default_window(lanes, rows, example_bytes(manifest), batch)
    if window % lanes:
        raise ConfigError(f"config.loader.window_rows={window} must be a multiple of the {lanes} lanes")
    if window < 4 * rows:
        raise ConfigError(f"config.loader.window_rows={window} must hold at least 4 row groups of {rows} rows: {4 * rows}")
    return OrderSpec(seed=cfg.seed, global_batch=batch, num_lanes=lanes, window_rows=window, group_rows=rows, pad=False)


def eval_order(cfg: Config, manifest: Manifest) -> OrderSpec:
    """Returns the constants of the evaluation order: always seed 0, epoch 0, padded to whole batches."""
    batch, rows = cfg.eval.batch, manifest.group_rows
    lanes = default_lanes(batch)
    window = default_window(lanes, rows, example_bytes(manifest), batch)
    return OrderSpec(seed=0, global_batch=batch, num_lanes=lanes, window_rows=window, group_rows=rows, pad=True)


class Batches:
    """A random-access sequence of this process's batches, for Grain: element i is batch `first` + i of the order."""

    def __init__(
        self,
        dataset: Path,
        manifest: Manifest,
        split: str,
        spec: OrderSpec,
        ranges: Sequence[tuple[int, int]],
        first: int,
        count: int,
    ) -> None:
        """`ranges`: the rows [a, b) of each batch that this process holds."""
        self._spec, self._sizes, self._first, self._count = spec, manifest.group_sizes(split), first, count
        self._reader = GroupReader(dataset, manifest, split)
        self._lanes = lanes_of(spec, ranges)
        self._windows = Windows(self._reader, self._lanes)
        self._rows = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in ranges])
        self._epoch = lru_cache(maxsize=2)(lambda number: plan_epoch(spec, self._sizes, number))

    def __len__(self) -> int:
        """Batches from `first` on."""
        return self._count

    def __getitem__(self, i: SupportsIndex) -> Arrays:
        """Returns the batch as numpy arrays [local rows, ...]; padded rows are zeros with weight 0 and the pad's row id."""
        number, j = locate(self._spec, self._sizes, (self._first + int(i)) * self._spec.global_batch)
        return as_batch(self._gather(self._epoch(number), j), self._reader.id_names)

    def _gather(self, epoch: Epoch, j: int) -> Arrays:
        g = self._spec.lane_batch
        lane, slot = self._rows // g, j * g + self._rows % g
        lane_index = np.searchsorted(self._lanes, lane)
        windows = range(epoch.window_of_slot(int(slot.min())), epoch.window_of_slot(int(slot.max())) + 1)
        out: Arrays = {name: np.zeros((len(slot), *shape), dtype) for name, (shape, dtype) in self._reader.shapes().items()}
        out["row_id"][:] = PAD_ID
        for window in windows:
            arrays, slots = self._windows.get(epoch, window), self._windows.slots_in(epoch, window)
            offset = slot - window * epoch.part
            bounds = np.array([epoch.lane_bounds(window, int(x)) for x in self._lanes])
            inside = (offset >= 0) & (offset < (bounds[:, 1] - bounds[:, 0])[lane_index])
            at = lane_index[inside] * slots + offset[inside]
            for name, values in arrays.items():
                out[name][inside] = values[at]
        return out


def read_batches(batches: Batches, threads: int, prefetch: int) -> Generator[Arrays, None, None]:
    """Yields the batches in order, read ahead by Grain's threads; stops at the first error, for Grain would go on past it."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.source(batches).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def train_batches(
    cfg: Config, manifest: Manifest, spec: OrderSpec, ranges: Sequence[tuple[int, int]], position: int, steps: int
) -> Generator[Arrays, None, None]:
    """Yields this process's training batches [local rows, ...] from example position `position` on, `steps` of them."""
    batches = Batches(Path(cfg.dataset), manifest, "train", spec, ranges, position // spec.global_batch, steps)
    return read_batches(batches, cfg.loader.threads, cfg.loader.prefetch)


def eval_batches(cfg: Config, manifest: Manifest, split: str, ranges: Sequence[tuple[int, int]]) -> Generator[Arrays, None, None]:
    """Yields this process's batches of a whole split, [local rows, ...], every row once, the rest padding."""
    spec = eval_order(cfg, manifest)
    batches = Batches(Path(cfg.dataset), manifest, split, spec, ranges, 0, batches_per_epoch(spec, manifest.group_sizes(split)))
    return read_batches(batches, cfg.loader.threads, cfg.loader.prefetch)
