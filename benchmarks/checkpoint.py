"""What a save costs the loop, and a restore the start: a state of 1 GB against plain copies and plain reads.

    python benchmarks/checkpoint.py [--quick] [--json FILE]      # needs no dataset

Job: saves a state of random numbers again and again, each time measuring how long the loop is blocked, beside a copy of the same
arrays from the devices to the host and a synchronous save of the same step; then reads a step back, restores it in processes of
their own, and reads its files.
Promise: contenders take turns (A B C A B C ...), a ratio compares measurements of the same round; numbers are random, so nothing
compresses. On CPU a "device" is the host's memory: the copy is what a transfer to the host is elsewhere.
How to read: "blocks" is from calling save to its return, digests included; their seconds stand apart. The share is that of one
save a minute. Peak memory of a restore is over what the process held before, by the state's bytes.
Price: about 3 minutes and 4 GB of memory on 2 cores; --quick (a state of 32 MB, 2 rounds) half a minute.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _contenders import memory
from _figures import Figure, arguments, publish

from mlprod.checkpoint.leaves import digests
from mlprod.checkpoint.replicas import check_replicas
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig
from mlprod.state import TrainState, flatten

BYTES, QUICK_BYTES = 1 << 30, 32 << 20
ROUNDS, QUICK_ROUNDS = 7, 2
LEAVES = 16
GOAL = 1.5  # times the copy, the digest apart
MEMORY_GOAL = 1.3  # times the state's bytes


def state_of(size: int, step: int) -> TrainState:
    """Returns a state of about `size` bytes, a third of it parameters and the rest moments, as Adam's is."""
    keys = iter(jax.random.split(jax.random.key(step), 3 * LEAVES))
    rows = max(1, size // (3 * LEAVES * 4 * 1024))
    part = [{f"{i}": jax.random.normal(next(keys), (rows, 1024)) for i in range(LEAVES)} for _ in range(3)]
    state = TrainState(jnp.int32(step), {"w": part[0]}, {}, {}, {"mu": part[1], "nu": part[2]}, {})
    return jax.block_until_ready(state)


def run_of(step: int) -> RunState:
    """Returns the host's part of a run."""
    nothing: dict[str, Any] = {}
    return RunState(
        run_id="benchmark", attempt=1, step=step, next_example=step, dataset_id="", order=nothing, config=nothing,
        environment=nothing, tracker_id="",
    )  # fmt: skip


def seconds(act: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def copied(state: TrainState) -> list[np.ndarray]:
    """Returns copies of all arrays on the host."""
    return [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]


def measured(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each round by what was done."""
    with Store(folder, CheckpointConfig(keep_last=1, keep_best="")) as store:
        each = [one_round(store, state_of(size, step), step) for step in range(1, rounds + 2)]
    return {name: [times[name] for times in each[1:]] for name in each[0]}  # the first compiles, and touches fresh memory


def one_round(store: Store, state: TrainState, step: int) -> dict[str, float]:
    """Returns the seconds of everything that is done with one step."""
    times = {"copy": seconds(lambda: copied(state)), "digest": seconds(lambda: digests(flatten(state)))}
    began = time.perf_counter()
    store.save(state, run_of(step))
    times["blocks"] = time.perf_counter() - began
    store.finish_save()
    times["synchronous"] = time.perf_counter() - began
    times["read back"] = seconds(lambda: store.saved.verify(step))
    times["files"] = seconds(lambda: read_all(store.saved.folder(step)))
    store.finish()
    return times


def read_all(folder: Path) -> int:
    """Reads every file of a folder; returns the bytes."""
    return sum(len(path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def restored(folder: str, size: int) -> dict[str, float]:
    """Restores the newest step: seconds, and peak memory over the state's bytes. In a process of its own."""
    abstract = jax.eval_shape(lambda: state_of_shapes(size))
    where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract)
    jax.block_until_ready(jnp.zeros(8) + 1)
    before = memory("VmRSS")
    began = time.perf_counter()
    found = SavedSteps(Path(folder)).restore_newest(abstract, where)
    assert found is not None
    jax.block_until_ready(found[0])
    took = time.perf_counter() - began
    peak = memory("VmHWM") - before
    return {"restore": took, "memory": peak / sum(leaf.nbytes for leaf in jax.tree.leaves(found[0]))}


def compared(size: int) -> dict[str, float]:
    """Compares the copies of a state on two devices: seconds, and those of one copy to the host. In a process of its own."""
    jax.config.update("jax_num_cpu_devices", 2)
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec())
    leaves = jax.block_until_ready(jax.device_put(flatten(state_of(size, 1)), everywhere))
    check_replicas(leaves)  # compiles
    seconds_of_copies = seconds(lambda: [np.array(leaf.addressable_data(0), copy=True) for leaf in leaves.values()])
    return {"compare": seconds(lambda: check_replicas(leaves)), "host copy": seconds_of_copies}


def state_of_shapes(size: int) -> TrainState:
    """Returns the state's arrays as zeros, for their shapes."""
    rows = max(1, size // (3 * LEAVES * 4 * 1024))
    part = {f"{i}": jnp.zeros((rows, 1024)) for i in range(LEAVES)}
    return TrainState(jnp.int32(0), {"w": part}, {}, {}, {"mu": dict(part), "nu": dict(part)}, {})


def figure(name: str, values: list[float], unit: str, **more: Any) -> Figure:
    """Returns the figure of a value a round: median, least and greatest."""
    return Figure(name=name, value=median(values), low=min(values), high=max(values), unit=unit, runs=len(values), **more)


def main() -> None:
    """Measures and prints the figures."""
    options = arguments(__doc__ or "")
    size, rounds = (QUICK_BYTES, QUICK_ROUNDS) if options.quick else (BYTES, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), size, rounds)
        command = [sys.executable, __file__, "RESTORE", folder, str(size)]
        ends = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(rounds)]
    command = [sys.executable, __file__, "COMPARE", str(size // 2)]
    pairs = [subprocess.run(command, capture_output=True, check=True).stdout for _ in range(rounds)]
    each = [
        {name: values[i] for name, values in found.items()} | json.loads(ends[i]) | json.loads(pairs[i]) for i in range(rounds)
    ]
    goal, memory_goal = ({}, {}) if options.quick else ({"goal": {"max": GOAL}}, {"goal": {"max": MEMORY_GOAL}})
    peers = {name: median(values) for name, values in found.items()}
    over_copy = [(r["blocks"] - r["digest"]) / r["copy"] for r in each]
    figures = [
        figure("save: blocks the loop", found["blocks"], "s", peers=peers),
        figure("save: of that, the digests", found["digest"], "s"),
        figure("save: comparing copies, half the state on 2 devices each", [r["compare"] for r in each], "s"),
        figure("save: comparing copies / a copy to the host", [r["compare"] / r["host copy"] for r in each], "ratio"),
        figure("save: blocks / copy to the host, digests apart", over_copy, "ratio", **goal),
        figure("save: blocks / synchronous save", [r["blocks"] / r["synchronous"] for r in each], "ratio"),
        figure("save: share of training at one a minute", [r["blocks"] / 60 for r in each], "of the time"),
        figure("read back: beside the steps", found["read back"], "s"),
        figure("restore", [r["restore"] for r in each], "s"),
        figure("restore / reading the files", [r["restore"] / r["files"] for r in each], "ratio"),
        figure("restore: peak memory / the state's bytes", [r["memory"] for r in each], "ratio", **memory_goal),
    ]
    publish(figures, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["RESTORE"]:
        print(json.dumps(restored(sys.argv[2], int(sys.argv[3]))))
    elif sys.argv[1:2] == ["COMPARE"]:
        print(json.dumps(compared(int(sys.argv[2]))))
    else:
        main()
