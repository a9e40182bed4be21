"""A sample of a source: rows from all over it, with types that all of them have.

Promise: the same rows for the same source; a small source is read whole.
Price: up to `ROWS` rows as Python objects; of a large CSV file a look at its quotes. Of a query, a table without an integer
key, and of packed or remote files, it is the first rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from mlprod.config import Column, CsvSource, SqlSource
from mlprod.errors import DataError
from mlprod.etl import infer, ranges, sources
from mlprod.etl.files import files_of, is_plain
from mlprod.etl.schema import Loose, cast, text_of_list
from mlprod.etl.sql import sql_count
from mlprod.store import is_remote

SEPARATOR = "|"  # of lists
ROWS, PLACES = 100_000, 50  # looked at; places of a large source that they come from


@dataclass(frozen=True)
class Sample:
    """Some rows. `rows`: the columns in their types, lists as texts; `whole`: these are all there are."""

    rows: pa.Table
    types: dict[str, str]
    whole: bool
    num_rows: int  # of the source, about
    lists: dict[str, int] = field(default_factory=dict)  # columns of lists -> values of the longest one
    nested: frozenset[str] = frozenset()  # columns of other nested values, which are null in `rows`


def sample_of(source: Any, names: Sequence[str], words: str = "") -> Sample:
    """Returns rows of a source; `words`: a column that stays text where yes and no are written in words.

    Raises:
        DataError: it cannot be read, or has no rows.
    """
    values: dict[str, list[Any]] = {name: [] for name in names}
    about = _about(source)
    whole = about <= ROWS
    for chunk in _first(source, names) if whole else _everywhere(source, names, about):
        for name in names:
            values[name] += _objects(chunk, name)
    found = len(values[names[0]])
    if not found:
        raise DataError("the source has no rows to learn from")
    lists, nested = dict[str, int](), set[str]()
    for name, column in values.items():
        if any(isinstance(value, list | dict) for value in column):
            try:
                values[name] = [None if value is None else text_of_list(_listed(value), SEPARATOR) for value in column]
                lists[name] = max(len(value) for value in column if value is not None)
            except ValueError:
                values[name] = [None] * found
                nested.add(name)
    types = {name: _type(column) for name, column in values.items()}
    if types.get(words) == "bool" and any(isinstance(value, str) for value in values[words]):
        types[words] = "string"
    arrays = {name: cast(column, types[name])[0] for name, column in values.items()}
    size = max(about, found) if not whole else found
    return Sample(pa.table(arrays), types, whole and found < ROWS, size, lists, frozenset(nested))


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("no list")
    return value


def _about(source: Any) -> int:
    if isinstance(source, SqlSource):
        return sql_count(source)
    return sources.extent(source)[2]


def _everywhere(source: Any, names: Sequence[str], about: int) -> Iterator[pa.Table | Loose]:
    """Yields the first rows of parts that lie all over the source; those of the source where it has no such parts, or where
    nearly all of them are empty, as ranges of a key with a wide gap are."""
    each, columns = ROWS // PLACES, [Column(name=name, type="string") for name in names]
    readable, parts = _places(source, names, about, each)
    found = [chunk for part in parts for chunk in _some(sources.read(readable, part, columns, each), each)]
    yield from found if sum(chunk.num_rows for chunk in found) >= 2 * each else _first(source, names)


def _places(source: Any, names: Sequence[str], about: int, each: int) -> tuple[Any, list[Any]]:
    """Returns a source and up to `PLACES` parts of it that can be read on their own, as it is; none where it has no such."""
    if isinstance(source, SqlSource):
        return (source, []) if source.query else ranges.spread(source, about, each, PLACES)
    encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
    if any(is_remote(name) or not is_plain(name, encoding) for name in files_of(source.path)):
        return source, []
    parts = sources.parts(source, names, each)
    step = max(len(parts) / PLACES, 1.0)
    return source, [parts[int(i * step)] for i in range(min(PLACES, len(parts)))]


def _some(chunks: Iterator[pa.Table | Loose], rows: int) -> Iterator[pa.Table | Loose]:
    chunk = next(chunks, None)
    if chunk is not None and chunk.num_rows:
        yield chunk if isinstance(chunk, Loose) else chunk.slice(0, rows)


def _first(source: Any, names: Sequence[str]) -> Iterator[Loose]:
    chunk = sources.head(source, names, ROWS)
    if chunk is not None:
        yield chunk


def _objects(chunk: pa.Table | Loose, name: str) -> list[Any]:
    if isinstance(chunk, Loose):
        return list(chunk.columns[name])
    found: list[Any] = chunk[name].to_pylist()
    return found


def _type(values: Sequence[Any]) -> str:
    """Returns the narrowest type that holds all values; that of a column without any is string."""
    there = infer.any_value(values)
    return infer.first_fitting(Column(name="", type="auto", role="input"), infer.holding(values, infer.ANY), there=there)
