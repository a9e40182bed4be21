"""The verb `compare`: what differs between runs, and their metrics beside each other.

Promise: only the runs' folders are read, no device and no dataset is needed, and nothing is changed: runs may be under way.
Metrics on different datasets are marked, for they cannot be compared. No value of a sensitive column is shown.
"""

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlprod import recipe
from mlprod.errors import UserError
from mlprod.etl.report import visible
from mlprod.report import cards, charts, past
from mlprod.report.cards import Card
from mlprod.report.charts import Series
from mlprod.report.past import Past
from mlprod.report.run import number, rendered, when, write

OWN = ("name", "workdir")  # fields in which any two runs differ; they stand in the first table
Rows = Sequence[tuple[str, Sequence[str]]]  # (what, of each run)


def main(options: argparse.Namespace) -> None:
    """Prints the tables and, where `options.output` is set, writes a page with the curves of all."""
    if len(options.runs) > len(ascii_uppercase):
        raise UserError(f"{len(options.runs)} runs are given; at most {len(ascii_uppercase)} can be told apart by a letter")
    runs = [past.read(folder_of(word)) for word in options.runs]
    with past.told_of(*runs):
        _tell(runs, Console(highlight=False))
        page = rendered("compare.html", view(runs)) if options.output else ""
    if page:
        write(Path(options.output), page)


def _tell(runs: Sequence[Past], console: Console) -> None:
    """Prints the tables."""
    letters = ascii_uppercase[: len(runs)]
    _show(console, "run", letters, about(runs))
    for title, rows in (("config", config(runs)), ("code and hardware", surroundings(runs))):
        if rows:
            _show(console, title, letters, rows)
        else:
            console.print(f"{title}: nothing differs\n")
    for title, rows, mark in metrics(runs):
        _show(console, title, letters, rows)
        if mark:
            console.print(Text.assemble((f"{mark}\n", "bold yellow")), soft_wrap=True)
    for letter, run in zip(letters, runs, strict=True):
        for note in run.notes:
            console.print(Text(f"{letter}: {visible(note)}"), soft_wrap=True)


def folder_of(word: str) -> Path:
    """Returns the folder of a run that is named by itself or by its config file."""
    return Path(recipe.load(word).workdir) if word.endswith(".py") else Path(word)


# ---- what differs ------------------------------------------------------------------------------------------------------


def about(runs: Sequence[Past]) -> Rows:
    """Returns what each run is."""
    rows = {
        "name": [run.name for run in runs], "folder": [str(run.workdir) for run in runs], "state": [run.state() for run in runs],
        "began (UTC)": [when(run.attempts[0].began) for run in runs], "attempts": [str(len(run.attempts)) for run in runs],
        "dataset": [str(run.config.get("dataset", "")) for run in runs],
        "dataset_id": [str(run.about.get("dataset_id", "")) for run in runs],
    }  # fmt: skip
    return list(rows.items())


def unlike(tables: Sequence[Mapping[str, str]]) -> Rows:
    """Returns the rows in which these tables, one a run, are not all equal; what one has not is ""."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "") for table in tables]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def config(runs: Sequence[Past]) -> Rows:
    """Returns the fields in which the runs' configs differ; a run whose config is not known has none."""
    every = set.intersection(*({_item(path) for path, _ in past.leaves(run.config)} | {""} for run in runs))
    tables = [_items_told(past.shown(run.config), every) for run in runs]
    return [(path, values) for path, values in unlike(tables) if path not in OWN]


def _items_told(fields: Mapping[str, str], everywhere: Collection[str]) -> dict[str, str]:
    """Returns fields by path, with one line for all of an item, such as a column, that not every run has."""
    return dict((path, value) if _item(path) in everywhere else (_item(path), "there") for path, value in fields.items())


def _item(path: str) -> str:
    """Returns `etl.columns[x]` of `etl.columns[x].type`; "" of what is in no list."""
    return path[: path.rfind("]") + 1]


def surroundings(runs: Sequence[Past]) -> Rows:
    """Returns in which commit, versions and hardware the runs differ, each as of its last attempt."""
    return unlike([past.surroundings(run.about) for run in runs])


def metrics(runs: Sequence[Past]) -> Iterator[tuple[str, Rows, str]]:
    """Yields (title, rows, why they cannot be compared, or "") of each split that any run was evaluated on."""
    newest = [run.newest() for run in runs]
    for split in dict.fromkeys(split for found in newest for split in found):
        told = [found.get(split, {}) for found in newest]
        names = dict.fromkeys(name for e in told for name in e.get("metrics", ()))
        steps = [("step", [f"{e['step']:,}" if e else "" for e in told])]
        values = [(name, [number(e["metrics"][name]) if name in e.get("metrics", ()) else "" for e in told]) for name in names]
        datasets = {e["dataset_id"] for e in told if e}
        mark = f"{split}: NOT COMPARABLE: these are of different datasets (dataset_id above)" if len(datasets) > 1 else ""
        yield f"{split}, newest evaluation", [*steps, *values], mark


def _show(console: Console, title: str, letters: Sequence[str], rows: Rows) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    longest = max((len(what) for what, _ in rows), default=0)
    table.add_column(Text(visible(title, 60)), overflow="fold", min_width=min(longest, 32))
    for letter in letters:
        table.add_column(letter, overflow="fold")
    for what, values in rows:
        table.add_row(Text(visible(what, 80)), *(Text(visible(value, 200)) for value in values))
    console.print(table)


# ---- the page ----------------------------------------------------------------------------------------------------------


def view(runs: Sequence[Past]) -> dict[str, Any]:
    """Returns what the page shows."""
    return {
        "letters": ascii_uppercase[: len(runs)], "about": about(runs), "cards": list(curves(runs)), "config": config(runs),
        "surroundings": surroundings(runs), "metrics": list(metrics(runs)),
        "notes": [f"{letter}: {note}" for letter, run in zip(ascii_uppercase, runs, strict=False) for note in run.notes],
    }  # fmt: skip


def logged(run: Past, name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Returns (steps, values) of a value of the log."""
    return run.train.steps, run.train.values[name]


def curves(runs: Sequence[Past]) -> Iterator[Card]:
    """Yields the curves of all runs in one chart each, a series a run."""
    found = dict.fromkeys(name for run in runs for name in cards.metrics_of(run))
    wanted = [("Loss", cards.loss_label(runs[0]), [logged(run, "loss") for run in runs])]
    for name in found:
        label = cards.label_of(name)
        wanted.append((f"Eval: {label.partition(' (')[0]}", label, [cards.evals_of(run, name) for run in runs]))
    wanted.append(("Learning rate", "learning rate", [logged(run, "rate") for run in runs]))
    wanted.append(("Throughput", "examples / s", [cards.rates(run) if run.batch else ([], []) for run in runs]))
    for title, label, pairs in wanted:
        series = [Series(x=x, y=y, number=i, points=title.startswith("Eval")) for i, (x, y) in enumerate(pairs) if y]
        keys = [(s.number, f"{ascii_uppercase[s.number]} {runs[s.number].name}") for s in series]
        picture = charts.curves("step", label, series, unit=" " if title == "Throughput" else "", zero=title == "Throughput")
        if picture:
            yield Card(title=title, picture=picture, keys=keys)
