"""Columns that are made of other rows: those of a key are brought together, a bucket at a time.

The source is read into gather-0 (cut by the hash of the first step's key) -> gather-1 (with the columns of the first, cut by the
second's key) -> ... -> extract goes on with the rows of the last step's buckets.

Promise: see `point_in_time.py`; which parts, buckets and workers there were does not matter. Where a row stood is kept.
Price: all rows are written and read once more for each step, and those of a bucket are in memory together, so the rows of one key
must fit there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial, singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import AsOf, Column, EtlConfig, Histories
from mlprod.etl import bad_rows, exclude, report, sources, spill
from mlprod.etl.bad_rows import Bad, Sorted
from mlprod.etl.extract import Reading, not_excluded
from mlprod.etl.identity import Identity
from mlprod.etl.point_in_time import key_hashes, with_as_of, with_histories
from mlprod.etl.schema import ARROW, Loose, cast_strictly
from mlprod.etl.tasks import Tasks

Places = Sequence[tuple[int, Callable[[int], str]]]  # of a part's chunks: how many rows, and where each stands
WORD_BYTES = 8  # of a value in a history, about
PART, NUMBER = "_part", "_number"  # where a row was read: in which task, and how many rows of it before


@dataclass(frozen=True)
class Gathered:
    """Rows with the columns of a step, in buckets; read like a `Reading`."""

    reading: Reading  # of the rows themselves
    step: Histories | AsOf
    folder: Path
    other: "Other | None"  # of `AsOf`
    buckets: Sequence["Bucket"]
    before: report.Counts  # of rows that were left out when they were read
    bad_files: Sequence[Path]

    @property
    def bits(self) -> int:
        """See `Reading`."""
        return self.reading.bits

    @property
    def held_bytes(self) -> int:
        """See `Reading`."""
        return self.reading.held_bytes

    @property
    def excluded(self) -> exclude.Excluded:
        """See `Reading`."""
        return self.reading.excluded

    @property
    def reader(self) -> "Gathered":
        """What a task needs beside its buckets: with many of them the whole index is large."""
        return replace(self, buckets=())

    def parts(self) -> list[list["Bucket"]]:
        """Returns the buckets that hold rows, each a part of its own."""
        return [[bucket] for bucket in self.buckets]

    def rows(self, etl: EtlConfig, parts: Sequence["Bucket"]) -> Iterator[Sorted]:
        """Yields the rows of buckets with the columns of the step; no row of them is bad."""
        for table in self.tables(etl, parts):
            for start in range(0, table.num_rows, self.reading.chunk_rows):
                some = table.slice(start, self.reading.chunk_rows)
                where = partial(self._where, etl, some.select([PART, NUMBER]))
                yield Sorted(some.drop_columns([PART, NUMBER]), np.arange(some.num_rows), where, {})

    def tables(self, etl: EtlConfig, parts: Sequence["Bucket"]) -> Iterator[pa.Table]:
        """Yields the rows of each bucket, with where they stood."""
        for bucket in parts:
            table = spill.read_bucket(self.folder, bucket.index, bucket.number)
            assert table is not None
            yield with_step(self.step, etl, table, self.other.rows(bucket) if self.other else None)[0]

    @cached_property
    def _parts(self) -> Sequence[Sequence[Any]]:
        return self.reading.parts()

    @cached_property
    def _places(self) -> dict[int, Places]:
        """Of the parts that were looked at for where a row stood."""
        return {}

    def _where(self, etl: EtlConfig, places: pa.Table, i: int) -> str:
        """Returns where row i stood: of the first of a part, by reading the part again."""
        part, number = places[PART][i].as_py(), places[NUMBER][i].as_py()
        if part not in self._places:
            self._places[part] = [(found.num_rows, found.where) for found in self.reading.rows(etl, self._parts[part])]
        for num_rows, where in self._places[part]:
            if number < num_rows:
                return where(number)
            number -= num_rows
        raise AssertionError(f"part {part} ends before the row")


@dataclass(frozen=True)
class Bucket:
    """Where the rows of a bucket are, and those of the other source of `AsOf`."""

    number: int
    index: spill.Index
    other: spill.Index


@dataclass(frozen=True)
class Other:
    """The rows of the other source of `AsOf`, in buckets of the same keys, under the names of the rows."""

    folder: Path
    types: Mapping[str, str]

    def rows(self, bucket: Bucket) -> pa.Table:
        """Returns those with the keys of a bucket."""
        found = spill.read_bucket(self.folder, bucket.other, bucket.number)
        return _no_rows(self.types) if found is None else found


def _no_rows(types: Mapping[str, str]) -> pa.Table:
    return pa.table({name: pa.array([], ARROW[kind]) for name, kind in types.items()})


@singledispatch
def with_step(step: Any, etl: EtlConfig, rows: pa.Table, other: pa.Table | None) -> tuple[pa.Table, np.ndarray]:
    """Returns (rows with the columns of a step, which of `rows` they are: int64[K], ascending)."""
    raise AssertionError(f"no rows are gathered by {type(step).__name__}")


@with_step.register
def _(step: Histories, etl: EtlConfig, rows: pa.Table, other: None) -> tuple[pa.Table, np.ndarray]:
    separators = {c.name: c.separator for c in etl.columns if c.name in step.columns}
    return with_histories(rows, step, separators, once=etl.dedup != "none")


@with_step.register
def _(step: AsOf, etl: EtlConfig, rows: pa.Table, other: pa.Table) -> tuple[pa.Table, np.ndarray]:
    return with_as_of(rows, step, other), np.arange(rows.num_rows)


def identities(etl: EtlConfig) -> list[Identity]:
    """Returns what identifies the other sources."""
    steps = [step for step in etl.gathered if isinstance(step, AsOf)]
    return [sources.identify(step.source, list(_theirs(step).values())) for step in steps]


def sized(etl: EtlConfig, identity: Identity, others: Sequence[Identity]) -> Identity:
    """Returns the identity of the source with what the rows take with all that is gathered, and those of the other sources."""
    words = sum(step.max_len * len(step.columns) for step in etl.gathered if isinstance(step, Histories))
    more = identity.rows * words * WORD_BYTES + sum(other.expected_bytes for other in others)
    return replace(identity, expected_bytes=identity.expected_bytes + more)


def gather(etl: EtlConfig, tasks: Tasks, reading: Reading) -> Reading | Gathered:
    """Returns the rows of a source with the columns that are made of other rows; as they are, where the config names none.

    Other sources, which are mostly smaller, are read first: what is wrong with them is told before the rows are read.

    Raises:
        DataError: a source, or a row of one, is not what the config says.
    """
    found: Reading | Gathered = reading
    others = {k: _other(etl, tasks, reading, step, k) for k, step in enumerate(etl.gathered) if isinstance(step, AsOf)}
    for k, step in enumerate(etl.gathered):
        found = _gathered(etl, tasks, found, step, tasks.work / f"gather-{k}", *others.get(k, (None, {})))
    return found


def _gathered(
    etl: EtlConfig,
    tasks: Tasks,
    found: Reading | Gathered,
    step: Histories | AsOf,
    folder: Path,
    other: "Other | None",
    others: spill.Buckets,
) -> Gathered:
    first, reader = found if isinstance(found, Reading) else found.reading, found.reader
    spilled = tasks.run(
        folder.name,
        {f"{i:06d}": partial(spill_part, reader, etl, step, folder, i, part) for i, part in enumerate(found.parts())},
        rows=lambda left: left["rows"],
    )
    before = report.merged([found.before, *(report.Counts(**left["counts"]) for left in spilled.values())])
    index = sorted(spill.by_bucket(spill.index_of(spilled.values())).items())
    buckets = [Bucket(number, files, others.get(number, {})) for number, files in index]
    bad_files = [*found.bad_files, *bad_rows.files_of(folder, spilled.values())]
    return Gathered(first, step, folder, other, buckets, before, bad_files)


@singledispatch
def spill_part(
    found: Any, etl: EtlConfig, step: Histories | AsOf, folder: Path, number: int, parts: Sequence[Any]
) -> dict[str, Any]:
    """Cuts some parts of the rows, or some buckets of a step before, by the key of the next step."""
    raise AssertionError(f"no rows in {type(found).__name__}")


@spill_part.register
def _(
    found: Gathered, etl: EtlConfig, step: Histories | AsOf, folder: Path, number: int, parts: Sequence[Bucket]
) -> dict[str, Any]:
    rows = 0
    with spill.Spill(spill.own_name(folder, f"{number:06d}"), found.held_bytes) as out:
        for table in found.tables(etl, parts):
            rows += table.num_rows
            out.add(table, _buckets(table, step, found.bits))
    return {"rows": rows, "counts": {}, **out.told()}


@spill_part.register
def _(
    reading: Reading, etl: EtlConfig, step: Histories | AsOf, folder: Path, number: int, parts: Sequence[Any]
) -> dict[str, Any]:
    """Reads some parts of the source; counts and writes down what is left out there, which no other row then sees."""
    counts, left_out, before, rows = report.Counts(), list[Bad](), 0, 0
    place = spill.own_name(folder, f"{number:06d}")
    with spill.Spill(place, reading.held_bytes) as out:
        for found in reading.rows(etl, parts):
            size = found.num_rows
            found = not_excluded(reading.excluded, found, counts)
            counts.bad += len(found.bad)
            left_out += [row for _, row in sorted(found.bad.items())] if etl.bad_rows == "quarantine" else []
            numbers = pa.array(found.at + before, pa.int64())
            table = found.rows.append_column(PART, pa.array(np.full(len(found.at), number))).append_column(NUMBER, numbers)
            out.add(table, _buckets(table, step, reading.bits))
            before, rows = before + size, rows + table.num_rows
    counts.read, counts.quarantined = counts.bad + counts.excluded, len(left_out)
    bad_rows.write(bad_rows.beside(place), left_out)
    return {"rows": rows, "counts": asdict(counts), **out.told()}


def _buckets(rows: pa.Table, step: Histories | AsOf, bits: int) -> np.ndarray:
    return spill.bucket_of(key_hashes(rows, tuple(step.by)).hi, bits)


# ---- the other source --------------------------------------------------------------------------------------------------


def _theirs(step: AsOf) -> dict[str, str]:
    """Returns {name in the rows: name in the other source} of all that is read there."""
    return {**step.by, step.time: step.since, **step.columns}


def _types(etl: EtlConfig, step: AsOf) -> dict[str, str]:
    declared = {c.name: c.type for c in etl.columns}
    return {name: declared[name] for name in _theirs(step)}


def _columns(etl: EtlConfig, step: AsOf) -> list[Column]:
    """Returns the columns of the other source, by their names there, as sensitive as those of the rows."""
    declared = {c.name: c for c in etl.columns}
    found = {
        theirs: replace(declared[ours], name=theirs, source="", kind="categorical") for ours, theirs in _theirs(step).items()
    }
    return list(found.values())


def _as_ours(step: AsOf, columns: Sequence[Column], chunk: pa.Table | Loose) -> pa.Table:
    table = cast_strictly(chunk, columns) if isinstance(chunk, Loose) else chunk
    return pa.table({ours: table[theirs] for ours, theirs in _theirs(step).items()})


def _other(etl: EtlConfig, tasks: Tasks, reading: Reading, step: AsOf, k: int) -> tuple[Other, spill.Buckets]:
    """Cuts the other source by the step's key; returns how it is read, and where its buckets are."""
    run = partial(tasks.run, f"unpack-{k}")
    source, copies = sources.unpacked(step.source, tasks.work / f"files-{k}", run, away=tasks.away)
    columns, run = _columns(etl, step), partial(tasks.run, f"cut-{k}")
    ready = sources.discreetly(sources.planned(source, reading.chunk_rows, run), columns)
    theirs = replace(reading, source=ready, plain=source, copies=copies, columns=columns, lookups=(), lacking={})
    folder = tasks.work / f"other-{k}"
    spilled = tasks.run(
        folder.name,
        {f"{i:06d}": partial(spill_other, theirs, step, folder, i, part) for i, part in enumerate(theirs.parts())},
        rows=lambda left: left["rows"],
    )
    return Other(folder, _types(etl, step)), spill.by_bucket(spill.index_of(spilled.values()))


def spill_other(reading: Reading, step: AsOf, folder: Path, number: int, parts: Sequence[Any]) -> dict[str, Any]:
    """Reads some parts of the other source, and cuts them by the step's key."""
    rows = 0
    with spill.Spill(spill.own_name(folder, f"{number:06d}"), reading.held_bytes) as out:
        for chunk in reading.chunks(parts):
            table = _as_ours(step, reading.columns, chunk)
            rows += table.num_rows
            out.add(table, _buckets(table, step, reading.bits))
    return {"rows": rows, **out.told()}


# ---- in memory ---------------------------------------------------------------------------------------------------------


def gathered_rows(etl: EtlConfig, rows: pa.Table, good: np.ndarray, most: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Returns (rows with the columns that are made of other rows, which of `rows` they are: int64[K], ascending).

    Args:
        rows: all that there are.
        good: bool[B], which are what the config says: others have null there, and no other row sees them.
        most: rows of another source that are looked at, its first ones; 0: all.

    Raises:
        DataError: another source, or a row of it, is not what the config says.
    """
    found, kept = rows.filter(pa.array(good)), np.flatnonzero(good)
    for step in etl.gathered:
        found, some = with_step(step, etl, found, _in_memory(etl, step, most) if isinstance(step, AsOf) else None)
        kept = kept[some]
    at = np.sort(np.concatenate([kept, np.flatnonzero(~good)]))
    place = np.full(rows.num_rows, -1)
    place[kept] = np.arange(len(kept))
    taken, whole = pa.array(place[at], mask=place[at] < 0), rows.take(pa.array(at))
    for name in (name for step in etl.gathered for name in step.columns):
        whole = whole.append_column(name, found[name].take(taken))
    return whole, at


def _in_memory(etl: EtlConfig, step: AsOf, most: int) -> pa.Table:
    """Returns the rows of the other source, or the first `most`."""
    columns = _columns(etl, step)
    names = [c.name for c in columns]
    chunks = sources.chunks(step.source, names, etl.chunk_rows) if not most else [sources.head(step.source, names, most)]
    tables = [_as_ours(step, columns, chunk) for chunk in chunks if chunk is not None]
    return pa.concat_tables(tables) if tables else _no_rows(_types(etl, step))
