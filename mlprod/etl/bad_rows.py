"""Rows that are not what the config says: with other fields than the header, or a value that is not of its column's type.

Promise: the first one ends the build, or each is left out and counted, or each is also written down with where it stands and why.
What is written is the same for any chunk size and number of workers; a sensitive value is only there as a hash.
Price: a chunk with a bad row is looked at value by value.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import Column, EtlConfig
from mlprod.etl.schema import Loose, cast_chunk, cast_strictly
from mlprod.etl.whole import whole
from mlprod.hashing import key_of_text, mix

Bad = dict[str, Any]  # {"where", "why", "values": {column: text or None}}


def sorted_out(etl: EtlConfig, columns: Sequence[Column], chunk: Loose) -> tuple[pa.Table, list[Bad]]:
    """Returns the good rows of a chunk in their declared types, and what is to be known of each bad one.

    Raises:
        DataError: there is a bad one and `etl.bad_rows` is "refuse".
    """
    if etl.bad_rows == "refuse":
        return cast_strictly(chunk, columns), []
    table, reasons = cast_chunk(chunk, columns)
    if not reasons:
        return table, []
    good = np.ones(chunk.num_rows, bool)
    good[list(reasons)] = False
    return table.filter(pa.array(good)), [_described(etl, columns, chunk, i, reasons[i]) for i in sorted(reasons)]


def _described(etl: EtlConfig, columns: Sequence[Column], chunk: Loose, i: int, why: str) -> Bad:
    values = {} if i in chunk.broken else {c.name: _shown(c, chunk.columns[c.name][i], etl.hash_seed) for c in columns}
    return {"where": chunk.where(i), "why": why, "values": values}


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
