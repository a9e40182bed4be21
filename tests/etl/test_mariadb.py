"""MySQL's protocol against a real MariaDB: values, ranges, queries, and connections that break or fall silent."""

import contextlib
import dataclasses
import datetime as dt
import json
import math
import random
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlprod import cli
from mlprod.config import Column, Config, Join, On, SqlSource, categorical, numeric
from mlprod.errors import ConnectionLost, DataError
from mlprod.etl import ranges, sources, sql, tasks
from mlprod.etl.run import build
from mlprod.etl.schema import cast_chunk
from tests.mariadb_server import MISSING, USER
from tests.mariadb_server import mariadb as server
from tests.plain import ID, small_config
from tests.postgres_server import PASSWORD
from tests.proxy import Proxy

pytestmark = [pytest.mark.servers, pytest.mark.skipif(bool(MISSING), reason=MISSING)]


@pytest.fixture(scope="session")
def port() -> Iterator[int]:
    with server() as port:
        yield port


def url_of(port: int, password: str = "$DBPW", database: str = "rows", kind: str = "mysql") -> str:
    return f"{kind}://{USER}:{password}@127.0.0.1:{port}/{database}"


@pytest.fixture
def url(port, monkeypatch) -> str:
    """The URL of an empty database."""
    monkeypatch.setenv("DBPW", PASSWORD)
    monkeypatch.setattr(tasks, "PAUSES", (0.0, 0.0))
    execute(url_of(port, database=""), "DROP DATABASE IF EXISTS `rows`", "CREATE DATABASE `rows`")
    return url_of(port)


def execute(url: str, *statements: str, rows: list[tuple] | None = None) -> None:
    """Runs statements; the last with every one of `rows`."""
    engine = sa.create_engine(url.replace("$DBPW", PASSWORD).replace("mysql://", "mysql+pymysql://"))
    with engine.begin() as connection:
        connection.exec_driver_sql("SET sql_mode = ''")  # takes dates of zeros
        for statement in statements:
            connection.exec_driver_sql(statement, rows if rows and statement is statements[-1] else None)
    engine.dispose()


def insert(url: str, columns: dict[str, str], rows: list[tuple]) -> None:
    """Makes a table `t` of these columns and rows."""
    made = ", ".join(f"`{name}` {kind}" for name, kind in columns.items())
    execute(url, f"CREATE TABLE t ({made})", f"INSERT INTO t VALUES ({', '.join(['%s'] * len(columns))})", rows=rows)


def numbered_table(url: str, n: int) -> None:
    execute(
        url, "CREATE TABLE t (id BIGINT PRIMARY KEY, x DOUBLE, y INT)",
        f"INSERT INTO t SELECT seq, seq * 0.5, MOD(seq, 2) FROM seq_0_to_{n - 1}",
    )  # fmt: skip


def config(folder: Path, source: SqlSource, *columns: Column, **etl) -> Config:
    return small_config(folder, None, columns or (ID, numeric("x")), source=source, **etl)


def column(source: SqlSource, name: str, declared: str) -> tuple[list, dict[int, str]]:
    """Returns a column as a build reads it, and why rows are refused."""
    ranged = sources.planned(source, 1000, lambda tasks: {name: task() for name, task in tasks.items()})
    (part,) = sources.parts(ranged, [name], 1000)
    columns = [Column(name=name, type=declared)]
    (chunk,) = sources.read(ranged, part, columns, 1000)
    table, bad = cast_chunk(chunk, columns)
    return table[name].to_pylist(), bad


# ---- values ------------------------------------------------------------------------------------------------------------

TEXTS = [
    "",
    "a",
    "A",
    "a ",
    "á",
    "naïve;'\"%",
    "back\\slash",
    "\\0",
    "tab\t",
    "😀 emoji",
    "中文",
    "line\nbreak",
    "NA ",
    "%s",
    ":x",
]
COLUMNS = (
    ID, numeric("x"), numeric("n", "auto"), categorical("s"), categorical("b", "auto"),
    Column(name="t", type="timestamp", role="time"), Column(name="z", type="auto", role="input"), numeric("w", "int64"),
)  # fmt: skip
KINDS = {
    "id": "BIGINT PRIMARY KEY", "x": "DOUBLE", "n": "DECIMAL(30, 2)", "s": "VARCHAR(30) COLLATE utf8mb4_general_ci",
    "b": "TINYINT(1)", "t": "DATETIME(6)", "z": "TIMESTAMP NULL", "w": "BIGINT UNSIGNED", "y": "INT",
}  # fmt: skip


def odd_rows(draw: random.Random, n: int) -> list[tuple]:
    """Returns rows of `KINDS` with ordinary values and edges, and NULLs."""
    day = dt.datetime(2024, 1, 1)
    return [
        (
            i * draw.choice([1]) - n // 2, draw.choice([None, 0.1, 1e30, -0.0, 5e-324, 1e-12, i / 7]),
            draw.choice([None, Decimal("1.50"), Decimal("-7.00"), Decimal(i)]), draw.choice([None, *TEXTS[1:]]),
            draw.choice([0, 1]), draw.choice([day + dt.timedelta(seconds=i, microseconds=i), dt.datetime(1000, 1, 1)]),
            draw.choice([None, day + dt.timedelta(hours=i)]), draw.choice([0, (1 << 63) - 1, i]), i % 2,
        )
        for i in range(n)
    ]  # fmt: skip


def csv_text(names: list[str], rows: list[tuple]) -> str:
    def field(value: object) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"' if isinstance(value, str) else str(value)

    return "\n".join([",".join(names), *(",".join(map(field, row)) for row in rows)]) + "\n"


@pytest.mark.parametrize("seed", range(2))
def test_the_same_dataset_from_a_table_a_query_and_a_csv(url, tmp_path, seed):
    """The same `dataset_id` and types, by one worker or more, in parts or whole; the server's own time zone is another."""
    rows = odd_rows(random.Random(seed), 300)
    insert(url, KINDS, rows)
    execute(
        url, "SET time_zone = '+00:00'", "INSERT INTO t (id, z, w, y, b, t) VALUES (999, '2024-03-01', 1, 1, 1, '2024-03-01')"
    )
    at = dt.datetime(2024, 3, 1)
    rows.append((999, None, None, None, 1, at, at, 1, 1))
    made = small_config(tmp_path / "csv", csv_text(list(KINDS), rows), COLUMNS)
    wanted = build(made)[0]
    execute(url, "UPDATE t SET z = z + INTERVAL 5 HOUR + INTERVAL 30 MINUTE WHERE id < 999")  # written in the server's time zone
    table, query = SqlSource(url=url, table="t"), SqlSource(url=url, query="SELECT *, 'a:b %s' AS more FROM t -- all")
    forms = [(table, {}), (table, {"chunk_rows": 20, "workers": 3}), (dataclasses.replace(query, cut_by="y"), {"chunk_rows": 30})]
    for i, (source, etl) in enumerate(forms):
        found = build(config(tmp_path / str(i), source, *COLUMNS, **etl))[0]
        assert (found.dataset_id, found.source["types"]) == (wanted.dataset_id, wanted.source["types"])
    assert wanted.source["types"] == {"n": "float64", "b": "int64", "z": "timestamp"}


def test_strings_that_a_collation_takes_for_equal_stay_different_rows(url, tmp_path):
    rows = [(i, text, i % 2) for i, text in enumerate(TEXTS)] + [(100, None, 0)]
    insert(url, {"id": "INT PRIMARY KEY", "s": "VARCHAR(30) COLLATE utf8mb4_general_ci", "y": "INT"}, rows)
    source = SqlSource(url=url, table="t")
    assert column(source, "s", "string") == ([*TEXTS, None], {})
    made = build(
        config(tmp_path, source, Column(name="id", type="int64", role="input"), categorical("s"), key=("s",), dedup="key")
    )
    assert sum(made[0].num_rows(split) for split in made[0].splits) == len(rows)


def test_a_join_compares_as_the_database_does(url):
    """Where it takes two keys for one, that is refused: the join would multiply rows."""
    insert(url, {"id": "INT PRIMARY KEY", "k": "VARCHAR(5)"}, [(1, "a"), (2, "A"), (3, "b")])
    execute(url, "CREATE TABLE j (k VARCHAR(5) COLLATE utf8mb4_bin, v INT)", "INSERT INTO j VALUES ('a', 1)")
    source = SqlSource(url=url, table="t", joins=(Join(table="j", on=(On(left="k", right="k"),), columns=("v",)),))
    assert column(source, "v", "int64") == ([1, None, None], {})
    execute(url, "ALTER TABLE j MODIFY k VARCHAR(5) COLLATE utf8mb4_general_ci", "INSERT INTO j VALUES ('A', 2)")
    with pytest.raises(DataError, match=r"table 'j' has several rows with k = \('a',\); a join needs one"):
        column(source, "v", "int64")


VALUES = {  # kind -> what is written, the type declared, and what is read, or why it is refused
    "DOUBLE": ([1e-12, 0.1, 1.7976931348623157e308], "float64", [1e-12, 0.1, 1.7976931348623157e308]),
    "FLOAT": ([0.1, 16777217], "float64", [0.1, 16777200.0]),  # as the server shows it
    "BIT(1)": ([0, 1], "bool", [False, True]), "BIT(9)": ([300], "int64", [300]),
    "TINYINT(1)": ([0, 1], "bool", [False, True]),
    "TIME(6)": (["-26:00:01.5", "26:00:00", "01:02:03"], "string", ["-26:00:01.500000", "26:00:00", "01:02:03"]),
    "SET('b', 'a', 'c')": (["a,c,b", ""], "string", ["b,a,c", ""]), "ENUM('x', 'y')": (["x"], "string", ["x"]),
    "JSON": (['{"b": 1, "a": [2]}'], "string", ['{"b": 1, "a": [2]}']), "YEAR": ([2024], "int64", [2024]),
    "BIGINT UNSIGNED": ([1, (1 << 64) - 1], "int64", "18446744073709551615 is not int64"),
    "DECIMAL(65, 30)": (["0.1", "1e20"], "float64", [0.1, 1e20]),
    "DATE": (["1000-01-01"], "timestamp", [dt.datetime(1000, 1, 1, tzinfo=dt.UTC)]),
    "DATE NOT NULL": (["2024-02-29", "0000-00-00"], "timestamp", "'0000-00-00' is not timestamp"),
    "DATETIME": (["2024-02-29", "2024-00-00 00:00:00"], "timestamp", "'2024-00-00 00:00:00' is not timestamp"),
    "VARBINARY(9)": ([b"ab"], "string", "b'ab' is not string"), "CHAR(5) CHARACTER SET latin1": (["é"], "string", ["é"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("form", ["table", "query"])
def test_values_come_as_the_database_shows_them(url, kind, form):
    written, declared, wanted = VALUES[kind]
    insert(url, {"v": kind}, [(value,) for value in written])
    source = SqlSource(url=url, table="t") if form == "table" else SqlSource(url=url, query="SELECT * FROM t")
    found, bad = column(source, "v", declared)
    if isinstance(wanted, str):
        assert bad == {len(written) - 1: f"column 'v': {wanted}"}
    else:
        assert (found, bad) == (wanted, {})
        assert not any(isinstance(v, float) and math.isinf(v) for v in found)


def test_odd_names_are_quoted_and_a_query_is_sent_as_it_is_written(url):
    name = 'order "%:x'
    execute(url, 'CREATE TABLE `sel``ect %%` (`order "%%:x` INT, `Group` INT)', "INSERT INTO `sel``ect %%` VALUES (1, 2)")
    assert column(SqlSource(url=url, table="sel`ect %"), name, "int64") == ([1], {})
    query = r"SELECT 'a:b % \\:c %(x)s' AS s, `Group` FROM `sel``ect %`; -- done".replace("; --", " --")
    assert column(SqlSource(url=url, query=query), "s", "string") == ([r"a:b % \:c %(x)s"], {})
    execute(url, "CREATE SEQUENCE counted")
    with pytest.raises(DataError, match=r"the query: .*READ ONLY transaction"):
        column(SqlSource(url=url, query="SELECT NEXTVAL(counted) AS s"), "s", "string")


# ---- ranges ------------------------------------------------------------------------------------------------------------


def ids_of(source: SqlSource, chunk_rows: int) -> list[list]:
    ranged = sources.planned(source, chunk_rows, lambda tasks: {name: task() for name, task in tasks.items()})
    parts = sources.parts(ranged, ["id"], chunk_rows)
    return [[i for chunk in ranges.read(ranged, part, [ID], chunk_rows) for i in chunk.columns["id"]] for part in parts]


def test_ranges_hold_every_row_once(url, monkeypatch):
    """Of a primary key, and of a column with nulls and equal values in a table, a view and a query."""
    monkeypatch.setattr(ranges, "PART_CHUNKS", 1)
    rows = [(i - 5, None if i % 7 == 0 else i // 3 * (1 << 40)) for i in range(100)]
    insert(url, {"id": "BIGINT PRIMARY KEY", "g": "BIGINT UNSIGNED"}, rows)
    execute(url, "CREATE VIEW v AS SELECT * FROM t")
    table = SqlSource(url=url, table="t")
    assert [len(ids) for ids in ids_of(table, 10)] == [10] * 10
    for source in (table, SqlSource(url=url, table="v"), SqlSource(url=url, query="SELECT * FROM t")):
        found = ids_of(dataclasses.replace(source, cut_by="g"), 10)
        assert sorted(i for ids in found for i in ids) == [i - 5 for i in range(100)]
        assert len(found) > 5
        assert {i - 5 for i in range(0, 100, 7)} <= set(found[0])


def test_a_reader_that_stops_early_does_not_wait_for_all_rows(url):
    """The driver would read them all before it lets the connection go."""
    numbered_table(url, 400_000)
    rows = sources.chunks(SqlSource(url=url, table="t"), ["id", "x"], 100)
    next(rows)
    began = time.monotonic()
    rows.close()
    assert time.monotonic() - began < 1.0


def test_init_takes_a_url(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    insert(
        url, {"id": "INT PRIMARY KEY", "size": "DOUBLE", "city": "VARCHAR(9)", "price": "DOUBLE"},
        [(i, i % 17 * 1.5, "ab"[i % 2], i % 17 * 3 + i % 2 / 7) for i in range(600)],
    )  # fmt: skip
    assert cli.run(["init", url, "--target", "price", "--name", "mine"]) == 0, capsys.readouterr().err
    text = Path("configs/mine.py").read_text()
    assert f'url="{url}"' in text
    assert PASSWORD not in text


# ---- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, told", [
    ({"password": "wrong"}, "Access denied for user"), ({"database": "nope"}, "Unknown database 'nope'"),
    ({"port": 1}, "Can't connect to MySQL server"), ({"kind": "mysql+nodriver"}, "install mlprod[mysql]"),
])  # fmt: skip
def test_what_is_wrong_at_the_start_is_told_without_the_password(url, port, tmp_path, wrong, told, monkeypatch):
    monkeypatch.setenv("DBPW", wrong.get("password", PASSWORD))
    source = SqlSource(url=url_of(**{"port": port} | {k: v for k, v in wrong.items() if k != "password"}), table="t")
    with pytest.raises(DataError) as caught:
        build(config(tmp_path, source))
    assert told in str(caught.value)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    assert PASSWORD not in str(caught.value)


def test_credentials_may_stand_in_the_drivers_own_file(url, port, tmp_path):
    """Not in the URL, and so nowhere in the dataset."""
    numbered_table(url, 40)
    (tmp_path / "my.cnf").write_text(f"[client]\nuser={USER}\npassword={PASSWORD}\n")
    source = SqlSource(url=f"mysql://127.0.0.1:{port}/rows?read_default_file={tmp_path}/my.cnf", table="t")
    build(config(tmp_path, source))
    left = [path for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
    assert left
    assert not any(PASSWORD.encode() in path.read_bytes() for path in left)


@pytest.fixture
def wide(url) -> str:
    """A table of five parts of 300 rows, each above a megabyte."""
    numbered_table(url, 1500)
    execute(url, "ALTER TABLE t ADD COLUMN s TEXT", "UPDATE t SET s = repeat('x', 4000 + MOD(id, 9))")
    return url


def cut_config(folder: Path, port: int, **more) -> Config:
    source = SqlSource(url=url_of(port), table="t", watermark="id", **more)
    return config(folder, source, ID, numeric("x"), categorical("s"), chunk_rows=75, workers=1)


def counted(monkeypatch, proxy: Proxy | None = None, breaks_at: int = -1, cuts: int = 0) -> tuple[list, list]:
    """Returns (ranges begun, ranges done); from the one numbered `breaks_at` on, `cuts` of the proxy's connections are cut."""
    read, begun, done = ranges.read, [], []

    def reading(ranged, part, *args):
        if proxy is not None and len(begun) == breaks_at:
            proxy.cuts = cuts
        begun.append(part.low)
        yield from read(ranged, part, *args)
        done.append(part.low)

    monkeypatch.setattr(sources, "read", reading)
    return begun, done


def test_a_connection_that_breaks_once_costs_its_range_only(wide, port, tmp_path, monkeypatch):
    wanted = build(cut_config(tmp_path / "whole", port))[0]
    proxy = Proxy(port, after=300_000)
    begun, done = counted(monkeypatch, proxy, breaks_at=2, cuts=1)
    made = build(cut_config(tmp_path / "cut", proxy.port))[0]
    proxy.close()
    assert (made.dataset_id, made.splits) == (wanted.dataset_id, wanted.splits)
    assert begun == [None, 300, 600, 600, 900, 1200]
    assert done == [None, 300, 600, 900, 1200]


def test_a_connection_that_stays_broken_ends_with_75_and_the_next_attempt_goes_on(wide, port, tmp_path, capsys, monkeypatch):
    wanted = build(cut_config(tmp_path / "whole", port))[0]
    proxy = Proxy(port, after=300_000)
    _, done = counted(monkeypatch, proxy, breaks_at=2, cuts=-1)
    cfg = cut_config(tmp_path / "cut", proxy.port)
    with pytest.raises(ConnectionLost, match="the same command goes on") as caught:
        build(cfg)
    assert caught.value.exit_code == 75
    assert PASSWORD not in str(caught.value)
    work = next((tmp_path / "cut" / "dataset" / "work").glob("*/*/cut/cuts.json"))
    assert json.loads(work.read_text())["cuts"] == list(range(300, 1500, 300))
    proxy.cuts = 0
    assert build(cfg)[0].dataset_id == wanted.dataset_id
    assert done == [None, 300, 600, 900, 1200]
    assert "3 task(s) had been done by an attempt before" in capsys.readouterr().err
    proxy.close()


def test_a_server_that_stops_answering_ends_with_75(wide, port, tmp_path, monkeypatch):
    """In the middle of a range, on a connection that stays open; at the start with exit code 2."""
    with contextlib.closing(Proxy(port, after=300_000, silent=True)) as proxy:
        counted(monkeypatch, proxy, breaks_at=2, cuts=-1)
        began = time.monotonic()
        with pytest.raises(ConnectionLost, match=r"timed out|gave nothing"):
            build(cut_config(tmp_path / "cut", proxy.port, timeout_s=1.0))
        assert time.monotonic() - began < 2 * 3 * 1.0 + 15  # two tasks were begun, each three times; a machine may be slow
    with contextlib.closing(Proxy(port, after=1, cuts=-1, silent=True)) as proxy:
        with pytest.raises(DataError, match=r"127\.0\.0\.1") as caught:
            build(cut_config(tmp_path / "start", proxy.port, timeout_s=1.0))
        assert caught.value.exit_code == 2


def test_a_server_that_shuts_down_is_worth_another_attempt(tmp_path, monkeypatch):
    monkeypatch.setenv("DBPW", PASSWORD)
    with server() as port:
        execute(url_of(port, database=""), "CREATE DATABASE `rows`")
        numbered_table(url_of(port), 200_000)
        rows = sql.sql_chunks(SqlSource(url=url_of(port), table="t"), ["id", "x", "y"], 10)
        next(rows)
    with pytest.raises(ConnectionLost):
        list(rows)
