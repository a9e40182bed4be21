"""What each column of a table is good for: a feature of some kind, or left out, each with the reason beside it.

Promise: what is chosen follows from the sample alone. What may be a leak or a key is left out and
named: a feature that is missing costs less than one that is not there when the model is asked.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import AnyLabel, Column, categorical, multivalued, numeric
from mlprod.etl.alone import MEASURES, told_alone
from mlprod.etl.fit import Over, classes, fit
from mlprod.etl.label import said
from mlprod.etl.sample import SEPARATOR, Sample
from mlprod.etl.settle import LABEL
from mlprod.features import Target
from mlprod.init.literal import literal

ENOUGH = 100  # values of which "nearly all are different" says something
NEARLY_ALL = 0.95  # share of different values
WORDS = 0.5  # share of different values from which text is names or prose
SEEN_MISSING = 0.01  # share of missing values from which that one is missing is a feature too
MANY = 20_000  # different values that a categorical may have
LONGEST = 64  # values of a list that a model is to see at most
CODE = re.compile(
    r"(^|[_\W])(id|ids|key|uuid|guid|code|zip|zipcode|postcode|index|idx|nr|no|number)$|(?<=[a-z])(Id|ID|Code|Nr|No)$"
)
TIME_PARTS = {
    "month": "{}.dt.month", "day": "{}.dt.day", "weekday": "{}.dt.weekday", "hour": "{}.dt.hour",
    "days": '({} - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)',
}  # fmt: skip
# Of times as text that are not ISO 8601; where two fit, the first is taken, and said.
TIME_FORMATS = (
    "%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y", "%d-%m-%Y", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%b %d %Y", "%b %d, %Y",
)  # fmt: skip
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class Choice:
    """What becomes of a column of the source. `columns`: none where it is left out; `made`: {derived column: expression}."""

    name: str
    why: str
    columns: tuple[Column, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)


def choices(sample: Sample, label: AnyLabel, key: Sequence[str], time: str) -> list[Choice]:
    """Returns a choice a column, but for the target's, in the source's order."""
    found = []
    for name in sample.rows.column_names:
        if name != label.column:
            found.append(_choice(sample, name, key, time))
    leaks = _leaks(sample, label, [c for choice in found for c in choice.columns if c.role == "feature" and _is_told(c)])
    return _once([Choice(x.name, leaks[x.name]) if x.name in leaks else x for x in found], label.column)


def _is_told(c: Column) -> bool:
    """Whether a column alone may be asked for the target: a number or category of the source."""
    return not c.derived and c.kind != "list"


def _once(found: Sequence[Choice], label: str) -> list[Choice]:
    """Returns the choices, without those whose columns would have a name in the config that another has."""
    taken, kept = {label}, list[Choice]()
    for choice in found:
        names = {c.name for c in choice.columns}
        twice = sorted(names & taken)
        kept.append(
            Choice(choice.name, f"would be called {twice[0]!r} as another column is; add it by hand") if twice else choice
        )
        taken |= set() if twice else names
    return kept


def _choice(sample: Sample, name: str, key: Sequence[str], time: str) -> Choice:
    values, type_name = sample.rows[name], sample.types[name]
    as_input = Column(name=named(name), source=_source(name), type=type_name, role="input")
    if name in key:
        return Choice(name, "identifies a row", (as_input,))
    if not name:
        return Choice(name, "has no name in the header")
    if name in sample.nested:
        return Choice(name, "holds nested values, or lists of what is no category")
    there = values.drop_null()
    distinct = pc.count_distinct(there).as_py()
    missing = _missing(values)
    if name in sample.lists:
        return _list(name, there, sample.lists[name], missing)
    if name == time:
        return _times(sample, name, missing, role="time")
    if not distinct:
        return Choice(name, "has no value in the rows looked at")
    if distinct == 1 and not values.null_count:
        return Choice(name, "has one value alone")
    if type_name == "timestamp":
        return _times(sample, name, missing, role="input")
    if type_name == "string":
        return _text(name, there, distinct, missing)
    if type_name == "bool":
        return Choice(name, f"yes or no{missing}", (categorical(**_named(name), type="bool"),))
    if type_name == "int64" and _is_key(name, there, distinct, sample):
        return Choice(name, f"looks like an identifier: {distinct:,} different values in {len(there):,} rows")
    if type_name == "int64" and CODE.search(name) and distinct <= MANY:
        return Choice(
            name, f"{distinct:,} codes, by their name{missing}", (categorical(**_named(name), type="int64", min_count=2),)
        )
    ends = pc.min_max(there).as_py()
    told = f"{distinct:,} values from {ends['min']:.6g} to {ends['max']:.6g}{missing}"
    made = (
        {f"{named(name)}_missing": f"rows[{literal(named(name))}].isna()"}
        if values.null_count >= SEEN_MISSING * len(values)
        else {}
    )
    flags = (numeric(new, derived=True) for new in made)
    return Choice(name, told, (numeric(**_named(name), type=type_name), *flags), made)


def named(name: str) -> str:
    """Returns the name of a column in the config: the source's, but for what cannot be one."""
    clean = re.sub(r"[./]", "_", name).lstrip("_") or "column"
    return f"{clean}_" if clean in ("numeric", "label", "weight", "row_id") or clean.startswith("packed_") else clean


def _source(name: str) -> str:
    return name if named(name) != name else ""


def _named(name: str) -> dict[str, str]:
    return {"name": named(name)} | ({"source": name} if _source(name) else {})


def _missing(values: pa.ChunkedArray) -> str:
    share = values.null_count / max(len(values), 1)
    return f", {max(share, 0.001):.1%} missing" if share else ""


def _times(sample: Sample, name: str, missing: str, role: str) -> Choice:
    """Returns a time with what its parts say: the hour where there is one, days since 1970 unless rows are split by it."""
    base = Column(name=named(name), source=_source(name), type=sample.types[name], role=role)
    if sample.types[name] != "timestamp":
        return Choice(name, f"rows are split by it{missing}", (base,))
    made = _parts(named(name), f"rows[{literal(named(name))}]", sample.rows[name].drop_null(), days=role != "time")
    split = ", rows are split by it" if role == "time" else ""
    derived = (numeric(new, derived=True) for new in made)
    return Choice(name, f"a time, of which the parts are features{split}{missing}", (base, *derived), made)


def _parts(name: str, expression: str, times: pa.ChunkedArray | pa.Array, *, days: bool) -> dict[str, str]:
    """Returns {column: pandas expression} of the parts of a time; `expression`: of the time itself."""
    parts = ["month", "day", "weekday"]
    if pc.any(pc.not_equal(pc.floor_temporal(times, unit="day"), times)).as_py():
        parts.append("hour")
    if days:
        parts.append("days")
    return {f"{name}_{part}": TIME_PARTS[part].format(expression) for part in parts}


def _as_times(there: pa.ChunkedArray) -> tuple[str, pa.Array] | None:
    """Returns (format, times) of text that is times, None where it is not."""
    values = pc.unique(there)
    if not pc.any(pc.match_substring_regex(values[:1], r"[0-9]")).as_py():
        return None
    for clock in CLOCKS:
        for form in TIME_FORMATS:
            times = pc.strptime(values, form + clock, "s", error_is_null=True)
            if not times.null_count:
                return form + clock, times
    return None


def _text(name: str, there: pa.ChunkedArray, distinct: int, missing: str) -> Choice:
    found = _as_times(there)
    if found is not None:
        base = Column(name=named(name), source=_source(name), type="string", role="input")
        time = f'pd.to_datetime(rows[{literal(named(name))}], format="{found[0]}", errors="coerce", utc=True)'
        made = _parts(named(name), time, found[1], days=True)
        told = f"times written as {found[0]}, of which the parts are features{missing}"
        return Choice(name, told, (base, *(numeric(new, derived=True) for new in made)), made)
    if distinct > NEARLY_ALL * len(there) and len(there) >= ENOUGH:
        return Choice(name, f"looks like an identifier or prose: {distinct:,} different values in {len(there):,} rows")
    if distinct > max(WORDS * len(there), ENOUGH) or distinct > MANY:
        return Choice(name, f"text with {distinct:,} different values in {len(there):,} rows, of which few come twice")
    return Choice(name, f"{distinct:,} values{missing}", (categorical(**_named(name), min_count=2),))


def _list(name: str, there: pa.ChunkedArray, longest: int, missing: str) -> Choice:
    words = pc.drop_null(pc.list_flatten(pc.split_pattern(pc.filter(there, pc.not_equal(there, "")), SEPARATOR)))
    distinct = pc.count_distinct(words).as_py()
    if distinct > MANY or (len(words) >= ENOUGH and distinct > NEARLY_ALL * len(words)):
        return Choice(name, f"lists of {distinct:,} different values, of which few come twice")
    told = f"lists of up to {longest:,} of {distinct:,} values{missing}"
    return Choice(name, told, (multivalued(**_named(name), max_len=min(max(longest, 1), LONGEST), min_count=2),))


def _is_key(name: str, there: pa.ChunkedArray, distinct: int, sample: Sample) -> bool:
    """Whether whole numbers are a running number, or nearly all different under a name of a key."""
    if len(there) < min(ENOUGH, sample.rows.num_rows) or distinct <= NEARLY_ALL * len(there):
        return False
    numbers = np.asarray(there)
    running = len(numbers) > 2 and sample.whole and len(np.unique(np.diff(numbers))) == 1
    return running or bool(CODE.search(name)) or not name.strip() or name.lower().startswith("unnamed")


# ---- what tells the target by itself -----------------------------------------------------------------------------------


def _leaks(sample: Sample, label: AnyLabel, columns: Sequence[Column]) -> dict[str, str]:
    """Returns {column of the source: why} of those that alone tell the target, as the data report measures it."""
    rows = sample.rows.filter(pc.is_valid(sample.rows[label.column]))
    if rows.num_rows < ENOUGH:
        return {}
    rows = rows.append_column(LABEL, said(label, rows[label.column]))
    order = np.random.default_rng(0).permutation(rows.num_rows)
    train, held_out = (rows.take(pa.array(np.sort(part))) for part in np.array_split(order, 2))
    target = target_of(label, train[LABEL], held_out[LABEL])
    found = {}
    for c in columns:
        source = c.source or c.name
        values = (
            pa.table({c.name: train[source], LABEL: train[LABEL]}),
            pa.table({c.name: held_out[source], LABEL: held_out[LABEL]}),
        )
        if not values[0][c.name].null_count < len(values[0]):
            continue
        spec = fit(_over(values[0]), [c], target)
        feature = (*spec.numeric, *spec.categorical)[0]
        told = told_alone(*values, feature, target)
        if told.get("tells_all"):
            found[source] = f"alone tells the target ({MEASURES[target.task]} {told['alone']:.4f}): known only afterwards?"
    return found


def _over(table: pa.Table) -> Over:
    return lambda act, most=None: map(act, [table][:most])


def target_of(label: AnyLabel, train: pa.ChunkedArray, held_out: pa.ChunkedArray) -> Target:
    """Returns what is learned, from what two parts of the rows say."""
    if label.task != "classes":
        numbers = np.asarray(train, np.float64)
        return Target(task=label.task, column=label.column, mean=float(numbers.mean()), std=float(numbers.std()))
    column = Column(name=LABEL, type="string")
    parts = {"train": train, "eval": held_out}
    names, counts = classes({split: _over(pa.table({LABEL: values})) for split, values in parts.items()}, column)
    return Target(task="classes", column=label.column, classes=names, counts=counts)
