"""What leaves the machine: every file, log, message and process that a run leaves is searched for the values that were planted.

`PLACES` is the list of all places: a file that fits none of them fails the test, and so does a value where it may not be.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from mlprod.compare import as_json
from mlprod.config import ByColumn, Config, OneOf, SqlSource
from mlprod.errors import ConfigError
from mlprod.trackers.run import of_config
from mlprod.validation import validate, without_passwords
from tests import postgres_server, wandb_server
from tests.conftest import ROOT
from tests.security import planted
from tests.security.canaries import Finder, Found, files

FINDER = Finder({**planted.ROWS, **planted.SECRETS, "bad": "kanari-bad", "server's password": postgres_server.PASSWORD})
STORED = ("key", "town", "note", "least", "most", "greatest", "time, us")  # of columns that a dataset has, and keys
NOTHING = "nothing"


@dataclass(frozen=True)
class Place:
    """Files that a run leaves, below the folder that has all of it. `patterns`: the first place whose pattern fits has a file."""

    patterns: tuple[str, ...]
    name: str  # for the docs
    holds: str
    may: tuple[str, ...] = ()  # canaries that it may hold
    asked: tuple[str, ...] = ()  # where the config itself names a value, or asks for quantiles of a number
    why: str = NOTHING


UNDER_WAY = "work"  # a build's own folder
NAMED = "what the config names of values: of a split, a watermark or a rule"
PLACES = (
    Place(("here/*.csv",), "source", "the rows", (*planted.ROWS, "bad"), (), "all: they are yours"),
    Place(
        ("here/configs/*",),
        "config that `init` writes",
        "columns, the reason for each beside it",
        ("least", "greatest", "serial"),
        (),
        "the least and greatest of a number, and times at which rows are split: no column is sensitive yet",
    ),
    Place(("here/*.py", "commands.json"), "config file, command line", "what you wrote", (), ("note",), NAMED),
    Place(
        ("here/dataset*/files/*",),
        "dataset: `files/`",
        "rows as they are stored",
        STORED,
        (),
        "values of stored columns and keys; protect it as the rows",
    ),
    Place(
        ("here/dataset*/features/*",),
        "dataset: `features/`",
        "the fitted transform",
        ("town", "least", "most", "greatest"),
        (),
        "vocabularies, medians and quantiles, which `predict` needs",
    ),
    Place(
        ("here/dataset*/manifests/*",),
        "dataset: `manifests/`",
        "columns, config, checksums, the source as it was",
        (),
        ("note", "serial"),
        f"{NAMED}; the newest watermark, from which `grow` goes on",
    ),
    Place(("here/dataset*/reports/*",), "dataset: `reports/`", "the data report, JSON and page"),
    Place(("here/dataset*/quarantine/*",), "dataset: `quarantine/`", "bad rows: where, why, values", (), (), "hashes alone"),
    Place(
        (f"here/dataset*/{UNDER_WAY}/*",),
        "dataset: `work/`",
        "what a build that goes on, or was killed, has done",
        (*planted.ROWS, "bad"),
        (),
        "rows; its folder is the user's alone, and goes when the build is done",
    ),
    Place(("here/run*/log.jsonl",), "run: `log.jsonl`", "losses, metrics, row ids"),
    Place(("here/run*/attempts.jsonl",), "run: `attempts.jsonl`", "config, hardware, time, memory", (), ("note",), NAMED),
    Place(
        ("here/run*/checkpoints/*", "here/run*/lease"),
        "run: `checkpoints/`, and its copies",
        "arrays, config",
        (),
        ("note", "least", "most", "greatest"),
        f"{NAMED}; quantiles by which a model scales a number",
    ),
    Place(
        ("here/programs/*", "here/run*/compiled/*"),
        "compiled programs",
        "the steps, their constants",
        (),
        ("least", "most", "greatest"),
        "quantiles by which a model scales a number",
    ),
    Place(("here/run*/evaluations/*",), "run: `evaluations/`", "metrics, by segment too"),
    Place(("here/run*/report.html", "here/compare.html"), "pages of `report` and `compare`", "curves, config, figures"),
    Place(("here/run*/tensorboard/*",), "run: `tensorboard/`", "curves"),
    Place(
        ("here/run*/traces/*",), "run: `traces/`", "profiles of steps", (), ("least", "most", "greatest"), "as compiled programs"
    ),
    Place(("here/run*/wandb/*", "here/run*/wandb-*"), "run: `wandb/`", "W&B's records, config, logs of its own doing"),
    Place(
        ("home/.local/share/wandb/*", "home/.cache/wandb/*", "home/.config/wandb/*"),
        "W&B's folders in the home folder",
        "artifacts on their way, settings, logs",
    ),
    Place(("heard/*",), "W&B's server", "every body that it was sent"),
    Place(
        ("here/predictions*.parquet",), "`predict --output`", "key, score, reason", ("key",), (), "the key, for which it is made"
    ),
    Place(("here/scores.parquet",), "`evaluate --scores`", "row ids, labels, scores"),
    Place(("printed/*",), "stdout, stderr, tracebacks", "what every verb prints, `--debug` too"),
    Place(("here/dumps/*",), "dumps of stacks", "the watchdog's and faulthandler's, twice a second"),
    Place(("processes.txt",), "process list", "command lines of all processes that are started, W&B's and workers too"),
    Place(("home/.cache/matplotlib/*", "home/.config/matplotlib/*"), "caches of libraries", "fonts"),
    Place(("tmp/*", "home/*", "here/core*"), "`TMPDIR`, the rest of the home folder, core files", "what nobody foresaw"),
)


def place_of(path: str) -> Place:
    """Returns the place of a file."""
    found = next((place for place in PLACES if any(fnmatch(path, pattern) for pattern in place.patterns)), None)
    assert found is not None, f"{path} is in no place of PLACES"
    return found


def wrong(root: Path, *, asked: bool) -> list[Found]:
    """Returns what is where it may not be; `asked`: whether the config names values, or asks for quantiles."""
    for path in files(root):
        place_of(path.relative_to(root).as_posix())
    found = {f: place_of(f.place.split(" ")[0]) for f in FINDER.below(root)}
    return sorted(f for f, place in found.items() if f.canary not in place.may + (place.asked if asked else ()))


@contextmanager
def watched_processes(pid: int, path: Path) -> Iterator[None]:
    """Writes down the command lines of a process and of all that it starts, ten times a second."""
    over, seen = threading.Event(), set[str]()

    def watch() -> None:
        while not over.wait(0.1):
            try:
                process = psutil.Process(pid)
                for each in (process, *process.children(recursive=True)):
                    seen.add(" ".join(each.cmdline()))
            except psutil.Error:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with path.open("a") as file:
            file.write("\n".join(sorted(seen)) + "\n")


@dataclass
class Machine:
    """A folder that stands for a machine: home, folder for temporary files, where commands are run."""

    root: Path
    server: wandb_server.Server
    more: Mapping[str, str]

    @property
    def here(self) -> Path:
        """Where commands are run."""
        return self.root / "here"

    def run(self, *commands: Sequence[str]) -> dict[str, int]:
        """Runs command lines in one process; returns {command line: its exit code}."""
        (self.root / "commands.json").write_text(json.dumps(commands))
        with self.start("-m", "tests.security.verbs", str(self.root / "commands.json")) as process:
            process.wait()
        told = self.told()
        assert process.returncode == 0, told
        ended = [line.removeprefix("ENDED ").rpartition(" (")[0] for line in told.splitlines() if line.startswith("ENDED ")]
        return {line.partition(": ")[2]: int(line.partition(": ")[0]) for line in ended}

    @contextmanager
    def start(self, *words: str, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a Python of these words, whose processes are watched; `more`: for Popen. It is dead behind the block."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "MLPROD_", "WANDB_", "MPL"))}
        env = {
            **inherited, **planted.ENVIRONMENT, "HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp"),
            "XDG_RUNTIME_DIR": str(self.root / "tmp"), "WANDB_BASE_URL": self.server.url, "PYTHONPATH": str(ROOT), **self.more,
        }  # fmt: skip
        with (self.root / "printed" / f"{time.monotonic_ns()}.txt").open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=self.here, env=env, stdout=file, stderr=subprocess.STDOUT, **more
            )
            try:
                with watched_processes(process.pid, self.root / "processes.txt"):
                    yield process
            finally:
                process.kill()
                process.wait()

    def told(self) -> str:
        """Returns what was printed by the process that was started last."""
        return max((self.root / "printed").iterdir()).read_text(errors="backslashreplace")

    def write_down(self) -> None:
        """Writes down what the server was sent."""
        (self.root / "heard").mkdir(exist_ok=True)
        (self.root / "heard" / "bodies.txt").write_text("\n".join(self.server.bodies))


@contextmanager
def machine(root: Path, more: Mapping[str, str] | None = None) -> Iterator[Machine]:
    """A machine with a server of W&B within reach."""
    for name in ("home", "tmp", "here", "printed"):
        (root / name).mkdir(parents=True)
    with wandb_server.running() as server:
        yield Machine(root, server, more or {})


CONFIG = ("--config", "mine.py")
BASE = """cfg.etl.bad_rows = 'quarantine'
cfg.steps = 20
cfg.runtime.compile_cache = 'programs'
cfg.tracking = TrackingConfig(wandb='online', tensorboard=True, progress=True)
"""


def test_nothing_leaves_the_machine(tmp_path: Path) -> None:
    """From rows to predictions, W&B online: values are in the dataset alone, secrets nowhere."""
    with machine(tmp_path / "m", {"MPLCONFIGDIR": matplotlib.get_configdir()}) as m:  # whose fonts are known there
        planted.write(m.here / "rows.csv", 400, {(3, "age"): "kanari-bad", (7, "x"): "no"})
        planted.write_config(m.here, BASE)
        ended = m.run(
            ["etl", *CONFIG], ["train", *CONFIG], ["evaluate", *CONFIG, "--split=test", "--scores=scores.parquet"],
            ["predict", *CONFIG, "--output=predictions.parquet"], ["data", "show", *CONFIG], ["report", *CONFIG],
            ["evaluate", *CONFIG, "--by=note", "--debug"],
        )  # fmt: skip
        m.write_down()
        assert list(ended.values()) == [0, 0, 0, 0, 0, 0, 2]
        assert wrong(m.root, asked=False) == []
        assert "loss" in "".join(m.server.bodies)
        assert "kanari" in (m.here / "dataset" / "features" / "000001.json").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"split": "note"}, {"rules": "note"}, {"scale": "age"},
    ],
)  # fmt: skip
def test_saved_steps_with_values_are_not_sent(change: Mapping[str, str]) -> None:
    """They hold the config, and quantiles of a number that is scaled by them."""
    cfg = planted.config()
    cfg.tracking.wandb, cfg.tracking.checkpoints = "online", True
    validate(cfg)
    spoil(cfg, *change)
    with pytest.raises(ConfigError, match=r"would send values of '(note|age)', which is sensitive, to W&B"):
        validate(cfg)
    cfg.tracking.checkpoints = False
    validate(cfg)


def test_trackers_get_no_value_that_the_config_names() -> None:
    """But the names of columns and all that is not theirs."""
    cfg = planted.config()
    cfg.etl.source = SqlSource(url="sqlite:///rows.db", table="t", watermark="born", start=planted.BORN)
    spoil(cfg, "split", "rules")
    told = of_config(as_json(cfg))
    assert FINDER.in_bytes("", json.dumps(as_json(cfg)).encode()) != set()
    assert FINDER.in_bytes("", json.dumps(told).encode()) == set()
    assert told["etl"]["split"] == {"class": "ByColumn", "column": "note", "eval": "***", "test": []}


@pytest.mark.parametrize(
    "text, shown",
    [
        ("'postgresql://bob:p@x/y@h/db' is wrong", "'postgresql://bob:***@h/db' is wrong"),
        ("mysql://h/x?user=bob&Password=abc&b=1 b", "mysql://h/x?user=bob&Password=***&b=1 b"),
        ("postgresql://u:$PGPW@h/x?password=$PW", "postgresql://u:$PGPW@h/x?password=$PW"),
        ("dask://h:8786 and a@b", "dask://h:8786 and a@b"),
    ],
)
def test_passwords_of_urls_are_hidden(text: str, shown: str) -> None:
    """Names of variables stay."""
    assert without_passwords(text) == shown


def spoil(cfg: Config, *what: str) -> None:
    """Lets a config name values of a sensitive column, or ask for its quantiles."""
    if "split" in what:
        cfg.etl.split = ByColumn(column="note", eval=(f"{planted.NOTE} 0",))
    if "rules" in what:
        cfg.etl.rules = (OneOf(column="note", values=(f"{planted.NOTE} 0",)),)
    if "scale" in what:
        columns = (dataclasses.replace(c, scale="quantile") if c.name == "age" else c for c in cfg.etl.columns)
        cfg.etl.columns = tuple(columns)


NAMES_VALUES = """cfg.etl.split = ByColumn(column='note', eval=('kanari-note 0',), test=('kanari-note 1',))
cfg.etl.rules = (OneOf(column='note', values=tuple(f'kanari-note {i}' for i in range(5))),)
with_column(cfg, 'age', scale='quantile')
"""
SENT = "cfg.tracking.wandb = 'offline'; cfg.tracking.checkpoints = True; cfg.workdir = 'run-sent'"
POSTGRES = """
cfg.etl.source = SqlSource(url='postgresql://postgres:$PGPW@127.0.0.1:PORT/postgres', table='t', watermark='serial')
cfg.etl.executor = 'processes'; cfg.etl.workers = 2
cfg.dataset, cfg.workdir = 'dataset-sql', 'run-sql'
"""


def fill_table(port: int, longer: int = 0) -> None:
    """Writes the rows into a table of PostgreSQL; `longer`: letters more in each mail."""
    engine = sa.create_engine(f"postgresql+psycopg://postgres:{postgres_server.PASSWORD}@127.0.0.1:{port}/postgres")
    names = planted.HEADER.split(",")
    kinds = dict.fromkeys(names, "TEXT") | {"age": "DOUBLE PRECISION", "serial": "BIGINT", "born": "TIMESTAMP"}
    kinds |= {"x": "DOUBLE PRECISION", "y": "INTEGER"}
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE t ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
        values = ", ".join(["%s"] * len(names))
        connection.exec_driver_sql(f"INSERT INTO t VALUES ({values})", [tuple(planted.cells(i)) for i in range(400)])
        connection.exec_driver_sql(f"UPDATE t SET mail = mail || repeat('x', {longer})")
    engine.dispose()


@pytest.mark.chaos
def test_nothing_leaves_by_any_verb(tmp_path: Path) -> None:
    """But `init` and `run`; a config that names values; W&B offline with saved steps; rows of a server, read by processes."""
    with ExitStack() as stack:
        port = stack.enter_context(postgres_server.postgres())
        m = stack.enter_context(machine(tmp_path / "m", {"PGPW": postgres_server.PASSWORD, "TRACED": "yes"}))
        fill_table(port)
        planted.write(m.here / "rows.csv", 400, {(3, "age"): "kanari-bad", (7, "x"): "no"})
        changes = {
            "named": BASE + NAMES_VALUES + "cfg.dataset, cfg.workdir = 'dataset-named', 'run-named'", "sent": BASE + SENT,
            "sql": BASE + POSTGRES.replace("PORT", str(port)), "mine": BASE,
        }  # fmt: skip
        for name, change in changes.items():
            planted.write_config(m.here, change).rename(m.here / f"{name}.py")
        planted.write(m.here / "bad.csv", 50, {(3, "age"): "kanari-bad", (4, "serial"): "kanari-bad"})
        verbs = [
            command
            for name in changes
            for c in [("--config", f"{name}.py")]
            for command in (
                ["etl", *c, "--dry-run"], ["etl", *c], ["check", *c], ["train", *c], ["evaluate", *c, "--scores=scores.parquet"],
                ["predict", *c, f"--output=predictions-{name}.parquet"], ["report", *c], ["data", "ls", *c], ["data", "show", *c],
                ["data", "verify", *c], ["checkpoints", "ls", *c], ["checkpoints", "show", *c], ["checkpoints", "verify", *c],
                ["etl", *c, "--config.etl.hash_seed=3"], ["data", "diff", *c, "--config.etl.hash_seed=3"],
            )
        ]  # fmt: skip
        verbs += [["compare", "run", "run-named", "--output=compare.html"], ["doctor", *CONFIG]]
        ended = m.run(*verbs, ["predict", *CONFIG, "--input=bad.csv", "--output=predictions-bad.parquet"])
        m.write_down()
        assert {line: code for line, code in ended.items() if code} == {}
        assert wrong(m.root, asked=True) == []
        assert [f for f in FINDER.below(m.here / "run") if f.canary in planted.ROWS] == []  # whose config names nothing
        reasons = pq.read_table(m.here / "predictions-bad.parquet")["reason"].drop_null().to_pylist()
        assert [reason.partition(":")[0] for reason in reasons] == ["column 'age'", "column 'serial'"]
        there = {place_of(path.relative_to(m.root).as_posix()).name for path in files(m.root)}
        print("\n".join(sorted(there)))


def table() -> str:
    """Returns the list of places as the docs have it."""
    lines = ["| place | what it holds | which sensitive values it may hold |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {place.name} | {place.holds} | {place.why} |" for place in PLACES)])


def test_the_docs_list_the_places() -> None:
    """As they are searched."""
    assert table() in (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
