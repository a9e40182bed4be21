"""The ETL story: rows of a source become a version of a dataset. Read this file first.

extract (typed, joined, with what other rows tell by `gather`, hashed, cut by key hash) -> settle (equal rows, row ids) -> sort
(by order hash) -> fit (training split only; of texts: tokenize, pack) -> write (row groups in order of the hash) -> publish (the
manifest, last).

Promise: memory follows from `memory_bytes`, not from the input; a kill at any moment leaves the versions there were, and the
same command goes on with the tasks that are left. The same content gives the same `dataset_id`, and the same bytes.
Price: rows are written to disk twice before they are written as Parquet, thrice where they have a key.
"""

import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlprod import compare, documents, manifest
from mlprod.config import Config, EtlConfig, JsonLinesSource
from mlprod.console import PhaseLines
from mlprod.errors import DataError, WorkdirError
from mlprod.etl import drift, exclude, gather, growth, infer, report, retention, rules, sources, tokenize
from mlprod.etl.extract import Reading, extract, plan_reading, sized, source_columns
from mlprod.etl.identity import Identity
from mlprod.etl.index import Index
from mlprod.etl.label import label_column
from mlprod.etl.lookups import lookup_identity
from mlprod.etl.pool import check_reach, crew_of, sendable
from mlprod.etl.publish import Build, publish
from mlprod.etl.stored import settle_all
from mlprod.etl.tasks import Tasks
from mlprod.etl.whole import is_left, removed
from mlprod.etl.work import check_folders, check_room, held, sweep, told_of_failures, work_folder
from mlprod.hashing import HASH_VERSION
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import is_remote, open_store

ETL_VERSION = 2  # of this program: another version builds anew


def build_key(etl: EtlConfig, identity: Identity, others: Sequence[Identity]) -> str:
    """Returns 32 hex digits over all that decides a build: program, config, and what the sources hold now."""
    lookups = [lookup_identity(lookup) for lookup in etl.lookups]
    parts = {
        "versions": [ETL_VERSION, manifest.FORMAT, HASH_VERSION],
        "config": compare.data_json(etl),
        "source": identity.description,
        "lookups": lookups,
        "nonce": "" if all(each.stable for each in (identity, *others)) else time.time_ns(),
        **({"others": [other.description for other in others]} if others else {}),
        **({"excluded_keys": exclude.identity(etl)} if etl.exclude_keys else {}),
        **tokenize.identity(etl.label),
    }
    return manifest.sha256_text(manifest.canonical(parts))[:32]


def _newest(cfg: Config) -> Manifest | None:
    """Returns the newest version; None where there is none, or one of another format."""
    store = open_store(cfg.dataset)
    try:
        return manifest.read(store) if manifest.newest_format(store) == manifest.FORMAT else None
    except OSError as error:
        raise WorkdirError(f"config.dataset={cfg.dataset!r} cannot be read: {error}; give another folder") from error


def _built(etl: EtlConfig, newest: Manifest | None, key: str) -> Manifest | None:
    """Returns the newest version when it is what `key` would build; by appending, one that was appended to by as much is too."""
    if newest is None:
        return None
    there = growth.base_key(newest) if etl.grow == "append" and newest.source.get("indexes") else newest.build_key
    return newest if there == key else None


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
        others = gather.identities(etl)
        base, newest, identity = build_key(etl, identity, others), _newest(cfg), gather.sized(etl, identity, others)
        built = _built(etl, newest, base)
        if built is not None and not is_left(work_folder(dataset, built.build_key)):
            return built, False
        with held(dataset):
            newest = _newest(cfg)  # another process may have built it while this one waited
            built = _built(etl, newest, base)
            parent = None if built else growth.parent_of(dataset, etl, newest, exclude.identity(etl))
            key = built.build_key if built else growth.key(base, parent)
            work = work_folder(dataset.absolute(), key)
            with told_of_failures(dataset, work):
                job = Job(cfg, base, key, parent, newest, identity, names, work, began)
                published = built or _build(job, lines)
                removed(work)  # of a build that is published, maybe by an attempt that was killed here
                retention.prune(dataset, etl.keep_versions)
    return published, published is not newest


@dataclass(frozen=True)
class Job:
    """What is to be built."""

    cfg: Config
    base: str  # see `growth.base_key`
    key: str
    parent: growth.Parent | None
    newest: Manifest | None
    identity: Identity
    names: Sequence[str]  # of the source's columns
    work: Path
    began: float


def _build(job: Job, lines: PhaseLines) -> Manifest:
    """Does the tasks that are left, and publishes; where nothing is new, returns the version that there is."""
    cfg, work, parent, names, dataset = job.cfg, job.work, job.parent, job.names, Path(job.cfg.dataset)
    unread = growth.unread(cfg.etl, job.identity, parent)
    if parent and unread.nothing:
        return parent.version
    check_folders(dataset)
    sweep(dataset, work)
    check_room(dataset, work, int(sized(cfg.etl.label, cfg.etl, job.identity)[1].expected_bytes * unread.share))
    work.mkdir(exist_ok=True, mode=0o700)
    with crew_of(cfg.etl, work) as crew:
        etl, identity = sized(cfg.etl.label, replace(cfg.etl, workers=crew.together), job.identity)
        tasks = Tasks(work, crew, lines)
        etl = infer.with_types(etl, parent.version.source["types"]) if parent else etl
        reading = plan_reading(etl, tasks, int(identity.expected_bytes * unread.share), unread)
        schema = _schema(etl, reading, job.newest, parent)
        etl, reading, types = infer.resolved(etl, tasks, reading)
        etl = sendable(etl)
        extracted = extract(etl, tasks, gather.gather(etl, tasks, reading), may_be_none=parent is not None)
        if parent and not extracted.counts.usable:
            return parent.version
        if not sources.unchanged(cfg.etl.source, names, job.identity):
            removed(work)
            raise DataError("the source changed while it was read (its count or watermark differs); run `mlprod etl` again")
        settled = settle_all(etl, tasks, reading, extracted.buckets, parent.index if parent else Index(()))
        extracted = extracted.with_counts(settled.left_out, settled.bad_rows)
        rules.check_shares(etl, extracted.counts)
        if parent and not any(settled.stored.num_rows(code) for code in range(len(SPLITS))):
            return parent.version
        source = {
            **identity.description, "types": parent.version.source["types"] if parent else types, "schema": schema,
            "base_key": job.base, "excluded_keys": exclude.identity(etl),
        }  # fmt: skip
        done = Build(cfg=cfg, etl=etl, key=job.key, source=source, began=job.began, parent=parent)
        published = publish(done, tasks, extracted, settled)
    if tasks.taken.total():
        print(f"mlprod: {tasks.taken.total()} task(s) had been done by an attempt before", file=sys.stderr)
    return published


def _schema(etl: EtlConfig, reading: Reading, newest: Manifest | None, parent: growth.Parent | None) -> drift.Schema:
    """Returns the columns of the source with their types, of all that was ever read for the version.

    Raises:
        DataError: they are not those of the version before, and the config does not take them anyway.
    """
    before = newest.source.get("schema") if newest and newest.config["source"]["class"] == type(etl.source).__name__ else None
    with reading.copies.told():
        if before and newest and etl.drift == "refuse":
            drift.check(reading.plain, before, newest.version, sparse=isinstance(etl.source, JsonLinesSource))
        schema = drift.schema_of(reading.plain)
    return drift.joined(parent.version.source["schema"], schema) if parent else schema


def _hear_ctrl_c() -> None:
    """Puts Python's handler of Ctrl-C back where it was.

    A database driver imports polars where that is installed, which puts one of its own in place, behind which a process that
    waits for its tasks does not hear Ctrl-C.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def main(cfg: Config) -> None:
    """The verb `etl`: builds the dataset and shows its report."""
    _hear_ctrl_c()
    published, fresh = build(cfg)
    report.show(documents.parse(open_store(cfg.dataset).read(published.report)))
    if not fresh:
        print(f"{cfg.dataset} is built already, its newest version is {published.version}; nothing to do")
    page = (Path(cfg.dataset) / published.report).with_suffix(".html")
    if page.is_file():  # an older mlprod wrote none
        print(f"the whole report: {page}")
