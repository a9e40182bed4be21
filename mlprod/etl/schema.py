"""Types: loose values (Python objects of a database, text of a CSV) to Arrow columns, and Arrow columns to hashes and numpy.

Promise: a value is either of its column's declared type or reported with where it stands; nothing is cast in silence. NaN
is missing, -0.0 is 0.0, an infinity is refused, times are UTC.
Price: columns of clean values cost one Arrow conversion; only a column that fails is looked at value by value.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column
from mlprod.errors import DataError, QuotingError, like, nearest
from mlprod.hashing import ByteValues, FixedValues, Values, float_words
from mlprod.made import RawColumn

_JOINED = re.compile(r"[,;|\t]")  # in a column's name: it is those of several, cut by another delimiter
ARROW = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
# The text that is a number, and the Python types that Arrow converts as `parse` does. All else goes value by value, so that
# what becomes of a value never depends on those beside it.
TEXT = {"int64": r"\s*[+-]?[0-9]+\s*", "float64": r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*|[nN]a[nN]"}
DIRECT: dict[str, tuple[type, ...]] = {
    "int64": (int,),
    "float64": (int, float),
    "string": (str,),
    "bool": (bool,),
    "timestamp": (dt.datetime,),
}
FLOAT32_MAX = float(np.finfo(np.float32).max)
NULLS = frozenset({"", "NA"})  # texts that are missing values
TRUE, FALSE = frozenset({"1", "t", "true", "yes"}), frozenset({"0", "f", "false", "no"})


@dataclass(frozen=True, slots=True)
class Loose:
    """A chunk of rows as a source gives them. `columns`: name -> values, equally long; `where(i)`: where row i stands;
    `broken`: {row: why} of rows that the source itself could not read whole (their values are None)."""

    columns: Mapping[str, Sequence[Any]]
    num_rows: int
    where: Callable[[int], str]
    broken: Mapping[int, str]


def parse(value: Any, type_name: str) -> Any:
    """Returns one loose value as the declared type, None where it is missing.

    Raises:
        ValueError: the value is not of that type.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict):
        raise ValueError("a nested value")
    if type_name == "string":
        if isinstance(value, bytes):
            raise ValueError("bytes, not text")
        text = value if isinstance(value, str) else str(value)
        if "\0" in text:
            raise ValueError("holds a NUL character")
        return text
    if type_name == "int64":
        return _parse_int(value)
    if type_name == "float64":
        return _parse_float(value)
    if type_name == "bool":
        return _parse_bool(value)
    return _parse_time(value)


def constant(text: str, kind: pa.DataType, where: str) -> pa.Scalar:
    """Returns a config's text as a value of a column's type; `where`: what it is compared with, for messages.

    Raises:
        DataError: it is none.
    """
    type_name = next(key for key, value in ARROW.items() if value == kind)
    try:
        return pa.scalar(parse(text, type_name), kind)
    except (ValueError, TypeError) as error:
        told = f"{where} is {type_name}, and {{}} is not"
        raise QuotingError(told.format(repr(text)), told.format("what the config compares it with")) from error


def _parse_int(value: Any) -> int:
    if isinstance(value, str) and not re.fullmatch(TEXT["int64"], value):
        raise ValueError("not an integer")
    number = int(value) if isinstance(value, str) else value
    if number != int(number) or not -(1 << 63) <= number < 1 << 63:
        raise ValueError("not a 64-bit integer")
    return int(number)


def _parse_float(value: Any) -> float | None:
    if isinstance(value, str) and not re.fullmatch(TEXT["float64"], value):
        raise ValueError("not a number")
    number = float(value)
    if math.isinf(number):
        raise ValueError("not finite")
    return None if math.isnan(number) else number


def _parse_bool(value: Any) -> bool:
    text = str(value).lower()
    if text not in TRUE | FALSE:
        raise ValueError("neither true nor false")
    return text in TRUE


def _parse_time(value: Any) -> dt.datetime:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)
    time = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(value)
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)


def _fast(values: Sequence[Any], type_name: str) -> pa.Array | None:
    """Converts a whole clean column at once; None when it holds anything that must be looked at value by value."""
    kinds = set(map(type, values)) - {type(None)}
    try:
        if kinds == {str} and type_name in TEXT:
            text = pa.array(values, pa.string())
            if not pc.all(pc.match_substring_regex(text, f"^({TEXT[type_name]})$")).as_py():
                return None
            array = pc.cast(text, ARROW[type_name])
        elif kinds <= set(DIRECT[type_name]):
            array = pa.array(values, ARROW[type_name])
        else:
            return None
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None
    if type_name == "string" and pc.any(pc.match_substring(array, "\0")).as_py():
        return None
    if type_name == "float64" and pc.any(pc.is_inf(array)).as_py():
        return None
    return array


def without_nan(array: pa.Array) -> pa.Array:
    """Returns a column with NaN as null and -0.0 as 0.0; columns of other types as they are."""
    if not pa.types.is_floating(array.type):
        return array
    return pc.add(pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array), 0.0)


def cast(values: Sequence[Any], type_name: str) -> tuple[pa.Array, dict[int, str]]:
    """Returns (the Arrow column, {row: why its value is not of the type}); a bad value is null in the column."""
    array, bad = _fast(values, type_name), {}
    if array is None:
        parsed = []
        for i, value in enumerate(values):
            try:
                parsed.append(parse(value, type_name))
            except (ValueError, TypeError, OverflowError):
                parsed.append(None)
                bad[i] = f"is not {type_name}"
        array = pa.array(parsed, ARROW[type_name])
    return without_nan(array), bad


def _of_lists(values: Sequence[Any], separator: str) -> tuple[pa.Array, dict[int, str]]:
    """Returns (the text of each list, {row: why there is none}): see `text_of_list`; what is a text already stays as it is."""
    texts, bad = list(values), {}
    for i, value in enumerate(values):
        if isinstance(value, list):
            try:
                texts[i] = text_of_list(value, separator)
            except ValueError as error:
                texts[i], bad[i] = None, str(error)
    array, others = cast(texts, "string")
    return array, {**others, **bad}


def text_of_list(values: Sequence[Any], separator: str) -> str:
    """Returns values of text, whole numbers and bools as a text with the separator between them; of None, which is missing, none.

    Raises:
        ValueError: one is of another type, or holds the separator.
    """
    words = ["" if value is None else str(int(value)) if isinstance(value, bool) else str(value) for value in values]
    if not all(isinstance(value, str | int | None) for value in values):
        raise ValueError("has a value that is no text, whole number or bool")
    if any(separator in word for word in words):
        raise ValueError(f"has a value that holds the separator {separator!r}; set another in config.etl.columns")
    return separator.join(words)


def with_nulls(chunk: pa.Table | Loose, columns: Sequence[Column]) -> pa.Table | Loose:
    """Returns a chunk with more columns, in which every value is missing."""
    if isinstance(chunk, Loose):
        return replace(chunk, columns={**chunk.columns, **{c.name: [None] * chunk.num_rows for c in columns}})
    for c in columns:
        chunk = chunk.append_column(c.name, pa.nulls(chunk.num_rows, ARROW[c.type]))
    return chunk


def shown(column: Column, value: Any) -> str:
    """Returns a value as it may stand in a message: a sensitive column's never does."""
    return "a value (hidden: the column is sensitive)" if column.sensitive else repr(value)


def cast_chunk(chunk: Loose, columns: Sequence[Column]) -> tuple[pa.Table, dict[int, str]]:
    """Returns (table of `columns` in their declared types, {row: reason} of rows with a value that is not of its type)."""
    arrays, reasons = [], dict(chunk.broken)
    for column in columns:
        values = chunk.columns[column.name]
        array, bad = _of_lists(values, column.separator) if column.kind == "list" else cast(values, column.type)
        arrays.append(array)
        for i, why in bad.items():
            reasons.setdefault(i, f"column {column.name!r}: {shown(column, values[i])} {why}")
    return pa.table(dict(zip([c.name for c in columns], arrays, strict=True))), reasons


def cast_strictly(chunk: Loose, columns: Sequence[Column]) -> pa.Table:
    """Returns the chunk in the declared types.

    Raises:
        DataError: the first row with a value of another type, with its file and line (or table and row).
    """
    table, reasons = cast_chunk(chunk, columns)
    if reasons:
        first = min(reasons)
        way = "mend the line" if first in chunk.broken else "mend the value, or declare another type in config.etl.columns"
        raise DataError(f"{chunk.where(first)}: {reasons[first]}; {way}")
    return table


def require(name: str, known: Sequence[str], where: str) -> None:
    """Raises DataError unless `name` is among the column names `known` of `where`: a file without a header has a row there."""
    if name not in known:
        way = "; it has one column: is config.etl.source.delimiter right?" if len(known) == 1 and _JOINED.search(known[0]) else ""
        told = f"{where} has no column {name!r}"
        raise QuotingError(f"{told}{nearest(name, known)}{way}", f"{told}{like(name, known)}{way}")


def combined(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns a column as one Arrow array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def hashable(column: pa.ChunkedArray | pa.Array) -> Values:
    """Returns an Arrow column as words or bytes for `hashing.hash_columns`, null values included."""
    array = combined(column)
    valid = np.asarray(pc.is_valid(array))
    if pa.types.is_string(array.type):
        filled = pc.fill_null(array, "")
        offsets = np.frombuffer(filled.buffers()[1], np.int32)[filled.offset : filled.offset + len(filled) + 1].astype(np.int64)
        data = filled.buffers()[2]
        return ByteValues(np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), offsets, valid)
    if pa.types.is_floating(array.type):
        return FixedValues(float_words(np.asarray(pc.fill_null(array, 0.0))), valid)
    if pa.types.is_timestamp(array.type):
        array = pc.multiply(pc.cast(array, pa.int64()), 1000)  # nanoseconds
    words = np.asarray(pc.fill_null(pc.cast(array, pa.int64()), 0)).astype(np.int64)
    return FixedValues(words.view(np.uint64), valid)


def raw_column(column: pa.ChunkedArray | pa.Array) -> RawColumn:
    """Returns an Arrow column as numpy values [B] and their validity, for `features.apply`."""
    array = combined(column)
    valid = np.asarray(pc.is_valid(array))
    if pa.types.is_string(array.type):
        found = pc.dictionary_encode(array)
        codes = np.asarray(pc.fill_null(found.indices, 0))
        words = np.asarray(found.dictionary, dtype=np.str_) if len(found.dictionary) else np.array([""])  # of nothing but nulls
        return RawColumn(values=words, valid=valid, codes=codes)
    if pa.types.is_timestamp(array.type):
        array = pc.cast(array, pa.int64())
    zero = False if pa.types.is_boolean(array.type) else 0
    return RawColumn(values=np.asarray(pc.fill_null(array, zero)), valid=valid)


def arrow_column(raw: RawColumn) -> pa.Array:
    """Returns a raw column as Arrow has it."""
    values = raw.values if raw.codes is None else raw.values[raw.codes]
    return pa.array(values, mask=~raw.valid)


def beyond_float32(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns bool[B]: where a numeric value is too large for the float32 in which features are stored."""
    raw = raw_column(column)
    return raw.valid & (np.abs(raw.values.astype(np.float64)) > FLOAT32_MAX)
