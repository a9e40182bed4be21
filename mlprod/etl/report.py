"""What went into a dataset and what did not, as JSON and in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlprod.config import Column
from mlprod.features import FeatureSpec


@dataclass(kw_only=True)
class Counts:
    """Rows by what happened to them, and per column its nulls and range, over the rows that have a label."""

    read: int = 0
    bad: int = 0
    without_label: int = 0
    duplicates: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    low: dict[str, Any] = field(default_factory=dict)
    high: dict[str, Any] = field(default_factory=dict)

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
        for name, nulls in part.nulls.items():
            whole.nulls[name] = whole.nulls.get(name, 0) + nulls
        for extremes, found, pick in ((whole.low, part.low, min), (whole.high, part.high, max)):
            extremes.update({name: pick(extremes.get(name, value), value) for name, value in found.items()})
    return whole


def column_rows(counts: Counts, columns: Sequence[Column], spec: FeatureSpec, labelled: int) -> list[dict[str, Any]]:
    """Returns one JSON object a column: type, role, share of nulls, range, fill and vocabulary size."""
    fitted = {f.name: f for f in spec.features}
    rows = []
    for c in columns:
        f = fitted.get(c.name)
        rows.append({
            "name": c.name, "type": c.type, "role": c.role, "kind": c.kind if f else "",
            "null_share": counts.nulls[c.name] / max(labelled, 1),
            "low": counts.low.get(c.name), "high": counts.high.get(c.name),
            "fill": f.fill if f and f.kind == "numeric" and not c.sensitive else None,
            "vocabulary": len(f.vocabulary) if f and f.kind == "categorical" else None,
        })  # fmt: skip
    return rows


def _kind(c: Mapping[str, Any]) -> str:
    """Returns what a column is and became, in a few words."""
    if c["vocabulary"] is not None:
        return f"{c['vocabulary']:,} values"
    if c["fill"] is not None:
        return f"number, median {c['fill']:g}"
    return str(c["kind"] or c["role"])


def show(report: Mapping[str, Any]) -> None:
    """Prints a data report to the terminal."""
    console = Console(highlight=False)
    rows = report["rows"]
    console.print(
        f"[bold]{report['dataset']}[/] version {report['version']}, dataset_id {report['dataset_id']}\n"
        f"{rows['read']:,} rows read in {report['seconds']:.1f} s, {rows['kept']:,} kept\n"
        f"{rows['without_label']:,} left out: no label; {rows['duplicates']:,} left out: exact duplicates"
    )
    if rows.get("bad"):
        where = f": {report['dataset']}/{report['quarantine']}" if report["quarantine"] else ""
        console.print(f"{rows['bad']:,} left out: not what the config says{where}", markup=False, soft_wrap=True)
    splits = Table("split", "rows", "positive", "files", "MB", box=SIMPLE_HEAD, pad_edge=False)
    for name, s in report["splits"].items():
        splits.add_row(name, f"{s['rows']:,}", f"{s['positive_share']:.2%}", str(s["files"]), f"{s['bytes'] / 1e6:.1f}")
    console.print(splits)
    columns = Table("column", "type", "becomes", "missing", "range", box=SIMPLE_HEAD, pad_edge=False)
    for c in report["columns"]:
        ends = "" if c["low"] is None else f"{c['low']:g} .. {c['high']:g}"
        columns.add_row(c["name"], c["type"], _kind(c), f"{c['null_share']:.2%}", ends)
    console.print(columns)
