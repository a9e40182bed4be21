"""What is written of an attempt besides its steps: before the first one, now and then, and at the end."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlprod import attempts
from mlprod.attempts import Attempts, read_attempts
from mlprod.ledger import Ledger
from mlprod.tracking import LocalLog, Record, Trackers

START = Record(kind="start", step=3, position=192, values={})
STEP = Record(kind="train", step=4, position=256, values={"loss": (0.5, 64.0)})


def test_the_first_line_is_there_before_a_step_and_the_last_says_the_end(tmp_path: Path) -> None:
    """Nothing is written of the steps between within `EVERY_S`; seconds are the ledger's, memory is some."""
    ledger = Ledger()
    with Trackers([LocalLog(tmp_path, "r", 1, 1 << 32), Attempts(tmp_path, ledger, {"run": "r", "steps": 9})]) as trackers:
        trackers.log(START)
        (first,) = read_attempts(tmp_path)
        assert {name: first[name] for name in ("kind", "step", "run", "steps")} == {
            "kind": "start", "step": 3, "run": "r", "steps": 9,
        }  # fmt: skip
        with ledger.spent("step"):
            trackers.log(STEP)
    _, last = read_attempts(tmp_path)
    assert (last["kind"], last["step"], last["end"]) == ("use", 4, True)
    assert last["seconds"] == ledger.seconds
    assert last["elapsed"] >= sum(last["seconds"].values())
    assert last["host_bytes"] > 1 << 20


def test_a_line_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every record once the time between two lines is nothing; none of them is the end."""
    monkeypatch.setattr(attempts, "EVERY_S", 0.0)
    written = Attempts(tmp_path, Ledger(), {})
    for record in (START, STEP, STEP):
        written.log(record)
    lines = list(read_attempts(tmp_path))
    written.close()
    assert [(line["kind"], line.get("end")) for line in lines] == [("start", None), *[("use", False)] * 3]


def test_a_torn_line_is_removed_when_the_next_attempt_begins(tmp_path: Path) -> None:
    """What a kill cut short disappears; the lines before stay."""
    for cut in (0, 5):
        whole = Attempts(tmp_path, Ledger(), {"run": "r"})
        whole.log(START)
        whole.close()
        with (tmp_path / attempts.FILE).open("ab") as file:
            file.write(b'{"kind": "use"'[:cut])
    assert [line["kind"] for line in read_attempts(tmp_path)] == ["start", "use"] * 2
    last = Attempts(tmp_path, Ledger(), {})
    last.log(START)
    last.close()
    assert len([json.loads(line) for line in (tmp_path / attempts.FILE).read_bytes().splitlines()]) == 6


def test_a_long_life_takes_few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every 10 s at first, every hundredth of the attempt's life later: a year of seconds is a megabyte at the most."""
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: now.s, time=lambda: now.s))
    written = Attempts(tmp_path, Ledger(), {})
    times = [*range(0, 7200, 2), *range(7200, 365 * 24 * 3600, 3600)]
    for second in times:
        now.s = 1000.0 + second
        written.log(STEP)
    written.close()
    told = [line["time"] - 1000.0 for line in read_attempts(tmp_path)][1:-1]
    assert told[:3] == [10.0, 20.0, 30.0]
    assert all(later - before >= 0.0099 * later for before, later in pairwise(told))
    assert max(later / before for before, later in pairwise(told) if before > 1e6) < 1.015
    assert (tmp_path / attempts.FILE).stat().st_size < 1 << 20
