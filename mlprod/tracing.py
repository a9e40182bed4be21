"""A profile of the next steps, when someone asks for it: `kill -USR1` to the process, or to its supervisor.

Promise: the run goes on and its bits do not change. What is written is read by xprof and TensorBoard's profiler, or by Perfetto.
Price: nothing until it is asked for; then the profiler's own, for `STEPS` steps.
"""

from collections.abc import Callable
from pathlib import Path

import jax

from mlprod.ledger import Ledger
from mlprod.processes.signals import Signals

STEPS = 5


class Tracer:
    """Traces steps of one run."""

    def __init__(self, workdir: Path, signals: Signals, ledger: Ledger, say: Callable[[str], None]) -> None:
        """`say`: is told where a trace begins and lies."""
        self._folder, self._signals, self._ledger, self._say = workdir / "traces", signals, ledger, say
        self._until = -1  # the step before which a trace under way ends

    def before(self, step: int) -> None:
        """Is told of the step that comes next; begins or ends a trace."""
        if step == self._until:
            self.end()
        if self._signals.trace and self._until < 0:
            self._signals.trace = False
            folder = self._folder / f"{step:08d}" / f"process-{jax.process_index()}"
            if self._done(lambda: jax.profiler.start_trace(folder)):
                self._until = step + STEPS
                self._say(f"tracing steps {step} to {self._until - 1}")

    def end(self) -> None:
        """Ends a trace under way."""
        if self._until >= 0:
            self._until = -1
            if self._done(jax.profiler.stop_trace):
                self._say(f"traced into {self._folder}")

    def _done(self, act: Callable[[], None]) -> bool:
        """Whether the profiler did it; its failure is told, and the run goes on."""
        with self._ledger.spent("trace"):
            try:
                act()
            except (RuntimeError, OSError) as error:
                self._say(f"the profiler fails: {error}")
                return False
        return True
