"""Looks for values that must not be there, in every file below some folders, in every form that they could take.

A canary is a value that nothing else can be: a text, or a number with all its digits. A file is read as its bytes, and, where it
is packed or has a format of its own, as what is in it: members of archives, compressed pieces at any place of a file (as Orbax
writes them), columns of Parquet and Arrow, rows of SQLite, records of W&B. Names of files are looked at as well.
"""

import base64
import bz2
import html
import io
import json
import lzma
import sqlite3
import struct
import tarfile
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests import wandb_file

Value = str | int | float
DEEPEST = 4  # layers of packing that are opened
MOST_BYTES = 256 << 20  # that a packed piece may become
ZSTD, GZIP, ZLIB = b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08", (b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x78\x5e")
PLAIN = " > values"  # nothing is to be opened in it
BROKEN = (
    OSError, EOFError, ValueError, KeyError, AssertionError, RuntimeError, zlib.error, lzma.LZMAError, struct.error,
    zipfile.BadZipFile, tarfile.TarError, pa.ArrowException, sqlite3.Error,
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Found:
    """A canary, where it is and as what. `place`: the file below its folder, and what was opened in it."""

    place: str
    canary: str
    form: str


# ---- forms of a value --------------------------------------------------------------------------------------------------


def forms(value: Value) -> dict[str, bytes]:
    """Returns {form: bytes} of a value."""
    return _of_text(value) if isinstance(value, str) else _of_number(value)


def _of_text(text: str) -> dict[str, bytes]:
    written = {
        "text": text, "URL": urllib.parse.quote(text, safe=""), "URL, of a form": urllib.parse.quote_plus(text),
        "URL, a path": urllib.parse.quote(text), "JSON": json.dumps(text)[1:-1], "HTML": html.escape(text),
        "HTML, as jinja": html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"), "repr": repr(text)[1:-1],
        "escapes": text.encode("unicode_escape").decode(),
    }  # fmt: skip
    written["JSON twice"] = json.dumps(written["JSON"])[1:-1]
    raw = {form: word.encode() for form, word in written.items()}
    raw |= {"UTF-16 LE": text.encode("utf-16-le"), "UTF-16 BE": text.encode("utf-16-be"), "UTF-32": text.encode("utf-32-le")}
    raw["Latin-1"] = text.encode("latin-1", "replace")
    return raw | _encoded(text.encode())


def _encoded(raw: bytes) -> dict[str, bytes]:
    """Returns bytes as base64 and hex; of base64 what does not depend on what stands before and behind."""
    found = {"hex": raw.hex().encode(), "HEX": raw.hex().upper().encode()}
    for shift in range(3):
        words = base64.b64encode(bytes(shift) + raw)
        whole = words[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
        found[f"base64 +{shift}"] = whole
        found[f"base64 +{shift}, of URLs"] = whole.replace(b"+", b"-").replace(b"/", b"_")
    return found


def _of_number(number: int | float) -> dict[str, bytes]:
    written = {"text": repr(number), "thousands": f"{number:,}", "9 digits": f"{number:.9g}", "6 digits": f"{number:.6g}"}
    raw = {form: word.encode() for form, word in written.items()}
    raw |= {"float64": struct.pack("<d", number), "float64 BE": struct.pack(">d", number), "float32": struct.pack("<f", number)}
    if number == int(number):
        raw |= {"int64": struct.pack("<q", int(number)), "int64 BE": struct.pack(">q", int(number))}
        raw["whole"] = str(int(number)).encode()
    return raw | {"hex": struct.pack("<d", number).hex().encode()}


# ---- what is in a file -------------------------------------------------------------------------------------------------


def contents(name: str, raw: bytes, depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yields (place, bytes) of a file: itself, and all that can be opened in it."""
    yield name, raw
    if depth < DEEPEST:
        for opener in OPENERS if not name.endswith(PLAIN) else ():
            with suppress(*BROKEN):  # it is something else, or ends too early
                for inner, data in opener(raw):
                    yield from contents(f"{name} > {inner}", data, depth + 1)


def _archives(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name in archive.namelist():
                yield f"zip {name}", archive.read(name)
    elif raw[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(raw)) as tape:
            for member in tape.getmembers():
                if file := tape.extractfile(member):
                    yield f"tar {member.name}", file.read()


def _whole(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw[:3] == b"BZh":
        yield "bzip2", bz2.decompress(raw)
    elif raw[:6] == b"\xfd7zXZ\0":
        yield "xz", lzma.decompress(raw)
    elif raw[:2] in ZLIB:
        yield "zlib", zlib.decompressobj().decompress(raw, MOST_BYTES)


def _pieces(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields what zstd and gzip made, wherever it stands."""
    for kind, mark, opened in (("zstd", ZSTD, _zstd), ("gzip", GZIP, _gzip)):
        at = raw.find(mark)
        while at >= 0:
            if found := opened(raw[at:]):
                yield f"{kind} at {at}", found
            at = raw.find(mark, at + 1)


def _zstd(raw: bytes) -> bytes:
    """Returns what a stream holds, up to where it cannot be read: a read that fails gives nothing, so smaller ones follow."""
    found, step = b"", 1 << 16
    while step:
        with suppress(OSError), pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream:
            stream.read(len(found))
            while (piece := stream.read(step)) and len(found) < MOST_BYTES:
                found += piece
            return found
        step //= 16
    return found


def _gzip(raw: bytes) -> bytes:
    with suppress(zlib.error):
        return zlib.decompressobj(31).decompress(raw, MOST_BYTES)
    return b""


def _plain(table: pa.Table) -> bytes:
    """Returns the values of a table, and its metadata, as Arrow without compression."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _parquet(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw[:4] != b"PAR1":
        return
    file = pq.ParquetFile(io.BytesIO(raw))
    yield "values", _plain(file.read(use_threads=False))
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    ends = [g.column(i).statistics for g in groups for i in range(g.num_columns)]
    yield "statistics", repr([(s.min, s.max) for s in ends if s is not None and s.has_min_max]).encode()
    yield "metadata", repr(file.metadata.metadata).encode()


def _arrow(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw[:6] == b"ARROW1":
        yield "values", _plain(pa.ipc.open_file(raw).read_all())
    elif raw[:4] == b"\xff\xff\xff\xff":
        yield "values", _plain(pa.ipc.open_stream(raw).read_all())


def _sqlite(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw[:15] == b"SQLite format 3":
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(raw)
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                quoted = table.replace('"', '""')
                yield f"table {table}", repr(database.execute(f'SELECT * FROM "{quoted}"').fetchall()).encode()


def _wandb(raw: bytes) -> Iterator[tuple[str, bytes]]:
    if raw[:4] == wandb_file.MAGIC:
        yield "records", b"\n".join(record.SerializeToString() for record in wandb_file._records(raw))


OPENERS: Sequence[Callable[[bytes], Iterator[tuple[str, bytes]]]] = (
    _archives, _whole, _pieces, _parquet, _arrow, _sqlite, _wandb,
)  # fmt: skip


# ---- the search --------------------------------------------------------------------------------------------------------


class Finder:
    """Looks for canaries; {name: value}."""

    def __init__(self, canaries: Mapping[str, Value]) -> None:
        """All forms are made once; equal ones are looked for once."""
        needles = [(name, form, needle) for name, value in canaries.items() for form, needle in forms(value).items()]
        unique = {(name, needle): form for name, form, needle in reversed(needles)}
        self._needles = [(name, form, needle) for (name, needle), form in unique.items()]

    def in_bytes(self, place: str, raw: bytes) -> set[Found]:
        """Returns what is in a file's bytes."""
        return {
            Found(where, name, form)
            for where, data in contents(place, raw)
            for name, form, needle in self._needles
            if needle in data
        }

    def below(self, folder: Path) -> set[Found]:
        """Returns what is in the files of a folder, and in their names."""
        found = set[Found]()
        for path in files(folder):
            name = path.relative_to(folder).as_posix()
            found |= self.in_bytes(name, path.read_bytes())
            found |= {Found(f"{name} (its name)", f.canary, f.form) for f in self.in_bytes("", name.encode())}
        return found


def files(folder: Path) -> list[Path]:
    """Returns every file below a folder, links not followed."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
