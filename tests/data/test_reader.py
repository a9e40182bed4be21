"""Row groups and windows as arrays, and what is said of files that are not what was written."""

import shutil
import threading

import numpy as np
import pytest

from mlprod.data import reader
from mlprod.data.reader import GroupReader, Windows, as_batch
from mlprod.errors import TrainingError
from mlprod.manifest import SPLITS
from mlprod.order import OrderSpec, plan_epoch
from tests.plain import stored

SPEC = OrderSpec(seed=3, global_batch=64, num_lanes=16, window_rows=512, group_rows=64, pad=False)


@pytest.mark.parametrize("split", SPLITS)
def test_groups_in_manifest_order_are_the_files(split, dataset, published):
    """Values, not only ids; in the dtypes and shapes that `shapes` promises."""
    groups = GroupReader(dataset, published, split)
    parts = [groups.read(g) for g in range(len(published.group_sizes(split)))]
    wanted = stored(dataset, published, split)
    wanted["weight"] = np.ones(len(wanted["label"]), np.float32)
    assert [len(p["label"]) for p in parts] == list(published.group_sizes(split))
    for name, (shape, dtype) in groups.shapes().items():
        whole = np.concatenate([p[name] for p in parts])
        assert (whole.shape[1:], whole.dtype) == (shape, dtype)
        assert whole.tobytes() == wanted[name].tobytes()
    assert groups.id_names == ["color", "size"]


def broken(path, how: str) -> None:
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "text":
        path.write_text("not Parquet")
    else:
        path.write_bytes(raw[:200] + bytes(400) + raw[600:])


@pytest.mark.parametrize("how", ["gone", "cut", "text", "overwritten"])
def test_a_broken_file_is_one_error_with_its_name(how, dataset, published, tmp_path):
    copied = shutil.copytree(dataset, tmp_path / "copy")
    shard = published.splits["train"][1]
    broken(copied / shard.path, how)
    groups = GroupReader(copied, published, "train")
    assert len(groups.read(0)["label"]) == 64, "the file before it is whole"
    told = "row group 0: FileNotFoundError" if how == "gone" else "its SHA-256 differs"
    with pytest.raises(TrainingError, match=f"{shard.path}.*{told}"):
        groups.read(8)


def test_another_file_in_the_place_of_one_is_refused(dataset, published, tmp_path):
    """A whole Parquet file of the same dataset, but not the one that the manifest names."""
    copied = shutil.copytree(dataset, tmp_path / "copy")
    first, *_, last = published.splits["train"]
    shutil.copyfile(dataset / published.splits["eval"][-1].path, copied / last.path)
    where = sum(len(s.groups) for s in published.splits["train"][:-1])
    with pytest.raises(TrainingError, match=f"{last.path}: its SHA-256 differs"):
        GroupReader(copied, published, "train").read(where + 7)
    shutil.copyfile(dataset / published.splits["test"][-1].path, copied / first.path)
    with pytest.raises(TrainingError, match=f"{first.path}: its SHA-256 differs"):
        GroupReader(copied, published, "train").read(7)


@pytest.mark.parametrize("lanes", [[0], [15], [3, 4, 5], [0, 2, 9, 10, 15], list(range(16))], ids=str)
def test_a_window_holds_the_rows_of_its_lanes_at_their_slots(lanes, dataset, published):
    """For every window of an epoch, as the order says: row of slot s of lane l stands at [l's index, s]."""
    wanted, sizes = stored(dataset, published, "train"), published.group_sizes("train")
    first_row = np.concatenate([[0], np.cumsum(sizes)])
    epoch = plan_epoch(SPEC, sizes, 1)
    windows = Windows(GroupReader(dataset, published, "train"), np.array(lanes))
    for window in range(epoch.num_windows):
        found, slots = windows.get(epoch, window), windows.slots_in(epoch, window)
        for i, lane in enumerate(lanes):
            a, b = epoch.lane_bounds(window, lane)
            positions = [(g, row + k) for g, row, n, _ in epoch.pieces(a, b) for k in range(n)]
            at = np.array([first_row[g] + row for g, row in positions])
            for k, slot in enumerate(epoch.window_slots(window, np.array([lane]))[0]):
                assert found["row_id"][i * slots + slot] == wanted["row_id"][at[k]]
                assert (found["numeric"][i * slots + slot] == wanted["numeric"][at[k]]).all()


def test_a_window_is_decoded_once_however_many_threads_ask(dataset, published, monkeypatch):
    """And an error of the one that decodes reaches all of them."""
    epoch = plan_epoch(SPEC, published.group_sizes("train"), 0)
    groups = GroupReader(dataset, published, "train")
    windows, barrier, reads, results = Windows(groups, np.arange(16)), threading.Barrier(6), [], []
    real = GroupReader.read
    monkeypatch.setattr(GroupReader, "read", lambda self, group: reads.append(group) or real(self, group))

    def ask(window):
        barrier.wait()
        try:
            results.append(windows.get(epoch, window)["row_id"].tobytes())
        except TrainingError as error:
            results.append(error)

    def ask_all(window):
        threads = [threading.Thread(target=ask, args=(window,), daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)

    ask_all(0)
    assert len(set(results)) == 1
    assert len(reads) == len(set(reads)) == 8, "a window of 8 groups"
    results.clear()
    monkeypatch.setattr(GroupReader, "read", lambda *_: (_ for _ in ()).throw(TrainingError("torn")))
    ask_all(1)
    assert [str(r) for r in results] == ["torn"] * 6


def test_old_windows_are_let_go(dataset, published, monkeypatch):
    """Memory follows from the windows kept, not from the epoch; one let go is read again with the same rows."""
    epoch = plan_epoch(SPEC, published.group_sizes("train"), 0)
    windows = Windows(GroupReader(dataset, published, "train"), np.arange(16))
    first = windows.get(epoch, 0)
    assert windows.get(epoch, 0) is first
    for window in range(1, epoch.num_windows):
        windows.get(epoch, window)
        assert len(windows._loaded) <= reader.WINDOWS_KEPT
    again = windows.get(epoch, 0)
    assert epoch.num_windows > reader.WINDOWS_KEPT
    assert again is not first
    assert all(again[name].tobytes() == first[name].tobytes() for name in first)


def test_a_batch_has_ids_by_name_and_row_ids_as_two_words():
    """Low word first: a uint64 would become a uint32 on its way to a device."""
    rows = {
        "numeric": np.zeros((2, 3), np.float32), "ids": np.array([[1, 2], [3, 4]], np.int32),
        "label": np.ones(2, np.float32), "weight": np.ones(2, np.float32),
        "row_id": np.array([1 << 32 | 7, 2**64 - 1], np.uint64),
    }  # fmt: skip
    batch = as_batch(rows, ["a", "b"])
    assert sorted(batch) == ["a", "b", "label", "numeric", "row_id", "weight"]
    assert (batch["a"].tolist(), batch["b"].tolist()) == ([1, 3], [2, 4])
    assert batch["row_id"].dtype == np.uint32
    assert batch["row_id"].tolist() == [[7, 1], [2**32 - 1] * 2]
    assert all(array.flags.c_contiguous for array in batch.values())
