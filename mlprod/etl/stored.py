"""The rows as they will be stored: each split's in ascending order hash, equal rows dealt with, in pieces on disk.

Promise: what a piece holds does not depend on parts, buckets or workers; a piece is read in part.
Price: without a key a piece only names rows of the spill, and reading one gathers them; with a key rows are written again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import Column, EtlConfig, UniqueKey
from mlprod.etl import bad_rows, report, rules, settle, spill
from mlprod.etl.extract import Reading
from mlprod.etl.index import Index, part_of, write_part
from mlprod.etl.label import spilled_as
from mlprod.etl.settle import AT, LABEL, ORDER, ROW_ID, SPLIT
from mlprod.etl.tasks import Tasks
from mlprod.manifest import SPLITS


@dataclass(frozen=True)
class Stored:
    """The rows as they will be stored: pieces of ascending order hash, each with the rows of every split in that order."""

    work: Path
    extracted: spill.Buckets  # of which pieces name rows; empty: they hold the rows themselves
    pieces: spill.Index
    counts: Mapping[str, Sequence[int]]  # piece -> rows of each split
    folder: str = "stored"  # of `work`, in which the pieces are

    def rows(self, columns: Sequence[str], split: int, piece: str, start: int = 0, stop: int = -1) -> pa.Table:
        """Returns rows [start, stop) of a split in a piece that has any: these columns, and the row ids."""
        found = spill.read_bucket(self.work / self.folder, {piece: self.pieces[piece]}, split)
        assert found is not None
        found = found.slice(start, stop - start if stop >= 0 else None)
        if not self.extracted:
            return found.select([*columns, ROW_ID])
        number = int(spill.task_of(piece))
        bucket = spill.read_bucket(self.work / "extract", self.extracted[number], number, columns)
        assert bucket is not None
        return bucket.take(found[AT]).append_column(ROW_ID, found[ROW_ID])

    def only(self, piece: str) -> "Stored":
        """Returns one piece: what a task is sent, for with many buckets the whole index is large."""
        number = int(spill.task_of(piece))
        bucket = {number: self.extracted[number]} if number in self.extracted else {}
        return replace(self, extracted=bucket, pieces={piece: self.pieces[piece]}, counts={piece: self.counts[piece]})

    def of_split(self, split: int, columns: Sequence[str]) -> Iterator[Callable[[], pa.Table]]:
        """Yields what reads the rows of a split from each piece that has any."""
        for piece, counts in self.counts.items():
            if counts[split]:
                yield partial(self.only(piece).rows, columns, split, piece)

    def within(self, split: int, start: int, stop: int) -> list[tuple["Stored", str, int, int]]:
        """Returns (piece alone, its name, its first row, the row behind the last) of those with some rows [start, stop)."""
        found, at = list[tuple[Stored, str, int, int]](), 0
        for piece, counts in self.counts.items():
            a, b = max(start - at, 0), min(stop - at, counts[split])
            if a < b:
                found.append((self.only(piece), piece, a, b))
            at += counts[split]
        return found

    def first(self, split: int, columns: Sequence[str], rows: int) -> Iterator[Callable[[], pa.Table]]:
        """Yields what reads the first rows of a split, at most `rows` of them, from each piece that has some."""
        for piece, counts in self.counts.items():
            some = min(rows, counts[split])
            if some:
                yield partial(self.rows, columns, split, piece, 0, some)
            rows -= some

    def num_rows(self, split: int) -> int:
        """Returns the rows of a split."""
        return sum(counts[split] for counts in self.counts.values())


@dataclass(frozen=True)
class SettledAll:
    """What became of the rows."""

    stored: Stored
    left_out: report.Counts
    bad_rows: Sequence[Path]  # files of those that are written down
    index: Sequence[Path]  # its parts, whose buckets ascend; none where the config wants no index


def settle_all(etl: EtlConfig, tasks: Tasks, reading: Reading, extracted: spill.Buckets, known: Index) -> SettledAll:
    """Settles each bucket of equal keys, sorts the rows into stored order, and returns where they are.

    Args:
        known: the rows of the versions that these are appended to.

    Without a key, and with duplicates left out, the buckets of keys are those of the order: then a piece only names the rows.
    """
    work, buckets = tasks.work, [f"{i:03d}" for i in range(1 << reading.bits)]
    (work / "stored").mkdir(exist_ok=True)
    aligned = etl.dedup == "exact" and not etl.key
    (work / "index").mkdir(exist_ok=True)
    act = order_bucket if aligned else settle_bucket
    settled = tasks.run(
        "settle", {b: partial(act, etl, work, extracted.get(int(b), {}), known, reading.bits, b) for b in buckets}, rows=_num_rows
    )
    found = settled
    if not aligned:
        cut = spill.by_bucket(spill.index_of(settled.values()))
        found = tasks.run("sort", {b: partial(sort_bucket, work, cut.get(int(b), {}), b) for b in buckets}, rows=_num_rows)
        for path in (*(work / "extract").glob("*.arrow"), *(work / "settle").glob("*.arrow")):
            path.unlink(missing_ok=True)
    counts = {left["file"]: left["rows"] for left in found.values()}
    return SettledAll(
        Stored(work, extracted if aligned else {}, spill.index_of(found.values()), counts),
        report.merged([_left_out(left) for left in settled.values()]),
        bad_rows.files_of(work / "settle", settled.values()),
        [part_of(work, left["file"]) for left in settled.values() if etl.grow == "append" and sum(left["rows"])],
    )


def _left_out(left: Mapping[str, Any]) -> report.Counts:
    return report.Counts(duplicates=left["duplicates"], known=left.get("known", 0), **left.get("counts", {}))


def _num_rows(left: Mapping[str, Any]) -> int:
    return sum(map(int, left["rows"])) + sum(int(left.get(name, 0)) for name in ("duplicates", "doubled", "known"))


SAMPLE_ROWS, SAMPLE_VALUES = 1 << 16, 1 << 22  # of a split at most: fewer rows where there are more than 63 columns


def sample(stored: Stored, columns: Sequence[Column]) -> dict[str, pa.Table]:
    """Returns the first rows of every split that has any, with their labels: in the order of a hash, so a random sample."""
    names, tables = [*(c.name for c in columns), LABEL], {}
    for code, split in enumerate(SPLITS):
        rows = min(SAMPLE_ROWS, SAMPLE_VALUES // len(names))
        found = [part() for part in stored.first(code, names, rows)]
        if found:
            tables[split] = pa.concat_tables(found)
    return tables


def nothing(name: str) -> dict[str, Any]:
    """Returns what is told of a bucket without rows, which has no file."""
    return {"file": f"{name}-.arrow", "batches": [], "duplicates": 0, "rows": [0] * len(SPLITS)}


def _settled(etl: EtlConfig, rows: pa.Table, known: settle.Known, part: Path) -> settle.Settled:
    """Settles a bucket, and writes its part of the index where the config wants one."""
    columns = (*(c.name for c in etl.columns if c.extracted), spilled_as(etl.label))
    unique = any(isinstance(rule, UniqueKey) for rule in etl.rules)
    rule = settle.Rule(etl.dedup, columns, etl.key, etl.keep, unique)
    settled = settle.settle(rows, rule, known)
    if etl.grow == "append" and len(settled.index):
        key, row = (hashes.take(settled.index) for hashes in (settle.key_hashes(rows), settle.hashes_of(rows, settle.ROW)))
        write_part(part, key, row, rows[SPLIT].to_numpy()[settled.index])
    return settled


def order_bucket(etl: EtlConfig, work: Path, extracted: spill.Index, known: Index, bits: int, name: str) -> dict[str, Any]:
    """Settles a bucket of rows without a key, whose order is that of their hash: writes which rows stay, split by split."""
    rows = spill.read_bucket(work / "extract", extracted, int(name))
    if rows is None:
        return nothing(name)
    place = spill.own_name(work / "stored", name)
    settled = _settled(etl, rows, known.known(int(name), bits), part_of(work, place.name))
    split = rows[SPLIT].to_numpy()[settled.index]
    left = keep(place, pa.table({AT: settled.index.astype(np.int32), ROW_ID: settled.added[ROW_ID]}), split)
    return {"duplicates": settled.duplicates, "known": settled.known, **left}


def settle_bucket(etl: EtlConfig, work: Path, extracted: spill.Index, known: Index, bits: int, name: str) -> dict[str, Any]:
    """Settles a bucket of equal keys, and cuts it by order hash."""
    rows = spill.read_bucket(work / "extract", extracted, int(name))
    if rows is None:
        return nothing(name)
    place = spill.own_name(work / "settle", name)
    settled = _settled(etl, rows, known.known(int(name), bits), part_of(work, place.name))
    with spill.Spill(place) as out:
        out.add(settled.rows(rows), spill.bucket_of(settled.added[ORDER[0]], bits))
    doubled = rows.take(pa.array(settled.doubled))
    told = rules.doubled(etl, doubled, bad_rows.beside(place)) if doubled.num_rows else {}
    left = {"duplicates": settled.duplicates, "known": settled.known, "rows": [len(settled.index)], **out.told()}
    return left | {"doubled": doubled.num_rows, "counts": told}


def sort_bucket(work: Path, settled: spill.Index, name: str) -> dict[str, Any]:
    """Sorts a bucket of order hashes."""
    rows = spill.read_bucket(work / "settle", settled, int(name))
    if rows is None:
        return nothing(name)
    rows = settle.in_stored_order(rows)
    return keep(spill.own_name(work / "stored", name), rows, rows[SPLIT].to_numpy())


def keep(place: Path, rows: pa.Table, split: np.ndarray) -> dict[str, Any]:
    """Writes rows in stored order, or where they are, split by split."""
    with spill.Spill(place) as out:
        out.add(rows, split.astype(np.uint16))
    return {"rows": np.bincount(split, minlength=len(SPLITS)).tolist(), **out.told()}
