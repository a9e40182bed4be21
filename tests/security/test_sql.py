"""Names and values that would be SQL stay names and values, in SQLite and in DuckDB; without the guards they are seen to act.

The guards: a name is looked up, and quoted; a value is bound or, in a text that is sent to DuckDB, escaped.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlprod.config import Join, On, SqlSource
from mlprod.errors import DataError
from mlprod.etl import duckdb_files, sql
from tests.security.bounds import bounded

duckdb = pytest.importorskip("duckdb")
SECRET = "of another table"
TABLES = (
    "(SELECT id, secret AS note FROM s)", "(SELECT 1 AS id, secret AS note FROM s)", "(SELECT t.id, secret AS note FROM t, s)",
    "(SELECT id, max(secret) AS note FROM s GROUP BY id)", "(SELECT id, day || (SELECT secret FROM s) AS note FROM t)",
    "(WITH x AS (SELECT * FROM s) SELECT id, secret AS note FROM x)", "(SELECT s.id, secret AS note FROM s CROSS JOIN t)",
    "(SELECT id, secret AS note FROM s UNION SELECT 8, 'x')", 's" AS x ON t.id = x.id JOIN "kept',
)  # fmt: skip
COLUMNS = (
    "id || (SELECT secret FROM s)", "id || (SELECT max(secret) FROM s)", "id || (SELECT min(secret) FROM s) || id",
    "id FROM wide UNION ALL SELECT (SELECT secret FROM s)", "id FROM wide UNION ALL SELECT secret FROM s UNION ALL SELECT id",
    "id FROM wide WHERE 1=0 UNION ALL SELECT (SELECT secret FROM s)", "id || secret FROM wide, s UNION ALL SELECT id",
    "id /* */ || (SELECT secret FROM s)", 'id" || (SELECT secret FROM s) || "id',
)  # fmt: skip
VALUES = (
    "z' OR '1'='1", "z' OR 1=1 --", "z' UNION SELECT secret FROM s --", "z' OR day LIKE '%", "z' OR day < 'b",
    "z' OR EXISTS (SELECT * FROM s) --", "z' OR id IN (1, 2) --", "z' OR (SELECT secret FROM s) LIKE '%table",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database whose tables and columns somebody has called so. Shared: do not change it."""
    file = tmp_path_factory.mktemp(request.param) / "rows.db"
    wide = ", ".join(f"{quoted(name)} TEXT" for name in COLUMNS)
    with closing((sqlite3 if request.param == "sqlite" else duckdb).connect(file)) as there:
        there.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, day TEXT)")
        there.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        there.execute("CREATE TABLE s (id INTEGER PRIMARY KEY, secret TEXT)")
        there.execute(f"INSERT INTO s VALUES (1, '{SECRET}')")
        there.execute("CREATE TABLE kept AS SELECT id, secret AS note FROM s")
        there.execute(f"CREATE TABLE wide (id INTEGER PRIMARY KEY, {wide})")
        there.execute(f"INSERT INTO wide VALUES (9{', ?' * len(COLUMNS)})", ["plain"] * len(COLUMNS))
        for name in TABLES:
            there.execute(f"CREATE TABLE {quoted(name)} (id INTEGER PRIMARY KEY, note TEXT)")
            there.execute(f"INSERT INTO {quoted(name)} VALUES (1, 'plain')")
        there.commit()
    return f"{request.param}:///{file}"


def quoted(name: str) -> str:
    """Returns a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def joined(url: str, table: str) -> SqlSource:
    """A source that joins a table."""
    return SqlSource(url=url, table="t", joins=(Join(table=table, on=(On(left="id", right="id"),), columns=("note",)),))


def read(source: SqlSource, name: str) -> list[Any]:
    """Returns a column."""
    return [value for chunk in sql.sql_chunks(source, [name], 10) for value in chunk.columns[name]]


@pytest.fixture
def unquoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are put into a query as they are, or between quotes that they may close themselves."""

    def pasted(preparer: Any, name: str, force: Any = None) -> str:
        return f'"{name}"' if '"' in name else name

    monkeypatch.setattr(sa.sql.compiler.IdentifierPreparer, "quote", pasted)
    monkeypatch.setattr(sql, "check_joins", lambda connection, tables, source: None)  # it names a table twice


@pytest.fixture
def not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a config names is taken to be there."""

    def tables(connection: sa.Connection, source: SqlSource) -> dict[str, Any]:
        names = [source.table, *(join.table for join in source.joins)]
        return {name: sa.Table(name, sa.MetaData(), *map(sa.Column, ("id", "note", *NOT_THERE))) for name in names}

    monkeypatch.setattr(sql, "_reflect", tables)
    monkeypatch.setattr(sql, "check_joins", lambda connection, tables, source: None)


NOT_THERE = [f"{name} " if '"' not in name else name.replace("||", "  ||") for name in COLUMNS]


@pytest.mark.parametrize("name", [f"{name} " if '"' not in name else name.replace("AS", " AS") for name in TABLES])
def test_a_table_that_is_not_there(name: str, url: str, request: pytest.FixtureRequest) -> None:
    """It is looked up; else it is the database that does not find it, and unquoted it is a part of the query."""
    with pytest.raises(DataError, match="has no table") as told, bounded():
        read(joined(url, name), "note")
    assert told.value.exit_code == 2
    request.getfixturevalue("not_looked_up")
    with pytest.raises(DataError, match=r"no such table|does not exist"):
        read(joined(url, name), "note")
    request.getfixturevalue("unquoted")
    assert SECRET in str(read(joined(url, name), "note"))


@pytest.mark.parametrize("name", NOT_THERE)
def test_a_column_that_is_not_there(name: str, url: str, request: pytest.FixtureRequest) -> None:
    """As a table."""
    source = SqlSource(url=url, table="wide")
    with pytest.raises(DataError, match="column") as told, bounded():
        read(source, name)
    assert told.value.exit_code == 2
    request.getfixturevalue("not_looked_up")
    request.getfixturevalue("unquoted")
    assert SECRET in str(read(source, name))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_called_so(name: str, url: str, request: pytest.FixtureRequest) -> None:
    """Whoever made the database did: its own rows are read; unquoted it gives those of another table."""
    with bounded():
        assert set(read(joined(url, name), "note")) == {"plain", None}
    request.getfixturevalue("unquoted")
    assert SECRET in str(read(joined(url, name), "note"))


@pytest.mark.parametrize(
    "url, name", [*(("sqlite", name) for name in COLUMNS), *(("duckdb", name) for name in COLUMNS[::4])], indirect=["url"]
)
def test_a_column_that_is_called_so(name: str, url: str, request: pytest.FixtureRequest) -> None:
    """As a table."""
    source = SqlSource(url=url, table="wide")
    with bounded():
        assert read(source, name) == ["plain"]
    request.getfixturevalue("unquoted")
    assert SECRET in str(read(source, name))


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_no_sql(value: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared as it is; pasted into the query it gives rows that the filter keeps back."""
    source = SqlSource(url=url, table="t", watermark="day", start=value)
    with bounded():
        assert read(source, "day") == []
    monkeypatch.setattr(sql, "_bound", lambda column, name, text, field: sa.literal_column(f"'{text}'"))
    assert read(source, "day") != []


@pytest.mark.parametrize("url", ["duckdb"], indirect=True)
@pytest.mark.parametrize("value", [*VALUES[::3], "z'; COPY s TO 'taken.csv'; SELECT 'x"])
def test_a_value_in_a_text_that_is_sent(value: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To DuckDB, which would do several statements of one text."""
    monkeypatch.chdir(tmp_path)
    source = SqlSource(url=url, table="t", watermark="day", start=value)

    def sent() -> list[Any]:
        with sql.opened(source) as (connection, tables):
            text = duckdb_files.sent(sql.statement(tables, source, ["day"]), connection.engine)
            found: list[Any] = duckdb_files._native(connection).sql(text).fetchall()
            return found

    with bounded():
        assert sent() == []
    assert not Path("taken.csv").exists()
    monkeypatch.setattr(sa.String, "literal_processor", lambda kind, dialect: lambda text: f"'{text}'")
    assert sent() != []
    assert Path("taken.csv").exists() == ("COPY" in value)
