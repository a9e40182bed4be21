"""Which saved steps stay, and that nothing goes before a newer one was read back, nor anything the run did not make."""

import dataclasses
import json
import shutil
import threading
import time
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlprod.checkpoint import readback, retention
from mlprod.checkpoint.run_state import Damaged
from mlprod.checkpoint.saved import SavedSteps
from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig
from mlprod.errors import CheckpointError, WorkdirError
from mlprod.plan import Plan
from mlprod.train import train
from tests.checkpoint.saved import at, data_files, fresh, run_state
from tests.conftest import MakeConfig

NAN = float("nan")
LOSSES = {1: 0.9, 2: 0.5, 3: 0.7, 4: NAN, 5: 0.6, 6: 0.8}
STEPS = {step: {"log_loss": loss, "auc": 1 - loss} for step, loss in LOSSES.items()}


@pytest.mark.parametrize(
    "rules, kept",
    [
        ({"keep_best": ""}, [5, 6]),
        ({"keep_last": 1, "keep_best": ""}, [6]),
        ({}, [2, 5, 6]),
        ({"keep_best": "auc"}, [2, 5, 6]),
        ({"keep_best": "accuracy"}, [5, 6]),
        ({"keep_every": 3, "keep_last": 1}, [2, 3, 6]),
        ({"pins": (1, 4, 77), "keep_last": 1}, [1, 2, 4, 6]),
        ({"keep_last": 9}, [1, 2, 3, 4, 5, 6]),
    ],
    ids=str,
)
def test_what_stays(rules: dict[str, object], kept: list[int]) -> None:
    """The last, every so many, the best (lower is better of losses, higher of areas; NaN never), and pinned ones."""
    gone = retention.superfluous(STEPS, 6, CheckpointConfig(**rules))
    assert [step for step in STEPS if step not in gone] == kept


def test_the_later_of_equally_good_steps_is_the_best() -> None:
    assert retention.best_step({1: {"auc": 0.5}, 2: {"auc": 0.5}, 3: {}}, "auc") == 2
    assert retention.best_step({1: {}, 3: {"auc": NAN}}, "auc") == -1


@given(
    steps=st.dictionaries(st.integers(0, 50), st.fixed_dictionaries({"log_loss": st.floats()}), min_size=1),
    good=st.integers(0, 50), last=st.integers(1, 5), every=st.integers(0, 9), pins=st.sets(st.integers(0, 50)),
)  # fmt: skip
def test_what_is_newer_than_the_good_step_never_goes(
    steps: dict[int, dict[str, float]], good: int, last: int, every: int, pins: set[int]
) -> None:
    """Nor the good step itself."""
    cfg = CheckpointConfig(keep_last=last, keep_every=every, pins=tuple(pins))
    gone = set(retention.superfluous(steps, good, cfg))
    assert all(step < good for step in gone)
    assert not gone & pins
    assert gone | {step for step, why in retention.reasons(steps, cfg).items() if why or step >= good} == set(steps)


def save(store: Store, plan: Plan, *steps: int, **changed: object) -> None:
    """Saves steps one after the other."""
    for step in steps:
        store.save(at(fresh(plan), step), dataclasses.replace(run_state(step), **changed))


def test_nothing_goes_before_a_newer_step_was_read_back(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While reading back fails or is not done, all steps stay."""
    with Store(tmp_path, CheckpointConfig(keep_last=1)) as store:
        save(store, plan, 1, 2, 3)
        store.finish_save()
        assert store.saved.steps() == [1, 2, 3]
        store.finish()
        assert store.saved.steps() == [3]
        save(store, plan, 4)
        store.finish_save()
        for file in data_files(store, 4):
            file.write_bytes(bytes(file.stat().st_size))
        with pytest.raises(CheckpointError, match="00000004 was read back and is not what was saved"):
            store.finish()
        assert store.saved.steps() == [3, 4]
        assert store.good[-1] == 3, "what a tracker may have"


def test_reading_back_goes_on_beside_the_steps(plan: Plan, tmp_path: Path) -> None:
    """`check` alone gets it done; a save under way is not disturbed."""
    with Store(tmp_path, CheckpointConfig(keep_last=1)) as store:
        for step in range(1, 6):
            save(store, plan, step)
            while store._pending >= 0 or store._reading is not None:
                time.sleep(0.005)
                store.check()
        assert store.saved.steps() == [5]
        assert sorted(path.name for path in store.saved.root.iterdir()) == ["00000005"]


def test_what_was_restored_was_found_good(plan: Plan, tmp_path: Path) -> None:
    """A run that ended before it could read back, or with other rules, throws away what need not stay when it starts again."""
    with Store(tmp_path, CheckpointConfig()) as store:
        save(store, plan, 1, 2, 3)
    with Store(tmp_path, CheckpointConfig(keep_last=1)) as store:
        assert store.saved.steps() == [1, 2, 3]
        assert store.restore_newest(plan.abstract, plan.where) is not None
        assert store.saved.steps() == store.good == [3]


def test_steps_are_forgotten_while_one_is_read_back(plan: Plan, tmp_path: Path) -> None:
    """Its reading may find it gone: that is no error."""
    with Store(tmp_path, CheckpointConfig()) as store:
        save(store, plan, 1, 2)
        store.finish_save()
        store.check()
        assert store._reading is not None
        store.forget_after(64)
        assert store.saved.steps() == [1]
        store.finish()
        save(store, plan, 2)
        store.finish()
        assert store.saved.steps() == [1, 2]


def test_only_what_the_run_made_goes(plan: Plan, tmp_path: Path) -> None:
    """Not another run's steps, nor damaged ones, nor files of other names, nor what a link leads to."""
    with Store(tmp_path / "other", CheckpointConfig()) as store:
        save(store, plan, 1, run_id="another")
    shutil.copytree(tmp_path / "other", tmp_path / "run")
    with Store(tmp_path / "run", CheckpointConfig(keep_last=1)) as store:
        save(store, plan, 2, 3, 4)
        store.finish_save()
        (store.saved.folder(3) / "run" / "metadata").write_text("{}")
        (store.saved.root / "notes").mkdir()
        (store.saved.root / "README").write_text("mine")
        store.finish()
        assert store.saved.steps() == [1, 3, 4]
        assert {path.name for path in store.saved.root.iterdir()} == {"00000001", "00000003", "00000004", "notes", "README"}


@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_is_no_step_is_told_before_the_first_step(what: str, plan: Plan, tmp_path: Path) -> None:
    """Orbax would take it for one, and refuse to save."""
    (tmp_path / "elsewhere" / "run").mkdir(parents=True)
    root = tmp_path / "checkpoints"
    root.mkdir()
    (root / "00000099").mkdir() if what == "folder" else (root / "00000099").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WorkdirError, match="has something named 99 that is no saved step; move it away"):
        Store(tmp_path, CheckpointConfig())


def test_what_a_kill_left_half_removed_is_removed(plan: Plan, tmp_path: Path) -> None:
    """A step on its way out is no step."""
    with Store(tmp_path, CheckpointConfig()) as store:
        save(store, plan, 1, 2)
    (tmp_path / "checkpoints" / "going").mkdir()
    (tmp_path / "checkpoints" / "00000001").rename(tmp_path / "checkpoints" / "going" / "00000001")
    saved = SavedSteps(tmp_path)
    assert saved.steps() == [2]
    assert (tmp_path / "checkpoints" / "going").exists(), "a reader changes nothing"
    with Store(tmp_path, CheckpointConfig()) as store:
        assert saved.steps() == [2]
    assert not (tmp_path / "checkpoints" / "going").exists()


def shares(saved: SavedSteps, step: int, meeting: Path) -> dict[int, str]:
    """What each of three processes finds when they read a step back together: "" or why it is damaged."""
    found: dict[int, str] = {}

    def read(index: int) -> None:
        try:
            readback.verify(saved.address(step), saved.read_run(step).leaves, index, 3, meeting)
        except Damaged as error:
            found[index] = str(error)
        else:
            found[index] = ""

    threads = [threading.Thread(target=read, args=(index,), daemon=True) for index in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


def test_shares_of_several_processes_add_up(plan: Plan, tmp_path: Path) -> None:
    """Each reads a part; process 0 compares the sum, and learns at once of what another one could not read."""
    with Store(tmp_path / "run", CheckpointConfig()) as store:
        save(store, plan, 1)
    meeting = tmp_path / "meeting"
    assert shares(store.saved, 1, meeting) == {0: "", 1: "", 2: ""}
    assert not meeting.exists(), "shares are left for no one"
    for file in data_files(store, 1):
        file.write_bytes(bytes(file.stat().st_size))
    found = shares(store.saved, 1, tmp_path / "harmed")
    assert found.keys() == {0, 1, 2}, "nobody waits for a share that will not come"
    assert all(found.values())


def test_process_0_learns_what_another_one_found(plan: Plan, tmp_path: Path) -> None:
    """Its own share is whole, and so is the sum of none."""
    with Store(tmp_path / "run", CheckpointConfig()) as store:
        save(store, plan, 1)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    (meeting / "1-of-2.json").write_text('{"damaged": "a part cannot be read", "words": {}}')
    with pytest.raises(Damaged, match="a part cannot be read"):
        readback.verify(store.saved.address(1), store.saved.read_run(1).leaves, 0, 2, meeting)


def test_a_share_that_differs_refuses_the_step(plan: Plan, tmp_path: Path) -> None:
    with Store(tmp_path / "run", CheckpointConfig()) as store:
        save(store, plan, 1)
    meeting, table = tmp_path / "meeting", store.saved.read_run(1).leaves
    other = readback.share(store.saved.address(1), table, 1, 2)
    path = next(path for path, words in other.items() if words != [0, 0])
    other[path][0] ^= 1
    meeting.mkdir()
    (meeting / "1-of-2.json").write_text(json.dumps({"damaged": "", "words": other}))
    with pytest.raises(Damaged, match=f"1 array\\(s\\) differ from what was saved: {path}"):
        readback.verify(store.saved.address(1), table, 0, 2, meeting)


def test_saves_that_overlap_are_read_back(plan: Plan, tmp_path: Path) -> None:
    """Where each save begins before the one before is written, older steps go all the same."""
    with Store(tmp_path, CheckpointConfig(keep_last=1)) as store:
        for step in range(1, 9):
            store._manager.is_saving_in_progress = lambda: True  # type: ignore[method-assign] # a save that never ends
            save(store, plan, step)
            while store._reading is not None and not store._reading[1].done():
                time.sleep(0.005)
        assert len(store.saved.steps()) < 8
        store.finish()
        assert store.saved.steps() == [8]


def test_a_run_keeps_its_best_step(make_config: MakeConfig) -> None:
    """Evaluated with each save; the step with the least loss stays beside the newest ones, and the listing says why."""
    cfg = make_config(steps=40, eval={"every": 8}, checkpoint={"every": 8, "keep_last": 1, "keep_best": "log_loss"})
    train(cfg, jax.devices()[:1])
    saved = SavedSteps(Path(cfg.workdir))
    runs = {step: saved.read_run(step) for step in saved.steps()}
    losses = {step: run.metrics["log_loss"] for step, run in runs.items()}
    assert 40 in losses
    assert len(losses) <= 2
    assert min(losses.values()) == losses[retention.best_step({s: r.metrics for s, r in runs.items()}, "log_loss")]
