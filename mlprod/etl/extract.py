"""Rows of a source in their types, with what is derived and looked up, labelled, hashed, and spilled by the key's hash.

Promise: each part of a source is a task of its own, and what a task writes is the same whoever did the others.
Price: every row is held once, a chunk at a time, and written to disk once.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from mlprod import manifest
from mlprod.config import AnyLabel, Column, EtlConfig, NextToken
from mlprod.cores import num_cores
from mlprod.errors import DataError
from mlprod.etl import bad_rows, report, sources, spill, split
from mlprod.etl.bad_rows import Bad, sorted_out
from mlprod.etl.derive import check_hook, derive
from mlprod.etl.files import Copies
from mlprod.etl.identity import Identity, rows_bytes
from mlprod.etl.label import label_column, said, spilled_as
from mlprod.etl.lookups import LookupTable, read_lookup
from mlprod.etl.schema import FLOAT32_MAX, Loose, beyond_float32, hashable
from mlprod.etl.settle import KEY, LABEL, ROW, SPLIT, key_hashes
from mlprod.etl.tasks import Tasks
from mlprod.etl.whole import removed
from mlprod.hashing import hash_columns


def source_columns(etl: EtlConfig) -> list[Column]:
    """Returns the columns that come out of the source itself, by their names there: neither derived nor from a lookup."""
    looked_up = {name for lookup in etl.lookups for name in lookup.columns}
    return [replace(c, name=c.source or c.name) for c in etl.columns if not c.derived and c.name not in looked_up]


def renamed(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns rows of the source with the config's names of its columns."""
    names = {c.source: c.name for c in etl.columns if c.source}
    return rows.rename_columns([names.get(name, name) for name in rows.column_names]) if names else rows


def _hashed(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns the rows with row hash, key hash where there is a key, and split."""
    columns = rows.column_names
    extracted = [c.name for c in etl.columns if not c.derived]
    row = hash_columns({n: hashable(rows[n]) for n in [*extracted, etl.label.column]}, rows.num_rows, etl.hash_seed)
    key = hash_columns({n: hashable(rows[n]) for n in etl.key}, rows.num_rows, etl.hash_seed) if etl.key else row
    code = split.assign(etl.split, rows, key, etl.hash_seed)
    added = {LABEL: said(etl.label, rows[etl.label.column]), ROW[0]: row.hi, ROW[1]: row.lo, SPLIT: code}
    if etl.key:
        added |= {KEY[0]: key.hi, KEY[1]: key.lo}
    for name, values in added.items():
        rows = rows.append_column(name, values if isinstance(values, pa.ChunkedArray) else pa.array(values))
    return rows if spilled_as(etl.label) in columns else rows.drop_columns([etl.label.column])


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


TOGETHER, MANY = 4, 16  # parts that a task reads, where so many tasks are left: then the spill's batches are fewer and larger
HELD = 6  # share of a worker's memory, 1 / HELD, that the rows take which wait to be spilled


@dataclass(frozen=True)
class Reading:
    """How the source is read: decided once a build, so that an attempt that follows finds the tasks that are done."""

    source: Any  # of plain files, or ranges of a table
    copies: Copies
    columns: Sequence[Column]
    lookups: Sequence[LookupTable]
    chunk_rows: int
    bits: int  # of the hash, by which buckets are cut
    together: int  # parts a task
    held_bytes: int  # of rows that wait to be spilled

    def parts(self) -> list[list[Any]]:
        """Returns what tasks read: some parts each."""
        with self.copies.told():
            found = sources.parts(self.source, [c.name for c in self.columns], self.chunk_rows)
        return [found[i : i + self.together] for i in range(0, len(found), self.together)]

    def chunks(self, parts: Sequence[Any]) -> Iterator[pa.Table | Loose]:
        """Yields the rows of some parts, see `sources.read`."""
        with self.copies.told():
            for part in parts:
                yield from sources.read(self.source, part, self.columns, self.chunk_rows)

    def rows(self, etl: EtlConfig, parts: Sequence[Any]) -> Iterator[tuple[pa.Table, list[Bad]]]:
        """Yields the rows of parts in their declared types, with what the lookups add; and those that are not of them."""
        with self.copies.told():
            for chunk in self.chunks(parts):
                rows, bad = sorted_out(etl, self.columns, chunk) if isinstance(chunk, Loose) else (chunk, [])
                rows = renamed(etl, rows)
                for lookup in self.lookups:
                    rows = lookup.join(rows)
                yield rows, [row | {"where": self.copies.original(row["where"])} for row in bad]


@singledispatch
def sized(label: AnyLabel, etl: EtlConfig, identity: Identity) -> tuple[EtlConfig, Identity]:
    """Returns the config with chunks that memory can hold, and how large all rows are: what long texts change."""
    return etl, identity


@sized.register
def _(label: NextToken, etl: EtlConfig, identity: Identity) -> tuple[EtlConfig, Identity]:
    size = identity.expected_bytes + sources.text_bytes(etl.source, identity.rows)
    held = etl.memory_bytes // (etl.workers or num_cores()) // HELD
    fitting = max(held * max(identity.rows, 1) // max(size, 1), 1)
    return replace(etl, chunk_rows=min(etl.chunk_rows, fitting)), replace(identity, expected_bytes=size)


def plan_reading(etl: EtlConfig, tasks: Tasks, expected_bytes: int) -> Reading:
    """Returns how this build reads its source: as its first attempt decided."""
    work, boot = tasks.work, Path("/proc/sys/kernel/random/boot_id")
    columns = (*source_columns(etl), label_column(etl.label))
    left, since = work / "reading.json", boot.read_text().strip() if boot.is_file() else ""
    if not left.is_file() or json.loads(left.read_text())["boot"] != since:  # after a power cut files may hold anything
        for tried in filter(Path.is_dir, work.iterdir()):
            removed(tried)
        bits = spill.num_bits(expected_bytes, etl.memory_bytes // tasks.workers)
        chunks = expected_bytes // rows_bytes(etl.chunk_rows, len(columns))
        plan = {"chunk_rows": etl.chunk_rows, "bits": bits, "together": min(max(chunks // MANY, 1), TOGETHER)}
        # Tasks of another plan, which a process may still be doing, cut rows otherwise: none of them knows this folder.
        manifest.write_atomically(left, json.dumps({"boot": since, "folder": uuid4().hex, **plan}))
    tasks.begin(work / json.loads(left.read_text())["folder"])
    work = tasks.work
    plan, lookups = json.loads(left.read_text()), [read_lookup(x, etl.columns) for x in etl.lookups]
    sources.check_header(etl.source, [c.name for c in columns])
    source, copies = sources.unpacked(etl.source, work / "files", partial(tasks.run, "unpack"), away=tasks.away)
    source = sources.planned(source, plan["chunk_rows"], partial(tasks.run, "cut"))
    together = max(plan["together"] // sources.part_chunks(source), 1)
    held_bytes = etl.memory_bytes // tasks.workers // HELD
    return Reading(source, copies, columns, lookups, plan["chunk_rows"], plan["bits"], together, held_bytes)


@dataclass(frozen=True)
class Extracted:
    """What came out of the source."""

    counts: report.Counts
    buckets: spill.Buckets
    bad_rows: Sequence[Path]  # files of them


def extract(etl: EtlConfig, tasks: Tasks, reading: Reading) -> Extracted:
    """Reads the source, a task a part, into files cut by key hash, so that all rows of a key meet in one bucket."""
    parts = reading.parts()
    check_hook(etl, (rows for some in parts for rows, _ in reading.rows(etl, some)))
    done = tasks.run(
        "extract",
        {f"{i:06d}": partial(extract_part, etl, reading, tasks.work, i, p) for i, p in enumerate(parts)},
        rows=lambda left: left["counts"]["read"],
    )
    counts = report.merged([report.Counts(**left["counts"]) for left in done.values()])
    if not counts.read:
        raise DataError("the source has no rows; check config.etl.source and its filters")
    if counts.read == counts.bad:
        raise DataError(f"none of the {counts.read} rows is what config.etl.columns says; config.etl.bad_rows='refuse' tells why")
    if counts.read == counts.bad + counts.without_label:
        raise DataError(f"none of the {counts.read} rows has a value in config.etl.label.column={etl.label.column!r}")
    bad = [tasks.work / "extract" / _bad_of(left["file"]) for left in done.values() if left["counts"]["bad"]]
    return Extracted(counts, spill.by_bucket(spill.index_of(done.values())), bad)


def _bad_of(file: str) -> str:
    """Returns the name of the file of bad rows that belongs to a spill."""
    return Path(file).with_suffix(".bad").name


def extract_part(etl: EtlConfig, reading: Reading, work: Path, number: int, parts: Sequence[Any]) -> dict[str, Any]:
    """Reads some parts: their rows in their types, with what is derived and looked up, labelled, hashed, and cut by key hash."""
    counts, left_out = report.Counts(), list[Bad]()
    place = spill.own_name(work / "extract", f"{number:06d}")
    with spill.Spill(place, reading.held_bytes) as out:
        for rows, bad in reading.rows(etl, parts):
            labelled = rows.filter(pc.is_valid(rows[etl.label.column])) if rows[etl.label.column].null_count else rows
            counts.read += rows.num_rows + len(bad)
            counts.bad += len(bad)
            counts.without_label += rows.num_rows - labelled.num_rows
            derived = derive(etl, labelled)
            _check_values(etl, derived)
            counts.add(derived, etl.columns)
            hashed = _hashed(etl, derived)
            out.add(hashed, spill.bucket_of(key_hashes(hashed).hi, reading.bits))
            left_out += bad
    bad_rows.write(place.with_name(_bad_of(place.name)), left_out)
    return {"counts": asdict(counts), **out.told()}
