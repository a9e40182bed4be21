"""Every model: output shapes, finite gradients to every parameter, one row of DIMS per array, batch sizes 1, 4, 8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.errors import ConfigError
from mlprod.features import Feature, FeatureSpec, Target
from mlprod.models.layers import embedding_width
from mlprod.models.mlp import MLPConfig
from mlprod.models.protocol import Constant, Table
from mlprod.models.tabular import Numbers, TabularConfig
from mlprod.parallel.layouts import dims_of
from mlprod.state import define_model, flatten

SPEC = FeatureSpec(
    features=(
        Feature(name="a", kind="numeric", mean=3.0, std=2.0, quantiles=tuple(i * i / 100 for i in range(65))),
        Feature(name="b", kind="numeric", mean=-1.0, std=0.5, quantiles=(0.0,) * 40 + (1.0,) * 25),
        Feature(name="color", kind="categorical", vocabulary=("blue", "red")),
        Feature(name="size", kind="categorical", vocabulary=tuple("0123456789")),
    ),
    target=Target(mean=0.5),
)
MODELS = {
    "mlp": MLPConfig(hidden=(8, 4), dropout=0.5), "linear": MLPConfig(hidden=(1,), dropout=0.0),
    "tabular": TabularConfig(hidden=(8, 4), members=3, bins=8, embedding=2, dropout=0.5),
}  # fmt: skip
TASKS = {
    "binary": Target(mean=0.5), "regression": Target(task="regression", mean=2.0, std=3.0),
    "classes": Target(task="classes", classes=("x", "y"), counts=(1, 2)),
}  # fmt: skip


def batch(size: int) -> dict[str, jax.Array]:
    """A batch of `size` rows whose last row is padding, when there are several."""
    i = np.arange(size)
    rows = {
        "numeric": np.stack([i * 1.5, -0.1 * i], axis=1).astype(np.float32),
        "color": (i % 4).astype(np.int32),
        "size": (i % 12).astype(np.int32),
        "label": (i % 2).astype(np.float32),
        "weight": np.where(i == size - 1, np.float32(size == 1), np.float32(1)).astype(np.float32),
        "row_id": np.stack([i, i], axis=1).astype(np.uint32),
    }
    return {name: jnp.asarray(values) for name, values in rows.items()}


@pytest.mark.parametrize("size", [1, 4, 8])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients(name: str, size: int) -> None:
    """Logits are float32[B]; the loss is a weighted sum; every parameter and touched table gets a finite gradient."""
    model = MODELS[name].build(SPEC, nnx.Rngs(0))
    rows = batch(size)
    logits = model(rows)
    assert (logits.shape, logits.dtype) == ((size,), jnp.float32)
    total, weight = model.loss(logits, rows)["loss"]
    assert float(weight) == max(size - 1, 1)
    assert np.isfinite(total)
    graph, params, tables, rest = nnx.split(model, nnx.Param, Table, ...)

    def loss(trained: tuple[nnx.State, nnx.State]) -> jax.Array:
        module = nnx.merge(graph, *trained, rest)
        return module.loss(module(rows, rngs=nnx.Rngs(dropout=1)), rows)["loss"][0]

    for path, gradient in flatten(tuple(nnx.to_pure_dict(g) for g in jax.jit(jax.grad(loss))((params, tables)))).items():
        assert np.isfinite(gradient).all(), path
    clean = jax.jit(jax.grad(lambda p: nnx.merge(graph, p, tables, rest)(rows).sum()))(params)
    bias = float(nnx.to_pure_dict(clean)["head"]["bias"].sum())
    assert bias == pytest.approx(size, rel=0.3 if name == "tabular" else 1e-6)  # a mean of probabilities is no mean of logits


@pytest.mark.parametrize("name", MODELS)
def test_every_array_has_its_dims(name: str) -> None:
    """Each path matches one row of DIMS, of its rank; TABLES names just the tables."""
    model = MODELS[name].build(SPEC, nnx.Rngs(0))
    for kind in (nnx.Param, Table, Constant):
        for path, leaf in flatten(nnx.to_pure_dict(nnx.state(model, kind))).items():
            assert len(dims_of(path, model.DIMS)) == leaf.ndim
    assert set(flatten(nnx.to_pure_dict(nnx.state(model, Table)))) == {"embed/color/table", "embed/size/table"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["mlp", "tabular"])
def test_every_task_has_its_outputs(name: str, task: str) -> None:
    """One a row, or one a class; members' losses in training, weighted rows, and the same loss for the same members."""
    spec = dataclasses.replace(SPEC, target=TASKS[task])
    model, rows = MODELS[name].build(spec, nnx.Rngs(0)), batch(8)
    outputs = model(rows)
    assert outputs.shape == ((8, 2) if task == "classes" else (8,))
    assert model.objective.scores(outputs).shape == outputs.shape
    members = model(rows, rngs=nnx.Rngs(dropout=0))
    assert members.shape == (outputs.shape if name == "mlp" else (8, 3, *outputs.shape[1:]))
    total, weight = model.loss(members, rows)["loss"]
    assert weight == 7
    if name == "tabular":
        alone = [model.loss(members[:, k], rows)["loss"][0] for k in range(3)]
        assert float(total) == pytest.approx(float(np.mean(alone)), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=65, max_size=65),
    st.lists(st.floats(-2e4, 2e4, width=32), min_size=1, max_size=9),
)
def test_an_embedding_is_piecewise_linear_in_a_number(edges: list[float], values: list[float]) -> None:
    """With pieces of any size it is the function that goes through its bends, constant beyond the first and last of them."""
    quantiles = tuple(float(v) for v in np.sort(np.array(edges, np.float32)))
    bends = np.unique(quantiles[::4])
    if len(bends) < 2 or np.diff(bends).min() < 1e-3:
        return
    numbers = Numbers((Feature(name="a", kind="numeric", quantiles=quantiles),), 16, 1, nnx.Rngs(0))
    rise = np.random.default_rng(0).normal(size=len(bends) - 1)
    pieces = np.zeros((1, 16, 1), np.float32)
    pieces[0, : len(rise), 0] = rise
    numbers.pieces[...], numbers.slope[...], numbers.bias[...] = jnp.asarray(pieces), jnp.zeros((1, 1)), jnp.zeros((1, 1))
    found = numbers.embedded(jnp.asarray(np.array(values, np.float32)[:, None]))[:, 0, 0]
    assert found == pytest.approx(np.interp(values, bends, np.concatenate([[0.0], np.cumsum(rise)])), abs=0.02)


def test_numbers_are_scaled_by_their_quartiles() -> None:
    """(x - median) / deviation of a normal distribution of these quartiles, softly clipped at 3; of equal ones, its own."""
    numbers = Numbers(SPEC.numeric, 8, 1, nnx.Rngs(0))
    lower, middle, upper = (i * i / 100 for i in (16, 32, 48))
    deviation = (upper - lower) / 1.35
    found = numbers(jnp.array([[middle, 0.0], [middle + deviation, 1.0], [1e9, 1e9]], jnp.float32))[:, :2]
    assert found[0] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert found[1] == pytest.approx([(1 + 1 / 9) ** -0.5, 1.35 * (1 + (1.35 / 3) ** 2) ** -0.5], rel=1e-5)
    assert found[2] == pytest.approx([3.0, 3.0], rel=1e-4)


def test_a_dataset_without_quantiles_is_refused() -> None:
    """It was built by an older mlprod; bins must divide the quantiles."""
    spec = FeatureSpec(features=(Feature(name="a", kind="numeric"),))
    with pytest.raises(ConfigError, match="no quantiles of 'a'; build it anew"):
        TabularConfig().build(spec, nnx.Rngs(0))
    with pytest.raises(ConfigError, match="bins=48 must divide 64"):
        TabularConfig(bins=48).build(SPEC, nnx.Rngs(0))


@pytest.mark.parametrize("name", ["mlp", "tabular"])
def test_tables_are_read_by_their_ids_alone(name: str) -> None:
    """A table replaced by its gathered rows, ids renumbered, gives the same outputs: ids enter unchanged."""
    model = MODELS[name].build(SPEC, nnx.Rngs(0))
    rows = batch(8)
    before = model(rows)
    ids, position = jnp.unique(rows["size"], return_inverse=True)
    model.embed["size"].table = Table(model.embed["size"].table[...][ids])
    np.testing.assert_array_equal(model({**rows, "size": position.astype(jnp.int32)}), before)


def test_padding_and_weights() -> None:
    """A row of weight 0 changes neither loss nor gradient; a row of weight 2 counts as two."""
    model = MODELS["mlp"].build(SPEC, nnx.Rngs(0))
    rows = batch(4)
    other = {**rows, "numeric": rows["numeric"].at[3].set(9.0), "label": 1 - rows["label"].at[:3].set(1 - rows["label"][:3])}
    assert float(model.loss(model(rows), rows)["loss"][0]) == float(model.loss(model(other), other)["loss"][0])
    twice = {**rows, "weight": rows["weight"] * 2}
    assert float(model.loss(model(twice), twice)["loss"][0]) == 2 * float(model.loss(model(rows), rows)["loss"][0])


def test_input_is_standardised_by_the_training_split() -> None:
    """The first layer is (x - mean) / std, cut at the limit; its constants are not parameters."""
    model = MODELS["mlp"].build(SPEC, nnx.Rngs(0))
    out = model.standardize(jnp.array([[3.0, -1.0], [5.0, -0.5], [1000.0, -1000.0]]))
    np.testing.assert_allclose(out, [[0, 0], [1, 1], [5, -5]], atol=1e-6)
    assert not any("standardize" in path for path in flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))))


def test_a_model_that_keeps_random_state_is_refused() -> None:
    """Random counters in the saved state would make a resume differ: refused by name."""

    class Bad:
        def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
            return nnx.Dropout(0.5, rngs=rngs)

    with pytest.raises(ConfigError, match="keeps random state"):
        define_model(Bad(), SPEC)


def test_embedding_width_grows_with_the_vocabulary() -> None:
    """1.6 n^0.56, at most the limit."""
    assert [embedding_width(n, 32) for n in (2, 10, 100, 10_000)] == [3, 6, 22, 32]
