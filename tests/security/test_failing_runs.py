"""What a run leaves that fails for real: numbers that are none, torn files, kills, full disks, servers that go away, crashes.

Each is a process of its own on the planted rows, and all that is left is searched, as in `test_what_leaves.py`.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import pymysql
import pytest

from mlprod import cli
from mlprod.tracking import read_log
from tests import mariadb_server, postgres_server
from tests.disks import fill, small_disk
from tests.proxy import Proxy
from tests.security import planted
from tests.security.test_what_leaves import BASE, CONFIG, POSTGRES, Machine, fill_table, machine, wrong

LIMIT_S = 120.0
LONG = ("train", *CONFIG, "--config.steps=1000000")
MLPROD = str(Path(sys.executable).with_name("mlprod"))  # the console script
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def m(tmp_path: Path) -> Iterator[Machine]:
    """A machine with the planted rows, and their config, which tracks online, beside it."""
    with planted_machine(tmp_path / "m") as made:
        yield made


@contextmanager
def planted_machine(root: Path, change: str = "", head: str = "", **more: str) -> Iterator[Machine]:
    """See `m`; `change`, `head`: of the config; `more`: variables."""
    with machine(root, {"MPLCONFIGDIR": matplotlib.get_configdir(), **more}) as made:
        planted.write(made.here / "rows.csv", 400, {(3, "age"): "kanari-bad"})
        planted.write_config(made.here, BASE + change, head)
        yield made


def until(process: Any, what: Callable[[], object]) -> None:
    """Waits until it is so; the process must live meanwhile."""
    deadline = time.monotonic() + LIMIT_S
    while not what():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline, "it was not seen"
        time.sleep(0.01)


def trained(m: Machine, step: int, run: str = "run") -> bool:
    """Whether a run's log tells of a step."""
    return any(line["step"] >= step for line in read_log(m.here / run))


def assert_nothing_left(m: Machine, *, asked: bool = False) -> None:
    """No value, and no secret, is where it may not be; `asked`: see `wrong`."""
    m.write_down()
    assert wrong(m.root, asked=asked) == []


@pytest.mark.parametrize(
    "place, value",
    [
        ("printed/1.txt", planted.MAIL), ("here/dumps/watchdog.txt", planted.WHO), ("here/core.7", planted.NOTE),
        ("here/run/log.jsonl", f'"age": {planted.MOST}'), ("here/run/attempts.jsonl", planted.TOWN),
        ("here/run/checkpoints/00000010/arrays", planted.TOKEN), ("here/run/wandb/run.log", planted.BORN),
        ("here/dataset/quarantine/000001.jsonl", "kanari-bad"), ("here/dataset/files/000001/train-0", planted.PASSWORD),
        ("heard/bodies.txt", planted.MAIL), ("home/x", planted.KEY), ("tmp/x", planted.WHO), ("processes.txt", planted.OTHER),
    ],
)  # fmt: skip
def test_what_is_left_is_searched(place: str, value: str, tmp_path: Path) -> None:
    """A value in any of these places is found, so the tests below can fail."""
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"x {value} y")
    assert {f.place for f in wrong(tmp_path, asked=False)} == {place}


# ---- crashes -----------------------------------------------------------------------------------------------------------


def plain_cores() -> bool:
    """Whether this machine writes a core where the process stands."""
    pattern = Path("/proc/sys/kernel/core_pattern")
    return pattern.exists() and not pattern.read_text().startswith(("|", "/"))


def allow_cores() -> None:
    """As `ulimit -c unlimited`."""
    resource.setrlimit(resource.RLIMIT_CORE, UNLIMITED)


def test_a_verb_switches_core_files_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this process, and so of all that it starts; where no column is sensitive they stay as they are."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_CORE)
    plain = "cfg.etl.columns = tuple(replace(c, sensitive=False) for c in cfg.etl.columns)"
    try:
        for change, left in ((plain, before[1]), ("", 1 if before[1] else 0)):
            resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
            assert cli.run(["data", "ls", "--config", str(planted.write_config(tmp_path, change))]) == 2
            assert resource.getrlimit(resource.RLIMIT_CORE) == (left, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.chaos
@pytest.mark.skipif(not plain_cores() or os.geteuid() != 0, reason="cores are not written as files here, or may not be")
@pytest.mark.parametrize("sensitive", [True, False])
def test_a_crash_leaves_no_core_file(sensitive: bool, m: Machine) -> None:
    """Of a training process and its worker's; one whose columns are not sensitive leaves it, with the values in it."""
    if not sensitive:
        planted.write_config(m.here, BASE + "cfg.etl.columns = tuple(replace(c, sensitive=False) for c in cfg.etl.columns)")
    assert m.run(["etl", *CONFIG]) == {"etl --config mine.py": 0}
    with m.start("-X", "faulthandler", MLPROD, *LONG, preexec_fn=allow_cores) as process:
        until(process, lambda: trained(m, 20))
        process.send_signal(signal.SIGSEGV)
        assert process.wait() == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in m.told()
    cores = list(m.here.glob("core*"))
    if sensitive:
        assert cores == []
        assert_nothing_left(m)
    else:
        assert any(planted.TOWN.encode() in core.read_bytes() for core in cores)


# ---- numbers, and saved steps --------------------------------------------------------------------------------------------


SPOILT = "from tests.security.poisoned import SpoiltConfig"


@pytest.mark.chaos
@pytest.mark.parametrize(
    "change, told, traced",
    [
        ("cfg.bad_numbers.policy = 'stop'", "the loss is nan", {"TRACED": "yes"}),
        ("cfg.bad_numbers.policy = 'skip'; cfg.bad_numbers.limit = 2", "updates were left out before it", {}),
        ("cfg.bad_numbers.policy = 'rollback'; cfg.checkpoint.every = 2", "the run was rolled back 10 times before it", {}),
    ],
)
def test_a_row_whose_loss_is_no_number(change: str, told: str, traced: Mapping[str, str], tmp_path: Path) -> None:
    """It is told by its batch's ids alone, whatever the policy; W&B online, a trace on."""
    spoilt = "cfg.model = SpoiltConfig(hidden=(16,)); cfg.steps = 60\n" + change
    with planted_machine(tmp_path / "m", spoilt, SPOILT, **traced) as m:
        one = {(i, "age"): str(planted.MOST) for i in range(11, 400, 10)}
        planted.write(m.here / "rows.csv", 400, one)
        assert list(m.run(["etl", *CONFIG], ["train", *CONFIG]).values()) == [0, 1], m.told()
        assert told in m.told()
        assert_nothing_left(m)


@pytest.mark.chaos
def test_torn_saved_steps(m: Machine) -> None:
    """The newest, from which another is taken; and all, with which the run ends."""
    assert set(m.run(["etl", *CONFIG], ["train", *CONFIG]).values()) == {0}
    for torn, code in ((1, 0), (9, 2)):
        for step in sorted((m.here / "run" / "checkpoints").glob("0*"))[-torn:]:
            tear(step)
        assert set(m.run(["train", *CONFIG, "--config.steps=30", "--debug"]).values()) == {code}, m.told()
    assert set(m.run(["checkpoints", "verify", *CONFIG], ["evaluate", *CONFIG, "--debug"]).values()) <= {1, 2}
    assert_nothing_left(m)


def tear(step: Path) -> None:
    """Cuts the largest files of a saved step in half."""
    for path in sorted((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)[-3:]:
        os.truncate(path, path.stat().st_size // 2)


# ---- signals, and what hangs ---------------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL", "SIGABRT"])
def test_training_that_gets_a_signal(name: str, m: Machine) -> None:
    """It saves, or is gone; a signal that faulthandler hears leaves a dump of stacks."""
    assert set(m.run(["etl", *CONFIG]).values()) == {0}
    with m.start("-X", "faulthandler", MLPROD, *LONG) as process:
        until(process, lambda: trained(m, 20))
        process.send_signal(getattr(signal, name))
        assert process.wait(LIMIT_S) in (75, -getattr(signal, name))
    assert ("most recent call first" in m.told()) == (name == "SIGABRT")
    assert_nothing_left(m)


@pytest.mark.chaos
@pytest.mark.parametrize("fault, code, told", [("stuck", 75, "thread MainThread:"), ("bug", 1, "RuntimeError: a bug")])
def test_training_that_hangs_or_has_a_bug(fault: str, code: int, told: str, m: Machine) -> None:
    """The watchdog ends it with the stacks of all threads; a bug has its traceback."""
    assert set(m.run(["etl", *CONFIG]).values()) == {0}
    with m.start("-m", "tests.chaos.broken", fault, *LONG, "--config.limits.step_s=2") as process:
        assert process.wait(LIMIT_S) == code
    assert told in m.told()
    assert_nothing_left(m)


# ---- builds ------------------------------------------------------------------------------------------------------------


DERIVED = """cfg.etl.columns = (*cfg.etl.columns, Column(name='d', type='int64', derived=True, role='input'))
cfg.etl.transform = hook; cfg.etl.executor = 'processes'; cfg.etl.workers = 2; cfg.etl.chunk_rows = 50
"""
HOOK = """
import multiprocessing, os, pandas as pd, time
from pathlib import Path
def hook(rows):
    {}
    return pd.DataFrame({{'d': (rows['x'] > 0).astype('int64')}})
"""
SLOW = HOOK.format("time.sleep(0.3)")
DIES = HOOK.format("os.kill(os.getpid(), 9) if multiprocessing.parent_process() and Path('die').exists() else None")


@pytest.mark.chaos
def test_a_killed_build(tmp_path: Path) -> None:
    """What it has done is in its own folder, which its workers leave nothing beside; the next one goes on, and removes it."""
    with planted_machine(tmp_path / "m", DERIVED, SLOW) as m:
        with m.start(MLPROD, "etl", *CONFIG) as process:
            until(process, lambda: list((m.here / "dataset").glob("work/*/*/extract/*.json")))
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        _, left = psutil.wait_procs(workers, LIMIT_S)
        assert left == []
        assert list((m.here / "dataset").glob("work/*")) != []
        assert_nothing_left(m)
        assert set(m.run(["etl", *CONFIG]).values()) == {0}
        assert_nothing_left(m)


@pytest.mark.chaos
def test_a_killed_worker(tmp_path: Path) -> None:
    """The build ends; its error tells of the worker and not of what it held."""
    with planted_machine(tmp_path / "m", DERIVED, DIES) as m:
        (m.here / "die").touch()
        with m.start(MLPROD, "etl", *CONFIG, "--debug") as process:
            assert process.wait(LIMIT_S) == 1, m.told()
        (m.here / "die").unlink()
        assert_nothing_left(m)


@pytest.mark.chaos
def test_full_disks(tmp_path: Path) -> None:
    """Of a build, and of training."""
    with planted_machine(tmp_path / "m") as m, small_disk(m.here / "dataset", "4m"):
        for left, code in ((0, 2), (60 << 10, 1)):  # before it begins, and in the middle
            leave(m.here / "dataset", left)
            assert set(m.run(["etl", *CONFIG, "--debug"]).values()) == {code}, m.told()
            assert "No space left on device" in m.told(), m.told()
            (m.here / "dataset" / "filler").unlink()
            assert_nothing_left(m)
        assert set(m.run(["etl", *CONFIG]).values()) == {0}
        with small_disk(m.here / "run", "4m"):
            leave(m.here / "run", 200 << 10)  # less than two saved steps
            assert set(m.run(["train", *CONFIG, "--debug"]).values()) == {1}
            assert "No space left on device" in m.told(), m.told()
            (m.here / "run" / "filler").unlink()
            assert_nothing_left(m)


def leave(folder: Path, left: int) -> None:
    """Fills a disk but for so many bytes."""
    fill(folder)
    path = folder / "filler"
    os.truncate(path, max(path.stat().st_size - left, 0))


# ---- databases -----------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_a_postgres_that_goes_away(tmp_path: Path) -> None:
    """In the middle of a read, by processes; once the build does without, at last it ends, and goes on when it is there."""
    with postgres_server.postgres() as port, closing(Proxy(port, after=900_000, cuts=-1)) as proxy:
        change = POSTGRES.replace("PORT", str(proxy.port)) + "cfg.etl.chunk_rows = 75"
        with planted_machine(tmp_path / "m", change, PGPW=postgres_server.PASSWORD) as m:
            fill_table(port, longer=4000)
            with m.start(MLPROD, "etl", *CONFIG, "--debug") as process:
                assert process.wait(LIMIT_S) == 75, m.told()
                proxy.cuts = 1
            with m.start(MLPROD, "etl", *CONFIG) as process:
                assert process.wait(LIMIT_S) == 0, m.told()
            assert proxy.cuts == 0
            assert_nothing_left(m, asked=True)  # of which the newest watermark is in the manifest


MARIADB = """cfg.etl.source = SqlSource(url='mysql://reader:$PGPW@127.0.0.1:PORT/planted', table='t', watermark='serial')
cfg.dataset, cfg.workdir = 'dataset-sql', 'run-sql'
"""


@pytest.mark.servers
@pytest.mark.chaos
@pytest.mark.skipif(bool(mariadb_server.MISSING), reason=mariadb_server.MISSING)
def test_a_mariadb_that_ends(tmp_path: Path) -> None:
    """The server itself is shut down when some rows of it are read; the rest is read from it no more."""
    with ExitStack() as stack:
        ended = stack.enter_context(ExitStack())
        port = ended.enter_context(mariadb_server.mariadb())
        fill_mariadb(port)
        change = DERIVED + "cfg.etl.chunk_rows = 20; cfg.etl.workers = 1\n" + MARIADB.replace("PORT", str(port))
        m = stack.enter_context(planted_machine(tmp_path / "m", change, SLOW, PGPW=postgres_server.PASSWORD))
        with m.start(MLPROD, "etl", *CONFIG, "--debug") as process:
            until(process, lambda: any((m.here / "dataset-sql").glob("work/*/*/extract")))
            ended.close()
            assert process.wait(LIMIT_S) == 75, m.told()
        assert "the same command goes on" in m.told()
        assert_nothing_left(m, asked=True)


def fill_mariadb(port: int) -> None:
    """Writes the rows, many times over, into a table of MariaDB."""
    login = {"host": "127.0.0.1", "port": port, "user": mariadb_server.USER, "password": postgres_server.PASSWORD}
    with closing(pymysql.connect(**login, autocommit=True)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE planted")
        kinds = dict.fromkeys(planted.HEADER.split(","), "TEXT") | {"age": "DOUBLE", "serial": "BIGINT", "born": "DATETIME"}
        kinds |= {"x": "DOUBLE", "y": "INTEGER"}
        cursor.execute(f"CREATE TABLE planted.t ({', '.join(f'{name} {kind}' for name, kind in kinds.items())})")
        rows = [tuple(planted.cells(i)) for i in range(4000)]
        cursor.executemany(f"INSERT INTO planted.t VALUES ({', '.join(['%s'] * len(kinds))})", rows)
