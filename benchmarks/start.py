"""What a start costs, by part: the first of a run, and the next one, which finds its compiled programs again.

    python benchmarks/start.py [--quick] [--json FILE]      # needs `make demo`'s data, or makes it (`python -m mlprod.etl.demo`)

Job: starts `mlprod train` on the flights recipe, asks it to stop after some steps, and starts it again, each time in a process of
its own with a new workdir; then reads the ledger of both starts.
Promise: seconds are those of the run's own ledger, from the start of the process to its end. Nothing is warm but the operating
system's file cache: a round that is not counted goes first.
How to read: "compile" is XLA's part, wherever it is spent, or the reading of a program that was kept; the rest of the first step,
tracing it among that, is "first step".
Price: about 40 s a round; --quick: one round.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _figures import Figure, arguments, publish

ROOT = Path(__file__).resolve().parents[1]
ROUNDS, QUICK_ROUNDS = 7, 1
STEP = 20  # after which a start is asked to stop
COMPILE_GOAL, UNATTRIBUTED_GOAL = 0.10, 0.02
PARTS = ("import", "join", "devices", "plan", "state", "restore", "tracking", "first batch", "compile", "first step", "save")
LIMIT_S = 300.0


def start(folder: Path, workdir: Path) -> tuple[dict[str, Any], str]:
    """Starts the run, asks it to stop, and returns the last line of its attempt, and what it printed."""
    given = {"dataset": ROOT / "datasets" / "flights", "workdir": workdir, "tracking.wandb": "off", "checkpoint.every": 0}
    words = ["train", "--config", "configs/flights.py", *(f"--config.{name}={value}" for name, value in given.items())]
    steps = len((workdir / "log.jsonl").read_text().splitlines()) if (workdir / "log.jsonl").exists() else 0
    with open(folder / "printed", "w+") as printed:
        process = subprocess.Popen([sys.executable, "-m", "mlprod.train", *words[1:]], cwd=ROOT, stderr=printed, stdout=printed)
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and time.monotonic() < deadline:
            lines = (workdir / "log.jsonl").read_text().count("\n") if (workdir / "log.jsonl").exists() else 0
            if lines > steps + STEP:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == os.EX_TEMPFAIL, (folder / "printed").read_text()
    last = json.loads((workdir / "attempts.jsonl").read_text().splitlines()[-1])
    return last, (folder / "printed").read_text()


def one_round(folder: Path) -> list[dict[str, Any]]:
    """Returns the ledgers of a first start and of the next one; asserts that this found every program."""
    workdir = folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    first, _ = start(folder, workdir)
    second, printed = start(folder, workdir)
    found = re.search(r"(\d+) programs compiled in \S+ s, (\d+) of them", printed)
    assert found, printed
    second["compiled again"] = int(found[1]) - int(found[2])
    return [first, second]


def figure(name: str, values: Sequence[float], unit: str, goal: float | None = None) -> Figure:
    """Returns the median of a figure's values, with the least and the largest."""
    bound = {"max": goal} if goal is not None else None
    return Figure(name=name, value=median(values), low=min(values), high=max(values), unit=unit, runs=len(values), goal=bound)


def main() -> None:
    """Measures, prints a table, and publishes."""
    options = arguments(__doc__ or "")
    if not (ROOT / "data" / "flights.db").exists():
        subprocess.run([sys.executable, "-m", "mlprod.etl.demo"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "mlprod.etl", "--config", "configs/flights.py"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as place:
        one_round(Path(place))  # not counted
        rounds = [one_round(Path(place)) for _ in range(QUICK_ROUNDS if options.quick else ROUNDS)]
    figures = []
    for i, which in enumerate(("first", "second")):
        starts = [each[i] for each in rounds]
        for part in PARTS:
            values = [each["seconds"].get(part, 0.0) for each in starts]
            if max(values) > 0:
                figures.append(figure(f"{which} start: {part}", values, "s"))
        rest = [1 - sum(each["seconds"].values()) / each["elapsed"] for each in starts]
        figures.append(figure(f"{which} start: unattributed", rest, "of all", UNATTRIBUTED_GOAL))
    ratio = [second["seconds"]["compile"] / first["seconds"]["compile"] for first, second in rounds]
    figures.append(figure("compile seconds, second / first", ratio, "times", COMPILE_GOAL))
    figures.append(figure("programs compiled again", [second["compiled again"] for _, second in rounds], "programs", 0))
    publish(figures, options.json)


if __name__ == "__main__":
    main()
