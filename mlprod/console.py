"""What a person sees of a run or of a build: progress lines in a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

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


class Phase:
    """What is done of a phase of a build; counted from several threads."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        """`total`: of what is counted, in `unit`; 0: not known."""
        self.name, self.total, self.done = name, total, 0
        self._unit, self._rows = unit, 0
        self._earlier, self._earlier_rows = 0, 0
        self._began, self._seconds = time.monotonic(), -1.0
        self._lock = threading.Lock()

    def add(self, done: int, rows: int = 0, *, earlier: bool = False) -> None:
        """Tells that so much more is done, with so many rows; `earlier`: by an attempt before, which says nothing of the rate."""
        with self._lock:
            self.done, self._rows = self.done + done, self._rows + rows
            if earlier:
                self._earlier, self._earlier_rows = self._earlier + done, self._earlier_rows + rows

    def end(self) -> None:
        """Stops the clock."""
        self._seconds = time.monotonic() - self._began

    def told(self) -> str:
        """Returns what is done, the rate, and the time left or, at the end, taken."""
        seconds = self._seconds if self._seconds >= 0 else time.monotonic() - self._began
        fresh, rows = self.done - self._earlier, self._rows - self._earlier_rows
        words = []
        if self.total:
            words.append(f"{_amount(self.done, self._unit)} of {_amount(self.total, self._unit)} {self._unit}")
        if self._rows:
            words.append(f"{self._rows:,} rows")
        if rows or (fresh and self._unit == "MB"):
            rate, unit = (rows, "rows") if rows else (fresh / 1e6, self._unit)
            words.append(f"{rate / max(seconds, 1e-3):,.0f} {unit}/s")
        if self._seconds >= 0:
            words.append(f"{seconds:.1f} s")
        elif fresh and self.total:
            words.append(f"{seconds * (self.total - self.done) / fresh:,.0f} s left")
        return ", ".join(words)


def _amount(count: int, unit: str) -> str:
    return f"{count / 1e6:,.1f}" if unit == "MB" else f"{count:,}"


class _Told(ProgressColumn):
    """What a phase says of itself, asked for when the line is drawn: so counting costs nothing."""

    def render(self, task: Task) -> Text:
        phase: Phase = task.fields["phase"]
        task.completed, task.total = phase.done, phase.total or None
        return Text(phase.told())


class PhaseLines:
    """A line for each phase of a build. A context manager."""

    def __init__(self, *, wanted: bool) -> None:
        """`wanted`: False prints nothing at all."""
        self._wanted, self._live = wanted, wanted and sys.stderr.isatty()
        name = TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=8))
        columns = (name, BarColumn(bar_width=20), _Told(Column(no_wrap=True)))
        self._bars = Progress(*columns, console=Console(stderr=True), refresh_per_second=4, disable=not self._live)

    def __enter__(self) -> "PhaseLines":
        """Shows the lines of phases to come."""
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leaves them as they stand."""
        self._bars.stop()

    @contextmanager
    def phase(self, name: str, total: int = 0, unit: str = "tasks") -> Iterator[Phase]:
        """Shows a phase while the block runs; where there is no terminal, tells what it did when it is done.

        Args:
            total: of what the block will count; 0: not known.
            unit: of it; "MB" where bytes are counted.
        """
        phase = Phase(name, total, unit)
        task = self._bars.add_task(name, total=total or None, phase=phase)
        yield phase
        phase.end()
        self._bars.update(task, total=phase.done or 1, completed=phase.done or 1)
        if self._wanted and not self._live:
            print(f"{name}: {phase.told()}", file=sys.stderr, flush=True)
