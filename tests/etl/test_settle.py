"""Buckets, duplicates and row ids, and splits: the same whatever the chunks, and even where hashes collide."""

import datetime as dt
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import ByColumn, ByGroup, ByHash, ByTime
from mlprod.errors import DataError
from mlprod.etl import spill, split
from mlprod.etl.schema import hashable
from mlprod.etl.settle import KEY, ORDER, ROW, ROW_ID, SPLIT, TIE, Rule, in_stored_order, nothing_known, settle
from mlprod.hashing import MASK, PAD_ID, Hash128, hash_columns, mix, mix_array
from mlprod.hashing import key as key_of

ROWS = st.lists(st.tuples(st.integers(0, 3), st.none() | st.sampled_from(["", "a", "b"])), max_size=24)

# ---- the external sort's first half ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, MASK), max_size=40), st.integers(0, 8), st.integers(1, 41), st.sampled_from([0, 200, 1 << 20]))
def test_buckets_in_order_each_sorted_are_all_rows_sorted(tmp_path_factory, words, bits, chunk, held):
    folder, index = tmp_path_factory.mktemp("spill"), {}
    for i in range(0, len(words), chunk):
        with spill.Spill(folder / f"{i}.arrow", held) as out:
            hashes = np.array(words[i : i + chunk], np.uint64)
            table = pa.table({"h": hashes, "i": np.arange(i, i + len(hashes))})
            for half in (table.slice(0, chunk // 2), table.slice(chunk // 2)):
                out.add(half, spill.bucket_of(half["h"].to_numpy(), bits))
        index[f"{i}.arrow"] = out.batches
    found = [spill.read_bucket(folder, index, bucket) for bucket in range(1 << bits)]
    tables = [table for table in found if table is not None]
    assert [w for t in tables for w in sorted(t["h"].to_pylist())] == sorted(words)
    assert all(words[i] == w for t in tables for w, i in zip(t["h"].to_pylist(), t["i"].to_pylist(), strict=True)), (
        "rows stay whole"
    )
    assert all(t["i"].to_pylist() == sorted(t["i"].to_pylist()) for t in tables), "and in the order in which they came"
    assert len(tables) == len({w >> (64 - bits) for w in words}), "an empty bucket is no table"
    assert all(spill.read_bucket(folder, index, w >> (64 - bits), ["i"]).column_names == ["i"] for w in words[:1])


def test_rows_that_are_gathered_are_fewer_batches(tmp_path):
    """A batch a bucket for each time that so many bytes have come, and for the rest."""
    rows, counts = pa.table({"i": np.arange(100)}), []
    for held_bytes in (0, 3 * rows.nbytes, 1 << 20):
        with spill.Spill(tmp_path / f"{held_bytes}.arrow", held_bytes) as out:
            for _ in range(10):
                out.add(rows, np.arange(100) % 5)
        counts.append(len(out.batches))
    assert counts == [50, 15, 5]


def test_a_file_is_there_when_it_is_whole(tmp_path):
    """An error leaves none, and no rows make none."""
    out = spill.Spill(tmp_path / "a.arrow")
    out.add(pa.table({"i": [1]}), np.zeros(1, np.int64))
    out.__exit__(RuntimeError)
    with spill.Spill(tmp_path / "b.arrow") as out:
        pass
    assert out.batches == []
    assert not list(tmp_path.glob("*.arrow"))


@pytest.mark.parametrize(
    "expected, memory, bits",
    [(0, 6 << 20, 0), (1 << 20, 6 << 20, 0), ((1 << 20) + 1, 6 << 20, 1), (4 << 20, 6 << 20, 2), (1 << 62, 1 << 30, 10)],
)
def test_a_bucket_takes_a_sixth_of_the_memory(expected, memory, bits):
    assert spill.num_bits(expected, memory) == bits


# ---- equal rows --------------------------------------------------------------------------------------------------------


def bucket_of(rows: list[tuple[int, str | None]], bits: int = 64, key: tuple[str, ...] = ("n",)) -> pa.Table:
    """Returns rows (n, s) with row hashes of which only the top bits are left; without a key these are the key hashes too."""
    columns = {"n": pa.array([n for n, _ in rows], pa.int64()), "s": pa.array([s for _, s in rows], pa.string())}
    out = pa.table(columns)
    for names, of, left in ((ROW, ("n", "s"), bits), (KEY, key or ("n", "s"), 64 if key else bits)):
        hashes = hash_columns({name: hashable(columns[name]) for name in of}, len(rows), 0)
        kept = np.uint64(MASK << (64 - left) & MASK)
        out = out.append_column(names[0], pa.array(hashes.hi & kept))
        out = out.append_column(names[1], pa.array(hashes.lo & (kept if left == 64 else np.uint64(0))))
    return out.append_column(SPLIT, pa.array(np.zeros(len(rows), np.int8)))


def settled_rows(bucket: pa.Table, dedup: str) -> pa.Table:
    """The rows of a bucket that stay."""
    return settle(bucket, Rule(dedup, ("n", "s")), nothing_known()).rows(bucket)


@settings(deadline=None, max_examples=100)
@given(ROWS, st.sampled_from([0, 1, 2, 64]), st.sampled_from(["exact", "none"]), st.randoms(use_true_random=False))
def test_real_duplicates_are_dropped_or_numbered_even_where_hashes_collide(rows, bits, dedup, random):
    """Few bits of hash make rows collide; the result is the set (or multiset) of rows, in an order of its own."""
    bucket = bucket_of(rows, bits)
    settled = settle(bucket, Rule(dedup, ("n", "s")), nothing_known())
    wanted, stored = Counter(set(rows)) if dedup == "exact" else Counter(rows), in_stored_order(settled.rows(bucket))
    assert Counter(settled_pairs(stored)) == wanted
    assert settled.duplicates == len(rows) - wanted.total()
    turned = rows.copy()
    random.shuffle(turned)
    again = in_stored_order(settled_rows(bucket_of(turned, bits), dedup))
    assert again.equals(stored), "the order in which rows came does not count"


@settings(deadline=None, max_examples=60)
@given(ROWS, st.sampled_from([0, 2, 64]))
def test_row_ids_and_order_hashes_tell_rows_apart(rows, bits):
    """Copies of a row do not lie side by side: each but the first has an order hash of its own."""
    table = settled_rows(bucket_of(rows, bits, key=()), "none")
    ids = table[ROW_ID].to_pylist()
    assert len(set(ids)) == len(rows)
    assert PAD_ID not in ids
    orders = set(zip(*(table[name].to_pylist() for name in (*ORDER, *KEY, TIE)), strict=True))
    assert len(orders) == len(rows)
    first = {}
    for row, hi, order in zip(settled_pairs(table), table[ROW[0]].to_pylist(), table[ORDER[0]].to_pylist(), strict=True):
        first.setdefault(row, []).append(hi == order)
    assert all(kept.count(True) == 1 for kept in first.values()), "the first copy keeps the row's own hash"
    assert in_stored_order(table.take(np.arange(len(rows))[::-1])).equals(in_stored_order(table))


def settled_pairs(table: pa.Table) -> list[tuple[int, str | None]]:
    return list(zip(table["n"].to_pylist(), table["s"].to_pylist(), strict=True))


def test_a_row_id_follows_from_the_key_and_the_rank_under_it():
    """Rows of other keys change nothing; the same key has the same ids."""
    alone = settled_rows(bucket_of([(1, "a"), (1, "b")]), "exact")
    among = settled_rows(bucket_of([(0, "z"), (1, "b"), (2, None), (1, "a"), (1, "a")]), "exact")
    ids = [dict(zip(settled_pairs(t), t[ROW_ID].to_pylist(), strict=True)) for t in (alone, among)]
    assert ids[0] == {row: i for row, i in ids[1].items() if row[0] == 1}


def unmix(x: int) -> int:
    """Returns the word whose `mix` is x."""
    x ^= x >> 31 ^ x >> 62
    x = x * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK
    x ^= x >> 27 ^ x >> 54
    x = x * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK
    return x ^ x >> 30 ^ x >> 60


def test_no_row_has_the_id_of_the_padding():
    """Not even the one key in 2^64 whose mixed hash is the pad's."""
    bucket = bucket_of([(1, "a")])
    hi = pa.array([unmix(PAD_ID) ^ mix(1)], pa.uint64())
    bucket = bucket.set_column(bucket.column_names.index(KEY[0]), KEY[0], hi)
    assert settled_rows(bucket, "exact")[ROW_ID].to_pylist() == [0]


def test_a_key_in_two_splits_is_refused():
    bucket = bucket_of([(1, "a"), (1, "b"), (2, "a")])
    torn = bucket.set_column(bucket.column_names.index(SPLIT), SPLIT, pa.array(np.array([0, 1, 2], np.int8)))
    with pytest.raises(DataError, match=r"1 key\(s\) have rows in two splits"):
        settle(torn, Rule("exact", ("n", "s")), nothing_known())
    assert settled_rows(torn.slice(1), "exact").num_rows == 2


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.none() | st.integers(-3, 3), st.integers(0, 2)), max_size=24), st.data())
def test_one_row_of_each_key_stays(rows, data):
    """The one with the largest value, a missing one least; of several the one with the least row hash, however rows came."""
    table = pa.table({name: pa.array([row[i] for row in rows], pa.int64()) for i, name in enumerate(("k", "v", "w"))})
    hashes = hash_columns({name: hashable(table[name]) for name in ("k", "v", "w")}, len(rows), 0)
    keys = hash_columns({"k": hashable(table["k"])}, len(rows), 0)
    for names, of in ((ROW, hashes), (KEY, keys)):
        table = table.append_column(names[0], pa.array(of.hi)).append_column(names[1], pa.array(of.lo))
    table = table.append_column(SPLIT, pa.array(np.zeros(len(rows), np.int8)))
    keep = data.draw(st.sampled_from(["", "v"]))
    wanted = {}
    for row, _ in sorted(zip(rows, hashes.hi.tolist(), strict=True), key=lambda pair: pair[1]):
        value = -10 if row[1] is None or not keep else row[1]
        if row[0] not in wanted or value > wanted[row[0]][0]:
            wanted[row[0]] = (value, row)
    turned = table.take(data.draw(st.permutations(range(len(rows)))) if rows else pa.array([], pa.int64()))
    settled = settle(turned, Rule("key", ("k", "v", "w"), ("k",), keep), nothing_known())
    assert [tuple(row.values()) for row in settled.rows(turned).select(["k", "v", "w"]).to_pylist()] == [
        wanted[k][1] for k in sorted(wanted, key=lambda k: keys.hi.tolist()[[r[0] for r in rows].index(k)])
    ]
    assert settled.duplicates == len(rows) - len(wanted)


def test_two_keys_of_one_hash_are_not_one_key():
    bucket = bucket_of([(1, "a"), (2, "a")])
    for name in KEY:
        bucket = bucket.set_column(bucket.column_names.index(name), name, pa.array(np.zeros(2, np.uint64)))
    with pytest.raises(DataError, match="two keys have the same 128-bit hash"):
        settle(bucket, Rule("key", ("n", "s"), ("n",)), nothing_known())


# ---- splits ------------------------------------------------------------------------------------------------------------


def assigned(kind, numbers: list[int], seed: int = 0) -> list[int]:
    """Returns the splits of rows with group n // 10 and key n."""
    rows = pa.table({"group": pa.array([n // 10 for n in numbers], pa.int64())})
    words = mix_array(np.array(numbers, np.uint64))
    return split.assign(kind, rows, Hash128(words, words), seed).tolist()


def test_shares_are_about_as_asked():
    numbers = list(range(50_000))
    for kind in (ByHash(eval=0.2, test=0.1), ByGroup(columns=("group",), eval=0.2, test=0.1)):
        found = assigned(kind, numbers)
        assert [round(found.count(code) / len(found), 1) for code in (0, 1, 2)] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize(
    "kind", [ByHash(eval=0.3, test=0.3), ByGroup(columns=("group",), eval=0.3, test=0.3)], ids=["hash", "group"]
)
def test_a_row_never_moves_when_others_come_or_go(kind):
    numbers = [key_of(i) % 300 for i in range(200)]
    whole = assigned(kind, numbers)
    assert assigned(kind, numbers[::3]) == whole[::3]
    assert assigned(kind, numbers[::-1]) == whole[::-1]
    assert assigned(kind, numbers, seed=1) != whole


def test_a_group_goes_to_one_split():
    found = assigned(ByGroup(columns=("group",), eval=0.3, test=0.3), list(range(300)))
    groups = [set(found[i : i + 10]) for i in range(0, 300, 10)]
    assert all(len(codes) == 1 for codes in groups)
    assert set().union(*groups) == {0, 1, 2}


def test_no_share_leaves_everything_to_training():
    assert set(assigned(ByHash(eval=0.0, test=0.0), list(range(1000)))) == {0}


def column_of(values: list, kind: pa.DataType) -> pa.Table:
    return pa.table({"c": pa.array(values, kind)})


@pytest.mark.parametrize(
    "values, kind, cuts",
    [
        ([0, 9, 10, 19, 20, 99, -5], pa.int64(), ("10", "20")),
        ([0.0, 9.9, 10.0, 19.9, 20.0, 1e9, -1e9], pa.float64(), ("1e1", "20")),
        ([dt.datetime(2024, 1, d, tzinfo=dt.UTC) for d in (1, 9, 10, 19, 20, 30, 2)], pa.timestamp("us", "UTC"),
         ("2024-01-10", "2024-01-20T00:00:00Z")),
    ],
)  # fmt: skip
def test_later_rows_are_held_out(values, kind, cuts):
    """Each split begins at its first value, and ends before that of the next."""
    none = Hash128(np.zeros(7, np.uint64), np.zeros(7, np.uint64))
    rows = column_of(values, kind)
    assert split.assign(ByTime(column="c", eval=cuts[0], test=cuts[1]), rows, none, 0).tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert split.assign(ByTime(column="c", eval=cuts[0]), rows, none, 0).tolist() == [0, 0, 1, 1, 1, 1, 0]
    with pytest.raises(DataError, match="must be later than"):
        split.assign(ByTime(column="c", eval=cuts[1], test=cuts[0]), rows, none, 0)
    with pytest.raises(DataError, match="'soon' is not"):
        split.assign(ByTime(column="c", eval="soon"), rows, none, 0)


@pytest.mark.parametrize(
    "values, kind, held_out",
    [(["a", "b", "c"], pa.string(), "bc"), ([1, 2, 3], pa.int64(), "23"), ([True, False], pa.bool_(), ())],
)
def test_a_column_says_what_is_held_out(values, kind, held_out):
    """Values as text; what is not named trains."""
    none = Hash128(np.zeros(len(values), np.uint64), np.zeros(len(values), np.uint64))
    evals, tests = (held_out[0], held_out[1]) if held_out else ("false", "true")
    found = split.assign(ByColumn(column="c", eval=(evals,), test=(tests,)), column_of(values, kind), none, 0).tolist()
    assert found == ([0, 1, 2] if held_out else [2, 1])


@pytest.mark.parametrize("kind", [ByTime(column="c", eval="1"), ByColumn(column="c", eval=("1",))], ids=["time", "column"])
def test_a_row_without_the_splits_value_is_refused(kind):
    none = Hash128(np.zeros(2, np.uint64), np.zeros(2, np.uint64))
    with pytest.raises(DataError, match=r"column 'c' has 1 missing value\(s\), and config\.etl\.split needs one"):
        split.assign(kind, column_of([1, None], pa.int64()), none, 0)
