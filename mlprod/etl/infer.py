"""The types of columns whose type the config leaves open (`auto`): found from every value of the source.

Promise: a column gets the first of int64, float64, bool, timestamp and string that its use allows and that holds all of its
values, wherever they stand: never the type of the rows that came first.
Price: the source is read once more, but for Parquet, which says its types.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import AUTO, Column, EtlConfig
from mlprod.etl import sources
from mlprod.etl.blocks import times_of
from mlprod.etl.extract import Reading, source_columns
from mlprod.etl.label import label_column
from mlprod.etl.schema import ARROW, FALSE, TEXT, TRUE, Loose, parse
from mlprod.etl.tasks import Tasks
from mlprod.validation import validate_etl

ANY = ("int64", "float64", "bool", "timestamp", "string")
NUMERIC, CATEGORICAL = ("int64", "float64", "bool"), ("int64", "bool", "string")


def allowed(column: Column) -> tuple[str, ...]:
    """Returns the types that a column's use allows, the narrowest first."""
    if column.role == "weight" or (column.role == "feature" and column.kind == "numeric"):
        return NUMERIC
    return CATEGORICAL if column.role == "feature" else ANY


def unknown(column: Column) -> str:
    """Returns the type of a column none of whose values says more; where a value is not of it, extraction tells which."""
    return "float64" if allowed(column) is NUMERIC else "string"


def holding(values: pa.Array | Sequence[Any], types: Sequence[str]) -> list[str]:
    """Returns those of `types` that hold every value; of what is missing, all do.

    Args:
        values: text of a CSV file, or Python objects.
    """
    if not isinstance(values, pa.Array) and all(value is None or isinstance(value, str) for value in values):
        values = pa.array(values, pa.string())
    if isinstance(values, pa.Array):
        text = values.drop_null()
        return [name for name in types if not len(text) or _text_is(text, name)]
    return [name for name in types if all(_is(value, name) for value in values)]


def _text_is(text: pa.Array, type_name: str) -> bool:
    """Returns whether all of string[B] is text of the type; B > 0."""
    if not _is(text[0].as_py(), type_name):  # most columns of another type are told by their first value
        return False
    if type_name in TEXT:
        if not pc.all(pc.match_substring_regex(text, f"^({TEXT[type_name]})$")).as_py():
            return False
        try:
            numbers = pc.cast(text, ARROW[type_name])
        except pa.ArrowException:  # beyond 64 bits, or with spaces around
            return all(_is(value, type_name) for value in text.to_pylist())
        return type_name == "int64" or not pc.any(pc.is_inf(numbers)).as_py()
    if type_name == "bool":
        return bool(pc.all(pc.is_in(pc.utf8_lower(text), pa.array(sorted(TRUE | FALSE)))).as_py())
    if type_name == "timestamp" and times_of(text) is not None:
        return True
    return all(_is(value, type_name) for value in text.to_pylist())


def _is(value: Any, type_name: str) -> bool:
    """Returns whether a value is missing or of the type as a source means it: 2.0 is no integer, True is no number."""
    if value is None or value != value:
        return True
    fraction = isinstance(value, float) or (isinstance(value, Decimal) and value.as_tuple().exponent != 0)
    if (fraction and type_name == "int64") or (isinstance(value, bool) and type_name in ("int64", "float64")):
        return False
    try:
        parse(value, type_name)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def first_fitting(column: Column, types: Sequence[str], *, there: bool) -> str:
    """Returns the type of a column whose values `types` hold; `there`: whether there is any value."""
    return next((name for name in allowed(column) if name in types), unknown(column)) if there else unknown(column)


def of_parts(reading: Reading, columns: Sequence[Column], parts: Sequence[Any]) -> dict[str, Any]:
    """Returns {column: [types that hold the values of some parts, whether there is any]}."""
    found = {c.name: (list(allowed(c)), False) for c in columns}
    for chunk in reading.chunks(parts):
        for name, (types, there) in found.items():
            values = _values(chunk, name)
            found[name] = holding(values, types), there or any_value(values)
    return {name: [types, there] for name, (types, there) in found.items()}


def _values(chunk: pa.Table | Loose, name: str) -> pa.Array | Sequence[Any]:
    return chunk.columns[name] if isinstance(chunk, Loose) else chunk[name].combine_chunks()


def any_value(values: pa.Array | Sequence[Any]) -> bool:
    """Returns whether any of the values is not missing."""
    if isinstance(values, pa.Array):
        return bool(values.null_count < len(values))
    return any(value is not None and value == value for value in values)


def with_types(etl: EtlConfig, types: Mapping[str, str]) -> EtlConfig:
    """Returns the config with the types that were found for its columns; `types`: by their names in the source."""
    return replace(etl, columns=tuple(replace(c, type=types.get(c.source or c.name, c.type)) for c in etl.columns))


def found_types(etl: EtlConfig, tasks: Tasks, reading: Reading) -> dict[str, str]:
    """Returns {column: its type} of the columns whose type the config leaves open, by their names in the source.

    Raises:
        DataError: the source cannot be read.
    """
    columns = [replace(c, name=c.source or c.name) for c in etl.columns if c.type == AUTO]
    if not columns:
        return {}
    told = sources.stored_types(reading.source)
    types = {c.name: told[c.name] for c in columns if c.name in told}
    left = [c for c in columns if c.name not in told]
    if left:
        as_text = replace(reading, columns=tuple(replace(c, type="string") for c in left))
        looks = tasks.run("infer", {f"{i:06d}": partial(of_parts, as_text, left, p) for i, p in enumerate(as_text.parts())})
        for c in left:
            parts = [look[c.name] for look in looks.values()]
            fitting = [name for name in allowed(c) if all(name in found for found, _ in parts)]
            types[c.name] = first_fitting(c, fitting, there=any(there for _, there in parts))
    return types


def resolved(etl: EtlConfig, tasks: Tasks, reading: Reading) -> tuple[EtlConfig, Reading, dict[str, str]]:
    """Returns the config with every type known, how its columns are read, and the types that were found.

    Raises:
        ConfigError: a column is not of a type that the config's other fields need.
    """
    types = found_types(etl, tasks, reading)
    etl = with_types(etl, types)
    if types:
        validate_etl(etl)
    return etl, replace(reading, columns=(*source_columns(etl), label_column(etl.label))), types
