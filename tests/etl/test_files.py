"""Packed, encoded and remote files give the dataset of the plain one, and are named as the source has them."""

import bz2
import dataclasses
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from mlprod.config import (
    ByColumn,
    Column,
    CsvSource,
    JsonLinesSource,
    NextToken,
    ParquetSource,
    TextSource,
    categorical,
    numeric,
)
from mlprod.errors import DataError
from mlprod.etl import sources
from mlprod.etl.files import files_of
from mlprod.etl.run import build
from tests.object_store import BUCKET, Bucket, address, serving
from tests.plain import ID, numbered, small_config, table_text

TEXT = numbered(60).replace("id,x,y", "id,x,y,näme").replace("\n", ',"Jö\nrg"\n')
TEXT = TEXT.replace('näme,"Jö\nrg"', "näme")
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "zst": lambda body: pa.compress(body, "zstd", asbytes=True)}


def id_of(folder: Path, source, **etl) -> str:
    """Builds a dataset of a source; returns its id, and leaves no copies behind."""
    cfg = small_config(folder, source=source, **etl)
    published, _ = build(cfg)
    assert [path.name for path in (folder / "dataset" / "work").iterdir()] == ["lock"]
    return published.dataset_id


@pytest.fixture(scope="module")
def plain_id(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "rows.csv").write_text(TEXT, encoding="utf-8")
    return id_of(folder, CsvSource(path=str(folder / "rows.csv")))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
@pytest.mark.parametrize("suffix", ["", *PACK])
def test_a_packed_or_encoded_csv_is_the_plain_one(suffix, encoding, tmp_path, plain_id):
    """Whatever it is packed by and encoded in."""
    path = tmp_path / f"rows.csv.{suffix}".rstrip(".")
    path.write_bytes(PACK.get(suffix, bytes)(TEXT.encode(encoding)))
    source = CsvSource(path=str(path), encoding=encoding)
    assert id_of(tmp_path, source, chunk_rows=7) == plain_id
    names = ["id", "näme"]
    (whole,) = sources.chunks(source, names, 1000)
    assert whole.columns["näme"] == ["Jö\nrg"] * 60


def test_plain_and_packed_files_lie_side_by_side(tmp_path, plain_id):
    """Several members in one file, too."""
    head, *lines = TEXT.split("\n")
    cut = [f"{head}\n" + "\n".join(lines[a:b]) + "\n" for a, b in ((0, 40), (40, 80), (80, 120))]
    (tmp_path / "a-1.csv").write_text(cut[0])
    (tmp_path / "a-2.csv.gz").write_bytes(gzip.compress(cut[1][:9].encode()) + gzip.compress(cut[1][9:].encode()))
    (tmp_path / "a-3.csv.zst").write_bytes(PACK["zst"](cut[2].encode()))
    assert id_of(tmp_path, CsvSource(path=str(tmp_path / "a-*"))) == plain_id


@pytest.mark.parametrize("kind, name", [(JsonLinesSource, "rows.jsonl.gz"), (ParquetSource, "rows.parquet.gz")])
def test_other_formats_are_unpacked_too(kind, name, tmp_path, plain_id):
    rows = [{"id": i, "x": i * 0.5, "y": i % 2} for i in range(60)]
    if kind is JsonLinesSource:
        body = "\n".join(map(json.dumps, rows)).encode()
    else:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        body = sink.getvalue().to_pybytes()
    (tmp_path / name).write_bytes(gzip.compress(body))
    source = kind(path=str(tmp_path / name))
    assert id_of(tmp_path, source) == plain_id
    assert [i for chunk in sources.chunks(source, ["id"], 7) for i in chunk.columns["id"]] == list(range(60))


def test_a_wrong_value_is_told_with_the_packed_file_and_its_line(tmp_path):
    """Not with that of the copy."""
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(b"id,x,y\n1,2,0\n2,two,1\n"))
    with pytest.raises(DataError) as told:
        id_of(tmp_path, CsvSource(path=str(tmp_path / "rows.csv.gz")))
    assert str(told.value).startswith(f"{tmp_path}/rows.csv.gz line 3: column 'x': 'two' is not float64")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"id": 1, "x": 2, "y": 0}\n{\n'))
    with pytest.raises(DataError) as told:
        id_of(tmp_path / "b", JsonLinesSource(path=str(tmp_path / "rows.jsonl.gz")))
    assert str(told.value).startswith(f"{tmp_path}/rows.jsonl.gz line 2: is no JSON")


@pytest.mark.parametrize(
    "name, body, encoding, wanted",
    [
        ("rows.csv.gz", gzip.compress(TEXT.encode())[:-9], "utf-8", "rows.csv.gz cannot be read: Truncated compressed stream"),
        ("rows.csv.gz", b"id,x,y\n1,2,0\n", "utf-8", "rows.csv.gz cannot be read: .*"),
        ("rows.csv.gz", gzip.compress(b"id,x,z\n1,2,0\n"), "utf-8", "rows.csv.gz has no column 'y'"),
        ("rows.csv", "id,x,y,n\n1,2,0,ä\n".encode("latin-1"), "utf-8", "rows.csv line 2: not UTF-8 text; .*encoding"),
        ("rows.csv.gz", gzip.compress("id,x,y,n\n1,2,0,ä\n".encode("latin-1")), "utf-8", "rows.csv.gz line 2: not UTF-8 text"),
        ("rows.csv", "id,x,y,n\n1,2,0,ä\n".encode("latin-1"), "utf-16", "rows.csv: not UTF-16 text; name the right one"),
    ],
)
def test_a_damaged_or_misnamed_file_is_one_line(name, body, encoding, wanted, tmp_path):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=wanted):
        id_of(tmp_path, CsvSource(path=str(tmp_path / name), encoding=encoding))


def test_a_copy_is_made_once(tmp_path, monkeypatch, plain_id, capsys):
    """A build that was killed behind unpacking does not unpack again."""
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    cfg = small_config(tmp_path, source=CsvSource(path=str(tmp_path / "rows.csv.gz")))
    with monkeypatch.context() as patch:
        patch.setattr("mlprod.etl.run.settle_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(cfg)
    monkeypatch.setattr("mlprod.etl.sources.copy_plain", lambda *_: 1 / 0)
    assert build(cfg)[0].dataset_id == plain_id


# ---- an object store ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serving() as found:
        yield found


def test_remote_files_are_the_local_ones(bucket, tmp_path, plain_id):
    """Packed and plain, by pattern and by name; a change of one is another source."""
    head, *lines = TEXT.split("\n")
    for n, (a, b) in enumerate(((0, 40), (40, 120))):
        body = (f"{head}\n" + "\n".join(lines[a:b]) + "\n").encode()
        bucket.put(f"raw/deep/part-{n}.csv" + (".gz" if n else ""), gzip.compress(body) if n else body)
    bucket.put("raw/other.csv", b"no,rows\n")
    source = CsvSource(path=address(bucket.port, f"{BUCKET}/raw/**/part-*"))
    assert [name.partition("?")[0].rpartition("/")[2] for name in files_of(source.path)] == ["part-0.csv", "part-1.csv.gz"]
    assert id_of(tmp_path, source) == plain_id
    before = sources.identify(source, ["id"])
    bucket.put("raw/deep/part-0.csv", b"id,x,y\n1,2,0\n")
    assert sources.identify(source, ["id"]) != before
    with pytest.raises(DataError, match="no file fits 's3://bucket/raw/none-"):
        files_of(address(bucket.port, f"{BUCKET}/raw/none-*"))
    with pytest.raises(DataError, match=r"there is no file 's3://bucket/raw/none\.csv'"):
        id_of(tmp_path / "none", CsvSource(path=address(bucket.port, f"{BUCKET}/raw/none.csv")))


# ---- folders -----------------------------------------------------------------------------------------------------------

PARTS = (ID, numeric("x"), categorical("place"), numeric("year", type="int64"))


def partitioned(folder: Path) -> tuple[str, str]:
    """Writes rows as Spark and pyarrow do, in folders of their columns' values; returns the folder, and the rows as CSV."""
    places, rows = ["New York", "a/b=c", None], range(90)
    table = pa.table({
        "id": rows, "x": [i * 0.5 for i in rows], "y": [i % 2 for i in rows], "place": [places[i % 3] for i in rows],
        "year": pa.array([2020 + i % 2 for i in rows], pa.int32()),
    })  # fmt: skip
    size = {"max_rows_per_file": 20, "max_rows_per_group": 20}
    pads.write_dataset(
        table, folder / "rows", format="parquet", partitioning=["place", "year"], partitioning_flavor="hive", **size
    )
    (folder / "rows" / "_SUCCESS").touch()
    (folder / "rows" / "_temporary").mkdir()
    (folder / "rows" / "_temporary" / "half.parquet").write_text("no rows")
    (folder / "rows" / ".crc").write_text("no rows")
    text = table_text("id,x,y,place,year", *(tuple(row.values()) for row in table.to_pylist()))
    return str(folder / "rows"), text


@pytest.fixture(scope="module")
def placed(tmp_path_factory) -> tuple[str, str]:
    """Returns a partitioned folder, and the id of the dataset of its rows."""
    folder = tmp_path_factory.mktemp("placed")
    path, text = partitioned(folder)
    return path, build(small_config(folder / "csv", text, PARTS))[0].dataset_id


@pytest.mark.parametrize("chunk_rows", [7, 1000])
@pytest.mark.parametrize("type_name", ["int64", "auto"])
def test_folders_that_name_values_are_columns(chunk_rows, type_name, placed, tmp_path):
    """Text, numbers and missing values; what is hidden among the files is left out."""
    path, wanted = placed
    columns = tuple(dataclasses.replace(c, type=type_name) if c.name == "year" else c for c in PARTS)
    assert len(files_of(path)) == 6
    assert id_of(tmp_path, ParquetSource(path=path), columns=columns, chunk_rows=chunk_rows) == wanted
    assert sources.column_names(ParquetSource(path=path)) == ["id", "x", "y", "place", "year"]


def test_what_a_folder_is_called_is_part_of_what_a_source_is(placed, tmp_path):
    """The same files elsewhere are the same source; under another value they are not."""
    path = shutil.copytree(placed[0], tmp_path / "rows")
    identities = [sources.identify(ParquetSource(path=str(p)), ["id"]).description for p in (placed[0], path)]
    assert identities[0] == identities[1]
    (path / "place=New%20York").rename(path / "place=Boston")
    assert sources.identify(ParquetSource(path=str(path)), ["id"]).description != identities[0]


def test_a_value_in_a_folders_name_is_told_like_any_other(placed, tmp_path):
    columns = (ID, numeric("x"), Column(name="place", type="int64", role="input"))
    with pytest.raises(DataError, match=r"place=.*parquet row 1: column 'place': '.*' is not int64"):
        id_of(tmp_path, ParquetSource(path=placed[0]), columns=columns)
    with pytest.raises(DataError, match=r"has no column 'plaice'; did you mean 'place'\?"):
        id_of(tmp_path, ParquetSource(path=placed[0]), columns=(ID, numeric("x"), categorical("plaice")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no file below"):
        id_of(tmp_path, ParquetSource(path=str(tmp_path / "empty")))


def test_a_remote_folder_is_the_local_one(bucket, placed, tmp_path):
    """Its address ends with a slash; the copies keep what the folders say."""
    path, wanted = placed
    bucket.upload(Path(path), "placed")
    source = ParquetSource(path=address(bucket.port, f"{BUCKET}/placed/"))
    assert id_of(tmp_path, source, columns=PARTS) == wanted


def test_remote_texts_are_the_local_ones(bucket, tmp_path):
    """Documents of files of a folder, one of them packed, with the files' names as rows have them."""
    ids = []
    for name in ("old/a.txt", "b.txt.gz"):
        body = f"what {name} says\nin two lines\n".encode()
        body = gzip.compress(body) if name.endswith("gz") else body
        bucket.put(f"books/{name}", body)
        (tmp_path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "books" / name).write_bytes(body)
    for i, path in enumerate((str(tmp_path / "books"), address(bucket.port, f"{BUCKET}/books/"))):
        by_file = {
            "columns": (Column(name="file", type="string", role="input"),),
            "split": ByColumn(column="file", eval=("b.txt.gz",)),
        }
        source = TextSource(path=path, separator="\n")
        cfg = small_config(tmp_path / str(i), source=source, label=NextToken(length=8), **by_file)
        published, _ = build(cfg)
        ids.append(published.dataset_id)
        assert published.num_rows("eval")
    assert ids[0] == ids[1]
