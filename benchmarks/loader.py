"""How fast batches come, from what start, in how much memory: mlprod's loader against its peers on the same rows.

    python benchmarks/loader.py [--quick] [--json FILE] [--data DIR] [--runs N] [--only PART] [--large]     # needs no dataset

Job: draws some epochs of synthetic data from each contender (`_contenders.py`), restores a position far into a training, prices
the checksums, compares 5 million rows with 50 million (`--large`), and measures what a training step loses to its loader.
Promise: every run is a process of its own, and contenders take turns (A B C A B C ...), so that what the machine does meanwhile
hits all alike; all read the same numbers, label and row id; every file was read once before the first round, so the page cache
holds it as far as memory goes; a ratio compares runs of the same round. A goal is for quiet machines: the report says how many
cores others used.
How to read: tables give medians [least to most]. "First batch" counts from making the loader to having its first batch; "ms
between batches" and "CPU s" (of all threads, a million rows) tell what a fast median hides; memory is the peak over what the
process held after its imports. The gather is a bound that no disk can reach, the scan one that no batch can.
Price: about 15 minutes on 2 cores and 4 GB of disk, with `--large` 7 GB more; --quick 3 minutes and a fiftieth of the rows. A
dataset is made once below DIR, by default in a temporary folder.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _contenders import Job
from _datasets import Shape, made, read_once
from _figures import Figure, parser_for, publish
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

DENSE = Shape(name="dense", num_rows=5_000_000, group_rows=4096, numeric=32)
RECOMMENDER = Shape(name="recommender", num_rows=3_000_000, group_rows=4096, numeric=13, ids=26, vocabulary_size=100_000)
TOKENS = Shape(name="tokens", num_rows=262_144, group_rows=256, ids=512, vocabulary_size=32_000, one_feature=True)
LARGE_ROWS = 50_000_000
QUICK_PART = 50  # --quick takes this part of the rows
RUNS, QUICK_RUNS = 7, 2
EPOCHS = 3  # one takes a third of a second, of which fresh memory is a part that no long training sees
RESTORED_STEP = 100_000
TRAINED_STEPS, QUICK_STEPS = 200, 10

HERE = Path(__file__).parent
STORED_AS = {"mlprod, columns storage": "columns", "torch, columns": "usual"}  # contender -> storage; all others: packed
PEERS = ("torch, packed files", "raw scan", "in-memory gather")
COLUMN_PEERS = ("mlprod, columns storage", "torch, columns")
UNSAID = {"mlprod, restored": ("rows_per_s", "first_epoch_rows_per_s", "cpu_s"), "raw scan": ("first_s",)}  # one batch; no batch
SPEED_GOALS = {  # mlprod's rows/s over the peer's: at least, stretch
    "torch, packed files": (1.3, 2.0),
    "torch, columns": (3.0, 5.0),
    "raw scan": (0.4, 0.5),
    "in-memory gather": (0.3, 0.5),
}
START_GOAL = (0.3, 0.15)  # seconds to the first batch, and to that of a restored position: at most, stretch

Found = Mapping[str, float]  # what one run found
Turns = dict[str, list[Found]]  # contender -> its runs, one a round
Measured = Callable[["Bench"], list[Figure]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A shape at one batch size, and who is measured on it beside mlprod."""

    shape: Shape
    batch: int
    peers: Sequence[str] = PEERS
    goals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # other than SPEED_GOALS


CASES = {
    "dense": Case(shape=DENSE, batch=4096, peers=(*PEERS, *COLUMN_PEERS)),
    "dense-65536": Case(shape=DENSE, batch=65_536, peers=(*PEERS, *COLUMN_PEERS)),
    "recommender": Case(shape=RECOMMENDER, batch=4096),
    "tokens": Case(shape=TOKENS, batch=256, goals={"raw scan": (0.6, 0.6)}),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How to measure: where datasets are, how often, how much, and where to say it."""

    data: Path
    runs: int
    quick: bool
    large: bool
    console: Console
    others: list[float] = field(default_factory=list)  # cores that other processes used, a value a run

    def sized(self, shape: Shape) -> Shape:
        """Returns the shape at the size that is measured."""
        return replace(shape, num_rows=shape.num_rows // QUICK_PART) if self.quick else shape

    def folder(self, shape: Shape, storage: str = "packed") -> str:
        """Returns the folder of a dataset that is there and was read once."""
        folder = made(self.sized(shape), storage, self.data)
        read_once(folder)
        return str(folder)

    def goal(self, kind: str, bounds: tuple[float, float] | None) -> dict[str, Any]:
        """Returns a figure's goal and stretch; a small form has none."""
        return {} if self.quick or bounds is None else {"goal": {kind: bounds[0]}, "stretch": bounds[1]}

    def take_turns(self, jobs: Mapping[str, Job], script: str = "_contenders.py") -> Turns:
        """Runs each job once a round."""
        turns: Turns = {name: [] for name in jobs}
        for _ in range(self.runs):
            for name, job in jobs.items():
                with self._watched():
                    turns[name].append(_child(script, job))
        return turns

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Takes the cores that processes other than the block's children used."""
        began, busy, ours = time.monotonic(), _busy_s(), _children_s()
        yield
        self.others.append((_busy_s() - busy - (_children_s() - ours)) / (time.monotonic() - began))


def _busy_s() -> float:
    """Returns the seconds that the machine's cores have worked, NaN where the system does not tell."""
    try:
        user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9])
    except OSError:
        return float("nan")
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _child(script: str, job: Job) -> Found:
    """Runs a job in a process of its own."""
    done = subprocess.run([sys.executable, HERE / script, job.as_json()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{job.contender!r} ended with {done.returncode}:\n{done.stderr}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def drawn(bench: Bench, part: str) -> list[Figure]:
    """Draws `EPOCHS` epochs of a case from each contender; mlprod also from a restored position, and without checksums."""
    case = CASES[part]
    names = ["mlprod", "mlprod, no checksums", "mlprod, restored", *case.peers]
    names = [name for name in names if find_spec("torch") or not name.startswith("torch")]
    folders = {storage: bench.folder(case.shape, storage) for storage in {STORED_AS.get(name, "packed") for name in names}}
    jobs = {
        name: Job(contender=name, folder=folders[STORED_AS.get(name, "packed")], batch=case.batch, epochs=EPOCHS)
        for name in names
    }
    far = {"position": RESTORED_STEP * case.batch, "num_rows": case.batch, "epochs": 1}  # one batch of it
    jobs["mlprod, restored"] = replace(jobs["mlprod, restored"], **far)
    turns = bench.take_turns(jobs)
    shape = bench.sized(case.shape)
    show(bench.console, f"{part}: {shape.num_rows:,} rows of {shape.row_bytes} bytes, batches of {case.batch:,}", turns)
    return [found for found in case_figures(bench, part, case, turns) if not np.isnan(found.value)]


def case_figures(bench: Bench, part: str, case: Case, turns: Turns) -> Iterator[Figure]:
    """Yields the figures of a case."""
    goals = SPEED_GOALS | dict(case.goals)
    speeds = _medians(turns, "rows_per_s")
    peers = {name: speed / 1e6 for name, speed in speeds.items() if name not in ("mlprod", "mlprod, restored")}
    yield figure(f"{part}: mlprod", [v / 1e6 for v in _values(turns, "mlprod", "rows_per_s")], "M rows/s", peers=peers)
    for name in peers:
        ratio = _ratio(turns, "rows_per_s", "mlprod", name)
        yield figure(f"{part}: rows/s, mlprod / {name}", ratio, "ratio", **bench.goal("min", goals.get(name)))
    for name, told in (("mlprod", "first batch"), ("mlprod, restored", f"first batch, restored at step {RESTORED_STEP:,}")):
        yield figure(f"{part}: {told}", _values(turns, name, "first_s"), "s", **bench.goal("max", START_GOAL))
    yield figure(f"{part}: peak memory, mlprod", [b / 1e6 for b in _values(turns, "mlprod", "peak_bytes")], "MB")
    yield figure(f"{part}: longest time between batches, mlprod", _values(turns, "mlprod", "max_s"), "s")


def sizes(bench: Bench) -> list[Figure]:
    """Draws as many rows out of a dataset ten times as large: memory and start must not follow its size."""
    if not bench.large:
        bench.console.print("size: skipped; --large compares with a dataset ten times as large, 7 GB on disk")
        return []
    shapes = {"5M rows": DENSE, "50M rows": replace(DENSE, num_rows=LARGE_ROWS)}
    num_rows = bench.sized(DENSE).num_rows
    jobs = {n: Job(contender="mlprod", folder=bench.folder(s), batch=4096, num_rows=num_rows) for n, s in shapes.items()}
    turns = bench.take_turns(jobs)
    show(bench.console, f"size: mlprod, the epoch's first {num_rows:,} rows, batches of 4,096", turns)
    told = {"rows_per_s": "rows/s", "first_s": "first batch", "peak_bytes": "peak memory"}
    small, large = jobs
    return [
        figure(f"size: {what}, {large} / {small}", _ratio(turns, key, large, small), "ratio", peers=_medians(turns, key))
        for key, what in told.items()
    ]


def step(bench: Bench) -> list[Figure]:
    """Trains on one batch and on the loader's."""
    steps = QUICK_STEPS if bench.quick else TRAINED_STEPS
    job = Job(contender="mlprod", folder=bench.folder(DENSE), batch=4096, num_rows=steps * 4096)
    found = bench.take_turns({"step": job}, "_training.py")["step"]
    held, loaded, waited = ([1e3 * run[name] for run in found] for name in ("held_s", "loaded_s", "waited_s"))
    table = Table("batch", "ms a step", "of these waited", title="step: an MLP on dense, batches of 4,096", box=SIMPLE_HEAD)
    table.add_row("one, on the device", spread(held), "")
    table.add_row("the loader's", spread(loaded), spread(waited))
    bench.console.print(table)
    share = [(b - a) / b for a, b in zip(held, loaded, strict=True)]
    return [figure("step: share of the loader", share, "of a step"), figure("step: wait for data", waited, "ms a step")]


PARTS: dict[str, Measured] = {part: lambda bench, part=part: drawn(bench, part) for part in CASES}
PARTS |= {"size": sizes, "step": step}


def _values(turns: Turns, name: str, key: str) -> list[float]:
    return [run[key] for run in turns[name]]


def _medians(turns: Turns, key: str) -> dict[str, float]:
    return {name: median(_values(turns, name, key)) for name in turns}


def _ratio(turns: Turns, key: str, one: str, other: str) -> list[float]:
    """Returns the ratio of a value in each round."""
    return [a / b for a, b in zip(_values(turns, one, key), _values(turns, other, key), strict=True)]


def figure(name: str, values: Sequence[float], unit: str, **more: Any) -> Figure:
    """Returns the figure of a value a run: median, least and greatest."""
    value, low, high = median(values), min(values), max(values)
    return Figure(name=name, value=value, low=low, high=high, unit=unit, runs=len(values), **more)


def spread(values: Sequence[float], scale: float = 1, digits: int = 2) -> str:
    """Returns values as "median [least-most]"."""
    return f"{scale * median(values):.{digits}f} [{scale * min(values):.{digits}f}-{scale * max(values):.{digits}f}]"


def show(console: Console, title: str, turns: Turns) -> None:
    """Prints a row a contender."""
    columns = {
        "M rows/s": ("rows_per_s", 1e-6, 2),
        "first epoch": ("first_epoch_rows_per_s", 1e-6, 2),
        "CPU s": ("cpu_s", 1, 2),
        "first batch ms": ("first_s", 1e3, 0),
        "memory MB": ("peak_bytes", 1e-6, 0),
    }
    table = Table("", *columns, "p50 / p99 / max ms", title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in turns:
        told = ["" if key in UNSAID.get(name, ()) else spread(_values(turns, name, key), *how) for key, *how in columns.values()]
        gaps = [1e3 * median(_values(turns, name, key)) for key in ("p50_s", "p99_s", "max_s")]
        table.add_row(name, *told, "" if np.isnan(gaps).any() else " / ".join(f"{gap:.2f}" for gap in gaps))
    console.print(table)


def main() -> None:
    """Measures the parts and prints tables and figures."""
    parser = parser_for(__doc__)
    parser.add_argument("--data", default="", metavar="DIR", help="where datasets are kept; default: a temporary folder")
    parser.add_argument("--runs", type=int, default=0, metavar="N", help=f"of each contender; default {RUNS}, quick {QUICK_RUNS}")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--large", action="store_true", help=f"compare with {LARGE_ROWS:,} rows")
    options = parser.parse_args()
    console = Console(highlight=False, width=150)
    if not find_spec("torch"):
        print("torch is not installed: its loaders are skipped (`pip install -e '.[bench]'`)")
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
        data = Path(options.data or temporary)
        bench = Bench(data=data, runs=runs, quick=options.quick, large=options.large, console=console)
        figures = [found for part in ([options.only] if options.only else PARTS) for found in PARTS[part](bench)]
    if bench.others:
        print(f"cores used by other processes, a run: median {median(bench.others):.2f}, most {max(bench.others):.2f}")
    publish(figures, options.json)


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"loader: {error}")
