"""The label: what the rows say is to be learned, as a raw column and as the number that is stored; of texts, themselves.

Promise: a row's label follows from the row alone, but for the numbers of classes, which are those of all rows' values, sorted.
"""

from functools import singledispatch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import AnyLabel, Classes, Column, Equals, Label, NextToken, Number
from mlprod.errors import DataError
from mlprod.etl.schema import FLOAT32_MAX, beyond_float32, combined
from mlprod.etl.settle import LABEL
from mlprod.features import Target
from mlprod.made import as_text

MOST_CLASSES = 1000  # which a head of a model and a table for people can bear


@singledispatch
def label_type(label: AnyLabel) -> str:
    """Returns the type of the label's column."""
    raise AssertionError(f"{type(label).__name__} is no label")


@label_type.register
def _(label: Label | Number) -> str:
    return "float64"


@label_type.register
def _(label: Equals | Classes) -> str:
    return label.type


@label_type.register
def _(label: NextToken) -> str:
    return "string"


def label_column(label: AnyLabel) -> Column:
    """Returns the raw label as a column of the source."""
    return Column(name=label.column, type=label_type(label), role="label")


def spilled_as(label: AnyLabel) -> str:
    """Returns the column of spilled rows that holds the raw label: of texts what is said of them, for they are written once."""
    return LABEL if isinstance(label, NextToken) else label.column


@singledispatch
def said(label: AnyLabel, values: pa.ChunkedArray) -> pa.Array:
    """Returns what a label says of the values of its column, of which none is null: float32[B], of classes and texts their text.

    Raises:
        DataError: a number beyond float32.
    """
    raise AssertionError(f"{type(label).__name__} is no label")


@said.register
def _(label: Label, values: pa.ChunkedArray) -> pa.Array:
    return pc.cast(pc.greater(values, label.above), pa.float32())


@said.register
def _(label: Equals, values: pa.ChunkedArray) -> pa.Array:
    return pc.cast(pc.equal(_text(values), label.value), pa.float32())


@said.register
def _(label: Number, values: pa.ChunkedArray) -> pa.Array:
    if beyond_float32(values).any():
        raise DataError(f"column {label.column!r} has a value beyond {FLOAT32_MAX:.3g}, which float32 cannot hold; scale it")
    return pc.cast(values, pa.float32(), safe=False)


@said.register
def _(label: Classes | NextToken, values: pa.ChunkedArray) -> pa.Array:
    return _text(values)


def _text(values: pa.ChunkedArray) -> pa.Array:
    array = combined(values)
    return array if pa.types.is_string(array.type) else pa.array(as_text(array.to_numpy(zero_copy_only=False)), pa.string())


@singledispatch
def described(label: AnyLabel) -> str:
    """Returns a label in words."""
    raise AssertionError(f"{type(label).__name__} is no label")


@described.register
def _(label: Label) -> str:
    return f"{label.column} > {label.above:g}"


@described.register
def _(label: Equals) -> str:
    return f"{label.column} = {label.value}"


@described.register
def _(label: Number) -> str:
    return label.column


@described.register
def _(label: Classes) -> str:
    return f"which {label.column}"


@described.register
def _(label: NextToken) -> str:
    return f"the next token of {label.column}"


def stored_labels(target: Target, said: pa.ChunkedArray) -> np.ndarray:
    """Returns float32[B]: labels as they are stored, of classes their numbers."""
    if target.task != "classes":
        return np.asarray(said, np.float32)
    numbers = pc.index_in(combined(said), pa.array(target.classes, pa.string()))
    return np.asarray(numbers).astype(np.float32)


def check_labels(label: AnyLabel, target: Target) -> None:
    """Raises DataError where the training rows have nothing to tell apart, or too many classes."""
    if target.task == "classes":
        there = sum(count > 0 for count in target.counts)
        if there < 2 or len(target.classes) > MOST_CLASSES:
            raise DataError(
                f"config.etl.label: the training rows have {there} of {len(target.classes)} classes of {label.column!r}; there "
                f"must be 2 to {MOST_CLASSES}; Number() learns a value itself"
            )
    elif not target.std:
        way = "choose another column" if target.task == "regression" else "choose a threshold or value that tells rows apart"
        raise DataError(f"every training row has label {target.mean:g}: config.etl.label says {described(label)}; {way}")
