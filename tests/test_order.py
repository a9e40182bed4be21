"""Which examples are a batch: as the plain statement says, complete and unique over any sizes, and pinned ids."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.errors import ConfigError
from mlprod.order import (
    Epoch,
    OrderSpec,
    batches_per_epoch,
    default_lanes,
    default_window,
    drawn_positions,
    keyed_permutation,
    lanes_of,
    locate,
    plan_epoch,
    reads_per_byte,
    shuffle_lanes,
    unshuffle_lanes,
)  # fmt: skip
from tests import plain_order
from tests.plain_order import epoch_batches

GOLDEN = [
    (0, 0, [(4, 9), (4, 5), (4, 13), (7, 6), (7, 13), (7, 4), (8, 2), (8, 0), (8, 7), (9, 11), (9, 3), (9, 15)]),
    (0, 5, [(4, 10), (6, 14), (6, 10), (7, 9), (0, 7), (0, 6), (8, 10), (2, 10), (2, 0), (9, 14), (10, 3), (10, 4)]),
    (0, 14, [(3, 3), (3, 1), (3, 6), (1, 1), (1, 7), (3, 13), (5, 3), (1, 11), (5, 1), (5, 9), (5, 8), (5, 14)]),
    (1, 0, [(3, 9), (3, 13), (3, 10), (6, 4), (6, 13), (6, 6), (2, 2), (2, 4), (2, 14), (8, 0), (8, 3), (8, 15)]),
]


def make_spec(lanes: int, g: int, part: int, group_rows: int = 8, pad: bool = False, seed: int = 5) -> OrderSpec:
    """Returns an order of `lanes` x `g` rows a batch and `lanes` x `part` a window."""
    return OrderSpec(seed=seed, global_batch=lanes * g, num_lanes=lanes, window_rows=lanes * part, group_rows=group_rows, pad=pad)


def plain(spec: OrderSpec, sizes: list[int], number: int = 0) -> list[list[tuple[int, int]]]:
    """Returns an epoch's batches as lists of (group, row), by the plain statement of the order."""
    return epoch_batches(
        sizes, seed=spec.seed, epoch=number, group_rows=spec.group_rows, window_rows=spec.window_rows, num_lanes=spec.num_lanes,
        global_batch=spec.global_batch, pad=spec.pad,
    )  # fmt: skip


def batches(spec: OrderSpec, sizes: list[int], number: int = 0) -> list[list[tuple[int, int]]]:
    """Returns an epoch's batches as lists of (group, row), from the windows, lanes and slots of `Epoch`."""
    epoch = plan_epoch(spec, sizes, number)
    found = [[(-1, -1)] * spec.global_batch for _ in range(epoch.num_batches)]
    for window in range(epoch.num_windows):
        for lane in range(spec.num_lanes):
            pieces = epoch.pieces(*epoch.lane_bounds(window, lane))
            rows = [(piece.group, piece.row + i) for piece in pieces for i in range(piece.num_rows)]
            for row, slot in zip(rows, epoch.lane_slots(window, np.array([lane])).tolist(), strict=True):
                j, offset = divmod(window * epoch.part + slot, spec.lane_batch)
                if j < epoch.num_batches:
                    assert j in epoch.batches_in(window)
                    found[j][lane * spec.lane_batch + offset] = row
    return found


def check_epoch(spec: OrderSpec, sizes: list[int], number: int = 0) -> None:
    """Asserts what an epoch promises, for any order over any row groups; and that it is the plain statement's."""
    found = batches(spec, sizes, number)
    assert found == plain(spec, sizes, number)
    every = {(group, row) for group, rows in enumerate(sizes) for row in range(rows)}
    n, size = len(every), spec.global_batch
    rows = [pair for batch in found for pair in batch if pair != (-1, -1)]
    assert all(len(batch) == size for batch in found)
    assert len(rows) == len(set(rows)), "a row stands twice"
    assert set(rows) <= every
    if spec.pad:
        assert len(found) == -(-n // size)
        assert set(rows) == every
        assert not any((-1, -1) in batch for batch in found[:-1]), "only the last batch is padded"
    else:
        assert len(found) == n // size
        assert len(rows) == n - n % size
    epoch = plan_epoch(spec, sizes, number)
    position = {int(g): int(start) for g, start in zip(epoch.groups, epoch.starts[:-1], strict=True)}
    for j, batch in enumerate(found):
        for r, (group, row) in enumerate(batch):
            if group >= 0:
                slot = j * spec.lane_batch + r % spec.lane_batch
                a, b = epoch.lane_bounds(epoch.window_of_slot(slot), r // spec.lane_batch)
                assert a <= position[group] + row < b, "a row stands outside of its lane's part of the window"


@settings(deadline=None, max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    lanes=st.integers(1, 6),
    g=st.integers(1, 5),
    part=st.integers(1, 40),
    group_rows=st.sampled_from([1, 8, 40]),
    pad=st.booleans(),
    number=st.integers(0, 3),
)
def test_every_row_once_an_epoch(sizes, lanes, g, part, group_rows, pad, number):
    """But for the N mod G left out in training; in whole batches, lane-major, from the lane's own positions."""
    check_epoch(make_spec(lanes, g, part, group_rows, pad, seed=sum(sizes)), sizes, number)


CASES = {
    "fewer groups than lanes": ([8, 8], 8, 1, 8),
    "groups of one row": ([1] * 37, 4, 2, 5),
    "a batch over several windows": ([8] * 6, 2, 10, 3),
    "windows smaller than a group": ([40, 40], 2, 3, 4),
    "odd groups beyond a window": ([7, 9, 3] * 4, 4, 2, 4),
    "one row": ([1], 1, 1, 4),
    **{f"a window of 2 x 2^10 {d:+d} rows": ([1024, 1024 + d], 2, 50, 2048) for d in (-1, 0, 1)},
    **{f"a last window of 2 x 2^11 {d:+d} rows": ([4096, 4096 + d], 2, 512, 2048) for d in (-1, 0, 1)},
}


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_edges(case, pad):
    """Shapes at which an index could be off by one, a power of two or a whole window."""
    sizes, lanes, g, part = CASES[case]
    check_epoch(make_spec(lanes, g, part, max(sizes), pad), sizes)


def test_fewer_rows_than_a_batch_are_refused_in_training_and_padded_in_evaluation():
    train, evaluation = make_spec(4, 4, 8), make_spec(4, 4, 8, pad=True)
    with pytest.raises(ConfigError, match=r"config\.loader\.global_batch=16 is more than the 15 training rows"):
        batches_per_epoch(train, [8, 7])
    assert batches_per_epoch(train, [8, 8]) == 1
    assert batches_per_epoch(evaluation, [8, 7]) == 1
    check_epoch(evaluation, [8, 7])


@pytest.mark.smoke
def test_golden_ids():
    """Pinned (group, row) of a fixed order. If they move, ORDER_VERSION must too, and no run may be resumed."""
    spec = OrderSpec(seed=42, global_batch=12, num_lanes=4, window_rows=64, group_rows=16, pad=False)
    sizes = [16] * 11 + [5]
    found = [(n, j, batches(spec, sizes, n)[j]) for n, j in ((0, 0), (0, 5), (0, 14), (1, 0))]
    assert found == GOLDEN


def test_seeds_and_epochs_change_the_order_of_groups_and_rows():
    sizes, spec = [8] * 16, make_spec(4, 2, 8)
    orders = {tuple(plan_epoch(dataclasses.replace(spec, seed=s), sizes, n).groups.tolist()) for s in (0, 1) for n in (0, 1, 2)}
    assert len(orders) == 6
    epoch = plan_epoch(spec, sizes, 0)
    lanes = np.arange(4)
    shuffles = {tuple(plan_epoch(spec, sizes, n).lane_slots(w, lanes)) for n in (0, 1) for w in range(4)}
    assert len(shuffles) == 8, "each window of each epoch has a shuffle of its own"
    assert len({tuple(epoch.lane_slots(0, lanes[i : i + 1])) for i in range(4)}) == 4, "and each lane"


def test_other_rows_are_left_out_each_epoch():
    sizes, spec = [8] * 8 + [7], make_spec(4, 4, 8)
    every = {(group, row) for group, rows in enumerate(sizes) for row in range(rows)}
    left = [frozenset(every - {pair for batch in batches(spec, sizes, n) for pair in batch}) for n in range(4)]
    assert {len(rows) for rows in left} == {71 % 16}
    assert len(set(left)) == 4


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 6), st.integers(1, 30), st.data())
def test_a_lane_is_shuffled_alone_as_among_the_others(sizes, lanes, part, data):
    """Or the order would depend on which lanes a process owns."""
    epoch = plan_epoch(make_spec(lanes, 1, part), sizes, 0)
    window = data.draw(st.integers(0, epoch.num_windows - 1))
    own = sorted(data.draw(st.sets(st.integers(0, lanes - 1), min_size=1)))
    bounds = [epoch.lane_bounds(window, lane) for lane in range(lanes)]
    whole = np.split(epoch.lane_slots(window, np.arange(lanes)), np.cumsum([b - a for a, b in bounds])[:-1])
    found = epoch.lane_slots(window, np.array(own))
    assert found.tolist() == [slot for lane in own for slot in whole[lane]]
    for (a, b), slots in zip(bounds, whole, strict=True):
        assert sorted(slots.tolist()) == list(range(b - a))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=10), st.data())
def test_pieces_are_the_positions_in_order(sizes, data):
    epoch = plan_epoch(make_spec(2, 1, 8), sizes, 1)
    a = data.draw(st.integers(0, epoch.num_rows))
    b = data.draw(st.integers(a, epoch.num_rows))
    rows = [(int(g), row) for g in epoch.groups for row in range(sizes[int(g)])]
    pieces = list(epoch.pieces(a, b))
    assert [(piece.group, piece.row + i) for piece in pieces for i in range(piece.num_rows)] == rows[a:b]
    assert [piece.position for piece in pieces] == [a + sum(p.num_rows for p in pieces[:i]) for i in range(len(pieces))]


def test_odd_groups_stand_last_when_a_window_holds_them():
    """Then all the others stay aligned with the windows, and each is read once."""
    sizes = [8] * 12 + [3, 5]
    aligned, torn = make_spec(4, 1, 8), make_spec(4, 1, 1)
    assert set(plan_epoch(aligned, sizes, 0).groups[-2:].tolist()) == {12, 13}
    assert any(set(plan_epoch(torn, sizes, n).groups[-2:].tolist()) != {12, 13} for n in range(3))
    assert reads_per_byte(plan_epoch(aligned, sizes, 0), [[(0, 4)]]) == 1.0


def test_reads_per_byte_counts_groups_that_processes_share():
    """Two processes that own half of the lanes each read other groups; that own every second one, the same."""
    epoch = plan_epoch(make_spec(4, 2, 16), [16] * 8, 0)  # a window of 4 groups: one a lane
    assert reads_per_byte(epoch, [[(0, 4)], [(4, 8)]]) == 1.0
    assert reads_per_byte(epoch, [[(0, 1), (7, 8)], [(1, 7)]]) == 1.5
    halves = plan_epoch(make_spec(4, 2, 16, group_rows=32), [32] * 4, 0)
    assert reads_per_byte(halves, [[(0, 2), (4, 6)], [(2, 4), (6, 8)]]) == 2.0


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_lanes_of_holds_just_the_lanes_of_the_rows(lanes, g, data):
    """Ranges with holes, and parts of a lane."""
    rows = sorted(data.draw(st.sets(st.integers(0, lanes * g - 1), min_size=1)))
    cuts = [i for i in range(1, len(rows)) if rows[i] != rows[i - 1] + 1]
    ranges = [(rows[i], rows[j - 1] + 1) for i, j in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    assert lanes_of(make_spec(lanes, g, 8), ranges).tolist() == sorted({row // g for row in rows})


@pytest.mark.parametrize("n", [0, 1, 2, 3, 63, 64, 65, 1000])
def test_keyed_permutations(n):
    """Permutations, others for other keys."""
    assert sorted(keyed_permutation(n, 1).tolist()) == list(range(n))
    assert n < 63 or keyed_permutation(n, 1).tolist() != keyed_permutation(n, 2).tolist()


@pytest.mark.parametrize("size", [1, 1024, 1025, 5000, 1 << 16, (1 << 16) + 1])
def test_lanes_are_shuffled_by_bijections(size):
    shuffled = shuffle_lanes(size, np.array([0, 5]), 9)
    assert shuffled.shape[1] >= size
    every = np.arange(shuffled.shape[1])
    assert (np.sort(shuffled, axis=1) == every).all()
    assert (np.take_along_axis(unshuffle_lanes(size, np.array([0, 5]), 9), shuffled, axis=1) == every).all()
    for k, lane in enumerate((0, 5)):
        assert shuffled[k].tolist() == plain_order.shuffled(shuffled.shape[1], size, lane, 9)


@pytest.mark.parametrize("part", [1000, 1024, 2048, 5])
def test_rows_by_slot_undo_slots(part):
    """By the inverse bijection where the part is a power of two, by sorting elsewhere."""
    epoch, lanes = plan_epoch(make_spec(3, 1, part), [part] * 9, 2), np.array([0, 2])
    slots = epoch.lane_slots(1, lanes).reshape(2, part).astype(np.int64)
    assert (np.take_along_axis(epoch.rows_by_slot(1, lanes), slots, axis=1) == np.arange(part)).all()


def test_a_position_is_an_epoch_and_a_batch():
    per_epoch = batches_per_epoch(make_spec(4, 4, 8), [8, 8, 8, 8, 8, 7])  # of 16 among 47 rows
    assert per_epoch == 2
    assert [locate(p, 16, per_epoch) for p in (0, 16, 32, 48, 160)] == [(0, 0), (0, 1), (1, 0), (1, 1), (5, 0)]
    with pytest.raises(AssertionError, match="position 17"):
        locate(17, 16, per_epoch)


@given(st.lists(st.integers(0, 12), max_size=6, unique=True), st.integers(0, 12), st.integers(0, 15))
def test_skipped_ranges_are_jumped_over_and_nothing_else(cuts, start, count):
    """Whatever ranges, wherever it starts, also inside one."""
    edges = sorted(cuts)[: len(cuts) // 2 * 2]
    skips = [(8 * a, 8 * b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    every = [p for p in range(8 * start, 8 * 100, 8) if not any(a <= p < b for a, b in skips)]
    drawn = drawn_positions(8 * start, count, 8, skips)
    assert list(drawn) == every[:count]
    assert list(drawn[1:]) == every[1:count]
    assert [drawn[i - len(drawn)] for i in range(len(drawn))] == every[:count]


def test_positions_around_skipped_ranges_take_no_memory():
    """A run of a billion steps that rolled back once knows its positions, and makes none before it is asked for."""
    drawn = drawn_positions(64, 10**12, 64, [(128, 256), (640, 704)])
    assert len(drawn) == 10**12
    assert [drawn[0], drawn[1], drawn[-1]] == [64, 256, 64 * 10**12 + 192]
    with pytest.raises(IndexError):
        drawn[10**12]


def brute_reads(epoch: Epoch, shares: list[list[tuple[int, int]]]) -> float:
    """Rows of the groups that each process touches in each window, over all rows."""
    touched = 0
    for ranges in shares:
        for window in range(epoch.num_windows):
            bounds = [epoch.lane_bounds(window, int(lane)) for lane in lanes_of(epoch.spec, ranges)]
            touched += sum(int(np.diff(epoch.starts)[g]) for g in range(len(epoch.groups)) if any(
                max(a, epoch.starts[g]) < min(b, epoch.starts[g + 1]) for a, b in bounds))  # fmt: skip
    return touched / epoch.num_rows


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 5), st.integers(1, 3), st.integers(1, 20), st.data())
def test_reads_per_byte_is_what_counting_gives(sizes, lanes, g, part, data):
    """For shares with holes too."""
    epoch = plan_epoch(make_spec(lanes, g, part), sizes, 0)
    cut = data.draw(st.integers(0, lanes * g))
    shares = [share for share in ([(0, cut)] if cut else [], [(cut, lanes * g)] if cut < lanes * g else []) if share]
    shares.append([(0, 1), (lanes * g - 1, lanes * g)] if lanes * g > 1 else [(0, 1)])
    assert reads_per_byte(epoch, shares) == pytest.approx(brute_reads(epoch, shares), abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_default_lanes_are_the_largest_divisor_up_to_64(global_batch):
    lanes = default_lanes(global_batch)
    assert global_batch % lanes == 0
    assert not [d for d in range(lanes + 1, 65) if global_batch % d == 0]


@settings(deadline=None)
@given(st.integers(1, 64), st.sampled_from([1, 64, 4096]), st.integers(0, 1 << 20), st.integers(1, 1 << 16))
def test_the_default_window_is_the_smallest_that_is_large_enough(lanes, group_rows, row_bytes, global_batch):
    """Of 32 MiB, 4 row groups and 4 batches, in whole row groups a lane."""
    unit, window = lanes * group_rows, default_window(lanes, group_rows, row_bytes, global_batch)
    enough = max((32 << 20) // max(row_bytes, 1), 4 * group_rows, 4 * global_batch)
    assert window % unit == 0
    assert window - unit < enough <= window
