"""What tells whether a source is the one that was read: a database by its query and counts, files by their bytes."""

import glob
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlprod.errors import DataError
from mlprod.manifest import sha256_file

VALUE_BYTES, HASH_BYTES = 16, 96  # of a value, and of a row's hashes and row id, in a spilled row


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What tells whether a source changed since it was read. `stable`: equal identities mean equal rows."""

    description: dict[str, Any]
    expected_bytes: int  # in memory, roughly: sizes the external sort
    stable: bool
    stamps: tuple[tuple[int, int], ...] = field(default=(), compare=False)  # of files: see `stamps`


def rows_bytes(rows: int, num_columns: int) -> int:
    """Returns about how many bytes rows take in memory."""
    return rows * (num_columns * VALUE_BYTES + HASH_BYTES)


def files_of(path: str) -> list[str]:
    """Returns the files that a path or a pattern (`rows-*.csv`, `**` for any depth) names, sorted.

    Raises:
        DataError: a pattern that no file fits.
    """
    if Path(path).exists() or not re.search(r"[*?\[]", path):
        return [path]
    found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
    if not found:
        raise DataError(f"no file fits {path!r}; mend the path in the config")
    return found


def stamps(path: str) -> tuple[tuple[int, int], ...]:
    """Returns (size, time of change) of each file that a path names."""
    found = [os.stat(name) for name in files_of(path) if os.path.exists(name)]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in found)


def file_identity(path: str) -> dict[str, Any]:
    """Returns a file's size and SHA-256."""
    file = Path(path)
    if not file.is_file():
        raise DataError(f"there is no file {path!r}; create it, or mend the path in the config")
    return {"bytes": file.stat().st_size, "sha256": sha256_file(file)}


def of_files(path: str, rows: int, num_columns: int) -> Identity:
    """Returns the identity of the files that a path names, which have about so many rows."""
    seen, files = stamps(path), [file_identity(name) for name in files_of(path)]
    described = files[0] if len(files) == 1 else {"bytes": sum(file["bytes"] for file in files), "files": files}
    return Identity(description=described, expected_bytes=rows_bytes(rows, num_columns), stable=True, stamps=seen)
