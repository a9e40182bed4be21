"""The one transform: equal to a plain statement of it in Python, whole or row by row."""

import bisect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.errors import DataError
from mlprod.features import FIRST, MISSING, UNKNOWN, Feature, FeatureSpec, apply, dumps, loads
from mlprod.made import RawColumn, as_text

INTS = st.integers(-(1 << 63), (1 << 63) - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)
DTYPES = {"x": np.float64, "n": np.int64, "b": np.bool_, "s": np.str_, "i": np.int64}
ROW = st.fixed_dictionaries({
    "x": st.none() | FLOATS, "n": st.none() | INTS, "b": st.none() | st.booleans(),
    "s": st.none() | TEXT, "i": st.none() | st.integers(-12, 12),
})  # fmt: skip


def raw_columns(rows: list[dict]) -> dict[str, RawColumn]:
    """Returns the rows as `apply` takes them: a null is a zero and not valid."""
    return {
        name: RawColumn(
            values=np.array([dtype() if row[name] is None else row[name] for row in rows], dtype),
            valid=np.array([row[name] is not None for row in rows]),
        )
        for name, dtype in DTYPES.items()
    }


def make_spec(words: list[str], fill: float = -1.5) -> FeatureSpec:
    numbers = sorted({str(i) for i in range(-6, 9)})
    return FeatureSpec(
        features=(
            Feature(name="s", kind="categorical", vocabulary=tuple(sorted(set(words)))),
            Feature(name="x", kind="numeric", fill=fill),
            Feature(name="i", kind="categorical", vocabulary=tuple(numbers)),
            Feature(name="n", kind="numeric", fill=7.0),
            Feature(name="b", kind="numeric", fill=1.0),
        )
    )


def plain_id(value, vocabulary: tuple[str, ...]) -> int:
    if value is None:
        return MISSING
    at = bisect.bisect_left(vocabulary, str(value))
    return at + FIRST if vocabulary[at : at + 1] == (str(value),) else UNKNOWN


@settings(deadline=None, max_examples=80)
@given(st.lists(ROW, min_size=1, max_size=8), st.lists(TEXT, max_size=6), FLOATS)
def test_equals_the_plain_statement_and_itself_row_by_row(rows, words, fill):
    """Bit for bit: missing numbers become the fill value, values outside of the vocabulary the unknown slot."""
    spec = make_spec([*words, *(row["s"] for row in rows[::2] if row["s"] is not None)], fill)
    whole = apply(spec, raw_columns(rows))
    assert {name: (a.dtype, a.shape) for name, a in whole.items()} == {
        "numeric": (np.float32, (len(rows), 3)), "s": (np.int32, (len(rows),)), "i": (np.int32, (len(rows),))
    }  # fmt: skip
    for i, row in enumerate(rows):
        numbers = [
            fill if row["x"] is None else row["x"],
            7 if row["n"] is None else row["n"],
            1 if row["b"] is None else row["b"],
        ]
        assert whole["numeric"][i].tobytes() == np.array([float(v) for v in numbers], np.float32).tobytes()
        for feature in spec.categorical:
            assert whole[feature.name][i] == plain_id(row[feature.name], feature.vocabulary)
        alone = apply(spec, raw_columns([row]))
        assert all(alone[name].tobytes() == whole[name][i : i + 1].tobytes() for name in whole)


def test_ids_are_unknown_missing_then_the_sorted_vocabulary():
    feature = Feature(name="s", kind="categorical", vocabulary=("", "b", "é"))
    raw = RawColumn(values=np.array(["b", "", "é", "zz", "a", ""]), valid=np.array([True] * 5 + [False]))
    assert apply(FeatureSpec(features=(feature,)), {"s": raw})["s"].tolist() == [3, 2, 4, 0, 0, 1]
    assert feature.num_ids == 5, "the largest id is a row of the embedding table"


def test_an_empty_vocabulary_knows_no_value():
    raw = RawColumn(values=np.array([3, 0]), valid=np.array([True, False]))
    found = apply(FeatureSpec(features=(Feature(name="i", kind="categorical"),)), {"i": raw})
    assert found["i"].tolist() == [0, 1]
    assert found["numeric"].shape == (2, 0)


def test_integers_and_bools_are_decimal_text():
    assert as_text(np.array([-(1 << 63), -1, 0, (1 << 63) - 1])).tolist() == [
        "-9223372036854775808",
        "-1",
        "0",
        "9223372036854775807",
    ]
    assert as_text(np.array([True, False])).tolist() == ["1", "0"]


def test_a_missing_column_is_refused():
    with pytest.raises(KeyError, match="x"):
        apply(
            FeatureSpec(features=(Feature(name="x", kind="numeric"),)),
            {"s": RawColumn(values=np.zeros(1), valid=np.ones(1, bool))},
        )


@settings(deadline=None)
@given(st.lists(TEXT, max_size=5), FLOATS)
def test_written_and_read_it_is_the_same(words, fill):
    """And its text is canonical: the same for the same transform."""
    spec = make_spec(words, fill)
    assert loads(dumps(spec)) == spec
    assert dumps(loads(dumps(spec))) == dumps(spec)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"features": [{"name": "x"}]}', '{"features": [{"vocabulary": [], "nam": 1}]}']
)
def test_what_is_no_transform_is_refused(text):
    with pytest.raises(DataError, match="not a fitted transform"):
        loads(text)
