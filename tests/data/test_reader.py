"""Row groups as arrays, and what is said of files that are not what was written."""

import random
import shutil

import numpy as np
import pytest

from mlprod.data import reader
from mlprod.data.reader import GroupReader
from mlprod.errors import TrainingError
from mlprod.manifest import SPLITS
from mlprod.store import open_store
from tests.plain import stored


def reader_of(folder, published, split="train"):
    """A fresh reader: nothing of an earlier one is kept."""
    return GroupReader(open_store(str(folder)), published, split)


@pytest.mark.parametrize("split", SPLITS)
def test_groups_in_manifest_order_are_the_files(split, dataset, published):
    """Values, not only ids; in the dtypes and shapes that `shapes` promises."""
    groups = reader_of(dataset, published, split)
    parts = [groups.read(g) for g in range(len(published.group_sizes(split)))]
    wanted = stored(dataset, published, split)
    assert [len(p["label"]) for p in parts] == list(published.group_sizes(split))
    assert groups.shapes().keys() == {"numeric", "ids", "label", "row_id"}
    for name, (shape, dtype) in groups.shapes().items():
        whole = np.concatenate([p[name] for p in parts])
        assert (whole.shape[1:], whole.dtype) == (shape, dtype)
        assert whole.tobytes() == wanted[name].tobytes()


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
    groups = reader_of(copied, published)
    assert len(groups.read(0)["label"]) == 64, "the file before it is whole"
    told = {"gone": "the file is gone", "cut": "the file ends .* bytes too early", "text": "the file ends .* bytes too early"}
    with pytest.raises(TrainingError, match=f"{shard.path}, row group 0: {told.get(how, 'checksum .* the manifest says')}"):
        groups.read(8)


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
    """300 of them, in the bytes that training reads and in footers: refused with the file, or of a footer never needed."""
    copied, chance = shutil.copytree(dataset, tmp_path / "copy"), random.Random(7)
    shard = published.splits["train"][0]
    path, whole = copied / shard.path, (dataset / shard.path).read_bytes()
    for _ in range(300):
        group = chance.randrange(len(shard.groups))
        footer = (shard.bytes - shard.footer[0], shard.bytes)
        a, b = chance.choice([shard.spans[group], footer])
        at, bit = chance.randrange(a, b), chance.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(TrainingError, match=f"{shard.path}, row group {group}: checksum"):
            reader_of(copied, published).read(group)
    path.write_bytes(whole)
    assert reader_of(copied, published).read(0)["label"].size == 64


def test_few_footers_are_kept_and_read_again_when_needed(dataset, published, monkeypatch):
    """Their memory is bounded, and nothing depends on it."""
    wanted = stored(dataset, published, "train")["row_id"]
    monkeypatch.setattr(reader, "KEPT_GROUPS", 16)
    groups, sizes = reader_of(dataset, published), published.group_sizes("train")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for group in [*range(0, len(sizes), 5), *range(len(sizes))]:
        assert groups.read(group)["row_id"].tolist() == wanted[starts[group] : starts[group + 1]].tolist()
        assert len(groups._footers) <= 2
