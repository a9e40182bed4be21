"""Columns made of others: equal to plain statements of them in Python, whole or row by row."""

import datetime as dt
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import PERIODS, TIME_PARTS, Bucket, Cross, IsMissing, TimeCycle, TimePart
from mlprod.features import Feature, FeatureSpec, apply, dumps, loads
from mlprod.made import RawColumn, made_of, sine_of_turns, with_made

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
TIMES = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31), timezones=st.just(dt.UTC))
PLAIN: dict[str, Callable[[dt.datetime], int]] = {
    "year": lambda t: t.year, "month": lambda t: t.month, "week": lambda t: t.isocalendar().week, "day": lambda t: t.day,
    "yearday": lambda t: t.timetuple().tm_yday, "weekday": lambda t: t.weekday(), "hour": lambda t: t.hour,
    "minute": lambda t: t.minute, "second": lambda t: t.second, "days": lambda t: (t - EPOCH).days,
}  # fmt: skip


def times(values: list[dt.datetime | None]) -> RawColumn:
    microsecond = dt.timedelta(microseconds=1)
    return RawColumn(
        values=np.array([0 if t is None else (t - EPOCH) // microsecond for t in values], np.int64),
        valid=np.array([t is not None for t in values]),
    )


def values_of(raw: RawColumn) -> list:
    values = raw.values if raw.codes is None else raw.values[raw.codes]
    return [value if valid else None for value, valid in zip(values.tolist(), raw.valid.tolist(), strict=True)]


@settings(deadline=None)
@given(st.lists(st.none() | TIMES, min_size=1, max_size=20))
def test_parts_of_times(found):
    columns = {"t": times(found)}
    for part in TIME_PARTS:
        made = values_of(made_of(TimePart(of="t", part=part), columns))
        assert made == [None if t is None else PLAIN[part](t) for t in found], part


def turn(time: dt.datetime, period: str) -> float:
    midnight = time.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "hour":
        begin, whole = time.replace(minute=0, second=0, microsecond=0), dt.timedelta(hours=1)
    elif period == "day":
        begin, whole = midnight, dt.timedelta(days=1)
    elif period == "week":
        begin, whole = midnight - dt.timedelta(days=time.weekday()), dt.timedelta(days=7)
    elif period == "month":
        begin = midnight.replace(day=1)
        whole = (begin + dt.timedelta(days=31)).replace(day=1) - begin
    else:
        begin = midnight.replace(month=1, day=1)
        whole = begin.replace(year=begin.year + 1) - begin
    return (time - begin) / whole


@settings(deadline=None)
@given(st.lists(st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9990, 1, 1), timezones=st.just(dt.UTC)), min_size=1, max_size=20))
def test_cycles_of_times(found):
    for period in PERIODS:
        for wave, plain in (("sin", math.sin), ("cos", math.cos)):
            made = values_of(made_of(TimeCycle(of="t", period=period, wave=wave), {"t": times(found)}))
            wanted = [plain(2 * math.pi * turn(t, period)) for t in found]
            assert made == pytest.approx(wanted, abs=1e-14)


def test_the_sine_is_that_of_the_mathematics():
    """Within two units in the last place of 1 of Python's, and exact at quarters of a turn."""
    turns = np.linspace(0, 2, 100_001)[:-1]
    quarters = [round(4 * t) for t in turns.tolist()]
    rests = [2 * math.pi * (t - q / 4) for t, q in zip(turns.tolist(), quarters, strict=True)]  # at most an eighth of a turn
    waves = [math.sin, math.cos, lambda x: -math.sin(x), lambda x: -math.cos(x)]
    exact = np.array([waves[q % 4](rest) for q, rest in zip(quarters, rests, strict=True)])
    assert np.abs(sine_of_turns(turns) - exact).max() < 3e-16
    assert sine_of_turns(np.array([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() == pytest.approx([0, 1, 0, -1, 0], abs=2e-16)


TEXT = st.text(st.sampled_from("a|\\b"), max_size=3)
ROW = st.fixed_dictionaries({
    "a": st.none() | TEXT, "b": st.none() | TEXT, "n": st.none() | st.integers(-3, 3), "x": st.none() | st.floats(-9, 9),
    "t": st.none() | TIMES,
})  # fmt: skip


def columns_of(rows: list[dict]) -> dict[str, RawColumn]:
    kinds = {"a": np.str_, "b": np.str_, "n": np.int64, "x": np.float64}
    found = {
        name: RawColumn(
            values=np.array([kind() if row[name] is None else row[name] for row in rows], kind),
            valid=np.array([row[name] is not None for row in rows]),
        )
        for name, kind in kinds.items()
    }
    return found | {"t": times([row["t"] for row in rows])}


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_crosses_tell_apart_what_is_different(rows):
    """Two rows have the same cross where they have the same values, and only there; none where one is missing."""
    made = values_of(made_of(Cross(of=("a", "b", "n")), columns_of(rows)))
    keys = [(row["a"], row["b"], row["n"]) for row in rows]
    assert [m is None for m in made] == [None in key for key in keys]
    known = {key: m for key, m in zip(keys, made, strict=True) if m is not None}
    assert [m for m in made if m is not None] == [known[key] for key in keys if None not in key]
    assert len(set(known.values())) == len(known)


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_buckets_and_what_is_missing(rows):
    columns, edges = columns_of(rows), (-1.0, 0.0, 2.5)
    made = values_of(made_of(Bucket(of="x", edges=edges), columns))
    assert made == [None if row["x"] is None else sum(row["x"] >= edge for edge in edges) for row in rows]
    assert values_of(made_of(IsMissing(of="x"), columns)) == [row["x"] is None for row in rows]


MADE = {
    "hour": TimePart(of="t", part="hour"),
    "hour_range": Bucket(of="hour", edges=(6.0, 12.0, 18.0)),
    "day_sin": TimeCycle(of="t", period="day", wave="sin"),
    "no_x": IsMissing(of="x"),
    "ab": Cross(of=("a", "b")),
    "abh": Cross(of=("ab", "hour_range")),
}
SPEC = FeatureSpec(
    features=(
        Feature(name="hour_range", kind="categorical", vocabulary=("0", "1", "2")),
        Feature(name="day_sin", kind="numeric", fill=0.5),
        Feature(name="no_x", kind="numeric"),
        Feature(name="abh", kind="categorical", buckets=7),
    ),
    made=MADE,
)


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12))
def test_apply_makes_them_itself(rows):
    """Made columns are made of made ones; given or not, whole or row by row, the same bits; kept as data."""
    columns = columns_of(rows)
    whole = apply(SPEC, columns)
    given = apply(SPEC, with_made(MADE, columns, MADE))
    single = [apply(SPEC, columns_of([row])) for row in rows]
    for name, values in whole.items():
        assert values.tobytes() == given[name].tobytes() == np.concatenate([part[name] for part in single]).tobytes()
    assert loads(dumps(SPEC)) == SPEC
    assert set(whole["abh"].tolist()) <= {1, *range(2, 9)}  # missing, or one of 7 buckets


def test_what_is_not_said_is_not_written():
    """A transform without what is newer has the text that it always had, so its dataset keeps its id."""
    text = dumps(FeatureSpec(features=(Feature(name="x", kind="numeric"),)))
    assert not [word for word in ("made", "buckets", "clip", "log", "scale") if word in text]
