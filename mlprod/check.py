"""The verb `check`: everything that can be wrong with a run, before a device is paid for.

Promise: what `check` accepts, `train` starts; both make the same plan.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from mlprod import runtime
from mlprod.checkpoint.copies import Copies
from mlprod.config import Config
from mlprod.errors import LayoutError
from mlprod.order import batches_per_epoch, plan_epoch, reads_per_byte
from mlprod.parallel.place import Ranges, ranges_of
from mlprod.plan import Plan, make_plan
from mlprod.state import flatten, parameter_path

LARGE_BYTES = 1 << 20  # a parameter above this that every device holds whole is named


def layout_rows(plan: Plan) -> Iterator[tuple[str, tuple[int, ...], str, int, bool]]:
    """Yields (path, shape, split, bytes per device, whether every device holds it whole) of each array of the model."""
    where = flatten(plan.where)
    for path, leaf in flatten(plan.abstract).items():
        if not parameter_path(path) or path.startswith("optim/"):
            continue
        local = where[path].shard_shape(leaf.shape)
        yield path, leaf.shape, str(where[path].spec), math.prod(local) * leaf.dtype.itemsize, local == leaf.shape


def state_bytes(plan: Plan) -> tuple[int, int]:
    """Returns (bytes of the whole state, bytes of it on one device)."""
    where, whole, local = flatten(plan.where), 0, 0
    for path, leaf in flatten(plan.abstract).items():
        whole += math.prod(leaf.shape) * leaf.dtype.itemsize
        local += math.prod(where[path].shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return whole, local


def process_ranges(plan: Plan, num_processes: int) -> list[Ranges]:
    """Returns the row ranges of a training batch that each of `num_processes` processes reads, devices dealt in mesh order.

    Raises:
        LayoutError: the devices do not divide over so many processes.
    """
    devices = list(plan.placement.mesh.devices.flat)
    if num_processes < 1 or len(devices) % num_processes:
        raise LayoutError(
            f"--processes={num_processes} does not divide the mesh's {len(devices)} device(s); give a divisor, "
            f"or simulate the devices: --config.runtime.num_cpu_devices=N --config.runtime.platform=cpu"
        )
    each, batch = len(devices) // num_processes, plan.order.global_batch
    sharding = plan.placement.batch(batch)
    return [ranges_of(sharding, batch, devices[i : i + each]) for i in range(0, len(devices), each)]


def warnings(plan: Plan) -> Iterator[str]:
    """Yields what is allowed and yet likely to be a mistake."""
    if not plan.manifest.hash_order:
        ratio = 1 + plan.order.global_batch * plan.order.group_rows / plan.order.window_rows
        yield (
            f"{plan.cfg.dataset} is not stored in hash order: where it is sorted by the label, a batch's mean label varies about "
            f"{ratio:,.0f} times as much as a random batch's; build it by `mlprod etl`, or raise config.loader.window_rows"
        )


def facts(plan: Plan, num_processes: int) -> Iterator[tuple[str, str]]:
    """Yields (what, value) lines about a plan; `num_processes`: that the run will have."""
    order, sizes = plan.order, plan.manifest.group_sizes("train")
    per_epoch = batches_per_epoch(order, sizes)
    whole, local = state_bytes(plan)
    reads = reads_per_byte(plan_epoch(order, sizes, 0), process_ranges(plan, num_processes))
    rows = ", ".join(f"{name} {plan.manifest.num_rows(name):,}" for name in plan.manifest.splits)
    yield "dataset", f"{plan.cfg.dataset}, version {plan.manifest.version}, dataset_id {plan.manifest.dataset_id}"
    yield "rows", rows
    yield "steps", f"{plan.steps:,} ({plan.steps / per_epoch:.2f} epochs of {per_epoch:,} batches of {order.global_batch:,})"
    yield "order", f"seed {order.seed}, {order.num_lanes} lanes, windows of {order.window_rows:,} rows"
    yield "reads", f"{reads:.3f} reads per dataset byte with {num_processes} process(es)"
    yield (
        "mesh",
        " x ".join(f"{name}={size}" for name, size in plan.placement.mesh.shape.items()) + f" on {jax.devices()[0].device_kind}",
    )
    yield "layout", f"{plan.cfg.mesh.layout}: batch over {' x '.join(plan.placement.axes('batch'))}"
    yield "state", f"{whole / 1e6:.2f} MB in all, {local / 1e6:.2f} MB on each device"


def show(plan: Plan, num_processes: int) -> None:
    """Prints a plan and how its parameters are split; `num_processes`: that the run will have."""
    console = Console(highlight=False)
    told = Table(box=None, show_header=False)
    for what, value in facts(plan, num_processes):
        told.add_row(what, value)
    console.print(told)
    table = Table("parameter", "shape", "split over", "bytes/device")
    rows: list[Any] = list(layout_rows(plan))
    for path, shape, spec, size, _ in rows:
        table.add_row(path, str(shape), spec.removeprefix("PartitionSpec"), f"{size:,}")
    console.print(table)
    for path, shape, _, size, replicated in rows:
        if replicated and size > LARGE_BYTES and plan.placement.mesh.size > 1:
            console.print(f"note: {path} {shape} is whole on every device: no axis of the layout divides its dims")
    for warning in warnings(plan):
        console.print(f"warning: {warning}", soft_wrap=True)


def main(cfg: Config, options: argparse.Namespace) -> None:
    """The verb `check`: plans the run, prints the plan, exits 0 when `train` would start."""
    show(make_plan(cfg, jax.devices()), options.processes or jax.process_count())
    workdir = Path(cfg.workdir)
    runtime.check_writable(f"config.workdir={cfg.workdir!r}", workdir / "lease")
    if cfg.checkpoint.copies:
        Copies(cfg.checkpoint.copies).check_writable()
    print("check: all right")
