"""How many bytes a run needs on each device, and what would save some; known from shapes and layout, before anything compiles.

Promise: parameters, optimizer and batches are exact, with what a TPU pads. Activations are what the backward pass keeps of
the forward one as traced, without what the compiler computes again or keeps in another form: an estimate, as are weights that are
gathered where they are used.
Price: two traces of the model. What one step of the program needs for a moment besides is the compiler's to say
(`check --topology`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mlprod.config import MeshConfig
from mlprod.errors import ConfigError
from mlprod.parallel.chips import CHIPS, padded_bytes
from mlprod.parallel.layouts import LAYOUTS, Placement, dims_of
from mlprod.parallel.mesh import make_mesh
from mlprod.plan import Plan, abstract_batch, policy_for
from mlprod.state import TrainState, define_model, flatten, shardings


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Bytes of a run on one device."""

    parameters: int
    tables: int
    constants: int
    optimizer: int  # with the average of the parameters and the step's number
    gradients: int
    gathered: int  # an estimate
    activations: int  # an estimate
    batches: int  # in use and put on the device ahead

    @property
    def state(self) -> int:
        """What lives from step to step."""
        return self.parameters + self.tables + self.constants + self.optimizer

    @property
    def total(self) -> int:
        """All of them at once."""
        return self.state + self.gradients + self.gathered + self.activations + self.batches


@dataclass(frozen=True, slots=True)
class Saving:
    """A change of the config and the bytes that it saves on each device."""

    change: str
    bytes: int


def need(plan: Plan) -> Need:
    """Returns what a run needs on each device.

    Raises:
        ConfigError: the model fails on a batch of the dataset.
    """
    parts = _state_bytes(plan.abstract, plan.where)
    ahead = 1 + plan.cfg.loader.on_device
    copies = 2 if plan.cfg.optim.microbatches > 1 else 1  # of the gradient: the sum, and what is added to it
    return Need(
        **parts, gradients=copies * (parts["parameters"] + parts["tables"]), gathered=gathered_bytes(plan),
        activations=activation_bytes(plan), batches=ahead * batch_bytes(plan, plan.order.global_batch),
    )  # fmt: skip


def local_bytes(leaf: Any, sharding: NamedSharding) -> int:
    """Returns the bytes of an array on one device, with a TPU's padding where it is one."""
    local, itemsize = sharding.shard_shape(leaf.shape), leaf.dtype.itemsize
    if sharding.mesh.devices.flat[0].platform == "tpu":
        return padded_bytes(local, itemsize)
    return int(math.prod(local) * itemsize)


def _state_bytes(abstract: TrainState, where: TrainState) -> dict[str, int]:
    """Returns bytes on one device by the parts of `Need` that are the state's."""
    placed = flatten(where)
    sums = {"parameters": 0, "tables": 0, "constants": 0, "optimizer": 0}
    names = {"params": "parameters", "tables": "tables", "model_state": "constants"}
    for path, leaf in flatten(abstract).items():
        sums[names.get(path.split("/")[0], "optimizer")] += local_bytes(leaf, placed[path])
    return sums


def batch_bytes(plan: Plan, num_rows: int) -> int:
    """Returns the bytes on one device of one batch of `num_rows` rows."""
    return sum(local_bytes(leaf, leaf.sharding) for leaf in abstract_batch(plan, num_rows).values())


def gathered_bytes(plan: Plan) -> int:
    """Returns the bytes on one device of weights that are whole there while they are used, and of gradients as large: all of them
    at once, but of a stack one layer."""
    total = 0
    arrays, where = ({**flatten(tree.params), **flatten(tree.tables)} for tree in (plan.abstract, plan.where))
    for path, use in plan.policy.uses.items():
        parts = math.prod(where[path].mesh.shape[axis] for axes in use.split for axis in axes)
        if parts > 1:
            stacked = arrays[path].shape[0] if dims_of(path, plan.model.dims)[0] == "layer" else 1
            held = math.prod(where[path].shard_shape(arrays[path].shape)) // stacked
            total += 2 * parts * held * int(use.dtype.itemsize)
    return total


def activation_bytes(plan: Plan) -> int:
    """Returns the bytes on one device of what the backward pass keeps: what grows with the batch, from two sizes of it."""
    size = plan.order.global_batch // plan.cfg.optim.microbatches
    return _kept_bytes(plan, 2 * size) - _kept_bytes(plan, size)


def _batch_parts(plan: Plan) -> int:
    """Returns over how many devices a batch is split."""
    return int(math.prod(plan.placement.mesh.shape[axis] for axis in plan.placement.axes("batch")))


def _kept_bytes(plan: Plan, num_rows: int) -> int:
    """Returns the bytes on one device of what the loss's `vjp` carries from the forward to the backward pass.

    Raises:
        ConfigError: the model or its loss cannot be traced.
    """

    def kept(trained: dict[str, Any], model_state: Any, placed: Any, key: jax.Array) -> Any:
        batch = plan.model.named(placed)

        def mean_loss(trained: dict[str, Any]) -> jax.Array:
            module = plan.model.merge(trained["params"], trained["tables"], model_state, plan.policy)
            total, weight = module.loss(module(batch, rngs=nnx.Rngs(dropout=key)), batch)["loss"]
            mean: jax.Array = total / weight
            return mean

        return jax.vjp(mean_loss, trained)[1]

    trained = {"params": plan.abstract.params, "tables": plan.abstract.tables}
    whole, held = (
        PartitionSpec(),
        jax.tree.map(lambda where: where.spec, {"params": plan.where.params, "tables": plan.where.tables}),
    )
    on_device = plan.policy.on_each_device(kept, plan.placement.mesh, (held, whole, plan.policy.rows, whole), whole)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    batch = abstract_batch(plan, num_rows)
    try:
        leaves = jax.tree.leaves(jax.eval_shape(on_device, trained, plan.abstract.model_state, batch, key))
    except Exception as error:  # the user's own model: whatever it raises is theirs to read
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"config.model={type(plan.cfg.model).__name__} fails on this dataset's batches: {told}") from error
    parts = 1 if plan.policy.batch else _batch_parts(plan)  # as the devices see them, or as the compiler will split them
    return sum(int(math.prod(leaf.shape)) * int(leaf.dtype.itemsize) for leaf in leaves) // parts


def savings(plan: Plan, now: Need) -> Iterator[Saving]:
    """Yields what would need fewer bytes on each device, and by how many: another layout, precision, remat or batch."""
    if plan.placement.mesh.size > plan.cfg.mesh.slice:
        split = MeshConfig(slice=plan.cfg.mesh.slice, data=1, fsdp=(-1,))
        placement = Placement(make_mesh(split, list(plan.placement.mesh.devices.flat)), LAYOUTS["fsdp"])
        parts = _state_bytes(plan.abstract, shardings(plan.abstract, plan.model, placement))
        saved = now.state + now.gradients - sum(parts.values()) - parts["parameters"] - parts["tables"]
        if saved > 0:
            yield Saving("config.mesh.layout=fsdp, data=1, fsdp=-1: parameters split over all devices of a slice", saved)
    for change, other in _leaner(plan):
        less = now.activations + now.gathered - activation_bytes(other) - gathered_bytes(other)
        if less > 0:
            yield Saving(change, less)
    on_device, size = 1 + plan.cfg.loader.on_device, plan.order.global_batch
    more = 2 * plan.cfg.optim.microbatches
    less = now.activations // 2 - (now.gradients if more == 2 else 0)
    if size % (more * _batch_parts(plan)) == 0 and less > 0:
        yield Saving(f"config.optim.microbatches={more}: the same batch in smaller parts, slower", less)
    if size % (2 * _batch_parts(plan)) == 0:
        batches = on_device * (batch_bytes(plan, size) - batch_bytes(plan, size // 2))
        yield Saving(f"config.loader.global_batch={size // 2}, half of it: another run", now.activations // 2 + batches)
    if on_device > 2:
        yield Saving("config.loader.on_device=1", (on_device - 2) * batch_bytes(plan, size))


def _leaner(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Yields (change, plan) of what keeps less of the forward pass: half the precision, all of a block computed again."""
    if plan.cfg.precision.compute != "bfloat16":
        half = replace(plan.cfg.precision, compute="bfloat16")
        placement = plan.placement if plan.policy.batch else None
        yield "config.precision.compute=bfloat16: another run", replace(plan, policy=policy_for(half, plan.where, placement))
    if getattr(plan.cfg.model, "remat", "full") != "full":
        model = define_model(replace(plan.cfg.model, remat="full"), plan.features)
        yield "config.model.remat=full: slower", replace(plan, model=model)


def device_bytes(device: jax.Device) -> int | None:
    """Returns the memory of a device, or None where it is not known, as on a CPU."""
    for chip in CHIPS.values():
        if device.platform == "tpu" and device.device_kind == chip.kind:
            return int(chip.memory)
    told = device.memory_stats() if device.platform in ("gpu", "tpu") else None
    return int(told["bytes_limit"]) if told and "bytes_limit" in told else None
