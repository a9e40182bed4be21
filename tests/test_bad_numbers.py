"""NaN and infinite losses and gradients: told with what is known of them, or left out, the same wherever a run was stopped."""

import dataclasses
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from mlprod import train as story
from mlprod.bad_numbers import around, blamed, joined, within
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import Config
from mlprod.data.loader import train_batches
from mlprod.errors import Preempted, TrainingError
from mlprod.plan import make_plan
from mlprod.state import TrainState, flatten
from mlprod.tracking import LocalLog, Record, read_log
from mlprod.train import train
from tests.conftest import MakeConfig
from tests.poisoned import PoisonedConfig

SIZE = 64  # the smoke recipe's global batch
Poison = Mapping[int, float]  # batch of the first epoch -> what stands in it alone


@pytest.fixture(scope="module")
def poison(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Poison:
    """For some batches a value of the first numeric feature that no other row has."""
    from tests.conftest import smoke_config

    plan = make_plan(smoke_config(csv, dataset, tmp_path_factory.mktemp("plan")), jax.devices()[:1])
    every = range(0, 24 * SIZE, SIZE)
    batches = train_batches(plan.cfg, plan.store, plan.manifest, plan.order, plan.train_ranges, every)
    columns = [batch["numeric"][:, 0].copy() for batch in batches]
    values, counts = np.unique(np.concatenate(columns), return_counts=True)
    alone = set(values[counts == 1].tolist())
    return {k: next(float(v) for v in columns[k] if float(v) in alone) for k in (4, 5, 9, 15)}


def poisoned(make_config: MakeConfig, workdir: str, values: list[float], policy: str = "stop", **changed: Any) -> Config:
    """A run of 20 steps, saved every 7, whose loss is not finite on batches with these values."""
    becomes = changed.pop("becomes", "nan")
    bad_numbers = {"policy": policy, **changed.pop("bad_numbers", {})}
    model = PoisonedConfig(hidden=(16, 16), dropout=0.1, poison=tuple(values), becomes=becomes)
    keep = {"every": 7, "keep_last": 100}
    return make_config(workdir, **{"model": model, "steps": 20, "bad_numbers": bad_numbers, "checkpoint": keep, **changed})


def trained(cfg: Config) -> TrainState:
    """Trains on one device."""
    return train(cfg, jax.devices()[:1])


def bits(state: TrainState) -> dict[str, bytes]:
    """Every array's bytes."""
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(state).items()}


def last_lines(cfg: Config) -> dict[tuple[str, int], Any]:
    """The last line of each step, without times."""
    lines = {(line["kind"], line["step"]): line for line in read_log(Path(cfg.workdir)) if line["kind"] != "start"}
    return {key: (line["position"], line["values"], line["ids"]) for key, line in lines.items()}


@pytest.mark.parametrize("becomes", ["nan", "inf", "-inf"])
def test_a_bad_step_stops_the_run_with_what_is_known(becomes: str, make_config: MakeConfig, poison: Poison) -> None:
    """Step, examples, loss, the first bad gradient, row ids, and what to do; the last good step stays."""
    cfg = poisoned(make_config, "run", [poison[9]], becomes=becomes)
    with pytest.raises(TrainingError) as caught:
        trained(cfg)
    told = str(caught.value)
    assert told.startswith(
        f"step 10, examples {9 * SIZE} to {10 * SIZE - 1}: the loss is {becomes}, the gradient of params/head/bias is"
    )
    assert "its rows are finite, the first are row_id " in told
    assert told.endswith("or set config.bad_numbers.policy to skip or rollback")
    store = SavedSteps(Path(cfg.workdir))
    assert store.steps() == [7]
    assert max(line["step"] for line in read_log(Path(cfg.workdir))) == 9


def test_a_skipped_update_leaves_all_as_it_was(make_config: MakeConfig, poison: Poison) -> None:
    """But the step's number: parameters and moments of step 10 are those of step 9; the log says it was left out."""
    saved_each = {"every": 1, "keep_last": 100}
    cfg = poisoned(make_config, "run", [poison[9]], "skip", steps=12, checkpoint=saved_each)
    trained(cfg)
    plan = make_plan(cfg, jax.devices()[:1])
    store = SavedSteps(Path(cfg.workdir))
    nine, ten, eleven = (bits(store.restore(step, plan.abstract, plan.where)[0]) for step in (9, 10, 11))
    assert {path for path in nine if nine[path] != ten[path]} == {"step"}
    assert ten != eleven
    values = last_lines(cfg)["train", 10][1]
    assert values["skipped"] == [1.0, 1.0]
    assert "loss" not in values


def stopped(cfg: Config, at: int, monkeypatch: pytest.MonkeyPatch, kind: str = "train") -> None:
    """Trains until the log tells of a step; then the process is asked to stop, and saves."""
    real = LocalLog.log

    def log(self: LocalLog, record: Record) -> None:
        real(self, record)
        if (record.kind, record.step) == (kind, at):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(LocalLog, "log", log)
        patched.setattr(story, "LOOK_EVERY_S", 0.0)  # each step's numbers at once
        with pytest.raises(Preempted):
            trained(cfg)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("stops", [[7, 10], [2, 11, 14]], ids=str)
def test_stopped_anywhere_it_ends_with_the_same_bits(
    policy: str, stops: list[int], make_config: MakeConfig, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stop saves: before, at and behind the bad batches."""
    bad, optim = [poison[4], poison[9], poison[15]], {"average": 0.9}
    straight, cfg = (poisoned(make_config, name, bad, policy, optim=optim) for name in ("straight", "stopped"))
    wanted = bits(trained(straight))
    for at in stops:
        stopped(cfg, at, monkeypatch)
    assert bits(trained(cfg)) == wanted
    assert last_lines(cfg) == last_lines(straight)


@pytest.mark.parametrize("window", [1, 6])
def test_a_rollback_is_a_run_that_was_told_to_skip(window: int, make_config: MakeConfig, poison: Poison) -> None:
    """Bits, log and what is remembered: whole batches around the bad one are left out, from the start if need be."""
    cfg = poisoned(make_config, "run", [poison[4]], "rollback", steps=15, bad_numbers={"window": window})
    left_out = (max(0, 4 - window) * SIZE, (4 + window) * SIZE)
    harmless = dataclasses.replace(cfg.model, poison=(1e30,))
    told = poisoned(make_config, "told", [], steps=15, loader={"skip": (left_out,)}, model=harmless)
    assert bits(trained(cfg)) == bits(trained(told))
    assert last_lines(cfg) == last_lines(told)
    saved = SavedSteps(Path(cfg.workdir))
    assert saved.read_run(15).skipped == (left_out,)
    assert saved.steps() == [7, 14, 15]


def test_a_stop_right_after_a_way_back_to_the_start_saves_it(
    make_config: MakeConfig, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where step 0 was saved once, and went for newer ones."""
    keep = {"every": 3, "keep_last": 1}
    cfg = poisoned(make_config, "run", [poison[9]], "rollback", bad_numbers={"window": 20}, checkpoint=keep)
    stopped(cfg, 0, monkeypatch, "start")
    saved, real = SavedSteps(Path(cfg.workdir)), story.roll_back
    assert saved.steps() == [0]

    def roll_back(*given: Any) -> tuple[TrainState, RunState]:
        found = real(*given)
        assert saved.steps() == []
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(story, "roll_back", roll_back)
    with pytest.raises(Preempted, match="stopped after step 0 of 20, which is saved"):
        trained(cfg)
    assert saved.steps() == [0]
    assert saved.read_run(0).skipped == ((0, 29 * SIZE),)


def test_neighbouring_bad_batches_are_left_out_together(make_config: MakeConfig, poison: Poison) -> None:
    cfg = poisoned(make_config, "run", [poison[4], poison[5]], "rollback")
    trained(cfg)
    assert SavedSteps(Path(cfg.workdir)).read_run(20).skipped == ((3 * SIZE, 6 * SIZE),)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many_stop_the_run(policy: str, make_config: MakeConfig, poison: Poison) -> None:
    """A run that diverged is not nursed for ever."""
    cfg = poisoned(make_config, "run", [poison[4], poison[9]], policy, bad_numbers={"limit": 1})
    with pytest.raises(
        TrainingError, match=f"step 10, examples {9 * SIZE} .*config.bad_numbers.limit" if policy == "skip" else "limit"
    ):
        trained(cfg)


def test_rollbacks_are_counted_not_ranges(make_config: MakeConfig, poison: Poison) -> None:
    """Those of neighbouring batches join into one range: a run that diverged would go on for ever."""
    cfg = poisoned(make_config, "run", [poison[4], poison[5], poison[9]], "rollback", bad_numbers={"limit": 2})
    with pytest.raises(TrainingError, match=r"rolled back 2 times before it \(config.bad_numbers.limit\)"):
        trained(cfg)


def test_rows_that_are_bad_themselves_are_named() -> None:
    rows = {
        "row_id": np.arange(8, dtype=np.uint32).reshape(4, 2),
        "numeric": np.array([[0, 1], [0, np.inf], [0, 0], [np.nan, 0]], np.float32),
        "label": np.zeros(4, np.float32),
    }
    assert blamed(rows) == "2 of its rows hold NaN or infinity: row_id 0000000300000002, 0000000700000006"


def test_ranges_of_examples() -> None:
    assert around(640, 2, 64) == (512, 768)
    assert around(0, 3, 64) == (0, 192)
    assert joined([(5, 7), (1, 3), (3, 4), (6, 6)]) == ((1, 4), (5, 7))
    assert joined([]) == ()
    assert within((1, 3), [(0, 3), (5, 6)])
    assert not within((2, 6), [(0, 3), (3, 6)])
