"""The ETL story: rows of a source become a version of a dataset. Read this file first.

extract (typed, joined, hashed, cut by key hash) -> settle (equal rows, row ids) -> sort (by order hash) -> fit (training split
only) -> write (row groups in order of the hash) -> publish (the manifest, last).

Promise: memory follows from `memory_bytes`, not from the input; a kill at any moment leaves the versions there were, and the
same command goes on with the tasks that are left. The same content gives the same `dataset_id`, and the same bytes.
Price: rows are written to disk twice before they are written as Parquet, thrice where they have a key.
"""

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod import __version__, compare, features, manifest
from mlprod.config import Column, Config, EtlConfig
from mlprod.errors import DataError, WorkdirError
from mlprod.etl import fit, report, settle, sources, spill, split
from mlprod.etl.derive import check_hook, derive
from mlprod.etl.identity import Identity
from mlprod.etl.schema import FLOAT32_MAX, Loose, beyond_float32, cast_strictly, hashable
from mlprod.etl.settle import AT, KEY, LABEL, ORDER, ROW, ROW_ID, SPLIT
from mlprod.etl.shards import to_disk
from mlprod.etl.tasks import Tasks
from mlprod.etl.write import FileWriter, Written, joined, stored_columns
from mlprod.hashing import HASH_VERSION, hash_columns
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import is_remote, open_store

ETL_VERSION = 1  # of this program: another version builds anew


def source_columns(etl: EtlConfig) -> list[Column]:
    """Returns the columns that come out of the source itself: neither derived nor from a lookup."""
    looked_up = {name for lookup in etl.lookups for name in lookup.columns}
    return [c for c in etl.columns if not c.derived and c.name not in looked_up]


def label_column(etl: EtlConfig) -> Column:
    """Returns the raw label as a column of the source."""
    return Column(name=etl.label.column, type="float64", role="label")


def build_key(etl: EtlConfig, identity: Identity) -> str:
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


def rows_of(
    columns: Sequence[Column], lookups: Sequence[sources.LookupTable], chunks: Iterable[pa.Table | Loose]
) -> Iterator[pa.Table]:
    """Yields the rows of chunks in their declared types, with what the lookups add."""
    for chunk in chunks:
        rows = cast_strictly(chunk, columns) if isinstance(chunk, Loose) else chunk
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


@dataclass(frozen=True)
class Reading:
    """How the source is read: decided once a build, so that an attempt that follows finds the tasks that are done."""

    columns: Sequence[Column]
    lookups: Sequence[sources.LookupTable]
    chunk_rows: int
    bits: int  # of the hash, by which buckets are cut

    def rows(self, etl: EtlConfig, part: Any) -> Iterator[pa.Table]:
        """Yields the rows of a part of the source."""
        return rows_of(self.columns, self.lookups, sources.read(etl.source, part, self.columns, self.chunk_rows))


def plan_reading(etl: EtlConfig, work: Path, expected_bytes: int) -> Reading:
    """Returns how this build reads its source: as its first attempt decided."""
    left, boot = work / "reading.json", Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text().strip() if boot.is_file() else ""
    if not left.is_file() or json.loads(left.read_text())["boot"] != since:  # after a power cut files may hold anything
        shutil.rmtree(work)
        work.mkdir(mode=0o700)
        bits = spill.num_bits(expected_bytes, etl.memory_bytes // _workers(etl))
        manifest.write_atomically(left, json.dumps({"boot": since, "chunk_rows": etl.chunk_rows, "bits": bits}))
    columns = (*source_columns(etl), label_column(etl))
    plan, lookups = json.loads(left.read_text()), [sources.read_lookup(x, etl.columns) for x in etl.lookups]
    return Reading(columns, lookups, plan["chunk_rows"], plan["bits"])


def extract(etl: EtlConfig, tasks: Tasks, reading: Reading) -> tuple[report.Counts, spill.Index]:
    """Reads the source, a task a part, into files cut by key hash, so that all rows of a key meet in one bucket."""
    parts = sources.parts(etl.source, [c.name for c in reading.columns], reading.chunk_rows)
    check_hook(etl, (rows for part in parts for rows in reading.rows(etl, part)))
    done = tasks.run("extract", {f"{i:06d}": partial(extract_part, etl, reading, tasks.work, i, p) for i, p in enumerate(parts)})
    counts = report.merged([report.Counts(**left["counts"]) for left in done.values()])
    if not counts.read:
        raise DataError("the source has no rows; check config.etl.source and its filters")
    if counts.read == counts.without_label:
        raise DataError(f"none of the {counts.read} rows has a value in config.etl.label.column={etl.label.column!r}")
    return counts, {f"{name}.arrow": left["batches"] for name, left in done.items()}


def extract_part(etl: EtlConfig, reading: Reading, work: Path, number: int, part: Any) -> dict[str, Any]:
    """Reads a part: its rows in their types, with what is derived and looked up, labelled, hashed, and cut by key hash."""
    counts = report.Counts()
    with spill.Spill(work / "extract" / f"{number:06d}.arrow") as out:
        for rows in reading.rows(etl, part):
            labelled = rows.filter(pc.is_valid(rows[etl.label.column])) if rows[etl.label.column].null_count else rows
            counts.read += rows.num_rows
            counts.without_label += rows.num_rows - labelled.num_rows
            derived = derive(etl, labelled)
            _check_values(etl, derived)
            counts.add(derived, etl.columns)
            hashed = _hashed(etl, derived)
            out.add(hashed, spill.bucket_of(hashed[KEY[0]].to_numpy(), reading.bits))
    return {"counts": asdict(counts), "batches": out.batches}


@dataclass(frozen=True)
class Stored:
    """The rows as they will be stored: pieces of ascending order hash, each with the rows of every split in that order."""

    work: Path
    extracted: spill.Index  # of which pieces name rows; empty: they hold the rows themselves
    pieces: spill.Index
    counts: Mapping[str, Sequence[int]]  # piece -> rows of each split

    def rows(self, columns: Sequence[str], split: int, piece: str, start: int = 0, stop: int = -1) -> pa.Table:
        """Returns rows [start, stop) of a split in a piece that has any: these columns, and the row ids."""
        found = spill.read_bucket(self.work / "stored", {piece: self.pieces[piece]}, split)
        assert found is not None
        found = found.slice(start, stop - start if stop >= 0 else None)
        if not self.extracted:
            return found.select([*columns, ROW_ID])
        bucket = spill.read_bucket(self.work / "extract", self.extracted, int(Path(piece).stem), columns)
        assert bucket is not None
        return bucket.take(found[AT]).append_column(ROW_ID, found[ROW_ID])

    def of_split(self, split: int, columns: Sequence[str]) -> Iterator[Callable[[], pa.Table]]:
        """Yields what reads the rows of a split from each piece that has any."""
        for piece, counts in self.counts.items():
            if counts[split]:
                yield partial(self.rows, columns, split, piece)

    def num_rows(self, split: int) -> int:
        """Returns the rows of a split."""
        return sum(counts[split] for counts in self.counts.values())


def settle_all(etl: EtlConfig, tasks: Tasks, reading: Reading, extracted: spill.Index) -> tuple[Stored, int]:
    """Settles each bucket of equal keys and sorts the rows into stored order; returns them and the duplicates left out.

    Without a key, and with duplicates left out, the buckets of keys are those of the order: then a piece only names the rows.
    """
    work, buckets = tasks.work, [f"{i:03d}" for i in range(1 << reading.bits)]
    (work / "stored").mkdir(exist_ok=True)
    aligned = etl.dedup == "exact" and not etl.key
    act = order_bucket if aligned else partial(settle_bucket, reading)
    settled = tasks.run("settle", {b: partial(act, etl, work, extracted, b) for b in buckets})
    found = settled
    if not aligned:
        index = {f"{b}.arrow": left["batches"] for b, left in settled.items()}
        found = tasks.run("sort", {b: partial(sort_bucket, work, index, b) for b in buckets})
        for path in (*(work / "extract").glob("*.arrow"), *(work / "settle").glob("*.arrow")):
            path.unlink()
    pieces = {f"{b}.arrow": left["batches"] for b, left in found.items()}
    counts = {f"{b}.arrow": left["rows"] for b, left in found.items()}
    stored = Stored(work, extracted if aligned else {}, pieces, counts)
    return stored, sum(left["duplicates"] for left in settled.values())


NOTHING: dict[str, Any] = {"batches": [], "duplicates": 0, "rows": [0] * len(SPLITS)}


def _settled(etl: EtlConfig, rows: pa.Table) -> settle.Settled:
    return settle.settle(rows, [*(c.name for c in etl.columns if not c.derived), etl.label.column], etl.dedup)


def order_bucket(etl: EtlConfig, work: Path, extracted: spill.Index, name: str) -> dict[str, Any]:
    """Settles a bucket of rows without a key, whose order is that of their hash: writes which rows stay, split by split."""
    rows = spill.read_bucket(work / "extract", extracted, int(name))
    if rows is None:
        return NOTHING
    settled = _settled(etl, rows)
    split = rows[SPLIT].to_numpy()[settled.index]
    left = _store(work, name, pa.table({AT: settled.index.astype(np.int32), ROW_ID: settled.added[ROW_ID]}), split)
    return {"duplicates": settled.duplicates, **left}


def settle_bucket(reading: Reading, etl: EtlConfig, work: Path, extracted: spill.Index, name: str) -> dict[str, Any]:
    """Settles a bucket of equal keys, and cuts it by order hash."""
    rows = spill.read_bucket(work / "extract", extracted, int(name))
    if rows is None:
        return NOTHING
    settled = _settled(etl, rows)
    with spill.Spill(work / "settle" / f"{name}.arrow") as out:
        out.add(settled.rows(rows), spill.bucket_of(settled.added[ORDER[0]], reading.bits))
    return {"duplicates": settled.duplicates, "batches": out.batches}


def sort_bucket(work: Path, settled: spill.Index, name: str) -> dict[str, Any]:
    """Sorts a bucket of order hashes."""
    rows = spill.read_bucket(work / "settle", settled, int(name))
    if rows is None:
        return NOTHING
    rows = settle.in_stored_order(rows)
    return _store(work, name, rows, rows[SPLIT].to_numpy())


def _store(work: Path, name: str, rows: pa.Table, split: np.ndarray) -> dict[str, Any]:
    """Writes rows in stored order, or where they are, split by split."""
    with spill.Spill(work / "stored" / f"{name}.arrow") as out:
        out.add(rows, split.astype(np.uint16))
    return {"batches": out.batches, "rows": np.bincount(split, minlength=len(SPLITS)).tolist()}


def write_splits(
    etl: EtlConfig, spec: features.FeatureSpec, dataset: Path, folder: str, tasks: Tasks, stored: Stored
) -> dict[str, Written]:
    """Writes every split's rows in stored order, a task a file; returns what was written."""
    per_file = etl.group_rows * etl.file_groups
    files = [(code, n) for code in range(len(SPLITS)) for n in range(-(-stored.num_rows(code) // per_file))]
    named = {f"{SPLITS[code]}-{n:05d}": (code, n) for code, n in files}
    done = tasks.run(
        "write", {name: partial(_write_file, etl, spec, dataset, folder, stored, code, n) for name, (code, n) in named.items()}
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
    return fit.fit(lambda act: tasks.map(act, stored.of_split(train, names)), etl.columns)


def _publish(
    cfg: Config, key: str, identity: Identity, counts: report.Counts, tasks: Tasks, stored: Stored, began: float
) -> Manifest:
    """Fits, writes the splits, the fitted transform, the report and, last, the manifest that makes them a version."""
    etl, dataset = cfg.etl, Path(cfg.dataset)
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
        dataset_id=manifest.content_id(columns, text, splits), config=compare.data_json(etl),
        group_rows=etl.group_rows, hash_version=HASH_VERSION, hash_seed=etl.hash_seed, storage=etl.storage, hash_order=True,
        columns=columns, splits=splits, features=f"features/{version:06d}.json", features_sha256=manifest.sha256_text(text),
        report=f"reports/{version:06d}.json", source=identity.description | {"rows_read": counts.read, "mlprod": __version__},
    )  # fmt: skip
    manifest.write_atomically(dataset / published.features, text)
    body = _report(cfg, published, written, counts, spec, time.monotonic() - began)
    manifest.write_atomically(dataset / published.report, json.dumps(body, indent=1, default=str))
    manifest.write(dataset, published)
    return published


def _report(
    cfg: Config,
    published: Manifest,
    written: Mapping[str, Written],
    counts: report.Counts,
    spec: features.FeatureSpec,
    seconds: float,
) -> dict[str, Any]:
    """Returns the data report as JSON data."""
    labelled = counts.read - counts.without_label
    splits = {
        name: {
            "rows": w.num_rows, "positive_share": w.positive / max(w.num_rows, 1),
            "files": len(w.shards), "bytes": sum(s.bytes for s in w.shards),
        }
        for name, w in written.items()
    }  # fmt: skip
    return {
        "dataset": cfg.dataset, "version": published.version, "dataset_id": published.dataset_id, "seconds": seconds,
        "rows": {
            "read": counts.read, "without_label": counts.without_label, "duplicates": counts.duplicates,
            "kept": sum(w.num_rows for w in written.values()),
        },
        "splits": splits, "columns": report.column_rows(counts, cfg.etl.columns, spec, labelled),
    }  # fmt: skip


def _workers(etl: EtlConfig) -> int:
    return etl.workers or os.cpu_count() or 1


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
        tasks, reading = Tasks(work, _workers(etl)), plan_reading(etl, work, identity.expected_bytes)
        counts, extracted = extract(etl, tasks, reading)
        if not sources.unchanged(etl.source, names, identity):
            shutil.rmtree(work)
            raise DataError("the source changed while it was read (its count or watermark differs); run `mlprod etl` again")
        stored, counts.duplicates = settle_all(etl, tasks, reading, extracted)
        published = _publish(cfg, key, identity, counts, tasks, stored, began)
        if tasks.taken:
            print(f"mlprod: {tasks.taken.total()} task(s) had been done by an attempt before", file=sys.stderr)
        shutil.rmtree(work)
    return published, True


def main(cfg: Config) -> None:
    """The verb `etl`: builds the dataset and shows its report."""
    published, fresh = build(cfg)
    report.show(json.loads((Path(cfg.dataset) / published.report).read_text()))
    if not fresh:
        print(f"{cfg.dataset} is built already; nothing to do")
