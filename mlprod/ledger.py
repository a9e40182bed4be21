"""Where the time of an attempt went, by activity.

Promise: what no activity claims is shown as unattributed, never hidden in an "other"; nested activities are not counted twice.
Price: two clock reads an entry.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Ledger:
    """Adds up seconds by activity."""

    def __init__(self, earlier: Mapping[str, float] | None = None) -> None:
        """`earlier`: totals of the attempts before this one, in seconds."""
        self.earlier = dict(earlier or {})
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self.now = ("", self._began)  # the innermost activity, and since when; "": none. Another thread may read it
        self._inner = [0.0]  # per open activity, what activities inside it took

    @contextmanager
    def spent(self, activity: str) -> Iterator[None]:
        """Counts the block as `activity`, less what activities inside it count."""
        outer, start = self.now[0], time.monotonic()
        self._inner.append(0.0)
        self.now = activity, start
        try:
            yield
        finally:
            ended = time.monotonic()
            self.seconds[activity] = self.seconds.get(activity, 0.0) + ended - start - self._inner.pop()
            self._inner[-1] += ended - start
            self.now = outer, ended

    def again(self) -> None:
        """Tells that the activity under way gets on: for who looks at `now` it begins anew."""
        self.now = self.now[0], time.monotonic()

    def took(self, activity: str, seconds: float) -> None:
        """Counts `seconds` just spent as `activity`, and not as what is going on around it."""
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds
        self._inner[-1] += seconds

    def started(self, seconds: float) -> None:
        """Counts `seconds` before this ledger, which the start of the process took, as "import"."""
        self._began -= seconds
        self.seconds["import"] = seconds

    def totals(self) -> dict[str, float]:
        """Returns seconds by activity over all attempts, this one included."""
        names = self.earlier.keys() | self.seconds.keys()
        return {name: self.earlier.get(name, 0.0) + self.seconds.get(name, 0.0) for name in sorted(names)}

    def elapsed(self) -> float:
        """Returns the seconds since this attempt began."""
        return time.monotonic() - self._began

    def line(self) -> str:
        """Returns this attempt's seconds by activity, the unattributed ones last, as one line."""
        total = self.elapsed()
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        rest = total - sum(self.seconds.values())
        told = ", ".join(f"{name} {s:.1f}" for name, s in parts)
        return f"time: {total:.1f} s = {told}, unattributed {rest:.1f} ({rest / max(total, 1e-9):.1%})"
