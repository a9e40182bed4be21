"""A run that begins from another's arrays: those and no others, verified, and refused where they do not fit."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mlprod.checkpoint.saved import SavedSteps
from mlprod.checkpoint.store import Store
from mlprod.config import Config, MeshConfig
from mlprod.errors import CheckpointError, ConfigError
from mlprod.ledger import Ledger
from mlprod.plan import make_plan
from mlprod.resume import start
from mlprod.state import TrainState, flatten
from mlprod.train import train
from tests.conftest import MakeConfig, smoke_config


@pytest.fixture(scope="module")
def trained(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with steps 7 and 9 saved. Shared: copy it."""
    cfg = smoke_config(csv, dataset, tmp_path_factory.mktemp("trained") / "run", steps=9)
    train(cfg, jax.devices()[:1])
    return cfg


def arrays(state: TrainState) -> dict[str, bytes]:
    """Every array's bytes by path."""
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(state).items()}


def saved(cfg: Config, step: int) -> dict[str, bytes]:
    """Those of a saved step."""
    plan = make_plan(cfg, jax.devices()[:1])
    return arrays(SavedSteps(Path(cfg.workdir)).restore(step, plan.abstract, plan.where)[0])


def begun(make_config: MakeConfig, workdir: str, devices: list[jax.Device], **changed: Any) -> dict[str, bytes]:
    """The arrays with which a new run begins."""
    cfg = make_config(workdir, **changed)
    plan = make_plan(cfg, devices)
    with Store(Path(cfg.workdir), cfg.checkpoint) as store:
        state, run = start(plan, store, Ledger())
    assert (run.step, run.next_example) == (0, 0)
    return arrays(state)


@pytest.mark.parametrize("step", [-1, 7])
@pytest.mark.parametrize("parts", [("params", "tables", "model_state"), ("params/hidden/0",), ("tables",)], ids=str)
def test_only_the_named_parts_are_taken(step: int, parts: tuple[str, ...], trained: Config, make_config: MakeConfig) -> None:
    """On other devices too; optimizer, step and all else are those of a run from scratch."""
    given = {"workdir": trained.workdir, "step": step, "parts": parts}
    mesh = MeshConfig(fsdp=(8,))
    found = begun(make_config, "new", jax.devices(), init=given, mesh=mesh, seed=5)
    fresh = begun(make_config, "fresh", jax.devices(), mesh=mesh, seed=5)
    wanted = saved(trained, 9 if step < 0 else step)
    taken = {path for path in wanted if any(f"{path}/".startswith(f"{part}/") for part in parts)}
    assert taken
    assert found == {path: (wanted if path in taken else fresh)[path] for path in wanted}


def test_a_damaged_step_is_not_taken(trained: Config, make_config: MakeConfig, tmp_path: Path) -> None:
    """The one before is; when all are damaged, or the one that was asked for, the run stops. Nothing is moved."""
    other = dataclasses.replace(trained, workdir=str(shutil.copytree(trained.workdir, tmp_path / "other")))
    harm(Path(other.workdir), 9)
    found = begun(make_config, "new", jax.devices()[:1], init={"workdir": other.workdir})
    assert found["params/head/kernel"] == saved(trained, 7)["params/head/kernel"]
    with pytest.raises(CheckpointError, match="00000009 is damaged"):
        begun(make_config, "asked", jax.devices()[:1], init={"workdir": other.workdir, "step": 9})
    harm(Path(other.workdir), 7)
    with pytest.raises(CheckpointError, match="00000007 is damaged"):
        begun(make_config, "none", jax.devices()[:1], init={"workdir": other.workdir})
    assert SavedSteps(Path(other.workdir)).steps() == [7, 9]


def harm(workdir: Path, step: int) -> None:
    """Zeroes a step's array data."""
    for file in (workdir / "checkpoints" / f"{step:08d}" / "state").rglob("d/*"):
        file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    "init, told",
    [
        (
            {"parts": ("params/hidden/7",)},
            r"params/hidden/7.* do not fit config.model: there are none; the state has model_state, optim, params",
        ),
        ({"step": 3}, r"config.init.workdir='.*' has no saved step 3; it has \[7, 9\]"),
        ({"workdir": "nowhere"}, "config.init.workdir='nowhere' has no saved step; it has \\[\\]"),
    ],
)
def test_what_is_not_there_is_told(init: dict[str, Any], told: str, trained: Config, make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=told):
        begun(make_config, "new", jax.devices()[:1], init={"workdir": trained.workdir, **init})


def test_arrays_that_do_not_fit_are_listed_by_path(trained: Config, make_config: MakeConfig) -> None:
    """A wider layer: its own arrays and the next one's."""
    model = dataclasses.replace(make_config().model, hidden=(16, 24))
    with pytest.raises(
        ConfigError, match=r"params/head/kernel is float32\[16, 1\], the config says float32\[24, 1\]; params/hidden/1/bias"
    ):
        begun(make_config, "new", jax.devices()[:1], init={"workdir": trained.workdir}, model=model)


def test_the_first_saved_step_tells_where_it_began(trained: Config, make_config: MakeConfig) -> None:
    """And a resume does not begin again."""
    cfg = make_config("new", steps=3, init={"workdir": trained.workdir})
    train(cfg, jax.devices()[:1])
    run = SavedSteps(Path(cfg.workdir)).read_run(3)
    assert run.config["init"]["workdir"] == trained.workdir
    with pytest.raises(ConfigError, match=r"init\.workdir="):
        train(dataclasses.replace(cfg, steps=4, init=dataclasses.replace(cfg.init, workdir="")), jax.devices()[:1])
