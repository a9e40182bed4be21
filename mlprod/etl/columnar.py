"""Rows out of Parquet files and of JSON lines.

Promise: a Parquet value of the declared type, or of one that holds no other values, comes as it is; all else goes value by value
like text and Python objects of other sources, so that a wrong one is told with its file and row.
Price: JSON lines pass through Python (about 200,000 rows/s and core).
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlprod import documents
from mlprod.config import Column
from mlprod.errors import DataError
from mlprod.etl.files import (
    ALWAYS_BYTES,
    TIMES,
    bounded_lines,
    files_of,
    open_plain,
    partitions,
    shown,
    told_of_file,
)
from mlprod.etl.schema import ARROW, Loose, cast, require, without_nan

NAMED = 1000  # JSON lines whose names are those of the columns
ALWAYS_ROWS = 1 << 24  # that any Parquet file may have; more are at most `TIMES` a byte of it
_DECODER = json.JSONDecoder(object_pairs_hook=documents.once)  # of two values of one name, none is the row's


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a Parquet file; `first`: of its rows in the file."""

    path: str
    group: int
    first: int


@dataclass(frozen=True, slots=True)
class Lines:
    """Bytes [start, stop) of a file: whole lines."""

    path: str
    start: int
    stop: int


# ---- Parquet -----------------------------------------------------------------------------------------------------------


def _open(path: str) -> pq.ParquetFile:
    with _told_of_parquet(path, f"{path} cannot be read as Parquet"):
        return pq.ParquetFile(path)


@contextmanager
def _told_of_parquet(path: str, told: str) -> Iterator[None]:
    """Turns what a Parquet file refuses, or is not, into a DataError."""
    with told_of_file(path):
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # of the machine: the file itself may be good
                raise
            raise DataError(f"{told}: {' '.join(str(error).split())[:200]}") from error


def _planned(name: str) -> pq.ParquetFile:
    """Returns an opened file; raises DataError where its rows or bytes are more than a file of its size can hold in earnest."""
    file = _open(name)
    metadata, size = file.metadata, Path(name).stat().st_size
    unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    for what, number, most in (("rows", metadata.num_rows, ALWAYS_ROWS), ("bytes unpacked", unpacked, ALWAYS_BYTES)):
        if number > max(TIMES * size, most):
            told = f"{shown(name)} has {size:,} bytes and says that it has {number:,} {what}, more than {TIMES} times as many"
            raise DataError(f"{told}; if it is what it should be, write it anew, without compression and dictionaries")
    return file


def num_rows(path: str) -> int:
    """Returns how many rows the Parquet files have that a path names."""
    return sum(_planned(name).metadata.num_rows for name in files_of(path))


def column_names(path: str) -> list[str]:
    """Returns the columns of a Parquet file, and those that its folders name."""
    return list(dict.fromkeys([*_open(path).schema_arrow.names, *partitions(path)]))


def stored_types(path: str) -> dict[str, str]:
    """Returns {column: type} of the columns for which the schemas of all files say the same type."""
    found: dict[str, str] = {}
    schemas = [_open(name).schema_arrow for name in files_of(path)]
    for field in schemas[0]:
        types = {type_of(schema.field(field.name).type) for schema in schemas if field.name in schema.names}
        if len(types) == 1 and "" not in types:
            found[field.name] = types.pop()
    return found


def declared_types(path: str) -> dict[str, str]:
    """Returns {column: its Arrow type} of a Parquet file; of those that its folders name, text."""
    found = {field.name: str(field.type) for field in _open(path).schema_arrow}
    return found | dict.fromkeys(partitions(path), "string")


def type_of(kind: pa.DataType) -> str:
    """Returns the type that holds every value of an Arrow type, "" where its values must be looked at."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = {
        "int64": pa.types.is_integer, "float64": pa.types.is_floating, "bool": pa.types.is_boolean,
        "timestamp": lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind),
    }  # fmt: skip
    return next((name for name, test in tests.items() if test(kind)), "")


def row_groups(path: str, names: Sequence[str]) -> list[Any]:
    """Returns the row groups of the Parquet files that a path names; raises DataError where one lacks a column."""
    found = []
    for name in files_of(path):
        file, first = _planned(name), 0
        metadata = file.metadata
        for column in names:
            require(column, [*file.schema_arrow.names, *partitions(name)], name)
        for group in range(metadata.num_row_groups):
            found.append(RowGroup(name, group, first))
            first += metadata.row_group(group).num_rows
    return found


def _batches(part: RowGroup, names: Sequence[str], chunk_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields (first row in the file, the columns `names`) of a row group, at most `chunk_rows` rows at a time."""
    file, first, folders = _open(part.path), part.first, partitions(part.path)
    inside = [name for name in names if name in file.schema_arrow.names]
    with _told_of_parquet(part.path, f"{part.path}, row group {part.group} cannot be read"):
        for batch in file.iter_batches(chunk_rows, row_groups=[part.group], columns=inside, use_threads=False):
            found = [batch[name] if name in inside else _repeated(folders[name], batch.num_rows) for name in names]
            yield first, pa.RecordBatch.from_arrays(found, list(names))
            first += batch.num_rows


def _repeated(text: str | None, num_rows: int) -> pa.DictionaryArray:
    """Returns a column of one text."""
    return pa.DictionaryArray.from_arrays(np.zeros(num_rows, np.int32), pa.array([text], pa.string()))


def typed(part: RowGroup, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    """Yields the columns of a row group in their types, or as Python objects where a value may not be of its type."""
    names = [c.name for c in columns]
    for first, batch in _batches(part, names, chunk_rows):
        arrays = [as_column(array, c) for array, c in zip(batch.columns, columns, strict=True)]
        if any(array is None for array in arrays):
            yield _as_python(part.path, first, batch)
        else:
            yield pa.table(dict(zip(names, arrays, strict=True)))


def _as_python(path: str, first: int, batch: pa.RecordBatch) -> Loose:
    columns = {name: objects(array) for name, array in zip(batch.schema.names, batch.columns, strict=True)}
    return Loose(columns, batch.num_rows, partial(row_of_file, path, first), {})


def objects(array: pa.Array) -> list[Any]:
    """Returns a column's values as Python objects."""
    if pa.types.is_timestamp(array.type):
        array = pc.cast(array, pa.timestamp("us", array.type.tz), safe=False)  # Python has no nanoseconds
    values: list[Any] = array.to_pylist()
    return values


def row_of_file(path: str, first: int, i: int) -> str:
    """Returns where row i stands behind the `first` rows of a file."""
    return f"{path} row {first + i + 1}"


def as_column(array: pa.Array, column: Column) -> pa.Array | None:
    """Returns a column in its declared type, of lists as texts; None where a value may not be of it."""
    kind = array.type
    if column.kind != "list" or not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return as_declared(array, column.type)
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_string(kind.value_type)) or pc.list_flatten(array).null_count:
        return None  # value by value
    words = pc.cast(array, pa.list_(pa.string()))
    held = pc.any(pc.match_substring(pc.list_flatten(words), column.separator)).as_py()
    return None if held else as_declared(pc.binary_join(words, column.separator), "string")


def as_declared(array: pa.Array, type_name: str) -> pa.Array | None:
    """Returns a column in its declared type, None where a value may not be of it."""
    if pa.types.is_dictionary(array.type):
        if pa.types.is_string(array.type.value_type) and type_name != "string":  # text: each one once
            values, bad = cast(array.dictionary.to_pylist(), type_name)
            return None if bad else values.take(array.indices)
        array = array.dictionary_decode()
    kind, wanted = array.type, ARROW[type_name]
    if pa.types.is_null(kind):
        return pa.nulls(len(array), wanted)
    try:
        if type_name == "timestamp" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            return pc.cast(pc.cast(array, pa.timestamp("us", getattr(kind, "tz", None)), safe=False), wanted)
        if type_name == "float64" and (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            values = without_nan(pc.cast(array, wanted))
            return None if np.isinf(pc.fill_null(values, 0.0).to_numpy()).any() else values
        if type_name == "float64" and pa.types.is_decimal(kind):  # by its digits: a cast of its own rounds twice
            return without_nan(pc.cast(pc.cast(array, pa.string()), wanted))
        if type_name == "string" and (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
            text = pc.cast(array, wanted)
            return None if pc.any(pc.match_substring(text, "\0")).as_py() else text
        if (type_name == "int64" and pa.types.is_integer(kind)) or (type_name == "bool" and pa.types.is_boolean(kind)):
            return pc.cast(array, wanted)
    except pa.ArrowException:
        return None
    return None


# ---- JSON lines --------------------------------------------------------------------------------------------------------


def lines(path: str, part_bytes: int) -> list[Any]:
    """Returns the parts of a file of lines, about `part_bytes` each; raises DataError where a line has no end."""
    with open(path, "rb") as file:
        size, ends = file.seek(0, 2), [0]
        while ends[-1] < size:
            file.seek(min(ends[-1] + part_bytes, size) - 1)
            next(bounded_lines(file, path), b"")
            ends.append(file.tell())
    return [Lines(path, start, stop) for start, stop in pairwise(ends)]


def loose(part: RowGroup | Lines, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    """Yields the columns `names` of a part as Python objects."""
    if isinstance(part, RowGroup):
        for first, batch in _batches(part, names, chunk_rows):
            yield _as_python(part.path, first, batch)
        return
    with told_of_file(part.path), open(part.path, "rb") as file:
        file.seek(part.start)
        rows = list[tuple[int, dict[str, Any] | str]]()
        for number, line in enumerate(file.read(part.stop - part.start).split(b"\n"), 1):
            if line.strip():
                rows.append((number, _object(line.removeprefix(b"\xef\xbb\xbf") if not part.start else line)))
    for i in range(0, len(rows), chunk_rows):
        yield _as_columns(part, names, rows[i : i + chunk_rows])


def first_lines(path: str, names: Sequence[str], num_rows: int) -> Loose | None:
    """Returns the first rows of a file of JSON lines, packed or not; None where there are none."""
    with told_of_file(path), open_plain(path, "utf-8") as plain, io.BufferedReader(plain) as file:
        lines = list(islice((pair for pair in enumerate(bounded_lines(file, path), 1) if pair[1].strip()), num_rows))
    rows = [(number, _object(line.removeprefix(b"\xef\xbb\xbf"))) for number, line in lines]
    return _as_columns(Lines(path, 0, 0), names, rows) if rows else None


def line_names(path: str) -> list[str]:
    """Returns the names in the first `NAMED` objects of a file of JSON lines, in the order in which they come."""
    with told_of_file(path), open_plain(path, "utf-8") as plain, io.BufferedReader(plain) as file:
        first = islice((line for line in bounded_lines(file, path) if line.strip()), NAMED)
        objects = [_object(line.removeprefix(b"\xef\xbb\xbf")) for line in first]
    return list(dict.fromkeys(name for found in objects if isinstance(found, dict) for name in found))


def _object(line: bytes) -> dict[str, Any] | str:
    """Returns a line's JSON object, or why there is none."""
    try:
        found = _DECODER.decode(line.decode())
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    except documents.Twice as error:
        return f"names {error}"
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({getattr(error, 'msg', type(error).__name__)})"
    return found if isinstance(found, dict) else "is no JSON object"


def _as_columns(part: Lines, names: Sequence[str], rows: Sequence[tuple[int, dict[str, Any] | str]]) -> Loose:
    broken = {i: row for i, (_, row) in enumerate(rows) if isinstance(row, str)}
    objects = [row if isinstance(row, dict) else {} for _, row in rows]
    columns = {name: [None if i in broken else row.get(name) for i, row in enumerate(objects)] for name in names}
    return Loose(columns, len(rows), partial(_line_of_part, part, [number for number, _ in rows]), broken)


def _line_of_part(part: Lines, numbers: Sequence[int], i: int) -> str:
    with told_of_file(part.path), open(part.path, "rb") as file:
        before = file.read(part.start).count(b"\n")  # a wrong line ends a build: once
    return f"{part.path} line {before + numbers[i]}"
