"""What every bad input must end in: exit code 2 and one line on stderr that says what is wrong and what to do."""

from pathlib import Path

import pytest

from mlprod import cli
from tests.conftest import RECIPE

LONGEST = 400  # characters of a message that still fits a screen


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *fragments: str) -> str:
    """Runs a command line; it must be refused by one line that holds every fragment. Returns the line."""
    capsys.readouterr()
    code, told = cli.run(argv), capsys.readouterr().err
    assert code == 2, f"exit code {code}: {told[-1500:]}"
    assert told.startswith("mlprod: "), told
    assert told.count("\n") == 1, f"one line is wanted: {told}"
    assert told.endswith("\n"), told
    assert len(told) <= LONGEST, f"{len(told)} characters: {told}"
    missing = [fragment for fragment in fragments if fragment not in told]
    assert not missing, f"{missing} not in: {told}"
    return told


def argv(verb: str, *words: str, recipe: Path = RECIPE) -> list[str]:
    """The command line of a verb on a recipe, on the 8 devices that the tests have."""
    return [verb, "--config", str(recipe), "--config.runtime.num_cpu_devices=8", *words]


def write_recipe(folder: Path, change: str, head: str = "") -> Path:
    """Writes a config file of the user's own: the smoke recipe with the statements `change` done to `cfg`."""
    lines = [
        "import runpy",
        "from dataclasses import dataclass, replace",
        "from mlprod.config import *",
        f"recipe = runpy.run_path({str(RECIPE)!r})['get_config']",
        head,
        "def get_config():",
        "    cfg = recipe()",
        *(f"    {line}" for line in change.splitlines()),
        "    return cfg",
    ]
    path = folder / "mine.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
