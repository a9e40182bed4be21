"""Batches of rows in hash order are indistinguishable from a permutation's, and the measures see it where they are not."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from mlprod import order
from mlprod.order import Epoch, OrderSpec, plan_epoch
from tests.conftest import ROOT

NUM_ROWS, GROUP_ROWS, NUM_LANES, WINDOW_ROWS = 1 << 19, 1 << 10, 64, 1 << 16
NUM_WINDOWS, NUM_GROUPS = NUM_ROWS // WINDOW_ROWS, NUM_ROWS // GROUP_ROWS
SEEDS = range(8)  # each with a storage and an order of its own
# Seeds are fixed, so each test has one outcome. A right order falls outside of 4 standard deviations for a few choices of
# seeds in 10,000: a failure after a change of the order is a defect rather than bad luck.
NUM_SIGMAS = 4
each_batch = pytest.mark.parametrize("global_batch", [1024, 8192])


@pytest.fixture(scope="module")
def shuffle() -> Iterator[ModuleType]:
    """The script of the benchmark as a module. It finds its neighbours as when it is run: in its own folder."""
    path = ROOT / "benchmarks" / "shuffle.py"
    spec = importlib.util.spec_from_file_location("benchmarks_shuffle", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for the names of a module
        spec.loader.exec_module(module)
        yield module


def plan(seed: int, global_batch: int, number: int = 0) -> Epoch:
    """Plans an epoch of the size of these tests."""
    spec = OrderSpec(
        seed=seed, global_batch=global_batch, num_lanes=NUM_LANES, window_rows=WINDOW_ROWS, group_rows=GROUP_ROWS, pad=False
    )
    return plan_epoch(spec, [GROUP_ROWS] * NUM_GROUPS, number)


def storage(shuffle: ModuleType, kind: str, seed: int) -> np.ndarray:
    """Returns bool[NUM_ROWS]: labels as stored, 20% of them 1."""
    labels: np.ndarray = shuffle.sorted_labels(NUM_ROWS)
    if kind == "hash order":
        labels = shuffle.hash_order(labels, seed)
    return labels if kind != "sorted in groups" else np.tile(shuffle.sorted_labels(GROUP_ROWS), NUM_GROUPS)


def means_of(shuffle: ModuleType, kind: str, seed: int, global_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the label means [B] of the batches of an epoch, another one for each seed, and the labels as stored."""
    labels = storage(shuffle, kind, seed)
    return shuffle.label_means(shuffle.batch_rows(plan(seed, global_batch, number=seed % 3)), labels), labels


def pooled_ratio(shuffle: ModuleType, kind: str, global_batch: int) -> float:
    """Returns the variance of the batches' label means over a permutation's, a mean over the seeds."""
    found = [means_of(shuffle, kind, seed, global_batch) for seed in SEEDS]
    return float(np.mean([shuffle.variance_ratio(means, labels, global_batch) for means, labels in found]))


def slow_rows(epoch: Epoch, sizes: list[int]) -> list[list[int]]:
    """Returns the stored rows of every batch of an epoch, row by row, as the words at the top of mlprod/order.py have it."""
    first = [sum(sizes[:group]) for group in range(len(sizes))]
    streams: list[list[int]] = [[] for _ in range(epoch.spec.num_lanes)]
    for window in range(epoch.num_windows):
        for lane, stream in enumerate(streams):
            a, b = epoch.lane_bounds(window, lane)
            rows = [first[group] + row + i for group, row, count, _ in epoch.pieces(a, b) for i in range(count)]
            slots = epoch.lane_slots(window, np.array([lane])).tolist()
            stream += [row for _, row in sorted(zip(slots, rows, strict=True))]
    g = epoch.spec.lane_batch
    parts = [[stream[j * g : (j + 1) * g] for stream in streams] for j in range(epoch.num_batches)]
    return [[row for part in lanes for row in part + [-1] * (g - len(part))] for lanes in parts]


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("sizes", [[8] * 12, [8] * 9 + [5, 3], [7, 9, 3] * 4, [40, 1]])
def test_rows_of_batches_equal_brute_force(shuffle: ModuleType, sizes: list[int], pad: bool) -> None:
    """Also where windows, groups and batches do not divide each other, and where rows are left out or padded."""
    spec = OrderSpec(seed=3, global_batch=12, num_lanes=4, window_rows=20, group_rows=8, pad=pad)
    for number in range(3):
        epoch = plan_epoch(spec, sizes, number)
        assert shuffle.batch_rows(epoch).tolist() == slow_rows(epoch, sizes)


def test_the_measures_are_one_for_a_permutation(shuffle: ModuleType) -> None:
    """Of numpy's, in all four of them; pairs and distances are so many that a hundredth is far off."""
    global_batch = 1024
    labels = shuffle.sorted_labels(NUM_ROWS)
    rows = np.random.default_rng(0).permutation(NUM_ROWS).reshape(-1, global_batch)
    measured = shuffle.measure(rows, {"hash order": shuffle.hash_order(labels, 0), "sorted": labels}, GROUP_ROWS)
    bound = NUM_SIGMAS * shuffle.spread(len(rows), 1)
    assert measured["hash order"] == pytest.approx(1, abs=bound)
    assert measured["sorted"] == pytest.approx(1, abs=bound)
    assert measured["neighbours"] == pytest.approx(1, abs=0.01)
    assert measured["meetings"] == pytest.approx(1, abs=0.01)


def test_the_measures_equal_what_they_say_they_are(shuffle: ModuleType) -> None:
    """By hand: 8 rows in groups of 4, batches of 4 rows, labels 1 1 0 0 0 0 0 0."""
    rows, labels = np.array([[0, 1, 2, 7], [3, 4, 5, 6]]), np.arange(8) < 2
    means = shuffle.label_means(rows, labels)
    assert means.tolist() == [0.5, 0.0]
    assert shuffle.variance_ratio(means, labels, 4) == pytest.approx(0.25**2 / (0.25 * 0.75 / 4 * 4 / 7))
    assert shuffle.neighbour_ratio(rows, 8) == pytest.approx((1 + 1 + 5 + 1 + 1 + 1) / 6 / 3)
    assert shuffle.meeting_ratio(rows, 8, 4) == pytest.approx((3 * 2 + 3 * 2) / 2 / (4 * 3 * 3 / 7))


@each_batch
def test_label_means_in_hash_order_vary_as_those_of_a_permutation(shuffle: ModuleType, global_batch: int) -> None:
    """Neither more (rows of a kind come together) nor less (batches are balanced).

    Means of a thousand labels are as good as normal, so over a true permutation the ratio, pooled over 8 seeds of B batches, is
    chi-square over its 8 (B - 1) degrees of freedom: 1 with a standard deviation of sqrt(2 / (8 (B - 1))), 0.022 and 0.063 here.
    """
    bound = NUM_SIGMAS * shuffle.spread(NUM_ROWS // global_batch, len(SEEDS))
    assert pooled_ratio(shuffle, "hash order", global_batch) == pytest.approx(1, abs=bound)


@each_batch
def test_label_means_of_sorted_rows_vary_far_more(shuffle: ModuleType, global_batch: int) -> None:
    """The same criterion can fail, by the factor that windows of whole groups of one label predict: G R / W (1 - W / N).

    Windows are what varies, so the spread is that of 8 seeds of 8 windows.
    """
    ratio = pooled_ratio(shuffle, "sorted", global_batch)
    bound = NUM_SIGMAS * shuffle.spread(NUM_ROWS // global_batch, len(SEEDS))
    assert ratio > 1 + 20 * bound
    predicted = global_batch * GROUP_ROWS / WINDOW_ROWS * (1 - WINDOW_ROWS / NUM_ROWS)
    assert ratio / predicted == pytest.approx(1, abs=NUM_SIGMAS * shuffle.spread(NUM_WINDOWS, len(SEEDS)))


@pytest.mark.parametrize("shuffled", [True, False])
@each_batch
def test_lanes_mend_rows_that_are_sorted_inside_their_groups(
    shuffle: ModuleType, global_batch: int, shuffled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hash order would pass with any order of reading, so here the shuffle has to do the work; without it the same fails.

    A lane's part of a window is one group here, with 20% of its labels 1: means vary as those of samples of g rows out of a
    part from every lane do, and in each window they have the mean of all. So there are 8 x 8 (W / G - 1) degrees of freedom.
    """
    if not shuffled:
        monkeypatch.setattr(order, "shuffle_lanes", lambda size, lanes, word: np.tile(np.arange(size), (len(lanes), 1)))
    part, g = WINDOW_ROWS // NUM_LANES, global_batch // NUM_LANES
    stratified = (part - g) / (part - 1) / ((NUM_ROWS - global_batch) / (NUM_ROWS - 1))
    bound = NUM_SIGMAS * shuffle.spread(WINDOW_ROWS // global_batch, len(SEEDS) * NUM_WINDOWS)
    ratio = pooled_ratio(shuffle, "sorted in groups", global_batch) / stratified
    assert abs(ratio - 1) < bound if shuffled else ratio > 1 + 20 * bound


def lag_one(means: np.ndarray) -> float:
    """Returns the autocorrelation of an epoch's label means [B] with those one batch later."""
    off = means - means.mean()
    return float((off[1:] * off[:-1]).sum() / (off**2).sum())


def test_successive_label_means_are_uncorrelated_in_hash_order(shuffle: ModuleType) -> None:
    """-1 / B is expected, as off the mean they sum to 0; the spread of 8 epochs of B batches is 1 / sqrt(8 B).

    Of sorted rows the batches of a window have one mean, so that lag 1 shows at once.
    """
    global_batch, num_batches = 1024, NUM_ROWS // 1024
    found = {
        kind: np.mean([lag_one(means_of(shuffle, kind, seed, global_batch)[0]) for seed in SEEDS])
        for kind in ("hash order", "sorted")
    }
    assert found["hash order"] == pytest.approx(-1 / num_batches, abs=NUM_SIGMAS / np.sqrt(len(SEEDS) * num_batches))
    assert found["sorted"] > 0.9


def batch_of_row(shuffle: ModuleType, seed: int, number: int) -> np.ndarray:
    """Returns int64[NUM_ROWS]: the batch of 1024 rows that holds each stored row in an epoch."""
    rows = shuffle.batch_rows(plan(seed, 1024, number))
    batch = np.empty(NUM_ROWS, np.int64)
    batch[rows] = np.arange(len(rows))[:, None]
    return batch


@pytest.mark.parametrize("other, same", [(1, False), (0, True)])
def test_epochs_are_uncorrelated(shuffle: ModuleType, other: int, same: bool) -> None:
    """Where in its window a row is, and which window holds it; an epoch against itself fails both.

    Rows are shuffled one by one only inside of their windows, so the first spread is 1 / sqrt(rows). Windows hold whole groups,
    which therefore count once: the second is 1 / sqrt(groups).
    """
    per_window = WINDOW_ROWS // 1024
    pairs = [(batch_of_row(shuffle, seed, 0), batch_of_row(shuffle, seed, other)) for seed in SEEDS]
    within = np.mean([np.corrcoef(a % per_window, b % per_window)[0, 1] for a, b in pairs])
    windows = np.mean([np.corrcoef(a // per_window, b // per_window)[0, 1] for a, b in pairs])
    bounds = NUM_SIGMAS / np.sqrt(len(SEEDS) * NUM_ROWS), NUM_SIGMAS / np.sqrt(len(SEEDS) * NUM_GROUPS)
    assert (abs(within) > bounds[0], abs(windows) > bounds[1]) == (same, same)
