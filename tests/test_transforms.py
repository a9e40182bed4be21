"""Every transform at once: the same raw rows give the same bits through ETL, `predict`, row by row, and by numpy alone."""

import dataclasses
import datetime as dt
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from flax import nnx

from mlprod.config import (
    Column,
    Cross,
    IsMissing,
    Label,
    TimePart,
    bucketed,
    categorical,
    crossed,
    is_missing,
    multivalued,
    numeric,
    time_cycle,
    time_part,
)
from mlprod.errors import ConfigError
from mlprod.etl.derive import derive
from mlprod.etl.run import build
from mlprod.etl.schema import Loose, raw_column
from mlprod.features import Feature, FeatureSpec, apply
from mlprod.models.layers import Standardize, shaped
from mlprod.models.mlp import MLPConfig
from mlprod.models.tabular import TabularConfig
from mlprod.plan import make_plan
from mlprod.predict import model_arrays, ready_rows, typed_etl, typed_rows
from mlprod.train import train
from mlprod.validation import validate
from tests.plain import ID, small_config, stored, table_text


def double(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"twice": rows["x"] * 2})


COLUMNS = (
    ID,
    numeric("x", clip_low=-3.0, clip_high=40.0, log=True), numeric("n", type="int64", missing="mean", scale="quantile"),
    numeric("z", missing="constant", constant=-1.0, scale="piecewise"), is_missing("no_z", of="z"),
    numeric("twice", derived=True, scale="none"), bucketed("size", of="x", edges=(2.0, 9.5)),
    categorical("kind", min_count=2), categorical("word", buckets=5),
    Column(name="at", type="timestamp", role="input"), time_part("weekday", of="at", part="weekday"),
    time_part("hour", of="at", part="hour", kind="numeric"), *time_cycle("day", of="at", period="day"),
    crossed("both", of=("kind", "hour"), buckets=11), crossed("pair", of=("kind", "weekday")),
    multivalued("tags", 3, min_count=2), multivalued("hashed", 4, buckets=7, separator=" ", source="said"),
)  # fmt: skip


def rows(n: int = 60) -> list[tuple[object, ...]]:
    begin = dt.datetime(2024, 2, 27, 5)
    return [
        (
            i,
            None if i % 11 == 3 else (i - 5) * 1.25,
            None if i % 7 == 1 else i * i,
            None if i % 3 == 0 else i / 7,
            None if i % 13 == 2 else "abc"[i % 3],
            None if i % 17 == 4 else f"w{i * 7 % 23}",
            None if i % 19 == 6 else (begin + dt.timedelta(hours=7 * i)).isoformat(),
            None if i % 9 == 4 else "|".join(f"t{j * i % 8}" for j in range(i % 6)) + "|" * (i % 2),
            " ".join(f"say{j * i % 13}" for j in range(i % 5)),
            i % 2,
        )
        for i in range(n)
    ]


HEADER = "id,x,n,z,kind,word,at,tags,said,y"


def config(folder: Path, **etl):
    cfg = small_config(folder, table_text(HEADER, *rows()), COLUMNS, transform=double, **etl)
    cfg = dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, global_batch=8), steps=2)
    validate(cfg)
    return cfg


def loose(found: list[tuple[object, ...]]) -> Loose:
    columns = {name: [row[i] for row in found] for i, name in enumerate(HEADER.split(","))}
    text = {name: [None if v is None else str(v) for v in values] for name, values in columns.items()}
    return Loose(text, len(found), str, {})


def test_the_same_bits_by_every_way(tmp_path):
    cfg = config(tmp_path)
    published, _ = build(cfg)
    plan = make_plan(cfg, jax.devices()[:1])
    etl = typed_etl(plan)
    whole, reasons = ready_rows(etl, *typed_rows(etl, loose(rows()), []))
    assert reasons == [None] * 60
    predicted = model_arrays(plan, whole)
    for split in published.splits:
        kept = stored(tmp_path / "dataset", published, split)
        for name in ("numeric", "ids"):
            assert kept[name].tobytes() == predicted[name][kept["id"]].tobytes(), (split, name)
    singles = [model_arrays(plan, ready_rows(etl, *typed_rows(etl, loose([row]), []))[0]) for row in rows()]
    for name, values in predicted.items():
        assert values.tobytes() == np.concatenate([single[name] for single in singles]).tobytes(), name
    # By numpy alone: what is made of others is made by `apply`; the hook's column is given.
    given = [c.name for c in etl.columns if c.extracted] + ["twice"]
    alone = apply(plan.features, {name: raw_column(whole[name]) for name in given})
    assert alone["numeric"].tobytes() == predicted["numeric"].tobytes()
    ids = [alone[f.name].reshape(60, -1) for f in (*plan.features.categorical, *plan.features.lists)]
    assert np.concatenate(ids, axis=1).tobytes() == predicted["ids"].tobytes()


def test_what_the_columns_become(tmp_path):
    """Against a plain statement of each."""
    cfg = config(tmp_path)
    build(cfg)
    plan = make_plan(cfg, jax.devices()[:1])
    etl = typed_etl(plan)
    whole, _ = ready_rows(etl, *typed_rows(etl, loose(rows()), []))
    arrays = apply(plan.features, {f.name: raw_column(whole[f.name]) for f in plan.features.features})
    numbers = {f.name: arrays["numeric"][:, i] for i, f in enumerate(plan.features.numeric)}
    assert numbers["no_z"].tolist() == [float(row[3] is None) for row in rows()]
    assert numbers["z"].tolist() == [np.float32(-1.0 if row[3] is None else row[3]) for row in rows()]
    assert set(arrays["word"].tolist()) == {1, 2, 3, 4, 5, 6}
    vocabulary = next(f for f in plan.features.categorical if f.name == "size").vocabulary
    size = [None if row[1] is None else str(int(row[1] >= 2.0) + int(row[1] >= 9.5)) for row in rows()]
    assert arrays["size"].tolist() == [1 if s is None else 2 + vocabulary.index(s) for s in size]


def test_a_tweak_of_the_model_needs_no_other_dataset(tmp_path):
    """Clips, logarithms and scales are the model's: the dataset is the same, a run on it is another."""
    cfg = config(tmp_path)
    first, _ = build(cfg)
    train(cfg, jax.devices()[:1])
    changed = dataclasses.replace(cfg.etl.columns[1], clip_high=30.0)
    other = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, columns=(ID, changed, *COLUMNS[2:])))
    assert build(other) == (first, False)
    with pytest.raises(ConfigError, match=r"etl\.columns\[1\]\.clip_high=40\.0, now 30\.0; set it back, or use another workdir"):
        train(other, jax.devices()[:1])


# ---- the model's first layer -------------------------------------------------------------------------------------------

VALUES = np.sort(np.concatenate([np.random.default_rng(0).lognormal(1, 1, 900), np.full(100, 2.0)])).astype(np.float32)
QUANTILES = tuple(VALUES[(np.arange(65) * 999) // 64].astype(float).tolist())
NUMBER = Feature(
    name="x", kind="numeric", fill=2.0, mean=float(VALUES.mean()), std=float(VALUES.std()), quantiles=QUANTILES
)  # fmt: skip


def layer(*features: Feature) -> Standardize:
    return Standardize(FeatureSpec(features=features), 5.0)


def out(standardize: Standardize, values: np.ndarray) -> np.ndarray:
    width = standardize.mean.shape[0]
    return np.asarray(standardize(jnp.asarray(np.repeat(values[:, None], width, axis=1))))


def test_logarithms_and_clips():
    f = dataclasses.replace(NUMBER, clip_low=0.5, clip_high=20.0, log=True)
    bent = np.log1p(np.clip(VALUES.astype(np.float64), 0.5, 20.0))
    assert (shaped(f).mean, shaped(f).std) == (pytest.approx(bent.mean(), abs=0.01), pytest.approx(bent.std(), abs=0.01))
    wanted = (bent - shaped(f).mean) / shaped(f).std
    np.testing.assert_allclose(out(layer(f), VALUES)[:, 0], wanted, atol=1e-5)
    assert shaped(NUMBER) is NUMBER
    minus = dataclasses.replace(NUMBER, log=True, mean=0.0, std=1.0, quantiles=())
    few = VALUES[VALUES < 50]  # others are cut, at five deviations
    np.testing.assert_allclose(out(layer(minus), -few)[:, 0] + out(layer(minus), few)[:, 0], -2 * np.log1p(2.0), atol=1e-5)


def test_ranks():
    """Ascending from -1 to 1, as many rows in each tenth, the middle rank where many rows have one value."""
    ranks = out(layer(dataclasses.replace(NUMBER, scale="quantile")), VALUES)[:, 0]
    assert (ranks[0], ranks[-1]) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02))
    assert (np.diff(ranks) >= -1e-6).all()
    np.testing.assert_allclose(ranks, np.linspace(-1, 1, 1000), atol=0.12)
    tied = np.linspace(-1, 1, 1000)[VALUES == 2.0]
    assert ranks[VALUES == 2.0] == pytest.approx((tied[0] + tied[-1]) / 2, abs=0.03)


def test_piecewise_parts_add_up_to_the_number():
    """Each is how much of its part lies below; together with the parts' widths they are the number again."""
    pieces = out(layer(dataclasses.replace(NUMBER, scale="piecewise")), VALUES)
    edges = np.unique(np.array(QUANTILES[::4]))
    inside = np.clip(VALUES, edges[0], edges[-1]) == VALUES
    again = edges[0] + (pieces[:, : len(edges) - 1] * np.diff(edges)).sum(axis=1)
    np.testing.assert_allclose(again[inside], VALUES[inside], rtol=1e-4)
    assert pieces.shape == (1000, 16)


def test_scales_side_by_side():
    """The parts of a row come in the order standard, none, quantile, piecewise; `width` says how many there are."""
    fs = [dataclasses.replace(NUMBER, name=s, scale=s) for s in ("piecewise", "none", "model", "quantile")]
    mixed = layer(*fs)
    found = out(mixed, VALUES)
    assert found.shape == (1000, mixed.width) == (1000, 19)
    alone = [out(layer(fs[i]), VALUES) for i in (2, 1, 3, 0)]
    np.testing.assert_array_equal(found, np.concatenate(alone, axis=1))


def test_what_a_model_cannot_scale_is_refused():
    spec = FeatureSpec(features=(dataclasses.replace(NUMBER, scale="none"),))
    with pytest.raises(ConfigError, match="'x' has scale='none', but TabularConfig scales numbers in its own way"):
        TabularConfig().build(spec, nnx.Rngs(0))
    spec = FeatureSpec(features=(dataclasses.replace(NUMBER, scale="quantile", quantiles=()),))
    with pytest.raises(ConfigError, match="has no quantiles of 'x'"):
        MLPConfig().build(spec, nnx.Rngs(0))


def test_the_tabular_model_sees_clipped_numbers():
    """What lies beyond the clip is to it what lies on it."""
    f = dataclasses.replace(NUMBER, clip_high=9.0, log=True)
    model = TabularConfig(hidden=(8,), members=2).build(FeatureSpec(features=(f,)), nnx.Rngs(0))
    at, beyond = (model({"numeric": jnp.full((3, 1), value)}) for value in (9.0, 500.0))
    np.testing.assert_array_equal(at, beyond)


@pytest.mark.parametrize(
    "column, told",
    [
        (time_part("p", of="x", part="hour"), "'p'.*'x' is float64; TimePart is made of columns of timestamp"),
        (time_part("p", of="later", part="hour"), "is made of 'later', which is no column before it"),
        (time_part("p", of="y", part="hour"), "is made of 'y', which is no column before it"),
        (time_part("p", of="at", part="hours"), "must be one of 'year'"),
        (dataclasses.replace(time_part("p", of="at", part="hour"), type="string"), "is string; TimePart makes int64"),
        (bucketed("p", of="x", edges=(2.0, 1.0)), r"edges=\(2\.0, 1\.0\) must ascend"),
        (crossed("p", of=("kind",)), "a cross is of two columns or more"),
        (Column(name="p", type="bool", made=IsMissing(of="x"), source="q"), "only one can be"),
        (Column(name="p", type="int64", made=TimePart(of="at", part="hour"), derived=True), "only one can be"),
        (
            Column(name="p", type="auto", kind="categorical", made=Cross(of=("kind", "word"))),
            "is made of others; declare its type",
        ),
        (numeric("p", buckets=4), "has buckets=4, which are for categorical features"),
        (categorical("p", log=True), "which are for numeric features"),
        (numeric("p", clip_low=1.0, clip_high=1.0), "must be below clip_high=1"),
        (multivalued("p", 0), "has max_len=0 and separator='|'; of a list, say how many values of a row a model sees"),
        (multivalued("p", 2, separator=""), "separator=''; of a list"),
        (multivalued("p", 2, type="int64"), "is for features of type 'string'"),
        (multivalued("p", 2, role="input"), "is for features of type 'string'"),
        (categorical("p", max_len=2), "has max_len=2, which is for kind='list'"),
    ],
)
def test_what_a_config_cannot_say(column, told, tmp_path):
    columns = (ID, numeric("x"), categorical("kind"), categorical("word"), Column(name="at", type="timestamp", role="input"))
    with pytest.raises(ConfigError, match=told):
        validate(small_config(tmp_path, None, (*columns, column), label=Label(column="y")))


def test_a_hook_does_not_see_what_is_made_of_others(tmp_path):
    seen = list[str]()

    def look(rows: pd.DataFrame) -> pd.DataFrame:
        seen.extend(rows.columns)
        return pd.DataFrame({"twice": rows["x"]})

    etl = dataclasses.replace(config(tmp_path).etl, transform=look)
    table = pa.table({
        "id": [1], "x": [1.0], "n": [1], "z": [1.0], "kind": ["a"], "word": ["b"],
        "at": pa.array([0], pa.timestamp("us", "UTC")), "tags": ["c"], "hashed": ["d"],
    })  # fmt: skip
    assert derive(etl, table)["hour"].to_pylist() == [0]
    assert seen == ["id", "x", "n", "z", "kind", "word", "at", "tags", "hashed"]
