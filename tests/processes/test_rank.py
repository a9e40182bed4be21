"""Which process this is, by every launcher's variables; beside JAX's own detection where it has one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from jax._src.clusters import cloud_tpu_cluster, slurm_cluster  # an independent reading of the same variables

from mlprod.errors import ConfigError
from mlprod.processes import rank
from mlprod.processes.rank import Rank, find_rank

JAX = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "0"}
GKE = {"TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s-0.s:8080"}
RAY = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "env, index, count, coordinator",
    [
        ({}, 0, 1, ""),
        (JAX, 2, 4, "a:1"),
        ({"JAX_NUM_PROCESSES": "4", "JAX_COORDINATOR_ADDRESS": "a:1", "JOB_COMPLETION_INDEX": "3"}, 3, 4, "a:1"),
        ({"JOB_COMPLETION_INDEX": "3"}, 0, 1, ""),  # an indexed job whose pods have nothing to do with each other
        ({"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, 0, 1, ""),
        (GKE, 1, 2, "t-0.t:8482"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, 0, 1, ""),
        ({**GKE, **SLICES}, 3, 4, "s-0.s:8482"),
        (RAY, 1, 2, "h:29500"),
        ({**RAY, **JAX}, 2, 4, "a:1"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 0, 1, ""),  # left over from something else
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 0, 1, ""),  # the batch script itself
    ],
)
def test_what_launchers_say(env: dict[str, str], index: int, count: int, coordinator: str) -> None:
    """Index, count and address; the first that says anything is heard."""
    found = find_rank(env, lambda key: "")
    assert (found.index, found.count, found.coordinator) == (index, count, coordinator)
    assert find_rank(found.variables(), lambda key: "") == Rank(
        index=index, count=count, coordinator=coordinator, source="JAX_* variables"
    ), "a supervisor's command finds the same"


@pytest.mark.parametrize("nodes", ["node001", "node001,host2", "node[001-0015],host2", "node[001,007-015],host2", "n-1-[3-4]"])
def test_slurm_is_read_as_jax_reads_it(nodes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same first node of a list in brackets, and the same port."""
    env = {**SLURM, "SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "123457"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    theirs = slurm_cluster.SlurmCluster
    found = find_rank(env)
    assert found.coordinator == theirs.get_coordinator_address(1, None)
    assert (found.index, found.count) == (theirs.get_process_id(), theirs.get_process_count())


@contextmanager
def metadata_server(attributes: dict[str, str]) -> Iterator[str]:
    """A TPU VM's metadata server on the loopback; yields HOST:PORT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = attributes.get(self.path.rpartition("/")[2])
            wanted = self.headers["Metadata-Flavor"] == "Google" and self.path.startswith(
                "/computeMetadata/v1/instance/attributes/"
            )
            self.send_response(200 if found is not None and wanted else 404)
            self.end_headers()
            self.wfile.write((found or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("hosts", ["localhost,10.0.0.2", "a:b:localhost,c:d:10.0.0.2"])
@pytest.mark.parametrize(
    "slices", ["", "MEGASCALE_NUM_SLICES: '3'\nMEGASCALE_SLICE_ID: '2'\nMEGASCALE_COORDINATOR_ADDRESS: 'localhost'"]
)
def test_a_tpu_vm_asks_its_metadata_as_jax_does(hosts: str, slices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both spellings of the workers, one slice or several."""
    monkeypatch.setattr(rank, "has_tpu", lambda: True)
    theirs = cloud_tpu_cluster.GceTpuCluster
    with metadata_server({"agent-worker-number": "1", "worker-network-endpoints": hosts, "tpu-env": slices}) as server:
        monkeypatch.setenv("GCE_METADATA_IP", server)
        found = find_rank({"GCE_METADATA_IP": server})
        assert found.coordinator == theirs.get_coordinator_address(1, None)
        assert (found.index, found.count) == (theirs.get_process_id(), theirs.get_process_count())
    assert find_rank({"GCE_METADATA_IP": server}).count == 1, "the server is gone: alone"


@pytest.mark.parametrize(
    "env, told",
    [
        ({"JAX_NUM_PROCESSES": "4", "JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_PROCESS_ID must be set"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_NUM_PROCESSES and JAX_COORDINATOR_ADDRESS must be set"),
        ({**JAX, "JAX_PROCESS_ID": "4"}, "process '4' of '4'"),
        ({**JAX, "JAX_PROCESS_ID": "x"}, "process 'x' of '4'"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "a"}, "'a' is no HOST:PORT"),
        ({**JAX, "JAX_COORDINATOR_ADDRESS": "a:99999"}, "'a:99999' is no HOST:PORT"),
        ({**SLURM, "SLURM_STEP_NODELIST": "n", "SLURM_JOB_ID": "x"}, "SLURM: 'n:0' is no HOST:PORT"),
        ({**GKE, "TPU_WORKER_ID": "one"}, "worker 'one'"),
        ({**RAY, "WORLD_SIZE": "1"}, "process '1' of '1'"),
    ],
)
def test_what_contradicts_itself_is_refused(env: dict[str, str], told: str) -> None:
    """By the name of what said so, with the value."""
    with pytest.raises(ConfigError, match=told.replace("[", r"\[")):
        find_rank(env, lambda key: "")
