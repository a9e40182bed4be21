"""Meshes, layouts and placement: the right axes, stated rules for what does not divide, bits that arrive unchanged."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mlprod.config import MeshConfig
from mlprod.errors import LayoutError
from mlprod.parallel.layouts import DATA, FSDP, FSDP_TENSOR, Placement, dims_of
from mlprod.parallel.mesh import axis_sizes, make_mesh
from mlprod.parallel.place import fetch, local_ranges, to_devices


def placement(layout: dict[str, tuple[str, ...]] = FSDP, **mesh: object) -> Placement:
    """A layout on the 8 devices."""
    return Placement(make_mesh(MeshConfig(**mesh), jax.devices()), layout)


def test_the_data_axis_fills_the_rest() -> None:
    """-1 takes what the others leave; several fsdp sizes are several axes."""
    assert axis_sizes(MeshConfig(fsdp=(2, 2)), 8) == {"slice": 1, "data": 2, "fsdp0": 2, "fsdp1": 2, "tensor": 1}
    assert axis_sizes(MeshConfig(), 1) == {"slice": 1, "data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=(3,)), MeshConfig(data=2), MeshConfig(fsdp=(16,)), MeshConfig(data=0)])
def test_a_mesh_that_does_not_fit_is_refused(mesh: MeshConfig) -> None:
    """Sizes, device count and the way out are named."""
    with pytest.raises(LayoutError, match=r"does not fit 8 device\(s\); set config.mesh.data=-1"):
        axis_sizes(mesh, 8)


def test_dims_split_or_stay_whole() -> None:
    """A dim is split when the axes divide it and replicated when they do not; unknown dims are replicated."""
    where = placement(FSDP_TENSOR, fsdp=(4,), tensor=2)
    assert where.sharding(("in", "out"), (8, 6)).spec == PartitionSpec(("fsdp",), ("tensor",))
    assert where.sharding(("in", "out"), (9, 6)).spec == PartitionSpec(None, ("tensor",))
    assert where.sharding(("vocab", "embed"), (12, 5)).spec == PartitionSpec(("fsdp",), None)
    assert placement(DATA).sharding(("in", "out"), (8, 8)).spec == PartitionSpec(None, None)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    """The batch, the devices and the two nearest sizes that work are named."""
    with pytest.raises(LayoutError, match=r"a batch of 100 does not divide over 8 devices .*; use 96 or 104"):
        placement().batch(100)


def test_dims_of_matches_exactly_one_row() -> None:
    """No row, or two, is an error with the path."""
    with pytest.raises(LayoutError, match="'a/b' matches 0 rows"):
        dims_of("a/b", {"a": ("in",)})
    with pytest.raises(LayoutError, match="'a' matches 2 rows"):
        dims_of("a", {"a": ("in",), ".": ("out",)})


@pytest.mark.parametrize("mesh", [{}, {"fsdp": (4,), "tensor": 2}, {"fsdp": (2, 2)}])
@pytest.mark.parametrize("layout", [FSDP, FSDP_TENSOR])
def test_a_batch_arrives_unchanged(mesh: dict[str, object], layout: dict[str, tuple[str, ...]]) -> None:
    """This process holds all rows once; what was put on the devices comes back bit for bit, in order."""
    where = placement(layout, **mesh)
    sharding = where.batch(16)
    ranges = local_ranges(sharding, 16)
    assert ranges == ((0, 16),)
    rows = {"x": np.arange(48, dtype=np.float32).reshape(16, 3), "id": np.arange(16, dtype=np.int32)}
    placed = to_devices(rows, sharding, ranges, 16)
    for name, values in fetch(placed).items():
        np.testing.assert_array_equal(values, rows[name])
    assert len(placed["x"].addressable_shards) == 8
