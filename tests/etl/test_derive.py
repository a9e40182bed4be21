"""The user's hook: what it sees, what it may return, and what it is refused for."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlprod.config import Column, categorical, numeric
from mlprod.errors import DataError
from mlprod.etl.derive import check_row_wise, derive
from mlprod.etl.run import build
from tests.plain import ID, numbered, small_config, table_text

INPUTS = (ID, numeric("x"), numeric("n", type="int64"), categorical("s"), Column(name="b", type="bool", role="input"))
ROWS = pa.table(
    {
        "id": [1, 2, 3],
        "x": [0.5, None, -1.0],
        "n": [2, None, 4],
        "s": ["a", None, ""],
        "b": [True, None, False],
        "y": [1.0, 0.0, 1.0],
    }
)


def derived(hook, *columns: Column, rows: pa.Table = ROWS, tmp_path=None):
    """Returns the columns that a hook makes of `rows`."""
    etl = small_config(tmp_path, columns=(*INPUTS, *columns), transform=hook).etl
    return derive(etl, rows).select([c.name for c in columns])


def new(name: str, type: str = "float64") -> Column:
    return Column(name=name, type=type, derived=True)


def test_the_hook_sees_the_extracted_columns_and_no_label(tmp_path):
    """In the order of the config, integers with nulls still integers."""
    seen = {}

    def look(rows):
        seen.update({name: str(rows[name].dtype) for name in rows.columns})
        return pd.DataFrame({"d": rows["n"] * rows["x"]})

    assert derived(look, new("d"), tmp_path=tmp_path)["d"].to_pylist() == [1.0, None, -4.0]
    assert seen == {"id": "Int64", "x": "Float64", "n": "Int64", "s": "string", "b": "boolean"}


def test_what_the_hook_makes_is_of_the_declared_type(tmp_path):
    """Nulls stay nulls; the frame's index, its other columns and what it does to its input do not count."""

    def make(rows):
        rows["x"] = 7.0
        return pd.DataFrame(
            {"other": 1, "big": rows["n"] > 2, "twice": rows["n"] * 2, "text": rows["s"] + "!"}, index=rows.index
        ).set_index("other")

    made = derived(make, new("twice", "int64"), new("big", "bool"), new("text", "string"), tmp_path=tmp_path)
    assert made.to_pydict() == {"twice": [4, None, 8], "big": [False, None, True], "text": ["a!", None, "!"]}


def boom(rows):
    return rows["nothing"]


@pytest.mark.parametrize(
    "hook, column, message",
    [
        (boom, new("d"), r"config\.etl\.transform=boom failed: KeyError: 'nothing'"),
        (lambda rows: rows[["x"]].iloc[1:], new("x2"), r"returned 2 rows for 3 rows"),
        (lambda rows: rows["x"], new("x2"), r"returned Series for 3 rows"),
        (
            lambda rows: pd.DataFrame({"dd": rows["x"]}),
            new("d"),
            r"what config\.etl\.transform=<lambda> returned has no column 'd'; did you mean 'dd'\?",
        ),
        (
            lambda rows: pd.DataFrame({"d": rows["x"]}),
            new("d", "int64"),
            r"config\.etl\.transform: .*truncated.*declare the derived column's type",
        ),
        (lambda rows: pd.DataFrame({"d": rows["s"]}), new("d"), r"config\.etl\.transform: .*declare the derived column's type"),
    ],
    ids=["fails", "rows", "frame", "column", "fraction", "text"],
)
def test_a_hook_that_returns_something_else_is_refused(hook, column, message, tmp_path):
    with pytest.raises(DataError, match=message):
        derived(hook, column, tmp_path=tmp_path)


@pytest.mark.parametrize(
    "hook",
    [
        lambda rows: pd.DataFrame({"d": rows["x"] - rows["x"].mean()}),
        lambda rows: pd.DataFrame({"d": rows["x"].shift(1)}),
        lambda rows: pd.DataFrame({"d": rows["x"].rank()}),
        lambda rows: pd.DataFrame({"d": rows.index.to_series().astype(float)}),
    ],
    ids=["mean", "shift", "rank", "index"],
)
def test_a_hook_that_looks_beside_its_row_is_refused(hook, tmp_path):
    cfg = small_config(tmp_path, numbered(40), (ID, numeric("x"), new("d")), transform=hook)
    with pytest.raises(DataError, match=r"is not row-wise: column 'd' depends on the rows beside a row"):
        build(cfg)


@pytest.mark.parametrize("chunk_rows", [1, 10, 1000])
def test_it_is_refused_wherever_the_input_is_cut(chunk_rows, tmp_path):
    """The sample is gathered over chunks: of one row each, and past one in which no row has a label."""

    def centred(rows):
        return pd.DataFrame({"d": rows["x"] - rows["x"].mean()})

    text = table_text("id,x,y", *((i, i * 0.5, None if i < 10 else i % 2) for i in range(40)))
    with pytest.raises(DataError, match="not row-wise"):
        build(small_config(tmp_path, text, (ID, numeric("x"), new("d")), transform=centred, chunk_rows=chunk_rows))


def test_a_row_wise_hook_passes(tmp_path):
    etl = small_config(tmp_path, columns=(*INPUTS, new("d")), transform=lambda rows: pd.DataFrame({"d": rows["x"] * 2})).etl
    check_row_wise(etl, ROWS)
    check_row_wise(etl, ROWS.slice(0, 1))


def test_a_derived_infinity_is_refused(tmp_path):
    def ratio(rows):
        return pd.DataFrame({"d": rows["x"] / (rows["id"] % 3)})

    with pytest.raises(DataError, match="'d'"):
        build(small_config(tmp_path, numbered(40), (ID, numeric("x"), new("d")), transform=ratio))


@pytest.mark.parametrize("make", [np.sqrt, lambda x: np.where(x.fillna(-1.0) < 0, np.nan, 1.0)], ids=["Float64", "numpy"])
def test_a_derived_nan_is_missing(make, tmp_path):
    made = derived(lambda rows: pd.DataFrame({"d": make(rows["x"] * 2)}), new("d"), tmp_path=tmp_path)
    assert made["d"].to_pylist() == [1.0, None, None]


@pytest.mark.parametrize(
    "hook, column",
    [
        (lambda rows: pd.DataFrame({"d": rows["x"].to_numpy(float, na_value=0.0)}), new("d", "timestamp")),
        (lambda rows: pd.DataFrame([[1.0, 2.0]] * len(rows), columns=["d", "d"]), new("d")),
    ],
    ids=["timestamp", "twice"],
)
def test_what_arrow_cannot_convert_is_refused(hook, column, tmp_path):
    with pytest.raises(DataError, match=r"config\.etl\.transform"):
        derived(hook, column, tmp_path=tmp_path)
