"""The index of a dataset's rows: their hashes, by which a row that comes again is known.

Promise: of every row of a version, and of those before it, the 128 bits of its key's and its own hash, its split and its copy.
Price: 33 bytes a row; a bucket of it is in memory at once. The rows themselves are not kept, so equal hashes are taken for equal
rows: among 10^10 rows two are mistaken for one with a chance of 2 in 10^19.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlprod.etl.settle import KEY, ROW, SPLIT, Known, nothing_known
from mlprod.etl.whole import whole
from mlprod.hashing import Hash128
from mlprod.manifest import sha256_file

COLUMNS = (*KEY, *ROW, SPLIT)
GROUP_ROWS = 1 << 20


def index_path(version: int) -> str:
    """Returns where the index of a version's own rows lies, below the dataset's folder."""
    return f"index/{version:06d}.parquet"


@dataclass(frozen=True)
class Index:
    """The indexes of a version and of those that it was appended to."""

    files: Sequence[Path]

    def known(self, bucket: int, bits: int) -> Known:
        """Returns what is known of the rows whose key hash begins with the `bits` bits of `bucket`."""
        if not self.files:
            return nothing_known()
        low, high = (pa.scalar(i << (64 - bits), pa.uint64()) if i >> bits == 0 else None for i in (bucket, bucket + 1))
        wanted = [(KEY[0], ">=", low)] + ([(KEY[0], "<", high)] if high is not None else [])
        found = pa.concat_tables([pq.read_table(path, filters=wanted, use_threads=False) for path in self.files])
        words = {name: found[name].to_numpy() for name in COLUMNS}
        order = np.lexsort((words[ROW[1]], words[ROW[0]], words[KEY[1]], words[KEY[0]]))
        words = {name: values[order] for name, values in words.items()}
        key, row = (Hash128(words[hi], words[lo]) for hi, lo in (KEY, ROW))
        return Known(key, row, words[SPLIT])


def part_of(work: Path, file: str) -> Path:
    """Returns where the part is of the bucket whose rows a file holds that is named by `spill.own_name`."""
    return work / "index" / f"{Path(file).stem}.parquet"


def write_part(path: Path, key: Hash128, row: Hash128, split: np.ndarray) -> None:
    """Writes what is to be known of the rows of a bucket, in the order of their keys' hashes."""
    columns = dict(zip(COLUMNS, (key.hi, key.lo, row.hi, row.lo, split.astype(np.int8)), strict=True))
    with whole(path) as half:
        pq.write_table(pa.table(columns), half, compression="none", use_dictionary=False)


def gather(parts: Sequence[Path], to: Path) -> str:
    """Joins the parts, whose buckets ascend, to a version's index; returns its SHA-256."""
    to.parent.mkdir(parents=True, exist_ok=True)
    half = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    schema = pa.schema([*((name, pa.uint64()) for name in COLUMNS[:-1]), (SPLIT, pa.int8())])
    with pq.ParquetWriter(half, schema, compression="none", use_dictionary=False) as writer:
        for part in parts:
            table = pq.read_table(part)
            if table.num_rows:
                writer.write_table(table.cast(schema), row_group_size=GROUP_ROWS)
    with half.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(half, to)
    return sha256_file(to)


def of_version(dataset: Path, indexes: Mapping[str, str]) -> Index:
    """Returns the index of a version; `indexes`: {path: SHA-256}, as its manifest names them."""
    return Index([dataset / path for path in indexes])
