"""The time ledger, against a clock that the test moves."""

import pytest

from mlprod import ledger
from mlprod.ledger import Ledger


class Clock:
    """Stands in for the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger, "time", clock)
    return clock


def test_nested_activities_are_counted_once_and_the_rest_is_told(clock):
    """Inner time is the inner activity's alone, at any depth and twice over; what no activity claims is unattributed."""
    spent = Ledger()
    clock.now += 2  # claimed by none
    with spent.spent("step"):
        clock.now += 4
        with spent.spent("save"):
            clock.now += 8
            with spent.spent("data"):
                clock.now += 16
        with spent.spent("data"):
            clock.now += 32
        clock.now += 64
    with spent.spent("step"):
        clock.now += 128
    assert spent.seconds == {"step": 4 + 64 + 128, "save": 8, "data": 16 + 32}
    assert spent.elapsed() == 254
    assert spent.line() == "time: 254.0 s = step 196.0, data 48.0, save 8.0, unattributed 2.0 (0.8%)"


def test_who_looks_sees_what_is_being_done(clock):
    """The innermost activity and since when; after an inner one the outer begins anew, as one does that says it gets on."""
    spent = Ledger()
    assert spent.now == ("", 100)
    with spent.spent("step"):
        clock.now += 1
        assert spent.now == ("step", 100)
        with spent.spent("save"):
            assert spent.now == ("save", 101)
            clock.now += 1
        assert spent.now == ("step", 102)
        clock.now += 1
        spent.again()
        assert spent.now == ("step", 103)
    assert spent.now == ("", 103)


def test_what_was_measured_elsewhere_is_counted_once(clock):
    """A part of an activity under another name; and the time before the ledger was there, which moves its beginning."""
    spent = Ledger()
    spent.started(7.0)
    with spent.spent("first step"):
        clock.now += 10
        spent.took("compile", 6.0)
    assert spent.seconds == {"import": 7, "compile": 6, "first step": 4}
    assert spent.elapsed() == 17


def test_what_fails_is_counted_too(clock):
    spent = Ledger()

    def fail():
        with spent.spent("outer"), spent.spent("inner"):
            clock.now += 3
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    with spent.spent("after"):
        clock.now += 5
    assert spent.seconds == {"inner": 3, "outer": 0, "after": 5}


def test_totals_go_on_from_earlier_attempts(clock):
    """And a later attempt's line tells its own time only."""
    spent = Ledger({"step": 10.0, "gone": 1.0})
    with spent.spent("step"):
        clock.now += 3
    assert spent.totals() == {"gone": 1.0, "step": 13.0}
    assert Ledger(spent.totals()).totals() == spent.totals()
    assert spent.line() == "time: 3.0 s = step 3.0, unattributed 0.0 (0.0%)"
