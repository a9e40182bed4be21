"""Batches of this process, ahead of the step, in the order of `order.py`. The only door to grain.

Promise: a batch is a pure function of the order's constants and its example position: not of threads, prefetch or restarts;
a position is restored by asking for it. `process_index` appears nowhere: what is read follows from the batch's sharding.
Price: two windows of memory and `prefetch` batches; Grain costs about 75 us a batch.
"""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from functools import lru_cache
from typing import Any, SupportsIndex

import grain
import numpy as np

from mlprod.config import Config
from mlprod.data.memory import Memory, Scratch
from mlprod.data.reader import FLOAT32, INT32, Arrays, GroupReader, Shapes
from mlprod.data.window import WEIGHT, LocalRows, Window
from mlprod.errors import ConfigError
from mlprod.manifest import Manifest
from mlprod.order import Epoch, OrderSpec, batches_per_epoch, default_lanes, default_window, locate, plan_epoch
from mlprod.store import Store

CHUNK_BYTES = 4 << 20  # of the batches that a thread makes and hands over at once
NO_FEATURES = {"numeric": FLOAT32, "ids": INT32}  # arrays of width 0 where a dataset has no such features


def example_bytes(manifest: Manifest) -> int:
    """Returns the bytes of one stored example's arrays."""
    return sum(4 * math.prod(c.shape) for c in manifest.columns if c.kind != "plain") + 12


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


def batch_shapes(store: Store, manifest: Manifest) -> Shapes:
    """Returns {array name: (shape of one row, dtype)} of every batch of a dataset, as `Batches` makes them."""
    stored = {
        **{name: ((0,), dtype) for name, dtype in NO_FEATURES.items()},
        **GroupReader(store, manifest, "train").shapes(),
        **WEIGHT,
    }
    return {**stored, "row_id": ((2,), np.dtype(np.uint32))}


class Batches:
    """A random-access sequence of this process's batches, for Grain. Safe to use from several threads.

    A batch is arrays [local rows, ...]: "numeric" float32, "ids" int32, "label" and "weight" float32, "row_id" uint32[..., 2];
    padded rows are zeros with weight 0 and the pad's row id. Each batch also decodes its share of the next window.
    """

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        split: str,
        spec: OrderSpec,
        ranges: Sequence[tuple[int, int]],
        positions: Sequence[int],
    ) -> None:
        """Nothing is read yet.

        Args:
            ranges: the rows [a, b) of each batch that this process holds.
            positions: of the batches, multiples of the global batch.
        """
        self._spec, self._positions, sizes = spec, positions, manifest.group_sizes(split)
        self._reader, self._rows, self._memory = GroupReader(store, manifest, split), LocalRows(spec, ranges), Memory()
        self._scratch = Scratch()
        self._epoch = lru_cache(maxsize=3)(lambda number: plan_epoch(spec, sizes, number))  # without self: no cycle, no leak
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[int, int], Window] = OrderedDict()
        self.keep_for(1)
        self._closed = False
        self._per_epoch = batches_per_epoch(spec, sizes)
        self._last = locate(positions[-1], spec.global_batch, self._per_epoch) if len(positions) else (0, 0)

    def __len__(self) -> int:
        """Batches."""
        return len(self._positions)

    def __getitem__(self, i: SupportsIndex) -> Arrays:
        """Returns batch `i`.

        Raises:
            TrainingError: a row group could not be read.
            CancelledError: the batches were closed.
        """
        epoch, j = self._located(int(i))
        g = self._spec.lane_batch
        numbers = range(epoch.window_of_slot(j * g), epoch.window_of_slot((j + 1) * g - 1) + 1)
        windows = {number: self._window(epoch, number) for number in numbers}
        parts = {number: window.batch(j) for number, window in windows.items()}
        found = parts[numbers[0]] if len(numbers) == 1 else self._merged(epoch, j, parts)
        self._decode_ahead(epoch, numbers[-1], j)
        self._let_go([(epoch.number, number) for number, window in windows.items() if window.taken()])
        empty = {name: np.zeros((len(self._rows), 0), dtype) for name, dtype in NO_FEATURES.items() if name not in found}
        return {**found, **empty, "row_id": found["row_id"].view("<u4").reshape(-1, 2)}

    def keep_for(self, num_batches: int) -> None:
        """Keeps the windows of so many batches asked for at once: others are closed when there are more."""
        self._max_windows = 3 + -(-(num_batches + 1) * self._spec.global_batch // self._spec.window_rows)

    def per_chunk(self) -> int:
        """Returns how many batches make about `CHUNK_BYTES`, at least one and at most an eighth of a window."""
        row_bytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._reader.shapes().values())
        few = self._spec.window_rows // (8 * self._spec.global_batch)
        return max(1, min(CHUNK_BYTES // max(row_bytes * len(self._rows), 1), few))

    def close(self) -> None:
        """Ends the threads that decode for it, at their next row group."""
        with self._lock:
            self._closed = True
            for window in self._windows.values():
                window.cancel(CancelledError())

    def _located(self, i: int) -> tuple[Epoch, int]:
        number, j = locate(self._positions[i], self._spec.global_batch, self._per_epoch)
        return self._epoch(number), j

    def _window(self, epoch: Epoch, number: int) -> Window:
        """Returns a window, opening it when it is not; those asked for longest ago are closed when there are too many."""
        key = (epoch.number, number)
        with self._lock:
            if self._closed:
                raise CancelledError
            if key not in self._windows:
                while len(self._windows) >= self._max_windows:
                    self._windows.popitem(last=False)
                self._windows[key] = Window(epoch, number, self._rows, self._reader, self._memory, self._scratch)
            self._windows.move_to_end(key)
            return self._windows[key]

    def _let_go(self, keys: Sequence[tuple[int, int]]) -> None:
        with self._lock:
            for key in keys:
                self._windows.pop(key, None)

    def _decode_ahead(self, epoch: Epoch, number: int, j: int) -> None:
        """Decodes batch `j`'s share of the window after `number`: as far into it as `j` is into `number`, in no burst.

        The batch in the middle prepares the window after that, before any thread needs it. A group that cannot be read ends
        the stream here, up to a window before its turn: a run that will fail should not take more steps first.
        """
        batches = epoch.batches_in(number)
        following = self._after(epoch, number)
        if following is None:
            return
        window = self._window(*following)
        window.decode(window.share_of((j + 1 - batches.start) / len(batches), 2 / len(batches)))
        later = self._after(*following) if j == batches[len(batches) // 2] else None
        if later is not None:
            self._window(*later).prepare()

    def _after(self, epoch: Epoch, number: int) -> tuple[Epoch, int] | None:
        """Returns the window after a window, None where nobody will ask for it."""
        if number + 1 < epoch.num_windows:
            wanted = (epoch.number, epoch.batches_in(number + 1).start) <= self._last
            return (epoch, number + 1) if wanted else None
        return (self._epoch(epoch.number + 1), 0) if (epoch.number + 1, 0) <= self._last else None

    def _merged(self, epoch: Epoch, j: int, parts: dict[int, Arrays]) -> Arrays:
        """Returns a batch that lies in several windows: from each the rows whose slots are its own."""
        g = self._spec.lane_batch
        slot = j * g + self._rows.batch_rows % g
        window = np.minimum(slot // epoch.part, epoch.num_windows - 1)
        first, *others = parts
        out = {name: values.copy() for name, values in parts[first].items()}
        for other in others:
            mine = window == other
            for name, values in parts[other].items():
                out[name][mine] = values[mine]
        return out


class Chunks:
    """Runs of a few batches each, for Grain: handing over one element costs it 0.1 ms and two changes of threads. A run is a
    deque, which Grain does not look into to count bytes.

    A run ends with the error that cut it short, in the place of the batch that could not be read.
    """

    def __init__(self, batches: Batches, size: int) -> None:
        """`size`: batches of a run."""
        self._batches, self._size = batches, size

    def __len__(self) -> int:
        """Runs; the last may be shorter."""
        return -(-len(self._batches) // self._size)

    def __getitem__(self, i: SupportsIndex) -> deque[Arrays | Exception]:
        """Returns run `i`."""
        first, found = int(i) * self._size, deque[Arrays | Exception]()
        try:
            for k in range(first, min(first + self._size, len(self._batches))):
                found.append(self._batches[k])
        except Exception as error:
            found.append(error)
        return found


def dataset(chunks: Chunks, threads: int, prefetch: int) -> Any:
    """Returns the runs as a Grain dataset, `prefetch` of them read ahead by `threads`; its state is the index of the next."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return grain.MapDataset.source(chunks).to_iter_dataset(options)


class Stream(Iterator[Arrays]):
    """The batches in order. After an error comes no further batch: Grain alone would skip the bad one and go on."""

    def __init__(self, batches: Batches, threads: int, prefetch: int) -> None:
        """Reads nothing yet. `prefetch`: batches read ahead, rounded up to whole runs of them, two runs for each thread."""
        size = batches.per_chunk()
        runs = max(2 * threads, -(-prefetch // size))  # a thread whose run is done early has another to go on with
        batches.keep_for((runs + 1) * size)
        self._batches, self._iterator = batches, iter(dataset(Chunks(batches, size), threads, runs))
        self._ready = deque[Arrays | Exception]()
        self._ended = False

    def __next__(self) -> Arrays:
        """Returns the next batch."""
        if self._ended:
            raise StopIteration
        try:
            if not self._ready:
                self._ready = next(self._iterator)
            batch = self._ready.popleft()
            if isinstance(batch, Exception):
                raise batch
        except BaseException:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Ends the reading; from any thread, also while another waits for a batch."""
        self._ended = True
        self._batches.close()
        self._iterator.close()


def train_batches(
    cfg: Config, store: Store, manifest: Manifest, spec: OrderSpec, ranges: Sequence[tuple[int, int]], positions: Sequence[int]
) -> Stream:
    """Returns this process's training batches at these example positions."""
    batches = Batches(store, manifest, "train", spec, ranges, positions)
    return Stream(batches, cfg.loader.threads, cfg.loader.prefetch)


def eval_batches(cfg: Config, store: Store, manifest: Manifest, split: str, ranges: Sequence[tuple[int, int]]) -> Stream:
    """Returns this process's batches of a whole split, every row once, the rest padding."""
    spec = eval_order(cfg, manifest)
    count = batches_per_epoch(spec, manifest.group_sizes(split))
    positions = range(0, count * spec.global_batch, spec.global_batch)
    batches = Batches(store, manifest, split, spec, ranges, positions)
    return Stream(batches, cfg.loader.threads, cfg.loader.prefetch)
