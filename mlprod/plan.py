"""Everything about a run that is known before a device computes: dataset, order, model, optimizer, layout, shapes.

Promise: whatever can be wrong with a config and its dataset is found here, by `check` and by `train` alike.
Price: reading a manifest and tracing the model once; no device memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from mlprod import features, manifest
from mlprod.config import Config, PrecisionConfig
from mlprod.data.loader import batch_shapes, eval_order, train_order
from mlprod.errors import ConfigError, DataError, LayoutError, MlprodError
from mlprod.features import FeatureSpec
from mlprod.manifest import Manifest
from mlprod.models.spread import Spreads
from mlprod.optim import build_optimizer, learning_rate
from mlprod.order import OrderSpec, batches_per_epoch
from mlprod.parallel.gather import Policy, policy_of
from mlprod.parallel.layouts import LAYOUTS, Placement
from mlprod.parallel.mesh import make_mesh
from mlprod.parallel.place import Ranges, local_ranges
from mlprod.state import ModelDef, TrainState, abstract_state, define_model, flatten, shardings
from mlprod.step import Score, Update, compile_score, compile_update
from mlprod.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked run, ready to compile."""

    cfg: Config
    store: Store
    manifest: Manifest
    features: FeatureSpec
    order: OrderSpec
    eval_order: OrderSpec
    steps: int
    model: ModelDef
    optimizer: optax.GradientTransformation
    rate: optax.Schedule
    placement: Placement
    abstract: TrainState
    where: TrainState  # shardings of the state
    policy: Policy  # how parameters are used

    @property
    def train_ranges(self) -> Ranges:
        """The rows of a training batch that this process's devices hold."""
        return local_ranges(self.placement.batch(self.order.global_batch), self.order.global_batch)

    @property
    def eval_ranges(self) -> Ranges:
        """The rows of an evaluation batch that this process's devices hold."""
        return local_ranges(self.placement.batch(self.eval_order.global_batch), self.eval_order.global_batch)


def update_of(plan: Plan) -> Update:
    """Returns the training step of a run, see `step.compile_update`."""
    balanced, skip_bad = plan.cfg.loss.class_weight == "balanced", plan.cfg.bad_numbers.policy == "skip"
    return compile_update(
        plan.model, plan.optimizer, plan.rate, plan.cfg.seed, plan.where, plan.placement, plan.policy,
        skip_bad=skip_bad, balanced=balanced, average=plan.cfg.optim.average, microbatches=plan.cfg.optim.microbatches,
    )  # fmt: skip


def policy_for(cfg: PrecisionConfig, where: TrainState, placement: Placement | None) -> Policy:
    """Returns how the parameters of a state that lies `where` are used; without a placement the compiler partitions."""
    by_path, spread = {**flatten(where.params), **flatten(where.tables)}, placement is not None and placement.mesh.size > 1
    batch, sequence = (placement.axes(dim) if placement and spread else () for dim in ("batch", "sequence"))
    sequence = tuple(axis for axis in sequence if where.step.mesh.shape[axis] > 1)
    return policy_of(by_path, batch, sequence, cfg.compute, cfg.float32, cfg.gradient_sum)


def score_of(plan: Plan) -> Score:
    """Returns the evaluation step of a run, see `step.compile_score`."""
    return compile_score(plan.model, plan.where, plan.placement, plan.policy)


def abstract_batch(plan: Plan, num_rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, dtypes and shardings of a global batch of `num_rows` rows on the devices."""
    rows = plan.placement.batch(num_rows)

    def array(shape: tuple[int, ...], dtype: np.dtype) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(rows.mesh, PartitionSpec(*rows.spec, *(None,) * len(shape)))
        return jax.ShapeDtypeStruct((num_rows, *shape), dtype, sharding=sharding)

    return {name: array(*each) for name, each in batch_shapes(plan.store, plan.manifest).items()}


def read_features(store: Store, published: Manifest) -> FeatureSpec:
    """Reads the fitted transform of a dataset version.

    Raises:
        DataError: the file is gone or is not the one that was published.
    """
    try:
        text = store.read(published.features).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    if manifest.sha256_text(text) != published.features_sha256:
        raise DataError(
            f"{store.location}/{published.features} is missing or was changed (its SHA-256 differs from the manifest's): "
            f"restore it, or remove {store.location} and run `mlprod etl`"
        )
    return features.loads(text)


def total_steps(cfg: Config, per_epoch: int) -> int:
    """Returns how many updates the run takes.

    Raises:
        ConfigError: `epochs` is less than one batch.
    """
    steps = cfg.steps or round(cfg.epochs * per_epoch)
    if not steps:
        raise ConfigError(
            f"config.epochs={cfg.epochs} is less than one batch ({per_epoch} batches an epoch); raise it, or set config.steps"
        )
    return steps


def make_plan(cfg: Config, devices: Sequence[jax.Device], dataset_id: str = "") -> Plan:
    """Checks a config against its dataset and the devices; `dataset_id`: of the version that the run began with.

    Raises:
        DataError: the dataset is missing, damaged or another config's.
        ConfigError: batch, window or steps do not fit the dataset, or the model cannot be built.
        LayoutError: the mesh does not fit the devices, or the batch does not divide over them.
    """
    store = open_store(cfg.dataset)
    try:
        published = manifest.open_for(cfg, store, dataset_id)
        spec = features.for_model(read_features(store, published), cfg.etl.columns)
    except OSError as error:  # not there, no access, or a remote store that stayed down
        told = " ".join(str(error).split())
        raise DataError(f"config.dataset={cfg.dataset!r} cannot be read: {told}; check the address and your access") from error
    return plan_of(cfg, devices, store, published, spec)


def plan_of(cfg: Config, devices: Sequence[jax.Device], store: Store, published: Manifest, spec: FeatureSpec) -> Plan:
    """Checks a config against a dataset that is as its manifest and transform say, and the devices: see `make_plan`."""
    if cfg.loss.class_weight == "balanced" and spec.target.task == "binary" and not 0 < spec.target.mean < 1:
        raise DataError(f"{cfg.dataset} says nothing of its classes' shares, which loss.class_weight needs; build it anew")
    if cfg.eval.patience and not published.num_rows("eval"):
        raise ConfigError(f"config.eval.patience={cfg.eval.patience}: {cfg.dataset} has no eval rows to stop by; set it to 0")
    order = train_order(cfg, published)
    steps = total_steps(cfg, batches_per_epoch(order, published.group_sizes("train")))
    placement = Placement(make_mesh(cfg.mesh, devices), LAYOUTS[cfg.mesh.layout])
    optimizer = build_optimizer(cfg.optim, steps)
    try:
        model = define_model(cfg.model, spec)
        abstract = abstract_state(model, cfg.model, spec, optimizer, averaged=cfg.optim.average > 0)
    except MlprodError:
        raise
    except Exception as error:  # the user's own model: whatever it raises is theirs to read
        told = f"{type(error).__name__}: {error}"
        raise ConfigError(f"config.model={type(cfg.model).__name__} cannot be built for this dataset: {told}") from error
    where = shardings(abstract, model, placement)
    policy = policy_for(cfg.precision, where, placement if isinstance(model.outline, Spreads) else None)
    if policy.sequence:
        model.outline.check_shared(math.prod(placement.mesh.shape[axis] for axis in policy.sequence))
    plan = Plan(
        cfg=cfg, store=store, manifest=published, features=spec, order=order, eval_order=eval_order(cfg, published), steps=steps,
        model=model, optimizer=optimizer, rate=learning_rate(cfg.optim, steps), placement=placement, abstract=abstract,
        where=where, policy=policy,
    )  # fmt: skip
    for field, batch in (("loader.global_batch", cfg.loader.global_batch), ("eval.batch", cfg.eval.batch)):
        try:
            placement.batch(batch)
        except LayoutError as error:
            raise LayoutError(f"config.{field}={batch}: {error}") from error
    _check_microbatches(cfg, placement)
    return plan


def _check_microbatches(cfg: Config, placement: Placement) -> None:
    """Raises ConfigError, LayoutError where the microbatches do not divide the batch, or the devices not a microbatch."""
    parts, size = cfg.optim.microbatches, cfg.loader.global_batch
    if size % parts:
        raise ConfigError(f"config.optim.microbatches={parts} does not divide config.loader.global_batch={size}")
    try:
        placement.batch(size // parts)
    except LayoutError as error:
        raise LayoutError(f"config.optim.microbatches={parts} of config.loader.global_batch={size}: {error}") from error
