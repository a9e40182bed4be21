"""The processes of a run among themselves: they meet, wait for each other at named barriers, and end together when one fails.

Promise: a barrier has a name and a limit, and says who did not come. A process that fails says so to the others before it ends:
they print its line and end with its exit code, instead of waiting for it in a collective and being aborted. A process that is
alone pays for none of this.
Price: a thread that asks process 0 once a second. The door to JAX's coordination service, whose client is no public part of it.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import jax
from jax._src import distributed  # the service that orbax and others use: barriers and keys are not public
from jax.errors import JaxRuntimeError

from mlprod.config import LimitsConfig
from mlprod.errors import ConfigError, MlprodError, PeerLost, Preempted
from mlprod.processes.pulse import JOIN, VARIABLE, Pulse
from mlprod.processes.rank import Rank, bind_address
from mlprod.processes.roll_call import Told, roll_call

MEET_S = 60  # for JAX to meet, when all are there
LONGEST_S = 1e6  # that the service counts to
LEAVE_S = 30  # for JAX to part, when all have come to the end
MISSED_S = 15.0  # more than the heartbeat's limit, within which JAX ends who has lost a peer
HEARD_S = 4.0  # that process 0, on which the service ends, waits for the others to hear why
ASK_EVERY_S = 1.0
FAILED, HEARD = "mlprod/failed", "mlprod/heard"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How a process ended that others wait for."""

    index: int
    code: int
    told: str


class Peers:
    """The other processes of the run. A context manager around all that they do together."""

    def __init__(self, limits: LimitsConfig, rank: Rank | None = None) -> None:
        """Nobody is met yet; `rank`: of this process, None where it is alone."""
        self.rank, self._limits = rank or Rank(), limits
        self._client: Any = None
        self._parted = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="mlprod-peers", daemon=True)

    @property
    def alone(self) -> bool:
        """Whether this process is the only one."""
        return self.rank.count == 1

    def join(self, told: Told) -> None:
        """Waits for all processes, of which there are several, and starts JAX on them.

        Args:
            told: what must be equal on all, see `roll_call`.

        Raises:
            PeerLost: one did not come.
            ConfigError: one was given something else.
        """
        Pulse(os.environ.get(VARIABLE, "")).last(-1, 0, JOIN)
        roll_call(self.rank, told, self._limits.join_s, lambda line: _say(self.rank, line))
        jax.distributed.initialize(
            self.rank.coordinator, self.rank.count, self.rank.index, initialization_timeout=MEET_S,
            coordinator_bind_address=bind_address(self.rank.coordinator),
            heartbeat_timeout_seconds=int(self._limits.heartbeat_s), shutdown_timeout_seconds=LEAVE_S,
        )  # fmt: skip
        self._client = distributed.global_state.client
        self._listener.start()

    def _listen(self) -> None:
        """Ends this process when another has said that it failed, wherever this one waits for it meanwhile."""
        while not self._parted.wait(ASK_EVERY_S):
            if failure := self._failure():
                self._end_with(failure)

    def meet(self, name: str, limit_s: float) -> None:
        """Waits until all processes are at the barrier `name`; raises PeerLost naming those that are not within `limit_s`."""
        if self.alone:
            return
        try:
            self._client.wait_at_barrier(f"mlprod/{name}", int(1000 * min(limit_s, LONGEST_S)))
        except JaxRuntimeError as error:
            who = ", ".join(_missing_at_barrier(str(error))) or "some, which the service does not name"
            raise PeerLost(f"processes that did not come to {name!r} within {limit_s:.0f} s: {who}") from error

    def check_same(self, what: str, value: str) -> None:
        """Raises ConfigError where another process has another value; all must ask, each once for each `what`."""
        if self.alone:
            return
        self._client.key_value_set(f"mlprod/same/{what}/{self.rank.index}", value)
        self.meet(f"compare {what}", self._limits.start_s)
        found = {int(key.rpartition("/")[2]): theirs for key, theirs in self._client.key_value_dir_get(f"mlprod/same/{what}")}
        for index, theirs in sorted(found.items()):
            if theirs != found[0]:
                raise ConfigError(f"process {index} has {what} {theirs}, process 0 has {found[0]}; give all the same")

    def _failure(self) -> Failure | None:
        try:
            found = Failure(**json.loads(self._client.key_value_try_get(FAILED)))
        except JaxRuntimeError:  # there is no such key, or the service is gone: then JAX ends this process itself
            return None
        return found if found.index != self.rank.index else None

    def fail(self, code: int, told: str, limit_s: float = HEARD_S) -> None:
        """Tells the others that this process ends, and why; the first to say so is heard. Takes `limit_s` at most."""
        if not self.alone:
            within(limit_s, lambda: self._fail(code, told))

    def _fail(self, code: int, told: str) -> None:
        with suppress(JaxRuntimeError):  # another was first
            self._client.key_value_set(FAILED, json.dumps({"index": self.rank.index, "code": code, "told": told}))
        self._have_heard()

    def _have_heard(self) -> None:
        """Says that this process knows; process 0, with which the service ends, waits until all do."""
        self._client.key_value_set(f"{HEARD}/{self.rank.index}", "")
        while self.rank.index == 0 and len(self._client.key_value_dir_get(HEARD)) < self.rank.count:
            time.sleep(0.05)

    def _end_with(self, failure: Failure) -> None:
        _say(self.rank, f"process {failure.index} ended with exit code {failure.code}, so this one ends too: {failure.told}")
        within(HEARD_S, self._have_heard)
        os._exit(failure.code)

    def __enter__(self) -> "Peers":
        """Nothing more."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Parts from the others where all have come to the end; else tells them why this process ends."""
        if self.alone:
            return
        if error is None or isinstance(error, Preempted):
            self.meet("end", self._limits.save_s)
            self._parted.set()
            self._listener.join()
            jax.distributed.shutdown()
            return
        if any(isinstance(each, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(each) for each in _causes(error)):
            # A collective fails where a peer is gone: that one may say why, or its missed beats end this process too.
            time.sleep(self._limits.heartbeat_s + MISSED_S)
        line = str(error) if isinstance(error, MlprodError) else f"{type(error).__name__}: {error}"
        self.fail(error.exit_code if isinstance(error, MlprodError) else 1, " ".join(line.split())[:500])


def within(seconds: float, act: Callable[[], Any]) -> None:
    """Does something that may never return, as a call to a process that was stopped, for so long at most. Errors are dropped."""

    def run() -> None:
        try:
            act()
        except Exception:
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)


def _missing_at_barrier(text: str) -> list[str]:
    """Returns the numbers of the processes that a barrier's error names as late."""
    late = re.search(r"timed out task names:\s*((?:\S*\d+\s)+)", text)
    return re.findall(r"(\d+)\s", late[1]) if late else []


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _say(rank: Rank, line: str) -> None:
    os.write(2, f"mlprod: process {rank.index} of {rank.count}: {line}\n".encode())
