"""What every benchmark shares: its two arguments, and the JSON of its figures with the machine they were measured on.

A figure is {"name", "value", "low", "high", "unit", "goal": {"min": x} or {"max": x} or null, "stretch": x or null, "runs",
"peers": {name: value}}; `stretch` is a bound of the same kind as the goal's, further out.
The name begins with "_": `make bench` runs every other file here.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("mlprod", "jax", "jaxlib", "flax", "optax", "grain", "numpy", "pyarrow", "scikit-learn", "torch", "duckdb", "polars")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number with its spread over `runs` runs; `peers`: the same of others, measured in the same call."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    runs: int
    goal: Mapping[str, float] | None = None
    stretch: float | None = None
    peers: Mapping[str, float] = field(default_factory=dict)

    def verdict(self) -> str:
        """Returns the figure as a line for people, with whether its goal is met."""
        line = f"{self.name} {self.value:.4f} {self.unit} ({self.low:.4f} to {self.high:.4f}, {self.runs} run(s))"
        if not self.goal:
            return line
        (kind, bound), *_ = self.goal.items()

        def met(bound: float) -> bool:
            return self.value >= bound if kind == "min" else self.value <= bound

        further = "" if self.stretch is None else f"; stretch {self.stretch:g}: {'met' if met(self.stretch) else 'not met'}"
        return f"{line}, goal {kind} {bound:g}: {'met' if met(bound) else 'MISSED'}{further}"


def parser_for(about: str) -> argparse.ArgumentParser:
    """Returns a parser of the arguments that all benchmarks take, for a script that adds its own. `about`: its docstring."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--json", default="", metavar="FILE", help="also write figures and machine to this file")
    parser.add_argument(
        "--quick", action="store_true", help="a small form, to see that it runs; its figures are not to be quoted"
    )
    return parser


def arguments(about: str) -> argparse.Namespace:
    """Returns the parsed command line: `json` ('' for none) and `quick`. `about`: the script's docstring."""
    return parser_for(about).parse_args()


def _said(path: str, word: str) -> str:
    """Returns what /proc says after the first line that begins with `word`, or ''."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(word)), "")


def _commit() -> str:
    """Returns the commit of the working tree, with "+" where files differ from it; '' without git."""
    git = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def _version(name: str) -> str:
    """Returns the version of an installed package, or ''."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def machine() -> dict[str, Any]:
    """Returns what the figures depend on: hardware, load, versions."""
    return {
        "cpu": _said("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _said("/proc/meminfo", "MemTotal"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),  # of the last minute, this process included
        "date": time.strftime("%Y-%m-%d"),
        "commit": _commit(),
        **{name: _version(name) for name in LIBRARIES},
    }


def publish(figures: Sequence[Figure], path: str) -> None:
    """Prints the figures and writes them with the machine to `path`, where one is given."""
    for figure in figures:
        print(figure.verdict())
    if path:
        text = json.dumps({"figures": [asdict(figure) for figure in figures], "machine": machine()}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")
