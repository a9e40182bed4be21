"""What tells whether a source is the one that was read: a database by its query and counts, files by their bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlprod.etl.files import Told, file_identity, files_of, stamps

VALUE_BYTES, HASH_BYTES = 16, 96  # of a value, and of a row's hashes and row id, in a spilled row


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What tells whether a source changed since it was read. `stable`: equal identities mean equal rows."""

    description: dict[str, Any]
    expected_bytes: int  # in memory, roughly: sizes the external sort
    stable: bool
    rows: int  # about
    stamps: tuple[tuple[int, int], ...] = field(default=(), compare=False)  # of files: see `files.stamps`


def files_in(description: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what identifies each file of a source of files, in the order of their names; none of a database."""
    one = {name: description[name] for name in ("bytes", "sha256", "changed", "partitions") if name in description}
    found: list[dict[str, Any]] = description.get("files", [one] if one else [])
    return found


def rows_bytes(rows: int, num_columns: int) -> int:
    """Returns about how many bytes rows take in memory."""
    return rows * (num_columns * VALUE_BYTES + HASH_BYTES)


def of_files(path: str, rows: int, num_columns: int, told: Told) -> Identity:
    """Returns the identity of the files that a path names, which have about so many rows."""
    seen, files = stamps(path), [file_identity(name, told) for name in files_of(path)]
    described = files[0] if len(files) == 1 else {"bytes": sum(file["bytes"] for file in files), "files": files}
    return Identity(description=described, expected_bytes=rows_bytes(rows, num_columns), stable=True, rows=rows, stamps=seen)
