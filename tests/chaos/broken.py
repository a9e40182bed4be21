"""Trains with a fault: `python -m tests.chaos.broken FAULT train ...`. Each stands for what a library or a machine may do."""

import itertools
import os
import re
import sys
import time
from typing import Any

from mlprod import cli, runtime, train
from mlprod.data.reader import GroupReader

AT_STEP = 30


def after(calls: int, act: Any, real: Any) -> Any:
    """A function that acts from its call number `calls` on, before it does what it does."""
    count = itertools.count()

    def acting(*given: Any, **named: Any) -> Any:
        if next(count) >= calls:
            act()
        return real(*given, **named)

    return acting


def hold_the_lock() -> None:
    """Matches for ages inside a library that holds Python's lock meanwhile, as some do."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def bug() -> None:
    """What code does that nobody thought of."""
    raise RuntimeError("a bug")


def main() -> int:
    """Installs the fault and trains."""
    fault, *argv = sys.argv[1:]
    if fault == "loader":  # a read that never returns, as of a network disk
        GroupReader.read = after(60, lambda: time.sleep(3600), GroupReader.read)  # type: ignore[method-assign] # the fault
    if fault == "devices":  # a driver that does not answer
        runtime.start = after(0, lambda: time.sleep(3600), runtime.start)
    acts = {"stuck": lambda: time.sleep(3600), "locked": hold_the_lock, "bug": bug, "out": lambda: os._exit(3)}
    if fault.startswith("late-"):  # as what all run into, one after another
        fault = fault.removeprefix("late-")
        acts["bug"] = lambda: (time.sleep(1.0), bug())
    if fault in acts:
        train.Late.report = after(AT_STEP, acts[fault], train.Late.report)  # type: ignore[method-assign] # the fault
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
