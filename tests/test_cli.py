"""The command line: verbs, options, help, exit codes, and what a start costs. Only a few tests pay for a process of their own."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from mlprod import cli, errors, runtime
from mlprod.config import RuntimeConfig
from tests.conftest import RECIPE, ROOT
from tests.refused import argv, refused

HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "numpy", "pandas", "pyarrow", "sqlalchemy", "rich", "wandb", "absl"}


def process(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own; no test waits for it longer than a minute."""
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, timeout=60)


# ---- in a process of its own -------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    """`mlprod --help` is told at once: none of the stack is imported for it. Prints what it took."""
    script = (
        "import sys, time; began = time.perf_counter(); from mlprod.cli import main; code = main(['--help'])\n"
        "import json; print(json.dumps([time.perf_counter() - began, code, sorted(sys.modules)]), file=sys.stderr)"
    )
    done = process("-c", script)
    seconds, code, modules = json.loads(done.stderr)
    print(f"mlprod --help: {seconds:.3f} s after the interpreter's start")
    assert code == 0
    assert done.stdout.startswith(cli.USAGE)
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()


def test_a_bad_row_ends_train_with_exit_code_2(tmp_path: Path) -> None:
    """From the shell: `train` has `etl` run in a child; the row is told once, with file and line, and its exit code is ours."""
    (tmp_path / "rows.csv").write_text("id,day,x,n,color,size,y\n1,2,0.5,many,red,3,1\n")
    done = process("-m", "mlprod.train", "--config", str(RECIPE), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    first, row, last = done.stderr.splitlines()
    assert first == "mlprod: dataset is not built yet; running `mlprod etl`"
    assert row.startswith("mlprod: rows.csv line 2: column 'n': 'many' is not int64; mend the value")
    assert last == "mlprod: `mlprod etl` ended with exit code 2; see its line above"
    assert not (tmp_path / "run").exists()


def test_the_price_of_importing_the_stack() -> None:
    """What every start of `train` pays before it does anything: printed, not bounded (a machine's disk decides)."""
    script = "import time; began = time.perf_counter(); import mlprod.train; print(time.perf_counter() - began)"
    done = process("-c", script)
    assert done.returncode == 0, done.stderr
    print(f"import of everything for training: {float(done.stdout):.2f} s")


# ---- in this process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb_and_exit_code(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, with exit code 0, however it is asked for."""
    assert cli.run(words) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: mlprod VERB --config FILE")
    assert all(f"  {verb}" in told and meaning in told for verb, meaning in cli.VERBS.items())
    assert "0 done, 2 bad input, 1 failed, 75 start again" in told


OPTIONS = {
    "etl": [],
    "train": [],
    "check": ["--processes", "--topology", "--num-slices"],
    "doctor": [],
    "data": ["--version", "--split", "--rows", "--other", "--with"],
    "evaluate": ["--step", "--split", "--scores"],
    "report": ["--output"],
    "predict": ["--step", "--input", "--output", "--limit"],
}


def test_every_verb_is_in_the_table_of_options() -> None:
    """So that a new verb is tested too; its options are at least these."""
    assert set(OPTIONS) <= set(cli.VERBS)


@pytest.mark.parametrize("verb", OPTIONS)
def test_help_of_a_verb_lists_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 0; overrides are mentioned too."""
    assert cli.run([verb, "--help"]) == 0
    told = capsys.readouterr().out
    assert [option for option in ["--config", "--debug", *OPTIONS[verb]] if option not in told] == []
    assert cli.VERBS[verb] in told
    assert "--config.field=value" in told


WORDS = {
    "a misspelled verb": (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
    "an unknown verb": (["zzz"], "there is no verb 'zzz'; known: check, checkpoints, compare, data, doctor, etl, evaluate, "),
    "an option for a verb": (["--config", "x.py"], "there is no verb '--config'"),
    "no config": (["train"], "the following arguments are required: --config; try `mlprod train --help`"),
    "a bare --config": (["train", "--config"], "argument --config: expected one argument; try `mlprod train --help`"),
    "no file": (["train", "--config", "none.py"], "--config=none.py: no such file; give the path of a Python file"),
    "no output": (argv("predict"), "the following arguments are required: --output; try `mlprod predict --help`"),
    "a step that is none": (argv("evaluate", "--step=x"), "argument --step: ", "'x'", "; try `mlprod evaluate --help`"),
    "a negative step": (argv("evaluate", "--step=-5"), "--step", "-5"),
    "an unknown split": (argv("evaluate", "--split=dev"), "argument --split: invalid choice: 'dev' (choose from ", "train"),
    "a negative limit": (argv("predict", "--output=x", "--limit=-1"), "--limit", "-1"),
    "an empty output": (argv("predict", "--output="), "--output"),
    "another verb's option": (argv("check", "--split=eval"), "--split", "mlprod check --help"),
    "a misspelled option": (argv("evaluate", "--spilt=eval"), "--spilt", "mlprod evaluate --help"),
}  # fmt: skip


@pytest.mark.parametrize("words, fragments", [(w, f) for w, *f in WORDS.values()], ids=list(WORDS))
def test_words_that_are_refused(
    words: list[str], fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the word, what was wanted, and where to read more."""
    monkeypatch.chdir(tmp_path)
    refused(capsys, words, *fragments)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback_and_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Above the line, which stays the last."""
    assert cli.run(argv("etl", "--config.steps=-1", "--debug")) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last):")
    assert told.splitlines()[-1].startswith("mlprod: config.steps=-1 must be ")


ENDINGS = {
    "user": (errors.UserError("no"), 2), "config": (errors.ConfigError("no"), 2), "data": (errors.DataError("no"), 2),
    "layout": (errors.LayoutError("no"), 2), "workdir": (errors.WorkdirError("no"), 2),
    "machine": (errors.MachineError("no"), 2),
    "checkpoint": (errors.CheckpointError("no"), 1), "restore": (errors.RestoreError("no"), 2),
    "training": (errors.TrainingError("no"), 1), "preempted": (errors.Preempted("no"), 75),
}  # fmt: skip


@pytest.mark.parametrize("error, code", ENDINGS.values(), ids=list(ENDINGS))
def test_an_error_is_its_exit_code_and_one_line(
    error: errors.MlprodError, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of exit codes, whatever verb raised it."""
    monkeypatch.setattr(cli, "_run", lambda *_: (_ for _ in ()).throw(error))
    assert cli.run(argv("check")) == code
    assert capsys.readouterr().err == "mlprod: no\n"


def test_a_message_of_several_lines_is_told_as_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries quote with line breaks; a launcher reads lines."""
    monkeypatch.setattr(cli, "_run", lambda *_: (_ for _ in ()).throw(errors.DataError("first\nsecond:\n  third")))
    assert cli.run(argv("check")) == 2
    assert capsys.readouterr().err == "mlprod: first second: third\n"


def test_a_bug_is_a_traceback_and_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never told as the user's mistake."""
    monkeypatch.setattr(cli, "_run", lambda *_: 1 // 0)
    assert cli.run(argv("check")) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_main_ends_the_process_with_the_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At once where it is not 0, for threads of a broken save may wait for minutes; what was told is flushed first."""
    ended: list[int] = []
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    assert cli.main(["zzz"]) == 2
    assert cli.main(["--help"]) == 0
    assert ended == [2]
    assert "there is no verb" in capsys.readouterr().err


def fake_jax(error: Exception) -> SimpleNamespace:
    """A jax whose backend cannot be started."""

    def devices() -> None:
        raise error

    return SimpleNamespace(config=SimpleNamespace(update=lambda *_: None), devices=devices)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Unable to initialize backend 'tpu': INTERNAL\nmore"), AssertionError(), RuntimeError("")],
    ids=["backend fails", "plugin not installed", "without words"],
)
def test_a_platform_that_is_not_there(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named with the field; JAX asserts, without a word, where the plugin of the platform is not installed."""
    monkeypatch.setattr(runtime, "jax", fake_jax(error))
    with pytest.raises(errors.ConfigError, match=r"config\.runtime\.platform='tpu'") as told:
        runtime.start(RuntimeConfig(platform="tpu"))
    assert "\n" not in str(told.value)


def test_devices_cannot_be_changed_once_the_backend_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The first start decides how many devices are simulated: another number is refused, the same is taken."""
    assert jax.device_count() == 8
    runtime.start(RuntimeConfig(num_cpu_devices=8))
    refused(capsys, ["check", "--config", str(RECIPE), "--config.runtime.num_cpu_devices=4"], "config.runtime.num_cpu_devices=4")


def test_the_nearest_name_or_all_of_them() -> None:
    """A close name is offered; where none is close, the known ones are listed."""
    assert errors.nearest("trian", ["train", "check"]) == "; did you mean 'train'?"
    assert errors.nearest("zzz", ["train", "check"]) == "; known: check, train"
    assert errors.nearest("zzz", []) == "; known: none"
