"""The typed config: every field a run may have, declared once with its type, unit, default and resume rule.

Promise: a config that passes `validate` has only known fields of the declared types and ranges; what is saved beside a
run is this tree as JSON, compared on resume and never executed.
Price: stdlib only, so that reading a config costs milliseconds (a recipe's model may import more).

Resume rules: `must` stays the same when a run is resumed; `may` is free to change; `data` is part of the dataset's identity.
There is no None: an "off" is a value of the field's own type, so that `--config.optim.clip_norm=inf` can say it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mlprod.hints import hints_of

MUST, MAY, DATA = "must", "may", "data"
BELOW_ONE = 1 - 1e-9


def knob(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    *,
    unit: str = "",
    rule: str = MAY,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declares a config field: its default (required when left out; a class is called), meaning, unit, resume rule, range."""
    meta = {"doc": doc, "unit": unit, "rule": rule, "low": low, "high": high, "choices": choices}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


# ---- what the rows are -------------------------------------------------------------------------------------------------

AUTO = "auto"
HERE = ("threads", "processes")  # executors of this machine
STORAGE_TYPES = ("int64", "float64", "string", "bool", "timestamp")
ROLES = ("feature", "weight", "group", "time", "input")


TIME_PARTS = ("year", "month", "week", "day", "yearday", "weekday", "hour", "minute", "second", "days")
PERIODS = ("hour", "day", "week", "month", "year")


@dataclass(kw_only=True, slots=True)
class Given:
    """It is in the source or a lookup, or the hook makes it."""


@dataclass(kw_only=True, slots=True)
class TimePart:
    """A part of a time, in UTC: a number, such as hour 0 to 23, weekday 0 (Monday) to 6, week of ISO 8601, days since 1970."""

    of: str = knob(doc="column of times", rule=DATA)
    part: str = knob(doc="of it", rule=DATA, choices=TIME_PARTS)


@dataclass(kw_only=True, slots=True)
class TimeCycle:
    """Where a time is in a period, as the sine or cosine of an angle: 23:59 is next to 0:00."""

    of: str = knob(doc="column of times", rule=DATA)
    period: str = knob(doc="that is one turn", rule=DATA, choices=PERIODS)
    wave: str = knob(doc="of the angle", rule=DATA, choices=("sin", "cos"))


@dataclass(kw_only=True, slots=True)
class Bucket:
    """Which of the ranges that `edges` cut a number is in: 0 below the first, 1 from it on, and so on."""

    of: str = knob(doc="column of numbers", rule=DATA)
    edges: tuple[float, ...] = knob(doc="ascending, in the column's units", rule=DATA, low=-1e300, high=1e300)


@dataclass(kw_only=True, slots=True)
class Cross:
    """The values of several columns together."""

    of: tuple[str, ...] = knob(doc="columns of string, int64 or bool", rule=DATA)


@dataclass(kw_only=True, slots=True)
class IsMissing:
    """Whether a column has no value."""

    of: str = knob(doc="column", rule=DATA)


Made = Given | TimePart | TimeCycle | Bucket | Cross | IsMissing


def of_columns(made: Made) -> tuple[str, ...]:
    """Returns the columns that something is made of."""
    if isinstance(made, Given):
        return ()
    return made.of if isinstance(made, Cross) else (made.of,)


@dataclass(kw_only=True, slots=True)
class Column:
    """One column of the rows: extracted from the source, made of others (`made`), or made by the hook (`derived`)."""

    name: str = knob(doc="as in the rows after joins and lookups, unless `source` says how it is called there", rule=DATA)
    type: str = knob(
        doc="of a stored value; `auto`: the first of int64, float64, bool, timestamp and string that holds every value",
        rule=DATA, choices=(*STORAGE_TYPES, AUTO),
    )  # fmt: skip
    role: str = knob(
        "feature",
        "`input` feeds the hook, key or split only; `weight`, `group` and `time` are stored beside the features",
        rule=DATA,
        choices=ROLES,
    )
    kind: str = knob(
        "numeric", "how a feature enters the model; `list`: as many categories a row, in a text or a list of the source",
        rule=DATA, choices=("numeric", "categorical", "list"),
    )  # fmt: skip
    missing: str = knob(
        "fill", "`fill`: the training median, or the missing slot; `mean`: of the training rows; `constant`: see `constant`; "
        "`drop`: the row is left out; `refuse`: an error", rule=DATA, choices=("fill", "mean", "constant", "drop", "refuse"),
    )  # fmt: skip
    constant: float = knob(0.0, "missing=`constant`: what a number that is missing becomes", rule=DATA, low=-3e38, high=3e38)
    min_count: int = knob(1, "a rarer category is the unknown slot", unit="training rows", rule=DATA, low=1)
    buckets: int = knob(
        0,
        "categorical, list: that values are hashed into, not a vocabulary; 0: a vocabulary",
        rule=DATA,
        low=0,
        high=1 << 30,
    )
    max_len: int = knob(0, "list: that a model sees of a row, its first ones", unit="values", rule=DATA, low=0, high=1 << 16)
    separator: str = knob("|", "list: between the values in a text, of one character or more", rule=DATA)
    made: Made = knob(Given, "of which other columns it is made, and how", rule=DATA)
    clip_low: float = knob(-math.inf, "numeric: the model takes less for it; the dataset stays as it is", rule=MUST)
    clip_high: float = knob(math.inf, "numeric: the model takes more for it; the dataset stays as it is", rule=MUST)
    log: bool = knob(
        False, "numeric: the model takes sign(x) log(1 + |x|), after clipping; the dataset stays as it is", rule=MUST
    )
    scale: str = knob(
        "model", "numeric: how the model scales it: in its own way, by mean and deviation, to its rank from -1 to 1, as 16 "
        "piecewise linear parts, or not", rule=MUST, choices=("model", "standard", "quantile", "piecewise", "none"),
    )  # fmt: skip
    derived: bool = knob(False, "made by `transform`, not extracted", rule=DATA)
    sensitive: bool = knob(False, "its values never appear in an error or report", rule=DATA)
    source: str = knob("", "its name in the source, where that cannot be a name here; '': the same", rule=DATA)

    @property
    def extracted(self) -> bool:
        """Whether it comes out of the source, a lookup or other rows."""
        return not self.derived and isinstance(self.made, Given)


def numeric(name: str, type: str = "float64", **more: Any) -> Column:
    """Returns a numeric feature; missing values become the training median."""
    return Column(name=name, type=type, kind="numeric", **more)


def categorical(name: str, type: str = "string", **more: Any) -> Column:
    """Returns a categorical feature with a vocabulary, an unknown slot and a missing slot."""
    return Column(name=name, type=type, kind="categorical", **more)


def multivalued(name: str, max_len: int, **more: Any) -> Column:
    """Returns a feature of many categories a row, such as tags, with one vocabulary: of lists, or texts such as red|green."""
    return Column(**{"name": name, "type": "string", "kind": "list", "max_len": max_len, **more})


def time_part(name: str, of: str, part: str, **more: Any) -> Column:
    """Returns a part of a time as a category, or as a number by `kind="numeric"`."""
    return Column(**{"name": name, "type": "int64", "kind": "categorical", "made": TimePart(of=of, part=part), **more})


def time_cycle(name: str, of: str, period: str) -> tuple[Column, Column]:
    """Returns two numbers, `NAME_sin` and `NAME_cos`: where a time is in its period."""
    sin, cos = (numeric(f"{name}_{wave}", made=TimeCycle(of=of, period=period, wave=wave)) for wave in ("sin", "cos"))
    return sin, cos


def bucketed(name: str, of: str, edges: tuple[float, ...], **more: Any) -> Column:
    """Returns a category: which of the ranges between `edges` a number is in."""
    return categorical(name, type="int64", made=Bucket(of=of, edges=edges), **more)


def crossed(name: str, of: tuple[str, ...], **more: Any) -> Column:
    """Returns a category: the values of several columns together; `buckets=N` hashes them."""
    return categorical(name, made=Cross(of=of), **more)


def is_missing(name: str, of: str) -> Column:
    """Returns a number: 1 where a column has no value, else 0."""
    return numeric(name, type="bool", made=IsMissing(of=of))


@dataclass(kw_only=True, slots=True)
class On:
    """One equality of a join: left = right + plus. `plus` is for integer keys (the hour before: plus=1)."""

    left: str = knob(doc="column of the source's table", rule=DATA)
    right: str = knob(doc="column of the joined table", rule=DATA)
    plus: int = knob(0, "added to the right side", rule=DATA)


@dataclass(kw_only=True, slots=True)
class Join:
    """A table of the same database whose columns are added to each row; at most one row of it may match."""

    table: str = knob(doc="name in the database", rule=DATA)
    on: tuple[On, ...] = knob(doc="all must hold", rule=DATA)
    columns: tuple[str, ...] = knob(doc="taken from it", rule=DATA)


@dataclass(kw_only=True, slots=True)
class SqlSource:
    """Rows of a database table, left-joined with others, or of a query. Every name is checked against the database itself."""

    url: str = knob(doc="SQLAlchemy URL; $VARIABLES are taken from the environment, where secrets belong")
    table: str = knob("", "name in the database", rule=DATA)
    query: str = knob("", "in place of `table`: one statement that returns rows, sent as it is written", rule=DATA)
    joins: tuple[Join, ...] = knob((), "left joins of `table`", rule=DATA)
    watermark: str = knob("", "column that only grows, such as a time; '' for none", rule=DATA)
    start: str = knob("", "first watermark taken, inclusive; '' for all", rule=DATA)
    stop: str = knob("", "first watermark left out; '' for all", rule=DATA)
    late: float = knob(
        0.0, "etl.grow=`append`: how far behind the newest watermark rows are read again, for those that come late",
        unit="seconds, or the watermark's units", low=0.0,
    )  # fmt: skip
    cut_by: str = knob("", "an integer column, unique or not, by which rows are read in ranges; '': the table's primary key")
    timeout_s: float = knob(
        300.0, "how long a server may give nothing: no answer, no further rows (a connection: 30 at most)", unit="s", low=1.0
    )


@dataclass(kw_only=True, slots=True)
class CsvSource:
    """Rows of CSV files with a header line; '' and NA are missing values. Compressed by gzip, bz2 or zstd, or not."""

    path: str = knob(doc="file, folder, pattern such as rows-*.csv.gz, or address (s3://, gs://; of a folder, ending with /)")
    delimiter: str = knob(",", "one character", rule=DATA)
    encoding: str = knob("utf-8", "of the text, such as latin-1, cp1252 or utf-16", rule=DATA)


@dataclass(kw_only=True, slots=True)
class ParquetSource:
    """Rows of Parquet files, or of a folder of them; folders such as `year=2024` are columns."""

    path: str = knob(doc="file, folder, pattern such as rows/*.parquet, or address (s3://, gs://; of a folder, ending with /)")


@dataclass(kw_only=True, slots=True)
class JsonLinesSource:
    """Rows of files with one JSON object a line; a field that is not there, or null, is a missing value."""

    path: str = knob(doc="file, folder, pattern such as rows-*.jsonl.gz, or address (s3://, gs://; of a folder, ending with /)")


@dataclass(kw_only=True, slots=True)
class TextSource:
    """Documents of text files, in UTF-8: rows of the columns `text` and `file`, the file's name."""

    path: str = knob(doc="file, folder, pattern such as books/*.txt, or address (s3://, gs://; of a folder, ending with /)")
    separator: str = knob("", "between two documents, such as \\n for a document a line; '': a file is one", rule=DATA)
    max_bytes: int = knob(1 << 16, "a longer document becomes several, cut at a line's end", unit="bytes", rule=DATA, low=64)


@dataclass(kw_only=True, slots=True)
class Lookup:
    """A small CSV table held in memory, whose columns are added to the rows by a unique key."""

    path: str = knob(doc="CSV file")
    key: str = knob(doc="column of this name in the rows and in the file", rule=DATA)
    columns: dict[str, str] = knob(doc="name in the rows -> name in the file", rule=DATA)


@dataclass(kw_only=True, slots=True)
class Histories:
    """Columns of what came before a row: values of the rows with the same `by` and an earlier `order`, the newest first."""

    by: tuple[str, ...] = knob(doc="columns whose values together say whose row it is, such as a user", rule=DATA)
    order: str = knob(doc="column of times or numbers; rows of the same one do not see each other", rule=DATA)
    max_len: int = knob(doc="values a row, the newest", unit="rows", rule=DATA, low=1, high=1 << 16)
    columns: dict[str, str] = knob(doc="name of the column -> column whose values it has", rule=DATA)
    each: str = knob(
        "event", "what becomes an example: every row, or the last row alone of those with the same `by`", rule=DATA,
        choices=("event", "last"),
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class AsOf:
    """Columns of another source as they were at a row's time: of its newest row with the same `by`, not later than the row."""

    source: SqlSource | CsvSource | ParquetSource | JsonLinesSource = knob(doc="a row for each change", rule=DATA)
    by: dict[str, str] = knob(doc="column of the rows -> what it is called in the source; all must be equal", rule=DATA)
    time: str = knob(doc="column of the rows, of times or numbers", rule=DATA)
    since: str = knob(doc="column of the source: from when on its row is so; of the type of `time`", rule=DATA)
    columns: dict[str, str] = knob(doc="name in the rows -> name in the source", rule=DATA)
    same_time: bool = knob(True, "whether a change at a row's very time is seen", rule=DATA)


def histories(*, by: str | tuple[str, ...], order: str, max_len: int, columns: dict[str, str], each: str = "event") -> Histories:
    """Returns columns of what came before each row: see `Histories`."""
    names = (by,) if isinstance(by, str) else by
    return Histories(by=names, order=order, max_len=max_len, columns=columns, each=each)


def join_as_of(
    source: SqlSource | CsvSource | ParquetSource | JsonLinesSource,
    *,
    by: str | tuple[str, ...] | dict[str, str],
    time: str,
    columns: tuple[str, ...] | dict[str, str],
    since: str = "",
    same_time: bool = True,
) -> AsOf:
    """Returns columns of another source as they were at a row's time: see `AsOf`; what has one name in both is said once."""
    names = (by,) if isinstance(by, str) else by
    both, taken = (each if isinstance(each, dict) else {name: name for name in each} for each in (names, columns))
    return AsOf(source=source, by=both, time=time, since=since or time, columns=taken, same_time=same_time)


LABEL_TYPES = ("string", "int64", "bool")


@dataclass(kw_only=True, slots=True)
class Label:
    """What is learned: 1 where `column` > `above`, else 0. Rows without a value are left out, whatever the label."""

    task: ClassVar[str] = "binary"
    column: str = knob(doc="numeric; known only afterwards", rule=DATA)
    above: float = knob(0.5, "in the column's units", rule=DATA)


@dataclass(kw_only=True, slots=True)
class Equals:
    """What is learned: 1 where `column` is `value`, else 0."""

    task: ClassVar[str] = "binary"
    column: str = knob(doc="known only afterwards", rule=DATA)
    value: str = knob(doc="as text, such as yes; of a bool 1 or 0", rule=DATA)
    type: str = knob("string", "of the column", rule=DATA, choices=LABEL_TYPES)


@dataclass(kw_only=True, slots=True)
class Number:
    """What is learned: the value of `column` itself, by squared error."""

    task: ClassVar[str] = "regression"
    column: str = knob(doc="numeric; known only afterwards", rule=DATA)


@dataclass(kw_only=True, slots=True)
class Classes:
    """What is learned: which value `column` has, of all that stand in it."""

    task: ClassVar[str] = "classes"
    column: str = knob(doc="known only afterwards", rule=DATA)
    type: str = knob("string", "of the column", rule=DATA, choices=LABEL_TYPES)


@dataclass(kw_only=True, slots=True)
class Bytes:
    """The tokens of a text are the bytes of its UTF-8, and 256, the end of a document."""


@dataclass(kw_only=True, slots=True)
class TokenizerFile:
    """A trained tokenizer as the library `tokenizers` saves it."""

    path: str = knob(doc="tokenizer.json; its content counts, wherever it lies")
    end: str = knob("<|endoftext|>", "its token for the end of a document", rule=DATA)


@dataclass(kw_only=True, slots=True)
class NextToken:
    """What is learned: each next token of the texts in `column`, packed into rows of `length`."""

    task: ClassVar[str] = "tokens"
    column: str = knob("text", "of texts, a document a row", rule=DATA)
    length: int = knob(512, "that a model sees of a row", unit="tokens", rule=DATA, low=1, high=1 << 20)
    tokenizer: Bytes | TokenizerFile = knob(Bytes, "text to tokens", rule=DATA)


AnyLabel = Label | Equals | Number | Classes | NextToken


@dataclass(kw_only=True, slots=True)
class ByGroup:
    """Whole groups (rows equal in `columns`) go to one split, by a keyed hash of the group."""

    columns: tuple[str, ...] = knob(doc="such as the columns of a calendar day", rule=DATA)
    eval: float = knob(0.1, "share of the groups", rule=DATA, low=0.0, high=1.0)
    test: float = knob(0.1, "share of the groups", rule=DATA, low=0.0, high=1.0)


@dataclass(kw_only=True, slots=True)
class ByHash:
    """Each key (or row, where there is no key) goes to a split by its keyed hash."""

    eval: float = knob(0.1, "share of the keys", rule=DATA, low=0.0, high=1.0)
    test: float = knob(0.1, "share of the keys", rule=DATA, low=0.0, high=1.0)


@dataclass(kw_only=True, slots=True)
class ByTime:
    """The oldest rows train, later ones are eval, the last ones test: each split begins at a value of its own."""

    column: str = knob(doc="a timestamp or number; every row must have it", rule=DATA)
    eval: str = knob(doc="first value of eval, such as 2024-10-01", rule=DATA)
    test: str = knob("", "first value of test; '' for no test split", rule=DATA)


@dataclass(kw_only=True, slots=True)
class ByColumn:
    """A column says which rows are held out; all others train."""

    column: str = knob(doc="string, int64 or bool; every row must have it", rule=DATA)
    eval: tuple[str, ...] = knob((), "its values of eval rows, as text", rule=DATA)
    test: tuple[str, ...] = knob((), "its values of test rows, as text", rule=DATA)


@dataclass(kw_only=True, slots=True)
class RowRule:
    """What rows must be. Missing values break only `NotNull`."""

    otherwise: str = knob(
        "refuse", "of a row that breaks it: end the build, leave it out, or also write it down", rule=DATA,
        choices=("refuse", "drop", "quarantine"),
    )  # fmt: skip
    most: float = knob(1.0, "share of the rows that may break it; more end the build", rule=DATA, low=0.0, high=1.0)


@dataclass(kw_only=True, slots=True)
class ColumnRule(RowRule):
    """What the values of one column must be."""

    column: str = knob(doc="of the rows, derived or the label's", rule=DATA)


@dataclass(kw_only=True, slots=True)
class Within(ColumnRule):
    """low <= value <= high, of a number or a time."""

    low: str = knob("", "least value, such as 0 or 2024-01-01; '' for none", rule=DATA)
    high: str = knob("", "greatest value; '' for none", rule=DATA)


@dataclass(kw_only=True, slots=True)
class OneOf(ColumnRule):
    """The value, of a string, int64 or bool, is one of some."""

    values: tuple[str, ...] = knob(doc="as text; of a bool 1 and 0", rule=DATA)


@dataclass(kw_only=True, slots=True)
class NotNull(ColumnRule):
    """There is a value."""


@dataclass(kw_only=True, slots=True)
class Matches(ColumnRule):
    """The whole text matches a regular expression."""

    pattern: str = knob(doc="as RE2 has them: no look-around, no back references", rule=DATA)


@dataclass(kw_only=True, slots=True)
class Holds(RowRule):
    """An expression of a row's own values is true, such as "arrival > departure or cancelled"."""

    expression: str = knob(doc="of columns, as pandas.DataFrame.eval takes it", rule=DATA)


@dataclass(kw_only=True, slots=True)
class UniqueKey(RowRule):
    """No two different rows have one key (`etl.key`); where some have, all of them break it, for none is known to be right."""


AnyRule = Within | OneOf | NotNull | Matches | Holds | UniqueKey

Hook = Callable[[Any], Any]


def no_transform(chunk: Any) -> Any:
    """The hook that leaves a chunk of rows as it is."""
    return chunk


@dataclass(kw_only=True, slots=True)
class EtlConfig:
    """From rows to a dataset. Fields with rule `data` decide its content; the others only how it is made."""

    source: SqlSource | CsvSource | ParquetSource | JsonLinesSource | TextSource = knob(doc="where the rows come from", rule=DATA)
    lookups: tuple[Lookup, ...] = knob((), "small tables joined in memory", rule=DATA)
    gathered: tuple[Histories | AsOf, ...] = knob((), "columns made of other rows, by key and time", rule=DATA)
    columns: tuple[Column, ...] = knob(doc="what is extracted or derived; anything else is left in the source", rule=DATA)
    label: Label | Equals | Number | Classes | NextToken = knob(doc="what is learned", rule=DATA)
    key: tuple[str, ...] = knob((), "columns that identify a row; predictions carry them", rule=DATA)
    transform: Hook = knob(no_transform, "row-wise hook: pandas chunk in, pandas chunk with the derived columns out", rule=DATA)
    bad_rows: str = knob(
        "refuse", "ragged rows and values of another type: end the build, or leave them out; `quarantine` also writes them down",
        rule=DATA, choices=("refuse", "drop", "quarantine"),
    )  # fmt: skip
    most_bad: float = knob(1.0, "share of the rows that may be bad; more end the build", rule=DATA, low=0.0, high=1.0)
    rules: tuple[AnyRule, ...] = knob((), "that rows with a label must keep to", rule=DATA)
    dedup: str = knob(
        "exact", "`exact`: equal rows, key included, are kept once; `key`: one row of each key", rule=DATA,
        choices=("none", "exact", "key"),
    )  # fmt: skip
    keep: str = knob("", "dedup=`key`: the row with the largest value of this column; '': any, always the same", rule=DATA)
    split: ByGroup | ByHash | ByTime | ByColumn = knob(ByHash, "train, eval and test", rule=DATA)
    exclude_keys: str = knob("", "CSV file with the columns of `key`: rows of these keys are in nothing that a build writes")
    grow: str = knob(
        "refit", "where the source has grown: a version is built anew, or new rows are appended and what was fitted stays",
        choices=("refit", "append"),
    )  # fmt: skip
    drift: str = knob(
        "refuse", "a column of the source that is new, missing or of another type than for the version before: an error, or "
        "taken as far as it can be", choices=("refuse", "widen"),
    )  # fmt: skip
    keep_versions: int = knob(0, "older ones are removed when a new one is there; 0: none", low=0)
    storage: str = knob(
        "packed", "`packed` is 4 to 5 times faster to read; `columns` suits other tools", rule=DATA, choices=("packed", "columns")
    )
    group_rows: int = knob(4096, "of a Parquet row group, a power of two", unit="rows", rule=DATA, low=1)
    file_groups: int = knob(64, "of a Parquet file", unit="row groups", rule=DATA, low=1)
    hash_seed: int = knob(0, "of the row hash, so of the stored order and the split", rule=DATA, low=0)
    chunk_rows: int = knob(65_536, "read from the source at once", unit="rows", low=1)
    memory_bytes: int = knob(
        1 << 29, "that the build takes at most, about; on a cluster, here and in each worker", unit="bytes", low=1 << 20
    )
    workers: int = knob(0, "tasks at once; 0: one a core, on a cluster one a thread of its workers", low=0, high=256)
    executor: str = knob(
        "threads",
        "`threads`; `processes`, which pay where Python does the work: JSON lines, irregular CSV, a hook; or a Dask cluster by "
        "its scheduler, `dask://HOST:PORT` or, with certificates, `dask+tls://HOST:PORT`",
    )


# Of each task: what an evaluation tells, that steps may be compared by.
METRICS = {
    "binary": ("log_loss", "auc", "pr_auc", "accuracy", "calibration_error"),
    "regression": ("rmse", "mae", "r2"),
    "classes": ("log_loss", "accuracy", "calibration_error"),
    "tokens": ("log_loss", "perplexity"),
}

# ---- how it is trained -------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class LoaderConfig:
    """Which examples are a batch (`must`), and how they are read."""

    global_batch: int = knob(1024, "over all devices", unit="examples", rule=MUST, low=1)
    num_lanes: int = knob(0, "0: the largest divisor of global_batch not above 64", rule=MUST, low=0)
    window_rows: int = knob(0, "0: the smallest that holds 32 MiB, 4 row groups and 4 batches", unit="rows", rule=MUST, low=0)
    threads: int = knob(2, "that read and decode", low=1, high=64)
    prefetch: int = knob(4, "read ahead into this machine's memory", unit="batches", low=1, high=1024)
    on_device: int = knob(2, "put on the devices ahead of the step", unit="batches", low=1, high=64)
    skip: tuple[tuple[int, int], ...] = knob(
        (), "ranges [a, b) of example positions that are not trained on, such as those before a loss spike", unit="examples"
    )


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """What training minimises, besides what the task says. Evaluation knows none of it."""

    class_weight: str = knob(
        "none", "`balanced`: every class counts as much as any other, so that scores are no probabilities any more", rule=MUST,
        choices=("none", "balanced"),
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW with linear warm-up to `peak_lr` and a cosine to `end_lr`. Loshchilov, Hutter, arXiv:1711.05101."""

    peak_lr: float = knob(1e-3, "at the end of warm-up, for the global batch", low=0.0, high=1e3)
    end_lr: float = knob(0.0, "at the last step", low=0.0, high=1e3)
    warmup_steps: int = knob(100, "optimizer updates", unit="steps", low=0)
    weight_decay: float = knob(1e-4, "of matrices; never of biases or tables", low=0.0, high=1e3)
    b1: float = knob(0.9, "decay of the first moment", low=0.0, high=BELOW_ONE)
    b2: float = knob(0.999, "decay of the second moment", low=0.0, high=BELOW_ONE)
    clip_norm: float = knob(1.0, "of the global gradient; inf: no clipping", low=0.0)
    microbatches: int = knob(1, "parts of a batch that are computed one after another, their gradients added up", low=1)
    average: float = knob(
        0.0, "decay a step of a moving average of the parameters, which is what is evaluated; tables as they are; 0: none",
        rule=MUST, low=0.0, high=BELOW_ONE,
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    """Parameters are kept and updated in float32, norms, softmax and losses computed in it; the rest as said here."""

    compute: str = knob("float32", "of parameters where they are used", rule=MUST, choices=("float32", "bfloat16"))
    float32: tuple[str, ...] = knob(
        (), "patterns of parameter paths, such as head/.*, that compute in it all the same", rule=MUST
    )
    gradient_sum: str = knob(
        "compute", "in which the devices add up gradients, where a layout splits the model: `float32` sends them twice as large",
        choices=("compute", "float32"),
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class MeshConfig:
    """The named grid of devices. The product of the sizes is the number of devices used."""

    slice: int = knob(1, "TPU slices", unit="slices", low=1)
    data: int = knob(-1, "-1 takes the devices that the other axes leave", low=-1)
    fsdp: tuple[int, ...] = knob(
        (1,), "one mesh axis each; (-1,): the devices that the others leave, on a TPU one axis per torus dimension", low=-1
    )
    tensor: int = knob(1, "splits within a layer", low=1)
    layout: str = knob("fsdp", "table from dims to mesh axes", choices=("data", "fsdp", "fsdp_tensor"))


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation on the whole eval split, in a fixed order, padded to whole batches."""

    batch: int = knob(1024, "also the shape that `predict` pads to", unit="examples", low=1)
    every: int = knob(0, "0: only at the end", unit="steps", low=0)
    auc_rows: int = knob(1 << 24, "up to which AUC is exact; beyond it a histogram's bound is printed", unit="rows", low=1)
    patience: int = knob(0, "the run stops after so many in a row that were not better by checkpoint.keep_best; 0: never", low=0)
    min_delta: float = knob(0.0, "by which one must be better to count", low=0.0)
    use: str = knob("last", "the step that `evaluate` and `predict` take, unless told", choices=("last", "best"))


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When the state is saved. The last step always is."""

    every: int = knob(0, "0: not by steps", unit="steps", low=0)
    every_s: float = knob(120.0, "inf: not by time", unit="seconds", low=0.0)
    strict: bool = knob(False, "stop instead of going back to an older step when the newest is damaged")
    keep_last: int = knob(2, "steps that stay, the newest; more while they were not read back", unit="steps", low=1)
    keep_every: int = knob(0, "steps that are a multiple of it stay; 0: none", unit="steps", low=0)
    keep_best: str = knob(
        "auto", "the step that is best by it stays; `auto`: by log loss, of a number by RMSE; '': none",
        choices=("", "auto", *sorted({name for names in METRICS.values() for name in names})),
    )  # fmt: skip
    pins: tuple[int, ...] = knob((), "steps that stay", low=0)
    copies: str = knob("", "folder or address (s3://, gs://) that gets a copy of every step that stays; '': none")


@dataclass(kw_only=True, slots=True)
class InitConfig:
    """A trained run from whose arrays a new one begins (fine-tuning). Its optimizer and its steps are not taken over."""

    workdir: str = knob("", "of the trained run; '': from scratch", rule=MUST)
    step: int = knob(-1, "-1: the newest good one", unit="steps", rule=MUST, low=-1)
    parts: tuple[str, ...] = knob(("params", "tables", "model_state"), "paths of the arrays, such as params/hidden/0", rule=MUST)
    transform: str = knob(
        "same", "what was fitted on that run's dataset: what is fitted here, or something else, by which ids and scales mean "
        "other things", rule=MUST, choices=("same", "other"),
    )  # fmt: skip


@dataclass(kw_only=True, slots=True)
class BadNumbersConfig:
    """What becomes of a run whose loss or gradient is NaN or infinite. The same under a resume."""

    policy: str = knob(
        "stop", "`skip` leaves the update out; `rollback` goes back and leaves out the batches around it",
        choices=("stop", "skip", "rollback"),
    )  # fmt: skip
    window: int = knob(1, "rollback leaves out so many before the bad one, it, and one less behind", unit="batches", low=1)
    limit: int = knob(10, "so many in one attempt, then the run stops", low=1)


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where numbers go: the local log, and what reads it."""

    log_bytes: int = knob(1 << 32, "that the run's log may take; then its oldest lines go", unit="bytes", low=1 << 14)
    wandb: str = knob("auto", "`auto`: online when logged in, else offline", choices=("auto", "online", "offline", "off"))
    project: str = knob("mlprod", "W&B project")
    checkpoints: bool = knob(False, "W&B gets every saved step as an artifact, once it was read back")
    machine: bool = knob(False, "W&B gets the hostname, git remote, source, packages and hardware too")
    tensorboard: bool = knob(False, "event files in the run's folder; needs the extra `tensorboard`")
    others: tuple[Any, ...] = knob((), "trackers of your own: dataclasses with `open(run)`, see docs/tracking.md")
    start_s: float = knob(30.0, "that trackers may keep the start of the run waiting", unit="seconds", low=0.0)
    finish_s: float = knob(60.0, "that trackers may keep its end waiting", unit="seconds", low=0.0)
    progress: bool = knob(True, "a progress line in the terminal")


@dataclass(kw_only=True, slots=True)
class LimitsConfig:
    """How long each part of a run may take; then the process ends with 75, to be started again. inf: for ever."""

    join_s: float = knob(300.0, "the other processes, to come", unit="seconds", low=1.0)
    start_s: float = knob(1800.0, "devices, plan, state or restore, trackers", unit="seconds", low=1.0)
    compile_s: float = knob(3600.0, "the first batch; the first step with its compilation", unit="seconds", low=1.0)
    step_s: float = knob(600.0, "a step; its batch", unit="seconds", low=1.0)
    evaluate_s: float = knob(1800.0, "a batch of an evaluation; the first with its compilation", unit="seconds", low=1.0)
    save_s: float = knob(1800.0, "a save, as far as the loop waits for it; the end of the run", unit="seconds", low=1.0)
    grace_s: float = knob(
        30.0, "from SIGTERM to the end of the process, with a save where there is time", unit="seconds", low=0.0
    )
    heartbeat_s: float = knob(
        30.0,
        "several processes: without a sign of life from one, after which the others end",
        unit="seconds",
        low=2.0,
        high=3600.0,
    )


@dataclass(kw_only=True, slots=True)
class RuntimeConfig:
    """What JAX runs on."""

    platform: str = knob("", "'' takes the best there is", choices=("", "cpu", "cuda", "tpu"))
    num_cpu_devices: int = knob(1, "simulated on CPU, to try a mesh without the hardware", unit="devices", low=1)
    deterministic: bool = knob(False, "GPU: the same bits run to run, at some speed")
    compile_cache: str = knob(AUTO, "folder for compiled programs; `auto`: `compiled` in the run's folder; '': none")


@dataclass(kw_only=True, slots=True)
class Config:
    """A whole run: data, model and hardware."""

    name: str = knob(doc="of the run, for people")
    workdir: str = knob(doc="folder of the run: log, checkpoints, resolved config")
    dataset: str = knob(doc="folder of the dataset")
    dataset_version: int = knob(0, "of the dataset; 0: the one that the run began with, at its first start the newest", low=0)
    etl: EtlConfig = knob(doc="rows to dataset", rule=DATA)
    model: Any = knob(doc="a model family's config dataclass with `build(features, rngs)`", rule=MUST)
    loss: LossConfig = knob(LossConfig, "the loss")
    optim: OptimConfig = knob(OptimConfig, "the optimizer")
    loader: LoaderConfig = knob(LoaderConfig, "dataset to batches")
    precision: PrecisionConfig = knob(PrecisionConfig, "dtypes")
    mesh: MeshConfig = knob(MeshConfig, "the grid of devices")
    eval: EvalConfig = knob(EvalConfig, "evaluation")
    checkpoint: CheckpointConfig = knob(CheckpointConfig, "saves")
    bad_numbers: BadNumbersConfig = knob(BadNumbersConfig, "NaN and infinite losses and gradients")
    init: InitConfig = knob(InitConfig, "what a new run begins from")
    tracking: TrackingConfig = knob(TrackingConfig, "logs")
    runtime: RuntimeConfig = knob(RuntimeConfig, "the machine")
    limits: LimitsConfig = knob(LimitsConfig, "time limits")
    seed: int = knob(0, "of parameters, dropout and the order of examples", rule=MUST, low=0, high=(1 << 63) - 1)
    steps: int = knob(0, "0: as many as `epochs` takes", unit="steps", low=0, high=(1 << 31) - 1)
    epochs: float = knob(0.0, "0: as many as `steps` says", unit="epochs", low=0.0, high=1e6)
    fast_dev_run: bool = knob(False, "three steps of everything, in a folder of its own")


def kept_programs(cfg: Config) -> str:
    """Returns the folder of compiled programs; "" where none are kept: a run's folder in an object store holds none."""
    if cfg.runtime.compile_cache != AUTO:
        return cfg.runtime.compile_cache
    return "" if "://" in cfg.workdir or cfg.fast_dev_run else f"{cfg.workdir}/compiled"


def walk(section: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any, Any]]:
    """Yields (dotted path, field, type hint, value) of every field below the dataclass `section`, depth first."""
    hints = hints_of(type(section))
    for field in dataclasses.fields(section):
        here, value = f"{path}{field.name}", getattr(section, field.name)
        yield here, field, hints[field.name], value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, f"{here}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item) and not isinstance(item, type):
                    yield from walk(item, f"{here}[{i}].")
