"""The tasks of a build on a Dask cluster: workers on other machines that see the dataset's folder under the same path.

Promise: before a row is read every worker has been found to run the same code of mlprod, Python, numpy and pyarrow, on which
equal bytes depend, and to see the dataset's folder, the source and the hook as this process does; one that comes later is asked
before its first task. A scheduler that goes away, or a cluster without workers for `ABSENT_S`, ends the build with 75.
Price: a scheduler runs what it is sent: see the threats in docs/operations.md. A worker whose end nobody saw may still write;
`whole.py` has why that does no harm.
"""

import errno
import functools
import gc
import logging
import platform
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import distributed
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from mlprod.config import AsOf, EtlConfig, SqlSource
from mlprod.discreet import discreet, is_sensitive
from mlprod.errors import BuildError, ClusterLost, DataError, MachineError
from mlprod.etl.connection import connect
from mlprod.etl.files import files_of
from mlprod.etl.pool import TaskKills, hook_file
from mlprod.own_code import code_sha256, file_sha256
from mlprod.store import is_remote

LIBRARIES = ("numpy", "pyarrow", "pandas", "xxhash", "distributed")
CODE = code_sha256()  # as it was when this process took it: a worker that was started before a change runs the old one
CONNECT_S = 10.0  # to the scheduler, and until it has a worker
WATCH_S, ANSWER_S, ABSENT_S = 1.0, 10.0, 60.0  # how often workers are counted, how soon; how long there may be none
AHEAD = 2  # tasks a thread that are with the scheduler: one runs, one waits
MARK = ".seen-"  # begins the names of what a build and its workers leave for each other
GONE = "its scheduler is gone"
LATE_S = (1.0, 2.0, 4.0, 8.0)  # a shared folder may show a file late, or one that was replaced as it was
LATE = (errno.ENOENT, errno.ESTALE)


@dataclass(frozen=True)
class Wanted:
    """What a worker must be and see."""

    versions: tuple[tuple[str, str], ...]
    code: str
    hook: tuple[str, str]  # its file and that file's SHA-256; ("", "") where there is none
    files: tuple[tuple[str, int], ...]  # of the source, and their bytes
    url: str  # of the source's database, as written
    mark: str  # a file in the shared folder
    token: str  # what it holds
    discreet: bool  # whether no error may quote a value: a worker writes them into a log of its own


def _versions() -> tuple[tuple[str, str], ...]:
    found = [("Python", platform.python_version().rpartition(".")[0])]
    for name in LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            found.append((name, "none"))
    return tuple(found)


def wanted_of(etl: EtlConfig, work: Path) -> Wanted:
    """Returns what the workers of a build must be and see, and leaves a mark for them in its folder, which is there."""
    others = (step.source for step in etl.gathered if isinstance(step, AsOf))
    files = tuple(file for source in (etl.source, *others) for file in _files(source))
    path, mark, token = hook_file(etl), work / f"{MARK}{uuid4().hex}", uuid4().hex
    mark.write_text(token)
    return Wanted(
        versions=_versions(), code=CODE, hook=(path, file_sha256(path) if path else ""), files=files,
        url=etl.source.url if isinstance(etl.source, SqlSource) else "", mark=str(mark), token=token,
        discreet=is_sensitive(etl),
    )  # fmt: skip


def _files(source: Any) -> tuple[tuple[str, int], ...]:
    """Returns the first and the last file of a source, where they are plain files, with their bytes."""
    if isinstance(source, SqlSource) or is_remote(source.path):
        return ()
    names = files_of(source.path)
    there = [Path(name).absolute() for name in dict.fromkeys((names[0], names[-1])) if Path(name).is_file()]
    return tuple((str(path), path.stat().st_size) for path in there)


@functools.cache
def differs(wanted: Wanted) -> str:
    """Returns what this process lacks to do tasks of a build, and the way out; "" where it lacks nothing."""
    for (name, theirs), (_, ours) in zip(wanted.versions, _versions(), strict=True):
        if theirs != ours:
            return f"has {name} {ours} and this process {theirs}; equal bytes need the same, install it there"
    if wanted.code != CODE:
        return "runs other code of mlprod than this process; install the same there and start the worker again"
    folder = str(Path(wanted.mark).parent)
    if _read(wanted.mark) != wanted.token:
        return f"does not see {folder}, the work folder; share it under the same path, for a user who may read and write there"
    for path, size in wanted.files:
        if not Path(path).is_file() or Path(path).stat().st_size != size:
            return f"does not see {path} as this process does ({size:,} bytes); share the source under the same path"
    path, digest = wanted.hook
    if path and (not Path(path).is_file() or file_sha256(path) != digest):
        return f"does not see the same {path}, which has config.etl.transform; share it, or copy it there, under the same path"
    try:
        if wanted.url:
            connect(SqlSource(url=wanted.url)).dispose()
    except DataError as error:
        return f"cannot read the source: {error} there"
    return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, UnicodeError):
        return ""


def look(wanted: Wanted) -> tuple[str, str]:
    """Returns (what this process lacks, see `differs`; the file that it wrote beside the mark, for the other side to read)."""
    lacks, left = differs(wanted), f"{wanted.mark}-{uuid4().hex}"
    try:
        if not lacks:
            Path(left).write_text(wanted.token)
    except OSError as error:
        return f"cannot write in {Path(left).parent} ({error.strerror}); let its user write there", left
    return lacks, left


def check(wanted: Wanted, looks: dict[str, Any], executor: str) -> None:
    """Raises MachineError for the first worker that is not as wanted; `looks`: by worker, what `look` returned or raised."""
    for worker, seen in sorted(looks.items()):
        if isinstance(seen, CommClosedError):  # it ended before it could answer: then it does no task
            continue
        if isinstance(seen, BaseException):
            told = " ".join(f"{type(seen).__name__}: {seen}".split())[:200]
            lacks = f"cannot run this mlprod ({told}); install the same there and start the worker again"
        else:
            lacks, left = seen
            if not lacks and _read(left) != wanted.token:
                lacks = f"writes into another {Path(left).parent} than this process sees; share it under the same path"
        if lacks:
            raise MachineError(f"config.etl.executor={executor!r}: worker {worker} {lacks}")


def on_worker(wanted: Wanted, act: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Does a task on a worker that is as wanted. A file that the shared folder does not show yet is waited for."""
    lacks = differs(wanted)
    if lacks:
        raise BuildError(f"worker {distributed.get_worker().address}, which came later, {lacks}")
    with discreet(wanted.discreet):
        for pause in LATE_S:
            try:
                return act(*args)
            except OSError as error:
                if error.errno not in LATE:
                    raise
                time.sleep(pause)
        return act(*args)


def address_of(executor: str) -> str:
    """Returns `config.etl.executor` as Dask has it."""
    return executor.replace("dask+tls://", "tls://").replace("dask://", "tcp://")


def client_of(executor: str) -> distributed.Client:
    """Returns a client of the scheduler at a checked address; certificates are those of Dask's own configuration.

    Raises:
        MachineError: there is none, it wants certificates or has others, or it has no workers.
    """
    for name in ("distributed", "distributed.client", "distributed.core", "asyncio", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they tell of a lost connection in dozens of lines; we say it in one
    try:
        client = distributed.Client(address_of(executor), timeout=CONNECT_S, set_as_default=False, name="mlprod")
    except (OSError, RuntimeError, TypeError, ValueError, ImportError) as error:
        traceback.clear_frames(error.__traceback__)  # they hold a client, which ends its thread when it is collected: here, for
        gc.collect()  # where another client is just beginning each of the two waits for the other
        why = " ".join(str(error.__cause__ or error).split())[:200]
        way = "mend the address or start `dask scheduler`; one that wants certificates is dask+tls://, with Dask's own settings"
        raise MachineError(f"config.etl.executor={executor!r}: no scheduler lets us in there ({why}); {way}") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except (TimeoutError, OSError) as error:
        client.close()
        told = f"the scheduler has no workers after {CONNECT_S:g} s; start some: `dask worker` with its address"
        raise MachineError(f"config.etl.executor={executor!r}: {told}") from error
    return client


def reach(executor: str) -> None:
    """Raises MachineError where there is no cluster."""
    client_of(executor).close()


@contextmanager
def joined(etl: EtlConfig, work: Path) -> Iterator["Cluster"]:
    """Yields the cluster of a build, every worker of which has been asked; `work`: its folder, which is there.

    Raises:
        MachineError: there is no cluster, or a worker is not as it must be.
    """
    client = client_of(etl.executor)
    try:
        wanted = wanted_of(etl, work)
        check(wanted, client.run(look, wanted, on_error="return"), etl.executor)
        with Cluster(client, wanted, etl.workers) as pool:
            yield pool
    finally:
        with suppress(TimeoutError, OSError):
            client.close(timeout=2)
        for mark in work.glob(f"{MARK}*"):
            mark.unlink(missing_ok=True)


class Cluster(Executor):
    """Gives tasks to a cluster's workers. Unlike Dask's own executor it tells how a task that is lost was lost."""

    def __init__(self, client: distributed.Client, wanted: Wanted, limit: int) -> None:
        """`limit`: of tasks at once; 0: all threads of the workers."""
        self._client, self._wanted, self._limit = client, wanted, limit
        threads = list(client.nthreads().values()) or [1]
        self.threads_each = min(max(threads), limit or max(threads))  # tasks that share a worker's memory
        self._room = limit or AHEAD * sum(threads)
        self._lock, self._over = threading.RLock(), threading.Event()
        self._waiting = deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]()
        self._given = dict[Future[Any], Any]()  # to the scheduler, each with Dask's own future
        self._done = SimpleQueue[tuple[Future[Any], Any] | None]()
        for act in (self._watch, self._hand_over):
            threading.Thread(target=act, daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Returns the future of fn(*args) on a worker."""
        promised = Future[Any]()
        with self._lock:
            self._waiting.append((promised, functools.partial(fn, **kwargs) if kwargs else fn, args))
            self._give()
        return promised

    def _give(self) -> None:
        """Gives tasks to the scheduler: as many as it is to have. The lock is held."""
        while self._waiting and len(self._given) < self._room and not self._over.is_set():
            promised, act, args = self._waiting.popleft()
            if not promised.set_running_or_notify_cancel():
                continue
            if self._client.status == "closed":
                promised.set_exception(_lost(GONE))
                continue
            try:
                given = self._client.submit(on_worker, self._wanted, act, args, pure=False)
            except Exception as error:  # told by the future: this may be a thread whose errors nobody sees
                promised.set_exception(error)
                continue
            self._given[promised] = given
            given.add_done_callback(lambda given, promised=promised: self._done.put((promised, given)))

    def _hand_over(self) -> None:
        """Takes what tasks returned, on a thread of this cluster's own.

        Dask has one thread for the callbacks of all clients, and a result may never come whose scheduler is gone.
        """
        while (ended := self._done.get()) is not None:
            self._ended(*ended)

    def _ended(self, promised: Future[Any], given: Any) -> None:
        """Hands over what became of a task, and gives another."""
        result: Any = None
        error: BaseException | None = None
        try:
            result = given.result()
        except KilledWorker as killed:
            error = TaskKills(f"{killed.allowed_failures + 1} workers ended, each while it did the same task")
        except CancelledError:
            error = _lost(GONE)
        except BaseException as raised:  # the task's own, as it was raised there
            error = raised
        with self._lock:
            if self._given.pop(promised, None) is None:
                return  # told before
            _settle(promised, result, error)
            given.release()
            if not isinstance(error, ClusterLost):
                self._give()

    def _watch(self) -> None:
        """Counts the workers, as long as there are some."""
        seen = time.monotonic()
        while not self._over.wait(WATCH_S):
            threads = 0
            with suppress(Exception):  # of a scheduler that is gone, or does not answer
                scheduler: Any = self._client.scheduler
                threads = sum(self._client.sync(scheduler.ncores, callback_timeout=ANSWER_S).values())
            with self._lock:
                self._room = self._limit or max(AHEAD * threads, 1)
            if threads:
                seen = time.monotonic()
            elif self._client.status == "closed":  # a task whose result was on its way is told of by nobody else
                self._lose(_lost(GONE))
            elif time.monotonic() - seen > ABSENT_S:
                self._lose(_lost(f"no workers, or no answer of its scheduler, for {ABSENT_S:g} s"))

    def _lose(self, error: ClusterLost) -> None:
        with self._lock:
            lost, self._given = list(self._given), {}
            for promised in lost:
                _settle(promised, None, error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes back what is not done. A task that a worker is doing goes on there; nobody takes what it returns."""
        self._over.set()
        self._done.put(None)
        with self._lock:
            given, self._given = self._given, {}
            for promised, _, _ in self._waiting:
                promised.cancel()
            self._waiting.clear()
        if given:
            with suppress(Exception):  # of a scheduler that is gone, with all that it was given
                self._client.cancel(list(given.values()))


def _settle(promised: Future[Any], result: Any, error: BaseException | None) -> None:
    if error is None:
        promised.set_result(result)
    else:
        promised.set_exception(error)


def _lost(why: str) -> ClusterLost:
    return ClusterLost(f"the Dask cluster is lost: {why}; the same command goes on with the tasks that are left")
