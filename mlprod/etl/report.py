"""What went into a dataset and what did not, what its columns look like, and what to mistrust: as JSON and in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlprod.config import Column, EtlConfig
from mlprod.etl import newcomers
from mlprod.etl.label import described
from mlprod.etl.profile import Profile, profiles
from mlprod.etl.settle import LABEL
from mlprod.etl.warn import warnings_of
from mlprod.etl.write import Written
from mlprod.features import FIRST, FeatureSpec
from mlprod.manifest import Manifest


@dataclass(kw_only=True)
class Counts:
    """Rows by what happened to them, and per column its nulls and range, over the rows that have a label."""

    read: int = 0
    bad: int = 0
    without_label: int = 0
    duplicates: int = 0
    known: int = 0  # rows that a version before has, or, with dedup `key`, whose key it has
    excluded: int = 0  # rows of keys that the config leaves out
    broken: dict[str, int] = field(default_factory=dict)  # by the words of the rule that a row breaks first
    firsts: dict[str, str] = field(default_factory=dict)  # by the same: the first of them, and why
    quarantined: int = 0  # of those that are bad or break a rule: written down
    nulls: dict[str, int] = field(default_factory=dict)
    low: dict[str, Any] = field(default_factory=dict)
    high: dict[str, Any] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        """Rows that are what the config says, with a label."""
        return self.read - self.bad - self.excluded - self.without_label

    @property
    def usable(self) -> int:
        """Rows that were not left out when they were read."""
        return self.labelled - self.num_broken

    @property
    def num_broken(self) -> int:
        """Rows that break a rule."""
        return sum(self.broken.values())

    def first_broken(self) -> str:
        """Returns the first row that broke the first rule that any broke."""
        return next(iter(self.firsts.values()))

    def add(self, rows: pa.Table, columns: Sequence[Column]) -> None:
        """Counts one chunk."""
        for c in columns:
            self.nulls[c.name] = self.nulls.get(c.name, 0) + rows[c.name].null_count
            if c.type in ("int64", "float64") and not c.sensitive:
                ends = pc.min_max(rows[c.name]).as_py()
                for extremes, pick, value in ((self.low, min, ends["min"]), (self.high, max, ends["max"])):
                    if value is not None:
                        extremes[c.name] = pick(extremes.get(c.name, value), value)


def quarantine(version: int) -> str:
    """Returns where a version's bad rows are written, below the dataset's folder."""
    return f"quarantine/{version:06d}.jsonl"


def merged(parts: Sequence[Counts]) -> Counts:
    """Returns the counts of all parts together."""
    whole = Counts()
    for part in parts:
        whole.read += part.read
        whole.bad += part.bad
        whole.without_label += part.without_label
        whole.duplicates += part.duplicates
        whole.quarantined += part.quarantined
        whole.known += part.known
        whole.excluded += part.excluded
        whole.firsts = part.firsts | whole.firsts
        for rule, rows in part.broken.items():
            whole.broken[rule] = whole.broken.get(rule, 0) + rows
        for name, nulls in part.nulls.items():
            whole.nulls[name] = whole.nulls.get(name, 0) + nulls
        for extremes, found, pick in ((whole.low, part.low, min), (whole.high, part.high, max)):
            extremes.update({name: pick(extremes.get(name, value), value) for name, value in found.items()})
    return whole


def column_rows(
    counts: Counts, columns: Sequence[Column], spec: FeatureSpec, labelled: int, profiles: Mapping[str, Profile]
) -> list[dict[str, Any]]:
    """Returns one JSON object a column: what it is and becomes, what is missing, its ends, and what is seen of it."""
    fitted = {f.name: f for f in spec.fitted}
    rows = []
    for c in columns:
        f, seen = fitted.get(c.name), profiles[c.name]
        rows.append({
            "name": c.name, "type": c.type, "role": c.role, "kind": c.kind if f else "", "sensitive": c.sensitive,
            "nulls": counts.nulls.get(c.name, 0), "null_share": counts.nulls.get(c.name, 0) / max(labelled, 1),
            "missing": c.missing,
            "low": counts.low.get(c.name, None if c.sensitive else seen.low),
            "high": counts.high.get(c.name, None if c.sensitive else seen.high),
            "fill": f.fill if f and f.kind == "numeric" and not c.sensitive else None,
            "vocabulary": f.num_ids - FIRST if f and f.kind != "numeric" else None,
            "buckets": f.buckets if f else 0,
            **seen.shown(sensitive=c.sensitive),
        })  # fmt: skip
    return rows


def body(
    dataset: str,
    etl: EtlConfig,
    published: Manifest,
    written: Mapping[str, Written],
    counts: Counts,
    spec: FeatureSpec,
    tables: Mapping[str, pa.Table],
) -> dict[str, Any]:
    """Returns the report as JSON data, but for the seconds; `tables`: rows of each split, see `stored.sample`."""
    labelled = counts.usable
    splits = _splits(written)
    shown = [*_label_shown(etl), *etl.columns]
    seen = profiles({split: _with_label(table, shown) for split, table in tables.items()}, shown, spec)
    return {
        **_about(dataset, etl, published, counts, kept=sum(w.num_rows for w in written.values())),
        "splits": splits, "sample": {split: table.num_rows for split, table in tables.items()},
        "columns": column_rows(counts, shown, spec, labelled, seen),
        "warnings": warnings_of(etl.columns, spec, seen, splits),
    }  # fmt: skip


def of_texts(
    dataset: str,
    etl: EtlConfig,
    published: Manifest,
    written: Mapping[str, Written],
    counts: Counts,
    spec: FeatureSpec,
    texts: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Returns the report of packed texts as JSON data, but for the seconds; `texts`: what is known of each split's."""
    splits = _splits(written)
    return {
        **_about(dataset, etl, published, counts, kept=sum(text["documents"] for text in texts.values())),
        "splits": {name: {**split, **texts[name]} for name, split in splits.items()},
        "row_tokens": spec.sequences[0].length, "num_ids": spec.sequences[0].num_ids,
        "sample": {}, "columns": [], "warnings": warnings_of((), spec, {}, splits),
    }  # fmt: skip


def of_growth(
    dataset: str,
    etl: EtlConfig,
    published: Manifest,
    written: Mapping[str, Written],
    counts: Counts,
    found: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the report of rows that are appended, but for the seconds; `found`: see `newcomers.differences`."""
    new, all_rows = sum(w.num_rows for w in written.values()), sum(map(published.num_rows, published.splits))
    return {
        **_about(dataset, etl, published, counts, kept=new),
        "appended": {"to": published.parent, "rows_before": all_rows - new, "drift": list(found)},
        "splits": _splits(written), "sample": {}, "columns": [], "warnings": list(newcomers.warnings(found)),
    }  # fmt: skip


def _about(dataset: str, etl: EtlConfig, published: Manifest, counts: Counts, kept: int) -> dict[str, Any]:
    return {
        "dataset": dataset, "version": published.version, "dataset_id": published.dataset_id,
        "label": {"column": etl.label.column, "task": etl.label.task, "says": described(etl.label)},
        "rows": {
            "read": counts.read, "bad": counts.bad, "without_label": counts.without_label, "duplicates": counts.duplicates,
            "broken": counts.num_broken, "excluded": counts.excluded, "known": counts.known, "kept": kept,
        },
        "rules": counts.broken,
        "quarantine": quarantine(published.version) if counts.quarantined else "",
    }  # fmt: skip


def _splits(written: Mapping[str, Written]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "rows": w.num_rows, "label_mean": w.label_mean,
            "files": len(w.shards), "bytes": sum(s.bytes for s in w.shards),
        }
        for name, w in written.items()
    }  # fmt: skip


def _label_shown(etl: EtlConfig) -> list[Column]:
    """Returns the label as a column that is looked at: a number, or which class. A binary one is seen in its mean."""
    if etl.label.task == "binary":
        return []
    return [Column(name=etl.label.column, type="float64" if etl.label.task == "regression" else "string", role="label")]


def _with_label(table: pa.Table, shown: Sequence[Column]) -> pa.Table:
    return table.append_column(shown[0].name, table[LABEL]) if shown[0].role == "label" else table


# ---- for people --------------------------------------------------------------------------------------------------------

DROPPED = {
    "bad": "not what the config says", "without_label": "no label", "broken": "they break a rule", "excluded": "of excluded keys",
    "known": "of a version before", "duplicates": "duplicates",
}  # fmt: skip


def visible(text: str, longest: int = 1 << 30) -> str:
    """Returns text on one line with what cannot be seen, such as control characters, as escapes; cut when it is long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def number(value: Any, digits: int = 6) -> str:
    """Returns a value of a column: a number to so many digits, whole ones of a few more in full; text as it is; "" for None."""
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if value == int(value) and abs(value) < 10 ** (3 * digits - 3) else f"{value:.{digits}g}"


def share(part: float, digits: int = 1) -> str:
    """Returns a share in percent; one that is neither 0 nor 1 does not look it."""
    least = 10.0**-digits
    percent = part if part in (0, 1) else min(max(100 * part, least), 100 - least) / 100
    return f"{percent:.{digits}%}"


def becomes(c: Mapping[str, Any]) -> str:
    """Returns what a column becomes, in a few words."""
    if c["vocabulary"] is not None:
        return f"{c['vocabulary']:,} {'buckets' if c.get('buckets') else 'values'}"
    words = {"numeric": "number", "input": "not stored", "weight": "weight", "label": "the label"}
    return words.get(c["kind"] or c["role"], "as it is")


def filled(c: Mapping[str, Any]) -> str:
    """Returns what stands for a missing value."""
    if not c["kind"]:
        return ""
    if c["missing"] == "refuse":
        return "refused"
    if c["kind"] == "categorical":
        return "an id"
    return "hidden" if c["sensitive"] else number(c["fill"])


def middle(c: Mapping[str, Any]) -> Any:
    """Returns the median of a column: of a feature that of all training rows, which fills it."""
    return c["median"] if c["fill"] is None else c["fill"]


MEANS = {"binary": "positive", "regression": "mean label", "classes": "", "tokens": "predicted a row"}
OF_TEXT = ("documents", "tokens", "longest", "cut", "padding")  # of a split, besides what every task has


def task_of(report: Mapping[str, Any]) -> str:
    """Returns what is learned: of a report that an older mlprod wrote, always a binary label."""
    task: str = report["label"].get("task", "binary")
    return task


def mean_label(report: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    """Returns the mean label of a split: the share of positives; "" where it means nothing."""
    if not split["rows"] or task_of(report) == "classes":
        return ""
    mean = split["label_mean"] if "label_mean" in split else split["positive_share"]
    return share(mean, 2) if task_of(report) == "binary" else number(mean)


def told_of_text(report: Mapping[str, Any], split: Mapping[str, Any], what: str) -> str:
    """Returns one of `OF_TEXT` of a split: padding as a share of all that is stored."""
    if what == "padding":
        return share(split[what] / max(split["rows"] * report["row_tokens"], 1))
    return f"{split[what]:,}"


def show(report: Mapping[str, Any]) -> None:
    """Prints a data report to the terminal."""
    console = Console(highlight=False)
    rows = report["rows"]
    console.print(
        f"{report['dataset']} version {report['version']}, dataset_id {report['dataset_id']}\n"
        f"{rows['read']:,} rows read in {report['seconds']:.1f} s, {rows['kept']:,} kept",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    written = "broken" if rows.get("broken") else "bad"
    for reason, words in DROPPED.items():
        where = f": {report['dataset']}/{report['quarantine']}" if reason == written and report.get("quarantine") else ""
        if rows.get(reason):
            console.print(f"{rows[reason]:,} left out: {words}{where}", markup=False, soft_wrap=True)
    for rule, count in report.get("rules", {}).items():
        console.print(f"  {count:,} not so: {visible(rule)}", markup=False, soft_wrap=True)
    if "appended" in report:
        told = report["appended"]
        console.print(f"appended to version {told['to']}, which has {told['rows_before']:,} rows; the new ones:", markup=False)
    splits = Table("split", box=SIMPLE_HEAD, pad_edge=False)
    for head in ("rows", MEANS[task_of(report)], "files", "MB"):
        splits.add_column(head, justify="right")
    for name, s in report["splits"].items():
        splits.add_row(name, f"{s['rows']:,}", mean_label(report, s), str(s["files"]), f"{s['bytes'] / 1e6:.1f}")
    console.print(splits)
    of_text = [what for what in OF_TEXT if what in report["splits"]["train"]]
    if of_text:
        console.print(_text_table(report, of_text))
    if "warnings" not in report:  # of a version that an older mlprod built
        return
    if report["columns"]:
        console.print(_column_table(report["columns"], ends=console.width >= WIDE))
    for line in report["warnings"]:
        console.print(Text.assemble(("warning: ", "bold yellow"), line), soft_wrap=True)


WIDE = 100  # characters of a terminal that has room for the ends of columns too


def _text_table(report: Mapping[str, Any], of_text: Sequence[str]) -> Table:
    table = Table("split", box=SIMPLE_HEAD, pad_edge=False)
    for what in of_text:
        table.add_column(what, justify="right")
    for name, split in report["splits"].items():
        table.add_row(name, *(told_of_text(report, split, what) for what in of_text))
    return table


def _column_table(columns: Sequence[Mapping[str, Any]], *, ends: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("column", overflow="fold")  # the one that gives way
    for head in ("type", "becomes"):
        table.add_column(head, no_wrap=True)
    for head in ("missing", "distinct", *(("min", "median", "max") if ends else ("median",)), "PSI"):
        table.add_column(head, no_wrap=True, justify="right")
    for c in columns:
        values = (c["low"], middle(c), c["high"]) if ends else (middle(c),)
        drift = "" if c["psi"] is None else f"{c['psi']:.2f}"
        figures = (share(c["null_share"]), f"{c['distinct']:,}", *map(_brief, values), drift)
        table.add_row(*(Text(cell) for cell in (visible(c["name"], 60), c["type"], becomes(c), *figures)))
    return table


def _brief(value: Any) -> str:
    """Returns a number to four digits; of a time, the day."""
    return value[:10] if isinstance(value, str) else number(value, 4)
