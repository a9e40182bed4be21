"""The tasks of a build: each is done once, however often the build is killed and started again.

Promise: what a task returned is written down when it is done, and taken from there by the next attempt; of several that fail the
first in order is told, and what the others finished is kept.
Price: a small file a task.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlprod.manifest import write_atomically

Task = Callable[[], Mapping[str, Any]]  # returns JSON data


class Tasks:
    """Runs the stages of a build in a work folder, each task on one of `workers` threads."""

    def __init__(self, work: Path, workers: int) -> None:
        """Nothing runs yet."""
        self.work, self.workers = work, workers
        self.taken = Counter[str]()  # by stage: tasks that an earlier attempt had done

    def run(self, stage: str, tasks: Mapping[str, Task]) -> dict[str, Any]:
        """Returns what every task of a stage returned, by its name, in order."""
        folder = self.work / stage
        folder.mkdir(parents=True, exist_ok=True)

        def one(name: str) -> Any:
            left = folder / f"{name}.json"
            if left.is_file():
                self.taken[stage] += 1
                return json.loads(left.read_text())
            result = tasks[name]()
            write_atomically(left, json.dumps(result))
            return result

        with ThreadPoolExecutor(self.workers) as pool:
            futures = {name: pool.submit(one, name) for name in tasks}
            try:
                return {name: future.result() for name, future in futures.items()}
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def map(self, act: Callable[[Any], Any], inputs: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """Yields act(input()) for each, in order: for what is quicker done again than written down."""
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(lambda given: act(given()), inputs)
