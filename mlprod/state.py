"""Everything on the devices that determines the next step, born sharded, and its paths.

Promise: every array is created on the devices that hold it, by one jitted init with output shardings, the optimizer's
moments too; no host ever holds the whole model. Paths are ours: they don't change with nnx's or optax's.
Price: one compilation at the start.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from mlprod.errors import ConfigError, LayoutError
from mlprod.features import FeatureSpec
from mlprod.models.protocol import Batch, ModelConfig, Table
from mlprod.models.spread import Spread
from mlprod.objective import objective_of
from mlprod.parallel.gather import Policy, Use
from mlprod.parallel.layouts import Placement, dims_of

Tree = dict[str, Any]


class TrainState(NamedTuple):
    """The device arrays that determine the next step. Nested dicts; leaves are jax arrays of fixed shape and dtype."""

    step: Any  # int32 scalar: optimizer updates completed
    params: Tree
    tables: Tree
    model_state: Tree  # what is not trained by gradients: constants, running statistics
    optim: Any  # {part: optax state}
    average: Tree  # {"params": their moving average}, or {} where there is none

    @property
    def scored(self) -> Tree:
        """The params that are evaluated: their average where there is one."""
        return self.average["params"] if self.average else self.params


class ModelDef(NamedTuple):
    """A model without its arrays: what `merge` needs to make the module again, at trace time."""

    graph: Any
    dims: Mapping[str, tuple[str, ...]]
    outline: Any  # the module, with shapes and dtypes in the place of arrays
    id_names: tuple[str, ...]  # of the features with one id a row: the first columns of a placed batch's "ids"
    id_widths: Mapping[str, int]  # of those with several, whose columns follow
    objective: Any  # what its outputs mean, an `objective.Objective`

    def named(self, placed: Mapping[str, jax.Array]) -> Batch:
        """Returns a batch as the model sees it: the columns of "ids", int32[B, M], by the names of their features, int32[B]
        each, of a list or sequence int32[B, length]. Free at trace time; on the host each would cost a copy and a transfer."""
        ids, at = {name: placed["ids"][:, i] for i, name in enumerate(self.id_names)}, len(self.id_names)
        for name, width in self.id_widths.items():
            ids[name] = placed["ids"][:, at : at + width]
            at += width
        return {**{name: array for name, array in placed.items() if name != "ids"}, **ids}

    def merge(self, params: Tree, tables: Tree, model_state: Tree, policy: Policy) -> Any:
        """Returns the live module around these arrays, whose parameters are used as the policy says."""
        used = (nnx.State(_used(tree, policy.uses)) for tree in (params, tables))
        model = nnx.merge(self.graph, *used, nnx.State(model_state))
        if policy.sequence:
            model.spread = Spread(policy.sequence)
        return model

    def split(self, model: Any) -> tuple[Tree, Tree, Tree]:
        """Returns (params, tables, model_state) of a live module as nested dicts of arrays."""
        parts: Any = nnx.split(model, nnx.Param, Table, ...)
        _, params, tables, rest = parts
        return nnx.to_pure_dict(params), nnx.to_pure_dict(tables), nnx.to_pure_dict(rest)


class Used(nnx.Param[Any]):
    """A parameter or table that is read through its `use`: cast, and gathered from the devices that hold parts of it."""

    def get_value(self, **index: Any) -> Any:
        """Returns what `use` makes of the array, or a part of it."""
        value = self.use(super().get_value())
        return value[index["index"]] if index.get("index", ...) is not ... else value


def _used(tree: Tree, uses: Mapping[str, Use]) -> Tree:
    """Returns arrays that have a use inside a variable with it."""
    used = {path: Used(leaf, use=uses[path]) if path in uses else leaf for path, leaf in flatten(tree).items()}
    variables: Tree = unflatten(tree, used)
    return variables


def path_of(keys: tuple[Any, ...]) -> str:
    """Returns our path of a leaf: names of dict keys, fields and indices, joined by '/'."""
    return "/".join(str(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a))) for k in keys)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} of a TrainState or a part of it."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(like: Any, leaves: Mapping[str, Any]) -> Any:
    """Returns a tree of the structure of `like` with the leaves of these paths."""
    keyed, structure = jax.tree_util.tree_flatten_with_path(like)
    return jax.tree_util.tree_unflatten(structure, [leaves[path_of(keys)] for keys, _ in keyed])


def define_model(cfg: ModelConfig, features: FeatureSpec) -> ModelDef:
    """Returns the model's definition; creates no array.

    Raises:
        ConfigError: the model keeps random state, which a resume could not tell from the run's own keys.
    """

    def build() -> nnx.Module:
        model = cfg.build(features, nnx.Rngs(0))
        if not isinstance(model, nnx.Module):
            raise ConfigError(f"config.model: build returned {type(model).__name__}; it must return an nnx.Module")
        return model

    model: Any = nnx.eval_shape(build)
    if jax.tree.leaves(nnx.state(model, nnx.RngState)):
        raise ConfigError(
            f"config.model: {type(model).__name__} keeps random state; build Dropout without rngs, they are given per call"
        )
    if not hasattr(model, "DIMS"):
        raise ConfigError(
            f"config.model: {type(model).__name__} has no DIMS, the table from parameter paths to names of their dims"
        )
    graph = nnx.split(model, nnx.Param, Table, ...)[0]
    names = tuple(f.name for f in features.categorical)
    widths = {f.name: f.length for f in features.matrices}
    return ModelDef(graph, type(model).DIMS, model, names, widths, objective_of(features.target))


def abstract_state(
    model: ModelDef, cfg: ModelConfig, features: FeatureSpec, optimizer: optax.GradientTransformation, *, averaged: bool
) -> TrainState:
    """Returns the state's shapes and dtypes as `jax.ShapeDtypeStruct`s; `averaged`: it holds an average of the params."""
    state: TrainState = jax.eval_shape(
        _initializer(model, cfg, features, optimizer, averaged), jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    )
    return state


def _initializer(
    model: ModelDef, cfg: ModelConfig, features: FeatureSpec, optimizer: optax.GradientTransformation, averaged: bool
) -> Any:
    def init(key: jax.Array) -> TrainState:
        params, tables, model_state = model.split(cfg.build(features, nnx.Rngs(key)))
        optim = optimizer.init({"params": params, "tables": tables})
        return TrainState(jnp.int32(0), params, tables, model_state, optim, {"params": params} if averaged else {})

    return init


def parameter_path(path: str) -> str:
    """Returns the model's own path of an array in the state: without `params/`, or `optim/adam/mu/params/`; '' if not one."""
    for kind in ("params/", "tables/", "model_state/"):
        if f"/{kind}" in f"/{path}":
            return f"/{path}".split(f"/{kind}", 1)[1]
    return ""


def shardings(state: TrainState, model: ModelDef, placement: Placement) -> TrainState:
    """Returns the sharding of every array of an abstract state, by the model's DIMS and the layout.

    Raises:
        LayoutError: a parameter that no row of DIMS names, or a row of another rank.
    """

    def sharding(path: str, leaf: Any) -> NamedSharding:
        name = parameter_path(path)
        if not name:
            return placement.replicated()
        dims = dims_of(name, model.dims)
        if len(dims) != len(leaf.shape):
            raise LayoutError(f"parameter {name!r} has shape {leaf.shape}, its row of DIMS says {dims}")
        return placement.sharding(dims, leaf.shape)

    tree: TrainState = unflatten(state, {path: sharding(path, leaf) for path, leaf in flatten(state).items()})
    return tree


def creator(
    model: ModelDef, cfg: ModelConfig, features: FeatureSpec, optimizer: optax.GradientTransformation, where: TrainState
) -> Any:
    """Returns the jitted program that makes a fresh state of a random key on the devices; `where`: shardings of its arrays."""
    return jax.jit(_initializer(model, cfg, features, optimizer, bool(where.average)), out_shardings=where)


def create(
    model: ModelDef,
    cfg: ModelConfig,
    features: FeatureSpec,
    optimizer: optax.GradientTransformation,
    where: TrainState,
    seed: int,
) -> TrainState:
    """Returns a fresh state on the devices; `where`: the shardings of its arrays."""
    state: TrainState = creator(model, cfg, features, optimizer, where)(jax.random.key(seed))
    return state
