"""Devices that should hold the same values are compared before a save."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlprod.checkpoint.replicas import check_replicas
from mlprod.checkpoint.store import Store
from mlprod.errors import CheckpointError
from mlprod.plan import Plan
from tests.checkpoint.saved import ALL, at, fresh, run_state

SHAPE = (8, 4)
SPECS = [PartitionSpec(), PartitionSpec("a"), PartitionSpec(None, "b"), PartitionSpec("b", None)]


def placed(spec: PartitionSpec, wrong: int = -1, dtype: str = "float32") -> jax.Array:
    """An array over 8 devices, a bit of what device number `wrong` holds flipped."""
    sharding = NamedSharding(jax.make_mesh((4, 2), ("a", "b"), devices=jax.devices()), spec)
    values, parts = np.arange(32, dtype=dtype).reshape(SHAPE), []
    for number, (device, index) in enumerate(sharding.addressable_devices_indices_map(SHAPE).items()):
        part = values[index].copy()
        if number == wrong:
            part.reshape(-1).view(np.uint8)[-3] ^= 16
        parts.append(jax.device_put(part, device))
    return jax.make_array_from_single_device_arrays(SHAPE, sharding, parts)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equal_copies_are_equal(spec: PartitionSpec) -> None:
    """Nothing is told of arrays that are whole on every device, or split over one axis and copied over the other."""
    check_replicas({"x": placed(spec), "y": placed(spec, dtype="int8")})


@pytest.mark.parametrize("wrong", range(8))
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_flipped_bit_on_one_device_is_told(spec: PartitionSpec, wrong: int) -> None:
    """One flipped bit on any one device is told with the array's path; the others beside it are not named."""
    with pytest.raises(CheckpointError, match=r"model/w on .* and on ") as told:
        check_replicas({"model/b": placed(spec), "model/w": placed(spec, wrong)})
    assert "model/b" not in str(told.value)


def test_parts_that_are_held_once_are_not_compared() -> None:
    """Where every device holds another part there is nothing to compare, whatever the values."""
    spec = PartitionSpec("a", "b")
    for wrong in range(8):
        check_replicas({"x": placed(spec, wrong)})


def test_nothing_is_saved_where_devices_differ(plan: Plan, tmp_path: Path) -> None:
    """A save of a state of which one device holds another step number is refused, and leaves no step."""
    state = at(fresh(plan), 1)
    parts = [jax.device_put(np.int32(2 if i == 5 else 1), s.device) for i, s in enumerate(state.step.addressable_shards)]
    torn = jax.make_array_from_single_device_arrays((), state.step.sharding, parts)
    with Store(tmp_path, ALL) as store:
        with pytest.raises(CheckpointError, match="do not: step on "):
            store.save(state._replace(step=torn), run_state(1))
        assert not store.saved.steps()
