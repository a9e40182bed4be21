"""The mixing and the row hash: pinned words, and equality with the plain statement in Python integers."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.etl.schema import hashable
from mlprod.hashing import (
    LANES,
    MASK,
    PHI,
    ByteValues,
    FixedValues,
    Hash128,
    float_words,
    hash_columns,
    hash_sum,
    key,
    key_of_text,
    matrix_words,
    mix,
    mix_array,
    mix_hash,
    unmix_array,
)  # fmt: skip

WORDS = st.integers(0, MASK)
TEXT = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def hexes(hashes: Hash128) -> list[str]:
    return [f"{int(hi):016x}{int(lo):016x}" for hi, lo in zip(hashes.hi, hashes.lo, strict=True)]


def hashes_of(seed: int = 7, **columns: pa.Array) -> list[str]:
    return hexes(hash_columns({name: hashable(c) for name, c in columns.items()}, len(next(iter(columns.values()))), seed))


def plain_hash(row: dict[str, int | bytes | None], seed: int) -> str:
    """The row hash, stated for one row in Python integers: a value is its 64-bit word, its bytes, or None."""
    halves = []
    for lane in LANES:
        total = 0
        for name, value in row.items():
            column_key = key(seed, lane, key_of_text(name))
            if isinstance(value, bytes):
                word = mix(len(value) + column_key)
                for i in range(0, len(value), 8):
                    word = mix((word ^ int.from_bytes(value[i : i + 8], "little")) * PHI + 1)
                value = word
            flagged = mix(column_key + 1) if value is None else mix(value ^ column_key) + 1
            total += mix(flagged + column_key)
        halves.append(mix(total ^ mix(seed + lane)))
    return f"{halves[0]:016x}{halves[1]:016x}"


@pytest.mark.smoke
def test_golden_words():
    """Hashes decide splits, stored order and ids of every dataset: if these move, HASH_VERSION must too."""
    assert f"{mix(1):016x} {key(1, 2, 3):016x} {key(-1):016x}" == "5692161d100b05e5 3ffd8f9c9a6f8085 0000000000000000"
    assert f"{key_of_text('grün'):016x}" == "b653cd3d2ee7f065"
    rows = hashes_of(
        n=pa.array([0, -5, None]), x=pa.array([0.0, 1.5, None]), s=pa.array(["", "grün and twenty bytes", None]),
        b=pa.array([True, False, None]), t=pa.array([0, 1, None], pa.timestamp("us", tz="UTC")),
    )  # fmt: skip
    assert rows == ["9aadb1aacc6c0f190b522e82401458bf", "2169a12b3a17beba04e30522a2907e0a", "01ae0c783ec6342f797742581b544c6d"]


@settings(deadline=None)
@given(st.lists(WORDS, max_size=20))
def test_arrays_are_mixed_as_integers_are(words):
    assert mix_array(np.array(words, np.uint64)).tolist() == [mix(w) for w in words]


@settings(deadline=None)
@given(st.lists(WORDS, max_size=20))
def test_mixing_is_undone(words):
    assert unmix_array(mix_array(np.array(words, np.uint64))).tolist() == words


def test_mix_is_a_bijection_with_full_avalanche():
    """One flipped bit of the input flips each output bit about half of the time."""
    x = np.array([key(i) for i in range(1000)], np.uint64)
    flips = [np.unpackbits((mix_array(x) ^ mix_array(x ^ np.uint64(1 << b))).view(np.uint8)).mean() for b in range(64)]
    assert all(0.48 < share < 0.52 for share in flips)
    assert len(np.unique(mix_array(np.arange(100_000, dtype=np.uint64)))) == 100_000


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.none() | st.integers(-(1 << 63), (1 << 63) - 1), TEXT), min_size=1, max_size=6), WORDS)
def test_equals_the_plain_statement(rows, seed):
    """Integers, nulls and strings of 0 to 20 characters, multi-byte ones included."""
    numbers, texts = zip(*rows, strict=True)
    found = hashes_of(seed, n=pa.array(numbers, pa.int64()), s=pa.array(texts, pa.string()))
    encoded = [None if t is None else t.encode() for t in texts]
    assert found == [
        plain_hash({"n": None if n is None else n & MASK, "s": s}, seed) for n, s in zip(numbers, encoded, strict=True)
    ]


def test_columns_count_by_name_not_by_order():
    a, b = pa.array([1, 2, 3]), pa.array([4, 5, 6])
    assert hashes_of(a=a, b=b) == hashes_of(b=b, a=a)
    assert not set(hashes_of(a=a, b=b)) & set(hashes_of(a=b, b=a))
    assert not set(hashes_of(a=a)) & set(hashes_of(c=a))
    assert not set(hashes_of(1, a=a)) & set(hashes_of(2, a=a)), "the seed"


def test_null_zero_and_empty_are_three_values():
    numbers, floats = hashes_of(a=pa.array([None, 0, 1])), hashes_of(a=pa.array([None, 0.0, 5e-324]))
    texts = hashes_of(a=pa.array([None, "", "0", "\x01", " ", "\x01\x01"]))
    assert len({*numbers, *texts}) == len(numbers) + len(texts) - 1, "the null is the one value that they share"
    assert len(set(floats)) == 3


def test_equal_floats_are_one_value():
    """-0.0 is 0.0, and every NaN is one."""
    nans = np.array([0x7FF8000000000000, 0xFFF8000000000001, 0x7FF8000000000001], np.uint64).view(np.float64)
    assert len(set(float_words(nans).tolist())) == 1
    assert float_words(np.array([-0.0, 0.0])).tolist() == [0, 0]
    assert float_words(np.array([1.0, -1.0])).tolist() == [0x3FF0000000000000, 0xBFF0000000000000]


@pytest.mark.parametrize("nulls", [0, 7])
def test_a_slice_of_strings_hashes_as_its_copy(nulls):
    """Offsets into a shared buffer do not count, nor do the bytes before and after; lengths of 0 to 20 characters."""
    texts = [None if nulls and n % nulls == 3 else ("aü€😀x" * 5)[n % 3 : n % 3 + n] for n in range(21)]
    whole, hashes = pa.array(texts, pa.string()), hashes_of(s=pa.array(texts, pa.string()))
    assert len(set(hashes)) == len(set(texts))
    for start in range(22):
        for stop in {start, min(start + 1, 21), min(start + 4, 21), 21}:
            assert hashes_of(s=whole.slice(start, stop - start)) == hashes[start:stop]
            assert hashes_of(s=pa.array(texts[start:stop], pa.string())) == hashes[start:stop]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 49), max_size=60))
def test_a_row_hashes_alone_as_among_others(index):
    """Any subset of rows, in any order and with repeats, has the hashes that the rows have in the whole."""
    words = np.array([key(i) for i in range(50)], np.uint64)
    texts = [("ü€" * 15)[: key(i) % 20].encode() for i in range(50)]
    valid = np.array([key(i, 1) % 5 > 0 for i in range(50)])

    def columns(rows):
        offsets = np.cumsum([0, *(len(texts[i]) for i in rows)])
        data = np.frombuffer(b"".join(texts[i] for i in rows), np.uint8)
        at = np.array(rows, np.int64)
        return {"f": FixedValues(words[at], valid[at]), "s": ByteValues(data, offsets, valid[at])}

    whole = hash_columns(columns(range(50)), 50, 3)
    assert hexes(hash_columns(columns(index), len(index), 3)) == hexes(whole.take(np.array(index, np.int64)))


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), max_size=50))
def test_the_sum_is_that_of_big_integers(pairs):
    hashes = Hash128(np.array([p[0] for p in pairs], np.uint64), np.array([p[1] for p in pairs], np.uint64))
    assert hash_sum(hashes) == sum((hi << 64) + lo for hi, lo in pairs) % (1 << 128)


@settings(deadline=None)
@given(WORDS, WORDS, WORDS)
def test_a_salted_hash_is_its_plain_statement(hi, lo, salt):
    mixed = mix_hash(Hash128(np.array([hi], np.uint64), np.array([lo], np.uint64)), np.array([salt], np.uint64))
    word = mix(salt * PHI + 1)
    assert (int(mixed.hi[0]), int(mixed.lo[0])) == (mix(hi ^ word), mix(lo + word))


@given(st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_row_of_words_is_its_plain_statement_whatever_is_beside_it(rows):
    """Each word mixed with its place, added up; so two that change places are another row."""
    found = matrix_words(np.array(rows, np.uint64))
    wanted = [sum(mix(word ^ mix(j * PHI + 1)) for j, word in enumerate(row)) & MASK for row in rows]
    assert found.tolist() == wanted
    assert (matrix_words(np.array([rows[0][::-1]], np.uint64)) == found[0]).all() == (rows[0][0] == rows[0][2])
