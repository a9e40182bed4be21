"""The whole build: one dataset for the same rows, however they are read, cut, shuffled, repeated or killed."""

import contextlib
import dataclasses
import fcntl
import json
import os
import random
import shutil
import sqlite3
import stat
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mlprod import features, manifest
from mlprod.config import ByHash, Column, Config, CsvSource, Label, Lookup, SqlSource, categorical, numeric
from mlprod.errors import DataError, WorkdirError
from mlprod.etl import extract, publish, run, sources, spill
from mlprod.etl import stored as stored_rows
from mlprod.etl.extract import source_columns
from mlprod.etl.label import label_column
from mlprod.etl.run import build, build_key
from mlprod.etl.schema import cast, hashable
from mlprod.hashing import PAD_ID, Hash128, hash_columns, mix_hash
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import open_store
from tests import rows
from tests.conftest import smoke_config
from tests.plain import ID, csv_rows, numbered, small_config, stored, table_text

GOLDEN_ID = "5a5a0a07ff27fcce83572afe296a0bbe"


def with_etl(cfg: Config, folder: Path, **changed) -> Config:
    """Returns the config with fields of `etl` changed, and a dataset of its own."""
    return dataclasses.replace(cfg, dataset=str(folder), etl=dataclasses.replace(cfg.etl, **changed))


def checksums(published: Manifest) -> dict[str, list[str]]:
    return {name: [shard.sha256 for shard in shards] for name, shards in published.splits.items()}


def key_of(cfg: Config) -> str:
    """Returns the build key that the source has now."""
    names = [c.name for c in [*source_columns(cfg.etl), label_column(cfg.etl.label)]]
    return build_key(cfg.etl, sources.identify(cfg.etl.source, names), [])


def to_sqlite(csv: Path, path: Path) -> SqlSource:
    """Returns the smoke rows as a table: the same values, their missing ones NULL."""
    names, kinds = rows.HEADER.split(","), {"x": "REAL", "color": "TEXT"}
    columns = ", ".join(f"{name} {kinds.get(name, 'INTEGER')}" for name in names)
    values = [[row[name] or None for name in names] for row in csv_rows(csv)]
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE rows ({columns})")
        db.executemany(f"INSERT INTO rows VALUES ({', '.join('?' * len(names))})", values)
    return SqlSource(url=f"sqlite:///{path}", table="rows", watermark="id")


# ---- the content -------------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_golden_dataset_id(published):
    """On every Python. If it moves, every dataset of every team is built anew: only with a new ETL_VERSION."""
    assert published.dataset_id == GOLDEN_ID


def test_the_dataset_is_what_a_plain_program_makes_of_the_rows(csv, dataset, published):
    """Medians by sorted(), vocabularies by Counter, ids by index(): every stored value of every split."""
    labelled = {int(r["id"]): r for r in csv_rows(csv) if r["y"]}
    found = {name: stored(dataset, published, name) for name in SPLITS}
    where = {int(i): name for name in SPLITS for i in found[name]["key_id"]}
    assert where.keys() == labelled.keys()
    assert sum(len(found[name]["label"]) for name in SPLITS) == len(labelled)

    def numbers(row):
        x, n = float(row["x"]) if row["x"] else None, int(row["n"])
        return {"x": x, "n": n, "product": None if x is None else x * n}

    train = [row for i, row in labelled.items() if where[i] == "train"]
    there = {name: sorted(v for v in (numbers(row)[name] for row in train) if v is not None) for name in ("x", "n", "product")}
    fill = {name: values[(len(values) - 1) // 2] for name, values in there.items()}
    words = {
        name: sorted(v for v, n in Counter(row[name] for row in train if row[name]).items() if n >= few)
        for name, few in (("color", 2), ("size", 1))
    }
    spec = features.loads((dataset / published.features).read_text())
    assert {f.name: f.fill for f in spec.numeric} == fill
    assert {f.name: list(f.vocabulary) for f in spec.categorical} == words
    for arrays in found.values():
        for i, key_id in enumerate(arrays["key_id"].tolist()):
            row = labelled[key_id]
            wanted = [fill[name] if v is None else v for name, v in numbers(row).items()]
            ids = [1 if not row[name] else words[name].index(row[name]) + 2 if row[name] in words[name] else 0 for name in words]
            assert arrays["numeric"][i].tolist() == np.array(wanted, np.float32).tolist()
            assert arrays["ids"][i].tolist() == ids
            assert (arrays["label"][i], arrays["day"][i]) == (float(row["y"]), int(row["day"]))


def test_no_group_is_on_both_sides_and_row_ids_are_unique(dataset, published):
    found = {name: stored(dataset, published, name) for name in SPLITS}
    days = [set(arrays["day"].tolist()) for arrays in found.values()]
    assert sum(map(len, days)) == len(set().union(*days)) == 60
    ids = np.concatenate([arrays["row_id"] for arrays in found.values()])
    assert len(np.unique(ids)) == len(ids)
    assert PAD_ID not in ids


def test_rows_lie_in_the_order_of_their_hash(csv, dataset, published):
    """Ascending in the 128-bit hash of the extracted row, so in a random order that nothing but the rows decides."""
    types = {"id": "int64", "day": "int64", "x": "float64", "n": "int64", "color": "string", "size": "int64", "y": "float64"}
    raw = csv_rows(csv)
    columns = {name: hashable(cast([row[name] or None for row in raw], kind)[0]) for name, kind in types.items()}
    hashes = hash_columns(columns, len(raw), published.hash_seed)
    rank = dict(zip((int(raw[i]["id"]) for i in np.lexsort((hashes.lo, hashes.hi))), range(len(raw)), strict=True))
    for name in SPLITS:
        ranks = [rank[i] for i in stored(dataset, published, name)["key_id"].tolist()]
        assert ranks == sorted(ranks)


# ---- the same rows, read in another way ---------------------------------------------------------------------------------


def test_chunks_do_not_count(make_config, published, tmp_path):
    """The same manifest but for the report's time: files, sums and checksums."""
    for chunk_rows in (7, 1000):
        again, fresh = build(with_etl(make_config(), tmp_path / str(chunk_rows), chunk_rows=chunk_rows))
        assert fresh
        assert again == published


def test_one_row_at_a_time(tmp_path):
    csv = rows.write(tmp_path / "few.csv", 300)
    found = [build(with_etl(smoke_config(csv, tmp_path, tmp_path), tmp_path / str(n), chunk_rows=n))[0] for n in (1, 300)]
    assert found[0] == found[1]


def test_neither_memory_nor_source_count(make_config, csv, published, tmp_path):
    """A database and a CSV of the same rows, in one bucket or many: one dataset, byte for byte."""
    source = to_sqlite(csv, tmp_path / "rows.db")
    for memory_bytes in (1 << 20, 1 << 30):
        again, _ = build(
            with_etl(make_config(), tmp_path / str(memory_bytes), source=source, memory_bytes=memory_bytes, chunk_rows=500)
        )
        assert again.dataset_id == published.dataset_id
        assert checksums(again) == checksums(published)


@pytest.mark.parametrize("bits", [0, 5, 8])
def test_buckets_do_not_count(bits, make_config, published, tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "num_bits", lambda *_: bits)
    again, _ = build(with_etl(make_config(), tmp_path / "d"))
    assert again == published


def test_the_order_of_the_input_does_not_count(make_config, csv, published, tmp_path):
    header, *lines = csv.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(5).shuffle(lines)
    (tmp_path / "rows.csv").write_text(header + "".join(lines), encoding="utf-8")
    again, _ = build(with_etl(make_config(), tmp_path / "d", source=CsvSource(path=str(tmp_path / "rows.csv"))))
    assert again.dataset_id == published.dataset_id
    assert checksums(again) == checksums(published)


# ---- duplicates and collisions -----------------------------------------------------------------------------------------


@pytest.fixture
def repeated(csv, tmp_path):
    """The smoke rows with every third of the first 600 once more, and every ninth three times more, in front."""
    header, *lines = csv.read_text(encoding="utf-8").splitlines(keepends=True)
    more = lines[:600:3] + lines[:600:9] * 2
    (tmp_path / "rows.csv").write_text(header + "".join(more + lines), encoding="utf-8")
    return CsvSource(path=str(tmp_path / "rows.csv")), sum(1 for line in more if not line.endswith(",\n"))


def test_exact_duplicates_are_dropped_across_the_whole_input(make_config, published, repeated, tmp_path):
    source, num_more = repeated
    again, _ = build(with_etl(make_config(), tmp_path / "d", source=source, chunk_rows=100))
    assert again.dataset_id == published.dataset_id
    report = json.loads((tmp_path / "d" / again.report).read_text())
    assert report["rows"]["duplicates"] == num_more
    assert report["rows"]["kept"] + report["rows"]["duplicates"] + report["rows"]["without_label"] == report["rows"]["read"]


def test_duplicates_may_be_kept_and_numbered(make_config, published, repeated, tmp_path):
    """Row ids stay unique, copies lie in one split and not side by side, and chunks still do not count."""
    source, num_more = repeated
    found = [
        build(with_etl(make_config(), tmp_path / str(n), source=source, dedup="none", chunk_rows=n))[0] for n in (100, 10_000)
    ]
    assert found[0] == found[1]
    arrays = [stored(tmp_path / "100", found[0], name) for name in SPLITS]
    ids = np.concatenate([a["row_id"] for a in arrays])
    assert len(np.unique(ids)) == len(ids) == sum(published.num_rows(name) for name in SPLITS) + num_more
    keys = [Counter(a["key_id"].tolist()) for a in arrays]
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert {n for count in keys for n in count.values()} == {1, 2, 4}
    train = arrays[0]["key_id"]
    assert (train[1:] == train[:-1]).sum() <= 2


@pytest.mark.parametrize("dedup", ["exact", "none"])
def test_rows_whose_hashes_collide_are_told_apart_by_value(dedup, tmp_path, monkeypatch):
    """With hashes of three bits every row collides with many; what is kept is the same for any chunk size."""

    def few_bits(columns, num_rows, seed):
        full = hash_columns(columns, num_rows, seed)
        return Hash128(full.hi & np.uint64(7 << 61), np.zeros(num_rows, np.uint64))

    monkeypatch.setattr(extract, "hash_columns", few_bits)
    unique = [(i, None if i % 7 == 0 else i % 5, i % 2) for i in range(120)]
    lines = unique + unique[::2] + unique[:10] * 2
    text = table_text("id,x,y", *sorted(lines, key=lambda row: row[0] * 31 % 17))
    found = []
    for chunk_rows in (1, 13, 1000):
        folder = tmp_path / str(chunk_rows)
        found.append(build(small_config(folder, text, dedup=dedup, chunk_rows=chunk_rows))[0])
        arrays = [stored(folder / "dataset", found[-1], name) for name in SPLITS if found[-1].splits[name]]
        wanted = Counter(row[0] for row in (unique if dedup == "exact" else lines))
        assert Counter(i for a in arrays for i in a["id"].tolist()) == wanted
        ids = np.concatenate([a["row_id"] for a in arrays])
        assert len(np.unique(ids)) == len(ids)
    assert found[0] == found[1] == found[2]


def test_copies_are_ordered_by_hashes_of_their_own(tmp_path):
    """The order hash is the row hash for the first copy, and mix(row hash, r) for copy r."""
    text = table_text("id,x,y", *[(i, 0.5, i % 2) for i in range(40)] * 3)
    published, _ = build(small_config(tmp_path, text, dedup="none", split=ByHash(eval=0.0, test=0.0)))
    i = np.arange(40)
    columns = {"id": i, "x": np.full(40, 0.5), "y": (i % 2).astype(float)}
    words = {name: hashable(cast(v.tolist(), "int64" if name == "id" else "float64")[0]) for name, v in columns.items()}
    row = hash_columns(words, 40, 0)
    copies = [row, *(mix_hash(row, np.full(40, r, np.uint64)) for r in (1, 2))]
    order = np.lexsort((np.concatenate([c.lo for c in copies]), np.concatenate([c.hi for c in copies])))
    assert stored(tmp_path / "dataset", published, "train")["id"].tolist() == np.tile(i, 3)[order].tolist()


# ---- killed and started again ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a build as a kill would: no handler of the package's catches it."""


def kill(monkeypatch, module, name: str, after: int) -> list[str]:
    """Makes a function die after its work is done, at its call number `after`; returns the list that its calls go to."""
    real, calls = getattr(module, name), []

    def dying(*args, **kwargs):
        result = real(*args, **kwargs)
        calls.append(name)
        if len(calls) == after:
            raise Killed
        return result

    monkeypatch.setattr(module, name, dying)
    return calls


TASKS = {"extract_part": 3, "settle_bucket": 16, "sort_bucket": 16, "_write_file": 6}  # of the build below
HOME = {"extract_part": extract, "settle_bucket": stored_rows, "sort_bucket": stored_rows}


@pytest.mark.parametrize(
    "name, after",
    [("extract_part", 1), ("extract_part", 3), ("settle_bucket", 5), ("sort_bucket", 16), ("_fit", 1), ("_write_file", 2),
     ("_write_report", 1)],
)  # fmt: skip
def test_a_build_goes_on_where_it_was_killed(name, after, make_config, published, tmp_path, monkeypatch, capsys):
    """There is no version until the end; no task that was done is done again; the end is the same, and leaves no work."""
    cfg = with_etl(make_config(), tmp_path / "d", chunk_rows=1000, workers=1)
    done = {task: kill(monkeypatch, HOME.get(task, publish), task, after if task == name else 0) for task in TASKS}
    with monkeypatch.context() as patch:
        if name not in TASKS:
            kill(patch, publish, name, after)
        patch.setattr(spill, "num_bits", lambda *_: 4)
        with pytest.raises(Killed):
            build(cfg)
    assert manifest.versions(open_store(str(tmp_path / "d"))) == []
    again, fresh = build(with_etl(cfg, tmp_path / "d", chunk_rows=7, workers=3))  # with other parts and buckets it would be none
    assert fresh
    assert again == published
    if (name, after) != ("extract_part", 1):  # a worker may have begun the next one before it was stopped
        assert "task(s) had been done by an attempt before" in capsys.readouterr().err
    assert {task: len(calls) for task, calls in done.items()} == {task: n + (task == name) for task, n in TASKS.items()}
    assert [p.name for p in (tmp_path / "d" / "work").iterdir()] == ["lock"]
    named = {tmp_path / "d" / shard.path for shards in again.splits.values() for shard in shards}
    assert named == set((tmp_path / "d" / "files").rglob("*.parquet"))


def test_work_whose_removal_was_killed_goes_with_the_next_start(tmp_path, monkeypatch):
    """The version is there, and nothing is to be done, but rows must not stay; what other builds have done does."""
    cfg = small_config(tmp_path, numbered(50))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        published, _ = build(cfg)
    work = Path(cfg.dataset) / "work"
    assert len(list(work.glob(".*.tmp/*"))) > 0
    (work / "other").mkdir()
    assert build(cfg) == (published, False)
    assert sorted(path.name for path in work.iterdir()) == ["lock", "other"]


@pytest.mark.parametrize("workers, chunk_rows", [(1, 7), (4, 100), (2, 10_000)])
def test_workers_and_parts_do_not_count(workers, chunk_rows, make_config, published, tmp_path):
    """The same bytes, whoever reads what: names, sums and SHA-256 of all files."""
    cfg = with_etl(make_config(), tmp_path / "d", chunk_rows=chunk_rows, workers=workers, memory_bytes=1 << 22)
    assert build(cfg)[0] == published


@pytest.mark.parametrize("dedup", ["exact", "none"])
def test_without_a_key_nothing_counts_either(dedup, make_config, csv, tmp_path, monkeypatch):
    """Where buckets of keys are those of the order, and rows are gathered from where they were read: as where they are not."""
    made = []
    for i, (workers, chunk_rows, bits) in enumerate(((1, 10_000, 0), (3, 7, 0), (2, 100, 6))):
        monkeypatch.setattr(spill, "num_bits", lambda *_, bits=bits: bits)
        changed = {"key": (), "dedup": dedup, "workers": workers, "chunk_rows": chunk_rows}
        made.append(build(with_etl(make_config(), tmp_path / str(i), **changed))[0])
    assert made[0] == made[1] == made[2]
    found = np.concatenate([stored(tmp_path / "0", made[0], name)["row_id"] for name in SPLITS])
    assert len(set(found.tolist())) == len(found) == sum(made[0].num_rows(name) for name in SPLITS)


def test_built_again_nothing_is_done(make_config, published, dataset):
    """Also with other fields that do not decide the content."""
    before = {p: p.stat().st_mtime_ns for p in dataset.rglob("*")}
    for cfg in (make_config(), with_etl(make_config(), dataset, chunk_rows=10, memory_bytes=1 << 20)):
        assert build(cfg) == (published, False)
    assert {p: p.stat().st_mtime_ns for p in dataset.rglob("*")} == before


def test_another_content_is_another_version(make_config, tmp_path):
    """The one before stays as it was, and can still be read."""
    cfg = small_config(tmp_path, numbered(50))
    first, _ = build(cfg)
    (tmp_path / "rows.csv").write_text(numbered(51))
    second, fresh = build(cfg)
    assert (fresh, second.version, manifest.versions(open_store(cfg.dataset))) == (True, 2, [1, 2])
    assert second.dataset_id != first.dataset_id
    assert manifest.read(open_store(cfg.dataset), 1) == first
    for published in (first, second):
        for shard in (s for shards in published.splits.values() for s in shards):
            assert manifest.sha256_file(Path(cfg.dataset) / shard.path) == shard.sha256


def test_files_of_a_version_are_never_rewritten(tmp_path):
    """Not even when the config goes back to what an older version holds."""
    cfg = small_config(tmp_path, numbered(50))
    first, _ = build(cfg)
    files = [Path(cfg.dataset) / s.path for shards in first.splits.values() for s in shards]
    before = [(f.stat().st_ino, f.stat().st_mtime_ns) for f in files]
    for n in (51, 50):
        (tmp_path / "rows.csv").write_text(numbered(n))
        build(cfg)
    assert [(f.stat().st_ino, f.stat().st_mtime_ns) for f in files] == before


def test_a_build_that_waited_does_not_build_again(tmp_path, monkeypatch):
    """Another process may have built the same between the first look and the lock."""
    cfg = small_config(tmp_path, numbered(50))
    real = run.held

    @contextlib.contextmanager
    def slow(dataset):
        monkeypatch.setattr(run, "held", real)
        build(cfg)  # the other process
        with real(dataset):
            yield

    monkeypatch.setattr(run, "held", slow)
    assert build(cfg)[1] is False
    assert manifest.versions(open_store(cfg.dataset)) == [1]


def test_a_second_build_is_refused_while_one_runs(tmp_path):
    """By the lock of a living process; a lock file that a dead one left is no hindrance."""
    cfg = small_config(tmp_path, numbered(50))
    lock = Path(cfg.dataset) / "work" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        held.write("process 7")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(WorkdirError, match="is being built by process 7; wait for it to end"):
            build(cfg)
    assert build(cfg)[1]


def test_work_is_private_and_an_unwritable_place_is_refused(tmp_path, monkeypatch):
    cfg = small_config(tmp_path, numbered(50))
    kill(monkeypatch, run, "settle_all", 1)
    with pytest.raises(Killed):
        build(cfg)
    folders = [p for p in (Path(cfg.dataset) / "work").iterdir() if p.is_dir()] + [Path(cfg.dataset) / "work"]
    assert {stat.S_IMODE(os.stat(f).st_mode) for f in folders} == {0o700}
    (tmp_path / "file").touch()
    with pytest.raises(WorkdirError, match="cannot be written"):
        build(dataclasses.replace(cfg, dataset=str(tmp_path / "file" / "dataset")))


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    cfg = small_config(tmp_path, numbered(50))
    real = run.extract

    def growing(*args, **options):
        counts = real(*args, **options)
        (tmp_path / "rows.csv").write_text(numbered(51))
        return counts

    with monkeypatch.context() as patch:
        patch.setattr(run, "extract", growing)
        with pytest.raises(DataError, match="the source changed while it was read"):
            build(cfg)
    assert manifest.versions(open_store(cfg.dataset)) == []
    assert build(cfg)[0].source["rows_read"] == 51


# ---- what a build is told by -------------------------------------------------------------------------------------------


def test_the_build_key_follows_the_sources_and_the_config(tmp_path):
    """A changed file, a changed lookup, a data field: another key. Anything else: the same."""
    (tmp_path / "names.csv").write_text("id,name\n1,a\n")
    lookup = Lookup(path=str(tmp_path / "names.csv"), key="id", columns={"name": "name"})
    cfg = small_config(tmp_path, numbered(20), (ID, numeric("x"), categorical("name")), lookups=(lookup,))
    keys = [key_of(cfg)]
    assert key_of(cfg) == keys[0]
    assert key_of(with_etl(cfg, tmp_path / "elsewhere", chunk_rows=1, memory_bytes=1 << 20)) == keys[0]
    os.utime(tmp_path / "rows.csv", (1, 1))
    assert key_of(cfg) == keys[0], "the content of a file counts, not its time"
    keys += [
        key_of(with_etl(cfg, tmp_path, **changed))
        for changed in ({"group_rows": 32}, {"hash_seed": 1}, {"label": Label(column="y", above=0.4)})
    ]
    keys.append(key_of(with_etl(cfg, tmp_path, transform=lambda rows: rows)))
    (tmp_path / "rows.csv").write_text(numbered(20).replace("\n3,1.5,", "\n3,1.6,"))
    keys.append(key_of(cfg))
    (tmp_path / "names.csv").write_text("id,name\n1,b\n")
    keys.append(key_of(cfg))
    assert len(set(keys)) == len(keys)


def test_the_build_key_follows_a_tables_count_and_watermark(csv, make_config, tmp_path):
    cfg = with_etl(make_config(), tmp_path / "d", source=to_sqlite(csv, tmp_path / "rows.db"))
    keys = [key_of(cfg)]
    assert key_of(cfg) == keys[0]
    for sql in (
        "DELETE FROM rows WHERE id = 5",
        "INSERT INTO rows (id, day, n, size, y) VALUES (5, 1, 1, 1, 1)",
        "UPDATE rows SET id = 9999 WHERE id = 2999",
    ):
        with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as db, db:
            db.execute(sql)
        keys.append(key_of(cfg))
    assert keys[2] == keys[0], "count and watermark are as they were: that is all that a key sees"
    assert len(set(keys)) == 3
    without = with_etl(cfg, tmp_path / "d", source=dataclasses.replace(cfg.etl.source, watermark=""))
    assert key_of(without) != key_of(without), "without a watermark a table is read again"


# ---- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, changed, message",
    [
        ("id,x,y\n", {}, "the source has no rows"),
        ("id,x,y\n1,2,\n2,3,NA\n", {}, r"none of the 2 rows has a value in config\.etl\.label\.column='y'"),
        (numbered(20), {"label": Label(column="y", above=7.0)}, r"every training row has label 0: config\.etl\.label says y > 7"),
        (numbered(20), {"label": Label(column="y", above=-1.0)}, "every training row has label 1"),
        (numbered(20), {"split": ByHash(eval=0.5, test=0.4999999)}, "the split left no training rows"),
        (numbered(20) + "20,,1\n", {"columns": (ID, numeric("x", missing="refuse"))}, r"column 'x' has 1 missing value\(s\)"),
        (numbered(20) + "20,x,1\n", {}, r"rows\.csv line 22: column 'x': 'x' is not float64"),
        (numbered(20) + "20,1\n", {}, r"rows\.csv line 22: has 2 fields, the header 3"),
        ("id,x,y\n1,,1\n2,,0\n", {"split": ByHash(eval=0.0, test=0.0)}, "column 'x' has no value in the training split"),
        (numbered(20), {"columns": (ID, numeric("xx"))}, r"rows\.csv has no column 'xx'; did you mean 'x'\?"),
    ],
)
def test_rows_that_cannot_be_a_dataset_are_refused(text, changed, message, tmp_path):
    """One line that names the field, file or column; no version is made."""
    with pytest.raises(DataError, match=message):
        build(small_config(tmp_path, text, **changed))
    assert manifest.versions(open_store(str(tmp_path / "dataset"))) == []


def test_a_sensitive_column_is_shown_nowhere(tmp_path):
    """Not in the report, the manifest or an error."""
    columns = (Column(name="id", type="int64", role="group", sensitive=True), numeric("x", sensitive=True))
    text = table_text("id,x,y", *((i + 4321000, i + 0.98765, i % 2) for i in range(40)))
    published, _ = build(small_config(tmp_path, text, columns))
    shown = (tmp_path / "dataset" / published.report).read_text() + (tmp_path / "dataset" / manifest.manifest_path(1)).read_text()
    assert "43210" not in shown
    assert "98765" not in shown
    with pytest.raises(DataError, match="hidden") as caught:
        build(small_config(tmp_path / "bad", text + "1,98765x,1\n", columns))
    assert "98765" not in str(caught.value)


def test_a_lookup_is_joined_in_the_build(tmp_path):
    columns = (ID, numeric("x"), categorical("name"))
    (tmp_path / "names.csv").write_text(table_text("id,name", *((i, "ab"[i % 4 // 2]) for i in range(0, 40, 2))))
    lookup = Lookup(path=str(tmp_path / "names.csv"), key="id", columns={"name": "name"})
    published, _ = build(small_config(tmp_path, numbered(40), columns, lookups=(lookup,), split=ByHash(eval=0.0, test=0.0)))
    arrays = stored(tmp_path / "dataset", published, "train")
    wanted = {i: 1 if i % 2 else 2 + i % 4 // 2 for i in range(40)}
    assert dict(zip(arrays["id"].tolist(), arrays["ids"][:, 0].tolist(), strict=True)) == wanted
