"""Columns that are not in the source: made of others, or by the user's hook, a row-wise pandas function.

Promise: the hook sees neither the label nor which rows are beside a row: it is run on a sample cut in two ways, and refused
when the two differ. Frames have pandas' nullable dtypes, so an integer with nulls stays an integer.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column, EtlConfig, Given, Holds, Made, no_transform, of_columns
from mlprod.discreet import WHY
from mlprod.errors import DataError, QuotingError
from mlprod.etl.schema import ARROW, arrow_column, combined, raw_column, require, without_nan
from mlprod.made import with_made

SAMPLE_ROWS = 1000
_NULLABLE = {
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
}


def as_frame(rows: pa.Table) -> pd.DataFrame:
    """Returns rows as a frame of pandas' nullable dtypes."""
    frame: pd.DataFrame = rows.to_pandas(types_mapper=_NULLABLE.get)
    return frame


def _run(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns the derived columns of `rows`, in their declared types."""
    inputs = [c.name for c in etl.columns if c.extracted]
    try:
        made = etl.transform(as_frame(rows.select(inputs)))
    except Exception as error:  # the user's code: whatever it raises is theirs to read
        told = f"config.etl.transform={etl.transform.__name__} failed: {type(error).__name__}"
        raise QuotingError(f"{told}: {error}", f"{told} ({WHY})") from error
    if not isinstance(made, pd.DataFrame) or len(made) != rows.num_rows:
        size = f"{len(made)} rows" if isinstance(made, pd.DataFrame) else type(made).__name__
        raise DataError(
            f"config.etl.transform returned {size} for {rows.num_rows} rows; it must return one row each, as a DataFrame"
        )
    derived = [c for c in etl.columns if c.derived]
    for c in derived:
        require(c.name, list(made.columns), f"what config.etl.transform={etl.transform.__name__} returned")
    schema = pa.schema([(c.name, ARROW[c.type]) for c in derived])
    try:
        table = pa.Table.from_pandas(made[[c.name for c in derived]], schema=schema, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        way = "declare the derived column's type in config.etl.columns"
        where = str(error.args[-1]) if len(error.args) > 1 else WHY  # the first of Arrow's words shows a value
        words = [f"config.etl.transform: {why}; {way}" for why in (" ".join(map(str, error.args)), where)]
        raise QuotingError(*words) from error
    made_by = f"config.etl.transform={etl.transform.__name__} made"
    for c in derived:
        if c.type == "string" and pc.any(pc.match_substring(table[c.name], "\0")).as_py():
            raise DataError(
                f"config.etl.transform={etl.transform.__name__} made a NUL character in column {c.name!r}; leave it out"
            )
        if c.type == "float64" and pc.any(pc.is_inf(table[c.name])).as_py():
            raise DataError(f"{made_by} an infinity in column {c.name!r}; make it missing instead")
    return pa.table({name: without_nan(combined(table[name])) for name in table.column_names})


def derive(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns `rows` with the derived columns added.

    Raises:
        DataError: the hook failed, or returned another number of rows, or lacks a declared column.
    """
    if etl.transform is not no_transform or any(c.derived for c in etl.columns):
        made = _run(etl, rows)
        for name in made.column_names:
            rows = rows.append_column(name, made[name])
    return _with_made(etl, rows)


def made_columns(columns: Sequence[Column]) -> dict[str, Made]:
    """Returns {column: how it is made of others} of those that are, each made of those before it."""
    return {c.name: c.made for c in columns if not isinstance(c.made, Given)}


def _with_made(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns the rows with the columns that are made of others."""
    made = made_columns(etl.columns)
    if not made:
        return rows
    used = {name for each in made.values() for name in of_columns(each)} - made.keys()
    columns = with_made(made, {name: raw_column(rows[name]) for name in used}, made)
    for name in made:
        rows = rows.append_column(name, arrow_column(columns[name]))
    return rows


def check_row_wise(etl: EtlConfig, sample: pa.Table) -> None:
    """Raises DataError when the hook gives a sample other values whole than cut in two."""
    rows = sample.num_rows
    if etl.transform is no_transform or rows < 2:
        return
    cuts = [0, *(1 << k for k in range(rows.bit_length()) if 1 << k < rows), rows]
    whole = _run(etl, sample)
    cut = pa.concat_tables([_run(etl, sample.slice(a, b - a)) for a, b in pairwise(cuts)])
    for name in whole.column_names:
        if not whole[name].combine_chunks().equals(cut[name].combine_chunks()):
            raise DataError(
                f"config.etl.transform={etl.transform.__name__} is not row-wise: column {name!r} depends on "
                f"the rows beside a row; use the row's own values only"
            )


def check_hook(etl: EtlConfig, chunks: Iterable[pa.Table], check_rules: Callable[[pa.Table], None]) -> None:
    """Raises DataError when the hook is not row-wise on the first `SAMPLE_ROWS` labelled rows, however they are cut.

    Args:
        check_rules: does so for rules, of these rows with what is derived.
    """
    if etl.transform is no_transform and not any(isinstance(rule, Holds) for rule in etl.rules):
        return
    gathered, missing = list[pa.Table](), SAMPLE_ROWS
    for rows in chunks:
        labelled = rows.filter(pc.is_valid(rows[etl.label.column]))
        gathered.append(labelled.slice(0, missing))
        missing -= gathered[-1].num_rows
        if not missing:
            break
    if gathered:
        sample = pa.concat_tables(gathered)
        check_row_wise(etl, sample)
        check_rules(derive(etl, sample))
