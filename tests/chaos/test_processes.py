"""Several processes on the loopback: the same examples, and what one of them decides or is told, all do after the same step."""

import os
import signal
import time
from pathlib import Path

import pytest

from mlprod.checkpoint.saved import SavedSteps
from tests.chaos.harness import LIMIT_S, Run, assert_same_end, last_lines
from tests.conftest import MakeConfig

DEVICES = ("--config.mesh.fsdp=2",)  # one each
BY_TIME = ("--config.checkpoint.every=0", "--config.checkpoint.every_s=0.1", "--config.checkpoint.keep_last=100")


def ended(run: Run, *more: str) -> list[int]:
    """The exit codes of the run's two processes."""
    processes = run.start_several(2, *more)
    for process in processes:
        process.join(LIMIT_S)
    return [process.exitcode for process in processes]


def test_two_processes_train_as_one_does(make_config: MakeConfig) -> None:
    """The same ids, close losses; process 0's clock alone decides on saves; a stop that one is told of, both make, to the bit."""
    one = Run(make_config("one"), ("--config.runtime.num_cpu_devices=2", "--config.mesh.fsdp=2"))
    assert one.finish() == 0, one.output()
    two = Run(make_config("two"), DEVICES, given=BY_TIME)
    assert ended(two) == [0, 0], two.output()
    ours, theirs = last_lines(two.workdir), last_lines(one.workdir)
    assert ours.keys() == theirs.keys()
    assert all((ours[key]["ids"], ours[key]["position"]) == (theirs[key]["ids"], theirs[key]["position"]) for key in theirs)
    for key in theirs:
        for name in ("loss", "log_loss"):
            if name in theirs[key]["values"]:
                assert ours[key]["values"][name][0] == pytest.approx(theirs[key]["values"][name][0], rel=1e-5)
    saved = SavedSteps(two.workdir).steps()
    assert len(saved) > 2, "nobody's clock decided"
    stopped = Run(make_config("stopped"), DEVICES, given=BY_TIME)
    processes, deadline = stopped.start_several(2), time.monotonic() + LIMIT_S
    while stopped.last_step() < 10 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [75, 75], stopped.output()
    assert ended(stopped) == [0, 0], stopped.output()
    assert "mlprod: resuming" in Path(stopped.printed or f"{stopped.workdir}.out").read_text()
    assert_same_end(stopped, two)
