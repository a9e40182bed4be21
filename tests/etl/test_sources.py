"""Sources: CSV records and where they stand; SQL joins, filters and names, against a SQLite file; lookups."""

import contextlib
import dataclasses
import sqlite3

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod.config import Column, CsvSource, Join, Lookup, On, SqlSource, numeric
from mlprod.errors import DataError
from mlprod.etl.connection import connect
from mlprod.etl.csv_files import csv_chunks
from mlprod.etl.lookups import lookup_identity, read_lookup
from mlprod.etl.sources import chunks, identify


def rows_of(source, names, chunk_rows=1000):
    """Returns all rows as tuples in the order of `names`."""
    return [row for c in chunks(source, names, chunk_rows) for row in zip(*(c.columns[n] for n in names), strict=True)]


# ---- CSV ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def csv_file(tmp_path):
    def write(text: str, encoding: str = "utf-8") -> str:
        path = tmp_path / "rows.csv"
        path.write_bytes(text.encode(encoding))
        return str(path)

    return write


def test_csv_values(csv_file):
    """Quotes, delimiters and line breaks inside them; '' and NA are missing, quoted or not; a BOM and CRLF do not count."""
    path = csv_file('\ufeffa, b,c\r\n1,"x,""y""\nz",NA\r\n\r\n"",NAN, \r\n')
    assert rows_of(CsvSource(path=path), ["b", "a", "c"]) == [('x,"y"\nz', "1", None), ("NAN", None, " ")]
    assert rows_of(CsvSource(path=csv_file("a;b\n1;2,5\n"), delimiter=";"), ["b"]) == [("2,5",)]


def test_a_csv_record_knows_its_line(csv_file):
    """The line on which it begins, after records of several lines and blank ones."""
    path = csv_file('a,b\n1,"x\ny"\n\n2,z\n3\n4,5,6\n')
    found = [(c.where(i), c.broken.get(i)) for c in csv_chunks(path, ",", ["a"], 2) for i in range(c.num_rows)]
    assert found == [
        (f"{path} line 2", None), (f"{path} line 5", None),
        (f"{path} line 6", "has 1 fields, the header 2"), (f"{path} line 7", "has 3 fields, the header 2"),
    ]  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 12), st.integers(1, 14))
def test_csv_chunks_are_the_rows_cut_anywhere(tmp_path_factory, num_rows, chunk_rows):
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_text("a,b\n" + "".join(f"{i},{i * i}\n" for i in range(num_rows)))
    sizes = [c.num_rows for c in csv_chunks(str(path), ",", ["a"], chunk_rows)]
    assert rows_of(CsvSource(path=str(path)), ["a", "b"], chunk_rows) == [(str(i), str(i * i)) for i in range(num_rows)]
    assert sizes == [chunk_rows] * (num_rows // chunk_rows) + [num_rows % chunk_rows] * (num_rows % chunk_rows > 0)


@pytest.mark.parametrize(
    "text, encoding, message",
    [
        ("", "utf-8", r"rows\.csv is empty; it must begin with a line of column names"),
        ("color,size\n", "utf-8", r"rows\.csv has no column 'colour'; did you mean 'color'\?"),
        ("x,y\n", "utf-8", r"rows\.csv has no column 'colour'; known: x, y"),
        ("colour\nü\n", "latin-1", r"rows\.csv line 2: not UTF-8"),
        ('colour\n"open', "utf-8", r"rows\.csv line 2: unexpected end of data"),
    ],
)
def test_a_broken_csv_is_one_error_with_its_name(csv_file, text, encoding, message):
    with pytest.raises(DataError, match=message):
        rows_of(CsvSource(path=csv_file(text, encoding)), ["colour"])


def test_a_csv_is_told_by_its_bytes(csv_file, tmp_path):
    first = identify(CsvSource(path=csv_file("a\n1\n")), ["a"])
    assert identify(CsvSource(path=csv_file("a\n1\n")), ["a"]) == first
    assert identify(CsvSource(path=csv_file("a\n2\n")), ["a"]) != first
    for read in (identify, rows_of):
        with pytest.raises(DataError, match="there is no file"):
            read(CsvSource(path=str(tmp_path / "none.csv")), ["a"])


# ---- SQL ---------------------------------------------------------------------------------------------------------------

FLIGHTS = [
    (1, "JFK", 10, 0.5, "2013-01-01"),
    (2, "LGA", 11, None, "2013-01-02"),
    (3, None, 11, -1.0, "2013-01-03"),
    (4, "JFK", 12, 2.0, "2013-01-04"),
]
WEATHER = [("JFK", 9, 20.5), ("JFK", 11, None), ("LGA", 11, 99.0), ("LGA", 12, 98.0)]
JOIN = Join(table="weather", on=(On(left="origin", right="origin"), On(left="hour", right="hour", plus=1)), columns=("temp",))


@pytest.fixture
def database(tmp_path):
    """A SQLite file with two tables; returns a function that runs SQL on it."""

    def execute(sql: str, *many) -> str:
        with contextlib.closing(sqlite3.connect(tmp_path / "test.db")) as db, db:
            db.executemany(sql, many) if many else db.execute(sql)
        return f"sqlite:///{tmp_path / 'test.db'}"

    execute("CREATE TABLE flights (id INTEGER, origin TEXT, hour INTEGER, delay REAL, day DATE)")
    execute("INSERT INTO flights VALUES (?, ?, ?, ?, ?)", *FLIGHTS)
    execute("CREATE TABLE weather (origin TEXT, hour INTEGER, temp REAL)")
    execute("INSERT INTO weather VALUES (?, ?, ?)", *WEATHER)
    return execute


@pytest.fixture
def flights(tmp_path, database) -> SqlSource:
    return SqlSource(url=f"sqlite:///{tmp_path / 'test.db'}", table="flights", joins=(JOIN,), watermark="day")


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_a_left_join_keeps_every_row_and_takes_the_hour_before(flights, chunk_rows):
    """left = right + plus; null where nothing matches, and a null key matches nothing."""
    weather = {(origin, hour): temp for origin, hour, temp in WEATHER}
    wanted = [(weather.get((origin, hour - 1)), i) for i, origin, hour, _, _ in FLIGHTS]
    assert sorted(rows_of(flights, ["temp", "id"], chunk_rows), key=lambda row: row[1]) == wanted
    assert [temp for temp, _ in wanted] == [20.5, None, None, None]


@pytest.mark.parametrize(
    "start, stop", [("", ""), ("2013-01-02", ""), ("", "2013-01-03"), ("2013-01-02", "2013-01-04"), ("2014-01-01", "")]
)
def test_filters_are_a_half_open_range_of_bound_parameters(flights, start, stop):
    source = dataclasses.replace(flights, start=start, stop=stop)
    wanted = {i for i, *_, day in FLIGHTS if (start or "0") <= day < (stop or "9")}
    identity = identify(source, ["id"])
    assert {i for (i,) in rows_of(source, ["id"])} == wanted
    assert identity.description["rows"] == len(wanted)
    assert "2013" not in identity.description["query"]
    assert sorted(identity.description["parameters"].values()) == sorted({"1"} | {start, stop} - {""}), "plus, start and stop"


def test_names_and_values_are_never_sql(database, tmp_path):
    """A name with quotes in it is a name; a filter with SQL in it is a value."""
    url = database('CREATE TABLE "a ""b; --" ("x ""y" INTEGER, "select" TEXT)')
    database('INSERT INTO "a ""b; --" VALUES (?, ?)', (1, "'; DROP TABLE flights; --"), (2, "zz"))
    source = SqlSource(url=url, table='a "b; --', watermark="select", stop="'; DROP TABLE flights; --2")
    assert rows_of(source, ['x "y']) == [(1,)]
    assert len(rows_of(SqlSource(url=url, table="flights"), ["id"])) == len(FLIGHTS)


def test_a_join_that_would_multiply_rows_is_refused(flights, database):
    database("INSERT INTO weather VALUES (?, ?, ?)", ("JFK", 9, 1.0))
    with pytest.raises(DataError, match=r"'weather' has several rows with origin, hour = \('JFK', 9\); a join needs one"):
        rows_of(flights, ["id", "temp"])


def test_joined_rows_without_a_key_do_not_matter(flights, database):
    database("INSERT INTO weather VALUES (?, ?, ?)", (None, 9, 1.0), (None, 9, 2.0))
    assert len(rows_of(flights, ["id", "temp"])) == len(FLIGHTS)


@pytest.mark.parametrize(
    "changed, names, message",
    [
        ({"table": "flight"}, ["id"], r"has no table 'flight'; did you mean 'flights'\?"),
        ({"joins": (dataclasses.replace(JOIN, table="wether"),)}, ["id"], r"has no table 'wether'; did you mean 'weather'\?"),
        ({}, ["ident"], r"table 'flights' has no column 'ident'"),
        (
            {"joins": (dataclasses.replace(JOIN, columns=("temq",)),)},
            ["temq"],
            r"'weather' has no column 'temq'; did you mean 'temp'\?",
        ),
        ({"joins": (dataclasses.replace(JOIN, on=(On(left="hou", right="hour"),)),)}, ["id"], r"'flights' has no column 'hou'"),
        ({"joins": (dataclasses.replace(JOIN, on=(On(left="hour", right="hou"),)),)}, ["id"], r"'weather' has no column 'hou'"),
        ({"watermark": "dat"}, ["id"], r"table 'flights' has no column 'dat'; did you mean 'day'\?"),
        ({"watermark": "", "start": "1"}, ["id"], r"need config\.etl\.source\.watermark"),
        ({"start": "noon"}, ["id"], r"config\.etl\.source\.start='noon' is not a date, as column 'day' is"),
        ({"watermark": "id", "stop": "x"}, ["id"], r"config\.etl\.source\.stop='x' is not a int, as column 'id' is"),
    ],
)
def test_what_the_database_lacks_is_refused_by_name(flights, changed, names, message):
    """Before a row is read, with the nearest name there is."""
    for read in (identify, rows_of):
        with pytest.raises(DataError, match=message):
            read(dataclasses.replace(flights, **changed), names)


def test_a_bad_row_is_told_by_its_place_in_the_query(flights):
    places = [c.where(i) for c in chunks(flights, ["id"], 3) for i in range(c.num_rows)]
    assert places == [f"table 'flights', row {i} of the query" for i in (1, 2, 3, 4)]


def test_a_table_is_told_by_count_and_watermark(flights, database):
    """Rows that come or go, a newer watermark and joined rows that come or go all show; without a watermark nothing is sure."""
    names = ["id", "temp"]
    seen = [identify(flights, names)]
    assert identify(flights, names) == seen[0]
    for sql in (
        "DELETE FROM flights WHERE id = 1",
        "UPDATE flights SET day = '2014-01-01' WHERE id = 2",
        "INSERT INTO weather VALUES ('EWR', 1, 1.0)",
    ):
        database(sql)
        seen.append(identify(flights, names))
    seen.append(identify(dataclasses.replace(flights, start="2013-01-01"), names))
    seen.append(identify(flights, ["id"]))
    assert len({str(i.description) for i in seen}) == len(seen)
    assert all(i.stable for i in seen)
    assert not identify(dataclasses.replace(flights, watermark=""), names).stable


@pytest.mark.parametrize("kind, start", [("", "1"), ("DECIMAL", "abc"), ("TIME", "12:00")])
def test_a_filter_on_a_column_of_any_type_works_or_is_refused(database, kind, start):
    url = database(f"CREATE TABLE other (id INTEGER, mark {kind})")
    with contextlib.suppress(DataError):
        rows_of(SqlSource(url=url, table="other", watermark="mark", start=start), ["id"])


def test_a_value_that_the_driver_cannot_read_is_refused(database):
    url = database("INSERT INTO flights (id, day) VALUES (5, 'someday')")
    with pytest.raises(DataError, match="table 'flights'"):
        rows_of(SqlSource(url=url, table="flights"), ["day"])


def test_views_are_tables_too(database):
    url = database("CREATE VIEW late AS SELECT id, delay FROM flights WHERE delay > 0")
    assert sorted(rows_of(SqlSource(url=url, table="late"), ["id"])) == [(1,), (4,)]


@pytest.mark.parametrize(
    "url, message",
    [
        ("sqlite:////nowhere/x.db", "there is no database file '/nowhere/x.db'"),
        ("sqlite://", "there is no database file"),
        ("nonsense", "Could not parse SQLAlchemy URL"),
        ("nodb+x://host/db", "Can't load plugin"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url, message):
    with pytest.raises(DataError, match=message):
        connect(SqlSource(url=url))


def test_secrets_come_from_the_environment_and_stay_out_of_messages(monkeypatch, tmp_path):
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setenv("SECRET", "hunter2")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")):
        pass
    engine = connect(SqlSource(url="sqlite:///$FOLDER/a.db"))
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()
    with pytest.raises(DataError) as caught:
        connect(SqlSource(url="nodb+x://user:$SECRET@host/db"))
    assert "hunter2" not in str(caught.value)
    assert "$SECRET" in str(caught.value)


# ---- lookups -----------------------------------------------------------------------------------------------------------

COLUMNS = (Column(name="tail", type="string", role="input"), numeric("year", type="int64"), numeric("seats", type="int64"))
PLANES = "tailnum,seats,year\nN1,100,1999\nN2,NA,2001\n"


def test_a_lookup_keeps_rows_and_their_order(csv_file):
    """One row each, null where the key is not found, typed as declared."""
    lookup = Lookup(path=csv_file(PLANES.replace("tailnum", "tail")), key="tail", columns={"seats": "seats", "year": "year"})
    rows = pa.table({"tail": pa.chunked_array([["N2", "N9"], ["N1", None, "N2"]], pa.string())})
    joined = read_lookup(lookup, COLUMNS).join(rows)
    assert joined.to_pydict() == {
        "tail": ["N2", "N9", "N1", None, "N2"], "seats": [None, None, 100, None, None], "year": [2001, None, 1999, None, 2001]
    }  # fmt: skip


@pytest.mark.parametrize(
    "text, columns, message",
    [
        (PLANES.replace("tailnum", "tail") + "N1,1,1\n", COLUMNS, r"several rows with tail = 'N1'; a lookup needs one"),
        (PLANES, COLUMNS, r"rows\.csv has no column 'tail'; did you mean 'tailnum'\?"),
        ("tail,seats,year\n", COLUMNS, r"rows\.csv has no rows"),
        ("tail,seats,year\nN1,many,1999\n", COLUMNS, r"rows\.csv line 2: column 'seats': 'many' is not int64"),
        (PLANES, COLUMNS[:2], r"for lookup '.*', has no column 'seats'"),
    ],
)
def test_a_broken_lookup_is_refused(csv_file, text, columns, message):
    with pytest.raises(DataError, match=message):
        read_lookup(Lookup(path=csv_file(text), key="tail", columns={"seats": "seats", "year": "year"}), columns)


def test_a_lookup_is_told_by_its_bytes(csv_file):
    lookup = Lookup(path=csv_file(PLANES), key="tail", columns={})
    first = lookup_identity(lookup)
    csv_file(PLANES + "N3,1,1\n")
    assert lookup_identity(lookup) != first


def test_a_missing_key_finds_nothing(csv_file):
    """As in a SQL join, even where the lookup has a row without a key."""
    lookup = Lookup(path=csv_file("tail,seats\nN1,100\n,5\n"), key="tail", columns={"seats": "seats"})
    joined = read_lookup(lookup, COLUMNS).join(pa.table({"tail": pa.array(["N1", None])}))
    assert joined["seats"].to_pylist() == [100, None]


def test_a_sensitive_key_stays_out_of_messages(csv_file):
    columns = (dataclasses.replace(COLUMNS[0], sensitive=True), *COLUMNS[1:])
    with pytest.raises(DataError, match="several rows") as caught:
        read_lookup(Lookup(path=csv_file("tail,seats\nsecret,1\nsecret,2\n"), key="tail", columns={"seats": "seats"}), columns)
    assert "secret" not in str(caught.value)


def test_a_column_that_stands_twice_in_a_csv_is_refused(csv_file):
    with pytest.raises(DataError, match="twice"):
        rows_of(CsvSource(path=csv_file("a,a\n1,2\n")), ["a"])
