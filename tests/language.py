"""Packed rows made of random tokens, and the training step of a small transformer over them, without a dataset."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mlprod.config import MeshConfig, OptimConfig, PrecisionConfig
from mlprod.features import FeatureSpec, Target
from mlprod.features import Sequence as Ids
from mlprod.models.transformer import TransformerConfig
from mlprod.optim import build_optimizer, learning_rate
from mlprod.parallel.gather import Policy
from mlprod.parallel.layouts import LAYOUTS, Placement
from mlprod.parallel.mesh import make_mesh
from mlprod.parallel.place import to_devices
from mlprod.plan import policy_for
from mlprod.state import ModelDef, TrainState, abstract_state, creator, define_model, shardings
from mlprod.step import Update, compile_update, unpack

LENGTH, NUM_IDS, ROWS = 32, 257, 16
SMALL = TransformerConfig(layers=2, width=64, heads=4, kv_heads=2, head_width=16, hidden=96, vocab_chunk=128)
OPTIM = OptimConfig(peak_lr=3e-3, warmup_steps=5, weight_decay=0.1)
STEPS = 20


def text_features(length: int = LENGTH, num_ids: int = NUM_IDS) -> FeatureSpec:
    """The transform of packed text."""
    sequences = (
        Ids(name="tokens", length=length + 1, num_ids=num_ids),
        Ids(name="segments", length=length + 1, num_ids=length + 2),
    )
    return FeatureSpec(features=sequences, target=Target(task="tokens", column="text"))


def packed_rows(seed: int, rows: int = ROWS, length: int = LENGTH, num_ids: int = NUM_IDS) -> dict[str, np.ndarray]:
    """A batch as the loader makes it: documents that repeat themselves, up to 4 a row, and padding in some rows."""
    rng = np.random.default_rng(seed)
    segments = np.sort(rng.integers(1, 5, (rows, length + 1)), axis=1)
    segments[:: rows // 4, -length // 4 :] = 0
    tokens = (rng.integers(0, num_ids, (rows, 1)) + np.arange(length + 1) * rng.integers(1, 4, (rows, 1))) % num_ids
    ids = np.concatenate([np.where(segments > 0, tokens, 0), segments], axis=1).astype(np.int32)
    weight = rng.choice(np.array([0.5, 1.0, 2.0], np.float32), rows)
    return {
        "numeric": np.zeros((rows, 0), np.float32), "ids": ids, "label": np.zeros(rows, np.float32), "weight": weight,
        "row_id": rng.integers(0, 1 << 32, (rows, 2), dtype=np.uint32),
    }  # fmt: skip


class Trainer(NamedTuple):
    """A step on a mesh, and what it is made of."""

    model: ModelDef
    placement: Placement
    policy: Policy
    abstract: TrainState
    where: TrainState
    update: Update
    create: Any  # the jitted program that makes a fresh state of a key

    def fresh(self) -> TrainState:
        """Returns a fresh state."""
        state: TrainState = self.create(jax.random.key(0))
        return state

    def put(self, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Returns rows as a global batch on the devices."""
        size = len(rows["weight"])
        return to_devices(rows, self.placement.batch(size), ((0, size),), size)

    def losses(self, batches: Sequence[dict[str, np.ndarray]]) -> list[float]:
        """Returns the mean loss of each step from a fresh state on."""
        return [loss for loss, _ in self.steps(batches)]

    def steps(self, batches: Sequence[dict[str, np.ndarray]]) -> list[tuple[float, float]]:
        """Returns the mean loss and the gradient's length, before it is clipped, of each step from a fresh state on."""
        state, found = self.fresh(), []
        for rows in batches:
            state, words = self.update(state, self.put(rows))
            sums = unpack(np.asarray(words))
            found.append((float(sums["loss"]) / float(sums["weight"]), float(sums["grad_norm"])))
        return found


def trainer(
    cfg: TransformerConfig = SMALL,
    mesh: MeshConfig | None = None,
    devices: Sequence[jax.Device] | None = None,
    *,
    features: FeatureSpec | None = None,
    precision: PrecisionConfig | None = None,
    microbatches: int = 1,
    spread: bool = True,
) -> Trainer:
    """Returns the step of a transformer; on one device where no mesh is given. `spread`: not left to the compiler."""
    mesh, features = mesh or MeshConfig(), features or text_features()
    placement = Placement(make_mesh(mesh, devices or jax.devices()[:1]), LAYOUTS[mesh.layout])
    model, optimizer = define_model(cfg, features), build_optimizer(OPTIM, STEPS)
    abstract = abstract_state(model, cfg, features, optimizer, averaged=False)
    where = shardings(abstract, model, placement)
    policy = policy_for(precision or PrecisionConfig(), where, placement if spread else None)
    rate = learning_rate(OPTIM, STEPS)
    update = compile_update(model, optimizer, rate, 0, where, placement, policy, microbatches=microbatches)
    return Trainer(model, placement, policy, abstract, where, update, creator(model, cfg, features, optimizer, where))


def shapes_of(made: Trainer, rows: int, length: int) -> tuple[TrainState, dict[str, Any]]:
    """Returns the abstract state and batch that a step is compiled for."""
    state = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), made.abstract, made.where)
    split = made.placement.batch(rows)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype, sharding=split)
        for name, array in packed_rows(0, 16, length).items()
    }
    return state, batch
