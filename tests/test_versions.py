"""Runs on a dataset that grows: each goes on with the version that it began with; another is a choice that the config names."""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mlprod import evaluate
from mlprod.checkpoint.saved import SavedSteps, trained_on
from mlprod.config import Config, CsvSource, InitConfig, LoaderConfig, categorical, numeric
from mlprod.errors import ConfigError
from mlprod.etl.run import build
from mlprod.plan import make_plan
from mlprod.train import train
from tests.plain import ID, small_config

DEVICES = jax.devices()[:1]


def grown(folder: Path, part: int, **etl) -> Config:
    """Adds a file to the source and builds a version of it."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    lines = [f"{i},{i * 0.25},{'abcd'[i % 4]},{i % 2}" for i in range(part * 80, part * 80 + 80)]
    (folder / "rows" / f"{part}.csv").write_text("\n".join(["id,x,kind,y", *lines]) + "\n")
    usual = {"source": CsvSource(path=str(folder / "rows")), "grow": "append", "group_rows": 8}
    cfg = small_config(folder, None, (ID, numeric("x"), categorical("kind")), **{**usual, **etl})
    build(cfg)
    return dataclasses.replace(cfg, loader=LoaderConfig(global_batch=16), steps=4)


def losses(cfg: Config) -> list[float]:
    lines = [json.loads(line) for line in (Path(cfg.workdir) / "log.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line.get("name") == "loss"]


def with_workdir(cfg: Config, name: str, **more) -> Config:
    return dataclasses.replace(cfg, workdir=str(Path(cfg.workdir).parent / name), **more)


def params(cfg: Config, step: int) -> bytes:
    plan = make_plan(cfg, DEVICES, trained_on(cfg.workdir))
    state, _ = SavedSteps(Path(cfg.workdir)).restore(step, plan.abstract, plan.where)
    return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.params))


def test_a_run_goes_on_with_the_version_it_began_with(tmp_path):
    """Started again after the dataset has grown, it ends with the bits of the straight run."""
    cfg = grown(tmp_path, 0)
    straight, cut = with_workdir(cfg, "straight"), with_workdir(cfg, "cut")
    train(straight, DEVICES)
    train(dataclasses.replace(cut, steps=2), DEVICES)
    grown(tmp_path, 1)
    train(dataclasses.replace(cut, steps=4), DEVICES)
    fresh = with_workdir(cfg, "fresh")
    train(fresh, DEVICES)
    ids = {w.workdir: trained_on(w.workdir) for w in (straight, cut, fresh)}
    assert ids[cut.workdir] == ids[straight.workdir] != ids[fresh.workdir]
    assert SavedSteps(Path(cut.workdir)).runs()[4].order == SavedSteps(Path(straight.workdir)).runs()[4].order
    train(with_workdir(cfg, "named", dataset_version=1), DEVICES)
    assert params(with_workdir(cfg, "named", dataset_version=1), 4) == params(straight, 4)


def test_another_version_for_a_run_is_refused(tmp_path):
    cfg = with_workdir(grown(tmp_path, 0), "run")
    train(cfg, DEVICES)
    grown(tmp_path, 1)
    told = r"holds a run on dataset_id .*, which is version 2 of .*; use another workdir, which may begin .*config\.init\.workdir"
    with pytest.raises(ConfigError, match=told):
        train(dataclasses.replace(cfg, dataset_version=2, steps=6), DEVICES)


def test_from_a_run_on_the_version_before(tmp_path, capsys):
    """By `init.workdir` a run on version 2 begins with the arrays of one on version 1: the transform is the same."""
    cfg = with_workdir(grown(tmp_path, 0), "first")
    train(cfg, DEVICES)
    grown(tmp_path, 1)
    second = with_workdir(cfg, "second", init=InitConfig(workdir=cfg.workdir))
    train(second, DEVICES)
    assert f"are those of run {SavedSteps(Path(cfg.workdir)).runs()[4].run_id} at step 4" in capsys.readouterr().out
    assert trained_on(second.workdir) != trained_on(cfg.workdir)


def test_from_a_run_behind_another_transform_is_refused_unless_named(tmp_path):
    """A refit may give the same number of ids to other words."""
    cfg = with_workdir(grown(tmp_path, 0, grow="refit"), "first")
    train(cfg, DEVICES)
    grown(tmp_path, 1, grow="refit")
    second = with_workdir(cfg, "second", init=InitConfig(workdir=cfg.workdir))
    with pytest.raises(ConfigError, match=r"whose fitted transform is another: ids and scales mean other things here"):
        train(second, DEVICES)
    train(dataclasses.replace(second, init=InitConfig(workdir=cfg.workdir, transform="other")), DEVICES)


def test_a_run_is_evaluated_on_new_rows_where_the_transform_is_the_same(tmp_path):
    """By `dataset_version`; without it on the version that it was trained on; behind another transform it is refused."""
    cfg = with_workdir(grown(tmp_path, 0), "run")
    train(cfg, DEVICES)
    second = grown(tmp_path, 1)
    options = argparse.Namespace(split="eval", step=-1, by=[], scores="")
    found = []
    for version in (0, 2):
        evaluate.main(dataclasses.replace(cfg, dataset_version=version), options)
        found.append(json.loads((Path(cfg.workdir) / "evaluations" / "eval-00000004.json").read_text())["dataset_id"])
    assert found == [trained_on(cfg.workdir), make_plan(second, DEVICES).manifest.dataset_id]
    assert found[0] != found[1]
    grown(tmp_path, 2, grow="refit")
    with pytest.raises(ConfigError, match="was trained on dataset_id"):
        evaluate.main(dataclasses.replace(cfg, dataset_version=3), options)
