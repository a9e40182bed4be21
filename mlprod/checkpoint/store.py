"""Saves the whole run, device arrays and host state as one atomic step, and throws old steps away. The only door to orbax.

Promise: before a save the copies of an array on several devices are compared, and digests taken, all on the devices. A
background save that failed ends the run with its cause. No step goes before a newer one was read back and found good, and none
that the run did not make. With `cfg.copies` every step that stays is copied there, after it was read back and before an older
one goes.
Price: a save blocks the loop for the digests and a copy to the host; writing, reading back and copying go on beside the steps.

On disk: `WORKDIR/checkpoints/STEP/{state,run}`; `state` holds {our path: array}, `run` the run JSON (`run_state.py`). Beside the
steps: `damaged/`, steps that were set aside, and `going/` and `coming/`, steps on their way: what a kill left there is removed.
"""

import shutil
import sys
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mlprod.checkpoint import counters, retention
from mlprod.checkpoint.copies import Copies, told_of
from mlprod.checkpoint.lease import Lease
from mlprod.checkpoint.leaves import CHUNK_BYTES, digests, leaf_table
from mlprod.checkpoint.replicas import check_replicas
from mlprod.checkpoint.run_state import Damaged, RunState, encode
from mlprod.checkpoint.saved import Accept, AllDamaged, SavedSteps, accept_any
from mlprod.config import CheckpointConfig
from mlprod.errors import CheckpointError, WorkdirError
from mlprod.state import TrainState, flatten


class Store:
    """The saved steps of one run. A context manager: leaving it waits for a save under way and raises if it failed."""

    def __init__(self, workdir: Path, cfg: CheckpointConfig) -> None:
        """`cfg`: what stays, and whether to go back to an older step.

        Raises:
            WorkdirError: something lies among the steps that is none.
            DataError: `cfg.copies` is no address, or one with a password.
        """
        counters.ask_for_none()
        self.saved, self._cfg = SavedSteps(workdir), cfg
        self._copies = Copies(cfg.copies) if cfg.copies and jax.process_index() == 0 else None
        self._lease = Lease(self._copies.store, workdir) if self._copies else None
        self.good: list[int] = []  # the steps that this process restored or read back; grows, and others may read it
        self._missed = ""  # why the newest good step is not copied yet
        self._pending = -1  # the step of a save under way
        self._unread = -1  # the newest saved step that is still to be read back
        self._reading: tuple[int, Future[None]] | None = None
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(step_format_fixed_length=8, cleanup_tmp_directories=True, create=True)
        handlers = {"state": ocp.PyTreeCheckpointHandler(use_compression=False), "run": ocp.JsonCheckpointHandler()}
        manager = ocp.CheckpointManager(self.saved.root, options=options, item_handlers=handlers)
        foreign = sorted(set(manager.all_steps()) - set(self.saved.steps()))
        if foreign:  # orbax would take it for a step and refuse to save an earlier one
            manager.close()
            raise WorkdirError(f"{self.saved.root} has something named {foreign[-1]} that is no saved step; move it away")
        for passing in ("going", "coming"):
            shutil.rmtree(self.saved.root / passing, ignore_errors=True)
        return manager

    def __enter__(self) -> "Store":
        """Takes the lease on the copies; raises WorkdirError when another process has it, or they cannot be written."""
        if self._copies and self._lease:
            try:
                self._lease.take()
            except OSError as error:
                raise WorkdirError(self._copies.refusal("written", error)) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Waits for the save under way; its failure is raised unless another error is on its way."""
        try:
            self.finish_save()
        except CheckpointError:
            if error is None:
                raise
        finally:
            with suppress(Exception):  # the same failure again, of whatever class
                self._manager.close()
            if self._lease:
                self._lease.release()

    # ---- saving ----

    def save(self, state: TrainState, run: RunState) -> None:
        """Begins to save the state and its run JSON as step `run.step`; returns when the state may be donated.

        Raises:
            CheckpointError: an earlier save failed, this one was refused, or devices hold different values of one array.
        """
        self.check()
        table, leaves = leaf_table(state), flatten(state)
        check_replicas(leaves)
        for path, words in digests(leaves).items():
            table[path]["digest"] = words
        chunks = {path: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for path in leaves}
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(leaves, save_args=chunks), run=ocp.args.JsonSave(encode(replace(run, leaves=table)))
        )
        saved = self._settle(lambda: self._manager.save(run.step, args=items))
        if not saved:
            raise CheckpointError(
                f"step {run.step} was not saved: {self.saved.root} already has step {max(self.saved.steps(), default=-1)}"
            )
        self._pending = run.step

    def check(self) -> None:
        """Looks after what goes on in the background: costs nothing while it is under way.

        Raises:
            CheckpointError: a save has failed, a step was read back and is not what was saved, or another process copies now.
        """
        if self._lease:
            self._lease.check()
        if self._pending >= 0 and not self._manager.is_saving_in_progress():
            self._settle(self._manager.wait_until_finished)
        if self._reading is not None and self._reading[1].done():
            self._finish_reading()
        if self._reading is None and self._unread >= 0:
            self._read_back()

    def finish(self) -> None:
        """Waits until everything saved is on the disk, was read back and copied, and what need not stay is gone.

        Raises:
            CheckpointError: see `check`; or the newest step cannot be copied.
        """
        self._settle(self._manager.wait_until_finished)
        self._finish_background()
        if self._missed:
            raise CheckpointError(f"{self._missed}; all is saved below {self.saved.root}: the same command copies it")

    def finish_save(self) -> None:
        """Waits until everything saved is on the disk, and copied where the copies can be reached; nothing else is waited for.

        Raises:
            CheckpointError: a save failed.
        """
        self._settle(self._manager.wait_until_finished)
        if self._copies is not None:
            self._finish_background()

    def _finish_background(self) -> None:
        while self._reading is not None or self._unread >= 0:
            if self._reading is not None:
                self._finish_reading()
            else:
                self._read_back()

    def _settle(self, act: Any) -> Any:
        """Runs a call that may raise what a background save ran into, and gives it its name."""
        pending, self._pending = self._pending, -1
        try:
            result = act()
        except Exception as error:  # orbax raises ValueError, OSError and others for the same cause
            cause = " ".join(str(error).split())[:500]
            raise CheckpointError(f"saving a step below {self.saved.root} failed: {type(error).__name__}: {cause}") from error
        if pending >= 0 and pending not in self.saved.steps():
            raise CheckpointError(f"step {pending} was being saved and is not below {self.saved.root}: was the folder removed?")
        self._unread = max(self._unread, pending)
        return result

    # ---- reading back ----

    def _read_back(self) -> None:
        step, self._unread = self._unread, -1
        outcome: Future[None] = Future()

        def read() -> None:
            try:
                self.saved.verify(step)
                self._copy(step)
            except BaseException as error:
                outcome.set_exception(error)
            else:
                outcome.set_result(None)

        threading.Thread(target=read, name="mlprod-read-back", daemon=True).start()
        self._reading = step, outcome

    def _finish_reading(self) -> None:
        assert self._reading is not None
        (step, outcome), self._reading = self._reading, None
        try:
            outcome.result()
        except Damaged as error:
            raise CheckpointError(
                f"checkpoint {self.saved.folder(step)} was read back and is not what was saved: {error}; "
                f"start again: that goes back to the one before"
            ) from error
        self.good.append(step)
        if jax.process_index() == 0:
            self._prune(step)
            if self._pending < 0:  # orbax keeps a note of each step that it ever saved: it is to look what there is
                with suppress(OSError):
                    self._manager.reload()

    def _copy(self, good: int) -> None:
        """Copies the steps that stay now that step `good` was found good, then removes the copies that need not."""
        if self._copies is None or self._lease is None:
            return
        self._lease.check()
        try:
            here = _of_the_run_of(good, self.saved.runs())
            going = retention.superfluous(here, good, self._cfg)
            self._copies.copy(self.saved, [step for step in here if step <= good and step not in going])
            there = _of_the_run_of(good, self._copies.runs())
            self._copies.remove(retention.superfluous(there, good, self._cfg))
            self._missed = ""
        except OSError as error:
            self._missed = f"step {good} is not copied to {self._copies.location}: {told_of(error)}"
            print(f"mlprod: {self._missed}; it is tried again with the next save", file=sys.stderr, flush=True)

    def _prune(self, good: int) -> None:
        """Removes what need not stay now that step `good` was found good: steps of the same run alone."""
        self._remove(retention.superfluous(_of_the_run_of(good, self.saved.runs()), good, self._cfg))

    def _remove(self, steps: Collection[int]) -> None:
        """Removes steps: each out of sight by one rename, so that a kill never leaves half a step."""
        going = self.saved.root / "going"
        try:
            for step in steps:
                going.mkdir(exist_ok=True)
                shutil.rmtree(going / f"{step:08d}", ignore_errors=True)
                self.saved.folder(step).rename(going / f"{step:08d}")
        except OSError as error:
            raise CheckpointError(f"steps {list(steps)} below {self.saved.root} cannot be removed: {error.strerror}") from error
        shutil.rmtree(going, ignore_errors=True)

    def restore_newest(
        self, abstract: TrainState, where: TrainState, accept: Accept = accept_any
    ) -> tuple[TrainState, RunState] | None:
        """As `SavedSteps.restore_newest`; a damaged step is moved to `checkpoints/damaged/`, so that its number is free.

        A newer good step that is among the copies alone is brought from there. What was restored was found good: what need not
        stay beside it goes.
        """
        found = self._restore(abstract, where, accept)
        if self._copies is not None:
            newest = found[1].step if found else -1
            if self._copies.bring(self.saved, lambda step: step > newest, strict=self._cfg.strict):
                del found  # or the devices would hold two
                self._reopen()
                found = self._restore(abstract, where, accept)
            self._unread = found[1].step if found else -1  # for its copy, which may be missing
        if found is not None:
            self.good.append(found[1].step)
        if found is not None and jax.process_index() == 0:
            self._prune(found[1].step)
        return found

    def _restore(self, abstract: TrainState, where: TrainState, accept: Accept) -> tuple[TrainState, RunState] | None:
        try:
            return self.saved.restore_newest(abstract, where, accept, strict=self._cfg.strict, set_aside=self._set_aside)
        except AllDamaged:
            if self._copies is None:
                raise
        return None

    def forget_after(self, example: int) -> None:
        """Removes the steps that have seen examples from `example` on, and waits for a save under way first."""
        self.finish_save()
        if self._reading is not None:  # of a step that may be about to go
            self._reading[1].exception()
        self._reading, self._unread = None, -1
        runs = self.saved.runs()
        self._remove([step for step, run in runs.items() if isinstance(run, RunState) and run.next_example > example])
        if self._copies is not None:
            try:
                self._copies.remove([step for step, run in self._copies.runs().items() if run.next_example > example])
            except OSError as error:
                raise CheckpointError(self._copies.refusal("written", error)) from error
        self._reopen()

    def _set_aside(self, step: int) -> None:
        aside = self.saved.root / "damaged"
        aside.mkdir(exist_ok=True)
        taken = len(list(aside.iterdir()))
        self.saved.folder(step).rename(aside / f"{step:08d}.{taken}")
        self._reopen()

    def _reopen(self) -> None:
        """Makes orbax look at the folder anew: it keeps a list of its own."""
        self._manager.close()
        self._manager = self._open()


def _of_the_run_of(good: int, runs: Mapping[int, RunState | Damaged]) -> dict[int, retention.Metrics]:
    """Returns the metrics of each step of the run that step `good` is of; none when that was harmed since it was read."""
    mine = runs.get(good)
    ours = {step: run for step, run in runs.items() if isinstance(run, RunState)}
    return {step: run.metrics for step, run in ours.items() if isinstance(mine, RunState) and run.run_id == mine.run_id}
