"""The tasks of a build: each is done once, however often the build is killed and started again.

Promise: what a task returned is written down when it is done, and taken from there by the next attempt; of several that fail the
first in order is told, and what the others finished is kept. A task whose database goes away is tried again, within seconds.
Price: a small file a task.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mlprod.console import Phase, PhaseLines
from mlprod.errors import ConnectionLost
from mlprod.manifest import write_atomically

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before a task that lost its database tries again
Task = Callable[[], Mapping[str, Any]]  # returns JSON data


def _no_rows(left: Any) -> int:
    return 0


def _done(task: Task, left: Path) -> Any:
    """Does a task and writes down what it returned. One that loses its database begins anew: nothing of it was published."""
    for pause in PAUSES:
        try:
            result = task()
            break
        except ConnectionLost:
            time.sleep(pause)
    else:
        result = task()
    write_atomically(left, json.dumps(result))
    return result


class Tasks:
    """Runs the stages of a build in a work folder, `workers` tasks at once."""

    def __init__(self, work: Path, workers: int, lines: PhaseLines, pool: Executor) -> None:
        """Nothing runs yet. `lines`: where people see what is done; `pool`: runs the tasks."""
        self.work, self.workers, self.lines, self._pool = work, workers, lines, pool
        self.taken = Counter[str]()  # by stage: tasks that an earlier attempt had done

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

        def one(given: Callable[[], Any]) -> Any:
            table = given()
            result = act(table)
            phase.add(1, table.num_rows)
            return result

        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(one, inputs)
