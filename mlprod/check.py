"""The verb `check`: everything that can be wrong with a run, before a device is paid for.

Promise: what `check` accepts, `train` starts; both make the same plan. With `--topology` it also compiles the run's steps for
a TPU slice: `topology.py`.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Column, Table

from mlprod import runtime
from mlprod.checkpoint.copies import Copies
from mlprod.checkpoint.saved import trained_on
from mlprod.config import Config
from mlprod.errors import LayoutError
from mlprod.memory import Need, device_bytes, local_bytes, need, savings
from mlprod.order import batches_per_epoch, plan_epoch, reads_per_byte
from mlprod.parallel.layouts import dims_of
from mlprod.parallel.place import Ranges, ranges_of
from mlprod.plan import Plan, make_plan
from mlprod.state import flatten, parameter_path

LARGE_BYTES = 1 << 20  # a parameter above this that every device holds whole is named


def layout_rows(plan: Plan) -> Iterator[tuple[str, str, str, int, bool]]:
    """Yields (path, named dims, split, bytes per device, whether every device holds it whole) of each array of the model."""
    where = flatten(plan.where)
    for path, leaf in flatten(plan.abstract).items():
        if not parameter_path(path) or path.startswith(("optim/", "average/")):
            continue
        names = dims_of(parameter_path(path), plan.model.dims)
        dims = " ".join(f"{name}={size}" for name, size in zip(names, leaf.shape, strict=True))
        whole = where[path].shard_shape(leaf.shape) == leaf.shape
        split = " ".join("x".join([axes] if isinstance(axes, str) else axes or "-") for axes in where[path].spec)
        yield path, dims, split, local_bytes(leaf, where[path]), whole


def memory_rows(now: Need) -> Iterator[tuple[str, int]]:
    """Yields (what, bytes on each device) of what a run needs."""
    yield "parameters", now.parameters
    yield "tables", now.tables
    yield "constants", now.constants
    yield "optimizer, average", now.optimizer
    yield "gradients", now.gradients
    yield "gathered weights (estimate)", now.gathered
    yield "activations (estimate)", now.activations
    yield "batches", now.batches
    yield "in all (estimate)", now.total


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
    reads = reads_per_byte(plan_epoch(order, sizes, 0), process_ranges(plan, num_processes))
    rows = ", ".join(f"{name} {plan.manifest.num_rows(name):,}" for name in plan.manifest.splits)
    yield "dataset", f"{plan.cfg.dataset}, version {plan.manifest.version}, dataset_id {plan.manifest.dataset_id}"
    yield "rows", rows
    yield "steps", f"{plan.steps:,} ({plan.steps / per_epoch:.2f} epochs of {per_epoch:,} batches of {order.global_batch:,})"
    yield "order", f"seed {order.seed}, {order.num_lanes} lanes, windows of {order.window_rows:,} rows"
    yield "reads", f"{reads:.3f} reads per dataset byte with {num_processes} process(es)"
    yield (
        "mesh",
        " x ".join(f"{name}={size}" for name, size in plan.placement.mesh.shape.items())
        + f" on {plan.placement.mesh.devices.flat[0].device_kind}",
    )
    yield "layout", f"{plan.cfg.mesh.layout}: batch over {' x '.join(plan.placement.axes('batch'))}"


def show(plan: Plan, num_processes: int) -> None:
    """Prints a plan, how its parameters are split, and what it needs; `num_processes`: that the run will have.

    Raises:
        LayoutError: the devices cannot hold the state, its gradients and the batches.
    """
    console = Console(highlight=False)
    told = Table(box=None, show_header=False)
    for what, value in facts(plan, num_processes):
        told.add_row(what, value)
    console.print(told)
    show_layout(console, plan)
    show_memory(console, plan)
    for warning in warnings(plan):
        console.print(f"warning: {warning}", soft_wrap=True)


def show_layout(console: Console, plan: Plan) -> None:
    """Prints every array of the model with its dims, their split and its bytes."""
    table = Table(
        Column("parameter", overflow="fold"),
        Column("dims", overflow="fold"),
        "split over",
        Column("bytes/device", justify="right"),
    )
    rows = list(layout_rows(plan))
    for path, dims, split, size, _ in rows:
        table.add_row(path, dims, split, f"{size:,}")
    console.print(table)
    for path, dims, _, size, replicated in rows:
        if replicated and size > LARGE_BYTES and plan.placement.mesh.size > 1:
            console.print(f"note: {path} ({dims}) is whole on every device: no axis of the layout divides its dims")


def show_memory(console: Console, plan: Plan) -> None:
    """Prints what the run needs on each device beside what a device has, and what would save bytes where that is too much.

    Raises:
        LayoutError: see `show`.
    """
    now, has = need(plan), device_bytes(plan.placement.mesh.devices.flat[0])
    table = Table("on each device", Column("bytes", justify="right"))
    for what, size in memory_rows(now):
        table.add_row(what, f"{size:,}")
    table.add_row("device", f"{has:,}" if has else "not known")
    console.print(table)
    if has is None or now.total <= has:
        return
    for saving in savings(plan, now):
        console.print(f"would save {saving.bytes:,} bytes on each device: {saving.change}", soft_wrap=True)
    surely = now.total - now.activations - now.gathered
    if surely > has:
        raise LayoutError(
            f"state, gradients and batches take {surely:,} bytes on each device, which has {has:,}; see what would save"
        )
    console.print(f"warning: {now.total:,} bytes may not fit into the device's {has:,}", soft_wrap=True)


def main(cfg: Config, options: argparse.Namespace) -> None:
    """The verb `check`: plans the run, prints the plan, exits 0 when `train` would start."""
    show(make_plan(cfg, jax.devices(), trained_on(cfg.workdir)), options.processes or jax.process_count())
    workdir = Path(cfg.workdir)
    runtime.check_writable(f"config.workdir={cfg.workdir!r}", workdir / "lease")
    if cfg.checkpoint.copies:
        Copies(cfg.checkpoint.copies).check_writable()
    print("check: all right")
