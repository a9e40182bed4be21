"""The rows as they will be stored: each split's in ascending order hash, equal rows dealt with, in pieces on disk.

Promise: what a piece holds does not depend on parts, buckets or workers; a piece is read in part.
Price: without a key a piece only names rows of the spill, and reading one gathers them; with a key rows are written again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import Column, EtlConfig, UniqueKey
from mlprod.etl import report, rules, settle, spill
from mlprod.etl.extract import Reading
from mlprod.etl.index import Index, write_part
from mlprod.etl.label import spilled_as
from mlprod.etl.settle import AT, LABEL, ORDER, ROW_ID, SPLIT
from mlprod.etl.tasks import Tasks
from mlprod.manifest import SPLITS


@dataclass(frozen=True)
class Stored:
    """The rows as they will be stored: pieces of ascending order hash, each with the rows of every split in that order."""

    work: Path
    extracted: spill.Index  # of which pieces name rows; empty: they hold the rows themselves
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
        bucket = spill.read_bucket(self.work / "extract", self.extracted, int(Path(piece).stem), columns)
        assert bucket is not None
        return bucket.take(found[AT]).append_column(ROW_ID, found[ROW_ID])

    def of_split(self, split: int, columns: Sequence[str]) -> Iterator[Callable[[], pa.Table]]:
        """Yields what reads the rows of a split from each piece that has any."""
        for piece, counts in self.counts.items():
            if counts[split]:
                yield partial(self.rows, columns, split, piece)

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


def settle_all(
    etl: EtlConfig, tasks: Tasks, reading: Reading, extracted: spill.Index, known: Index
) -> tuple[Stored, report.Counts]:
    """Settles each bucket of equal keys and sorts the rows into stored order; returns them and counts of what is left out.

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
        "settle", {b: partial(act, etl, work, extracted, known, reading.bits, b) for b in buckets}, rows=_num_rows
    )
    found = settled
    if not aligned:
        index = {f"{b}.arrow": left["batches"] for b, left in settled.items()}
        found = tasks.run("sort", {b: partial(sort_bucket, work, index, b) for b in buckets}, rows=_num_rows)
        for path in (*(work / "extract").glob("*.arrow"), *(work / "settle").glob("*.arrow")):
            path.unlink()
    pieces = {f"{b}.arrow": left["batches"] for b, left in found.items()}
    counts = {f"{b}.arrow": left["rows"] for b, left in found.items()}
    stored = Stored(work, extracted if aligned else {}, pieces, counts)
    return stored, report.merged([_left_out(left) for left in settled.values()])


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


NOTHING: dict[str, Any] = {"batches": [], "duplicates": 0, "rows": [0] * len(SPLITS)}


def _settled(etl: EtlConfig, work: Path, rows: pa.Table, known: Index, bits: int, name: str) -> settle.Settled:
    """Settles a bucket, and writes its part of the index where the config wants one."""
    columns = (*(c.name for c in etl.columns if c.extracted), spilled_as(etl.label))
    unique = any(isinstance(rule, UniqueKey) for rule in etl.rules)
    rule = settle.Rule(etl.dedup, columns, etl.key, etl.keep, unique)
    settled = settle.settle(rows, rule, known.known(int(name), bits) if known.files else settle.nothing_known())
    if etl.grow == "append":
        key, row = (hashes.take(settled.index) for hashes in (settle.key_hashes(rows), settle.hashes_of(rows, settle.ROW)))
        write_part(work / "index" / f"{name}.parquet", key, row, rows[SPLIT].to_numpy()[settled.index])
    return settled


def order_bucket(etl: EtlConfig, work: Path, extracted: spill.Index, known: Index, bits: int, name: str) -> dict[str, Any]:
    """Settles a bucket of rows without a key, whose order is that of their hash: writes which rows stay, split by split."""
    rows = spill.read_bucket(work / "extract", extracted, int(name))
    if rows is None:
        return NOTHING
    settled = _settled(etl, work, rows, known, bits, name)
    split = rows[SPLIT].to_numpy()[settled.index]
    left = keep(work / "stored", name, pa.table({AT: settled.index.astype(np.int32), ROW_ID: settled.added[ROW_ID]}), split)
    return {"duplicates": settled.duplicates, "known": settled.known, **left}


def settle_bucket(etl: EtlConfig, work: Path, extracted: spill.Index, known: Index, bits: int, name: str) -> dict[str, Any]:
    """Settles a bucket of equal keys, and cuts it by order hash."""
    rows = spill.read_bucket(work / "extract", extracted, int(name))
    if rows is None:
        return NOTHING
    settled = _settled(etl, work, rows, known, bits, name)
    with spill.Spill(work / "settle" / f"{name}.arrow") as out:
        out.add(settled.rows(rows), spill.bucket_of(settled.added[ORDER[0]], bits))
    doubled = rows.take(pa.array(settled.doubled))
    told = rules.doubled(etl, doubled, work / "settle" / f"{name}.bad") if doubled.num_rows else {}
    left = {"duplicates": settled.duplicates, "known": settled.known, "batches": out.batches, "rows": [len(settled.index)]}
    return left | {"doubled": doubled.num_rows, "counts": told}


def sort_bucket(work: Path, settled: spill.Index, name: str) -> dict[str, Any]:
    """Sorts a bucket of order hashes."""
    rows = spill.read_bucket(work / "settle", settled, int(name))
    if rows is None:
        return NOTHING
    rows = settle.in_stored_order(rows)
    return keep(work / "stored", name, rows, rows[SPLIT].to_numpy())


def keep(folder: Path, name: str, rows: pa.Table, split: np.ndarray) -> dict[str, Any]:
    """Writes rows in stored order, or where they are, split by split."""
    with spill.Spill(folder / f"{name}.arrow") as out:
        out.add(rows, split.astype(np.uint16))
    return {"batches": out.batches, "rows": np.bincount(split, minlength=len(SPLITS)).tolist()}
