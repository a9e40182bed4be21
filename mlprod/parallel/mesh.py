"""The named grid of devices."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from mlprod.config import MeshConfig
from mlprod.errors import LayoutError


def axis_sizes(cfg: MeshConfig, num_devices: int) -> dict[str, int]:
    """Returns {axis name: size}, in mesh order; `fsdp` with several sizes becomes fsdp0, fsdp1, ...

    Raises:
        LayoutError: the product of the sizes is not `num_devices`.
    """
    fsdp = {"fsdp": cfg.fsdp[0]} if len(cfg.fsdp) == 1 else {f"fsdp{i}": n for i, n in enumerate(cfg.fsdp)}
    others = cfg.slice * math.prod(cfg.fsdp) * cfg.tensor
    data = num_devices // others if cfg.data == -1 else cfg.data
    if data * others != num_devices or data < 1:
        told = f"slice={cfg.slice} x data={cfg.data} x fsdp={'x'.join(map(str, cfg.fsdp))} x tensor={cfg.tensor}"
        raise LayoutError(
            f"config.mesh: {told} does not fit {num_devices} device(s); set config.mesh.data=-1 to fill the rest, "
            f"or on CPU simulate more with --config.runtime.num_cpu_devices={others * max(cfg.data, 1)}"
        )
    return {"slice": cfg.slice, "data": data, **fsdp, "tensor": cfg.tensor}


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device]) -> Mesh:
    """Returns the mesh over `devices`, its axes automatic: the compiler places what the layout leaves open."""
    sizes = axis_sizes(cfg, len(devices))
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices)
