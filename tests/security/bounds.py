"""The bounds of a refusal: seconds, and memory of the whole process, whatever library takes it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS, BYTES = 5.0, 300 << 20  # of a machine that others use too
RESET_PEAK = "5"  # see `proc(5)`, clear_refs


@contextmanager
def bounded(seconds: float = SECONDS, most: int = BYTES) -> Iterator[None]:
    """What is done in this block takes at most so many seconds, and at its peak so many bytes more than before."""
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before, began = _peak(), time.monotonic()
    yield
    took, more = time.monotonic() - began, _peak() - before
    assert took < seconds, f"it took {took:.1f} s"
    assert more < most, f"it took {more:,} bytes"


def _peak() -> int:
    """Returns the most bytes that were resident since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
