"""The rules that rows must keep to: which rows break one, and what becomes of them.

Promise: whether a row breaks a rule follows from its own values; only a unique key looks at others, in the whole input. A row
that breaks several is told by the first. A sensitive value is in no message.
Price: a pass over the rule's column a rule; an expression is run by pandas, row by row's own values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import AnyRule, Column, ColumnRule, EtlConfig, Holds, Matches, NotNull, OneOf, UniqueKey, Within
from mlprod.discreet import WHY
from mlprod.errors import DataError, QuotingError
from mlprod.etl import bad_rows
from mlprod.etl.derive import as_frame
from mlprod.etl.label import label_column
from mlprod.etl.report import Counts
from mlprod.etl.schema import combined, constant, shown

Broken = Mapping[int, tuple[AnyRule, str]]  # row -> the first rule that it breaks, and why


def rules_of(etl: EtlConfig) -> list[AnyRule]:
    """Returns the rules of the config, and those that its columns imply."""
    return [*etl.rules, *(NotNull(column=c.name, otherwise="drop") for c in etl.columns if c.missing == "drop")]


# ---- in words ----------------------------------------------------------------------------------------------------------


@singledispatch
def words(rule: Any) -> str:
    """Returns a rule as it is told: the same for the same rule."""
    raise AssertionError(f"no rule {type(rule).__name__}")


@words.register
def _(rule: Within) -> str:
    low, high = (f"{name} {text}" if text else "" for name, text in (("from", rule.low), ("to", rule.high)))
    return " ".join(filter(None, (rule.column, low, high)))


@words.register
def _(rule: OneOf) -> str:
    return f"{rule.column} is one of {', '.join(rule.values)}"


@words.register
def _(rule: NotNull) -> str:
    return f"{rule.column} is there"


@words.register
def _(rule: Matches) -> str:
    return f"{rule.column} matches {rule.pattern}"


@words.register
def _(rule: Holds) -> str:
    return rule.expression


@words.register
def _(rule: UniqueKey) -> str:
    return "the key is unique"


def in_words(etl: EtlConfig, rule: AnyRule) -> str:
    """Returns a rule as messages and the report tell it: the values that a sensitive column may have are hidden."""
    if isinstance(rule, OneOf) and any(c.name == rule.column and c.sensitive for c in etl.columns):
        return f"{rule.column} is one of {len(rule.values)} values (hidden, config.etl.rules[{etl.rules.index(rule)}])"
    return words(rule)


# ---- which rows break it -----------------------------------------------------------------------------------------------


@singledispatch
def breaks(rule: Any, rows: pa.Table) -> np.ndarray:
    """Returns bool[B]: which rows break a rule by their own values.

    Raises:
        DataError: the rule cannot be applied to its column.
    """
    raise AssertionError(f"no rule {type(rule).__name__}")


@breaks.register
def _(rule: Within, rows: pa.Table) -> np.ndarray:
    column = combined(rows[rule.column])
    beyond = np.zeros(len(column), bool)
    for text, outside in ((rule.low, pc.less), (rule.high, pc.greater)):
        if text:
            beyond |= _true(outside(column, constant(text, column.type, f"{_WHERE}: {rule.column!r}")))
    return beyond


@breaks.register
def _(rule: OneOf, rows: pa.Table) -> np.ndarray:
    column = combined(rows[rule.column])
    text = pc.cast(pc.cast(column, pa.int64()) if pa.types.is_boolean(column.type) else column, pa.string())
    return _true(pc.and_(pc.is_valid(text), pc.invert(pc.is_in(text, pa.array(rule.values, pa.string())))))


@breaks.register
def _(rule: NotNull, rows: pa.Table) -> np.ndarray:
    return _true(pc.is_null(combined(rows[rule.column])))


@breaks.register
def _(rule: Matches, rows: pa.Table) -> np.ndarray:
    try:
        found = pc.match_substring_regex(combined(rows[rule.column]), f"^(?:{rule.pattern})$")
    except pa.ArrowException as error:
        raise DataError(f"{_WHERE}: pattern={rule.pattern!r}: {error}; write it as RE2 takes it") from error
    return _true(pc.invert(found))


@breaks.register
def _(rule: Holds, rows: pa.Table) -> np.ndarray:
    names = set(_NAME.findall(rule.expression)) & set(rows.column_names)
    if not names:
        raise DataError(f"{_WHERE}: expression={rule.expression!r} names no column; it must be about a row's own values")
    columns = {name: combined(rows[name]) for name in sorted(names)}
    naive = {n: pc.cast(c, pa.timestamp("us")) if pa.types.is_timestamp(c.type) else c for n, c in columns.items()}
    try:  # pandas compares times with texts only where they have no zone; ours are UTC
        held = as_frame(pa.table(naive)).eval(rule.expression, engine="python")
    except Exception as error:  # the user's expression: whatever it raises is theirs to read
        told = f"{_WHERE}: expression={rule.expression!r}: {type(error).__name__}"
        raise QuotingError(f"{told}: {error}; mend it", f"{told} ({WHY}); mend it") from error
    if not isinstance(held, pd.Series) or len(held) != rows.num_rows or held.dtype not in (bool, pd.BooleanDtype()):
        what = f"{held.dtype} values" if isinstance(held, pd.Series) else type(held).__name__
        raise DataError(f"{_WHERE}: expression={rule.expression!r} gives {what}; it must be true or false of each row")
    there = np.logical_and.reduce([np.asarray(pc.is_valid(column)) for column in columns.values()])
    broken: np.ndarray = there & ~held.astype("boolean").fillna(True).to_numpy(bool)
    return broken


_WHERE = "config.etl.rules"
_NAME = re.compile(r"\w+")


def _true(array: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(array, False))


# ---- what becomes of them ----------------------------------------------------------------------------------------------


def applied(etl: EtlConfig, rows: pa.Table, rules: Sequence[AnyRule]) -> Broken:
    """Returns which of the rows break one of `rules`, by their numbers, ascending; see `breaks`."""
    found = dict[int, tuple[AnyRule, str]]()
    columns = {c.name: c for c in (*etl.columns, label_column(etl.label))}
    for rule in rules:
        for i in np.flatnonzero(breaks(rule, rows)).tolist():
            if i not in found:
                found[i] = rule, _why(etl, rule, columns, rows, i)
    return dict(sorted(found.items()))


def _why(etl: EtlConfig, rule: AnyRule, columns: Mapping[str, Column], rows: pa.Table, i: int) -> str:
    """Returns why row i breaks a rule."""
    if not isinstance(rule, ColumnRule) or isinstance(rule, NotNull):
        return f"not so: {in_words(etl, rule)}"
    name = rule.column
    return f"column {name!r}: {shown(columns[name], rows[name][i].as_py())}, not so: {in_words(etl, rule)}"


def told_by_values(etl: EtlConfig, *, label: bool = True) -> list[AnyRule]:
    """Returns the rules that a row's own values tell; `label`: whether that may be its label's."""
    found: list[AnyRule] = [rule for rule in rules_of(etl) if not isinstance(rule, UniqueKey)]
    return found if label else [rule for rule in found if etl.label.column not in _columns_of(rule)]


def _columns_of(rule: AnyRule) -> set[str]:
    if isinstance(rule, Holds):
        return set(_NAME.findall(rule.expression))
    return {rule.column} if isinstance(rule, ColumnRule) else set()


def refuse(where: str, why: str) -> None:
    """Raises DataError for the first row that breaks a rule which allows none."""
    raise DataError(f"{where}: {why}; mend the row, or let the rule in {_WHERE} leave it out by otherwise='drop'")


def check_shares(etl: EtlConfig, counts: Counts) -> None:
    """Raises DataError where more of the rows with a label break a rule than it allows."""
    for rule in rules_of(etl):
        said = in_words(etl, rule)
        count = counts.broken.get(said, 0)
        if count > rule.most * counts.labelled:
            raise DataError(
                f"{count:,} of {counts.labelled:,} rows break a rule of {_WHERE}: {said}; most={rule.most:g} are allowed. "
                f"The first: {counts.firsts[said]}; mend the rows, or raise `most`"
            )


def check_expressions(etl: EtlConfig, sample: pa.Table) -> None:
    """Raises DataError where an expression says something else of a row when others are beside it."""
    cuts = [0, *(1 << k for k in range(sample.num_rows.bit_length()) if 1 << k < sample.num_rows), sample.num_rows]
    for rule in rules_of(etl):
        if isinstance(rule, Holds):
            pieces = [breaks(rule, sample.slice(a, b - a)) for a, b in pairwise(cuts) if b > a]
            if pieces and not np.array_equal(breaks(rule, sample), np.concatenate(pieces)):
                raise DataError(
                    f"{_WHERE}: expression={rule.expression!r} is not row-wise: what it says of a row depends on the rows beside "
                    f"it; use the row's own values only"
                )


def doubled(etl: EtlConfig, rows: pa.Table, quarantine: Path) -> dict[str, Any]:
    """Returns what `report.Counts` has to say of rows that share their key with others; writes them down where the rule says so.

    Raises:
        DataError: the rule allows none.
    """
    rule = next(rule for rule in etl.rules if isinstance(rule, UniqueKey))
    declared = {c.name: c for c in etl.columns}
    found = rows.to_pylist()
    keys = [", ".join(f"{name} {shown(declared[name], row[name])}" for name in etl.key) for row in found]
    why = f"another row has its key, not so: {words(rule)}"
    if rule.otherwise == "refuse":
        refuse(f"key {keys[0]}", why)
    columns = [c for c in etl.columns if c.name in rows.column_names]
    told = [bad_rows.described(etl, columns, row, f"key {key}", why) for row, key in zip(found, keys, strict=True)]
    if rule.otherwise == "quarantine":
        bad_rows.write(quarantine, told)
    written = len(told) if rule.otherwise == "quarantine" else 0
    return {"broken": {words(rule): len(told)}, "firsts": {words(rule): f"key {keys[0]}: {why}"}, "quarantined": written}


@dataclass
class Kept:
    """What rules left of some rows."""

    rows: pa.Table
    broken: Broken


def kept(etl: EtlConfig, rows: pa.Table, where: Callable[[int], str]) -> Kept:
    """Returns the rows that break no rule, and those that do.

    Raises:
        DataError: a row breaks a rule that allows none, see `refuse`.
    """
    broken = applied(etl, rows, told_by_values(etl))
    for i, (rule, why) in broken.items():
        if rule.otherwise == "refuse":
            refuse(where(i), why)
    good = np.ones(rows.num_rows, bool)
    good[list(broken)] = False
    return Kept(rows.filter(pa.array(good)) if broken else rows, broken)
