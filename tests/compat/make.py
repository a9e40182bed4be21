"""Makes what `test_compat.py` reads: a small dataset and a checkpoint as this version writes them.

python -m tests.compat.make NAME      # writes tests/compat/NAME; once for every new format, never again for an old one
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from mlprod import manifest
from mlprod.checkpoint.saved import SavedSteps
from mlprod.etl.run import build
from mlprod.store import open_store
from mlprod.train import train
from tests import rows
from tests.conftest import smoke_config
from tests.plain import stored

HERE = Path(__file__).resolve().parent


def main(name: str) -> None:
    """Builds a dataset of 200 rows, trains three steps on it, and keeps what stands on disk with what is in it."""
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)  # so that no path of this machine is in the files
        here, target = Path("."), HERE / name
        skip = ((64, 128),)
        cfg = smoke_config(rows.write(here / "rows.csv", 200), here / "dataset", here / "run", steps=3, loader={"skip": skip})
        build(cfg)
        train(cfg, jax.devices()[:1])
        shutil.copytree(here / "dataset", target / "dataset", ignore=shutil.ignore_patterns("work"))
        aside = shutil.ignore_patterns("commit_success.txt")  # orbax writes absolute paths into them, and reads without
        shutil.copytree(here / "run" / "checkpoints", target / "run" / "checkpoints", ignore=aside)
        published, run = manifest.read(open_store(cfg.dataset)), SavedSteps(here / "run").read_run(3)
        told = {
            "dataset_id": published.dataset_id, "run_id": run.run_id, "step": run.step, "next_example": run.next_example,
            "skipped": run.skipped, "log_loss": run.metrics["log_loss"],
            "digests": {path: row["digest"] for path, row in run.leaves.items()},
            "row_ids": [f"{i:016x}" for i in np.sort(stored(Path(cfg.dataset), published, "train")["row_id"])],
        }  # fmt: skip
        (target / "told.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
