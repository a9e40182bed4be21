"""Reads what W&B keeps of a run on this machine, `run-ID.wandb`: a log of LevelDB's format whose records are protocol buffers."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, MAGIC = 32768, 7, b":W&B"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Any]:
    """Yields the records; their checksums are checked."""
    raw, at, parts = path.read_bytes(), HEADER, b""
    assert raw.startswith(MAGIC)
    while at + HEADER <= len(raw):
        if BLOCK - at % BLOCK < HEADER:  # the rest of a block that no header fits into
            at += BLOCK - at % BLOCK
            continue
        checksum, size, kind = struct.unpack("<IHB", raw[at : at + HEADER])
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
