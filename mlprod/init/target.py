"""What a target is: a number, classes, or a yes and no; told from its values where the user does not say."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import AnyLabel, Classes, Equals, Label, Number
from mlprod.errors import DataError
from mlprod.etl.label import MOST_CLASSES
from mlprod.etl.sample import Sample

FEW = 20  # different whole numbers that are taken for classes, where they lie as close as classes do
YES = ("1", "yes", "y", "true", "t", "on", "positive", "pos", "good")


def label_of(sample: Sample, column: str, task: str) -> AnyLabel:
    """Returns the label of a target; `task`: as the user says, or "" to tell from the values.

    Raises:
        DataError: the target cannot be learned as that.
    """
    values, type_name = sample.rows[column].drop_null(), sample.types[column]
    distinct = pc.unique(values)
    if len(distinct) < 2:
        raise DataError(
            f"--target={column} has {len(distinct)} different value(s) in {len(values):,} rows; there is nothing to learn"
        )
    task = task or _task(column, values, distinct, type_name)
    if task == "regression":
        if type_name not in ("int64", "float64"):
            raise DataError(f"--target={column} is {type_name}, not a number; leave --task out, or give --task=classes")
        return Number(column=column)
    if task == "binary":
        return _binary(column, values, distinct, type_name)
    if type_name == "float64":
        raise DataError(f"--target={column} has fractions; they are no classes; give --task=regression")
    if len(distinct) > MOST_CLASSES:
        raise DataError(f"--target={column} has {len(distinct):,} different values; at most {MOST_CLASSES:,} can be classes")
    return Classes(column=column, type=_label_type(type_name))


def _task(column: str, values: pa.ChunkedArray, distinct: pa.Array, type_name: str) -> str:
    """Returns the task that the values suggest."""
    if type_name == "timestamp":
        raise DataError(f"--target={column} is a time, which no task learns; give a number, such as days until then")
    if len(distinct) == 2:
        return "binary"
    if type_name == "float64":
        return "regression"
    if type_name == "int64":
        numbers = np.asarray(distinct)
        close = int(numbers.max()) - int(numbers.min()) < 3 * len(distinct)
        return "classes" if len(distinct) <= FEW and close and len(values) >= 10 * len(distinct) else "regression"
    if len(distinct) > max(len(values) // 5, 2):
        raise DataError(
            f"--target={column} is text with {len(distinct):,} different values in {len(values):,} rows; it cannot be learned as "
            f"classes; choose another column"
        )
    return "classes"


def _label_type(type_name: str) -> str:
    return type_name if type_name in ("int64", "bool") else "string"


def _binary(column: str, values: pa.ChunkedArray, distinct: pa.Array, type_name: str) -> AnyLabel:
    """Returns 1 for the larger of two numbers; of two words for the one that says yes, or else the rarer one."""
    if len(distinct) > 2 and type_name not in ("int64", "float64"):
        raise DataError(f"--target={column} has {len(distinct)} different values; --task=binary needs two, or a number")
    if type_name in ("int64", "float64"):
        numbers = np.sort(np.asarray(distinct, np.float64))
        above = float(numbers.mean()) if len(numbers) == 2 else float(np.median(np.asarray(values, np.float64)))
        return Label(column=column, above=above)
    if type_name == "bool":
        return Equals(column=column, value="1", type="bool")
    return Equals(column=column, value=_positive(distinct.to_pylist(), values))


def _positive(words: Sequence[str], values: pa.ChunkedArray) -> str:
    said = [word for word in words if word.strip().lower() in YES]
    if len(said) == 1:
        return said[0]
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(values).to_pylist()}
    return min(words, key=lambda word: (counts[word], word))
