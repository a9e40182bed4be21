"""What is restored is what was saved, bit for bit, or that step is refused and the one before is used."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprod.checkpoint import run_state as run_states
from mlprod.checkpoint.leaves import digests, leaf_table
from mlprod.checkpoint.run_state import Damaged
from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig, MeshConfig
from mlprod.errors import CheckpointError, ConfigError
from mlprod.plan import Plan, make_plan
from mlprod.state import flatten
from mlprod.train import train
from tests.checkpoint.saved import Saved, assert_equal_bits, at, data_files, fresh, run_state
from tests.conftest import MakeConfig, smoke_config


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(fsdp=(8,)), MeshConfig(fsdp=(2, 2), tensor=2, layout="fsdp_tensor")])
def test_restores_onto_any_layout(mesh: MeshConfig, saved: Saved, make_config: MakeConfig) -> None:
    """The newest step comes back bit for bit, with the target's shardings, on 1 device's layout and on others."""
    plan = make_plan(make_config(mesh=mesh), jax.devices())
    found = saved[0].restore_newest(plan.abstract, plan.where)
    assert found is not None
    assert found[1].step == 3
    assert_equal_bits(found[0], saved[1][3])
    for path, leaf in flatten(found[0]).items():
        assert leaf.sharding.is_equivalent_to(flatten(plan.where)[path], leaf.ndim)


def test_digests_do_not_depend_on_the_layout(plan: Plan, make_config: MakeConfig) -> None:
    """One device and eight give the same digest of every array."""
    one = make_plan(make_config(), jax.devices()[:1])
    assert digests(flatten(fresh(plan))) == digests(flatten(fresh(one)))


def test_a_flipped_bit_in_the_data_is_harmless_or_refused(saved: Saved, plan: Plan) -> None:
    """A flipped bit in any data file is either harmless or refuses the step; never other values."""
    store, kept = saved
    refused = 0
    for file in data_files(store, 3):
        whole = file.read_bytes()
        for i in range(len(whole) // 6, len(whole), max(1, len(whole) // 3)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 16]) + whole[i + 1 :])
            try:
                state, _ = store.saved.restore(3, plan.abstract, plan.where)
            except Damaged:
                refused += 1
            else:
                assert_equal_bits(state, kept[3])
        file.write_bytes(whole)
    assert refused


def test_the_number_of_a_damaged_step_is_free_again(saved: Saved, plan: Plan) -> None:
    store, _ = saved
    for file in data_files(store, 3):
        file.write_bytes(file.read_bytes()[:-10])
    assert store.restore_newest(plan.abstract, plan.where) is not None
    store.save(at(fresh(plan), 3), run_state(3))
    store.finish()
    assert store.saved.steps() == [1, 2, 3]


def test_a_changed_run_json_refuses_the_step(saved: Saved, plan: Plan) -> None:
    """A run JSON whose text was changed, or that is another step's, is refused."""
    store, _ = saved
    path = store.saved.root / "00000003" / "run" / "metadata"
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "text": body["text"].replace('"next_example":192', '"next_example":128')}))
    with pytest.raises(Damaged, match="SHA-256"):
        store.saved.read_run(3)
    path.write_text((store.saved.root / "00000002" / "run" / "metadata").read_text())
    with pytest.raises(Damaged, match="speaks of step 2"):
        store.saved.read_run(3)
    found = store.restore_newest(plan.abstract, plan.where)
    assert found is not None
    assert found[1].step == 2


def test_swapped_arrays_are_refused(saved: Saved, plan: Plan) -> None:
    """The arrays of another step under this step's run JSON are refused."""
    store, _ = saved
    shutil.rmtree(store.saved.root / "00000003" / "state")
    shutil.copytree(store.saved.root / "00000002" / "state", store.saved.root / "00000003" / "state")
    with pytest.raises(Damaged, match="differ from what was saved"):
        store.saved.restore(3, plan.abstract, plan.where)


def test_strict_stops(saved: Saved, plan: Plan) -> None:
    """With `strict` a damaged newest step ends the run instead."""
    for file in data_files(saved[0], 3):
        file.write_bytes(b"")
    with (
        Store(saved[0].saved.root.parent, CheckpointConfig(strict=True)) as store,
        pytest.raises(CheckpointError, match=r"00000003 is damaged.*strict"),
    ):
        store.restore_newest(plan.abstract, plan.where)


def test_all_damaged_is_an_error_not_a_fresh_start(saved: Saved, plan: Plan) -> None:
    """When no step is good the run stops: it does not begin again in silence."""
    for step in (1, 2, 3):
        for file in data_files(saved[0], step):
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="all 3 saved steps"):
        saved[0].restore_newest(plan.abstract, plan.where)


def test_a_newer_format_is_refused(saved: Saved, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a newer format is named as such, not called damaged."""
    monkeypatch.setattr(run_states, "FORMAT", 0)
    with pytest.raises(CheckpointError, match="format 1, newer than 0"):
        saved[0].restore_newest(plan.abstract, plan.where)


def test_another_model_is_refused_by_path(saved: Saved, make_config: MakeConfig) -> None:
    """A config whose arrays differ is the user's mistake: arrays are named, the step stays."""
    plan = make_plan(make_config(model=dataclasses.replace(make_config().model, hidden=(16, 24))), jax.devices())
    with pytest.raises(ConfigError, match=r"params/head/kernel is float32\[16, 1\], the config says float32\[24, 1\]"):
        saved[0].restore_newest(plan.abstract, plan.where)
    assert saved[0].saved.steps() == [1, 2, 3]


@pytest.mark.parametrize(
    "leaf, why",
    [
        (jax.random.key(0), "random key"),
        (jnp.zeros(3, jnp.complex64), "complex"),
        (np.zeros(3, np.int64), "64-bit"),
        (jnp.zeros((0, 3)), "empty"),
    ],
)
def test_what_cannot_be_saved_exactly_is_refused_before_the_save(leaf: jax.Array, why: str) -> None:
    """Typed keys, complex, 64-bit and empty arrays, and names with dots, are refused by path."""
    with pytest.raises(CheckpointError, match=f"'params/a'.*{why}"):
        leaf_table({"params": {"a": leaf}})
    with pytest.raises(CheckpointError, match="named with"):
        leaf_table({"params": {"a.b": jnp.zeros(3)}})


def test_a_save_whose_folder_vanished_is_an_error(plan: Plan, tmp_path: Path) -> None:
    """A folder removed after a save began is found by the next look, with the step's name."""
    with Store(tmp_path / "gone", CheckpointConfig()) as store:
        store.save(at(fresh(plan), 1), run_state(1))
        store._manager.wait_until_finished()
        shutil.rmtree(store.saved.root)
        with pytest.raises(CheckpointError, match="step 1 was being saved and is not below"):
            store.check()


@pytest.fixture(scope="module")
def two_steps(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps. Shared: copy it."""
    cfg = smoke_config(csv, dataset, tmp_path_factory.mktemp("two") / "run", steps=2)
    train(cfg, jax.devices()[:1])
    return Path(cfg.workdir)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"seed": 1}, "seed=0, now 1"),
        ({"loader": {"num_lanes": 8}}, "loader.num_lanes=16, now 8"),
        ({"loader": {"window_rows": 2048}}, "loader.window_rows=1024, now 2048"),
        ({"loader": {"global_batch": 128}}, "loader.global_batch=64, now 128"),
    ],
)
def test_a_resume_that_would_not_be_the_same_run_is_refused(
    changed: dict[str, object], told: str, two_steps: Path, make_config: MakeConfig
) -> None:
    """Seed, batch, lanes and window must stay; the field and both values are named."""
    cfg = make_config(steps=2, **changed)
    shutil.copytree(two_steps, cfg.workdir)
    with pytest.raises(ConfigError, match=told):
        train(cfg, jax.devices()[:1])


def test_what_may_change_may_change(two_steps: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """More steps and another learning rate go on, and the promise printed is the weaker one, with what changed."""
    cfg = make_config(steps=4, optim={"peak_lr": 1e-4})
    shutil.copytree(two_steps, cfg.workdir)
    train(cfg, jax.devices()[:1])
    told = capsys.readouterr().err
    assert "at step 2 of 4: the same examples in the same order" in told
    assert "optim.peak_lr 0.01 -> 0.0001" in told
