"""Saves and restores the whole run: device arrays and host state as one atomic step. The only door to orbax.

Promise: what is restored equals what was saved, bit for bit, by digests taken on the devices before the save; otherwise that
step is refused, loudly, set aside, and the one before is used. A background save that failed ends the run with its cause.
Price: a save blocks the loop for the digests and a copy to the host; the writing goes on beside the steps.

On disk: `WORKDIR/checkpoints/STEP/{state,run}`; `state` holds {our path: array}, `run` the run JSON as canonical text with its
SHA-256. Orbax checks neither dtypes nor its data's bytes, so tables of both are ours.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mlprod.digest import as_hex, digest, refused
from mlprod.errors import CheckpointError, ConfigError
from mlprod.manifest import canonical, sha256_text
from mlprod.parallel.place import fetch
from mlprod.state import TrainState, flatten, unflatten

FORMAT = 1
SHOWN = 20  # leaves named in a message


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The host's part of a run: all that decides how it goes on, besides the device arrays."""

    run_id: str
    attempt: int
    step: int
    next_example: int  # position: examples drawn or skipped
    dataset_id: str
    order: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    tracker_id: str
    skipped: tuple[tuple[int, int], ...] = ()
    ledger: Mapping[str, float] = field(default_factory=dict)
    leaves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # path -> shape, dtype, digest
    format: int = FORMAT


def leaf_table(state: Any) -> dict[str, dict[str, Any]]:
    """Returns {path: {"shape", "dtype"}} of a state or an abstract one.

    Raises:
        CheckpointError: a leaf that cannot be saved exactly (a random key, complex, 64-bit, empty, or '.' in its path).
    """
    table = {}
    for path, leaf in flatten(state).items():
        why = refused(leaf.dtype) or ("empty" if 0 in leaf.shape else "") or ("named with a '.'" if "." in path else "")
        if why:
            raise CheckpointError(
                f"state {path!r} ({leaf.dtype}{list(leaf.shape)}) is {why}, which a checkpoint cannot hold exactly"
            )
        table[path] = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    return table


@jax.jit
def _digests(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {path: digest(leaf) for path, leaf in leaves.items()}


def digests(state: TrainState) -> dict[str, str]:
    """Returns {path: 16 hex digits} of every array, computed on the devices under any layout."""
    words: dict[str, np.ndarray] = fetch(_digests(flatten(state)))
    return {path: as_hex(word) for path, word in words.items()}


def _check_leaves(saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]], step: int) -> None:
    """Raises ConfigError when the saved arrays are not those of the config's model and optimizer."""
    wrong = []
    for path in sorted(saved.keys() | wanted.keys()):
        a, b = saved.get(path), wanted.get(path)
        if a is None or b is None:
            wrong.append(f"{path} {'is not in the checkpoint' if a is None else 'is not in the config'}")
        elif (a["shape"], a["dtype"]) != (b["shape"], b["dtype"]):
            wrong.append(f"{path} is {a['dtype']}{a['shape']}, the config says {b['dtype']}{b['shape']}")
    if wrong:
        told = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        raise ConfigError(
            f"the checkpoint of step {step} does not fit config.model and config.optim: {told}; "
            f"use the config it was saved with, or another workdir"
        )


Accept = Callable[[RunState], None]  # raises where a run is not to be resumed


def _anything(run: RunState) -> None:
    """Accepts every run."""


class Damaged(CheckpointError):
    """A saved step is not what was saved; the reason is its text."""


class Store:
    """The saved steps of one run. A context manager: leaving it waits for a save under way and raises if it failed."""

    def __init__(self, workdir: Path, *, strict: bool = False, read_only: bool = False) -> None:
        """`strict`: raise instead of going back to an older step."""
        self._root = (workdir / "checkpoints").absolute()
        self._strict, self._read_only = strict, read_only
        self._pending = -1  # the step of a save under way
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            step_format_fixed_length=8,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            create=not self._read_only,
        )
        return ocp.CheckpointManager(self._root, options=options)

    def __enter__(self) -> "Store":
        """Returns itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Waits for the save under way; its failure is raised unless another error is on its way."""
        try:
            self.finish()
        except CheckpointError:
            if error is None:
                raise
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending."""
        return sorted(self._manager.all_steps()) if self._root.is_dir() else []

    # ---- saving ----

    def save(self, state: TrainState, run: RunState) -> None:
        """Begins to save the state and its run JSON as step `run.step`; returns when the state may be donated.

        Raises:
            CheckpointError: an earlier save failed, or this one was refused.
        """
        self.check()
        table = leaf_table(state)
        for path, words in digests(state).items():
            table[path]["digest"] = words
        text = canonical(asdict(replace(run, leaves=table)))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(flatten(state)), run=ocp.args.JsonSave({"text": text, "sha256": sha256_text(text)})
        )
        saved = self._settle(lambda: self._manager.save(run.step, args=items))
        if not saved:
            raise CheckpointError(f"step {run.step} was not saved: {self._root} already has step {max(self.steps(), default=-1)}")
        self._pending = run.step

    def finish(self) -> None:
        """Waits for the save under way; raises CheckpointError when it failed."""
        self._settle(self._manager.wait_until_finished)

    def check(self) -> None:
        """Raises CheckpointError when a background save has failed; costs nothing while one is under way."""
        if self._pending >= 0 and not self._manager.is_saving_in_progress():
            self.finish()

    def _settle(self, act: Any) -> Any:
        """Runs a call that may raise what a background save ran into, and gives it its name."""
        pending, self._pending = self._pending, -1
        try:
            result = act()
        except Exception as error:  # orbax raises ValueError, OSError and others for the same cause
            cause = " ".join(str(error).split())[:500]
            raise CheckpointError(f"saving a step below {self._root} failed: {type(error).__name__}: {cause}") from error
        if pending >= 0 and pending not in self._manager.all_steps():
            raise CheckpointError(f"step {pending} was being saved and is not below {self._root}: was the folder removed?")
        return result

    # ---- restoring ----

    def read_run(self, step: int) -> RunState:
        """Returns the run JSON of a step.

        Raises:
            Damaged: it cannot be read, its SHA-256 differs, or it speaks of another step.
            CheckpointError: its format is newer than known.
        """
        try:
            body = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
            text = body["text"]
            if sha256_text(text) != body["sha256"]:
                raise Damaged("the run JSON's SHA-256 differs")
            tree = json.loads(text)
        except Damaged:
            raise
        except Exception as error:  # orbax raises whatever its layers raise
            raise Damaged(f"the run JSON cannot be read: {type(error).__name__}") from error
        if tree["format"] > FORMAT:
            raise CheckpointError(f"step {step} has format {tree['format']}, newer than {FORMAT}; update mlprod")
        if tree["step"] != step:
            raise Damaged(f"the run JSON speaks of step {tree['step']}")
        tree["skipped"] = tuple(map(tuple, tree["skipped"]))
        return RunState(**{f.name: tree[f.name] for f in fields(RunState)})

    def _restore_arrays(self, step: int, run: RunState, abstract: TrainState, where: TrainState) -> TrainState:
        shards = flatten(where)
        target = {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shards[p]) for p, x in flatten(abstract).items()}
        try:
            leaves = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
        except Exception as error:
            raise Damaged(f"the arrays cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
        state: TrainState = unflatten(abstract, leaves)
        for path, leaf in leaves.items():
            if not leaf.sharding.is_equivalent_to(shards[path], leaf.ndim):
                raise AssertionError(f"{path} came back as {leaf.sharding}, not {shards[path]}")
        wrong = [path for path, words in digests(state).items() if words != run.leaves[path]["digest"]]
        if wrong:
            raise Damaged(f"{len(wrong)} array(s) differ from what was saved: {', '.join(wrong[:SHOWN])}")
        if int(fetch(state.step)) != step:
            raise Damaged(f"state/step is {int(fetch(state.step))}")
        return state

    def restore(
        self, step: int, abstract: TrainState, where: TrainState, accept: Accept = _anything
    ) -> tuple[TrainState, RunState]:
        """Returns the arrays (with the shardings `where`) and the run JSON of one step, verified.

        Raises:
            Damaged: it is not what was saved.
            ConfigError: its arrays are not those of the config.
        """
        run = self.read_run(step)
        accept(run)
        _check_leaves(run.leaves, leaf_table(abstract), step)
        return self._restore_arrays(step, run, abstract, where), run

    def restore_newest(
        self, abstract: TrainState, where: TrainState, accept: Accept = _anything
    ) -> tuple[TrainState, RunState] | None:
        """Returns the newest step that is what was saved, or None when nothing was ever saved.

        A damaged step is named on stderr and, unless read-only, moved to `checkpoints/damaged/`, so that its number is free.

        Raises:
            CheckpointError: every saved step is damaged, or the newest is and `strict` is set.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, abstract, where, accept)
            except Damaged as error:
                message = f"checkpoint {self._root / f'{step:08d}'} is damaged: {error}"
                if self._strict:
                    raise CheckpointError(f"{message}; config.checkpoint.strict is set") from error
                print(f"mlprod: {message}; going back to the step before", flush=True)
                self._set_aside(step)
        if steps:
            raise CheckpointError(
                f"all {len(steps)} saved steps below {self._root} are damaged; restore one from a copy, or use another workdir"
            )
        return None

    def _set_aside(self, step: int) -> None:
        if self._read_only:
            return
        aside = self._root / "damaged"
        aside.mkdir(exist_ok=True)
        taken = len(list(aside.iterdir()))
        (self._root / f"{step:08d}").rename(aside / f"{step:08d}.{taken}")
        self._manager.close()
        self._manager = self._open()
