"""A digest of an array's bits and positions: on the devices under any layout, and its numpy twin.

Promise: equal arrays have equal digests on any layout; two swapped, changed or shifted values change it (2^-64).
Price: one pass over the array and no temporaries (one variadic reduce); no host gathers anything.

For each word w: h = w; for each dim d: h = fmix32(h ^ index along d); digest word = sum of fmix32(fmix32(h ^ bits) + w)
mod 2^32, bits = the bit pattern zero-extended to 32. fmix32 is MurmurHash3's finaliser (Appleby, public domain).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORDS = (0x9E3779B9, 0x7F4A7C15)
BLOCK_BYTES = 128 << 10  # of a host array at once
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}


def fmix32(h: Any) -> Any:
    """Mixes 32-bit words (a uint32 array of any shape, numpy or jax)."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def refused(dtype: np.dtype) -> str:
    """Returns why arrays of a dtype cannot be digested, so not saved; '' when they can."""
    if not isinstance(dtype, np.dtype):
        return "a typed random key; keep its data, not the key"
    if dtype.kind == "c":
        return "complex"
    if dtype.name in ("int2", "uint2", "int4", "uint4"):
        return "narrower than a byte"
    return "" if dtype.itemsize in _UNSIGNED else f"{dtype.itemsize * 8}-bit"


def digest(x: jax.Array) -> jax.Array:
    """Returns uint32[2] for an array of any shape whose dtype has 8, 16 or 32 bits."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    terms = []
    for w in WORDS:
        h = jnp.full(x.shape, w, jnp.uint32)
        for d in range(x.ndim):
            h = fmix32(h ^ jax.lax.broadcasted_iota(jnp.uint32, x.shape, d))
        terms.append(fmix32(fmix32(h ^ bits) + np.uint32(w)))
    zero = jnp.uint32(0)
    a, b = jax.lax.reduce(tuple(terms), (zero, zero), lambda p, q: (p[0] + q[0], p[1] + q[1]), tuple(range(x.ndim)))
    return jnp.stack([a, b])


def digest_numpy(x: np.ndarray, at: Sequence[int] = ()) -> np.ndarray:
    """Returns the same uint32[2] for a host array of any shape.

    Args:
        at: where its first value stands in a larger array of which it is a part; the digests of parts that make up an array
            add up, mod 2^32, to the array's.
    """
    dims, x = x.ndim, np.atleast_1d(np.ascontiguousarray(x))
    rows = max(1, BLOCK_BYTES * x.shape[0] // max(x.nbytes, 1))
    total = np.zeros(2, np.uint64)
    for start in range(0, x.shape[0], rows):  # in cache: two to three times as fast
        first = [start + (at[0] if at else 0), *(at[1:] if at else [0] * (dims - 1))]
        total += _block_digest(x[start : start + rows], first[:dims])
    return (total & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def _block_digest(x: np.ndarray, at: Sequence[int]) -> np.ndarray:
    """Returns uint64[2], sums not yet taken mod 2^32, of an array [n, ...] whose first value stands at `at`."""
    bits = x.view(np.uint8 if x.dtype == np.bool_ else _UNSIGNED[x.dtype.itemsize]).astype(np.uint32)
    sums = []
    for w in WORDS:
        h = np.full((1,) * x.ndim, w, np.uint32)
        for d, first in enumerate(at):
            index = np.arange(first, first + x.shape[d], dtype=np.uint32)
            h = fmix32(h ^ index.reshape([-1 if i == d else 1 for i in range(x.ndim)]))
        term = fmix32(fmix32(h ^ bits) + np.uint32(w))
        sums.append(term.sum(dtype=np.uint64))
    return np.array(sums, np.uint64)


def as_hex(words: Any) -> str:
    """Returns a fetched digest, uint32[2] of shape (2,), as 16 hex digits."""
    return "".join(f"{int(word):08x}" for word in words)
