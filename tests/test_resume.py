"""What a resume goes on with: the next epoch, past skipped ranges, on a rebuilt dataset; and what it refuses, by name."""

import dataclasses
from pathlib import Path

import jax
import pytest

from mlprod.checkpoint.run_state import RunState
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import Config
from mlprod.errors import ConfigError
from mlprod.etl.run import build
from mlprod.manifest import Manifest
from mlprod.tracking import read_log
from mlprod.train import train
from tests import rows
from tests.conftest import MakeConfig

Capture = pytest.CaptureFixture[str]
SIZE = 64  # the smoke recipe's global batch


def trained(cfg: Config) -> None:
    """Trains on one device."""
    train(cfg, jax.devices()[:1])


def ids(cfg: Config) -> dict[int, str]:
    """Returns {position behind a step's batch: digest of its row ids} of a run's log."""
    return {line["position"]: line["ids"] for line in read_log(Path(cfg.workdir)) if line["kind"] == "train"}


def saved(cfg: Config) -> RunState:
    """Returns the host state of a run's newest checkpoint."""
    store = SavedSteps(Path(cfg.workdir))
    return store.read_run(store.steps()[-1])


@pytest.fixture(scope="module")
def straight(csv: Path, dataset: Path, published: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The ids of a straight run of three epochs."""
    from tests.conftest import smoke_config

    per_epoch = published.num_rows("train") // SIZE
    cfg = smoke_config(csv, dataset, tmp_path_factory.mktemp("straight") / "run", steps=3 * per_epoch)
    trained(cfg)
    return ids(cfg)


def test_a_resume_goes_on_into_the_next_epochs(make_config: MakeConfig, straight: dict[int, str], published: Manifest) -> None:
    """Stopped at the end of an epoch, one batch before it and one behind it."""
    per_epoch = published.num_rows("train") // SIZE
    cfg = make_config()
    for steps in (per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch + 3):
        trained(dataclasses.replace(cfg, steps=steps))
    assert ids(cfg) == {position: digest for position, digest in straight.items() if position <= (2 * per_epoch + 3) * SIZE}
    assert saved(cfg).next_example == (2 * per_epoch + 3) * SIZE


def test_skipped_ranges_are_left_out_and_remembered(make_config: MakeConfig, straight: dict[int, str]) -> None:
    """Given at a resume too: what follows them is what the straight run saw at the same positions."""
    cfg = make_config()
    trained(dataclasses.replace(cfg, steps=5))
    skip = ((7 * SIZE, 9 * SIZE), (10 * SIZE, 11 * SIZE))
    for steps in (7, 12):
        trained(dataclasses.replace(cfg, steps=steps, loader=dataclasses.replace(cfg.loader, skip=skip)))
    seen = [k for k in range(15) if k not in (7, 8, 10)]
    assert ids(cfg) == {(k + 1) * SIZE: straight[(k + 1) * SIZE] for k in seen}
    run = saved(cfg)
    assert (run.step, run.next_example, run.skipped) == (12, 15 * SIZE, skip)


def test_a_skip_is_remembered_and_one_that_comes_too_late_is_said(make_config: MakeConfig, capsys: Capture) -> None:
    """A resume inside a range goes on behind it; ranges taken out of the config stay in the run."""
    cfg, skip = make_config(), ((SIZE, 3 * SIZE),)
    trained(dataclasses.replace(cfg, steps=2, loader=dataclasses.replace(cfg.loader, skip=skip)))
    assert saved(cfg).next_example == 4 * SIZE
    late = dataclasses.replace(cfg.loader, skip=((0, SIZE), (3 * SIZE, 6 * SIZE)))
    trained(dataclasses.replace(cfg, steps=3, loader=late))
    told = capsys.readouterr().err
    assert "config.loader.skip=[(0, 64)] changes nothing" in told
    assert "at step 2 of 3: the same examples in the same order (loader.skip" in told
    assert saved(cfg).skipped == (*skip, (4 * SIZE, 6 * SIZE))
    assert saved(cfg).next_example == 7 * SIZE


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"seed": 8}, r"seed="),
        ({"loader": {"global_batch": 128}}, r"loader\.global_batch=64, now 128"),
        ({"loader": {"window_rows": 2048}}, r"loader\.window_rows=1024, now 2048"),
        ({"loader": {"num_lanes": 8}}, r"loader\.num_lanes=16, now 8"),
    ],
    ids=["seed", "batch", "window", "lanes"],
)
def test_another_order_is_refused_by_name(changed: dict[str, object], told: str, make_config: MakeConfig) -> None:
    """With both values, and the ways out."""
    trained(make_config(steps=2))
    with pytest.raises(ConfigError, match=rf"{told}.*set it back, or use another workdir"):
        trained(make_config(steps=4, **changed))


def test_another_dataset_is_refused_and_the_same_content_is_not(make_config: MakeConfig, tmp_path: Path, csv: Path) -> None:
    """A version with one row more has another id, and is refused when it is named; one built again, in another way, has the same
    and is gone on with."""
    own = dataclasses.replace(make_config(), dataset=str(tmp_path / "own"))
    source = tmp_path / "rows.csv"
    source.write_bytes(csv.read_bytes())
    own = dataclasses.replace(own, etl=dataclasses.replace(own.etl, source=dataclasses.replace(own.etl.source, path=str(source))))
    first, _ = build(own)
    trained(dataclasses.replace(own, steps=2))
    with source.open("a", encoding="utf-8") as file:
        file.write(rows.row(3000) + "\n")
    second, _ = build(own)
    with pytest.raises(ConfigError, match=rf"holds a run on dataset_id {first.dataset_id}, not {second.dataset_id}"):
        trained(dataclasses.replace(own, steps=4, dataset_version=2))
    source.write_bytes(csv.read_bytes() + b"\n")  # other bytes, the same rows
    again = dataclasses.replace(own, etl=dataclasses.replace(own.etl, chunk_rows=100))
    third, fresh = build(again)
    assert (fresh, third.version, third.dataset_id) == (True, 3, first.dataset_id)
    trained(dataclasses.replace(again, steps=4))
    assert saved(own).step == 4
