"""Folders of runs that nobody trained: logs and notes by the writers that `train` has, evaluations as `evaluate` writes them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlprod.attempts import Attempts
from mlprod.compare import as_json
from mlprod.config import Config
from mlprod.ledger import Ledger
from mlprod.recipe import run_file
from mlprod.tracking import LocalLog, Record, Trackers
from tests.conftest import RECIPE

ENVIRONMENT = {"backend": "cpu", "device_kind": "cpu", "devices": 8, "jax": "1.2.3"}


def config(workdir: Path, **changed: Any) -> Config:
    """Returns the smoke recipe with this folder; `changed`: fields, or sections as dicts."""
    cfg = dataclasses.replace(run_file(str(RECIPE)), workdir=str(workdir), dataset=str(workdir.parent / "dataset"))
    for name, value in changed.items():
        section = dataclasses.replace(getattr(cfg, name), **value) if isinstance(value, dict) else value
        cfg = dataclasses.replace(cfg, **{name: section})
    return cfg


@contextmanager
def attempt(cfg: Config, start: int, number: int = 1, dataset_id: str = "d1", noted: bool = True) -> Iterator[Trackers]:
    """Logs one attempt; leaving the block is its end."""
    workdir = Path(cfg.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    about = {
        "run": "r",
        "attempt": number,
        "steps": cfg.steps,
        "dataset_id": dataset_id,
        "code": {"mlprod": "1", "commit": "c0ffee"},
    }
    ledger = Ledger()
    notes = [Attempts(workdir, ledger, {**about, "config": as_json(cfg), "environment": ENVIRONMENT})] if noted else []
    with Trackers([LocalLog(workdir, "r", number, 1 << 32), *notes]) as trackers:
        trackers.log(Record(kind="start", step=start, position=64 * start, values={}))
        with ledger.spent("step"):
            yield trackers


def steps(trackers: Trackers, numbers: Sequence[int], loss: float = 0.5) -> None:
    """Logs steps of this loss."""
    for step in numbers:
        values = {"loss": (loss, 64.0), "rate": (1e-3, 1.0), "grad_norm": (0.3, 1.0)}
        trackers.log(Record(kind="train", step=step, position=64 * step, values=values))


def evaluated(trackers: Trackers, step: int, auc: float = 0.75) -> None:
    """Logs an evaluation in training."""
    values = {"log_loss": (0.5, 100.0), "auc": (auc, 100.0)}
    trackers.log(Record(kind="eval", step=step, position=64 * step, values=values))


def killed(cfg: Config) -> None:
    """Takes the last line of the attempts away: what a kill leaves out."""
    path = Path(cfg.workdir) / "attempts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def evaluation(cfg: Config, **told: Any) -> Path:
    """Writes the file of an evaluation."""
    body = {"step": 12, "split": "test", "dataset_id": "d1", "task": "binary", "metrics": {"auc": 0.8}, **told}
    path = Path(cfg.workdir) / "evaluations" / f"{body['split']}-{body['step']:08d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body))
    return path


FIGURES: Mapping[str, Mapping[str, Any]] = {
    "binary": {
        "roc": [[0, 0], [0.1, 0.6], [1, 1]], "pr": [[0, 1], [0.6, 0.8], [1, 0.5]],
        "calibration": [[0.2, 0.25, 40], [0.8, 0.7, 50]],
        "thresholds": [[0.5, 0.8125, 0.625, 0.4375]],
        "scores": {"edges": [0, 0.5, 1], "positive": [5, 40], "negative": [35, 10]},
    },
    "regression": {
        "residuals": {"edges": [-2, -1, 0, 1], "counts": [3, 50, 4]}, "predicted": [[1.0, 1.1, 30], [2.0, 1.9, 30]],
    },
    "classes": {
        "classes": ["<i>a</i>", "b$x$"], "confusion": [[30, 12], [11, 37]], "calibration": [[0.6, 0.7, 90]],
    },
}  # fmt: skip
