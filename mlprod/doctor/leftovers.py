"""What runs and builds left in a config's folders, and who is at work in them.

Promise: nothing is removed. What a living process holds is never called a leftover.
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from mlprod import documents
from mlprod.config import Config, kept_programs
from mlprod.doctor.finding import Finding, amount, first
from mlprod.locks import holder_of

CACHE_BYTES = 20 << 30
HALF = ("*.half", ".*.tmp")  # of files that were being written


def look(cfg: Config) -> Iterator[Finding]:
    """Yields what is in the run's folder, the dataset's, the copies' and the compile cache; an address is for `mlprod check`."""
    looks = {
        "config.workdir": (run, cfg.workdir), "config.dataset": (build, cfg.dataset),
        "config.checkpoint.copies": (copies, cfg.checkpoint.copies), "compile cache": (cache, kept_programs(cfg)),
    }  # fmt: skip
    for what, (look_at, place) in looks.items():
        if place and "://" not in place:
            try:
                yield from look_at(Path(place))
            except OSError as error:
                yield Finding(what, f"{error.filename or place} cannot be looked at: {error.strerror}", "let this user read it")


def run(workdir: Path) -> Iterator[Finding]:
    """Yields who trains in a run's folder, and what is left of runs that were killed."""
    holder = holder_of(workdir / "lease")
    if holder:
        mend = "a second run there is refused: wait for it, stop it, or give another folder"
        yield Finding("config.workdir", f"{workdir} is held by {holder}", mend)
        return
    yield from half_files("config.workdir", workdir)
    damaged = workdir / "checkpoints" / "damaged"
    if damaged.is_dir() and any(damaged.iterdir()):
        told = f"{damaged} holds {len(list(damaged.iterdir()))} step(s) that were not what was saved, {amount(size(damaged))}"
        yield Finding("checkpoints", told, f"find out why (a disk?), then rm -r {damaged}")


def build(dataset: Path) -> Iterator[Finding]:
    """Yields who builds a dataset, and what is left of builds that were killed."""
    holder = holder_of(dataset / "work" / "lock")
    if holder:
        yield Finding("config.dataset", f"{dataset} is being built by {holder}", "a second build there is refused: wait for it")
        return
    work = dataset / "work"
    begun = [folder for folder in sorted(work.iterdir()) if folder.is_dir()] if work.is_dir() else []
    if begun:
        told = f"{len(begun)} build(s) were begun and not ended: {first(str(folder) for folder in begun)}, {amount(size(work))}"
        yield Finding("config.dataset", told, f"`mlprod etl` with the same config goes on; or rm -r {work}")
        return
    yield from half_files("config.dataset", dataset)


def copies(folder: Path) -> Iterator[Finding]:
    """Yields whether the lease on copies of checkpoints, in a folder of this machine, is that of a process that is gone."""
    try:
        told = documents.parse(documents.read(folder / "lease"))["holder"]
        pid, host = told.removeprefix("process ").split(" on ")
        gone = host == socket.gethostname() and not psutil.pid_exists(int(pid))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # there is none, or it is not one of ours
    if gone:
        mend = f"a run of another workdir waits half a minute for it; or rm {folder / 'lease'}"
        yield Finding("config.checkpoint.copies", f"{folder} is leased to {told}, which is gone", mend)


def cache(folder: Path) -> Iterator[Finding]:
    """Yields how large the compile cache is, which nothing makes smaller."""
    there = size(folder)
    mend = f"nothing removes old programs from it: rm -r {folder}" if there > CACHE_BYTES else ""
    yield Finding("compile cache", f"{amount(there)} in {folder}", mend)


def half_files(what: str, folder: Path) -> Iterator[Finding]:
    """Yields the files in a folder that nobody is writing and that are not whole."""
    halves = sorted(path for pattern in HALF for path in folder.rglob(pattern) if path.is_file())
    if halves:
        told = f"{len(halves)} file(s) were half written, {amount(sum(path.stat().st_size for path in halves))}"
        yield Finding(what, f"{told}: {first(str(path) for path in halves)}", "they are never read; remove them")


def size(folder: Path) -> int:
    """Returns the bytes of all files below a folder; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
