"""What earlier versions wrote is read by this one: a dataset, and a checkpoint with its run JSON. See `compat/make.py`."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mlprod import manifest
from mlprod.checkpoint.leaves import read_leaves
from mlprod.checkpoint.saved import SavedSteps
from mlprod.data.reader import GroupReader
from mlprod.manifest import SPLITS
from mlprod.store import open_store
from tests.plain import group_arrays

KEPT = sorted(path.parent for path in (Path(__file__).parent / "compat").glob("*/told.json"))


def test_something_is_kept() -> None:
    assert KEPT


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def kept(request: pytest.FixtureRequest) -> Path:
    """A folder of an earlier version's files."""
    folder: Path = request.param
    return folder


@pytest.fixture
def told(kept: Path) -> dict[str, Any]:
    """What is in it."""
    found: dict[str, Any] = json.loads((kept / "told.json").read_text())
    return found


def test_a_dataset_is_read(kept: Path, told: dict[str, Any]) -> None:
    """Its manifest, and every row group of every split."""
    store = open_store(str(kept / "dataset"))
    published = manifest.read(store)
    assert published.dataset_id == told["dataset_id"]
    for split in SPLITS:
        reader = GroupReader(store, published, split)
        groups = [group_arrays(reader, group) for group in range(len(published.group_sizes(split)))]
        assert [len(group["label"]) for group in groups] == list(published.group_sizes(split))
        if split == "train":
            ids = np.sort(np.concatenate([group["row_id"] for group in groups]))
            assert [f"{i:016x}" for i in ids] == told["row_ids"]


def test_a_checkpoint_is_read(kept: Path, told: dict[str, Any]) -> None:
    """Its run JSON, its arrays by their digests, on the host and on a device."""
    saved = SavedSteps(kept / "run")
    assert saved.steps() == [told["step"]]
    run = saved.read_run(told["step"])
    assert (run.run_id, run.next_example, run.dataset_id) == (told["run_id"], told["next_example"], told["dataset_id"])
    assert run.skipped == tuple(map(tuple, told["skipped"]))
    assert run.metrics["log_loss"] == told["log_loss"]
    assert {path: row["digest"] for path, row in run.leaves.items()} == told["digests"]
    saved.verify(run.step)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = {p: jax.ShapeDtypeStruct(row["shape"], np.dtype(row["dtype"]), sharding=where) for p, row in run.leaves.items()}
    leaves = read_leaves(saved.address(run.step), run.leaves, target)
    assert int(leaves["step"]) == told["step"]
