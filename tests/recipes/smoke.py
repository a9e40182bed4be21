"""A recipe small enough for a test: 3,000 rows of a CSV that `tests/rows.py` writes, 60 steps of a two-layer MLP."""

import os

import pandas as pd

from mlprod.config import (
    AUTO,
    ByGroup,
    CheckpointConfig,
    Column,
    Config,
    CsvSource,
    EtlConfig,
    EvalConfig,
    Label,
    LoaderConfig,
    OptimConfig,
    RuntimeConfig,
    TrackingConfig,
    categorical,
    numeric,
)  # fmt: skip
from mlprod.models.mlp import MLPConfig


def transform(rows: pd.DataFrame) -> pd.DataFrame:
    """The product of a row's own two numbers."""
    return pd.DataFrame({"product": rows["x"] * rows["n"]})


def get_config() -> Config:
    """Returns the recipe; paths are relative and meant to be overridden."""
    return Config(
        name="smoke",
        workdir="run",
        dataset="dataset",
        steps=60,
        etl=EtlConfig(
            source=CsvSource(path="rows.csv"),
            label=Label(column="y", above=0.5),
            columns=(
                Column(name="id", type="int64", role="input"),
                Column(name="day", type="int64", role="group"),
                numeric("x"),
                numeric("n", type="int64"),
                categorical("color", min_count=2),
                categorical("size", type="int64"),
                numeric("product", derived=True),
            ),
            key=("id",),
            transform=transform,
            split=ByGroup(columns=("day",), eval=0.15, test=0.15),
            group_rows=64,
            file_groups=8,
        ),
        model=MLPConfig(hidden=(16, 16), dropout=0.1),
        optim=OptimConfig(peak_lr=1e-2, warmup_steps=5),
        loader=LoaderConfig(global_batch=64, num_lanes=16, window_rows=1024),
        eval=EvalConfig(batch=64, every=20),
        checkpoint=CheckpointConfig(every=7),
        tracking=TrackingConfig(wandb="off", progress=False),
        # Many tests train the same programs: one folder for all of them.
        runtime=RuntimeConfig(compile_cache=os.environ.get("MLPROD_TEST_COMPILED", AUTO)),
    )
