"""Columns of a source that are not what they were: new ones, missing ones, and those of another type.

Promise: told with the column, the file (or table) and both types, before a row is read.
Price: the header, schema or first lines of every file.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import singledispatch
from typing import Any

from mlprod.config import CsvSource, JsonLinesSource, ParquetSource, SqlSource
from mlprod.errors import DataError
from mlprod.etl import columnar, text_files
from mlprod.etl.connection import named
from mlprod.etl.csv_files import csv_places
from mlprod.etl.files import files_of, shown
from mlprod.etl.schema import require
from mlprod.etl.sql import declared_types

Schema = Mapping[str, list[str]]  # column -> its types, see `schema_of`
Types = Mapping[str, str]  # column -> its type, in the source's own words; "" where nothing says it


@singledispatch
def places(source: Any) -> Iterator[tuple[str, Types]]:
    """Yields (file or table, {column: type}) of all that a source reads."""
    raise AssertionError(f"no columns of {type(source).__name__}")


@places.register
def _(source: SqlSource) -> Iterator[tuple[str, Types]]:
    yield named(source), declared_types(source)


@places.register
def _(source: CsvSource) -> Iterator[tuple[str, Types]]:
    for path in files_of(source.path):
        yield shown(path), dict.fromkeys(csv_places(path, source.delimiter, (), source.encoding)[0], "")


@places.register
def _(source: ParquetSource) -> Iterator[tuple[str, Types]]:
    for path in files_of(source.path):
        yield shown(path), columnar.declared_types(path)


@places.register
def _(source: JsonLinesSource) -> Iterator[tuple[str, Types]]:
    for path in files_of(source.path):
        yield shown(path), dict.fromkeys(columnar.line_names(path), "")


@places.register
def _(source: text_files.Named) -> Iterator[tuple[str, Types]]:
    yield source.source.path, dict.fromkeys(text_files.NAMES, "")


def joined(before: Schema, new: Schema) -> Schema:
    """Returns the columns that either of two schemas has, with the types of both."""
    both = {name: {*before.get(name, [MISSING]), *new.get(name, [MISSING])} for name in sorted({*before, *new})}
    return {name: sorted(types) for name, types in both.items()}


def schema_of(source: Any) -> Schema:
    """Returns {column: its types, sorted} of a source, as a manifest keeps them; `MISSING` where not every place has it."""
    found = list(places(source))
    names = sorted({name for _, types in found for name in types})
    return {name: sorted({types.get(name, MISSING) for _, types in found}) for name in names}


def lacking(source: Any, names: Sequence[str], known: Collection[str]) -> dict[str, list[str]]:
    """Returns {file: those of the columns that it has not} of the files that lack any; a database must have all.

    Args:
        known: columns that a version before has.

    Raises:
        DataError: no file has one of the columns, nor is it known.
    """
    if not isinstance(source, CsvSource | ParquetSource):  # a field that JSON lines lack is missing anyway
        return {}
    found = {place: [name for name in names if name not in types] for place, types in places(source)}
    for name in names:
        if name not in known and all(name in missing for missing in found.values()):
            require(name, sorted({there for _, types in places(source) for there in types}), "the source")
    return {place: missing for place, missing in found.items() if missing}


MISSING = "(missing)"  # in the types of a column that some file lacks


def check(source: Any, before: Schema, version: int, *, sparse: bool) -> None:
    """Raises DataError for the first column of a source that is not what it was for a version.

    Args:
        before: see `schema_of`.
        sparse: whether a column that is not seen may be there further on, as in JSON lines.
    """
    widen = "or set config.etl.drift='widen'"
    for place, types in places(source):
        for name, kind in types.items():
            if name not in before:
                raise DataError(
                    f"{place}: column {name!r}{_of(kind)} is new since version {version}; add it to config.etl.columns and build "
                    f"anew, {widen} to leave it in the source"
                )
            if kind not in before[name]:
                raise DataError(
                    f"{place}: column {name!r} is {kind}, for version {version} it was {' or '.join(before[name])}; mend the "
                    f"source, {widen} to take the values that are of the old type"
                )
        lacking = [name for name, kinds in before.items() if name not in types and MISSING not in kinds and not sparse]
        if lacking:
            raise DataError(
                f"{place}: column {lacking[0]!r}{_of(before[lacking[0]][0])} of version {version} is missing; mend the source, "
                f"{widen} to do without it"
            )


def _of(kind: str) -> str:
    return f" ({kind})" if kind else ""
