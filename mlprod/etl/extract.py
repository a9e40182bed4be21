"""Rows of a source in their types, with what is derived and looked up, labelled, hashed, and spilled by the key's hash.

Promise: each part of a source is a task of its own, and what a task writes is the same whoever did the others.
Price: every row is held once, a chunk at a time, and written to disk once.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial, singledispatch
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod import manifest
from mlprod.config import AnyLabel, Column, EtlConfig, NextToken
from mlprod.cores import num_cores
from mlprod.errors import DataError
from mlprod.etl import bad_rows, drift, exclude, report, rules, sources, spill, split
from mlprod.etl.bad_rows import Bad, Sorted, as_it_is, sorted_out
from mlprod.etl.derive import check_hook, derive
from mlprod.etl.exclude import Excluded
from mlprod.etl.files import Copies
from mlprod.etl.growth import Unread
from mlprod.etl.identity import Identity, rows_bytes
from mlprod.etl.label import label_column, said, spilled_as
from mlprod.etl.lookups import LookupTable, read_lookup
from mlprod.etl.schema import FLOAT32_MAX, Loose, beyond_float32, hashable, with_nulls
from mlprod.etl.settle import KEY, LABEL, ROW, SPLIT, key_hashes
from mlprod.etl.tasks import Tasks
from mlprod.etl.whole import removed
from mlprod.hashing import hash_columns


def source_columns(etl: EtlConfig) -> list[Column]:
    """Returns the columns that come out of the source itself, by their names there: not derived, looked up or gathered."""
    added = {name for step in (*etl.lookups, *etl.gathered) for name in step.columns}
    return [replace(c, name=c.source or c.name) for c in etl.columns if c.extracted and c.name not in added]


def renamed(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns rows of the source with the config's names of its columns."""
    names = {c.source: c.name for c in etl.columns if c.source}
    return rows.rename_columns([names.get(name, name) for name in rows.column_names]) if names else rows


def _hashed(etl: EtlConfig, rows: pa.Table) -> pa.Table:
    """Returns the rows with row hash, key hash where there is a key, and split."""
    columns = rows.column_names
    extracted = [c.name for c in etl.columns if c.extracted]
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
    plain: Any  # as the config has it, of plain files
    copies: Copies
    columns: Sequence[Column]
    lookups: Sequence[LookupTable]
    chunk_rows: int
    bits: int  # of the hash, by which buckets are cut
    together: int  # parts a task
    held_bytes: int  # of rows that wait to be spilled
    excluded: Excluded
    lacking: Mapping[str, Sequence[str]]  # file -> columns that it has not, where that is allowed
    before: report.Counts = field(default_factory=report.Counts)  # of rows that were left out before
    bad_files: Sequence[Path] = ()  # of those that are written down

    @property
    def reader(self) -> "Reading":
        """What a task needs beside its parts."""
        return self

    def parts(self) -> list[list[Any]]:
        """Returns what tasks read: some parts each."""
        missing = {name for names in self.lacking.values() for name in names}
        with self.copies.told():
            found = sources.parts(self.source, [c.name for c in self.columns if c.name not in missing], self.chunk_rows)
        return [found[i : i + self.together] for i in range(0, len(found), self.together)]

    def chunks(self, parts: Sequence[Any]) -> Iterator[pa.Table | Loose]:
        """Yields the rows of some parts, see `sources.read`."""
        with self.copies.told():
            for part in parts:
                yield from self._read(part)

    def _read(self, part: Any) -> Iterator[pa.Table | Loose]:
        """Yields the rows of a part, see `sources.read`; what its file lacks is missing in them."""
        lacking = self.lacking.get(part.path, ()) if self.lacking else ()
        there = [c for c in self.columns if c.name not in lacking]
        for chunk in sources.read(self.source, part, there, self.chunk_rows):
            yield with_nulls(chunk, [c for c in self.columns if c.name in lacking]) if lacking else chunk

    def rows(self, etl: EtlConfig, parts: Sequence[Any]) -> Iterator[Sorted]:
        """Yields the rows of parts in their declared types, with what the lookups add; and those that are not of them."""
        with self.copies.told():
            for part in parts:
                before = 0
                for chunk in self._read(part):
                    some = self._sorted(etl, part, before, chunk)
                    before += some.num_rows
                    yield some

    def _sorted(self, etl: EtlConfig, part: Any, before: int, chunk: pa.Table | Loose) -> Sorted:
        """Returns the rows of a chunk, which stands behind `before` rows of its part."""
        loose = isinstance(chunk, Loose)
        found = sorted_out(etl, self.columns, chunk) if loose else as_it_is(chunk, partial(self._place, part, before))
        rows = renamed(etl, found.rows)
        for lookup in self.lookups:
            rows = lookup.join(rows)
        where = partial(self._original, found.where)
        return Sorted(rows, found.at, where, {i: row | {"where": where(i)} for i, row in found.bad.items()})

    def _place(self, part: Any, before: int, i: int) -> str:
        return sources.place(self.source, part, before + i)

    def _original(self, where: Callable[[int], str], i: int) -> str:
        return self.copies.original(where(i))


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


def plan_reading(etl: EtlConfig, tasks: Tasks, expected_bytes: int, unread: Unread) -> Reading:
    """Returns how this build reads what is unread of its source: as its first attempt decided."""
    work, boot = tasks.work, Path("/proc/sys/kernel/random/boot_id")
    columns = (*source_columns(etl), label_column(etl.label))
    left, since = work / "plan.json", boot.read_text().strip() if boot.is_file() else ""
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
    widen = etl.drift == "widen"
    if not widen and not unread.columns:  # else `drift` tells more
        sources.check_header(etl.source, [c.name for c in columns])
    run = partial(tasks.run, "unpack")
    source, copies = sources.unpacked(unread.source, work / "files", run, unread.without, away=tasks.away)
    lacking = drift.lacking(source, [c.name for c in columns], unread.columns) if widen else {}
    ready = sources.discreetly(sources.planned(source, plan["chunk_rows"], partial(tasks.run, "cut")), columns)
    together = max(plan["together"] // sources.part_chunks(ready), 1)
    held_bytes = etl.memory_bytes // tasks.workers // HELD
    left_out = exclude.read(etl)
    return Reading(
        ready, source, copies, columns, lookups, plan["chunk_rows"], plan["bits"], together, held_bytes, left_out, lacking
    )  # fmt: skip


@dataclass(frozen=True)
class Extracted:
    """What came out of the source."""

    counts: report.Counts
    buckets: spill.Buckets
    bad_rows: Sequence[Path]  # files of those that are written down

    def with_counts(self, more: report.Counts, bad_rows: Sequence[Path]) -> "Extracted":
        """Returns the same with what is left out later on, and the files of that."""
        return replace(self, counts=report.merged([self.counts, more]), bad_rows=[*self.bad_rows, *bad_rows])


class Rows(Protocol):
    """Rows in parts: see `Reading`, whose fields these are."""

    @property
    def bits(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def excluded(self) -> Excluded: ...
    @property
    def before(self) -> report.Counts: ...
    @property
    def bad_files(self) -> Sequence[Path]: ...
    @property
    def reader(self) -> "Rows": ...  # what a task is sent beside its parts
    def parts(self) -> Sequence[Sequence[Any]]: ...
    def rows(self, etl: EtlConfig, parts: Sequence[Any]) -> Iterator[Sorted]: ...


def extract(etl: EtlConfig, tasks: Tasks, reading: Rows, *, may_be_none: bool = False) -> Extracted:
    """Reads the source, a task a part, into files cut by key hash, so that all rows of a key meet in one bucket.

    Raises:
        DataError: a row is not what the config says, and there is no policy for that; none is left, unless there `may_be_none`.
    """
    parts, reader = reading.parts(), reading.reader
    check_hook(etl, (found.rows for some in parts for found in reading.rows(etl, some)), partial(rules.check_expressions, etl))
    done = tasks.run(
        "extract",
        {f"{i:06d}": partial(extract_part, etl, reader, tasks.work, i, p) for i, p in enumerate(parts)},
        rows=lambda left: left["counts"]["read"],
    )
    counts = report.merged([reading.before, *(report.Counts(**left["counts"]) for left in done.values())])
    bad = [*reading.bad_files, *bad_rows.files_of(tasks.work / "extract", done.values())]
    extracted = Extracted(counts, spill.by_bucket(spill.index_of(done.values())), bad)
    _check_shares(etl, counts)
    if not may_be_none:
        _check_any(etl, counts)
    return extracted


def _check_any(etl: EtlConfig, counts: report.Counts) -> None:
    """Raises DataError where no row is left."""
    if not counts.read:
        raise DataError("the source has no rows; check config.etl.source and its filters")
    if counts.read == counts.bad:
        raise DataError(f"none of the {counts.read} rows is what config.etl.columns says; config.etl.bad_rows='refuse' tells why")
    if counts.read == counts.bad + counts.without_label:
        raise DataError(f"none of the {counts.read} rows has a value in config.etl.label.column={etl.label.column!r}")
    if counts.excluded and not counts.labelled:
        raise DataError("config.etl.exclude_keys leaves out every row; is it the right file?")
    if counts.num_broken == counts.labelled:
        raise DataError(f"no row with a label keeps to config.etl.rules; the first: {counts.first_broken()}")


def _check_shares(etl: EtlConfig, counts: report.Counts) -> None:
    """Raises DataError where more rows are bad, or break a rule, than may."""
    if counts.bad > etl.most_bad * counts.read:
        raise DataError(
            f"{counts.bad:,} of {counts.read:,} rows are not what config.etl.columns says, more than config.etl.most_bad="
            f"{etl.most_bad:g} allows; bad_rows='refuse' tells the first; mend them, or raise most_bad"
        )
    rules.check_shares(etl, counts)


def extract_part(etl: EtlConfig, reading: Rows, work: Path, number: int, parts: Sequence[Any]) -> dict[str, Any]:
    """Reads some parts: their rows in their types, with what is derived and looked up, labelled, hashed, and cut by key hash."""
    counts, left_out = report.Counts(), list[Bad]()
    place = spill.own_name(work / "extract", f"{number:06d}")
    with spill.Spill(place, reading.held_bytes) as out:
        for found in reading.rows(etl, parts):
            counts.read += found.num_rows
            found = not_excluded(reading.excluded, found, counts)
            labelled = _labelled(etl, found)
            counts.bad += len(found.bad)
            counts.without_label += found.rows.num_rows - labelled.rows.num_rows
            kept, broken = _ruled(etl, labelled, derive(etl, labelled.rows), counts)
            _check_values(etl, kept)
            counts.add(kept, etl.columns)
            hashed = _hashed(etl, kept)
            out.add(hashed, spill.bucket_of(key_hashes(hashed).hi, reading.bits))
            bad = found.bad if etl.bad_rows == "quarantine" else {}
            left_out += [row for _, row in sorted({**bad, **broken}.items())]
            counts.quarantined = len(left_out)
    bad_rows.write(bad_rows.beside(place), left_out)
    return {"counts": asdict(counts), **out.told()}


def not_excluded(excluded: Excluded, found: Sorted, counts: report.Counts) -> Sorted:
    """Returns the rows whose keys are not left out; counts the others."""
    wanted = ~excluded.among(found.rows)
    counts.excluded += found.rows.num_rows - int(wanted.sum())
    bad = {i: row for i, row in found.bad.items() if not excluded.has(row["values"])}
    counts.excluded += len(found.bad) - len(bad)
    rows = found.rows if wanted.all() else found.rows.filter(pa.array(wanted))
    return Sorted(rows, found.at[wanted], found.where, bad)


def _labelled(etl: EtlConfig, found: Sorted) -> Sorted:
    """Returns the rows that have a label."""
    label = found.rows[etl.label.column]
    if not label.null_count:
        return found
    there = pc.is_valid(label)
    return found.taken(found.rows.filter(there), found.at[np.asarray(there)])


def _ruled(etl: EtlConfig, found: Sorted, derived: pa.Table, counts: report.Counts) -> tuple[pa.Table, dict[int, Bad]]:
    """Returns the rows of `derived` that keep to the rules, and those to be written down by their numbers; counts both.

    Args:
        derived: the rows of `found`, with the derived columns.
    """
    if not rules.rules_of(etl):
        return derived, {}
    told, columns = dict[int, Bad](), [*etl.columns, label_column(etl.label)]
    ruled = rules.kept(etl, derived, lambda i: found.where(int(found.at[i])))
    for i, (rule, why) in ruled.broken.items():
        words, number = rules.in_words(etl, rule), int(found.at[i])
        counts.broken[words] = counts.broken.get(words, 0) + 1
        if words not in counts.firsts:
            counts.firsts[words] = f"{found.where(number)}: {why}"
        if rule.otherwise == "quarantine":
            row = derived.slice(i, 1).to_pylist()[0]
            told[number] = bad_rows.described(etl, columns, row, found.where(number), why)
    return ruled.rows, told
