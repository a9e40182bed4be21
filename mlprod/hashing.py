"""Our own 64-bit mixing, and the 128-bit hash of rows built on it. Everything that must never change with a library.

Promise: the same values give the same words on every Python, numpy and machine; columns count by name, not by order.
Price: about 10 ns a fixed-width value and word, more for strings by their length.

The finaliser is splitmix64's (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014), the
32-bit one is MurmurHash3's fmix32 (Appleby, public domain).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

HASH_VERSION = 1
MASK = (1 << 64) - 1
PHI = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: consecutive integers land far apart
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
LANES = (0x243F6A8885A308D3, 0x13198A2E03707344)  # of pi's fraction: the two 64-bit halves of a 128-bit hash
_BLOCK = 1 << 15  # rows hashed together: their words stay in the cache
_FIRST_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)  # masks of a word's first n bytes
PAD_ID = MASK  # the row_id of a padding row


def mix(x: int) -> int:
    """Mixes one integer (mod 2^64) by splitmix64's finaliser, a bijection of 64-bit words."""
    x &= MASK
    x = ((x ^ (x >> 30)) * _M1) & MASK
    x = ((x ^ (x >> 27)) * _M2) & MASK
    return x ^ (x >> 31)


def mix_array(x: np.ndarray) -> np.ndarray:
    """Mixes every word of `x` (any shape, uint64) as `mix` does; returns a new uint64 array of that shape."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(_M1)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_M2)
    x ^= x >> np.uint64(31)
    return x


def unmix_array(x: np.ndarray) -> np.ndarray:
    """Returns the words that `mix_array` makes into `x` (any shape, uint64)."""
    x = x ^ (x >> np.uint64(31)) ^ (x >> np.uint64(62))
    x *= np.uint64(pow(_M2, -1, 1 << 64))
    x ^= (x >> np.uint64(27)) ^ (x >> np.uint64(54))
    x *= np.uint64(pow(_M1, -1, 1 << 64))
    x ^= (x >> np.uint64(30)) ^ (x >> np.uint64(60))
    return x


def key(*words: int) -> int:
    """Returns one 64-bit key for a tuple of integers, such as (seed, epoch)."""
    h = 0
    for word in words:
        h = mix(h * PHI + word + 1)
    return h


def key_of_text(text: str) -> int:
    """Returns the 64-bit key of a name, by its UTF-8 bytes."""
    raw = text.encode()
    return key(len(raw), *(int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)))


@dataclass(frozen=True, slots=True)
class FixedValues:
    """A column of fixed-width values as 64-bit words. `words`: uint64[B]; `valid`: bool[B], False where null."""

    words: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True, slots=True)
class ByteValues:
    """A column of byte strings. `data`: uint8[N], all bytes; `offsets`: int64[B + 1] into it; `valid`: bool[B]."""

    data: np.ndarray
    offsets: np.ndarray
    valid: np.ndarray


Values = FixedValues | ByteValues


@dataclass(frozen=True, slots=True)
class Hash128:
    """128-bit hashes, one a row: `hi` and `lo`, each uint64[B]."""

    hi: np.ndarray
    lo: np.ndarray

    def take(self, index: np.ndarray) -> "Hash128":
        """Returns the hashes at `index` (int[K] or bool[B])."""
        return Hash128(self.hi[index], self.lo[index])


def float_words(values: np.ndarray) -> np.ndarray:
    """Returns uint64[B]: the bits of float64[B] with -0.0 as 0.0 and one NaN, so that equal values hash equal."""
    values = np.where(np.isnan(values), np.nan, values.astype(np.float64) + 0.0)
    return np.ascontiguousarray(values).view(np.uint64)


def _byte_words(column: ByteValues, seed: int) -> np.ndarray:
    """Returns uint64[B]: a keyed hash of each string's length and bytes, eight bytes at a time."""
    length = np.diff(column.offsets)
    data = np.concatenate([column.data, np.zeros(8, np.uint8)])
    eight = np.ndarray((len(data) - 7,), np.dtype("<u8"), data, strides=(1,))  # the word that begins at each byte
    h = mix_array(length.astype(np.uint64) + np.uint64(seed))
    active = np.flatnonzero(length > 0)
    done = 0
    while len(active):
        left = length[active] - done
        word = eight[column.offsets[active] + done] & _FIRST_BYTES[np.minimum(left, 8)]
        h[active] = mix_array((h[active] ^ word) * np.uint64(PHI) + np.uint64(1))
        done += 8
        active = active[left > 8]
    return h


def matrix_words(matrix: np.ndarray) -> np.ndarray:
    """Returns uint64[B]: a hash of each row of uint64[B, W], the sum mod 2^64 of its words, each mixed with its place."""
    keys = mix_array(np.arange(matrix.shape[1], dtype=np.uint64) * np.uint64(PHI) + np.uint64(1))
    found, step = np.empty(len(matrix), np.uint64), max(_BLOCK // max(matrix.shape[1], 1), 1)
    for start in range(0, len(matrix), step):
        mix_array(matrix[start : start + step] ^ keys[None]).sum(axis=1, out=found[start : start + step])
    return found


def _mix_in_place(x: np.ndarray, scratch: np.ndarray) -> None:
    """Mixes every word of `x` as `mix_array` does; `scratch`: of its shape, overwritten."""
    for shift, factor in ((30, _M1), (27, _M2), (31, 0)):
        np.right_shift(x, np.uint64(shift), out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        if factor:
            np.multiply(x, np.uint64(factor), out=x)


def hash_columns(columns: Mapping[str, Values], num_rows: int, seed: int) -> Hash128:
    """Returns the 128-bit hash of every row of `columns` (B = `num_rows`), independent of the columns' order.

    Per value a null flag, then its word (or length and bytes); per column a key of its name and `seed`; the keyed values
    are added mod 2^64 and mixed, once for each half.
    """
    halves = []
    for lane in LANES:
        keys = {name: key(seed, lane, key_of_text(name)) for name in columns}
        keyed = [
            (keys[name], c.words if isinstance(c, FixedValues) else _byte_words(c, keys[name]), c.valid)
            for name, c in columns.items()
        ]
        blocks = [_hash_block(keyed, start, min(start + _BLOCK, num_rows), seed + lane) for start in range(0, num_rows, _BLOCK)]
        halves.append(np.concatenate([np.zeros(0, np.uint64), *blocks]))
    return Hash128(halves[0], halves[1])


def _hash_block(keyed: Sequence[tuple[int, np.ndarray, np.ndarray]], start: int, stop: int, seed: int) -> np.ndarray:
    """Returns uint64[stop - start]: half the hash of these rows, from each column's key, words [B] and validity [B]."""
    total, word, scratch = (np.zeros(stop - start, np.uint64) for _ in range(3))
    for column_key, words, valid in keyed:
        there = valid[start:stop]
        np.bitwise_xor(words[start:stop], np.uint64(column_key), out=word)
        _mix_in_place(word, scratch)
        np.copyto(word, np.uint64(mix(column_key + 1)), where=~there)
        np.add(word, np.uint64(column_key), out=word)
        np.add(word, there, out=word)
        _mix_in_place(word, scratch)
        np.add(total, word, out=total)
    np.bitwise_xor(total, np.uint64(mix(seed)), out=total)
    _mix_in_place(total, scratch)
    return total


def mix_hash(hashes: Hash128, salt: np.ndarray) -> Hash128:
    """Returns mix(hash, salt) for each row; `salt`: uint64[B], such as a copy's number or an index in a group."""
    word = mix_array(salt * np.uint64(PHI) + np.uint64(1))
    return Hash128(mix_array(hashes.hi ^ word), mix_array(hashes.lo + word))


def hash_sum(hashes: Hash128) -> int:
    """Returns the sum of the 128-bit hashes mod 2^128, as a Python integer."""

    def total(words: np.ndarray) -> int:
        low = int((words & np.uint64(0xFFFFFFFF)).sum(dtype=np.uint64))  # exact below 2^32 rows
        return low + (int((words >> np.uint64(32)).sum(dtype=np.uint64)) << 32)

    return ((total(hashes.hi) << 64) + total(hashes.lo)) & ((1 << 128) - 1)
