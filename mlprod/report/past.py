"""What lies in a run's folder, read back: its log, its attempts, its evaluations.

Promise: nothing is changed, no device is touched, and the dataset is not needed: it may be asked while the run trains. Of steps
that were taken twice the last attempt's count; what is not there is empty.
Price: the log is read once; 48 bytes a step stay in memory.
"""

import bisect
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlprod import discreet, documents
from mlprod.attempts import read_attempts
from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.errors import CheckpointError, WorkdirError
from mlprod.pieces import first_piece
from mlprod.tracking import FILE, read_log

Line = Mapping[str, Any]
VALUES = ("loss", "rate", "grad_norm")  # of a step, that are shown
MISSING = (math.nan, 0.0)
LATEST = 253402300800.0  # unix seconds: the year 10000, which no calendar of Python's has
NO_RUN = (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError)  # files of others


@dataclass(kw_only=True)
class Attempt:
    """One start of a run."""

    start: int  # step that it went on from
    began: float  # unix seconds
    reached: int = 0  # the last step in the log
    heard: float = 0.0  # when it wrote something last, unix seconds
    about: Line | None = None  # its first line in `attempts.jsonl`; None: of an mlprod that wrote none
    uses: Sequence[Line] = ()  # its other lines there
    run: str = ""  # the run's id

    @property
    def ended(self) -> bool:
        """Whether it came to an end that it could tell of."""
        return bool(self.uses) and bool(self.uses[-1]["end"])

    @property
    def seconds(self) -> Mapping[str, float]:
        """Returns seconds by activity, as far as they were written."""
        return self.uses[-1]["seconds"] if self.uses else {}


@dataclass
class Curve:
    """What the log tells of steps, by step, ascending; a value that was not logged is NaN."""

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    times: "array[float]" = field(default_factory=lambda: array("d"))  # unix seconds
    attempts: "array[int]" = field(default_factory=lambda: array("q"))  # which start of the run took the step, from 1
    values: Mapping[str, "array[float]"] = field(default_factory=lambda: {name: array("d") for name in VALUES})

    def add(self, line: Line, attempt: int) -> None:
        """Adds a line."""
        self.steps.append(line["step"])
        self.times.append(line["time"])
        self.attempts.append(attempt)
        for name, values in self.values.items():
            values.append(line["values"].get(name, MISSING)[0])

    def back_to(self, step: int) -> None:
        """Drops what is behind a step."""
        while self.steps and self.steps[-1] > step:
            for column in (self.steps, self.attempts):
                column.pop()
            for values in (self.times, *self.values.values()):
                values.pop()


@dataclass(kw_only=True)
class Past:
    """What is known of a run."""

    workdir: Path
    attempts: Sequence[Attempt]
    train: Curve  # of the steps that count
    evals: Sequence[Line]  # lines of the log, of evaluations in training that count
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
        return self.train.steps[-1] if self.train.steps else 0

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
        if last.about is None:
            return f"at step {self.step:,}{of}: how it stands is not known"
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
        attempts, train, evals = _from_log(read_log(workdir))
        _take_notes(attempts, read_attempts(workdir) if attempts else ())
    except (OSError, *NO_RUN) as error:
        raise WorkdirError(f"{workdir}: the log cannot be read ({type(error).__name__}); restore it from a copy") from error
    if not attempts:
        raise WorkdirError(f"{workdir} holds no run (log.jsonl is missing or empty); run `mlprod train` first")
    evaluations, notes = _evaluations(workdir)
    if first_piece(workdir / FILE) > 1:
        notes = [
            f"the log begins at step {train.steps[0] if train.steps else 0:,}: older lines are gone (tracking.log_bytes)",
            *notes,
        ]
    about = attempts[-1].about
    if about is None:
        about, told = _from_checkpoint(workdir)
        notes = [*notes, told]
    return Past(workdir=workdir, attempts=attempts, train=train, evals=evals, evaluations=evaluations, about=about, notes=notes)


@contextmanager
def told_of(*runs: Past) -> Iterator[None]:
    """Turns what makes a page impossible into a WorkdirError: what the runs' files hold is nothing that `train` wrote."""
    try:
        yield
    except NO_RUN as error:
        where = ", ".join(str(run.workdir) for run in runs)
        raise WorkdirError(f"{where}: no page can be made of it ({type(error).__name__}: {str(error)[:100]})") from error


def _from_log(lines: Iterable[Line]) -> tuple[list[Attempt], Curve, list[Line]]:
    """Returns the starts of a run in their order, and what counts of its steps and evaluations.

    A run that went back to a step, by a kill or after bad numbers, has nothing from behind it.
    """
    attempts: list[Attempt] = []
    train = Curve()
    evals: list[Line] = []
    for line in lines:
        kind, step = line["kind"], _placed(line)
        if kind == "start" or not attempts:
            attempts.append(Attempt(start=step, began=line["time"]))
        attempts[-1].reached, attempts[-1].heard, attempts[-1].run = step, line["time"], line["run"]
        train.back_to(step - (kind == "train"))
        while evals and evals[-1]["step"] > step - (kind != "start"):
            evals.pop()
        if kind == "train":
            train.add(line, len(attempts))
        elif kind == "eval":
            evals.append(line)
    return attempts, train, evals


def _placed(line: Line) -> int:
    """Returns the step of a line; raises ValueError where it is none, or its time is no moment that a clock can have."""
    step, when = line["step"], line["time"]
    if not (documents.is_count(step) and 0 <= when < LATEST):
        raise ValueError(f"step {step} at {when}")
    return int(step)


def _take_notes(attempts: Sequence[Attempt], noted: Iterable[Line]) -> None:
    """Gives each attempt what it noted, by the time: its first note comes right after its first line in the log.

    Where the log's older lines are gone, the first attempt there is the last that began before them.
    """
    begins = [attempt.began for attempt in attempts]
    for note in noted:
        step, at = _placed(note), bisect.bisect_right(begins, note["time"]) - 1
        attempt = attempts[max(at, 0)]
        if note["kind"] == "start":
            attempt.about = note
            if at < 0:
                attempt.start, attempt.began, attempt.uses = step, note["time"], ()
        else:
            attempt.uses = [*attempt.uses, note]
            attempt.heard = max(attempt.heard, note["time"])


def _evaluations(workdir: Path) -> tuple[list[Line], list[str]]:
    """Returns the evaluations of a run by split and step, and what cannot be read of them."""
    found, notes = [], []
    for path in sorted((workdir / "evaluations").glob("*.json")):
        try:
            body = documents.parse(documents.read(path), finite=False)
            told = {"task": "binary", "by": {}, "figures": {}, "dataset_id": "", **body, "metrics": dict(body["metrics"])}
            if not (documents.is_count(told["step"]) and isinstance(told["split"], str)):
                raise ValueError(f"step {told['step']} of {told['split']}")
            found.append(told)
        except (OSError, ValueError, KeyError, TypeError) as error:
            notes.append(f"{path} cannot be read ({type(error).__name__})")
    return sorted(found, key=lambda e: (e["split"], e["step"])), notes


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
    return tuple(f"etl.{path}" for path in discreet.hidden(saved.get("etl", {})))


def between(old: Attempt, new: Attempt) -> dict[str, tuple[str, str]]:
    """Returns {what: (old, new)} in which two attempts differ: config, hardware, versions, commit."""
    if old.about is None or new.about is None:
        return {}
    a, b = (surroundings(about) | shown(about["config"]) for about in (old.about, new.about))
    return {name: (a.get(name, ""), b.get(name, "")) for name in {**a, **b} if a.get(name) != b.get(name)}


def surroundings(about: Line) -> dict[str, str]:
    """Returns what a run ran on and as: versions, hardware, commit."""
    return {name: str(value) for name, value in {**about.get("code", {}), **about.get("environment", {})}.items()}
