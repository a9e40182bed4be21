"""The verb `compare`: what differs between runs, and their metrics beside each other."""

import dataclasses
import re
from pathlib import Path

import pytest

from mlprod import cli
from mlprod.config import Config, numeric
from mlprod.report import compare, past
from tests.past_runs import attempt, config, evaluated, evaluation, steps
from tests.refused import refused


def ran(cfg: Config, dataset_id: str = "d1", auc: float = 0.75) -> Config:
    """Logs a whole run of 4 steps."""
    with attempt(cfg, 0, dataset_id=dataset_id) as trackers:
        steps(trackers, range(1, 5))
        evaluated(trackers, 4, auc)
    return cfg


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of `compare`, each with single spaces; it must end well."""
    assert cli.run(["compare", *words]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_two_runs_of_the_same_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told apart by letters and folders; what differs, and only that; metrics beside each other."""
    a = ran(config(tmp_path / "a" / "run", steps=4, optim={"peak_lr": 0.5}, dataset="same"))
    b = ran(config(tmp_path / "b" / "run", steps=8, dataset="same"), auc=0.875)
    runs = [past.read(Path(cfg.workdir)) for cfg in (a, b)]
    assert compare.config(runs) == [("optim.peak_lr", ["0.5", "0.01"]), ("steps", ["4", "8"])]
    assert compare.surroundings(runs) == []
    lines = told(capsys, a.workdir, b.workdir)
    assert "name smoke smoke" in lines
    assert "state done: 4 steps ended at step 4 of 8: stopped, or failed" in lines
    assert "optim.peak_lr 0.5 0.01" in lines
    assert "code and hardware: nothing differs" in lines
    assert "auc 0.75 0.875" in lines
    assert [line for line in lines if "COMPARABLE" in line] == []


def test_metrics_on_different_datasets_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each split whose metrics are of several datasets, and of no other."""
    a, b = ran(config(tmp_path / "a")), ran(config(tmp_path / "b"), dataset_id="d2")
    evaluation(a)
    lines = told(capsys, a.workdir, b.workdir)
    assert [line.partition(":")[0] for line in lines if "NOT COMPARABLE" in line] == ["eval"]
    evaluation(b, dataset_id="d2", metrics={"auc": 0.625})
    lines = told(capsys, a.workdir, b.workdir)
    assert [line.partition(":")[0] for line in lines if "NOT COMPARABLE" in line] == ["eval", "test"]
    assert "auc 0.8 0.625" in lines


def test_a_column_that_one_run_lacks_is_one_line(tmp_path: Path) -> None:
    """Not one for each of its fields."""
    a, b = config(tmp_path / "a"), config(tmp_path / "b")
    b = dataclasses.replace(b, etl=dataclasses.replace(b.etl, columns=(*b.etl.columns, numeric("extra"))))
    runs = [past.read(Path(ran(cfg).workdir)) for cfg in (a, b)]
    assert compare.config(runs) == [("etl.columns[extra]", ["", "there"])]


def test_runs_under_way_of_an_older_mlprod_and_by_config_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that is being written, one without notes, and a run that its config file names; a line says what is not known."""
    monkeypatch.chdir(tmp_path)
    with attempt(config(tmp_path / "a", steps=9), 0) as trackers, attempt(config(tmp_path / "run"), 0, noted=False):
        steps(trackers, [1, 2])
        lines = told(capsys, "a", str(Path(__file__).parent / "recipes" / "smoke.py"))
    assert "folder a run" in lines
    assert "state at step 2 of 9: under way, or killed at step 0: how it stands is not known" in lines
    assert [line for line in lines if line.startswith("B: an older mlprod trained this run")] != []


def test_the_page_has_the_curves_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each chart with a key a run; the tables of the terminal; names are text."""
    a, b = ran(config(tmp_path / "a", name="<b>")), ran(config(tmp_path / "b"), dataset_id="d2")
    path = tmp_path / "new" / "both.html"
    assert told(capsys, a.workdir, b.workdir, f"--output={path}")[-1] == str(path)
    text = path.read_text()
    titles = re.findall(r"<section class=\"card\">\s*<h3>(.*?)</h3>", text)
    assert titles == ["Loss", "Eval: log loss", "Eval: AUC", "Learning rate", "Throughput"]
    assert text.count("A &lt;b&gt;</span>") == text.count("B smoke</span>") == len(titles)
    assert "<b>" not in text
    assert "NOT COMPARABLE" in text
    assert '<th scope="row" class="name">dataset_id</th><td class="name">d1</td><td class="name">d2</td>' in text


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run is named, one is none, an option that is none."""
    refused(capsys, ["compare"], "the following arguments are required: RUN")
    refused(capsys, ["compare", str(tmp_path)], "holds no run (log.jsonl is missing or empty)")
    refused(capsys, ["compare", "x", "--config.steps=1"], "there is no option --config.steps=1")
    refused(capsys, ["compare", *["x"] * 27], "27 runs are given; at most 26")
