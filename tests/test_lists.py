"""Features of many categories a row: the same ids from texts and from lists, by their plain meaning, and what a model makes of
them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import Config, CsvSource, JsonLinesSource, LoaderConfig, ParquetSource, multivalued, numeric
from mlprod.errors import DataError
from mlprod.etl.run import build
from mlprod.features import FIRST, MISSING, UNKNOWN, Feature, FeatureSpec, apply, dumps, loads
from mlprod.made import RawColumn
from mlprod.models.layers import Bag
from mlprod.models.mlp import MLPConfig
from mlprod.models.tabular import TabularConfig
from mlprod.plan import make_plan
from mlprod.train import train
from tests.plain import ID, small_config, stored, table_text

TAGS = Feature(name="tags", kind="list", vocabulary=("a", "b", "c"), length=3)


def ids_of(feature: Feature, texts: list[str | None]) -> list[list[int]]:
    raw = RawColumn(values=np.array([text or "" for text in texts], np.str_), valid=np.array([t is not None for t in texts]))
    ids = apply(FeatureSpec(features=(feature,)), {feature.name: raw})[feature.name]
    assert ids.dtype == np.int32
    return ids.tolist()


def plainly(feature: Feature, text: str | None) -> list[int]:
    words = text.split(feature.separator)[: feature.length] if text else []
    ids = [MISSING if not w else FIRST + feature.vocabulary.index(w) if w in feature.vocabulary else UNKNOWN for w in words]
    return ids + [MISSING] * (feature.length - len(ids))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.text("abcd|", max_size=12), min_size=1, max_size=8))
def test_ids(texts):
    assert ids_of(TAGS, texts) == [plainly(TAGS, text) for text in texts]


def test_ids_of_hashed_values_are_those_of_a_category():
    hashed = dataclasses.replace(TAGS, vocabulary=(), buckets=5)
    category = Feature(name="tag", kind="categorical", buckets=5)
    raw = RawColumn(values=np.array(["x", "yy", "zzz"]), valid=np.ones(3, bool))
    alone = apply(FeatureSpec(features=(category,)), {"tag": raw})["tag"].tolist()
    assert ids_of(hashed, ["x|yy|zzz"]) == [alone]


def test_a_list_is_kept_in_the_fitted_transform():
    spec = FeatureSpec(features=(TAGS, Feature(name="c", kind="categorical", vocabulary=("v",))))
    assert loads(dumps(spec)) == spec
    assert "length" not in json.loads(dumps(spec))["features"][1]


LISTS = [["a", "b"], [], None, ["c", "a", "b", "a"], ["b", None], [""], ["a", "a"], ["rare"]] * 6
COLUMNS = (ID, numeric("x"), multivalued("tags", 3, min_count=7))


def config(folder: Path, source: object, **etl) -> Config:
    cfg = small_config(folder, None, COLUMNS, source=source, **etl)
    return dataclasses.replace(cfg, loader=LoaderConfig(global_batch=8), steps=3)


def written(folder: Path) -> dict[str, object]:
    """The same rows as CSV, JSON lines and Parquet: of text, lists, lists of dictionaries' codes, and numbers."""
    texts = ["" if tags is None else "|".join(tag or "" for tag in tags) for tags in LISTS]
    csv = folder / "rows.csv"
    csv.write_text(table_text("id,x,tags,y", *((i, i / 3, text, i % 2) for i, text in enumerate(texts))))
    objects = [{"id": i, "x": i / 3, "tags": tags, "y": i % 2} for i, tags in enumerate(LISTS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
    pq.write_table(pa.Table.from_pylist(objects), folder / "rows.parquet")
    clean = pa.Table.from_pylist([{**row, "tags": row["tags"] and [t or "" for t in row["tags"]]} for row in objects])
    pq.write_table(clean, folder / "clean.parquet")
    return {
        "csv": CsvSource(path=str(csv)), "jsonl": JsonLinesSource(path=str(folder / "rows.jsonl")),
        "parquet": ParquetSource(path=str(folder / "rows.parquet")), "clean": ParquetSource(path=str(folder / "clean.parquet")),
    }  # fmt: skip


@pytest.mark.parametrize("storage", ["packed", "columns"])
def test_texts_and_lists_are_the_same_features(storage, tmp_path):
    found = {}
    for name, source in written(tmp_path).items():
        cfg = config(tmp_path / name, source, storage=storage)
        published, _ = build(cfg)
        plan = make_plan(cfg, jax.devices()[:1])
        (tags,) = plan.features.lists
        assert tags.vocabulary == ("a", "b")  # c is there 6 times
        assert [c.shape for c in published.columns if c.kind == "list"] == [(3,)]
        rows = {}
        for split in published.splits:
            kept = stored(tmp_path / name / "dataset", published, split)
            rows |= dict(zip(kept["id"].tolist(), kept["ids"].tolist(), strict=True))
        wanted = [None if tags is None else "|".join(t or "" for t in tags) for tags in LISTS]
        assert rows == {i: plainly(tags, text) for i, text in enumerate(wanted)}
        found[name] = rows
        train(cfg, jax.devices()[:1])
    assert all(rows == found["csv"] for rows in found.values())


@pytest.mark.parametrize(
    "values, told",
    [
        ([["a|b"]], r"row 1: column 'tags': \['a\|b'\] has a value that holds the separator '\|'"),
        ([["a"], [1.5]], "has a value that is no text, whole number or bool"),
        ([[["a"]]], "a value that is no text"),
    ],
)
def test_what_is_no_list_of_categories(values, told, tmp_path):
    rows = {"id": list(range(len(values))), "x": [1.0] * len(values), "y": [1] * len(values)}
    lists = pa.array([*values[:-1], values[-1]]) if len(values) == 1 else pa.array([[1.0], [1.5]])
    pq.write_table(pa.table({**rows, "tags": lists}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=told):
        build(config(tmp_path, ParquetSource(path=str(tmp_path / "rows.parquet"))))


def test_a_list_is_no_value_of_another_column(tmp_path):
    pq.write_table(pa.table({"id": [0], "x": [[1.0]], "tags": [["a"]], "y": [1]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"column 'x': .* is not float64"):
        build(config(tmp_path, ParquetSource(path=str(tmp_path / "rows.parquet"))))


def test_a_bag_is_the_mean_of_a_rows_values():
    bag = Bag(5, 4, nnx.Rngs(0))
    table = np.asarray(bag.table[...])
    ids = [[2, 4, 1], [0, 1, 1], [1, 1, 1], [3, 3, 3]]
    wanted = [(table[2] + table[4]) / 2, table[0], table[1], table[3]]
    np.testing.assert_allclose(bag(jnp.array(ids, jnp.int32)), wanted, rtol=1e-6)


@pytest.mark.parametrize("model", [MLPConfig(hidden=(8,)), TabularConfig(hidden=(8,), members=2)])
def test_models_see_which_values_a_row_has_and_not_in_which_order(model):
    spec = FeatureSpec(features=(Feature(name="x", kind="numeric", quantiles=tuple(map(float, range(65)))), TAGS))
    net = model.build(spec, nnx.Rngs(0))

    def scored(*ids: int) -> float:
        return float(net({"numeric": jnp.ones((1, 1)), "tags": jnp.array([ids], jnp.int32)})[0])

    assert scored(2, 3, 1) == pytest.approx(scored(3, 2, 1), rel=1e-5)
    assert scored(2, 3, 1) != pytest.approx(scored(2, 4, 1), rel=1e-3)
