"""Loose values to declared types: a value is of its type or reported, whatever stands beside it."""

import datetime as dt
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import Column
from mlprod.errors import DataError
from mlprod.etl.schema import Loose, cast, cast_chunk, cast_strictly, raw_column, shown

UTC = dt.UTC
AT = dt.datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
BAD = object()  # no value of the type
VALUES = {
    "int64": [
        (5, 5), ("5", 5), ("-5", -5), (None, None), (math.nan, None), (True, 1), (Decimal(7), 7), (2.0, 2),
        ((1 << 63) - 1, (1 << 63) - 1), (str(-(1 << 63)), -(1 << 63)),
        (1 << 63, BAD), ("9223372036854775808", BAD), ("5.0", BAD), ("x", BAD), ("", BAD), (math.inf, BAD), ("1e5", BAD),
    ],
    "float64": [
        (0.5, 0.5), ("0.1", 0.1), ("1e-5", 1e-5), (3, 3.0), (Decimal("1.5"), 1.5), (None, None), (math.nan, None), ("nan", None),
        (-0.0, 0.0), ("-0", 0.0), ("inf", BAD), (math.inf, BAD), ("1e400", BAD), ("1,5", BAD), ("x", BAD), ("", BAD),
    ],
    "string": [("a", "a"), ("ü€", "ü€"), ("", ""), (" a ", " a "), (None, None), (math.nan, None), (5, "5"), ("a\0", BAD)],
    "bool": [
        (True, True), (0, False), ("TRUE", True), ("f", False), ("yes", True), ("no", False), ("1", True), (None, None),
        ("2", BAD), ("", BAD), ("x", BAD), (2, BAD),
    ],
    "timestamp": [
        (AT, AT), ("2024-02-29T12:30", AT), ("2024-02-29 12:30:00Z", AT), ("2024-02-29T14:30:00+02:00", AT),
        (AT.astimezone(dt.timezone(dt.timedelta(hours=-7))), AT), (AT.replace(tzinfo=None), AT), (None, None),
        (dt.date(2024, 2, 29), AT.replace(hour=0, minute=0)), ("2024-02-30", BAD), ("noon", BAD), ("", BAD),
    ],
}  # fmt: skip
CASES = [(name, value, wanted) for name, pairs in VALUES.items() for value, wanted in pairs]


def cast_one(value, type_name, *beside):
    """Returns what becomes of the first of some values: itself in the type, or BAD."""
    array, bad = cast([value, *beside], type_name)
    return BAD if 0 in bad else array[0].as_py()


@pytest.mark.parametrize("type_name, value, wanted", CASES, ids=[f"{t}-{v!r}" for t, v, _ in CASES])
def test_values(type_name, value, wanted):
    """Alone, beside a missing value, and beside a bad one, which sends the column down the slow path."""
    for beside in ((), (None,), (BAD,)):
        found = cast_one(value, type_name, *beside)
        assert found == wanted
        assert wanted is BAD or type(found) is type(wanted)
        assert (
            math.copysign(1, found) == math.copysign(1, wanted) if type_name == "float64" and wanted not in (None, BAD) else True
        )


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(VALUES)), st.data())
def test_a_value_does_not_depend_on_its_neighbours(type_name, data):
    """Or the result would depend on where a chunk is cut."""
    pairs = data.draw(st.lists(st.sampled_from(VALUES[type_name]), max_size=6))
    array, bad = cast([value for value, _ in pairs], type_name)
    assert [BAD if i in bad else v for i, v in enumerate(array.to_pylist())] == [wanted for _, wanted in pairs]


BUGS = [
    ("int64", 1.5, "a fraction is cut off in silence"),
    ("int64", Decimal("2.5"), "a fraction is cut off in silence"),
    ("timestamp", 5, "an integer becomes microseconds since 1970 in silence"),
    ("int64", "0x1F", "Arrow reads hexadecimal, Python does not"),
]


@pytest.mark.parametrize("type_name, value, why", BUGS, ids=[f"{t}-{v!r}" for t, v, _ in BUGS])
def test_nothing_is_cast_in_silence(type_name, value, why):
    """A value that is not of the type is reported, on the fast path as on the slow one."""
    assert [cast_one(value, type_name), cast_one(value, type_name, None), cast_one(value, type_name, BAD)] == [BAD] * 3, why


def test_bytes_are_one_text_whatever_stands_beside_them():
    assert cast_one(b"ab", "string") == cast_one(b"ab", "string", 1)


def test_a_chunk_reports_each_bad_row_once_and_hides_what_is_sensitive():
    columns = (Column(name="n", type="int64"), Column(name="s", type="float64", sensitive=True))
    chunk = Loose(
        {"n": ["1", "x", "3", None], "s": ["a", "b", "1", None]}, 4, lambda i: f"row {i}", {3: "has 1 fields, the header 2"}
    )
    table, reasons = cast_chunk(chunk, columns)
    assert table.to_pydict() == {"n": [1, None, 3, None], "s": [None, None, 1.0, None]}
    assert reasons == {
        0: "column 's': a value (hidden: the column is sensitive) is not float64",
        1: "column 'n': 'x' is not int64",
        3: "has 1 fields, the header 2",
    }
    with pytest.raises(DataError, match=r"^row 0: column 's': a value \(hidden.*declare another type in config\.etl\.columns$"):
        cast_strictly(chunk, columns)
    assert shown(columns[1], "secret") == "a value (hidden: the column is sensitive)"


@pytest.mark.parametrize(
    "array, values",
    [
        (pa.array([1, None, -3]), np.array([1, 0, -3])),
        (pa.array([0.5, None]), np.array([0.5, 0.0])),
        (pa.array([True, None, False]), np.array([True, False, False])),
        (pa.array(["", None, "üx"]), np.array(["", "", "üx"])),
        (pa.array([], pa.string()), np.array([], np.str_)),
        (pa.chunked_array([["a"], [None, "b"]]).slice(1), np.array(["", "b"])),
    ],
    ids=["int", "float", "bool", "string", "empty", "sliced"],
)
def test_raw_columns_are_values_and_validity(array, values):
    raw = raw_column(array)
    assert raw.values.dtype.kind == values.dtype.kind
    whole = raw.values if raw.codes is None else np.where(raw.valid, raw.values[raw.codes], "")
    assert whole.tolist() == values.tolist()
    assert raw.valid.tolist() == [v is not None for v in array.to_pylist()]
