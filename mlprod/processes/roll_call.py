"""The processes of a run find each other, before JAX: who is there, who is not, and whether all were given the same.

Promise: a process that is late is waited for, one that never comes is named to all that did, and so is one with another config or
code, before a device is touched. JAX's own start does not say who is missing: it ends every process with an abort.
Price: one connection a process to process 0, on the very port where JAX meets afterwards.

Who is called says {"mlprod": FORMAT, "index", "count", "told"} in one line of JSON, and is answered with {"go"}, {"absent"} or
{"refused"}. Nothing that comes over the wire is executed; lines of others, and too long ones, are not listened to.
"""

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from mlprod.compare import differences
from mlprod.errors import ConfigError, PeerLost
from mlprod.processes.rank import Rank, bind_host

FORMAT = 1
TOLD_EVERY_S = 10.0
CALL_S = 5.0  # within which who has called must have said who it is
PAUSE_S = 0.1  # between two tries to reach process 0
LONGEST = 1 << 22  # bytes of a line
MAY_DIFFER = ("config.dataset", "config.runtime.compile_cache")  # paths of one machine; the dataset's content is compared by id
Told = Mapping[str, Any]
Say = Callable[[str], None]


class Caller(NamedTuple):
    """A process that has called, and waits for an answer."""

    line: socket.socket
    said: dict[str, Any]


def roll_call(rank: Rank, told: Told, limit_s: float, say: Say) -> None:
    """Returns when all processes of the run are there and were given the same.

    Args:
        told: what must be equal on all of them, as JSON data.
        say: is given a line on who is waited for, now and then.

    Raises:
        PeerLost: one of them did not come within `limit_s`.
        ConfigError: one was given something else, or two have the same number.
    """
    host, _, port = rank.coordinator.rpartition(":")
    if rank.index == 0:
        _call(rank, told, int(port), limit_s, say)
    else:
        _answer(rank, told, (host.strip("[]"), int(port)), limit_s, say)


def _call(rank: Rank, told: Told, port: int, limit_s: float, say: Say) -> None:
    """Process 0: waits for all, compares, and tells all."""
    try:
        host = bind_host(rank.coordinator)
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        told_port = f"process 0 cannot wait on port {port}: {error.strerror}"
        raise PeerLost(f"{told_port}; another run may still hold it: end that, or give another port") from error
    there: list[Caller] = []
    began, next_told = time.monotonic(), TOLD_EVERY_S
    with listener:
        try:
            while missing := sorted(set(range(1, rank.count)) - {caller.said["index"] for caller in _alive(there)}):
                waited = time.monotonic() - began
                if waited > limit_s:
                    _tell(there, {"absent": missing})
                    raise _absent(missing, rank, limit_s)
                if waited > next_told:
                    next_told += TOLD_EVERY_S
                    say(f"waiting for process(es) {_some(missing)} of {rank.count} ({waited:.0f} s)")
                listener.settimeout(min(1.0, limit_s))
                with suppress(TimeoutError):
                    _take(listener.accept()[0], there)
            listener.settimeout(0.0)
            with suppress(BlockingIOError):
                while True:  # who else has called is one too many
                    _take(listener.accept()[0], there)
            if wrong := _wrong(rank, told, [caller.said for caller in there]):
                _tell(there, {"refused": wrong})
                raise ConfigError(wrong)
            _tell(there, {"go": True})
        finally:
            for caller in there:
                caller.line.close()


def _take(line: socket.socket, there: list[Caller]) -> None:
    """Takes a caller that says who it is; any other is hung up on."""
    line.settimeout(CALL_S)
    said = _line(line)
    index = said.get("index")
    if said.get("mlprod") == FORMAT and isinstance(index, int) and index > 0 and isinstance(said.get("told"), dict):
        there.append(Caller(line, said))
    else:
        line.close()


def _alive(there: list[Caller]) -> list[Caller]:
    """Forgets who has hung up, as one that was started again has; returns the others."""
    for caller in [caller for caller in there if _gone(caller.line)]:
        caller.line.close()
        there.remove(caller)
    return there


def _gone(caller: socket.socket) -> bool:
    """Whether who called has hung up, as one that was started again has."""
    caller.setblocking(False)
    try:
        return caller.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        caller.settimeout(CALL_S)


def _wrong(rank: Rank, told: Told, said: Sequence[Mapping[str, Any]]) -> str:
    """Returns what is not the same everywhere, as one line; "" where all is."""
    numbers = [theirs["index"] for theirs in said]
    for index, theirs in sorted(zip(numbers, said, strict=True), key=lambda pair: pair[0]):
        if numbers.count(index) > 1:
            return f"two processes say that they are process {index}; give each its own number"
        if theirs.get("count") != rank.count:
            return f"process {index} was told of {theirs.get('count')} processes, process 0 of {rank.count}"
        changed = {
            path: pair for path, pair in differences(dict(told), theirs["told"]).items() if not path.startswith(MAY_DIFFER)
        }
        if changed:
            listed = ", ".join(f"{path}={new!r}, not {old!r}" for path, (old, new) in list(changed.items())[:3])
            more = f", and {len(changed) - 3} more" if len(changed) > 3 else ""
            return f"process {index} differs from process 0: it has {listed}{more}; start all with the same config and code"
    return ""


def _answer(rank: Rank, told: Told, address: tuple[str, int], limit_s: float, say: Say) -> None:
    """Any other process: calls process 0 until it answers."""
    said = json.dumps({"mlprod": FORMAT, "index": rank.index, "count": rank.count, "told": told}).encode() + b"\n"
    began, next_told = time.monotonic(), TOLD_EVERY_S
    while (left := began + limit_s - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(left, CALL_S)) as line:
                line.sendall(said)
                line.settimeout(min(left + CALL_S, 1e6))  # process 0 has a limit of its own, and names who is missing
                answer = _line(line)
        except OSError:
            answer = {}
        if answer.get("go"):
            return
        if "refused" in answer:
            raise ConfigError(str(answer["refused"]))
        if "absent" in answer:
            raise _absent(answer["absent"], rank, limit_s)
        if time.monotonic() - began > next_told:
            next_told += TOLD_EVERY_S
            say(f"waiting for process 0 at {rank.coordinator} ({time.monotonic() - began:.0f} s)")
        time.sleep(PAUSE_S)
    raise PeerLost(f"process 0 of {rank.count} did not come to {rank.coordinator} within {limit_s:.0f} s (config.limits.join_s)")


def _absent(missing: list[int], rank: Rank, limit_s: float) -> PeerLost:
    where = f"{len(missing)} of {rank.count} processes did not come to {rank.coordinator} within {limit_s:.0f} s"
    return PeerLost(f"{where} (config.limits.join_s): {_some(missing)}; look at their logs, or whether they were started")


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")


def _tell(there: Sequence[Caller], answer: Mapping[str, Any]) -> None:
    for caller in there:
        with suppress(OSError):  # it will call again, or is gone: the others must know all the same
            caller.line.sendall(json.dumps(answer).encode() + b"\n")


def _line(talk: socket.socket) -> dict[str, Any]:
    """Returns the object of the next line; {} where there is none."""
    got = b""
    try:
        while not got.endswith(b"\n") and len(got) < LONGEST and (more := talk.recv(1 << 16)):
            got += more
        found = json.loads(got)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
