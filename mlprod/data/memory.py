"""Memory that is used again and again: fresh pages cost more than what is written into them.

Promise: a leased block comes back by itself, and not before nothing refers to it or to a view of it: no batch, and no array on a
device. Scratch is a thread's own.
Price: about 4 us a lease; what was leased at once stays with its owner.
"""

import threading
import weakref

import numpy as np


class Memory:
    """Blocks of memory. Safe to use from several threads."""

    def __init__(self) -> None:
        """Nothing is held at first."""
        self._lock = threading.Lock()  # of those who lease: what comes back, at any time and in any thread, is appended
        self._free: list[np.ndarray] = []

    def lease(self, size: int) -> np.ndarray:
        """Returns uint8[size or more], uninitialised. It comes back by itself when nothing refers to it or a view of it."""
        with self._lock:  # the block used last is the one still in cache
            fits = next((i for i in reversed(range(len(self._free))) if self._free[i].nbytes >= size), None)
            if fits is None:
                self._free.clear()
            block = np.empty(size, np.uint8) if fits is None else self._free.pop(fits)
        leased = np.frombuffer(block.data, np.uint8)  # views of it refer to it, not to the block
        weakref.finalize(leased, self._free.append, block).atexit = False
        return leased


class Scratch(threading.local):
    """Each thread's own memory, for what it is done with before it asks for the same purpose again."""

    def __init__(self) -> None:
        """Nothing is held at first."""
        self._blocks: dict[str, np.ndarray] = {}

    def take(self, purpose: str, size: int) -> np.ndarray:
        """Returns uint8[size], uninitialised: the memory that this thread was given for this purpose before."""
        block = self._blocks.get(purpose)
        if block is None or len(block) < size:
            block = self._blocks[purpose] = np.empty(size, np.uint8)
        return block[:size]
