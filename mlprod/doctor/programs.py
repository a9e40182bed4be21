"""Other programs' answers, and who has a file open.

Promise: a program that does not answer is ended: a driver that is stuck does not hold us up.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil


def answer(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Returns (exit code, what the program said); the code is None where it did not end in time, or there is no such program.

    What it said is its stdout, or, where it failed, the last line of its stderr or stdout.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, env=env, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer in {seconds:g} s"
    except OSError as error:
        return None, f"{command[0]} cannot be run: {error.strerror}"
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return done.returncode, lines[-1] if lines else f"exit code {done.returncode}"
    return 0, done.stdout


def openers(path: str) -> list[str]:
    """Returns the processes that have a file or device open, such as "process 12 (python)": those that this user may look at."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(os.path.realpath(link) == path for link in Path(f"/proc/{process.pid}/fd").iterdir()):
                found.append(named(process.pid))
        except OSError:  # it ended, or is another user's
            continue
    return found


def named(pid: int) -> str:
    """Returns "process 12 (python, user ann)", or "process 12" where no more can be known."""
    try:
        process = psutil.Process(pid)
        return f"process {pid} ({process.name()}, user {process.username()})"
    except (psutil.Error, KeyError):
        return f"process {pid}"
