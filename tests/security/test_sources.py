"""Files of rows that were made to do harm, and what a spreadsheet makes of ours: refused, or plain, in bounded time and memory.

Each is also seen without its guard, doing the harm.
"""

import bz2
import csv as python_csv
import gzip
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlprod import documents, scores
from mlprod.errors import DataError
from mlprod.etl import blocks, columnar, csv_files, files
from tests import rows
from tests.refused import refused
from tests.security.bounds import bounded

Capture = pytest.CaptureFixture[str]
SECONDS = 10.0  # of a machine that others use too
MIB = 1 << 20
LINES, ONE_LINE, JSON = b"\n" * MIB, b"a" * MIB, b'{"x": 1}\n' * (MIB // 9)


def _by_arrow(codec: str) -> Callable[[Path, bytes, int], None]:
    """Writes a file packed by a codec of Arrow's: a piece so many times."""

    def write(path: Path, piece: bytes, times: int) -> None:
        with pa.CompressedOutputStream(str(path), codec) as file:
            for _ in range(times):
                file.write(piece)

    return write


def _by_python(library: Callable[..., object]) -> Callable[[Path, bytes, int], None]:
    def write(path: Path, piece: bytes, times: int) -> None:
        with library(path, "wb") as file:  # type: ignore[attr-defined]
            for _ in range(times):
                file.write(piece)

    return write


PACKED = {
    "csv.gz of empty lines": (_by_python(gzip.open), LINES), "csv.gz of one line": (_by_python(gzip.open), ONE_LINE),
    "csv.bz2 of empty lines": (_by_python(bz2.open), LINES), "csv.zst of empty lines": (_by_arrow("zstd"), LINES),
    "csv.zst of one line": (_by_arrow("zstd"), ONE_LINE), "csv.br of empty lines": (_by_arrow("brotli"), LINES),
    "csv.lz4 of one line": (_by_arrow("lz4"), ONE_LINE), "jsonl.gz of equal rows": (_by_python(gzip.open), JSON),
}  # fmt: skip


@pytest.mark.parametrize("write, piece", PACKED.values(), ids=list(PACKED))
def test_a_packed_file_that_grows(
    write: Callable[[Path, bytes, int], None],
    piece: bytes,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Refused while it is unpacked, of which only part was ever on the disk; without the guard all of it is."""
    monkeypatch.setattr(files, "ALWAYS_BYTES", 4 * MIB)
    name = tmp_path / f"rows.{request.node.callspec.id.split()[0]}"
    write(name, piece, 8)
    with pytest.raises(DataError, match=r"becomes more than [0-9,]+ bytes, 200 times its size"), bounded(SECONDS):
        files.copy_plain(str(name), "utf-8", tmp_path / "copy")
    assert sum(left.stat().st_size for left in tmp_path.iterdir() if left != name) <= max(4 * MIB, 200 * name.stat().st_size)
    monkeypatch.setattr(files, "TIMES", 1 << 30)
    assert files.copy_plain(str(name), "utf-8", tmp_path / "copy")["bytes"] == 8 * len(piece)


# ---- Parquet -----------------------------------------------------------------------------------------------------------


def _blob(codec: str) -> Callable[[Path], None]:
    """Writes three texts that are long and packed small."""

    def write(path: Path) -> None:
        table = pa.table({"color": ["a" * (2 * MIB)] * 3})
        pq.write_table(table, path, compression=codec, use_dictionary=False, write_statistics=False)

    return write


def _many(path: Path) -> None:
    """Writes more rows than a file of this size can tell apart."""
    pq.write_table(pa.table({"x": np.zeros(MIB + 1, np.int8)}), path, compression="zstd")


PARQUET = {codec: _blob(codec) for codec in ("zstd", "gzip", "brotli")} | {"equal rows": _many}


@pytest.mark.parametrize("write", PARQUET.values(), ids=list(PARQUET))
def test_a_parquet_file_that_grows(write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by its footer, before a page is unpacked; without the guard they all are to be read."""
    for limit in ("ALWAYS_BYTES", "ALWAYS_ROWS"):
        monkeypatch.setattr(columnar, limit, MIB)
    write(tmp_path / "rows.parquet")
    name = str(tmp_path / "rows.parquet")
    for read in (lambda: columnar.row_groups(name, []), lambda: columnar.num_rows(name)):
        with (
            pytest.raises(DataError, match=r"says that it has [0-9,]+ (rows|bytes unpacked), more than 200 times as many"),
            bounded(),
        ):
            read()
    monkeypatch.setattr(columnar, "TIMES", 1 << 30)
    assert columnar.num_rows(name) in (3, MIB + 1)


PARQUET_FILES = {
    "no footer": b"PAR1" + b"\0" * 100, "a footer of 2 GB": b"PAR1" + b"\0" * 64 + b"\xff\xff\xff\x7fPAR1",
    "a footer of noise": b"PAR1" + b"\xff" * 1000 + (1000).to_bytes(4, "little") + b"PAR1",
    "nothing": b"", "text": b"id,day\n1,2\n",
}  # fmt: skip


@pytest.mark.parametrize("body", PARQUET_FILES.values(), ids=list(PARQUET_FILES))
def test_what_is_no_parquet(body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """One line, whatever the bytes are; without the guard it is a traceback of the library's."""
    (tmp_path / "rows.parquet").write_bytes(body)
    with bounded():
        refused(capsys, ["init", str(tmp_path / "rows.parquet"), "--target", "y", "--folder", str(tmp_path)], "rows.parquet")
    monkeypatch.setattr(columnar, "_told_of_parquet", lambda path, told: nullcontext())
    with pytest.raises((pa.ArrowException, OSError)):
        columnar.num_rows(str(tmp_path / "rows.parquet"))


# ---- lines without end, and JSON lines ---------------------------------------------------------------------------------

ENDLESS = {
    "a field": "1,2,0.5,3," + "a" * 60_000 + ",1,1\n", "many fields": "," * 60_000 + "\n",
    "a quote that stays open": '1,2,0.5,3,"red,1,1\n' + "1,2,0.5,3,red,1,1\n" * 4000,
    "quotes all the way": '"' * 60_001,
}  # fmt: skip


@pytest.mark.parametrize("body", ENDLESS.values(), ids=list(ENDLESS))
def test_a_line_of_a_csv_file_without_end(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused where the file is cut in parts: no line is in memory as a whole; without the guard this one is a part."""
    (tmp_path / "rows.csv").write_text(rows.HEADER + "\n" + body)
    for module in (files, blocks):
        monkeypatch.setattr(module, "LONGEST_LINE", 4096)
    with pytest.raises(DataError, match=r"a line of more than [0-9,]+ bytes"), bounded():
        blocks.cut(str(tmp_path / "rows.csv"), ",", 1000)
    monkeypatch.setattr(blocks, "LONGEST_LINE", 1 << 40)
    parts = blocks.cut(str(tmp_path / "rows.csv"), ",", 1000)
    assert any(part.stop < 0 or part.stop - part.start > 50_000 for part in parts)


@pytest.mark.parametrize("body", ["a" * 60_000, "a,b\n" + "a" * 60_000, '"' + "a" * 60_000], ids=["header", "row", "quoted"])
def test_a_line_read_by_pythons_reader(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header too, which is read before all else."""
    (tmp_path / "rows.csv").write_text(body)
    monkeypatch.setattr(files, "LONGEST_LINE", 4096)
    with pytest.raises(DataError, match=r"a line of more than 4,096 bytes"), bounded():
        list(csv_files._csv_rows(str(tmp_path / "rows.csv"), ","))
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 40)
    if not body.startswith('"'):
        assert list(csv_files._csv_rows(str(tmp_path / "rows.csv"), ","))


def test_a_json_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every way in which lines are read; without the guard it is a part of its own."""
    (tmp_path / "rows.jsonl").write_text('{"x": "' + "a" * 60_000 + '"}\n')
    name = str(tmp_path / "rows.jsonl")
    monkeypatch.setattr(files, "LONGEST_LINE", 4096)
    for read in (
        lambda: columnar.lines(name, 1000), lambda: columnar.line_names(name), lambda: columnar.first_lines(name, ["x"], 3)
    ):  # fmt: skip
        with pytest.raises(DataError, match="a line of more than 4,096 bytes"), bounded():
            read()
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 40)
    assert columnar.lines(name, 1000)[0].stop > 60_000


TWICE = (
    '{"y": 1, "y": 0}', '{"id": 1, "x": 2, "id": 2}', '{"x": null, "x": 1}', '{"": 1, "": 2}', '{"a": 1, "a": 1}',
    '{"a": {"b": 1, "b": 2}}', '{"a": [{"b": 1, "b": 2}]}', '{"\\u0061": 1, "a": 2}',
)  # fmt: skip


@pytest.mark.parametrize("line", TWICE)
def test_a_row_that_names_a_column_twice(line: str) -> None:
    """It is a bad row: which of the two values is meant? The library takes the last, in silence."""
    with bounded():
        assert "twice" in str(columnar._object(line.encode()))
    assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"])
def test_a_deep_row(line: str) -> None:
    """It is a bad row, not the end of the program; the library alone raises what ends it."""
    with bounded():
        assert "no JSON" in str(columnar._object(line.encode()))
    with pytest.raises((RecursionError, ValueError)):
        json.loads(line)


# ---- formulas ----------------------------------------------------------------------------------------------------------

FORMULAS = (
    "=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1:A9)", "\t=1+1", "\r=1+1", " =HYPERLINK(A1)", "=cmd|'/C calc'!A0",
    "\uff1d1+1", "\uff0bSUM(1)", "\uff0d1+1", "\uff20SUM(1)", "\n=1", "=IMPORTXML(A1)", "-", "+",
)  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_of_ours_is_a_formula(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key, a class, a column's name; without the guard it stands there as it is."""
    schema = pa.schema([("id", pa.string()), (f"probability_{text}", pa.float32()), (text, pa.string())])

    def cells() -> list[list[str]]:
        with scores.open_table_file(tmp_path / "scores.csv", "scores.csv", schema) as file:
            file.write_table(pa.table([[text, "plain", None], [0.5, -0.5, None], ["a", text, "b"]], schema=schema))
        with (tmp_path / "scores.csv").open(newline="") as read:
            return list(python_csv.reader(read))

    assert cells() == [
        ["id", f"probability_{text}", f"'{text}"], [f"'{text}", "0.5", "a"], ["plain", "-0.5", f"'{text}"], ["", "", "b"]
    ]  # fmt: skip
    monkeypatch.setattr(scores, "plain_text", lambda texts: texts)
    assert cells()[1][0] == text


@pytest.mark.parametrize("text", ["-5", "+1.5", "-1e-3", "a=b", "x-y", "", "'=1", "grün", "1+1"])
def test_what_is_no_formula_stays(text: str) -> None:
    """A number keeps its sign."""
    assert scores.plain_text(pa.chunked_array([[text, None]], pa.string())).to_pylist() == [text, None]


def test_a_count_is_no_other_number() -> None:
    """What JSON has beside whole numbers."""
    assert [x for x in (True, 1.0, -1, 1 << 63, "1", None, float("nan")) if documents.is_count(x)] == []
    assert documents.is_count((1 << 63) - 1)
