"""Tokenizers of text datasets that were made to do harm: refused by one error, in bounded time and memory.

Each is also seen without its guard: taken for true, growing without a bound, or a panic of the library's, which no handler of
errors catches.
"""

import json
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from mlprod import documents
from mlprod.errors import DataError
from mlprod.etl import tokenize
from mlprod.store import Store, open_store
from tests.security.bounds import bounded

pytest.importorskip("tokenizers")
END = "<end>"
VOCABULARY = {"a": 0, END: 1, "aa": 2}
PUBLISHED: Any = SimpleNamespace(config={"label": {"tokenizer": {"class": "TokenizerFile", "end": END}}}, version=1)


def text_of(model: dict[str, Any] | None = None, **parts: Any) -> str:
    """Returns a tokenizer's file."""
    words = {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "a", **(model or {})}
    names = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return json.dumps({"version": "1.0", "added_tokens": [], **dict.fromkeys(names), "model": words, **parts})


def replace(content: str, pattern: str = "a") -> dict[str, Any]:
    """A rule that writes something in place of a text."""
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def several(*rules: dict[str, Any]) -> dict[str, Any]:
    """Rules one after the other."""
    return {"type": "Sequence", "normalizers": list(rules), "decoders": list(rules)}


GOOD = text_of()
BAD = {
    "deep": "[" * 100_000, "deep objects": '{"a":' * 100_000,
    **{f"deep, closed: {depth}":
       GOOD.replace('"truncation": null', '"truncation": ' + "[" * depth + "]" * depth) for depth in (70, 100, 900)},
    **{f"twice: {name}": GOOD.replace("{", f'{{"{name}": null, ', 1) for name in ("version", "model", "decoder", "added_tokens")},
    "twice: a token": GOOD.replace('"a": 0', '"a": 5, "a": 0'), "twice: the end": GOOD.replace('"a": 0', f'"{END}": 5, "a": 0'),
    "twice: the vocabulary": GOOD.replace('"vocab"', '"vocab": {}, "vocab"'),
    "twice: a rule's name": text_of(normalizer=replace("b")).replace('"content"', '"content": "c", "content"'),
    **{f"number: {n}": GOOD.replace('"padding": null', f'"padding": {n}') for n in ("NaN", "Infinity", "-Infinity", "1e999")},
    **{f"huge: id {n}": GOOD.replace('"aa": 2', f'"aa": {n}') for n in ((1 << 30), 1 << 31, (1 << 32) - 1)},
    "huge: a token": GOOD.replace('"aa"', '"' + "a" * 2000 + '"'),
    "huge: an end": GOOD.replace('"aa"', '"' + "\\u001b" * 2000 + '"'),
    "grows: doubled ten times": text_of(normalizer=several(*[replace("aa")] * 10)),
    "grows: at once": text_of(normalizer=replace("a" * 2000)),
    "grows: of nothing": text_of(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 2000}),
    "grows: begun by": text_of(normalizer={"type": "Prepend", "prepend": "a" * 2000}),
    "grows: by two": text_of(normalizer=several({"type": "Prepend", "prepend": "a" * 40}, replace("a" * 40))),
    "grows: inside": text_of(normalizer=several(several(*[replace("aaa")] * 3), several(*[replace("aaa")] * 3))),
    "grows: decoded": text_of(decoder=several(*[replace("aa")] * 10)),
    "grows: decoded at once": text_of(decoder=replace("a" * 2000)),
    **{f"panic: {name}":
       text_of(normalizer={"type": "Precompiled", "precompiled_charsmap": name}) for name in ("", "AAAA", "/////w==")},
    "panic: pieces of nothing": text_of(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "panic: cut behind its end": text_of(decoder={"type": "Strip", "content": "a", "start": 1 << 62, "stop": 1 << 62}),
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A dataset's, with a good file."""
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "000001.json").write_text(GOOD)
    return open_store(str(tmp_path))


def used(store: Store) -> tuple[int, int, str]:
    """Returns (ids there are, ids of a text, the text of ids)."""
    found = tokenize.of_dataset(store, PUBLISHED)
    ids, _ = found.encode(pa.array(["a"]))
    return found.num_ids, len(ids), found.decode([0, 2, 0])


def test_a_good_one(store: Store) -> None:
    """It is read."""
    assert used(store) == (3, 1, "a aa a")


@pytest.mark.parametrize("name", BAD)
def test_a_hostile_tokenizer(name: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a dataset; without the guards it does harm."""
    (tmp_path / "vocab" / "000001.json").write_text(BAD[name])
    with pytest.raises(DataError) as told, bounded():
        used(store)
    assert told.value.exit_code == 2
    monkeypatch.setattr(documents, "parse", lambda raw, finite=True: json.loads(raw))
    monkeypatch.setattr(tokenize, "_check_growth", lambda body: None)
    monkeypatch.setattr(tokenize, "_panics", nullcontext)
    monkeypatch.setattr(tokenize, "MOST_IDS", 1 << 40)
    monkeypatch.setattr(tokenize, "LONGEST_TOKEN", 1 << 40)
    if name.startswith("panic"):
        with pytest.raises(BaseException, match=r".") as panic:
            used(store)
        assert not isinstance(panic.value, Exception)
    elif name.startswith("grows"):
        tokenizer = tokenize.of_dataset(store, PUBLISHED)
        inside: Any = tokenizer
        normal = inside._tokenizer.normalizer
        assert len(tokenizer.decode([0]) if "decoded" in name else normal.normalize_str("a")) > 600
    elif name in ("deep", "deep objects"):  # told in other words: whatever the library raises is
        with pytest.raises(DataError):
            used(store)
    else:
        assert used(store)


PLACES: dict[str, Callable[[Path], object]] = {
    "a file elsewhere": lambda file: file.symlink_to(file.parents[2] / "elsewhere"),
    "a file elsewhere, relative": lambda file: file.symlink_to("../../elsewhere"),
    "a device": lambda file: file.symlink_to("/dev/zero"), "itself": lambda file: file.symlink_to(file.name),
    "a password file": lambda file: file.symlink_to("/etc/passwd"), "a pipe": os.mkfifo, "a folder": os.mkdir,
    "1 TB": lambda file: (file.touch(), os.truncate(file, 1 << 40)), "nothing": lambda file: None,
}  # fmt: skip


@pytest.mark.parametrize("put", PLACES.values(), ids=list(PLACES))
def test_a_tokenizer_elsewhere(put: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not read; without the guards the file outside is taken, and a pipe waited for."""
    file = tmp_path / "dataset" / "vocab" / "000001.json"
    file.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text(GOOD)
    put(file)
    store = open_store(str(tmp_path / "dataset"))
    with pytest.raises(DataError), bounded():
        used(store)
    monkeypatch.setattr(Store, "_where", lambda store, path: os.path.join(store._root, path))
    monkeypatch.setattr(documents, "read", Path.read_bytes)
    if file.is_file() and file.is_symlink() and "elsewhere" in os.readlink(file):
        assert used(store)[0] == 3
    if file.is_fifo():
        reads = threading.Thread(target=lambda: store.read("vocab/000001.json"), daemon=True)
        reads.start()
        reads.join(0.3)
        assert reads.is_alive()
        file.write_bytes(b"")  # lets it go
        reads.join()
