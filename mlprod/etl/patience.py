"""A server that gives nothing any more: it is waited for so long, and then its connection counts as lost.

Promise: whatever the driver, a server that hangs, or a network that swallows what is sent, ends in an error and not in a wait
without end; for many drivers have no such limit, and a connection that is open and silent breaks by none of TCP's.
Price: what a server is asked runs on a thread of its own. One that is given up waits on, its connection with it, until
the other side ends or this process does.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Concatenate, ParamSpec, TypeVar

from mlprod.config import SqlSource
from mlprod.etl.connection import connect, lost
from mlprod.etl.databases import database_of, shown

P = ParamSpec("P")
T = TypeVar("T")
GRACE_S = 1.0  # so that a driver with a limit of its own is the one to tell
ITEM, ERROR, END = "item", "error", "end"


def patiently(source: SqlSource, items: Iterator[T]) -> Iterator[T]:
    """Yields what `items` yields, made on another thread; a file is read on this one.

    Raises:
        ConnectionLost: nothing came for `source.timeout_s`.
    """
    url = connect(source).url
    if database_of(url).is_file:
        yield from items
        return
    asked, given, limit = SimpleQueue[bool](), SimpleQueue[tuple[str, Any]](), source.timeout_s + GRACE_S
    thread = Thread(target=_serve, args=(items, asked, given), name="database", daemon=True)
    thread.start()
    try:
        while True:
            asked.put(True)
            try:
                kind, value = given.get(timeout=limit)
            except BaseException as error:  # silence, or Ctrl-C: what the thread does then is not waited for
                limit = 0.0
                if not isinstance(error, Empty):
                    raise
                told = f"database {shown(url)} gave nothing for config.etl.source.timeout_s={source.timeout_s:g} seconds"
                raise lost(told) from None
            if kind == ERROR:
                raise value
            if kind == END:
                return
            yield value
    finally:
        asked.put(False)
        thread.join(limit)  # its connection is closed, unless that hangs too


def _serve(items: Iterator[Any], asked: "SimpleQueue[bool]", given: "SimpleQueue[tuple[str, Any]]") -> None:
    """Makes an item each time one is asked for."""
    while asked.get():
        try:
            given.put((ITEM, next(items)))
        except StopIteration:
            given.put((END, None))
        except BaseException as error:  # the asking thread's to deal with
            given.put((ERROR, error))
    with suppress(Exception):  # nobody waits for it
        getattr(items, "close", lambda: None)()


def answered(act: Callable[Concatenate[SqlSource, P], T]) -> Callable[Concatenate[SqlSource, P], T]:
    """Makes a function that asks a database one that gives it up in time."""

    @wraps(act)
    def patient(source: SqlSource, /, *args: P.args, **more: P.kwargs) -> T:
        return next(patiently(source, (act(source, *args, **more) for _ in range(1))))

    return patient


def rows_in_time(act: Callable[Concatenate[SqlSource, P], Iterator[T]]) -> Callable[Concatenate[SqlSource, P], Iterator[T]]:
    """Makes a function that yields rows of a database one that gives it up in time."""

    @wraps(act)
    def patient(source: SqlSource, /, *args: P.args, **more: P.kwargs) -> Iterator[T]:
        yield from patiently(source, act(source, *args, **more))

    return patient
