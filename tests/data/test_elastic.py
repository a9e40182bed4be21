"""Any processes, restarted anywhere with any threads, see the batches of the plain statement of the order: ids and values.

Real Parquet files, the real reader and Grain's threads; a process is its row ranges of a batch.
"""

import itertools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from grain.experimental import assert_equal_output_after_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlprod.data.loader import Batches, Chunks, Stream, dataset
from mlprod.hashing import PAD_ID
from mlprod.order import OrderSpec, drawn_positions
from mlprod.store import open_store
from tests.plain_order import Row, epoch_batches
from tests.synthetic import row_id, values_of, write_dataset

Ranges = list[tuple[int, int]]


def plain_batches(spec: OrderSpec, sizes: list[int], epochs: int) -> list[list[Row]]:
    """The batches of the first epochs, one after the other."""
    constants = {name: getattr(spec, name) for name in ("seed", "group_rows", "window_rows", "num_lanes", "global_batch", "pad")}
    found = [epoch_batches(sizes, epoch=epoch, **constants) for epoch in range(epochs)]
    return list(itertools.chain.from_iterable(found))


def assert_batch(batch: dict[str, np.ndarray], rows: list[Row]) -> None:
    """Asserts ids, values, weights and pads of a process's batch."""
    found = batch["row_id"].astype(np.uint64)
    ids = found[:, 0] | found[:, 1] << np.uint64(32)
    pads = np.array([group < 0 for group, _ in rows])
    assert ids.tolist() == [PAD_ID if group < 0 else row_id(group, row) for group, row in rows]
    assert batch["weight"].tolist() == (~pads).astype(float).tolist()
    for name, values in values_of(np.where(pads, np.uint64(0), ids)).items():
        wanted = np.where(pads.reshape(-1, *[1] * (values.ndim - 1)), 0, values).astype(values.dtype)
        assert batch[name].dtype == values.dtype
        np.testing.assert_array_equal(batch[name], wanted)


def shares(global_batch: int, num_processes: int, chance: random.Random) -> list[Ranges]:
    """Deals pieces of a batch to processes: holes, parts of lanes, and some rows to two, as a tensor axis does."""
    num_pieces = min(global_batch, num_processes + chance.randrange(4))
    cuts = sorted(chance.sample(range(1, global_batch), num_pieces - 1)) if num_pieces > 1 else []
    pieces = list(zip([0, *cuts], [*cuts, global_batch], strict=True))
    owners = [*range(num_processes), *(chance.randrange(num_processes) for _ in pieces)][: len(pieces)]
    chance.shuffle(owners)
    dealt = [[piece for piece, owner in zip(pieces, owners, strict=True) if owner == process] for process in range(num_processes)]
    return [ranges or [chance.choice(pieces)] for ranges in dealt]


def streamed(
    folder: Path, described, spec: OrderSpec, ranges: Ranges, positions, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yields a process's batches at these positions as they come through Grain."""
    stream = Stream(Batches(open_store(str(folder)), described, "train", spec, ranges, positions), threads, 2)
    try:
        yield from stream
    finally:
        stream.close()


def check_elastic(spec: OrderSpec, sizes: list[int], chance: random.Random, restarts: int = 3) -> None:
    """Goes through two epochs and a half in pieces, each with other processes, threads and start."""
    epochs = 1 if spec.pad else 3
    wanted = plain_batches(spec, sizes, epochs)
    with tempfile.TemporaryDirectory() as folder:
        described = write_dataset(Path(folder), sizes, spec.group_rows, file_groups=chance.randint(1, 4))
        for _ in range(restarts):
            first = chance.randrange(len(wanted))
            count = min(len(wanted) - first, 1 + chance.randrange(6))
            positions = drawn_positions(first * spec.global_batch, count, spec.global_batch)
            for ranges in shares(
                spec.global_batch, chance.choice([n for n in (1, 2, 3, 4, 8) if n <= spec.global_batch]), chance
            ):
                rows = [row for a, b in ranges for row in range(a, b)]
                found = list(streamed(Path(folder), described, spec, ranges, positions, chance.choice([1, 2, 4])))
                assert len(found) == count
                for batch, whole in zip(found, wanted[first : first + count], strict=True):
                    assert_batch(batch, [whole[row] for row in rows])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=14),
    lanes=st.integers(1, 6),
    g=st.integers(1, 5),
    part=st.integers(1, 40),
    group_rows=st.sampled_from([1, 8, 40]),
    pad=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_processes_from_anywhere_see_the_same_batches(sizes, lanes, g, part, group_rows, pad, seed):
    """Files, groups, rows, lanes, windows and batches of any sizes."""
    if not pad and sum(sizes) < lanes * g:
        sizes = [*sizes, lanes * g]
    spec = OrderSpec(seed=seed, global_batch=lanes * g, num_lanes=lanes, window_rows=lanes * part, group_rows=group_rows, pad=pad)
    check_elastic(spec, sizes, random.Random(seed))


# name: sizes of the row groups, lanes, slots of a batch in a lane, slots of a window in a lane
CASES = {
    "fewer groups than lanes": ([8, 8], 8, 1, 8),
    "groups of one row": ([1] * 37, 4, 2, 5),
    "one group": ([40], 4, 2, 3),
    "odd groups, at most a window": ([16] * 9 + [3, 5, 7], 4, 2, 16),
    "odd groups beyond a window": ([7, 9, 3] * 4, 4, 2, 4),
    "batches over several windows": ([8] * 6, 2, 10, 3),
    "batches that do not divide windows": ([16] * 12, 4, 3, 16),
    "windows smaller than a group": ([40, 40], 2, 3, 4),
    "a lane is a group, windows are whole batches": ([16] * 17, 4, 4, 16),
    "a lane is a group, a short last group": ([16] * 12 + [5], 4, 8, 16),
    "two groups a lane": ([16] * 24 + [1], 4, 4, 32),
    "half a group a lane": ([32] * 12, 4, 4, 16),
    **{f"a last window of 2 x 2^10 {d:+d} rows": ([1024, 1024 + d], 2, 128, 2048) for d in (-1, 0, 1)},
    **{f"a last window of 2 x 2^11 {d:+d} rows": ([4096, 4096 + d], 2, 512, 2048) for d in (-1, 0, 1)},
    **{f"a last window of 8 x 2^10 {d:+d} rows": ([1024] * 15 + [1024 + d], 8, 64, 1024) for d in (-1, 0, 1)},
}


@pytest.mark.parametrize("pad", [False, True], ids=["training", "evaluation"])
@pytest.mark.parametrize("case", CASES)
def test_fixed_cases(case, pad):
    """Shapes at which an index could be off by one, a power of two or a whole window; empty files lie beside the others."""
    sizes, lanes, g, part = CASES[case]
    spec = OrderSpec(seed=11, global_batch=lanes * g, num_lanes=lanes, window_rows=lanes * part, group_rows=max(sizes), pad=pad)
    check_elastic(spec, sizes, random.Random(case), restarts=2)


def test_evaluation_covers_every_row_once_on_any_processes(tmp_path):
    """Fewer rows than a batch too: one padded batch."""
    for sizes in ([5], [16] * 5 + [3], [7, 9, 2]):
        folder = tmp_path / str(sum(sizes))
        described = write_dataset(folder, sizes, 16)
        spec = OrderSpec(seed=0, global_batch=24, num_lanes=8, window_rows=64, group_rows=16, pad=True)
        positions = range(0, -(-sum(sizes) // 24) * 24, 24)
        for ranges in ([[(0, 24)]], [[(0, 7)], [(7, 24)]], [[(0, 2), (20, 24)], [(2, 11)], [(11, 20)]]):
            seen = [
                int(low) | int(high) << 32
                for share in ranges
                for batch in streamed(folder, described, spec, share, positions, 2)
                for (low, high), weight in zip(batch["row_id"], batch["weight"], strict=True)
                if weight
            ]
            assert sorted(seen) == [row_id(group, row) for group, size in enumerate(sizes) for row in range(size)]


def test_skipped_ranges_are_not_seen_and_nothing_else_moves(tmp_path):
    """Over the end of an epoch, and restarted behind a skip."""
    sizes, size = [16] * 12, 32
    described = write_dataset(tmp_path, sizes, 16)
    spec = OrderSpec(seed=4, global_batch=size, num_lanes=8, window_rows=64, group_rows=16, pad=False)
    wanted = plain_batches(spec, sizes, 4)
    skips = [(2 * size, 5 * size), (6 * size, 7 * size), (11 * size, 13 * size)]
    kept = [k for k in range(20) if not any(a <= k * size < b for a, b in skips)]
    for first in (0, 2, 3, 5, 12, 13):
        positions = drawn_positions(first * size, 6, size, skips)
        found = list(streamed(tmp_path, described, spec, [(0, size)], positions, 2))
        for batch, k in zip(found, [k for k in kept if k >= first][:6], strict=True):
            assert_batch(batch, wanted[k])


@pytest.mark.parametrize("threads, part, chunk", [(1, 16, 1), (3, 16, 1), (2, 16, 3), (2, 10, 1)])
def test_grain_restores_at_every_position(threads, part, chunk, tmp_path):
    """Grain's own check of the whole pipeline: saved and restored at each run of batches, it yields the same."""
    sizes = [16] * 9
    described = write_dataset(tmp_path, sizes, 16)
    spec = OrderSpec(seed=2, global_batch=16, num_lanes=4, window_rows=4 * part, group_rows=16, pad=False)
    batches = Batches(open_store(str(tmp_path)), described, "train", spec, [(0, 16)], range(0, 14 * 16, 16))
    assert_equal_output_after_checkpoint(dataset(Chunks(batches, chunk), threads, 2).map(list))
