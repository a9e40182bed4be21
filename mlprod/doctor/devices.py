"""The accelerators: which are there, who holds them, and whether jax can use them.

Promise: a device that is held, or a driver that is stuck, is told within a time limit; no device is taken from who has it.
Price: where there is an accelerator, or the config asks for one, a child process imports jax: some seconds.
"""

import fcntl
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlprod.cores import num_cores
from mlprod.doctor.finding import Finding
from mlprod.doctor.programs import answer, named, openers
from mlprod.doctor.versions import has_plugin

SMI_S = 15.0
PROBE_S = 120.0  # jax on a TPU slice takes half a minute
TPU_LOCK = Path("/tmp/libtpu_lockfile")
PROBE = (sys.executable, "-m", "mlprod.doctor.probe")
GPU = ("nvidia-smi", "--query-gpu=uuid,name,memory.total,memory.used", "--format=csv,noheader,nounits")
HOLDERS = ("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,used_memory", "--format=csv,noheader,nounits")
IDLE_SHARE = 0.05  # of a GPU's memory: the driver's own


def look(platform: str, dev: Path = Path("/dev"), lock: Path = TPU_LOCK) -> Iterator[Finding]:
    """Yields what there is of devices. `platform`: that the config asks for, "" for any or no config."""
    gpus, chips = num_gpus(dev), tpu_chips(dev)
    lines = [*(nvidia(platform) if gpus else ()), *tpu(chips, lock)]
    yield from lines
    if any(line.stops for line in lines):
        return  # jax would wait, or say the same in many words
    if platform == "cpu" or not (gpus or chips or platform):
        yield Finding("devices", f"{'a CPU is asked for' if platform else 'no GPU and no TPU: a CPU'}, {num_cores()} core(s)")
        return
    yield jax_devices(platform, PROBE_S)


def num_gpus(dev: Path = Path("/dev")) -> int:
    """Returns the number of NVIDIA GPUs."""
    return len(glob.glob(f"{dev}/nvidia[0-9]*")) or int((dev / "dxg").exists())  # WSL shows one door to all


def tpu_chips(dev: Path = Path("/dev")) -> list[str]:
    """Returns the device files of TPU chips: /dev/accel0, or /dev/vfio/0 on newer ones."""
    return sorted([*glob.glob(f"{dev}/accel[0-9]*"), *glob.glob(f"{dev}/vfio/[0-9]*")])


def nvidia(platform: str) -> Iterator[Finding]:
    """Yields each GPU and who holds it, as the driver's own program tells, and whether jax has a plugin for it."""
    code, said = answer(GPU, SMI_S)
    if code != 0:
        mend = "reload the driver or restart the machine; in a container, start it with its GPUs (docker run --gpus all)"
        yield Finding("GPU", f"nvidia-smi: {said}", mend, stops=platform == "cuda")
        return
    code, apps = answer(HOLDERS, SMI_S)
    holders = [
        tuple(part.strip() for part in line.split(",")) for line in apps.splitlines() if code == 0 and line.count(",") == 2
    ]
    for line in said.splitlines():
        uuid, name, total, used = (part.strip() for part in line.split(","))
        held = ", ".join(f"{named(int(pid))} {mib} MiB" for gpu, pid, mib in holders if gpu == uuid)
        told = f"{name}, {used} of {total} MiB used"
        if held:
            yield Finding("GPU", f"{told}, held by {held}", "wait for it, stop it, or set CUDA_VISIBLE_DEVICES to another")
        elif used.isdecimal() and int(used) > IDLE_SHARE * int(total):
            yield Finding("GPU", f"{told} by a process that is not seen from here", "look for it outside this container")
        else:
            yield Finding("GPU", told)
    if not has_plugin("cuda"):
        told = "there is an NVIDIA GPU, and jax has no plugin for it"
        yield Finding("GPU", told, "pip install -c constraints.txt -e '.[gpu]'", stops=platform == "cuda")


def tpu(chips: list[str], lock: Path) -> Iterator[Finding]:
    """Yields who has a TPU's chips open, whether its lock file is a leftover, and whether jax has its library."""
    holders = Counter(holder for chip in chips for holder in openers(chip))
    if holders:
        held = ", ".join(f"{holder} ({count} chip(s))" for holder, count in holders.items())
        yield Finding("TPU", f"{len(chips)} chip(s), held by {held}", "wait for it, or stop it", stops=True)
    elif chips:
        yield Finding("TPU", f"{len(chips)} chip(s), nobody seen who holds them")
    if chips and not has_plugin("tpu"):
        yield Finding("TPU", "jax has no library for it", "pip install -c constraints.txt -e '.[tpu]'", stops=True)
    if lock.exists():
        yield tpu_lock(lock, wanted=bool(chips))


def tpu_lock(lock: Path, *, wanted: bool) -> Finding:
    """Returns who holds the file by which TPU processes keep each other out. `wanted`: there is a TPU."""
    what, users = "TPU lock file", openers(str(lock.resolve()))
    if users:
        return Finding(what, f"{lock} is held by {', '.join(users)}", "wait for it, or stop it", stops=wanted)
    try:
        with open(lock, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Finding(
            what, f"{lock} is held by a process that is not seen from here", "look outside this container", stops=wanted
        )
    except OSError as error:
        told = f"{lock} is user {lock.stat().st_uid}'s and cannot be opened: {error.strerror}"
        return Finding(what, told, f"have it removed: sudo rm {lock}", stops=wanted)
    return Finding(what, f"{lock} is left of a process that is gone", f"rm {lock}")


def jax_devices(platform: str, seconds: float, env: Mapping[str, str] = os.environ) -> Finding:
    """Returns what jax finds, and whether each device computes, asked in a child process that is given `seconds`."""
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **({"JAX_PLATFORMS": platform} if platform else {})}
    code, said = answer(PROBE, seconds, {**env, **own})
    asked = f"config.runtime.platform={platform!r}: " if platform else ""
    if code is None:
        told = f"{asked}jax gave {said}: they are held, or stuck"
        return Finding("devices", told, "stop who holds them, or restart the machine", stops=True)
    if code:
        return Finding("devices", f"{asked}{said[-300:]}", "mend the driver or the plugin, or set another platform", stops=True)
    counts = Counter(f"{kind} ({platform})" for platform, kind in json.loads(said.splitlines()[-1]))
    return Finding("devices", ", ".join(f"{count} x {name}" for name, count in counts.items()))
