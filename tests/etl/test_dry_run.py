"""`mlprod etl --dry-run`: what the first rows say, whatever the source is made of, and nothing on disk."""

import dataclasses
import gzip
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from mlprod import cli
from mlprod.config import AUTO, Column, Config, CsvSource, JsonLinesSource, ParquetSource, SqlSource, categorical, numeric
from mlprod.errors import DataError
from mlprod.etl import dry_run
from tests.plain import ID, csv_rows, small_config, table_text
from tests.refused import argv

ROWS = 3000
COLUMNS = (
    ID,
    numeric("x", type=AUTO),
    categorical("c", type=AUTO),
    Column(name="secret", type="string", role="group", sensitive=True),
)


def text(rows: int = ROWS) -> str:
    """Rows whose types change behind the first thousand."""
    values = ((i, i if i < 2000 else i + 0.5, i % 3 if i < 2000 else "red", f"canary{i}", i % 2) for i in range(rows))
    return table_text("id,x,c,secret,y", *values)


def sources_of(folder: Path) -> dict[str, object]:
    """The rows in everything that a source can be made of."""
    plain = folder / "rows.csv"
    plain.write_text(text())
    (folder / "rows.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    rows = [{k: int(v) if k in ("id", "y") else v for k, v in row.items()} for row in csv_rows(plain)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(
        pacsv.read_csv(plain, convert_options=pacsv.ConvertOptions(column_types={"x": pa.string()})), folder / "rows.parquet"
    )
    with closing(sqlite3.connect(folder / "rows.db")) as db, db:
        db.execute("CREATE TABLE rows (id INTEGER, x TEXT, c TEXT, secret TEXT, y INTEGER)")
        db.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", [tuple(row.values()) for row in rows])
    kinds = {
        "csv": CsvSource,
        "csv.gz": CsvSource,
        "jsonl": JsonLinesSource,
        "jsonl.gz": JsonLinesSource,
        "parquet": ParquetSource,
    }
    files = {suffix: kind(path=str(folder / f"rows.{suffix}")) for suffix, kind in kinds.items()}
    return {**files, "sqlite": SqlSource(url=f"sqlite:///{folder}/rows.db", table="rows")}


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return small_config(tmp_path, text(), COLUMNS)


def test_the_first_rows_of_any_source_say_the_same(cfg, tmp_path):
    """Of a packed file only what is looked at is read; types that are open are those of these rows."""
    for kind, source in sources_of(tmp_path).items():
        seen = dry_run.look(dataclasses.replace(cfg.etl, source=source))
        assert seen.rows.num_rows == dry_run.SAMPLE_ROWS, kind
        assert seen.rows["id"].to_pylist() == list(range(dry_run.SAMPLE_ROWS)), kind
        assert {c.name: c.type for c in seen.etl.columns} == {"id": "int64", "x": "int64", "c": "int64", "secret": "string"}, kind


def test_nothing_is_written_and_nothing_sensitive_is_shown(cfg, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    before = sorted(tmp_path.rglob("*"))
    dry_run.main(cfg)
    told = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "canary" not in told
    assert "(hidden)" in told
    assert re.search(r"^ x +int64\* +numeric +0\.0% +0 +1 +2 *$", told, re.MULTILINE)
    assert re.search(r"^ c +int64\* +categorical +0\.0% +0 +1 +2 *$", told, re.MULTILINE)
    assert "rows.csv: 1 file(s), 0.1 MB, about 3," in told
    assert "label y > 0.5: 50.0% of 1,000 with a value" in told
    assert "types marked * are of these rows" in told


def test_rows_that_are_not_what_the_config_says_are_counted(tmp_path, capsys):
    """They are told, not refused: the build does what bad_rows says. A sensitive value is hidden."""
    columns = (ID, numeric("x"), numeric("z", sensitive=True))
    body = table_text("id,x,z,more,y", (0, 1, 1, 1, 0), (1, "many", 1, 1, 1), (2, 1, "canary", 1, 0), (3, 1, 1, 1, 1)) + "4,1\n"
    dry_run.main(small_config(tmp_path, body, columns))
    told = capsys.readouterr().out
    assert f"3 not what the config says (bad_rows='refuse'); the first, {tmp_path}/rows.csv line 3: column 'x': 'many' is" in told
    assert "canary" not in told
    assert "left in the source: more" in told


def test_mistakes_are_told_as_the_build_tells_them(tmp_path):
    cfg = small_config(tmp_path, table_text("id,y", (0, 1)))
    with pytest.raises(DataError, match=r"rows\.csv has no column 'x'"):
        dry_run.main(cfg)
    with pytest.raises(DataError, match="the source has no rows"):
        dry_run.main(small_config(tmp_path, "id,x,y\n"))
    for source in (JsonLinesSource, ParquetSource, CsvSource):
        with pytest.raises(DataError, match="there is no file"):
            dry_run.main(small_config(tmp_path, None, source=source(path=str(tmp_path / "none"))))


def test_a_hook_and_its_columns_are_tried_on_the_first_rows(tmp_path, capsys):
    columns = (ID, numeric("x"), numeric("double", derived=True))
    cfg = small_config(tmp_path, table_text("id,x,y", (0, 1, 0), (1, None, 1), (2, 7, 1), (3, 2, None)), columns, transform=twice)
    dry_run.main(cfg)
    assert re.search(r"^ double +float64 +numeric, derived +25\.0% +2 *$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(DataError, match="is not row-wise"):
        dry_run.main(dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, transform=centred)))


def twice(chunk):
    return (chunk[["x"]] * 2).rename(columns={"x": "double"})


def centred(chunk):
    return (chunk[["x"]] - chunk["x"].max()).rename(columns={"x": "double"})


def test_the_option_of_the_verb(csv, tmp_path, capsys):
    """The whole way from the command line; a dataset that is there does not count."""
    words = [f"--config.dataset={tmp_path / 'none'}", f"--config.etl.source.path={csv}"]
    assert cli.run(argv("etl", "--dry-run", *words)) == 0
    assert "nothing is built" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert cli.run(argv("train", "--dry-run", *words)) == 2
