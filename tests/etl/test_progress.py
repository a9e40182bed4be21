"""What is seen of a build: a live line for each phase in a terminal, a plain one elsewhere, none where none is wanted."""

import dataclasses
import os
import pty
import re
import threading
from pathlib import Path

import pytest

from mlprod.config import Config, TrackingConfig
from mlprod.console import Phase
from mlprod.etl.run import build
from mlprod.manifest import Manifest
from tests.conftest import MakeConfig

PHASES = ["identify", "extract", "settle", "sort", "fit", "write"]
PLAIN = {
    "identify": r"0\.1 of 0\.1 MB, [0-9,]+ MB/s, [0-9.]+ s",
    "extract": r"3 of 3 tasks, 3,000 rows, [0-9,]+ rows/s, [0-9.]+ s",
    "write": r"[0-9]+ of [0-9]+ tasks, [0-9,]+ rows, [0-9,]+ rows/s, [0-9.]+ s",
}


def watched(cfg: Config, folder: Path, *, progress: bool = True) -> Config:
    """Returns a config of three parts, for a dataset of its own."""
    etl = dataclasses.replace(cfg.etl, chunk_rows=1000)
    tracking = TrackingConfig(wandb="off", progress=progress)
    return dataclasses.replace(cfg, dataset=str(folder), etl=etl, tracking=tracking)


def test_a_plain_line_for_each_phase(
    make_config: MakeConfig, published: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their order, with all tasks, the rows and the rate; nothing on stdout."""
    again, _ = build(watched(make_config(), tmp_path / "d"))
    told = capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in told.err.splitlines())
    assert list(lines) == PHASES
    assert {name: line for name, line in lines.items() if name in PLAIN and not re.fullmatch(PLAIN[name], line)} == {}
    kept = sum(again.num_rows(split) for split in again.splits)
    assert f"{kept:,} rows" in lines["write"]
    assert told.out == ""
    assert again == published


def test_no_line_where_none_is_wanted(make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(watched(make_config(), tmp_path / "d", progress=False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [110, 60])
def test_live_lines_in_a_terminal(
    columns: int, make_config: MakeConfig, published: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line a phase that is drawn again, never a plain one, on one line also in a narrow terminal; the same dataset."""
    ours, theirs = pty.openpty()
    seen = list[bytes]()

    def read() -> None:
        try:
            while piece := os.read(ours, 1 << 16):
                seen.append(piece)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with open(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", terminal)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", str(columns))
        again, _ = build(watched(make_config(), tmp_path / "d"))
    reader.join()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(seen).decode())
    frame = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()][-len(PHASES) :]
    assert [line.split()[0] for line in frame] == PHASES
    assert max(map(len, frame)) <= columns
    assert "3 of 3 tasks, 3,000 rows" in text
    assert not any(f"{name}: " in text for name in PHASES)
    assert again == published


def test_what_an_attempt_before_did_says_nothing_of_the_rate() -> None:
    """Its tasks and rows count as done; the rate and the time left are of what is done now."""
    phase = Phase("extract", 10, "tasks")
    phase.add(8, 800, earlier=True)
    assert phase.told() == "8 of 10 tasks, 800 rows"
    phase.add(1, 100)
    assert re.fullmatch(r"9 of 10 tasks, 900 rows, [0-9,]+ rows/s, [0-9,]+ s left", phase.told())
    phase.end()
    assert re.fullmatch(r"9 of 10 tasks, 900 rows, [0-9,]+ rows/s, [0-9.]+ s", phase.told())
