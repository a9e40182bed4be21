"""The step: pure, compiled once, donated, keyed by (seed, step), and never walking nnx's graph."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlprod.config import MeshConfig, OptimConfig, PrecisionConfig
from mlprod.data.loader import train_batches
from mlprod.errors import ConfigError, LayoutError
from mlprod.models.mlp import MLPConfig
from mlprod.models.tabular import TabularConfig
from mlprod.parallel.place import fetch, to_devices
from mlprod.plan import Plan, make_plan, score_of, update_of
from mlprod.state import TrainState, create, flatten, parameter_path
from mlprod.step import key_for, unpack
from tests.conftest import MakeConfig

FAMILIES = {"mlp": MLPConfig(hidden=(16, 16), dropout=0.0), "tabular": TabularConfig(hidden=(16, 16), members=4, bins=8)}


@pytest.fixture(params=["one device", "eight devices"])
def plan(request: pytest.FixtureRequest, make_config: MakeConfig) -> Plan:
    """The smoke run on one device, and with its parameters split over eight."""
    one = request.param == "one device"
    return make_plan(make_config(mesh=MeshConfig(fsdp=(1,) if one else (8,))), jax.devices()[: 1 if one else 8])


def fresh(plan: Plan) -> TrainState:
    """A fresh state."""
    return create(plan.model, plan.cfg.model, plan.features, plan.optimizer, plan.where, plan.cfg.seed)


def batches(plan: Plan, number: int) -> list[dict[str, jax.Array]]:
    """The first batches of the run, on the devices."""
    size, ranges = plan.order.global_batch, plan.train_ranges
    positions = range(0, number * size, size)
    rows = train_batches(plan.cfg, plan.store, plan.manifest, plan.order, ranges, positions)
    return [to_devices(host, plan.placement.batch(size), ranges, size) for host in rows]


def test_a_step_is_pure_donated_and_compiled_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first call nnx is never touched, nothing is moved implicitly, old buffers are gone, nothing recompiles."""
    update = update_of(plan)
    state, first, *others = fresh(plan), *batches(plan, 4)
    state, sums = update(state, first)

    def walked(*args: object, **named: object) -> None:
        raise AssertionError("nnx's graph was walked in the loop")

    for name in ("split", "merge", "update", "state"):
        monkeypatch.setattr(nnx, name, walked)
    with jax.transfer_guard("disallow"):
        for batch in others:
            before = jax.tree.leaves(state)
            state, sums = update(state, batch)
            assert all(leaf.is_deleted() for leaf in before)
            fetch(sums)
    assert update._cache_size() == 1
    assert int(fetch(state.step)) == 4
    for path, leaf in flatten(state).items():
        assert leaf.sharding.is_equivalent_to(flatten(plan.where)[path], leaf.ndim), f"{path} drifted to {leaf.sharding}"


def test_the_average_is_that_of_the_parameters(make_config: MakeConfig) -> None:
    """Over the steps, forgetting its start; it is what is evaluated."""
    plan = make_plan(make_config(optim=OptimConfig(peak_lr=1e-2, warmup_steps=5, average=0.8)), jax.devices()[:1])
    update, score = update_of(plan), score_of(plan)
    state, expected = fresh(plan), {}
    for step, batch in enumerate(batches(plan, 20)):
        before = expected or {path: np.asarray(leaf, np.float64) for path, leaf in flatten(state.params).items()}
        state, _ = update(state, batch)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = {path: decay * before[path] + (1 - decay) * np.asarray(leaf) for path, leaf in flatten(state.params).items()}
    average = flatten(state.average["params"])
    assert average.keys() == expected.keys()
    for path, leaf in average.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-7)
    alone = state._replace(params=state.average["params"], average={})
    last = state._replace(average={})
    batch = batches(plan, 1)[0]
    outputs = [np.asarray(score(each, batch)["score"]) for each in (state, alone, last)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=(1,)), MeshConfig(fsdp=(4,), data=2)], ids=["one device", "eight devices"])
def test_microbatches_are_the_batch(make_config: MakeConfig, family: str, mesh: MeshConfig) -> None:
    """Without dropout: the same losses, gradient norms and parameters, within rounding, weights and classes included."""
    cfg = make_config(mesh=mesh, model=dataclasses.replace(FAMILIES[family], dropout=0.0), loss={"class_weight": "balanced"})
    devices = jax.devices()[: 1 if mesh.fsdp == (1,) else 8]
    ends = []
    for parts in (1, 4):
        plan = make_plan(dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, microbatches=parts)), devices)
        update, state, told = update_of(plan), fresh(plan), []
        for batch in batches(plan, 5):
            state, sums = update(state, {**batch, "weight": batch["weight"] * (batch["label"] + 0.5)})
            told.append(unpack(fetch(sums)))
        ends.append((told, flatten(state.params)))
    for whole, parts in zip(*(told for told, _ in ends), strict=True):
        for name in ("loss", "weight", "grad_norm"):
            assert parts[name] == pytest.approx(whole[name], rel=1e-5)
        assert (parts["ids"] == whole["ids"]).all()
    for path, leaf in ends[0][1].items():
        np.testing.assert_allclose(np.asarray(ends[1][1][path]), np.asarray(leaf), rtol=1e-3, atol=1e-5)


def test_each_microbatch_has_its_own_dropout(make_config: MakeConfig) -> None:
    """Rows m, m + 4, ... of the batch, under the step's key folded with m."""
    plan = make_plan(make_config(model={"dropout": 0.5}, optim={"microbatches": 4}), jax.devices()[:1])
    state, batch = fresh(plan), batches(plan, 1)[0]
    named = plan.model.named(batch)
    expected = []
    for m in range(4):
        key = jax.random.fold_in(key_for(plan.cfg.seed, jnp.int32(0), "dropout"), m)
        module = plan.model.merge(state.params, state.tables, state.model_state, plan.policy)
        rows = {name: values[m::4] for name, values in named.items()}
        expected.append(float(module.loss(module(rows, rngs=nnx.Rngs(dropout=key)), rows)["loss"][0]))
    _, sums = update_of(plan)(state, batch)
    assert float(unpack(fetch(sums))["loss"]) == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_multiplies_in_it(make_config: MakeConfig, family: str) -> None:
    """Every layer's product has bfloat16 factors, but those of parts that the config leaves in float32; losses are near."""

    def dots(precision: PrecisionConfig) -> tuple[set[str], float]:
        plan = make_plan(make_config(model=FAMILIES[family], precision=precision), jax.devices()[:1])
        (batch,), state = batches(plan, 1), fresh(plan)
        text = update_of(plan).trace(state, batch).lower().as_text()
        layers = re.findall(r"dot_general .*?: \(tensor<\d+x(?:\d+x)*\d+x(\w+)>", text)
        words = unpack(np.asarray(update_of(plan)(state, batch)[1]))
        return set(layers), float(words["loss"]) / float(words["weight"])

    whole, half = dots(PrecisionConfig()), dots(PrecisionConfig(compute="bfloat16"))
    assert whole[0] == {"f32"}
    assert "bf16" in half[0]
    assert half[0] <= ({"bf16"} if family == "mlp" else {"bf16", "f32"})  # pieces of numbers are placed in float32
    assert half[1] == pytest.approx(whole[1], rel=0.02)
    assert half[1] != whole[1]
    assert "f32" in dots(PrecisionConfig(compute="bfloat16", float32=("head/.*",)))[0]


def test_microbatches_must_divide(make_config: MakeConfig) -> None:
    """The batch, and each of them over the devices."""
    with pytest.raises(ConfigError, match=r"config.optim.microbatches=5 does not divide config.loader.global_batch=64"):
        make_plan(make_config(optim={"microbatches": 5}), jax.devices()[:1])
    with pytest.raises(LayoutError, match=r"config.optim.microbatches=16 of config.loader.global_batch=64: a batch of 4"):
        make_plan(make_config(optim={"microbatches": 16}), jax.devices())


def test_every_array_is_born_where_it_lives(plan: Plan) -> None:
    """No array is on fewer devices than its layout says: the optimizer's moments split as their parameters do."""
    state, where = flatten(fresh(plan)), flatten(plan.where)
    assert all(state[path].sharding.is_equivalent_to(where[path], state[path].ndim) for path in state)
    for path, leaf in state.items():
        if path.startswith("optim/adam/mu/"):
            other = state[path.removeprefix("optim/adam/mu/")]
            assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim), path
    if plan.placement.mesh.size == 8:
        kernel = state["params/hidden/1/kernel"]
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 16)}


def test_the_digest_of_ids_is_that_of_the_rows(plan: Plan) -> None:
    """The `ids` that a step logs are the digest of the batch's row ids, on any layout."""
    from mlprod.digest import digest_numpy

    update = update_of(plan)
    (batch,) = batches(plan, 1)
    ids = np.asarray(fetch(batch["row_id"]))
    np.testing.assert_array_equal(unpack(fetch(update(fresh(plan), batch)[1]))["ids"], digest_numpy(ids))


def test_random_keys_are_those_of_seed_step_and_name() -> None:
    """Eager and jitted the same; another seed, step or name gives another key."""
    data = {
        (s, t, n): tuple(np.asarray(jax.random.key_data(key_for(s, jnp.int32(t), n))))
        for s in (0, 1)
        for t in (0, 1)
        for n in "ab"
    }
    assert len(set(data.values())) == 8
    jitted = jax.jit(lambda step: jax.random.key_data(key_for(1, step, "b")))(jnp.int32(1))
    assert tuple(np.asarray(jitted)) == data[1, 1, "b"]


def test_paths_are_ours() -> None:
    """A moment's path ends in its parameter's; what is no parameter has none."""
    assert parameter_path("optim/adam/mu/params/hidden/0/kernel") == "hidden/0/kernel" == parameter_path("params/hidden/0/kernel")
    assert parameter_path("tables/embed/color/table") == "embed/color/table"
    assert parameter_path("optim/rate/count") == parameter_path("step") == ""
