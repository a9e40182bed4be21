"""Bytes that a transformer's step sends: those of the closed form, collective by collective, so that a regression is a number."""

import dataclasses
import math

import jax
import pytest

from mlprod.config import MeshConfig, PrecisionConfig
from mlprod.parallel.gather import policy_of
from mlprod.parallel.least import Least, least_bytes
from mlprod.parallel.traffic import Traffic, traffic
from mlprod.state import flatten
from tests.language import LENGTH, SMALL, Trainer, shapes_of, trainer

ROWS = 16
MIB = 1 << 20


def sent(made: Trainer) -> Traffic:
    """What a device sends in a compiled step."""
    return traffic(made.update.lower(*shapes_of(made, ROWS, LENGTH)).compile().as_text(), made.placement.mesh.size)


def fewest(made: Trainer, parts: int = 1) -> Least:
    """The closed form."""
    arrays, where = flatten(made.abstract.params), flatten(made.where.params)
    gathers = {path: made.model.outline.gathers(path, parts) for path in arrays}
    rows = ROWS // math.prod(made.placement.mesh.shape[axis] for axis in made.policy.batch)
    return least_bytes(arrays, where, made.policy, gathers, parts, made.model.outline.exchanged(rows))


CASES = {
    "data8": (MeshConfig(fsdp=(1,), layout="data"), 1),
    "fsdp8": (MeshConfig(data=1, fsdp=(8,)), 1),
    "fsdp4x2": (MeshConfig(data=1, fsdp=(4, 2)), 1),
    "slice2-fsdp4": (MeshConfig(slice=2, data=1, fsdp=(4,)), 1),
    "fsdp4-tensor2": (MeshConfig(data=1, fsdp=(4,), tensor=2, layout="fsdp_tensor"), 1),
    "fsdp4-tensor2, 2 microbatches": (MeshConfig(data=1, fsdp=(4,), tensor=2, layout="fsdp_tensor"), 2),
}


@pytest.mark.parametrize(("mesh", "parts"), CASES.values(), ids=CASES)
def test_a_step_sends_what_it_must(mesh: MeshConfig, parts: int) -> None:
    """Within 1% of the closed form: what is more are norms, counts and the gradient's length."""
    remat = "collectives" if mesh.tensor > 1 else "full"
    made = trainer(dataclasses.replace(SMALL, remat=remat), mesh, jax.devices(), microbatches=parts)
    found, least = sent(made), fewest(made, parts)
    assert not found.unknown_loops
    assert 1.0 <= found.wire_bytes / least.total < 1.01, (found, least)


def test_the_closed_form_of_one_array() -> None:
    """A weight of 1 MiB numbers over fsdp 4, data 2: gathered twice in bfloat16, summed in float32."""
    made = trainer(mesh=MeshConfig(data=2, fsdp=(4,)), devices=jax.devices())
    where = {"w": made.placement.sharding(("in", "out"), (1024, 1024))}
    policy = policy_of(where, ("slice", "data", "fsdp", "tensor"), (), "bfloat16", (), "float32")
    found = least_bytes({"w": jax.ShapeDtypeStruct((1024, 1024), "float32")}, where, policy, {"w": 2}, 1, 0)
    assert found == Least(weights=2 * 2 * MIB * 3 / 4, gradients=4 * MIB * 3 / 4 + 2 * 4 * (MIB / 4) / 2, activations=0.0)


def test_the_compilers_own_partition_sends_more() -> None:
    """What the policy is for: without it the same step sends a third more at least."""
    mesh = MeshConfig(data=1, fsdp=(8,))
    ours, theirs = (trainer(SMALL, mesh, jax.devices(), spread=spread) for spread in (True, False))
    assert sent(theirs).wire_bytes > 1.3 * sent(ours).wire_bytes


def test_bfloat16_halves_the_closed_form() -> None:
    """Weights, gradients and activations alike."""
    mesh = MeshConfig(data=1, fsdp=(4,), tensor=2, layout="fsdp_tensor")
    half = fewest(trainer(mesh=mesh, devices=jax.devices(), precision=PrecisionConfig(compute="bfloat16")))
    assert half.total == fewest(trainer(mesh=mesh, devices=jax.devices())).total / 2
