"""How well does the order of examples shuffle? Whole epochs of row numbers against numpy's permutation, by window and batch.

    python benchmarks/shuffle.py [--quick] [--json FILE]      # integers only: needs no dataset

Job: plans an epoch for each window and global batch, and compares which rows meet in a batch with what a true permutation gives.
Promise: the batches are those that training takes, by `mlprod.order`; the storage, the order and the peer are new for every seed.
Price: about a minute on 2 cores and 250 MB; --quick (an eighth of every size, 3 seeds) a few seconds.

How to read it. Every number is divided by its expectation under a true permutation: 1 is chance. A cell is the mean over the
seeds and, in brackets, the least and the greatest; how far numpy's own lines are from 1 is the noise of so few batches.
- hash order, sorted: variance of the batches' label means, where 20% of the rows have label 1. In hash order the rows are stored
  by a hash of each, as ETL leaves them: a permutation already, to which batches have only to do no harm. Sorted is by label, the
  worst that files of another program could be. There a row group has one label, and batches vary about G R / W (1 - W / N)
  times as much as by chance (G global batch, R rows of a group, W window, N rows): an order of whole groups cannot mend that.
- neighbours: mean distance, in stored rows, of two rows that stand side by side in a batch. Batches are lane-major, so a device's
  slice or a microbatch holds few lanes, and thus fewer row groups than the batch. A sum over the batch cannot tell; statistics of
  a slice can, unless each group is a random sample, which it is in hash order.
- meetings: how often two rows of one row group are in one batch, about N / W: they share a window in every epoch. A little less
  for small batches, as a lane has the same number of rows in each. It matters only where rows of a group are alike.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from _figures import Figure, arguments, publish
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlprod.hashing import key, mix_array
from mlprod.order import Epoch, OrderSpec, plan_epoch

NUM_LANES = 64
POSITIVE = 0.2  # share of rows with label 1
STORAGES = ("hash order", "sorted")
MEASURES = {
    "hash order": "variance of batch label means, hash order",
    "sorted": "variance of batch label means, sorted by label",
    "neighbours": "distance of neighbours in a batch",
    "meetings": "meetings of two rows of a group in a batch",
}
PERMUTATION = 0  # stands in a window's place: the peer has none
NUM_SIGMAS = 4  # of a true permutation's spread; chance alone goes above in one of 10,000 choices of seeds

Measured = dict[str, float]  # measure -> ratio to its expectation under a true permutation


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What is measured; sizes in rows."""

    num_rows: int
    group_rows: int
    windows: tuple[int, ...]
    batches: tuple[int, ...]
    num_seeds: int


FULL = Scale(num_rows=1 << 22, group_rows=4096, windows=(1 << 16, 1 << 18, 1 << 20), batches=(4096, 65536), num_seeds=16)
QUICK = Scale(num_rows=1 << 19, group_rows=512, windows=(1 << 13, 1 << 15, 1 << 17), batches=(512, 8192), num_seeds=3)


def sorted_labels(num_rows: int) -> np.ndarray:
    """Returns bool[num_rows]: labels as stored when rows are sorted by them."""
    return np.arange(num_rows) < round(POSITIVE * num_rows)


def hash_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns labels [N] as stored when rows are in the order of a hash of each; another `seed` stands for other rows."""
    return labels[np.argsort(mix_array(np.arange(len(labels), dtype=np.uint64) + np.uint64(key(seed))))]


def epoch_of(scale: Scale, window_rows: int, global_batch: int, seed: int, number: int = 0) -> Epoch:
    """Plans an epoch over equal row groups, in training."""
    spec = OrderSpec(
        seed=seed,
        global_batch=global_batch,
        num_lanes=NUM_LANES,
        window_rows=window_rows,
        group_rows=scale.group_rows,
        pad=False,
    )
    return plan_epoch(spec, [scale.group_rows] * (scale.num_rows // scale.group_rows), number)


def stored_rows(epoch: Epoch) -> np.ndarray:
    """Returns int64[num_rows]: the stored row at each position; stored rows are numbered group after group."""
    sizes = np.diff(epoch.starts)
    first = np.empty_like(sizes)
    first[epoch.groups] = sizes
    first = np.cumsum(first) - first
    return np.repeat(first[epoch.groups] - epoch.starts[:-1], sizes) + np.arange(epoch.num_rows)


def batch_rows(epoch: Epoch) -> np.ndarray:
    """Returns int64[num_batches, global_batch]: the stored rows of every batch of an epoch; -1 where it is padded."""
    spec, stored = epoch.spec, stored_rows(epoch)
    lanes = np.arange(spec.num_lanes)
    rows = np.full((epoch.num_batches, spec.global_batch), -1)
    for window in range(epoch.num_windows):
        bounds = np.array([epoch.lane_bounds(window, int(lane)) for lane in lanes])
        slots = epoch.lane_slots(window, lanes) + window * epoch.part
        batch, within = np.divmod(slots, spec.lane_batch)
        within += np.repeat(lanes * spec.lane_batch, bounds[:, 1] - bounds[:, 0])
        taken = batch < epoch.num_batches  # training leaves the last few out
        rows[batch[taken], within[taken]] = stored[bounds[0, 0] : bounds[-1, 1]][taken]
    return rows


def label_means(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns float64[B]: the mean label of each batch. `rows`: int64[B, G], stored rows; `labels`: bool[N], as stored."""
    means: np.ndarray = labels[rows].mean(axis=1)
    return means


def variance_ratio(means: np.ndarray, labels: np.ndarray, global_batch: int) -> float:
    """Returns the variance of the batches' label means [B] over the one under a true permutation of `labels` [N].

    About the mean of all labels, not of the batches: then the expectation is exact however few batches there are.
    """
    num_rows, p = len(labels), labels.mean()
    expected = p * (1 - p) / global_batch * (num_rows - global_batch) / (num_rows - 1)
    return float(np.mean((means - p) ** 2) / expected)


def spread(num_batches: int, num_epochs: int) -> float:
    """Returns the standard deviation of `variance_ratio` under a true permutation, as a mean over epochs of separate storages.

    The ratio is then chi-square distributed over its degrees of freedom: one an epoch fewer than batches, as all rows together
    have the mean that they have.
    """
    return float(np.sqrt(2 / (num_epochs * (num_batches - 1))))


def neighbour_ratio(rows: np.ndarray, num_rows: int) -> float:
    """Returns the mean distance of stored rows side by side in a batch over its expectation. `rows`: int64[B, G]."""
    return float(np.abs(np.diff(rows, axis=1)).mean() / ((num_rows + 1) / 3))


def meeting_ratio(rows: np.ndarray, num_rows: int, group_rows: int) -> float:
    """Returns the ordered pairs of one row group in a batch over their expectation. `rows`: int64[B, G], equal row groups."""
    (num_batches, global_batch), num_groups = rows.shape, num_rows // group_rows
    cell = rows // group_rows + np.arange(num_batches)[:, None] * num_groups
    count = np.bincount(cell.reshape(-1), minlength=num_batches * num_groups)
    expected = global_batch * (global_batch - 1) * (group_rows - 1) / (num_rows - 1)
    return float((count * (count - 1)).sum() / num_batches / expected)


def measure(rows: np.ndarray, storages: Mapping[str, np.ndarray], group_rows: int) -> Measured:
    """Returns every measure of an epoch's batches. `rows`: int64[B, G]; `storages`: name -> labels as stored, bool[N]."""
    num_rows, global_batch = len(next(iter(storages.values()))), rows.shape[1]
    ratios = {name: variance_ratio(label_means(rows, labels), labels, global_batch) for name, labels in storages.items()}
    return ratios | {"neighbours": neighbour_ratio(rows, num_rows), "meetings": meeting_ratio(rows, num_rows, group_rows)}


def measure_seed(scale: Scale, seed: int) -> Iterator[tuple[int, int, Measured]]:
    """Yields (global batch, window, measures) of one seed, the permutation in front of the windows."""
    by_label = sorted_labels(scale.num_rows)
    storages = dict(zip(STORAGES, (hash_order(by_label, seed), by_label), strict=True))
    permutation = np.random.default_rng(seed).permutation(scale.num_rows)
    for global_batch in scale.batches:
        yield global_batch, PERMUTATION, measure(permutation.reshape(-1, global_batch), storages, scale.group_rows)
        for window in scale.windows:
            rows = batch_rows(epoch_of(scale, window, global_batch, seed))
            yield global_batch, window, measure(rows, storages, scale.group_rows)


def told(values: np.ndarray) -> str:
    """Returns a cell of the table: mean, least and greatest of values [seeds]."""
    digits = next(digits for least, digits in ((100, 0), (10, 1), (0.1, 2), (0, 4)) if values.mean() >= least)
    return f"{values.mean():,.{digits}f} [{values.min():,.{digits}f} to {values.max():,.{digits}f}]"


def show(scale: Scale, results: Mapping[tuple[int, int], Mapping[str, np.ndarray]]) -> None:
    """Prints the table for people. `results`: (global batch, window) -> measure -> float64[seeds]."""
    print(
        f"{scale.num_rows:,} rows, {POSITIVE:.0%} positive, groups of {scale.group_rows:,}, {NUM_LANES} lanes, "
        f"{scale.num_seeds} seeds; each cell / a true permutation's"
    )
    table = Table("batch", "window", *MEASURES, box=SIMPLE_HEAD, pad_edge=False)
    for (batch, window), values in results.items():
        name = "numpy permutation" if window == PERMUTATION else f"{window:,}"
        table.add_row(f"{batch:,}", name, *(told(values[measure]) for measure in MEASURES))
    Console(highlight=False, width=130).print(table)


def figures(scale: Scale, results: Mapping[tuple[int, int], Mapping[str, np.ndarray]], quick: bool) -> Iterator[Figure]:
    """Yields a figure per batch, window and measure, with numpy's permutation as its peer."""
    for (batch, window), values in results.items():
        limit = 1 + NUM_SIGMAS * spread(scale.num_rows // batch, scale.num_seeds)
        for name, title in MEASURES.items() if window != PERMUTATION else ():
            ratio = values[name]
            yield Figure(
                name=f"{title} / a permutation's, batch {batch}, window {window}",
                value=float(ratio.mean()),
                low=float(ratio.min()),
                high=float(ratio.max()),
                unit="ratio",
                runs=len(ratio),
                goal={"max": limit} if name == "hash order" and not quick else None,
                peers={"numpy permutation": float(results[batch, PERMUTATION][name].mean())},
            )


def main() -> None:
    """Measures every seed, prints the table and the figures."""
    options = arguments(__doc__)
    scale = QUICK if options.quick else FULL
    found: dict[tuple[int, int], list[Measured]] = {}
    for seed in range(scale.num_seeds):
        for batch, window, measured in measure_seed(scale, seed):
            found.setdefault((batch, window), []).append(measured)
    results = {at: {name: np.array([m[name] for m in by_seed]) for name in MEASURES} for at, by_seed in found.items()}
    show(scale, results)
    publish(list(figures(scale, results, options.quick)), options.json)


if __name__ == "__main__":
    main()
