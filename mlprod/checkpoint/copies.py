"""Copies of a run's saved steps in an object store, or on another disk: a machine that is lost takes no step with it.

Promise: a step is there when its run JSON is, which is written last and removed first; what is copied was read back before, and
what is brought back is verified like any step. A store that is away does not stop the training: what it missed is copied with
the next save, and waited for at the end.
Price: one upload a step that stays, in the thread that read it back; a machine that has nothing brings the newest step whole.

There: `COPIES/STEP/...`, the files of the local step, and the file `lease` (`lease.py`).
"""

import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mlprod.checkpoint.run_state import Damaged, RunState, parse
from mlprod.checkpoint.saved import STEP, SavedSteps
from mlprod.errors import CheckpointError, RestoreError, WorkdirError
from mlprod.store import Store, open_store

OPTION = "config.checkpoint.copies"
RUN = "run/metadata"


class Copies:
    """The copies of one run's saved steps."""

    def __init__(self, location: str) -> None:
        """Asks nothing of the store yet.

        Raises:
            DataError: an address that no filesystem knows, or one with a password.
        """
        self.store: Store = open_store(location, OPTION)
        self.location = self.store.location

    def refusal(self, done: str, error: OSError) -> str:
        """Returns a line on a store that cannot be `done`, "read" or "written"."""
        return f"{OPTION}={self.location!r} cannot be {done}: {told_of(error)}; check address and access"

    def check_writable(self) -> None:
        """Writes and removes a small file; raises WorkdirError when the store does not let it."""
        try:
            self.store.write("probe", b"")
            self.store.remove("probe")
        except OSError as error:
            raise WorkdirError(self.refusal("written", error)) from error

    def steps(self) -> list[int]:
        """Returns the steps that are whole, ascending. Raises OSError, as all methods that don't say otherwise."""
        return sorted(_whole(self._files()))

    def copy(self, saved: SavedSteps, steps: Collection[int]) -> None:
        """Copies those of the local steps that are not there, the newest first; what was copied in part is begun again."""
        there = self._files()
        for step in sorted(steps, reverse=True):
            name, folder = f"{step:08d}", saved.folder(step)
            if RUN in there.get(name, ()) and self.store.read(f"{name}/{RUN}") == (folder / RUN).read_bytes():
                continue
            self.remove([step])
            paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
            for path in (*(path for path in paths if path != RUN), RUN):
                self.store.put(f"{name}/{path}", folder / path)

    def runs(self) -> dict[int, RunState]:
        """Returns the run JSON of every step that has a good one, by step."""
        found = {}
        for step in self.steps():
            try:
                found[step] = parse(self.store.read(f"{step:08d}/{RUN}"), step)
            except Damaged:
                continue
        return found

    def remove(self, steps: Collection[int]) -> None:
        """Removes steps, the run JSON of each first: half a step is none."""
        for step in steps:
            self.store.remove(f"{step:08d}/{RUN}")
            self.store.remove(f"{step:08d}")

    def bring(self, saved: SavedSteps, wanted: Callable[[int], bool], *, strict: bool) -> bool:
        """Brings the newest good step of those that are wanted, which must not be there; returns whether there is one.

        Raises:
            CheckpointError: the store cannot be read.
            RestoreError: the newest is damaged and `strict` is set.
        """
        try:
            there, aside = self._files(), SavedSteps(saved.root / "coming")
            for step in sorted(filter(wanted, _whole(there)), reverse=True):
                shutil.rmtree(aside.root, ignore_errors=True)
                self._fetch(step, there[f"{step:08d}"], aside.folder(step))
                try:
                    aside.verify(step)
                except Damaged as error:
                    told = f"the copy of step {step} in {self.location} is damaged: {error}"
                    if strict:
                        raise RestoreError(f"{told}; config.checkpoint.strict is set") from error
                    print(f"mlprod: {told}; looking for the one before", file=sys.stderr, flush=True)
                    continue
                saved.root.mkdir(parents=True, exist_ok=True)
                aside.folder(step).rename(saved.folder(step))
                print(f"mlprod: step {step} was brought from {self.location}", file=sys.stderr, flush=True)
                return True
        except OSError as error:
            raise CheckpointError(self.refusal("read", error)) from error
        finally:
            shutil.rmtree(saved.root / "coming", ignore_errors=True)
        return False

    def _fetch(self, step: int, files: Collection[str], folder: Path) -> None:
        for path in files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            self.store.fetch(f"{step:08d}/{path}", folder / path)

    def _files(self) -> dict[str, list[str]]:
        """Returns {folder of a step: paths below it}."""
        found: dict[str, list[str]] = {}
        for path in self.store.tree():
            step, _, rest = path.partition("/")
            if STEP.fullmatch(step) and rest and ".." not in rest.split("/"):
                found.setdefault(step, []).append(rest)
        return found


def _whole(there: Mapping[str, Collection[str]]) -> list[int]:
    return [int(step) for step, files in there.items() if RUN in files]


def told_of(error: OSError) -> str:
    """Returns what a store said, as one line."""
    return " ".join(str(error).split())[:300]
