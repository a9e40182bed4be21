"""The tasks of a build: each is done once, however often the build is killed and started again.

Promise: what a task returned is written down when it is done, and taken from there by the next attempt, and by everyone where two
processes did the same task; of several that fail the first in order is told, and what the others finished is kept. A task whose
database goes away is tried again, within seconds.
Price: a small file a task.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from mlprod.console import Phase, PhaseLines
from mlprod.errors import ConnectionLost
from mlprod.etl.pool import Crew
from mlprod.etl.whole import keep_first, remove_halves

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before a task that lost its database tries again
Task = Callable[[], Mapping[str, Any]]  # returns JSON data


def _no_rows(left: Any) -> int:
    return 0


def _done(task: Task, left: Path) -> Any:
    """Does a task, writes down what it returned unless another process was first, and returns what is written.

    One that loses its database begins anew: nothing of it was published.
    """
    for pause in PAUSES:
        try:
            result = task()
            break
        except ConnectionLost:
            time.sleep(pause)
    else:
        result = task()
    return json.loads(keep_first(left, json.dumps(result)))


class Tasks:
    """Runs the stages of a build in a work folder; `workers`: tasks that share the build's memory."""

    def __init__(self, work: Path, crew: Crew, lines: PhaseLines) -> None:
        """Nothing runs yet. `crew`: does the tasks; `lines`: where people see what is done."""
        self.work, self.workers, self.away, self.lines, self._pool = work, crew.together, crew.away, lines, crew.pool
        self.taken = Counter[str]()  # by stage: tasks that an earlier attempt had done

    def begin(self, work: Path) -> None:
        """Goes on in another folder, made where it is not there; removes what an attempt that was killed was writing."""
        self.work = work
        work.mkdir(exist_ok=True, mode=0o700)
        remove_halves(work)

    def run(self, stage: str, tasks: Mapping[str, Task], rows: Callable[[Any], int] = _no_rows) -> dict[str, Any]:
        """Returns what every task of a stage returned, by its name, in order; `rows`: how many a result tells of."""
        folder = self.work / stage
        folder.mkdir(parents=True, exist_ok=True)
        left = {name: json.loads(path.read_text()) for name in tasks if (path := folder / f"{name}.json").is_file()}
        self.taken[stage] += len(left)

        with self.lines.phase(stage, len(tasks)) as phase:
            phase.add(len(left), sum(map(rows, left.values())), earlier=True)
            missing = [name for name in tasks if name not in left]
            futures = {name: self._pool.submit(_done, tasks[name], folder / f"{name}.json") for name in missing}
            try:
                for future in as_completed(futures.values()):
                    if future.exception():
                        break
                    phase.add(1, rows(future.result()))
                left |= {name: future.result() for name, future in futures.items()}
            except BaseException:
                self._pool.shutdown(wait=True, cancel_futures=True)
                raise
        return {name: left[name] for name in tasks}

    def map(self, act: Callable[[Any], Any], inputs: Iterable[Callable[[], Any]], phase: Phase) -> Iterator[Any]:
        """Yields act(input()) for each table, in order: for what is quicker done again than written down."""

        with nullcontext(self._pool) if self.away else ThreadPoolExecutor(self.workers) as pool:
            for rows, result in pool.map(partial(_seen, act), inputs):
                phase.add(1, rows)
                yield result


def _seen(act: Callable[[Any], Any], given: Callable[[], Any]) -> tuple[int, Any]:
    """Returns (rows of a table, what a function returns of it)."""
    table = given()
    return table.num_rows, act(table)
