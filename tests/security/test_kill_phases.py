"""The kills of the crash suite on planted rows: one in each phase of training, and in each of a build; then all is searched."""

import dataclasses
import random
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from mlprod import recipe
from tests.chaos.builds import STAGES, look, phase_of
from tests.chaos.harness import LIMIT_S, Run
from tests.chaos.phases import kill_in, phases
from tests.security.test_failing_runs import MLPROD, assert_nothing_left, planted_machine, until
from tests.security.test_what_leaves import CONFIG, Machine

BUSY = """cfg.steps, cfg.checkpoint.every, cfg.checkpoint.keep_last, cfg.eval.every = 80, 3, 1, 4
"""
SLOW = """cfg.etl.chunk_rows = 50; cfg.etl.memory_bytes = 1 << 20; cfg.etl.workers = 2; cfg.etl.executor = 'processes'
"""


class Started:
    """A process of a machine, with the names that the crash suite has for it."""

    def __init__(self, m: Machine, *words: str) -> None:
        """It runs."""
        self._stack = ExitStack()
        self._process = self._stack.enter_context(m.start(MLPROD, *words))
        self.pid = self._process.pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def join(self, seconds: float) -> None:
        """Waits for its end."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
            self._stack.close()

    def kill(self) -> None:
        """Ends it."""
        self._stack.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedRun(Run):
    """A run of the planted rows on its machine."""

    m: Machine

    def _start(self, target: Any, more: Any, *given_to_it: Any, verb: str = "train") -> Started:
        return Started(self.m, verb, *CONFIG, *more)

    def output(self) -> str:
        """What its last process printed."""
        return self.m.told()


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_kill_in_each_phase_of_training(tmp_path: Path) -> None:
    """Each in a run of its own, which then ends well; W&B online."""
    with planted_machine(tmp_path / "m", BUSY) as m:
        assert set(m.run(["etl", *CONFIG]).values()) == {0}
        cfg = dataclasses.replace(recipe.load(str(m.here / "mine.py"), ()), workdir=str(m.here / "run"))
        for name, phase in phases(per_epoch=3).items():
            for number in range(4):  # a run may end before it could be killed
                if kill_in(PlantedRun(cfg, (), m=m), name, phase, 1, random.Random(f"{name} {number}")):
                    break
                (m.here / "run").rename(m.here / f"run-{name.replace(' ', '').replace(':', '-')}-early-{number}")
            else:
                raise AssertionError(f"no run could be killed in {name}")
            (m.here / "run").rename(m.here / f"run-{name.replace(' ', '').replace(':', '-')}")
        assert_nothing_left(m)


@pytest.mark.chaos
def test_a_kill_in_each_phase_of_a_build(tmp_path: Path) -> None:
    """What is left is searched after each kill, and when the build is done at last."""
    with planted_machine(tmp_path / "m", SLOW) as m:
        dataset, seen = m.here / "dataset", list[str]()
        for stage in STAGES:
            with m.start(MLPROD, "etl", *CONFIG) as process:
                until(process, lambda stage=stage: any(dataset.glob(f"work/*/*/{stage}")))
                process.send_signal(signal.SIGKILL)
                process.wait(LIMIT_S)
            look(dataset)
            seen.append(phase_of(dataset))
            assert_nothing_left(m)
        assert set(m.run(["etl", *CONFIG]).values()) == {0}
        assert_nothing_left(m)
        print(seen)
