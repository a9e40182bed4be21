"""The ETL story: rows of a source become a version of a dataset. Read this file first.

extract (typed, joined, hashed, cut by key hash) -> settle (equal rows, row ids) -> sort (by order hash) -> fit (training split
only) -> write (row groups in order of the hash) -> publish (the manifest, last).

Promise: memory follows from `memory_bytes`, not from the input; a kill at any moment leaves the versions there were, and the
same command goes on with the tasks that are left. The same content gives the same `dataset_id`, and the same bytes.
Price: rows are written to disk twice before they are written as Parquet, thrice where they have a key.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlprod import __version__, compare, features, manifest
from mlprod.config import Config, EtlConfig
from mlprod.console import PhaseLines
from mlprod.errors import DataError, WorkdirError
from mlprod.etl import bad_rows, fit, infer, page, report, sources
from mlprod.etl.extract import Extracted, extract, label_column, plan_reading, source_columns
from mlprod.etl.identity import Identity
from mlprod.etl.lookups import lookup_identity
from mlprod.etl.pool import pool_of, sendable
from mlprod.etl.shards import to_disk
from mlprod.etl.stored import Stored, sample, settle_all
from mlprod.etl.tasks import Tasks
from mlprod.etl.work import check_folders, check_room, held, sweep, told_of_failures, work_folder
from mlprod.etl.write import FileWriter, Written, joined, stored_columns
from mlprod.hashing import HASH_VERSION
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import is_remote, open_store

ETL_VERSION = 1  # of this program: another version builds anew


def build_key(etl: EtlConfig, identity: Identity) -> str:
    """Returns 32 hex digits over all that decides a build: program, config, and what the sources hold now."""
    lookups = [lookup_identity(lookup) for lookup in etl.lookups]
    parts = {
        "versions": [ETL_VERSION, manifest.FORMAT, HASH_VERSION],
        "config": compare.data_json(etl),
        "source": identity.description,
        "lookups": lookups,
        "nonce": "" if identity.stable else time.time_ns(),
    }
    return manifest.sha256_text(manifest.canonical(parts))[:32]


def write_splits(
    etl: EtlConfig, spec: features.FeatureSpec, dataset: Path, folder: str, tasks: Tasks, stored: Stored
) -> dict[str, Written]:
    """Writes every split's rows in stored order, a task a file; returns what was written."""
    per_file = etl.group_rows * etl.file_groups
    files = [(code, n) for code in range(len(SPLITS)) for n in range(-(-stored.num_rows(code) // per_file))]
    named = {f"{SPLITS[code]}-{n:05d}": (code, n) for code, n in files}
    done = tasks.run(
        "write",
        {name: partial(_write_file, etl, spec, dataset, folder, stored, code, n) for name, (code, n) in named.items()},
        rows=lambda left: sum(left["shard"]["groups"]),
    )
    return {
        split: joined([left for name, left in done.items() if named[name][0] == code], spec) for code, split in enumerate(SPLITS)
    }


def _write_file(
    etl: EtlConfig, spec: features.FeatureSpec, dataset: Path, folder: str, stored: Stored, code: int, number: int
) -> dict[str, Any]:
    """Writes file `number` of a split."""
    per_file = etl.group_rows * etl.file_groups
    start, stop, at = number * per_file, (number + 1) * per_file, 0
    writer = FileWriter(etl, spec, dataset, folder, SPLITS[code], number)
    for piece, counts in stored.counts.items():
        a, b = max(start - at, 0), min(stop - at, counts[code])
        if a < b:
            writer.add(stored.rows(writer.needs, code, piece, a, b))
        at += counts[code]
    return writer.close()


def _check_label(etl: EtlConfig, train: Written) -> None:
    if train.positive in (0, train.num_rows):
        raise DataError(
            f"every training row has label {int(train.positive > 0)}: config.etl.label says {etl.label.column} > "
            f"{etl.label.above:g}; choose a threshold between the column's values"
        )


def _fit(etl: EtlConfig, tasks: Tasks, stored: Stored) -> features.FeatureSpec:
    """Fits on the training split.

    Raises:
        DataError: there are no training rows, or a feature has no value in them.
    """
    train = SPLITS.index("train")
    if not stored.num_rows(train):
        raise DataError("the split left no training rows; lower config.etl.split.eval and .test, or split by a finer column")
    names = [c.name for c in etl.columns if c.role == "feature"]
    with tasks.lines.phase("fit") as phase:
        return fit.fit(lambda act: tasks.map(act, stored.of_split(train, names), phase), etl.columns)


def _publish(
    cfg: Config, etl: EtlConfig, key: str, identity: Identity, extracted: Extracted, tasks: Tasks, stored: Stored, began: float
) -> Manifest:
    """Fits, writes the splits, the fitted transform, the report and, last, the manifest that makes them a version.

    `etl`: `cfg.etl` as the tasks take it.
    """
    dataset, counts = Path(cfg.dataset), extracted.counts
    spec = _fit(etl, tasks, stored)
    version = (manifest.versions(open_store(cfg.dataset)) or [0])[-1] + 1
    if not (tasks.work / "write").exists():
        shutil.rmtree(dataset / "files" / f"{version:06d}", ignore_errors=True)  # of another build that published nothing
    written = write_splits(etl, spec, dataset, f"files/{version:06d}", tasks, stored)
    train = written["train"]
    _check_label(etl, train)
    fitted = [train.scales[f.name].fitted(f, train.num_rows) if f.kind == "numeric" else f for f in spec.features]
    spec = features.FeatureSpec(features=tuple(fitted))
    columns, text = stored_columns(etl, spec), features.dumps(spec)
    splits = {name: split.shards for name, split in written.items()}
    for path in {dataset / shard.path for shards in splits.values() for shard in shards}:
        to_disk(path)
    to_disk(dataset / "files" / f"{version:06d}")
    published = Manifest(
        format=manifest.FORMAT, version=version, parent=0, build_key=key,
        dataset_id=manifest.content_id(columns, text, splits), config=compare.data_json(cfg.etl),
        group_rows=etl.group_rows, hash_version=HASH_VERSION, hash_seed=etl.hash_seed, storage=etl.storage, hash_order=True,
        columns=columns, splits=splits, features=f"features/{version:06d}.json", features_sha256=manifest.sha256_text(text),
        report=f"reports/{version:06d}.json", source=identity.description | {"rows_read": counts.read, "mlprod": __version__},
    )  # fmt: skip
    manifest.write_atomically(dataset / published.features, text)
    if etl.bad_rows == "quarantine" and counts.bad:
        bad_rows.gather(extracted.bad_rows, dataset / report.quarantine(version))
    told = report.body(cfg.dataset, etl, published, written, counts, spec, sample(stored, etl.columns))
    _write_report(dataset / published.report, {**told, "seconds": time.monotonic() - began})
    manifest.write(dataset, published)
    return published


def _write_report(path: Path, told: Mapping[str, Any]) -> None:
    """Writes the data report as JSON and as a page."""
    manifest.write_atomically(path, json.dumps(told, indent=1, allow_nan=False))
    manifest.write_atomically(path.with_suffix(".html"), page.render(told))


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
        WorkdirError: the dataset's folder cannot be written, is held by another build, or lies on a disk that is too small.
        BuildError: the disk filled up, or the source or a folder went away meanwhile.
        Preempted: Ctrl-C.
    """
    open_store(cfg.dataset)  # refuses an address with a password before anything shows it
    if is_remote(cfg.dataset):
        raise WorkdirError(f"config.dataset={cfg.dataset!r} is remote; build it in a local folder, then copy the folder there")
    began, dataset, etl = time.monotonic(), Path(cfg.dataset), cfg.etl
    names = [c.name for c in [*source_columns(etl), label_column(etl)]]
    with PhaseLines(wanted=cfg.tracking.progress) as lines:
        with lines.phase("identify", sources.num_bytes(etl.source), "MB") as phase:
            identity = sources.identify(etl.source, names, phase.add)
        key = build_key(etl, identity)
        built, work = _built(cfg, key), work_folder(dataset, key)
        if built is not None and not work.exists():
            return built, False
        with held(dataset), told_of_failures(dataset, work):
            built = _built(cfg, key)  # another process may have built it while this one waited
            published = built or _build(cfg, key, identity, names, work, lines, began)
            shutil.rmtree(work, ignore_errors=True)  # of a build that is published, maybe by an attempt that was killed here
    return published, built is None


def _build(
    cfg: Config, key: str, identity: Identity, names: Sequence[str], work: Path, lines: PhaseLines, began: float
) -> Manifest:
    """Does the tasks that are left, and publishes."""
    etl, dataset, workers = sendable(cfg.etl), Path(cfg.dataset), cfg.etl.workers or os.cpu_count() or 1
    check_folders(dataset)
    sweep(dataset, work)
    check_room(dataset, work, identity.expected_bytes)
    work.mkdir(parents=True, exist_ok=True, mode=0o700)
    with pool_of(etl.executor, workers) as pool:
        tasks = Tasks(work, workers, lines, pool)
        reading = plan_reading(etl, tasks, identity.expected_bytes)
        etl, reading, types = infer.resolved(etl, tasks, reading)
        extracted = extract(etl, tasks, reading)
        if not sources.unchanged(etl.source, names, identity):
            shutil.rmtree(work)
            raise DataError("the source changed while it was read (its count or watermark differs); run `mlprod etl` again")
        identity.description["types"] = types  # kept with the version
        stored, extracted.counts.duplicates = settle_all(etl, tasks, reading, extracted.index)
        published = _publish(cfg, etl, key, identity, extracted, tasks, stored, began)
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
