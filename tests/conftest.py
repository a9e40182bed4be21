"""The strict world: 8 simulated devices, no silent rank promotion; warnings are errors by pyproject.toml."""

import atexit
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same programs: the second time they come from this run's own folder.
COMPILED = tempfile.mkdtemp(prefix="mlprod-compiled-")
atexit.register(shutil.rmtree, COMPILED, ignore_errors=True)
os.environ["MLPROD_TEST_COMPILED"] = COMPILED
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

from mlprod.config import Config
from mlprod.etl.run import build
from mlprod.manifest import Manifest
from mlprod.recipe import run_file
from mlprod.store import open_store
from tests import rows

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "tests" / "recipes" / "smoke.py"

MakeConfig = Callable[..., Config]


def smoke_config(csv: Path, dataset: Path, workdir: Path, **changed: Any) -> Config:
    """Returns the smoke recipe on these paths; `changed`: fields, or sections as dicts: steps=5, loader={"threads": 1}."""
    cfg = run_file(str(RECIPE))
    source = dataclasses.replace(cfg.etl.source, path=str(csv))
    cfg = dataclasses.replace(cfg, dataset=str(dataset), workdir=str(workdir), etl=dataclasses.replace(cfg.etl, source=source))
    for name, value in changed.items():
        section = dataclasses.replace(getattr(cfg, name), **value) if isinstance(value, dict) else value
        cfg = dataclasses.replace(cfg, **{name: section})
    return cfg


@pytest.fixture(scope="session")
def csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke rows as a CSV file. Shared: do not change it."""
    return rows.write(tmp_path_factory.mktemp("rows") / "rows.csv")


@pytest.fixture(scope="session")
def dataset(csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke dataset, built. Shared: do not change it."""
    folder = tmp_path_factory.mktemp("dataset") / "smoke"
    build(smoke_config(csv, folder, folder / "run"))
    return folder


@pytest.fixture(scope="session")
def published(dataset: Path) -> Manifest:
    """The manifest of the smoke dataset."""
    from mlprod import manifest

    return manifest.read(open_store(str(dataset)))


@pytest.fixture
def make_config(csv: Path, dataset: Path, tmp_path: Path) -> MakeConfig:
    """Makes smoke configs on the shared dataset, with a workdir of the test's own."""
    return lambda workdir="run", **changed: smoke_config(csv, dataset, tmp_path / workdir, **changed)
