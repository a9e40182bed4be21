"""Which process of how many this is, and where the first one waits for the others: from what a launcher left in the environment.

Promise: one answer for the trainer and for its supervisor; variables that contradict each other are refused by name. Without any
of them a process is alone.
Price: on a machine with a TPU and none of the variables, one request to the machine's metadata server.

Asked in this order: JAX's own variables (a Kubernetes Job's index counts as the process's), a SLURM step, a TPU slice on GKE, a
TPU VM's metadata, and RANK and WORLD_SIZE, as torchrun, Ray and others set them. A TPU's first process waits on the port that JAX
takes there, a SLURM job's on one that follows from its number.
"""

import ipaddress
import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path

from mlprod.errors import ConfigError

TPU_PORT, PORT = 8482, 8476
METADATA_S = 3.0
Environment = Mapping[str, str]
Metadata = Callable[[str], str]  # attribute -> value, "" where there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """One process of a run."""

    index: int = 0
    count: int = 1
    coordinator: str = ""  # HOST:PORT on which process 0 waits for the others
    source: str = "alone"  # what said so

    def variables(self) -> dict[str, str]:
        """Returns the variables from which `find_rank` finds it again."""
        named = {"JAX_PROCESS_ID": str(self.index), "JAX_NUM_PROCESSES": str(self.count)}
        return {**named, "JAX_COORDINATOR_ADDRESS": self.coordinator} if self.coordinator else named


def find_rank(env: Environment = os.environ, metadata: Metadata | None = None) -> Rank:
    """Returns what the launcher says of this process.

    Args:
        metadata: of a TPU VM, by attribute; None asks the machine's server where there is a TPU.

    Raises:
        ConfigError: a variable is missing beside others, or is not what it must be.
    """
    for found in (_jax, _slurm, _gke_tpu):
        if rank := found(env):
            return rank
    if metadata is None and has_tpu():
        metadata = partial(_asked, env)
    return (metadata and _tpu_vm(env, metadata)) or _torchrun(env) or Rank()


def make_rank(index: str, count: str, coordinator: str, source: str) -> Rank:
    """Returns a rank from texts; raises ConfigError where they are none."""
    numbers = index.isdecimal() and count.isdecimal()
    if not numbers or not int(index) < int(count):
        raise ConfigError(f"{source}: process {index!r} of {count!r}; give numbers from 0, and below the number of processes")
    if int(count) == 1:
        return Rank(source=source)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"{source}: {coordinator!r} is no HOST:PORT; give where process 0 waits for the others")
    return Rank(index=int(index), count=int(count), coordinator=coordinator, source=source)


def bind_host(coordinator: str, env: Environment = os.environ) -> str:
    """Returns the address of this machine at which process 0 waits for the others; "" for all of them.

    `JAX_COORDINATOR_BIND_ADDRESS` says it. Else it is the coordinator's own where that is one address, and this machine's; a name
    that stands for a loopback here, as a machine's own may, tells nothing of how others reach it.
    """
    given = env.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    host = (given or coordinator).rpartition(":")[0].strip("[]")
    if given:
        return "" if host in ("::", "0.0.0.0") else host
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    if len(found) != 1 or (ipaddress.ip_address(address := found.pop()).is_loopback and address != host):
        return ""
    return address if _is_here(address) else ""


def _is_here(address: str) -> bool:
    """Whether a socket of this machine can be bound to an address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def bind_address(coordinator: str, env: Environment = os.environ) -> str:
    """Returns the `HOST:PORT` to which JAX's service on process 0 is bound, see `bind_host`."""
    host, port = bind_host(coordinator, env) or "::", coordinator.rpartition(":")[2]
    if given := env.get("JAX_COORDINATOR_BIND_ADDRESS", ""):
        port = given.rpartition(":")[2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _jax(env: Environment) -> Rank | None:
    count = env.get("JAX_NUM_PROCESSES", "")
    index = env.get("JAX_PROCESS_ID") or env.get("JOB_COMPLETION_INDEX", "")
    if not count and "JAX_PROCESS_ID" not in env:
        return None
    missing = {"JAX_NUM_PROCESSES": not count, "JAX_PROCESS_ID": not index}
    missing["JAX_COORDINATOR_ADDRESS"] = count != "1" and not env.get("JAX_COORDINATOR_ADDRESS")
    if any(missing.values()):
        raise ConfigError(f"{' and '.join(name for name, lacks in missing.items() if lacks)} must be set beside the other JAX_*")
    return make_rank(index, count, env.get("JAX_COORDINATOR_ADDRESS", ""), "JAX_* variables")


def _slurm(env: Environment) -> Rank | None:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    if not all(name in env for name in names):  # in a batch script, outside of srun, there is no step
        return None
    job, nodes, count, index = (env[name] for name in names)
    host = re.match(r"[^,\[]+(?:\[[^,\-\]]+)?", nodes)  # node[001-004,7],other: the first is node001
    port = int(job) % (1 << 12) + (1 << 16) - (1 << 12) if job.isdecimal() else 0
    return make_rank(index, count, f"{host[0].replace('[', '') if host else ''}:{port}", "SLURM")


def _gke_tpu(env: Environment) -> Rank | None:
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
    if not hosts or "TPU_WORKER_ID" not in env:
        return None
    return _of_slices(hosts.split(","), env["TPU_WORKER_ID"], env, "TPU_WORKER_* variables")


def _tpu_vm(env: Environment, metadata: Metadata) -> Rank | None:
    index = metadata("agent-worker-number")
    if not index:
        return None
    # A worker is its host's name, or NAME:ID:ADDRESS.
    hosts = [worker.split(":")[-1] for worker in metadata("worker-network-endpoints").split(",")]
    lines = (line.partition(":") for line in metadata("tpu-env").splitlines())
    told = {name.strip(): value.strip().strip("'") for name, _, value in lines}
    return _of_slices(hosts, index, {**told, **env}, "the TPU VM's metadata")


def _of_slices(hosts: list[str], index: str, env: Environment, source: str) -> Rank:
    """Returns the rank of worker `index` of a slice with these hosts, which may be one slice of several."""
    slices, slice_id = env.get("MEGASCALE_NUM_SLICES") or "1", env.get("MEGASCALE_SLICE_ID") or "0"
    if not all(text.isdecimal() for text in (index, slices, slice_id)):
        raise ConfigError(f"{source}: worker {index!r} of slice {slice_id!r} of {slices!r} are no numbers")
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    process, count = int(slice_id) * len(hosts) + int(index), int(slices) * len(hosts)
    return make_rank(str(process), str(count), f"{_host(first)}:{TPU_PORT}", source)


def _torchrun(env: Environment) -> Rank | None:
    if not all(name in env for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        return None
    address = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT') or PORT}"
    return make_rank(env["RANK"], env["WORLD_SIZE"], address, "RANK and WORLD_SIZE")


def _host(address: str) -> str:
    return address.partition(":")[0]


def has_tpu() -> bool:
    """Whether this machine shows a TPU's device files."""
    devices: Iterable[Path] = (*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*"))
    return any(True for _ in devices)


def _asked(env: Environment, key: str) -> str:
    """Returns an attribute of this machine from its metadata server; "" where there is no such server, or it does not know."""
    server = env.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        with urllib.request.urlopen(request, timeout=METADATA_S) as answer:
            return str(answer.read().decode())
    except (OSError, HTTPException, UnicodeDecodeError):  # urllib's own errors are OSErrors
        return ""
