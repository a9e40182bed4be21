"""What a person sees of a run: a progress line in a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY_S = 10.0


class ProgressLine:
    """Step, rate, loss and time left. A context manager."""

    def __init__(self, total: int, start: int, rows_per_step: int, *, wanted: bool) -> None:
        """`total` and `start` in steps; `wanted`: False prints nothing at all."""
        self._wanted, self._rows = wanted, rows_per_step
        self._live = wanted and sys.stderr.isatty()
        self._total, self._done = total, start
        self._mark, self._mark_step = time.monotonic(), start
        self._rate = 0.0
        columns = (
            "training",
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            "left",
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self._live)
        self._task = self._bar.add_task("train", total=total, completed=start, told="")

    def __enter__(self) -> "ProgressLine":
        """Shows the line."""
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves the line as it stands."""
        self._bar.stop()

    def update(self, step: int, loss: float) -> None:
        """Tells that `step` steps are done; the rate is over the last second or more."""
        self._done, now = step, time.monotonic()
        if now - self._mark >= (1.0 if self._live else PLAIN_EVERY_S):
            self._rate = (step - self._mark_step) * self._rows / (now - self._mark)
            self._mark, self._mark_step = now, step
            if self._wanted and not self._live:
                left = (self._total - step) * self._rows / max(self._rate, 1e-9)
                print(
                    f"step {step}/{self._total}  loss {loss:.4f}  {self._rate:,.0f} rows/s  {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
        if self._live:
            told = f"loss {loss:.4f}" + (f"  {self._rate:,.0f} rows/s" if self._rate else "")
            self._bar.update(self._task, completed=step, told=told)

    def say(self, line: str) -> None:
        """Prints a line above the progress line."""
        if self._live:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._wanted:
            print(line, file=sys.stderr, flush=True)
