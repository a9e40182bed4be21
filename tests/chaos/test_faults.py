"""What goes wrong with the data of a real run: files that change under it, a reader that breaks, hangs or is slow."""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlprod.manifest import Manifest
from tests.chaos.harness import LIMIT_S, ONE_DEVICE, Run
from tests.conftest import MakeConfig

SOON_S = 5.0


def wait_for(run: Run, process: Any, step: int) -> None:
    """Waits until the run's log tells of a step."""
    deadline = time.monotonic() + LIMIT_S
    while run.last_step() < step and process.exitcode is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.exitcode is None, run.output()


def ended(process: Any, within_s: float) -> int:
    """Returns the exit code of a process that must end soon."""
    process.join(within_s)
    code = process.exitcode
    if code is None:
        process.kill()
    assert code is not None, f"it did not end within {within_s} s"
    return int(code)


def overwrite(path: Path) -> None:
    """Other bytes, the same size."""
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    """Half the file."""
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm, told", [(overwrite, "it is not what was written"), (cut, "too early")])
def test_a_file_that_changes_under_a_run_ends_it_with_one_line(
    harm: Callable[[Path], None], told: str, make_config: MakeConfig, dataset: Path, published: Manifest, tmp_path: Path
) -> None:
    """Exit 1 within seconds; the line names file and row group; restored, the same command goes on."""
    copied = shutil.copytree(dataset, tmp_path / "dataset")
    run = Run(dataclasses.replace(make_config(), dataset=str(copied)), ONE_DEVICE)
    process = run.start("--config.steps=1000000")
    wait_for(run, process, 20)
    for shard in published.splits["train"]:
        harm(copied / shard.path)
    assert ended(process, SOON_S) == 1
    last = [line for line in run.output().splitlines() if line.startswith("mlprod: ")][-1]
    assert f"{copied}/files/000001/train-" in last
    assert ", row group " in last
    assert told in last


def test_a_bug_in_a_read_thread_ends_the_run_with_its_traceback(make_config: MakeConfig) -> None:
    """Exit 1 within seconds, not a hang of the threads that wait."""
    run = Run(make_config(), ONE_DEVICE)
    process = run.start_broken("--config.steps=1000000", good_reads=60, fault="raise")
    assert ended(process, LIMIT_S) == 1
    output = run.output()
    assert "RuntimeError: a bug in the reader" in output
    assert "tests/chaos/child.py" in output, "the frame that raised"
    assert "Exception in thread" not in output


def test_a_store_that_hangs_does_not_keep_a_stop_waiting(make_config: MakeConfig) -> None:
    """SIGTERM while the step waits for data: saved, exit 75, and the saved step is the last one taken."""
    run = Run(make_config(), ONE_DEVICE)
    process = run.start_broken("--config.steps=1000000", "--config.checkpoint.every=0", good_reads=60, fault="hang")
    wait_for(run, process, 20)
    before = -1
    while run.last_step() != before:  # until no step has been taken for a while
        before = run.last_step()
        time.sleep(1.0)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process, SOON_S) == 75
    assert f"stopped after step {before + 1} of" in run.output() or f"stopped after step {before} of" in run.output()


def test_a_slow_store_gives_a_line_and_an_end(make_config: MakeConfig) -> None:
    """Not a hang: the run says what it waits for, the wait has its own line in the ledger, and the run ends well."""
    run = Run(make_config(), ONE_DEVICE)
    process = run.start_broken(
        "--config.steps=4", "--config.tracking.progress=True", good_reads=8, fault="slow", waiting_every_s=0.3
    )
    assert ended(process, LIMIT_S) == 0
    output = run.output()
    assert f"s for data of {run.cfg.dataset}" in output
    assert "data wait" in output
