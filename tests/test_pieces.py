"""The log in pieces: read as one file, whatever is renamed, removed or killed meanwhile, and never larger than its limit."""

import json
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from mlprod import documents, pieces
from mlprod.pieces import Place, Reader, Writer, end_of, first_piece, full_pieces, piece_path
from mlprod.report import past
from mlprod.trackers.follow import Follower
from mlprod.tracking import FILE, LocalLog, Record, read_log
from tests import past_runs
from tests.test_trackers import ID, Mine

LIMIT = 1 << 14  # a piece: 1 KiB


def log_of(folder: Path, first: int, last: int, attempt: int = 1, limit: int = LIMIT) -> None:
    """Logs a start and the steps from `first` to `last`."""
    log = LocalLog(folder, ID, attempt, limit)
    log.log(Record(kind="start", step=first - 1, position=0, values={}))
    for step in range(first, last + 1):
        log.log(record(step))
    log.close()


def record(step: int) -> Record:
    """A step's."""
    return Record(kind="train", step=step, position=step, values={"loss": (float(step), 1.0)})


def settled(folder: Path) -> int:
    """Returns the bytes of the log, once nothing is being removed any more."""
    for thread in threading.enumerate():
        if thread.name == "mlprod-log-pieces":
            thread.join()
    return sum(path.stat().st_size for path in folder.glob("log*.jsonl"))


def steps(folder: Path) -> list[int]:
    """The steps that the log tells of, in its order."""
    return [line["step"] for line in read_log(folder) if line["kind"] == "train"]


def test_pieces_are_one_log(tmp_path: Path) -> None:
    """In order, over several attempts; each piece is at most a sixteenth of the limit, and the line of a piece is whole."""
    log_of(tmp_path, 1, 20)
    log_of(tmp_path, 21, 40, 2)
    assert steps(tmp_path) == list(range(1, 41))
    assert len(full_pieces(tmp_path / FILE)) > 3
    for path in tmp_path.glob("log*.jsonl"):
        assert 0 < path.stat().st_size <= LIMIT // 16
        assert path.read_bytes().endswith(b"\n")


def test_the_log_never_passes_its_limit(tmp_path: Path) -> None:
    """The oldest lines go, and the newest stay: what is left is a tail of at least 14 sixteenths."""
    for first in range(1, 400, 50):
        log_of(tmp_path, first, first + 49, first)
        assert settled(tmp_path) <= LIMIT
    assert settled(tmp_path) > LIMIT * 14 // 16
    assert steps(tmp_path) == list(range(steps(tmp_path)[0], 401))
    assert first_piece(tmp_path / FILE) > 1


def test_a_limit_that_became_smaller_takes_no_more_than_it_must(tmp_path: Path) -> None:
    """A log of many times the limit in one piece stays until another full piece is there."""
    log_of(tmp_path, 1, 300, limit=1 << 30)
    log_of(tmp_path, 301, 301, 2)
    assert steps(tmp_path) == list(range(1, 302))
    log_of(tmp_path, 302, 330, 3)
    assert settled(tmp_path) <= LIMIT
    assert steps(tmp_path)[-1] == 330


def test_a_kill_between_the_rename_and_the_new_piece(tmp_path: Path) -> None:
    """There is no piece under way, and the log is whole; the next start goes on with the next number."""
    log_of(tmp_path, 1, 3)
    number = end_of(tmp_path / FILE).piece
    (tmp_path / FILE).rename(piece_path(tmp_path / FILE, number))
    assert steps(tmp_path) == [1, 2, 3]
    assert end_of(tmp_path / FILE) == Place(number + 1, 0)
    log_of(tmp_path, 4, 30, 2)
    assert steps(tmp_path) == list(range(1, 31))


def test_a_torn_line_is_removed_from_the_piece_under_way(tmp_path: Path) -> None:
    """Also when that line is all there is of it."""
    log_of(tmp_path, 1, 9)
    (tmp_path / FILE).rename(piece_path(tmp_path / FILE, end_of(tmp_path / FILE).piece))
    (tmp_path / FILE).write_bytes(b'{"kind": "tr')
    assert steps(tmp_path) == list(range(1, 10))
    log_of(tmp_path, 10, 12, 2)
    assert steps(tmp_path) == list(range(1, 13))


def test_to_begin_a_piece_is_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system takes 10 ms to free a quarter of a gigabyte; whoever logs does not wait for that."""
    slow = threading.Event()
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: (slow.wait(0.05), real(path, missing_ok=missing_ok))[1])
    log, took = LocalLog(tmp_path, ID, 1, LIMIT), []
    for step in range(200):
        began = time.perf_counter()
        log.log(record(step))
        took.append(time.perf_counter() - began)
    slow.set()
    assert sum(seconds > 0.04 for seconds in took) < 5, "20 pieces went; the machine's other users may take some time as well"
    log.close()
    settled(tmp_path)
    log_of(tmp_path, 200, 220, 2)
    assert settled(tmp_path) <= LIMIT


def test_a_reader_beside_the_writer_sees_each_line_once(tmp_path: Path) -> None:
    """In order, across hundreds of renames, by a thread that reads all the time."""
    path, found, over = tmp_path / FILE, [], threading.Event()

    def read() -> None:
        with Reader(path, gone=lambda number: found.append(-number)) as reader:
            while True:
                last = over.is_set()
                found.extend(json.loads(line)["n"] for _, line in reader.lines())
                if last:
                    return

    writer = Writer(path, 1 << 22)
    monitor = threading.Thread(target=read)
    monitor.start()
    for n in range(20_000):
        writer.write(json.dumps({"n": n, "fill": "x" * 150}).encode() + b"\n")
    over.set()
    monitor.join()
    writer.close()
    assert found == list(range(20_000))
    assert len(full_pieces(path)) > 10


def test_a_reader_is_told_of_what_went_before_it_came(tmp_path: Path) -> None:
    """It had a piece open, which it reads to its end; the pieces between are gone, and counted."""
    path, gone = tmp_path / FILE, list[int]()
    log = LocalLog(tmp_path, ID, 1, LIMIT)
    log.log(record(1))
    with Reader(path, gone=gone.append) as reader:
        assert [json.loads(line)["step"] for _, line in reader.lines()] == [1]
        for step in range(2, 400):
            log.log(record(step))
        settled(tmp_path)
        got = [json.loads(line)["step"] for _, line in reader.lines()]
    log.close()
    there = steps(tmp_path)
    assert sum(gone) == first_piece(path) - 2
    assert got == [*range(2, got[-len(there) - 1] + 1), *there], "the rest of its piece, then all that is there"


def test_a_file_that_a_reader_has_not_opened_may_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look for the full piece and its opening of the one under way: it finds the right one all the same."""
    log = LocalLog(tmp_path, ID, 1, LIMIT)
    log.log(record(1))
    real, renamed = documents.open_regular, list[Path]()

    def opens(path: Path) -> BinaryIO:
        if path.name == FILE and not renamed:
            renamed.append(path)
            for step in range(2, 15):  # now the file of this name is another
                log.log(record(step))
        return real(path)

    monkeypatch.setattr(documents, "open_regular", opens)
    with Reader(tmp_path / FILE) as reader:
        found = [json.loads(line)["step"] for _ in range(2) for _, line in reader.lines()]
    assert renamed
    assert found == list(range(1, 15)), "what was there at the first call, then the rest"
    log.close()


def test_handles_are_closed(tmp_path: Path) -> None:
    """Of each piece when the next one is begun, by writer and reader."""
    log_of(tmp_path, 1, 100)
    before = len(os.listdir("/proc/self/fd"))
    log_of(tmp_path, 101, 200, 2)
    assert len(steps(tmp_path)) == 200 or first_piece(tmp_path / FILE) > 1
    assert len(os.listdir("/proc/self/fd")) == before


# ---- trackers and reports ----------------------------------------------------------------------------------------------


def follow(folder: Path, mine: Mine, step: int = 0) -> Follower:
    """A follower of the log, its tracker opened."""
    follower = Follower("Mine", lambda: mine, folder / FILE, step, ())
    assert follower.wait_open(5.0)
    return follower


def end(follower: Follower) -> None:
    """Lets it take what is left."""
    follower.end(0)
    assert follower.wait_end(10.0)


def test_a_tracker_goes_across_pieces_also_after_a_restart(tmp_path: Path) -> None:
    """Each step once, as the last attempt that took it logged it: the past in several pieces, and what comes in several more."""
    log_of(tmp_path, 1, 30)
    log_of(tmp_path, 21, 25, 2)
    mine, log = Mine(), LocalLog(tmp_path, ID, 3, 1 << 17)
    follower = follow(tmp_path, mine, 25)
    for step in range(26, 120):
        log.log(record(step))
    end(follower)
    log.close()
    assert mine.steps("train") == list(range(1, 120))
    assert len(full_pieces(tmp_path / FILE)) > 3


def test_a_tracker_that_is_too_slow_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It gets what is left, in order, and a line says how many pieces it did not get."""
    mine, log = Mine(stuck=threading.Event()), LocalLog(tmp_path, ID, 1, LIMIT)
    follower = follow(tmp_path, mine)
    log.log(record(1))
    time.sleep(0.7)
    for step in range(2, 300):
        log.log(record(step))
    settled(tmp_path)
    assert mine.stuck is not None
    mine.stuck.set()
    end(follower)
    log.close()
    got = mine.steps("train")
    assert got == sorted(set(got))
    assert (got[0], got[-1]) == (1, 299)
    missing = first_piece(tmp_path / FILE) - 2
    assert f"Mine was too slow: {missing} piece(s) of the log went before it came to them" in capsys.readouterr().err


@pytest.mark.parametrize("after, told", [(0, True), (299, False)])
def test_a_tracker_of_a_log_that_begins_late_is_told_of(
    after: int, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless it has the steps already."""
    log_of(tmp_path, 1, 300)
    settled(tmp_path)
    first, mine = steps(tmp_path)[0], Mine(after=after)
    end(follow(tmp_path, mine, 300))
    assert mine.steps("train") == [step for step in range(first, 301) if step > after]
    assert (f"Mine is given the steps from {first} on: the log's older lines are gone" in capsys.readouterr().err) is told


def test_a_report_of_a_log_that_begins_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so; the attempt under way when the log begins has its own notes, not those of the attempts before."""
    monkeypatch.setattr(past_runs, "LocalLog", lambda *given: LocalLog(*given[:3], LIMIT))
    cfg = past_runs.config(tmp_path / "run", steps=400)
    for number, first in enumerate((1, 11, 101), 1):
        with past_runs.attempt(cfg, first - 1, number, f"d{number}") as trackers:
            past_runs.steps(trackers, range(first, {1: 11, 11: 101, 101: 131}[first]))
    run = past.read(tmp_path / "run")
    first = run.train.steps[0]
    assert 11 < first < 101
    assert run.train.steps.tolist() == list(range(first, 131))
    assert run.notes == [f"the log begins at step {first}: older lines are gone (tracking.log_bytes)"]
    assert [attempt.about["attempt"] for attempt in run.attempts if attempt.about] == [2, 3]
    assert (run.attempts[0].start, len(run.attempts[0].uses)) == (10, 1)


def test_the_test_of_a_gap_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes what it opens for what it wants loses lines."""
    log_of(tmp_path, 1, 60)
    monkeypatch.setattr(pieces, "full_pieces", lambda path: [])
    assert steps(tmp_path) != list(range(1, 61))
