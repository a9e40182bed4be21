"""Values leave the devices through one door, and a step takes them through it once."""

import ast
from typing import Any

import jax
import numpy as np
import pytest

from mlprod import train as story
from mlprod.parallel import place
from mlprod.parallel.place import fetch
from mlprod.step import SUMS, pack, unpack
from tests.conftest import MakeConfig
from tests.test_layers import TREES

DOOR = "mlprod.parallel.place"
OTHER_WAYS = {"device_get", "block_until_ready", "copy_to_host_async", "process_allgather", "item", "unsafe_buffer_pointer"}
OF_SHARDS = {"addressable_shards", "addressable_data"}  # copies that are compared: what they hold goes through the door too


def named(tree: ast.AST) -> set[str]:
    """The attributes that a tree uses and the names that it imports."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {a.name for i in imports for a in i.names}


def uses(names: set[str]) -> set[str]:
    """The modules of the package that use one of these names."""
    return {module for module, tree in TREES.items() if named(tree) & names}


def test_there_is_one_door() -> None:
    """No module but `place` asks a device for a value by a way of its own; hosts' numpy arrays have no such names."""
    assert uses(OTHER_WAYS) == {DOOR}
    assert uses(OF_SHARDS) == {"mlprod.checkpoint.replicas"}
    assert uses({"fetch"}) > {"mlprod.train", "mlprod.evaluate"}


def fetches(run: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the loop fetches while it takes these steps."""
    seen: list[Any] = []

    def counted(tree: Any) -> Any:
        seen.append(tree)
        return fetch(tree)

    with monkeypatch.context() as patch:
        patch.setattr(story, "fetch", counted)
        story.train(run, jax.devices()[:1])
    return seen


def test_a_step_fetches_one_array(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step, its sums, and nothing else."""
    seen = fetches(make_config(steps=6, checkpoint={"every": 0}, eval={"every": 0}), monkeypatch)
    assert [(type(words).__name__, words.shape, str(words.dtype)) for words in seen] == [("ArrayImpl", (7,), "uint32")] * 6


def test_sums_come_out_as_they_went_in() -> None:
    """Bit for bit, NaN and infinity too."""
    sums = {
        "loss": np.float32("nan"), "weight": np.float32("-inf"), "grad_norm": np.float32(1e-45), "rate": np.float32(-0.0),
        "bad": np.int32(-1), "ids": np.array([0xFFFFFFFF, 1], np.uint32),
    }  # fmt: skip
    found = unpack(fetch(jax.jit(pack)(sums)))
    assert list(found) == list(SUMS.names or ())
    assert {name: found[name].tobytes() for name in sums} == {name: value.tobytes() for name, value in sums.items()}


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_batch_is_on_the_devices_before_its_memory_is_used_again(num_devices: int) -> None:
    """The host's rows are given back at once: what is on the devices does not change with them."""
    mesh = jax.make_mesh((num_devices,), ("data",), devices=jax.devices()[:num_devices])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    put = place._placer(sharding, ((0, 512),), 512)
    for i in range(100):
        placed = put({"x": np.full((512, 32), i, np.float32)})
        other = np.full((512, 32), -1, np.float32)  # likely where the first was
        assert (fetch(placed["x"]) == i).all()
        assert (other == -1).all()
        assert placed["x"].sharding.is_equivalent_to(sharding, 2)


def test_the_search_can_find() -> None:
    """A call and an import are seen."""
    assert named(ast.parse("loss = jax.device_get(x)\ny = x.item()\nfrom jax import block_until_ready")) >= {
        "device_get",
        "item",
        "block_until_ready",
    }
