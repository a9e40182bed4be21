"""What `check` says of bytes is what the compiler says and what a change saves; it compiles for slices that are not here."""

import dataclasses
import importlib.util
import os
from pathlib import Path

import jax
import pytest
from flax import nnx

from mlprod import check, cli, compiled, memory
from mlprod.config import Config, MeshConfig, PrecisionConfig
from mlprod.errors import ConfigError, LayoutError
from mlprod.memory import need, savings
from mlprod.models.mlp import MLP, MLPConfig
from mlprod.parallel.chips import CHIPS, padded_bytes, parse_slices
from mlprod.parallel.mesh import axis_sizes, torus_of
from mlprod.plan import abstract_batch, make_plan, update_of
from tests.conftest import MakeConfig
from tests.refused import argv, refused

LAYOUT_MESHES = {"two axes": MeshConfig(fsdp=(2, 2)), "tensor": MeshConfig(fsdp=(4,), tensor=2, layout="fsdp_tensor")}


@pytest.mark.parametrize("mesh", LAYOUT_MESHES.values(), ids=list(LAYOUT_MESHES))
def test_predicted_bytes_are_the_compilers(mesh: MeshConfig, make_config: MakeConfig) -> None:
    """To the byte: the state, which the step updates in place, and the state with one batch, its arguments."""
    plan = make_plan(make_config(mesh=mesh), jax.devices())
    batch = abstract_batch(plan, plan.order.global_batch)
    sizes = update_of(plan).lower(compiled.placed_state(plan), batch).compile().memory_analysis()
    now = need(plan)
    assert sizes.alias_size_in_bytes == now.state
    assert sizes.argument_size_in_bytes == now.state + memory.batch_bytes(plan, plan.order.global_batch)
    assert now.gradients == now.parameters + now.tables
    assert now.optimizer > 2 * now.gradients  # two moments, and counts


def test_activations_are_what_a_layer_keeps(make_config: MakeConfig) -> None:
    """The bytes of one more hidden unit, by how many rows a device has: its input of the next layer, and what dropout and the
    ReLU remember; they follow the batch, and the devices it is split over."""

    def bytes_of(units: int, batch: int, devices: int) -> int:
        model = MLPConfig(hidden=(units,), dropout=0.0)
        cfg = make_config(model=model, loader={"global_batch": batch, "window_rows": 1024}, mesh=MeshConfig(data=devices))
        return memory.activation_bytes(make_plan(cfg, jax.devices()[:devices]))

    more = bytes_of(17, 64, 1) - bytes_of(16, 64, 1)
    assert more >= 64 * 4
    assert more % 64 == 0
    assert bytes_of(17, 128, 1) - bytes_of(16, 128, 1) == 2 * more
    assert bytes_of(16, 64, 8) * 8 == bytes_of(16, 64, 1)


def apply(cfg: Config, change: str) -> Config:
    """Returns the config that a saving speaks of."""
    name = change.split("=")[0]
    if name == "config.mesh.layout":
        return dataclasses.replace(cfg, mesh=MeshConfig(layout="fsdp", data=1, fsdp=(-1,)))
    if name == "config.precision.compute":
        return dataclasses.replace(cfg, precision=PrecisionConfig(compute="bfloat16"))
    value = int(change.split("=")[1].split(",")[0])
    return dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, **{name.split(".")[-1]: value}))


def test_a_saving_saves_what_it_says(make_config: MakeConfig) -> None:
    """Each change is made, and the need counted again."""
    cfg = make_config(mesh=MeshConfig(layout="data"), loader={"on_device": 5})
    plan = make_plan(cfg, jax.devices())
    now, found = need(plan), list(savings(plan, need(plan)))
    assert [saving.change.split("=")[0] for saving in found] == [
        "config.mesh.layout", "config.precision.compute", "config.loader.global_batch", "config.loader.on_device",
    ]  # fmt: skip
    for saving in found:
        changed = need(make_plan(apply(cfg, saving.change), jax.devices()))
        assert saving.bytes == now.total - changed.total > 0, saving.change


def test_what_does_not_fit_is_refused_with_what_would_save(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device's memory is given here: a CPU's is not known. What is estimated alone is a warning."""
    plan = make_plan(make_config(mesh=MeshConfig(layout="data")), jax.devices())
    now = need(plan)
    for has, told in ((now.total, []), (now.total - 1, ["would save ", "warning: "])):
        monkeypatch.setattr(check, "device_bytes", lambda device, has=has: has)
        check.show(plan, 1)
        out = capsys.readouterr().out
        assert f"{has:,}" in out
        assert [word in out for word in ("would save ", "warning: ")] == [bool(told)] * 2
    monkeypatch.setattr(check, "device_bytes", lambda device: now.total - now.activations - 1)
    with pytest.raises(LayoutError, match=r"on each device, which has .*; see what would save"):
        check.show(plan, 1)
    assert "config.mesh.layout=fsdp" in capsys.readouterr().out


def words(csv: Path, dataset: Path, tmp_path: Path, *more: str) -> list[str]:
    """The command line of `check` on the smoke dataset."""
    paths = (f"--config.dataset={dataset}", f"--config.workdir={tmp_path}/run", f"--config.etl.source.path={csv}")
    return argv("check", *paths, *more)


def test_check_names_dims_and_bytes(
    csv: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter with the names of its dims, their split and its bytes on a device."""
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.run(words(csv, dataset, tmp_path, "--config.mesh.fsdp=-1")) == 0
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "params/hidden/1/kernel in=16 out=16 fsdp - 128" in lines
    assert "params/hidden/1/bias out=16 - 64" in lines
    assert "check: all right" in lines
    assert [line for line in lines if line.startswith("activations (estimate) ")]


@dataclasses.dataclass(kw_only=True, slots=True)
class BrokenConfig:
    """A model that is built and cannot be run."""

    def build(self, features: object, rngs: nnx.Rngs) -> nnx.Module:
        """Returns an MLP whose last layer does not fit."""
        model = MLP(MLPConfig(hidden=(4,)), features, rngs)
        model.head = nnx.Linear(5, 1, rngs=rngs)
        return model


def test_a_model_that_fails_on_a_batch_is_named(make_config: MakeConfig) -> None:
    """In one line, before anything compiles."""
    plan = make_plan(make_config(model=BrokenConfig()), jax.devices())
    with pytest.raises(ConfigError, match=r"config\.model=BrokenConfig fails on this dataset's batches: TypeError"):
        need(plan)


# ---- slices ------------------------------------------------------------------------------------------------------------


def test_one_axis_takes_the_rest_or_follows_the_torus() -> None:
    """fsdp=(-1,) is the devices that the others leave; a whole slice's torus makes an axis of each dimension."""
    assert axis_sizes(MeshConfig(fsdp=(-1,)), 8) == {"slice": 1, "data": 1, "fsdp": 8, "tensor": 1}
    assert axis_sizes(MeshConfig(fsdp=(-1,), data=2), 8) == {"slice": 1, "data": 2, "fsdp": 4, "tensor": 1}
    torus = axis_sizes(MeshConfig(fsdp=(-1,), slice=2), 32, (4, 4))
    assert torus == {"slice": 2, "data": 1, "fsdp0": 4, "fsdp1": 4, "tensor": 1}
    assert axis_sizes(MeshConfig(fsdp=(-1,), tensor=4), 16, (4, 4)) == {"slice": 1, "data": 1, "fsdp": 4, "tensor": 4}
    assert torus_of(jax.devices()) == ()
    with pytest.raises(LayoutError, match="does not fit 8"):
        axis_sizes(MeshConfig(fsdp=(-1,), data=3), 8)


def test_slices_have_names() -> None:
    """Of their version and shape."""
    found = parse_slices("v5p:4x4x8", 2)
    assert (found.name, found.num_chips, found.chip.kind) == ("v5p:4x4x8", 256, "TPU v5")
    assert [parse_slices(f"{name}:16x16", 1).num_chips for name, chip in CHIPS.items() if chip.dims == 2] == [256, 256]


REFUSED = {
    "an unknown chip": ("v9:4x4", 1, "--topology=v9:4x4: there is no chip 'v9'"),
    "no shape": ("v5e", 1, "there is no slice '' of v5e; there are 1x1, 2x2, "),
    "a shape that is none": ("v5e:3x5", 1, "there is no slice '3x5' of v5e"),
    "too many dims": ("v5e:4x4x4", 1, "there is no slice '4x4x4' of v5e"),
    "too few": ("v5p:4x4", 1, "there is no slice '4x4' of v5p; there are 2x2x1, "),
    "no slices": ("v5e:4x4", 0, "--num-slices=0 must be 1 or more"),
}


@pytest.mark.parametrize("name, number, told", REFUSED.values(), ids=list(REFUSED))
def test_slices_that_are_not_there(
    name: str, number: int, told: str, csv: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Are refused in one line, before a compiler is looked for."""
    refused(capsys, words(csv, dataset, tmp_path, f"--topology={name}", f"--num-slices={number}"), told)


def test_without_the_compiler_the_extra_is_named(
    csv: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install."""
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(capsys, words(csv, dataset, tmp_path, "--topology=v5e:4x4"), "pip install -c constraints.txt -e '.[tpu]'")


def test_a_tpu_pads_to_tiles() -> None:
    """As its compiler lays arrays out: the smaller of both orders of the last two dims."""
    f32 = {(): 512, (1,): 512, (256,): 1024, (1500,): 8192, (256, 256): 262144, (16, 1): 512, (4, 256): 4096, (5, 4): 2048}
    f32 |= {(18, 9): 8192, (98, 21): 12288, (3, 18, 9): 24576}
    assert {shape: padded_bytes(shape, 4) for shape in f32} == f32


HAS_COMPILER = importlib.util.find_spec("libtpu") is not None or Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file()


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the compiler of TPUs: pip install -e '.[tpu]', or TPU_LIBRARY_PATH")
def test_the_steps_compile_for_a_slice(csv: Path, dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both steps for 16 chips, one axis per torus dimension, with nothing else printed; the state is what was predicted."""
    assert cli.run(words(csv, dataset, tmp_path, "--topology=v5e:4x4", "--config.mesh.fsdp=-1")) == 0
    out, err = capfd.readouterr()
    assert err == ""
    told = " ".join(out.split())
    assert "fsdp0=4 x fsdp1=4 x tensor=1 on TPU v5 lite" in told
    assert "by the compiler (1.000)" in told
    assert [
        name for name in ("train step", "eval step", "bytes sent", "all-reduce", "flops", "estimated time") if name not in out
    ] == []
    assert out.splitlines()[-1] == "check: all right"
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the compiler of TPUs: pip install -e '.[tpu]', or TPU_LIBRARY_PATH")
def test_a_mesh_of_another_number_of_slices_is_refused(
    csv: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the child process, told as ever."""
    more = ("--topology=v5e:2x2", "--num-slices=2", "--config.mesh.fsdp=-1")
    refused(capsys, words(csv, dataset, tmp_path, *more), "config.mesh.slice=1 must be 2")
