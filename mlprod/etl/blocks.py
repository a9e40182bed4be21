"""A CSV file in parts that are read on their own, by pyarrow, several at once.

Promise: the parts hold the records of the file, each once, and what is read of them is what Python's csv module and
`schema.parse` make of it: a part that pyarrow could read otherwise, or not at all, is left to them. Where that cannot be known
of a file's quotes it is one part.
Price: a look at every quote of the file before (0.2 s a GB without any, 1 s with).
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mlprod.config import Column
from mlprod.etl.schema import ARROW, FALSE, NULLS, TRUE

QUOTE, NEWLINE, RETURN = ord('"'), ord("\n"), ord("\r")
PIECE_BYTES = 8 << 20  # looked at together
BOM = b"\xef\xbb\xbf"
YEAR_1 = -62_135_596_800_000_000  # in microseconds: the first that Python knows


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, stop) of a CSV file, whole records behind the header. `regular`: quotes enclose whole fields."""

    path: str
    start: int
    stop: int
    regular: bool
    quoted: bool


def cut(path: str, delimiter: str, part_bytes: int) -> list[Part]:
    """Returns the parts of a UTF-8 CSV file, about `part_bytes` each, without its header line; none where there are no rows."""
    size = os.path.getsize(path)
    if not size:
        return []
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = np.frombuffer(mapped, np.uint8)
        try:
            quoted, regular = _quotes(data, delimiter.encode())
            if not regular:
                return [Part(path, 0, size, False, True)]
            ends = [0, *_ends(data, part_bytes, quoted)]
        finally:
            del data  # or the mapping could not be closed
    return [Part(path, a, b, True, quoted) for a, b in pairwise(ends)][1:]


def _quotes(data: np.ndarray, delimiter: bytes) -> tuple[bool, bool]:
    """Returns whether uint8[N] has quotes, and whether each opens behind and closes before a field's edge or another quote."""
    edges = np.zeros(256, bool)
    edges[[NEWLINE, RETURN, QUOTE, *delimiter]] = True
    opening, found = True, False
    for start in range(0, len(data), PIECE_BYTES):
        at = np.flatnonzero(data[start : start + PIECE_BYTES] == QUOTE) + start
        if not len(at):
            continue
        found = True
        first = at[0 if opening else 1 :: 2]
        last = at[1 if opening else 0 :: 2]
        before = data[np.maximum(first - 1, 0)]
        behind = data[np.minimum(last + 1, len(data) - 1)]
        at_start = (first == 0) | ((first == len(BOM)) & (data[: len(BOM)].tobytes() == BOM))
        if not (edges[before] | at_start).all() or not (edges[behind] | (last == len(data) - 1)).all():
            return True, False
        opening ^= bool(len(at) % 2)
    return found, opening


def _ends(data: np.ndarray, part_bytes: int, quoted: bool) -> Iterator[int]:
    """Yields where the parts of regular uint8[N] end: behind a line's end that stands in no quotes. The first is the header's."""
    head = data[: 1 << 16].tobytes()
    blank = len(head) - len(head.removeprefix(BOM).lstrip(b"\r\n"))
    start, wanted = 0, blank + 1
    while start < len(data):
        end, odd = start, 0
        while end < len(data):
            piece = data[end : end + min(PIECE_BYTES, max(wanted, 1 << 12))]
            outside = ((np.cumsum(piece == QUOTE) + odd) % 2 == 0) if quoted else True
            breaks = np.flatnonzero((piece == NEWLINE) & outside)
            breaks = breaks[breaks + 1 + end - start >= wanted]
            if len(breaks):
                end += int(breaks[0]) + 1
                break
            odd = (odd + int(np.count_nonzero(piece == QUOTE))) % 2
            end += len(piece)
        yield end
        start, wanted = end, part_bytes


def read(part: Part, delimiter: str, header: Sequence[str], columns: Sequence[Column]) -> pa.Table | None:
    """Returns the columns of a regular part in their types; None where any of it must be looked at value by value."""
    with open(part.path, "rb") as file:
        file.seek(part.start)
        body = file.read(part.stop - part.start)
    if b"\0" in body or (any(c.type == "int64" for c in columns) and (b"0x" in body or b"0X" in body)):
        return None  # pyarrow takes hexadecimal numbers
    types = {c.name: pa.string() if c.type == "timestamp" else ARROW[c.type] for c in columns}
    try:
        table = pacsv.read_csv(
            pa.BufferReader(body),
            pacsv.ReadOptions(use_threads=False, block_size=len(body) + 1, column_names=list(header)),
            pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=part.quoted),
            pacsv.ConvertOptions(
                column_types=types, include_columns=list(types), null_values=sorted(NULLS), strings_can_be_null=True,
                true_values=_spelled(TRUE), false_values=_spelled(FALSE),
            ),
        )  # fmt: skip
    except pa.ArrowException:
        return None
    arrays = [_checked(table[c.name].combine_chunks(), c.type) for c in columns]
    return None if any(array is None for array in arrays) else pa.table(dict(zip(types, arrays, strict=True)))


def _spelled(words: frozenset[str]) -> list[str]:
    return sorted({spelled for word in words for spelled in (word, word.upper(), word.capitalize())})


def _checked(array: pa.Array, type_name: str) -> pa.Array | None:
    """Returns a column as `schema.cast` would make it, None where that would look at it more closely."""
    if type_name == "float64":
        values = array.fill_null(0.0) if array.null_count else array
        if not np.isfinite(values.to_numpy()).all():
            return None
        return pc.add(array, 0.0)  # -0.0
    return _times(array) if type_name == "timestamp" else array


def _times(text: pa.Array) -> pa.Array | None:
    """Returns ISO times, all with a zone or all without (UTC)."""
    for kind in (pa.timestamp("us"), ARROW["timestamp"]):
        try:
            times = pc.cast(text, kind)
        except pa.ArrowException:
            continue
        least = pc.min(pc.cast(times, pa.timestamp("us")))
        early = least.is_valid and least.cast(pa.int64()).as_py() < YEAR_1
        return None if early else pc.cast(times, ARROW["timestamp"])
    return None
