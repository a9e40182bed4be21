"""Every model: output shapes, finite gradients to every parameter, one row of DIMS per array, batch sizes 1, 4, 8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlprod.features import Feature, FeatureSpec
from mlprod.models.mlp import MLPConfig, embedding_width
from mlprod.models.protocol import Constant, Table
from mlprod.parallel.layouts import dims_of
from mlprod.state import define_model, flatten

SPEC = FeatureSpec(
    features=(
        Feature(name="a", kind="numeric", mean=3.0, std=2.0),
        Feature(name="b", kind="numeric", mean=-1.0, std=0.5),
        Feature(name="color", kind="categorical", vocabulary=("blue", "red")),
        Feature(name="size", kind="categorical", vocabulary=tuple("0123456789")),
    )
)
MODELS = {"mlp": MLPConfig(hidden=(8, 4), dropout=0.5), "linear": MLPConfig(hidden=(1,), dropout=0.0)}


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
    head = nnx.to_pure_dict(clean)["head"]
    assert float(head["bias"][0]) == size


@pytest.mark.parametrize("name", MODELS)
def test_every_array_has_its_dims(name: str) -> None:
    """Each path matches one row of DIMS, of its rank; TABLES names just the tables."""
    model = MODELS[name].build(SPEC, nnx.Rngs(0))
    for kind in (nnx.Param, Table, Constant):
        for path, leaf in flatten(nnx.to_pure_dict(nnx.state(model, kind))).items():
            assert len(dims_of(path, model.DIMS)) == leaf.ndim
    assert set(flatten(nnx.to_pure_dict(nnx.state(model, Table)))) == {"embed/color/table", "embed/size/table"}


def test_tables_are_read_by_their_ids_alone() -> None:
    """A table replaced by its gathered rows, ids renumbered, gives the same logits: ids enter unchanged."""
    model = MODELS["mlp"].build(SPEC, nnx.Rngs(0))
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
    from mlprod.errors import ConfigError

    class Bad:
        def build(self, features: FeatureSpec, rngs: nnx.Rngs) -> nnx.Module:
            return nnx.Dropout(0.5, rngs=rngs)

    with pytest.raises(ConfigError, match="keeps random state"):
        define_model(Bad(), SPEC)


def test_embedding_width_grows_with_the_vocabulary() -> None:
    """1.6 n^0.56, at most the limit."""
    assert [embedding_width(n, 32) for n in (2, 10, 100, 10_000)] == [3, 6, 22, 32]
