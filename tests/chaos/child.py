"""What a chaos process runs. Imported once by the fork server, so that a start costs half a second instead of seven."""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mlprod import cli, recipe, train  # noqa: F401 (imported for the children to find them loaded)
from mlprod.data.reader import GroupReader
from mlprod.etl import run as etl_run  # noqa: F401
from mlprod.parallel import place
from mlprod.processes.rank import Rank
from mlprod.tracking import Record, Trackers


def command(argv: Sequence[str], output: str) -> None:
    """Runs a command line as its own process would, its output in a file, and ends with its exit code."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = cli.run(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)


def one_of_several(argv: Sequence[str], output: str, port: int, index: int, count: int) -> None:
    """Runs a command line as process `index` of `count`, which meet on a port; the clock of all but the first stands still.

    What row groups of the training split it reads is written down, one a line, in `OUTPUT.INDEX.reads`.
    """
    os.environ |= Rank(index=index, count=count, coordinator=f"127.0.0.1:{port}").variables()
    note_reads(f"{output}.{index}.reads")
    if index:
        train.time = SimpleNamespace(monotonic=lambda: 0.0)  # type: ignore[assignment] # a module's place taken by a clock
    command(argv, output)


def note_reads(path: str) -> None:
    """Writes down every row group of the training split that this process reads."""
    real, opened = GroupReader.read, GroupReader.__init__
    trained = set[int]()  # ids of the readers of that split

    def open_reader(self: GroupReader, store: Any, manifest: Any, split: str) -> None:
        opened(self, store, manifest, split)
        if split == "train":
            trained.add(id(self))

    def read(self: GroupReader, group: int) -> dict[str, np.ndarray]:
        if id(self) in trained:
            with open(path, "a") as file:
                file.write(f"{group}\n")
        return real(self, group)

    GroupReader.__init__, GroupReader.read = open_reader, read  # type: ignore[method-assign] # they are watched


def broken_reader(argv: Sequence[str], output: str, good_reads: int, fault: str, waiting_every_s: float) -> None:
    """Runs a command line whose reader has a bug ("raise"), hangs ("hang") or is slow ("slow") after `good_reads` row groups."""
    real, count = GroupReader.read, itertools.count()

    def read(self: GroupReader, group: int) -> dict[str, np.ndarray]:
        if next(count) >= good_reads:
            if fault == "raise":
                raise RuntimeError("a bug in the reader")
            time.sleep(600.0 if fault == "hang" else 0.4)
        return real(self, group)

    GroupReader.read = read  # type: ignore[method-assign] # the bug
    place.WAITING_EVERY_S = waiting_every_s
    command(argv, output)


def waited_for_core_s() -> dict[int, float]:
    """Returns {thread: seconds that it was ready to run and had no core} of Python's threads; 0 where no system tells."""
    found = {0: 0.0}
    for thread in (thread.native_id or 0 for thread in threading.enumerate()):
        with suppress(OSError):  # it has just ended
            found[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_bytes().split()[1]) / 1e9
    return found


def timed_tracking(argv: Sequence[str], output: str, variables: Mapping[str, str], pause_s: float) -> None:
    """Runs a command line with environment variables; how long each record kept the loop is written to `OUTPUT.took`, in s.

    "wall" is by the clock alone. From "log" is taken off how long the machine, busy with others, gave the loop no core, or a
    thread that may have had Python's lock.
    `pause_s`: after each record, for a run that is to last.
    """
    os.environ |= variables
    real_log, real_open, real_exit = Trackers.log, train.open_trackers, Trackers.__exit__
    took: dict[str, list[float]] = {"start": [0.0], "log": [], "wall": [], "finish": [0.0]}

    def timed_open(*given: Any, **more: Any) -> Trackers:
        began = time.perf_counter()
        try:
            return real_open(*given, **more)
        finally:
            took["start"] = [time.perf_counter() - began]

    def timed_log(self: Trackers, record: Record) -> None:
        waited, began = waited_for_core_s(), time.perf_counter()
        real_log(self, record)
        took["wall"].append(time.perf_counter() - began)
        took["log"].append(took["wall"][-1] - max(s - waited.get(thread, s) for thread, s in waited_for_core_s().items()))
        time.sleep(pause_s)

    def timed_exit(self: Trackers, *error: Any) -> None:
        began = time.perf_counter()
        real_exit(self, *error)
        took["finish"] = [time.perf_counter() - began]
        Path(f"{output}.took").write_text(json.dumps(took))

    train.open_trackers = timed_open
    Trackers.log, Trackers.__exit__ = timed_log, timed_exit  # type: ignore[method-assign] # they are watched
    command(argv, output)
