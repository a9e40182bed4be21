"""The local log is whole after any kill; a tracker that fails never stops a run; W&B works offline."""

import json
from pathlib import Path

import pytest

from mlprod.config import TrackingConfig
from mlprod.trackers.open import open_trackers
from mlprod.tracking import LocalLog, Record, Trackers, read_log

RECORD = Record(kind="train", step=1, position=64, values={"loss": (0.5, 64.0)}, ids="00ff")


def test_a_line_holds_what_the_schema_says(tmp_path: Path) -> None:
    """Run, attempt, kind, step, position, wall time, values with weights, ids."""
    log = LocalLog(tmp_path, "r", 3, 1 << 32)
    log.log(RECORD)
    log.close()
    (line,) = read_log(tmp_path)
    assert line.pop("time") > 0
    told = {"kind": "train", "step": 1, "position": 64, "values": {"loss": [0.5, 64.0]}, "ids": "00ff"}
    assert line == {"schema": 1, "run": "r", "attempt": 3, **told}


@pytest.mark.parametrize("torn", [b"", b"{", b'{"schema": 1, "run"'])
def test_a_torn_line_is_removed_and_the_log_goes_on(torn: bytes, tmp_path: Path) -> None:
    """What a kill cut short disappears; whole lines stay; the next attempt's follow."""
    log = LocalLog(tmp_path, "r", 1, 1 << 32)
    log.log(RECORD)
    log.close()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(torn)
    assert len(list(read_log(tmp_path))) == 1
    log = LocalLog(tmp_path, "r", 2, 1 << 32)
    log.log(RECORD)
    log.close()
    assert [line["attempt"] for line in read_log(tmp_path)] == [1, 2]
    assert all(json.loads(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines())


class Broken:
    """A tracker that fails at its second record."""

    records = 0

    def log(self, record: Record) -> None:
        """Fails the second time."""
        self.records += 1
        if self.records == 2:
            raise OSError("no route")

    def close(self) -> None:
        """Nothing to do."""


def test_a_tracker_that_fails_is_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The local log has every record; the broken tracker gets no third one; a line says so."""
    broken = Broken()
    with Trackers([LocalLog(tmp_path, "r", 1, 1 << 32), broken]) as trackers:
        for _ in range(3):
            trackers.log(RECORD)
    assert len(list(read_log(tmp_path))) == 3
    assert broken.records == 2
    assert "Broken is switched off: OSError: no route" in capsys.readouterr().err


def test_wandb_offline_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key `auto` is offline: a run file is written, named by the run's id, and no hostname file or code beside it."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_trackers(TrackingConfig(wandb="auto"), tmp_path, "name", "abc123", 1, {"seed": 0}) as trackers:
        trackers.log(RECORD)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-abc123.wandb")
    assert file.stat().st_size > 0
    assert not list((tmp_path / "wandb").glob("offline-run-*/files/code"))
