"""Row groups as arrays, and what is said of files that are not what was written."""

import dataclasses
import random
import shutil
import threading

import numpy as np
import pytest

from mlprod.data.reader import GroupReader
from mlprod.errors import TrainingError
from mlprod.manifest import SPLITS
from mlprod.store import open_store
from tests.plain import group_arrays, stored


def reader_of(folder, published, split="train"):
    """A fresh reader: nothing of an earlier one is kept."""
    return GroupReader(open_store(str(folder)), published, split)


@pytest.mark.parametrize("split", SPLITS)
def test_groups_in_manifest_order_are_the_files(split, dataset, published):
    """Values, not only ids; in the dtypes and shapes that `shapes` promises."""
    groups = reader_of(dataset, published, split)
    parts = [group_arrays(groups, g) for g in range(len(published.group_sizes(split)))]
    wanted = stored(dataset, published, split)
    assert [len(p["label"]) for p in parts] == list(published.group_sizes(split))
    assert groups.shapes().keys() == {"numeric", "ids", "label", "row_id"}
    for name, (shape, dtype) in groups.shapes().items():
        whole = np.concatenate([p[name] for p in parts])
        assert (whole.shape[1:], whole.dtype) == (shape, dtype)
        assert whole.tobytes() == wanted[name].tobytes()


def broken(path, how: str, at: int) -> None:
    """`at`: where other bytes stand when it is overwritten."""
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(raw[: len(raw) // 2])
    elif how == "text":
        path.write_text("not Parquet")
    else:
        path.write_bytes(raw[:at] + bytes(400) + raw[at + 400 :])


@pytest.mark.parametrize("how", ["gone", "cut", "text", "overwritten"])
def test_a_broken_file_is_one_error_with_its_name(how, dataset, published, tmp_path):
    copied = shutil.copytree(dataset, tmp_path / "copy")
    shard = published.splits["train"][1]
    broken(copied / shard.path, how, shard.spans[7][0])
    groups = reader_of(copied, published)
    assert len(groups.read(0)["label"]) == 64, "the file before it is whole"
    told = {"gone": "the file is gone", "cut": "the file ends .* bytes too early", "text": "the file ends .* bytes too early"}
    with pytest.raises(TrainingError, match=f"{shard.path}, row group 7: {told.get(how, 'checksum .* the manifest says')}"):
        groups.read(15)


def test_another_file_in_the_place_of_one_is_refused(dataset, published, tmp_path):
    """A whole Parquet file of the same dataset, but not the one that the manifest names."""
    copied = shutil.copytree(dataset, tmp_path / "copy")
    first, second, *_ = published.splits["train"]
    shutil.copyfile(dataset / second.path, copied / first.path)
    with pytest.raises(TrainingError, match=f"{first.path}, row group 7: (checksum|the file ends)"):
        reader_of(copied, published).read(7)


def test_a_file_overwritten_while_it_is_read_is_refused(dataset, published, tmp_path):
    """Also a group that was read and found good before: what is decoded is what was checked, at every read."""
    copied = shutil.copytree(dataset, tmp_path / "copy")
    groups, shard = reader_of(copied, published), published.splits["train"][0]
    before = groups.read(2)
    with (copied / shard.path).open("r+b") as file:
        file.seek(shard.spans[2][0] + 40)
        file.write(b"other")
    with pytest.raises(TrainingError, match=f"{shard.path}, row group 2: checksum"):
        groups.read(2)
    assert groups.read(1)["label"].size == before["label"].size, "its neighbours are what they were"


def test_no_flipped_bit_passes(dataset, published, tmp_path):
    """300 of them, anywhere in a file: a group whose bytes they are in is refused with the file, others are what they were."""
    copied, chance = shutil.copytree(dataset, tmp_path / "copy"), random.Random(7)
    shard = published.splits["train"][0]
    path, whole = copied / shard.path, (dataset / shard.path).read_bytes()
    wanted = [group_arrays(reader_of(dataset, published), group) for group in range(len(shard.groups))]
    refused = 0
    for _ in range(300):
        group, at, bit = chance.randrange(len(shard.groups)), chance.randrange(len(whole)), chance.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        for group, (a, b) in enumerate(shard.spans):
            if a <= at < b:
                refused += 1
                with pytest.raises(TrainingError, match=f"{shard.path}, row group {group}: checksum"):
                    reader_of(copied, published).read(group)
            else:
                found = group_arrays(reader_of(copied, published), group)
                assert all(found[name].tobytes() == values.tobytes() for name, values in wanted[group].items())
    assert refused > 100


def test_a_threads_reads_are_its_own(dataset, published):
    """What one thread reads stays while others read; what it read before is gone: memory is used again."""
    groups, both = reader_of(dataset, published), threading.Barrier(2)
    found = {}

    def read(group):
        rows = groups.read(group)
        both.wait()
        found[group] = rows["row_id"].tobytes(), rows["row_id"].ctypes.data, groups.read(group)["row_id"].ctypes.data

    threads = [threading.Thread(target=read, args=(group,)) for group in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for group, (values, first, second) in found.items():
        assert values == group_arrays(groups, group)["row_id"].tobytes()
        assert first == second
    assert found[0][1] != found[1][1]


@pytest.mark.parametrize("offset", [-1, 1 << 40])
def test_values_that_would_lie_outside_of_a_group_are_refused(offset, dataset, published):
    first, *others = published.splits["train"]
    wrong = dataclasses.replace(first, offsets={64: {**first.offsets[64], "label": offset}})
    manifest = dataclasses.replace(published, splits={"train": (wrong, *others)})
    with pytest.raises(TrainingError, match=f"{first.path}, row group 0: "):
        reader_of(dataset, manifest).read(0)
