"""The supervisor, by what it does to commands that end, die, hang or leave things behind: real processes, small ones."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlprod.processes.rank import Rank
from mlprod.processes.supervise import end_with_parent, lost_process

MLPROD = str(Path(sys.executable).parent / "mlprod")
LIMIT_S = 20.0
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor of `sh -c SCRIPT` in the test's folder, what it prints in `out` and `err`; ends it with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def run(script: str, *options: str) -> "subprocess.Popen[bytes]":
        with open(tmp_path / "out", "ab") as out, open(tmp_path / "err", "ab") as err:
            words = [MLPROD, "run", "--pause-s", "0.1", *options, "--", "sh", "-c", script]
            started.append(subprocess.Popen(words, stdout=out, stderr=err, cwd=tmp_path, preexec_fn=end_with_parent))
        return started[-1]

    yield run
    for each in started:
        if each.poll() is None:
            for child in psutil.Process(each.pid).children(recursive=True):
                child.kill()
            each.kill()
        each.wait()


def until(there: Callable[[], bool]) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + LIMIT_S
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def beat(step: str, deadline_s: float = 1e9) -> str:
    """A command that gives a sign of life, as a training process does."""
    told = f"p.Pulse(os.environ[p.VARIABLE]).beat({step}, 0, 'step', time.monotonic() + {deadline_s})"
    return f'{sys.executable} -c "import os, time, mlprod.processes.pulse as p; {told}"'


COUNT = "n=$(cat n 2>/dev/null || echo 0); n=$((n + 1)); echo $n > n; "  # of starts


@pytest.mark.parametrize(
    "script, code, starts",
    [
        ("exit 0", 0, 1),
        ("exit 1", 1, 1),
        ("exit 2", 2, 1),
        ("exit 3", 1, 1),
        ("[ $n -lt 3 ] && exit 75; exit 0", 0, 3),
        ("[ $n -lt 2 ] && kill -9 $$; exit 0", 0, 2),
        ("[ $n -lt 2 ] && kill -6 $$; exit 2", 2, 2),
        ("[ $n -lt 2 ] && exit 137; exit 0", 0, 2),  # as a shell tells of SIGKILL
    ],
)
def test_codes_are_ours_and_what_is_worth_it_is_started_again(
    script: str, code: int, starts: int, start: Start, tmp_path: Path
) -> None:
    """0, 1 and 2 are passed on, 75 and a death by a signal are started again, anything else is 1."""
    assert start(COUNT + script, "--deaths", "5").wait(LIMIT_S) == code
    assert int((tmp_path / "n").read_text()) == starts


def test_a_command_that_gets_no_further_is_given_up(start: Start, tmp_path: Path) -> None:
    """With 1, after three ends in a row without a new step; steps that are taken again are none."""
    steps = f"{beat('[0, 10, 7, 11, 11, 3, 11][$n]')}; exit 75"
    assert start(COUNT + steps).wait(LIMIT_S) == 1
    assert int((tmp_path / "n").read_text()) == 6, "10 is new, 7 is not, 11 is, then three times none"
    told = (tmp_path / "err").read_text()
    assert "mlprod run: 3 ends in a row without a step beyond 11: starting again does not help; exit code 1" in told


def test_waiting_for_others_in_vain_is_no_crash(start: Start, tmp_path: Path) -> None:
    """The launcher may start them yet: 75."""
    waits = f'{sys.executable} -c "import os, mlprod.processes.pulse as p; p.Pulse(os.environ[p.VARIABLE]).last(-1, 0, p.JOIN)"'
    assert start(f"{waits}; exit 75", "--deaths", "2").wait(LIMIT_S) == 75
    assert "2 ends in a row without a step beyond 0, the last for want of others: exit code 75" in (tmp_path / "err").read_text()


def test_restarts_can_be_left_to_the_launcher(start: Start, tmp_path: Path) -> None:
    """The code is ours all the same."""
    assert start(COUNT + "kill -9 $$", "--restarts", "0").wait(LIMIT_S) == 75
    assert int((tmp_path / "n").read_text()) == 1
    assert (tmp_path / "err").read_text() == "mlprod run: it was ended by SIGKILL: exit code 75\n"


TRAPS = "trap 'echo asked; exit 75' TERM; echo up; while :; do sleep 0.05; done"


@pytest.mark.parametrize("number, passed_on", [("TERM", "TERM"), ("INT", "INT"), ("HUP", "TERM"), ("USR1", "USR1")])
def test_signals_are_passed_on(number: str, passed_on: str, start: Start, tmp_path: Path) -> None:
    """One that asks to stop ends the supervisor with 75, when the command has ended; one that does not, does not."""
    process = start(f"trap 'echo {passed_on}; exit 75' {passed_on}; echo up; while :; do sleep 0.05; done", "--restarts", "0")
    until(lambda: "up" in (tmp_path / "out").read_text())
    time.sleep(0.3)  # the command may be up before its supervisor knows: then one that does not ask to stop is for nobody
    process.send_signal(getattr(signal, f"SIG{number}"))
    assert process.wait(LIMIT_S) == 75
    assert (tmp_path / "out").read_text() == f"up\n{passed_on}\n"


def test_a_second_sigterm_kills_at_once(start: Start, tmp_path: Path) -> None:
    """A command that does not listen to the first; the code is 75 still."""
    process = start("trap '' TERM; echo up; while :; do sleep 0.05; done")
    until(lambda: "up" in (tmp_path / "out").read_text())
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.terminate()
    assert process.wait(LIMIT_S) == 75
    assert time.monotonic() - began < 2
    assert "it was ended by SIGKILL when asked to stop: exit code 75" in (tmp_path / "err").read_text()


def test_a_process_of_ours_takes_a_second_signal_for_the_first(start: Start, tmp_path: Path) -> None:
    """As where a launcher signals every process of a job, and the supervisor passes the signal on: it saves all the same."""
    saves = "import time; time.sleep(0.5); print('saved')"
    program = f"""from mlprod.processes.signals import Signals
with Signals() as asked:
    print("up", flush=True)
    while not asked.stop:
        pass
    {saves}"""
    (tmp_path / "program.py").write_text(program)
    process = start(f"exec {sys.executable} program.py", "--restarts", "0")
    until(lambda: "up" in (tmp_path / "out").read_text())
    child = psutil.Process(process.pid).children()[0]
    for _ in range(2):
        child.terminate()
        time.sleep(0.1)
    assert process.wait(LIMIT_S) == 0
    assert "saved" in (tmp_path / "out").read_text()


def test_the_grace_period_ends(start: Start, tmp_path: Path) -> None:
    """What does not end by itself within it is killed."""
    process = start("trap '' TERM ABRT; echo up; while :; do sleep 0.05; done", "--grace-s", "0.5")
    until(lambda: "up" in (tmp_path / "out").read_text())
    process.terminate()
    assert process.wait(LIMIT_S) == 75
    assert "it was ended: it was asked to stop 0 s ago (--grace-s)" in (tmp_path / "err").read_text()


def test_a_stop_while_it_waits_to_start_again(start: Start, tmp_path: Path) -> None:
    """Is heard: nothing is started any more."""
    process = start(COUNT + "exit 75", "--pause-s", "5")
    until(lambda: "starting again" in (tmp_path / "err").read_text())
    process.terminate()
    assert process.wait(LIMIT_S) == 75
    assert int((tmp_path / "n").read_text()) == 1


def test_no_sign_of_life(start: Start, tmp_path: Path) -> None:
    """A process that was stopped, or whose interpreter is held, ends itself no more: the supervisor does."""
    process = start(f"{beat('4')}; sleep 300", "--restarts", "0", "--silent-s", "1")
    assert process.wait(LIMIT_S) == 75
    told = (tmp_path / "err").read_text()
    assert "no sign of life for 1 s (--silent-s); ending it" in told
    assert "(step after step 4, next example 0): exit code 75" in told


def test_a_limit_that_the_process_does_not_act_on(start: Start, tmp_path: Path) -> None:
    """Its own watchdog should have ended it."""
    keeps = f"while :; do {beat('4', -60.0)}; done"
    assert start(keeps, "--restarts", "0").wait(LIMIT_S) == 75
    assert "s over its limit, and it does not end itself" in (tmp_path / "err").read_text()


def test_nothing_stays_behind(start: Start, tmp_path: Path) -> None:
    """What the command started and left is killed with it; and when the supervisor is killed, the command is asked to stop."""
    assert start("sleep 300 & echo $! > left; exit 0").wait(LIMIT_S) == 0
    until(lambda: not psutil.pid_exists(int((tmp_path / "left").read_text())))
    process = start(f"echo $$ > pid; {TRAPS}")
    until(lambda: "up" in (tmp_path / "out").read_text())
    process.kill()
    process.wait()
    until(lambda: "asked" in (tmp_path / "out").read_text())


def test_what_it_prints_comes_through_whole(start: Start, tmp_path: Path) -> None:
    """Every byte of stderr, in order; stdout is not touched."""
    assert start("head -c 300000 /dev/zero | tr '\\0' x >&2; echo end >&2; echo out").wait(LIMIT_S) == 0
    assert (tmp_path / "err").read_text() == "x" * 300000 + "end\n"
    assert (tmp_path / "out").read_text() == "out\n"


def test_in_a_terminal_the_command_sees_a_terminal() -> None:
    """Of the same width: progress bars are drawn as without a supervisor."""
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 97, 0, 0))
    script = "import os; print(os.isatty(2), os.get_terminal_size(2).columns if os.isatty(2) else 0)"
    words = [MLPROD, "run", "--", sys.executable, "-c", script]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=theirs, timeout=LIMIT_S, check=False)
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, b"True 97\n")


def test_the_rank_is_passed_on(start: Start, tmp_path: Path) -> None:
    """As JAX's variables, which the trainer reads; messages say whose they are."""
    rank = ("--process-id", "1", "--num-processes", "2", "--coordinator", "h:99", "--restarts", "0")
    assert start("echo $JAX_PROCESS_ID $JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS; kill -9 $$", *rank).wait(LIMIT_S) == 75
    assert (tmp_path / "out").read_text() == "1 2 h:99\n"
    assert (tmp_path / "err").read_text() == "mlprod run: process 1 of 2: it was ended by SIGKILL: exit code 75\n"


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "no command to run; give one behind --"),
        (["true", "x"], "the command stands behind --, as in: mlprod run -- true x"),
        (["--true", "--", "x"], "there is no option --true"),
        (["--", "/no/such/program"], "'/no/such/program' cannot be started: No such file or directory"),
        (["--num-processes", "2", "--", "true"], "--process-id and --coordinator must be given beside the others"),
        (["--num-processes", "2", "--process-id", "2", "--coordinator", "h:1", "--", "true"], "the flags: process '2' of '2'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str) -> None:
    """And exit code 2."""
    done = subprocess.run([MLPROD, "run", *words], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


# As JAX 0.10 prints it, cut.
FATAL = "F1126 client.h:80] Terminating process because the JAX distributed service detected fatal errors. absl::Status: "
MISSED = "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed."


@pytest.mark.parametrize(
    "printed, index, told",
    [
        (FATAL + MISSED, 0, "process 1, 3 gave no sign of life"),
        (FATAL + MISSED.replace("1\n3", "/job:jax_worker/replica:0/task:2"), 1,
         "process 2 gave no sign of life"),
        (FATAL + "UNAVAILABLE: failed to connect to all addresses\nRPC: /xla.coordination.CoordinationService/PollForError", 1,
         "process 0, at h:1, is gone or does not answer"),
        (FATAL + "INTERNAL: something", 0, "another process is gone"),
        ("Segmentation fault", 1, ""),
    ],
)  # fmt: skip
def test_who_was_lost(printed: str, index: int, told: str) -> None:
    """By what JAX's service prints before it aborts the process."""
    assert lost_process(printed, Rank(index=index, count=4, coordinator="h:1")) == told
