"""Two processes that write the same thing: the first result counts; who comes late, or to a folder that is gone, does no harm."""

import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlprod.etl import spill
from mlprod.etl.shards import ShardWriter
from mlprod.etl.tasks import _done
from mlprod.etl.whole import HALF, keep_first, remove_halves, removed, whole


def test_the_first_result_of_a_task_counts(tmp_path):
    """Also for the process that was late: it goes on with what is written down."""
    left = tmp_path / "000000.json"
    assert _done(lambda: {"file": "a"}, left) == {"file": "a"}
    assert _done(lambda: {"file": "b"}, left) == {"file": "a"}
    assert json.loads(left.read_text()) == {"file": "a"}
    assert [path.name for path in tmp_path.iterdir()] == ["000000.json"]


def test_a_result_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuses(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuses)
    assert keep_first(tmp_path / "a", "1") == "1"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "1")]


def test_two_that_spill_the_same_rows_in_another_order(tmp_path):
    """As a database may give them: each result names the file that it is of."""
    told = []
    for rows in ([3, 1, 2], [2, 3, 1]):
        with spill.Spill(spill.own_name(tmp_path, "000000")) as out:
            out.add(pa.table({"i": rows}), np.array([0, 1, 1], np.uint16))
        told.append(out.told())
    assert [spill.task_of(each["file"]) for each in told] == ["000000"] * 2
    for each, wanted in zip(told, ([1, 2], [3, 1]), strict=True):
        found = spill.read_bucket(tmp_path, spill.index_of([each]), 1)
        assert found is not None
        assert found["i"].to_pylist() == wanted


def test_a_task_is_sent_its_own_part_of_the_index(tmp_path):
    index = {"a": [(0, 1, 2), (3, 2, 9)], "b": [(3, 0, 4)]}
    assert spill.by_bucket(index) == {0: {"a": [(0, 1, 2)]}, 3: {"a": [(3, 2, 9)], "b": [(3, 0, 4)]}}


def test_nothing_comes_to_be_from_a_folder_that_was_removed(tmp_path):
    """Of another build, whose source changed: a worker that goes on with it changes no file of this one."""
    work = tmp_path / "work" / "one"
    (work / "write").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    writer = ShardWriter(tmp_path, "files/a.parquet", pa.schema([("x", pa.float32())]), ["x"], halves=work / "write")
    writer.add(pa.table({"x": pa.array([1.0], pa.float32())}), "0" * 32)
    removed(work)
    assert list((tmp_path / "work").iterdir()) == []
    (tmp_path / "files" / "a.parquet").write_text("of the other")
    for late in (writer.close, partial(keep_first, work / "a.json", "{}")):
        with pytest.raises(FileNotFoundError):
            late()
    assert (tmp_path / "files" / "a.parquet").read_text() == "of the other"


def test_what_fails_leaves_nothing(tmp_path):
    for fails in (_whole_that_fails, _spill_that_fails):
        with pytest.raises(ZeroDivisionError):
            fails(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _whole_that_fails(folder: Path) -> None:
    with whole(folder / "a") as half:
        half.write_text("some")
        1 / 0  # noqa: B018


def _spill_that_fails(folder: Path) -> None:
    with spill.Spill(spill.own_name(folder, "b")) as out:
        out.add(pa.table({"i": [1]}), np.zeros(1, np.uint16))
        1 / 0  # noqa: B018


def test_what_was_being_written_is_removed(tmp_path):
    """Whichever way it is called."""
    (tmp_path / "stage").mkdir()
    for name in (f"a{HALF}", f".a.0f{HALF}", f".a.0f{HALF}.gz", "a.arrow"):
        (tmp_path / "stage" / name).touch()
    remove_halves(tmp_path)
    assert [path.name for path in Path(tmp_path / "stage").iterdir()] == ["a.arrow"]
