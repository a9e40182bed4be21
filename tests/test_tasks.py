"""A number, classes and a value that a label equals: from rows to predictions, measured by scikit-learn; and early stopping."""

import argparse
import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score, root_mean_squared_error
from sklearn.utils.class_weight import compute_sample_weight

from mlprod import evaluate, manifest, predict
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import ByHash, Classes, Config, Equals, EtlConfig, Number, categorical, numeric
from mlprod.errors import ConfigError, DataError
from mlprod.etl.run import build
from mlprod.features import Target, loads
from mlprod.objective import objective_of, weighted
from mlprod.state import flatten
from mlprod.store import open_store
from mlprod.tracking import read_log
from mlprod.train import train
from mlprod.validation import validate
from tests.conftest import smoke_config
from tests.rows import number

LABELS = {"number": Number(column="price"), "classes": Classes(column="kind"), "equals": Equals(column="kind", value="b")}


def line(i: int) -> str:
    """Row `i`: a price that follows from a and group, and a kind of three that follows from a and b; some are missing."""
    a, b, group = number(i, 1) * 4 - 2, number(i, 2) * 4 - 2, "xyz"[int(number(i, 3) * 3)]
    price = "" if number(i, 4) < 0.05 else f"{50_000 + 10_000 * a + 20_000 * (group == 'z') + 3_000 * (number(i, 5) - 0.5):.2f}"
    kind = (
        "" if number(i, 6) < 0.05 else "abc"[int(np.argmax([a, b, -a - b] + 0.3 * np.array([number(i, 7, k) for k in range(3)])))]
    )
    return f"{i},{a:.5f},{b:.5f},{group},{price},{kind}"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as a CSV file."""
    path = tmp_path_factory.mktemp("tasks") / "rows.csv"
    path.write_text("\n".join(["id,a,b,group,price,kind", *map(line, range(2000))]) + "\n")
    return path


def config(table: Path, folder: Path, label: Any, **changed: Any) -> Config:
    """Returns the smoke recipe on these rows."""
    cfg = smoke_config(table, folder / "dataset", folder / "run", steps=120, **changed)
    columns = (numeric("id", type="int64", role="input"), numeric("a"), numeric("b"), categorical("group"))
    etl = EtlConfig(source=cfg.etl.source, columns=columns, label=label, key=("id",), group_rows=64, file_groups=8)
    return dataclasses.replace(cfg, etl=etl)


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """A run of each task."""
    found = {}
    for name, label in LABELS.items():
        found[name] = cfg = config(table, tmp_path_factory.mktemp(name), label)
        validate(cfg)
        build(cfg)
        train(cfg, jax.devices()[:1])
    return found


def measured(cfg: Config, tmp_path: Path, *by: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Returns (what `evaluate` keeps, the scores that it writes)."""
    scores = tmp_path / "scores.parquet"
    evaluate.main(cfg, argparse.Namespace(step=-1, split="eval", scores=str(scores), by=list(by)))
    kept = next((Path(cfg.workdir) / "evaluations").glob("eval-*.json"))
    return json.loads(kept.read_text()), pq.read_table(scores).to_pydict()


def of_rows(table: Path, cfg: Config, scores: dict[str, list[Any]]) -> list[list[str]]:
    """Returns the cells of the raw row behind each score."""
    rows = {cells[0]: cells for cells in (text.split(",") for text in table.read_text().splitlines()[1:])}
    keys = {}
    for shard in manifest.read(open_store(cfg.dataset)).splits["eval"]:
        stored = pq.read_table(Path(cfg.dataset) / shard.path, columns=["row_id", "key_id"]).to_pydict()
        keys |= dict(zip(stored["row_id"], stored["key_id"], strict=True))
    return [rows[str(keys[i])] for i in scores["row_id"]]


def test_a_number_is_learned_in_its_unit(trained: dict[str, Config], table: Path, tmp_path: Path) -> None:
    """Scores and errors are in the column's unit, equal to scikit-learn's over the raw rows, and far below a constant's."""
    cfg = trained["number"]
    kept, scores = measured(cfg, tmp_path)
    price = [float(cells[4]) for cells in of_rows(table, cfg, scores)]
    assert kept["task"] == "regression"
    assert kept["metrics"]["rmse"] == pytest.approx(root_mean_squared_error(price, scores["score"]), rel=1e-5)
    assert kept["metrics"]["rmse"] < 0.3 * kept["metrics"]["constant_rmse"]
    target = loads((Path(cfg.dataset) / "features" / "000001.json").read_text()).target
    prices = [float(c[4]) for c in (t.split(",") for t in table.read_text().splitlines()[1:]) if c[4]]
    assert target.mean == pytest.approx(np.mean(prices), rel=0.02)
    assert kept["figures"]["residuals"]["counts"]


def test_classes_are_learned_by_their_names(trained: dict[str, Config], table: Path, tmp_path: Path) -> None:
    """Scores are probabilities of all classes, equal to scikit-learn's log loss and confusion table over the raw rows."""
    cfg = trained["classes"]
    kept, scores = measured(cfg, tmp_path)
    kinds = [cells[5] for cells in of_rows(table, cfg, scores)]
    assert scores["label"] == kinds
    shares = np.array([scores[f"probability_{kind}"] for kind in "abc"], np.float64).T
    assert shares.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    assert scores["prediction"] == ["abc"[i] for i in shares.argmax(axis=1)]
    assert kept["metrics"]["log_loss"] == pytest.approx(log_loss(kinds, shares), rel=1e-5)
    assert kept["metrics"]["log_loss"] < 0.5 * kept["metrics"]["constant_log_loss"]
    assert kept["figures"]["confusion"] == confusion_matrix(kinds, scores["prediction"]).tolist()


def test_a_label_that_equals_a_value(trained: dict[str, Config], table: Path, tmp_path: Path) -> None:
    """1 where the text is the value."""
    cfg = trained["equals"]
    kept, scores = measured(cfg, tmp_path)
    wanted = [cells[5] == "b" for cells in of_rows(table, cfg, scores)]
    assert scores["label"] == wanted
    assert kept["metrics"]["auc"] == pytest.approx(roc_auc_score(wanted, scores["score"]), rel=1e-12)
    assert kept["metrics"]["auc"] > 0.9


@pytest.mark.parametrize("task", LABELS)
def test_segments_are_the_rows_of_a_value(trained: dict[str, Config], table: Path, tmp_path: Path, task: str) -> None:
    """Rows of each value of a category, and of each part of a number; their metrics are scikit-learn's over these rows."""
    cfg = trained[task]
    kept, scores = measured(cfg, tmp_path, "group", "a")
    cells = of_rows(table, cfg, scores)
    for segment in kept["by"]["group"]:
        at = [i for i, row in enumerate(cells) if row[3] == segment["value"]]
        assert segment["rows"] == len(at)
        if task == "number":
            truth, told = [float(cells[i][4]) for i in at], [scores["score"][i] for i in at]
            assert segment["rmse"] == pytest.approx(root_mean_squared_error(truth, told), rel=1e-5)
        if task == "equals":
            assert segment["auc"] == pytest.approx(
                roc_auc_score([scores["label"][i] for i in at], [scores["score"][i] for i in at])
            )
        if task == "classes":
            shares = [[scores[f"probability_{kind}"][i] for kind in "abc"] for i in at]
            truth = [scores["label"][i] for i in at]
            assert segment["log_loss"] == pytest.approx(
                log_loss(truth, np.array(shares, np.float64), labels=["a", "b", "c"]), rel=1e-5
            )
    parts = kept["by"]["a"]
    assert sum(part["rows"] for part in parts) == len(cells)
    assert parts[0]["value"].startswith("below ")
    assert len(parts) == 10
    assert max(part["rows"] for part in parts) - min(part["rows"] for part in parts) <= 2


def test_segments_of_a_column_that_is_not_there(trained: dict[str, Config], tmp_path: Path) -> None:
    """Told by name, before anything is scored."""
    with pytest.raises(DataError, match=r"--by=grup: .* stores no such column; did you mean 'group'"):
        measured(trained["number"], tmp_path, "grup")


@pytest.mark.parametrize("task", LABELS)
def test_predictions_are_the_scores(trained: dict[str, Config], tmp_path: Path, task: str) -> None:
    """The bits of `evaluate`, for every raw row; a row that cannot be scored has nulls and a reason."""
    cfg, out = trained[task], tmp_path / "out.parquet"
    _, scores = measured(cfg, tmp_path)
    predict.main(cfg, argparse.Namespace(step=-1, input="", output=str(out), limit=0))
    predicted = pq.read_table(out)
    assert predicted["id"].to_pylist() == list(range(2000))
    keys = {}
    for shard in manifest.read(open_store(cfg.dataset)).splits["eval"]:
        stored = pq.read_table(Path(cfg.dataset) / shard.path, columns=["row_id", "key_id"]).to_pydict()
        keys |= dict(zip(stored["row_id"], stored["key_id"], strict=True))
    for name in set(predicted.column_names) - {"id", "reason"}:
        column = predicted[name].to_pylist()
        assert [column[keys[i]] for i in scores["row_id"]] == scores[name], name
    bad = tmp_path / "bad.csv"
    bad.write_text("id,a,b,group\n1,0.5,0.1,x\n2,oops,0.1,x\n")
    predict.main(cfg, argparse.Namespace(step=-1, input=str(bad), output=str(out), limit=0))
    told = pq.read_table(out).to_pylist()
    assert told[0]["reason"] is None
    assert "oops" in told[1]["reason"]
    assert all(value is None for name, value in told[1].items() if name not in ("id", "reason"))


# ---- labels that cannot be learned -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (Equals(column="kind", value="q"), "every training row has label 0: config.etl.label says kind = q"),
        (Classes(column="id", type="int64"), "2000 classes"),
        (Number(column="kind"), "kind"),
    ],
    ids=["never", "key", "text"],
)
def test_labels_that_teach_nothing(table: Path, tmp_path: Path, label: Any, told: str) -> None:
    """A value that no row has, a class a row, a number that is text: each told by name."""
    cfg = config(table, tmp_path, label)
    if label.column == "id":
        cfg.etl.columns, cfg.etl.key = cfg.etl.columns[1:], ()
    with pytest.raises(DataError, match=told):
        build(cfg)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"checkpoint": {"keep_best": "auc"}}, "config.checkpoint.keep_best='auc' is no metric of regression; give one of rmse"),
        ({"eval": {"patience": 3, "every": 0}}, "config.eval.patience=3 needs config.eval.every"),
        ({"eval": {"use": "best"}, "checkpoint": {"keep_best": ""}}, "keep_best='' names no metric"),
    ],
    ids=["metric", "never-evaluated", "no-metric"],
)
def test_settings_that_do_not_fit_the_task(table: Path, tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    """Found before anything is done."""
    with pytest.raises(ConfigError, match=told):
        validate(config(table, tmp_path, LABELS["number"], **changed))


# ---- objectives --------------------------------------------------------------------------------------------------------

TARGETS = {
    "binary": Target(mean=0.3),
    "regression": Target(task="regression", mean=100.0, std=7.0),
    "classes": Target(task="classes", classes=("a", "b", "c"), counts=(10, 60, 30)),
}


@pytest.mark.parametrize("task", TARGETS)
def test_averaged_outputs_have_the_mean_of_the_scores(task: str) -> None:
    """Also where members are nearly sure; and one member alone is itself."""
    objective = objective_of(TARGETS[task])
    head = jax.random.normal(jax.random.key(0), (50, 4, objective.num_outputs)) * 8
    outputs = objective.outputs(head)
    mean = jax.vmap(objective.scores, 1, 1)(outputs).mean(axis=1)
    assert objective.scores(objective.averaged(outputs)) == pytest.approx(np.asarray(mean), rel=1e-4, abs=1e-6)
    alone = objective.scores(objective.averaged(outputs[:, :1]))
    assert alone == pytest.approx(np.asarray(objective.scores(outputs[:, 0])), rel=1e-5, abs=1e-6)


def test_balanced_weights_are_scikit_learns() -> None:
    """Every class counts as much as any other; a number has none."""
    labels = np.repeat([0.0, 1.0, 2.0], [10, 60, 30])
    found = objective_of(TARGETS["classes"]).class_weights(jnp.asarray(labels, jnp.float32))
    assert found == pytest.approx(compute_sample_weight("balanced", labels), rel=1e-6)
    binary = np.repeat([0.0, 1.0], [70, 30])
    found = objective_of(TARGETS["binary"]).class_weights(jnp.asarray(binary, jnp.float32))
    assert found == pytest.approx(compute_sample_weight("balanced", binary), rel=1e-6)
    assert (objective_of(TARGETS["regression"]).class_weights(jnp.ones(3)) == 1).all()


def test_a_members_loss_counts_a_share() -> None:
    """Losses of members are averaged for each row, then weighted."""
    losses, weight = jnp.arange(6.0).reshape(3, 2), jnp.array([1.0, 0.0, 2.0])
    assert weighted(losses, weight) == (0.5 + 2 * 4.5, 3.0)


def test_class_weights_change_the_training_alone(table: Path, trained: dict[str, Config], tmp_path: Path) -> None:
    """A run with balanced classes gives the rarer class more; its dataset and metrics are of the same rows."""
    cfg = config(table, tmp_path, LABELS["equals"], loss={"class_weight": "balanced"})
    cfg = dataclasses.replace(cfg, dataset=trained["equals"].dataset, workdir=str(tmp_path / "balanced"))
    train(cfg, jax.devices()[:1])
    means = [np.mean(measured(c, tmp_path)[1]["score"]) for c in (cfg, trained["equals"])]
    assert means[0] > means[1] + 0.02


# ---- early stopping ----------------------------------------------------------------------------------------------------


def run_of(table: Path, folder: Path, dataset: str, **changed: Any) -> Config:
    """A run that learns noise soon: high rate, evaluations every 10 steps."""
    more = {"eval": {"every": 10, "patience": 3, "use": "best"}, "checkpoint": {"every": 7, "keep_last": 1}, **changed}
    cfg = config(table, folder, LABELS["equals"], **more, optim={"peak_lr": 0.3, "end_lr": 0.3, "warmup_steps": 1})
    return dataclasses.replace(cfg, dataset=dataset, steps=400, workdir=str(folder / "run"))


def test_a_run_stops_when_it_gets_no_better(table: Path, trained: dict[str, Config], tmp_path: Path) -> None:
    """After three evaluations that were not better. The best step stays and `evaluate` takes it; a second start does nothing."""
    cfg = run_of(table, tmp_path, trained["equals"].dataset)
    state = train(cfg, jax.devices()[:1])
    lines = read_log(Path(cfg.workdir))
    values = {x["step"]: x["values"]["log_loss"][0] for x in lines if x["kind"] == "eval"}
    best, last = min(values, key=values.__getitem__), max(values)
    assert last == best + 30 < 400
    assert int(state.step) == last
    assert {best, last} <= set(SavedSteps(Path(cfg.workdir)).steps())
    kept, _ = measured(cfg, tmp_path)
    assert kept["step"] == best
    assert kept["metrics"]["log_loss"] == pytest.approx(values[best], rel=1e-6)  # on 8 devices
    again = train(cfg, jax.devices()[:1])
    assert int(again.step) == last
    assert [x["step"] for x in read_log(Path(cfg.workdir)) if x["kind"] == "train"][-1] == last


def test_a_run_that_cannot_be_measured_is_not_stopped_by_it(table: Path, tmp_path: Path) -> None:
    """Patience without an eval split is refused before the first step."""
    cfg = run_of(table, tmp_path, str(tmp_path / "dataset"))
    cfg.etl.split = ByHash(eval=0.0, test=0.1)
    build(cfg)
    with pytest.raises(ConfigError, match=r"config.eval.patience=3: .* has no eval rows to stop by"):
        train(cfg, jax.devices()[:1])


def test_a_killed_run_stops_where_the_straight_one_does(table: Path, trained: dict[str, Config], tmp_path: Path) -> None:
    """From every saved step, the run goes on to the same last step, with the same bits."""
    cfg = run_of(table, tmp_path, trained["equals"].dataset, checkpoint={"every": 7, "keep_last": 100})
    straight = {path: np.asarray(leaf) for path, leaf in flatten(train(cfg, jax.devices()[:1])).items()}
    saved = SavedSteps(Path(cfg.workdir))
    steps = saved.steps()
    for step in (steps[3], steps[-2]):
        again = dataclasses.replace(cfg, workdir=str(tmp_path / f"from-{step}"))
        for kept in (s for s in steps if s <= step):
            shutil.copytree(saved.folder(kept), SavedSteps(Path(again.workdir)).folder(kept))
        resumed = flatten(train(again, jax.devices()[:1]))
        assert {path: np.asarray(leaf).tobytes() for path, leaf in resumed.items()} == {
            p: a.tobytes() for p, a in straight.items()
        }


@pytest.mark.parametrize("task", LABELS)
def test_scores_as_csv(trained: dict[str, Config], tmp_path: Path, task: str) -> None:
    """The numbers of the Parquet file, to the bit, by the end of the file's name."""
    for name in ("out.parquet", "out.csv"):
        predict.main(trained[task], argparse.Namespace(step=-1, input="", output=str(tmp_path / name), limit=300))
    table = pq.read_table(tmp_path / "out.parquet")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    assert head == table.column_names
    assert len(lines) == 300
    for i, field in enumerate(table.schema):
        texts = [line[i] or None for line in lines]
        floats = field.type == "float"
        assert table[field.name].to_pylist() == [
            None if text is None else float(np.float32(text)) if floats else int(text) if field.name == "id" else text
            for text in texts
        ]
