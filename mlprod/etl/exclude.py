"""Keys whose rows are left out of all that a build writes: for a request to be forgotten.

Promise: rows of these keys are in no file of the version: not in its rows, vocabularies, report, quarantine or index. What is
fitted is fitted without them. Versions before keep them until they are removed: `etl.keep_versions=1`.
Price: the keys are held in memory as hashes, 16 bytes each.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import EtlConfig
from mlprod.errors import DataError
from mlprod.etl.csv_files import csv_chunks
from mlprod.etl.files import file_identity
from mlprod.etl.schema import cast_strictly, hashable
from mlprod.hashing import Hash128, hash_columns


def identity(etl: EtlConfig) -> str:
    """Returns what tells one list of keys from another; "" where no key is left out."""
    if not etl.exclude_keys:
        return ""
    found = file_identity(etl.exclude_keys)
    return hashlib.sha256(str(sorted(found.items())).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Excluded:
    """The keys, by their hashes in ascending order."""

    names: tuple[str, ...]
    seed: int
    words: np.ndarray  # [K] of two uint64, as a row hash has them
    in_source: tuple[str, ...]  # the same columns, as the source calls them
    texts: frozenset[tuple[str, ...]]  # as their file writes them, by which a row that cannot be read is known

    def among(self, rows: pa.Table) -> np.ndarray:
        """Returns bool[B]: which rows have one of the keys."""
        if not len(self.words):
            return np.zeros(rows.num_rows, bool)
        return np.isin(_words(hash_columns({n: hashable(rows[n]) for n in self.names}, rows.num_rows, self.seed)), self.words)

    def has(self, values: Mapping[str, Any]) -> bool:
        """Returns whether a row that is not what the config says has one of the keys, by its text; `values`: may be none."""
        if not values or not self.texts:
            return False
        if any(name not in values for name in self.in_source):  # of a lookup: it may be one of them
            return True
        return tuple(str(values[name]) for name in self.in_source) in self.texts


def _words(hashes: Hash128) -> np.ndarray:
    pairs = np.empty(len(hashes.hi), [("hi", np.uint64), ("lo", np.uint64)])
    pairs["hi"], pairs["lo"] = hashes.hi, hashes.lo
    return pairs


def read(etl: EtlConfig) -> Excluded:
    """Reads the keys in the types of the key's columns.

    Raises:
        DataError: the file or a column is missing, or a value is not of its type.
    """
    columns = [next(c for c in etl.columns if c.name == name) for name in etl.key]
    none = _words(Hash128(np.zeros(0, np.uint64), np.zeros(0, np.uint64)))
    nobody = Excluded(etl.key, etl.hash_seed, none, tuple(c.source or c.name for c in columns), frozenset())
    if not etl.exclude_keys:
        return nobody
    words, texts = [nobody.words], set[tuple[str, ...]]()
    for chunk in csv_chunks(etl.exclude_keys, ",", etl.key, 1 << 16):
        table = cast_strictly(chunk, columns)
        words.append(_words(hash_columns({n: hashable(table[n]) for n in etl.key}, table.num_rows, etl.hash_seed)))
        texts.update(zip(*(_as_texts(chunk.columns[n]) for n in etl.key), strict=True))
    if len(words) == 1:
        raise DataError(f"config.etl.exclude_keys={etl.exclude_keys!r} names no key; leave it at '' where none is left out")
    return replace(nobody, words=np.unique(np.concatenate(words)), texts=frozenset(texts))


def _as_texts(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]
