"""What mlprod's loop costs beside the step itself: a small MLP trained by `train`, and by a bare `jax.jit` loop on one batch.

    python benchmarks/step_overhead.py [--quick] [--json FILE]      # needs no dataset

Job: trains the same model with the same optimizer, batch size and number of steps in three ways, in turn: a bare loop over one
batch that stays on the device; `mlprod.train.train` whose loader is replaced by the same rows from memory; and `train` as it is,
its loader reading a dataset that was built before. Both trainings of mlprod log every step, place each batch, and save once
among the timed steps (every 8 s, where `train` by itself saves every 2 minutes).
Promise: all in one process, the bare loop before and after each training (A B A C A ...), and a ratio compares a training with
the mean of the two beside it. Times are those of steps after the first ones, taken where a step's numbers are fetched, saves
included; compiling and the evaluation at the end are not. The bare loop fetches a step's loss after it has dispatched the next.
How to read: a figure is the median of the rounds and an interval that holds it with 90% or more (order statistics). On CPU a
part of the step itself runs on the thread that dispatches it, so what the main thread does beside the step is its CPU time
less the bare loop's. CPU time of all threads less the bare loop's adds what the loader, placing, logging and saves take, which
share the cores with the step. A ratio of walls is for quiet machines: where others use the cores, each further thread waits
for one.
Price: about 6 minutes on 2 cores; --quick 2 rounds of fewer steps.
"""

import contextlib
import io
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import optax
import pyarrow as pa
import pyarrow.csv as pacsv
from _figures import Figure, arguments, publish

from mlprod import train as story
from mlprod.config import ByHash, CheckpointConfig, Config, CsvSource, EtlConfig, Label, LoaderConfig, TrackingConfig, numeric
from mlprod.data.loader import train_batches
from mlprod.etl.run import build
from mlprod.models.mlp import MLPConfig
from mlprod.parallel.place import fetch, to_devices
from mlprod.plan import Plan, make_plan
from mlprod.state import TrainState, create

ROWS, FEATURES, BATCH, HIDDEN = 200_000, 32, 1024, (192, 192)
ROUNDS, QUICK_ROUNDS = 10, 2
SAVE_EVERY = 4000  # steps: about 8 s
WARM, STEPS, QUICK_STEPS, BARE_STEPS = 200, 4200, 1200, 2000  # steps before those that are timed; steps in all
RATIO_GOAL, CPU_GOAL = 1.15, 150.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Took:
    """Of one step, in microseconds."""

    wall: float
    main_cpu: float
    all_cpu: float


class Clock:
    """Looks at clocks: of all, of this thread, of the whole process."""

    def __init__(self) -> None:
        self.read: list[tuple[float, float, float]] = []

    def look(self) -> None:
        """Takes the time of a step."""
        self.read.append((time.perf_counter(), time.thread_time(), time.process_time()))

    def took(self) -> Took:
        """Returns a step's share of the time between the first timed step and the last one."""
        first, last, count = self.read[WARM], self.read[-2], len(self.read) - 2 - WARM  # the last is logged at the evaluation
        return Took(**{name: 1e6 * (b - a) / count for name, a, b in zip(Took.__slots__, first, last, strict=True)})


class Again:
    """The same rows again and again, as a loader that costs nothing."""

    def __init__(self, rows: Mapping[str, np.ndarray]) -> None:
        self._rows = rows

    def __next__(self) -> Mapping[str, np.ndarray]:
        """Returns the rows."""
        return self._rows

    def close(self) -> None:
        """Nothing to close."""


def config(folder: Path, steps: int) -> Config:
    """Returns the run; its rows are in `folder`."""
    names = tuple(f"x{i}" for i in range(FEATURES))
    etl = EtlConfig(
        source=CsvSource(path=str(folder / "rows.csv")), label=Label(column="y"), columns=tuple(numeric(name) for name in names),
        split=ByHash(eval=0.01, test=0.01),
    )  # fmt: skip
    return Config(
        name="overhead", workdir=str(folder / "run"), dataset=str(folder / "dataset"), steps=steps, etl=etl,
        model=MLPConfig(hidden=HIDDEN, dropout=0.0), loader=LoaderConfig(global_batch=BATCH),
        checkpoint=CheckpointConfig(every=SAVE_EVERY),
        tracking=TrackingConfig(wandb="off"),
    )  # fmt: skip


def write_rows(folder: Path) -> None:
    """Writes random rows as CSV."""
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=ROWS).round(4) for i in range(FEATURES)}
    pacsv.write_csv(pa.table({**columns, "y": rng.integers(0, 2, ROWS)}), folder / "rows.csv")


def one_batch(plan: Plan) -> Mapping[str, np.ndarray]:
    """Returns copies of the first batch's rows."""
    batches = train_batches(plan.cfg, plan.store, plan.manifest, plan.order, plan.train_ranges, [0])
    rows = {name: np.array(array) for name, array in next(batches).items()}
    batches.close()
    return rows


class Bare:
    """A hand-written loop: a jitted step with the plan's model and optimizer, one batch on the device, one fetch a step."""

    def __init__(self, plan: Plan, rows: Mapping[str, np.ndarray]) -> None:
        self._plan = plan
        self._batch = to_devices(rows, plan.placement.batch(BATCH), plan.train_ranges, BATCH)
        self._update = jax.jit(self._step, donate_argnums=0)
        self._state = create(plan.model, plan.cfg.model, plan.features, plan.optimizer, plan.where, 0)

    def _step(self, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, jax.Array]:
        model = self._plan.model
        named = model.named(batch)

        def mean_loss(trained: dict[str, Any]) -> jax.Array:
            module = model.merge(trained["params"], trained["tables"], state.model_state, self._plan.policy)
            total, weight = module.loss(module(named), named)["loss"]
            return total / weight

        trained = {"params": state.params, "tables": state.tables}
        loss, gradient = jax.value_and_grad(mean_loss)(trained)
        change, optim = self._plan.optimizer.update(gradient, state.optim, trained)
        new = optax.apply_updates(trained, change)
        return TrainState(state.step + 1, new["params"], new["tables"], state.model_state, optim, {}), loss

    def run(self, steps: int) -> Took:
        """Takes so many steps."""
        clock, before, loss = Clock(), None, None
        for _ in range(steps):
            self._state, loss = self._update(self._state, self._batch)
            if before is not None:
                float(before)
                clock.look()
            before = loss
        float(loss)
        clock.look()
        return clock.took()


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    """Gives the training of the block a clock, looked at when a step's sums are fetched."""
    clock = Clock()

    def fetch_and_look(sums: Any) -> Any:
        fetched = fetch(sums)
        clock.look()
        return fetched

    with patch.object(story, "fetch", fetch_and_look), contextlib.redirect_stderr(io.StringIO()):
        yield clock


def trained(cfg: Config, number: int, rows: Mapping[str, np.ndarray] | None) -> Took:
    """Trains in a folder of its own; from `rows` in memory, where they are given."""
    cfg = replace(cfg, workdir=f"{cfg.workdir}-{number}")
    source = patch.object(story, "train_batches", lambda *_: Again(rows)) if rows else contextlib.nullcontext()
    with source, timed() as clock:
        story.train(cfg, jax.devices()[:1])
    return clock.took()


def measured(folder: Path, steps: int, rounds: int) -> list[dict[str, tuple[Took, Took]]]:
    """Returns, a round, each training beside the bare loop around it."""
    cfg = config(folder, steps)
    write_rows(folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        build(cfg)
    plan = make_plan(cfg, jax.devices()[:1])
    rows = one_batch(plan)
    bare = Bare(plan, rows)
    bare.run(BARE_STEPS)
    found, before = [], bare.run(BARE_STEPS)
    for i in range(rounds):
        pairs = {}
        for j, (name, given) in enumerate({"rows in memory": rows, "the loader": None}.items()):
            mine, after = trained(cfg, 2 * i + j, given), bare.run(BARE_STEPS)
            between = {what: (getattr(before, what) + getattr(after, what)) / 2 for what in Took.__slots__}
            pairs[name], before = (mine, Took(**between)), after
        found.append(pairs)
    return found


def figure(name: str, values: list[float], unit: str, **more: Any) -> Figure:
    """Returns the median of values and its 90% interval, from the order statistics of a sample of their number."""
    ordered, count = sorted(values), len(values)
    chance = np.cumsum([math.comb(count, k) / 2**count for k in range(count + 1)])  # of at most k values below the median
    k = max((k for k in range(count // 2) if chance[k] <= 0.05), default=0)
    low, high = ordered[k], ordered[count - 1 - k]
    return Figure(name=name, value=median(values), low=low, high=high, unit=unit, runs=count, **more)


def main() -> None:
    """Measures and prints the figures."""
    options = arguments(__doc__ or "")
    steps, rounds = (QUICK_STEPS, QUICK_ROUNDS) if options.quick else (STEPS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/compiled")  # each training compiles the same step
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        found = measured(Path(folder), steps, rounds)
    figures = []
    for name in found[0]:
        pairs = [each[name] for each in found]
        ratio_goal, cpu_goal = ({}, {}) if options.quick else ({"goal": {"max": RATIO_GOAL}}, {"goal": {"max": CPU_GOAL}})
        ratio = figure(f"{name}: train / bare", [a.wall / b.wall for a, b in pairs], "ratio")
        figures += [
            figure(f"{name}: bare step", [b.wall for _, b in pairs], "us"),
            figure(f"{name}: step of train", [a.wall for a, _ in pairs], "us"),
            ratio,
            replace(ratio, name=f"{ratio.name}, upper end", value=ratio.high, **ratio_goal),
            figure(
                f"{name}: CPU of the main thread", [a.main_cpu for a, _ in pairs], "us a step",
                peers={"bare loop": median(b.main_cpu for _, b in pairs)},
            ),
            figure(f"{name}: that, less the bare loop's", [a.main_cpu - b.main_cpu for a, b in pairs], "us a step", **cpu_goal),
            figure(f"{name}: CPU of all threads, less the bare loop's", [a.all_cpu - b.all_cpu for a, b in pairs], "us a step"),
        ]  # fmt: skip
    publish(figures, options.json)


if __name__ == "__main__":
    main()
