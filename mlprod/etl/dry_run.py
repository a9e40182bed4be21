"""`mlprod etl --dry-run`: what a build would make of the source, from its first rows, in seconds on any size.

Promise: nothing is written; values of sensitive columns are not shown. What is seen of the first rows is said to be of them.
Price: rows further on may hold what these do not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlprod.config import AUTO, AnyLabel, Classes, Column, Config, EtlConfig, NextToken, Number, SqlSource
from mlprod.errors import DataError
from mlprod.etl import gather, infer, rules, sources, tokenize
from mlprod.etl.derive import check_row_wise, derive
from mlprod.etl.extract import renamed, source_columns
from mlprod.etl.label import described, label_column, said
from mlprod.etl.lookups import read_lookup
from mlprod.etl.schema import Loose, cast_chunk
from mlprod.validation import validate_etl

SAMPLE_ROWS, LONGEST, WIDE = 1000, 24, 100  # rows looked at; characters of a value, and of a terminal that has room for three


@dataclass(frozen=True)
class Look:
    """What the first rows say."""

    etl: EtlConfig  # with the types found in these rows
    rows: pa.Table  # [B] of them, those that are what the config says, with lookups and derived columns
    bad: Mapping[int, str]  # of all looked at: row -> why it is not
    chunk: Loose
    unused: Sequence[str]  # columns of the source that the config does not name


def look(etl: EtlConfig) -> Look:
    """Reads the first rows of the source.

    Raises:
        DataError: the source, a lookup or a column is missing, there are no rows, or the hook fails on them.
        ConfigError, MachineError: a tokenizer cannot be used.
    """
    tokenize.identity(etl.label)
    lookups = [read_lookup(lookup, etl.columns) for lookup in etl.lookups]
    names = [c.name for c in [*source_columns(etl), label_column(etl.label)]]
    sources.check_header(etl.source, names)
    chunk = sources.head(etl.source, names, SAMPLE_ROWS)
    if chunk is None:
        raise DataError("the source has no rows; check config.etl.source and its filters")
    etl = infer.with_types(etl, _types(etl, chunk))
    validate_etl(etl)
    rows, bad = cast_chunk(chunk, [*source_columns(etl), label_column(etl.label)])
    rows = renamed(etl, rows.filter(pa.array([i not in bad for i in range(rows.num_rows)])))
    for lookup in lookups:
        rows = lookup.join(rows)
    rows, _ = gather.gathered_rows(etl, rows, np.ones(rows.num_rows, bool), SAMPLE_ROWS)
    labelled = rows.filter(pc.is_valid(rows[etl.label.column]))
    if labelled.num_rows:
        check_row_wise(etl, labelled)
        rules.check_expressions(etl, derive(etl, labelled))
    unused = [name for name in sources.column_names(etl.source) if name not in names]
    return Look(etl, derive(etl, rows), bad, chunk, unused)


def _types(etl: EtlConfig, chunk: Loose) -> dict[str, str]:
    """Returns the types of the columns whose type the config leaves open."""
    told, types = sources.stored_types(etl.source), {}
    for c in etl.columns:
        if c.type == AUTO:
            name = c.source or c.name
            values = chunk.columns[name]
            fitting = infer.holding(values, infer.allowed(c))
            types[name] = told.get(name) or infer.first_fitting(c, fitting, there=infer.any_value(values))
    return types


def main(cfg: Config) -> None:
    """Prints what a build would make of the source."""
    seen, console = look(cfg.etl), Console(highlight=False)
    etl, rows = seen.etl, seen.rows
    console.print(f"{_described(etl)}; nothing is built, {cfg.dataset} stays as it is", markup=False, soft_wrap=True)
    if etl.columns:
        console.print(_columns(seen, cfg.etl, shown_rows=3 if console.width >= WIDE else 1))
    label = rows[etl.label.column].drop_null()
    console.print(f"of the first {seen.chunk.num_rows:,} rows:")
    console.print(f"  label {described(etl.label)}: {_label_seen(etl.label, label)} {len(label):,} with a value", markup=False)
    if seen.bad:
        first = min(seen.bad)
        console.print(
            f"  {len(seen.bad):,} not what the config says (bad_rows={etl.bad_rows!r}); the first, {seen.chunk.where(first)}: "
            f"{seen.bad[first]}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    broken = rules.applied(etl, labelled := rows.filter(pc.is_valid(rows[etl.label.column])), rules.told_by_values(etl))
    for words, count in Counter(rules.in_words(etl, rule) for rule, _ in broken.values()).items():
        console.print(f"  {count:,} of {labelled.num_rows:,} break a rule: {words}", markup=False, soft_wrap=True)
    if cfg.etl.gathered:
        console.print("  what other rows tell is of these rows, and of the first of other sources; the build looks at all")
    if any(c.type == AUTO for c in cfg.etl.columns):
        console.print("  types marked * are of these rows; the build looks at every value")
    if seen.unused:
        console.print(f"left in the source: {', '.join(seen.unused)}", markup=False, soft_wrap=True)


@singledispatch
def _label_seen(label: AnyLabel, values: pa.ChunkedArray) -> str:
    """Returns what the labels of some values come to, in words that `of` or `in` and their number follow."""
    return f"{pc.mean(said(label, values)).as_py() or 0.0:.1%} of"


@_label_seen.register
def _(label: Number, values: pa.ChunkedArray) -> str:
    return f"mean {pc.mean(said(label, values)).as_py() or 0.0:.6g} of"


@_label_seen.register
def _(label: Classes, values: pa.ChunkedArray) -> str:
    return f"{len(pc.unique(values))} classes in"


@_label_seen.register
def _(label: NextToken, values: pa.ChunkedArray) -> str:
    return f"{pc.mean(pc.binary_length(values)).as_py() or 0.0:,.0f} bytes each of"


def _described(etl: EtlConfig) -> str:
    """Returns where the rows come from, and about how many there are."""
    if isinstance(etl.source, SqlSource):
        return f"a query of {etl.source.table!r}" if etl.source.table else "the query"
    files, size, rows = sources.extent(etl.source)
    return f"{etl.source.path}: {files:,} file(s), {size / 1e6:,.1f} MB, about {rows:,} rows"


def _columns(seen: Look, given: EtlConfig, shown_rows: int) -> Table:
    """Returns a table of a line a column: what it is, what it becomes, and its first values."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("column", overflow="fold", min_width=min(LONGEST, max(len(c.name) for c in seen.etl.columns)))
    for head in ("type", "use"):
        table.add_column(head, no_wrap=True, min_width=9)
    table.add_column("missing", no_wrap=True, justify="right", min_width=7)
    for i in range(min(shown_rows, seen.rows.num_rows)):
        table.add_column(f"row {i + 1}", no_wrap=True, overflow="ellipsis")
    open_types = {c.name for c in given.columns if c.type == AUTO}
    for c in seen.etl.columns:
        values = seen.rows[c.name]
        missing = f"{values.null_count / max(len(values), 1):.1%}"
        first = [_cell(c, value) for value in values.slice(0, shown_rows).to_pylist()]
        kind = c.type + "*" * (c.name in open_types)
        table.add_row(*map(Text, (c.name, kind, _use(seen.etl, c), missing, *first)))
    return table


def _use(etl: EtlConfig, column: Column) -> str:
    words = [
        column.kind if column.role == "feature" else column.role,
        "key" * (column.name in etl.key),
        "derived" * (not column.extracted),
    ]
    return ", ".join(filter(None, words))


def _cell(column: Column, value: Any) -> str:
    """Returns a value on one line, cut when it is long."""
    if value is None or column.sensitive:
        return "" if value is None else "(hidden)"
    if column.type in ("float64", "timestamp"):
        return f"{value:.6g}" if column.type == "float64" else f"{value:%Y-%m-%d %H:%M:%S}"
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
