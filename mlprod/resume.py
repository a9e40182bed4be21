"""Where a run goes on from: the newest good step, the first one, or, after bad numbers, one from before them.

Promise: a resume that would not be the same run is refused with what differs; one that is says what it promises, and what
changed. Which of the promises of `docs/resume.md` holds follows from what changed alone.
"""

import dataclasses
import sys
import uuid

from mlprod import compare, runtime
from mlprod.bad_numbers import RollBack, around, joined, within
from mlprod.checkpoint.init import begin_from
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.store import Store
from mlprod.config import MUST
from mlprod.errors import ConfigError, TrainingError
from mlprod.ledger import Ledger
from mlprod.order import ORDER_VERSION
from mlprod.parallel.place import wait
from mlprod.plan import Plan
from mlprod.state import TrainState, create

# Fields that decide bits.
ARITHMETIC = (
    "steps", "epochs", "model", "optim", "precision", "mesh", "runtime.platform", "runtime.num_cpu_devices",
    "runtime.deterministic", "eval.batch", "loader.skip", "bad_numbers", "loss",
)  # fmt: skip


def start(plan: Plan, store: Store, ledger: Ledger) -> tuple[TrainState, RunState]:
    """Returns where to go on from: the newest good step, or a fresh state at step 0."""
    fresh = _fresh_run(plan)
    with ledger.spent("restore"):
        restored = store.restore_newest(plan.abstract, plan.where, lambda run: _check_resume(plan, run, fresh))
    if restored is None:
        with ledger.spent("state"):
            return _first_state(plan), fresh
    state, run = restored
    _tell_resume(plan, run, fresh)
    return state, dataclasses.replace(run, attempt=run.attempt + 1, config=fresh.config, environment=fresh.environment, leaves={})


def _first_state(plan: Plan) -> TrainState:
    """Returns the state of step 0: fresh, and what the config takes from another run."""
    state = create(plan.model, plan.cfg.model, plan.features, plan.optimizer, plan.where, plan.cfg.seed)
    if plan.cfg.init.workdir:
        state = begin_from(plan.cfg.init, state, plan.abstract, plan.where, plan.manifest.features_sha256)
    wait(state)
    return state


def roll_back(plan: Plan, store: Store, run: RunState, bad: RollBack, number: int) -> tuple[TrainState, RunState]:
    """Returns the newest good state from before the examples that are left out now, if only that of step 0.

    Args:
        number: of rollbacks in this attempt, with this one. Ranges would not tell: those of a run that diverged join into one.

    Raises:
        TrainingError: there were too many.
    """
    cfg = plan.cfg.bad_numbers
    left_out = around(bad.position, cfg.window, plan.order.global_batch)
    if number > cfg.limit:
        raise TrainingError(f"{bad}; the run was rolled back {cfg.limit} times before it (config.bad_numbers.limit)")
    store.forget_after(left_out[0])
    restored = store.restore_newest(plan.abstract, plan.where)
    state, found = restored or (_first_state(plan), dataclasses.replace(run, step=0, next_example=0, progress={}))
    skipped = joined((*run.skipped, *found.skipped, left_out))
    print(f"mlprod: {bad}; going back to step {found.step}, examples {left_out} are left out", file=sys.stderr, flush=True)
    return state, dataclasses.replace(
        run, step=found.step, next_example=found.next_example, skipped=skipped, progress=found.progress
    )


def _fresh_run(plan: Plan) -> RunState:
    """Returns the host state of a run at step 0."""
    run_id = uuid.uuid4().hex[:12]
    return RunState(
        run_id=run_id, attempt=1, step=0, next_example=0, dataset_id=plan.manifest.dataset_id,
        order={**dataclasses.asdict(plan.order), "order_version": ORDER_VERSION}, config=compare.as_json(plan.cfg),
        environment=runtime.environment(plan.placement.mesh.size), tracker_id=run_id,
        features_sha256=plan.manifest.features_sha256,
    )  # fmt: skip


def _check_resume(plan: Plan, run: RunState, now: RunState) -> None:
    """Refuses a resume that would not be the same run.

    Raises:
        ConfigError: another dataset or order, or a changed field that must stay the same.
    """
    where = f"config.workdir={plan.cfg.workdir!r}"
    if run.dataset_id != now.dataset_id:
        raise ConfigError(
            f"{where} holds a run on dataset_id {run.dataset_id}, not {now.dataset_id}, which is version {plan.manifest.version} "
            f"of {plan.cfg.dataset}; use another workdir, which may begin from its arrays by config.init.workdir, or name the "
            f"version that it began with by config.dataset_version"
        )
    changed = compare.differences(compare.completed(run.config, plan.cfg), now.config)
    must = {path: pair for path, pair in changed.items() if compare.rule_of(plan.cfg, path) == MUST}
    for path, (old, new) in {**must, **compare.differences(dict(run.order), dict(now.order))}.items():
        raise ConfigError(f"{where} holds a run with {path}={old!r}, now {new!r}; set it back, or use another workdir")


def _tell_resume(plan: Plan, run: RunState, now: RunState) -> None:
    """Prints what a resume promises, and what changed."""
    changed = compare.differences(compare.completed(run.config, plan.cfg), now.config)
    moved = compare.differences(dict(run.environment), dict(now.environment))
    moved |= {path: pair for path, pair in changed.items() if path.startswith(ARITHMETIC)}
    told = ", ".join(f"{path} {old!r} -> {new!r}" for path, (old, new) in moved.items())
    promise = f"the same examples in the same order ({told})" if moved else "the same bits"
    print(f"mlprod: resuming {plan.cfg.workdir} at step {run.step} of {plan.steps}: {promise}", file=sys.stderr)
    past = [skip for skip in plan.cfg.loader.skip if skip[1] <= run.next_example and not within(skip, run.skipped)]
    if past:
        told = f"config.loader.skip={past} changes nothing: these examples were trained on"
        print(f"mlprod: {told}; restore an older step to leave them out", file=sys.stderr)
