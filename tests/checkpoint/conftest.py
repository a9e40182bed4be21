"""A small run's state on 8 devices, saved thrice, and what was saved."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from mlprod.checkpoint.store import Store
from mlprod.config import MeshConfig
from mlprod.plan import Plan, make_plan
from mlprod.state import flatten
from tests.checkpoint.saved import ALL, Kept, Saved, at, fresh, run_state
from tests.conftest import smoke_config


@pytest.fixture(scope="session")
def plan(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The smoke run on 8 devices, its parameters split."""
    return make_plan(smoke_config(csv, dataset, tmp_path_factory.mktemp("plan"), mesh=MeshConfig(fsdp=(8,))), jax.devices())


@pytest.fixture(scope="session")
def saved_once(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    """A folder with steps 1, 2 and 3, and what was saved in each as {path: array}. Shared: copy it."""
    kept, folder = {}, tmp_path_factory.mktemp("saved")
    with Store(folder, ALL) as store:
        for step in (1, 2, 3):
            state = at(fresh(plan, seed=step), step)
            kept[step] = {path: np.asarray(leaf) for path, leaf in flatten(state).items()}
            store.save(state, run_state(step))
    return folder, kept


@pytest.fixture
def saved(saved_once: tuple[Path, Kept], tmp_path: Path) -> Iterator[Saved]:
    """A store of the test's own with steps 1, 2 and 3, and what was saved in each."""
    shutil.copytree(saved_once[0], tmp_path / "saved")
    with Store(tmp_path / "saved", ALL) as store:
        yield store, saved_once[1]
