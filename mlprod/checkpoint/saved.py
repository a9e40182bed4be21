"""The saved steps of a run as they lie on disk: listed, read again and restored. Changes nothing.

Promise: what is restored equals what was saved, bit for bit, with the shardings that are asked for; otherwise the step is
damaged, loudly, and the one before is used.
Price: a restore reads each array once, in the parts that the devices hold, and takes its digest on the devices.
"""

import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import jax

from mlprod import documents
from mlprod.checkpoint import readback
from mlprod.checkpoint.leaves import check_fits, leaf_table, read_leaves
from mlprod.checkpoint.run_state import Damaged, RunState, parse
from mlprod.errors import ConfigError, RestoreError, WorkdirError
from mlprod.parallel.place import fetch
from mlprod.state import TrainState, flatten, unflatten


def trained_on(workdir: str) -> str:
    """Returns the dataset_id of the newest saved step of a run that can be read; "" where there is none."""
    runs = [run for run in SavedSteps(Path(workdir)).runs().values() if isinstance(run, RunState)]
    return runs[-1].dataset_id if runs else ""


STEP = re.compile(r"[0-9]{8,}")
Accept = Callable[[RunState], None]  # raises where a run is not to be resumed


class AllDamaged(RestoreError):
    """There are saved steps, and none is what was saved."""


def accept_any(run: RunState) -> None:
    """Accepts every run."""


def leave(step: int) -> None:
    """Leaves a damaged step where it is."""


class SavedSteps:
    """The saved steps below a run's folder."""

    def __init__(self, workdir: Path) -> None:
        """Nothing is read yet, and the folder need not be there."""
        self.root = (workdir / "checkpoints").absolute()

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending; raises WorkdirError where this user may not look."""
        try:
            found = [path for path in self.root.iterdir() if STEP.fullmatch(path.name)] if self.root.is_dir() else []
            return sorted(int(path.name) for path in found if (path / "run").is_dir() and not path.is_symlink())
        except PermissionError as error:
            raise WorkdirError(f"{error.filename} cannot be read: {error.strerror}; let this user read it") from error

    def folder(self, step: int) -> Path:
        """Returns where a step lies."""
        return self.root / f"{step:08d}"

    def runs(self) -> dict[int, RunState | Damaged]:
        """Returns every step's run JSON, or why there is none, by step, ascending."""
        found: dict[int, RunState | Damaged] = {}
        for step in self.steps():
            try:
                found[step] = self.read_run(step)
            except Damaged as error:
                found[step] = error
        return found

    def address(self, step: int) -> str:
        """Returns where the arrays of a step lie, as tensorstore wants it."""
        return f"file://{self.folder(step)}/state"

    def read_run(self, step: int) -> RunState:
        """Returns the run JSON of a step.

        Raises:
            Damaged: it cannot be read, its SHA-256 differs, or it speaks of another step.
            RestoreError: its format is newer than known.
        """
        try:
            raw = documents.read(self.folder(step) / "run" / "metadata")
        except (OSError, ValueError) as error:
            raise Damaged(f"the run JSON cannot be read: {type(error).__name__}") from error
        return parse(raw, step)

    def restore(
        self, step: int, abstract: TrainState, where: TrainState, accept: Accept = accept_any
    ) -> tuple[TrainState, RunState]:
        """Returns the arrays (with the shardings `where`) and the run JSON of one step, verified.

        Raises:
            Damaged: it is not what was saved.
            ConfigError: its arrays are not those of the config.
        """
        run = self.read_run(step)
        accept(run)
        told = f"the checkpoint of step {step} does not fit config.model and config.optim"
        check_fits(run.leaves, leaf_table(abstract), told)
        state: TrainState = unflatten(abstract, read_leaves(self.address(step), run.leaves, _target(abstract, where)))
        if int(fetch(state.step)) != step:
            raise Damaged(f"state/step is {int(fetch(state.step))}")
        return state, run

    def restore_part(
        self, step: int, parts: Collection[str], abstract: TrainState, where: TrainState
    ) -> tuple[dict[str, jax.Array], RunState]:
        """Returns {path: array} of the state's arrays below the paths `parts`, such as "params" or "tables/embed", verified.

        Raises:
            Damaged: it is not what was saved.
            ConfigError: the saved arrays below `parts` are not those of the config, or there are none.
        """
        run = self.read_run(step)
        saved, wanted = (
            {path: row for path, row in table.items() if f"{path}/".startswith(tuple(f"{part}/" for part in parts))}
            for table in (run.leaves, leaf_table(abstract))
        )
        told = f"the arrays of {tuple(parts)} in {self.folder(step)} do not fit config.model"
        if not saved and not wanted:
            raise ConfigError(f"{told}: there are none; the state has {', '.join(sorted({p.split('/')[0] for p in run.leaves}))}")
        check_fits(saved, wanted, told)
        target = {path: like for path, like in _target(abstract, where).items() if path in wanted}
        return read_leaves(self.address(step), run.leaves, target), run

    def restore_newest(
        self,
        abstract: TrainState,
        where: TrainState,
        accept: Accept = accept_any,
        *,
        strict: bool = False,
        set_aside: Callable[[int], None] = leave,
    ) -> tuple[TrainState, RunState] | None:
        """Returns the newest step that is what was saved, or None when nothing was ever saved.

        Args:
            strict: raise instead of going back to an older step.
            set_aside: is given each damaged step, after it was named on stderr.

        Raises:
            RestoreError: every saved step is damaged, or the newest is and `strict` is set.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, abstract, where, accept)
            except Damaged as error:
                message = f"checkpoint {self.folder(step)} is damaged: {error}"
                if strict:
                    raise RestoreError(f"{message}; config.checkpoint.strict is set") from error
                print(f"mlprod: {message}; going back to the step before", file=sys.stderr, flush=True)
                set_aside(step)
        if steps:
            raise AllDamaged(
                f"all {len(steps)} saved steps below {self.root} are damaged; restore one from a copy, or use another workdir"
            )
        return None

    def verify(self, step: int) -> None:
        """Reads a step from where it lies, on the host; raises Damaged when it is not what was saved."""
        index, count = jax.process_index(), jax.process_count()
        meeting = self.root / "readback" / f"{step:08d}" if count > 1 else None
        readback.verify(self.address(step), self.read_run(step).leaves, index, count, meeting)


def _target(abstract: TrainState, where: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {path: shape, dtype and sharding} of a state's arrays."""
    shards = flatten(where)
    return {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shards[p]) for p, x in flatten(abstract).items()}
