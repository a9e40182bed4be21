"""The named grid of devices."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mlprod.config import MeshConfig
from mlprod.errors import LayoutError

REST = -1  # a size of a config that takes the devices which the others leave


def axis_sizes(cfg: MeshConfig, num_devices: int, torus: tuple[int, ...] = ()) -> dict[str, int]:
    """Returns {axis name: size}, in mesh order; `fsdp` with several sizes becomes fsdp0, fsdp1, ...

    Args:
        torus: sizes of the devices' torus in a slice, of which fsdp=(-1,) makes one axis each where it takes the whole slice.

    Raises:
        LayoutError: the product of the sizes is not `num_devices`.
    """
    sizes, data = cfg.fsdp, cfg.data
    if sizes == (REST,):
        data = 1 if data == REST else data
        left = num_devices // max(cfg.slice * data * cfg.tensor, 1)
        sizes = torus if torus and math.prod(torus) == left else (max(left, 1),)
    fsdp = {"fsdp": sizes[0]} if len(sizes) == 1 else {f"fsdp{i}": n for i, n in enumerate(sizes)}
    others = cfg.slice * math.prod(sizes) * cfg.tensor
    data = num_devices // others if data == REST else data
    if data * others != num_devices or data < 1:
        told = f"slice={cfg.slice} x data={cfg.data} x fsdp={'x'.join(map(str, cfg.fsdp))} x tensor={cfg.tensor}"
        raise LayoutError(
            f"config.mesh: {told} does not fit {num_devices} device(s); set config.mesh.data=-1 to fill the rest, "
            f"or on CPU simulate more with --config.runtime.num_cpu_devices={others * max(cfg.data, 1)}"
        )
    return {"slice": cfg.slice, "data": data, **fsdp, "tensor": cfg.tensor}


def torus_of(devices: Sequence[jax.Device]) -> tuple[int, ...]:
    """Returns the sizes of the torus that a slice's chips make, without those of 1; () where devices have no place in one."""
    places = {tuple(device.coords) for device in devices if hasattr(device, "coords")}
    sizes = tuple(len(set(along)) for along in zip(*places, strict=True))
    return tuple(size for size in sizes if size > 1)


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh over `devices`, its axes automatic: the compiler places what the layout leaves open.

    Raises:
        LayoutError: the mesh does not fit the devices, or its `slice` not their TPU slices.
    """
    sizes = axis_sizes(cfg, len(devices), torus_of(devices))
    automatic = (AxisType.Auto,) * len(sizes)
    num_slices = len({device.slice_index for device in devices if device.platform == "tpu" and hasattr(device, "slice_index")})
    shape = tuple(sizes.values())
    if num_slices < 2:
        return Mesh(_grid(shape, devices), tuple(sizes), axis_types=automatic)
    if cfg.slice != num_slices:
        raise LayoutError(f"config.mesh.slice={cfg.slice} must be {num_slices}, the number of TPU slices that the devices are of")
    each = [[device for device in devices if device.slice_index == i] for i in range(num_slices)]
    grid = np.concatenate([_grid((1, *shape[1:]), members) for members in each])  # only `slice` crosses the network between them
    return Mesh(grid, tuple(sizes), axis_types=automatic)


def _grid(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns devices as an array of `shape`: on a TPU an axis lies along a dimension of the torus where sizes allow it."""
    if tuple(size for size in shape if size > 1) == torus_of(devices) != ():
        return np.array(sorted(devices, key=lambda device: tuple(device.coords)), object).reshape(shape)
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # no dimension of the torus, nor a product of some, has the size of an axis
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
