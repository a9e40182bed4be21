"""The files: row groups cut by us, one content in either storage, sums that stand for every stored value."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod import features
from mlprod.config import ByHash, Column, categorical, numeric
from mlprod.data.reader import GroupReader
from mlprod.errors import ConfigError, DataError
from mlprod.etl.run import build
from mlprod.etl.schema import hashable
from mlprod.etl.write import Scale, exact_sums
from mlprod.features import Feature
from mlprod.hashing import FixedValues, hash_columns, hash_sum, mix_hash
from mlprod.manifest import SPLITS, content_id, sha256_file
from mlprod.store import open_store
from mlprod.validation import validate
from tests.plain import group_arrays, numbered, small_config, stored, stored_table, table_text

ALL = ByHash(eval=0.0, test=0.0)  # every row is a training row


def test_the_files_are_what_the_manifest_says(dataset, published):
    """Row groups of exactly `group_rows` rows but for the last of a split, `file_groups` of them in a file."""
    for name in SPLITS:
        sizes, shards = published.group_sizes(name), published.splits[name]
        assert set(sizes[:-1]) == {64}
        assert 0 < sizes[-1] <= 64
        assert [len(s.groups) for s in shards[:-1]] == [8] * (len(shards) - 1)
        for shard in shards:
            metadata = pq.ParquetFile(dataset / shard.path).metadata
            assert tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) == shard.groups
            assert ((dataset / shard.path).stat().st_size, sha256_file(dataset / shard.path)) == (shard.bytes, shard.sha256)
    named = {dataset / shard.path for shards in published.splits.values() for shard in shards}
    assert named == {p for p in (dataset / "files").rglob("*") if p.is_file()}


@pytest.mark.parametrize("num_rows", [15, 16, 17, 64, 65, 128])
def test_any_number_of_rows_is_cut_exactly(num_rows, tmp_path):
    """Whole groups, whole files, and one row more or less."""
    published, _ = build(small_config(tmp_path, numbered(num_rows), split=ALL, file_groups=4))
    sizes = [min(16, num_rows - i) for i in range(0, num_rows, 16)]
    assert [s.groups for s in published.splits["train"]] == [tuple(sizes[i : i + 4]) for i in range(0, len(sizes), 4)]
    assert published.splits["eval"] == published.splits["test"] == ()


def test_either_storage_is_one_content(make_config, dataset, published, tmp_path):
    """The same arrays, so the same dataset_id."""
    cfg = make_config()
    cfg = dataclasses.replace(cfg, dataset=str(tmp_path / "columns"), etl=dataclasses.replace(cfg.etl, storage="columns"))
    columns, _ = build(cfg)
    assert columns.dataset_id == published.dataset_id
    for split in SPLITS:
        readers = (
            GroupReader(open_store(str(dataset)), published, split),
            GroupReader(open_store(str(tmp_path / "columns")), columns, split),
        )
        for group in range(len(published.group_sizes(split))):
            packed, plain = (group_arrays(reader, group) for reader in readers)
            assert {k: v.tobytes() for k, v in packed.items()} == {k: v.tobytes() for k, v in plain.items()}
    names = pq.read_schema(tmp_path / "columns" / columns.splits["train"][0].path).names
    assert names == ["x", "n", "product", "color", "size", "label", "row_id", "day", "key_id"], "one column each, for other tools"


def test_a_groups_sum_stands_for_every_stored_value(dataset, published):
    """Computed anew from the files it is the manifest's, and so is the dataset_id; the index in the group counts."""
    numbers = [c.name for c in published.columns if c.kind == "numeric"]
    words = [c.name for c in published.columns if c.kind == "categorical"]
    for split in SPLITS:
        arrays, table = stored(dataset, published, split), stored_table(dataset, published, split)
        columns = dict(zip(numbers, arrays["numeric"].T.copy().view(np.uint32), strict=True))
        columns |= dict(zip(words, arrays["ids"].T.copy().view(np.uint32), strict=True))
        columns |= {"label": arrays["label"].view(np.uint32), "row_id": arrays["row_id"]}
        valid = np.ones(table.num_rows, bool)
        values = {name: FixedValues(w.astype(np.uint64), valid) for name, w in columns.items()}
        values |= {name: hashable(table[name]) for name in ("day", "key_id")}
        hashes, start, sums = hash_columns(values, table.num_rows, published.hash_seed), 0, []
        for size in published.group_sizes(split):
            group = hashes.take(np.arange(start, start + size))
            sums.append(f"{hash_sum(mix_hash(group, np.arange(size, dtype=np.uint64))):032x}")
            start += size
            assert hash_sum(mix_hash(group, np.arange(size, dtype=np.uint64)[::-1])) != int(sums[-1], 16)
        assert sums == [s for shard in published.splits[split] for s in shard.sums]
    text = (dataset / published.features).read_text()
    assert content_id(published.columns, text, published.splits) == published.dataset_id


def test_plain_columns_come_back_as_they_were(tmp_path):
    """Types and nulls of groups, times and keys; a key that is a feature too."""
    columns = (
        numeric("x"), categorical("s"), Column(name="t", type="timestamp", role="time"),
        Column(name="b", type="bool", role="group"), Column(name="w", role="weight", type="int64"),
    )  # fmt: skip
    rows = [
        (
            i,
            "ü€"[i % 2] if i % 3 else None,
            f"2024-01-{i + 1:02}T00:00:00+01:00" if i % 4 else None,
            ["t", "no", None][i % 3],
            i,
            i % 2,
        )
        for i in range(20)
    ]
    published, _ = build(
        small_config(tmp_path, table_text("x,s,t,b,w,y", *rows), columns, split=ALL, key=("s", "x"), dedup="none")
    )
    table = stored_table(tmp_path / "dataset", published, "train").sort_by("key_x")
    assert table["key_x"].to_pylist() == [float(r[0]) for r in rows]
    assert table["key_s"].to_pylist() == [r[1] for r in rows]
    assert table["b"].to_pylist() == [{"t": True, "no": False, None: None}[r[3]] for r in rows]
    assert table["w"].to_pylist() == [r[4] for r in rows]
    assert [t and f"{t:%Y-%m-%dT%H}" for t in table["t"].to_pylist()] == [
        f"{'2023-12-31' if i == 0 else f'2024-01-{i:02}'}T23" if i % 4 else None for i in range(20)
    ]
    reader = GroupReader(open_store(str(tmp_path / "dataset")), published, "train")
    assert sorted(np.concatenate([group_arrays(reader, g)["weight"] for g in (0, 1)]).tolist()) == [float(i) for i in range(20)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_mean_and_scale_are_those_of_exact_fractions(groups, fill):
    scale = Scale()
    for group in groups:
        scale.add(np.array([group]) - fill)
    values = [Fraction(float(v) - fill) for group in groups for v in group]
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    found = scale.fitted(Feature(name="x", kind="numeric", fill=fill), len(values))
    assert found.mean == pytest.approx(float(mean) + fill, rel=1e-12, abs=1e-9)
    if float(variance) > 1e-6 * (1 + float(mean) ** 2):
        assert found.std == pytest.approx(math.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("size", [1, 5, 4096, 10_000])
def test_sums_are_exact_in_any_order(size):
    """Over any range of exponents, with cancellation: as `math.fsum` has them."""
    chance = np.random.default_rng(size)
    values = chance.standard_normal((50, size)) * 10.0 ** chance.integers(-30, 30, (50, 1))
    values[10:20] *= 10.0 ** chance.integers(-9, 9, (10, size))
    values[20:30, : size // 2] = -values[20:30, size - size // 2 :]
    values[30] = 0.0
    wanted = [math.fsum(row) for row in values]
    assert exact_sums(values) == wanted
    assert exact_sums(chance.permuted(values, axis=1)) == wanted


def test_a_constant_has_scale_one():
    scale = Scale()
    scale.add(np.full((1, 7), 0.1 + 0.2))
    assert scale.fitted(Feature(name="x", kind="numeric", fill=5.0), 7) == Feature(
        name="x", kind="numeric", fill=5.0, mean=5.0 + 0.1 + 0.2, std=1.0
    )


def test_the_statistics_are_those_of_the_stored_training_rows(dataset, published):
    values = stored(dataset, published, "train")["numeric"].astype(np.float64)
    spec = features.loads((dataset / published.features).read_text())
    np.testing.assert_allclose([f.mean for f in spec.numeric], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose([f.std for f in spec.numeric], values.std(axis=0), rtol=1e-12)


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, text", [("int64", "3"), ("float64", "0.1"), ("bool", "true")])
def test_a_weight_is_stored_as_training_uses_it(kind, text, tmp_path):
    """float32, of any number: flags too."""
    columns = (numeric("x"), Column(name="w", role="weight", type=kind))
    published, _ = build(small_config(tmp_path, table_text("x,w,y", *((i, text, i % 2) for i in range(20))), columns, split=ALL))
    assert stored_table(tmp_path / "dataset", published, "train").schema.field("w").type == pa.float32()
    reader = GroupReader(open_store(str(tmp_path / "dataset")), published, "train")
    assert set(group_arrays(reader, 0)["weight"].tolist()) == {float(np.float32({"true": 1}.get(text, text)))}


def test_no_batch_has_a_weight_that_is_nan(tmp_path):
    """Filled or refused, but not trained on."""
    columns = (numeric("x"), Column(name="w", role="weight", type="float64"))
    text = table_text("x,w,y", *((i, None if i % 5 == 0 else 1.0, i % 2) for i in range(20)))
    try:
        published, _ = build(small_config(tmp_path, text, columns, split=ALL))
    except DataError:
        return
    assert not np.isnan(group_arrays(GroupReader(open_store(str(tmp_path / "dataset")), published, "train"), 0)["weight"]).any()


def test_stored_names_do_not_clash(tmp_path):
    """A key `id` is stored as `key_id`: no other column may have that name."""
    columns = (numeric("x"), Column(name="id", type="int64", role="input"), Column(name="key_id", type="int64", role="group"))
    with pytest.raises(ConfigError, match="'key_id' is the stored name of the key column 'id'"):
        validate(small_config(tmp_path, numbered(20), columns, key=("id",)))


def test_a_value_beyond_float32_is_refused(tmp_path):
    with pytest.raises(DataError, match="'x'"):
        build(small_config(tmp_path, numbered(20).replace("\n3,1.5,", "\n3,1e39,"), split=ALL))


@pytest.mark.parametrize(
    "columns",
    [
        (Column(name="w", type="string", role="weight"),),
        (Column(name="w", type="timestamp", role="weight"),),
        (Column(name="v", type="int64", role="weight"), Column(name="w", type="int64", role="weight")),
    ],
    ids=["string", "timestamp", "two"],
)
def test_a_weight_is_one_number(columns, tmp_path):
    with pytest.raises(ConfigError, match="weight"):
        validate(small_config(tmp_path, numbered(20), (numeric("x"), *columns)))


@pytest.mark.parametrize("name", ["_split", "_label", "packed_float32", "packed_int32"])
def test_names_of_our_own_columns_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=name):
        validate(small_config(tmp_path, numbered(20), (numeric("x"), Column(name=name, type="int64", role="group"))))
