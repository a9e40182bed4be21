"""Builds of a dataset, killed at random moments: what must hold at each of them, seen from outside.

A task that is done is a file in the work folder, so what was done again would have another time of change.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlprod import manifest
from mlprod.store import open_store
from tests.chaos.harness import LIMIT_S, Run

POLL_S = 0.001
STAGES = ("extract", "settle", "sort", "write")


@dataclass(frozen=True)
class Kill:
    """What a killed build left."""

    phase: str
    tasks: int  # that were done, by all attempts so far


def tasks_done(dataset: Path) -> dict[str, int]:
    """Returns {task: when it was written down, in ns} of the tasks of a build that are done."""
    return {f"{path.parent.name}/{path.stem}": path.stat().st_mtime_ns for path in dataset.glob("work/*/*/*/*.json")}


def phase_of(dataset: Path) -> str:
    """Returns how far a build came, by what lies there."""
    if (dataset / "manifests" / "000001.json").exists():
        return "published"
    if (dataset / "features").exists():
        return "publish"
    begun = [stage for stage in STAGES if any(dataset.glob(f"work/*/*/{stage}"))]
    done = Counter(task.partition("/")[0] for task in tasks_done(dataset))
    return "fit" if begun[-1:] == ["sort"] and done["sort"] == done["settle"] else (begun or ["begin"])[-1]


def look(dataset: Path) -> None:
    """Asserts that a reader sees no version, or whole ones."""
    store = open_store(str(dataset))
    for version in manifest.versions(store):
        published = manifest.read(store, version)
        for shard in (shard for shards in published.splits.values() for shard in shards):
            assert manifest.sha256_file(dataset / shard.path) == shard.sha256
        assert manifest.sha256_file(dataset / published.features) == published.features_sha256
        assert (dataset / published.report).is_file()


def build_for(run: Run, seconds: float) -> tuple[int, float]:
    """Builds a run's dataset and kills the build so long after it took hold of the folder; returns (exit code, its seconds)."""
    dataset, process, deadline = Path(run.cfg.dataset), run.start_etl(), time.monotonic() + LIMIT_S
    lock = dataset / "work" / "lock"
    while process.exitcode is None and not (lock.exists() and lock.read_text() == f"process {process.pid}"):
        assert time.monotonic() < deadline, run.output()
        time.sleep(POLL_S)
    began = time.monotonic()
    until = min(began + seconds, deadline)
    while process.exitcode is None and time.monotonic() < until:
        look(dataset)
        time.sleep(POLL_S)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(LIMIT_S)
    return int(process.exitcode), time.monotonic() - began


def files_of(dataset: Path) -> dict[str, bytes]:
    """Returns {name: bytes} of what a dataset's folder holds, but for the report, which tells of the build's time."""
    files = (path for path in dataset.rglob("*") if path.is_file() and path.parent.name not in ("work", "reports"))
    return {str(path.relative_to(dataset)): path.read_bytes() for path in files}


def as_table(kills: Iterable[Kill]) -> str:
    """Returns a line for each phase: kills in it, and the tasks that the next attempts took over."""
    kills = list(kills)
    lines = [f"{'killed in':<12}{'kills':>6}{'tasks taken over':>18}"]
    for phase in ("begin", *STAGES[:3], "fit", "write", "publish", "published"):
        of_phase = [kill.tasks for kill in kills if kill.phase == phase]
        lines.append(f"{phase:<12}{len(of_phase):>6}{sum(of_phase):>18}")
    return "\n".join(lines)
