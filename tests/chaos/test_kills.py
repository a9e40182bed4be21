"""Killed and started again, a run ends with the bits of the straight run. The heart of the product."""

import dataclasses
import itertools
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlprod.checkpoint.copies import Copies
from mlprod.checkpoint.saved import SavedSteps
from mlprod.manifest import Manifest
from tests.chaos.builds import Kill, as_table, build_for, files_of, phase_of, tasks_done
from tests.chaos.harness import EIGHT_DEVICES, LIMIT_S, ONE_DEVICE, Run, assert_same_end, kill_at, last_lines, random_kills
from tests.chaos.phases import Row, kill_in, phases
from tests.conftest import RECIPE, MakeConfig
from tests.plain import stored

DEVICES = {"one": ONE_DEVICE, "eight": EIGHT_DEVICES}
Straight = Callable[[str], Run]


@pytest.fixture(scope="module")
def straight(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Runs straight through on "one" or "eight" devices, once each."""
    from tests.conftest import smoke_config

    done: dict[str, Run] = {}

    def run(devices: str) -> Run:
        if devices not in done:
            done[devices] = Run(smoke_config(csv, dataset, tmp_path_factory.mktemp(devices) / "straight"), DEVICES[devices])
            assert done[devices].finish() == 0, Path(f"{done[devices].workdir}.out").read_text()
        return done[devices]

    return run


def killed(run: Run, kills: int, seed: int) -> None:
    """Kills a run so many times, lets it end, and prints the table."""
    table = random_kills(run, kills, seed)
    assert run.finish() == 0, Path(f"{run.workdir}.out").read_text()
    for row in table:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    assert sum(row["exit"] == -signal.SIGKILL for row in table) == kills, "a run ended before it could be killed"


@pytest.mark.parametrize("devices", DEVICES)
def test_killed_run_ends_with_the_bits_of_the_straight_run(devices: str, straight: Straight, make_config: MakeConfig) -> None:
    """Three SIGKILLs at random moments: parameters, optimizer state, losses, metrics and example ids are equal bit for bit."""
    run = Run(make_config("killed"), DEVICES[devices])
    killed(run, 3, seed=1)
    assert_same_end(run, straight(devices))


@pytest.mark.chaos
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("seed", range(2))
def test_ten_kills(devices: str, seed: int, straight: Straight, make_config: MakeConfig) -> None:
    """The long form at random moments: ten kills, four times."""
    run = Run(make_config(f"killed-{seed}"), DEVICES[devices])
    killed(run, 10, seed=10 + seed)
    assert_same_end(run, straight(devices))


BUSY = ("--config.checkpoint.every=3", "--config.checkpoint.keep_last=1", "--config.eval.every=4")
PER_PHASE = 20  # kills in the long form


@pytest.fixture(scope="module")
def busy(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Straight runs that save, prune and evaluate all the time."""
    from tests.conftest import smoke_config

    done: dict[str, Run] = {}

    def run(devices: str) -> Run:
        if devices not in done:
            cfg = smoke_config(csv, dataset, tmp_path_factory.mktemp(f"busy-{devices}") / "straight", eval={"every": 4})
            done[devices] = Run(cfg, DEVICES[devices], given=BUSY)
            assert done[devices].finish() == 0, done[devices].output()
        return done[devices]

    return run


def killed_in(name: str, wanted: int, devices: str, busy: Straight, make_config: MakeConfig, published: Manifest) -> list[Row]:
    """Kills runs in a phase so many times, each run until it is done, and compares their ends with the straight run's."""
    phase, rows = phases(published.num_rows("train") // 64)[name], list[Row]()
    for number in range(2 * wanted):  # a run may end before it could be killed
        run = Run(make_config(f"{devices}-{number}", eval={"every": 4}), DEVICES[devices], given=BUSY)
        found = kill_in(run, name, phase, wanted - len(rows), random.Random(f"{name} {devices} {number}"))
        assert_same_end(run, busy(devices))
        rows += found
        if len(rows) >= wanted:
            break
    return rows


@pytest.mark.parametrize("name", ["save: writing", "prune", "evaluate"])
def test_killed_in_a_phase(name: str, busy: Straight, make_config: MakeConfig, published: Manifest) -> None:
    """Twice while it saves, throws away or evaluates: nothing differs; what was not evaluated is evaluated again."""
    assert len(killed_in(name, 2, "one", busy, make_config, published)) == 2


@pytest.mark.chaos
@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", phases(1))
def test_killed_in_every_phase(name: str, devices: str, busy: Straight, make_config: MakeConfig, published: Manifest) -> None:
    """The long form: twenty kills in each phase, on one device and on eight; a line of the table for each."""
    rows = killed_in(name, PER_PHASE, devices, busy, make_config, published)
    assert len(rows) == PER_PHASE
    gentle = sum(row["signal"] == "SIGTERM" for row in rows)
    print(f"{name}, {devices}: {len(rows)} kills, {gentle} of them SIGTERM, 0 differences")


MANY_TASKS = ("--config.etl.chunk_rows=100", "--config.etl.memory_bytes=1048576")


@pytest.mark.parametrize(
    "wanted, executor",
    [
        (4, "threads"),
        pytest.param(50, "threads", marks=pytest.mark.chaos),
        pytest.param(12, "processes", marks=pytest.mark.chaos),
    ],
)
def test_a_killed_build_is_the_straight_one(
    wanted: int, executor: str, make_config: MakeConfig, dataset: Path, tmp_path: Path
) -> None:
    """SIGKILLs at random moments: the same files to the byte, no half version is ever seen, no task is done twice."""
    dice, kills, seconds, taken = random.Random("builds 3"), list[Kill](), 0.0, 0
    for number in itertools.count():  # the first is not killed
        cfg = dataclasses.replace(make_config(f"etl-{number}"), dataset=str(tmp_path / f"dataset-{number}"))
        run, folder = Run(cfg, (), given=(*MANY_TASKS, f"--config.etl.executor={executor}")), Path(cfg.dataset)
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            done, there = tasks_done(folder), phase_of(folder) == "published"
            taken = taken if there else len(done)
            code, took = build_for(run, dice.uniform(0.0, seconds) if number and len(kills) < wanted else LIMIT_S)
            if code == -signal.SIGKILL:
                kills.append(Kill(phase_of(folder), len(tasks_done(folder))))
                assert there or kills[-1].phase == "published" or done.items() <= tasks_done(folder).items()
        assert code == 0, run.output()
        said = [int(n) for n in re.findall(r"([0-9]+) task\(s\) had been done by an attempt before", run.output())]
        assert said == [taken] * (taken > 0) or (there and not said)  # a kill may come before it is said, or behind
        assert files_of(folder) == files_of(dataset)
        assert [path.name for path in (folder / "work").iterdir()] == ["lock"]
        seconds = seconds or 0.7 * took
        if len(kills) >= wanted:
            break
    print(as_table(kills))


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.chaos)])
def test_bad_numbers_under_kills(
    policy: str, kills: int, make_config: MakeConfig, published: Manifest, dataset: Path, tmp_path: Path
) -> None:
    """Batches with no finite loss, left out or rolled back from, wherever the run is killed."""
    values = unique_values(dataset, published, count=3)
    given = (f"--config.bad_numbers.policy={policy}", "--config.checkpoint.every=5", f"--config.model.poison={values}")
    recipe = RECIPE.with_name("poisoned.py")
    straight, run = (Run(make_config(name), ONE_DEVICE, recipe=recipe, given=given) for name in ("straight", "killed"))
    assert straight.finish() == 0, straight.output()
    killed(run, kills, seed=4)
    assert_same_end(run, straight)


def unique_values(dataset: Path, published: Manifest, count: int) -> tuple[float, ...]:
    """Values of the first numeric feature of the training split that one row alone has."""
    values, counts = np.unique(stored(dataset, published, "train")["numeric"][:, 0], return_counts=True)
    alone = values[counts == 1]
    return tuple(float(value) for value in alone[:: len(alone) // count][:count])


@pytest.mark.parametrize("machines", [2, pytest.param(PER_PHASE, marks=pytest.mark.chaos)])
def test_lost_machines(machines: int, busy: Straight, make_config: MakeConfig, tmp_path: Path) -> None:
    """Killed at random, and its folder is gone: from the copies of its steps alone it ends with the same bits."""
    copies, dice, lost = Copies(str(tmp_path / "copies")), random.Random(machines), 0
    given = (*BUSY, f"--config.checkpoint.copies={copies.location}")
    run = Run(make_config("run", eval={"every": 4}), ONE_DEVICE, printed=str(tmp_path / "out"), given=given)
    while lost < machines:
        newest = max(copies.steps(), default=0)
        _, code = kill_at(run, newest + dice.randint(1, 15), 0.05 * dice.random())
        lost += code == -signal.SIGKILL
        shutil.rmtree(run.workdir, ignore_errors=True)
        if code == 0:  # it ended before it could be killed: as a new run
            shutil.rmtree(tmp_path / "copies")
    assert run.finish() == 0, run.output()
    assert "was brought from" in run.output()
    assert digests(run) == digests(busy("one"))
    print(f"{lost} machines lost, 0 differences")


def digests(run: Run) -> dict[str, str]:
    """Of the arrays of the last step, which is read again."""
    saved = SavedSteps(run.workdir)
    saved.verify(saved.steps()[-1])
    return {path: row["digest"] for path, row in saved.read_run(saved.steps()[-1]).leaves.items()}


def test_moved_to_other_devices_it_sees_the_same_examples(straight: Straight, make_config: MakeConfig) -> None:
    """Killed on 8 devices and started on 1: the same ids at every step, the loss within 1e-5 for 20 steps after the change."""
    run = Run(make_config("moved"), EIGHT_DEVICES)
    kill_at(run, 30, 0.0)
    moved = Run(run.cfg, ONE_DEVICE)
    assert moved.finish() == 0, Path(f"{run.workdir}.out").read_text()
    ours, theirs = last_lines(run.workdir), last_lines(straight("eight").workdir)
    assert ours.keys() == theirs.keys()
    assert all(ours[key]["ids"] == theirs[key]["ids"] and ours[key]["position"] == theirs[key]["position"] for key in theirs)
    for step in range(1, 48):
        assert ours["train", step]["values"]["loss"][0] == pytest.approx(theirs["train", step]["values"]["loss"][0], rel=1e-5)
    assert "the same examples in the same order (devices 8 -> 1" in Path(f"{run.workdir}.out").read_text()


def test_sigterm_saves_and_says_start_again(straight: Straight, make_config: MakeConfig) -> None:
    """A run that is asked to stop saves its last step, exits 75, and goes on to the straight run's bits."""
    run = Run(make_config("stopped"), ONE_DEVICE)
    seen, code = kill_at(run, 23, 0.0, signal.SIGTERM)
    assert code == 75
    assert "the same command goes on from there" in Path(f"{run.workdir}.out").read_text()
    assert run.finish() == 0
    first_of_second = next(line for line in map(dict, _attempt(run.workdir, 2)))
    assert first_of_second["step"] >= seen, "the step that was done when the signal came was not saved"
    assert_same_end(run, straight("one"))


def _attempt(workdir: Path, number: int) -> list[dict[str, object]]:
    from mlprod.tracking import read_log

    return [line for line in read_log(workdir) if line["attempt"] == number]
