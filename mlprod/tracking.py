"""Where numbers go: a local log that is always complete. W&B and others read it from there (`trackers/`).

Promise: every line of the local log is whole; after a restart lines are added under the next attempt, so that the last attempt
of a step is what counts. It takes no more than `tracking.log_bytes`: the oldest lines go (`pieces.py`). A tracker that fails
never stops the run.
Price: one small write a step, flushed to the operating system, which survives the process.

A line of `log.jsonl`: {"schema", "run", "attempt", "kind", "step", "position", "time", "values": {name: [value, weight]}, "ids"}.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlprod import documents
from mlprod.errors import TrainingError, exit_code
from mlprod.pieces import Reader, Writer

SCHEMA = 1
FILE = "log.jsonl"
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


class LocalLog:
    """`log.jsonl` of the run, and its older pieces."""

    def __init__(self, workdir: Path, run_id: str, attempt: int, limit_bytes: int) -> None:
        """Opens the log to add to it; a last line that a kill cut short is removed first. `limit_bytes`: see `Writer`."""
        self._run, self._attempt = run_id, attempt
        self._pieces = Writer(workdir / FILE, limit_bytes)

    def log(self, record: Record) -> None:
        """Writes one line and hands it to the operating system; raises TrainingError where there is no space, or no file."""
        values = {name: list(pair) for name, pair in record.values.items()}
        body = {
            "schema": SCHEMA, "run": self._run, "attempt": self._attempt, "kind": record.kind, "step": record.step,
            "position": record.position, "time": record.time, "values": values, "ids": record.ids,
        }  # fmt: skip
        try:
            self._pieces.write(json.dumps(body).encode() + b"\n")
        except OSError as error:
            path, why = self._pieces.path, error.strerror
            raise TrainingError(f"{path} cannot be written: {why}; what was saved before stands") from error

    def close(self) -> None:
        """Closes the file; what could not be written was told when it was logged."""
        self._pieces.close()


def read_log(workdir: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a run's log as JSON objects, the oldest that is there first; a torn last line is left out.

    Raises:
        ValueError: a piece is no regular file, or a line is too long, or no JSON within our limits.
    """
    with Reader(workdir / FILE) as pieces:
        yield from (documents.parse(line, finite=False) for _, line in pieces.lines())


class Trackers:
    """Several trackers as one; one that raises is dropped with a line on stderr. A context manager."""

    def __init__(self, trackers: Iterable[Tracker], end: Callable[[int], None] = lambda code: None) -> None:
        """The first is the local log, whose failure is the run's; `end`: called last, with the exit code."""
        trackers = list(trackers)
        self._log, self._others, self._end = trackers[:1], trackers[1:], end

    def __enter__(self) -> "Trackers":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Closes all of them."""
        for log in self._log:
            log.close()
        self._guard(lambda tracker: tracker.close())
        self._end(exit_code(error))

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
