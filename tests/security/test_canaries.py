"""The finder of canaries finds: each form that a value can take, in each file that can hold it."""

import base64
import bz2
import gzip
import io
import json
import lzma
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorstore as ts
from jax.experimental.compilation_cache import compilation_cache
from wandb.proto.wandb_internal_pb2 import Record

from tests import wandb_file
from tests.security.canaries import Finder, Found, contents, files, forms

TEXT, NUMBER, WHOLE = 'cänary/7 "q"+<&>', 770077.125, 7700770077
FINDER = Finder({"text": TEXT, "number": NUMBER, "whole": WHOLE})


@pytest.mark.parametrize(
    "name, form",
    [(name, form) for name, value in (("text", TEXT), ("number", NUMBER), ("whole", WHOLE)) for form in forms(value)],
)
def test_every_form_is_found(name: str, form: str) -> None:
    """In the midst of other bytes, whatever stands beside it; of equal forms the first is told."""
    needle = forms({"text": TEXT, "number": NUMBER, "whole": WHOLE}[name])[form]
    assert name in {found.canary for found in FINDER.in_bytes("f", b"\x00before" + needle + b"behind\xff")}


@pytest.mark.parametrize("before", range(3))
@pytest.mark.parametrize("behind", range(3))
def test_base64_is_found_wherever_it_begins(before: int, behind: int) -> None:
    """Three letters stand for four bytes: a value may begin in each of the three places."""
    raw = b"x" * before + TEXT.encode() + b"y" * behind
    for words in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
        assert {found.canary for found in FINDER.in_bytes("f", words)} == {"text"}


def _zip(raw: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", raw)
    return sink.getvalue()


def _tar(raw: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tape:
        member = tarfile.TarInfo("inner.txt")
        member.size = len(raw)
        tape.addfile(member, io.BytesIO(raw))
    return sink.getvalue()


def _zstd(raw: bytes) -> bytes:
    return pa.compress(raw, "zstd", asbytes=True)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "zip": _zip, "tar, gzip": _tar, "zstd": _zstd, "bzip2": bz2.compress, "xz": lzma.compress,
    "zlib": zlib.compress, "gzip of zstd": lambda raw: gzip.compress(_zstd(raw)),
    "zstd inside of other bytes": lambda raw: b"head" * 9 + _zstd(b"other") + _zstd(raw) + b"tail",
    "zstd that ends too early": lambda raw: _zstd(raw + np.random.default_rng(0).bytes(1 << 20))[: 1 << 19],
    "gzip inside of other bytes": lambda raw: b"head" * 9 + gzip.compress(raw) + b"tail",
}  # fmt: skip


@pytest.mark.parametrize("kind", PACKED)
def test_what_is_packed_is_found(kind: str) -> None:
    """And is not there as it stands: the test would find it without unpacking."""
    letters = bytes(np.random.default_rng(0).choice(np.frombuffer(b"eeeeeeeetaoinshr", np.uint8), 1 << 14))
    raw = letters + TEXT.encode() + struct.pack("<d", NUMBER) + letters[::-1]
    packed = PACKED[kind](raw)
    assert TEXT.encode() not in packed
    assert {found.canary for found in FINDER.in_bytes("f", packed)} == {"text", "number"}


def table(rows: int = 300) -> pa.Table:
    """Rows of which one has each canary."""
    texts, numbers, wholes = (["word"] * rows, [0.5] * rows, [5] * rows)
    texts[70], numbers[80], wholes[90] = TEXT, NUMBER, WHOLE
    return pa.table({"t": texts, "n": numbers, "w": wholes, "f": pa.array(np.asarray(numbers, np.float32))})


@pytest.mark.parametrize("codec", ["zstd", "snappy", "gzip", "lz4", "none"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_values_of_parquet_are_found(codec: str, dictionary: bool) -> None:
    """Whatever packs them, in dictionary pages or plain ones."""
    sink = io.BytesIO()
    pq.write_table(table(), sink, compression=codec, use_dictionary=dictionary, write_statistics=False)
    found = {(f.canary, f.place) for f in FINDER.in_bytes("f", sink.getvalue())}
    assert {("text", "f > values"), ("number", "f > values"), ("whole", "f > values")} <= found


def test_statistics_and_metadata_of_parquet_are_found() -> None:
    """Of a column that has the canary at one end."""
    sink = io.BytesIO()
    pq.write_table(table().replace_schema_metadata({"k": TEXT}), sink, compression="zstd")
    found = {(f.canary, f.place) for f in FINDER.in_bytes("f", sink.getvalue())}
    assert {("number", "f > statistics"), ("whole", "f > statistics"), ("text", "f > metadata")} <= found


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_values_of_arrow_are_found(codec: str | None, kind: str) -> None:
    """As a build spills them, and as others write them."""
    sink, options = io.BytesIO(), pa.ipc.IpcWriteOptions(compression=codec)
    given = table().append_column("d", table()["t"].dictionary_encode())
    opened = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with opened(sink, given.schema, options=options) as writer:
        writer.write_table(given)
    assert {"text", "number", "whole"} <= {f.canary for f in FINDER.in_bytes("f", sink.getvalue()) if f.place.endswith("values")}


def test_rows_of_sqlite_are_found(tmp_path: Path) -> None:
    """Also a number, which is stored in as many bytes as it needs, and a text that goes on in another page."""
    with closing(sqlite3.connect(tmp_path / "rows.db")) as database:
        database.execute('CREATE TABLE "a ""b" (t TEXT, n REAL, w INTEGER)')
        database.execute('INSERT INTO "a ""b" VALUES (?, ?, ?)', ("x" * 4070 + TEXT, NUMBER, WHOLE))
        database.commit()
    found = {f.canary for f in FINDER.below(tmp_path) if "table" in f.place}
    assert found == {"text", "number", "whole"}


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
@pytest.mark.parametrize("base", ["file", "ocdbt"])
def test_arrays_of_checkpoints_are_found(tmp_path: Path, driver: str, base: str) -> None:
    """As tensorstore packs them, in files or in one store."""
    store = {"driver": "file", "path": f"{tmp_path}/a/"}
    if base == "ocdbt":
        store = {"driver": "ocdbt", "base": f"file://{tmp_path}/a/", "config": {"max_inline_value_bytes": 10}}
    array = np.full(4000, NUMBER, np.float32)
    packed = {"zarr": {"compressor": {"id": "zstd", "level": 1}}, "zarr3": {"codecs": [{"name": "zstd"}]}}[driver]
    opened = ts.open(
        {"driver": driver, "kvstore": store, "metadata": packed}, create=True, dtype=ts.float32, shape=array.shape
    ).result()
    opened.write(array).result()
    assert "number" in {f.canary for f in FINDER.below(tmp_path)}


def test_constants_of_compiled_programs_are_found(tmp_path: Path) -> None:
    """In JAX's folder of compiled programs, and in a trace."""
    value, old = jnp.asarray(NUMBER, jnp.float32), jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
        compilation_cache.reset_cache()
        with jax.profiler.trace(str(tmp_path / "trace")):
            jax.jit(lambda x: jnp.sin(x) * value + 3.0)(jnp.arange(7.0)).block_until_ready()
    finally:
        jax.config.update("jax_compilation_cache_dir", old)
        compilation_cache.reset_cache()
    assert "number" in {f.canary for f in FINDER.below(tmp_path / "compiled")}
    assert any(path.name.endswith(".xplane.pb") for path in files(tmp_path / "trace"))


def wandb_log(records: Sequence[bytes]) -> bytes:
    """Records as W&B's log has them: cut where a block ends."""
    log = bytearray(wandb_file.MAGIC + b"\xd1\x5b\0")
    for record in records:
        kinds = {(True, True): wandb_file.FULL, (True, False): wandb_file.FIRST, (False, True): wandb_file.LAST}
        at = 0
        while at < len(record):
            room = wandb_file.BLOCK - len(log) % wandb_file.BLOCK - wandb_file.HEADER
            piece = record[at : at + room]
            kind = kinds.get((at == 0, at + len(piece) == len(record)), wandb_file.MIDDLE)
            log += struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            at += len(piece)
    return bytes(log)


def test_records_of_wandb_are_found() -> None:
    """Also a text that goes on in the next block of the file."""
    records = [Record(), Record()]
    records[0].run.project = "x" * (wandb_file.BLOCK - 40) + TEXT * 9 + "y" * wandb_file.BLOCK
    records[1].history.item.add(key="loss", value_json=json.dumps(NUMBER))
    raw = wandb_log([record.SerializeToString() for record in records])
    cut = Finder({"cut": "x" * 9 + TEXT * 9 + "y" * 9, "number": NUMBER}).in_bytes("f", raw)
    assert {("cut", "f > records"), ("number", "f > records")} <= {(f.canary, f.place) for f in cut}
    assert ("cut", "f") not in {(f.canary, f.place) for f in cut}


def test_names_of_files_are_found_and_other_files_are_not(tmp_path: Path) -> None:
    """Nothing is found where nothing is."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "canary-7.txt").write_text("nothing")
    (tmp_path / "b").write_bytes(np.random.default_rng(1).bytes(1 << 20))
    assert Finder({"name": "canary-7"}).below(tmp_path) == {Found("a/canary-7.txt (its name)", "name", "text")}
    assert FINDER.below(tmp_path) == set()


def test_torn_files_are_read_as_they_are() -> None:
    """A file that ends too early, or only begins as another does, is no error: its bytes are looked at."""
    sink = io.BytesIO()
    pq.write_table(table(), sink)
    whole = [sink.getvalue(), gzip.compress(b"x" * 999), _zip(b"x" * 999), b"SQLite format 3\0" + b"x" * 99, b":W&B" + b"x" * 99]
    for raw in whole:
        assert next(name for name, _ in contents("f", raw[: len(raw) // 2] + TEXT.encode())) == "f"
        assert "text" in {f.canary for f in FINDER.in_bytes("f", raw[: len(raw) // 2] + TEXT.encode())}
    assert json.loads('"' + forms(TEXT)["JSON"].decode() + '"') == TEXT
