"""How arrays are split: tables from dim names to mesh axes.

Promise: a dim is split over the axes its layout names when they divide it, and replicated otherwise: never padded, never by
accident; `check` prints which.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlprod.errors import LayoutError

Layout = Mapping[str, tuple[str, ...]]  # dim name -> mesh axes; "fsdp" stands for all of fsdp, fsdp0, fsdp1, ...

DATA: Layout = {"batch": ("slice", "data", "fsdp", "tensor")}
FSDP: Layout = {
    "batch": ("slice", "data", "fsdp", "tensor"), "in": ("fsdp",), "inner": ("fsdp",), "vocab": ("fsdp",), "token": ("fsdp",),
}  # fmt: skip
FSDP_TENSOR: Layout = {
    "batch": ("slice", "data", "fsdp"), "in": ("fsdp",), "out": ("tensor",), "inner": ("tensor",), "back": ("fsdp",),
    "vocab": ("fsdp",), "token": ("tensor",), "width": ("fsdp",), "sequence": ("tensor",),
}  # fmt: skip
LAYOUTS = {"data": DATA, "fsdp": FSDP, "fsdp_tensor": FSDP_TENSOR}


@dataclass(frozen=True, slots=True)
class Placement:
    """A mesh and the layout of arrays on it."""

    mesh: Mesh
    layout: Layout

    def axes(self, dim: str) -> tuple[str, ...]:
        """Returns the mesh axes that a dim is split over."""
        names = self.layout.get(dim, ())
        return tuple(
            axis
            for name in names
            for axis in self.mesh.axis_names
            if axis == name or (name == "fsdp" and axis.startswith("fsdp"))
        )

    def split(self, dim: str, size: int) -> tuple[str, ...]:
        """Returns the axes that a dim of `size` is split over: all of the layout's, or none where they don't divide it."""
        axes = self.axes(dim)
        return axes if size % math.prod(self.mesh.shape[a] for a in axes) == 0 else ()

    def sharding(self, dims: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        """Returns the sharding of an array of `shape` with these dim names."""
        spec = [self.split(dim, size) or None for dim, size in zip(dims, shape, strict=True)]
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def replicated(self) -> NamedSharding:
        """Returns the sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, global_batch: int) -> NamedSharding:
        """Returns the sharding of a batch's first dim.

        Raises:
            LayoutError: the devices that split the batch don't divide it.
        """
        axes = self.axes("batch")
        parts = math.prod(self.mesh.shape[a] for a in axes)
        if global_batch % parts:
            below, above = global_batch // parts * parts, -(-global_batch // parts) * parts
            raise LayoutError(
                f"a batch of {global_batch} does not divide over {parts} devices ({' x '.join(axes)}); "
                f"use {f'{below} or ' if below else ''}{above}"
            )
        return NamedSharding(self.mesh, PartitionSpec(axes))


def dims_of(path: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the dim names of the parameter `path`, by the one pattern of `table` that matches it whole.

    Raises:
        LayoutError: no pattern matches, or several.
    """
    hits = [dims for pattern, dims in table.items() if re.fullmatch(pattern, path)]
    if len(hits) != 1:
        raise LayoutError(f"parameter {path!r} matches {len(hits)} rows of the model's DIMS; it must match exactly one")
    return hits[0]
