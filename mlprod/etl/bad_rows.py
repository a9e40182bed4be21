"""Rows that are not what the config says: with other fields than the header, a value of another type, or that break a rule.

Promise: the first one ends the build, or each is left out and counted, or each is also written down with where it stands and why.
What is written is the same for any chunk size and number of workers; a sensitive value is only there as a hash.
Price: a chunk with a bad row is looked at value by value; where a row stands that breaks a rule is found by reading on to it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import Column, EtlConfig
from mlprod.etl.schema import Loose, cast_chunk, cast_strictly
from mlprod.etl.whole import whole
from mlprod.hashing import key_of_text, mix

Bad = dict[str, Any]  # {"where", "why", "values": {column: text or None}}


@dataclass(frozen=True)
class Sorted:
    """A chunk's rows: the good ones, where each stands, and what is to be known of the bad ones."""

    rows: pa.Table
    at: np.ndarray  # int64[B]: the number in the chunk of each row of `rows`
    where: Callable[[int], str]  # of a number in the chunk
    bad: Mapping[int, Bad]  # by their numbers in the chunk

    @property
    def num_rows(self) -> int:
        """Rows of the chunk."""
        return int(self.rows.num_rows) + len(self.bad)

    def taken(self, rows: pa.Table, at: np.ndarray) -> "Sorted":
        """Returns some of the good rows, which stand at `at`, in place of all."""
        return Sorted(rows, at, self.where, self.bad)


def as_it_is(rows: pa.Table, where: Callable[[int], str]) -> Sorted:
    """Returns a chunk that was read in its types: it has no bad rows."""
    return Sorted(rows, np.arange(rows.num_rows), where, {})


def sorted_out(etl: EtlConfig, columns: Sequence[Column], chunk: Loose) -> Sorted:
    """Returns the rows of a chunk, the good ones in their declared types.

    Raises:
        DataError: there is a bad one and `etl.bad_rows` is "refuse".
    """
    if etl.bad_rows == "refuse":
        return as_it_is(cast_strictly(chunk, columns), chunk.where)
    table, reasons = cast_chunk(chunk, columns)
    good = np.ones(chunk.num_rows, bool)
    good[list(reasons)] = False
    bad = {i: _described(etl, columns, chunk, i, reasons[i]) for i in sorted(reasons)}
    return Sorted(table.filter(pa.array(good)) if bad else table, np.flatnonzero(good), chunk.where, bad)


def _described(etl: EtlConfig, columns: Sequence[Column], chunk: Loose, i: int, why: str) -> Bad:
    values = {} if i in chunk.broken else {c.name: _shown(c, chunk.columns[c.name][i], etl.hash_seed) for c in columns}
    return {"where": chunk.where(i), "why": why, "values": values}


def described(etl: EtlConfig, columns: Sequence[Column], row: Mapping[str, Any], where: str, why: str) -> Bad:
    """Returns what is to be known of a row of the right types that is left out; `row`: {column: its value}."""
    return {"where": where, "why": why, "values": {c.name: _shown(c, row[c.name], etl.hash_seed) for c in columns}}


def _shown(column: Column, value: Any, seed: int) -> str | None:
    if value is None:
        return None
    return f"hash {mix(key_of_text(str(value)) ^ seed):016x}" if column.sensitive else str(value)


def write(path: Path, bad: Iterable[Mapping[str, Any]]) -> None:
    """Writes bad rows as JSON lines; no file where there are none."""
    lines = [json.dumps(row, ensure_ascii=False) for row in bad]
    if lines:
        with whole(path) as half:
            half.write_text("\n".join(lines) + "\n", encoding="utf-8")


def beside(spilled: Path) -> Path:
    """Returns where the bad rows of a task go, which are told of with the file that it spills into."""
    return spilled.with_suffix(".bad")


def files_of(folder: Path, told: Iterable[Mapping[str, Any]]) -> list[Path]:
    """Returns the files of bad rows that tasks wrote, as they told of them."""
    return [beside(folder / left["file"]) for left in told if left.get("counts", {}).get("quarantined")]


def gather(parts: Sequence[Path], to: Path) -> None:
    """Joins the files of all parts, in their order, to one that is there when it is whole."""
    to.parent.mkdir(parents=True, exist_ok=True)
    half = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    with half.open("wb") as file:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(half, to)
