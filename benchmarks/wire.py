"""What a language model's step sends on a TPU slice beside the fewest bytes it must send, and the memory it takes: compiled here.

    python benchmarks/wire.py [--quick] [--json FILE]      # needs libtpu: pip install -e '.[tpu]'

Job: compiles training steps for TPU slices, without one, and reads the programs: bytes sent by layout, slice and form against
the closed form of `mlprod/parallel/least.py`; bytes of memory against what `check` predicts, for models of the shape of Llama 3
8B and 70B; and compile seconds of few and of many layers.
Promise: the steps are those that `train` runs, but for the forms that say otherwise: "compiler" leaves the partition to it (with
attention in plain operations: its kernel cannot be partitioned), "one axis" splits weights over one mesh axis of all chips.
How to read: "times" is bytes sent over the closed form's. Nothing is run, and nothing timed but the compiler.
Price: about 15 minutes on 2 cores; --quick (one slice, two layouts) 2 minutes.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mlprod.cli import TPU_COMPILER_ONLY, has_tpu_compiler

os.environ |= TPU_COMPILER_ONLY | {"JAX_PLATFORMS": "cpu"}  # read when jax is imported

from _figures import Figure, arguments, publish
from _language import language_plan
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlprod import runtime
from mlprod.compiled import Compiled, compile_training, least
from mlprod.config import MeshConfig, PrecisionConfig, RuntimeConfig
from mlprod.memory import Need, need
from mlprod.models.transformer import TransformerConfig
from mlprod.parallel.chips import parse_slices
from mlprod.parallel.gather import Policy
from mlprod.parallel.least import Least
from mlprod.plan import policy_for
from mlprod.topology import devices_of

SMALL = TransformerConfig(layers=4, width=2048, heads=16, kv_heads=16, head_width=128, hidden=5632)
LLAMA_8B = TransformerConfig(layers=32, width=4096, heads=32, kv_heads=8, head_width=128, hidden=14336, rope_base=5e5)
LLAMA_70B = TransformerConfig(layers=80, width=8192, heads=64, kv_heads=8, head_width=128, hidden=28672, rope_base=5e5)
SPLIT = MeshConfig(data=1, fsdp=(-1,))
SHARED = {
    "v5e:4x4": MeshConfig(data=1, fsdp=(4,), tensor=4, layout="fsdp_tensor"),
    "v5p:4x4x4": MeshConfig(data=1, fsdp=(4, 4), tensor=4, layout="fsdp_tensor"),
    "v6e:4x4": MeshConfig(data=1, fsdp=(4,), tensor=4, layout="fsdp_tensor"),
    "v5e:16x16": MeshConfig(data=1, fsdp=(16,), tensor=16, layout="fsdp_tensor"),
}
GOALS = {"fsdp": 1.02, "fsdp x tensor": 1.10}


@dataclass(frozen=True, kw_only=True)
class Try:
    """One program to compile."""

    slices: str
    layout: str
    form: str
    model: TransformerConfig = field(default_factory=lambda: SMALL)
    mesh: MeshConfig = field(default_factory=lambda: SPLIT)
    length: int = 2048
    num_ids: int = 32_000
    precision: PrecisionConfig = field(default_factory=lambda: PrecisionConfig(compute="bfloat16"))
    ours: bool = True  # our collectives, not the compiler's

    def compiled(self) -> tuple[Compiled, Least, Need, float]:
        """Returns the compiled step, its closed form, the predicted memory, and the seconds it took."""
        devices = devices_of(parse_slices(self.slices, 1))
        parts = len(devices) // self.mesh.tensor
        plan = language_plan(
            self.model, self.mesh, devices, rows=parts, length=self.length, num_ids=self.num_ids, precision=self.precision
        )
        fewest, predicted, began = least(plan), need(plan), time.monotonic()
        if not self.ours:
            plan = replace(plan, policy=policy_for(self.precision, plan.where, None))
            assert plan.policy.batch == Policy().batch
        return compile_training(plan), fewest, predicted, time.monotonic() - began


def tries(quick: bool) -> Iterator[Try]:
    """Yields what is compiled for bytes sent."""
    shared = replace(SMALL, remat="collectives")
    for slices in ["v5e:4x4"] if quick else SHARED:
        yield Try(slices=slices, layout="fsdp", form="an axis a dimension")
        yield Try(slices=slices, layout="fsdp x tensor", form="collectives kept", model=shared, mesh=SHARED[slices])
    if quick:
        return
    for slices, chips in (("v5e:4x4", 16), ("v5p:4x4x4", 64)):
        one = replace(SPLIT, fsdp=(chips,))
        yield Try(slices=slices, layout="fsdp", form="one axis", mesh=one)
        yield Try(slices=slices, layout="fsdp", form="compiler, one axis", mesh=one, length=2000, ours=False)
        yield Try(slices=slices, layout="fsdp", form="compiler, an axis a dimension", length=2000, ours=False)
    in_float32 = PrecisionConfig(compute="bfloat16", gradient_sum="float32")
    yield Try(slices="v5e:4x4", layout="fsdp", form="gradients summed in float32", precision=in_float32)
    yield Try(slices="v5e:4x4", layout="fsdp", form="nothing computed again", model=replace(SMALL, remat="none"))
    yield Try(slices="v5e:4x4", layout="fsdp x tensor", form="all of a block computed again", mesh=SHARED["v5e:4x4"])
    mesh = SHARED["v5e:4x4"]
    yield Try(slices="v5e:4x4", layout="fsdp x tensor", form="compiler", model=shared, mesh=mesh, length=2000, ours=False)


def large() -> Iterator[Try]:
    """Yields what is compiled for memory and for compile seconds."""
    for slices, name, model in (("v5e:16x16", "8B", LLAMA_8B), ("v5p:4x8x8", "70B", LLAMA_70B)):
        for layers in (8, model.layers):
            yield Try(
                slices=slices, layout="fsdp", form=f"{name}, {layers} layers", model=replace(model, layers=layers), length=4096,
                num_ids=128_256,
            )  # fmt: skip


def main() -> None:
    """Compiles all and prints tables."""
    options = arguments(__doc__ or "")
    if not has_tpu_compiler():
        print("skipped: there is no libtpu, which holds the compiler; docs/tpu.md says how to name one")
        return
    runtime.start(RuntimeConfig(platform="cpu"))
    console, figures = Console(highlight=False), list[Figure]()
    sent = Table("slice", "layout", "form", "MB sent", "MB at least", "times", box=SIMPLE_HEAD, pad_edge=False)
    for each in tries(options.quick):
        step, fewest, _, _ = each.compiled()
        times = step.traffic.wire_bytes / fewest.total
        sent.add_row(
            each.slices,
            each.layout,
            each.form,
            f"{step.traffic.wire_bytes / 1e6:,.1f}",
            f"{fewest.total / 1e6:,.1f}",
            f"{times:.4f}",
        )
        name, is_ours = f"{each.layout}, {each.slices}, {each.form}", each.form in ("an axis a dimension", "collectives kept")
        goal = {"max": GOALS[each.layout]} if is_ours else None
        figures.append(Figure(name=name, value=times, low=times, high=times, unit="times the fewest bytes", goal=goal, runs=1))
        print(figures[-1].verdict(), flush=True)
    console.print(sent)
    heads = ("slice", "model", "state MB", "predicted", "temporaries", "predicted", "sent", "times", "compile s")
    memory = Table(*heads, box=SIMPLE_HEAD, pad_edge=False)
    for each in () if options.quick else large():
        step, fewest, predicted, seconds = each.compiled()
        times, state = step.traffic.wire_bytes / fewest.total, step.aliased / predicted.state
        estimate = predicted.gradients + predicted.gathered + predicted.activations
        bytes_of = step.aliased, predicted.state, step.temporaries, estimate, step.traffic.wire_bytes
        memory.add_row(each.slices, each.form, *(f"{size / 1e6:,.0f}" for size in bytes_of), f"{times:.4f}", f"{seconds:.0f}")
        told = f"state, {each.form}"
        figures.append(Figure(name=told, value=state, low=state, high=state, unit="of predicted", goal={"max": 1.05}, runs=1))
        print(figures[-1].verdict(), f"compiled in {seconds:.0f} s", sep="\n", flush=True)
    console.print(memory)
    publish(figures, options.json)


if __name__ == "__main__":
    main()
