"""Messy tables in three formats, cut and read in any way: one dataset, to the byte, and what DuckDB makes of the same values.

DuckDB is given the values as Arrow: what is compared is what becomes of rows, not how text is parsed. Sixty tables by default;
`MLPROD_EXAMPLES=1000` in the environment looks at more.
"""

import dataclasses
import datetime as dt
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mlprod import features
from mlprod.config import (
    ByColumn,
    ByTime,
    Column,
    Config,
    CsvSource,
    JsonLinesSource,
    ParquetSource,
    TrackingConfig,
    categorical,
    numeric,
)
from mlprod.errors import DataError
from mlprod.etl import spill
from mlprod.etl.run import build
from mlprod.etl.schema import ARROW
from mlprod.manifest import SPLITS, Manifest
from tests.plain import small_config, stored, stored_table

EXAMPLES = int(os.environ.get("MLPROD_EXAMPLES", "60"))

PLAIN = {"part": "string", "day": "int64", "i": "int64", "f": "float64", "s": "string", "b": "bool", "t": "timestamp"}
NUMERIC = {"x": "float64", "n": "int64", "flag": "bool"}
CATEGORICAL = {"word": ("string", 2), "code": ("int64", 1), "yes": ("bool", 1)}  # with their min_count
COLUMNS = (
    *(Column(name=name, type=kind, role="time" if kind == "timestamp" else "group") for name, kind in PLAIN.items()),
    *(numeric(name, type=kind) for name, kind in NUMERIC.items()),
    *(categorical(name, type=kind, min_count=few) for name, (kind, few) in CATEGORICAL.items()),
)
TYPES = {**PLAIN, **NUMERIC, **{name: kind for name, (kind, _) in CATEGORICAL.items()}, "y": "float64"}
UNKNOWN = "\0unknown"

Row = dict[str, Any]


# ---- tables ------------------------------------------------------------------------------------------------------------

WORDS = (
    "a",
    "b",
    "A",
    "ä",
    "a\u0308",
    "東京",
    "\U0001f600",
    " a",
    "a ",
    "",
    "NA",
    "null",
    "0",
    "-0.0",
    "nan",
    'say "hi"',
    '"',
    "''",
)
BREAKS = ("two\nlines", "\r\n", "a\rb", "a,b", "a\u2028b", "\ufeff", "\\n", "\t", ",\n,")
TEXT = st.sampled_from(WORDS + BREAKS) | st.text("aBß東\u0301\U0001f600\"'`,;|\n\r\t \u2028\ufeff\x7f0-", max_size=4)
FLOATS = st.sampled_from([0.0, -0.0, float("nan"), 1.5, -2.25, 0.1, 5e-324, 3e38]) | st.floats(-3e38, 3e38)
WIDE = st.sampled_from([0.0, -0.0, float("nan"), 1.0]) | st.floats(allow_infinity=False)
INTS = st.integers(-2, 2) | st.sampled_from([2**53 + 1, -(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1)
TIMES = st.sampled_from(
    [dt.datetime(2024, 10, 27, 0, 30), dt.datetime(1970, 1, 1), dt.datetime(1969, 12, 31, 23, 59, 59, 999999)]
)
TIMES |= st.datetimes(dt.datetime(1800, 1, 1), dt.datetime(2200, 1, 1))
VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "part": st.sampled_from(["a", "a", "b", "e", "t", "ü"]), "day": st.integers(-1, 3), "y": st.sampled_from([0.0, 1.0, 7.0]),
    "i": INTS, "f": WIDE, "s": TEXT, "b": st.booleans(), "t": TIMES.map(lambda time: time.replace(tzinfo=dt.UTC)),
    "x": FLOATS, "n": INTS, "flag": st.booleans(), "word": TEXT, "code": INTS, "yes": st.booleans(),
}  # fmt: skip
COMPLETE = ("part", "day")  # by which rows are split
ROWS = st.fixed_dictionaries({name: values if name in COMPLETE else st.none() | values for name, values in VALUES.items()})
EMPTY: Row = dict.fromkeys(TYPES) | {"part": "a", "day": 0}
WHOLE: Row = {
    "part": "a", "day": 0, "i": 1, "f": 1.0, "s": "s", "b": True, "t": dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    "x": 1.0, "n": 1, "flag": True, "word": "a", "code": 1, "yes": True, "y": 0.0,
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Up to 60 rows: few different ones, repeated near and far; often nothing but nulls at first; most have both labels."""
    different = draw(st.lists(ROWS, max_size=8))
    rows = draw(st.lists(st.sampled_from(different), max_size=40)) if different else []
    rows = [EMPTY | {"y": 1.0}] * draw(st.sampled_from([0, 0, 3, 8])) + rows
    if draw(st.sampled_from([True, True, True, False])):
        rows += [WHOLE, WHOLE | {"y": 1.0}]
    return rows


@dataclasses.dataclass(frozen=True)
class Way:
    """How a table is written and read."""

    kind: str
    cuts: Sequence[float]  # of the rows, into files
    shuffled: int  # the order of the files' names
    style: int  # of what a format leaves open
    chunk_rows: int
    workers: int
    bits: int  # of the hash, by which buckets are cut


@st.composite
def ways(draw: st.DrawFn) -> list[Way]:
    """Each format, one of them twice, and each size of chunks."""
    kinds = ["csv", "jsonl", "parquet", draw(st.sampled_from(["csv", "jsonl", "parquet"]))]
    sizes = draw(st.permutations([1, 7, 1000, 1 << 16]))
    return [
        Way(
            kind, sorted(draw(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), max_size=3))), draw(st.integers(0, 5)),
            draw(st.integers(0, 11)), chunk_rows, draw(st.sampled_from([1, 4])), draw(st.sampled_from([0, 0, 2])),
        )
        for kind, chunk_rows in zip(kinds, sizes, strict=True)
    ]  # fmt: skip


# ---- as files ----------------------------------------------------------------------------------------------------------

ZONES: tuple[ZoneInfo | dt.timezone | None, ...] = (None, dt.UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"))
SPELLED = (("false", "true"), ("False", "True"), ("0", "1"), ("f", "T"))
SOURCES: Mapping[str, type] = {"csv": CsvSource, "jsonl": JsonLinesSource, "parquet": ParquetSource}


def as_iso(time: dt.datetime, style: int) -> str:
    """Returns a time as text in one of the zones; without one it is UTC."""
    zone = ZONES[style % 4]
    return time.replace(tzinfo=None).isoformat() if zone is None else time.astimezone(zone).isoformat(sep=" T"[style % 2])


def csv_field(value: Any, style: int) -> str:
    """Returns a value as a field: quoted always, where it must be, or with bare quotes inside."""
    if value is None:
        return ("", "NA", '""')[style % 3]
    if isinstance(value, bool):
        return SPELLED[style % 4][value]
    text = as_iso(value, style) if isinstance(value, dt.datetime) else value if isinstance(value, str) else repr(value)
    needs = (r'[",\r\n]', "", r'^"|[,\r\n]')[style % 3]
    return '"' + text.replace('"', '""') + '"' if re.search(needs, text) else text


def csv_text(rows: Sequence[Row], style: int) -> bytes:
    lines = [",".join(TYPES), *(",".join(csv_field(row[name], style) for name in TYPES) for row in rows)]
    end = ("\n", "\r\n")[style % 2]
    text = end.join(lines) + ("" if style % 5 == 4 else end)
    return (b"\xef\xbb\xbf" if style % 7 == 6 else b"") + text.encode()


def json_lines(rows: Sequence[Row], style: int) -> bytes:
    def plain(row: Row) -> Row:
        shown = {name: as_iso(value, style) if isinstance(value, dt.datetime) else value for name, value in row.items()}
        return {name: value for name, value in shown.items() if value is not None or style % 2}

    lines = [json.dumps(plain(row), ensure_ascii=style % 3 == 0) for row in rows]
    return "\n".join(lines).encode() + (b"\n" if rows and style % 5 else b"")


def arrow(rows: Sequence[Row]) -> pa.Table:
    """Returns the rows in the declared types."""
    return pa.table({name: pa.array([row[name] for row in rows], ARROW[kind]) for name, kind in TYPES.items()})


def loosely(column: pa.ChunkedArray, style: int) -> pa.ChunkedArray:
    """Returns a column in another type that may hold it: as pandas, or a file that was never told its types, would have it."""
    if style % 2 and column.null_count == len(column):
        return pa.chunked_array([pa.nulls(len(column))])
    if pa.types.is_timestamp(column.type):
        return pc.cast(column, pa.timestamp(("us", "ns")[style % 2], (None, "UTC", "Europe/Berlin")[style % 3]))
    if pa.types.is_int64(column.type) and column.null_count and style % 3 == 0:
        exact = all(abs(value) <= 2**53 for value in column.drop_null().to_pylist())
        return pc.cast(column, pa.float64()) if exact else column
    if pa.types.is_string(column.type):
        return column.dictionary_encode() if style % 3 == 1 else pc.cast(column, (pa.string(), pa.large_string())[style % 2])
    return column


def to_file(rows: Sequence[Row], way: Way, path: Path) -> None:
    """Writes rows as one file."""
    if way.kind == "parquet":
        typed = arrow(rows)
        table = pa.table({name: loosely(typed[name], way.style) for name in TYPES})
        pq.write_table(table, path, row_group_size=(3, 1000)[way.style % 2])
    else:
        path.write_bytes((csv_text if way.kind == "csv" else json_lines)(rows, way.style))


def to_source(rows: Sequence[Row], way: Way, folder: Path) -> Any:
    """Writes rows as files, some of them empty, in an order of their own; returns the source."""
    edges = [0, *(int(cut * len(rows)) for cut in way.cuts), len(rows)]
    pieces = [rows[a:b] for a, b in pairwise(edges)]
    for i, piece in enumerate(pieces):
        to_file(piece, way, folder / f"{(i * 5 + way.shuffled) % 7}.{way.kind}")
    return SOURCES[way.kind](path=str(folder / f"*.{way.kind}"))


def told_apart(rows: Sequence[Row], kind: str) -> bool:
    """Whether a format can tell the values from missing ones."""
    return kind != "csv" or all(row[name] not in ("", "NA") for row in rows for name in ("s", "word"))


# ---- by DuckDB ---------------------------------------------------------------------------------------------------------

SPLIT_OF = {
    ByColumn: "CASE WHEN part = 'e' THEN 1 WHEN part IN ('t', 'ü') THEN 2 ELSE 0 END",
    ByTime: "CASE WHEN day >= 3 THEN 2 WHEN day >= 2 THEN 1 ELSE 0 END",
}
SPLIT_BY = {ByColumn: ByColumn(column="part", eval=("e",), test=("t", "ü")), ByTime: ByTime(column="day", eval="2", test="3")}
CLEAN = ", ".join(
    {"float64": f"CASE WHEN isnan({c}) THEN NULL ELSE {c} + 0.0 END AS {c}", "timestamp": f"epoch_us({c}) AS {c}"}.get(kind, c)
    for c, kind in TYPES.items()
)


@pytest.fixture(scope="module")
def db() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as connection:
        yield connection


@dataclasses.dataclass
class Wanted:
    """What DuckDB makes of a table."""

    read: int
    without_label: int
    duplicates: int
    kept: list[Counter[tuple[Any, ...]]]  # of each split: rows, encoded and filled
    medians: dict[str, float]
    words: dict[str, dict[str, int]]  # of the training split
    refused: str = ""  # why there is no dataset


def wanted(db: duckdb.DuckDBPyConnection, rows: Sequence[Row], dedup: str, split: type) -> Wanted:
    """Returns what the rows should become."""

    def all_of(query: str) -> list[tuple[Any, ...]]:
        return db.execute(query).fetchall()

    db.register("given", arrow(rows))
    db.execute(f"CREATE OR REPLACE TEMP TABLE labelled AS SELECT {CLEAN} FROM given WHERE y IS NOT NULL AND NOT isnan(y)")
    distinct = "DISTINCT" if dedup == "exact" else ""
    db.execute(
        f"CREATE OR REPLACE TEMP TABLE kept AS SELECT *, {SPLIT_OF[split]} AS split FROM (SELECT {distinct} * FROM labelled)"
    )
    db.execute("CREATE OR REPLACE TEMP VIEW train AS SELECT * FROM kept WHERE split = 0")
    ((labelled,),), ((kept,),) = all_of("SELECT count(*) FROM labelled"), all_of("SELECT count(*) FROM kept")
    found = Wanted(len(rows), len(rows) - labelled, labelled - kept, [], {}, {})
    found.refused = refused(found, labelled, all_of)
    if found.refused:
        return found
    for name in NUMERIC:
        ((median,),) = all_of(f"SELECT list_sort(list({name}) FILTER ({name} IS NOT NULL))[(count({name}) + 1) // 2] FROM train")
        found.medians[name] = float(median)
    for name, (kind, few) in CATEGORICAL.items():
        text = f"CAST({name}::INT AS TEXT)" if kind == "bool" else f"CAST({name} AS TEXT)"
        counts = (
            f"SELECT {text} AS word, count(*) AS n FROM train WHERE {name} IS NOT NULL GROUP BY 1 HAVING n >= {few} ORDER BY 1"
        )
        found.words[name] = dict(all_of(counts))
    shown = [*PLAIN, "CAST(y > 0.5 AS DOUBLE)", *NUMERIC]
    shown += [f"CAST({n}::INT AS TEXT)" if kind == "bool" else f"CAST({n} AS TEXT)" for n, (kind, _) in CATEGORICAL.items()]
    for code in range(len(SPLITS)):
        rows_of = all_of(f"SELECT {', '.join(shown)} FROM kept WHERE split = {code}")
        found.kept.append(Counter(encoded(row, found) for row in rows_of))
    return found


def refused(found: Wanted, labelled: int, all_of: Any) -> str:
    """Returns why a build must end, '' where it must not."""
    if not found.read:
        return "the source has no rows"
    if not labelled:
        return "rows has a value in config.etl.label.column"
    ((trained, low, high),) = all_of("SELECT count(*), min(y > 0.5), max(y > 0.5) FROM train")
    if not trained:
        return "left no training rows"
    counts = all_of(f"SELECT {', '.join(f'count({name})' for name in (*NUMERIC, *CATEGORICAL))} FROM train")
    if 0 in counts[0]:
        return "has no value in the training split"
    return "every training row has label" if low == high else ""


def encoded(row: Sequence[Any], found: Wanted) -> tuple[Any, ...]:
    """Returns a row of DuckDB's as it should be stored: numbers filled and float32, categories unknown where they are rare."""
    plain, numbers, words = row[: len(PLAIN) + 1], row[len(PLAIN) + 1 : -len(CATEGORICAL)], row[-len(CATEGORICAL) :]
    filled = [found.medians[name] if v is None else float(v) for name, v in zip(NUMERIC, numbers, strict=True)]
    known = [None if w is None else w if w in found.words[n] else UNKNOWN for n, w in zip(CATEGORICAL, words, strict=True)]
    return (*plain, *np.array(filled, np.float32).tolist(), *known)


# ---- by mlprod ---------------------------------------------------------------------------------------------------------


def config(source: Any, way: Way, folder: Path, dedup: str, split: type, key: tuple[str, ...]) -> Config:
    cfg = small_config(
        folder, columns=COLUMNS, source=source, dedup=dedup, split=SPLIT_BY[split], key=key, group_rows=4, file_groups=4,
        chunk_rows=way.chunk_rows, workers=way.workers,
    )  # fmt: skip
    return dataclasses.replace(cfg, tracking=TrackingConfig(progress=False))


def stored_rows(dataset: Path, published: Manifest, split: str, spec: features.FeatureSpec) -> Counter[tuple[Any, ...]]:
    """Returns the rows of a split, as `encoded` gives them."""
    if not published.splits[split]:
        return Counter()
    table, arrays = stored_table(dataset, published, split), stored(dataset, published, split)
    table = table.set_column(table.column_names.index("t"), "t", pc.cast(table["t"], pa.int64()))
    plain = [table[name].to_pylist() for name in (*PLAIN, "label")]
    words = [[(UNKNOWN, None, *f.vocabulary)[i] for i in arrays["ids"][:, j].tolist()] for j, f in enumerate(spec.categorical)]
    return Counter(zip(*plain, *arrays["numeric"].T.tolist(), *words, strict=True))


def content(published: Manifest) -> Manifest:
    """Returns what of a manifest does not tell of the source."""
    return dataclasses.replace(published, build_key="", source={}, config={})


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=tables(), ways=ways(), dedup=st.sampled_from(["exact", "none"]), split=st.sampled_from([ByColumn, ByTime]),
    key=st.sampled_from([(), ("part", "day")]),
)  # fmt: skip
def test_a_dataset_is_what_duckdb_makes_of_the_values(
    db: duckdb.DuckDBPyConnection, rows: list[Row], ways: list[Way], dedup: str, split: type, key: tuple[str, ...]
) -> None:
    """Rows kept and how often, medians and vocabularies of the training split, rows of each split; the same bytes in any way."""
    right, seen = wanted(db, rows, dedup, split), dict[str, Manifest]()
    event(right.refused or "built")
    for number, way in enumerate(way for way in ways if told_apart(rows, way.kind)):
        with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
            folder = Path(name)
            patch.setattr(spill, "num_bits", lambda *_, bits=way.bits: bits)
            cfg = config(to_source(rows, way, folder), way, folder, dedup, split, key)
            if right.refused:
                with pytest.raises(DataError, match=right.refused):
                    build(cfg)
                continue
            published, _ = build(cfg)
            if not number:
                check(folder / "dataset", published, right)
            seen[f"{number}: {way}"] = content(published)
    assert all(manifest == next(iter(seen.values())) for manifest in seen.values()), list(seen)


def check(dataset: Path, published: Manifest, right: Wanted) -> None:
    """Asserts that a dataset is what it should be."""
    spec = features.loads((dataset / published.features).read_text())
    assert {f.name: f.fill for f in spec.numeric} == right.medians
    assert {f.name: f.vocabulary for f in spec.categorical} == {name: tuple(words) for name, words in right.words.items()}
    found = [stored_rows(dataset, published, name, spec) for name in SPLITS]
    assert found == right.kept
    counts = [Counter(row[j - len(CATEGORICAL)] for row in found[0].elements()) for j in range(len(CATEGORICAL))]
    assert [{w: n for w, n in c.items() if w not in (None, UNKNOWN)} for c in counts] == list(right.words.values())
    told = json.loads((dataset / published.report).read_text())["rows"]
    kept = sum(rows.total() for rows in found)
    wanted_counts = {"read": right.read, "without_label": right.without_label, "duplicates": right.duplicates, "kept": kept}
    assert {name: told[name] for name in wanted_counts} == wanted_counts
