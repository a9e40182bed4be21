"""The order of examples in plain Python integers, written from its description and not from the package: what all must equal.

Slow on purpose: no numpy, no windows kept, one row after the other.
"""

from collections.abc import Sequence

MASK = 2**64 - 1
PHI = 0x9E3779B97F4A7C15
Row = tuple[int, int]  # (group, row in the group); (-1, -1) is a pad


def mix(x: int) -> int:
    """splitmix64's finaliser."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def key(*words: int) -> int:
    """One word for a tuple of words."""
    h = 0
    for word in words:
        h = mix(h * PHI + word + 1 & MASK)
    return h


def group_order(num_groups: int, seed: int, epoch: int) -> list[int]:
    """Groups by a keyed hash, whose low bits are the group's own number."""
    low = 2 ** max(num_groups - 1, 0).bit_length() - 1
    return sorted(range(num_groups), key=lambda i: mix(i * PHI + key(seed, epoch) & MASK) & ~low | i)


def shuffled(size: int, largest: int, lane: int, word: int) -> list[int]:
    """Slots of a lane's `size` positions: a bijection of [0, 2^b) by four rounds, numbers of `size` and above left out."""
    bits = max(10, (largest - 1).bit_length())
    low, base = 2**bits - 1, mix(lane * PHI + word & MASK)
    rounds = [mix(base + r + 1 & MASK) for r in range(4)]
    slots = []
    for x in range(2**bits):
        for h in rounds:
            x = x * (h >> 33 | 1) + (h & 0xFFFFFFFF) & low
            x ^= x >> (bits + 1) // 2
        if x < size:
            slots.append(x)
    return slots


def epoch_rows(sizes: Sequence[int], seed: int, epoch: int, group_rows: int, window_rows: int) -> list[Row]:
    """The rows of an epoch by position: groups in keyed order, odd ones last where they are at most a window together."""
    order = group_order(len(sizes), seed, epoch)
    odd = [g for g in order if sizes[g] != group_rows]
    if sum(sizes[g] for g in odd) <= window_rows:
        order = [g for g in order if sizes[g] == group_rows] + odd
    return [(g, row) for g in order for row in range(sizes[g])]


def epoch_batches(
    sizes: Sequence[int],
    *,
    seed: int,
    epoch: int,
    group_rows: int,
    window_rows: int,
    num_lanes: int,
    global_batch: int,
    pad: bool,
) -> list[list[Row]]:
    """The batches of an epoch, rows in order: lane by lane, g slots of each."""
    rows = epoch_rows(sizes, seed, epoch, group_rows, window_rows)
    num_windows = max(1, (len(rows) + window_rows // 2) // window_rows)
    streams: list[list[Row | None]] = [[] for _ in range(num_lanes)]
    for window in range(num_windows):
        start = window * window_rows
        n = window_rows if window < num_windows - 1 else len(rows) - start
        largest = -(-n // num_lanes)
        for lane, stream in enumerate(streams):
            a, b = start + lane * n // num_lanes, start + (lane + 1) * n // num_lanes
            part: list[Row | None] = [None] * (b - a)
            for position, slot in zip(range(a, b), shuffled(b - a, largest, lane, key(key(seed, epoch, 1), window)), strict=True):
                part[slot] = rows[position]
            stream.extend(part)
    g = global_batch // num_lanes
    count = -(-len(rows) // global_batch) if pad else len(rows) // global_batch
    return [
        [(stream[slot] if slot < len(stream) else None) or (-1, -1) for stream in streams for slot in range(j * g, (j + 1) * g)]
        for j in range(count)
    ]
