"""Columns that are made of a row's other columns: parts of times, cycles, buckets, crosses, what is missing.

Promise: numpy's integers and single roundings only, so a row gives the same bits alone or among others, on any machine; ETL,
`predict` and whatever serves a model call the same `made_of`.
Price: a pass over the column each; texts are joined once a distinct combination.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from mlprod.config import Bucket, Cross, IsMissing, Made, TimeCycle, TimePart, of_columns

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
MONDAY = 3  # 1970-01-01 was a Thursday, the fourth day of its week


@dataclass(frozen=True, kw_only=True, slots=True)
class RawColumn:
    """A column before the transform. `values`: [B] int64, float64, bool or str, of times int64 microseconds since 1970 in UTC;
    `valid`: bool[B], False where null.

    With `codes`, int[B], `values` holds distinct ones alone, [K], and row i has `values[codes[i]]`.
    """

    values: np.ndarray
    valid: np.ndarray
    codes: np.ndarray | None = None


def as_text(values: np.ndarray) -> np.ndarray:
    """Returns [B] categorical values as numpy text: integers and bools in decimal."""
    if values.dtype == bool:
        values = values.astype(np.int64)
    return values.astype(np.str_)


@singledispatch
def made_of(made: Any, columns: Mapping[str, RawColumn]) -> RawColumn:
    """Returns the column that is made of others, by their names; null where one of them is.

    Raises:
        KeyError: `columns` lacks one of them.
    """
    raise AssertionError(f"nothing is made by {type(made).__name__}")


def with_made(made: Mapping[str, Made], columns: Mapping[str, RawColumn], wanted: Iterable[str]) -> dict[str, RawColumn]:
    """Returns the columns, and those of `wanted` that are not among them: made of others, which may be made themselves.

    Raises:
        KeyError: one is neither given nor made.
    """
    found = dict(columns)
    for name in wanted:
        if name not in found:
            found = with_made(made, found, of_columns(made[name]))
            found[name] = made_of(made[name], found)
    return found


@made_of.register
def _(made: TimePart, columns: Mapping[str, RawColumn]) -> RawColumn:
    time = columns[made.of]
    return RawColumn(values=PARTS[made.part](time.values), valid=time.valid)


@made_of.register
def _(made: TimeCycle, columns: Mapping[str, RawColumn]) -> RawColumn:
    time = columns[made.of]
    part, whole = CYCLES[made.period](time.values)
    turns = part / whole
    return RawColumn(values=sine_of_turns(turns + 0.25 if made.wave == "cos" else turns), valid=time.valid)


@made_of.register
def _(made: Bucket, columns: Mapping[str, RawColumn]) -> RawColumn:
    number = columns[made.of]
    return RawColumn(values=np.searchsorted(np.array(made.edges), number.values, side="right"), valid=number.valid)


@made_of.register
def _(made: Cross, columns: Mapping[str, RawColumn]) -> RawColumn:
    """Values as text, joined by |; one of their own is escaped, so that different values stay different."""
    parts = [columns[name] for name in made.of]
    valid = np.logical_and.reduce([part.valid for part in parts])
    coded = [_coded(part) for part in parts]
    rows = np.stack([codes for _, codes in coded], axis=1)
    distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
    words = [[_escaped(word) for word in text.tolist()] for text, _ in coded]
    joined = ["|".join(each[code] for each, code in zip(words, codes, strict=True)) for codes in distinct.tolist()]
    return RawColumn(values=np.array(joined, np.str_), valid=valid, codes=inverse.reshape(-1))


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("|", "\\|")


def _coded(column: RawColumn) -> tuple[np.ndarray, np.ndarray]:
    """Returns (distinct values as text [K], codes int[B])."""
    if column.codes is not None:
        return as_text(column.values), column.codes
    values, codes = np.unique(column.values, return_inverse=True)
    return as_text(values), codes.reshape(-1)


@made_of.register
def _(made: IsMissing, columns: Mapping[str, RawColumn]) -> RawColumn:
    valid = columns[made.of].valid
    return RawColumn(values=~valid, valid=np.ones(len(valid), bool))


# ---- times -------------------------------------------------------------------------------------------------------------


def _days(times: np.ndarray) -> np.ndarray:
    """Returns int64[B]: days since 1970."""
    return times // DAY_US


def _since(times: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (microseconds since the begin of the month or year, how many it has), int64[B]; `unit`: "M" or "Y"."""
    begin = _days(times).astype("datetime64[D]").astype(f"datetime64[{unit}]")
    first, last = (each.astype("datetime64[D]").astype(np.int64) * DAY_US for each in (begin, begin + 1))
    return times - first, last - first


def _months(times: np.ndarray) -> np.ndarray:
    return _days(times).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)


def _weekday(times: np.ndarray) -> np.ndarray:
    return (_days(times) + MONDAY) % 7


def _week(times: np.ndarray) -> np.ndarray:
    """Returns int64[B]: the week of ISO 8601, 1 to 53, that of its Thursday."""
    thursday = times + (3 - _weekday(times)) * DAY_US
    return _since(thursday, "Y")[0] // (7 * DAY_US) + 1


PARTS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "year": lambda times: _months(times) // 12 + 1970,
    "month": lambda times: _months(times) % 12 + 1,
    "week": _week,
    "day": lambda times: _since(times, "M")[0] // DAY_US + 1,
    "yearday": lambda times: _since(times, "Y")[0] // DAY_US + 1,
    "weekday": _weekday,
    "hour": lambda times: times % DAY_US // HOUR_US,
    "minute": lambda times: times % HOUR_US // (HOUR_US // 60),
    "second": lambda times: times // 1_000_000 % 60,
    "days": _days,
}
CYCLES: Mapping[str, Callable[[np.ndarray], tuple[np.ndarray, Any]]] = {
    "hour": lambda times: (times % HOUR_US, HOUR_US),
    "day": lambda times: (times % DAY_US, DAY_US),
    "week": lambda times: ((times + MONDAY * DAY_US) % (7 * DAY_US), 7 * DAY_US),
    "month": lambda times: _since(times, "M"),
    "year": lambda times: _since(times, "Y"),
}


def sine_of_turns(turns: np.ndarray) -> np.ndarray:
    """Returns sin(2 pi t) of float64[B], 0 <= t < 2, within 3e-16.

    By additions and products alone, which are rounded alike everywhere: numpy's own sine may differ in the last bit with the
    processor and with a value's place in the array. Taylor's series at 0 to the 21st power, of at most a quarter of a turn.
    """
    part = turns - np.floor(turns + 0.5)
    part = np.where(np.abs(part) > 0.25, np.copysign(0.5, part) - part, part)
    angle = part * 6.283185307179586
    square, total = angle * angle, np.zeros_like(angle)
    for k in range(21, 1, -2):
        total = (total + 1.0) * (-square / (k * (k - 1)))
    return angle + angle * total
