"""The digest of an array: the same on any layout and in numpy, another for any change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mlprod.digest import WORDS, as_hex, digest, digest_numpy, refused
from mlprod.hashing import key, mix_array

SHAPES = [(), (3, 0, 2), (7,), (2, 3, 5)]
DTYPES = [np.float32, np.int32, np.uint32, np.float16, jnp.bfloat16, np.int16, np.int8, np.uint8, np.bool_]


def values(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    """Returns an array whose bits are all mixed; bools are 0 and 1."""
    size = int(np.prod(shape))
    words = mix_array(np.arange(size, dtype=np.uint64) + np.uint64(key(seed))).view(np.uint8).reshape(size, 8)
    if dtype == np.bool_:
        return (words[:, 0] % 2).astype(np.bool_).reshape(shape)
    return np.ascontiguousarray(words[:, : np.dtype(dtype).itemsize]).view(dtype).reshape(shape)


def fmix(h: int) -> int:
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def plain(array: np.ndarray) -> list[int]:
    """The digest, stated in Python integers for one value at a time."""
    bits = array.astype(np.uint8) if array.dtype == np.bool_ else array.view(f"u{array.dtype.itemsize}")
    out = []
    for w in WORDS:
        total = 0
        for index in np.ndindex(array.shape):
            h = w
            for i in index:
                h = fmix(h ^ i)
            total += fmix((fmix(h ^ int(bits[index])) + w) & 0xFFFFFFFF)
        out.append(total & 0xFFFFFFFF)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_device_numpy_and_the_plain_statement_agree(dtype):
    for shape in SHAPES:
        array = values(shape, dtype)
        assert np.asarray(jax.jit(digest)(array)).tolist() == digest_numpy(array).tolist() == plain(array), shape


def test_golden():
    """Digests stand in checkpoints: if this moves, no checkpoint can be read any more."""
    assert as_hex(digest_numpy(np.arange(12, dtype=np.float32).reshape(3, 4))) == "7a78964048dfff6d"


@pytest.mark.parametrize("spec", [P(), P("a"), P(None, "b"), P("b", "a"), P(("a", "b"))], ids=str)
def test_the_layout_does_not_count(spec):
    array = values((16, 8), np.float32)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    placed = jax.device_put(array, NamedSharding(mesh, spec))
    assert np.asarray(jax.jit(digest)(placed)).tolist() == digest_numpy(array).tolist()


def test_memory_order_does_not_count():
    array = values((6, 8), np.float32)
    assert digest_numpy(np.asfortranarray(array)).tolist() == digest_numpy(array).tolist()
    assert digest_numpy(array.T).tolist() != digest_numpy(array).tolist(), "but a transposed array is another"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 63), st.integers(0, 31), st.integers(0, 63))
def test_any_change_shows(at, bit, other):
    """A flipped bit, two swapped values, a shift, another shape."""
    array = values((64,), np.uint32)
    flipped, swapped = array.copy(), array.copy()
    flipped[at] ^= np.uint32(1 << bit)
    swapped[[at, other]] = swapped[[other, at]]
    changed = [flipped, np.roll(array, 1 + other % 63), array.reshape(8, 8), array[:-1], *([swapped] if at != other else [])]
    digests = {as_hex(digest_numpy(a)) for a in (array, *changed)}
    assert len(digests) == 1 + len(changed)


def test_bits_count_and_not_values():
    zeros = [np.zeros(3, np.float32), -np.zeros(3, np.float32)]
    nans = [np.array([bits], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FC00001)]
    assert len({as_hex(digest_numpy(a)) for a in zeros + nans}) == 4


def test_what_cannot_be_digested_is_named():
    assert refused(jax.random.key(0).dtype).startswith("a typed random key")
    assert refused(np.dtype(np.complex64)) == "complex"
    assert [refused(np.dtype(d)) for d in (np.float64, np.int64, np.uint64)] == ["64-bit"] * 3
    assert [refused(np.dtype(d)) for d in DTYPES] == [""] * len(DTYPES)
