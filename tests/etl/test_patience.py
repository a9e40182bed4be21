"""What a server is asked is given up in time, and is else as if it were asked directly."""

import threading
import time

import pytest

from mlprod.config import SqlSource
from mlprod.errors import ConnectionLost
from mlprod.etl import patience
from mlprod.etl.patience import answered, patiently

SERVER = SqlSource(url="postgresql://nobody@nowhere.example/rows?application_name=x", timeout_s=0.1)


@pytest.fixture(autouse=True)
def without_grace(monkeypatch):
    monkeypatch.setattr(patience, "GRACE_S", 0.1)


def test_items_come_one_by_one_from_another_thread():
    made = []

    def items():
        for i in range(3):
            made.append((i, threading.current_thread().name))
            yield i

    got = []
    for i in patiently(SERVER, items()):
        got.append(i)
        assert len(made) == len(got)  # none is made before it is asked for
    assert made == [(i, "database") for i in range(3)]


def test_an_error_is_the_callers():
    def items():
        yield 1
        raise ConnectionLost("cut")

    found = patiently(SERVER, items())
    assert next(found) == 1
    with pytest.raises(ConnectionLost, match="cut"):
        next(found)


def test_one_that_stops_early_closes_what_it_read():
    closed = threading.Event()

    def items():
        try:
            yield from range(9)
        finally:
            closed.set()

    found = patiently(SERVER, items())
    next(found)
    found.close()
    assert closed.is_set()


def test_silence_ends_and_names_the_limit_and_no_option():
    ended = threading.Event()

    @answered
    def ask(source: SqlSource) -> int:
        ended.wait(10)
        return 1

    began = time.monotonic()
    told = (
        r"database postgresql://nobody@nowhere.example/rows gave nothing for config.etl.source.timeout_s=0.1 seconds; .* goes on"
    )
    with pytest.raises(ConnectionLost, match=told):
        ask(SERVER)
    assert time.monotonic() - began < 2
    ended.set()


def test_a_slow_caller_is_no_silence():
    found = patiently(SERVER, iter(range(2)))
    next(found)
    time.sleep(0.3)
    assert list(found) == [1]


def test_a_file_is_read_on_the_callers_thread(tmp_path):
    (tmp_path / "a.db").touch()
    source = SqlSource(url=f"sqlite:///{tmp_path / 'a.db'}", timeout_s=0.1)
    assert list(patiently(source, (threading.current_thread() for _ in range(1)))) == [threading.current_thread()]
