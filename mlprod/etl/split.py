"""Which split a row belongs to: a pure function of its own values, so no row ever moves when others come or go."""

from functools import singledispatch
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import ByColumn, ByGroup, ByHash, ByTime
from mlprod.errors import DataError
from mlprod.etl.schema import combined, constant, hashable
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


@assign.register
def _(split: ByTime, rows: pa.Table, identity: Hash128, seed: int) -> np.ndarray:
    times = _complete(rows, split.column)
    where = f"config.etl.split: {split.column!r}"
    cuts = [(code, constant(text, times.type, where)) for code, text in ((1, split.eval), (2, split.test)) if text]
    if len(cuts) == 2 and not cuts[0][1].as_py() < cuts[1][1].as_py():
        raise DataError(f"config.etl.split: test={split.test!r} must be later than eval={split.eval!r}")
    code = np.zeros(len(times), np.int8)
    for later, first in cuts:
        code[np.asarray(pc.greater_equal(times, first))] = later
    return code


@assign.register
def _(split: ByColumn, rows: pa.Table, identity: Hash128, seed: int) -> np.ndarray:
    values = pc.cast(_complete(rows, split.column), pa.string())
    held_out = {value: code for code, named in ((1, split.eval), (2, split.test)) for value in named}
    at = pc.index_in(values, value_set=pa.array(list(held_out), pa.string()))
    codes = pa.array(list(held_out.values()), pa.int8())
    return np.asarray(pc.fill_null(codes.take(at), 0)).astype(np.int8)


def _complete(rows: pa.Table, name: str) -> pa.Array:
    """Returns a column that has a value in every row."""
    column = combined(rows[name])
    if column.null_count:
        raise DataError(
            f"column {name!r} has {column.null_count} missing value(s), and config.etl.split needs one in every row; mend them"
        )
    return column
