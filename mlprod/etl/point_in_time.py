"""What is known at the time of a row: what came before it, and what another table said then.

Promise: a row sees what is before its time (of another table, where that is wanted, also at its time), and nothing later. What it
sees does not depend on how rows are ordered, or on rows of another key.
Price: some sorts of the rows, which are all in memory; `gather.py` brings those of a key together.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import AsOf, Histories, SqlSource
from mlprod.errors import DataError
from mlprod.etl.connection import named
from mlprod.etl.files import shown
from mlprod.etl.schema import combined, hashable
from mlprod.hashing import Hash128, hash_columns
from mlprod.made import as_text

VALUES_AT_ONCE = 1 << 22  # of histories


def with_histories(rows: pa.Table, step: Histories, separators: Mapping[str, str], *, once: bool) -> tuple[pa.Table, np.ndarray]:
    """Returns (rows with the columns of `step`, which of `rows` they are, int64[K] ascending: all, or the last of each).

    Of each of the columns: a text of the values of the `max_len` newest rows before, the newest first; null where there are none.
    A row without a time or one of `by` has none, and is in none.

    Args:
        separators: of each column: between its values.
        once: whether equal rows, by their 128-bit hashes, count as one.

    Raises:
        DataError: a value holds its separator.
    """
    (group,), (time,) = _groups([rows], [step.by]), _times([rows[step.order]])
    order, same_group, same_time, same_row = _ordered(rows, group, time)
    is_event = ~same_row if once else np.ones(len(order), bool)
    before = np.cumsum(is_event) - is_event  # of each in order: events in front of it
    end, begin = np.zeros(rows.num_rows, np.int64), np.zeros(rows.num_rows, np.int64)
    end[order] = before[_run_starts(same_time)]
    begin[order] = np.maximum(before[_run_starts(same_group)], end[order] - step.max_len)
    events = order[is_event]
    for name, column in step.columns.items():
        words = _words(rows[column], name, separators[name])
        rows = rows.append_column(name, _joined(words.take(pa.array(events)), begin, end, separators[name]))
    if step.each == "event":
        return rows, np.arange(rows.num_rows)
    last = np.sort(order[np.append(~same_group[1:], True)] if len(order) else order)
    return rows.take(pa.array(last)), last


def _joined(words: pa.Array, begin: np.ndarray, end: np.ndarray, separator: str) -> pa.ChunkedArray:
    """Returns string[B]: of each row words[begin:end], int64[B] each, the last one first; null where there are none."""
    size = int((end - begin).max(initial=1)) or 1
    parts, step = [], max(VALUES_AT_ONCE // size, 1)
    for at in range(0, len(begin), step):
        first, last = begin[at : at + step], end[at : at + step]
        offsets = np.concatenate([[0], np.cumsum(last - first)])
        lengths = np.diff(offsets)
        taken = np.repeat(last - 1, lengths) - (np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths))
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words.take(pa.array(taken)))
        parts.append(pc.if_else(pa.array(lengths > 0), pc.binary_join(lists, separator), pa.scalar(None, pa.string())))
    return pa.chunked_array(parts, pa.string())


def _words(column: pa.ChunkedArray, name: str, separator: str) -> pa.Array:
    """Returns a column's values as text, a missing one as none."""
    array = combined(column)
    if not pa.types.is_string(array.type):
        texts = as_text(np.asarray(pc.fill_null(array, False if pa.types.is_boolean(array.type) else 0)))
        array = pa.array(texts, pa.string(), mask=np.asarray(pc.is_null(array)))
    if pc.any(pc.match_substring(array, separator)).as_py():
        raise DataError(
            f"config.etl.gathered: a value that {name!r} would hold has its separator {separator!r} inside; set another "
            f"separator for {name!r} in config.etl.columns"
        )
    return pc.fill_null(array, "")


def with_as_of(rows: pa.Table, step: AsOf, other: pa.Table) -> pa.Table:
    """Returns rows with the columns of `step`: null where no row of the other is so old, or a key or time is missing.

    Args:
        other: rows of the source, under the names that the rows have for its columns: those of `by`, `time` and `columns`.

    Raises:
        DataError: two rows of it have one key and time, and differ.
    """
    right, left = _groups([other, rows], [tuple(step.by)] * 2)
    since, time = _times([other[step.time], rows[step.time]])
    _check_one_each(other, right, since, step)
    group, at = np.concatenate([right, left]), np.concatenate([since[0], time[0]])
    there = (group >= 0) & np.concatenate([since[1], time[1]])
    is_other = np.arange(len(group)) < len(right)
    order = np.lexsort((is_other != step.same_time, at, group))
    order = order[there[order]]
    newest = np.maximum.accumulate(np.where(is_other[order], np.arange(len(order)), -1))  # of the other, in front of each
    fits = (newest >= 0) & (group[order[newest]] == group[order])
    found = np.full(len(group), -1, np.int64)
    found[order] = np.where(fits, order[newest], -1)
    index = found[len(right) :]
    taken = pa.array(index, mask=index < 0)
    for name in step.columns:
        rows = rows.append_column(name, other[name].take(taken))
    return rows


def _check_one_each(other: pa.Table, group: np.ndarray, since: tuple[np.ndarray, np.ndarray], step: AsOf) -> None:
    """Raises DataError where rows of one key and time differ."""
    _, same_group, same_time, same_row = _ordered(other, group, since)
    doubled = np.count_nonzero(same_group & same_time & ~same_row)
    if doubled:
        raise DataError(
            f"config.etl.gathered: {doubled:,} row(s) of {_source_name(step)} have {', '.join(step.by.values())} and "
            f"{step.since} of another row, and other values, so it is not known which is right; leave all but one out"
        )


def _source_name(step: AsOf) -> str:
    return named(step.source) if isinstance(step.source, SqlSource) else shown(step.source.path)


def _ordered(
    rows: pa.Table, group: np.ndarray, time: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns (rows that have group and time, int64[K], by both; and whether each is like the one before it in group, also in
    time, also in all values: bool[K] each)."""
    values = {name: hashable(rows[name]) for name in rows.column_names if not name.startswith("_")}
    row = hash_columns(values, rows.num_rows, 0)
    there = (group >= 0) & time[1]
    order = np.lexsort((row.lo, row.hi, time[0], group))
    order = order[there[order]]
    same_group = _same_as_before(group[order])
    same_time = same_group & _same_as_before(time[0][order])
    return order, same_group, same_time, same_time & _same_as_before(row.hi[order]) & _same_as_before(row.lo[order])


def _same_as_before(values: np.ndarray) -> np.ndarray:
    same = np.zeros(len(values), bool)
    same[1:] = values[1:] == values[:-1]
    return same


def _run_starts(same: np.ndarray) -> np.ndarray:
    """Returns int64[K]: where the run begins that each is in; `same`: bool[K], whether it continues one."""
    return np.maximum.accumulate(np.where(same, 0, np.arange(len(same))))


def _groups(tables: Sequence[pa.Table], names: Sequence[Sequence[str]]) -> list[np.ndarray]:
    """Returns int64[B] of each table: equal numbers for equal values in the columns, -1 where one is missing."""
    rows, codes = [table.num_rows for table in tables], []
    for column in zip(*names, strict=True):
        values = pa.concat_arrays([combined(table[name]) for table, name in zip(tables, column, strict=True)])
        codes.append(np.asarray(pc.fill_null(pc.dictionary_encode(values).indices, -1)).astype(np.int64))
    missing = np.any([code < 0 for code in codes], axis=0)
    group = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].reshape(-1) if len(codes) > 1 else codes[0]
    return np.split(np.where(missing, -1, group), np.cumsum(rows)[:-1])


def _times(columns: Sequence[pa.ChunkedArray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (numbers in the order of the times, whether there is one), [B] each, of each column."""
    found = []
    for column in columns:
        array = combined(column)
        values = pc.cast(array, pa.int64()) if pa.types.is_timestamp(array.type) else array
        found.append((np.asarray(pc.fill_null(values, 0)), np.asarray(pc.is_valid(array))))
    return found


def key_hashes(rows: pa.Table, by: Sequence[str]) -> Hash128:
    """Returns the hashes by which rows of a key come together: the same in whatever table, under the same names."""
    return hash_columns({name: hashable(rows[name]) for name in by}, rows.num_rows, 0)
