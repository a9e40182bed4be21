"""What a page tells a reader to type works as it stands there, in the page's order; only trainings are shorter."""

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from mlprod import cli
from mlprod.etl import demo
from mlprod.recipe import load
from tests.chaos.harness import CONTEXT
from tests.conftest import ROOT

EVERY = 20  # one flight of so many: a whole year of 16,839
LIMIT_S = 300.0
SHORTER = ("--config.epochs=3",)
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:mlprod|python|pip|make|launch/\w+\.sh) ")
ELSEWHERE = ("configs/gpu.py", "configs/tpu.py", "platform=cuda", "dask://")  # what runs on other machines is parsed


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of the command lines in a page's blocks."""
    for block in BLOCK.findall(page.read_text(encoding="utf-8")):
        for line in block.splitlines():
            if COMMAND.match(line):
                yield shlex.split(line, comments=True)


def verb_of(words: Sequence[str]) -> list[str] | None:
    """Returns what `cli.run` is given for a command line; None where it is no verb of mlprod's."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S+", word)]
    if words[0].startswith("launch/") or words[:2] == ["mlprod", "run"]:  # what they start
        words = words[next(i for i, word in enumerate(words) if i and word in ("python", "mlprod")) :]
    if words[0] == "mlprod":
        return words[1:]
    if words[:2] == ["python", "-m"] and words[2].startswith("mlprod.") and words[2] != "mlprod.etl.demo":
        return [words[2].removeprefix("mlprod."), *words[3:]]
    return None


PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if any(commands(page))]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's raw data with few flights, and rows of one's own."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "data").mkdir()
    engine = sa.create_engine(f"sqlite:///{folder}/data/flights.db")
    source = demo.package_data()
    flights = pd.read_csv(source / "flights.csv.zip", skiprows=lambda i: i % EVERY > 0)
    demo._with_hour(flights).to_sql("flights", engine, index=False)
    demo._with_hour(pd.read_csv(source / "weather.csv")).to_sql("weather", engine, index=False)
    engine.dispose()
    rng = np.random.default_rng(0)
    size = rng.gamma(4.0, 25.0, 400).round(1)
    price = (1000 * size + rng.normal(0, 9000, 400)).round()
    pd.DataFrame({"size": size, "city": rng.choice(["Lund", "Kiel"], 400), "price": price}).to_csv(
        folder / "rows.csv", index=False
    )
    return folder


def run_all(lines: Sequence[Sequence[str]], folder: Path) -> None:
    """Runs command lines in a process of their own, one after another; notes their exit codes."""
    os.chdir(folder)
    file = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    codes: list[int] = []
    Path("codes").write_text("[]")
    for words in lines:
        verb = verb_of(words)
        if words[:3] == ["python", "-m", "mlprod.etl.demo"]:
            demo.lay_out(Path("data"))
            codes.append(0)
        elif verb is not None:
            short = verb[0] != "train" or any(word.startswith("--config.steps=") for word in verb)
            codes.append(cli.run(verb if short else [*verb, *SHORTER]))
        Path("codes").write_text(json.dumps(codes))


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_commands_of_a_page_run(page: Path, raw: Path, tmp_path: Path) -> None:
    """Each ends with 0. Packages are not installed; that an extra is there is looked up."""
    there = list(commands(page))
    folder = tmp_path / "project"
    shutil.copytree(raw, folder)
    for own in ("configs", "docs"):  # the pages are a text that is always there
        shutil.copytree(ROOT / own, folder / own)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    here = []
    for words in there:
        assert not words[0].startswith("launch/") or os.access(ROOT / words[0], os.X_OK)
        if words[0] == "pip":
            named = re.findall(r"\.\[(\w+)\]", " ".join(words))
            assert set(named) <= extras.keys()
        elif any(sign in word for word in words for sign in ELSEWHERE):
            verb = verb_of(words)
            assert verb is not None
            load(str(folder / verb[verb.index("--config") + 1]), [word for word in verb if word.startswith("--config.")])
        elif words[0] != "make":  # whose targets are looked up with the page's names, and are this suite and the demo
            here.append(words)
    process = CONTEXT.Process(target=run_all, args=(here, folder))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode == 0, (folder / "output").read_text()
    ran = [words for words in here if verb_of(words) is not None or words[0] == "python"]
    codes = json.loads((folder / "codes").read_text())
    failed = [words for words, code in zip(ran, codes, strict=True) if code and "doctor" not in words]  # it tells of the machine
    assert failed == [], (folder / "output").read_text()
