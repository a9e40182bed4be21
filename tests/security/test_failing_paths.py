"""No error tells a value of a sensitive column, or a secret: whatever goes wrong, with `--debug` too, nothing is left of them."""

import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from mlprod import cli
from mlprod.etl import extract
from tests.security import planted
from tests.security.canaries import Finder, files
from tests.security.planted import BORN, MAIL, MOST, NOTE, SERIAL, WHO

Capture = pytest.CaptureFixture[str]
FINDER = Finder({**planted.ROWS, **planted.SECRETS, "bad": "kanari-bad", "word": "kanari-word"})
Make = Callable[[Path], object]
# Of a dataset: what is made of rows, and what a build has done when it ends early. Its report and the bad rows are no part of it.
ROWS = tuple(f"dataset/{folder}/" for folder in ("features", "files", "work"))


@dataclass(frozen=True)
class Case:
    """What is wrong, and how it ends. `told`: what the error says all the same."""

    change: str = ""  # of the config
    rows: dict[tuple[int, str], str] = field(default_factory=dict)
    more: str = ""
    head: str = ""
    make: Make = lambda here: None  # other files
    told: str = ""
    code: int = 2
    verb: tuple[str, ...] = ("etl",)


def rule(text: str) -> str:
    """Returns the change that sets rules."""
    return f"cfg.etl.rules = ({text},)"


def tables(here: Path, *more: str) -> None:
    """Writes the rows as a table of SQLite, and does more to it."""
    with closing(sqlite3.connect(here / "rows.db")) as database:
        kinds = dict.fromkeys(planted.HEADER.split(","), "TEXT") | {
            "age": "REAL",
            "serial": "BIGINT",
            "x": "REAL",
            "y": "INTEGER",
        }
        database.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {', '.join(f'{n} {k}' for n, k in kinds.items())})")
        for i in range(60):
            database.execute(f"INSERT INTO t VALUES ({i}, {', '.join('?' * len(kinds))})", planted.cells(i))
        for statement in more:
            database.execute(statement)
        database.commit()


def parquet(here: Path, **changed: list[object]) -> None:
    """Writes the rows as Parquet; `changed`: {column: values, which come again}."""
    table = pa.csv.read_csv(here / "rows.csv")
    for name, values in changed.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array((values * 60)[:60]))
    pq.write_table(table, here / "rows.parquet")


def json_lines(here: Path, *lines: str) -> None:
    """Writes the rows as JSON lines, and other lines behind them."""
    names = planted.HEADER.split(",")
    rows = [json.dumps(dict(zip(names, planted.cells(i), strict=True))) for i in range(60)]
    (here / "rows.jsonl").write_text("\n".join([*rows, *lines]) + "\n")


def duck(here: Path) -> None:
    """Writes the rows as a table of DuckDB."""
    with duckdb.connect(str(here / "rows.duckdb")) as database:
        database.execute(f"CREATE TABLE t AS FROM read_csv('{here / 'rows.csv'}', all_varchar = true)")


SQL = "cfg.etl.source = SqlSource(url='sqlite:///rows.db', table='t'{})"
HIDDEN = "a value (hidden: the column is sensitive)"
HOOK = """
import pandas as pd
def hook(rows):
    {}
"""
DERIVED = "cfg.etl.columns = (*cfg.etl.columns, Column(name='d', type='{}', derived=True, role='{}'))\ncfg.etl.transform = hook"
CASES = {
    # values of another type
    "text for a number": Case(rows={(3, "age"): "kanari-bad"}, told=f"rows.csv line 5: column 'age': {HIDDEN} is not float64"),
    "nearly a number": Case(rows={(3, "age"): f"{MOST}x"}, told=f"line 5: column 'age': {HIDDEN}"),
    "text for a whole number": Case(rows={(3, "serial"): f"{SERIAL}.5"}, told=f"line 5: column 'serial': {HIDDEN} is not int64"),
    "too large": Case(rows={(3, "serial"): f"{SERIAL}" * 4}, told=f"column 'serial': {HIDDEN}"),
    "text for a time": Case(rows={(3, "born"): f"{BORN}T99 kanari-bad"}, told=f"line 5: column 'born': {HIDDEN}"),
    "a NUL": Case(rows={(3, "mail"): f"{MAIL}\0"}, told=f"line 5: column 'mail': {HIDDEN}"),
    "beyond float32": Case(rows={(3, "age"): "7e300"}, told="column 'age' has a value beyond"),
    "missing": Case("with_column(cfg, 'mail', missing='refuse')", {(3, "mail"): ""}, told="column 'mail' has 1 missing"),
    "left out": Case("cfg.etl.bad_rows = 'drop'", {(3, "age"): "kanari-bad"}, code=0),
    "written down": Case("cfg.etl.bad_rows = 'quarantine'", {(3, "age"): "kanari-bad", (9, "born"): "kanari-bad"}, code=0),
    "all of them left out": Case("cfg.etl.bad_rows = 'drop'\nwith_column(cfg, 'who', type='int64')", told="none of the 60 rows"),
    "too many bad": Case("cfg.etl.bad_rows = 'drop'; cfg.etl.most_bad = 0.01", {(3, "age"): "kanari-bad"}, told="most_bad"),
    # lines
    "too few fields": Case(more=f"{WHO}-77,{MAIL}\n", told="line 62: has 2 fields"),
    "too many fields": Case(more=",".join(planted.cells(0)) + f",{MAIL}\n", told="line 62: has 10 fields"),
    "an open quote": Case(more=f'"{WHO}-77,{MAIL}\n', told="line 62"),
    "no UTF-8": Case(
        make=lambda here: (here / "rows.csv").write_bytes(f"{planted.HEADER}\n{WHO},{MAIL}\xff\n".encode("latin-1"))
    ),
    "no header": Case(make=lambda here: (here / "rows.csv").write_text("\n".join(",".join(planted.cells(i)) for i in range(9)))),
    "another delimiter": Case("cfg.etl.source.delimiter = ';'", told="has no column"),
    # rules
    "within": Case(rule("Within(column='age', high='1500000')"), told=f"line 3: column 'age': {HIDDEN}, not so: age to 1500000"),
    "within, no number": Case(
        rule("Within(column='age', high='x')"), told="'age' is float64, and what the config compares it with is not"
    ),
    "within, a time": Case(rule("Within(column='born', low='1950-01-01')"), told=f"column 'born': {HIDDEN}"),
    "one of": Case(rule("OneOf(column='note', values=('a', 'b'))"), told=f"column 'note': {HIDDEN}"),
    "one of what stands there": Case(
        rule("OneOf(column='note', values=('kanari-word', 'b'))"),
        told=f"column 'note': {HIDDEN}, not so: note is one of",
    ),
    "matches": Case(
        rule("Matches(column='mail', pattern='[0-9]+')"), told=f"column 'mail': {HIDDEN}, not so: mail matches [0-9]+"
    ),
    "there": Case(rule("NotNull(column='mail')"), {(3, "mail"): ""}, told="line 5: not so: mail is there"),
    "holds": Case(rule("Holds(expression='age < 1500000')"), told="line 3: not so: age < 1500000"),
    "holds not, it raises": Case(rule("""Holds(expression="mail.astype('float64') > 1")"""), told="expression="),
    "holds not, of other types": Case(rule("Holds(expression='mail > age')"), told="expression="),
    "gives no truth": Case(rule("Holds(expression='mail + note')"), told="expression="),
    "a key twice": Case(rule("UniqueKey()"), {(3, "who"): f"{WHO}-2"}, told=f"key who {HIDDEN}"),
    "rows that break a rule are left out": Case(rule("Within(column='age', high='1500000', otherwise='drop')"), code=0),
    "too many break a rule": Case(rule("Within(column='age', high='1500000', otherwise='drop', most=0.01)"), told="break a rule"),
    "rows that break a rule are written down": Case(
        rule("Within(column='age', high='1500000', otherwise='quarantine'), UniqueKey(otherwise='quarantine')"),
        {(3, "who"): f"{WHO}-2"},
        code=0,
    ),
    # the hook
    "the hook raises": Case(
        DERIVED.format("int64", "input"),
        head=HOOK.format("return pd.DataFrame({'d': rows['mail'].astype('int64')})"),
        told="config.etl.transform=hook failed: ValueError",
    ),
    "the hook has no such key": Case(
        DERIVED.format("int64", "input"),
        head=HOOK.format("return pd.DataFrame({'d': rows['mail'].map(lambda m: {}[m])})"),
        told="config.etl.transform=hook failed: KeyError",
    ),
    "the hook raises of another error": Case(
        DERIVED.format("int64", "input"),
        told="config.etl.transform=hook failed: RuntimeError",
        head=HOOK.format("\n    try: float(rows['mail'].iloc[0])\n    except ValueError as e: raise RuntimeError('no') from e"),
    ),
    "the hook in another process raises": Case(
        DERIVED.format("int64", "input") + "\ncfg.etl.executor = 'processes'; cfg.etl.workers = 1",
        head=HOOK.format("\n    if len(rows) > 50: int(rows['mail'].iloc[0])\n    return pd.DataFrame({'d': rows['x'] > 0})"),
    ),
    "the hook makes another type": Case(
        DERIVED.format("int64", "input"),
        head=HOOK.format("return pd.DataFrame({'d': rows['mail']})"),
        told="config.etl.transform",
    ),
    "the hook is not row-wise": Case(
        DERIVED.format("int64", "input"),
        head=HOOK.format("return pd.DataFrame({'d': range(len(rows))})"),
        told="not row-wise",
    ),
    # files of other kinds
    "text for a number in Parquet": Case(
        "cfg.etl.source = ParquetSource(path='rows.parquet')",
        make=lambda here: parquet(here, age=["kanari-bad"]),
        told=f"rows.parquet row 1: column 'age': {HIDDEN}",
    ),
    "a list in Parquet": Case(
        "cfg.etl.source = ParquetSource(path='rows.parquet')",
        make=lambda here: parquet(here, age=[["kanari-bad"]]),
        told=HIDDEN,
    ),
    "torn Parquet": Case(
        "cfg.etl.source = ParquetSource(path='rows.parquet')",
        make=lambda here: (parquet(here), os.truncate(here / "rows.parquet", 3000)),
        told="rows.parquet",
    ),
    "no JSON": Case(
        "cfg.etl.source = JsonLinesSource(path='rows.jsonl')",
        make=lambda here: json_lines(here, f'{{"who": {WHO}}}'),
        told="no JSON",
    ),
    "JSON of another shape": Case(
        "cfg.etl.source = JsonLinesSource(path='rows.jsonl')",
        make=lambda here: json_lines(here, json.dumps({"who": [WHO], "age": {"a": MAIL}})),
        told=HIDDEN,
    ),
    # other tables
    "a lookup with a key twice": Case(
        "cfg.etl.lookups = (Lookup(path='more.csv', key='note', columns={'seats': 'seats'}),)\n"
        "cfg.etl.columns = (*cfg.etl.columns, numeric('seats'))",
        told="more.csv has several rows",
        make=lambda here: (here / "more.csv").write_text(f"note,seats\n{NOTE},1\n{NOTE},2\n"),
    ),
    "a lookup with a bad value": Case(
        "cfg.etl.lookups = (Lookup(path='more.csv', key='note', columns={'seats': 'seats'}),)\n"
        "cfg.etl.columns = (*cfg.etl.columns, numeric('seats', sensitive=True))",
        told="more.csv line 2",
        make=lambda here: (here / "more.csv").write_text(f"note,seats\n{NOTE},kanari-bad\n"),
    ),
    "what was so at a time, twice": Case(
        "cfg.etl.gathered = (join_as_of(CsvSource(path='more.csv'), by='note', time='born', columns=('seats',)),)\n"
        "cfg.etl.columns = (*cfg.etl.columns, numeric('seats'))",
        told="config.etl.gathered",
        make=lambda here: (here / "more.csv").write_text(f"note,born,seats\n{NOTE},{BORN},1\n{NOTE},{BORN},2\n"),
    ),
    "a history with the separator": Case(
        "cfg.etl.gathered = (histories(by='note', order='born', max_len=3, columns={'h': 'mail'}),)\n"
        "cfg.etl.columns = (*cfg.etl.columns, multivalued('h', max_len=3, separator='-', sensitive=True))",
        told="separator",
    ),
    "a history of what is sensitive": Case(
        "cfg.etl.gathered = (histories(by='note', order='born', max_len=3, columns={'h': 'mail'}),)\n"
        "cfg.etl.columns = (*cfg.etl.columns, multivalued('h', max_len=3))",
        told="sensitive=True",
    ),
    "a cross of what is sensitive": Case(
        "cfg.etl.columns = (*cfg.etl.columns, crossed('c', of=('town', 'note')))",
        told="sensitive=True",
    ),
    "keys to be forgotten": Case(
        "cfg.etl.exclude_keys = 'more.csv'",
        make=lambda here: (here / "more.csv").write_text(f"who,x\n{WHO}-1\n"),
        told="more.csv",
    ),
    "every key to be forgotten": Case(
        "cfg.etl.exclude_keys = 'more.csv'",
        told="leaves out every row",
        make=lambda here: (here / "more.csv").write_text("who\n" + "".join(f"{WHO}-{i}\n" for i in range(60))),
    ),
    # splits
    "a split without training rows": Case(
        f"cfg.etl.split = ByColumn(column='note', eval=({', '.join(repr(f'{NOTE} {i}') for i in range(5))},))",
        told="no training rows",
    ),
    "a split by no time": Case("cfg.etl.split = ByTime(column='born', eval='kanari-bad')", told="config.etl.split"),
    # databases
    "a bad value of SQLite": Case(
        SQL.format(""),
        make=lambda here: tables(here, "UPDATE t SET age = 'kanari-bad' WHERE id = 7"),
        told=f"column 'age': {HIDDEN}",
    ),
    "a bad time that the driver refuses": Case(
        SQL.format("").replace("'t'", "'u'"),
        told="the driver cannot read a value",
        make=lambda here: tables(
            here,
            "CREATE TABLE u (who TEXT, mail TEXT, town TEXT, note TEXT, age REAL, serial BIGINT, born DATETIME, x REAL, y INT)",
            f"INSERT INTO u SELECT who, mail, town, note, age, serial, '{BORN} kanari-bad', x, y FROM t",
        ),
    ),
    "a joined key twice": Case(
        SQL.format(", joins=(Join(table='m', on=(On(left='note', right='note'),), columns=('seats',)),)")
        + "\ncfg.etl.columns = (*cfg.etl.columns, numeric('seats'))",
        told="table 'm' has several rows with",
        make=lambda here: tables(
            here, "CREATE TABLE m (note TEXT, seats INT)", f"INSERT INTO m VALUES ('{NOTE}', 1), ('{NOTE}', 2)"
        ),
    ),
    "cut by what is sensitive": Case(
        SQL.format(", cut_by='serial'") + "\ncfg.etl.chunk_rows = 2\nwith_column(cfg, 'x', type='int64')",
        make=lambda here: tables(here, f"UPDATE t SET serial = {SERIAL} + (id > 30)"),
        told="of 3 by serial: column 'x': ",
    ),
    "cut by a text": Case(SQL.format(", cut_by='mail'"), make=tables, told="holds a str, no integer"),
    "a query that fails on a value": Case(
        "cfg.etl.source = SqlSource(url='sqlite:///rows.db', query=\"SELECT *, json_extract(mail, '$.a') AS j FROM t\")\n"
        "cfg.etl.columns = (*cfg.etl.columns, numeric('j', type='int64'))",
        make=tables,
        told="malformed JSON",
    ),
    "a query with a mistake": Case(
        "cfg.etl.source = SqlSource(url='sqlite:///rows.db', query=\"SELECT * FROM t WHERE nope = 'kanari-word'\")",
        make=tables,
        told="no such column",
    ),
    "a watermark of another type": Case(
        SQL.format(", watermark='serial', start='kanari-word'"), make=tables, told="config.etl.source.start is not"
    ),
    "a query of DuckDB that fails on a value": Case(
        "cfg.etl.source = SqlSource(url='duckdb:///rows.duckdb', query='SELECT *, CAST(mail AS INTEGER) AS j FROM t')\n"
        "cfg.etl.columns = (*cfg.etl.columns, numeric('j', type='int64'))",
        make=duck,
        told="the database refused a value",
    ),
    # secrets
    "a dialect that is not there": Case(
        "cfg.etl.source = SqlSource(url='nodialect://bob:$DB_PASSWORD@h/x', table='t')", told="bob"
    ),
    "a whole URL in a variable": Case("cfg.etl.source = SqlSource(url='$DB_URL', table='t')", told="$DB_URL"),
    "a port that is none": Case(
        "cfg.etl.source = SqlSource(url='postgresql://bob:$SOME_SECRET@h:a$SOME_SECRET/x', table='t')", told="the port"
    ),
    "nobody there": Case(
        "cfg.etl.source = SqlSource(url='postgresql://bob:$DB_PASSWORD@127.0.0.1:1/x?sslpassword=$DB_OPTION', table='t')",
        told="refused",
    ),
    "nobody there, MySQL": Case(
        "cfg.etl.source = SqlSource(url='mysql://bob:$DB_PASSWORD@127.0.0.1:1/x', table='t')",
        told="Can't connect",
    ),
    "an option that is none": Case(
        "cfg.etl.source = SqlSource(url='postgresql://bob:$DB_PASSWORD@127.0.0.1:1/x?password=$DB_OPTION&nope=1', table='t')",
    ),
    "a password in the config": Case(f"cfg.etl.source = SqlSource(url='postgresql://bob:{planted.TOKEN}@h/x', table='t')"),
    "a password on the command line": Case(verb=("etl", f"--config.etl.source.url=postgresql://bob:{planted.TOKEN}@h/x")),
    "a password in a field that is none": Case(verb=("etl", f"--config.etl.source.ur=postgresql://bob:{planted.TOKEN}@h/x")),
    "a password in a word": Case(verb=("etl", f"postgresql://bob:{planted.TOKEN}@h/x"), told="is not understood"),
    "a password in an option": Case(verb=("etl", f"--input=postgresql://bob:{planted.TOKEN}@h/x"), told="there is no option"),
    "a password to another verb": Case(
        verb=("predict", f"--input=postgresql://bob@h/x?password={planted.TOKEN}", "--output=o.parquet")
    ),
    "a password in a dataset": Case(verb=("data", "ls", f"--config.dataset=s3://k:{planted.TOKEN}@bucket/x")),
    "a config that raises": Case(head=f"raise RuntimeError('postgresql://bob:{planted.TOKEN}@h/x')", told="RuntimeError"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, the rows beside it."""
    for name, value in planted.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leaks(here: Path, told: str, mine: set[str]) -> set[str]:
    """Returns what was found in what was printed, and in what is left but the user's own files and the dataset's rows."""
    found = {f"{f.canary} as {f.form} in what was printed" for f in FINDER.in_bytes("", told.encode())}
    for path in files(here):
        place = path.relative_to(here).as_posix()
        if place not in mine and not place.startswith(ROWS):
            found |= {f"{f.canary} as {f.form} in {f.place}" for f in FINDER.in_bytes(place, path.read_bytes())}
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_failure_tells_no_value(name: str, here: Path, capsys: Capture) -> None:
    """What is wrong, and where, is told all the same; with `--debug`, which prints the line that is told without it as well."""
    case = CASES[name]
    planted.write(here / "rows.csv", changed=case.rows, more=case.more)
    case.make(here)
    config = planted.write_config(here, case.change, case.head)
    mine = {path.name for path in here.iterdir()}
    capsys.readouterr()
    code = cli.run([*case.verb, "--config", str(config), "--debug"])
    out, err = capsys.readouterr()
    assert code == case.code, err
    assert case.told in (err.splitlines()[-1] if code == 2 else out + err), err
    assert leaks(here, out + err, mine) == set(), err


@pytest.mark.parametrize("sensitive", [True, False])
def test_what_nobody_foresaw(sensitive: bool, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is told by its type and its place; by its text too, where no column is sensitive."""

    def broken(*_: object) -> None:
        try:
            int(f"{MAIL}-1")
        except ValueError as error:
            raise KeyError(f"{WHO}-1") from error

    monkeypatch.setattr(extract, "_hashed", broken)
    planted.write(here / "rows.csv")
    off = "cfg.etl.columns = tuple(replace(c, sensitive=False) for c in cfg.etl.columns)"
    config = planted.write_config(here, "" if sensitive else off)
    assert cli.run(["etl", "--config", str(config)]) == 1
    told = capsys.readouterr().err
    assert {"ValueError", "KeyError"} <= set(re.findall(r"\w+Error", told)), told
    assert "in broken" in told
    assert {found.canary for found in FINDER.in_bytes("", told.encode())} == (set() if sensitive else {"key", "mail"})


def test_names_in_errors_of_databases_are_told(here: Path, capsys: Capture) -> None:
    """Which table or column is not there is no value."""
    tables(here)
    for query, told in (("SELECT nope FROM t", "no such column: nope"), ("SELECT * FROM nope", "no such table: nope")):
        source = f"cfg.etl.source = SqlSource(url='sqlite:///rows.db', query='{query}')"
        assert cli.run(["etl", "--config", str(planted.write_config(here, source))]) == 2
        assert told in capsys.readouterr().err
