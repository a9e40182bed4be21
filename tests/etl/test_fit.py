"""What is fitted equals a plain statement of it, however the rows are cut into chunks."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import Column, categorical, numeric
from mlprod.errors import DataError
from mlprod.etl import fit as fit_module
from mlprod.etl.fit import fit, lower_medians, sortable, unsortable, vocabularies
from mlprod.features import Target

INTS = st.integers(-(1 << 63), (1 << 63) - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(lambda x: x + 0.0)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)


def with_nulls(values):
    """Lists with ties, nulls and at least one value."""
    few = st.lists(values, min_size=1, max_size=4).flatmap(lambda pool: st.lists(st.none() | st.sampled_from(pool), max_size=30))
    return st.tuples(few | st.lists(st.none() | values, max_size=30), values).map(lambda pair: [*pair[0], pair[1]])


def cut(column: pa.Array, sizes: list[int]):
    """Returns what gives a function the column `c` in tables of the given sizes, and the rest."""
    bounds = np.minimum(np.cumsum([0, *sizes]), len(column)).tolist() + [len(column)]
    pieces = [pa.table({"c": column.slice(a, b - a)}) for a, b in pairwise(bounds)]
    return lambda act, most=None: map(act, pieces[:most])


@settings(deadline=None)
@given(st.lists(FLOATS | st.just(-0.0), max_size=20), st.lists(INTS, max_size=20))
def test_sortable_words_keep_the_order(floats, ints):
    for values, dtype in ((sorted(floats), np.float64), (sorted(ints), np.int64)):
        words = sortable(np.array(values, dtype)).tolist()
        assert words == sorted(words) or -0.0 in values
        assert [unsortable(w, np.dtype(dtype)) for w in words] == values


@settings(deadline=None, max_examples=80)
@given(st.data(), st.lists(st.integers(0, 9), max_size=4))
def test_a_median_is_the_lower_middle_element(data, sizes):
    """Of any mixture of nulls, ties, signs and exponents; as sorted() has it, and of the column's type."""
    kind, values, arrow = data.draw(
        st.sampled_from([("int64", INTS, pa.int64()), ("float64", FLOATS, pa.float64()), ("bool", st.booleans(), pa.bool_())])
    )
    column = data.draw(with_nulls(values))
    there = sorted(v for v in column if v is not None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "TOGETHER", data.draw(st.sampled_from([0, 1, 3, 1000])))
        patch.setattr(fit_module, "FEW", data.draw(st.sampled_from([0, 2, 1000])))
        patch.setattr(fit_module, "WIDEST", data.draw(st.sampled_from([-1.0, 0.05, 1.0])))
        found = lower_medians(cut(pa.array(column, arrow), sizes), [numeric("c", type=kind)])["c"]
    assert found == there[(len(there) - 1) // 2]
    assert isinstance(found, float if kind == "float64" else int)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(1, 4), st.lists(st.integers(0, 9), max_size=4))
def test_a_vocabulary_is_the_values_that_are_not_too_rare(data, min_count, sizes):
    """As a plain Counter has it, in the order of sorted()."""
    kind, values, arrow = data.draw(
        st.sampled_from(
            [
                ("int64", INTS | st.integers(-12, 12), pa.int64()),
                ("string", TEXT, pa.string()),
                ("bool", st.booleans(), pa.bool_()),
            ]
        )
    )
    column = data.draw(with_nulls(values))
    counted = Counter(str(int(v)) if kind == "bool" else str(v) for v in column if v is not None)
    found = vocabularies(cut(pa.array(column, arrow), sizes), [categorical("c", type=kind, min_count=min_count)])["c"]
    assert found == tuple(sorted(v for v, n in counted.items() if n >= min_count))


def test_several_columns_are_fitted_at_once_in_the_declared_order():
    table = pa.table({"x": [3.0, None, 1.0, 2.0], "n": [5, -5, None, None], "s": ["b", "b", None, "a"]})
    columns = [
        categorical("s", min_count=2),
        numeric("x"),
        Column(name="key", type="int64", role="input"),
        numeric("n", type="int64"),
    ]
    spec = fit(lambda act, most=None: map(act, [table.slice(0, 1), table.slice(1)][:most]), columns, Target())
    assert [(f.name, f.kind, f.fill, f.vocabulary) for f in spec.features] == [
        ("s", "categorical", 0.0, ("b",)), ("x", "numeric", 2.0, ()), ("n", "numeric", -5.0, ())
    ]  # fmt: skip


@pytest.mark.parametrize("column", [numeric("c"), categorical("c")], ids=["numeric", "categorical"])
def test_a_feature_without_any_value_is_refused_by_name(column):
    arrow = pa.float64() if column.kind == "numeric" else pa.string()
    with pytest.raises(DataError, match="column 'c' has no value in the training split"):
        fit(cut(pa.array([None, None], arrow), [1]), [column], Target())
