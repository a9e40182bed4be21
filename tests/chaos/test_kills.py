"""Killed and started again, a run ends with the bits of the straight run. The heart of the product."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.harness import EIGHT_DEVICES, ONE_DEVICE, Run, assert_same_end, kill_at, last_lines, random_kills
from tests.conftest import MakeConfig

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
    """The long form: ten kills."""
    run = Run(make_config(f"killed-{seed}"), DEVICES[devices])
    killed(run, 10, seed=10 + seed)
    assert_same_end(run, straight(devices))


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
