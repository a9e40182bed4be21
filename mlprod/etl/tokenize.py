"""Text to tokens and back: by bytes, or by a trained tokenizer of the library `tokenizers`.

Promise: a text gives the same tokens whatever stands in it or beside it: the end of a document is no token of any text that
merely spells it, where the tokenizer's file says that it is special; truncation, padding and dropout of the file do not count.
Price: the library is imported when a config names a file; bytes cost nothing but four bytes each.
"""

import hashlib
import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, singledispatch
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mlprod import documents, manifest
from mlprod.config import AnyLabel, Bytes, NextToken, TokenizerFile
from mlprod.errors import ConfigError, DataError, MachineError, nearest
from mlprod.etl.schema import hashable
from mlprod.features import MOST_IDS
from mlprod.hashing import ByteValues
from mlprod.manifest import Manifest
from mlprod.store import Store

FIELD = "config.etl.label.tokenizer"
BYTES_END = 256  # behind the bytes
LONGEST_TOKEN = 1 << 10  # letters: those of known tokenizers have up to 256
MOST_GROWTH = 64  # times as many letters as a text has, by what a file writes in place of one


class Tokenizer(Protocol):
    """Text to ids below `num_ids`, of which `end` is the end of a document."""

    num_ids: int
    end: int

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns (uint32[N], the ids of string[B] one after the other, without ends; int64[B], how many each has)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, for people: with a sign where they are no whole characters."""
        ...


class ByteTokenizer:
    """A token a byte of the UTF-8."""

    num_ids, end = BYTES_END + 1, BYTES_END

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns (uint32[N] bytes, int64[B] lengths)."""
        found = hashable(texts)
        assert isinstance(found, ByteValues)
        return found.data[found.offsets[0] : found.offsets[-1]].astype(np.uint32), np.diff(found.offsets)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of bytes; ends are left out."""
        return bytes(i for i in ids if i < BYTES_END).decode("utf-8", errors="replace")


class FileTokenizer:
    """What a file says that the library `tokenizers` saved."""

    def __init__(self, content: bytes, end: str, where: str) -> None:
        """`content`: of the file; `end`: its token for the end of a document; `where`: it lies, for people.

        Raises:
            MachineError: the library is not installed.
            ConfigError: the file is no tokenizer, or has no such token.
        """
        self._tokenizer, self._where = _loaded(content, where), where
        known = self._tokenizer.get_vocab(with_added_tokens=True)
        if end not in known:
            special = [str(token) for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
            told = nearest(end, [str(token.content) for token in self._tokenizer.get_added_tokens_decoder().values()])
            raise ConfigError(f"{FIELD}.end={end!r} is no token of {where}{told if special else '; it has no special tokens'}")
        self.num_ids, self.end = max(known.values()) + 1, int(known[end])
        if self.num_ids > MOST_IDS or max(map(len, known)) > LONGEST_TOKEN:
            told = f"has ids up to {self.num_ids:,} or tokens of more than {LONGEST_TOKEN:,} letters"
            raise ConfigError(f"{FIELD}.path={where!r} {told}; is it a tokenizer.json that `tokenizers` saved?")

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Returns (uint32[N] ids, int64[B] how many each text has).

        Raises:
            DataError: the tokenizer has no token for something.
        """
        try:
            with _panics():
                found = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(
                f"{self._where} cannot tokenise a text: {error}; train it with a token for what is unknown, or by bytes"
            ) from error
        ids = [np.array(each.ids, np.uint32) for each in found]
        return np.concatenate([np.zeros(0, np.uint32), *ids]), np.array([len(each) for each in ids], np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids; ends are left out. Raises DataError where the tokenizer fails."""
        try:
            with _panics():
                text: str = self._tokenizer.decode([int(i) for i in ids if i != self.end], skip_special_tokens=False)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{self._where} cannot make a text of tokens: {error}; restore it from a copy") from error
        return text


@contextmanager
def _panics() -> Iterator[None]:
    """Makes an error of a panic of the library's, which is no Exception, and would end the program by a traceback."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"a panic: {error}") from error


def _check_growth(body: Any) -> None:
    """Raises ValueError where what a file writes in place of a letter, one rule after the other, has no bound."""
    growth, nodes = 1, [body.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict) and node.get("type") in ("Replace", "Prepend"):
            growth *= max(len(str(node.get("content", node.get("prepend", "")))), 1)
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if growth > MOST_GROWTH:
            raise ValueError(f"a text may become {growth:,} times as long, which is more than {MOST_GROWTH}")


def _loaded(content: bytes, where: str) -> Any:
    """Returns the library's tokenizer of a file, without what makes its ids depend on length or chance."""
    try:
        library = importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise MachineError(f"{FIELD}={where} needs the package tokenizers; install mlprod[text], or use Bytes()") from error
    try:
        body = documents.parse(content)
        _check_growth(body)
        model = {name: None if name == "dropout" else value for name, value in body["model"].items()}
        body |= {"truncation": None, "padding": None, "model": model}
        with _panics():
            found = library.Tokenizer.from_str(json.dumps(body))
    except Exception as error:  # the library raises nothing narrower
        told = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"{FIELD}.path={where!r} is no tokenizer ({told}); give a tokenizer.json that `tokenizers` saved"
        ) from error
    found.encode_special_tokens = True  # what a text spells is text
    return found


# ---- of a config -------------------------------------------------------------------------------------------------------


@singledispatch
def content_of(tokenizer: Any) -> bytes:
    """Returns the bytes of a tokenizer's file; none where it has none.

    Raises:
        ConfigError: the file cannot be read.
    """
    raise AssertionError(f"{type(tokenizer).__name__} is no tokenizer")


@content_of.register
def _(tokenizer: Bytes) -> bytes:
    return b""


@content_of.register
def _(tokenizer: TokenizerFile) -> bytes:
    try:
        return documents.read(Path(tokenizer.path))
    except ValueError as error:
        raise ConfigError(f"{FIELD}.path: {error}; give a tokenizer.json that the library `tokenizers` saved") from error
    except OSError as error:
        told = f"{FIELD}.path={tokenizer.path!r} cannot be read: {error.strerror}"
        raise ConfigError(f"{told}; give a tokenizer.json that the library `tokenizers` saved") from error


@singledispatch
def tokenizer_of(tokenizer: Any) -> Tokenizer:
    """Returns the tokenizer of a config.

    Raises:
        MachineError: a library is not installed.
        ConfigError: a file is not there, is no tokenizer, or has no such token.
    """
    raise AssertionError(f"{type(tokenizer).__name__} is no tokenizer")


@tokenizer_of.register
def _(tokenizer: Bytes) -> Tokenizer:
    return ByteTokenizer()


@tokenizer_of.register
def _(tokenizer: TokenizerFile) -> Tokenizer:
    return _of_content(content_of(tokenizer), tokenizer.end, tokenizer.path)


@lru_cache(maxsize=2)
def _of_content(content: bytes, end: str, where: str) -> FileTokenizer:
    return FileTokenizer(content, end, where)


def sha256_of(content: bytes) -> str:
    """Returns the SHA-256 of a tokenizer's file; "" where there is none."""
    return hashlib.sha256(content).hexdigest() if content else ""


def identity(label: AnyLabel) -> dict[str, str]:
    """Returns what of a label's tokenizer decides a dataset besides the config: nothing, or the content of its file.

    Raises:
        MachineError, ConfigError: see `tokenizer_of`.
    """
    if not isinstance(label, NextToken):
        return {}
    tokenizer_of(label.tokenizer)  # whatever is wrong with it is told before a row is read
    content = content_of(label.tokenizer)
    return {"tokenizer": sha256_of(content)} if content else {}


def of_dataset(store: Store, published: Manifest) -> Tokenizer:
    """Returns the tokenizer of a dataset of texts.

    Raises:
        MachineError: a library is not installed.
        DataError: its file is gone, or is not the one that was published.
    """
    config = published.config["label"]["tokenizer"]
    if config["class"] == Bytes.__name__:
        return ByteTokenizer()
    path = manifest.vocabulary_path(published.version)
    try:
        return FileTokenizer(store.read(path), config["end"], f"{store.location}/{path}")
    except (FileNotFoundError, ConfigError) as error:
        raise DataError(f"{store.location}/{path} is gone or was changed; restore it, or build the dataset again") from error
