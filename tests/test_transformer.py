"""The transformer: equal to plain lines on any layout, causal, its documents apart, and no logits or float32 weights in whole."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from mlprod.config import MeshConfig, PrecisionConfig
from mlprod.errors import ConfigError
from mlprod.features import FeatureSpec, Target
from mlprod.models import attention
from mlprod.models.cross_entropy import token_losses
from mlprod.models.spread import Spread
from mlprod.models.transformer import REMAT, TransformerConfig
from mlprod.optim import learning_rate
from tests import plain_transformer
from tests.language import LENGTH, NUM_IDS, OPTIM, SMALL, STEPS, packed_rows, shapes_of, text_features, trainer

BATCHES = [packed_rows(seed) for seed in range(STEPS)]
MESHES = {
    "data8": MeshConfig(fsdp=(1,), layout="data"),
    "fsdp8": MeshConfig(data=1, fsdp=(8,)),
    "fsdp4x2": MeshConfig(data=1, fsdp=(4, 2)),
    "fsdp4-tensor2": MeshConfig(data=1, fsdp=(4,), tensor=2, layout="fsdp_tensor"),
    "data2-fsdp2-tensor2": MeshConfig(data=2, fsdp=(2,), tensor=2, layout="fsdp_tensor"),
    "slice2-fsdp4": MeshConfig(slice=2, data=1, fsdp=(4,)),
}


@pytest.fixture(scope="module")
def steps() -> list[tuple[float, float]]:
    """Losses and lengths of gradients on one device."""
    return trainer().steps(BATCHES)


@pytest.fixture(scope="module")
def one(steps: list[tuple[float, float]]) -> list[float]:
    """Losses on one device."""
    return [loss for loss, _ in steps]


@pytest.mark.parametrize("tied", [False, True])
def test_it_learns_like_plain_lines(one: list[float], tied: bool) -> None:
    """Twenty steps from the same parameters on the same batches: the same losses, and they fall."""
    made = trainer(dataclasses.replace(SMALL, tied=tied))
    found = made.losses(BATCHES) if tied else one
    state, rates = made.fresh(), [float(learning_rate(OPTIM, STEPS)(i)) for i in range(STEPS)]
    named = [made.model.named({name: jnp.asarray(values) for name, values in rows.items()}) for rows in BATCHES]
    assert found == pytest.approx(plain_transformer.train(state.params, named, rates, SMALL.head_width, NUM_IDS), rel=1e-5)
    assert found[-1] < found[0] - 0.5


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_layouts_equal_one_device(mesh: MeshConfig, steps: list[tuple[float, float]]) -> None:
    """Twenty steps on 8 devices: losses within 1e-5 of one device's, of gradients that are clipped by their length over all."""
    (losses, lengths), (alone, of_one) = (
        zip(*found, strict=True) for found in (trainer(mesh=mesh, devices=jax.devices()).steps(BATCHES), steps)
    )
    assert losses == pytest.approx(alone, rel=1e-5)
    assert lengths == pytest.approx(of_one, rel=1e-4)
    assert min(of_one) > OPTIM.clip_norm


def test_microbatches_equal_the_batch(one: list[float]) -> None:
    """Parts of a batch, one after another on devices that share rows and keep what came over the wire."""
    made = trainer(dataclasses.replace(SMALL, remat="collectives"), MESHES["fsdp4-tensor2"], jax.devices(), microbatches=2)
    assert made.losses(BATCHES) == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("remat", sorted(set(REMAT) - {"full", "collectives"}))
def test_what_is_computed_again_changes_nothing(remat: str, one: list[float]) -> None:
    """The other policies."""
    assert trainer(dataclasses.replace(SMALL, remat=remat)).losses(BATCHES[:5]) == pytest.approx(one[:5], rel=1e-5)


def hidden(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Hidden states of the first parameters."""
    made = trainer()
    state = made.fresh()
    module = made.model.merge(state.params, state.tables, state.model_state, made.policy)
    return np.asarray(module(made.model.named({name: jnp.asarray(values) for name, values in rows.items()})))


def test_a_token_sees_the_earlier_ones_of_its_document_alone() -> None:
    """Another token changes itself and what follows in its segment; nothing before it, nothing in another."""
    rows = packed_rows(0)
    at = np.array([np.flatnonzero(row == 2)[0] for row in rows["ids"][:, LENGTH + 1 : -1]]) + 1
    changed = {**rows, "ids": rows["ids"].copy()}
    changed["ids"][np.arange(len(at)), at] = (changed["ids"][np.arange(len(at)), at] + 1) % NUM_IDS
    differs = (hidden(rows) != hidden(changed)).any(axis=2)
    segments = rows["ids"][:, LENGTH + 1 : -1]
    after = (np.arange(LENGTH)[None] >= at[:, None]) & (segments == segments[np.arange(len(at)), at][:, None])
    assert (differs == after).all()


def test_positions_begin_anew_with_each_document() -> None:
    """A document has the same hidden states wherever in a row it stands."""
    rows = packed_rows(3)
    whole, segments = hidden(rows), rows["ids"][:, LENGTH + 1 : -1]
    counted = [[sum(before == each for before in row[:i]) for i, each in enumerate(row)] for row in segments.tolist()]
    assert attention.positions(jnp.asarray(segments)).tolist() == counted
    alone = {**rows, "ids": np.zeros_like(rows["ids"])}
    third = [np.flatnonzero(row == 3) for row in segments]
    for i, at in enumerate(third):
        alone["ids"][i, : len(at)] = rows["ids"][i, at]
        alone["ids"][i, LENGTH + 1 : LENGTH + 1 + len(at)] = 1
    moved = hidden(alone)
    assert sum(map(len, third)) > 50
    for i, at in enumerate(third):
        np.testing.assert_allclose(moved[i, : len(at)], whole[i, at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_loss_in_chunks_is_that_of_the_softmax(chunks: int) -> None:
    """Values and gradients, with ids that are no token's left out."""
    rows, width, tokens = 384, 16, 50
    hidden, weights = (
        jax.random.normal(jax.random.key(i), shape) * 3 for i, shape in enumerate([(tokens, width), (rows, width)])
    )
    targets, share = jax.random.randint(jax.random.key(2), (tokens,), 0, NUM_IDS), jnp.arange(tokens) / tokens

    def ours(hidden: jax.Array, weights: jax.Array) -> jax.Array:
        return (token_losses(hidden, weights, targets, NUM_IDS, chunks, Spread()) * share).sum()

    def whole(hidden: jax.Array, weights: jax.Array) -> jax.Array:
        return (optax.softmax_cross_entropy_with_integer_labels(hidden @ weights[:NUM_IDS].T, targets) * share).sum()

    for mine, theirs in zip(
        *(jax.tree.leaves(jax.value_and_grad(f, (0, 1))(hidden, weights)) for f in (ours, whole)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_logits_never_exist_whole() -> None:
    """No array of the traced step has as many numbers as the logits of all tokens."""
    made = trainer(dataclasses.replace(SMALL, vocab_chunk=128), features=text_features(num_ids=4096))
    text = made.update.trace(*shapes_of(made, 64, LENGTH)).lower().as_text()
    sizes = [np.prod([int(d) for d in dims[:-1].split("x")]) for dims in re.findall(r"tensor<((?:\d+x)+)f32>", text)]
    assert 64 * LENGTH * 128 <= max(sizes) < 64 * LENGTH * 4096 / 8


def test_the_kernel_of_tpus_gives_what_others_do() -> None:
    """Flash attention, interpreted here, with groups of queries and segments; and its gradient."""
    shape = (2, 128, 4, 128)
    query, key, value = (jax.random.normal(jax.random.key(i), (*shape[:2], heads, 128)) for i, heads in enumerate([4, 2, 2]))
    segments = jnp.sort(jax.random.randint(jax.random.key(3), shape[:2], 1, 4), axis=1)

    def loss(attend: object, *heads: jax.Array) -> jax.Array:
        return (attend(*heads, segments) ** 2).sum()  # type: ignore[operator]  # one of the module's two functions

    with pltpu.force_tpu_interpret_mode():
        mine = jax.value_and_grad(loss, (1, 2, 3))(attention._on_tpu, query, key, value)
    theirs = jax.value_and_grad(loss, (1, 2, 3))(attention._anywhere, query, key, value)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("mesh", [MESHES["fsdp4x2"], MESHES["fsdp4-tensor2"]], ids=["fsdp4x2", "fsdp4-tensor2"])
def test_weights_cross_the_wire_in_the_dtype_they_compute_in(mesh: MeshConfig) -> None:
    """bfloat16 gathers alone, and sums of gradients in what the config says; parts that compute in float32 stay so."""

    def sent(precision: PrecisionConfig) -> dict[str, set[str]]:
        made = trainer(mesh=mesh, devices=jax.devices(), precision=precision)
        text = made.update.trace(*shapes_of(made, 16, LENGTH)).lower().as_text()
        kinds = {"all_gather": "gathered", "reduce_scatter": "summed"}
        found: dict[str, set[str]] = {"gathered": set(), "summed": set()}
        for kind, dtype in re.findall(r"stablehlo\.(all_gather|reduce_scatter)\"?.*?-> tensor<[\dx]*(\w+)>", text, re.DOTALL):
            found[kinds[kind]].add(dtype)
        return found

    assert sent(PrecisionConfig(compute="bfloat16")) == {"gathered": {"bf16"}, "summed": {"bf16"}}
    assert "f32" in sent(PrecisionConfig(compute="bfloat16", gradient_sum="float32"))["summed"]
    assert sent(PrecisionConfig(compute="bfloat16", gradient_sum="float32"))["gathered"] == {"bf16"}
    assert "f32" in sent(PrecisionConfig(compute="bfloat16", float32=("head/.*",)))["gathered"]
    assert sent(PrecisionConfig())["gathered"] == {"f32"}


@pytest.mark.parametrize("mesh", [MESHES["fsdp8"], MESHES["fsdp4-tensor2"]], ids=["fsdp8", "fsdp4-tensor2"])
def test_no_device_ever_holds_an_array_in_whole(mesh: MeshConfig) -> None:
    """What creates the state gives each device its part, and has less room besides than the largest array takes."""
    sizes = {"layers": 4, "width": 1024, "heads": 16, "kv_heads": 8, "head_width": 64, "hidden": 2816, "vocab_chunk": 8192}
    made = trainer(dataclasses.replace(SMALL, **sizes), mesh, jax.devices(), features=text_features(num_ids=8000))
    memory = made.create.lower(jax.random.key(0)).compile().memory_analysis()
    pairs = list(zip(*map(jax.tree.leaves, (made.abstract, made.where)), strict=True))
    held = sum(math.prod(where.shard_shape(array.shape)) * array.dtype.itemsize for array, where in pairs)
    assert memory.output_size_in_bytes < 1.01 * held
    assert memory.temp_size_in_bytes < max(array.size * array.dtype.itemsize for array, _ in pairs)


def test_half_precision_learns_nearly_the_same(one: list[float]) -> None:
    """Parameters stay in float32; losses differ by what bfloat16 rounds."""
    made = trainer(precision=PrecisionConfig(compute="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(made.abstract.params)} == {jnp.dtype("float32")}
    found = made.losses(BATCHES)
    assert found == pytest.approx(one, rel=0.02)
    assert found != pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "told"), [({"kv_heads": 3}, "kv_heads=3 must divide"), ({"head_width": 15}, "head_width=15 must be even")]
)
def test_sizes_that_do_not_fit_are_refused(changed: dict[str, int], told: str) -> None:
    """By field and rule."""
    with pytest.raises(ConfigError, match=told):
        dataclasses.replace(SMALL, **changed).build(text_features(), nnx.Rngs(0))


def test_it_is_for_packed_text() -> None:
    """A table's dataset is told what to change."""
    with pytest.raises(ConfigError, match=r"label is 'fare'.*NextToken"):
        TransformerConfig().build(FeatureSpec(features=(), target=Target(column="fare")), nnx.Rngs(0))
