"""Rows out of a source, a part and a chunk at a time; and what identifies a source.

Promise: every column is checked by name before a row is read. What a source is made of (`csv_files.py` and `blocks.py`,
`columnar.py`, `text_files.py`, `sql.py` and `ranges.py`) does not matter to the rest.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, singledispatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from mlprod.config import Column, CsvSource, JsonLinesSource, ParquetSource, SqlSource, TextSource
from mlprod.etl import blocks, columnar, ranges, text_files
from mlprod.etl.connection import reached_before
from mlprod.etl.csv_files import UNPACKED, about_rows, csv_chunks, csv_place, csv_places, row_bytes
from mlprod.etl.files import (
    Copies,
    Told,
    absolute,
    by_absolute_names,
    check_seen,
    copy_plain,
    files_of,
    is_plain,
    places,
    stamps,
    told_of_file,
    untold,
)
from mlprod.etl.identity import Identity, of_files
from mlprod.etl.schema import Loose
from mlprod.etl.sql import sql_chunks, sql_column_names, sql_head, sql_identity, sql_stored_types
from mlprod.store import is_remote


@singledispatch
def chunks(source: Any, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    """Yields the columns `names` of a source, at most `chunk_rows` rows at a time.

    Raises:
        DataError: the source, a table or a column is missing, or the source breaks while it is read.
    """
    raise AssertionError(f"no reader for {type(source).__name__}")


@singledispatch
def identify(source: Any, names: Sequence[str], told: Told = untold) -> Identity:
    """Returns what identifies the rows that `chunks` would read; tells of every piece of a file how many bytes it had."""
    raise AssertionError(f"no identity for {type(source).__name__}")


chunks.register(SqlSource, sql_chunks)
identify.register(SqlSource, sql_identity)


@chunks.register
def _(source: CsvSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    for path in files_of(source.path):
        yield from csv_chunks(path, source.delimiter, names, chunk_rows, encoding=source.encoding)


@chunks.register
def _(source: ParquetSource | JsonLinesSource, names: Sequence[str], chunk_rows: int) -> Iterator[Loose]:
    with TemporaryDirectory() as folder:
        plain, copies = unpacked(source, Path(folder), lambda tasks: {name: task() for name, task in tasks.items()})
        for part in parts(plain, names, chunk_rows):
            for chunk in columnar.loose(part, names, chunk_rows):
                yield replace(chunk, where=partial(_where_in_original, chunk.where, copies))


def _where_in_original(where: Callable[[int], str], copies: Copies, i: int) -> str:
    return copies.original(where(i))


def check_header(source: Any, names: Sequence[str]) -> None:
    """Raises DataError where the header of a CSV file lacks one of the columns `names`: before anything of it is copied."""
    for path in files_of(source.path) if isinstance(source, CsvSource) else ():
        csv_places(path, source.delimiter, names, source.encoding)


Run = Callable[[Mapping[str, Callable[[], Any]]], Any]  # of named tasks


def unpacked(source: Any, folder: Path, run: Run, without: Collection[str] = (), *, away: bool = False) -> tuple[Any, Copies]:
    """Returns a source whose files are plain: the same where they are so already, else with copies that `run` makes in `folder`.

    Args:
        without: files that are not read.
        away: whether processes in other working folders read it too: then by absolute names.

    Raises:
        DataError: a file is missing, damaged or not in its encoding.
        Unreadable: a copy that was made is not seen.
    """
    if isinstance(source, SqlSource):
        return source, Copies("", {})
    encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
    copies = places(source.path, encoding, folder, without)
    if copies.names:
        folder.mkdir(parents=True, exist_ok=True)
        run({Path(to).stem: partial(copy_plain, absolute(name), encoding, Path(to)) for to, name in copies.names.items()})
        check_seen(copies)
    elif away:
        copies = by_absolute_names(copies)
    return _as_copied(source, copies), copies


@singledispatch
def _as_copied(source: Any, copies: Copies) -> Any:
    """Returns a source whose files are read where `copies` says."""
    return replace(source, path=copies.path)


@_as_copied.register
def _(source: CsvSource, copies: Copies) -> CsvSource:
    return replace(source, path=copies.path, encoding="utf-8") if copies.names else source


_as_copied.register(TextSource, text_files.named)


@singledispatch
def planned(source: Any, chunk_rows: int, run: Run) -> Any:
    """Returns a source as all attempts of a build read it; what `run` returns is the same for each of them."""
    return source


@planned.register
def _(source: SqlSource, chunk_rows: int, run: Run) -> ranges.Ranged:
    plan = run({"cuts": partial(ranges.cut, source, chunk_rows)})["cuts"]
    return ranges.Ranged(source, plan["key"], tuple(plan["cuts"]))


def discreetly(ready: Any, columns: Sequence[Column]) -> Any:
    """Returns a planned source whose key's values are told in no message, where the key is one of `columns` that is sensitive."""
    if isinstance(ready, ranges.Ranged) and any(c.sensitive and c.name == ready.key for c in columns):
        return replace(ready, discreet=True)
    return ready


def unchanged(source: Any, names: Sequence[str], identity: Identity) -> bool:
    """Returns whether a source is what it was when it was identified: files by their size and time, a table by a second look."""
    if identity.stamps:
        return stamps(source.path) == identity.stamps
    with reached_before():
        return identify(source, names).description == identity.description


@identify.register
def _(source: CsvSource | ParquetSource | JsonLinesSource, names: Sequence[str], told: Told = untold) -> Identity:
    return of_files(source.path, extent(source)[2], len(names), told)


@identify.register
def _(source: TextSource, names: Sequence[str], told: Told = untold) -> Identity:
    return text_files.identity(source, names, told)


def num_bytes(source: Any) -> int:
    """Returns how many bytes `identify` tells of: those of the files of this machine."""
    if isinstance(source, SqlSource) or is_remote(source.path):
        return 0
    return sum(size for size, _ in stamps(source.path))


def extent(source: Any) -> tuple[int, int, int]:
    """Returns (files, bytes, about how many rows) of a source of files."""
    if isinstance(source, TextSource):
        return len(_there(source.path)), sum(size for size, _ in stamps(source.path)), text_files.about(source)[1]
    encoding = source.encoding if isinstance(source, CsvSource) else "utf-8"
    names = _there(source.path)
    plain = isinstance(source, ParquetSource) and all(is_plain(name, encoding) for name in names)
    rows = columnar.num_rows(source.path) if plain else sum(about_rows(name, encoding) for name in names)
    return len(names), sum(size for size, _ in stamps(source.path)), rows


def _there(path: str) -> list[str]:
    """Returns the files that a path names and that are there; a missing one is told of where it is read."""
    return [name for name in files_of(path) if is_remote(name) or Path(name).is_file()]


TEXT_BYTES = 4096  # of a text in a database, where nothing says how long texts are


@singledispatch
def text_bytes(source: Any, rows: int) -> int:
    """Returns about how many bytes the texts of a source of so many rows take, besides what its identity reckons a value."""
    names = [(name, is_plain(name, "utf-8") and not isinstance(source, ParquetSource)) for name in _there(source.path)]
    return sum(stamps(name)[0][0] * (1 if plain else UNPACKED) for name, plain in names)


@text_bytes.register
def _(source: SqlSource, rows: int) -> int:
    return rows * TEXT_BYTES


@text_bytes.register
def _(source: TextSource, rows: int) -> int:
    return 0  # its identity knows them


@singledispatch
def parts(source: Any, names: Sequence[str], chunk_rows: int) -> list[Any]:
    """Returns small descriptions of what may be read on its own: together the rows of a source, each once.

    Raises:
        DataError: a file or, where that is seen without reading rows, one of the columns `names` is missing.
    """
    return [None]


@parts.register
def _(source: CsvSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    found = []
    for path in files_of(source.path):
        csv_places(path, source.delimiter, names)
        with told_of_file(path):
            found += blocks.cut(path, source.delimiter, chunk_rows * row_bytes(path))
    return found


@parts.register
def _(source: ParquetSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    return columnar.row_groups(source.path, names)


@parts.register
def _(source: JsonLinesSource, names: Sequence[str], chunk_rows: int) -> list[Any]:
    found = []
    for path in files_of(source.path):
        with told_of_file(path):
            found += columnar.lines(path, chunk_rows * row_bytes(path))
    return found


@parts.register
def _(source: text_files.Named, names: Sequence[str], chunk_rows: int) -> list[Any]:
    return text_files.parts(source, chunk_rows)


parts.register(ranges.Ranged, ranges.parts)


@singledispatch
def part_chunks(source: Any) -> int:
    """Returns of about how many chunks a part is."""
    return 1


@part_chunks.register
def _(source: ranges.Ranged) -> int:
    return ranges.PART_CHUNKS


@singledispatch
def column_names(source: Any) -> list[str]:
    """Returns the columns that a source has, as far as that is known without reading it."""
    return []


column_names.register(SqlSource, sql_column_names)


@column_names.register
def _(source: CsvSource) -> list[str]:
    return csv_places(files_of(source.path)[0], source.delimiter, (), source.encoding)[0]


@column_names.register
def _(source: ParquetSource) -> list[str]:
    return columnar.column_names(files_of(source.path)[0])


@column_names.register
def _(source: JsonLinesSource) -> list[str]:
    return columnar.line_names(files_of(source.path)[0])


@column_names.register
def _(source: TextSource) -> list[str]:
    return text_files.NAMES


@singledispatch
def stored_types(source: Any) -> dict[str, str]:
    """Returns {column: type} of the columns whose type the source itself says, one type for all of its rows."""
    return {}


stored_types.register(SqlSource, sql_stored_types)


@stored_types.register
def _(source: ranges.Ranged) -> dict[str, str]:
    return sql_stored_types(source.source)


@stored_types.register
def _(source: ParquetSource) -> dict[str, str]:
    return columnar.stored_types(source.path)


@stored_types.register
def _(source: TextSource | text_files.Named) -> dict[str, str]:
    return dict.fromkeys(text_files.NAMES, "string")


@singledispatch
def head(source: Any, names: Sequence[str], num_rows: int) -> Loose | None:
    """Returns the first rows of a source, at most `num_rows`, however large it is; None where there are none."""
    return next(iter(chunks(source, names, num_rows)), None)


head.register(SqlSource, sql_head)


@head.register
def _(source: JsonLinesSource, names: Sequence[str], num_rows: int) -> Loose | None:
    return columnar.first_lines(files_of(source.path)[0], names, num_rows)


head.register(TextSource, text_files.head)


@singledispatch
def read(source: Any, part: Any, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    """Yields the rows of a part, in their types where that is known to be right, else as the source has them."""
    yield from chunks(source, [c.name for c in columns], chunk_rows)


@read.register
def _(source: CsvSource, part: blocks.Part, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    names = [c.name for c in columns]
    header, _ = csv_places(part.path, source.delimiter, names)
    if part.regular:
        with told_of_file(part.path):
            table = blocks.read(part, source.delimiter, header, columns)
        if table is not None:
            yield table
            return
    yield from csv_chunks(part.path, source.delimiter, names, chunk_rows, part.start, part.stop)


@read.register
def _(source: ParquetSource, part: columnar.RowGroup, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    return columnar.typed(part, columns, chunk_rows)


@read.register
def _(source: JsonLinesSource, part: columnar.Lines, columns: Sequence[Column], chunk_rows: int) -> Iterator[pa.Table | Loose]:
    yield from columnar.loose(part, [c.name for c in columns], chunk_rows)


read.register(text_files.Named, text_files.read)
read.register(ranges.Ranged, ranges.read)


@singledispatch
def place(source: Any, part: Any, i: int) -> str:
    """Returns where row i of a part stands, for people; it may read on to it."""
    raise AssertionError(f"no places in {type(source).__name__}")


@place.register
def _(source: CsvSource, part: blocks.Part, i: int) -> str:
    return csv_place(part.path, source.delimiter, part.start, part.stop, i)


@place.register
def _(source: ParquetSource, part: columnar.RowGroup, i: int) -> str:
    return columnar.row_of_file(part.path, part.first, i)


place.register(text_files.Named, text_files.place)
place.register(ranges.Ranged, ranges.place)
