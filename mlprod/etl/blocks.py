"""A CSV file in parts that are read on their own, by pyarrow, several at once.

Promise: the parts hold the records of the file, each once, and what is read of them is what Python's csv module and
`schema.parse` make of it: a part that pyarrow could read otherwise, or not at all, is left to them. Where that cannot be known
of a file's quotes it is one part.
Price: a look at every quote of the file before.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mlprod.config import Column
from mlprod.etl.files import LONGEST_LINE, endless
from mlprod.etl.schema import ARROW, FALSE, NULLS, TRUE

QUOTE, NEWLINE, RETURN = ord('"'), ord("\n"), ord("\r")
PIECE_BYTES = 1 << 20  # looked at together
LINE_BYTES = 1 << 12  # in which a line's end is looked for at first
BOM = b"\xef\xbb\xbf"
YEAR_1 = -62_135_596_800_000_000  # in microseconds: the first that Python knows


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, stop) of a CSV file, whole records behind the header.

    Not `regular`, where quotes may not enclose whole fields: the whole file, header included, `stop` -1.
    """

    path: str
    start: int
    stop: int
    regular: bool
    quoted: bool


def cut(path: str, delimiter: str, part_bytes: int) -> list[Part]:
    """Returns the parts of a UTF-8 CSV file, about `part_bytes` each, without its header line; none where there are no rows.

    Raises:
        DataError: a record is longer than any should be, as behind a quote that is never closed.
    """
    size = os.path.getsize(path)
    if not size:
        return []
    if len(delimiter.encode()) > 1:  # pyarrow's are of one byte
        return [Part(path, 0, -1, False, True)]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        spans, quotes = _looked_at(mapped, delimiter.encode(), part_bytes)
    if any(b - a > part_bytes + LONGEST_LINE for a, b in spans):
        raise endless(path)
    if not all(quotes):
        return [Part(path, 0, -1, False, True)]
    return [Part(path, a, b, True, found == "quoted") for (a, b), found in zip(spans, quotes, strict=True)][1:]


def _looked_at(mapped: mmap.mmap, delimiter: bytes, part_bytes: int) -> tuple[list[tuple[int, int]], list[str]]:
    """Returns the parts of a file, the header's first, and what `_quotes` says of each. No array is left over the mapping."""
    data = np.frombuffer(mapped, np.uint8)
    spans = list(pairwise([0, *_ends(data, part_bytes)]))
    with ThreadPoolExecutor() as pool:
        return spans, list(pool.map(partial(_quotes, data, delimiter), spans))


def _ends(data: np.ndarray, part_bytes: int) -> Iterator[int]:
    """Yields where the parts of uint8[N] end: behind a line's end that stands in no quotes. The first is the header's."""
    head = data[: 1 << 16].tobytes()
    blank = len(head) - len(head.removeprefix(BOM).lstrip(b"\r\n"))
    start, wanted = 0, blank + 1
    while start < len(data):
        end = min(start + wanted - 1, len(data))  # the last byte that must be in the part
        odd = _count(data, start, end) % 2
        while end < len(data):
            piece = data[end : end + LINE_BYTES]
            inside = (np.cumsum(piece == QUOTE) + odd) % 2 == 1
            breaks = np.flatnonzero((piece == NEWLINE) & ~inside)
            if len(breaks):
                end += int(breaks[0]) + 1
                break
            odd = int(inside[-1])
            end += len(piece)
        yield end
        start, wanted = end, part_bytes


def _count(data: np.ndarray, start: int, stop: int) -> int:
    """Returns how many quotes there are in a range."""
    pieces = range(start, stop, PIECE_BYTES)
    return sum(int(np.count_nonzero(data[a : min(a + PIECE_BYTES, stop)] == QUOTE)) for a in pieces)


def _quotes(data: np.ndarray, delimiter: bytes, span: tuple[int, int]) -> str:
    """Returns "none" or "quoted" where each quote of a part opens behind or closes before a field's edge or another; else ""."""
    edges = np.zeros(256, bool)
    edges[[NEWLINE, RETURN, QUOTE, *delimiter]] = True
    opening, found = True, False
    for a in range(*span, PIECE_BYTES):
        at = np.flatnonzero(data[a : min(a + PIECE_BYTES, span[1])] == QUOTE) + a
        first, last = at[0 if opening else 1 :: 2], at[1 if opening else 0 :: 2]
        at_start = (first == 0) | ((first == len(BOM)) & (data[: len(BOM)].tobytes() == BOM))
        before, behind = data[np.maximum(first - 1, 0)], data[np.minimum(last + 1, len(data) - 1)]
        if not (edges[before] | at_start).all() or not (edges[behind] | (last == len(data) - 1)).all():
            return ""
        opening ^= bool(len(at) % 2)
        found = found or len(at) > 0
    return ("quoted" if found else "none") if opening else ""


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
    return times_of(array) if type_name == "timestamp" else array


def times_of(text: pa.Array) -> pa.Array | None:
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
