"""Batches of any share of any position equal the plain statement of the order, applied to the files."""

import dataclasses
import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from mlprod.data.loader import Batches, eval_batches, eval_order, example_bytes, read_batches, train_batches, train_order
from mlprod.errors import ConfigError, TrainingError
from mlprod.hashing import PAD_ID
from mlprod.order import batch_ids, default_window, locate, plan_epoch
from tests.plain import stored

WHOLE = [(0, 64)]


@pytest.fixture(scope="module")
def reference(dataset, published):
    """Returns a function: (split, order, k) -> the whole batch k as the order and the files say it."""
    files = {name: stored(dataset, published, name) for name in ("train", "eval")}
    epochs = {}

    def batch(split, spec, k):
        sizes = published.group_sizes(split)
        number, j = locate(spec, sizes, k * spec.global_batch)
        epoch = epochs.setdefault((split, spec, number), plan_epoch(spec, sizes, number))
        group, row = batch_ids(epoch, j)
        there = group >= 0
        at = np.concatenate([[0], np.cumsum(sizes)])[group[there]] + row[there]
        arrays = files[split]
        out = {
            name: np.zeros((len(group), *arrays[name].shape[1:]), arrays[name].dtype)
            for name in ("numeric", "ids", "label", "row_id")
        }
        out["row_id"][:] = PAD_ID
        for name in out:
            out[name][there] = arrays[name][at]
        return out | {"weight": there.astype(np.float32)}

    return batch


def assert_rows(batch, wanted, ranges):
    """Asserts that a process's batch is the rows [a, b) of the whole one."""
    rows = np.concatenate([np.arange(a, b) for a, b in ranges])
    row_id = batch["row_id"].astype(np.uint64)
    assert (row_id[:, 0] | row_id[:, 1] << np.uint64(32)).tolist() == wanted["row_id"][rows].tolist()
    found = {
        "numeric": batch["numeric"],
        "label": batch["label"],
        "weight": batch["weight"],
        "ids": np.stack([batch["color"], batch["size"]], axis=1),
    }
    for name, values in found.items():
        assert values.dtype == wanted[name].dtype
        assert values.tobytes() == wanted[name][rows].tobytes()


def random_shares(num_processes: int, seed: int) -> list[list[tuple[int, int]]]:
    """Cuts a batch of 64 rows anywhere and deals the pieces out: with holes, and parts of lanes."""
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(1, 64), min(63, num_processes - 1 + rng.randrange(10))))
    pieces = list(zip([0, *cuts], [*cuts, 64], strict=True))
    owners = [*range(num_processes), *(rng.randrange(num_processes) for _ in pieces[num_processes:])]
    rng.shuffle(owners)
    return [[p for p, owner in zip(pieces, owners, strict=True) if owner == process] for process in range(num_processes)]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 8])
def test_any_shares_from_any_position_are_the_batches_of_the_order(num_processes, make_config, dataset, published, reference):
    """Processes with random row ranges, started at a random position, over the end of an epoch."""
    spec = train_order(make_config(), published)
    for seed in range(2):
        first = random.Random(f"{num_processes} {seed}").randrange(60)
        for ranges in random_shares(num_processes, seed):
            batches = Batches(dataset, published, "train", spec, ranges, first, 40)
            for i in range(0, 40, 1 if num_processes < 3 else 7):
                assert_rows(batches[i], reference("train", spec, first + i), ranges)


@pytest.mark.parametrize(
    "changed",
    [
        {"global_batch": 320, "num_lanes": 64, "window_rows": 256},
        {"global_batch": 24, "num_lanes": 1, "window_rows": 256},
        {"num_lanes": 0, "window_rows": 0},
    ],
)
def test_other_orders_too(changed, make_config, dataset, published, reference):
    """Batches over several windows, one lane, and the defaults."""
    cfg = make_config()
    spec = train_order(dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, **changed)), published)
    size = spec.global_batch
    for ranges in ([(0, size)], [(1, 5), (size // 2, size - 3)]):
        batches = Batches(dataset, published, "train", spec, ranges, 0, 9)
        for k in range(9):
            assert_rows(batches[k], reference("train", spec, k), ranges)


@pytest.mark.parametrize("threads, prefetch", [(1, 1), (4, 1), (4, 16)])
def test_threads_and_restarts_do_not_count(threads, prefetch, make_config, published, reference):
    """Started anywhere, with any threads, the stream goes on as the order says, and ends where it should."""
    cfg = make_config()
    cfg = dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, threads=threads, prefetch=prefetch))
    spec = train_order(cfg, published)
    for k in (0, *random.Random(threads).sample(range(1, 100), 2)):
        found = list(train_batches(cfg, published, spec, WHOLE, k * 64, 20))
        assert len(found) == 20
        for i, batch in enumerate(found):
            assert_rows(batch, reference("train", spec, k + i), WHOLE)


def test_evaluation_sees_every_row_once_and_pads(make_config, published, reference):
    """For any process the same batches; pads have weight 0 and the pad's row id, and are zeros."""
    cfg = make_config()
    spec = eval_order(cfg, published)
    for ranges in (WHOLE, [(0, 5), (60, 64)]):
        found = list(eval_batches(cfg, published, "eval", ranges))
        assert len(found) == -(-published.num_rows("eval") // 64)
        for k, batch in enumerate(found):
            assert_rows(batch, reference("eval", spec, k), ranges)
    whole = [reference("eval", spec, k) for k in range(len(found))]
    ids = np.concatenate([b["row_id"][b["weight"] > 0] for b in whole])
    assert len(set(ids.tolist())) == len(ids) == published.num_rows("eval")
    assert {(*b["numeric"][i].tolist(), b["label"][i]) for b in whole for i in np.flatnonzero(b["weight"] == 0)} <= {
        (0.0, 0.0, 0.0, 0.0)
    }


def test_the_order_of_evaluation_is_that_of_no_seed(make_config, published):
    cfg = make_config()
    assert eval_order(dataclasses.replace(cfg, seed=9), published) == eval_order(cfg, published)
    assert train_order(dataclasses.replace(cfg, seed=9), published) != train_order(cfg, published)


def test_the_order_resolves_its_defaults(make_config, published):
    """Lanes and window of the config, or the defaults; the row groups' size of the dataset."""
    cfg = make_config()
    spec = train_order(cfg, published)
    assert (spec.num_lanes, spec.window_rows, spec.group_rows, spec.pad) == (16, 1024, 64, False)
    spec = train_order(dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, num_lanes=0, window_rows=0)), published)
    assert spec.num_lanes == 64
    assert spec.window_rows == default_window(64, 64, example_bytes(published), 64)


@pytest.mark.parametrize(
    "window, message",
    [
        (1000, r"window_rows=1000 must be a multiple of the 16 lanes"),
        (240, r"window_rows=240 must hold at least 4 row groups of 64 rows: 256"),
    ],
)
def test_a_window_that_does_not_fit_is_refused(window, message, make_config, published):
    cfg = make_config()
    with pytest.raises(ConfigError, match=rf"config\.loader\.{message}"):
        train_order(dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, window_rows=window)), published)


@pytest.mark.parametrize("threads", [1, 4])
def test_a_read_error_ends_the_stream(threads, make_config, published, tmp_path):
    """With its own name, and no batch after it: Grain alone would go on past it."""
    cfg = make_config()
    copied = shutil.copytree(Path(cfg.dataset), tmp_path / "copy")
    spec = train_order(cfg, published)
    epoch = plan_epoch(spec, published.group_sizes("train"), 0)
    last = int(epoch.groups[epoch.groups < 24][-1])  # of the second window alone
    batches = Batches(copied, published, "train", spec, WHOLE, 0, 31)
    shard = published.splits["train"][last // 8]
    (copied / shard.path).write_bytes(b"torn")
    stream = read_batches(batches, threads, 2)
    with pytest.raises(TrainingError, match=shard.path):
        list(stream)
    assert next(stream, None) is None


def test_a_stream_that_is_dropped_stops_its_threads(make_config, published):
    """Closing does not wait for batches that nobody wants."""
    cfg = make_config()
    spec = train_order(cfg, published)
    before = threading.active_count()
    stream = train_batches(cfg, published, spec, WHOLE, 0, 10_000)
    next(stream)
    stream.close()
    assert threading.active_count() <= before + 2
