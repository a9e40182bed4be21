"""Ctrl-C at a moment: what a process runs that hangs there, or is where it is by itself, and how long it takes to be gone.

What hangs does not look at anything, as a compiler, a collective or a dead disk would not.
"""

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlprod import cli, train
from mlprod.checkpoint.store import Store as Saves
from mlprod.compilations import Watched
from mlprod.etl.tasks import Tasks
from mlprod.processes.rank import Rank
from mlprod.store import Store, _LocalFile
from mlprod.tracking import Record, Trackers

HANGS_S = 60.0
GOOD_READS = 24
WITHIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a process is when Ctrl-C comes."""

    code: int = 75
    told: str = "the same command goes on"  # in its last line
    verb: str = "train"
    given: tuple[str, ...] = ()
    tracked: str = ""  # of the W&B server, its mode at the start and, behind a comma, from step 10 on
    step: int = 0  # the log must tell of it
    saving: bool = False  # a step must be on its way to the disk


MOMENTS: Mapping[str, Moment] = {
    "plan": Moment(),
    "restore": Moment(),
    "trackers start": Moment(tracked="silent", given=("--config.tracking.start_s=60",), told="stopped after step"),
    "join": Moment(told="stopped by Ctrl-C"),
    "first batch": Moment(told="stopped after step 0"),
    "first step": Moment(told="still in first step after step 0"),
    "steps": Moment(step=12, told="stopped after step"),
    "evaluation": Moment(step=19, told="still in evaluate after step"),
    "save under way": Moment(step=7, saving=True, told="stopped after step"),
    "save that takes a minute": Moment(step=10, told="still in save after step"),
    "last save": Moment(step=60, told="still in save after step"),
    "reads are tried again": Moment(told="stopped after step"),
    "trackers end": Moment(
        tracked="well,silent", given=("--config.tracking.finish_s=60",), step=60, code=0, told="not take everything"
    ),
    "etl: extract": Moment(verb="etl"),
    "etl: settle": Moment(verb="etl"),
    "etl: sort": Moment(verb="etl"),
    "etl: write": Moment(verb="etl"),
}  # fmt: skip


def at_moment(argv: Sequence[str], output: str, name: str, variables: Mapping[str, str]) -> None:
    """Runs a command line as its own process would, which hangs at a moment; the file `OUTPUT.there` tells that it is there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who started this may ignore it, as a shell's background does
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= variables
    _hang(name, lambda: Path(f"{output}.there").touch())
    code = cli.main(argv)
    os._exit(code)


def _hang(name: str, there: Callable[[], None]) -> None:
    """Puts what hangs in place."""

    def hangs(*_: Any, **__: Any) -> None:
        there()
        time.sleep(HANGS_S)

    match name:
        case "plan":
            train.make_plan = hangs
        case "restore":
            train.start = hangs
        case "join":
            os.environ |= Rank(index=0, count=2, coordinator="127.0.0.1:29541").variables()
            there()
        case "first batch":
            _LocalFile.read_into = hangs  # type: ignore[method-assign,assignment] # these are all faults
        case "first step":
            Watched.__call__ = hangs  # type: ignore[method-assign,assignment]
        case "evaluation":
            train.evaluate = hangs  # type: ignore[assignment]
        case "save that takes a minute":
            Saves.finish_save = hangs  # type: ignore[method-assign]
            there()
        case "last save":
            Saves.finish = hangs  # type: ignore[method-assign]
        case "reads are tried again":
            _fail_all_reads(there)
        case _ if name.startswith("etl: "):
            _hang_tasks(name.removeprefix("etl: "), hangs)
    if name in ("steps", "save under way", "save that takes a minute", "reads are tried again"):
        _rest(0.02)


def _fail_all_reads(there: Callable[[], None]) -> None:
    """Has all reads but the first few fail, which are tried again for half a minute."""
    real, init, count = _LocalFile.read_into, Store.__init__, itertools.count()

    def read_into(self: _LocalFile, start: int, out: memoryview) -> int:
        if next(count) >= GOOD_READS:
            there()
            raise OSError(5, "no route to the disk")
        return real(self, start, out)

    def patient(self: Store, location: str, filesystem: Any, root: str, patience_s: float) -> None:
        init(self, location, filesystem, root, 32.0)

    _LocalFile.read_into, Store.__init__ = read_into, patient  # type: ignore[method-assign]


def _hang_tasks(stage: str, hangs: Callable[..., None]) -> None:
    """Has the tasks of a stage of a build hang, each on a thread of the pool."""
    real = Tasks.run

    def run(self: Tasks, name: str, acts: Mapping[str, Callable[[], Any]], *given: Any, **more: Any) -> Any:
        return real(self, name, dict.fromkeys(acts, hangs) if name.startswith(stage) else acts, *given, **more)

    Tasks.run = run  # type: ignore[method-assign,assignment]


def _rest(seconds: float) -> None:
    real = Trackers.log

    def log(self: Trackers, record: Record) -> None:
        real(self, record)
        time.sleep(seconds)

    Trackers.log = log  # type: ignore[method-assign]
