"""The verb `report`: a run as one page of HTML that needs nothing else.

Promise: no script, font or picture from elsewhere; text of the user's is escaped, and no value of a sensitive column is shown.
What is not there (no evaluation, no dataset any more, a run that was killed at once) is said in a line. The files of the run are
not changed.
"""

import argparse
import dataclasses
import datetime as dt
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from mlprod import documents, manifest
from mlprod.attempts import EVERY_S
from mlprod.compare import as_json, completed, differences
from mlprod.config import Config
from mlprod.errors import MlprodError, WorkdirError
from mlprod.etl import report as data_report
from mlprod.report import cards, past
from mlprod.report.past import HIDDEN, Attempt, Line, Past
from mlprod.runtime import check_writable
from mlprod.store import is_remote, open_store


def main(cfg: Config, options: argparse.Namespace) -> None:
    """Writes the page of the config's run and prints where it lies."""
    run = past.read(Path(cfg.workdir))
    path = Path(options.output or Path(cfg.workdir) / "report.html")
    if path.is_symlink() and not options.output:
        raise WorkdirError(f"{path} is a link, and may lead to any file of yours; remove it, or give --output")
    with past.told_of(run):
        page = rendered("page.html", view(run, cfg, path))
    write(path, page)


def write(path: Path, text: str) -> None:
    """Writes a page and prints where; raises WorkdirError when it cannot be."""
    check_writable(f"--output={path}", path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WorkdirError(f"--output={path} cannot be written: {error.strerror}; give another file") from error
    print(path)


def rendered(template: str, shown: Mapping[str, Any]) -> str:
    """Returns a page of a template beside this file."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    engine.filters |= {
        "visible": lambda value, longest=1 << 30: data_report.visible(str(value), longest),
        "share": data_report.share,
    }
    return engine.get_template(template).render(shown)


def view(run: Past, cfg: Config, path: Path) -> dict[str, Any]:
    """Returns what the page of a run shows; `path`: of the page, from which links lead."""
    return {
        "name": run.name, "state": run.state(), "notes": run.notes, "facts": list(_facts(run)), "every": f"{EVERY_S:g}",
        "training": cards.training(run), "attempts": [_attempt(i, a, run) for i, a in enumerate(run.attempts, 1)],
        "changes": list(_changes(run.attempts)), "ledger": ledger(run.attempts),
        "evaluations": [_evaluation(e, run) for e in _newest(run.evaluations)], "older": _all(run.evaluations),
        "data": data_of(run, path.parent), "config": list(past.shown(run.config).items()),
        "changed": changed(cfg, run.config) if run.config else [], "differs": list(_differs(run, cfg)),
        "surroundings": [(name, told or "none") for name, told in past.surroundings(run.about).items()],
    }  # fmt: skip


# ---- the run -----------------------------------------------------------------------------------------------------------


def when(seconds: float) -> str:
    """Returns a time, in UTC, to the second."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S}"


def number(value: float) -> str:
    """Returns a metric's value: whole numbers in full."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def _facts(run: Past) -> Iterator[tuple[str, str]]:
    yield "folder", str(run.workdir)
    yield "run", f"{run.attempts[-1].run}, {len(run.attempts)} attempt(s)"
    yield "began, last heard of (UTC)", f"{when(run.attempts[0].began)}, {when(max(a.heard for a in run.attempts))}"
    if run.about.get("dataset_id"):
        yield "dataset", f"{run.config.get('dataset', '')}, dataset_id {run.about['dataset_id']}"
    if run.step and run.batch:
        yield "trained on", f"{run.step * run.batch:,} examples, {run.batch:,} a step"
    if run.step:
        yield f"last loss ({cards.loss_label(run).partition('(')[2]}", f"{run.train.values['loss'][-1]:.6g}"
    for split, found in run.newest().items():
        metrics = ", ".join(f"{name} {number(value)}" for name, value in found["metrics"].items() if name in cards.LABELS)
        yield f"{split}, step {found['step']}", metrics


def _attempt(count: int, attempt: Attempt, run: Past) -> tuple[str, ...]:
    """Returns the cells of an attempt's row."""
    last, steps = attempt is run.attempts[-1], run.about.get("steps", 0)
    if steps and attempt.reached >= steps:
        told = "done"
    elif attempt.ended:
        told = "ended: stopped, or failed"
    elif attempt.about is None:
        told = "not known"
    else:
        told = "under way, or killed" if last else "killed"
    seconds = f"{attempt.heard - attempt.began:,.0f} s"
    return (str(count), when(attempt.began), f"{attempt.start:,}", f"{attempt.reached:,}", seconds, told)


def _changes(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Yields a line for each attempt that was not as the one before."""
    for count, (old, new) in enumerate(pairwise(attempts), 2):
        told = ", ".join(f"{name} {a or 'nothing'} -> {b or 'nothing'}" for name, (a, b) in past.between(old, new).items())
        if told:
            yield f"Changed with attempt {count}: {told}."


def ledger(attempts: Sequence[Attempt]) -> list[tuple[str, float, float]]:
    """Returns (activity, seconds, share of all) over all attempts, the largest first and the unattributed last."""
    seconds: dict[str, float] = {}
    for attempt in attempts:
        for activity, took in attempt.seconds.items():
            seconds[activity] = seconds.get(activity, 0.0) + took
    total = sum(attempt.uses[-1]["elapsed"] for attempt in attempts if attempt.uses)
    if not total:
        return []
    rows = sorted(seconds.items(), key=lambda item: -item[1])
    return [(name, took, took / total) for name, took in [*rows, ("unattributed", max(total - sum(seconds.values()), 0.0))]]


# ---- evaluations -------------------------------------------------------------------------------------------------------


def _newest(evaluations: Sequence[Line]) -> list[Line]:
    return list({e["split"]: e for e in evaluations}.values())


def _evaluation(e: Line, run: Past) -> dict[str, Any]:
    """Returns what is shown of an evaluation."""
    figures, id_ = e["figures"], run.about.get("dataset_id", "")
    note = f"Of another dataset than the run's: dataset_id {e['dataset_id']}." if id_ and e["dataset_id"] not in ("", id_) else ""
    confusion = [
        (name, [(rows, rows / max(sum(counts), 1)) for rows in counts])
        for name, counts in zip(figures.get("classes", ()), figures.get("confusion", ()), strict=False)
    ]
    return {
        "split": e["split"], "step": e["step"], "note": note,
        "metrics": [(cards.label_of(name), number(value)) for name, value in e["metrics"].items()],
        "cards": cards.evaluation(e["task"], figures), "classes": figures.get("classes", ()), "confusion": confusion,
        "thresholds": [[f"{row[0]:g}", *(f"{value:.4f}" for value in row[1:])] for row in figures.get("thresholds", ())],
        "by": [(column, *_segments(parts)) for column, parts in e["by"].items() if parts],
    }  # fmt: skip


def _segments(parts: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Returns (heads, rows) of a table of segments."""
    names = [name for name in parts[0] if name != "value"]
    rows = [[str(part.get("value", "")), *(number(part[name]) if name in part else "" for name in names)] for part in parts]
    return ["value", *(cards.label_of(name) for name in names)], rows


def _all(evaluations: Sequence[Line]) -> dict[str, Any]:
    """Returns the table of all evaluations where a split has several; {} else."""
    if len(evaluations) == len(_newest(evaluations)):
        return {}
    names = list(dict.fromkeys(name for e in evaluations for name in e["metrics"]))
    rows = [
        [e["split"], str(e["step"]), *(number(e["metrics"][n]) if n in e["metrics"] else "" for n in names)] for e in evaluations
    ]
    return {"heads": ["split", "step", *map(cards.label_of, names)], "rows": rows}


# ---- data --------------------------------------------------------------------------------------------------------------


def data_of(run: Past, folder: Path) -> dict[str, Any]:
    """Returns the main part of the data report of the run's dataset; "note" says why there is none."""
    where, id_ = str(run.config.get("dataset", "")), run.about.get("dataset_id", "")
    nothing = {"lines": [], "heads": [], "splits": [], "warnings": [], "link": ""}
    if not id_:
        return {"note": "Not known.", **nothing}
    if is_remote(where):
        return {"note": f"It lies at {where.partition('?')[0]} and was not read; `mlprod data show` tells of it.", **nothing}
    try:
        store = open_store(where)
        known = [manifest.read(store, version) for version in manifest.versions(store)]
        published = next((m for m in reversed(known) if m.dataset_id == id_), None)
        if published is None:
            return {"note": f"{where} holds no version with dataset_id {id_} any more.", **nothing}
        return {"note": "", **_told(documents.parse(store.read(published.report)), Path(where) / published.report, folder)}
    except (MlprodError, OSError, ValueError, KeyError, TypeError) as error:
        return {"note": f"The report of {where} cannot be read ({type(error).__name__}).", **nothing}


def _told(body: Mapping[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """Returns lines, splits and warnings of a data report, and a link to its page, where there is one."""
    rows, means = body["rows"], data_report.MEANS[data_report.task_of(body)]
    out = [f"{rows[why]:,} left out: {words}." for why, words in data_report.DROPPED.items() if rows.get(why)]
    page = path.with_suffix(".html")
    return {
        "lines": [f"{rows['read']:,} rows read, {rows['kept']:,} kept; version {body['version']}.", *out],
        "heads": ["split", "rows", *([means] if means else [])],
        "splits": [
            [name, f"{s['rows']:,}", *([data_report.mean_label(body, s)] if means else [])] for name, s in body["splits"].items()
        ],
        "warnings": body.get("warnings", ()),
        "link": quote(Path(os.path.relpath(page.absolute(), folder.absolute())).as_posix()) if page.is_file() else "",
    }  # fmt: skip


# ---- config ------------------------------------------------------------------------------------------------------------


def changed(cfg: Config, saved: Line) -> list[tuple[str, str, str]]:
    """Returns (dotted path, value, default) of the fields of a saved config that are not at their defaults."""
    hidden = past.hidden(saved)
    found = [(path, HIDDEN if path.startswith(hidden) else value, default) for path, value, default in _changed(cfg, saved, "")]
    return [row for row in found if not row[0].endswith((".class", "].name"))]


def _changed(now: Any, saved: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yields what is not at its default below a section; `now`: a section of the same kind, which knows the defaults."""
    if not (dataclasses.is_dataclass(now) and isinstance(saved, Mapping) and saved.get("class") == type(now).__name__):
        yield from ((here, str(value), "") for here, value in past.leaves(saved, path))
        return
    for field in dataclasses.fields(now):
        if field.name not in saved:
            continue
        here, value, live = f"{path}.{field.name}".lstrip("."), saved[field.name], getattr(now, field.name)
        default = _default(field)
        if default is not dataclasses.MISSING and as_json(default) == value:
            continue
        if (
            isinstance(live, tuple)
            and isinstance(value, list)
            and len(live) == len(value)
            and any(map(dataclasses.is_dataclass, live))
        ):
            for i, (item, of_item) in enumerate(zip(live, value, strict=True)):
                name = of_item.get("name", i) if isinstance(of_item, Mapping) else i
                yield from _changed(item, of_item, f"{here}[{name}]")
        elif dataclasses.is_dataclass(live):
            yield from _changed(live, value, here)
        else:
            default_told = "" if default is dataclasses.MISSING else ", ".join(str(v) for _, v in past.leaves(as_json(default)))
            yield from ((at, str(leaf), default_told) for at, leaf in past.leaves(value, here))


def _default(field: dataclasses.Field[Any]) -> Any:
    """Returns a field's default, or MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _differs(run: Past, cfg: Config) -> Iterator[tuple[str, str, str]]:
    """Yields (dotted path, value of the run, value of the config file) where they are not the same any more."""
    if not run.config:
        return
    now = as_json(cfg)
    hidden = (*past.hidden(run.config), *past.hidden(now))
    for path, (a, b) in differences(completed(run.config, cfg), now).items():
        yield (path, HIDDEN, HIDDEN) if path.startswith(hidden) else (path, str(a), str(b))
