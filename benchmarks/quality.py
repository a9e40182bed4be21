"""Does the recipe learn what is there to learn? mlprod against scikit-learn on the held-out days of the flights.

    python benchmarks/quality.py [--quick] [--json FILE]      # from the repository root; needs the dataset (`make demo`)

Job: fits a constant, logistic regression, boosted trees and configs/flights.py on the same stored rows, and scores each on the
same held-out days. Promise: one reader feeds all, numbers filled as stored; what mlprod scored is checked to be the same rows.
Every row of the table is a mean over the seeds that the model has a use for; the figures are ratios of log loss.
Price: about a minute on 2 cores; --quick (one seed, one epoch) a third of it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax
import numpy as np
from _figures import Figure, arguments, publish
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mlprod import manifest, recipe, runtime
from mlprod.config import Config
from mlprod.data.reader import Arrays, GroupReader
from mlprod.errors import MlprodError
from mlprod.evaluate import measure, values_of
from mlprod.manifest import Manifest
from mlprod.plan import make_plan, score_of
from mlprod.store import open_store
from mlprod.train import train

CONFIG = "configs/flights.py"
QUIET = ("--config.tracking.wandb=off", "--config.tracking.progress=false")
SCORED = ("eval", "test")  # splits
METRICS = ("log_loss", "auc", "accuracy")


@dataclass(kw_only=True)
class Result:
    """What one model reached, a value per seed."""

    name: str
    metrics: dict[str, list[float]] = field(default_factory=dict)  # "SPLIT METRIC" -> by seed
    seconds: list[float] = field(default_factory=list)  # of the fit, on the clock
    cpu_seconds: list[float] = field(default_factory=list)  # of the fit, over all threads

    @property
    def log_loss(self) -> np.ndarray:
        """Log loss on the test days, float64[seeds]."""
        return np.array(self.metrics["test log_loss"])

    def add(self, split: str, values: dict[str, float]) -> None:
        """Takes the metrics of one seed on one split."""
        for name in METRICS:
            self.metrics.setdefault(f"{split} {name}", []).append(values[name])

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Takes the time of the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)


def read_split(cfg: Config, published: Manifest, split: str) -> Arrays:
    """Returns the stored arrays of a whole split; a column per feature in "x", numerics first."""
    reader = GroupReader(open_store(cfg.dataset), published, split)
    shapes = reader.shapes()
    groups = [
        {name: _rows(values, *shapes[name]) for name, values in reader.read(i).items()}
        for i in range(len(published.group_sizes(split)))
    ]
    rows = {name: np.concatenate([group[name] for group in groups]) for name in groups[0]}
    rows["row_id"] = rows["row_id"].view("<u8").reshape(-1)
    return rows | {"x": np.concatenate([rows["numeric"], rows["ids"]], axis=1)}


def _rows(values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns a copy of a group's rows [n, ...], of which `values` holds the bytes."""
    return np.ascontiguousarray(values).view(dtype).reshape(-1, *shape).copy()


def peers(num_numeric: int, num_ids: int) -> dict[str, Callable[[int], object]]:
    """Returns the models of scikit-learn by name, each made from a seed; all take "x" of `read_split`."""
    numeric, ids = list(range(num_numeric)), list(range(num_numeric, num_numeric + num_ids))
    columns = [("numeric", StandardScaler(), numeric), ("ids", OneHotEncoder(handle_unknown="ignore"), ids)]
    return {
        "constant": lambda seed: DummyClassifier(),
        "logistic": lambda seed: make_pipeline(ColumnTransformer(columns), LogisticRegression(max_iter=1000)),
        "boosted": lambda seed: HistGradientBoostingClassifier(categorical_features=ids, random_state=seed),
    }


def fit_peer(result: Result, model: object, rows: dict[str, Arrays]) -> None:
    """Fits a model of scikit-learn and takes its metrics."""
    with result.timed():
        model.fit(rows["train"]["x"], rows["train"]["label"])  # type: ignore[attr-defined] # one of `peers`: scikit-learn has no protocol
    for split in SCORED:
        label, score = rows[split]["label"], model.predict_proba(rows[split]["x"])[:, 1]  # type: ignore[attr-defined] # as above
        auc, accuracy = roc_auc_score(label, score), accuracy_score(label, score > 0.5)
        result.add(split, {"log_loss": log_loss(label, score), "auc": auc, "accuracy": accuracy})


def fit_mlprod(result: Result, cfg: Config, rows: dict[str, Arrays]) -> None:
    """Trains the recipe in a folder that is empty, and takes its metrics with `mlprod.evaluate`."""
    with result.timed():
        state = jax.block_until_ready(train(cfg, jax.devices()))
    plan = make_plan(cfg, jax.devices())
    score = score_of(plan)
    for split in SCORED:
        seen: list[Arrays] = []
        result.add(split, values_of(measure(plan, score, state, split, sinks=[seen.append])))
        ids = np.concatenate([batch["row_id"] for batch in seen])
        if not np.array_equal(np.sort(ids), np.sort(rows[split]["row_id"])):
            raise RuntimeError(f"mlprod scored other {split} rows than its peers")


def show(results: list[Result]) -> None:
    """Prints the table for people."""
    splits = [f"{split} {name.replace('_', ' ')}" for split in reversed(SCORED) for name in METRICS]
    table = Table("model", *splits, "fit s", "CPU s", box=SIMPLE_HEAD, pad_edge=False)
    for r in results:
        told = [f"{np.mean(values):.4f}" for values in (r.metrics[f"{s} {m}"] for s in reversed(SCORED) for m in METRICS)]
        table.add_row(r.name, *told, f"{np.mean(r.seconds):.1f}", f"{np.mean(r.cpu_seconds):.1f}")
    Console(highlight=False, width=130).print(table)


def ratio(mine: Result, peer: Result, goal: dict[str, float] | None) -> Figure:
    """Returns the figure mlprod / peer of the log loss on the test days; each seed of ours against the peer's mean."""
    theirs = float(peer.log_loss.mean())
    return figure(f"test log loss, mlprod / {peer.name}", mine.log_loss / theirs, "ratio", goal, {peer.name: theirs})


def figure(name: str, values: np.ndarray, unit: str, goal: dict[str, float] | None, theirs: dict[str, float]) -> Figure:
    """Returns the figure of values [seeds]: their mean, least and greatest."""
    value, low, high = float(values.mean()), float(values.min()), float(values.max())
    return Figure(name=name, value=value, low=low, high=high, unit=unit, runs=len(values), goal=goal, peers=theirs)


def main() -> None:
    """Fits everything, prints the table and the figures."""
    options = arguments(__doc__)
    seeds, trial = ((0,), ("--config.epochs=1",)) if options.quick else ((0, 1, 2), ())
    cfg = recipe.load(CONFIG, [*QUIET, *trial])
    runtime.start(cfg.runtime)
    published = manifest.open_for(cfg, open_store(cfg.dataset))
    rows = {split: read_split(cfg, published, split) for split in ("train", *SCORED)}
    days = ", ".join(f"{len(r['label']):,} {name} ({r['label'].mean():.1%} late)" for name, r in rows.items())
    print(f"rows: {days}; means over seeds {seeds}")
    made = peers(rows["train"]["numeric"].shape[1], rows["train"]["ids"].shape[1])
    results = {name: Result(name=name) for name in (*made, "mlprod")}
    for name, make in made.items():
        for seed in seeds if name == "boosted" else seeds[:1]:  # the others use no randomness
            fit_peer(results[name], make(seed), rows)
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            words = [*QUIET, *trial, f"--config.seed={seed}", f"--config.workdir={folder}/run"]
            fit_mlprod(results["mlprod"], recipe.load(CONFIG, words), rows)
    show(list(results.values()))
    mine = results["mlprod"]
    theirs = {name: float(results[name].log_loss.mean()) for name in made}
    loss = figure("test log loss, mlprod", mine.log_loss, "nats", None, theirs)
    publish(
        [
            ratio(mine, results["logistic"], None if options.quick else {"max": 0.98}),
            ratio(mine, results["boosted"], None if options.quick else {"max": 1.01}),
            loss,
        ],
        options.json,
    )


if __name__ == "__main__":
    try:
        main()
    except MlprodError as error:
        sys.exit(f"quality: {error}")
