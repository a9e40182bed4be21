"""The pure steps: state and batch in, new state and sums out. Jitted once; nnx's graph is walked at trace time only.

Promise: a step depends on the state, the batch and the seed alone: random keys are folded from (seed, step, name).
Price: that of a bare `jax.jit` over a dict of arrays; the state's buffers are donated, so an old state cannot be used again.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from mlprod.digest import digest
from mlprod.metrics import batch_sums
from mlprod.models.protocol import Batch
from mlprod.parallel.gather import Policy
from mlprod.parallel.layouts import Placement
from mlprod.state import ModelDef, TrainState, flatten

Sums = Mapping[str, jax.Array]
Words = jax.Array  # a step's sums as one array
Placed = Mapping[str, jax.Array]  # a batch as the loader makes it, on the devices: one "ids" for all categorical features
Update = Callable[[TrainState, Placed], tuple[TrainState, Words]]
Score = Callable[[TrainState, Placed], Sums]
Summed = Callable[[dict[str, Any], Any, Batch, jax.Array], tuple[jax.Array, Any]]  # (sum, (weight, model state)) of a loss


def key_for(seed: int, step: jax.Array, name: str) -> jax.Array:
    """Returns the random key of one use in one step; `step`: int32 scalar of shape ()."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def compile_update(
    model: ModelDef,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    seed: int,
    where: TrainState,
    placement: Placement,
    policy: Policy,
    *,
    skip_bad: bool = False,
    balanced: bool = False,
    average: float = 0.0,
    microbatches: int = 1,
) -> Update:
    """Returns the training step: (state, batch) -> (state after one update, sums as `pack` makes them).

    Sums, all scalars but "ids": "loss" and "weight" (float32 sums over the batch), "grad_norm", "rate", "bad" (int32: -1 where
    loss and gradient are finite, else which gradient is the first that is not, in the order of `gradient_paths`, or their
    number), and "ids", uint32[2], the digest of the batch's row ids in order.

    Args:
        policy: how parameters are used, and whether each device computes gradients of its rows by itself.
        skip_bad: where loss or gradient are not finite, leave all as it was but the step's number.
        balanced: every class counts as much as any other, see `Objective.class_weights`.
        average: decay of the params' moving average, which is read where the state holds one.
        microbatches: parts of the batch that are computed one after another, see `_in_parts`.
    """

    def summed(trained: dict[str, Any], model_state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        weighed = {**batch, "weight": batch["weight"] * model.objective.class_weights(batch["label"])} if balanced else batch
        module = model.merge(trained["params"], trained["tables"], model_state, policy)
        total, weight = module.loss(module(batch, rngs=nnx.Rngs(dropout=key)), weighed)["loss"]
        return total, (weight, model.split(module)[2])

    mean = partial(_in_parts, microbatches, placement) if microbatches > 1 else _at_once
    whole, held = PartitionSpec(), _specs({"params": where.params, "tables": where.tables})
    gradient_of = policy.on_each_device(
        partial(mean, summed, policy), placement.mesh, (held, whole, policy.rows, whole), (whole, whole, whole, held)
    )

    def update(state: TrainState, placed: Placed) -> tuple[TrainState, Words]:
        batch = model.named(placed)
        trained = {"params": state.params, "tables": state.tables}
        total, weight, model_state, gradient = gradient_of(
            trained, state.model_state, batch, key_for(seed, state.step, "dropout")
        )
        change, optim = optimizer.update(gradient, state.optim, trained)
        new = optax.apply_updates(trained, change)
        moving = _moved(state, new["params"], average) if state.average else {}
        bad = _first_bad(total, gradient)
        if skip_bad:
            updated, old = (new, model_state, optim, moving), (trained, state.model_state, state.optim, state.average)
            new, model_state, optim, moving = jax.tree.map(lambda n, o: jnp.where(bad < 0, n, o), updated, old)
        sums = {
            "loss": total,
            "weight": weight,
            "grad_norm": optax.global_norm(gradient),
            "rate": jnp.asarray(rate(state.step), jnp.float32),
            "bad": bad,
            "ids": digest(batch["row_id"]),
        }
        return TrainState(state.step + 1, new["params"], new["tables"], model_state, optim, moving), pack(sums)

    return jax.jit(update, donate_argnums=0, out_shardings=(where, placement.replicated()))


def _at_once(
    summed: Summed, policy: Policy, trained: dict[str, Any], model_state: Any, batch: Batch, key: jax.Array
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Returns (sum of the losses, their weight, model state, gradient of the mean loss) of a batch."""

    def mean_loss(trained: dict[str, Any]) -> tuple[jax.Array, Any]:
        total, (weight, after) = summed(trained, model_state, batch, key)
        weight = policy.total(weight)
        return total / weight, (total, weight, after)

    (_, (total, weight, after)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(trained)
    return policy.total(total), weight, after, gradient


def _in_parts(
    microbatches: int,
    placement: Placement,
    summed: Summed,
    policy: Policy,
    trained: dict[str, Any],
    model_state: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Returns what `_at_once` does, of microbatches one after another: with the activations of one of them.

    Microbatch m has the rows m, m + M, m + 2M, ... of the batch: of those on each device as many, so that none moves. Its random
    key is folded from m. Sums of losses and of gradients are added up, and divided by the whole weight at the end.
    """

    def strided(rows: jax.Array) -> jax.Array:
        size = rows.shape[0] // microbatches
        parts: jax.Array = rows.reshape(size, microbatches, *rows.shape[1:]).swapaxes(0, 1)
        if policy.batch:
            return parts
        spec = PartitionSpec(None, *placement.batch(size).spec, *(None,) * (rows.ndim - 1))
        placed: jax.Array = jax.lax.with_sharding_constraint(parts, NamedSharding(placement.mesh, spec))
        return placed

    def add(carry: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
        before, model_state = carry
        m, rows = part
        (total, (weight, after)), gradient = jax.value_and_grad(summed, has_aux=True)(
            trained, model_state, rows, jax.random.fold_in(key, m)
        )
        return (jax.tree.map(jnp.add, before, (total, weight, gradient)), after), None

    none = (jnp.float32(0), jnp.float32(0), jax.tree.map(jnp.zeros_like, trained))
    parts = jnp.arange(microbatches), jax.tree.map(strided, dict(batch))
    ((total, weight, gradient), after), _ = jax.lax.scan(add, (none, model_state), parts)
    total, weight = policy.total(total), policy.total(weight)
    return total, weight, after, jax.tree.map(lambda g: g / weight, gradient)


def _specs(where: Any) -> Any:
    return jax.tree.map(lambda sharding: sharding.spec, where)


def _moved(state: TrainState, params: Any, decay: float) -> Any:
    """Returns the average one step on. Its decay is at most (1 + t) / (10 + t) at step t, so that it forgets its start."""
    share = 1 - jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return {"params": optax.incremental_update(params, state.average["params"], share)}


SUMS = np.dtype([("loss", "<f4"), ("weight", "<f4"), ("grad_norm", "<f4"), ("rate", "<f4"), ("bad", "<i4"), ("ids", "<u4", 2)])


def pack(sums: Sums) -> Words:
    """Returns the bits of a step's sums, in the order of `SUMS`, as one uint32[7] of shape (7,).

    One array leaves the devices a step, not six: what fetching each costs the host is more than all that is done with them.
    """
    return jnp.concatenate([jnp.ravel(jax.lax.bitcast_convert_type(sums[name], jnp.uint32)) for name in SUMS.names or ()])


def unpack(words: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the sums by name, of a fetched `pack`, uint32[7]."""
    row = words.view(SUMS)[0]
    return {name: row[name] for name in SUMS.names or ()}


def gradient_paths(state: TrainState) -> list[str]:
    """Returns the paths of what is trained by gradients, in the order that the step's sum "bad" counts."""
    return list(flatten({"params": state.params, "tables": state.tables}))


def _first_bad(loss: jax.Array, gradient: Any) -> jax.Array:
    """Returns int32: -1 where the loss, a scalar of shape (), and all gradients are finite, else see `compile_update`."""
    finite = jnp.stack([*(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)), jnp.isfinite(loss)])
    return jnp.where(finite.all(), -1, jnp.argmin(finite)).astype(jnp.int32)


def compile_score(model: ModelDef, where: TrainState, placement: Placement, policy: Policy) -> Score:
    """Returns the evaluation step: (state, batch) -> `metrics.batch_sums`, dropout off."""

    def scored(params: Any, tables: Any, model_state: Any, batch: Batch) -> tuple[Sums, Sums]:
        module = model.merge(params, tables, model_state, policy)
        outputs = module(batch)
        sums = batch_sums(model.objective, outputs, module.loss(outputs, batch)["loss"], batch)
        totals = {name: policy.total(each) for name, each in sums.items() if not each.ndim}
        return totals, {name: each for name, each in sums.items() if each.ndim}

    inputs = (_specs(where.params), _specs(where.tables), PartitionSpec(), policy.rows)
    on_devices = policy.on_each_device(scored, placement.mesh, inputs, (PartitionSpec(), policy.rows))

    def score(state: TrainState, placed: Placed) -> Sums:
        totals, rows = on_devices(state.scored, state.tables, state.model_state, model.named(placed))
        return {**totals, **rows}

    return jax.jit(score, out_shardings=placement.replicated())
