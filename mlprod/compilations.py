"""What XLA compiles in a run: how long that takes, how much of it an earlier start had kept, and a step that is compiled again.

Promise: seconds of compiling are an activity of the ledger of their own, wherever they are spent. A step that is compiled again
in the midst of a run, which costs as much as the first time, is told with what changed about its arguments.
Price: one comparison of two numbers a step.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax

from mlprod.ledger import Ledger

COMPILED, FOUND = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
WARM_UP = 2  # calls of a step that may compile: its arguments come from a restore the first time, from itself then
SHOWN = 3
Step = Callable[[Any, Any], Any]


class Compilations:
    """Counts the programs that this thread has compiled since the block began. A context manager."""

    def __init__(self, ledger: Ledger) -> None:
        """Nothing is counted before the block."""
        self.programs, self.found, self.seconds = 0, 0, 0.0  # compiled or found; of them found in the cache; for both
        self._ledger, self._thread = ledger, threading.get_ident()

    def __enter__(self) -> "Compilations":
        """Begins to count."""
        jax.monitoring.register_event_duration_secs_listener(self._took)
        jax.monitoring.register_event_listener(self._happened)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends counting."""
        jax.monitoring.unregister_event_duration_listener(self._took)
        jax.monitoring.unregister_event_listener(self._happened)

    def _took(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED and threading.get_ident() == self._thread:
            self.programs, self.seconds = self.programs + 1, self.seconds + duration_secs
            self._ledger.took("compile", duration_secs)

    def _happened(self, event: str, **_: Any) -> None:
        if event == FOUND and threading.get_ident() == self._thread:
            self.found += 1

    def line(self, cache: str) -> str:
        """Returns what was compiled and what was found in `cache` ("": there is none), as one line."""
        where = f", {self.found} of them from {cache}" if cache else ""
        return f"{self.programs} programs compiled in {self.seconds:.1f} s{where}"


class Watched:
    """A step that tells when it was compiled: at its first call how long that took, and whenever it is compiled again."""

    def __init__(self, step: Step, compiled: Compilations, cache: str, say: Callable[[str], None]) -> None:
        """`cache`: where compiled programs are kept, "": nowhere; `say`: is given a line."""
        self._step, self._compiled, self._cache, self._say = step, compiled, cache, say
        self._calls, self._first = 0, dict[str, str]()

    def __call__(self, state: Any, batch: Any) -> Any:
        """Returns what the step returns."""
        before = self._compiled.programs
        found = self._step(state, batch)
        if self._calls < WARM_UP or self._compiled.programs > before:
            self._look(described((state, batch)))  # also of arrays that were given away
        return found

    def _look(self, arguments: dict[str, str]) -> None:
        self._calls += 1
        if self._calls == 1:
            self._say(self._compiled.line(self._cache))
        if self._calls > WARM_UP:
            changed = [f"{name} {old} -> {new}" for name, new in arguments.items() if (old := self._first.get(name)) != new]
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            told = ", ".join(changed[:SHOWN]) + more if changed else "no argument; look at what the model or jax.config reads"
            self._say(f"the step was compiled again, for this has changed: {told}")
        self._first = arguments


def described(arguments: Any) -> dict[str, str]:
    """Returns {path: dtype, shape and split} of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _described(leaf) for path, leaf in leaves}


def _described(leaf: Any) -> str:
    kind, split = getattr(leaf, "dtype", type(leaf).__name__), getattr(getattr(leaf, "sharding", None), "spec", None)
    weak = ", weak" if getattr(leaf, "weak_type", False) else ""
    return f"{kind}{list(getattr(leaf, 'shape', ()))}{weak}" + (f" split {tuple(split)}" if split is not None else "")
