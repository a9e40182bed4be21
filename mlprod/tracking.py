"""Where numbers go: a local log that is always complete, and W&B (the only door to it) when it can be had.

Promise: every line of the local log is whole; after a restart lines are added under the next attempt, so that the last attempt
of a step is what counts. A tracker that fails never stops the run.
Price: one small write a step, flushed to the operating system, which survives the process.

A line of `log.jsonl`: {"schema", "run", "attempt", "kind", "step", "position", "time", "values": {name: [value, weight]}, "ids"}.
"""

import json
import netrc
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import jax

from mlprod.config import TrackingConfig
from mlprod.errors import TrainingError

SCHEMA = 1
Values = Mapping[str, tuple[float, float]]  # name -> (value, weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What happened at a step."""

    kind: str  # "train", "eval" or "start"
    step: int
    position: int
    values: Values
    ids: str = ""  # digest of the batch's row ids


class Tracker(Protocol):
    """One place where records go."""

    def log(self, record: Record) -> None:
        """Takes one record; must not block the loop."""
        ...

    def close(self) -> None:
        """Ends, within a bounded time."""
        ...


def open_to_add(path: Path) -> BinaryIO:
    """Opens a file of JSON lines to add to it; a last line that a kill cut short is removed first."""
    file = path.open("ab+")
    size = file.seek(0, os.SEEK_END)
    back = min(size, 1 << 20)
    file.seek(size - back)
    tail = file.read(back)
    whole = tail.rfind(b"\n") + 1
    if whole < len(tail):
        file.truncate(size - back + whole)
    return file


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a file as JSON objects; a torn last line is left out, and a file that is not there has none."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (json.loads(line) for line in file if line.endswith(b"\n"))


class LocalLog:
    """`log.jsonl` of the run."""

    def __init__(self, workdir: Path, run_id: str, attempt: int) -> None:
        """Opens the log to add to it; a last line that a kill cut short is removed first."""
        self._run, self._attempt = run_id, attempt
        self._file = open_to_add(workdir / "log.jsonl")

    def log(self, record: Record) -> None:
        """Writes one line and hands it to the operating system; raises TrainingError where there is no space, or no file."""
        values = {name: list(pair) for name, pair in record.values.items()}
        body = {
            "schema": SCHEMA, "run": self._run, "attempt": self._attempt, "kind": record.kind, "step": record.step,
            "position": record.position, "time": time.time(), "values": values, "ids": record.ids,
        }  # fmt: skip
        try:
            self._file.write(json.dumps(body).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"{self._file.name} cannot be written: {error.strerror}; what was saved before stands") from error

    def close(self) -> None:
        """Closes the file; what could not be written was told when it was logged."""
        with suppress(OSError):
            self._file.close()


def read_log(workdir: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of a run's log as JSON objects; a torn last line is left out."""
    return read_lines(workdir / "log.jsonl")


def _logged_in() -> bool:
    """Whether W&B has a key: in the environment or the user's netrc."""
    try:
        return bool(os.environ.get("WANDB_API_KEY")) or any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


class Wandb:
    """Metrics to W&B, by our own step, so that a resume from an older step is taken as it is."""

    def __init__(self, cfg: TrackingConfig, workdir: Path, name: str, run_id: str, config: Mapping[str, Any]) -> None:
        """Starts a run, offline when the service cannot be reached within 30 s."""
        import wandb  # the door is lazy: a second and 60 MB that a run without it does not pay

        mode = ("online" if _logged_in() else "offline") if cfg.wandb == "auto" else cfg.wandb
        settings = wandb.Settings(
            console="off", silent=True, x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
            x_save_requirements=False, disable_git=True, disable_code=True, save_code=False, init_timeout=30, finish_timeout=60,
        )  # fmt: skip
        given: dict[str, Any] = {"project": cfg.project, "id": run_id, "name": name, "dir": str(workdir), "config": dict(config)}
        try:
            # `mode` is one of the four that W&B declares as literals: the config checks it.
            self._run = wandb.init(mode=mode, resume="allow", settings=settings, **given)  # type: ignore[arg-type]
        except wandb.Error as error:
            print(f"mlprod: W&B cannot be reached ({error}); logging offline", file=sys.stderr)
            self._run = wandb.init(mode="offline", settings=settings, **given)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Record) -> None:
        """Sends the values as `kind/name`."""
        self._run.log({f"{record.kind}/{name}": value for name, (value, _) in record.values.items()} | {"step": record.step})

    def close(self) -> None:
        """Finishes the run, within 60 s."""
        self._run.finish()


class Trackers:
    """Several trackers as one; one that raises is dropped with a line on stderr. A context manager."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        """The first is the local log, whose failure is the run's."""
        trackers = list(trackers)
        self._log, self._others = trackers[:1], trackers[1:]

    def __enter__(self) -> "Trackers":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes all of them."""
        for log in self._log:
            log.close()
        self._guard(lambda tracker: tracker.close())

    def log(self, record: Record) -> None:
        """Gives a record to every tracker."""
        for log in self._log:
            log.log(record)
        self._guard(lambda tracker: tracker.log(record))

    def _guard(self, act: Any) -> None:
        for tracker in list(self._others):
            try:
                act(tracker)
            except Exception as error:  # a tracker may be anyone's code
                print(f"mlprod: {type(tracker).__name__} is switched off: {type(error).__name__}: {error}", file=sys.stderr)
                self._others.remove(tracker)


def open_trackers(
    cfg: TrackingConfig,
    workdir: Path,
    name: str,
    run_id: str,
    attempt: int,
    config: Mapping[str, Any],
    others: Sequence[Tracker] = (),
) -> Trackers:
    """Returns the run's trackers: the local log, `others`, and W&B unless it is off; on process 0 alone, none elsewhere."""
    if jax.process_index():
        return Trackers([])
    local = [LocalLog(workdir, run_id, attempt), *others]
    return Trackers(local if cfg.wandb == "off" else [*local, Wandb(cfg, workdir, name, run_id, config)])
