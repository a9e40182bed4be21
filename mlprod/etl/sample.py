"""A sample of a source: rows from all over it, with types that all of them have.

Promise: the same rows for the same source; a small source is read whole.
Price: up to `ROWS` rows as Python objects; of a large CSV file a look at its quotes. Of a database, and of packed or remote
files, it is the first rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mlprod.config import Column, CsvSource, SqlSource
from mlprod.errors import DataError
from mlprod.etl import infer, sources
from mlprod.etl.files import files_of, is_plain
from mlprod.etl.schema import Loose, cast
from mlprod.etl.sql import sql_count
from mlprod.store import is_remote

ROWS, PLACES = 100_000, 50  # looked at; places of a large source that they come from


@dataclass(frozen=True)
class Sample:
    """Some rows. `rows`: the columns in their types; `whole`: these are all there are."""

    rows: pa.Table
    types: dict[str, str]
    whole: bool
    num_rows: int  # of the source, about


def sample_of(source: Any, names: Sequence[str], words: str = "") -> Sample:
    """Returns rows of a source; `words`: a column that stays text where yes and no are written in words.

    Raises:
        DataError: it cannot be read, or has no rows.
    """
    values: dict[str, list[Any]] = {name: [] for name in names}
    about, spread = _about(source), _can_spread(source)
    whole = about <= ROWS
    for chunk in _everywhere(source, names) if spread and not whole else _first(source, names):
        for name in names:
            values[name] += _objects(chunk, name)
    found = len(values[names[0]])
    if not found:
        raise DataError("the source has no rows to learn from")
    types = {name: _type(column) for name, column in values.items()}
    if types.get(words) == "bool" and any(isinstance(value, str) for value in values[words]):
        types[words] = "string"
    arrays = {name: cast(column, types[name])[0] for name, column in values.items()}
    return Sample(pa.table(arrays), types, whole and found < ROWS, max(about, found) if not whole else found)


def _about(source: Any) -> int:
    if isinstance(source, SqlSource):
        return sql_count(source)
    return sources.extent(source)[2]


def _can_spread(source: Any) -> bool:
    """Whether parts of a source can be read on their own as it is."""
    if isinstance(source, SqlSource):
        return False
    encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
    return all(not is_remote(name) and is_plain(name, encoding) for name in files_of(source.path))


def _everywhere(source: Any, names: Sequence[str]) -> Iterator[pa.Table | Loose]:
    """Yields the first rows of parts that lie all over the source."""
    each, columns = ROWS // PLACES, [Column(name=name, type="string") for name in names]
    parts = sources.parts(source, names, each)
    step = max(len(parts) / PLACES, 1.0)
    for i in range(min(PLACES, len(parts))):
        yield from _some(sources.read(source, parts[int(i * step)], columns, each), each)


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
