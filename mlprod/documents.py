"""JSON that somebody else may have written: read within limits, or refused.

Promise: what is read is a plain tree of at most `DEPTH` levels, each name once in its object, each number finite: no two readers
can take it for different things. A file is regular and at most `LONGEST` bytes, whatever it becomes while it is read.
Price: a pass over the tree.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

LONGEST = 256 << 20  # bytes of a document: a manifest of three million row groups
DEPTH = 64  # ours have about ten levels


def parse(raw: bytes | str, *, finite: bool = True) -> Any:
    """Returns the tree of a JSON text.

    Args:
        finite: whether every number must be; a metric need not.

    Raises:
        ValueError: it is no JSON, too long or too deep, names something twice in one object, or has a number that is not finite.
    """
    if len(raw) > LONGEST:
        raise ValueError(f"{len(raw):,} are more than {LONGEST:,} bytes")
    number = _finite if finite else float
    try:
        tree = json.loads(raw, object_pairs_hook=once, parse_constant=number, parse_float=number)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEPTH} levels") from error
    check_depth(tree)
    return tree


class Twice(ValueError):
    """An object names something twice."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object of its pairs; raises Twice where two have one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise Twice(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def check_depth(tree: Any) -> None:
    """Raises ValueError where JSON data are nested deeper than `DEPTH`; itself it does not recurse."""
    level, depth = [tree], 0
    while level := [node for node in level if isinstance(node, dict | list)]:
        depth += 1
        if depth > DEPTH:
            raise ValueError(f"nested deeper than {DEPTH} levels")
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to be read.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file: a pipe would be waited for, a device has no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    # What was opened is looked at, not the name, which may be another file's by now.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return open(descriptor, "rb")


def read(path: Path) -> bytes:
    """Returns a small file's bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too long, or changed meanwhile.
    """
    with open_regular(path) as file:
        there = os.fstat(file.fileno())
        if there.st_size > LONGEST:
            raise ValueError(f"{path} has {there.st_size:,} bytes, more than {LONGEST:,}")
        body = file.read(there.st_size + 1)
        _check_same(path, body, there, os.fstat(file.fileno()))
    return body


def _check_same(path: Path, body: bytes, there: os.stat_result, since: os.stat_result) -> None:
    """Raises ValueError where what was read is not what was looked at."""
    if (len(body), since.st_mtime_ns) != (there.st_size, there.st_mtime_ns):
        raise ValueError(f"{path} changed while it was read")


def is_count(value: Any) -> bool:
    """Whether a value is a whole number, 0 or more, that 63 bits hold."""
    return type(value) is int and 0 <= value < 1 << 63
