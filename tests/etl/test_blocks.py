"""A CSV file read in parts by pyarrow is what Python's csv module and our own parsing make of it."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlprod.config import Column, CsvSource, numeric
from mlprod.errors import DataError
from mlprod.etl import blocks
from mlprod.etl.schema import Loose, cast_chunk
from mlprod.etl.sources import chunks, parts, read

COLUMNS = (
    numeric("x"), numeric("n", type="int64"), Column(name="s", type="string"), Column(name="b", type="bool"),
    Column(name="t", type="timestamp"),
)  # fmt: skip
NAMES = [c.name for c in COLUMNS]
CLEAN = {
    "x": st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.integers(-(10**20), 10**20).map(str),
    "n": st.integers(-(1 << 63), (1 << 63) - 1).map(str),
    "s": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
    "b": st.sampled_from(["true", "TRUE", "f", "1", "No", "yes"]),
    "t": st.datetimes().map(str) | st.datetimes().map(lambda t: f"{t.isoformat()}Z") | st.dates().map(str),
}
ODD = st.sampled_from(
    ["", "NA", "nan", "NaN", "inf", "-0.0", "+1", "0x10", "1e5", " 7", "7.0", "nan(1)", "1_0", "2024-01-01T10:00:00.123456789",
     "0000-01-01", "2024-01-01T10:00:00+05:30", "20240101", "tRUE", 'a"b', "a\0b", "1" * 30]
)  # fmt: skip


def quoted(text: str, always: bool) -> str:
    """A field as RFC 4180 writes it."""
    needs = always or any(c in text for c in ',"\r\n')
    return '"' + text.replace('"', '""') + '"' if needs else text


@st.composite
def files(draw) -> str:
    """A CSV file, more or less clean."""
    ends, odd = draw(st.sampled_from(["\n", "\r\n"])), draw(st.sampled_from([0, 0, 0, 30]))
    lines = [draw(st.sampled_from(["", "\ufeff", "\n", "\r\n"])) + ",".join(c.name for c in COLUMNS)]
    for _ in range(draw(st.integers(0, 8))):
        fields = []
        for c in COLUMNS:
            strange = draw(st.integers(0, 99)) < odd
            text = draw(ODD) if strange else draw(st.just("") | CLEAN[c.name])
            raw = strange and draw(st.booleans())
            fields.append(text if raw else quoted(text, draw(st.booleans())))
        lines.append(",".join(fields if draw(st.integers(0, 99)) >= odd / 3 else fields[:-1]))
        lines += [""] * draw(st.sampled_from([0, 0, 0, 1]))
    return ends.join(lines) + draw(st.sampled_from(["", ends]))


def typed(loose: Loose | pa.Table) -> tuple[list[dict], list[str]]:
    """Rows, and what is wrong with some."""
    if isinstance(loose, pa.Table):
        return loose.to_pylist(), []
    table, reasons = cast_chunk(loose, COLUMNS)
    return table.to_pylist(), [f"{loose.where(i)}: {why}" for i, why in sorted(reasons.items())]


def outcome(read_all) -> tuple[list[dict], list[str]] | str:
    """All rows and reasons, or the error."""
    try:
        found = [typed(chunk) for chunk in read_all()]
    except DataError as error:
        return str(error)
    return [row for rows, _ in found for row in rows], [why for _, reasons in found for why in reasons]


@settings(deadline=None, max_examples=300)
@given(files(), st.sampled_from([1, 2, 3, 1000]))
@example('x,n,s,b,t\n1,2,"a\nb",1,2024-01-01\n1,2,"a",0,\n', 1)
@example('x,n,s,b,t\n1,2,5" pipe,1,\n1,2,"a\n""b",0,\n', 1)
@example("x,n,s,b,t", 1)
@example("x,n,s,b,t\n1,2,a\0b,1,\n", 1)
def test_parts_are_the_rows(tmp_path_factory, text, chunk_rows):
    """The same values in the same order, the same complaints with the same lines, for parts of any size."""
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(text.encode())
    source = CsvSource(path=str(path))
    wanted = outcome(lambda: chunks(source, NAMES, 1000))
    found = outcome(lambda: (c for part in parts(source, NAMES, chunk_rows) for c in read(source, part, COLUMNS, 1000)))
    assert found == wanted


def test_a_clean_file_is_read_by_pyarrow_in_parts(tmp_path: Path) -> None:
    """Quoted line breaks, missing values, times with a zone: none of it is looked at value by value."""
    path = tmp_path / "rows.csv"
    rows = [f'{i / 7},{i},"a\n{i}",true,2024-01-01T00:00:00+01:00\n,,"b,""{i}""",f,\n' for i in range(500)]
    path.write_text("x,n,s,b,t\n" + "".join(rows))
    source = CsvSource(path=str(path))
    cut = parts(source, NAMES, 50)
    assert len(cut) > 10
    tables = [chunk for part in cut for chunk in read(source, part, COLUMNS, 1000)]
    assert all(isinstance(table, pa.Table) for table in tables)
    assert sum(table.num_rows for table in tables) == 1000
    assert max(part.stop - part.start for part in cut) < 3 * path.stat().st_size / len(cut)


@pytest.mark.parametrize("piece", [1, 2, 3, 7])
def test_pieces_do_not_count(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is looked at piece by piece: quotes and line breaks on their edges are seen."""
    path = tmp_path / "rows.csv"
    path.write_text('s\n"a\n""b"""\n"c\n"\nd\n' * 20)
    wanted = blocks.cut(str(path), ",", 5)
    monkeypatch.setattr(blocks, "PIECE_BYTES", piece)
    monkeypatch.setattr(blocks, "LINE_BYTES", piece)
    assert blocks.cut(str(path), ",", 5) == wanted
    assert len(wanted) > 20


def test_an_irregular_file_is_read_as_a_stream(tmp_path: Path) -> None:
    """Of any size, in chunks: it is never held whole. So is one whose delimiter pyarrow does not know."""
    path = tmp_path / "rows.csv"
    for delimiter, mark in ((",", 'a"b'), ("§", "ab")):
        rows = [delimiter.join((str(i), str(i), mark, "1", "")) for i in range(50)]
        path.write_text("\n".join([delimiter.join(NAMES), *rows]))
        source = CsvSource(path=str(path), delimiter=delimiter)
        assert parts(source, NAMES, 5) == [blocks.Part(str(path), 0, -1, False, True)]
        chunk = [chunk for part in parts(source, NAMES, 5) for chunk in read(source, part, COLUMNS, 20)]
        assert [c.num_rows for c in chunk] == [20, 20, 10]
        assert [row["s"] for c in chunk for row in typed(c)[0]] == [mark] * 50


def test_many_files_are_one_source(tmp_path: Path) -> None:
    """A pattern names them; their columns may stand in any order."""
    (tmp_path / "b.csv").write_text("x,n,s,b,t\n1,2,a,1,\n")
    (tmp_path / "a.csv").write_text("n,x,t,b,s\n3,4,,0,c\n")
    source = CsvSource(path=str(tmp_path / "*.csv"))
    rows = [row for part in parts(source, NAMES, 10) for chunk in read(source, part, COLUMNS, 10) for row in typed(chunk)[0]]
    assert [(row["x"], row["n"], row["s"]) for row in rows] == [(4.0, 3, "c"), (1.0, 2, "a")]
    with pytest.raises(DataError, match="no file fits"):
        parts(CsvSource(path=str(tmp_path / "*.tsv")), NAMES, 10)
