"""What lies in a run's folder, read back: its log, its attempts, its evaluations.

Promise: nothing is changed, no device is touched, and the dataset is not needed: it may be asked while the run trains. Of steps
that were taken twice the last attempt's count; what is not there is empty.
Price: the whole log in memory, once.
"""

import bisect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlprod.attempts import read_attempts
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.errors import CheckpointError, WorkdirError
from mlprod.tracking import read_log

Line = Mapping[str, Any]


@dataclass(kw_only=True)
class Attempt:
    """One start of a run."""

    start: int  # step that it went on from
    began: float  # unix seconds
    reached: int = 0  # the last step in the log
    heard: float = 0.0  # when it wrote something last, unix seconds
    about: Line | None = None  # its first line in `attempts.jsonl`; None: of an mlprod that wrote none
    uses: Sequence[Line] = ()  # its other lines there

    @property
    def ended(self) -> bool:
        """Whether it came to an end that it could tell of."""
        return bool(self.uses) and bool(self.uses[-1]["end"])

    @property
    def seconds(self) -> Mapping[str, float]:
        """Returns seconds by activity, as far as they were written."""
        return self.uses[-1]["seconds"] if self.uses else {}


@dataclass(kw_only=True)
class Past:
    """What is known of a run."""

    workdir: Path
    attempts: Sequence[Attempt]
    train: Sequence[Line]  # the lines of the log that count, by step, ascending
    evals: Sequence[Line]
    evaluations: Sequence[Line]  # files of the verb `evaluate`, by split and step
    about: (
        Line  # {"config", "environment", "dataset_id", "code", "steps", ...}, of the last attempt; what is not known is left out
    )
    notes: Sequence[str]  # what is missing, or cannot be read

    @property
    def config(self) -> Line:
        """Returns the resolved config; {} where it is not known."""
        found: Line = self.about.get("config", {})
        return found

    @property
    def name(self) -> str:
        """Returns the run's name, or its folder's."""
        return str(self.config.get("name", self.workdir.name))

    @property
    def step(self) -> int:
        """Returns the last step in the log."""
        return self.train[-1]["step"] if self.train else 0

    @property
    def batch(self) -> int:
        """Returns the examples of a step; 0 where they are not known."""
        return int(self.config.get("loader", {}).get("global_batch", 0))

    def state(self) -> str:
        """Returns how the run stands, in a few words."""
        steps, last = self.about.get("steps", 0), self.attempts[-1]
        of = f" of {steps:,}" if steps else ""
        if steps and self.step >= steps:
            return f"done: {self.step:,} steps"
        if last.ended:
            return f"ended at step {self.step:,}{of}: stopped, or failed"
        return f"at step {self.step:,}{of}: under way, or killed"

    def newest(self) -> dict[str, Line]:
        """Returns {split: {"step", "dataset_id", "metrics"}} of each split's newest evaluation."""
        found = {str(e["split"]): e for e in self.evaluations}
        if self.evals and self.evals[-1]["step"] > found.get("eval", {}).get("step", -1):
            line = self.evals[-1]
            metrics = {name: value for name, (value, _) in line["values"].items()}
            found["eval"] = {"step": line["step"], "dataset_id": self.about.get("dataset_id", ""), "metrics": metrics}
        return dict(sorted(found.items()))


def read(workdir: Path) -> Past:
    """Returns what is known of the run in a folder.

    Raises:
        WorkdirError: there is none, or its log is not what `train` wrote.
    """
    try:
        lines, noted = list(read_log(workdir)), list(read_attempts(workdir))
    except (OSError, ValueError) as error:
        raise WorkdirError(f"{workdir}: the log cannot be read ({type(error).__name__}); restore it from a copy") from error
    if not lines:
        raise WorkdirError(f"{workdir} holds no run (log.jsonl is missing or empty); run `mlprod train` first")
    attempts = _attempts(lines, noted)
    train, evals = _that_count(lines)
    evaluations, notes = _evaluations(workdir)
    about = attempts[-1].about
    if about is None:
        about, told = _from_checkpoint(workdir)
        notes = [*notes, told]
    return Past(workdir=workdir, attempts=attempts, train=train, evals=evals, evaluations=evaluations, about=about, notes=notes)


def _attempts(lines: Sequence[Line], noted: Sequence[Line]) -> list[Attempt]:
    """Returns the starts of a run in their order, each with what it noted."""
    found: list[Attempt] = []
    for line in lines:
        if line["kind"] == "start" or not found:
            found.append(Attempt(start=line["step"], began=line["time"], reached=line["step"]))
        found[-1].reached, found[-1].heard = line["step"], line["time"]
    begins = [attempt.began for attempt in found]
    for note in noted:  # written right after the log's own line
        attempt = found[max(bisect.bisect_right(begins, note["time"]) - 1, 0)]
        if note["kind"] == "start":
            attempt.about = note
        else:
            attempt.uses = [*attempt.uses, note]
            attempt.heard = max(attempt.heard, note["time"])
    return found


def _that_count(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Returns the lines of training and of evaluations that count: a run that went back to a step has none from behind it."""
    train: list[Line] = []
    evals: list[Line] = []
    for line in lines:
        step = line["step"]
        first = step + (line["kind"] != "train")  # an evaluation belongs to the step before it, a start too
        while train and train[-1]["step"] >= first:
            train.pop()
        while evals and evals[-1]["step"] >= (step if line["kind"] == "eval" else first):
            evals.pop()
        if line["kind"] in ("train", "eval"):
            (train if line["kind"] == "train" else evals).append(line)
    return train, evals


def _evaluations(workdir: Path) -> tuple[list[Line], list[str]]:
    """Returns the evaluations of a run by split and step, and what cannot be read of them."""
    found, notes = [], []
    for path in sorted((workdir / "evaluations").glob("*.json")):
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            found.append({"task": "binary", "by": {}, "figures": {}, "dataset_id": "", **body, "metrics": dict(body["metrics"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{path} cannot be read ({type(error).__name__})")
    return sorted(found, key=lambda e: (str(e["split"]), int(e["step"]))), notes


def _from_checkpoint(workdir: Path) -> tuple[Line, str]:
    """Returns what the newest saved step tells of its run, and a line about it."""
    saved = SavedSteps(workdir)
    for step in reversed(saved.steps()):
        try:
            run = saved.read_run(step)
        except CheckpointError:
            continue
        return _told(run), f"an older mlprod trained this run: config, dataset and hardware are those saved with step {step}"
    return {}, "an older mlprod trained this run, and no step was saved: config, dataset and hardware are not known"


def _told(run: RunState) -> Line:
    return {"config": run.config, "environment": run.environment, "dataset_id": run.dataset_id, "run": run.run_id}


# ---- for people --------------------------------------------------------------------------------------------------------

HIDDEN = "(hidden)"


def shown(config: Line) -> dict[str, str]:
    """Returns {dotted path: text} of a config's leaves; values of sensitive columns are hidden."""
    return {path: HIDDEN if path.startswith(hidden(config)) else str(value) for path, value in leaves(config) if path}


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of JSON data; short lists of plain values, and functions, are values."""
    if isinstance(tree, Mapping) and set(tree) == {"function", "sha256"}:
        yield path, f"{tree['function']}, SHA-256 {tree['sha256'][:12]}"
    elif isinstance(tree, Mapping) and tree:
        for name, value in tree.items():
            yield from leaves(value, f"{path}.{name}" if path else name)
    elif isinstance(tree, list | tuple) and any(isinstance(item, Mapping) for item in tree):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{path}[{value['name'] if isinstance(value, Mapping) and 'name' in value else i}]")
    else:
        yield path, tree


def hidden(saved: Line) -> tuple[str, ...]:
    """Returns the paths of a config below which values of sensitive columns stand."""
    section_of = saved.get("etl", {})
    names = {c["name"] for c in section_of.get("columns", ()) if c.get("sensitive")}
    at = {
        "split": ("column", ("eval", "test")),
        "source": ("watermark", ("start", "stop")),
        "label": ("column", ("value", "above")),
    }
    return tuple(
        f"etl.{section}.{name}"
        for section, (column, values) in at.items()
        if section_of.get(section, {}).get(column) in names
        for name in values
    )


def between(old: Attempt, new: Attempt) -> dict[str, tuple[str, str]]:
    """Returns {what: (old, new)} in which two attempts differ: config, hardware, versions, commit."""
    if old.about is None or new.about is None:
        return {}
    a, b = (surroundings(about) | shown(about["config"]) for about in (old.about, new.about))
    return {name: (a.get(name, ""), b.get(name, "")) for name in {**a, **b} if a.get(name) != b.get(name)}


def surroundings(about: Line) -> dict[str, str]:
    """Returns what a run ran on and as: versions, hardware, commit."""
    return {name: str(value) for name, value in {**about.get("code", {}), **about.get("environment", {})}.items()}
