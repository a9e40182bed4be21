"""The verb `doctor`: what this machine has, what is wrong with it, and the way out, a line each.

Promise: looks and changes nothing; ends with exit code 2 when a run would fail here, with 0 when all is well or only odd.
Price: about a second without jax, which is imported in a child process where there is an accelerator (`devices.py`).
"""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mlprod.config import Config, kept_programs
from mlprod.doctor import devices, leftovers, machine, versions
from mlprod.doctor.finding import Finding
from mlprod.errors import MachineError

ROOT = Path(__file__).resolve().parents[2]


def findings(cfg: Config | None) -> Iterator[Finding]:
    """Yields every finding, the slow ones last. `cfg`: whose folders are looked at too."""
    yield from versions.look(ROOT)
    yield from machine.memory(cfg.etl.memory_bytes if cfg else 0)
    yield from machine.shared_memory(devices.num_gpus())
    for what, folder in folders(cfg):
        yield machine.disk(what, folder)
    yield from machine.clock(Path(__file__).stat().st_mtime)
    yield from machine.limits()
    yield machine.coordinator_port()
    yield from machine.coordinator_bind()
    if cfg:
        yield from leftovers.look(cfg)
    yield from devices.look(cfg.runtime.platform if cfg else "")


def folders(cfg: Config | None) -> Iterator[tuple[str, Path]]:
    """Yields (what, folder) of the folders of this machine that are written to."""
    yield "temporary folder", Path(tempfile.gettempdir())
    if cfg is None:
        yield "working directory", Path.cwd()
        return
    places = {
        "config.workdir": cfg.workdir, "config.dataset": cfg.dataset, "config.checkpoint.copies": cfg.checkpoint.copies,
        "compile cache": kept_programs(cfg),
    }  # fmt: skip
    yield from ((what, Path(place)) for what, place in places.items() if place and "://" not in place)


def main(cfg: Config | None) -> None:
    """The verb `doctor`.

    Raises:
        MachineError: a run would fail on this machine.
    """
    found = []
    for finding in findings(cfg):
        print(finding.line(), flush=True)
        found.append(finding)
    count = Counter(finding.state for finding in found)
    if count["wrong"]:
        wrong = ", ".join(dict.fromkeys(finding.what for finding in found if finding.stops))
        raise MachineError(f"doctor: {wrong}: a run would fail here; the lines above say what to do")
    print(f"doctor: {count['warning']} warning(s), nothing that stops a run")
