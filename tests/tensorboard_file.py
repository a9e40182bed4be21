"""Reads TensorBoard's event files from the description of their format alone, and what TensorBoard would show of them."""

import struct
from collections.abc import Iterator
from pathlib import Path

Event = tuple[float, int, dict[str, float], int]  # seconds since 1970, step, {tag: value}, session (1: start; 0: none)
POLYNOMIAL = 0x82F63B78


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """The checksum as TFRecord files have it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frames(path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file; both checksums of each are checked."""
    raw, at = path.read_bytes(), 0
    while at < len(raw):
        size, of_size = struct.unpack("<QI", raw[at : at + 12])
        assert of_size == masked(raw[at : at + 8])
        body = raw[at + 12 : at + 12 + size]
        assert struct.unpack("<I", raw[at + 12 + size : at + 16 + size]) == (masked(body),)
        yield body
        at += 16 + size


def fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (number, value) of a protocol buffer's fields; those of fixed size as their bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte, at = raw[at], at + 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(raw):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 2: -1, 5: 4}[key & 7]
        size = varint() if size < 0 else size
        yield key >> 3, raw[at : at + size]
        at += size


def event(raw: bytes) -> Event:
    """Returns what an event says. Numbers of the fields: TensorFlow's event.proto and summary.proto."""
    when, step, values, session = 0.0, 0, {}, 0
    for number, value in fields(raw):
        if number == 1 and isinstance(value, bytes):
            (when,) = struct.unpack("<d", value)
        elif number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            for _, one in fields(value):
                assert isinstance(one, bytes)
                body = dict(fields(one))
                tag, number_bytes = body[1], body.get(2, bytes(4))
                assert isinstance(tag, bytes)
                assert isinstance(number_bytes, bytes)
                values[tag.decode()] = struct.unpack("<f", number_bytes)[0]
        elif number == 7 and isinstance(value, bytes):
            session = int(dict(fields(value)).get(1, 0))  # type: ignore[arg-type]
    return when, step, values, session


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns {tag: [(step, value)]} of a folder; a start of a session makes what is at its step and behind it forgotten."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("*tfevents*")):
        for raw in frames(path):
            _, step, values, session = event(raw)
            if session == 1:
                found = {tag: [point for point in points if point[0] < step] for tag, points in found.items()}
            for tag, value in values.items():
                found.setdefault(tag, []).append((step, value))
    return found
