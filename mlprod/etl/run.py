"""The ETL story: rows of a source become a version of a dataset. Read this file first.

extract (typed, joined, hashed, cut by key hash) -> settle (equal rows, row ids) -> sort (by order hash) -> fit (training split
only; of texts: tokenize, pack) -> write (row groups in order of the hash) -> publish (the manifest, last).

Promise: memory follows from `memory_bytes`, not from the input; a kill at any moment leaves the versions there were, and the
same command goes on with the tasks that are left. The same content gives the same `dataset_id`, and the same bytes.
Price: rows are written to disk twice before they are written as Parquet, thrice where they have a key.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlprod import compare, manifest
from mlprod.config import Config, EtlConfig
from mlprod.console import PhaseLines
from mlprod.errors import DataError, WorkdirError
from mlprod.etl import infer, report, sources, tokenize
from mlprod.etl.extract import extract, plan_reading, sized, source_columns
from mlprod.etl.identity import Identity
from mlprod.etl.label import label_column
from mlprod.etl.lookups import lookup_identity
from mlprod.etl.pool import check_reach, crew_of, sendable
from mlprod.etl.publish import Build, publish
from mlprod.etl.stored import settle_all
from mlprod.etl.tasks import Tasks
from mlprod.etl.whole import removed
from mlprod.etl.work import check_folders, check_room, held, sweep, told_of_failures, work_folder
from mlprod.hashing import HASH_VERSION
from mlprod.manifest import Manifest
from mlprod.store import is_remote, open_store

ETL_VERSION = 2  # of this program: another version builds anew


def build_key(etl: EtlConfig, identity: Identity) -> str:
    """Returns 32 hex digits over all that decides a build: program, config, and what the sources hold now."""
    lookups = [lookup_identity(lookup) for lookup in etl.lookups]
    parts = {
        "versions": [ETL_VERSION, manifest.FORMAT, HASH_VERSION],
        "config": compare.data_json(etl),
        "source": identity.description,
        "lookups": lookups,
        "nonce": "" if identity.stable else time.time_ns(),
        **tokenize.identity(etl.label),
    }
    return manifest.sha256_text(manifest.canonical(parts))[:32]


def _built(cfg: Config, key: str) -> Manifest | None:
    """Returns the newest version when it is the one that `key` would build; one of another format has another key."""
    store = open_store(cfg.dataset)
    try:
        return manifest.read(store) if manifest.newest_build_key(store) == key else None
    except OSError as error:
        raise WorkdirError(f"config.dataset={cfg.dataset!r} cannot be read: {error}; give another folder") from error


def build(cfg: Config) -> tuple[Manifest, bool]:
    """Builds the dataset of the config; returns its manifest and whether anything had to be done.

    Raises:
        DataError: the source, a row or a column is not what the config says.
        MachineError: the cluster of `etl.executor` is not there, or a worker of it is not as it must be.
        WorkdirError: the dataset's folder cannot be written, is held by another build, or lies on a disk that is too small.
        BuildError: the disk filled up, or the source or a folder went away meanwhile.
        ConnectionLost, ClusterLost: the database, or the cluster, went away meanwhile.
        Preempted: Ctrl-C.
    """
    open_store(cfg.dataset)  # refuses an address with a password before anything shows it
    if is_remote(cfg.dataset):
        raise WorkdirError(f"config.dataset={cfg.dataset!r} is remote; build it in a local folder, then copy the folder there")
    began, dataset, etl = time.monotonic(), Path(cfg.dataset), cfg.etl
    tokenize.identity(etl.label)  # tells what is wrong with a tokenizer before anything is read
    names = [c.name for c in [*source_columns(etl), label_column(etl.label)]]
    if not (dataset / "manifests").exists():  # else it may be built already
        check_reach(etl)
    with PhaseLines(wanted=cfg.tracking.progress) as lines:
        with lines.phase("identify", sources.num_bytes(etl.source), "MB") as phase:
            identity = sources.identify(etl.source, names, phase.add)
        key = build_key(etl, identity)
        built, work = _built(cfg, key), work_folder(dataset.absolute(), key)
        if built is not None and not work.exists():
            return built, False
        with held(dataset), told_of_failures(dataset, work):
            built = _built(cfg, key)  # another process may have built it while this one waited
            published = built or _build(cfg, key, identity, names, work, lines, began)
            removed(work)  # of a build that is published, maybe by an attempt that was killed here
    return published, built is None


def _build(
    cfg: Config, key: str, identity: Identity, names: Sequence[str], work: Path, lines: PhaseLines, began: float
) -> Manifest:
    """Does the tasks that are left, and publishes."""
    dataset = Path(cfg.dataset)
    check_folders(dataset)
    sweep(dataset, work)
    check_room(dataset, work, sized(cfg.etl.label, cfg.etl, identity)[1].expected_bytes)
    work.mkdir(exist_ok=True, mode=0o700)
    with crew_of(cfg.etl, work) as crew:
        etl, identity = sized(cfg.etl.label, replace(cfg.etl, workers=crew.together), identity)
        tasks = Tasks(work, crew, lines)
        reading = plan_reading(etl, tasks, identity.expected_bytes)
        etl, reading, types = infer.resolved(etl, tasks, reading)
        etl = sendable(etl)
        extracted = extract(etl, tasks, reading)
        if not sources.unchanged(etl.source, names, identity):
            removed(work)
            raise DataError("the source changed while it was read (its count or watermark differs); run `mlprod etl` again")
        stored, extracted.counts.duplicates = settle_all(etl, tasks, reading, extracted.buckets)
        source = {**identity.description, "types": types}
        published = publish(Build(cfg=cfg, etl=etl, key=key, source=source, began=began), tasks, extracted, stored)
    if tasks.taken.total():
        print(f"mlprod: {tasks.taken.total()} task(s) had been done by an attempt before", file=sys.stderr)
    return published


def main(cfg: Config) -> None:
    """The verb `etl`: builds the dataset and shows its report."""
    published, fresh = build(cfg)
    report.show(json.loads((Path(cfg.dataset) / published.report).read_text()))
    if not fresh:
        print(f"{cfg.dataset} is built already; nothing to do")
    page = (Path(cfg.dataset) / published.report).with_suffix(".html")
    if page.is_file():  # an older mlprod wrote none
        print(f"the whole report: {page}")
