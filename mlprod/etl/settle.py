"""Settles the rows of one bucket among themselves: equal rows kept once or numbered, row ids given, splits checked.

Promise: a bucket holds every row of a key, so what is decided here holds for the whole input, whatever the chunks were.
Rows whose 128-bit hashes are equal are compared by value; only real duplicates are dropped.
Price: a sort of the bucket's hashes; rows with an equal neighbour are also turned into Python values.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.errors import DataError
from mlprod.hashing import PAD_ID, PHI, Hash128, mix_array, mix_hash, unmix_array

ROW, KEY, ORDER = ("_row_hi", "_row_lo"), ("_key_hi", "_key_lo"), ("_order_hi", "_order_lo")
SPLIT, TIE, ROW_ID, LABEL, AT = "_split", "_tie", "_row_id", "_label", "_at"


@dataclass(frozen=True, slots=True)
class Settled:
    """What a bucket became: which rows stay, in the order of (key hash, row hash), and what is added to them."""

    index: np.ndarray  # int64[K], of the rows in the bucket
    added: dict[str, np.ndarray]  # [K] each
    duplicates: int  # equal rows that were left out
    known: int  # rows that were left out, for a version before has them, or their key
    doubled: np.ndarray  # int64[D], of the rows in the bucket, by key hash: left out, for others have their key

    def rows(self, bucket: pa.Table) -> pa.Table:
        """Returns the rows that stay, with what is added."""
        rows = bucket.take(pa.array(self.index))
        for name, values in self.added.items():
            rows = rows.append_column(name, pa.array(values))
        return rows


def hashes_of(table: pa.Table, names: tuple[str, str]) -> Hash128:
    """Returns the two uint64[B] hash columns `names` of a table."""
    return Hash128(table[names[0]].to_numpy(), table[names[1]].to_numpy())


def key_hashes(table: pa.Table) -> Hash128:
    """Returns the key hashes of a table: the row hashes where there is no key."""
    return hashes_of(table, KEY if KEY[0] in table.column_names else ROW)


def _same_as_before(*words: np.ndarray) -> np.ndarray:
    """Returns bool[B]: whether each row equals the row before it in all `words`, uint64[B] each."""
    same = np.ones(len(words[0]), bool)
    same[:1] = False
    for word in words:
        same[1:] &= word[1:] == word[:-1]
    return same


def _run_index(same: np.ndarray) -> np.ndarray:
    """Returns int64[B]: each row's index within its run, where `same` (bool[B]) says that a row continues one."""
    starts = np.flatnonzero(~same)
    return np.arange(len(same)) - np.repeat(starts, np.diff(np.append(starts, len(same))))


def _texts(table: pa.Table, rows: np.ndarray, columns: list[str]) -> list[str]:
    """Returns the canonical text of the rows at `rows` (int64[K])."""
    return [repr(sorted(row.items())) for row in table.select(columns).take(rows).to_pylist()]


def _equal(table: pa.Table, left: np.ndarray, right: np.ndarray, columns: list[str]) -> np.ndarray:
    """Returns bool[K]: whether the rows at `left` and at `right` (int64[K] each) have the same values."""
    equal = np.ones(len(left), bool)
    for name in columns:
        a, b = (table[name].take(pa.array(at)) for at in (left, right))
        both_null = pc.and_(pc.is_null(a), pc.is_null(b))
        equal &= pc.or_(pc.fill_null(pc.equal(a, b), False), both_null).to_numpy()
    return equal


def _number_equals(
    table: pa.Table, order: np.ndarray, same: np.ndarray, columns: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Orders rows of equal hash by value; returns (order, copy number, tie number), int64[B] each.

    Args:
        order: of the table's rows so far, int64[B].
        same: bool[B], whether a row in that order has the hash of the one before.

    Copies of a row are 0, 1, 2, ...; different rows that share a hash are ties 0, 1, 2, ...
    """
    order, copy, tie = order.copy(), _run_index(same), np.zeros(len(same), np.int64)
    again = np.flatnonzero(same)
    other = again[~_equal(table, order[again - 1], order[again], columns)]
    starts = np.flatnonzero(~same)
    for start in np.unique(
        starts[np.searchsorted(starts, other, side="right") - 1]
    ).tolist():  # runs with a collision: hardly any
        stop = start + 1
        while stop < len(same) and same[stop]:
            stop += 1
        _number_collided(table, start, stop, columns, order, copy, tie)
    return order, copy, tie


def _number_collided(
    table: pa.Table, start: int, stop: int, columns: list[str], order: np.ndarray, copy: np.ndarray, tie: np.ndarray
) -> None:
    """Numbers the rows [start, stop), of equal hash and not all of equal values, in place."""
    texts = _texts(table, order[start:stop], columns)
    run = sorted(range(stop - start), key=texts.__getitem__)
    order[start:stop] = order[start:stop][run]
    copy[start] = 0
    for i in range(1, stop - start):
        equal = texts[run[i]] == texts[run[i - 1]]
        copy[start + i] = copy[start + i - 1] + 1 if equal else 0
        tie[start + i] = tie[start + i - 1] + (not equal)


def _row_ids(key_hi: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Returns uint64[B] row ids from key hashes and ranks among rows of equal key; never the pad's."""
    ids = mix_array(key_hi ^ mix_array(rank.astype(np.uint64) * np.uint64(PHI) + np.uint64(1)))
    return np.where(ids == np.uint64(PAD_ID), np.uint64(0), ids)


def key_words(row_ids: np.ndarray) -> np.ndarray:
    """Returns uint64[B]: the first half of the key hash that each row id was made of, of rows that are the first of their key."""
    first = mix_array(np.ones(1, np.uint64))  # of rank 0
    words: np.ndarray = unmix_array(row_ids) ^ first
    return words


def _check_splits(split: np.ndarray, key: Hash128, same_key: np.ndarray) -> None:
    """Raises DataError where a row continues a key (`same_key`: bool[B]) in another split (`split`: int8[B])."""
    torn = np.flatnonzero(same_key[1:] & (split[1:] != split[:-1]))
    if len(torn):
        raise DataError(
            f"{len(torn)} key(s) have rows in two splits (the first key hash is {int(key.hi[torn[0]]):016x}); "
            f"split by columns that the key decides, or give the rows a finer key"
        )


def _check_known_splits(split: np.ndarray, key: Hash128, known: np.ndarray) -> None:
    """Raises DataError where rows of a key are in another split of a version before (`known`: int64[B], -1: there are none)."""
    torn = np.flatnonzero((known >= 0) & (known != split))
    if len(torn):
        raise DataError(
            f"{len(torn)} new row(s) have a key whose rows of a version before are in another split (the first key hash is "
            f"{int(key.hi[torn[0]]):016x}); split by columns that the key decides, or build anew by config.etl.grow='refit'"
        )


def _by_key(row: Hash128, key: Hash128) -> np.ndarray:
    """Returns int64[B]: the order by (key hash, row hash). Sorted by one word, and by all only where that is not enough."""
    order = np.argsort(key.hi)
    tied = _same_as_before(key.hi[order])
    tied[:-1] |= tied[1:]
    rows = order[tied]
    order[tied] = rows[np.lexsort((row.lo[rows], row.hi[rows], key.lo[rows], key.hi[rows]))]
    return order


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of rows that are alike."""

    dedup: str  # "exact" keeps the first of equal rows, "none" keeps and numbers them, "key" keeps one row of each key
    columns: tuple[str, ...]  # by which rows of equal hash are compared
    key: tuple[str, ...] = ()  # by which keys of equal hash are compared
    keep: str = ""  # of "key": the row with the largest value of it; "": with the least row hash
    unique: bool = False  # rows that share their key are left out, all of them


@dataclass(frozen=True, slots=True)
class Known:
    """Rows of versions before, in the order of (key hash, row hash): [K] each."""

    key: Hash128
    row: Hash128
    split: np.ndarray

    def counts(self, key: Hash128, row: Hash128) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns of each row (known rows with its key, those of them with its row hash, their split or -1), int64[B] each."""
        begin, end = _spans((self.key.hi, self.key.lo), (key.hi, key.lo))
        first, last = _spans((self.key.hi, self.key.lo, self.row.hi, self.row.lo), (key.hi, key.lo, row.hi, row.lo))
        split = self.split[np.minimum(begin, max(len(self.split) - 1, 0))] if len(self.split) else np.zeros(len(begin), np.int8)
        return end - begin, last - first, np.where(end > begin, split, -1)


def nothing_known() -> Known:
    """Returns what is known before the first version."""
    none = np.zeros(0, np.uint64)
    return Known(Hash128(none, none), Hash128(none, none), np.zeros(0, np.int8))


def _spans(known: tuple[np.ndarray, ...], wanted: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (begin, end) of each of the wanted among the known, uint64 words, most significant first; the known ascend."""
    words = [np.concatenate(pair) for pair in zip(known, wanted, strict=True)]
    order = np.lexsort(tuple(reversed(words)))
    same = _same_as_before(*(word[order] for word in words))
    run = np.cumsum(~same) - 1
    counts = np.bincount(run[order.argsort()][: len(known[0])], minlength=int(run[-1]) + 1 if len(run) else 0)
    ends = np.cumsum(counts)
    at = run[order.argsort()][len(known[0]) :]
    return (ends - counts)[at], ends[at]


def settle(bucket: pa.Table, rule: Rule, known: Known) -> Settled:
    """Returns which rows of a bucket stay, and their `_order_hi`, `_order_lo`, `_tie` and `_row_id`.

    Args:
        bucket: rows with row hash, key hash where there is a key, and split; all rows of a key are in one bucket.
        known: those of versions before with the bucket's keys: their copies, keys and ranks are counted on.

    Raises:
        DataError: rows of one key are in two splits.
    """
    row, key = hashes_of(bucket, ROW), key_hashes(bucket)
    order = _by_key(row, key)
    same = _same_as_before(*(word[order] for word in (row.lo, row.hi, key.lo, key.hi)))
    order, copy, tie = _number_equals(bucket, order, same, list(rule.columns))
    of_key, equal, of_split = known.counts(key.take(order), row.take(order))
    copy = copy + equal
    fresh = {"none": copy >= 0, "exact": equal == 0, "key": of_key == 0}[rule.dedup]  # of no version before
    keep = np.flatnonzero(fresh & ((rule.dedup == "none") | (copy == 0)))
    if rule.dedup == "key":
        keep = keep[_best_of_key(bucket, order[keep], key.take(order[keep]), rule)]
    duplicates, known_rows = int(np.count_nonzero(fresh)) - len(keep), int(np.count_nonzero(~fresh))
    alone = _alone(key.take(order[keep])) & (of_key[keep] == 0) if rule.unique else np.ones(len(keep), bool)
    doubled, keep = order[keep[~alone]], keep[alone]
    index, copy, tie = order[keep], copy[keep], tie[keep]
    row, key = row.take(index), key.take(index)
    same_key = _same_as_before(key.lo, key.hi)
    split = bucket[SPLIT].to_numpy()[index]
    _check_splits(split, key, same_key)
    _check_known_splits(split, key, of_split[keep])
    copies = mix_hash(row, copy.astype(np.uint64))
    first = copy == 0
    added = {
        ORDER[0]: np.where(first, row.hi, copies.hi),
        ORDER[1]: np.where(first, row.lo, copies.lo),
        TIE: tie,
        ROW_ID: _row_ids(key.hi, of_key[keep] + _run_index(same_key)),
    }
    return Settled(index, added, duplicates, known_rows, doubled)


def _alone(key: Hash128) -> np.ndarray:
    """Returns bool[B]: whether no other row has a row's key; rows are in the order of their keys."""
    same = _same_as_before(key.lo, key.hi)
    alone = ~same
    alone[:-1] &= ~same[1:]
    return alone


def _best_of_key(bucket: pa.Table, order: np.ndarray, key: Hash128, rule: Rule) -> np.ndarray:
    """Returns int64[K], one index into `order` (int64[B], by key and row hash) for each key: that of the row to keep.

    Raises:
        DataError: two different keys have one hash.
    """
    same = _same_as_before(key.lo, key.hi)
    again = np.flatnonzero(same)
    if not _equal(bucket, order[again - 1], order[again], list(rule.key)).all():
        raise DataError("two keys have the same 128-bit hash; set another config.etl.hash_seed")
    if not rule.keep:
        return np.flatnonzero(~same)
    values = pc.rank(bucket[rule.keep], sort_keys="descending", null_placement="at_end", tiebreaker="dense").to_numpy()
    run = np.cumsum(~same)
    by_value = np.lexsort((values[order], run))  # stable: of equal values the least row hash is first
    return np.sort(by_value[np.flatnonzero(~_same_as_before(run[by_value]))])


def in_stored_order(bucket: pa.Table) -> pa.Table:
    """Returns a bucket of settled rows sorted by (order hash, key hash, tie): the last two decide where row hashes collide."""
    order, key = hashes_of(bucket, ORDER), key_hashes(bucket)
    return bucket.take(np.lexsort((bucket[TIE].to_numpy(), key.lo, key.hi, order.lo, order.hi)))
