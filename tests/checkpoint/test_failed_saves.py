"""A background save that fails ends the run by the next step with the real cause; what was saved before stands."""

import dataclasses
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig
from mlprod.plan import Plan
from tests.chaos.harness import LIMIT_S, ONE_DEVICE, Run
from tests.checkpoint.saved import at, fresh, run_state
from tests.conftest import MakeConfig
from tests.disks import fill, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 6 MB."""
    with small_disk(tmp_path / "disk", "6m") as folder:
        yield folder
        checkpoints = folder / "run" / "checkpoints"
        if os.path.ismount(checkpoints):
            subprocess.run(["umount", "-l", str(checkpoints)], check=False, capture_output=True)


def mend(folder: Path) -> None:
    """There is space again, and steps may be written."""
    subprocess.run(["umount", str(folder / "run" / "checkpoints")], check=False, capture_output=True)
    (folder / "filler").unlink(missing_ok=True)


def read_only(folder: Path) -> None:
    """No step may be written."""
    checkpoints = str(folder / "run" / "checkpoints")
    subprocess.run(["mount", "--bind", checkpoints, checkpoints], check=True, capture_output=True)
    for _ in range(500):  # not while a file there is being written
        if not subprocess.run(["mount", "-o", "remount,bind,ro", checkpoints], check=False, capture_output=True).returncode:
            return
        time.sleep(0.01)
    raise AssertionError("it never was idle")


def remove(folder: Path) -> None:
    """The run's folder of checkpoints is gone."""
    (folder / "run" / "checkpoints").rename(folder / "away")


def forbid(folder: Path) -> None:
    """Something else stands where the next step would."""
    (folder / "run" / "checkpoints").rename(folder / "away")
    (folder / "run" / "checkpoints").write_text("a file")


CAUSES = {
    fill: "No space left|RESOURCE_EXHAUSTED",
    read_only: "Read-only file system",
    forbid: "Not a directory|was the folder removed",
    remove: "was the folder removed",
}


@pytest.mark.parametrize("harm", CAUSES)
def test_a_run_whose_saves_fail(
    harm: Callable[[Path], None], make_config: MakeConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Exit 1 within a few steps, the last line tells the cause; the last good step stands, the same command goes on from it."""
    disk = request.getfixturevalue("disk") if harm in (fill, read_only) else tmp_path / "folder"
    run = Run(dataclasses.replace(make_config(), workdir=str(disk / "run")), ONE_DEVICE, f"{disk}.out")
    every = ("--config.checkpoint.every=20", "--config.checkpoint.keep_last=3", "--config.eval.every=0")
    process, deadline = run.start("--config.steps=1000000", *every), time.monotonic() + LIMIT_S
    checkpoints = run.workdir / "checkpoints"
    while not list(checkpoints.glob("00000040/commit_success.txt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    harm(disk)
    seen = run.last_step()
    process.join(LIMIT_S)
    assert process.exitcode == 1, run.output()
    last = [line for line in run.output().splitlines() if line.startswith("mlprod: ")][-1]
    assert re.search(CAUSES[harm], last), run.output()
    assert "Event loop is closed" not in run.output()
    assert run.last_step() - seen < 200
    if harm in (fill, read_only):
        mend(disk)
        assert run.finish(f"--config.steps={run.last_step() + 1}", *every) == 0, run.output()
        assert "mlprod: resuming" in run.output()


@pytest.mark.parametrize("saves", [20, pytest.param(100, marks=pytest.mark.chaos)])
def test_many_saves_leave_memory_flat(saves: int, plan: Plan, tmp_path: Path) -> None:
    """From the tenth to the last, read back and pruned on the way: within 5%."""
    sizes = list[int]()
    with Store(tmp_path, CheckpointConfig(keep_last=2)) as store:
        for step in range(1, saves + 1):
            store.save(at(fresh(plan), step), run_state(step))
            store.finish()
            sizes.append(resident_bytes())
        assert store.saved.steps() == [saves - 1, saves]
    assert max(sizes[10:]) < 1.05 * sizes[10], sizes[::10]


def resident_bytes() -> int:
    """This process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
