"""A window of the order in memory: its row groups, placed in the batches they are examples of as soon as they are decoded.

Promise: a row group is decoded once a window, by whichever thread claims it; an error of one reaches all that wait. A
window's memory is used again only when no batch made of it is alive anywhere, on a device neither.
Price: a window takes its rows' bytes and 8 bytes a row for where they go; about 27 ns of a core to place a row of 128 bytes, of
which half is writing memory that no cache holds.
"""

import math
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mlprod.data.memory import Memory, Scratch
from mlprod.data.reader import FLOAT32, Arrays, GroupReader, Shapes, row_type
from mlprod.hashing import PAD_ID
from mlprod.order import Epoch, OrderSpec, Piece, lanes_of

ALIGNMENT = 64  # bytes; what jax needs to use an array on CPU without a copy
DIRECT_BYTES = 32 << 10  # of a lane in a batch: so many are taken straight into place, fewer are shuffled first, then copied

WEIGHT: Shapes = {"weight": ((), FLOAT32)}


class LocalRows:
    """Which rows of a batch a process holds, and in which lanes they are."""

    def __init__(self, spec: OrderSpec, ranges: Sequence[tuple[int, int]]) -> None:
        """`ranges`: sorted, disjoint row ranges [a, b) of a batch; holes and parts of lanes are fine."""
        self.lanes = lanes_of(spec, ranges)
        self.batch_rows = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in ranges])
        self.whole_lanes = len(self.batch_rows) == len(self.lanes) * spec.lane_batch
        self.local = np.full(spec.global_batch, -1, np.int64)  # row of a batch -> row here
        self.local[self.batch_rows] = np.arange(len(self.batch_rows))

    def __len__(self) -> int:
        """Rows of a batch held here."""
        return len(self.batch_rows)


class Placing(Protocol):
    """Puts rows of a window where their batches want them, all as rows of bytes (`row_type`). What it needs to know of the order
    is computed at first need."""

    def prepare(self) -> None:
        """Computes where rows go, for the whole window in few calls: small ones would make threads queue for Python."""
        ...

    def into(self, out: Arrays) -> None:
        """Takes the window's arrays, [rows of all its batches] each, which `put` fills."""
        ...

    def put(self, rows: Arrays, at: int) -> None:
        """Puts `rows` [K], which stand at the positions from `at` on, where they belong."""
        ...

    def filled(self) -> np.ndarray:
        """Returns int64[K]: the rows of the window's arrays that some position fills."""
        ...


class Scatter:
    """Placing for any window: each row to its own place, nothing where this process does not hold it."""

    def __init__(self, epoch: Epoch, window: int, rows: LocalRows, scratch: Scratch) -> None:
        """Computes nothing yet."""
        self._epoch, self._window, self._rows = epoch, window, rows
        self._runs = [_span(epoch, window, run) for run in _runs(rows.lanes)]  # positions of the lanes held
        before = np.cumsum([0, *(b - a for a, b in self._runs)])
        self._shift = [int(n) - a for n, (a, _) in zip(before, self._runs, strict=False)]
        self._holes = not rows.whole_lanes or epoch.batches_in(window).stop == epoch.num_batches
        self._to = np.zeros(0, np.int64)

    def prepare(self) -> None:
        """See `Placing`."""
        g, batches, lanes = self._epoch.spec.lane_batch, self._epoch.batches_in(self._window), self._rows.lanes
        slots = self._epoch.lane_slots(self._window, lanes)
        slots += self._window * self._epoch.part - batches.start * g
        to = slots // g
        outside = to >= len(batches)
        slots -= to * g
        slots += np.repeat(lanes * g, [b - a for a, b in (self._epoch.lane_bounds(self._window, int(i)) for i in lanes)])
        row = self._rows.local.take(slots)
        to *= len(self._rows)
        to += row
        if self._holes:
            to[outside | (row < 0)] = -1
        self._to = to

    def into(self, out: Arrays) -> None:
        """See `Placing`."""
        self._out = out

    def put(self, rows: Arrays, at: int) -> None:
        """See `Placing`."""
        run = bisect_right(self._runs, at, key=lambda span: span[0]) - 1
        first = at + self._shift[run]
        to = self._to[first : first + len(rows["label"])]
        kept = np.flatnonzero(to >= 0) if self._holes else slice(None)
        for name, values in rows.items():
            self._out[name][to[kept]] = values[kept]

    def filled(self) -> np.ndarray:
        """See `Placing`."""
        return self._to[self._to >= 0]


class Gather:
    """Placing for the usual window, whose row groups are the lanes' parts and fill whole batches: a group is shuffled in
    cache and copied in blocks, which takes two thirds of the time of scattering it."""

    def __init__(self, epoch: Epoch, window: int, rows: LocalRows, scratch: Scratch) -> None:
        """Computes nothing yet."""
        self._epoch, self._window, self._lanes, self._scratch = epoch, window, rows.lanes, scratch
        self._start = [epoch.lane_bounds(window, int(lane))[0] for lane in rows.lanes]
        self._order = np.zeros((0, 0), np.int64)
        self._num_batches, self._lane_batch = epoch.part // epoch.spec.lane_batch, epoch.spec.lane_batch

    @staticmethod
    def suits(epoch: Epoch, window: int, rows: LocalRows, pieces: Sequence[Piece]) -> bool:
        """Whether it can place this window's `pieces`."""
        whole = rows.whole_lanes and window < epoch.num_windows - 1 and epoch.part % epoch.spec.lane_batch == 0
        inside = epoch.batches_in(window).stop * epoch.spec.lane_batch == (window + 1) * epoch.part  # else some are left out
        return whole and inside and all(piece.num_rows == epoch.part for piece in pieces) and len(pieces) == len(rows.lanes)

    def prepare(self) -> None:
        """See `Placing`."""
        self._order = self._epoch.rows_by_slot(self._window, self._lanes)

    def into(self, out: Arrays) -> None:
        """See `Placing`."""
        self._places = {name: values.reshape(self._num_batches, len(self._lanes), -1) for name, values in out.items()}
        self._runs = {name: places.view(np.uint8) for name, places in self._places.items()}

    def put(self, rows: Arrays, at: int) -> None:
        """See `Placing`."""
        i, shape = bisect_right(self._start, at) - 1, (self._num_batches, self._lane_batch)
        for name, values in rows.items():
            if values.itemsize * self._lane_batch >= DIRECT_BYTES:
                for place, order in zip(self._places[name][:, i], self._order[i].reshape(shape), strict=True):
                    values.take(order, out=place, mode="clip")  # "raise" would go through a copy
            else:
                shuffled = self._scratch.take("shuffled", values.nbytes)
                values.take(self._order[i], out=shuffled.view(values.dtype), mode="clip")
                self._runs[name][:, i] = shuffled.reshape(self._num_batches, -1)  # as bytes: a batch's are one copy

    def filled(self) -> np.ndarray:
        """See `Placing`."""
        return np.arange(self._order.size)


class Window:
    """One window's batches for one process, filled group by group by the threads that ask for them."""

    def __init__(self, epoch: Epoch, number: int, rows: LocalRows, reader: GroupReader, memory: Memory, scratch: Scratch) -> None:
        """Reads nothing yet. `memory`: of its arrays, from its first row group on; `scratch`: what a thread needs meanwhile."""
        self.batches = epoch.batches_in(number)
        self._num_rows, self._reader, self._memory = len(rows), reader, memory
        self._lock, self._complete = threading.Lock(), threading.Event()
        self._preparing, self._prepared = threading.Lock(), False
        self._arrays: Arrays = {}
        self._error: BaseException | None = None
        self._claimed = self._done = self._taken = 0
        self._pieces = list(_pieces(epoch, number, rows.lanes))
        suits = Gather.suits(epoch, number, rows, self._pieces)
        self._pads = epoch.spec.pad and number == epoch.num_windows - 1
        self._placing: Placing = (Gather if suits else Scatter)(epoch, number, rows, scratch)
        if not self._pieces:
            self._allocate()
            self._complete.set()

    def batch(self, j: int) -> Arrays:
        """Returns the epoch's batch `j` as views [local rows, ...], once all of the window is decoded.

        Rows of it that lie in a neighbouring window are undefined here.

        Raises:
            TrainingError: a group could not be read, by whichever thread.
            CancelledError: the window was cancelled.
        """
        self.decode(len(self._pieces))
        self._complete.wait()
        if self._error is not None:
            raise self._error
        start = (j - self.batches.start) * self._num_rows
        return {name: values[start : start + self._num_rows] for name, values in self._arrays.items()}

    def taken(self) -> bool:
        """Counts a batch as taken; returns whether all of them were."""
        with self._lock:
            self._taken += 1
            return self._taken >= len(self.batches)

    def share_of(self, part: float, at_most: float) -> int:
        """Returns how many groups are still to be decoded until `part` of the window is, but never more than `at_most` of it."""
        num = len(self._pieces)
        return min(math.ceil(num * part) - self._claimed, math.ceil(num * at_most))

    def decode(self, count: int) -> None:
        """Decodes up to `count` row groups that no thread has claimed."""
        for _ in range(count):
            with self._lock:
                if self._error is not None or self._claimed == len(self._pieces):
                    return
                piece = self._pieces[self._claimed]
                self._claimed += 1
            try:
                self._fill(piece)
            except BaseException as error:
                self.cancel(error)
                raise
            with self._lock:
                self._done += 1
                if self._done == len(self._pieces):
                    self._complete.set()

    def cancel(self, error: BaseException) -> None:
        """Ends the waiting of all threads with `error`; the first one stands."""
        with self._lock:
            self._error = self._error or error
        self._complete.set()

    def prepare(self) -> None:
        """Computes where rows go, once. Other threads wait for it: best done before they come."""
        with self._preparing:
            if not self._prepared:
                self._placing.prepare()
                self._prepared = True

    def _fill(self, piece: Piece) -> None:
        self._allocate()
        rows = self._reader.read(piece.group)
        if piece.num_rows < len(rows["label"]):
            rows = {name: values[piece.row : piece.row + piece.num_rows] for name, values in rows.items()}
        self._placing.put(rows, piece.position)

    def _allocate(self) -> None:
        """Makes the arrays, once, and fills what no row will: constant weights, and the pads at the end."""
        self.prepare()
        with self._preparing:
            if self._arrays:
                return
            shapes = {**self._reader.shapes(), **WEIGHT}
            arrays = _leased(shapes, len(self.batches) * self._num_rows, self._memory)
            if "weight" not in self._reader.shapes():
                arrays["weight"].fill(1)
            if self._pads:  # also rows of a neighbouring window, which nobody reads here
                empty = np.ones(len(arrays["weight"]), bool)
                empty[self._placing.filled()] = False
                for name, values in arrays.items():
                    values[empty] = PAD_ID if name == "row_id" else 0
            self._placing.into({name: values.reshape(-1).view(row_type(*shapes[name])) for name, values in arrays.items()})
            self._arrays = arrays


def _runs(lanes: np.ndarray) -> list[np.ndarray]:
    """Returns the runs of consecutive lanes in int64[K]: lanes side by side have positions side by side."""
    return np.split(lanes, np.flatnonzero(np.diff(lanes) != 1) + 1)


def _span(epoch: Epoch, window: int, run: np.ndarray) -> tuple[int, int]:
    """Returns the positions [a, b) of a run of consecutive lanes, int64[K], in a window."""
    return epoch.lane_bounds(window, int(run[0]))[0], epoch.lane_bounds(window, int(run[-1]))[1]


def _pieces(epoch: Epoch, window: int, lanes: np.ndarray) -> Iterator[Piece]:
    """Yields the pieces of row groups in a window's `lanes`, int64[K]."""
    for run in _runs(lanes):
        yield from epoch.pieces(*_span(epoch, window, run))


def _leased(shapes: Shapes, num_rows: int, memory: Memory) -> Arrays:
    """Returns arrays [num_rows, ...] in one block of leased memory, uninitialised."""
    places, size = {}, 0
    for name, (shape, dtype) in shapes.items():
        nbytes = num_rows * math.prod(shape) * dtype.itemsize
        places[name] = size, nbytes
        size += -(-nbytes // ALIGNMENT) * ALIGNMENT
    block = memory.lease(max(size, 1))
    return {
        name: block[start : start + nbytes].view(shapes[name][1]).reshape(num_rows, *shapes[name][0])
        for name, (start, nbytes) in places.items()
    }
