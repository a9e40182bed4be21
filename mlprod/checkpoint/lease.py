"""Who may write a run's copies: one process, which says so again and again.

Promise: a second trainer is refused with the holder's name while the first one beats; one that fell silent is waited out and
replaced, and ends itself when it wakes up and finds that.
Price: a small file every `BEAT_S`; after a machine was lost, `SILENCE_S` before another takes over. Object stores have no lock:
two that take a silent lease over in the same instant are told apart by reading it again after `SETTLE_S`.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlprod import documents
from mlprod.errors import CheckpointError, WorkdirError
from mlprod.store import Store

BEAT_S = 10.0
SILENCE_S = 30.0
SETTLE_S = 1.0
NAME = "lease"


class Lease:
    """A lease on a store's folder, from `take` to `release`."""

    def __init__(self, store: Store, workdir: Path) -> None:
        """`workdir`: of the run; held by this process, so that whoever else held the lease from there is gone."""
        self._store = store
        self._who = {
            "token": uuid.uuid4().hex, "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "place": f"{socket.gethostname()}:{workdir.absolute()}",
        }  # fmt: skip
        self._over = threading.Event()
        self._taken_by, self._beats = "", 0
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Takes the lease, and goes on saying so in a thread.

        Raises:
            WorkdirError: another process holds it.
            OSError: the store cannot be read or written.
        """
        found = self._read_surely()
        if found and found["place"] != self._who["place"]:
            self._wait_out(found)
        self._beat()
        if found:
            time.sleep(SETTLE_S)
            self._refuse_another(self._read())
        self._thread = threading.Thread(target=self._go_on, name="mlprod-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises CheckpointError when another process has taken the lease over."""
        if self._taken_by:
            raise CheckpointError(
                f"{self._store.location} was taken over by {self._taken_by}, for this process was silent for {SILENCE_S:.0f} s; "
                f"let it go on there, or stop it and start again here"
            )

    def release(self) -> None:
        """Gives the lease back, where the store lets it; otherwise its silence will."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)
            if not self._taken_by and not self._thread.is_alive():  # alive: the store is away
                with suppress(OSError):
                    self._store.remove(NAME)

    def _wait_out(self, found: dict[str, Any]) -> None:
        """Returns when the holder was silent for `SILENCE_S`."""
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            time.sleep(SILENCE_S / 10)
            now = self._read_surely()
            if not now:
                return
            if now != found:
                self._refuse_another(now)

    def _refuse_another(self, found: dict[str, Any]) -> None:
        if found and found["token"] != self._who["token"]:
            told = f"{self._store.location} is held by {found['holder']}"
            raise WorkdirError(f"{told}; wait for it, stop it, or give another config.checkpoint.copies")

    def _go_on(self) -> None:
        while not self._taken_by and not self._over.wait(BEAT_S):
            with suppress(OSError):  # it is tried again; who takes over meanwhile is seen then
                self._follow()

    def _follow(self) -> None:
        """Beats once more, or finds that another process has taken over."""
        now = self._read_surely()
        if now and now["token"] != self._who["token"]:
            self._taken_by = now["holder"]
        elif not self._over.is_set():
            self._beat()

    def _read_surely(self) -> dict[str, Any]:
        """Returns what the lease says; one that seems not to be there may be about to be written over, so it is read again."""
        found = self._read()
        if not found:
            time.sleep(SETTLE_S)
            found = self._read()
        return found

    def _beat(self) -> None:
        self._beats += 1
        self._store.write(NAME, json.dumps({**self._who, "beat": self._beats}).encode())

    def _read(self) -> dict[str, Any]:
        """Returns what the lease says; {} where there is none, or none that can be read."""
        try:
            found = documents.parse(self._store.read(NAME))
        except (FileNotFoundError, ValueError):
            return {}
        known = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in self._who)
        return found if known else {}
