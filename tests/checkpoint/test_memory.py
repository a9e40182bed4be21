"""What saves leave in memory: a run of years saves a hundred thousand times."""

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorstore

from mlprod.checkpoint import counters
from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig
from mlprod.plan import Plan
from tests.checkpoint.saved import at, fresh, run_state


def left_after(store: Store, plan: Plan, steps: range) -> tuple[int, int]:
    """Saves steps; returns how many notes of steps orbax has then, and how many histograms of tensorstore's are in memory."""
    state = fresh(plan)
    for step in steps:
        store.save(at(state, step), run_state(step))
        store.finish()
    gc.collect()
    found = sum(type(o) is list and bool(o) and type(o[0]) is dict and "0" in o[0] for o in gc.get_objects())
    return len(store._manager.all_steps()), found


def test_saves_leave_nothing_in_memory(plan: Plan, tmp_path: Path) -> None:
    """Neither notes of steps that are gone nor tensorstore's counters."""
    with Store(tmp_path, CheckpointConfig(keep_last=2, keep_best="")) as store:
        notes, counted = left_after(store, plan, range(1, 3))
        assert left_after(store, plan, range(3, 6)) == (notes, counted)
        assert notes == 2


def test_addresses_are_what_tensorstore_makes_of_them(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax asks for that of a local folder, and gets it without an answer of tensorstore's, which would stay."""
    real, asked = counters._address, list[Any]()
    monkeypatch.setattr(counters, "_address", lambda given: asked.append(dict(given)) or real(given))
    with Store(tmp_path, CheckpointConfig(keep_last=2, keep_best="")) as store:
        left_after(store, plan, range(1, 2))
    folders = [given for given in asked if given["driver"] == "file"]
    assert len(folders) > 10
    for given in folders:
        assert type(real(given)) is SimpleNamespace
        assert real(given).to_json() == tensorstore.KvStore.Spec(given).to_json()


def test_the_counters_would_stay(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the way around them is not needed any more, with a newer tensorstore."""
    asked = counters.tensorstore_utils.ts.experimental_collect_matching_metrics
    with Store(tmp_path, CheckpointConfig(keep_last=2, keep_best="")) as store:
        monkeypatch.setattr(counters.tensorstore_utils, "get_tensorstore_raw_bytes", lambda d=None: len(asked("/tensorstore/")))
        before = left_after(store, plan, range(1, 2))[1]
        assert left_after(store, plan, range(2, 4))[1] > before
