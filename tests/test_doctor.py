"""The doctor: each thing is made wrong on this machine, or beside it in a folder that looks like one, and must be told."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlprod import cli, runtime
from mlprod.doctor import devices, leftovers, machine, versions
from mlprod.doctor.finding import Finding
from mlprod.doctor.programs import named
from tests.conftest import ROOT
from tests.disks import fill, small_disk
from tests.plain import small_config
from tests.refused import argv, refused

GIB = 1 << 30


def told(found: Iterator[Finding] | Finding) -> list[str]:
    """The lines of what is not in order, without padding."""
    every = [found] if isinstance(found, Finding) else list(found)
    return [" ".join(finding.line().split()) for finding in every if finding.mend]


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has a file open and locked until the block ends."""
    script = f"import fcntl; f = open({str(path)!r}, 'r+'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.communicate("\n")


def ended() -> int:
    """The id of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


# ---- the verb ----------------------------------------------------------------------------------------------------------


def test_it_needs_no_config_and_no_jax(tmp_path: Path) -> None:
    """A line each, the last one sums up; this process imports neither jax nor the stack."""
    script = (
        "import sys; from mlprod.cli import run; code = run(['doctor']); "
        "print(code, [m for m in ('jax', 'numpy', 'pandas', 'pyarrow', 'rich') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150)
    *lines, last = done.stdout.splitlines()
    assert last in ("0 []", "2 []"), done.stderr
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "wrong", "doctor:"}
    for what in ("memory", "temporary folder", "clock", "open files", "coordinator port"):
        assert any(what in line for line in lines), what
    assert list(tmp_path.iterdir()) == []


def test_what_stops_a_run_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines above say what to do; a field that does not exist is refused as ever."""
    (tmp_path / "plain").write_text("a file")
    words = (f"--config.workdir={tmp_path}/plain/run", f"--config.dataset={tmp_path}/d", "--config.runtime.platform=cpu")
    refused(capsys, argv("doctor", *words), "doctor: ", "config.workdir: a run would fail here; the lines above say")
    refused(capsys, argv("doctor", "--config.nothing=1"), "config.nothing does not exist")
    refused(capsys, ["doctor", "--config.steps=1"], "--config.steps=1 needs --config FILE")


def test_a_config_has_its_folders_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning stops nothing."""
    cfg = small_config(tmp_path)
    (tmp_path / "dataset" / "work" / "0a1b").mkdir(parents=True)
    words = [f"--config.{name}={getattr(cfg, name)}" for name in ("workdir", "dataset")]
    capsys.readouterr()
    assert cli.run(argv("doctor", "--config.runtime.platform=cpu", *words)) == 0
    out = capsys.readouterr().out
    assert "warning  config.dataset" in out
    assert out.splitlines()[-1].endswith("nothing that stops a run")


# ---- packages ----------------------------------------------------------------------------------------------------------


def install(folder: Path, name: str, version: str, *requires: str) -> None:
    """Lays out what a package's metadata looks like."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {text}" for text in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def project(folder: Path, *needs: str, **extras: list[str]) -> Path:
    """A checkout with these dependencies."""
    text = f"[project]\ndependencies = {list(needs)}\n[project.optional-dependencies]\n"
    (folder / "pyproject.toml").write_text(text + "".join(f"{name} = {texts}\n" for name, texts in extras.items()))
    return folder


PACKAGES = {
    "missing": (["nowhere-pkg>=1"], {}, "wrong nowhere-pkg is not installed, mlprod needs nowhere-pkg>=1; pip install -c"),
    "too old": (
        ["widget>=2.0"],
        {},
        "wrong widget 1.20 is installed, mlprod needs widget>=2.0; pip install -c constraints.txt -e .",
    ),
    "too old, of an extra": ([], {"bench": ["widget>=2"]}, "wrong widget 1.20 is installed, mlprod needs widget>=2"),
    "not there, of an extra": ([], {"bench": ["nowhere-pkg"]}, ""),
    "new enough": (["widget>=1.19"], {}, ""),
}


@pytest.mark.parametrize("needs, extras, line", PACKAGES.values(), ids=list(PACKAGES))
def test_packages_against_the_lower_bounds(
    needs: list[str], extras: dict[str, list[str]], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkout as it is now: an editable install remembers the bounds of its day."""
    install(tmp_path / "site", "widget", "1.20")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    lines = told(versions.look(project(tmp_path, *needs, **extras)))
    assert len(lines) == bool(line)
    assert "".join(lines).startswith(line)


def test_a_plugin_of_another_jaxlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the installed jax, and the plugin itself, ask for."""
    for name, version in (("jax-cuda12-plugin", "0.1.0"), ("jax-cuda12-pjrt", "0.0.9"), ("libtpu", "0.0.1")):
        install(tmp_path / "site", name, version, *(["jax-cuda12-pjrt==0.1.0"] if name.endswith("plugin") else []))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    lines = told(versions.look(project(tmp_path)))
    assert [line.split()[1:3] for line in lines] == [
        ["libtpu", "0.0.1"],
        ["jax-cuda12-plugin", "0.1.0"],
        ["jax-cuda12-pjrt", "0.0.9"],
    ]
    assert "jax-cuda12-plugin 0.1.0 needs ==0.1.0; pip install 'jax-cuda12-pjrt==0.1.0'" in lines[-1]
    assert versions.has_plugin("cuda")


def test_packages_against_the_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version than the tested one is odd, not wrong; a pin for another Python, or of what is not there, says nothing."""
    install(tmp_path / "site", "widget", "1.20")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "constraints.txt").write_text(
        "# pins\n\nwidget==1.21\nnowhere-pkg==1\npytest==0.1 ; python_version < '3'\nwidget==1.20 ; python_version > '3'\n"
    )
    (line,) = told(versions.look(project(tmp_path)))
    assert line.startswith("warning packages 1 not as pinned in constraints.txt: widget 1.20 (pinned 1.21); ")


# ---- the machine -------------------------------------------------------------------------------------------------------


def cgroup(folder: Path, line: str, files: dict[str, object]) -> tuple[Path, Path]:
    """A tree of cgroups, and the file that names a process's own."""
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    (folder / "own").write_text(f"{line}\n")
    return folder, folder / "own"


V1 = {
    "memory/memory.limit_in_bytes": 1 << 62, "memory/job/memory.limit_in_bytes": 2 * GIB,
    "memory/job/memory.usage_in_bytes": 2 * GIB, "memory/job/memory.stat": f"cache 1\ntotal_inactive_file {GIB}",
}  # fmt: skip
V2 = {
    "job/memory.max": 2 * GIB, "job/memory.current": GIB, "job/memory.stat": "inactive_file 0", "job/task/memory.max": "max",
    "job/task/memory.current": 7, "job/task/memory.stat": "inactive_file 0",
}  # fmt: skip


@pytest.mark.parametrize("line, files", [("4:pids,memory:/job", V1), ("0::/job/task", V2)], ids=["version 1", "version 2"])
def test_memory_is_what_the_container_may_have(line: str, files: dict[str, object], tmp_path: Path) -> None:
    """The least that a group above leaves; files that are only cached count as free; a build that takes more is told."""
    groups = cgroup(tmp_path, line, files)
    assert machine.group_limit(*groups) in ((2 * GIB, GIB), (2 * GIB, 2 * GIB - GIB))
    assert told(machine.memory(0, *groups))[:1] in ([], ["swap"])
    lines = told(machine.memory(3 * GIB, *groups))
    assert lines[0].endswith("1.1 GB free of the cgroup's limit of 2.1 GB; config.etl.memory_bytes is 3.2 GB; lower it")


def test_memory_that_is_nearly_used_up(tmp_path: Path) -> None:
    """A run would be killed."""
    files = {**V2, "job/memory.current": 2 * GIB - 1000}
    (line,) = [line for line in told(machine.memory(0, *cgroup(tmp_path, "0::/job", files))) if " swap " not in line]
    assert line.startswith("wrong memory 0 MB free of the cgroup's limit of 2.1 GB; end other programs")


def test_a_disk_that_cannot_be_written_or_is_full(tmp_path: Path) -> None:
    """The folder need not be there; nothing is made."""
    assert told(machine.disk("d", tmp_path / "a" / "b")) == []
    (tmp_path / "plain").write_text("")
    (line,) = told(machine.disk("d", tmp_path / "plain" / "run"))
    assert line == f"wrong d {tmp_path}/plain cannot be written: Not a directory; give another folder"
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    with small_disk(tmp_path / "small", "1m") as small:
        (line,) = told(machine.disk("d", small / "run"))
        assert line == f"wrong d 1 MB free in {small}; make space, or give a folder on another disk"
        assert told(machine.shared_memory(1, str(small))) == []
        (line,) = told(machine.shared_memory(2, str(small)))
        assert "for 2 GPUs; raise it: docker run --shm-size=8g" in line
        fill(small)
        (line,) = told(machine.disk("d", small / "run"))
        assert "wrong d" in line
        (line,) = told(machine.shared_memory(1, str(small)))
        assert "remove files in it" in line


def test_a_clock_that_cannot_be_right() -> None:
    """Before our own files were written, long after, or moved while it was looked at."""
    early = "wrong clock 1970-01-01 00:16 UTC, and files of mlprod are of 1970-01-12; set it"
    assert told(machine.clock(1e6, wall=lambda: 1e3, steady=lambda: 0.0))[0].startswith(early)
    assert "wrong clock 2128" in told(machine.clock(1e6, wall=lambda: 5e9, steady=lambda: 0.0))[0]
    moves = iter((1e9, 1e9 + 3, 1e9 + 3, 1e9 + 3))
    assert "it moved by +3.000 s against the steady clock" in told(machine.clock(1e6, lambda: next(moves), lambda: 0.0))[0]
    assert not [line for line in told(machine.clock(1e6)) if "not synchronized" not in line]


def test_limits_of_a_shell() -> None:
    """Set for real, in a child."""
    script = "from mlprod.doctor.machine import limits\nfor finding in limits(): print(finding.line())"
    words = ["sh", "-c", 'ulimit -n 200 && ulimit -f 1000000 && exec "$0" -c "$1"', sys.executable, script]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "wrong open files a process may have 200 (ulimit -n); raise it: have an administrator raise it"
    assert lines[1].startswith("warning size of a file limited to ")
    assert lines[1].endswith("(ulimit -f); lift it: ulimit -f unlimited")


def test_a_port_that_is_taken() -> None:
    """By whom, where that can be known; as an address or alone."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for env in ({"JAX_COORDINATOR_PORT": str(port)}, {"JAX_COORDINATOR_ADDRESS": f"host-1:{port}"}):
            (line,) = told(machine.coordinator_port(env))
            assert line.startswith(
                f"warning coordinator port {port} cannot be had: Address already in use, by {named(os.getpid())}"
            )
    assert told(machine.coordinator_port({"JAX_COORDINATOR_PORT": str(port)})) == []
    assert "'x', which is no port" in told(machine.coordinator_port({"JAX_COORDINATOR_PORT": "x"}))[0]


# ---- devices -----------------------------------------------------------------------------------------------------------


def test_a_tpu_that_is_held(tmp_path: Path) -> None:
    """Its holder is named, and jax is not even asked: it would wait."""
    chip = tmp_path / "accel0"
    chip.touch()
    with holding(chip) as child:
        lines = told(devices.look("", dev=tmp_path, lock=tmp_path / "none"))
        assert lines[0] == f"wrong TPU 1 chip(s), held by {named(child.pid)} (1 chip(s)); wait for it, or stop it"
    assert not any("held" in line for line in told(devices.tpu([str(chip)], tmp_path / "none")))


def test_the_lock_file_of_a_tpu(tmp_path: Path) -> None:
    """Held by a living process, left by one that is gone, or another user's."""
    lock = tmp_path / "libtpu_lockfile"
    lock.touch()
    with holding(lock) as child:
        (line,) = told(devices.tpu([], lock))
        assert line.startswith(f"warning TPU lock file {lock} is held by {named(child.pid)}")
    (line,) = told(devices.tpu([], lock))
    assert line == f"warning TPU lock file {lock} is left of a process that is gone; rm {lock}"
    lock.unlink()
    lock.mkdir()  # nobody may open it for writing, not even root
    (line,) = told(devices.tpu([], lock))
    assert "cannot be opened: Is a directory; have it removed" in line


def driver(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a program in place of the driver's `nvidia-smi`."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_gpus_and_who_holds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the driver's own words: free, held, and held by a process that a container does not see; and jax has no plugin."""
    gpus = "A, Card 1, 80000, 4\\nB, Card 1, 80000, 70000\\nC, Card 1, 80000, 70000\\n"
    body = f"""case "$1" in *uuid,name*) printf '{gpus}';; *) echo 'B, {os.getpid()}, [N/A]';; esac"""
    driver(tmp_path, body, monkeypatch)
    held, unseen, plugin = told(devices.nvidia("cuda"))
    assert held.startswith(f"warning GPU Card 1, 70000 of 80000 MiB used, held by {named(os.getpid())} [N/A] MiB; wait for it")
    assert unseen.startswith("warning GPU Card 1, 70000 of 80000 MiB used by a process that is not seen from here")
    assert plugin == (
        "wrong GPU there is an NVIDIA GPU, and jax has no plugin for it; pip install -c constraints.txt -e '.[gpu]'"
    )


DRIVERS = {
    "does not fit": ("echo 'Driver/library version mismatch'; exit 18", "nvidia-smi: Driver/library version mismatch; reload"),
    "says nothing": ("exit 9", "nvidia-smi: exit code 9; reload"),
    "is stuck": ("exec sleep 30", "nvidia-smi: no answer in 0.2 s; reload"),
}


@pytest.mark.parametrize("body, line", DRIVERS.values(), ids=list(DRIVERS))
def test_a_driver_that_fails(body: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong where the config wants the GPU, odd where it does not say."""
    driver(tmp_path, body, monkeypatch)
    monkeypatch.setattr(devices, "SMI_S", 0.2 if "stuck" in line or "sleep" in body else 15.0)
    assert told(devices.nvidia("cuda"))[0].startswith(f"wrong GPU {line}")
    assert told(devices.nvidia(""))[0].startswith(f"warning GPU {line}")


def test_jax_is_asked_in_a_child() -> None:
    """What it finds, what it says where the platform is not there, and that it is not waited for forever."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert devices.jax_devices("cpu", 120.0, env).line().split()[:5] == ["ok", "devices", "1", "x", "cpu"]
    (line,) = told(devices.jax_devices("nonsense", 120.0, env))
    assert line.startswith(
        "wrong devices config.runtime.platform='nonsense': RuntimeError: Unable to initialize backend 'nonsense'"
    )
    (line,) = told(devices.jax_devices("", 0.01, env))
    assert (
        line == "wrong devices jax gave no answer in 0.01 s: they are held, or stuck; stop who holds them, or restart the machine"
    )


# ---- what is left ------------------------------------------------------------------------------------------------------


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    """Its half files are its own; those of one that is gone are leftovers, as are steps that were set aside."""
    run = tmp_path / "run"
    (run / "checkpoints" / "damaged" / "00000007.0").mkdir(parents=True)
    (run / "x.json.half").write_text("12345")
    with runtime.hold(run):
        (line,) = told(leftovers.run(run))
        assert line.startswith(f"warning config.workdir {run} is held by process {os.getpid()} on ")
    half, damaged = told(leftovers.run(run))
    assert half == (
        f"warning config.workdir 1 file(s) were half written, 0 MB: {run}/x.json.half; they are never read; remove them"
    )
    assert "holds 1 step(s) that were not what was saved" in damaged


def test_a_build_that_is_going_on_or_was_killed(tmp_path: Path) -> None:
    """Its work folder is a leftover when nobody holds the dataset."""
    dataset = tmp_path / "dataset"
    (dataset / "work" / "0a1b").mkdir(parents=True)
    (dataset / "work" / "0a1b" / "a.half").write_text("1")
    (dataset / "work" / "lock").write_text("process 1")
    with open(dataset / "work" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert told(leftovers.build(dataset))[0].startswith(f"warning config.dataset {dataset} is being built by process 1; ")
    (line,) = told(leftovers.build(dataset))
    assert (
        f"1 build(s) were begun and not ended: {dataset / 'work' / '0a1b'}, 0 MB; `mlprod etl` with the same config goes on"
        in line
    )


def test_the_lease_of_copies_whose_process_is_gone(tmp_path: Path) -> None:
    """On this host; what another host's process does cannot be known from here."""
    lease = tmp_path / "lease"
    for holder, gone in ((ended(), True), (os.getpid(), False)):
        lease.write_text(json.dumps({"holder": f"process {holder} on {socket.gethostname()}"}))
        assert len(told(leftovers.copies(tmp_path))) == gone
    for text in ("", "{}", json.dumps({"holder": "process 1 on elsewhere"}), json.dumps({"holder": 3})):
        lease.write_text(text)
        assert told(leftovers.copies(tmp_path)) == []


def test_a_cache_that_grew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing removes programs from it."""
    (tmp_path / "program").write_bytes(bytes(2_000_000))
    assert told(leftovers.cache(tmp_path)) == []
    monkeypatch.setattr(leftovers, "CACHE_BYTES", 1_000_000)
    assert told(leftovers.cache(tmp_path)) == [
        f"warning compile cache 2 MB in {tmp_path}; nothing removes old programs from it: rm -r {tmp_path}"
    ]
