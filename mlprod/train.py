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
import uuid
from collections.abc import Sequence
from pathlib import Path

import jax

from mlprod import compare, runtime
from mlprod.checkpoint import RunState, Store
from mlprod.config import MUST, Config
from mlprod.console import ProgressLine
from mlprod.data.loader import train_batches
from mlprod.digest import as_hex
from mlprod.errors import ConfigError, Preempted, TrainingError
from mlprod.evaluate import evaluate
from mlprod.ledger import Ledger
from mlprod.order import ORDER_VERSION, drawn_positions
from mlprod.parallel.ahead import Ahead
from mlprod.parallel.place import Rows, fetch, placed_ahead, wait
from mlprod.plan import Plan, make_plan
from mlprod.state import TrainState, create
from mlprod.step import Score, Sums, compile_score, compile_update
from mlprod.tracking import Record, Trackers, open_trackers

FAST_STEPS = 3
ARITHMETIC = ("steps", "epochs", "model", "optim", "mesh", "runtime", "eval.batch", "loader.skip")  # fields that decide bits


def train(cfg: Config, devices: Sequence[jax.Device]) -> TrainState:
    """Trains from the newest checkpoint, or from scratch, to the last step; returns the final state.

    Raises:
        UserError: anything wrong with config, dataset, mesh or workdir, before the first step.
        Preempted: asked to stop; the state is saved.
        MlprodError: the run failed.
    """
    ledger = Ledger()
    with ledger.spent("plan"):
        cfg = _fast(cfg) if cfg.fast_dev_run else cfg
        workdir = Path(cfg.workdir)
        plan = make_plan(cfg, devices)
    with runtime.hold(workdir), runtime.StopRequest() as stop, Store(workdir, strict=cfg.checkpoint.strict) as store:
        with ledger.spent("state"):
            state, run = _start(plan, store)
        ledger.earlier = dict(run.ledger)
        with ledger.spent("tracking"):
            trackers = open_trackers(cfg.tracking, workdir, cfg.name, run.tracker_id, run.attempt, run.config)
        line = ProgressLine(plan.steps, run.step, plan.order.global_batch, wanted=cfg.tracking.progress)
        with trackers as tracker, line:
            tracker.log(Record(kind="start", step=run.step, position=run.next_example, values={}))
            state = _loop(plan, state, run, store, tracker, line, ledger, stop)
            with ledger.spent("save"):
                store.finish()
            line.say(ledger.line())
    return state


def _loop(
    plan: Plan,
    state: TrainState,
    run: RunState,
    store: Store,
    tracker: Trackers,
    line: ProgressLine,
    ledger: Ledger,
    stop: runtime.StopRequest,
) -> TrainState:
    """Takes the steps that are left. The order of what happens between two steps is what makes a resume exact."""
    cfg = plan.cfg
    update = compile_update(plan.model, plan.optimizer, plan.rate, cfg.seed, plan.where, plan.placement)
    score = compile_score(plan.model, plan.placement)
    late, saved_at = Late(tracker, line), time.monotonic()
    step, after, saved = run.step, run.next_example, run.step or -1
    positions = drawn_positions(after, plan.steps - step, plan.order.global_batch, cfg.loader.skip)
    with _batches(plan, positions, line) as batches:
        for position in positions:
            with ledger.spent("data wait"):
                drawn = batches.draw(unless=lambda: stop.requested)
            if drawn is None:
                break
            with ledger.spent("compile" if step == run.step else "step"):
                with jax.transfer_guard("disallow"):  # an array that moves by accident is an error
                    state, sums = update(state, drawn[1])
                step, after = step + 1, position + plan.order.global_batch
                late.report(step, after, sums)  # fetches the step before: the devices never wait for us
            if step == plan.steps or _due(step, cfg.eval.every):
                with ledger.spent("evaluate"):
                    late.flush()
                    _evaluate(plan, score, state, step, after, tracker, line)
            store.check()
            if step == plan.steps or _due(step, cfg.checkpoint.every) or time.monotonic() - saved_at >= cfg.checkpoint.every_s:
                _save(plan, state, run, step, after, store, late, ledger)
                saved, saved_at = step, time.monotonic()
            if stop.requested:
                break
    if step < plan.steps:
        if saved < step:
            _save(plan, state, run, step, after, store, late, ledger)
        store.finish()
        raise Preempted(f"stopped after step {step} of {plan.steps}, which is saved; the same command goes on from there")
    return state


def _save(
    plan: Plan, state: TrainState, run: RunState, step: int, after: int, store: Store, late: "Late", ledger: Ledger
) -> None:
    """Saves the state after `step`; the next batch to be drawn is at `after` or behind what is skipped there."""
    with ledger.spent("save"):
        late.flush()  # what the log says of a saved step must be in the log before the save
        began = run.next_example
        skipped = tuple((max(a, began), b) for a, b in plan.cfg.loader.skip if b > began and a < after)
        run = dataclasses.replace(run, step=step, next_example=after, skipped=run.skipped + skipped, ledger=ledger.totals())
        store.save(state, run)


class Late:
    """Reports the sums of a step after the next one was dispatched, so that the devices always have work.

    It also keeps the queue at two steps: an unbounded one deadlocks simulated devices.
    """

    def __init__(self, tracker: Trackers, line: ProgressLine) -> None:
        """Nothing is pending."""
        self._tracker, self._line = tracker, line
        self._pending: tuple[int, int, Sums] | None = None

    def report(self, step: int, position: int, sums: Sums) -> None:
        """Takes the sums of the step just dispatched; logs those of the step before."""
        before, self._pending = self._pending, (step, position, sums)
        if before is not None:
            self._log(*before)

    def flush(self) -> None:
        """Logs the sums of the last step, waiting for it."""
        before, self._pending = self._pending, None
        if before is not None:
            self._log(*before)

    def _log(self, step: int, position: int, sums: Sums) -> None:
        got = fetch(sums)
        loss, weight = float(got["loss"]) / float(got["weight"]), float(got["weight"])
        if loss != loss:
            raise TrainingError(
                f"the loss of step {step} is NaN (examples {position} and before); lower config.optim.peak_lr or mend the data"
            )
        values = {"loss": (loss, weight), "grad_norm": (float(got["grad_norm"]), 1.0), "rate": (float(got["rate"]), 1.0)}
        self._tracker.log(Record(kind="train", step=step, position=position, values=values, ids=as_hex(got["ids"])))
        self._line.update(step, loss)


def _batches(plan: Plan, positions: Sequence[int], line: ProgressLine) -> Ahead[Rows, tuple[Rows, dict[str, jax.Array]]]:
    """Returns (host rows, global batch on the devices) at these example positions, ahead of the step."""
    size, ranges = plan.order.global_batch, plan.train_ranges
    rows = train_batches(plan.cfg, plan.store, plan.manifest, plan.order, ranges, positions)

    def waiting(seconds: float) -> None:
        line.say(f"the step has waited {seconds:.0f} s for data of {plan.cfg.dataset}")

    return placed_ahead(rows, plan.placement.batch(size), ranges, size, plan.cfg.loader.on_device, waiting)


def _evaluate(
    plan: Plan, score: Score, state: TrainState, step: int, position: int, tracker: Trackers, line: ProgressLine
) -> None:
    """Evaluates on the eval split, where there is one, and logs it."""
    if not plan.manifest.num_rows("eval"):
        return
    metrics = evaluate(plan, score, state, "eval", limit=FAST_STEPS if plan.cfg.fast_dev_run else None)
    rows = metrics.pop("rows")
    tracker.log(Record(kind="eval", step=step, position=position, values={k: (v, rows) for k, v in metrics.items()}))
    line.say(f"step {step}: eval " + ", ".join(f"{name} {value:.5f}" for name, value in metrics.items()))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _start(plan: Plan, store: Store) -> tuple[TrainState, RunState]:
    """Returns where to go on from: the newest good step, or a fresh state at step 0."""
    fresh = _fresh_run(plan)
    restored = store.restore_newest(plan.abstract, plan.where, lambda run: _check_resume(plan, run, fresh))
    if restored is None:
        state = create(plan.model, plan.cfg.model, plan.features, plan.optimizer, plan.where, plan.cfg.seed)
        wait(state)
        return state, fresh
    state, run = restored
    _tell_resume(plan, run, fresh)
    return state, dataclasses.replace(run, attempt=run.attempt + 1, config=fresh.config, environment=fresh.environment, leaves={})


def _fresh_run(plan: Plan) -> RunState:
    """Returns the host state of a run at step 0."""
    run_id = uuid.uuid4().hex[:12]
    return RunState(
        run_id=run_id, attempt=1, step=0, next_example=0, dataset_id=plan.manifest.dataset_id,
        order={**dataclasses.asdict(plan.order), "order_version": ORDER_VERSION}, config=compare.as_json(plan.cfg),
        environment=runtime.environment(plan.placement.mesh.size), tracker_id=run_id,
    )  # fmt: skip


def _check_resume(plan: Plan, run: RunState, now: RunState) -> None:
    """Refuses a resume that would not be the same run.

    Raises:
        ConfigError: another dataset or order, or a changed field that must stay the same.
    """
    where = f"config.workdir={plan.cfg.workdir!r}"
    if run.dataset_id != now.dataset_id:
        raise ConfigError(f"{where} holds a run on dataset_id {run.dataset_id}, not {now.dataset_id}; use another workdir")
    changed = compare.differences(run.config, now.config)
    must = {path: pair for path, pair in changed.items() if compare.rule_of(plan.cfg, path) == MUST}
    for path, (old, new) in {**must, **compare.differences(dict(run.order), dict(now.order))}.items():
        raise ConfigError(f"{where} holds a run with {path}={old!r}, now {new!r}; set it back, or use another workdir")


def _tell_resume(plan: Plan, run: RunState, now: RunState) -> None:
    """Prints what a resume promises, and what changed."""
    changed = compare.differences(run.config, now.config)
    moved = compare.differences(dict(run.environment), dict(now.environment))
    moved |= {path: pair for path, pair in changed.items() if path.startswith(ARITHMETIC)}
    told = ", ".join(f"{path} {old!r} -> {new!r}" for path, (old, new) in moved.items())
    promise = f"the same examples in the same order ({told})" if moved else "the same bits"
    print(f"mlprod: resuming {plan.cfg.workdir} at step {run.step} of {plan.steps}: {promise}", file=sys.stderr)
    past = [skip for skip in plan.cfg.loader.skip if skip[1] <= run.next_example and skip not in run.skipped]
    if past:
        told = f"config.loader.skip={past} changes nothing: these examples were trained on"
        print(f"mlprod: {told}; restore an older step to leave them out", file=sys.stderr)


def _fast(cfg: Config) -> Config:
    """Returns the config of a trial run: three steps of everything, in an empty folder of its own."""
    workdir = f"{cfg.workdir}-fast"
    shutil.rmtree(workdir, ignore_errors=True)
    evaluation = dataclasses.replace(cfg.eval, every=0)
    return dataclasses.replace(cfg, steps=FAST_STEPS, epochs=0.0, workdir=workdir, eval=evaluation)


def main(cfg: Config) -> None:
    """The verb `train`."""
    runtime.start(cfg.runtime)
    train(cfg, jax.devices())


if __name__ == "__main__":
    from mlprod import cli

    sys.exit(cli.main(["train", *sys.argv[1:]]))
