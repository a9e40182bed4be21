"""Several processes on the loopback: the same examples, and what one of them decides or is told, all do after the same step."""

import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlprod.checkpoint.saved import SavedSteps
from mlprod.tracking import read_log
from tests.chaos.harness import LIMIT_S, Run, assert_same_end, last_lines
from tests.conftest import MakeConfig

DEVICES = ("--config.mesh.fsdp=2",)  # one each
ONE_PROCESS = ("--config.runtime.num_cpu_devices=2", "--config.mesh.fsdp=2")
BY_TIME = ("--config.checkpoint.every=0", "--config.checkpoint.every_s=0.1", "--config.checkpoint.keep_last=100")
Lines = Mapping[tuple[str, int], Mapping[str, Any]]


def ended(run: Run, *more: str, count: int = 2) -> list[int]:
    """The exit codes of the run's processes."""
    processes = run.start_several(count, *more)
    for process in processes:
        process.join(LIMIT_S)
    return [process.exitcode for process in processes]


def stop_at(run: Run, step: int, count: int, asked: int) -> list[int]:
    """Starts the run's processes, asks one of them to stop when the log tells of a step, and returns their exit codes."""
    processes, deadline = run.start_several(count), time.monotonic() + LIMIT_S
    while run.last_step() < step and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(processes[asked].pid, signal.SIGTERM)
    for process in processes:
        process.join(LIMIT_S)
    return [process.exitcode for process in processes]


def groups_read(run: Run, index: int) -> list[int]:
    """The row groups of the training split that a process has read, as often as it did."""
    return [int(line) for line in Path(f"{run.workdir}.out.{index}.reads").read_text().split()]


def assert_close(ours: Lines, theirs: Lines) -> None:
    """Asserts that two runs saw the same examples in the same order, and that their numbers are close."""
    assert ours.keys() == theirs.keys()
    assert all((ours[key]["ids"], ours[key]["position"]) == (theirs[key]["ids"], theirs[key]["position"]) for key in theirs)
    for key in theirs:
        for name in ("loss", "log_loss", "auc"):
            if name in theirs[key]["values"]:
                assert ours[key]["values"][name][0] == pytest.approx(theirs[key]["values"][name][0], rel=1e-5)


def test_two_processes_train_as_one_does(make_config: MakeConfig) -> None:
    """The same ids, close losses, half of the data each; process 0's clock alone decides on saves; a stop that one is told of,
    both make, and what they saved goes on to the same bits, or on one process to the same examples."""
    one = Run(make_config("one"), ONE_PROCESS)
    assert ended(one, count=1) == [0], one.output()
    two = Run(make_config("two"), DEVICES, given=BY_TIME)
    assert ended(two) == [0, 0], two.output()
    assert_close(last_lines(two.workdir), last_lines(one.workdir))
    alone, ours = groups_read(one, 0), [groups_read(two, 0), groups_read(two, 1)]
    assert {*ours[0], *ours[1]} == {*alone}
    assert all(len(each) < 0.56 * len(alone) for each in ours), "half each, but for groups that lie on a lane's border"
    assert [line["kind"] for line in read_log(two.workdir)].count("start") == 1, "process 0 alone writes"
    assert len(SavedSteps(two.workdir).steps()) > 2, "nobody's clock decided"
    stopped = Run(make_config("stopped"), DEVICES, given=BY_TIME)
    assert stop_at(stopped, 10, 2, asked=1) == [75, 75], stopped.output()
    moved = Run(make_config("moved"), ())
    shutil.copytree(stopped.workdir, moved.workdir)
    assert ended(stopped) == [0, 0], stopped.output()
    assert "the same bits" in stopped.output()
    assert_same_end(stopped, two)
    assert moved.finish() == 0, moved.output()
    assert "processes 2 -> 1" in moved.output()
    assert_close(last_lines(moved.workdir), last_lines(one.workdir))


def test_processes_that_share_rows_read_the_same(make_config: MakeConfig) -> None:
    """A tensor axis across two processes: both read all that the batch needs, and the losses are those of one process."""
    more = ("--config.steps=12", "--config.eval.every=0", "--config.mesh.layout=fsdp_tensor")
    one = Run(make_config("one"), ("--config.runtime.num_cpu_devices=2", "--config.mesh.tensor=2"), given=more)
    assert one.finish() == 0, one.output()
    two = Run(make_config("two"), ("--config.mesh.tensor=2",), given=more)
    assert ended(two) == [0, 0], two.output()
    assert_close(last_lines(two.workdir), last_lines(one.workdir))
    assert sorted(groups_read(two, 0)) == sorted(groups_read(two, 1)) != []


@pytest.mark.chaos
def test_saved_on_four_it_goes_on_with_one_two_and_eight(make_config: MakeConfig) -> None:
    """The same examples and the same curve on one process, two, one of eight devices, and four again, there to the bit."""
    fsdp4 = ("--config.mesh.fsdp=4",)
    straight, saved = Run(make_config("straight"), fsdp4), Run(make_config("saved"), fsdp4)
    assert ended(straight, count=4) == [0] * 4, straight.output()
    assert stop_at(saved, 25, 4, asked=3) == [75] * 4, saved.output()
    for name, devices, count in (("one", (), 1), ("two", DEVICES, 2), ("four", fsdp4, 4), ("eight", None, 1)):
        here = devices if devices is not None else ("--config.runtime.num_cpu_devices=8", "--config.mesh.fsdp=8")
        moved = Run(make_config(name), here)
        shutil.copytree(saved.workdir, moved.workdir)
        assert (ended(moved, count=count) if count > 1 else [moved.finish()]) == [0] * count, moved.output()
        assert_close(last_lines(moved.workdir), last_lines(straight.workdir))
        if name == "four":
            assert_same_end(moved, straight)
