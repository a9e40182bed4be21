"""The machine apart from its devices: memory, disks, clock, limits, ports.

Promise: what is looked at is what a process here gets: a container's limit, not the machine's memory; a disk is written to, so
that one mounted read-only or out of files is seen. Nothing is left behind.
"""

import ipaddress
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mlprod.doctor.finding import Finding, amount
from mlprod.doctor.programs import answer, named
from mlprod.processes.rank import bind_host

MEMORY_WRONG, MEMORY_ODD = 256 << 20, 1 << 30  # bytes left below which nothing, or not much, can be done
DISK_WRONG, DISK_ODD = 64 << 20, 1 << 30
SHARED_BYTES = 1 << 30  # that NCCL's documents advise for several GPUs
FILES_WRONG, FILES_ODD = 256, 1024  # the loader and the build keep some hundreds open
SWAP_SHARE = 0.5
NOTHING_SET = 1 << 60  # a cgroup's limit above this is none
DRIFT_S = 0.05  # that the wall clock may differ from the monotonic one over the pause
PAUSE_S = 0.2
FUTURE_YEAR = 2100
COORDINATOR_PORT = 8482  # jax's own, on a TPU
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory(wanted: int, groups: Path = GROUPS, own: Path = OWN_GROUPS) -> Iterator[Finding]:
    """Yields what there is of memory and swap. `wanted`: bytes that a build of the config may take; 0: no config."""
    here = psutil.virtual_memory()
    total, free, of = here.total, here.available, "the machine's"
    limit = group_limit(groups, own)
    if limit and limit[0] < total:
        total, free, of = limit[0], min(free, limit[0] - limit[1]), "the cgroup's limit of"
    told = f"{amount(free)} free of {of} {amount(total)}"
    if free < MEMORY_ODD:
        yield Finding("memory", told, "end other programs, or raise the container's limit", stops=free < MEMORY_WRONG)
    elif wanted > free:
        yield Finding("memory", f"{told}; config.etl.memory_bytes is {amount(wanted)}", "lower it")
    else:
        yield Finding("memory", told)
    swap = psutil.swap_memory()
    if swap.used > SWAP_SHARE * swap.total:
        told = f"{amount(swap.used)} of {amount(swap.total)} used"
        yield Finding("swap", told, "what is swapped out is slow: end what takes the memory")


def group_limit(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> tuple[int, int] | None:
    """Returns (limit, bytes used, files that are only cached apart) of the cgroup that leaves the least; None where none limits.

    Args:
        groups: where cgroups are mounted.
        own: which are this process's, a line `ID:CONTROLLERS:PATH` each; no controllers in version 2.
    """
    found: list[tuple[int, int]] = []
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
        if not controllers:
            root, names = (groups, ("memory.max", "memory.current", "inactive_file"))
        for folder in (root, *(root.joinpath(*Path(path).parts[1 : i + 1]) for i in range(1, len(Path(path).parts)))):
            found += _limits_in(folder, *names)
    return min(found, key=lambda pair: pair[0] - pair[1], default=None)


def _limits_in(folder: Path, limit: str, used: str, cached: str) -> Iterator[tuple[int, int]]:
    """Yields (limit, used) of one cgroup, where it has one; a container sees only some of the folders."""
    try:
        most = (folder / limit).read_text().strip()
        if most == "max" or int(most) > NOTHING_SET:
            return
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        yield int(most), int((folder / used).read_text()) - int(stat.get(cached, 0))
    except (OSError, ValueError):
        return


def shared_memory(num_gpus: int, folder: str = "/dev/shm") -> Iterator[Finding]:
    """Yields what there is of shared memory, which NCCL passes data through between GPUs."""
    if not Path(folder).is_dir():
        return
    there = shutil.disk_usage(folder)
    told = f"{amount(there.free)} free of {amount(there.total)}"
    if num_gpus > 1 and there.free < SHARED_BYTES:
        yield Finding(folder, f"{told}, for {num_gpus} GPUs", "raise it: docker run --shm-size=8g")
    elif there.free < there.total / 20:
        yield Finding(folder, told, "remove files in it that no program uses")
    else:
        yield Finding(folder, told)


def disk(what: str, path: Path) -> Finding:
    """Returns whether a folder, or the one that it would be made in, can be written, and how much room its disk has."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0")
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(what, f"{there} cannot be written: {error.strerror}", "give another folder", stops=True)
    told = f"{amount(free)} free in {there}"
    if free < DISK_ODD:
        return Finding(what, told, "make space, or give a folder on another disk", stops=free < DISK_WRONG)
    return Finding(what, told)


def clock(since: float, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> Iterator[Finding]:
    """Yields whether the wall clock can be right. `since`: seconds since 1970 when it was later than this, such as when a file
    of ours was written."""
    began, began_steady = wall(), steady()
    time.sleep(PAUSE_S)
    ended, drift = wall(), (wall() - began) - (steady() - began_steady)
    now = datetime.fromtimestamp(ended, UTC)
    told, mend = f"{now:%Y-%m-%d %H:%M} UTC", "set it: certificates and credentials are refused by a wrong clock"
    if ended < since or now.year >= FUTURE_YEAR:
        yield Finding(
            "clock", f"{told}, and files of mlprod are of {datetime.fromtimestamp(since, UTC):%Y-%m-%d}", mend, stops=True
        )
        return
    if abs(drift) > DRIFT_S:
        moved = f"{told}; it moved by {drift:+.3f} s against the steady clock within {PAUSE_S:g} s"
        yield Finding("clock", moved, "something sets it: times in logs are not to be trusted")
        return
    code, said = answer(("timedatectl", "show", "--property=NTPSynchronized", "--value"), 5.0)
    if code == 0 and said.strip() == "no":
        yield Finding("clock", f"{told}, not synchronized", "start a time service (chrony, systemd-timesyncd)")
        return
    yield Finding("clock", f"{told}, {'synchronized' if code == 0 else 'whether it is synchronized cannot be told here'}")


def limits() -> Iterator[Finding]:
    """Yields what `ulimit` lets a process have, where that is too little."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FILES_ODD:
        raised = "ulimit -n 4096" if most == resource.RLIM_INFINITY or most >= FILES_ODD else "have an administrator raise it"
        yield Finding("open files", f"a process may have {files} (ulimit -n)", f"raise it: {raised}", stops=files < FILES_WRONG)
    else:
        yield Finding("open files", f"a process may have {'any number' if files == resource.RLIM_INFINITY else files}")
    for what, kind, flag in (("address space", resource.RLIMIT_AS, "-v"), ("size of a file", resource.RLIMIT_FSIZE, "-f")):
        most = resource.getrlimit(kind)[0]
        if most != resource.RLIM_INFINITY:
            yield Finding(what, f"limited to {amount(most)} (ulimit {flag})", f"lift it: ulimit {flag} unlimited")


def coordinator_port(env: Mapping[str, str] = os.environ) -> Finding:
    """Returns whether the port can be had on which the first of several processes waits for the others."""
    given = env.get("JAX_COORDINATOR_PORT") or env.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")[2]
    if given and not (given.isdecimal() and 0 < int(given) < 1 << 16):
        told = f"JAX_COORDINATOR_PORT or _ADDRESS gives {given!r}, which is no port"
        return Finding("coordinator port", told, "give a number from 1 to 65535", stops=True)
    port = int(given or COORDINATOR_PORT)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        try:
            listener.bind(("", port))
        except OSError as error:
            told = f"{port} cannot be had: {error.strerror}{_listener(port)}"
            return Finding("coordinator port", told, "stop that program, or set JAX_COORDINATOR_PORT; one process needs none")
    return Finding("coordinator port", f"{port} is free")


def coordinator_bind(env: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Yields whether the service on process 0, which asks nobody who they are, can be reached from anywhere."""
    coordinator = env.get("JAX_COORDINATOR_ADDRESS", "")
    if not coordinator:
        return
    host, told = bind_host(coordinator, env), "process 0 would wait on every address of this machine"
    way = "set JAX_COORDINATOR_BIND_ADDRESS=HOST:PORT to a private one, or let no other machine reach the port: there is no TLS"
    try:
        public = bool(host) and ipaddress.ip_address(host if ":" in host else socket.gethostbyname(host)).is_global
    except OSError as error:
        yield Finding("coordinator bind", f"{host} has no address: {error.strerror}", way)
        return
    if public:
        yield Finding("coordinator bind", f"{host} is a public address", way)
    else:
        yield Finding("coordinator bind", f"{host} is private") if host else Finding("coordinator bind", told, way)


def _listener(port: int) -> str:
    """Returns ", by process 12 (python, user ann)", where this user may know."""
    try:
        pids = {c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.pid}
    except psutil.Error:
        return ""
    return "".join(f", by {named(pid)}" for pid in sorted(pids))
