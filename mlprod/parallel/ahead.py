"""Work done ahead on a thread of its own: batches are put on the devices while the step before them runs.

Promise: items come in order; an error comes at its turn, as it was raised, and is the last; closing returns at once.
Price: `depth` items more on the devices, one thread, two queue operations an item (about 20 us).
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")
A_co = TypeVar("A_co", covariant=True)
POLL_S = 0.25  # how soon who waits for an item that is late looks at other things
JOIN_S = 1.0  # a thread inside a slow read is left behind: it ends by itself after that read


class Source(Protocol[A_co]):
    """An iterator whose `close` may be called while another thread waits in `next`, which it ends."""

    def __next__(self) -> A_co:
        """Returns the next item."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Ahead(Generic[A, B], Iterator[B]):
    """Yields work(item) for each item of a source, up to `depth` items ahead of who asks. A context manager."""

    def __init__(
        self, source: Source[A], work: Callable[[A], B], depth: int, waiting: Callable[[float], None], every_s: float
    ) -> None:
        """Starts at once.

        Args:
            source: drawn from on the thread; closed by `close`, on the thread of whoever calls it.
            work: what is done with each item.
            depth: items done that nobody has asked for yet.
            waiting: called with the seconds waited so far, every `every_s` seconds that the next item is late.
            every_s: see `waiting`.
        """
        self._source, self._work, self._waiting, self._every_s = source, work, waiting, every_s
        self._slots, self._ready = threading.Semaphore(depth), queue.SimpleQueue[tuple[list[B], BaseException | None]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlprod-ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Ahead[A, B]":
        """Nothing more: it has started."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Closes it."""
        self.close()

    def __iter__(self) -> "Ahead[A, B]":
        """Returns itself."""
        return self

    def __next__(self) -> B:
        """Returns the next result; raises what the source or the work raised."""
        found = self.draw(unless=lambda: False)
        if found is None:
            raise StopIteration
        return found

    def draw(self, unless: Callable[[], bool]) -> B | None:
        """Returns the next result, or None after the last one, or when `unless()` becomes true while it is late."""
        began = time.monotonic()
        told = 0
        while True:
            try:
                done, error = self._ready.get(timeout=POLL_S)
                break
            except queue.Empty:
                waited = time.monotonic() - began
                if unless():
                    return None
                if waited >= (told + 1) * self._every_s:
                    told += 1
                    self._waiting(waited)
        self._slots.release()
        if done:
            return done[0]
        self._ready.put((done, error))  # the same for whoever asks again
        if error is not None:
            raise error
        return None

    def close(self) -> None:
        """Ends the thread; nothing is drawn after that."""
        self._stop.set()
        self._source.close()
        self._slots.release()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            while True:
                self._slots.acquire()
                if self._stop.is_set():
                    break
                self._ready.put(([self._work(next(self._source))], None))
        except StopIteration:
            pass
        except BaseException as raised:  # told to whoever asks for the item
            error = raised
        self._ready.put(([], error))
