"""The batches of a real dataset: constants of its orders, values in order, errors, and ends."""

import dataclasses
import random
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mlprod.data.loader import Batches, Stream, eval_batches, eval_order, example_bytes, train_batches, train_order
from mlprod.data.reader import GroupReader
from mlprod.errors import ConfigError, TrainingError
from mlprod.hashing import PAD_ID
from mlprod.order import default_window, drawn_positions
from mlprod.store import open_store
from tests.plain import stored
from tests.plain_order import epoch_batches

WHOLE = [(0, 64)]


@pytest.fixture(scope="module")
def store(dataset):
    """The smoke dataset's folder."""
    return open_store(str(dataset))


@pytest.fixture(scope="module")
def reference(dataset, published):
    """Returns a function: (split, order, k) -> the whole batch k as the order's plain statement and the files say it."""
    files = {name: stored(dataset, published, name) for name in ("train", "eval")}
    epochs = {}

    def batch(split, spec, k):
        sizes = published.group_sizes(split)
        n, size = sum(sizes), spec.global_batch
        number, j = divmod(k, -(-n // size) if spec.pad else n // size)
        constants = {
            name: getattr(spec, name) for name in ("seed", "group_rows", "window_rows", "num_lanes", "global_batch", "pad")
        }
        if (split, spec, number) not in epochs:
            epochs[split, spec, number] = epoch_batches(sizes, epoch=number, **constants)
        group, row = np.array(epochs[split, spec, number][j]).T
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
    for name in ("numeric", "ids", "label", "weight"):
        values = batch[name]
        assert values.dtype == wanted[name].dtype
        assert values.tobytes() == wanted[name][rows].tobytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"global_batch": 320, "num_lanes": 64, "window_rows": 256},
        {"global_batch": 24, "num_lanes": 1, "window_rows": 256},
        {"num_lanes": 0, "window_rows": 0},
    ],
)
def test_other_orders_too(changed, make_config, store, published, reference):
    """Batches over several windows, one lane, and the defaults."""
    cfg = make_config()
    spec = train_order(dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, **changed)), published)
    size = spec.global_batch
    for ranges in ([(0, size)], [(1, 5), (size // 2, size - 3)]):
        batches = Batches(store, published, "train", spec, ranges, drawn_positions(0, 9, size))
        for k in range(9):
            assert_rows(batches[k], reference("train", spec, k), ranges)


@pytest.mark.parametrize("threads, prefetch", [(1, 1), (4, 1), (4, 16)])
def test_threads_and_restarts_do_not_count(threads, prefetch, make_config, store, published, reference):
    """Started anywhere, with any threads, the stream goes on as the order says, and ends where it should."""
    cfg = make_config()
    cfg = dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, threads=threads, prefetch=prefetch))
    spec = train_order(cfg, published)
    for k in (0, *random.Random(threads).sample(range(1, 100), 2)):
        found = list(train_batches(cfg, store, published, spec, WHOLE, drawn_positions(k * 64, 20, 64)))
        assert len(found) == 20
        for i, batch in enumerate(found):
            assert_rows(batch, reference("train", spec, k + i), WHOLE)


def test_evaluation_sees_every_row_once_and_pads(make_config, store, published, reference):
    """For any process the same batches; pads have weight 0 and the pad's row id, and are zeros."""
    cfg = make_config()
    spec = eval_order(cfg, published)
    for ranges in (WHOLE, [(0, 5), (60, 64)]):
        found = list(eval_batches(cfg, store, published, "eval", ranges))
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
    """With its own name, after the batches before it and with none behind it: Grain alone would go on past it."""
    cfg = make_config()
    copied = shutil.copytree(Path(cfg.dataset), tmp_path / "copy")
    spec = train_order(cfg, published)
    shard = published.splits["train"][1]
    (copied / shard.path).write_bytes(b"torn")
    batches = Batches(open_store(str(copied)), published, "train", spec, WHOLE, drawn_positions(0, 31, 64))
    stream = Stream(batches, threads, 2)
    with pytest.raises(TrainingError, match=shard.path):
        list(stream)
    assert next(stream, None) is None


def test_a_stream_that_is_dropped_stops_its_threads(make_config, store, published):
    """Closing does not wait for batches that nobody wants."""
    cfg = make_config()
    spec = train_order(cfg, published)
    before = threading.active_count()
    stream = train_batches(cfg, store, published, spec, WHOLE, drawn_positions(0, 10_000, 64))
    next(stream)
    stream.close()
    assert next(stream, None) is None
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_closing_ends_a_wait_for_a_slow_store(make_config, store, published, monkeypatch):
    """Whoever waits in `next` is let go after the read under way, not after a window of them."""
    slow, real = 0.2, GroupReader.read
    monkeypatch.setattr(GroupReader, "read", lambda self, group: time.sleep(slow) or real(self, group))
    cfg = make_config()
    stream = train_batches(cfg, store, published, train_order(cfg, published), WHOLE, drawn_positions(0, 10, 64))
    ended = []
    waiting = threading.Thread(target=lambda: ended.append(_error_of(lambda: next(stream))), daemon=True)
    waiting.start()
    time.sleep(slow / 2)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 0.1
    waiting.join(10 * slow)
    assert not waiting.is_alive()
    assert ended[0] is not None


def _error_of(call):
    try:
        call()
    except BaseException as error:
        return error
    return None


def test_a_batch_decodes_its_share_of_the_next_window_and_no_more(make_config, store, published, monkeypatch):
    """Reads are spread over the batches: none reads more than twice its share once the first window is there."""
    cfg = make_config()
    spec = train_order(cfg, published)  # windows of 16 groups and batches
    batches = Batches(store, published, "train", spec, WHOLE, drawn_positions(0, 31, 64))
    reads, real = [], GroupReader.read
    monkeypatch.setattr(GroupReader, "read", lambda self, group: reads.append(group) or real(self, group))
    counts = []
    for k in range(30):
        before = len(reads)
        batches[k]
        counts.append(len(reads) - before)
    assert counts[0] == 17, "the first window, and a share of the next"
    assert max(counts[1:]) <= 2
    assert len(reads) == len(set(reads)) <= len(published.group_sizes("train")), "each group once"


def test_few_windows_are_open_however_batches_are_asked_for(make_config, store, published, reference):
    """In any order, again and again: their memory is bounded, and what was let go is read again with the same rows."""
    spec = train_order(make_config(), published)
    batches = Batches(store, published, "train", spec, WHOLE, drawn_positions(0, 90, 64))
    for k in random.Random(1).choices(range(90), k=40):
        assert_rows(batches[k], reference("train", spec, k), WHOLE)
        assert len(batches._windows) <= batches._max_windows <= 4
