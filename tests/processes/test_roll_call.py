"""The processes of a run find each other, on the loopback: late, absent, twice there, given something else, and strangers."""

import json
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from mlprod.errors import ConfigError, PeerLost
from mlprod.processes import roll_call as module
from mlprod.processes.rank import Rank
from mlprod.processes.roll_call import roll_call
from tests.chaos.gang import free_port

SAME = {"config": {"seed": 0, "dataset": "d"}, "code": {"mlprod": "1 abc"}}


class Meeting:
    """Processes that meet, each a thread."""

    def __init__(self, count: int, limit_s: float = 20.0) -> None:
        self.count, self.limit_s, self.port = count, limit_s, free_port()
        self.said: list[str] = []
        self._pool = ThreadPoolExecutor(count + 1)

    def call(self, index: int, told: Mapping[str, Any] = SAME, count: int = 0) -> "Future[None]":
        """Process `index` comes."""
        rank = Rank(index=index, count=count or self.count, coordinator=f"127.0.0.1:{self.port}")
        return self._pool.submit(roll_call, rank, told, self.limit_s, self.said.append)


def errors(calls: list["Future[None]"]) -> list[BaseException | None]:
    """How each call ended."""
    return [call.exception(30) for call in calls]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_all_who_come_go_on(order: tuple[int, ...]) -> None:
    """In any order; a dataset may lie elsewhere on each machine."""
    meeting = Meeting(4)
    assert errors([meeting.call(i, {**SAME, "config": {"seed": 0, "dataset": f"d{i}"}}) for i in order]) == [None] * 4


def test_who_is_late_is_waited_for_and_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number, now and then, on both sides."""
    monkeypatch.setattr(module, "TOLD_EVERY_S", 0.3)
    meeting = Meeting(3)
    calls = [meeting.call(0), meeting.call(1)]
    time.sleep(1.5)
    assert not any(call.done() for call in calls)
    assert any("waiting for process(es) 2 of 3" in line for line in meeting.said)
    assert errors([*calls, meeting.call(2)]) == [None] * 3
    meeting = Meeting(2)
    calls = [meeting.call(1)]
    time.sleep(1.0)
    assert any(f"waiting for process 0 at 127.0.0.1:{meeting.port}" in line for line in meeting.said)
    assert errors([*calls, meeting.call(0)]) == [None] * 2


def test_who_does_not_come_is_named_to_all_who_did() -> None:
    """On process 0 and on the others alike; where process 0 itself is away, its address is."""
    meeting = Meeting(4, limit_s=1.0)
    for error in errors([meeting.call(0), meeting.call(2)]):
        assert isinstance(error, PeerLost)
        assert "2 of 4 processes did not come" in str(error)
        assert "(config.limits.join_s): 1, 3;" in str(error)
    meeting = Meeting(4, limit_s=0.5)
    (error,) = errors([meeting.call(1)])
    assert isinstance(error, PeerLost)
    assert f"process 0 of 4 did not come to 127.0.0.1:{meeting.port} within 0 s" in str(error)


@pytest.mark.parametrize(
    "told, count, line",
    [
        ({**SAME, "config": {"seed": 1, "dataset": "d"}}, 0, "process 2 differs from process 0: it has config.seed=1, not 0"),
        ({**SAME, "code": {"mlprod": "1 def"}}, 0, "process 2 differs from process 0: it has code.mlprod='1 def', not '1 abc'"),
        ({"config": SAME["config"]}, 0, "it has code.mlprod=None, not '1 abc'"),
        (SAME, 4, "process 2 was told of 4 processes, process 0 of 3"),
    ],
)
def test_who_was_given_something_else_is_refused_by_all(told: Mapping[str, Any], count: int, line: str) -> None:
    """With the field and both values, on every process."""
    meeting = Meeting(3)
    for error in errors([meeting.call(0), meeting.call(1), meeting.call(2, told, count)]):
        assert isinstance(error, ConfigError)
        assert line in str(error)


def test_many_differences_are_not_all_listed() -> None:
    """Three, and how many more."""
    meeting = Meeting(2)
    (error, _) = errors(
        [meeting.call(0, {"config": dict.fromkeys("abcdef", 0)}), meeting.call(1, {"config": dict.fromkeys("abcdef", 1)})]
    )
    assert "config.c=1, not 0, and 3 more;" in str(error)


def test_two_with_one_number_are_refused_and_one_that_came_again_is_not() -> None:
    """The second call of a process that was started again takes the place of its first, whose line is dead."""
    meeting = Meeting(3)
    calls = [meeting.call(0), meeting.call(1), meeting.call(1)]
    time.sleep(0.5)
    for error in errors([*calls, meeting.call(2)]):
        assert isinstance(error, ConfigError)
        assert "two processes say that they are process 1" in str(error)
    meeting = Meeting(3)
    calls = [meeting.call(0)]
    said = json.dumps({"mlprod": 1, "index": 1, "count": 3, "told": SAME}).encode() + b"\n"
    dead = until_connected(meeting.port)
    dead.sendall(said)
    dead.close()
    assert errors([*calls, meeting.call(1), meeting.call(2)]) == [None] * 3


def until_connected(port: int) -> socket.socket:
    """A connection to who begins to listen soon."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n\r\n\n",
        b"[]\n",
        b"\xff\xfe\n",
        b'{"mlprod": 1, "index": "1"}\n',
        b'{"mlprod": 1, "index": -1}\n',
        b'{"mlprod": 1, "index": 1}\n',
        b'{"mlprod": 1, "index": 1, "told": "all"}\n',
        b"",
    ],
)
def test_strangers_are_hung_up_on(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port scanner, another program, one that says nothing: the run meets all the same."""
    monkeypatch.setattr(module, "CALL_S", 0.3)
    meeting = Meeting(2)
    calls = [meeting.call(0)]
    with until_connected(meeting.port) as stranger:
        stranger.sendall(line)
        assert errors([*calls, meeting.call(1)]) == [None, None]


def test_a_service_of_another_run_on_the_port_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers something else, as JAX's service of an attempt that is just ending, is not taken for process 0."""
    meeting = Meeting(2)
    other = socket.create_server(("127.0.0.1", meeting.port))

    def answer() -> None:
        with other, other.accept()[0] as line:
            line.sendall(b"\x00\x00\x12HTTP2\n")

    answering = threading.Thread(target=answer, daemon=True)
    answering.start()
    late = meeting.call(1)
    answering.join()
    assert errors([meeting.call(0), late]) == [None, None]


def test_a_port_that_is_taken_is_named() -> None:
    """Process 0 says which, and ends with 75: it may be free at the next start."""
    meeting = Meeting(2)
    with socket.create_server(("", meeting.port)):
        (error,) = errors([meeting.call(0)])
    assert isinstance(error, PeerLost)
    assert f"cannot wait on port {meeting.port}: Address already in use" in str(error)
