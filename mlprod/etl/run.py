"""The ETL story: rows of a source become a version of a dataset. Read this file first.

extract (typed, joined, hashed, spilled by key hash) -> settle (equal rows, row ids; spilled again by order hash, a split
each) -> fit (training split only) -> write (row groups in order of the hash) -> publish (the manifest, last).

Promise: memory follows from `memory_bytes`, not from the input; a kill at any moment leaves the versions there were, and the
same command goes on with the stages that were complete. The same content gives the same `dataset_id`.
Price: rows are written to disk twice before they are written as Parquet.
"""

import fcntl
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlprod import __version__, compare, features, manifest
from mlprod.config import Column, Config, EtlConfig
from mlprod.errors import DataError, WorkdirError
from mlprod.etl import fit, report, settle, sources, spill, split
from mlprod.etl.derive import Sample, derive
from mlprod.etl.schema import FLOAT32_MAX, Loose, beyond_float32, cast_strictly, hashable
from mlprod.etl.settle import KEY, LABEL, ORDER, ROW, SPLIT
from mlprod.etl.write import SplitWriter, stored_columns
from mlprod.hashing import HASH_VERSION, hash_columns
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import is_remote, open_store

OPEN_FILES = 2048
ETL_VERSION = 1  # of this program: another version builds anew


def source_columns(etl: EtlConfig) -> list[Column]:
    """Returns the columns that come out of the source itself: neither derived nor from a lookup."""
    looked_up = {name for lookup in etl.lookups for name in lookup.columns}
    return [c for c in etl.columns if not c.derived and c.name not in looked_up]


def label_column(etl: EtlConfig) -> Column:
    """Returns the raw label as a column of the source."""
    return Column(name=etl.label.column, type="float64", role="label")


def build_key(etl: EtlConfig, identity: sources.Identity) -> str:
    """Returns 32 hex digits over all that decides a build: program, config, and what the sources hold now."""
    lookups = [sources.lookup_identity(lookup) for lookup in etl.lookups]
    parts = {
        "versions": [ETL_VERSION, manifest.FORMAT, HASH_VERSION],
        "config": compare.data_json(etl),
        "source": identity.description,
        "lookups": lookups,
        "nonce": "" if identity.stable else time.time_ns(),
    }
    return manifest.sha256_text(manifest.canonical(parts))[:32]


def rows_of(etl: EtlConfig, columns: list[Column], chunks: Iterator[Loose]) -> Iterator[pa.Table]:
    """Yields the rows of loose chunks in their declared types, with what the lookups add."""
    lookups = [sources.read_lookup(lookup, etl.columns) for lookup in etl.lookups]
    for chunk in chunks:
        rows = cast_strictly(chunk, columns)
        for lookup in lookups:
            rows = lookup.join(rows)
        yield rows


def _hashed(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns the rows with row hash, key hash (the row hash where there is no key) and split."""
    extracted = [c.name for c in etl.columns if not c.derived]
    row = hash_columns({n: hashable(rows[n]) for n in [*extracted, etl.label.column]}, rows.num_rows, etl.hash_seed)
    key = hash_columns({n: hashable(rows[n]) for n in etl.key}, rows.num_rows, etl.hash_seed) if etl.key else row
    code = split.assign(etl.split, rows, key, etl.hash_seed)
    label = pc.cast(pc.greater(rows[etl.label.column], etl.label.above), pa.float32())
    added = {LABEL: label, ROW[0]: row.hi, ROW[1]: row.lo, KEY[0]: key.hi, KEY[1]: key.lo, SPLIT: code}
    for name, values in added.items():
        rows = rows.append_column(name, values if isinstance(values, pa.ChunkedArray) else pa.array(values))
    return rows


def _check_values(etl: EtlConfig, rows: pa.Table) -> None:
    """Raises DataError for values that a column's declaration, a weight or float32 does not allow."""
    for c in etl.columns:
        if c.missing == "refuse" and rows[c.name].null_count:
            raise DataError(
                f"column {c.name!r} has {rows[c.name].null_count} missing value(s) and missing='refuse'; mend them or use 'fill'"
            )
        if c.role == "weight" and (rows[c.name].null_count or (pc.min(rows[c.name]).as_py() or 0) < 0):
            raise DataError(f"column {c.name!r} is a weight and has a missing or negative value; mend it")
        if c.role == "feature" and c.kind == "numeric" and beyond_float32(rows[c.name]).any():
            raise DataError(f"column {c.name!r} has a value beyond {FLOAT32_MAX:.3g}, which float32 cannot hold; scale it")


def extract(etl: EtlConfig, work: Path, expected_bytes: int) -> report.Counts:
    """Reads the source into `work/keys`, partitioned by key hash, so that all rows of a key meet in one bucket."""
    counts = report.Counts()
    columns = [*source_columns(etl), label_column(etl)]
    chunks = sources.chunks(etl.source, [c.name for c in columns], etl.chunk_rows)
    with spill.Spill(work / "keys", spill.num_bits(expected_bytes, etl.memory_bytes)) as out:
        sample = Sample(etl)
        for rows in rows_of(etl, columns, chunks):
            labelled = rows.filter(pc.is_valid(rows[etl.label.column]))
            counts.read += rows.num_rows
            counts.without_label += rows.num_rows - labelled.num_rows
            sample.add(labelled)
            derived = derive(etl, labelled)
            _check_values(etl, derived)
            counts.add(derived, etl.columns)
            hashed = _hashed(etl, derived)
            out.add(hashed, hashed[KEY[0]].to_numpy())
        sample.close()
    if not counts.read:
        raise DataError("the source has no rows; check config.etl.source and its filters")
    if counts.read == counts.without_label:
        raise DataError(f"none of the {counts.read} rows has a value in config.etl.label.column={etl.label.column!r}")
    return counts


def settle_all(etl: EtlConfig, work: Path) -> int:
    """Settles each bucket of `work/keys` into `work/SPLIT`, partitioned by order hash; returns the duplicates left out."""
    extracted = [*(c.name for c in etl.columns if not c.derived), etl.label.column]
    bits = (len(list((work / "keys").iterdir())) - 1).bit_length()
    duplicates = 0
    outs = [spill.Spill(work / name, bits) for name in SPLITS]
    try:
        for path in spill.buckets(work / "keys"):
            settled = settle.settle(spill.read_bucket(path), extracted, etl.dedup)
            duplicates += settled.duplicates
            for code, out in enumerate(outs):
                rows = settled.rows.filter(pc.equal(settled.rows[SPLIT], code))
                if rows.num_rows:
                    out.add(rows, rows[ORDER[0]].to_numpy())
    finally:
        for out in outs:
            out.__exit__(None, None, None)
    return duplicates


def _stage(work: Path, name: str) -> dict[str, Any] | None:
    """Returns what a completed stage left in the work folder, or None."""
    path = work / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _settled(etl: EtlConfig, work: Path, expected_bytes: int) -> report.Counts:
    """Extracts and settles; a stage that an earlier attempt at the same build completed is taken as it is."""
    done = _stage(work, "settled")
    if done is not None:
        return report.Counts(**done)
    extracted = _stage(work, "extracted")
    if extracted is None:
        shutil.rmtree(work / "keys", ignore_errors=True)
        extracted = asdict(extract(etl, work, expected_bytes))
        manifest.write_atomically(work / "extracted.json", json.dumps(extracted))
    for name in SPLITS:
        shutil.rmtree(work / name, ignore_errors=True)
    counts = report.Counts(**{**extracted, "duplicates": settle_all(etl, work)})
    manifest.write_atomically(work / "settled.json", json.dumps(asdict(counts)))
    shutil.rmtree(work / "keys")
    return counts


def write_splits(etl: EtlConfig, spec: features.FeatureSpec, dataset: Path, folder: str, work: Path) -> dict[str, SplitWriter]:
    """Writes every split's settled rows in stored order; returns the closed writers, which know files and sums."""
    writers = {name: SplitWriter(etl, spec, dataset, folder, name) for name in SPLITS}
    for name, writer in writers.items():
        for bucket in spill.read_all(work / name):
            writer.add(settle.in_stored_order(bucket))
        writer.close()
    return writers


def _check_label(etl: EtlConfig, train: SplitWriter) -> None:
    positive = sum(train.labels)
    if positive in (0, train.num_rows):
        raise DataError(
            f"every training row has label {int(positive > 0)}: config.etl.label says {etl.label.column} > {etl.label.above:g}; "
            f"choose a threshold between the column's values"
        )


def _fit(etl: EtlConfig, work: Path) -> features.FeatureSpec:
    """Fits on the training split.

    Raises:
        DataError: there are no training rows, or a feature has no value in them.
    """
    if not spill.buckets(work / "train"):
        raise DataError("the split left no training rows; lower config.etl.split.eval and .test, or split by a finer column")
    names = [c.name for c in etl.columns if c.role == "feature"]
    return fit.fit(lambda: spill.read_all(work / "train", names), etl.columns)


def _publish(
    cfg: Config, key: str, identity: sources.Identity, counts: report.Counts, spec: features.FeatureSpec, seconds: float
) -> Manifest:
    """Writes the splits, the fitted transform, the report and, last, the manifest that makes them a version."""
    etl, dataset = cfg.etl, Path(cfg.dataset)
    version = (manifest.versions(open_store(cfg.dataset)) or [0])[-1] + 1
    shutil.rmtree(dataset / "files" / f"{version:06d}", ignore_errors=True)  # of an attempt that published nothing
    writers = write_splits(etl, spec, dataset, f"files/{version:06d}", _work(dataset, key))
    train = writers["train"]
    _check_label(etl, train)
    fitted = [train.scales[f.name].fitted(f, train.num_rows) if f.kind == "numeric" else f for f in spec.features]
    spec = features.FeatureSpec(features=tuple(fitted))
    columns, text = stored_columns(etl, spec), features.dumps(spec)
    splits = {name: tuple(writer.shards) for name, writer in writers.items()}
    published = Manifest(
        format=manifest.FORMAT, version=version, parent=0, build_key=key,
        dataset_id=manifest.content_id(columns, text, splits), config=compare.data_json(etl),
        group_rows=etl.group_rows, hash_version=HASH_VERSION, hash_seed=etl.hash_seed, storage=etl.storage, hash_order=True,
        columns=columns, splits=splits, features=f"features/{version:06d}.json", features_sha256=manifest.sha256_text(text),
        report=f"reports/{version:06d}.json", source=identity.description | {"rows_read": counts.read, "mlprod": __version__},
    )  # fmt: skip
    manifest.write_atomically(dataset / published.features, text)
    body = _report(cfg, published, writers, counts, spec, seconds)
    manifest.write_atomically(dataset / published.report, json.dumps(body, indent=1, default=str))
    manifest.write(dataset, published)
    return published


def _report(
    cfg: Config,
    published: Manifest,
    writers: Mapping[str, SplitWriter],
    counts: report.Counts,
    spec: features.FeatureSpec,
    seconds: float,
) -> dict[str, Any]:
    """Returns the data report as JSON data."""
    labelled = counts.read - counts.without_label
    splits = {
        name: {
            "rows": w.num_rows, "positive_share": sum(w.labels) / max(w.num_rows, 1),
            "files": len(w.shards), "bytes": sum(s.bytes for s in w.shards),
        }
        for name, w in writers.items()
    }  # fmt: skip
    return {
        "dataset": cfg.dataset, "version": published.version, "dataset_id": published.dataset_id, "seconds": seconds,
        "rows": {
            "read": counts.read, "without_label": counts.without_label, "duplicates": counts.duplicates,
            "kept": sum(w.num_rows for w in writers.values()),
        },
        "splits": splits, "columns": report.column_rows(counts, cfg.etl.columns, spec, labelled),
    }  # fmt: skip


def _work(dataset: Path, key: str) -> Path:
    return dataset / "work" / key


@contextmanager
def _held(dataset: Path) -> Iterator[None]:
    """Holds the dataset against a second build; the lock dies with the process.

    Raises:
        WorkdirError: the folder cannot be written, or another build holds it.
    """
    try:
        (dataset / "work").mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = open(dataset / "work" / "lock", "a+")  # noqa: SIM115 (held for the block)
    except OSError as error:
        raise WorkdirError(f"config.dataset={str(dataset)!r} cannot be written: {error.strerror}; give another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise WorkdirError(
                f"{dataset} is being built by {lock.read().strip() or 'another process'}; wait for it to end"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield


def _built(cfg: Config, key: str) -> Manifest | None:
    """Returns the newest version when it is the one that `key` would build; one of another format has another key."""
    store = open_store(cfg.dataset)
    return manifest.read(store) if manifest.newest_build_key(store) == key else None


def _allow_open_files() -> None:
    """Raises this process's limit of open files: a spill holds up to 3 x 256, more than some systems allow at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard) if hard > 0 else OPEN_FILES, hard))


def build(cfg: Config) -> tuple[Manifest, bool]:
    """Builds the dataset of the config; returns its manifest and whether anything had to be done.

    Raises:
        DataError: the source, a row or a column is not what the config says.
        WorkdirError: the dataset's folder cannot be written or is held by another build.
    """
    open_store(cfg.dataset)  # refuses an address with a password before anything shows it
    if is_remote(cfg.dataset):
        raise WorkdirError(f"config.dataset={cfg.dataset!r} is remote; build it in a local folder, then copy the folder there")
    began, dataset, etl = time.monotonic(), Path(cfg.dataset), cfg.etl
    _allow_open_files()
    names = [c.name for c in [*source_columns(etl), label_column(etl)]]
    identity = sources.identify(etl.source, names)
    key = build_key(etl, identity)
    built = _built(cfg, key)
    if built is not None:
        return built, False
    with _held(dataset):
        built = _built(cfg, key)  # another process may have built it while this one waited
        if built is not None:
            return built, False
        work = _work(dataset, key)
        for other in (dataset / "work").iterdir():  # of builds that were killed and whose source or config then changed
            if other.is_dir() and other != work:
                shutil.rmtree(other)
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        counts = _settled(etl, work, identity.expected_bytes)
        if sources.identify(etl.source, names).description != identity.description:
            shutil.rmtree(work)
            raise DataError("the source changed while it was read (its count or watermark differs); run `mlprod etl` again")
        spec = _fit(etl, work)
        published = _publish(cfg, key, identity, counts, spec, time.monotonic() - began)
        shutil.rmtree(work)
    return published, True


def main(cfg: Config) -> None:
    """The verb `etl`: builds the dataset and shows its report."""
    published, fresh = build(cfg)
    report.show(json.loads((Path(cfg.dataset) / published.report).read_text()))
    if not fresh:
        print(f"{cfg.dataset} is built already; nothing to do")
