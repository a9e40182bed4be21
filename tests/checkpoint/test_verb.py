"""`mlprod checkpoints`: what there is, what is in it, and whether it is what was saved. Changes nothing."""

import re
import shutil
from pathlib import Path

import jax
import pytest

from mlprod import cli
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import Config
from mlprod.train import train
from tests.conftest import RECIPE, smoke_config

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def trained(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with steps 8, 16 and 20 saved, evaluated at 16 and 20. Shared: copy it."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    cfg = smoke_config(csv, dataset, workdir, steps=20, eval={"every": 16}, checkpoint={"every": 8, "keep_last": 9})
    train(cfg, jax.devices()[:1])
    return cfg


@pytest.fixture
def copied(trained: Config, tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return shutil.copytree(trained.workdir, tmp_path / "run")


def asked(copied: Path, *words: str) -> int:
    """The exit code of the verb on the copy."""
    rules = ["--config.checkpoint.keep_last=1", "--config.checkpoint.keep_every=8", "--config.checkpoint.pins=(16,)"]
    return cli.run(["checkpoints", *words, "--config", str(RECIPE), f"--config.workdir={copied}", *rules])


def test_ls_tells_why_each_step_stays(copied: Path, capsys: Capture) -> None:
    """Position, the loss where it was evaluated, size, and the rules that keep it; a damaged one is called so."""
    assert asked(copied, "ls") == 0
    lines = {
        int(words[0]): " ".join(words)
        for words in map(str.split, capsys.readouterr().out.splitlines())
        if words and words[0].isdecimal()
    }
    assert lines.keys() == {8, 16, 20}
    assert re.search(r"^8 512 .* every$", lines[8])
    assert re.search(r"^16 1,024 0\.\d{5} ", lines[16])
    assert "pinned" in lines[16]
    assert "last" in lines[20]
    (copied / "checkpoints" / "00000008" / "run" / "metadata").write_text("{}")
    assert asked(copied, "ls") == 0
    assert any(
        line.split()[0] == "8" and line.split()[-1] == "damaged" for line in capsys.readouterr().out.splitlines() if line.strip()
    )


def test_show_tells_what_is_in_a_step(copied: Path, capsys: Capture) -> None:
    """The newest, or the one that is asked for."""
    run = SavedSteps(copied).read_run(20)
    assert asked(copied, "show") == 0
    told = capsys.readouterr().out
    assert f"{copied}/checkpoints/00000020" in told.replace("\n", "")
    assert f"run: {run.run_id}, attempt 1" in told
    assert "next example: 1,280" in told
    for path, row in run.leaves.items():
        assert re.search(rf"{re.escape(path)} .*{row['digest']}", told)
    assert asked(copied, "show", "--step=8") == 0
    assert "next example: 512" in capsys.readouterr().out


def test_verify_reads_them_again(copied: Path, capsys: Capture) -> None:
    """Exit 1, naming the step and its arrays, when one is not what was saved; nothing is moved."""
    assert asked(copied, "verify") == 0
    assert capsys.readouterr().out.split("\n")[:3] == ["step 8: good", "step 16: good", "step 20: good"]
    for file in (copied / "checkpoints" / "00000016" / "state").rglob("d/*"):
        file.write_bytes(bytes(file.stat().st_size))
    assert asked(copied, "verify") == 1
    told = capsys.readouterr()
    assert "step 16: damaged: " in told.out
    assert "1 of 3 steps are damaged: [16]" in told.err
    assert asked(copied, "verify", "--step=20") == 0
    assert SavedSteps(copied).steps() == [8, 16, 20]


@pytest.mark.parametrize(
    "words, told",
    [
        (["ls", "--step=x"], "'x' is not a whole number"),
        (["show", "--step=9"], "--step=9: .* has no such checkpoint; it has \\[8, 16, 20\\]"),
        (["list"], "invalid choice: 'list'"),
        ([], "the following arguments are required: action"),
    ],
)
def test_mistakes_are_one_line(words: list[str], told: str, copied: Path, capsys: Capture) -> None:
    assert asked(copied, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(told, line)


def test_a_run_without_checkpoints(tmp_path: Path, capsys: Capture) -> None:
    assert asked(tmp_path / "nothing", "ls") == 2
    assert "has no checkpoints; run `mlprod train` first" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
