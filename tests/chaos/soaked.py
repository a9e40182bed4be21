"""The process that a soak watches: a command line with faults that come by themselves, at places where no test has a hook.

    python -m tests.chaos.soaked SPEC

`SPEC`, a JSON file: {"argv": [...], "pause_s", "bad_read", "bad_save"}: seconds of rest after each step, the share of reads that
fail once, and the number of the save that finds the disk full (0: none).
"""

import errno
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mlprod import cli, store
from mlprod.checkpoint.store import Store as Saves
from mlprod.state import TrainState
from mlprod.store import Store
from mlprod.tracking import Record, Trackers

PATIENCE_S = 32.0  # as of a store far away: one of this machine has none


def fail_reads(share: float) -> None:
    """Has one read in `1 / share` fail, as those of a network's disk do; it is tried again as in an object store."""
    real_read, real_init, count = store._LocalFile.read_into, Store.__init__, itertools.count(1)
    every = max(round(1 / share), 2)

    def patient(self: Store, location: str, filesystem: Any, root: str, patience_s: float) -> None:
        real_init(self, location, filesystem, root, max(patience_s, PATIENCE_S))

    def read_into(self: store._LocalFile, start: int, out: memoryview) -> int:
        if next(count) % every == 0:
            raise OSError(errno.EIO, "a fault of the soak")
        return real_read(self, start, out)

    Store.__init__ = patient  # type: ignore[method-assign] # faults are put in
    store._LocalFile.read_into = read_into  # type: ignore[method-assign]


def fail_save(number: int) -> None:
    """Has a save find the disk full."""
    real, count = Saves.save, itertools.count(1)

    def save(self: Saves, state: TrainState, run: Any) -> None:
        if next(count) == number:
            self._manager.save = full  # of orbax, which is asked next
        real(self, state, run)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Saves.save = save  # type: ignore[method-assign]


def rest(seconds: float) -> None:
    """Has the loop rest after each record, so that others may use the machine too."""
    real = Trackers.log

    def log(self: Trackers, record: Record) -> None:
        real(self, record)
        time.sleep(seconds)

    Trackers.log = log  # type: ignore[method-assign]


def main() -> None:
    """Runs the command line with its faults."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["bad_read"]:
        fail_reads(spec["bad_read"])
    if spec["bad_save"]:
        fail_save(spec["bad_save"])
    rest(spec["pause_s"])
    sys.exit(cli.main(spec["argv"]))


if __name__ == "__main__":
    main()
