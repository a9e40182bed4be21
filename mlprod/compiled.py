"""The two steps of a run, compiled for its devices and read: bytes, collectives, operations, and how long a step may take.

Promise: the programs are those that `train` runs. Bytes are what the compiler says, collectives and memory traffic are read from
its program (`parallel/traffic.py`), operations are counted from the trace (`parallel/flops.py`): the compiler counts a
loop's body once and is often wrong by more. A time is an estimate from published peaks; nothing is measured.
Price: two compilations.

A step takes at least as long as the slowest of computing, memory and wire alone, and their sum where none overlaps another.
Latencies are in neither, so a small model's step takes longer; nor is what goes between slices over the network.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import jax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlprod.memory import need
from mlprod.parallel.chips import Chip
from mlprod.parallel.flops import flops
from mlprod.parallel.least import Least, least_bytes
from mlprod.parallel.traffic import Traffic, traffic
from mlprod.plan import Plan, abstract_batch, score_of, update_of
from mlprod.state import TrainState, flatten


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """A compiled step, for one device. Sizes in bytes, as the compiler gives them."""

    name: str
    arguments: int
    outputs: int
    aliased: int  # outputs that take the place of arguments
    temporaries: int
    code: int
    traffic: Traffic
    flops: float
    least: Least | None  # that a training step must send, where its collectives are ours

    @property
    def memory(self) -> int:
        """What it needs at once: arguments, outputs that take nobody's place, temporaries and code."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def compile_steps(plan: Plan) -> Iterator[Compiled]:
    """Yields the training step and the evaluation step, compiled for the plan's devices."""
    yield compile_training(plan)
    batch = abstract_batch(plan, plan.eval_order.global_batch)
    yield _compiled("eval", score_of(plan), placed_state(plan), batch, None)


def compile_training(plan: Plan) -> Compiled:
    """Returns the training step, compiled for the plan's devices."""
    batch = abstract_batch(plan, plan.order.global_batch)
    return _compiled("train", update_of(plan), placed_state(plan), batch, least(plan) if plan.policy.batch else None)


def least(plan: Plan) -> Least:
    """Returns the fewest bytes that a training step must send, of a model that `Spreads` over several devices."""
    arrays, where = ({**flatten(tree.params), **flatten(tree.tables)} for tree in (plan.abstract, plan.where))
    shape, parts = plan.placement.mesh.shape, plan.cfg.optim.microbatches
    rows = plan.order.global_batch // math.prod(shape[axis] for axis in plan.policy.batch)
    gathers = {path: plan.model.outline.gathers(path, parts) for path in arrays}
    return least_bytes(arrays, where, plan.policy, gathers, parts, plan.model.outline.exchanged(rows))


def placed_state(plan: Plan) -> TrainState:
    """Returns the state's shapes and dtypes with their shardings."""
    state: TrainState = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), plan.abstract, plan.where
    )
    return state


def _compiled(name: str, step: Any, state: TrainState, batch: dict[str, jax.ShapeDtypeStruct], least: Least | None) -> Compiled:
    traced = step.trace(state, batch)
    program = traced.lower().compile()
    sizes, devices = program.memory_analysis(), batch["label"].sharding.mesh.size
    return Compiled(
        name=name, arguments=sizes.argument_size_in_bytes, outputs=sizes.output_size_in_bytes,
        aliased=sizes.alias_size_in_bytes, temporaries=sizes.temp_size_in_bytes, code=sizes.generated_code_size_in_bytes,
        traffic=traffic(program.as_text(), devices), flops=flops(traced.jaxpr) / devices, least=least,
    )  # fmt: skip


def seconds(step: Compiled, chip: Chip) -> dict[str, float]:
    """Returns how long a step computes, reads and writes memory, and sends, each alone at the chip's peak."""
    return {
        "computing": step.flops / chip.flops,
        "memory": step.traffic.memory_bytes / chip.memory_rate,
        "wire": step.traffic.wire_bytes / chip.wire_rate,
    }


def facts(step: Compiled, chip: Chip, num_slices: int) -> Iterator[tuple[str, str]]:
    """Yields (what, value) lines about a compiled step, all for one chip."""
    yield "bytes", f"{step.memory:,} of the chip's {chip.memory:,.0f} ({step.memory / chip.memory:.2%})"
    yield "  arguments", f"{step.arguments:,}"
    yield "  outputs", f"{step.outputs:,}, of which {step.aliased:,} in the place of arguments"
    yield "  temporaries", f"{step.temporaries:,}"
    yield "  code", f"{step.code:,}"
    yield "bytes sent", f"{step.traffic.wire_bytes:,.0f}"
    if step.least and step.least.total:
        of = ", ".join(f"{field.name} {getattr(step.least, field.name):,.0f}" for field in fields(step.least))
        yield "  at least", f"{step.least.total:,.0f} ({of}); {step.traffic.wire_bytes / step.least.total:.3f} times as many"
    for each in step.traffic.collectives:
        yield f"  {each.kind}", f"{each.wire_bytes:,.0f} in {each.count:,}"
    yield "bytes read and written", f"{step.traffic.memory_bytes:,.0f}"
    yield "flops", f"{step.flops:,.0f}"
    alone = {name: 1e6 * value for name, value in seconds(step, chip).items()}
    yield "estimated time", f"{max(alone.values()):,.2f} us where all overlaps, {sum(alone.values()):,.2f} us where nothing does"
    yield from ((f"  {name}", f"{value:,.2f} us at the chip's peak") for name, value in alone.items())
    if step.traffic.unknown_loops:
        yield "loops", f"{step.traffic.unknown_loops} run nobody knows how often and count once"
    if num_slices > 1:
        yield "slices", "the estimate takes all bytes as sent within a slice; the network between slices is slower"


def show(plan: Plan, chip: Chip, num_slices: int) -> list[Compiled]:
    """Prints both steps, and what was predicted of the state beside what the compiler says; returns the steps."""
    console, steps = Console(highlight=False), list(compile_steps(plan))
    for step in steps:
        table = Table(f"{step.name} step", "on each chip", box=SIMPLE_HEAD, pad_edge=False)
        for what, value in facts(step, chip, num_slices):
            table.add_row(what, value)
        console.print(table)
    predicted, told = need(plan).state, steps[0].aliased
    console.print(f"state: {predicted:,} bytes predicted, {told:,} by the compiler ({told / predicted:.3f})", soft_wrap=True)
    return steps
