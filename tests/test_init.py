"""`mlprod init`: what is chosen for each column and why, targets of all kinds, mistakes, and two commands to a model."""

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlprod import cli
from mlprod.config import (
    ByHash,
    ByTime,
    Classes,
    Config,
    CsvSource,
    Equals,
    JsonLinesSource,
    Label,
    Number,
    ParquetSource,
    SqlSource,
)
from mlprod.etl.sample import sample_of
from mlprod.init.sizes import sizes_for
from mlprod.init.target import label_of
from mlprod.recipe import run_file
from mlprod.tracking import read_log
from mlprod.validation import validate

ROWS = 600


def columns() -> dict[str, list[Any]]:
    """A table of every kind of column, and a target that follows from some."""
    rng = np.random.default_rng(0)
    size, city = rng.normal(50, 10, ROWS), rng.integers(0, 5, ROWS)
    price = 1000 * size + 5000 * city + rng.normal(0, 300, ROWS)
    day = np.datetime64("2023-01-01") + rng.integers(0, 700, ROWS)
    return {
        "order_id": [f"A{i:05d}" for i in rng.permutation(ROWS)],
        "row": list(range(ROWS)),
        "size": [None if i % 9 == 0 else round(float(v), 3) for i, v in enumerate(size)],
        "rooms.total": rng.integers(1, 7, ROWS).tolist(),
        "city": [f"city {c}" for c in city],
        "zip_code": (10_000 + 7 * city).tolist(),
        "sold": [str(d) for d in day],
        "listed": [f"{d.astype(object):%d.%m.%Y}" for d in day],
        "garden": [bool(b) for b in rng.integers(0, 2, ROWS)],
        "label": rng.normal(0, 1, ROWS).round(3).tolist(),
        "country": ["DE"] * ROWS,
        "nothing": [None] * ROWS,
        "remark": [f"free text {i} about {i * 7 % 600}" for i in range(ROWS)],
        "price": price.round(2).tolist(),
        "price_eur": (price * 0.92).round(2).tolist(),
        "dear": ["yes" if p > 65_000 else "no" for p in price],
        "kind": [("flat", "house", "land")[int(p // 22_000) % 3] for p in price],
    }


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """The rows as Arrow has them."""
    return pa.table(columns())


def as_csv(table: pa.Table, path: Path, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    """Writes rows as text; what is missing is empty."""
    rows = table.to_pylist()
    cells = [[("" if v is None else str(v)) for v in row.values()] for row in rows]
    path.write_text("\n".join(delimiter.join(line) for line in [table.column_names, *cells]) + "\n", encoding=encoding)
    return path


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Config | None]]:
    """Runs `mlprod init` in an empty folder; gives its exit code and the config."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, name: str = "mine") -> tuple[int, Config | None]:
        code = cli.run(["init", *words, "--name", name])
        path = Path("configs") / f"{name}.py"
        if code or not path.is_file():
            return code, None
        cfg = run_file(str(path))
        validate(cfg)
        return code, cfg

    return run


Init = Callable[..., tuple[int, Config | None]]


def test_each_column_becomes_what_it_is_good_for(init: Init, table: pa.Table, tmp_path: Path) -> None:
    """Numbers, categories, codes, times, flags; identifiers, prose, constants and leaks are left out and named."""
    code, cfg = init(str(as_csv(table.drop_columns(["dear", "kind"]), tmp_path / "homes.csv")), "--target", "price")
    assert code == 0
    assert cfg is not None
    found = {c.name: (c.kind if c.role == "feature" else c.role, c.type, c.source) for c in cfg.etl.columns}
    assert found == {
        "size": ("numeric", "float64", ""),
        "size_missing": ("numeric", "float64", ""),
        "rooms_total": ("numeric", "int64", "rooms.total"),
        "city": ("categorical", "string", ""),
        "zip_code": ("categorical", "int64", ""),
        "sold": ("input", "timestamp", ""),
        **{f"sold_{part}": ("numeric", "float64", "") for part in ("month", "day", "weekday", "days")},
        "listed": ("input", "string", ""),
        **{f"listed_{part}": ("numeric", "float64", "") for part in ("month", "day", "weekday", "days")},
        "garden": ("categorical", "bool", ""),
        "label_": ("numeric", "float64", "label"),
    }
    assert cfg.etl.label == Number(column="price")
    assert cfg.etl.split == ByHash(eval=0.15, test=0.15)
    text = Path("configs/mine.py").read_text()
    for line in (
        'left out: "order_id" looks like an identifier or prose: 600 different values in 600 rows',
        'left out: "row" looks like an identifier: 600 different values in 600 rows',
        'left out: "country" has one value alone',
        'left out: "nothing" has no value in the rows looked at',
        'left out: "remark" looks like an identifier or prose',
        'left out: "price_eur" alone tells the target (R2 ',
        'numeric("size"),  # 5',
        "11.2% missing",
        "times written as %d.%m.%Y",
    ):
        assert line in text, line


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_lists_become_features_of_many_values(init: Init, tmp_path: Path, form: str) -> None:
    """Of texts or whole numbers; what is nested otherwise is left out, and the rest of its row is not."""
    lists = [[], ["red"], ["red", "big"], ["new", "red", "big"]]
    rows = [
        {"x": i * 7 % 11, "tags": lists[i % 4], "ids": [i % 3, 7], "far": [i / 3], "deep": {"a": i}, "y": i % 2}
        for i in range(200)
    ]
    path = tmp_path / f"rows.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, cfg = init(str(path), "--target", "y")
    assert code == 0
    assert cfg is not None
    chosen = {c.name: (c.kind, c.max_len) for c in cfg.etl.columns}
    assert chosen == {"x": ("numeric", 0), "tags": ("list", 3), "ids": ("list", 2)}
    text = (tmp_path / "configs/mine.py").read_text()
    assert text.count("holds nested values, or lists of what is no category") == 2


def test_names_that_meet_and_names_with_quotes(init: Init, tmp_path: Path) -> None:
    """Two columns that would have one name: the second is left out and named. Quotes stand in the hook as they are."""
    some = [i * 37 % 53 for i in range(200)]
    rows = {"a.b": some, "a_b": some, 'x "q"': [None, *some[1:]], "y": [i * i % 97 for i in range(200)]}
    pq.write_table(pa.table({name: list(values) for name, values in rows.items()}), tmp_path / "t.parquet")
    code, cfg = init(str(tmp_path / "t.parquet"), "--target", "y", "--task", "regression")
    assert code == 0
    assert cfg is not None
    assert [c.name for c in cfg.etl.columns] == ["a_b", 'x "q"']
    assert "would be called 'a_b' as another column is" in Path("configs/mine.py").read_text()
    rows['x "q"'] = [None] * 20 + some[20:]
    pq.write_table(pa.table({name: list(values) for name, values in rows.items()}), tmp_path / "t.parquet")
    code, cfg = init(str(tmp_path / "t.parquet"), "--target", "y", "--task", "regression", name="again")
    assert code == 0
    assert cfg is not None
    made = cfg.etl.transform(pd.DataFrame({'x "q"': [None, 1.0]}))
    assert made['x "q"_missing'].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "tsv", "semicolon-cp1252", "sqlite"])
def test_every_form_of_the_data_gives_the_same_columns(init: Init, table: pa.Table, tmp_path: Path, form: str) -> None:
    """From a Parquet file, JSON lines, text with another delimiter and encoding, and a database."""
    rows = table.select(["size", "rooms.total", "city", "garden", "price"])
    if form == "parquet":
        pq.write_table(rows, tmp_path / "homes.parquet")
        words, source = [str(tmp_path / "homes.parquet")], ParquetSource
    elif form == "jsonl":
        (tmp_path / "homes.jsonl").write_text("\n".join(map(json.dumps, rows.to_pylist())))
        words, source = [str(tmp_path / "homes.jsonl")], JsonLinesSource
    elif form == "sqlite":
        with sqlite3.connect(tmp_path / "homes.db") as db:
            db.execute('CREATE TABLE homes (size REAL, "rooms.total" INT, city TEXT, garden BOOLEAN, price REAL)')
            db.execute("CREATE TABLE other (x INT)")
            db.executemany("INSERT INTO homes VALUES (?, ?, ?, ?, ?)", [tuple(row.values()) for row in rows.to_pylist()])
        db.close()
        words, source = [str(tmp_path / "homes.db"), "--table", "homes"], SqlSource
    else:
        delimiter, encoding = ("\t", "utf-8") if form == "tsv" else (";", "cp1252")
        city = pa.array([value.replace("city", "Köln") for value in rows["city"].to_pylist()])
        rows = rows.set_column(2, "city", city)
        name = "homes.tsv" if form == "tsv" else "homes.csv"
        words, source = [str(as_csv(rows, tmp_path / name, delimiter, encoding))], CsvSource
    code, cfg = init(*words, "--target", "price")
    assert code == 0
    assert cfg is not None
    assert isinstance(cfg.etl.source, source)
    assert [c.name for c in cfg.etl.columns] == ["size", "size_missing", "rooms_total", "city", "garden"]
    if form == "semicolon-cp1252":
        assert (cfg.etl.source.delimiter, cfg.etl.source.encoding) == (";", "cp1252")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("values", "task", "label"),
    [
        ([0, 1] * 50, "", Label(column="y", above=0.5)),
        ([3.5, 7.5] * 50, "", Label(column="y", above=5.5)),
        (["no", "no", "yes"] * 50, "", Equals(column="y", value="yes")),
        (["a", "a", "b"] * 50, "", Equals(column="y", value="b")),
        ([True, False, None] * 50, "", Equals(column="y", value="1", type="bool")),
        (list("abc") * 50, "", Classes(column="y")),
        (list(range(10)) * 20, "", Classes(column="y", type="int64")),
        (list(range(10)) * 20, "regression", Number(column="y")),
        ([10 * i for i in range(10)] * 20, "", Number(column="y")),
        (list(range(1000)), "", Number(column="y")),
        ([i / 7 for i in range(100)], "", Number(column="y")),
        ([1, 2, 3, 4, 5] * 20, "binary", Label(column="y", above=3.0)),
    ],
)
def test_the_task_follows_from_the_target(tmp_path: Path, values: list[Any], task: str, label: Any) -> None:
    """Two values are a yes and no, of words the one that says yes or the rarer; close whole numbers are classes."""
    pq.write_table(pa.table({"y": values, "x": list(range(len(values)))}), tmp_path / "t.parquet")
    assert label_of(sample_of(ParquetSource(path=str(tmp_path / "t.parquet")), ["y", "x"], words="y"), "y", task) == label


def test_the_newest_rows_are_held_out(init: Init, table: pa.Table, tmp_path: Path) -> None:
    """With --time; its own parts are features, the days since a date are not. With --key the key is carried."""
    path = as_csv(table.select(["order_id", "sold", "size", "price"]), tmp_path / "homes.csv")
    code, cfg = init(str(path), "--target", "price", "--time", "sold", "--key", "order_id")
    assert code == 0
    assert cfg is not None
    sold = sorted(table["sold"].to_pylist())
    assert isinstance(cfg.etl.split, ByTime)
    assert (cfg.etl.split.eval[:10], cfg.etl.split.test[:10]) == (sold[480], sold[540])
    assert cfg.etl.key == ("order_id",)
    assert [c.name for c in cfg.etl.columns if c.role == "feature"] == [
        "sold_month", "sold_day", "sold_weekday", "size", "size_missing",
    ]  # fmt: skip


def test_a_large_file_is_looked_at_all_over(tmp_path: Path) -> None:
    """The sample of a sorted file has its first and its last tenth; it knows about how many rows there are."""
    path = tmp_path / "sorted.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i % 7}\n" for i in range(400_000)))
    sample = sample_of(CsvSource(path=str(path)), ["x", "y"])
    x = np.asarray(sample.rows["x"])
    assert not sample.whole
    assert 50_000 < len(x) <= 100_000
    assert x.min() < 40_000
    assert x.max() > 360_000
    assert sample.num_rows == pytest.approx(400_000, rel=0.3)


def test_nothing_is_overwritten(init: Init, table: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second init of the same name is refused, and the file stays."""
    path = str(as_csv(table.select(["size", "price"]), tmp_path / "homes.csv"))
    assert init(path, "--target", "price")[0] == 0
    before = Path("configs/mine.py").read_bytes()
    assert init(path, "--target", "price")[0] == 2
    assert "never overwritten; give another --name" in capsys.readouterr().err
    assert Path("configs/mine.py").read_bytes() == before


MISTAKES = {
    "no-file": (["gone.csv", "--target", "price"], "gone.csv: there is no such file"),
    "no-target": (["homes.csv", "--target", "prize"], "--target=prize: homes.csv has no such column; did you mean 'price'?"),
    "no-time": (["homes.csv", "--target", "price", "--time", "date"], "--time=date: homes.csv has no such column"),
    "no-key": (["homes.csv", "--target", "price", "--key", "id"], "--key=id: homes.csv has no such column"),
    "target-left-out": (["homes.csv"], "the following arguments are required: --target"),
    "table-of-a-file": (["homes.csv", "--target", "price", "--table", "t"], "--table=t is for a database"),
    "one-value": (["homes.csv", "--target", "country"], "--target=country has 1 different value(s)"),
    "no-value": (["homes.csv", "--target", "nothing"], "--target=nothing has 0 different value(s)"),
    "prose": (["homes.csv", "--target", "remark"], "--target=remark is text with 600 different values in 600 rows"),
    "time-as-target": (["homes.csv", "--target", "sold"], "--target=sold is a time, which no task learns"),
    "text-as-number": (["homes.csv", "--target", "city", "--task", "regression"], "--target=city is string, not a number"),
    "fractions-as-classes": (["homes.csv", "--target", "price", "--task", "classes"], "--target=price has fractions"),
    "text-as-time": (["homes.csv", "--target", "price", "--time", "city"], "--time=city is string"),
    "missing-time": (["homes.csv", "--target", "price", "--time", "size"], "--time=size is float64 with 67 missing"),
    "target-is-key": (["homes.csv", "--target", "price", "--key", "price"], "is also the time or a key"),
    "odd-suffix": (["homes.xlsx", "--target", "price"], "homes.xlsx ends with none of .csv"),
    "several-tables": (["many.db", "--target", "x"], "has 2 tables: one, two; give one with --table"),
    "wrong-table": (["many.db", "--target", "x", "--table", "ones"], "has no table 'ones'; did you mean 'one'?"),
    "password": (["postgresql://me:secret@localhost/db", "--target", "x"], "holds a password"),
    "no-rows": (["empty.csv", "--target", "price"], "has no rows"),
    "odd-name": (["homes.csv", "--target", "price", "--name", "my table"], "--name=my table must be a Python name"),
    "unknown-option": (["homes.csv", "--target", "price", "--tarket", "x"], "there is no option --tarket"),
    "config-override": (["homes.csv", "--target", "price", "--config.steps=3"], "there is no option --config.steps=3"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(
    tmp_path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    """Exit 2, nothing is written."""
    monkeypatch.chdir(tmp_path)
    as_csv(table, tmp_path / "homes.csv")
    (tmp_path / "homes.xlsx").write_bytes(b"PK")
    (tmp_path / "empty.csv").write_text("size,price\n")
    with sqlite3.connect(tmp_path / "many.db") as db:
        db.execute("CREATE TABLE one (x INT)")
        db.execute("CREATE TABLE two (x INT)")
    db.close()
    words, told = MISTAKES[mistake]
    assert cli.run(["init", *words]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1
    assert not (tmp_path / "configs").exists()


def test_sizes_follow_rows_and_cores() -> None:
    """Many rows are seen as often as the cores allow; evaluations are some steps apart, after whole epochs."""
    assert sizes_for(1000, 2) == sizes_for(1000, 64)
    two, eight, many = (sizes_for(1_000_000, cores) for cores in (2, 8, 64))
    assert two.epochs == 4
    assert two.epochs < eight.epochs == many.epochs
    for rows in (10, 100, 3000, 10**6):
        found = sizes_for(rows, 2)
        steps = max(rows // found.loader.global_batch, 1)
        assert found.eval.every >= 25
        assert found.eval.every % steps == 0


def test_the_sample_of_a_large_table_is_from_all_over_it(tmp_path: Path) -> None:
    """So that the newest rows can be held out by a time that grows with the key; without a key it is the first rows."""
    count = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 150000) SELECT i, i * 10 FROM c"
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as connection, connection:
        for table, key in (("keyed", " PRIMARY KEY"), ("plain", "")):
            connection.execute(f"CREATE TABLE {table} (i INTEGER{key}, time INTEGER)")
            connection.execute(f"INSERT INTO {table} {count}")
    keyed, plain = (
        sample_of(SqlSource(url=f"sqlite:///{tmp_path / 'rows.db'}", table=table), ["i", "time"]) for table in ("keyed", "plain")
    )
    assert keyed.num_rows == plain.num_rows == 150_000
    assert not keyed.whole
    times = keyed.rows["time"].to_numpy()
    assert len(times) == 100_000
    assert len(np.unique(times)) == 100_000
    assert (times[0], times[-1]) == (10, 1_500_000)
    assert 400_000 < np.quantile(times, 0.3) < 500_000
    assert plain.rows["time"].to_numpy().max() == 1_000_000


def test_a_wide_gap_in_the_keys_leaves_the_sample_whole(tmp_path: Path) -> None:
    """All rows but one lie in the first of the ranges: then it is the first rows, as many as ever."""
    count = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 150000) SELECT i, i FROM c"
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as connection, connection:
        connection.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, x INTEGER)")
        connection.execute(f"INSERT INTO t {count}")
        connection.execute("INSERT INTO t VALUES (1000000000000, 1)")
    sample = sample_of(SqlSource(url=f"sqlite:///{tmp_path / 'rows.db'}", table="t"), ["i", "x"])
    assert sample.rows.num_rows == 100_000


@pytest.mark.parametrize("target", ["kind"])
def test_two_commands_make_a_model(init: Init, table: pa.Table, tmp_path: Path, target: str) -> None:
    """Far better than a constant in 15 epochs; then evaluated on test rows and asked for predictions."""
    rows = table.drop_columns([name for name in ("price", "price_eur", "dear", "kind") if name != target])
    code, cfg = init(str(as_csv(rows, tmp_path / "homes.csv")), "--target", target)
    assert code == 0
    assert cfg is not None
    run = [
        "--config",
        "configs/mine.py",
        "--config.tracking.wandb=off",
        "--config.runtime.num_cpu_devices=8",
        "--config.epochs=15",
        "--config.eval.every=50",
    ]
    assert cli.run(["train", *run]) == 0
    evals = [line["values"] for line in read_log(Path(cfg.workdir)) if line["kind"] == "eval"]
    error, constant = ("rmse", "constant_rmse") if target == "price" else ("log_loss", "constant_log_loss")
    assert min(x[error][0] for x in evals) < 0.6 * evals[0][constant][0]
    assert cli.run(["evaluate", *run, "--split", "test", "--by", "city"]) == 0
    assert cli.run(["predict", *run, "--output", "out.parquet"]) == 0
    assert pq.read_table("out.parquet").num_rows == ROWS
