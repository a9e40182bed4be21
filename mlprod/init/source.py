"""From what a user calls their data, to a source of the config."""

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlprod.config import CsvSource, JsonLinesSource, ParquetSource, SqlSource
from mlprod.errors import DataError, nearest
from mlprod.etl.files import files_of, open_plain
from mlprod.etl.sql import tables_of
from mlprod.store import is_remote
from mlprod.validation import refuse_password

FILES = {
    ".csv": CsvSource, ".tsv": CsvSource, ".txt": CsvSource, ".parquet": ParquetSource, ".pq": ParquetSource,
    ".jsonl": JsonLinesSource, ".ndjson": JsonLinesSource,
}  # fmt: skip
DATABASES = {".db": "sqlite", ".sqlite": "sqlite", ".sqlite3": "sqlite", ".duckdb": "duckdb"}
PACKED = (".gz", ".bz2", ".zst")
DELIMITERS = (",", "\t", ";", "|")
LOOKED_AT = 1 << 20  # bytes by which an encoding is told


def source_of(data: str, table: str) -> Any:
    """Returns the source that `data` names: a file, folder, pattern or address, a SQLite or DuckDB file, or a database's URL.

    Raises:
        DataError: there is nothing, it is of no kind that is known, or a table must be chosen.
        ConfigError: a URL holds a password.
    """
    refuse_password("DATA", data)
    database = DATABASES.get(Path(data).suffix.lower())
    if database and Path(data).is_file():
        return _of_database(f"{database}:///{data}", table)
    if "://" in data and not is_remote_file(data):
        return _of_database(data, table)
    if table:
        raise DataError(f"--table={table} is for a database; {data} is a file")
    if not is_remote(data) and not any(Path(name).is_file() for name in files_of(data)):
        raise DataError(
            f"{data}: there is no such file; give a CSV, Parquet, JSON lines, SQLite or DuckDB file, or a database's URL"
        )
    kind = FILES.get(_suffix(files_of(data)[0]))
    if kind is None:
        raise DataError(f"{data} ends with none of {', '.join((*FILES, *DATABASES))}; rename it, or write the config by hand")
    return _of_csv(data) if kind is CsvSource else kind(path=data)


def is_remote_file(data: str) -> bool:
    """Returns whether an address is one of files, not a database's."""
    return data.split("://", 1)[0] in ("s3", "gs", "file")


def _suffix(name: str) -> str:
    path = Path(name)
    return Path(path.stem).suffix.lower() if path.suffix.lower() in PACKED else path.suffix.lower()


def _of_database(url: str, table: str) -> SqlSource:
    known = tables_of(url)
    if not table and len(known) == 1:
        table = known[0]
    if table not in known:
        if table:
            raise DataError(f"{url} has no table {table!r}{nearest(table, known)}")
        raise DataError(f"{url} has {len(known)} tables: {', '.join(known) or 'none'}; give one with --table")
    return SqlSource(url=url, table=table)


def _of_csv(data: str) -> CsvSource:
    """Returns a CSV file with its encoding and delimiter: that which stands most often in its header."""
    first = files_of(data)[0]
    encoding = _encoding(first)
    with open_plain(first, encoding) as file:
        text = bytes(file.read(1 << 16)).decode("utf-8", "replace").removeprefix("\ufeff")
    header = text.splitlines()[0] if text.strip() else ""
    delimiter = max(DELIMITERS, key=header.count)
    return CsvSource(path=data, delimiter=delimiter if header.count(delimiter) else ",", encoding=encoding)


def _encoding(name: str) -> str:
    """Returns utf-8, or cp1252 where the first bytes are not that; utf-16 by its mark."""
    opened: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    if is_remote(name) or name.endswith(".zst"):
        return "utf-8"
    with opened.get(Path(name).suffix.lower(), open)(name, "rb") as file:
        data: bytes = file.read(LOOKED_AT)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return "utf-8" if error.start >= len(data) - 3 and len(data) == LOOKED_AT else "cp1252"
    return "utf-8"
