"""Which examples are a batch: integers only, a pure function of (seed, epoch, group sizes, lanes, window, batch, position).

Promise: not of processes, devices, threads or restarts. Every example once an epoch but for the N mod G left out in
training (others each epoch); evaluation covers every row once and pads with weight 0.
Price: a plan is O(row groups); a window's slots are computed whole, about 10 ns a row; restoring a position costs one window.

Words: an epoch puts the row groups in a keyed order, which gives rows their *positions*; positions are cut into *windows*;
inside a window they are cut into `num_lanes` equal *lanes*, each shuffled by a keyed bijection. Batch j takes *slots*
[j*g, (j+1)*g) of every lane's stream, g = global_batch / num_lanes; its rows are lane-major.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mlprod.errors import ConfigError
from mlprod.hashing import PHI, key, mix_array

ORDER_VERSION = 1
WINDOW_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderSpec:
    """The constants of an order. They are kept in the run and must be the same on resume."""

    seed: int
    global_batch: int
    num_lanes: int
    window_rows: int
    group_rows: int
    pad: bool  # evaluation: the last batch is padded; training: it is left out

    @property
    def lane_batch(self) -> int:
        """Rows of a batch that come from one lane."""
        return self.global_batch // self.num_lanes


def default_lanes(global_batch: int) -> int:
    """Returns the largest divisor of the global batch not above 64."""
    return max(d for d in range(1, min(64, global_batch) + 1) if global_batch % d == 0)


def default_window(num_lanes: int, group_rows: int, row_bytes: int, global_batch: int) -> int:
    """Returns the smallest multiple of lanes x group rows that holds 32 MiB, 4 row groups and 4 batches, in rows."""
    unit = num_lanes * group_rows
    wanted = max(WINDOW_BYTES // max(row_bytes, 1), 4 * group_rows, 4 * global_batch)
    return -(-wanted // unit) * unit


def keyed_permutation(n: int, word: int) -> np.ndarray:
    """Returns int64[n]: a permutation of range(n), the same for the same `word`; by sorting keyed hashes."""
    i = np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << max(n - 1, 0).bit_length()) - 1)
    hashed = mix_array(i * np.uint64(PHI) + np.uint64(word))
    return (np.sort((hashed & ~low) | i) & low).astype(np.int64)


def shuffle_lanes(size: int, lanes: np.ndarray, word: int) -> np.ndarray:
    """Returns uint32[len(lanes), 2^b], 2^b >= size: per lane a keyed bijection of range(2^b).

    Four rounds of multiply, add and xor-shift mod 2^b. `size` is the largest lane part of the *window*, never of the
    lanes a process happens to own, or the order would depend on the process.
    """
    bits = max(10, max(size - 1, 0).bit_length())
    low = np.uint32((1 << bits) - 1)
    shift = np.uint32((bits + 1) // 2)
    x = np.broadcast_to(np.arange(1 << bits, dtype=np.uint32), (len(lanes), 1 << bits)).copy()
    base = mix_array(lanes.astype(np.uint64) * np.uint64(PHI) + np.uint64(word))
    for r in range(4):
        h = mix_array(base + np.uint64(r + 1))[:, None]
        x *= (h >> np.uint64(33)).astype(np.uint32) | np.uint32(1)
        x += (h & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        x &= low
        x ^= x >> shift
    return x


@dataclass(frozen=True)
class Epoch:
    """One epoch's plan: the order of its row groups, and where windows and lanes cut their rows."""

    spec: OrderSpec
    number: int
    groups: np.ndarray  # int64[F], group indices in epoch order
    starts: np.ndarray  # int64[F + 1], position of each group's first row

    @property
    def num_rows(self) -> int:
        """Rows of the epoch."""
        return int(self.starts[-1])

    @cached_property
    def num_windows(self) -> int:
        """Windows of the epoch; the last has 0.5 to 1.5 times the rows of the others."""
        w = self.spec.window_rows
        return max(1, (self.num_rows + w // 2) // w)

    @property
    def num_batches(self) -> int:
        """Batches of the epoch: the last partial one counts only where it is padded."""
        n, g = self.num_rows, self.spec.global_batch
        return -(-n // g) if self.spec.pad else n // g

    @property
    def part(self) -> int:
        """Slots of a lane in every window but the last."""
        return self.spec.window_rows // self.spec.num_lanes

    def window_rows(self, window: int) -> int:
        """Rows of a window."""
        w = self.spec.window_rows
        return w if window < self.num_windows - 1 else self.num_rows - window * w

    def lane_bounds(self, window: int, lane: int) -> tuple[int, int]:
        """Returns the positions [a, b) of a lane's part of a window."""
        n, start = self.window_rows(window), window * self.spec.window_rows
        return start + lane * n // self.spec.num_lanes, start + (lane + 1) * n // self.spec.num_lanes

    def window_of_slot(self, slot: int) -> int:
        """Returns the window that holds a slot of every lane's stream."""
        return min(slot // self.part, self.num_windows - 1)

    def window_slots(self, window: int, lanes: np.ndarray) -> list[np.ndarray]:
        """Returns per lane int64[rows of its part]: the slot, within the window, of each of its positions."""
        size = -(-self.window_rows(window) // self.spec.num_lanes)
        word = key(key(self.spec.seed, self.number, 1), window)
        shuffled = shuffle_lanes(size, lanes, word)
        bounds = [self.lane_bounds(window, int(lane)) for lane in lanes]
        return [row[row < b - a].astype(np.int64) for row, (a, b) in zip(shuffled, bounds, strict=True)]

    def pieces(self, a: int, b: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (group, first row, rows, position) of the row groups' pieces that make the positions [a, b)."""
        i = int(np.searchsorted(self.starts, a, side="right")) - 1
        while a < b:
            stop = min(int(self.starts[i + 1]), b)
            if stop > a:
                yield int(self.groups[i]), a - int(self.starts[i]), stop - a, a
            a, i = max(a, stop), i + 1


def plan_epoch(spec: OrderSpec, sizes: Sequence[int], number: int) -> Epoch:
    """Plans an epoch over row groups of `sizes` rows. O(row groups) in time and memory, whatever the position."""
    size = np.asarray(sizes, np.int64)
    groups = keyed_permutation(len(size), key(spec.seed, number))
    odd = size[groups] != spec.group_rows
    if int(size[groups][odd].sum()) <= spec.window_rows:  # then the others stay aligned with windows
        groups = np.concatenate([groups[~odd], groups[odd]])
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(size[groups])])
    return Epoch(spec, number, groups, starts)


def batches_per_epoch(spec: OrderSpec, sizes: Sequence[int]) -> int:
    """Returns how many batches an epoch has.

    Raises:
        ConfigError: training on fewer rows than one batch.
    """
    num_rows = int(sum(sizes))
    if spec.pad:
        return -(-num_rows // spec.global_batch)
    if num_rows < spec.global_batch:
        raise ConfigError(f"config.loader.global_batch={spec.global_batch} is more than the {num_rows} training rows; lower it")
    return num_rows // spec.global_batch


def locate(spec: OrderSpec, sizes: Sequence[int], position: int) -> tuple[int, int]:
    """Returns (epoch, batch within it) of example position `position`, a multiple of the global batch."""
    if position % spec.global_batch:
        raise AssertionError(f"position {position} is not a multiple of the global batch {spec.global_batch}")
    return divmod(position // spec.global_batch, batches_per_epoch(spec, sizes))


def batch_ids(epoch: Epoch, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (group, row in group), int64[global_batch] each, of the epoch's batch j; -1 where it is padded.

    The plain statement of the order, which `data.reader` must equal; it computes whole windows for one batch.
    """
    spec, g = epoch.spec, epoch.spec.lane_batch
    group = np.full(spec.global_batch, -1, np.int64)
    row = group.copy()
    lanes = np.arange(spec.num_lanes)
    for window in range(epoch.window_of_slot(j * g), epoch.window_of_slot((j + 1) * g - 1) + 1):
        for lane, slots in zip(lanes, epoch.window_slots(window, lanes), strict=True):
            a, b = epoch.lane_bounds(window, int(lane))
            wanted = slots + window * epoch.part - j * g
            positions = np.arange(a, b)
            inside = (wanted >= 0) & (wanted < g)
            at = np.searchsorted(epoch.starts, positions[inside], side="right") - 1
            group[lane * g + wanted[inside]] = epoch.groups[at]
            row[lane * g + wanted[inside]] = positions[inside] - epoch.starts[at]
    return group, row


def lanes_of(spec: OrderSpec, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns int64[K], sorted: the lanes that hold the rows [a, b) of a batch, over all `ranges`."""
    g = spec.lane_batch
    lanes = {lane for a, b in ranges for lane in range(a // g, (b - 1) // g + 1)}
    return np.array(sorted(lanes), np.int64)


def reads_per_byte(epoch: Epoch, shares: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Returns how often a stored byte is read in an epoch, when each of `shares` is a process's row ranges of a batch."""
    touched = 0
    size = np.diff(epoch.starts)
    for ranges in shares:
        lanes = lanes_of(epoch.spec, ranges)
        for window in range(epoch.num_windows):
            spans = [epoch.lane_bounds(window, int(lane)) for lane in lanes]
            hit: set[int] = set()
            for a, b in spans:
                first, last = np.searchsorted(epoch.starts, [a, b - 1], side="right") - 1
                hit.update(range(int(first), int(last) + 1) if b > a else ())
            touched += int(size[sorted(hit)].sum())
    return touched / max(epoch.num_rows, 1)
