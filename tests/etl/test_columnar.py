"""Parquet files and JSON lines: the same dataset as from CSV, and wrong values told with their file and row."""

import dataclasses
import datetime as dt
import decimal
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import Column, Config, JsonLinesSource, ParquetSource, numeric
from mlprod.errors import DataError
from mlprod.etl import columnar, sources
from mlprod.etl.run import build
from mlprod.etl.schema import ARROW, cast_strictly, parse
from mlprod.manifest import Manifest
from tests.conftest import MakeConfig
from tests.plain import ID, csv_rows, small_config, table_text


def content(published: Manifest) -> tuple[str, list[str]]:
    """What a dataset is: its identity and its files' bytes."""
    return published.dataset_id, [shard.sha256 for shards in published.splits.values() for shard in shards]


def objects(csv: Path) -> list[dict]:
    """The smoke rows as Python values."""
    rows = csv_rows(csv)
    kinds = {name: float if name == "x" else str if name == "color" else int for name in rows[0]}
    return [{name: kinds[name](text) if text else None for name, text in row.items()} for row in rows]


def from_source(cfg: Config, folder: Path, source: object, chunk_rows: int) -> Manifest:
    """The dataset of the config's rows from another source."""
    etl = dataclasses.replace(cfg.etl, source=source, chunk_rows=chunk_rows)
    return build(dataclasses.replace(cfg, dataset=str(folder), etl=etl))[0]


@pytest.mark.parametrize("chunk_rows", [7, 1000])
def test_the_same_rows_are_the_same_dataset(
    chunk_rows: int, csv: Path, make_config: MakeConfig, published: Manifest, tmp_path: Path
) -> None:
    """From several Parquet files of several row groups, and from JSON lines: the same bytes as from one CSV file."""
    rows = objects(csv)
    for i, part in enumerate((rows[1000:], rows[:1000])):
        table = pa.Table.from_pylist(part)
        table = table.set_column(table.column_names.index("color"), "color", table["color"].dictionary_encode())
        pq.write_table(table, tmp_path / f"rows-{i}.parquet", row_group_size=300)
        lines = [json.dumps({k: v for k, v in row.items() if v is not None or k == "x"}) for row in part]
        (tmp_path / f"rows-{i}.jsonl").write_text("\n".join(lines) + "\n" * i)
    for kind, suffix in ((ParquetSource, "parquet"), (JsonLinesSource, "jsonl")):
        made = from_source(make_config(), tmp_path / suffix, kind(path=str(tmp_path / f"rows-*.{suffix}")), chunk_rows)
        assert content(made) == content(published)


def read(source: object, column: Column, chunk_rows: int = 2) -> list:
    """All values of a column, typed."""
    found = []
    for part in sources.parts(source, [column.name], chunk_rows):
        for chunk in sources.read(source, part, [column], chunk_rows):
            table = chunk if isinstance(chunk, pa.Table) else cast_strictly(chunk, [column])
            assert table.schema == pa.schema([(column.name, ARROW[column.type])])
            found += table[column.name].to_pylist()
    return found


NOON = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
VALUES = {
    "int64": [
        pa.array([1, None, 3], pa.int8()), pa.array([1, None, 3], pa.uint64()), pa.array([1.0, None, 3.0]),
        pa.array([decimal.Decimal(1), None, decimal.Decimal("3.0")]), pa.array(["1", None, " 3"]),
    ],
    "float64": [
        pa.array([1.0, None, 3.0], pa.float32()), pa.array([1.0, float("nan"), 3.0]), pa.array([1, None, 3]),
        pa.array([decimal.Decimal("1.00"), None, decimal.Decimal(3)]), pa.array(np.array([1, 2, 3], np.float16)).filter(
            pa.array([True, False, True])
        ).take(pa.array([0, None, 1])),
    ],
    "string": [
        pa.array(["1", None, "3"]).dictionary_encode(), pa.array(["1", None, "3"], pa.large_string()), pa.array([1, None, 3]),
        pa.array(["1", None, "3"], pa.string_view()),
    ],
    "bool": [pa.array([True, None, False]), pa.array([1, None, 0]), pa.array(["yes", None, "F"])],
    "timestamp": [
        pa.array([NOON, None, NOON], pa.timestamp("ns", "Europe/Paris")), pa.array([NOON, None, NOON], pa.timestamp("s")),
        pa.array(["2024-01-01T12:00:00", None, "2024-01-01 13:00:00+01:00"]),
    ],
}  # fmt: skip
WANTED = {"int64": [1, None, 3], "float64": [1.0, None, 3.0], "string": ["1", None, "3"], "bool": [True, None, False]}


@pytest.mark.parametrize("type_name", VALUES)
def test_parquet_values_of_any_type_are_of_the_declared_one(type_name: str, tmp_path: Path) -> None:
    """Where they are exactly: decimals, unsigned and small numbers, zones, dictionaries, text."""
    for i, array in enumerate(VALUES[type_name]):
        pq.write_table(pa.table({"a": array, "other": array}), tmp_path / f"{i}.parquet")
        found = read(ParquetSource(path=str(tmp_path / f"{i}.parquet")), Column(name="a", type=type_name))
        assert found == WANTED.get(type_name, [NOON, None, NOON]), array.type
    pq.write_table(pa.table({"a": pa.nulls(3)}), tmp_path / "null.parquet")
    assert read(ParquetSource(path=str(tmp_path / "null.parquet")), Column(name="a", type=type_name)) == [None] * 3


@pytest.mark.parametrize(
    "array, type_name, told",
    [
        (pa.array([1, 2, 1 << 63], pa.uint64()), "int64", r"\.parquet row 3: column 'a': 9223372036854775808 is not int64"),
        (pa.array([1.0, 2.0, 2.5]), "int64", r"row 3: column 'a': 2.5 is not int64"),
        (pa.array([1.0, 2.0, float("inf")]), "float64", r"row 3: column 'a': inf is not float64"),
        (pa.array(["a", "b", "c\0"]), "string", r"row 3: column 'a'.*is not string"),
        (pa.array([b"a", b"b", b"c"]), "string", r"row 1: column 'a': b'a' is not string"),
        (pa.array([1, 0, 2]), "bool", r"row 3: column 'a': 2 is not bool"),
        (pa.array(["2024-01-01", None, "soon"]), "timestamp", r"row 3: column 'a': 'soon' is not timestamp"),
    ],
)
def test_a_parquet_value_that_is_not_is_told_with_its_row(array: pa.Array, type_name: str, told: str, tmp_path: Path) -> None:
    """Counted over the file's row groups."""
    pq.write_table(pa.table({"a": array}), tmp_path / "rows.parquet", row_group_size=2)
    with pytest.raises(DataError, match=told):
        read(ParquetSource(path=str(tmp_path / "rows.parquet")), Column(name="a", type=type_name))


@pytest.mark.parametrize(
    "line, told",
    [
        ("{", r"\.jsonl line 4: is no JSON \("), ("[1]", "line 4: is no JSON object"),
        ('{"a": [1]}', r"line 4: column 'a': \[1\] is not float64"),
        ('{"a": {"b": 1}}', r"line 4: column 'a': \{'b': 1\} is not float64"),
        ('{"a": "x"}', "line 4: column 'a': 'x' is not float64"), ('{"a": 1e999}', "line 4: column 'a': inf is not float64"),
        ("[" * 100_000, "line 4: is no JSON"), ("\udcff", "line 4: is not UTF-8 text"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk_rows", [1, 100])
def test_a_json_line_that_is_none_is_told_with_its_line(line: str, told: str, chunk_rows: int, tmp_path: Path) -> None:
    """Blank lines count as lines and are no rows; a field that is not there is missing."""
    path = tmp_path / "rows.jsonl"
    good = '\ufeff{"a": 1, "b": {}}\r\n\n{"b": 2}\n'
    path.write_bytes(f"{good}{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=told):
        read(JsonLinesSource(path=str(path)), numeric("a"), chunk_rows)
    path.write_bytes(good.encode())
    assert read(JsonLinesSource(path=str(path)), numeric("a"), chunk_rows) == [1.0, None]


@pytest.mark.parametrize("kind", [ParquetSource, JsonLinesSource])
def test_files_that_are_none(kind: type, tmp_path: Path) -> None:
    """Not there, of another kind, without the column: one line."""
    (tmp_path / "text.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"color": ["red"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="there is no"):
        read(kind(path=str(tmp_path / "none")), numeric("a"))
    with pytest.raises(DataError, match="no file fits"):
        read(kind(path=str(tmp_path / "*.none")), numeric("a"))
    with pytest.raises(DataError, match=r"text\.parquet( cannot be read as Parquet| line 1: is no JSON)"):
        read(kind(path=str(tmp_path / "text.parquet")), numeric("a"))
    if kind is ParquetSource:
        with pytest.raises(DataError, match=r"rows\.parquet has no column 'colour'; did you mean 'color'\?"):
            read(kind(path=str(tmp_path / "rows.parquet")), numeric("colour"))


DIGITS = st.integers(-(10**38) + 1, 10**38 - 1) | st.integers(-(10**6), 10**6)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.none() | DIGITS, max_size=20), st.integers(0, 37))
def test_a_decimal_is_the_nearest_float(digits: list[int | None], scale: int) -> None:
    """As from text, at once or value by value: a cast of Arrow's own rounds twice."""
    exact = decimal.Context(prec=40)
    values = [None if d is None else decimal.Decimal(d).scaleb(-scale, exact) for d in digits]
    made = columnar.as_declared(pa.array(values, pa.decimal128(38, scale)), "float64")
    assert made is not None
    assert made.to_pylist() == [None if v is None else parse(str(v), "float64") + 0.0 for v in values]


@pytest.mark.parametrize("chunk_rows", [1, 7, 10_000])
@pytest.mark.parametrize("type_name", ["float64", "string"])
def test_decimals_are_the_same_dataset_from_text_and_from_parquet(type_name: str, chunk_rows: int, tmp_path: Path) -> None:
    """As numbers, and as text with all their digits, which is how an exact one is kept."""
    prices = [None if i % 5 == 0 else decimal.Decimal(i * 10**20 + i).scaleb(-22, decimal.Context(prec=40)) for i in range(40)]
    text = table_text("id,x,price,y", *((i, i, price, i % 2) for i, price in enumerate(prices)))
    price = Column(name="price", type=type_name, role="group" if type_name == "string" else "feature")
    cfg = small_config(tmp_path, text, (ID, numeric("x"), price))
    table = pa.table({"id": range(40), "x": range(40), "price": pa.array(prices, pa.decimal128(38, 22)), "y": [0, 1] * 20})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=9)
    made = from_source(cfg, tmp_path / "parquet", ParquetSource(path=str(tmp_path / "rows.parquet")), chunk_rows)
    assert content(made) == content(build(cfg)[0])
