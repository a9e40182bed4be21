"""A soak: a small run that trains on and on, evaluates, saves and logs, is disturbed all the time, and is watched from outside.

    python -m tests.chaos.soak --minutes 30 --output runs/soak/soak.html        (or: make soak)

The disturbances: reads that fail and are tried again, batches with bad numbers (left out, or gone back from), a disk that is full
for one save, a W&B server that turns from answering to not answering, SIGTERM, Ctrl-C and kills, each followed by the same
command.
Once a second memory, handles, threads, temporary files and the run's folder are looked at. What is not flat ends it with 1.
Beside the page, which shows the curves, lies `soak.json` with all samples.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from mlprod.data.loader import train_batches
from mlprod.etl.run import build
from mlprod.plan import make_plan
from mlprod.report.charts import Series, curves
from mlprod.tracking import read_log
from tests import rows
from tests.chaos.flat import MB, Limits, Sample, Verdict, settled, verdicts
from tests.conftest import ROOT, smoke_config
from tests.wandb_server import MODES, Server

RECIPE = ROOT / "tests" / "recipes" / "poisoned.py"
LOG_BYTES = 4 << 20
LONG_S = 600.0  # of a soak, from which on its memory is flat but for a little
LIMIT_S = 60.0  # for an attempt to end that was asked to, or that ends by itself
LEFT_S = 30.0  # that W&B's processes may outlive a run that was killed
HURT = (("SIGKILL", {}), ("full", {"bad_save": 8}), ("SIGTERM", {"policy": "rollback"}), ("SIGINT", {}))


@dataclass(frozen=True)
class Attempt:
    """One start of the run, and what becomes of it."""

    lasts_s: float
    end: str  # a signal, or "full": it ends by itself
    policy: str = "skip"
    bad_save: int = 0


def planned(seconds: float) -> list[Attempt]:
    """Returns the attempts of a soak: half of its time one that nothing ends, then shorter ones that end in every way."""
    count = max(4, round(seconds / 2 / 120.0))
    rest = [(HURT[i % len(HURT)], seconds / 2 / count) for i in range(count)]
    return [Attempt(seconds / 2, "SIGTERM"), *(Attempt(lasts_s, end, **more) for (end, more), lasts_s in rest)]


class Rows(list[Any]):
    """The rows of a history, of which the last alone is kept: so many are sent that this process would grow."""

    def __init__(self, sent: Sequence[Any]) -> None:
        """Takes over those that came so far."""
        super().__init__(sent[-1:])
        self.count = len(sent)

    def __len__(self) -> int:
        """So many came."""
        return self.count

    def __setitem__(self, where: Any, sent: Any) -> None:
        """Takes rows at an offset."""
        got = list(sent)
        self.count = where.start + len(got)
        list.__setitem__(self, slice(None), got[-1:])


class Thrifty(Server):
    """A W&B server that forgets what was said."""

    def service_actions(self) -> None:
        """Forgets, twice a second."""
        with self.lock:
            self.bodies.clear()
            self.sent.clear()
            for run, sent in self.history.items():
                if not isinstance(sent, Rows):
                    self.history[run] = Rows(sent)


@contextlib.contextmanager
def moody(dice: random.Random) -> Iterator[Thrifty]:
    """A server that answers well at first, and changes its mind every 5 to 20 s."""
    server, over = Thrifty("well"), threading.Event()

    def turn() -> None:
        while not over.wait(dice.uniform(5.0, 20.0)):
            server.mode = dice.choice(MODES)

    threads = [threading.Thread(target=server.serve_forever, daemon=True), threading.Thread(target=turn, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        over.set()
        server.ended.set()
        server.shutdown()
        server.server_close()


def poison_of(cfg: Any) -> float:
    """Returns a value of the first numeric feature that one row of the training split has."""
    plan = make_plan(cfg, jax.devices()[:1])
    every = range(0, plan.manifest.num_rows("train") // 64 * 64, 64)
    batches = train_batches(plan.cfg, plan.store, plan.manifest, plan.order, plan.train_ranges, every)
    values, counts = np.unique(np.concatenate([batch["numeric"][:, 0] for batch in batches]), return_counts=True)
    batches.close()
    return float(values[counts == 1][0])


def anonymous(pid: int) -> int:
    """Returns the bytes of a process's memory that no file has; raises FileNotFoundError where it is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    if not found:  # it has ended, and nobody has asked for its exit code yet
        raise FileNotFoundError(pid)
    return sum(found)


@dataclass
class Soak:
    """What is run and watched."""

    folder: Path
    url: str
    pause_s: float
    samples: list[Sample] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    children: set[psutil.Process] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    def prepare(self) -> None:
        """Builds the dataset."""
        csv = rows.write(self.folder / "rows.csv", 20_000)
        self.cfg = smoke_config(csv, self.folder / "dataset", self.folder / "run")
        build(self.cfg)
        self.poison = poison_of(self.cfg)
        (self.folder / "tmp").mkdir()
        (self.folder / "home").mkdir()
        self.began = time.monotonic()

    def start(self, number: int, attempt: Attempt) -> subprocess.Popen[bytes]:
        """Starts an attempt."""
        given = {
            "workdir": self.cfg.workdir, "dataset": self.cfg.dataset, "etl.source.path": self.cfg.etl.source.path,
            "steps": 1_000_000_000, "eval.every": 300, "checkpoint.every": 100, "model.poison": f"({self.poison},)",
            "bad_numbers.policy": attempt.policy, "bad_numbers.limit": 1_000_000, "tracking.wandb": "online",
            "tracking.tensorboard": True, "tracking.log_bytes": LOG_BYTES, "tracking.start_s": 10.0, "tracking.finish_s": 10.0,
        }  # fmt: skip
        argv = ["train", "--config", str(RECIPE), *(f"--config.{name}={value}" for name, value in given.items())]
        spec = self.folder / "spec.json"
        spec.write_text(json.dumps({"argv": argv, "pause_s": self.pause_s, "bad_read": 0.01, "bad_save": attempt.bad_save}))
        home, temporary = str(self.folder / "home"), str(self.folder / "tmp")
        env = {**os.environ, "HOME": home, "TMPDIR": temporary, "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": self.url}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        env.pop("MLPROD_TEST_COMPILED", None)  # in the run's folder, as a user's
        with open(self.folder / f"attempt-{number}.out", "wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.soaked", str(spec)], env=env, stdout=output, stderr=output
            )

    def live(self, number: int, attempt: Attempt) -> None:
        """Runs an attempt to its end and looks at it once a second."""
        process = self.start(number, attempt)
        watched, ends_at, first = psutil.Process(process.pid), time.monotonic() + attempt.lasts_s, self.last_step()
        while process.poll() is None and (time.monotonic() < ends_at or self.last_step() <= first):
            began = time.monotonic()
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError):
                self.look(number, watched)
            time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
            if began > ends_at + LIMIT_S:
                break
        asked = time.monotonic()
        if attempt.end != "full" and process.poll() is None:
            process.send_signal(signal.Signals[attempt.end])
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        took = time.monotonic() - asked
        self.ends.append(
            {"attempt": number, "end": attempt.end, "exit": process.returncode, "took_s": took, "step": self.last_step()}
        )
        print(f"attempt {number}: {self.ends[-1]}", flush=True)

    def look(self, number: int, watched: psutil.Process) -> None:
        """Takes a sample."""
        children = watched.children(recursive=True)
        self.children.update(children)
        others = 0
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                others += child.memory_info().rss
        sizes = dict(self.sizes())
        log = sum(size for path, size in sizes.items() if path.parent == self.workdir and path.name.startswith("log"))
        notes = sizes.get(self.workdir / "attempts.jsonl", 0)
        tracked = {path: size for path, size in sizes.items() if {"wandb", "tensorboard"} & set(path.parts)}
        self.samples.append(
            Sample(
                at=time.monotonic() - self.began, attempt=number, step=self.last_step(),
                own=anonymous(watched.pid), rss=watched.memory_info().rss,
                others=others, handles=watched.num_fds(), threads=watched.num_threads(),
                temporary=sum(1 for path in (self.folder / "tmp").rglob("*") if path.is_file()),
                files=len(sizes) - len(tracked), kept=sum(sizes.values()) - sum(tracked.values()) - log - notes, log=log,
                notes=notes, tracked=sum(tracked.values()),
            )
        )  # fmt: skip

    @property
    def workdir(self) -> Path:
        """The run's folder."""
        return Path(self.cfg.workdir)

    def sizes(self) -> Iterator[tuple[Path, int]]:
        """Yields (file, bytes) of the run's folder; files come and go meanwhile."""
        for folder, _, names in os.walk(self.workdir):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    yield Path(folder) / name, (Path(folder) / name).lstat().st_size

    def last_step(self) -> int:
        """Returns the step of the last whole line of the log, 0 where there is none."""
        with contextlib.suppress(FileNotFoundError), open(self.workdir / "log.jsonl", "rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            whole = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"}\n")]
            return int(json.loads(whole[-1])["step"]) if whole and whole[-1].startswith(b"{") else 0
        return 0

    def left_behind(self) -> list[str]:
        """Returns the command lines of processes that outlived the attempts that started them."""
        psutil.wait_procs(self.children, LEFT_S)
        found = []
        for child in self.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(child.cmdline())[:200])
        return found


def soaked(folder: Path, seconds: float, pause_s: float = 0.002) -> tuple[Soak, list[Verdict], list[str]]:
    """Runs a soak in an empty folder; returns it, what is flat, and what is wrong."""
    with moody(random.Random(5)) as server:
        soak = Soak(folder, server.url, pause_s)
        soak.prepare()
        for number, attempt in enumerate(planned(seconds), 1):
            soak.live(number, attempt)
    limits = Limits(log_bytes=LOG_BYTES) if seconds >= LONG_S else Limits(log_bytes=LOG_BYTES, memory_noise=20 * MB)
    found = verdicts(soak.samples, limits)
    wrong = [f"{verdict.name} is not flat" for verdict in found if not verdict.flat]
    wrong += [f"attempt {end['attempt']} ended with {end['exit']}" for end in soak.ends if not as_it_should(end)]
    wrong += [f"left behind: {command}" for command in soak.left_behind()]
    steps = [line["step"] for line in read_log(soak.workdir) if line["kind"] == "train"]
    if not all(b <= a + 1 for a, b in itertools.pairwise(steps)):
        wrong.append("the log has a gap")
    return soak, found, wrong


def as_it_should(end: dict[str, Any]) -> bool:
    """Whether an attempt ended with the code that its end has, in time, and further on than it began."""
    code = {"SIGTERM": 75, "SIGINT": 75, "SIGKILL": -signal.SIGKILL, "full": 1}[end["end"]]
    return bool(end["exit"] == code and (end["end"] != "SIGINT" or end["took_s"] < 5.0))


def table(soak: Soak, found: Sequence[Verdict]) -> str:
    """Returns the figures for people."""
    within = settled(soak.samples)
    lines = [
        f"{len(soak.ends)} attempts, {soak.samples[-1].at / 60:.1f} minutes, {soak.samples[-1].step:,} steps; memory, handles "
        f"and threads of attempt {within[0].attempt}, {(within[-1].at - within[0].at) / 60:.1f} minutes of it",
        "",
        "| | second quarter | last quarter | slope an hour | flat | by the rule |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for v in found:
        shown = [f"{value / MB:.2f} MB" if abs(v.late) > 10_000 else f"{value:.1f}" for value in (v.early, v.late, v.slope)]
        lines.append(f"| {v.name} | {' | '.join(shown)} | {'yes' if v.flat else 'NO'} | {v.rule} |")
    ends = [f"| {e['attempt']} | {e['end']} | {e['exit']} | {e['took_s']:.1f} | {e['step']:,} |" for e in soak.ends]
    return "\n".join([*lines, "", "| attempt | ended by | exit | s | step |", "| --- | --- | --- | --- | --- |", *ends])


PICTURES = (
    ("Memory", "MB", MB, ("own", "rss")), ("Memory of W&B's processes", "MB", MB, ("others",)), ("Handles", "", 1, ("handles",)),
    ("Threads", "", 1, ("threads",)), ("Temporary files", "", 1, ("temporary",)),
    ("Files in the run's folder", "", 1, ("files",)),
    ("Log", "MB", MB, ("log",)), ("Kept: checkpoints, programs, evaluations", "MB", MB, ("kept",)),
    ("attempts.jsonl", "kB", 1e3, ("notes",)), ("W&B's and TensorBoard's files", "MB", MB, ("tracked",)),
    ("Steps", "thousand", 1e3, ("step",)),
)  # fmt: skip


def page(soak: Soak, text: str) -> str:
    """Returns the curves as one HTML page."""
    minutes = [sample.at / 60 for sample in soak.samples]
    starts = [b.at / 60 for a, b in itertools.pairwise(soak.samples) if a.attempt != b.attempt]
    parts = []
    for title, unit, scale, names in PICTURES:
        series = [
            Series(x=minutes, y=[getattr(sample, name) / scale for sample in soak.samples], number=i, band=True)
            for i, name in enumerate(names)
        ]
        of = f" ({', '.join(names)})" if len(names) > 1 else ""
        parts.append(f"<h2>{escape(title + of)}</h2>{curves('minutes', unit or 'number', series, starts, zero=True)}")
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}pre{overflow:auto}svg{max-width:100%;height:auto}"
    return (
        f"<!doctype html><meta charset=utf-8><title>Soak</title><style>{style}</style><h1>Soak</h1>"
        f"<p>An upright line: the next start.</p><pre>{escape(text)}</pre>{''.join(parts)}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--output", type=Path, default=Path("runs/soak/soak.html"), help="page to write")
    parser.add_argument("--pause-s", type=float, default=0.002, help="rest after each step, for the machine's other users")
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mlprod-soak-", ignore_cleanup_errors=True) as folder:
        soak, found, wrong = soaked(Path(folder), 60 * options.minutes, options.pause_s)
        text = table(soak, found)
        options.output.write_text(page(soak, text))
        samples = [asdict(sample) for sample in soak.samples]
        options.output.with_suffix(".json").write_text(json.dumps({"ends": soak.ends, "wrong": wrong, "samples": samples}))
        print(f"\n{text}\n\nthe curves: {options.output}")
        for line in wrong:
            print(f"WRONG: {line}", file=sys.stderr)
            for output in sorted(Path(folder).glob("attempt-*.out")) if line.startswith("attempt") else []:
                print(f"-- {output.name}\n{output.read_text(errors='replace')[-1500:]}", file=sys.stderr)
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
