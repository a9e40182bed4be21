"""From a config file and a command line to a config: what may be set, and what a mistake is told as."""

import sys
from pathlib import Path

import pytest

from mlprod.errors import ConfigError
from mlprod.recipe import load
from tests.conftest import RECIPE, ROOT
from tests.refused import argv, refused, write_recipe

SET = {
    "a float": ("--config.optim.peak_lr=1e-3", "optim.peak_lr", 1e-3),
    "a whole number as float": ("--config.optim.peak_lr=3", "optim.peak_lr", 3.0),
    "infinity": ("--config.optim.clip_norm=inf", "optim.clip_norm", float("inf")),
    "an int": ("--config.steps=7", "steps", 7),
    "one dash": ("-config.steps=7", "steps", 7),
    "a tuple": ("--config.mesh.fsdp=(4,2)", "mesh.fsdp", (4, 2)),
    "a tuple without brackets": ("--config.mesh.fsdp=4,2", "mesh.fsdp", (4, 2)),
    "a tuple of one": ("--config.mesh.fsdp=8", "mesh.fsdp", (8,)),
    "a bool": ("--config.checkpoint.strict=true", "checkpoint.strict", True),
    "a bare bool": ("--config.checkpoint.strict", "checkpoint.strict", True),
    "a bool switched off": ("--noconfig.tracking.progress", "tracking.progress", False),
    "an empty string": ("--config.runtime.compile_cache=", "runtime.compile_cache", ""),
    "a field of the model": ("--config.model.hidden=(8,8,8)", "model.hidden", (8, 8, 8)),
    "a field of the source": ("--config.etl.source.path=a=b.csv", "etl.source.path", "a=b.csv"),
}


@pytest.mark.parametrize("word, path, value", SET.values(), ids=list(SET))
def test_an_override_sets_one_field(word: str, path: str, value: object) -> None:
    """The value arrives in the field's own type; the recipe's other fields stay."""
    found: object = load(str(RECIPE), [word])
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_a_value_may_follow_as_a_word_of_its_own_and_the_last_one_counts() -> None:
    """As `--config.steps 5`, and as a launcher's default that the user overrides."""
    assert load(str(RECIPE), ["--config.steps", "5"]).steps == 5
    assert load(str(RECIPE), ["--config.steps=5", "--config.steps=6"]).steps == 6


def test_overrides_leave_the_files_own_config_alone() -> None:
    """Loading twice gives the recipe's values, not those of the call before."""
    assert load(str(RECIPE), ["--config.steps=5"]).steps == 5
    assert load(str(RECIPE)).steps == 60


@pytest.mark.parametrize("name", ["flights", "debug", "gpu", "tpu"])
def test_every_config_that_comes_with_the_project_loads(name: str) -> None:
    """Checked whole, from any working directory: a file takes the recipe from beside it."""
    assert load(str(ROOT / "configs" / f"{name}.py")).name == "flights"


WORDS = {
    "a misspelled field": ("--config.optim.peek_lr=1", "config.optim.peek_lr does not exist; did you mean 'optim.peak_lr'?"),
    "a misspelled section": ("--config.otpim.peak_lr=1", "config.otpim.peak_lr does not exist; did you mean 'optim.peak_lr'?"),
    "a field of the other source": ("--config.etl.source.pth=1", "config.etl.source.pth", "did you mean 'etl.source.path'?"),
    "a field of the model": ("--config.model.droput=1", "config.model.droput does not exist; did you mean 'model.dropout'?"),
    "a section": ("--config.optim=3", "config.optim is a section; set one of its fields, such as --config.optim.peak_lr="),
    "a bare section": ("--config.optim", "config.optim is a section"),
    "the model": ("--config.model=mlp", "config.model is a section; set one of its fields, such as --config.model.hidden="),
    "the hook": ("--config.etl.transform=f", "config.etl.transform", "config file"),
    "the columns": ("--config.etl.columns=x", "config.etl.columns", "config file"),
    "one column": ("--config.etl.columns[0].name=x", "config.etl.columns[0].name", "config file"),
    "no value": ("--config.optim.peak_lr", "--config.optim.peak_lr has no value; write --config.optim.peak_lr=..."),
    "an empty value": ("--config.steps=", "config.steps= must be a whole number"),
    "a field like no other": ("--config.zzz=1", "config.zzz does not exist; known: bad_numbers, checkpoint, dataset, "),
    "a field like no other of its section": (
        "--config.mesh.zzzzzzzz=1",
        "does not exist; known: data, fsdp, layout, slice, tensor",
    ),
    "text for a float": ("--config.optim.peak_lr=fast", "config.optim.peak_lr=fast must be a number, such as 0.01"),
    "a fraction for an int": ("--config.steps=1.5", "config.steps=1.5 must be a whole number, such as 60"),
    "text for a bool": ("--config.checkpoint.strict=maybe", "config.checkpoint.strict=maybe", "true or false"),
    "no bool to switch off": ("--noconfig.steps", "config.steps"),
    "out of range": ("--config.optim.b2=1.5", "config.optim.b2=1.5 must be from 0.0 to"),
    "no choice": ("--config.mesh.layout=fdsp", "config.mesh.layout='fdsp' must be one of 'data', 'fsdp', 'fsdp_tensor'"),
    "a tuple with text": ("--config.mesh.fsdp=(4,'x')", "config.mesh.fsdp=(4, 'x')", "'x' is str, not int"),
    "a tuple with a fraction": ("--config.mesh.fsdp=(4,2.5)", "config.mesh.fsdp=(4, 2.5)", "2.5 is float, not int"),
    "an unknown option": ("--speed=3", "--speed", "mlprod etl --help"),
    "an option's prefix": ("--conf=3", "--conf", "mlprod etl --help"),
    "a stray word": ("now", "'now' is not understood; overrides look like --config.optim.peak_lr=1e-3"),
}


@pytest.mark.parametrize("word, fragments", [(w, f) for w, *f in WORDS.values()], ids=list(WORDS))
def test_a_word_that_is_refused(word: str, fragments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Field, value and rule, and the nearest name where there is one."""
    refused(capsys, argv("etl", word), *fragments)


FILES = {
    "no get_config": ("x = 1", "mine.py defines no get_config(); it must return a mlprod.config.Config"),
    "nothing": ("", "mine.py defines no get_config()"),
    "another type": ("def get_config():\n    return {}", "mine.py: get_config() returned dict, not mlprod.config.Config"),
    "no return": ("def get_config():\n    pass", "mine.py: get_config() returned NoneType, not mlprod.config.Config"),
    "no function": ("get_config = 5", "mine.py: TypeError: 'int' object is not callable"),
    "an argument": ("def get_config(x):\n    pass", "mine.py: TypeError: get_config() missing 1 required positional argument"),
    "a syntax error": ("def get_config(:", "mine.py: SyntaxError: ", "line 1"),
    "a missing module": ("\nimport nothing_here", "mine.py: line 2: ModuleNotFoundError: No module named 'nothing_here'"),
    "an exception": ("def get_config():\n    return 1 / 0", "mine.py: line 2: ZeroDivisionError: division by zero"),
    "an exception of two lines": ("def get_config():\n    raise ValueError('a\\nb')", "mine.py: line 2: ValueError: a b"),
    "an unknown field": (
        "from mlprod.config import *\ndef get_config():\n    return OptimConfig(peek_lr=1)",
        "mine.py: line 3: TypeError: ", "unexpected keyword argument 'peek_lr'; did you mean 'peak_lr'?",
    ),
    "an unknown attribute": (
        "from mlprod.config import *\ndef get_config():\n    OptimConfig().peek_lr = 1",
        "mine.py: line 3: AttributeError: ", "no attribute 'peek_lr'; did you mean 'peak_lr'?",
    ),
    "missing fields": (
        "from mlprod.config import *\ndef get_config():\n    return Config(name='a')",
        "mine.py: line 3: TypeError: ", "'workdir', 'dataset', 'etl', and 'model'",
    ),
    "an exit": ("import sys\nsys.exit(7)", "mine.py: line 2: SystemExit: 7"),
    "an exit with words": ("import sys\ndef get_config():\n    sys.exit('no key')", "mine.py: line 3: SystemExit: no key"),
}  # fmt: skip


@pytest.mark.parametrize("text, fragments", [(t, f) for t, *f in FILES.values()], ids=list(FILES))
def test_a_config_file_that_is_refused(
    text: str, fragments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file, its line where there is one, and what Python said of it."""
    (tmp_path / "mine.py").write_text(text)
    refused(capsys, argv("etl", recipe=tmp_path / "mine.py"), f"{tmp_path}/{fragments[0]}", *fragments[1:])


def test_a_config_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when a folder is given."""
    for path in (tmp_path / "none.py", tmp_path):
        what = "is a folder" if path.is_dir() else "no such file"
        refused(capsys, argv("etl", recipe=path), f"--config={path}: {what}; give the path of a Python file with get_config()")
    (tmp_path / "rows.csv").write_text("x,y\n1,2\n")
    refused(capsys, argv("etl", recipe=tmp_path / "rows.csv"), "rows.csv: line 1: NameError: ", "; is it a Python file with")


def test_a_file_may_be_read_again_after_it_was_refused(tmp_path: Path) -> None:
    """The import path is as before, also after an exception in the file."""
    before = list(sys.path)
    (tmp_path / "mine.py").write_text("1 / 0")
    with pytest.raises(ConfigError):
        load(str(tmp_path / "mine.py"))
    assert sys.path == before
    assert load(str(write_recipe(tmp_path, "cfg.steps = 9"))).steps == 9
