"""Bad rows, damaged datasets, meshes that do not fit, folders that cannot be written: told in one line, before the first step."""

import dataclasses
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import pytest

from mlprod import cli, manifest, runtime
from mlprod.config import Config
from mlprod.train import train
from tests import rows
from tests.conftest import smoke_config
from tests.refused import argv, refused, write_recipe

Capture = pytest.CaptureFixture[str]
HEADER = rows.HEADER
LINES = [rows.row(i) for i in range(120)]
BAD_LINE = 5  # of the file, its header line 1


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts in an empty folder; what the recipe's relative paths name lies there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def csv_with(line: str) -> str:
    """The text of a CSV whose line 5 is `line`."""
    return "\n".join([HEADER, *LINES[: BAD_LINE - 2], line, *LINES[BAD_LINE - 1 :]]) + "\n"


def with_column(i: int, value: str) -> str:
    """The text of a CSV whose column `i` is `value` in every row."""
    cells = [row.replace('"a,b"', "ab").split(",") for row in LINES]
    return "\n".join([HEADER, *(",".join([*cell[:i], value, *cell[i + 1 :]]) for cell in cells)]) + "\n"


# ---- CSV files ---------------------------------------------------------------------------------------------------------

NO_FLOAT = "column 'x': {} is not float64; mend the value, or declare another type in config.etl.columns"
CSVS: dict[str, tuple[str, ...]] = {
    "text for a number": (csv_with("4,4,abc,3,red,1,1"), "rows.csv line 5: " + NO_FLOAT.format("'abc'")),
    "a fraction for an int": (csv_with("4,4,1,3.5,red,1,1"), "rows.csv line 5: column 'n': '3.5' is not int64"),
    "more than 64 bits": (
        csv_with("4,4,1,9223372036854775808,red,1,1"), "rows.csv line 5: column 'n': '9223372036854775808' is not int64",
    ),
    "infinity": (csv_with("4,4,inf,3,red,1,1"), "rows.csv line 5: column 'x': 'inf' is not"),
    "more than a float": (csv_with("4,4,-1e400,3,red,1,1"), "rows.csv line 5: column 'x': '-1e400' is not"),
    "text for a label": (csv_with("4,4,1,3,red,1,yes"), "rows.csv line 5: column 'y': 'yes' is not float64"),
    "a NUL": (csv_with("4,4,1,3,r\0d,1,1"), "rows.csv line 5: column 'color': 'r\\x00d' is not string"),
    "too few fields": (csv_with("4,4,1"), "rows.csv line 5", "has 3 fields, the header 7"),
    "too many fields": (csv_with("4,4,1,3,red,1,1,9"), "rows.csv line 5", "has 8 fields, the header 7"),
    "an open quote": (csv_with('4,4,1,3,"red,1,1'), "rows.csv line 5", "quotes"),
    "no file": ("", "rows.csv is empty; it must begin with a line of column names"),
    "blank lines": ("\n\n\n", "rows.csv is empty; it must begin with a line of column names"),
    "a header only": (HEADER, "the source has no rows; check config.etl.source"),
    "no header": ("\n".join(LINES), "rows.csv has no column 'id'; known: "),
    "another name": (HEADER.replace("color", "colour"), "rows.csv has no column 'color'; did you mean 'colour'?"),
    "no label": (HEADER.replace(",y", ""), "rows.csv has no column 'y'"),
    "a name twice": (csv_with(LINES[3]).replace("x,n", "x,x"), "rows.csv", "'x'", "twice"),
    "another delimiter": (
        csv_with(LINES[3]).replace(",", ";"), "rows.csv has no column 'id'; known: id;day;x;n;color;size;y; it has one column: ",
        "is config.etl.source.delimiter right?",
    ),
    "a feature without values": (
        with_column(2, ""), "column 'x' has no value in the training split; leave it out of config.etl.columns",
    ),
    "a category without values": (with_column(4, "NA"), "column 'color' has no value in the training split; leave it out"),
    "no label at all": (with_column(6, ""), "none of the 120 rows has a value in config.etl.label.column='y'"),
    "only positives": (with_column(6, "1"), "every training row has label 1: config.etl.label says y > 0.5; choose a threshold"),
    "only negatives": (with_column(6, "0"), "every training row has label 0: config.etl.label says y > 0.5; choose a threshold"),
}  # fmt: skip


@pytest.mark.parametrize("text, fragments", [(t, f) for t, *f in CSVS.values()], ids=list(CSVS))
def test_a_csv_that_is_refused(text: str, fragments: list[str], here: Path, capsys: Capture) -> None:
    """File and line, column, value and what to do; no version of a dataset is left."""
    (here / "rows.csv").write_text(text, encoding="utf-8")
    told = refused(capsys, argv("etl"), *fragments)
    if "fields" in told:
        assert "another type" not in told, "that mends no line"
    assert not list(here.glob("dataset/manifests/*"))


OTHERS_TAKEN_FOR_CSV = {
    "Parquet": (b"PAR1\xff\xfe", "no CSV file but a Parquet file: give it to ParquetSource"),
    "Excel": (b"PK\x03\x04\xff\xfe", "a zip archive or an Excel workbook: unpack it, or save it as CSV"),
    "SQLite": (b"SQLite format 3\0\xff", "an SQLite database: give it to SqlSource"),
    "gzip": (b"\x1f\x8b\x08\xff", "packed by gzip: let its name end with .gz"),
}


@pytest.mark.parametrize("begin, fragment", OTHERS_TAKEN_FOR_CSV.values(), ids=list(OTHERS_TAKEN_FOR_CSV))
def test_a_file_of_another_kind(begin: bytes, fragment: str, here: Path, capsys: Capture) -> None:
    """By its first bytes: that it is not UTF-8 helps nobody."""
    (here / "rows.csv").write_bytes(begin + bytes(range(256)))
    refused(capsys, argv("etl"), "rows.csv is no CSV file but ", fragment)


def test_a_csv_that_is_not_packed_as_its_name_says(here: Path, capsys: Capture) -> None:
    """The library's words say only that inflating failed."""
    (here / "rows.csv.gz").write_text("x,y\n")
    refused(capsys, argv("etl", "--config.etl.source.path=rows.csv.gz"), "rows.csv.gz cannot be read: ", "what its name says?")


def test_a_csv_that_is_not_utf8(here: Path, capsys: Capture) -> None:
    """The line is named, not a position in a buffer."""
    (here / "rows.csv").write_bytes(csv_with("4,4,1,3,ro§,1,1").encode("latin-1"))
    refused(capsys, argv("etl"), "rows.csv line 5", "UTF-8")


@pytest.mark.parametrize("path, told", [("none.csv", "there is no file 'none.csv'"), (".", "there is no file below '.'")])
def test_a_csv_that_is_not_there(path: str, told: str, capsys: Capture) -> None:
    """Also when a folder is given, which is empty."""
    refused(capsys, argv("etl", f"--config.etl.source.path={path}"), told)


def test_a_value_may_be_wrong_in_a_later_chunk(here: Path, capsys: Capture) -> None:
    """Lines are counted through the file, quoted line breaks and blank lines included."""
    text = "\n".join([HEADER, *LINES[:50], "", '50,4,1,3,"two\nlines",1,1', "51,4,many,3,red,1,1"]) + "\n"
    (here / "rows.csv").write_text(text, encoding="utf-8")
    refused(capsys, argv("etl", "--config.etl.chunk_rows=7"), "rows.csv line 55: column 'x': 'many' is not float64")


HIDDEN = "cfg.etl.columns = tuple(replace(c, sensitive=True) for c in cfg.etl.columns)"


def test_a_sensitive_value_is_never_shown(here: Path, capsys: Capture) -> None:
    """Not where it is read, and not where the hook made it."""
    (here / "rows.csv").write_text(csv_with("4,4,5551234,3,red,1,1").replace("5551234", "555-1234"), encoding="utf-8")
    told = refused(
        capsys, argv("etl", recipe=write_recipe(here, HIDDEN)), "column 'x': a value (hidden: the column is sensitive)"
    )
    assert "555" not in told
    (here / "rows.csv").write_text("\n".join([HEADER, "0,0,5551234.5,3,red,1,1"]) + "\n", encoding="utf-8")
    derived = "cfg.etl.columns = (*cfg.etl.columns[:-1], Column(name='product', type='int64', derived=True, sensitive=True))"
    told = refused(capsys, argv("etl", recipe=write_recipe(here, derived)), "config.etl.transform", "product")
    assert "16653703" not in told


BESIDE = "config.etl.transform=hook is not row-wise: column 'product' depends on the rows beside a row"
HOOKS = {
    "raises": ("def hook(rows):\n    raise KeyError('z')", "config.etl.transform=hook failed: KeyError: 'z'"),
    "leaves out a column": ("def hook(rows):\n    return rows", "config.etl.transform=hook returned has no column 'product'"),
    "returns nothing": (
        "def hook(rows):\n    pass",
        "config.etl.transform returned NoneType for 116 rows; it must return one row each",
    ),
    "drops a row": ("def hook(rows):\n    return rows[1:]", "config.etl.transform returned 115 rows for 116 rows"),
    "looks at the row before": ("def hook(rows):\n    return rows[['n']].rename(columns={'n': 'product'}).shift(1)", BESIDE),
    "looks at a row that may be null": (
        "def hook(rows):\n    return rows[['x']].rename(columns={'x': 'product'}).shift(1)",
        BESIDE,
    ),
    "looks at all rows": ("def hook(rows):\n    return rows[['x']].rename(columns={'x': 'product'}) - rows['x'].mean()", BESIDE),
    "returns text": ("def hook(rows):\n    return rows[[]].assign(product='many')", "config.etl.transform", "product", "declare"),
}


@pytest.mark.parametrize("hook, fragments", [(h, f) for h, *f in HOOKS.values()], ids=list(HOOKS))
def test_a_hook_that_is_refused(hook: str, fragments: list[str], here: Path, capsys: Capture) -> None:
    """It is the user's code: told with its name and the rule, without a traceback of ours."""
    rows.write(here / "rows.csv", 120)
    refused(capsys, argv("etl", recipe=write_recipe(here, "cfg.etl.transform = hook", hook)), *fragments)


def test_missing_values_may_be_refused(here: Path, capsys: Capture) -> None:
    """By column, with the way out."""
    rows.write(here / "rows.csv", 120)
    change = "cfg.etl.columns = tuple(replace(c, missing='refuse') for c in cfg.etl.columns)"
    refused(
        capsys, argv("etl", recipe=write_recipe(here, change)), "column 'x' has ", "missing='refuse'; mend them or use 'fill'"
    )


def test_a_split_may_leave_nothing_to_train_on(here: Path, capsys: Capture) -> None:
    """One group, and its hash sends it to eval."""
    (here / "rows.csv").write_text(with_column(1, "7"), encoding="utf-8")
    words = ("--config.etl.split.eval=0.9", "--config.etl.split.test=0.0999")
    refused(capsys, argv("etl", *words), "the split left no training rows; lower config.etl.split.eval and .test")


LOOKUP = """cfg.etl.lookups = (Lookup(path='sizes.csv', key='size', columns={'area': 'm2'}),)
cfg.etl.columns = (*cfg.etl.columns, numeric('area'))"""
LOOKUPS = {
    "text for a number": (
        LOOKUP, "size,m2\n0,1\n1,big\n", "sizes.csv line 3: column 'area': 'big' is not float64; mend the value",
    ),
    "text for a key": (LOOKUP, "size,m2\nS,1\n", "sizes.csv line 2: column 'size': 'S' is not int64"),
    "too few fields": (LOOKUP, "size,m2\n0,1\n1\n", "sizes.csv line 3", "has 1 fields, the header 2"),
    "a key twice": (LOOKUP, "size,m2\n0,1\n0,2\n", "sizes.csv has several rows with size = 0; a lookup needs one"),
    "no such column": (LOOKUP, "size,m3\n0,1\n", "sizes.csv has no column 'm2'; did you mean 'm3'?"),
    "no key": (LOOKUP, "sizes,m2\n0,1\n", "sizes.csv has no column 'size'; did you mean 'sizes'?"),
    "a header only": (LOOKUP, "size,m2\n", "sizes.csv has no rows"),
    "an empty file": (LOOKUP, "", "sizes.csv is empty; it must begin with a line of column names"),
    "not declared": (LOOKUP.replace("'area':", "'aera':"), "size,m2\n0,1\n", "'sizes.csv'", "'aera'; did you mean 'area'?"),
}  # fmt: skip


@pytest.mark.parametrize("change, text, fragments", [(c, t, f) for c, t, *f in LOOKUPS.values()], ids=list(LOOKUPS))
def test_a_lookup_that_is_refused(change: str, text: str, fragments: list[str], here: Path, capsys: Capture) -> None:
    """Its own file and line, and the names of both sides."""
    rows.write(here / "rows.csv", 120)
    (here / "sizes.csv").write_text(text)
    refused(capsys, argv("etl", recipe=write_recipe(here, change)), *fragments)


def test_a_lookup_that_is_not_there(here: Path, capsys: Capture) -> None:
    """Before a row is read."""
    rows.write(here / "rows.csv", 120)
    refused(capsys, argv("etl", recipe=write_recipe(here, LOOKUP)), "there is no file 'sizes.csv'")


# ---- databases ---------------------------------------------------------------------------------------------------------

TABLE = "CREATE TABLE flights (id INTEGER, day INTEGER, x REAL, n INTEGER, color TEXT, size INTEGER, y INTEGER)"
FILL = (
    "INSERT INTO flights WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM c WHERE i < 299) "
    "SELECT i, i % 60, i * 0.1, i % 100, 'c' || (i % 5), i % 7, i % 2 FROM c"
)
SQL = "cfg.etl.source = SqlSource(url='sqlite:///rows.db', table='flights')"
JOIN = """on = (On(left='size', right='size'),)
cfg.etl.source = SqlSource(url='sqlite:///rows.db', table='flights', joins=(Join(table='sizes', on=on, columns=('area',)),))
cfg.etl.columns = (*cfg.etl.columns, numeric('area'))"""
BROKEN = SQL.replace("flights", "broken")
VIEW = "CREATE VIEW broken AS SELECT id, day, x, abs(n * 0 - 9223372036854775807 - 1) AS n, color, size, y FROM flights"
SIZES = "CREATE TABLE sizes (size INTEGER, area REAL)"


def database(statements: Iterable[str]) -> None:
    """Makes rows.db in the working directory."""
    connection = sqlite3.connect("rows.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


DATABASES: dict[str, tuple[str, list[str], tuple[str, ...]]] = {
    "no table": (
        SQL, [TABLE.replace("flights", "flight")], ("sqlite:///rows.db has no table 'flights'; did you mean 'flight'?",),
    ),
    "no tables": (SQL, [], ("sqlite:///rows.db has no table 'flights'; known: none",)),
    "no rows": (SQL, [TABLE], ("the source has no rows; check config.etl.source",)),
    "no column": (
        SQL, [TABLE.replace("color", "colour"), FILL], ("table 'flights' has no column 'color'; did you mean 'colour'?",),
    ),
    "text in an INTEGER column": (
        SQL, [TABLE, FILL, "UPDATE flights SET n = 'many' WHERE id = 41"],
        ("table 'flights', row 42 of the query: column 'n': 'many' is not int64; mend the value, or declare another type",),
    ),
    "infinity": (
        SQL, [TABLE, FILL, "UPDATE flights SET x = 9e999 WHERE id = 41"], ("table 'flights', row 42", "column 'x': inf is not"),
    ),
    "bytes in a TEXT column": (
        SQL, [TABLE, FILL, "UPDATE flights SET color = x'00ff' WHERE id = 41"], ("row 42", "column 'color'"),
    ),
    "a date that is none": (
        SQL, [TABLE.replace("n INTEGER", "n DATE"), FILL, "UPDATE flights SET n = '2013-13-45'"], ("table 'flights'", "month"),
    ),
    "only nulls": (
        SQL, [TABLE, FILL, "UPDATE flights SET x = NULL"], ("column 'x' has no value in the training split; leave it out",),
    ),
    "no labels": (
        SQL, [TABLE, FILL, "UPDATE flights SET y = NULL"], ("none of the 300 rows has a value in config.etl.label.column='y'",),
    ),
    "one class": (
        SQL, [TABLE, FILL, "UPDATE flights SET y = 1"], ("every training row has label 1: config.etl.label says y > 0.5",),
    ),
    "a view that cannot be read": (BROKEN, [TABLE, FILL, VIEW], ("table 'broken'", "integer overflow")),
    "a view that has no largest watermark": (
        BROKEN.replace("'broken'", "'broken', watermark='n'"), [TABLE, FILL, VIEW], ("table 'broken'", "integer overflow"),
    ),
    "no joined table": (JOIN, [TABLE, FILL], ("has no table 'sizes'; known: flights",)),
    "no joined key": (
        JOIN, [TABLE, FILL, SIZES.replace("(size", "(sizes")], ("table 'sizes' has no column 'size'; did you mean 'sizes'?",),
    ),
    "no joined column": (
        JOIN, [TABLE, FILL, SIZES.replace("area", "areas")], ("table 'sizes' has no column 'area'; did you mean 'areas'?",),
    ),
    "a joined key twice": (
        JOIN, [TABLE, FILL, SIZES, "INSERT INTO sizes VALUES (3, 1), (3, 2)"],
        ("table 'sizes' has several rows with size = (3,); a join needs one",),
    ),
    "an unknown watermark": (
        SQL.replace("='flights'", "='flights', watermark='dya'"), [TABLE, FILL], ("no column 'dya'; did you mean 'day'?",),
    ),
    "a start without watermark": (
        SQL.replace("='flights'", "='flights', start='3'"), [TABLE, FILL], ("need config.etl.source.watermark",),
    ),
    "a start of another type": (
        SQL.replace("='flights'", "='flights', watermark='day', start='monday'"), [TABLE, FILL],
        ("config.etl.source.start='monday' is not a", "int, as column 'day' is"),
    ),
    "a start after the end": (
        SQL.replace("='flights'", "='flights', watermark='day', start='99'"), [TABLE, FILL],
        ("the source has no rows; check config.etl.source",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("change, statements, fragments", DATABASES.values(), ids=list(DATABASES))
def test_a_database_that_is_refused(
    change: str, statements: list[str], fragments: tuple[str, ...], here: Path, capsys: Capture
) -> None:
    """Database, table and row; the nearest name where one is missing."""
    database(statements)
    refused(capsys, argv("etl", recipe=write_recipe(here, change)), *fragments)
    assert not list(here.glob("dataset/manifests/*"))


URLS = {
    "no file": ("sqlite:///none.db", "there is no database file 'none.db'; create it, or mend the path"),
    "no path": ("sqlite://", "there is no database file"),
    "no URL": ("rows.db", "config.etl.source.url='rows.db': ", "; give one such as sqlite:///data.db or postgresql://"),
    "an empty URL": ("", "config.etl.source.url='': "),
    "an unknown kind": ("oracel://db.example/x", "config.etl.source.url='oracel://db.example/x': "),
    "a host for SQLite": ("sqlite://db.example/x.db", "config.etl.source.url='sqlite://db.example/x.db': Invalid SQLite URL"),
    "a port that is none": ("postgresql://db.example:port/x", "config.etl.source.url='postgresql://db.example:port/x': "),
    "no such variable": ("sqlite:///$MLPROD_NOWHERE/x.db", "config.etl.source.url", "MLPROD_NOWHERE", "not set"),
}


@pytest.mark.parametrize("url, fragments", [(u, f) for u, *f in URLS.values()], ids=list(URLS))
def test_a_database_url_that_is_refused(url: str, fragments: list[str], here: Path, capsys: Capture) -> None:
    """The field, and what is wrong with it."""
    refused(capsys, argv("etl", recipe=write_recipe(here, SQL.replace("sqlite:///rows.db", url))), *fragments)


def test_a_file_that_is_no_database(here: Path, capsys: Capture) -> None:
    """SQLite says so when it is opened."""
    (here / "rows.db").write_text("id,day,x\n" * 100)
    refused(capsys, argv("etl", recipe=write_recipe(here, SQL)), "database sqlite:///rows.db: file is not a database")


@pytest.mark.parametrize("url", ["$MLPROD_URL", "nodialect://bob:$MLPROD_PASSWORD@db.example/x"])
def test_a_password_is_never_told(url: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes from the environment, and the URL fails after it was expanded."""
    monkeypatch.setenv("MLPROD_PASSWORD", "hunter2")
    monkeypatch.setenv("MLPROD_URL", "nodialect://bob:hunter2@db.example/x")
    told = refused(capsys, argv("etl", recipe=write_recipe(here, SQL.replace("sqlite:///rows.db", url))), "config.etl.source.url")
    assert "hunter2" not in told


# ---- a dataset that is missing, damaged, or another config's ------------------------------------------------------------


def on(folder: Path, *words: str) -> tuple[str, ...]:
    """Overrides for a dataset in `folder` and a run in the working directory."""
    return (f"--config.dataset={folder}", "--config.workdir=run", *words)


@pytest.fixture
def copy(dataset: Path, here: Path) -> Path:
    """A copy of the smoke dataset, to be damaged."""
    return Path(shutil.copytree(dataset, here / "copy", ignore=shutil.ignore_patterns("run")))


def first(folder: Path, pattern: str) -> Path:
    """The first file that matches."""
    return sorted(folder.glob(pattern))[0]


def cut(folder: Path) -> Path:
    """Cuts 100 bytes off a Parquet file."""
    path = first(folder, "files/*/train-*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    return path


def lost(folder: Path) -> Path:
    """Removes a Parquet file."""
    path = first(folder, "files/*/eval-*.parquet")
    path.unlink()
    return path


def changed_features(folder: Path) -> Path:
    """Changes a fitted constant."""
    path = first(folder, "features/*.json")
    path.write_text(path.read_text().replace('"fill":49', '"fill":50'))
    return path


def lost_features(folder: Path) -> Path:
    """Removes the fitted transform."""
    path = first(folder, "features/*.json")
    path.unlink()
    return path


def torn_manifest(folder: Path) -> Path:
    """Cuts the manifest in the middle."""
    path = first(folder, "manifests/*.json")
    path.write_text(path.read_text()[:500])
    return path


def empty_manifest(folder: Path) -> Path:
    """Leaves an object without fields."""
    path = first(folder, "manifests/*.json")
    path.write_text("{}")
    return path


DAMAGES: list[tuple[Callable[[Path], Path], str]] = [
    (cut, " bytes; the manifest says "), (lost, " is missing; the manifest says "), (changed_features, "was changed"),
    (lost_features, "is missing"), (torn_manifest, "not a manifest"), (empty_manifest, "not a manifest"),
]  # fmt: skip


@pytest.mark.parametrize("damage, fragment", DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_damaged_dataset_is_refused(damage: Callable[[Path], Path], fragment: str, copy: Path, capsys: Capture) -> None:
    """The file is named, and a way out that works: `mlprod etl` alone would find the dataset built and do nothing."""
    path = damage(copy)
    refused(capsys, argv("check", *on(copy)), str(path), fragment, "remove")


def test_a_newer_manifest_is_refused(copy: Path, capsys: Capture) -> None:
    """By its format, not by what it lacks."""
    path = first(copy, "manifests/*.json")
    path.write_text(path.read_text().replace(f'"format": {manifest.FORMAT}', '"format": 99'))
    refused(capsys, argv("check", *on(copy)), f"{path}: format 99 is newer than {manifest.FORMAT}", "update mlprod")


def test_a_stray_file_among_the_manifests_is_no_version(copy: Path) -> None:
    """A copy made by hand, an editor's backup."""
    for name in ("000001 copy.json", "000002.json.bak", "1x.json"):
        (copy / "manifests" / name).write_text("{}")
    assert cli.run(argv("check", *on(copy))) == 0


OTHERS = {
    "another threshold": (
        ["--config.etl.label.above=0.2"],
        "etl.label.above was 0.5, now 0.2 (1 difference(s)); run `mlprod etl`",
    ),
    "other groups": (["--config.etl.group_rows=128"], "etl.group_rows was 64, now 128 (1 difference(s)); run `mlprod etl`"),
    "another seed and dedup": (
        ["--config.etl.hash_seed=3", "--config.etl.dedup=none"],
        "etl.dedup was 'exact', now 'none' (2 difference(s))",
    ),
}


@pytest.mark.parametrize("words, fragment", OTHERS.values(), ids=list(OTHERS))
def test_the_dataset_of_another_config_is_refused(words: list[str], fragment: str, dataset: Path, capsys: Capture) -> None:
    """The first field that differs is named with both values."""
    refused(capsys, argv("check", *on(dataset, *words)), f"{dataset} was built by another config: ", fragment)


def test_the_dataset_of_other_columns_is_refused(dataset: Path, here: Path, capsys: Capture) -> None:
    """By the column's name: an index or a class says nothing."""
    recipe = write_recipe(here, "cfg.etl.columns, cfg.etl.transform = cfg.etl.columns[:-1], no_transform")
    refused(capsys, argv("check", *on(dataset), recipe=recipe), f"{dataset} was built by another config: ", "'product'")


@pytest.mark.parametrize("words", [["check"], ["evaluate"], ["predict", "--output=out.parquet"]], ids=lambda words: words[0])
def test_no_dataset(words: list[str], here: Path, capsys: Capture) -> None:
    """Only `train` builds one by itself."""
    told = refused(capsys, argv(words[0], *on(here / "none"), *words[1:]), f"{here / 'none'} has no dataset", "run `mlprod etl`")
    assert " :" not in told
    assert list(here.iterdir()) == []


# ---- mesh, batch, window, steps ----------------------------------------------------------------------------------------

SHAPES = {
    "three of eight devices": (["--config.mesh.fsdp=3"], "fsdp=3 x tensor=1 does not fit 8 device(s)", "num_cpu_devices=3"),
    "four of eight devices": (
        ["--config.mesh.data=4"], "data=4 x fsdp=1 x tensor=1 does not fit 8 device(s); set config.mesh.data=-1",
        "num_cpu_devices=4",
    ),
    "more than there are": (
        ["--config.mesh.tensor=16"], "tensor=16 does not fit 8 device(s)", "--config.runtime.num_cpu_devices=16",
    ),
    "all axes": (
        ["--config.mesh.slice=2", "--config.mesh.data=2", "--config.mesh.fsdp=(2,2)", "--config.mesh.tensor=2"],
        "slice=2 x data=2 x fsdp=2x2 x tensor=2 does not fit 8 device(s)", "--config.runtime.num_cpu_devices=32",
    ),
    "no devices": (["--config.mesh.data=0"], "config.mesh", "data=0"),
    "a batch that does not divide": (
        ["--config.loader.global_batch=60", "--config.loader.num_lanes=4"],
        "config.loader.global_batch=60: a batch of 60 does not divide over 8 devices", "use 56 or 64",
    ),
    "a batch below the devices": (
        ["--config.loader.global_batch=4", "--config.loader.num_lanes=4"], "config.loader.global_batch=4", "use 8",
    ),
    "an eval batch that does not divide": (
        ["--config.eval.batch=60"], "config.eval.batch=60: a batch of 60 does not divide over 8 devices", "use 56 or 64",
    ),
    "more than the training rows": (
        ["--config.loader.global_batch=2048"], "config.loader.global_batch=2048 is more than the 2018 training rows; lower it",
    ),
    "a small window": (
        ["--config.loader.window_rows=128"], "config.loader.window_rows=128 must hold at least 4 row groups of 64 rows: 256",
    ),
    "a window that lanes do not divide": (
        ["--config.loader.window_rows=1000"], "config.loader.window_rows=1000 must be a multiple of the 16 lanes",
    ),
    "lanes that do not divide": (
        ["--config.loader.num_lanes=7"], "config.loader.num_lanes=7 does not divide config.loader.global_batch=64",
    ),
    "a skip of half a batch": (
        ["--config.loader.skip=((0, 96),)"], "config.loader.skip: (0, 96) must be a range", "whole batches of 64",
    ),
    "skips out of order": (
        ["--config.loader.skip=((128, 192), (0, 64))"], "config.loader.skip: (0, 64) must be a range", "behind the one before",
    ),
    "a skip that is no range": (["--config.loader.skip=(0, 64)"], "config.loader.skip=(0, 64): 0 is int, not tuple[int, int]"),
    "processes that devices do not divide by": (["--processes=3"], "--processes=3 does not divide the mesh's 8 device(s)"),
    "less than a batch": (
        ["--config.steps=0", "--config.epochs=0.01"], "config.epochs=0.01 is less than one batch (31 batches an epoch); raise it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("words, fragments", [(w, f) for w, *f in SHAPES.values()], ids=list(SHAPES))
def test_a_shape_that_does_not_fit(words: list[str], fragments: list[str], dataset: Path, here: Path, capsys: Capture) -> None:
    """Told by `check` without touching the run's folder: the field, the sizes, and which sizes would do."""
    refused(capsys, argv("check", *on(dataset, *words)), *fragments)
    assert list(here.iterdir()) == []


MODEL = """
from flax import nnx
@dataclass
class Mine:
    def build(self, features, rngs):
        {}
"""
MODELS = {
    "raises": ("raise KeyError('width')", "KeyError", "width"),
    "refuses": ("raise ValueError('width\\nof 0')", "width of 0"),
    "builds nothing": ("return None", "NoneType", "nnx.Module"),
    "builds no module": ("return 3", "int", "nnx.Module"),
    "has no DIMS": ("return nnx.Linear(2, 3, rngs=rngs)", "Linear", "DIMS"),
    "keeps random state": ("return nnx.Dropout(0.5, rngs=rngs)", "keeps random state"),
}


@pytest.mark.parametrize("body, fragments", [(b, f) for b, *f in MODELS.values()], ids=list(MODELS))
def test_a_model_of_the_users_own_that_is_refused(
    body: str, fragments: list[str], dataset: Path, here: Path, capsys: Capture
) -> None:
    """Before a device computes, with `config.model` and what its `build` did."""
    recipe = write_recipe(here, "cfg.model = Mine()", MODEL.format(body))
    refused(capsys, argv("check", *on(dataset), recipe=recipe), "config.model", *fragments)


# ---- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workdir", ["plain", "plain/run"])
def test_a_workdir_that_cannot_be_written(workdir: str, dataset: Path, here: Path, capsys: Capture) -> None:
    """`check` refuses what `train` refuses."""
    (here / "plain").write_text("a file")
    words = (f"--config.dataset={dataset}", f"--config.workdir={workdir}")
    for verb in ("train", "check"):
        refused(capsys, argv(verb, *words), f"config.workdir='{workdir}' cannot be written", "give another folder")


def test_a_compile_cache_that_cannot_be_written(dataset: Path, here: Path, capsys: Capture) -> None:
    """JAX itself only warns, and compiles everything again at every start."""
    (here / "plain").write_text("a file")
    words = on(dataset, "--config.runtime.compile_cache=plain")
    refused(capsys, argv("check", *words), "config.runtime.compile_cache='plain' cannot be written", "give another folder")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc")
def test_a_workdir_where_not_even_an_administrator_may_write(dataset: Path, capsys: Capture) -> None:
    """What the rights say is not what the disk does: `check` tries it."""
    words = (f"--config.dataset={dataset}", "--config.workdir=/proc/nowhere/run")
    refused(capsys, argv("check", *words), "config.workdir='/proc/nowhere/run' cannot be written: /proc is no folder that")


def test_a_workdir_that_a_living_run_holds(dataset: Path, here: Path, capsys: Capture) -> None:
    """Its holder is named; nothing of it is touched."""
    with runtime.hold(here / "run"):
        told = refused(capsys, argv("train", *on(dataset)), "config.workdir='run' is held by process ")
        assert "wait for it, stop it, or give another folder" in told
        assert [path.name for path in (here / "run").iterdir()] == ["lease"]


@pytest.mark.parametrize("folder", ["plain", "plain/dataset"])
def test_a_dataset_folder_that_cannot_be_written(folder: str, here: Path, capsys: Capture) -> None:
    """Before a row is read."""
    (here / "plain").write_text("a file")
    rows.write(here / "rows.csv", 120)
    refused(
        capsys, argv("etl", f"--config.dataset={folder}"), f"config.dataset='{folder}' cannot be written", "give another folder"
    )


# ---- a run's checkpoints, and where scores go --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of one step."""
    cfg = smoke_config(csv, dataset, tmp_path_factory.mktemp("bad") / "run", steps=1, eval={"every": 0})
    train(cfg, jax.devices()[:1])
    return cfg


def of(cfg: Config, *words: str) -> tuple[str, ...]:
    """Overrides for a run's paths."""
    return (
        f"--config.dataset={cfg.dataset}",
        f"--config.workdir={cfg.workdir}",
        f"--config.etl.source.path={cfg.etl.source.path}",
        *words,
    )  # type: ignore[union-attr]


def test_no_checkpoint(dataset: Path, here: Path, capsys: Capture) -> None:
    """Nothing was trained yet."""
    for verb, words in (("evaluate", ()), ("predict", ("--output=out.parquet",))):
        refused(capsys, argv(verb, *on(dataset, *words)), "config.workdir='run' has no checkpoints; run `mlprod train`")
    assert list(here.iterdir()) == []


def test_a_step_that_was_not_saved(run: Config, capsys: Capture) -> None:
    """Those that were are listed."""
    for verb, words in (("evaluate", ()), ("predict", ("--output=out.parquet",))):
        refused(capsys, argv(verb, *of(run, "--step=7"), *words), "--step=7: ", "has no such checkpoint; it has [1]")


def test_a_split_without_rows(csv: Path, here: Path, capsys: Capture) -> None:
    """Its share in the config is named."""
    words = ("--config.etl.split.test=0.0", f"--config.etl.source.path={csv}")
    assert cli.run(argv("etl", *on(here / "d", *words))) == 0
    refused(
        capsys,
        argv("evaluate", *on(here / "d", *words), "--split=test"),
        "--split=test of ",
        "has no rows; raise its share in config.etl.split",
    )


MUST = {
    "seed": (["--config.seed=3"], "seed=0, now 3; set it back, or use another workdir"),
    "batch": (["--config.loader.global_batch=128"], "global_batch=64, now 128; set it back, or use another workdir"),
    "model": (["--config.model.hidden=(8,)"], "model.hidden", "workdir"),
}


@pytest.mark.parametrize("words, fragments", [(w, f) for w, *f in MUST.values()], ids=list(MUST))
def test_a_field_that_must_stay_the_same(words: list[str], fragments: list[str], run: Config, capsys: Capture) -> None:
    """It is named with both values: a table of arrays that do not fit says less."""
    refused(capsys, argv("train", *of(run, *words)), *fragments)


OUTPUTS = {"below a file": "plain/out.parquet", "a folder": "folder", "the working directory": "."}


@pytest.mark.parametrize("path", OUTPUTS.values(), ids=list(OUTPUTS))
def test_an_output_that_cannot_be_written(path: str, run: Config, here: Path, capsys: Capture) -> None:
    """Of `predict` and of `evaluate`; nothing is left behind."""
    (here / "plain").write_text("a file")
    (here / "folder").mkdir()
    for verb, option in (("predict", "--output"), ("evaluate", "--scores")):
        refused(capsys, argv(verb, *of(run, f"{option}={path}")), f"{option}={path} cannot be written")
    assert sorted(p.name for p in here.rglob("*")) == ["folder", "plain"]


def test_checkpoints_that_this_user_may_not_read(run: Config, here: Path, capsys: Capture) -> None:
    """Named, by every verb that reads them."""
    (here / "run" / "checkpoints").mkdir(parents=True)
    (here / "run" / "checkpoints").chmod(0)
    if os.access(here / "run" / "checkpoints", os.R_OK):
        pytest.skip("this user may read everything")
    words = of(run, "--config.workdir=run")
    for verb, more in (("checkpoints", ["ls"]), ("evaluate", [])):
        refused(capsys, argv(verb, *more, *words), "checkpoints cannot be read: Permission denied; let this user read it")


def test_the_checkpoints_of_another_model(run: Config, capsys: Capture) -> None:
    """Two arrays that differ tell enough: the line fits a screen."""
    words = of(run, "--config.model.hidden=(8,)")
    refused(capsys, argv("evaluate", *words), "does not fit config.model", " more; use the config it was saved with")


def test_the_input_is_never_overwritten(run: Config, here: Path, capsys: Capture) -> None:
    """Rows and scores are two files."""
    before = rows.write(here / "new.csv", 5).read_bytes()
    refused(capsys, argv("predict", *of(run, "--input=new.csv", "--output=new.csv")), "--output=new.csv", "--input")
    assert (here / "new.csv").read_bytes() == before


INPUTS: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "no file": (None, "none.csv", ("--input=none.csv",)),
    "a folder": (None, ".", ("--input=.",)),
    "a database": (
        None, "sqlite:///rows.db",
        ("--input='sqlite:///rows.db' is a database URL, but config.etl.source is CsvSource; give a file",),
    ),
    "an empty file": ("", "new.csv", ("new.csv is empty; it must begin with a line of column names",)),
    "a header only": (HEADER, "new.csv", ("--input=new.csv has no rows",)),
    "no column": (
        HEADER.replace("color", "colour") + "\n0,0,1,1,red,1,1\n", "new.csv",
        ("new.csv has no column 'color'; did you mean 'colour'?",),
    ),
    "an open quote": (HEADER + '\n0,0,1,1,red,1,1\n1,0,1,1,"red,1,1\n', "new.csv", ("new.csv line 3", "quotes")),
}  # fmt: skip


@pytest.mark.parametrize("text, given, fragments", INPUTS.values(), ids=list(INPUTS))
def test_rows_to_score_that_are_refused(
    text: str | None, given: str, fragments: tuple[str, ...], run: Config, here: Path, capsys: Capture
) -> None:
    """What makes the file unreadable is refused (a row that is wrong gets a reason instead); no half output is left."""
    if text is not None:
        (here / "new.csv").write_text(text)
    refused(capsys, argv("predict", *of(run, f"--input={given}", "--output=out.parquet")), *fragments)
    assert [path.name for path in here.iterdir() if path.name != "new.csv"] == []


def test_a_password_on_the_command_line_is_never_told(run: Config, capsys: Capture) -> None:
    """`--input` takes a database's URL too."""
    url = "postgresql://bob:hunter2@db.example/x"
    assert "hunter2" not in refused(capsys, argv("predict", *of(run, f"--input={url}", "--output=out.parquet")), "--input")


def test_a_run_on_another_dataset(run: Config, csv: Path, here: Path, capsys: Capture) -> None:
    """Both ids are shown."""
    words = (*of(dataclasses.replace(run, dataset=str(here / "d"))), "--config.etl.hash_seed=9")
    assert cli.run(argv("etl", *words)) == 0
    told = refused(capsys, argv("train", *words), "config.workdir=", " holds a run on dataset_id ", "use another workdir")
    assert (
        refused(capsys, argv("evaluate", *words), " was trained on dataset_id ", "give the config of that run").count(
            str(here / "d")
        )
        == 1
    )
    assert told.count("dataset_id") == 1
