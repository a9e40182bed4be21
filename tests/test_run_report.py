"""The verb `report`: what is read of a run's folder, and the page that is made of it."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mlprod import cli
from mlprod.config import ByColumn, Column, Config
from mlprod.errors import WorkdirError
from mlprod.report import cards, charts, past
from mlprod.report.run import changed, rendered, view
from tests.past_runs import FIGURES, attempt, config, evaluated, evaluation, killed, steps
from tests.refused import argv, refused


def page(cfg: Config) -> str:
    """The page of a run."""
    return rendered("page.html", view(past.read(Path(cfg.workdir)), cfg, Path(cfg.workdir) / "report.html"))


def words(text: str) -> str:
    """What a page says, without its elements."""
    out: list[str] = []
    parser = HTMLParser()
    parser.handle_data = out.append  # type: ignore[method-assign]
    parser.feed(text)
    return " ".join(" ".join(out).split())


def make_resumed(folder: Path) -> Config:
    """A run of 12 steps that was killed after step 10, and went on from step 7 with other threads."""
    cfg = config(folder / "run", steps=12)
    with attempt(cfg, 0) as trackers:
        steps(trackers, range(1, 6))
        evaluated(trackers, 5)
        steps(trackers, range(6, 11))
        evaluated(trackers, 10, auc=0.1)
    killed(cfg)
    cfg = dataclasses.replace(cfg, loader=dataclasses.replace(cfg.loader, threads=1))
    with attempt(cfg, 7, number=2) as trackers:
        steps(trackers, range(8, 13), loss=0.25)
        evaluated(trackers, 12, auc=0.9)
    return cfg


@pytest.fixture
def resumed(tmp_path: Path) -> Config:
    """Such a run."""
    return make_resumed(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Such a run with an evaluation, and its page beside it. Shared: do not change it."""
    cfg = make_resumed(tmp_path_factory.mktemp("whole"))
    evaluation(cfg, figures=FIGURES["binary"], by={"color": [{"value": "<red>", "rows": 40, "auc": 0.625}]})
    (Path(cfg.workdir) / "page.html").write_text(page(cfg))
    return cfg


# ---- what is read ------------------------------------------------------------------------------------------------------


def test_the_last_attempt_of_a_step_counts(resumed: Config) -> None:
    """Each step once; an evaluation that the run went back behind is gone; both attempts are told."""
    run = past.read(Path(resumed.workdir))
    assert list(run.train.steps) == list(range(1, 13))
    assert list(run.train.values["loss"]) == [0.5] * 7 + [0.25] * 5
    assert list(run.train.attempts) == [1] * 7 + [2] * 5
    assert cards.evals_of(run, "auc") == ([5, 12], [0.75, 0.9])
    assert [(a.start, a.reached, a.ended) for a in run.attempts] == [(0, 10, False), (7, 12, True)]
    assert past.between(*run.attempts) == {"loader.threads": ("2", "1")}
    assert run.state() == "done: 12 steps"


def test_a_run_that_went_back_in_one_attempt(tmp_path: Path) -> None:
    """After bad numbers steps come again without a start: the later ones count, and no evaluation from behind them."""
    cfg = config(tmp_path / "run", steps=12)
    with attempt(cfg, 0) as trackers:
        steps(trackers, range(1, 6), loss=9.0)
        evaluated(trackers, 5)
        steps(trackers, range(6, 9), loss=9.0)
        evaluated(trackers, 8)
        steps(trackers, range(5, 8))
    run = past.read(Path(cfg.workdir))
    assert list(run.train.steps) == list(range(1, 8))
    assert list(run.train.values["loss"]) == [9.0] * 4 + [0.5] * 3
    assert run.evals == []
    assert run.state() == "ended at step 7 of 12: stopped, or failed"


def test_the_newest_evaluation_of_a_split_is_by_the_verb_or_in_training(resumed: Config) -> None:
    """By its step; one of the same step by the verb."""
    run = past.read(Path(resumed.workdir))
    assert {split: (e["step"], e["metrics"]["auc"]) for split, e in run.newest().items()} == {"eval": (12, 0.9)}
    evaluation(resumed, split="eval", step=5)
    evaluation(resumed, split="eval", step=12)
    evaluation(resumed, step=9)
    run = past.read(Path(resumed.workdir))
    found = {split: (e["step"], e["metrics"]["auc"]) for split, e in run.newest().items()}
    assert found == {"eval": (12, 0.8), "test": (9, 0.8)}


def test_fields_that_are_not_at_their_defaults(resumed: Config) -> None:
    """With their defaults; a column only with what it says; nothing of what the recipe leaves alone."""
    run = past.read(Path(resumed.workdir))
    rows = {path: (value, default) for path, value, default in changed(resumed, run.config)}
    assert rows["loader.threads"] == ("1", "2")
    assert rows["model.hidden"] == ("[16, 16]", "[256, 256]")
    assert rows["etl.columns[color].min_count"] == ("2", "1")
    assert rows["etl.columns[day].role"] == ("group", "feature")
    assert rows["etl.transform"][0].startswith("transform, SHA-256 ")
    assert [path for path in rows if path.startswith(("mesh", "seed", "optim.b1", "etl.columns[x].role", "etl.workers"))] == []


# ---- what the page shows -----------------------------------------------------------------------------------------------


def test_the_page_of_a_run(whole: Config) -> None:
    """Curves, both attempts and what changed, seconds, evaluations, config, hardware; the same bytes again."""
    text = (Path(whole.workdir) / "page.html").read_text()
    said = words(text)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    training = ["Loss", "Eval: log loss", "Eval: AUC", "Learning rate", "Gradient norm", "Throughput"]
    assert titles[:6] == training
    assert {"Memory, most so far", "ROC", "Precision and recall", "Calibration", "Scores", "By color, test"} <= set(titles)
    assert "0 10 0 s killed 2" in said
    assert "Changed with attempt 2: loader.threads 2 -> 1." in said
    assert "0.8125 0.6250 0.4375" in said
    assert "<red> 40 0.625" in said
    assert "c0ffee" in said
    assert "1.2.3" in said
    assert "holds no version" in said or "cannot be read" in said  # there is no dataset
    assert text == page(whole)


@pytest.mark.parametrize("task", FIGURES)
def test_each_task_has_its_figures(task: str, resumed: Config) -> None:
    """A card for each figure that a chart shows, and none where the figure is missing; classes as a table."""
    evaluation(resumed, task=task, figures=FIGURES[task])
    shown = {"binary": ["ROC", "Precision and recall", "Calibration", "Scores"], "classes": ["Calibration"]}
    found = cards.evaluation(task, FIGURES[task])
    assert [card.title for card in found] == shown.get(task, ["Residuals", "Predicted and observed"])
    assert all(card.picture.startswith("<svg ") for card in found)
    assert cards.evaluation(task, {}) == []
    if task == "classes":
        said = words(page(resumed))
        assert "class, told as <i>a</i> b$x$ <i>a</i> 30 12 b$x$ 11 37" in said


def test_nothing_comes_from_elsewhere(whole: Config) -> None:
    """No script, no element that fetches, no address; links lead to parts of a picture alone, where there is no data report."""
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, dict(attrs)))  # type: ignore[method-assign,assignment]
    parser.handle_startendtag = parser.handle_starttag  # type: ignore[method-assign]
    text = (Path(whole.workdir) / "page.html").read_text()
    parser.feed(text)
    assert {tag for tag, _ in found} & {"script", "link", "img", "iframe", "object", "embed", "image", "a"} == set()
    links = [value or "" for _, attrs in found for name, value in attrs.items() if name in ("href", "src", "xlink:href")]
    assert links
    assert [link for link in links if not link.startswith("#")] == []
    assert "//" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert {m["content"] for tag, m in found if m.get("http-equiv")} == {"default-src 'none'; style-src 'unsafe-inline'"}


def test_names_are_text_and_a_sensitive_column_has_no_value(tmp_path: Path) -> None:
    """Whatever stands in the name of a run, of a class or of a segment; values of a sensitive column are hidden."""
    secret = Column(name="who", type="string", role="input", sensitive=True)
    split = ByColumn(column="who", eval=("Ada",), test=("Grace",))
    cfg = config(tmp_path / "run", name="<script>$\\x$</script>")
    cfg = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, columns=(*cfg.etl.columns, secret), split=split))
    with attempt(cfg, 0):
        pass
    evaluation(cfg, figures=FIGURES["classes"], by={"<u>": [{"value": "<s>\x1b", "rows": 1}]})
    text = page(cfg)
    assert [word for word in ("<script>", "<i>", "<u>", "<s>", "\x1b", "Ada", "Grace") if word in text] == []
    assert "Run: <script>$\\x$</script>" in words(text)
    assert "<s>\\x1b 1" in words(text)
    assert "etl.split.eval (hidden)" in words(text)


def test_a_long_run_has_few_points(tmp_path: Path) -> None:
    """20,000 steps: each curve at most `POINTS` points, whose means are those of the steps; axes end where the run did."""
    x, y = list(range(1, 20_001)), [float(step % 7) for step in range(1, 20_001)]
    at, mean, least, most = charts.thinned(x, y)
    assert len(at) == charts.POINTS
    assert at[-1] == 20_000
    assert mean.mean() == pytest.approx(sum(y) / len(y), rel=1e-2)
    assert (least.min(), most.max()) == (0.0, 6.0)
    assert len(charts.curves("step", "loss", [charts.Series(x=x, y=y, band=True)])) < 60_000
    assert list(charts.thinned([1, 2, 3], [1.0, float("nan"), 2.0])[0]) == [1, 3]


def test_ticks_are_not_cut() -> None:
    """Figures in the picture's attributes are shortened, those that are read are not."""
    picture = charts.curves("step", "x", [charts.Series(x=[0, 1], y=[0.8725, 0.8800])])
    assert "0.874" in re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert re.findall(r'="[^"]*\d\.\d{3}', picture) == []


# ---- what is missing ---------------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_at_once(tmp_path: Path) -> None:
    """Its config is there, for it was written before the first step."""
    cfg = config(tmp_path / "run", steps=12)
    with attempt(cfg, 0):
        pass
    killed(cfg)
    said = words(page(cfg))
    assert "at step 0 of 12: under way, or killed." in said
    assert "No step is in the log yet." in said
    assert "No evaluation of a split yet" in said
    assert "Not known: it is written every 10 s" in said
    assert "loader.global_batch 64 1024" in said


def test_a_run_of_an_older_mlprod(tmp_path: Path) -> None:
    """Without `attempts.jsonl` and without a saved step: the curves are there, and a line says what is not known."""
    cfg = config(tmp_path / "run")
    with attempt(cfg, 0, noted=False) as trackers:
        steps(trackers, range(1, 5))
    said = words(page(cfg))
    assert "no step was saved: config, dataset and hardware are not known" in said
    assert 'aria-label="loss (nats) by step"' in page(cfg)
    assert said.count("Not known.") == 3


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """An evaluation that is none, one of another dataset, a bad number."""
    cfg = config(tmp_path / "run", steps=12)
    with attempt(cfg, 0):
        pass
    evaluation(cfg).write_text('{"step": 12')
    evaluation(cfg, split="eval", dataset_id="d2", metrics={"auc": float("nan")})
    said = words(page(cfg))
    assert "test-00000012.json cannot be read (JSONDecodeError)" in said
    assert "Of another dataset than the run's: dataset_id d2." in said
    assert "AUC nan" in said


def test_the_config_file_says_otherwise_now(tmp_path: Path) -> None:
    """Both values of the field."""
    cfg = config(tmp_path / "run", steps=12)
    with attempt(cfg, 0):
        pass
    said = words(page(dataclasses.replace(cfg, steps=99)))
    assert "The config file says otherwise now: field of the run of the file steps 12 99 What is not" in said


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No run, a log that is none, an output that is a folder: one line each."""
    where = f"--config.workdir={tmp_path / 'run'}"
    refused(capsys, argv("report", where), "holds no run", "mlprod train")
    cfg = config(tmp_path / "run")
    with attempt(cfg, 0):
        pass
    refused(capsys, argv("report", where, f"--output={tmp_path}"), "--output=", "Is a directory")
    (tmp_path / "run" / "log.jsonl").write_text("{\n{\n")
    with pytest.raises(WorkdirError, match=r"log cannot be read \(JSONDecodeError\)"):
        past.read(tmp_path / "run")


# ---- the verb ----------------------------------------------------------------------------------------------------------


def test_the_verb_takes_in_the_data_report(resumed: Config, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes one file and prints its name; the main part of the data report is there, and a link that leads to its page."""
    published = json.loads(next((dataset / "manifests").glob("*.json")).read_text())
    for name in ("attempts.jsonl", "log.jsonl"):
        path = Path(resumed.workdir) / name
        text = path.read_text().replace('"d1"', json.dumps(published["dataset_id"]))
        path.write_text(text.replace(resumed.dataset, str(dataset)))
    assert cli.run(argv("report", f"--config.workdir={resumed.workdir}")) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == Path(resumed.workdir) / "report.html"
    text = path.read_text()
    (link,) = re.findall(r'<a href="([^"]*)"', text)
    assert "Data report" in (path.parent / link).read_text()
    assert "3,000 rows read" in words(text)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>window.addEventListener("load", () => { parent.document.title = JSON.stringify({
wide: innerWidth, page: document.documentElement.scrollWidth,
fetched: performance.getEntriesByType("resource").map(entry => entry.name)}); });</script>"""


@pytest.mark.servers
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_in_a_browser(resumed: Config, tmp_path: Path) -> None:
    """At 390 pixels nothing is wider than the page, and nothing is fetched, even where the page's own rule does not forbid it."""
    parts = [
        {"value": "a long value " * 9, "rows": 9, "log_loss": 0.123456, "auc": 0.9, "accuracy": 0.8, "calibration_error": 0.1}
    ]
    for task in FIGURES:
        evaluation(resumed, split=task, task=task, figures=FIGURES[task], by={"w" * 90: parts})
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', MEASURE, page(resumed))
    assert MEASURE in text
    frame = f'<title></title><iframe width="390" height="800" frameborder="0" srcdoc="{html.escape(text)}"></iframe>'
    (tmp_path / "page.html").write_text(frame)  # a window cannot be that narrow
    home = f"--user-data-dir={tmp_path / 'home'}"
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", home, "--dump-dom")
    done = subprocess.run([str(BROWSER), *flags, f"file:{tmp_path}/page.html"], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.+?)</title>", done.stdout)
    assert title, done.stderr
    told = json.loads(html.unescape(title[1]))
    assert told["wide"] == 390
    assert told["page"] <= told["wide"]
    assert told["fetched"] == []
