"""Tasks on a Dask cluster of real processes: the bytes that threads make, workers that die, a cluster that goes away, TLS."""

import dataclasses
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlprod import cli, recipe
from mlprod.config import Config, SqlSource, TextSource
from mlprod.errors import BuildError, ClusterLost, ConfigError, DataError, MachineError
from mlprod.etl import spill
from mlprod.etl.run import build
from mlprod.validation import validate
from tests.conftest import ROOT
from tests.etl import test_point_in_time as point_in_time
from tests.etl.dask_processes import Processes, processes
from tests.etl.test_pool import files_of
from tests.etl.test_text import DOCUMENTS, text_config
from tests.plain import numbered, small_config

pytest.importorskip("distributed")
import dask
import distributed
import trustme
from distributed.comm.core import CommClosedError

from mlprod.etl import cluster

# A hook that, in a worker, leaves word of itself and waits for a file.
RECIPE = """
import os, sys, time
from pathlib import Path
from tests.plain import small_config, ID
from mlprod.config import CsvSource, UniqueKey, Within, numeric

FOLDER, FROM, DIES = Path({folder!r}), {wait_from}, {dies}

def twice(chunk):
    if "dask_worker" in sys.argv[0] and len(chunk) and chunk["id"].max() >= FROM:
        (FOLDER / f"at-{{os.getpid()}}").write_text("here")
        while not (FOLDER / "go").exists():
            time.sleep(0.01)
        if DIES:
            os._exit(9)
        (FOLDER / f"did-{{os.getpid()}}").write_text("here")
    return (chunk[["x"]] * 2).rename(columns={{"x": "double"}})

def get_config():
    columns = (ID, numeric("x"), numeric("double", derived=True))
    return small_config(
        FOLDER, columns=columns, transform=twice, key=("id",), bad_rows="quarantine", chunk_rows=50,
        source=CsvSource(path={source!r}), {more},
    )
"""
NEVER = 1 << 40


def recipe_of(folder: Path, source: str = "", wait_from: int = NEVER, dies: bool = False, more: str = 'dedup="key"') -> Path:
    """Writes 400 rows, some twice and some bad, and a recipe of them with a hook; returns the recipe's path. `more`: fields."""
    folder.mkdir(parents=True, exist_ok=True)
    bad = "400,many,1\n401,1.5\n"
    (folder / "rows.csv").write_text(numbered(400) + bad + "\n".join(numbered(20).splitlines()[1:]) + "\n")
    path = folder / "recipe.py"
    source = source or str(folder / "rows.csv")
    path.write_text(RECIPE.format(folder=str(folder), source=source, wait_from=wait_from, dies=dies, more=more))
    return path


def config_of(path: Path, executor: str, dataset: str, *given: str) -> Config:
    """Returns the recipe's config with an executor and a dataset of its own."""
    return recipe.load(str(path), [f"--config.etl.executor={executor}", f"--config.dataset={dataset}", *given])


def made(cfg: Config) -> dict[str, bytes]:
    """Builds, and returns every file of the dataset but its report, which tells the seconds."""
    assert build(cfg)[1]
    return files_of(cfg.dataset)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A cluster of two workers. Shared: do not end them."""
    with processes(tmp_path_factory.mktemp("two"), 2) as started:
        yield started


@contextmanager
def building(cfg: Config) -> Iterator[list[Any]]:
    """Builds on a thread while the block runs; yields what it ended with: a manifest or an error."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(build(cfg)[0])
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ended
    finally:
        thread.join(120)
        assert not thread.is_alive()


def waiting(folder: Path, count: int, word: str = "at") -> list[int]:
    """Returns the ids of `count` processes that have left word."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [int(path.name.removeprefix(f"{word}-")) for path in folder.glob(f"{word}-*") if path.stat().st_size]
        if len(found) >= count:
            return found
        time.sleep(0.01)
    raise AssertionError(f"fewer than {count} processes came")


# ---- the same bytes ----------------------------------------------------------------------------------------------------


def test_a_cluster_makes_the_bytes_that_threads_make(two, tmp_path, monkeypatch):
    """A hook of a config file, a key, bad rows written down; names that are relative to a folder that no worker is in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spill, "num_bits", lambda *_: 3)
    path = recipe_of(tmp_path / "here", source="here/rows.csv")
    found = {}
    for executor in ("threads", two.executor):
        cfg = config_of(path, executor, "a/dataset")
        found[executor] = made(cfg)
        assert build(config_of(path, "threads", "a/dataset"))[1] is False  # who did it is no part of what it is
        (tmp_path / "a").rename(tmp_path / f"was {executor[:4]}")
    assert found["threads"] == found[two.executor]
    quarantined = next(body for name, body in found["threads"].items() if name.startswith("quarantine")).decode()
    assert '"here/rows.csv line 402"' in quarantined
    assert len(quarantined.splitlines()) == 2


def test_what_other_rows_tell_is_the_same_on_a_cluster(two, tmp_path, monkeypatch):
    """Histories and another source as of a row's time, each step a stage of its own, in eight buckets."""
    monkeypatch.setattr(spill, "num_bits", lambda *_: 3)
    cfg = point_in_time.config(tmp_path, point_in_time.distinct_times(point_in_time.events()), chunk_rows=50)
    found = {}
    for executor in ("threads", two.executor):
        etl = dataclasses.replace(cfg.etl, executor=executor)
        found[executor] = made(dataclasses.replace(cfg, dataset=str(tmp_path / executor[:4]), etl=etl))
    assert found["threads"] == found[two.executor]


def test_texts_are_packed_on_a_cluster(two, tmp_path, monkeypatch):
    """Tokens, rows and their order; packed files, which workers unpack."""
    monkeypatch.setattr(spill, "num_bits", lambda *_: 2)
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress("\n".join(DOCUMENTS).encode()))
    source = TextSource(path=str(tmp_path / "*.gz"), separator="\n")
    found = []
    for executor in ("threads", two.executor):
        cfg = text_config(tmp_path, [], source=source, executor=executor)
        found.append(made(dataclasses.replace(cfg, dataset=str(tmp_path / executor[:4]))))
    assert found[0] == found[1]


def test_ctrl_c_takes_back_what_no_worker_does(two, tmp_path):
    """It ends at once with 75, though workers are in the middle of tasks."""
    path = recipe_of(tmp_path, wait_from=0)
    words = ["--config", str(path), f"--config.dataset={tmp_path / 'd'}", f"--config.etl.executor={two.executor}"]
    command = [sys.executable, "-m", "mlprod.etl", *words]
    try:
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as started:
            waiting(tmp_path, 2)
            started.send_signal(signal.SIGINT)
            try:
                assert started.wait(20) == 75
            finally:
                started.kill()
        with distributed.Client(two.address, set_as_default=False) as client:
            deadline = time.monotonic() + 20
            while sum(map(len, client.processing().values())) > 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert sum(map(len, client.processing().values())) <= 2
    finally:
        (tmp_path / "go").touch()  # for which the workers wait


def test_the_command_line_takes_a_cluster(two, tmp_path, capsys):
    path = recipe_of(tmp_path)
    words = ["etl", "--config", str(path), f"--config.dataset={tmp_path / 'd'}", "--executor", two.executor]
    assert cli.run(words) == 0
    assert cli.run([*words[:-1], "dusk://x:1"]) == 2
    assert "'dusk://x:1' must be 'threads', 'processes', dask://HOST:PORT" in capsys.readouterr().err


def test_a_worker_tells_of_rows_as_a_thread_does(two, tmp_path):
    """The first in order, whichever was first in time."""
    told = []
    for executor in ("threads", two.executor):
        cfg = small_config(tmp_path, numbered(400) + "40,many,1\n41,more,1\n", executor=executor, chunk_rows=50)
        with pytest.raises(DataError) as error:
            build(cfg)
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "line 402" in told[0]


def test_at_most_so_many_tasks_run_at_once(two, tmp_path):
    """`etl.workers` of them, though the cluster has more threads."""
    path = recipe_of(tmp_path, wait_from=0)
    with building(config_of(path, two.executor, str(tmp_path / "d"), "--config.etl.workers=1")) as ended:
        assert len(waiting(tmp_path, 1)) == 1
        time.sleep(0.3)
        assert len(waiting(tmp_path, 1)) == 1
        (tmp_path / "go").touch()
    assert ended[0].version == 1, ended


# ---- workers that die --------------------------------------------------------------------------------------------------


def test_workers_that_die_and_a_cluster_that_goes_away(tmp_path):
    """One killed in the middle of a task: the same bytes. All killed: 75. The scheduler too: 75, and threads do what is left."""
    with processes(tmp_path / "dask", 2) as started:
        path = recipe_of(tmp_path, wait_from=200)
        wanted = made(config_of(path, "threads", str(tmp_path / "wanted")))
        with building(config_of(path, started.executor, str(tmp_path / "killed"))) as ended:
            os.kill(waiting(tmp_path, 2)[0], signal.SIGKILL)
            (tmp_path / "go").touch()
        assert not isinstance(ended[0], Exception), ended
        assert files_of(str(tmp_path / "killed")) == wanted

        cfg = rested(path, started, tmp_path, "alone")
        with pytest.MonkeyPatch.context() as patch, building(cfg) as ended:
            patch.setattr(cluster, "ABSENT_S", 1.0)
            patch.setattr(cluster, "WATCH_S", 0.1)
            os.kill(waiting(tmp_path, 1)[0], signal.SIGKILL)
        assert isinstance(ended[0], ClusterLost)
        assert ended[0].exit_code == 75
        assert "no workers, or no answer of its scheduler, for 1 s; the same command goes on" in str(ended[0])

        started.work(1)
        with pytest.MonkeyPatch.context() as patch, building(rested(path, started, tmp_path, "alone")) as ended:
            patch.setattr(cluster, "ABSENT_S", 1.0)
            patch.setattr(cluster, "ANSWER_S", 0.5)
            waiting(tmp_path, 1)
            started.scheduler.send_signal(signal.SIGSTOP)
        started.scheduler.send_signal(signal.SIGCONT)
        assert isinstance(ended[0], ClusterLost)
        os.kill(waiting(tmp_path, 1)[0], signal.SIGKILL)  # it is still in the middle of a task

        started.work(1)
        joined(started)
        with pytest.MonkeyPatch.context() as patch, building(rested(path, started, tmp_path, "alone")) as ended:
            patch.setattr(cluster, "CONNECT_S", 1.0)
            waiting(tmp_path, 1)
            started.kill()
        assert isinstance(ended[0], ClusterLost)
        assert "its scheduler is gone; the same command goes on" in str(ended[0])
    done = len(list((tmp_path / "alone").glob("work/*/*/extract/*.json")))
    assert done > 0
    assert made(config_of(path, "threads", str(tmp_path / "alone"))) == wanted


def test_rules_and_rows_that_are_appended_with_a_worker_killed(tmp_path, monkeypatch):
    """Rows that are known, that break a rule, that share a key or are bad, of both builds; the index of rows is the same too."""
    monkeypatch.setattr(spill, "num_bits", lambda *_: 3)
    rules = """grow="append", rules=(
        Within(column="x", low="5", high="290", otherwise="quarantine"), UniqueKey(otherwise="quarantine"))"""
    path, rows = recipe_of(tmp_path, str(tmp_path / "rows"), wait_from=500, more=rules), tmp_path / "rows"
    rows.mkdir()
    lines = numbered(600).splitlines()
    with processes(tmp_path / "dask", 2) as started:
        configs = {name: config_of(path, name, str(tmp_path / f"of {name[:4]}")) for name in ("threads", started.executor)}
        (rows / "1.csv").write_text("\n".join([*lines[:401], "7,x,1", "30,1e3,0", "31,77.5,1", "31,78.5,1"]) + "\n")
        first = [made(cfg) for cfg in configs.values()]
        assert first[0] == first[1]

        (rows / "2.csv").write_text("\n".join([lines[0], *lines[350:], "700,77.5,1", "700,78.5,1", "701,x,1"]) + "\n")
        wanted = made(configs["threads"])
        with building(configs[started.executor]) as ended:
            os.kill(waiting(tmp_path, 2)[0], signal.SIGKILL)
            (tmp_path / "go").touch()
    assert not isinstance(ended[0], Exception), ended
    assert (ended[0].version, ended[0].parent) == (2, 1)
    assert files_of(str(tmp_path / "of dask")) == wanted
    assert {"index/000001.parquet", "index/000002.parquet", "quarantine/000001.jsonl", "quarantine/000002.jsonl"} <= wanted.keys()
    told = wanted["quarantine/000002.jsonl"].decode().splitlines()
    assert [sum(why in line for line in told) for why in ("another row has its key", "290", "is not")] == [2, 19, 1], told


def joined(started: Processes) -> None:
    """Waits until the scheduler has the worker that was started last."""
    deadline = time.monotonic() + 60
    with distributed.Client(started.address, set_as_default=False) as client:
        while started.workers[-1].pid not in client.run(os.getpid, on_error="return").values():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def rested(path: Path, started: Processes, folder: Path, name: str) -> Config:
    """Returns a config whose hook waits again."""
    for left in (*folder.glob("at-*"), folder / "go"):
        left.unlink(missing_ok=True)
    return config_of(path, started.executor, str(folder / name))


def test_a_worker_that_was_only_thought_dead_does_no_harm(tmp_path):
    """It stands still, another does its task, and it goes on when the build has gone on."""
    with processes(tmp_path / "dask", 2, {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1s"}) as started:
        path = recipe_of(tmp_path, wait_from=380)
        wanted = made(config_of(path, "threads", str(tmp_path / "wanted")))
        with building(config_of(path, started.executor, str(tmp_path / "d"))) as ended:
            (stopped,) = waiting(tmp_path, 1)[:1]
            os.kill(stopped, signal.SIGSTOP)
            (tmp_path / "go").touch()
        assert not isinstance(ended[0], Exception), ended
        before = stamps(tmp_path / "d", wanted)
        assert not (tmp_path / f"did-{stopped}").exists()
        os.kill(stopped, signal.SIGCONT)
        waiting(tmp_path, 2, "did")
        time.sleep(0.3)
    assert files_of(str(tmp_path / "d")) == wanted
    assert stamps(tmp_path / "d", wanted) == before


def stamps(dataset: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Returns which file each is, and when it was changed."""
    return {name: ((dataset / name).stat().st_ino, (dataset / name).stat().st_mtime_ns) for name in names}


# ---- who is let in -----------------------------------------------------------------------------------------------------


def test_certificates_and_a_task_that_kills_workers(tmp_path, monkeypatch):
    """A scheduler that wants certificates: refused in one line without them. Without workers: refused. With both it works."""
    ca, files = trustme.CA(), {name: str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key")}
    cert = ca.issue_cert("127.0.0.1", "localhost")
    ca.cert_pem.write_to_path(files["ca"])
    cert.cert_chain_pems[0].write_to_path(files["cert"])
    cert.private_key_pem.write_to_path(files["key"])
    whose = [(who, kind) for who in ("client", "scheduler", "worker") for kind in ("cert", "key")]
    given = {"distributed.comm.require-encryption": True, "distributed.comm.tls.ca-file": files["ca"]}
    given |= {f"distributed.comm.tls.{who}.{kind}": files[kind] for who, kind in whose}
    environment = {
        "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true", "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": files["ca"],
        **{f"DASK_DISTRIBUTED__COMM__TLS__{who.upper()}__{kind.upper()}": files[kind] for who, kind in whose},
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }  # fmt: skip
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    with processes(tmp_path / "dask", 0, environment, protocol="tls") as started:
        path = recipe_of(tmp_path, wait_from=380, dies=True)
        cfg = config_of(path, started.executor, str(tmp_path / "d"))
        for executor in (started.executor, started.executor.replace("dask+tls", "dask")):
            with pytest.raises(
                MachineError, match=r"executor='dask.*no scheduler lets us in there \(.*wants certificates"
            ) as refused:
                build(config_of(path, executor, str(tmp_path / "d")))
            assert "\n" not in str(refused.value)
        with dask.config.set(given):
            with pytest.raises(MachineError, match=r"no workers after 1 s; start some"):
                build(cfg)
            started.work(2)  # of two one stays: it does again what the other had done and not handed over
            monkeypatch.setattr(cluster, "CONNECT_S", 20.0)
            fine = recipe_of(tmp_path / "fine")
            over_tls = made(config_of(fine, started.executor, str(tmp_path / "over tls")))
            assert over_tls == made(config_of(fine, "threads", str(tmp_path / "wanted")))
            (tmp_path / "go").touch()
            with pytest.raises(BuildError, match=r"1 workers ended, each while it did the same task \(out of memory\?\); lower "):
                build(cfg)


def test_no_scheduler(tmp_path, monkeypatch, capsys):
    """One line, 2, and the source is not looked at before."""
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    monkeypatch.setattr("mlprod.etl.sources.identify", lambda *_: 1 / 0)
    words = [
        "etl",
        "--config",
        str(recipe_of(tmp_path)),
        "--executor",
        "dask://127.0.0.1:1",
        f"--config.dataset={tmp_path / 'd'}",
    ]
    assert cli.run(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "config.etl.executor='dask://127.0.0.1:1': no scheduler lets us in there" in told
    assert not (tmp_path / "d").exists()


def test_without_dask(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mlprod.etl.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MachineError, match=r"executor='dask://x:1': .*distributed.*; pip install .*\[dask\]"):
        build(config_of(recipe_of(tmp_path), "dask://x:1", str(tmp_path / "d")))


# ---- what a worker must be and see -------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> cluster.Wanted:
    """What the recipe's build wants of its workers."""
    cfg = config_of(recipe_of(tmp_path), "dask://x:1", str(tmp_path / "d"))
    (tmp_path / "work").mkdir()
    return cluster.wanted_of(cfg.etl, tmp_path / "work")


def refusal(wanted: cluster.Wanted, seen: Any) -> str:
    """Returns what is said of a worker."""
    with pytest.raises(MachineError) as refused:
        cluster.check(wanted, {"tcp://10.0.0.7:4000": seen}, "dask://x:1")
    assert str(refused.value).startswith("config.etl.executor='dask://x:1': worker tcp://10.0.0.7:4000 ")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_worker_that_is_as_wanted(asked, tmp_path):
    seen = cluster.look(asked)
    assert seen[0] == ""
    cluster.check(asked, {"a": seen}, "dask://x:1")
    assert asked.files == ((str(tmp_path / "rows.csv"), (tmp_path / "rows.csv").stat().st_size),)


def test_a_worker_that_ends_before_it_answers_is_left_out(asked):
    cluster.check(asked, {"a": CommClosedError("gone"), "b": cluster.look(asked)}, "dask://x:1")


def test_a_worker_of_other_code_or_versions(asked):
    other = dataclasses.replace(asked, code="another")
    assert "runs other code of mlprod" in refusal(other, cluster.look(other))
    versions = tuple((name, "0.1" if name == "pyarrow" else found) for name, found in asked.versions)
    other = dataclasses.replace(asked, versions=versions)
    assert "and this process 0.1; equal bytes need the same" in refusal(other, cluster.look(other))
    assert "cannot run this mlprod (ModuleNotFoundError: No module" in refusal(
        asked, ModuleNotFoundError("No module named 'mlprod'")
    )


def test_a_worker_that_sees_another_folder(asked, tmp_path):
    """Not this one, one where it may not write, and one that this process does not see."""
    Path(asked.mark).unlink()
    assert f"does not see {tmp_path / 'work'}, the work folder; share it" in refusal(asked, cluster.look(asked))
    Path(asked.mark).write_text(asked.token)
    cluster.differs.cache_clear()
    _, left = cluster.look(asked)
    Path(left).unlink()
    assert f"writes into another {tmp_path / 'work'} than this process" in refusal(asked, ("", left))


def test_a_worker_that_does_not_see_source_or_hook(asked, tmp_path):
    whole = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(whole[:-9])
    assert f"does not see {tmp_path / 'rows.csv'} as this process does (" in refusal(asked, cluster.look(asked))
    cluster.differs.cache_clear()
    (tmp_path / "rows.csv").write_text(whole)
    (tmp_path / "recipe.py").write_text("def twice(chunk): return chunk\n")
    assert f"does not see the same {tmp_path / 'recipe.py'}, which has config.etl.transform" in refusal(
        asked, cluster.look(asked)
    )


def test_a_worker_without_the_secrets_of_a_database(asked, monkeypatch):
    """The URL is sent as it is written: its variables are the worker's own."""
    url = "postgresql://reader:$NOT_SET_THERE@host/db"
    cfg = small_config(Path(asked.mark).parent, "")
    etl = dataclasses.replace(cfg.etl, source=SqlSource(url=url, table="t"))
    wanted = cluster.wanted_of(etl, Path(asked.mark).parent)
    monkeypatch.setenv("NOT_SET_THERE", "secret")
    assert cluster.differs(wanted) == ""
    assert "secret" not in repr(wanted)
    monkeypatch.delenv("NOT_SET_THERE")
    cluster.differs.cache_clear()
    assert "variable NOT_SET_THERE is not set there" in refusal(wanted, cluster.look(wanted))


@pytest.mark.parametrize("sensitive", [True, False])
def test_a_worker_tells_no_value_where_a_column_is_sensitive(asked, sensitive):
    """Not to its own log either: what a task raises is written there."""
    wanted = dataclasses.replace(asked, discreet=sensitive)
    with pytest.raises(Exception, match=r"ValueError|invalid literal") as caught:
        cluster.on_worker(wanted, int, (f"kanari-{7}",))
    assert ("kanari-7" in "".join(traceback.format_exception(caught.value))) == (not sensitive)


def test_a_worker_that_comes_later_is_asked_before_its_first_task(two, asked):
    client = distributed.Client(two.address, set_as_default=False)
    try:
        with cluster.Cluster(client, dataclasses.replace(asked, code="another"), 0) as pool:
            with pytest.raises(BuildError, match=r"worker tcp://127.0.0.1:\d+, which came later, runs other code of mlprod"):
                pool.submit(len, "abc").result(30)
        with cluster.Cluster(client, asked, 0) as pool:
            assert list(pool.map(len, ["abc", "de"])) == [3, 2]
    finally:
        client.close()


def test_a_result_that_never_comes_holds_up_no_other_build(two, asked, monkeypatch):
    """That of a task whose scheduler is gone: the process may build again."""
    asks, client = threading.Event(), distributed.Client(two.address, set_as_default=False)
    try:
        with monkeypatch.context() as patch, cluster.Cluster(client, asked, 0) as pool:
            patch.setattr(distributed.Future, "result", lambda _: (asks.set(), threading.Event().wait()))
            pool.submit(len, "abc")
            assert asks.wait(30)
        with cluster.Cluster(client, asked, 0) as pool:
            assert pool.submit(len, "abc").result(30) == 3
    finally:
        client.close()


def test_a_file_that_the_shared_folder_shows_late_is_waited_for(asked, tmp_path, monkeypatch):
    """And one that stays away is told as it is anywhere."""
    late, paused = tmp_path / "late", list[float]()
    monkeypatch.setattr(cluster.time, "sleep", lambda pause: (paused.append(pause), len(paused) == 3 and late.write_text("here")))
    assert cluster.on_worker(asked, Path.read_text, (late,)) == "here"
    assert paused == [1.0, 2.0, 4.0]
    with pytest.raises(FileNotFoundError):
        cluster.on_worker(asked, Path.read_text, (tmp_path / "never",))
    with pytest.raises(IsADirectoryError):
        cluster.on_worker(asked, Path.read_text, (tmp_path,))
    assert len(paused) == 3 + 4


# ---- the field ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["dask://10.0.0.5:8786", "dask+tls://scheduler.example:1", "dask://[::1]:8786"])
def test_addresses(executor, tmp_path):
    cfg = small_config(tmp_path, numbered(40), executor=executor)
    validate(cfg)
    assert cluster.address_of(executor).startswith("tls://" if "tls" in executor else "tcp://")


@pytest.mark.parametrize(
    "executor, way",
    [
        ("thread", "did you mean 'threads'"), ("proceses", "did you mean 'processes'"), ("", "known: processes, threads"),
        ("dask://host", "such as dask://10"), ("dask://host:0", "such as dask://10"), ("dask://host:70000", "such as dask://10"),
        ("tcp://host:8786", "such as dask://10"), ("dask://user:pass@host:8786", "such as"), ("dask://h:1/x", "such as"),
    ],
)  # fmt: skip
def test_what_is_no_executor(executor, way, tmp_path):
    with pytest.raises(ConfigError, match=rf"config\.etl\.executor='.*' must be 'threads', .*{way}"):
        validate(small_config(tmp_path, numbered(40), executor=executor))
