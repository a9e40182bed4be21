"""Ctrl-C at any time: gone within 5 s, with one plain line, and the same command goes on to the same bits as a straight run."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlprod.manifest import Manifest, read
from mlprod.store import open_store
from tests.chaos.ctrl_c import MOMENTS, WITHIN_S, Moment, at_moment
from tests.chaos.harness import LIMIT_S, ONE_DEVICE, Run, assert_same_end
from tests.chaos.phases import UNFINISHED
from tests.chaos.test_trackers import server_in, variables
from tests.conftest import ROOT, MakeConfig

SHORT = ("steps", "save that takes a minute", "etl: settle")


@pytest.fixture(scope="module")
def straight(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing disturbs."""
    from tests.conftest import smoke_config

    run = Run(smoke_config(csv, dataset, tmp_path_factory.mktemp("straight") / "run"), ONE_DEVICE)
    assert run.finish() == 0
    return run


def is_there(run: Run, moment: Moment, marker: Path) -> bool:
    """Whether the process is at its moment."""
    names = [path.name for path in (run.workdir / "checkpoints").glob("*")] if moment.saving else []
    saving = not moment.saving or any(map(UNFINISHED.fullmatch, names))
    natural = moment.step or moment.tracked or moment.saving
    return saving and run.last_step() >= moment.step and (marker.exists() or bool(natural and moment.told[:5] != "still"))


def pressed(run: Run, name: str, moment: Moment, home: Path, delay_s: float = 0.2) -> tuple[int | None, float]:
    """Starts a process of the run, sends SIGINT at a moment, and returns (exit code, seconds from one to the other)."""
    first, _, then = moment.tracked.partition(",")
    more = (*moment.given, *(["--config.tracking.wandb=online"] if first else []))
    marker = Path(f"{run.cfg.workdir}.out.there")
    with server_in(first or "well") as (url, server):
        process = run._start(at_moment, more, name, variables(url, home) if first else {}, verb=moment.verb)
        deadline = time.monotonic() + LIMIT_S
        while not is_there(run, moment, marker):
            if then and server is not None and run.last_step() >= 10:
                server.mode = then
            if process.exitcode is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"{name} was not seen\n{run.output()}")
            time.sleep(0.002)
        time.sleep(delay_s)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        process.join(LIMIT_S)
        took = time.monotonic() - began
    if process.exitcode is None:
        process.kill()
        pytest.fail(f"{name}: it was still there after {LIMIT_S:.0f} s\n{run.output()}")
    return process.exitcode, took


def check(run: Run, name: str, home: Path, delay_s: float = 0.2) -> None:
    """Presses Ctrl-C, and asserts the exit."""
    moment = MOMENTS[name]
    code, took = pressed(run, name, moment, home, delay_s)
    lines = [line for line in run.output().splitlines() if line.startswith("mlprod: ")]
    print(f"| {name} | {took:.2f} | {code} | {lines[-1].removeprefix('mlprod: ') if lines else ''} |")
    assert took < WITHIN_S, run.output()
    assert code == moment.code, run.output()
    assert moment.told in lines[-1], run.output()
    assert "Traceback" not in run.output()


def run_of(make_config: MakeConfig, tmp_path: Path, verb: str) -> Run:
    """A run, or a build in a folder of its own."""
    cfg = make_config("run")
    return Run(dataclasses.replace(cfg, dataset=str(tmp_path / "dataset")) if verb == "etl" else cfg, ONE_DEVICE)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SHORT else [pytest.mark.chaos]) for n in MOMENTS])
def test_ctrl_c(name: str, make_config: MakeConfig, straight: Run, published: Manifest, tmp_path: Path) -> None:
    """At a moment; what it was doing hangs, or does not."""
    run = run_of(make_config, tmp_path, MOMENTS[name].verb)
    check(run, name, tmp_path)
    if MOMENTS[name].verb == "etl":
        process = run.start_etl()
        process.join(LIMIT_S)
        assert process.exitcode == 0, run.output()
        assert read(open_store(run.cfg.dataset)).dataset_id == published.dataset_id
        return
    assert run.finish() == 0, run.output()
    assert_same_end(run, straight)


@pytest.mark.chaos
def test_ctrl_c_in_a_terminal_with_several_processes(make_config: MakeConfig, tmp_path: Path) -> None:
    """All get it, all are gone, and go on together."""
    run = Run(make_config("run"), ONE_DEVICE)
    processes = run.start_several(2, "--config.steps=100000")
    while run.last_step() < 12 and all(process.exitcode is None for process in processes):
        time.sleep(0.01)
    began = time.monotonic()
    for process in processes:
        os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(LIMIT_S)
    took = time.monotonic() - began
    print(f"| two processes | {took:.2f} | {[process.exitcode for process in processes]} |")
    assert [process.exitcode for process in processes] == [75, 75], run.output()
    assert took < WITHIN_S
    processes = run.start_several(2)
    for process in processes:
        process.join(LIMIT_S)
    assert [process.exitcode for process in processes] == [0, 0], run.output()
    assert "resuming" in run.output()


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_ctrl_c_at_random_moments(make_config: MakeConfig, straight: Run, tmp_path: Path) -> None:
    """One run, interrupted again and again from its first second on, ends as the straight one."""
    dice, run = random.Random(3), run_of(make_config, tmp_path, "train")
    for _ in range(20):
        process = run._start(at_moment, (), "steps", {})
        time.sleep(dice.random() * 3.0)
        if process.exitcode is not None:
            break
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        process.join(LIMIT_S)
        took = time.monotonic() - began
        print(f"| step {run.last_step()} | {took:.2f} | {process.exitcode} |")
        assert took < WITHIN_S, run.output()
        assert process.exitcode in (0, 75, -signal.SIGINT), run.output()  # the last: before its first line of ours
    assert run.finish() == 0, run.output()
    assert_same_end(run, straight)


@pytest.mark.chaos
@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 2.0, 3.0])
def test_ctrl_c_while_it_imports(seconds: float, make_config: MakeConfig) -> None:
    """A real start of the console script."""
    cfg = make_config("run")
    argv = ["train", "--config", str(ROOT / "tests/recipes/smoke.py"), f"--config.workdir={cfg.workdir}"]
    program = "import sys; from mlprod.cli import main; print('ready', flush=True); sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", program, *argv, f"--config.dataset={cfg.dataset}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_default, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    print(f"| imports, after {seconds} s | {time.monotonic() - began:.2f} | {process.returncode} |")
    assert time.monotonic() - began < WITHIN_S
    assert process.returncode == 75, told
    assert "Traceback" not in told


def _default() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


WATCHED = """
import sys, time
from mlprod import interrupt
from mlprod.interrupt import CtrlC
interrupt.LIMIT_S = 2.0
with CtrlC(75, "stopped by Ctrl-C"):
    ends, told = time.monotonic() + 30, "ready"
    while time.monotonic() < ends:
        try:
            print(told, flush=True)
            time.sleep(30)
        except KeyboardInterrupt:  # a library that takes it for something else
            told = "taken"
"""


@pytest.mark.parametrize("times, code, told", [(1, 75, "stopped by Ctrl-C"), (2, 130, "stopped by a second Ctrl-C")])
def test_an_interrupt_that_a_library_takes_ends_the_process_all_the_same(times: int, code: int, told: str) -> None:
    """When its time is up; by a second one at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_default, cwd=ROOT
    )
    assert process.stdout is not None
    process.stdout.readline()
    began = time.monotonic()
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        process.stdout.readline()
        time.sleep(0.1)
    assert process.wait(LIMIT_S) == code
    assert (time.monotonic() - began < 1.0) is (times == 2)
    assert time.monotonic() - began < WITHIN_S
    assert process.stderr is not None
    assert process.stderr.read() == f"mlprod: {told}\n"
