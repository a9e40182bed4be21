"""Where the tasks of a build run: on threads of this process, or in processes of their own.

Promise: the same results either way. A worker process ends with the one that started it, however that ends, so that none goes on
writing beside the next attempt.
Price: processes start once a build, in about two seconds, import everything anew (about 150 MB each), and are sent the lookups
with every task. They pay where the work is done in Python, which one thread at a time does: JSON lines, irregular CSV, a hook.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from mlprod.config import EtlConfig, no_transform
from mlprod.recipe import function_of


def pool_of(kind: str, workers: int) -> Executor:
    """Returns what runs `workers` tasks at once; `kind`: "threads" or "processes"."""
    if kind == "threads":
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent says what becomes of it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class _Hook:
    """A hook by its file and name: what another process can be sent."""

    path: str
    name: str

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, chunk: Any) -> Any:
        return _loaded(self.path, self.name)(chunk)


@functools.cache
def _loaded(path: str, name: str) -> Callable[[Any], Any]:
    return function_of(path, name)


def sendable(etl: EtlConfig) -> EtlConfig:
    """Returns a valid config that tasks can take to where `etl.executor` says."""
    hook: Any = etl.transform
    if etl.executor == "threads" or hook is no_transform:
        return etl
    return replace(etl, transform=_Hook(hook.__code__.co_filename, hook.__qualname__))
