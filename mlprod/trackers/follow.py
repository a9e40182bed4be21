"""Gives a tracker what the run's log says, from a thread beside the loop: the log is the queue.

Promise: the loop never waits for a tracker, whatever that does, and nothing is dropped: a tracker that is slow, or was not there
for a while or for a whole attempt, finds every line later, as long as the log has it (`tracking.log_bytes`); where it has not, a
line says so. It gets each step once, as the last attempt that took it logged it.
Price: a look at the file every `EVERY_S`, and what the tracker takes of Python's lock, a record at a time.
"""

import itertools
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mlprod import documents
from mlprod.pieces import Place, Reader, end_of, first_piece
from mlprod.tracking import Record, Tracker

EVERY_S = 0.5
FIELD = "config.tracking.log_bytes"
OFFSET_BITS = 40  # of a place in one number
NO_MORE = (sys.maxsize, 0)


class Service(Tracker, Protocol):
    """A tracker that is fed from the log, with steps, evaluations and saved steps; it may take its time."""

    after: int  # it has the records up to this step from earlier attempts, and gets those behind it; 0: it gets all

    def close(self, code: int = 0) -> None:
        """Ends; `code`: the run's exit code, 0 done, 75 stopped and to go on, others failed."""
        ...


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
        self._begin, self._last = Place(first_piece(log), 0), end_of(log)
        self._open_ended, self._asked, self._code = threading.Event(), threading.Event(), 0
        self._thread = threading.Thread(target=self._run, name=f"mlprod-{name}", daemon=True)
        self._thread.start()

    def wait_open(self, limit_s: float) -> bool:
        """Whether the tracker was opened, or failed to, within a time."""
        return self._open_ended.wait(limit_s)

    def end(self, code: int) -> None:
        """Asks it to take what is left, and to close; `code`: the run's exit code."""
        self._code = code
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
            tracker.close(self._code)
        except Exception as error:  # a tracker may be anyone's code
            told = f"{type(error).__name__}: {error}"
            print(f"mlprod: {self.name} is switched off: {told}; {self._path} has every line", file=sys.stderr, flush=True)
        finally:
            self._open_ended.set()

    def _follow(self, tracker: Service) -> None:
        told = 0
        self._say_what_is_older(tracker)
        for record in past(self._path, self._begin, self._last, self._step, self._say_gone):
            if record.step > tracker.after:
                _give(tracker, record)
        with Reader(self._path, self._last, self._say_gone) as pieces:
            asked = False
            while not asked:
                asked = self._asked.wait(EVERY_S)
                for _, line in pieces.lines():
                    body = _body(line)
                    if body["kind"] != "start" and body["step"] > tracker.after:
                        _give(tracker, _record(body))
                for step in self._good[told:]:
                    tracker.log(Record(kind="checkpoint", step=step, position=0, values={}))
                    told += 1

    def _say_what_is_older(self, tracker: Service) -> None:
        """Says which steps the tracker will never have, for the log began anew behind them."""
        if self._begin.piece == 1:
            return
        with Reader(self._path) as pieces:
            for _, line in itertools.islice(pieces.lines(), 1):
                first = _body(line)["step"]
                if first > tracker.after + 1:
                    self._say(f"is given the steps from {first} on: the log's older lines are gone ({FIELD})")

    def _say_gone(self, pieces: int) -> None:
        self._say(f"was too slow: {pieces} piece(s) of the log went before it came to them ({FIELD})")

    def _say(self, told: str) -> None:
        print(f"mlprod: {self.name} {told}", file=sys.stderr, flush=True)


def _give(tracker: Tracker, record: Record) -> None:
    tracker.log(record)
    time.sleep(0)  # Python's lock goes to the loop where that waits for it


def past(log: Path, begin: Place, end: Place, step: int, gone: Callable[[int], None]) -> Iterator[Record]:
    """Yields what counts of a log from `begin` to `end` for a run that goes on from `step`, in the order of the steps.

    A run that went back, by a kill or after bad numbers, has nothing from behind where it went back to.
    """
    places, steps = array("q"), array("q")  # 16 bytes a line: a log may have millions
    for place, line in _until(log, begin, end, lambda pieces: None):
        body = _body(line)
        before = body["step"] - (body["kind"] == "train")
        while steps and steps[-1] > before:
            places.pop(), steps.pop()
        if body["kind"] != "start":
            places.append(_packed(place))
            steps.append(body["step"])
    kept = zip(places, steps, strict=True)
    wanted, there = next(kept, NO_MORE)
    for place, line in _until(log, begin, end, gone):
        while wanted < _packed(place):  # gone since the first look
            wanted, there = next(kept, NO_MORE)
        if wanted == _packed(place) and there <= step:
            yield _record(_body(line))


def _until(log: Path, begin: Place, end: Place, gone: Callable[[int], None]) -> Iterator[tuple[Place, bytes]]:
    with Reader(log, begin, gone) as pieces:
        yield from itertools.takewhile(lambda found: found[0] < end, pieces.lines())


def _packed(place: Place) -> int:
    return place.piece << OFFSET_BITS | place.offset


def _body(line: bytes) -> Any:
    """Returns a line's JSON data; raises ValueError where it is none within our limits, which ends this tracker alone."""
    return documents.parse(line, finite=False)


def _record(body: dict[str, Any]) -> Record:
    values = {name: (float(value), float(weight)) for name, (value, weight) in body["values"].items()}
    about = {name: body[name] for name in ("kind", "step", "position", "ids", "time")}
    return Record(values=values, **about)
