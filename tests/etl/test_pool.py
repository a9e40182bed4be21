"""Tasks in processes of their own: the same bytes as on threads, a hook of a config file, a process that is killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlprod import recipe
from mlprod.config import JsonLinesSource
from mlprod.errors import BuildError, ConfigError, DataError
from mlprod.etl import pool as pools
from mlprod.etl.pool import pool_of, sendable
from mlprod.etl.run import build
from mlprod.validation import validate
from tests.conftest import ROOT, smoke_config
from tests.plain import csv_rows, numbered, small_config

RECIPE = """
from pathlib import Path
from tests.plain import small_config, ID
from mlprod.config import numeric

def twice(chunk):
    return (chunk[["x"]] * 2).rename(columns={{"x": "double"}})

def get_config():
    columns = (ID, numeric("x", type="auto"), numeric("double", derived=True))
    return small_config(Path({folder!r}), columns=columns, transform=twice, workers=2)
"""


def files_of(dataset: str) -> dict[str, bytes]:
    """Returns every file of the dataset but its report, which tells the seconds."""
    folder = Path(dataset)
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(("reports", "work"))}


def test_processes_make_the_bytes_that_threads_make(csv, tmp_path):
    """CSV and JSON lines, a hook of an importable module, lookups or not, and a second look at what is built."""
    cfg = smoke_config(csv, tmp_path / "threads", tmp_path / "run")
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps({k: v or None for k, v in row.items()}) + "\n" for row in csv_rows(csv)))
    made = {}
    for name, source in (("csv", cfg.etl.source), ("jsonl", JsonLinesSource(path=str(lines)))):
        for executor, workers, chunk_rows in (("threads", 1, 65_536), ("processes", 2, 700)):
            etl = dataclasses.replace(cfg.etl, source=source, executor=executor, workers=workers, chunk_rows=chunk_rows)
            other = dataclasses.replace(cfg, dataset=str(tmp_path / f"{name}-{executor}"), etl=etl)
            published, fresh = build(other)
            assert fresh
            assert build(dataclasses.replace(other, etl=dataclasses.replace(etl, executor="threads")))[1] is False
            made[name, executor] = {k: v for k, v in files_of(other.dataset).items() if not k.startswith("manifests")}
            made[name, executor, "id"] = published.dataset_id
    assert made["csv", "threads"] == made["csv", "processes"] == made["jsonl", "threads"] == made["jsonl", "processes"]
    assert len({value for key, value in made.items() if "id" in key}) == 1


def test_a_hook_of_a_config_file_runs_in_processes(tmp_path):
    """The file is no module: each process runs it again."""
    (tmp_path / "rows.csv").write_text(numbered(40))
    (tmp_path / "recipe.py").write_text(RECIPE.format(folder=str(tmp_path)))
    ids = set()
    for executor in ("threads", "processes"):
        cfg = recipe.load(str(tmp_path / "recipe.py"), [f"--config.etl.executor={executor}"])
        ids.add(build(dataclasses.replace(cfg, dataset=str(tmp_path / executor)))[0].dataset_id)
    assert len(ids) == 1


def test_a_hook_that_no_process_finds_is_refused(tmp_path):
    cfg = small_config(tmp_path, numbered(40), transform=lambda chunk: chunk, executor="processes")
    with pytest.raises(ConfigError, match=r"etl\.transform=.*<lambda> cannot be sent to processes; .*executor='threads'"):
        validate(cfg)
    threads = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, executor="threads"))
    validate(threads)
    assert sendable(threads.etl).transform is cfg.etl.transform


def test_a_hook_without_a_file_is_refused(tmp_path):
    """As one that was typed in."""
    names: dict[str, Any] = {}
    exec("def typed(chunk): return chunk", names)
    cfg = small_config(tmp_path, numbered(40), transform=names["typed"], executor="processes")
    with pytest.raises(ConfigError, match=r"etl\.transform=typed is of <string>, which is no file; .*executor='threads'"):
        sendable(cfg.etl)


def test_a_bad_row_is_told_by_a_process_as_by_a_thread(tmp_path):
    told = []
    for executor in ("threads", "processes"):
        cfg = small_config(tmp_path, numbered(40) + "40,many,1\n", executor=executor, workers=2)
        with pytest.raises(DataError) as error:
            build(cfg)
        told.append(str(error.value))
    assert told[0] == told[1]
    assert "line 42" in told[0]


def test_a_killed_process_ends_the_build_and_the_same_command_goes_on(tmp_path, monkeypatch):
    cfg = small_config(tmp_path, numbered(400), executor="processes", workers=1, chunk_rows=50)
    wanted = build(dataclasses.replace(cfg, dataset=str(tmp_path / "whole")))[0]

    def shot(kind: str, workers: int) -> ProcessPoolExecutor:
        pool = pool_of(kind, workers)
        assert isinstance(pool, ProcessPoolExecutor)
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        return pool

    monkeypatch.setattr(pools, "pool_of", shot)
    with pytest.raises(BuildError, match=r"one of its processes was killed .*the same command goes on"):
        build(cfg)
    monkeypatch.undo()
    assert build(cfg)[0].dataset_id == wanted.dataset_id


STARTS = """
import os, sys, time
from mlprod.etl.pool import pool_of
if __name__ == "__main__":
    pool = pool_of("processes", 1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    """However that ends: nothing goes on writing beside the next attempt."""
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{worker}").exists() and _state(worker) != "Z":
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists() or _state(worker) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""
