"""What an attempt ran as and on, and where its time and memory go: `attempts.jsonl` in the run's folder.

Promise: the first line of an attempt is written before its first step, so that a run killed at once can still be looked at; the
last says that it came to an end, which a kill does not. A tracker as any other: one that fails never stops the run.
Price: one clock read a step, and a line of about half a kilobyte every `EVERY_S` seconds, later every hundredth of the attempt's
life: 540 lines after a day, 1,130 after a year.

Lines: {"kind": "start", "time", "step", ...what is known of the attempt} and {"kind": "use", "time", "step", "elapsed",
"seconds": {activity: s}, "host_bytes", "device_bytes", "end"}. Memory is the largest so far: of this process (process 0), and of
the fullest of its devices (0 where they do not tell).
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax

from mlprod.ledger import Ledger
from mlprod.pieces import open_to_add, read_lines
from mlprod.tracking import Record

EVERY_S, EVERY_PART = 10.0, 0.01  # of the attempt's life; the longer of the two
FILE = "attempts.jsonl"


class Attempts:
    """Writes the lines of one attempt."""

    def __init__(self, workdir: Path, ledger: Ledger, about: Mapping[str, Any]) -> None:
        """Nothing is opened yet; `about`: what the first line tells, as JSON data."""
        self._path, self._ledger, self._about = workdir / FILE, ledger, about
        self._file: BinaryIO | None = None
        self._began, self._step = time.monotonic(), 0
        self._told = self._began

    def log(self, record: Record) -> None:
        """Takes a record of the run; writes the first line at the first one."""
        self._step = record.step
        if self._file is None:
            self._file = open_to_add(self._path)
            self._write({"kind": "start", "time": time.time(), "step": record.step, **self._about})
        now = time.monotonic()
        if now - self._told >= max(EVERY_S, EVERY_PART * (now - self._began)):
            self._told = now
            self._use(end=False)

    def close(self) -> None:
        """Writes the last line."""
        if self._file is not None:
            self._use(end=True)
            self._file.close()

    def _use(self, *, end: bool) -> None:
        body = {"kind": "use", "time": time.time(), "step": self._step, "elapsed": self._ledger.elapsed()}
        seconds = dict(self._ledger.seconds)
        self._write({**body, "seconds": seconds, "host_bytes": host_bytes(), "device_bytes": device_bytes(), "end": end})

    def _write(self, body: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(body).encode() + b"\n")
        self._file.flush()


def read_attempts(workdir: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a run's attempts as JSON objects; a torn last line is left out."""
    return read_lines(workdir / FILE)


def host_bytes() -> int:
    """Returns the most memory this process has had resident."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def device_bytes() -> int:
    """Returns the most memory that was in use on one of this process's devices; 0 where the backend does not tell."""
    return max(int((device.memory_stats() or {}).get("peak_bytes_in_use", 0)) for device in jax.local_devices())
