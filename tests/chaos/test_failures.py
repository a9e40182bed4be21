"""What goes wrong among processes: each thing has a bound, a culprit by name, an exit code, and a run that goes on from there."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.gang import CASES, Case, Gang, last_line, send
from tests.chaos.harness import Run, assert_same_end
from tests.chaos.test_processes import DEVICES, ended
from tests.conftest import ROOT, MakeConfig

SHORT = ("a bug in process 1", "another config")
FOUR = (
    "SIGKILL to process 1", "SIGKILL to process 0, the coordinator", "SIGSTOP to process 1", "SIGTERM to process 1",
    "a bug in process 1", "process 1 is stuck in its step", "another config",
)  # fmt: skip


@pytest.fixture
def gangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Gang]]:
    """Where a test puts its gangs: none of their processes outlives it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the faults, which are among the tests
    made: list[Gang] = []
    yield made
    for gang in made:
        gang.end()


def assert_ends(case: Case, gang: Gang) -> None:
    """Makes it happen; asserts the exit codes, the bound, and that somebody names who it was; prints the table's row."""
    began = time.monotonic()
    gang.start()
    if case.harm:
        gang.wait_for_step(20)
        began = time.monotonic()
        case.harm(gang)
    codes, seconds = gang.ended(began)
    printed = [gang.output(i) for i in range(gang.count)]
    for code, took, text in zip(codes, seconds, printed, strict=True):
        print(f"  {code}  {took:5.1f} s  {last_line(text)}")
    wanted = [case.codes] * gang.count if isinstance(case.codes, int) else list(case.codes)
    assert codes == wanted, "\n".join(printed)
    assert max(seconds) < case.within_s
    for told in case.told:
        assert any(told in text for text in printed), f"{told!r} is not in\n" + "\n".join(printed)


@pytest.mark.parametrize("name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.chaos) for name in CASES])
def test_two_processes(name: str, make_config: MakeConfig, gangs: list[Gang]) -> None:
    """Both are down in time, with the code of the table in the README."""
    case = CASES[name]
    gangs.append(Gang(make_config(), 2, given=("--config.steps=1000000", *case.given), faults=case.faults, each=case.each))
    assert_ends(case, gangs[0])


@pytest.mark.chaos
@pytest.mark.parametrize("name", FOUR)
def test_four_processes(name: str, make_config: MakeConfig, gangs: list[Gang]) -> None:
    """All four are, also those that nothing has happened to."""
    case = CASES[name]
    each = [*case.each, (), ()] if case.each else ()
    gangs.append(Gang(make_config(), 4, given=("--config.steps=1000000", *case.given), faults=case.faults, each=each))
    assert_ends(case, gangs[0])


@pytest.mark.parametrize("kills", [((20, 1),), pytest.param(((10, 1), (30, 0), (45, 1)), marks=pytest.mark.chaos)])
def test_a_lost_process_costs_no_bits(kills: tuple[tuple[int, int], ...], make_config: MakeConfig, gangs: list[Gang]) -> None:
    """One is killed, or the coordinator; the supervisors start all again, and the end has the bits of the straight run."""
    straight = Run(make_config("straight"), DEVICES)
    assert ended(straight) == [0, 0], straight.output()
    lost = Gang(make_config("lost"), 2, options=("--pause-s", "0.1"))
    gangs.append(lost)
    lost.start()
    for start, (step, who) in enumerate(kills, 2):
        lost.wait_for_step(step)
        send(signal.SIGKILL, who)(lost)
        while f"start {start}" not in lost.output(1):
            time.sleep(0.05)
    assert lost.ended(time.monotonic())[0] == [0, 0], lost.output(0) + lost.output(1)
    told = {1: ("process 1 gave no sign of life", 0), 0: ("is gone or does not answer", 1)}
    assert all(line in lost.output(i) for _, who in kills for line, i in [told[who]])
    assert "the same bits" in lost.output(0)
    assert_same_end(Run(lost.cfg, DEVICES), straight)


def test_one_who_comes_late_is_waited_for(make_config: MakeConfig, gangs: list[Gang]) -> None:
    """And one that does not come is named, with 75: it may come the next time."""
    late = Gang(make_config("late"), 2, given=("--config.steps=2", "--config.eval.every=0"))
    absent = Gang(make_config("absent"), 2, given=("--config.limits.join_s=3",))
    gangs += [late, absent]
    late.start(only=[1])
    absent.start(only=[0])
    codes, _ = absent.ended(time.monotonic())
    assert codes == [75]
    assert "1 of 2 processes did not come to 127.0.0.1:" in absent.output(0)
    assert "(config.limits.join_s): 1;" in absent.output(0)
    late.start(only=[0])
    assert late.ended(time.monotonic())[0] == [0, 0], late.output(0) + late.output(1)


def test_a_run_of_one_process_is_watched_too(make_config: MakeConfig, gangs: list[Gang]) -> None:
    """It ends with every thread's stack, the last step and the limit; what was saved is there."""
    alone = Gang(make_config(), 1, faults={0: "stuck"}, given=("--config.limits.step_s=2",))
    gangs.append(alone)
    alone.start()
    assert alone.ended(time.monotonic())[0] == [75]
    told = alone.output(0)
    assert "thread MainThread:" in told
    assert "thread mlprod-ahead:" in told
    assert "broken.py" in told, "where the main thread stands"
    assert "mlprod: step after step 30 (next example 1,920) has taken 2 s, and config.limits.step_s is 2; " in told
    assert "the last save that began is of step 28, the same command goes on from there" in told
    assert Path(alone.cfg.workdir, "checkpoints", "00000028").is_dir()


def test_asked_to_stop_in_a_long_call_it_ends_within_the_grace_period(make_config: MakeConfig, gangs: list[Gang]) -> None:
    """Where the main thread does not return from a library, the watchdog ends the process all the same."""
    alone = Gang(make_config(), 1, faults={0: "stuck"}, given=("--config.limits.grace_s=2",))
    gangs.append(alone)
    alone.start()
    alone.wait_for_step(20)
    while not Path(alone.cfg.workdir, "checkpoints", "00000028").is_dir():
        time.sleep(0.05)
    time.sleep(1.0)  # two steps
    began = time.monotonic()
    os.kill(alone.supervisors[0].pid, signal.SIGTERM)
    codes, seconds = alone.ended(began)
    assert codes == [75]
    assert seconds[0] < 3
    assert "asked to stop 2 s ago (config.limits.grace_s), still in step after step 30" in alone.output(0)
