"""Will a flight from New York arrive more than 15 minutes late? From what is known before departure.

    python -m mlprod.etl.demo                                  # raw data: data/flights.db, data/planes.csv
    python -m mlprod.train --config configs/flights.py         # dataset, then the model

Rows: 336,776 flights of 2013 (SQLite) with the weather at the origin an hour before departure (SQLite) and the plane (CSV).
Whole days are held out: a split by rows would put the same hour's weather and delays on both sides.
"""

import pandas as pd

from mlprod.config import (
    ByGroup,
    CheckpointConfig,
    Column,
    Config,
    EtlConfig,
    EvalConfig,
    Join,
    Label,
    LoaderConfig,
    Lookup,
    On,
    OptimConfig,
    SqlSource,
    categorical,
    numeric,
)  # fmt: skip
from mlprod.models.tabular import TabularConfig

WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")


def transform(flights: pd.DataFrame) -> pd.DataFrame:
    """Adds columns that follow from a flight's own values."""
    scheduled = flights["sched_dep_time"]  # HHMM, local
    date = pd.to_datetime(flights[["year", "month", "day"]].astype("int64"))
    return pd.DataFrame({
        "minute_of_day": scheduled // 100 * 60 + scheduled % 100,
        "weekday": date.dt.weekday.astype("int64"),
        "day_of_year": date.dt.dayofyear.astype("int64"),
        "plane_age": flights["year"] - flights["plane_year"],
    })  # fmt: skip


def get_config() -> Config:
    """Returns the recipe: data and model; the hardware is the machine at hand."""
    return Config(
        name="flights",
        workdir="runs/flights",
        dataset="datasets/flights",
        epochs=3.0,
        etl=EtlConfig(
            source=SqlSource(
                url="sqlite:///data/flights.db",
                table="flights",
                joins=(
                    Join(
                        table="weather",
                        on=(On(left="origin", right="origin"), On(left="hour_utc", right="hour_utc", plus=1)),
                        columns=WEATHER,
                    ),
                ),
                watermark="time_hour",
            ),
            lookups=(Lookup(path="data/planes.csv", key="tailnum", columns={"plane_year": "year", "seats": "seats"}),),
            label=Label(column="arr_delay", above=15.0),
            columns=(
                *(Column(name=name, type="int64", role="input") for name in ("year", "month", "day", "flight")),
                categorical("carrier", min_count=20),
                categorical("origin"),
                categorical("dest", min_count=20),
                categorical("hour", type="int64"),
                numeric("distance"),
                Column(name="sched_dep_time", type="int64", role="input"),
                numeric("sched_arr_time", type="int64"),
                Column(name="tailnum", type="string", role="input"),
                Column(name="plane_year", type="int64", role="input"),
                numeric("seats", type="int64"),
                *(numeric(name) for name in WEATHER),
                numeric("minute_of_day", type="int64", derived=True),
                categorical("weekday", type="int64", derived=True),
                numeric("day_of_year", type="int64", derived=True),
                numeric("plane_age", type="int64", derived=True),
            ),
            key=("year", "month", "day", "carrier", "flight", "origin"),
            transform=transform,
            split=ByGroup(columns=("year", "month", "day"), eval=0.1, test=0.1),
        ),
        model=TabularConfig(hidden=(128, 128), dropout=0.3),
        optim=OptimConfig(peak_lr=4e-3, warmup_steps=200, weight_decay=0.1, average=0.99),
        loader=LoaderConfig(global_batch=1024),
        eval=EvalConfig(batch=4096, every=250),
        checkpoint=CheckpointConfig(every=250),
    )
