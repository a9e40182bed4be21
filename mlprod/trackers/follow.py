"""Gives a tracker what the run's log says, from a thread beside the loop: the log is the queue.

Promise: the loop never waits for a tracker, whatever that does, and nothing is dropped: a tracker that is slow, or was not there
for a while or for a whole attempt, finds every line later. It gets each step once, as the last attempt that took it logged it.
Price: a look at the file every `EVERY_S`, and what the tracker takes of Python's lock, a record at a time.
"""

import json
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mlprod.tracking import Record, Tracker

EVERY_S = 0.5


class Service(Tracker, Protocol):
    """A tracker that is fed from the log, with steps, evaluations and saved steps; it may take its time."""

    after: int  # it has the records up to this step from earlier attempts, and gets those behind it; 0: it gets all


class Follower:
    """One tracker and its thread."""

    def __init__(self, name: str, opened: Callable[[], Service], log: Path, step: int, good: Sequence[int]) -> None:
        """Starts the thread, which opens the tracker.

        Args:
            step: that the run goes on from: what earlier attempts logged behind it does not count.
            good: the saved steps that were read back; grows.
        """
        self.name = name
        self._open, self._path, self._step, self._good = opened, log, step, good
        self._past_bytes = log.stat().st_size
        self._open_ended, self._asked = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mlprod-{name}", daemon=True)
        self._thread.start()

    def wait_open(self, limit_s: float) -> bool:
        """Whether the tracker was opened, or failed to, within a time."""
        return self._open_ended.wait(limit_s)

    def end(self) -> None:
        """Asks it to take what is left, and to close."""
        self._asked.set()

    def wait_end(self, limit_s: float) -> bool:
        """Whether it came to its end within a time."""
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            tracker = self._open()
            self._open_ended.set()
            self._follow(tracker)
            tracker.close()
        except Exception as error:  # a tracker may be anyone's code
            told = f"{type(error).__name__}: {error}"
            print(f"mlprod: {self.name} is switched off: {told}; {self._path} has every line", file=sys.stderr, flush=True)
        finally:
            self._open_ended.set()

    def _follow(self, tracker: Service) -> None:
        told = 0
        with self._path.open("rb") as file:
            for record in past(file, self._past_bytes, self._step):
                if record.step > tracker.after:
                    _give(tracker, record)
            file.seek(self._past_bytes)
            asked = False
            while not asked:
                asked = self._asked.wait(EVERY_S)
                for record in _whole_lines(file):
                    if record.step > tracker.after:
                        _give(tracker, record)
                for step in self._good[told:]:
                    tracker.log(Record(kind="checkpoint", step=step, position=0, values={}))
                    told += 1


def _give(tracker: Tracker, record: Record) -> None:
    tracker.log(record)
    time.sleep(0)  # Python's lock goes to the loop where that waits for it


def past(file: BinaryIO, size: int, step: int) -> Iterator[Record]:
    """Yields what counts of the first `size` bytes of a log for a run that goes on from `step`, in the order of the steps.

    A run that went back, by a kill or after bad numbers, has nothing from behind where it went back to.
    """
    places, steps = array("q"), array("q")  # 16 bytes a line: a log may have millions
    at = 0
    while at < size:
        body = json.loads(line := file.readline())
        before = body["step"] - (body["kind"] == "train")
        while steps and steps[-1] > before:
            places.pop(), steps.pop()
        if body["kind"] != "start":
            places.append(at)
            steps.append(body["step"])
        at += len(line)
    for place, there in zip(places, steps, strict=True):
        if there <= step:
            file.seek(place)
            yield _record(json.loads(file.readline()))


def _whole_lines(file: BinaryIO) -> Iterator[Record]:
    """Yields the lines there are; one that is being written is left for later."""
    while True:
        at = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(at)
            return
        body = json.loads(line)
        if body["kind"] != "start":
            yield _record(body)


def _record(body: dict[str, Any]) -> Record:
    values = {name: (float(value), float(weight)) for name, (value, weight) in body["values"].items()}
    about = {name: body[name] for name in ("kind", "step", "position", "ids", "time")}
    return Record(values=values, **about)
