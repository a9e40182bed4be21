"""The process: what JAX runs on, what code runs, and who holds a run's folder.

Promise: devices, caches and flags are set before the first computation; a folder has one living trainer.

Compiled programs are kept in the run's own folder, unless the config says otherwise: all processes of a run see it, a run that
goes on takes the very programs it began with, and nothing of another config is ever looked at. JAX's key of a program holds its
flags, the versions and the instructions that a CPU has, so that a folder which is moved to another machine does no harm.
"""

import faulthandler
import fcntl
import inspect
import logging
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import psutil

from mlprod import __version__
from mlprod.compare import as_json
from mlprod.config import AUTO, Config, RuntimeConfig
from mlprod.cores import num_cores
from mlprod.errors import ConfigError, WorkdirError
from mlprod.locks import open_own
from mlprod.own_code import code_sha256, file_sha256
from mlprod.processes.peers import Peers
from mlprod.processes.rank import find_rank

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pyarrow")
_DETERMINISTIC = ("--xla_gpu_deterministic_ops=true",)


def start(cfg: RuntimeConfig, programs: str = "") -> None:
    """Configures JAX. Must come before anything computes.

    Args:
        programs: folder that keeps compiled programs, see `config.kept_programs`; "": none are kept.

    Raises:
        ConfigError: the platform asked for is not there.
        WorkdirError: the compile cache cannot be written.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax tells of every save, and of a failed one in hundreds of lines
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and of a damaged step in hundreds of lines; we say it in one
    if sys.unraisablehook is sys.__unraisablehook__:  # another's, as a test runner's, stands
        sys.unraisablehook = _without_closed_loops
    if cfg.deterministic:
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_DETERMINISTIC]).strip()
    if cfg.platform:
        jax.config.update("jax_platforms", cfg.platform)
    if cfg.num_cpu_devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", cfg.num_cpu_devices)
        except RuntimeError as error:
            told = f"config.runtime.num_cpu_devices={cfg.num_cpu_devices}: this process computes on {jax.device_count()} already"
            raise ConfigError(f"{told}; start another") from error
    if not faulthandler.is_enabled():
        faulthandler.enable()  # where every thread stands, when a library aborts or a supervisor ends the process
    if programs and _can_keep(cfg, programs):
        jax.config.update("jax_compilation_cache_dir", programs)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts, without a word, where the platform's plugin is not installed
        why = " ".join(str(error).split()) or "it is not installed"
        raise ConfigError(f"config.runtime.platform={cfg.platform!r}: {why}; '' takes the best there is") from error


def _can_keep(cfg: RuntimeConfig, programs: str) -> bool:
    """Whether programs can be kept there; of a folder that the config names, it is an error when not."""
    try:
        check_writable(f"config.runtime.compile_cache={programs!r}", Path(programs) / "program")
    except WorkdirError:
        if cfg.compile_cache != AUTO:
            raise
        return False
    return True


def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints what nothing can catch, as Python does, but for what tensorstore's threads say when orbax has closed its event
    loop after a failed save: dozens of tracebacks, into which the line that tells the cause would be mixed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def environment(num_devices: int) -> dict[str, Any]:
    """Returns what must be equal for a resume to promise the same bits: hardware, versions, flags."""
    return {
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": num_devices,
        "processes": jax.process_count(),
        "cpus": num_cores(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **versions(),
    }


def code() -> dict[str, str]:
    """Returns the version of mlprod, and the git commit of the folder the run was started in: "" where there is none."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {"mlprod": __version__, "commit": ""}
    return {"mlprod": __version__, "commit": done.stdout.strip()}


def join(cfg: Config) -> Peers:
    """Returns the other processes of the run, met and found to have been given the same; there may be none.

    Raises:
        ConfigError: one was given something else, or the launcher's variables contradict each other.
        PeerLost: one did not come.
    """
    peers = Peers(cfg.limits, find_rank())
    if not peers.alone:
        peers.join({"config": as_json(cfg), "code": sources(cfg), "versions": versions()})
    return peers


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide bits."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def sources(cfg: Config) -> dict[str, str]:
    """Returns the SHA-256 of mlprod's own code and of the file that the model is of: "" where that cannot be read."""
    try:
        model = file_sha256(inspect.getfile(type(cfg.model)))
    except (OSError, TypeError):
        model = ""
    return {"mlprod": f"{__version__} {code_sha256()}", "model": model}


def compile_cache() -> str:
    """Returns the folder where compiled programs are kept; "" where none are."""
    return str(getattr(jax.config, "jax_compilation_cache_dir", None) or "")


def seconds_since_start() -> float:
    """Returns how long this process has been there: what the start of Python and imports took."""
    return float(max(time.time() - psutil.Process().create_time(), 0.0))


def check_writable(option: str, path: Path) -> None:
    """Raises WorkdirError when `path` could not be made or written below what is there; leaves nothing."""
    there = next(p for p in path.absolute().parents if p.exists())
    try:
        with tempfile.TemporaryFile(dir=there):  # an administrator may write anywhere, and cannot on a disk that is read-only
            pass
    except OSError as error:
        told = f"{there} is no folder that this user may write ({error.strerror})"
        raise WorkdirError(f"{option} cannot be written: {told}; give another folder") from error


@contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds a run's folder for this process; the lock dies with the process, however it dies. Of several, process 0 holds it.

    Raises:
        WorkdirError: the folder cannot be written, or a living trainer holds it (which is named).
    """
    if jax.process_index():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lease = open_own(workdir / "lease", "a+")
    except OSError as error:
        raise WorkdirError(f"config.workdir={str(workdir)!r} cannot be written: {error.strerror}; give another folder") from error
    with lease:
        try:
            fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lease.seek(0)
            holder = lease.read().strip() or "another process"
            raise WorkdirError(
                f"config.workdir={str(workdir)!r} is held by {holder}; wait for it, stop it, or give another folder"
            ) from error
        lease.truncate(0)
        lease.write(f"process {os.getpid()} on {socket.gethostname()}")
        lease.flush()
        yield
