"""Compiling is counted where it is spent, found again by the next start, and told when it happens in the midst of a run."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlprod.attempts import read_attempts
from mlprod.compilations import Compilations, Watched
from mlprod.config import AUTO, kept_programs
from mlprod.ledger import Ledger
from mlprod.tracing import Tracer
from mlprod.tracking import read_log
from mlprod.train import train
from tests.conftest import RECIPE, MakeConfig


def fresh_step() -> Any:
    """A step that no other test has compiled."""
    salt = float(int.from_bytes(os.urandom(3), "big"))
    return jax.jit(lambda state, batch: (state + batch["x"].sum() * salt, salt), donate_argnums=0)


def test_compiling_is_an_activity_of_its_own() -> None:
    """Of this thread alone: what another compiles beside it takes none of its time."""
    ledger, step = Ledger(), fresh_step()
    with Compilations(ledger) as compiled:
        with ledger.spent("first step"):
            jax.block_until_ready(step(jnp.zeros(3), {"x": jnp.ones(4)}))
        mine = compiled.programs
        other = threading.Thread(target=lambda: fresh_step()(jnp.zeros(5), {"x": jnp.ones(6)}))
        other.start()
        other.join()
        assert compiled.programs == mine >= 1
    assert ledger.seconds["compile"] == pytest.approx(compiled.seconds)
    assert 0 <= ledger.seconds["first step"] < ledger.elapsed() - ledger.seconds["compile"]
    before = compiled.programs
    fresh_step()(jnp.zeros(7), {"x": jnp.ones(7)})
    assert compiled.programs == before, "behind the block nothing is counted"


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"x": np.ones(5, np.float32)}, "1/x float32[4] -> float32[5]"),
        ({"x": np.ones(4, np.int32)}, "1/x float32[4] -> int32[4]"),
        ({"x": np.ones(4, np.float32), "y": np.ones(2, np.float32)}, "1/y None -> float32[2]"),
    ],
)
def test_a_step_that_is_compiled_again_says_what_changed(changed: dict[str, np.ndarray], told: str) -> None:
    """Once, when it happens; calls that find their program say nothing."""
    said: list[str] = []
    batch = {"x": np.ones(4, np.float32)}
    with Compilations(Ledger()) as compiled:
        step, state = Watched(fresh_step(), compiled, "", said.append), jnp.zeros(3)
        for given in (batch, batch, batch, changed, changed, batch):
            state, _ = step(state, given)
    assert len(said) == 2
    assert re.fullmatch(r"\d+ programs compiled in \d+\.\d s", said[0])
    assert said[1] == f"the step was compiled again, for this has changed: {told}"


def test_a_change_that_is_in_no_argument_is_told_as_that() -> None:
    """Such as one of jax's settings."""
    said: list[str] = []
    with Compilations(Ledger()) as compiled:
        step, state = Watched(fresh_step(), compiled, "", said.append), jnp.zeros(3)
        for precision in (None, None, None, "float32"):
            with jax.default_matmul_precision(precision) if precision else jax.default_matmul_precision("default"):
                state, _ = step(state, {"x": np.ones(4, np.float32)})
    assert said[1:] == [
        "the step was compiled again, for this has changed: no argument; look at what the model or jax.config reads"
    ]


def test_where_programs_are_kept(make_config: MakeConfig) -> None:
    """In the run's own folder unless the config says otherwise; of a run in an object store, or a trial, nowhere."""
    cfg = make_config("run")

    def kept(cache: str, **changed: Any) -> str:
        return kept_programs(dataclasses.replace(cfg, runtime=dataclasses.replace(cfg.runtime, compile_cache=cache), **changed))

    assert kept(AUTO) == f"{cfg.workdir}/compiled"
    assert kept("/x") == kept("/x", fast_dev_run=True) == "/x"
    assert kept("") == kept(AUTO, workdir="s3://a/b") == kept(AUTO, fast_dev_run=True) == ""


def test_the_second_start_compiles_nothing(make_config: MakeConfig) -> None:
    """Real processes, the default cache: the step is found, compiling takes a tenth, and the ledger knows where all time went."""
    cfg = make_config("run")
    paths = {
        "workdir": cfg.workdir,
        "dataset": cfg.dataset,
        "etl.source.path": cfg.etl.source.path,
        "runtime.compile_cache": AUTO,
    }
    more = ("--config.tracking.progress=True", "--config.steps=200", "--config.eval.every=0", "--config.checkpoint.every=100")
    words = [
        sys.executable,
        "-m",
        "mlprod.train",
        "--config",
        str(RECIPE),
        *(f"--config.{k}={v}" for k, v in paths.items()),
        *more,
    ]
    told = []
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        told.append(done.stderr)
        shutil.rmtree(Path(cfg.workdir, "checkpoints", "00000200"))  # so that the second start goes on from step 100
    counts = [re.search(r"(\d+) programs compiled in [\d.]+ s, (\d+) of them from \S+/compiled", text) for text in told]
    assert counts[0]
    assert counts[0][2] == "0"
    assert counts[1]
    assert counts[1][1] == counts[1][2], "every program is found"
    assert "resuming" in told[1]
    first, second = (line for line in read_attempts(Path(cfg.workdir)) if line.get("end"))
    assert second["seconds"]["compile"] < 0.1 * first["seconds"]["compile"]
    for line in (first, second):
        assert {"import", "join", "devices", "plan", "restore", "first batch", "compile", "first step"} <= line["seconds"].keys()
        assert line["elapsed"] - sum(line["seconds"].values()) < 0.02 * line["elapsed"]


def test_a_trace_is_five_steps_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the step before which it was asked for; one that is asked for meanwhile comes after it; the end of a run ends it."""
    seen: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(f"start {folder.parent.name}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    signals = SimpleNamespace(trace=False)
    tracer = Tracer(tmp_path, signals, Ledger(), lambda line: None)  # type: ignore[arg-type] # all that it looks at
    for step in range(1, 16):
        signals.trace = signals.trace or step in (3, 5, 14)
        tracer.before(step)
        seen.append(str(step))
    tracer.end()
    tracer.end()
    assert " ".join(seen) == "1 2 start 00000003 3 4 5 6 7 stop start 00000008 8 9 10 11 12 stop 13 start 00000014 14 15 stop"


def test_a_profiler_that_is_busy_is_left_alone(tmp_path: Path) -> None:
    """One that traces already says so, is not ended, and the run goes on."""
    said: list[str] = []
    tracer = Tracer(tmp_path / "ours", SimpleNamespace(trace=True), Ledger(), said.append)  # type: ignore[arg-type] # as above
    jax.profiler.start_trace(tmp_path / "theirs")
    for step in range(1, 10):
        tracer.before(step)
    tracer.end()
    jax.profiler.stop_trace()
    assert len(said) == 1
    assert said[0].startswith("the profiler fails: ")
    assert list((tmp_path / "theirs").rglob("*.xplane.pb"))


def test_a_signal_traces_the_next_steps(make_config: MakeConfig, capfd: pytest.CaptureFixture[str]) -> None:
    """The trace is there, the run goes on, and its bits are those of a run that was not asked."""
    cfg, plain = make_config("traced", steps=30, tracking={"progress": True}), make_config("plain", steps=30)

    def ask() -> None:
        while not any(line["step"] >= 1 for line in read_log(Path(cfg.workdir))):
            pass
        os.kill(os.getpid(), signal.SIGUSR1)

    asking = threading.Thread(target=ask)
    asking.start()
    train(cfg, jax.devices()[:1])
    asking.join()
    train(plain, jax.devices()[:1])
    told = capfd.readouterr().err
    begun = re.search(r"tracing steps (\d+) to (\d+)", told)
    assert begun
    assert int(begun[2]) - int(begun[1]) == 4
    assert list(Path(cfg.workdir, "traces", f"{int(begun[1]):08d}").rglob("*.xplane.pb"))
    lines = [[json.dumps([line["values"], line["ids"]]) for line in read_log(Path(c.workdir))] for c in (cfg, plain)]
    assert lines[0] == lines[1]
