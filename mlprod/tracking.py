"""Where numbers go: a local log that is always complete. W&B and others read it from there (`trackers/`).

Promise: every line of the local log is whole; after a restart lines are added under the next attempt, so that the last attempt
of a step is what counts. A tracker that fails never stops the run.
Price: one small write a step, flushed to the operating system, which survives the process.

A line of `log.jsonl`: {"schema", "run", "attempt", "kind", "step", "position", "time", "values": {name: [value, weight]}, "ids"}.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mlprod.errors import TrainingError

SCHEMA = 1
Values = Mapping[str, tuple[float, float]]  # name -> (value, weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What happened at a step."""

    kind: str  # "train", "eval" or "start"; "checkpoint" (not in the log): the step was saved and read back
    step: int
    position: int
    values: Values
    ids: str = ""  # digest of the batch's row ids
    time: float = field(default_factory=time.time)  # seconds since 1970


class Tracker(Protocol):
    """One place where records go."""

    def log(self, record: Record) -> None:
        """Takes one record; between the steps, where it must not block."""
        ...

    def close(self) -> None:
        """Ends, within a bounded time."""
        ...


def open_to_add(path: Path) -> BinaryIO:
    """Opens a file of JSON lines to add to it; a last line that a kill cut short is removed first."""
    file = path.open("ab+")
    size = file.seek(0, os.SEEK_END)
    back = min(size, 1 << 20)
    file.seek(size - back)
    tail = file.read(back)
    whole = tail.rfind(b"\n") + 1
    if whole < len(tail):
        file.truncate(size - back + whole)
    return file


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file as JSON objects; a torn last line is left out, and a file that is not there has none."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))


class LocalLog:
    """`log.jsonl` of the run."""

    def __init__(self, workdir: Path, run_id: str, attempt: int) -> None:
        """Opens the log to add to it; a last line that a kill cut short is removed first."""
        self._run, self._attempt = run_id, attempt
        self._file = open_to_add(workdir / "log.jsonl")

    def log(self, record: Record) -> None:
        """Writes one line and hands it to the operating system; raises TrainingError where there is no space, or no file."""
        values = {name: list(pair) for name, pair in record.values.items()}
        body = {
            "schema": SCHEMA, "run": self._run, "attempt": self._attempt, "kind": record.kind, "step": record.step,
            "position": record.position, "time": record.time, "values": values, "ids": record.ids,
        }  # fmt: skip
        try:
            self._file.write(json.dumps(body).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"{self._file.name} cannot be written: {error.strerror}; what was saved before stands") from error

    def close(self) -> None:
        """Closes the file; what could not be written was told when it was logged."""
        with suppress(OSError):
            self._file.close()


def read_log(workdir: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a run's log as JSON objects; a torn last line is left out."""
    return read_lines(workdir / "log.jsonl")


class Trackers:
    """Several trackers as one; one that raises is dropped with a line on stderr. A context manager."""

    def __init__(self, trackers: Iterable[Tracker], end: Callable[[bool], None] = lambda hurried: None) -> None:
        """The first is the local log, whose failure is the run's; `end`: called last, with whether the run failed or stops."""
        trackers = list(trackers)
        self._log, self._others, self._end = trackers[:1], trackers[1:], end

    def __enter__(self) -> "Trackers":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Closes all of them."""
        for log in self._log:
            log.close()
        self._guard(lambda tracker: tracker.close())
        self._end(kind is not None)

    def log(self, record: Record) -> None:
        """Gives a record to every tracker."""
        for log in self._log:
            log.log(record)
        self._guard(lambda tracker: tracker.log(record))

    def _guard(self, act: Any) -> None:
        for tracker in list(self._others):
            try:
                act(tracker)
            except Exception as error:  # a tracker may be anyone's code
                print(f"mlprod: {type(tracker).__name__} is switched off: {type(error).__name__}: {error}", file=sys.stderr)
                self._others.remove(tracker)
