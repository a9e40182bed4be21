"""The training story: read this file first.

A run is a plan (dataset, order, model, layout), a state on the devices, and a position in the order of examples. The loop
draws a batch, takes a step, looks at the numbers of the step before, and now and then evaluates and saves. It decides *when*;
the modules it calls know *how*.

Promise: killed at any moment and started again, the run ends with the same bits as a straight run on the same hardware.
"""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlprod import early_stop, runtime
from mlprod.attempts import Attempts
from mlprod.bad_numbers import RollBack, Watch, finite, joined
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import trained_on
from mlprod.checkpoint.store import Store
from mlprod.compilations import Compilations, Watched
from mlprod.config import Config, kept_programs
from mlprod.console import ProgressLine
from mlprod.data.loader import train_batches
from mlprod.digest import as_hex
from mlprod.errors import Preempted
from mlprod.evaluate import evaluate, shown
from mlprod.ledger import Ledger
from mlprod.order import drawn_positions
from mlprod.parallel.agree import Agreement
from mlprod.parallel.ahead import Ahead
from mlprod.parallel.place import Rows, fetch, placed_ahead
from mlprod.plan import Plan, make_plan, score_of, update_of
from mlprod.processes.peers import Peers
from mlprod.processes.watchdog import Watchdog, watched
from mlprod.resume import roll_back, start
from mlprod.state import TrainState
from mlprod.step import Score, Words, gradient_paths, unpack
from mlprod.tracing import Tracer
from mlprod.trackers.open import open_trackers
from mlprod.tracking import Record, Trackers

FAST_STEPS = 3
LOOK_EVERY_S, LOOK_AT_MOST = 0.1, 64  # how late a step's numbers are looked at, and after how many steps


def train(cfg: Config, devices: Sequence[jax.Device], watchdog: Watchdog | None = None) -> TrainState:
    """Trains from the newest checkpoint, or from scratch, to the last step; returns the final state.

    Args:
        watchdog: that watches this process already, with what its ledger has counted and the other processes; None: it is alone.

    Raises:
        UserError: anything wrong with config, dataset, mesh or workdir, before the first step.
        Preempted: asked to stop; the state is saved.
        MlprodError: the run failed.
    """
    if watchdog is None:
        with watched(cfg.limits, Ledger(), Peers(cfg.limits)) as watchdog:
            return train(cfg, devices, watchdog)
    with Compilations(watchdog.ledger) as compiled:
        with watchdog.ledger.spent("plan"):
            cfg = _fast(cfg) if cfg.fast_dev_run else cfg
            plan = make_plan(cfg, devices, trained_on(cfg.workdir))
            watchdog.peers.check_same("dataset_id", plan.manifest.dataset_id)
        return _run(plan, compiled, watchdog)


def _run(plan: Plan, compiled: Compilations, watchdog: Watchdog) -> TrainState:
    """Trains as planned."""
    cfg, workdir, ledger = plan.cfg, Path(plan.cfg.workdir), watchdog.ledger
    with runtime.hold(workdir), Store(workdir, cfg.checkpoint) as store:
        state, run = start(plan, store, ledger)
        ledger.earlier = dict(run.ledger)
        with ledger.spent("tracking"):
            attempts = Attempts(workdir, ledger, _about(plan, run))
            trackers = open_trackers(
                cfg.tracking, workdir, cfg.name, run.tracker_id, run.attempt, run.config, [attempts], run.step, store.good,
                watchdog.signals.leave_by,
            )  # fmt: skip
        line = ProgressLine(
            plan.steps, run.step, plan.order.global_batch, wanted=cfg.tracking.progress and not jax.process_index()
        )
        with trackers as tracker, line:
            tracker.log(Record(kind="start", step=run.step, position=run.next_example, values={}))
            beside = Beside(watchdog, compiled, Tracer(workdir, watchdog.signals, ledger, line.say))
            done, rollbacks = None, 0
            while done is None:
                try:
                    done = _loop(plan, state, run, store, tracker, line, beside)
                except RollBack as bad:
                    rollbacks += 1
                    with ledger.spent("restore"):
                        state, run = roll_back(plan, store, run, bad, rollbacks)
            with ledger.spent("save"):
                store.finish()
            line.say(ledger.line())
    return done


@dataclasses.dataclass(frozen=True, slots=True)
class Beside:
    """What goes on beside the loop."""

    watchdog: Watchdog
    compiled: Compilations
    tracer: Tracer


def _about(plan: Plan, run: RunState) -> dict[str, Any]:
    """Returns what is told of an attempt when it begins, as JSON data."""
    told = {"run": run.run_id, "attempt": run.attempt, "steps": plan.steps, "dataset_id": run.dataset_id, "code": runtime.code()}
    return {**told, "config": run.config, "environment": run.environment}


def _loop(
    plan: Plan,
    state: TrainState,
    run: RunState,
    store: Store,
    tracker: Trackers,
    line: ProgressLine,
    beside: Beside,
) -> TrainState:
    """Takes the steps that are left. The order of what happens between two steps is what makes a resume exact."""
    cfg, ledger, signals = plan.cfg, beside.watchdog.ledger, beside.watchdog.signals
    update = Watched(update_of(plan), beside.compiled, runtime.compile_cache(), line.say)
    score = score_of(plan)
    watch = Watch(cfg.bad_numbers, gradient_paths(plan.abstract), plan.order.global_batch)
    late, agreed, saved_at = Late(tracker, line, watch), Agreement(), time.monotonic()
    step, after, saved = run.step, run.next_example, run.step if store.good[-1:] == [run.step] else -1
    over = early_stop.is_over(run.progress, cfg)
    left = 0 if over else plan.steps - step

    def stopped_waiting() -> bool:
        late.look()  # nothing else to do while data is late
        return signals.stop and agreed.alone

    positions = drawn_positions(after, left, plan.order.global_batch, joined((*cfg.loader.skip, *run.skipped)))
    with _batches(plan, positions, line) as batches:
        for position in positions:
            beside.tracer.before(step + 1)
            with ledger.spent("first batch" if step == run.step else "data wait"):
                drawn = None if signals.stop and agreed.alone else batches.draw(unless=stopped_waiting)
            if drawn is None:
                break
            with ledger.spent("first step" if step == run.step else "step"):
                with jax.transfer_guard("disallow"):  # an array that moves by accident is an error
                    state, sums = update(state, drawn[1])
                step, after = step + 1, position + plan.order.global_batch
                late.report(step, after, sums, drawn[0])  # fetches the step before: the devices never wait for us
                beside.watchdog.done(step, after)
            metrics: dict[str, float] = {}
            better = False
            if step == plan.steps or _due(step, cfg.eval.every):
                with ledger.spent("evaluate"):
                    late.flush()
                    metrics = _evaluate(plan, score, state, step, after, tracker, line, ledger.again)
                run = dataclasses.replace(run, progress=early_stop.after(run.progress, step, metrics, cfg))
                over, better = early_stop.is_over(run.progress, cfg), run.progress["step"] == step
            store.check()
            time_is_up, stopped = agreed(save=time.monotonic() - saved_at >= cfg.checkpoint.every_s, stop=signals.stop)
            keep = better and cfg.eval.patience > 0
            if step == plan.steps or over or keep or _due(step, cfg.checkpoint.every) or time_is_up:
                _save(plan, state, run, step, after, store, late, ledger, metrics)
                saved, saved_at = step, time.monotonic()
                beside.watchdog.saved(step)
            if stopped or over:
                break
    beside.tracer.end()
    if over:
        line.say(f"stopped at step {step}: {cfg.eval.patience} evaluations were not better than step {run.progress['step']:.0f}")
    elif step < plan.steps:
        if saved < step:
            _save(plan, state, run, step, after, store, late, ledger, {})
        with ledger.spent("save"):
            store.finish_save()
        raise Preempted(f"stopped after step {step} of {plan.steps}, which is saved; the same command goes on from there")
    return state


def _save(
    plan: Plan,
    state: TrainState,
    run: RunState,
    step: int,
    after: int,
    store: Store,
    late: "Late",
    ledger: Ledger,
    metrics: Mapping[str, float],
) -> None:
    """Saves the state after `step`; the next batch to be drawn is at `after` or behind what is skipped there."""
    with ledger.spent("save"):
        late.flush()  # what the log says of a saved step must be in the log before the save
        began = run.next_example
        passed = [(max(a, began), b) for a, b in plan.cfg.loader.skip if b > began and a < after]
        run = dataclasses.replace(
            run, step=step, next_example=after, skipped=joined((*run.skipped, *passed)), ledger=ledger.totals(),
            metrics=finite(metrics),
        )  # fmt: skip
        store.save(state, run)


class Late:
    """Reports the sums of a step after the next one was dispatched, so that the devices always have work.

    It also keeps the queue at two steps: an unbounded one deadlocks simulated devices. What was fetched is looked at and logged
    within `LOOK_EVERY_S`, several fast steps in a row: between two of them this code would find the caches cold, and takes 5
    times as long.
    """

    def __init__(self, tracker: Trackers, line: ProgressLine, watch: Watch) -> None:
        """Nothing is pending."""
        self._tracker, self._line, self._watch = tracker, line, watch
        self._pending: tuple[int, int, Words, Rows] | None = None
        self._fetched: list[tuple[int, int, np.ndarray, Rows]] = []
        self._looked = time.monotonic()

    def report(self, step: int, position: int, sums: Words, rows: Rows) -> None:
        """Takes the sums and this process's rows of the step just dispatched; fetches those of the step before."""
        self._fetch((step, position, sums, rows))
        if len(self._fetched) >= LOOK_AT_MOST or time.monotonic() - self._looked >= LOOK_EVERY_S:
            self.look()

    def flush(self) -> None:
        """Logs the sums of all steps, waiting for the last one."""
        self._fetch(None)
        self.look()

    def _fetch(self, pending: tuple[int, int, Words, Rows] | None) -> None:
        before, self._pending = self._pending, pending
        if before is not None:
            step, position, sums, rows = before
            self._fetched.append((step, position, fetch(sums), rows))

    def look(self) -> None:
        """Logs the sums that were fetched."""
        fetched, self._fetched, self._looked = self._fetched, [], time.monotonic()
        for step, position, words, rows in fetched:
            self._log(step, position, words, rows)

    def _log(self, step: int, position: int, words: np.ndarray, rows: Rows) -> None:
        got = unpack(words)
        rate, ids = (float(got["rate"]), 1.0), as_hex(got["ids"])
        if self._watch.is_bad(step, position, got, rows):
            values = {"skipped": (1.0, 1.0), "rate": rate}
        else:
            weight = float(got["weight"])
            loss = float(got["loss"]) / weight
            values = {"loss": (loss, weight), "grad_norm": (float(got["grad_norm"]), 1.0), "rate": rate}
            self._line.update(step, loss)
        self._tracker.log(Record(kind="train", step=step, position=position, values=values, ids=ids))


def _batches(plan: Plan, positions: Sequence[int], line: ProgressLine) -> Ahead[Rows, tuple[Rows, dict[str, jax.Array]]]:
    """Returns (host rows, global batch on the devices) at these example positions, ahead of the step."""
    size, ranges = plan.order.global_batch, plan.train_ranges
    rows = train_batches(plan.cfg, plan.store, plan.manifest, plan.order, ranges, positions)

    def waiting(seconds: float) -> None:
        line.say(f"the step has waited {seconds:.0f} s for data of {plan.cfg.dataset}")

    return placed_ahead(rows, plan.placement.batch(size), ranges, size, plan.cfg.loader.on_device, waiting)


def _evaluate(
    plan: Plan,
    score: Score,
    state: TrainState,
    step: int,
    position: int,
    tracker: Trackers,
    line: ProgressLine,
    alive: Callable[[], None],
) -> dict[str, float]:
    """Evaluates on the eval split, where there is one, logs it and returns it."""
    if not plan.manifest.num_rows("eval"):
        return {}
    metrics = evaluate(plan, score, state, "eval", alive, limit=FAST_STEPS if plan.cfg.fast_dev_run else None)
    rows = metrics.pop("rows")
    tracker.log(Record(kind="eval", step=step, position=position, values={k: (v, rows) for k, v in metrics.items()}))
    line.say(f"step {step}: eval " + ", ".join(shown(name, value) for name, value in metrics.items()))
    return metrics


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _fast(cfg: Config) -> Config:
    """Returns the config of a trial run: three steps of everything, in an empty folder of its own."""
    workdir = f"{cfg.workdir}-fast"
    shutil.rmtree(workdir, ignore_errors=True)
    evaluation = dataclasses.replace(cfg.eval, every=0)
    return dataclasses.replace(cfg, steps=FAST_STEPS, epochs=0.0, workdir=workdir, eval=evaluation)


def main(cfg: Config, built_s: float = 0.0) -> None:
    """The verb `train`, on this process and the others of the run; `built_s`: seconds that it waited for its dataset before."""
    ledger = Ledger()
    ledger.started(runtime.seconds_since_start() - built_s)
    with ledger.spent("join"):
        peers = runtime.join(cfg)
    with peers, watched(cfg.limits, ledger, peers) as watchdog:
        with ledger.spent("devices"):
            runtime.start(cfg.runtime, kept_programs(cfg))
        train(cfg, jax.devices(), watchdog)


if __name__ == "__main__":
    from mlprod import cli

    sys.exit(cli.main(["train", *sys.argv[1:]]))
