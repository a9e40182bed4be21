"""Which examples are a batch: integers only, a pure function of (seed, epoch, group sizes, lanes, window, batch, position).

Promise: not of processes, devices, threads or restarts. Every example once an epoch but for the N mod G left out in
training (others each epoch); evaluation covers every row once and pads with weight 0.
Price: a plan is O(row groups); a window's slots are computed at once, about 6 ns a row; restoring a position costs one window.

Words: an epoch puts the row groups in a keyed order, which gives rows their *positions*; positions are cut into *windows*;
inside a window they are cut into `num_lanes` equal *lanes*, each shuffled by a keyed bijection. Batch j takes *slots*
[j*g, (j+1)*g) of every lane's stream, g = global_batch / num_lanes; its rows are lane-major.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np

from mlprod.errors import ConfigError
from mlprod.hashing import PHI, key, mix_array

ORDER_VERSION = 1
WINDOW_BYTES = 32 << 20
BLOCK_ROWS = 1 << 16  # shuffled at once: in cache, and few enough calls that threads don't queue for Python

Rounds = list[tuple[np.ndarray, np.ndarray]]  # (odd multiplier, addend), [K, 1] each: a row for each lane


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


def _rounds(lanes: np.ndarray, word: int) -> Rounds:
    """Returns the four keyed rounds of `lanes`, int64[K], in uint32."""
    base = mix_array(lanes.astype(np.uint64) * np.uint64(PHI) + np.uint64(word))[:, None]
    keyed = [mix_array(base + np.uint64(r + 1)) for r in range(4)]
    return [((h >> np.uint64(33)).astype(np.uint32) | np.uint32(1), h.astype(np.uint32)) for h in keyed]


def _bits(size: int) -> int:
    """Returns the bits of the bijection for lane parts of at most `size` rows."""
    return max(10, max(size - 1, 0).bit_length())


def shuffle_lanes(size: int, lanes: np.ndarray, word: int) -> np.ndarray:
    """Returns int64[len(lanes), 2^b], 2^b >= size: per lane (int64[K]) a keyed bijection of range(2^b).

    Four rounds of multiply, add and xor-shift mod 2^b. `size` is the largest lane part of the *window*, never of the
    lanes a process happens to own, or the order would depend on the process.
    """

    def bijection(x: np.ndarray, high: np.ndarray, rounds: Rounds, low: np.ndarray, shift: np.ndarray) -> None:
        for multiplier, addend in rounds:
            x *= multiplier
            x += addend
            x &= low
            x ^= np.right_shift(x, shift, out=high)

    return _of_every_index(bijection, size, lanes, word)


def unshuffle_lanes(size: int, lanes: np.ndarray, word: int) -> np.ndarray:
    """Returns the inverse of `shuffle_lanes`, int64[len(lanes), 2^b]: its rounds undone from the last to the first.

    An xor-shift by half the bits or more is its own inverse.
    """

    def bijection(x: np.ndarray, high: np.ndarray, rounds: Rounds, low: np.ndarray, shift: np.ndarray) -> None:
        for multiplier, addend in reversed(rounds):
            x ^= np.right_shift(x, shift, out=high)
            x -= addend
            x *= _inverse(multiplier)
            x &= low

    return _of_every_index(bijection, size, lanes, word)


def _inverse(odd: np.ndarray) -> np.ndarray:
    """Returns the inverses of odd numbers mod 2^16 or 2^32, as their dtype says, by Newton: a step doubles the right bits."""
    inverse = odd  # right in 3 bits: the square of an odd number is 1 mod 8
    for _ in range(4):
        inverse = inverse * (odd.dtype.type(2) - odd * inverse)
    return inverse


def _of_every_index(bijection: Callable[..., None], size: int, lanes: np.ndarray, word: int) -> np.ndarray:
    """Returns int64[K, 2^b]: what a bijection makes of every index, `BLOCK_ROWS` at a time.

    The low bits of sums and products don't depend on the bits above them, so 16-bit words do where they hold b bits.
    """
    bits = _bits(size)
    word_type = np.uint16 if bits <= 16 else np.uint32
    low, shift = word_type((1 << bits) - 1), word_type((bits + 1) // 2)
    rounds = [(m.astype(word_type), a.astype(word_type)) for m, a in _rounds(lanes, word)]
    out = np.empty((len(lanes), 1 << bits), np.int64)
    at_once = max(1, BLOCK_ROWS >> bits)
    x = np.empty((at_once, 1 << bits), word_type)
    high = np.empty_like(x)
    for at in range(0, len(lanes), at_once):
        block = slice(at, at + at_once)
        n = len(lanes[block])
        x[:n] = np.arange(1 << bits, dtype=word_type)
        bijection(x[:n], high[:n], [(m[block], a[block]) for m, a in rounds], low, shift)
        out[block] = x[:n]
    return out


class Piece(NamedTuple):
    """Rows of one row group that stand side by side in an epoch."""

    group: int
    row: int  # of the group, the first
    num_rows: int
    position: int  # of the first in the epoch


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

    def lane_slots(self, window: int, lanes: np.ndarray) -> np.ndarray:
        """Returns int64[positions of the `lanes` (int64[K]) in a window, lane after lane]: the slot of each in the window."""
        n, num_lanes = self.window_rows(window), self.spec.num_lanes
        sizes = (lanes + 1) * n // num_lanes - lanes * n // num_lanes
        shuffled = shuffle_lanes(-(-n // num_lanes), lanes, self._shuffle_key(window))
        slots: np.ndarray = shuffled.reshape(-1)
        return slots if len(slots) == sizes.sum() else shuffled[shuffled < sizes[:, None]]

    def rows_by_slot(self, window: int, lanes: np.ndarray) -> np.ndarray:
        """Returns int64[K, part] of a window but the last: for each slot of each of `lanes` (int64[K]) the position in the
        lane's part that it takes; the inverse of `lane_slots`."""
        if 1 << _bits(self.part) == self.part:
            return unshuffle_lanes(self.part, lanes, self._shuffle_key(window))
        return np.argsort(self.lane_slots(window, lanes).reshape(-1, self.part), axis=1)

    def _shuffle_key(self, window: int) -> int:
        return key(key(self.spec.seed, self.number, 1), window)

    def batches_in(self, window: int) -> range:
        """Returns the batches that hold rows of a window; a neighbouring window may hold rows of the outer two as well."""
        g, start = self.spec.lane_batch, window * self.part
        last = self.num_batches if window == self.num_windows - 1 else min(-(-(start + self.part) // g), self.num_batches)
        return range(start // g, last)

    def pieces(self, a: int, b: int) -> Iterator["Piece"]:
        """Yields the row groups' pieces that make the positions [a, b), in order."""
        i = int(np.searchsorted(self.starts, a, side="right")) - 1
        while a < b:
            stop = min(int(self.starts[i + 1]), b)
            if stop > a:
                yield Piece(int(self.groups[i]), a - int(self.starts[i]), stop - a, a)
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


def locate(position: int, global_batch: int, per_epoch: int) -> tuple[int, int]:
    """Returns (epoch, batch within it) of example position `position`, a multiple of the global batch; `per_epoch`: batches."""
    if position % global_batch:
        raise AssertionError(f"position {position} is not a multiple of the global batch {global_batch}")
    return divmod(position // global_batch, per_epoch)


def drawn_positions(position: int, count: int, global_batch: int, skips: Sequence[tuple[int, int]] = ()) -> Sequence[int]:
    """Returns the positions of the next `count` batches from `position` on: every global batch but those in `skips`.

    Args:
        skips: sorted, disjoint ranges [a, b) of example positions, multiples of the global batch.
    """
    left = [(max(a, position), b) for a, b in skips if b > position]
    if not left:
        return range(position, position + count * global_batch, global_batch)
    return Drawn(position, count, global_batch, left)


class Drawn(Sequence[int]):
    """Positions of batches around ranges that are left out, made when they are asked for: a long run has a billion."""

    def __init__(self, position: int, count: int, global_batch: int, skips: Sequence[tuple[int, int]]) -> None:
        """`skips`: as in `drawn_positions`, none before `position`."""
        self._start, self._count, self._batch = position, count, global_batch
        self._before, self._left_out = list[int](), [0]  # per range: batches drawn before it; examples left out up to it
        for a, b in skips:
            self._before.append((a - position - self._left_out[-1]) // global_batch)
            self._left_out.append(self._left_out[-1] + b - a)

    def __len__(self) -> int:
        """Batches."""
        return self._count

    @overload
    def __getitem__(self, i: int) -> int: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[int]: ...
    def __getitem__(self, i: int | slice) -> int | Sequence[int]:
        """Returns the position of batch `i`."""
        if isinstance(i, slice):
            return [self[k] for k in range(self._count)[i]]
        k = range(self._count)[i]  # raises IndexError, and counts negative ones from the end
        return self._start + k * self._batch + self._left_out[bisect_right(self._before, k)]


def lanes_of(spec: OrderSpec, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns int64[K], sorted: the lanes that hold the rows [a, b) of a batch, over all `ranges`."""
    g = spec.lane_batch
    lanes = {lane for a, b in ranges for lane in range(a // g, (b - 1) // g + 1)}
    return np.array(sorted(lanes), np.int64)


def reads_per_byte(epoch: Epoch, shares: Sequence[Sequence[tuple[int, int]]]) -> float:
    """Returns how often a stored byte is read in an epoch, when each of `shares` is a process's row ranges of a batch.

    A process reads each row group once for every window in which one of its lanes holds a row of it.
    """
    window = np.arange(epoch.num_windows)[:, None]
    start = window * epoch.spec.window_rows
    rows = np.where(window < epoch.num_windows - 1, epoch.spec.window_rows, epoch.num_rows - start)
    touched = 0
    for ranges in shares:
        lanes = lanes_of(epoch.spec, ranges)
        a, b = (start + (lanes + i) * rows // epoch.spec.num_lanes for i in (0, 1))
        first, last = (np.searchsorted(epoch.starts, at, side="right") - 1 for at in (a, b - 1))
        first[:, 1:] = np.maximum(first[:, 1:], np.maximum.accumulate(np.where(b > a, last, -1), axis=1)[:, :-1] + 1)
        there = b > a
        touched += int(np.maximum(epoch.starts[last[there] + 1] - epoch.starts[first[there]], 0).sum())
    return touched / max(epoch.num_rows, 1)
