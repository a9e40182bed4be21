"""Which split a row belongs to: a pure function of its own values, so no row ever moves when others come or go."""

from functools import singledispatch
from typing import Any

import numpy as np
import pyarrow as pa

from mlprod.config import ByGroup, ByHash
from mlprod.etl.schema import hashable
from mlprod.hashing import Hash128, hash_columns, key, mix_array

_SPLIT_KEY = 0x5D117  # sets the split's hash apart from the row's


def _cut(words: np.ndarray, seed: int, eval_share: float, test_share: float) -> np.ndarray:
    """Returns int8[B]: 0 train, 1 eval, 2 test, by where each keyed word (uint64[B]) falls among the shares."""
    point = mix_array(words ^ np.uint64(key(seed, _SPLIT_KEY))).astype(np.float64) / 2.0**64
    return np.where(point < eval_share, 1, np.where(point < eval_share + test_share, 2, 0)).astype(np.int8)


@singledispatch
def assign(split: Any, rows: pa.Table, identity: Hash128, seed: int) -> np.ndarray:
    """Returns int8[B], an index into `manifest.SPLITS`; `identity` is each row's key hash (row hash without a key)."""
    raise AssertionError(f"no split {type(split).__name__}")


@assign.register
def _(split: ByGroup, rows: pa.Table, identity: Hash128, seed: int) -> np.ndarray:
    group = hash_columns({name: hashable(rows[name]) for name in split.columns}, rows.num_rows, seed)
    return _cut(group.hi, seed, split.eval, split.test)


@assign.register
def _(split: ByHash, rows: pa.Table, identity: Hash128, seed: int) -> np.ndarray:
    return _cut(identity.hi, seed, split.eval, split.test)
