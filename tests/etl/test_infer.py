"""Types found from the whole input: the narrowest that hold every value, whatever comes first and however it is cut."""

import dataclasses
import datetime as dt
import json
import sqlite3
from contextlib import closing
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import (
    AUTO,
    ByTime,
    Column,
    CsvSource,
    JsonLinesSource,
    Lookup,
    ParquetSource,
    SqlSource,
    categorical,
    numeric,
)
from mlprod.errors import ConfigError, DataError
from mlprod.etl.infer import ANY, CATEGORICAL, NUMERIC, allowed, any_value, first_fitting, holding, unknown
from mlprod.etl.run import build
from mlprod.etl.schema import cast
from mlprod.validation import validate
from tests.plain import ID, small_config, table_text

PLAIN = Column(name="c", type=AUTO, role="input")


def found(values, column: Column = PLAIN) -> str:
    return first_fitting(column, holding(values, allowed(column)), there=any_value(values))


@pytest.mark.parametrize(
    "values, wanted",
    [
        (["1", None, " -7 "], "int64"), (["1", "2.5"], "float64"), (["1e3", "nan"], "float64"), (["1", "2", "t"], "string"),
        (["1", "9223372036854775808"], "float64"), (["t", "no", "TRUE"], "bool"), (["1", "t"], "bool"),
        (["2024-01-01", "2024-01-01T10:00:00+02:00"], "timestamp"), (["2024-01-01", "soon"], "string"), (["1e999"], "string"),
        (["", "x"], "string"), ([None, None], "string"), ([], "string"),
        ([1, 2], "int64"), ([1, 2.0], "float64"), ([2.0, float("nan")], "float64"), ([True, False], "bool"), ([True, 1], "bool"),
        ([Decimal("5"), Decimal("-7")], "int64"), ([Decimal("5.00")], "float64"), ([1 << 70], "float64"), ([1, "a"], "string"),
        ([float("inf")], "string"), ([dt.date(2024, 1, 1), None], "timestamp"),
        ([dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "2024-01-02"], "timestamp"),
    ],
)  # fmt: skip
def test_the_narrowest_type_that_holds_every_value(values, wanted):
    """Of text, of Python objects, and in any order."""
    assert found(values) == found(values[::-1]) == wanted
    assert not cast(values, wanted)[1]  # what is found is what extraction accepts
    if all(v is None or isinstance(v, str) for v in values):
        assert found(pa.array(values, pa.string())) == wanted


def test_a_columns_use_says_which_types_there_are():
    assert [allowed(c) for c in (numeric("c"), Column(name="c", type="int64", role="weight"))] == [NUMERIC, NUMERIC]
    assert [allowed(c) for c in (categorical("c"), PLAIN)] == [CATEGORICAL, ANY]
    assert found(["a"], numeric("c", type=AUTO)) == unknown(numeric("c")) == "float64"  # and extraction tells where "a" stands
    assert found(["1.5"], categorical("c", type=AUTO)) == "string"


TEXTS = st.one_of(
    st.none(), st.integers(-(1 << 70), 1 << 70).map(str), st.floats().map(str), st.booleans().map(str), st.text(max_size=3),
    st.sampled_from(["t", "0", "1", "yes", "NaN", "1.", ".5", "+3", "1e5", "-0"]), st.datetimes().map(str), st.dates().map(str),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXTS.filter(lambda v: v is None or "\0" not in v), max_size=6))
def test_text_is_of_the_types_that_its_values_are_of(values):
    """At once or one by one, as extraction casts them."""
    singly = [name for name in ANY if all(not cast([v], name)[1] for v in values)]
    assert holding(values, ANY) == holding(pa.array(values, pa.string()), ANY) == singly


ROWS = 60
HEADER = "id,x,n,c,flag,t,w,y"
COLUMNS = (
    ID, numeric("x", type=AUTO), numeric("n", type=AUTO), categorical("c", type=AUTO), categorical("flag", type=AUTO),
    Column(name="t", type=AUTO, role="time"), Column(name="w", type=AUTO, role="weight"),
)  # fmt: skip
TYPES = {"x": "float64", "n": "int64", "c": "string", "flag": "bool", "t": "timestamp", "w": "int64"}


def values_of(i: int) -> tuple:
    """A row; what decides the types stands in the last rows."""
    early = i < ROWS - 3
    x = None if i < 20 else i if early else i + 0.5
    return (
        i,
        x,
        None if i % 7 == 0 else i,
        "red" if not early else str(i % 3),
        i % 2 == 0,
        dt.datetime(2024, 1, 1, i % 24),
        i % 4,
        i % 2,
    )


@pytest.fixture(scope="module")
def declared_id(tmp_path_factory) -> str:
    """The dataset_id where the config declares what is to be found."""
    folder = tmp_path_factory.mktemp("declared")
    columns = tuple(dataclasses.replace(c, type=TYPES.get(c.name, c.type)) for c in COLUMNS)
    return build(small_config(folder, table_text(HEADER, *map(values_of, range(ROWS))), columns))[0].dataset_id


@pytest.mark.parametrize("chunk_rows", [1, 7, 10_000])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "sqlite"])
def test_found_types_give_the_dataset_of_declared_ones(kind, chunk_rows, declared_id, tmp_path):
    """Whatever the rows come in, and however they are cut: the types are those of all rows, and are kept with the version."""
    rows = [values_of(i) for i in range(ROWS)]
    names = HEADER.split(",")
    path = tmp_path / f"rows.{kind}"
    source = {"csv": CsvSource, "jsonl": JsonLinesSource, "parquet": ParquetSource}.get(kind)
    if kind == "csv":
        path.write_text(table_text(HEADER, *rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True)), default=str) + "\n" for row in rows))
    elif kind == "parquet":
        columns = {name: pa.array(column) for name, column in zip(names, map(list, zip(*rows, strict=True)), strict=True)}
        pq.write_table(pa.table(columns), path, row_group_size=13)
    else:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(
                "CREATE TABLE rows (id INTEGER, x REAL, n INTEGER, c TEXT, flag BOOLEAN, t TIMESTAMP, w INTEGER, y INTEGER)"
            )
            db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [(*r[:5], str(r[5]), *r[6:]) for r in rows])
    given = source(path=str(path)) if source else SqlSource(url=f"sqlite:///{path}", table="rows")
    published, _ = build(small_config(tmp_path, None, COLUMNS, source=given, chunk_rows=chunk_rows, workers=2))
    assert published.dataset_id == declared_id
    assert published.source["types"] == TYPES
    assert {c.name: c.type for c in published.columns if c.name in TYPES} == TYPES
    assert all(c["type"] == AUTO for c in published.config["columns"] if c["name"] in TYPES)


def test_a_value_that_the_use_does_not_allow_is_told_with_its_line(tmp_path):
    cfg = small_config(tmp_path, table_text("id,x,y", (0, 1, 0), (1, "many", 1)), (ID, numeric("x", type=AUTO)))
    with pytest.raises(DataError, match=r"rows\.csv line 3: column 'x': 'many' is not float64"):
        build(cfg)
    cfg = small_config(tmp_path, table_text("id,x,y", (0, 1, 0), (1, 2, 1)), (ID, numeric("x", type=AUTO)))
    build(cfg)


def test_types_are_declared_where_they_cannot_be_found(tmp_path):
    """What the hook makes, and what a lookup is read by."""
    cfg = small_config(tmp_path, columns=(ID, numeric("x", type=AUTO, derived=True)))
    with pytest.raises(ConfigError, match="'x' is made by the hook; declare its type, one of int64"):
        validate(cfg)
    lookup = Lookup(path="planes.csv", key="k", columns={"x": "x"})
    for columns in (
        (ID, Column(name="k", type=AUTO, role="input"), numeric("x")),
        (ID, categorical("k"), numeric("x", type=AUTO)),
    ):
        with pytest.raises(ConfigError, match="is of a lookup; declare its type"):
            validate(small_config(tmp_path, columns=columns, lookups=(lookup,)))


def test_a_found_type_keeps_the_rules_of_a_declared_one(tmp_path):
    """Found out after the rows were looked at: a split by time needs a time."""
    columns = (ID, numeric("x"), Column(name="t", type=AUTO, role="time"))
    cfg = small_config(
        tmp_path,
        table_text("id,x,t,y", (0, 1, "soon", 0), (1, 2, "late", 1)),
        columns,
        split=ByTime(column="t", eval="2024-01-01"),
    )
    with pytest.raises(ConfigError, match=r"split\.column='t' is string; it must be one of"):
        build(cfg)
