"""A Dask cluster of a test's own: a scheduler and workers as processes on loopback, ended by their own ids."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT

QUIET = {"DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h", "JAX_PLATFORMS": "cpu"}


class Processes:
    """A scheduler, and the workers that were started so far, in a folder of their own."""

    def __init__(self, folder: Path, environment: Mapping[str, str], protocol: str) -> None:
        """Starts the scheduler; `protocol`: "tcp" or "tls"."""
        self.folder, self._environment = folder, {**os.environ, **QUIET, **environment, "PYTHONPATH": str(ROOT)}
        self.workers: list[subprocess.Popen[bytes]] = []
        told = folder / "scheduler.json"
        given = ["--scheduler-file", str(told), "--protocol", protocol]
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--no-dashboard", *given)
        self.address = str(json.loads(awaited(told, self.scheduler).read_text())["address"])
        scheme = {"tcp": "dask", "tls": "dask+tls"}[protocol]
        self.executor = f"{scheme}://{self.address.partition('://')[2]}"

    def work(self, count: int) -> None:
        """Starts workers of one thread each, without waiting for them."""
        for _ in range(count):
            given = (
                "--nthreads",
                "1",
                "--no-nanny",
                "--no-dashboard",
                "--memory-limit",
                "0",
                "--local-directory",
                str(self.folder),
            )
            self.workers.append(self._start("dask_worker", self.address, *given))

    def _start(self, program: str, *given: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--host", "127.0.0.1", *given]
        log = (self.folder / f"{program}.log").open("ab")
        with log:
            return subprocess.Popen(command, cwd=self.folder, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """Ends all of them, without a word."""
        for process in (*self.workers, self.scheduler):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def awaited(path: Path, process: "subprocess.Popen[bytes]", seconds: float = 60) -> Path:
    """Returns a path when it is there and not empty; fails where the process ends before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.stat().st_size:
            return path
        time.sleep(0.02)
    raise AssertionError(f"{path} did not come; process {process.pid} ended with {process.poll()}")


@contextmanager
def processes(
    folder: Path, workers: int, environment: Mapping[str, str] | None = None, protocol: str = "tcp"
) -> Iterator[Processes]:
    """Yields a cluster, which is ended behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    started = Processes(folder, environment or {}, protocol)
    try:
        started.work(workers)
        yield started
    finally:
        started.kill()
