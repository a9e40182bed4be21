"""States and host states to be saved, and what stands on disk of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig
from mlprod.plan import Plan
from mlprod.state import TrainState, create, flatten

ALL = CheckpointConfig(keep_last=1000)
Kept = dict[int, dict[str, np.ndarray]]
Saved = tuple[Store, Kept]


def fresh(plan: Plan, seed: int = 0) -> TrainState:
    """A fresh state of the plan."""
    return create(plan.model, plan.cfg.model, plan.features, plan.optimizer, plan.where, seed)


def run_state(step: int) -> RunState:
    """A run's host state at a step."""
    empty: dict[str, object] = {}
    given = {"order": empty, "config": empty, "environment": empty, "tracker_id": "t", "dataset_id": "d"}
    return RunState(run_id="r", attempt=1, step=step, next_example=64 * step, **given)


def at(state: TrainState, step: int) -> TrainState:
    """The state as if after `step` updates."""
    return state._replace(step=jax.device_put(jnp.int32(step), state.step.sharding))


def assert_equal_bits(state: TrainState, kept: dict[str, np.ndarray]) -> None:
    """Every array of the state has the bits that were saved."""
    assert {path: np.asarray(leaf).tobytes() for path, leaf in flatten(state).items()} == {
        p: a.tobytes() for p, a in kept.items()
    }


def data_files(store: Store, step: int) -> list[Path]:
    """The array data files of a step, the largest first."""
    folder = store.saved.root / f"{step:08d}" / "state"
    return sorted((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: -p.stat().st_size)
