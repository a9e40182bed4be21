"""Reads what W&B keeps of a run on this machine, `run-ID.wandb`: a log of LevelDB's format whose records are protocol buffers."""

import json
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, MAGIC = 32768, 7, b":W&B"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> list[Any]:
    """Returns the records of a run that was finished, which W&B's own process writes down a moment after it said so."""
    deadline = time.monotonic() + 10.0
    while True:
        found = list(_records(path.read_bytes()))
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, f"{path} has no end"
        time.sleep(0.02)


def _records(raw: bytes) -> Iterator[Any]:
    """Yields the whole records; their checksums are checked."""
    at, parts = HEADER, b""
    assert raw.startswith(MAGIC)
    while at + HEADER <= len(raw):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block that no header fits into
            at += BLOCK - at % BLOCK
            continue
        checksum, size, kind = struct.unpack("<IHB", raw[at : at + HEADER])
        if at + HEADER + size > len(raw):
            return
        body = raw[at + HEADER : at + HEADER + size]
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        at += HEADER + size
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's history."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
    ]
