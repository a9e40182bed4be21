"""Where the tasks of a build run: on threads of this process, in processes of their own, or on a Dask cluster (`cluster.py`).

Promise: the same results in each of them. A worker process ends with the one that started it, however that ends, so that none
goes on writing beside the next attempt; one of a cluster may, and does no harm (`whole.py`).
Price: processes start once a build, in about two seconds, import everything anew (about 150 MB each), and are sent the lookups
with every task. They pay where the work is done in Python, which one thread at a time does: JSON lines, irregular CSV, a hook.
"""

import functools
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlprod.config import HERE, EtlConfig, no_transform
from mlprod.cores import num_cores
from mlprod.errors import ConfigError, DataError, MachineError
from mlprod.own_code import file_sha256
from mlprod.recipe import function_of


class TaskKills(BrokenExecutor):
    """A task was given to several processes, and each of them ended."""


@dataclass(frozen=True)
class Crew:
    """Who does the tasks of a build."""

    pool: Executor
    together: int  # tasks that share `etl.memory_bytes`: all that run at once; on a cluster, those of one worker
    away: bool  # on machines that share no more than folders


@contextmanager
def crew_of(etl: EtlConfig, work: Path) -> Iterator[Crew]:
    """Yields who does the tasks of a build, ready; `work`: its folder, which is there.

    Raises:
        MachineError: a cluster is not there, or not as it must be.
    """
    if etl.executor in HERE:
        workers = etl.workers or num_cores()
        with pool_of(etl.executor, workers) as pool:
            yield Crew(pool, workers, away=False)
        return
    with _cluster(etl.executor).joined(etl, work) as pool:
        yield Crew(pool, pool.threads_each, away=True)


def check_reach(etl: EtlConfig) -> None:
    """Raises MachineError where the tasks are for a cluster that is not there; before a source of terabytes is looked at."""
    if etl.executor not in HERE:
        _cluster(etl.executor).reach(etl.executor)


def _cluster(executor: str) -> Any:
    try:
        return importlib.import_module("mlprod.etl.cluster")
    except ModuleNotFoundError as error:
        raise MachineError(f"config.etl.executor={executor!r}: {error}; pip install -c constraints.txt -e '.[dask]'") from error


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
    sha256: str  # of the file: a worker of a cluster lives longer than a build, and may have loaded an older one

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, chunk: Any) -> Any:
        return _loaded(self.path, self.name, self.sha256)(chunk)


@functools.cache
def _loaded(path: str, name: str, sha256: str) -> Callable[[Any], Any]:
    if file_sha256(path) != sha256:
        raise DataError(f"{path} was changed while the build ran; run `mlprod etl` again")
    return function_of(path, name)


def sendable(etl: EtlConfig) -> EtlConfig:
    """Returns a valid config that tasks can take to where `etl.executor` says."""
    hook: Any = etl.transform
    if etl.executor == "threads" or hook is no_transform:
        return etl
    path = hook_file(etl)
    return replace(etl, transform=_Hook(path, hook.__qualname__, file_sha256(path)))


def hook_file(etl: EtlConfig) -> str:
    """Returns the file of the hook, "" where there is none.

    Raises:
        ConfigError: it was made without one.
    """
    hook: Any = etl.transform
    path = Path(hook.__code__.co_filename).absolute()
    if hook is not no_transform and not path.is_file():
        told = f"config.etl.transform={hook.__qualname__} is of {hook.__code__.co_filename}, which is no file"
        raise ConfigError(f"{told}; write it into one, or set config.etl.executor='threads'")
    return "" if hook is no_transform else str(path)
