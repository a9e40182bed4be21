"""`mlprod data`: what there is, what is in it, whether it is what was written, what differs. Changes nothing."""

import dataclasses
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlprod import changes, cli, datasets, manifest
from mlprod.config import ByHash, Column, Config, categorical, numeric
from mlprod.errors import DamageError, DataError
from mlprod.etl.run import build
from mlprod.etl.work import held
from mlprod.hashing import key
from mlprod.manifest import SPLITS, Manifest, manifest_path
from mlprod.store import open_store
from tests.conftest import RECIPE
from tests.object_store import address, serving
from tests.plain import ID, small_config, stored, stored_table, table_text
from tests.refused import refused

Capture = pytest.CaptureFixture[str]
CANARY = 770077.125  # in a sensitive column's every value
WORD = "tulip"
COLUMNS = (
    ID, numeric("x"), numeric("age", sensitive=True), categorical("color"), categorical("name", sensitive=True),
    Column(name="w", type="float64", role="weight"), Column(name="at", type="timestamp", role="time"),
    Column(name="town", type="string", role="input", sensitive=True),
)  # fmt: skip
STORAGES = ("packed", "columns")


def text_of(rows: range) -> str:
    """Rows of all types; some values are missing."""
    return table_text(
        "id,x,age,color,name,w,at,town,y",
        *(
            (i, None if i % 7 == 0 else i * 0.1, CANARY, ("red", "grün", None)[i % 3], f"{WORD}{i % 4}", 1 + i % 2,
             f"2024-01-{i % 28 + 1:02d}T00:00:00", f"{WORD}ville", key(i) % 2) for i in rows
        ),
    )  # fmt: skip


def make(folder: Path, rows: range, **etl: Any) -> Config:
    """Builds a version of a dataset with several files."""
    usual = {"key": ("id", "town"), "file_groups": 8}
    cfg = small_config(folder, text_of(rows), COLUMNS, **{**usual, **etl})
    cfg = dataclasses.replace(cfg, tracking=dataclasses.replace(cfg.tracking, progress=False))
    build(cfg)
    return cfg


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """A dataset of each storage, of two versions: rows go and come, and splits change. Shared: copy it."""
    found = {}
    for storage in STORAGES:
        folder = tmp_path_factory.mktemp(storage)
        make(folder, range(400), storage=storage)
        found[storage] = make(folder, range(100, 480), storage=storage, split=ByHash(eval=0.3, test=0.2))
    return found


@pytest.fixture(params=STORAGES)
def copied(request: pytest.FixtureRequest, built: dict[str, Config], tmp_path: Path) -> Config:
    """A copy of a dataset, of each storage in turn."""
    cfg = built[request.param]
    return dataclasses.replace(cfg, dataset=str(shutil.copytree(cfg.dataset, tmp_path / "copy")))


def asked(cfg: Config, capsys: Capture, *words: str) -> str:
    """What the verb prints."""
    capsys.readouterr()
    options = cli._parser("data").parse_args([*words, "--config", "none"])
    try:
        datasets.main(cfg, options)
    finally:
        told = capsys.readouterr()
        assert WORD not in told.out + told.err
        assert "770077" not in told.out + told.err
    return told.out


def wrong(cfg: Config, capsys: Capture, *words: str) -> str:
    """What `verify` prints of a dataset that is damaged."""
    capsys.readouterr()
    options = cli._parser("data").parse_args(["verify", *words, "--config", "none"])
    with pytest.raises(DamageError, match="not what was written; restore what is named"):
        datasets.main(cfg, options)
    return capsys.readouterr().out


def version(cfg: Config, number: int = 0) -> Manifest:
    return manifest.read(open_store(cfg.dataset), number)


def edit(cfg: Config, number: int, change: Callable[[dict[str, Any]], Any], *, honest: bool = True) -> None:
    """Changes a manifest; `honest`: its own checksum fits afterwards."""
    path = Path(cfg.dataset) / manifest_path(number)
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body | ({"sha256": manifest.checksum(body)} if honest else {})))


# ---- ls ----------------------------------------------------------------------------------------------------------------


def test_ls_has_a_row_a_version(copied: Config, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of versions that this program cannot read, or whose files are not there."""
    monkeypatch.setenv("COLUMNS", "200")
    first, second = version(copied, 1), version(copied, 2)
    (Path(copied.dataset) / second.splits["train"][0].path).unlink()
    for number in (3, 4, 5):
        shutil.copyfile(Path(copied.dataset) / manifest_path(1), Path(copied.dataset) / manifest_path(number))
    edit(copied, 3, lambda body: body.update(format=2))
    (Path(copied.dataset) / manifest_path(4)).write_text("{")
    edit(copied, 5, lambda body: body.update(splits=[]))
    lines = [line.strip() for line in asked(copied, capsys, "ls").splitlines() if line.strip()]
    rows = " / ".join(f"{first.num_rows(split):,}" for split in SPLITS)
    files = sum(map(len, first.splits.values()))
    assert re.fullmatch(
        rf"1 +{first.dataset_id[:12]} +\d{{4}}-\d\d-\d\d \d\d:\d\d +{rows} +{files} +0\.\d +{first.storage}, mlprod \S+, format 3"
        r" +whole", lines[2],
    )  # fmt: skip
    assert lines[3].startswith(f"2 {' ' * 7}{second.dataset_id[:12]}")
    assert lines[3].endswith("1 file(s) gone or cut")
    assert re.fullmatch(r"3 .* format 2 +not read by this mlprod", lines[4])
    assert [line.split()[0] + " " + line.split()[-1] for line in lines[5:]] == ["4 damaged", "5 damaged"]


def test_ls_tells_of_builds(copied: Config, capsys: Capture) -> None:
    """One that was killed, and one that is under way; a folder without a version is told too."""
    folder = Path(copied.dataset) / "work" / "0123"
    folder.mkdir(parents=True)
    (folder / "left").write_bytes(bytes(2_000_000))
    assert re.search(r"\nwork/0123: 2\.0 MB, changed \S+ \S+, stopped; `mlprod etl` goes on", asked(copied, capsys, "ls"))
    with held(Path(copied.dataset)):
        assert "under way, by process " in asked(copied, capsys, "ls")
    shutil.rmtree(folder.parents[1] / "manifests")
    assert asked(copied, capsys, "ls").startswith("work/0123")


# ---- show --------------------------------------------------------------------------------------------------------------


def shown(told: str) -> dict[str, list[str]]:
    """{column: the words of its line} of the rows that were shown."""
    below = told.partition("as they are stored")[2]
    found: dict[str, list[str]] = {}
    for words in map(str.split, below.splitlines()):
        if words and words[0] != "row" and not words[0].startswith("─"):
            found.setdefault(words[0], []).extend(words[1:])
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_show_has_the_first_rows(split: str, built: dict[str, Config], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they lie in the files: filled float32, a category's word, key, label, weight, row id; the same of either storage."""
    monkeypatch.setenv("COLUMNS", "300")
    told = {storage: asked(built[storage], capsys, "show", "--rows=7", f"--split={split}") for storage in STORAGES}
    rows, cfg = {storage: shown(text) for storage, text in told.items()}, built["packed"]
    assert rows["packed"] == rows["columns"]
    found, table = stored(Path(cfg.dataset), version(cfg), split), stored_table(Path(cfg.dataset), version(cfg), split)
    spec = json.loads((Path(cfg.dataset) / version(cfg).features).read_text())
    words = ["(unknown)", "(missing)", *next(f for f in spec["features"] if f["name"] == "color")["vocabulary"]]
    wanted = {
        "x": [str(v) for v in found["numeric"][:7, 0]], "color": [words[i] for i in found["ids"][:7, 0]],
        "label": [str(v) for v in found["label"][:7]], "w": [str(v) for v in found["w"][:7]],
        "row_id": [str(v) for v in found["row_id"][:7]], "key_id": [str(v) for v in found["key_id"][:7]],
        "at": [word for v in table["at"].to_pylist()[:7] for word in str(v).split()],
        "id": [str(v) for v in found["id"][:7]], **dict.fromkeys(("age", "name", "key_town"), ["(hidden)"] * 7),
    }  # fmt: skip
    assert rows["packed"] == wanted
    assert f"first 7 of {version(cfg).num_rows(split):,} rows of {split}, as they are stored" in told["packed"]


def test_show_reads_one_row_group(copied: Config, capsys: Capture) -> None:
    """All others may be nothing: of more rows than it has, those are shown; and none where none are asked for."""
    before, published = asked(copied, capsys, "show", "--rows=99"), version(copied)
    path = Path(copied.dataset) / published.splits["train"][0].path
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        stop = max(group.column(i).data_page_offset + group.column(i).total_compressed_size for i in range(group.num_columns))
        end = path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert stop < end
    path.write_bytes(path.read_bytes()[:stop] + bytes(end - stop) + path.read_bytes()[end:])
    assert asked(copied, capsys, "show", "--rows=99") == before
    assert "first 16 of " in before
    assert "; --rows=99 is more than its first row group" in before
    assert "as they are stored" not in asked(copied, capsys, "show", "--rows=0")


def test_show_tells_what_a_version_is(copied: Config, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity, columns with what was fitted, and the report; of a sensitive column nothing that was."""
    monkeypatch.setenv("COLUMNS", "200")
    told, published = asked(copied, capsys, "show", "--version=1"), version(copied, 1)
    assert f"dataset_id: {published.dataset_id}\n" in told
    assert "source: CsvSource, bytes " in told
    assert "key: id, town\n" in told
    fitted = {f["name"]: f for f in json.loads((Path(copied.dataset) / published.features).read_text())["features"]}
    numbers = [f"{fitted['x']['fill']:g}", f"{fitted['x']['mean']:.5g}", f"{fitted['x']['std']:.5g}"]
    lines = [line.split() for line in told.splitlines()]
    assert ["x", "float64", "float32", "feature", *numbers] in lines
    assert ["age", "float64", "float32", "feature,", "sensitive", *["(hidden)"] * 3] in lines
    assert ["color", "string", "int32", "feature", "4"] in lines
    assert "400 rows read" in told
    (Path(copied.dataset) / published.report).write_text("{")
    assert f"{published.report}: the report cannot be read" in asked(copied, capsys, "show", "--version=1")


def test_a_name_is_shown_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    """Brackets mean nothing, a text that moves the cursor is spelled out."""
    column = Column(name="[red]x[/]", type="string", kind="categorical")
    text = table_text("id,[red]x[/],y", *((i, f"\x1b[2J{'w' * 99}", i % 2) for i in range(60)))
    cfg = small_config(tmp_path, text, (ID, column))
    build(cfg)
    told = asked(cfg, capsys, "show", "--rows=1")
    assert "[red]x[/]" in told.partition("as they are stored")[2]
    assert "'\\x1b[2J" in told
    assert "\x1b" not in told.partition("as they are stored")[2]
    assert "w..." in told


# ---- verify ------------------------------------------------------------------------------------------------------------


def test_verify_says_ok(copied: Config, capsys: Capture) -> None:
    """Of every version, or of one, with what was read."""
    told = asked(copied, capsys, "verify").splitlines()
    for number, line in enumerate(told, 1):
        shards = [shard for split in version(copied, number).splits.values() for shard in split]
        groups, rows = sum(len(s.groups) for s in shards), sum(s.rows for s in shards)
        assert len(shards) > 4
        assert line.startswith(f"version {number}: OK, {len(shards)} files, {groups} row groups, {rows} rows, 0.000 GB in ")
        assert line.endswith(f"; dataset_id {version(copied, number).dataset_id}")
    assert len(told) == 2
    assert asked(copied, capsys, "verify", "--version=2").startswith("version 2: OK")


def test_no_flipped_bit_passes(copied: Config, capsys: Capture) -> None:
    """Of any kind of file, in any column; the file is named. Of the manifest: or it says the same as before."""
    chance, published = random.Random(5), version(copied, 1)
    paths = [shard.path for shards in published.splits.values() for shard in shards]
    for path in [*chance.choices(paths, k=16), *[published.features] * 6, *[manifest_path(1)] * 24]:
        file = Path(copied.dataset) / path
        whole = file.read_bytes()
        at, bit = chance.randrange(len(whole)), chance.randrange(8)
        flipped = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        file.write_bytes(flipped)
        told = path if path == manifest_path(1) and says_the_same(whole, flipped) else wrong(copied, capsys, "--version=1")
        assert path in told, f"bit {bit} of byte {at} of {path}"
        file.write_bytes(whole)
    assert asked(copied, capsys, "verify").count("OK") == 2


def test_a_damaged_manifest_is_never_one_of_another_format(copied: Config, capsys: Capture) -> None:
    """One flipped bit makes a 2 of the 3; and a manifest that is none is damaged as well."""
    path = Path(copied.dataset) / manifest_path(1)
    whole = path.read_text()
    for text in (whole.replace('"format": 3', '"format": 2'), "{", "[1]", '"sha256"'):
        path.write_text(text)
        for words in ([], ["--version=1"]):
            assert f"version 1: {manifest_path(1)}: it is not what its own checksum is of" in wrong(copied, capsys, *words)


def says_the_same(whole: bytes, flipped: bytes) -> bool:
    """Whether two texts are the same JSON data: 1e-05 may be 1E-05."""
    try:
        return bool(json.loads(whole) == json.loads(flipped))
    except ValueError:
        return False


@pytest.mark.parametrize("how", ["gone", "cut", "longer", "swapped"])
def test_every_wrong_file_is_named(how: str, copied: Config, capsys: Capture) -> None:
    """Not only the first; what is whole is not."""
    published, folder = version(copied, 2), Path(copied.dataset)
    train, other = published.splits["train"][0].path, published.splits["test"][0].path
    bodies = [(folder / path).read_bytes() for path in (train, other)]
    for path, body, another in ((train, *bodies), (other, *reversed(bodies))):
        changed = {"gone": b"", "cut": body[:-9], "longer": body + b"x", "swapped": another}[how]
        (folder / path).write_bytes(changed)
        if how == "gone":
            (folder / path).unlink()
    first, *lines = wrong(copied, capsys).splitlines()
    assert first.startswith("version 1: OK")
    reason = {"gone": "the file is gone", "swapped": "the manifest says"}.get(how, "it has [0-9,]+ bytes, the manifest says")
    assert sorted(line.split(": ")[1] for line in lines) == sorted([train, other])
    assert all(re.search(reason, line) for line in lines)


def test_damaged_row_groups_are_told(copied: Config, capsys: Capture) -> None:
    """Those that training reads; the columns behind them are checked as well."""
    shard = version(copied, 2).splits["train"][0]
    file = Path(copied.dataset) / shard.path
    whole = bytearray(file.read_bytes())
    whole[shard.spans[1][0] + 60] ^= 1
    whole[shard.spans[3][0] + 60] ^= 1
    file.write_bytes(whole)
    assert "its SHA-256 is not the manifest's; training reads row group 1, 3 of it" in wrong(copied, capsys)
    whole[shard.spans[1][0] + 60] ^= 1
    whole[shard.spans[3][0] + 60] ^= 1
    whole[shard.spans[0][1] + 5] ^= 1
    file.write_bytes(whole)
    assert "training reads nothing of what differs" in wrong(copied, capsys)


def rewritten(cfg: Config, change: Callable[[pa.Table], pa.Table]) -> None:
    """Writes a file of version 2 anew with other values, by the writer's own means, and a manifest that fits all but the sums."""
    from mlprod.etl.shards import ShardWriter
    from mlprod.etl.write import trained_columns

    published, folder = version(cfg, 2), Path(cfg.dataset)
    shard = published.splits["train"][0]
    table = pq.read_table(folder / shard.path)
    writer = ShardWriter(folder, shard.path, table.schema, trained_columns(published.columns))
    changed, start = change(table), 0
    for rows, content_sum in zip(shard.groups, shard.sums, strict=True):
        writer.add(changed.slice(start, rows), content_sum)
        start += rows
    body = json.loads(json.dumps(dataclasses.asdict(writer.close())))
    edit(cfg, 2, lambda manifest_body: manifest_body["splits"]["train"].__setitem__(0, body))


@pytest.mark.parametrize("column", ["label", "w", "id", "key_town", "at", "row_id"])
def test_the_stored_values_make_the_content_sums(column: str, copied: Config, capsys: Capture) -> None:
    """A file of other values is found though every checksum fits it, in a column that training reads or not."""

    def second_as_first(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        at = next(i for i in range(16, 32) if values[i] != values[0]) if column != "key_town" else 16
        values[at] = values[0] if column != "key_town" else "elsewhere"
        return table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))

    rewritten(copied, second_as_first)
    path = version(copied, 2).splits["train"][0].path
    assert f"version 2: {path}: its values have another content sum in row group 1\n" in wrong(copied, capsys)


def test_what_the_manifest_says_must_follow_from_the_files(copied: Config, capsys: Capture) -> None:
    """Whoever makes its checksum fit: dataset_id, sums, places in the files, sizes of row groups, the report."""
    before = (Path(copied.dataset) / manifest_path(2)).read_text()
    shard = version(copied, 2).splits["train"][0]

    def told(change: Callable[[dict[str, Any]], Any], *, honest: bool = True) -> str:
        (Path(copied.dataset) / manifest_path(2)).write_text(before)
        edit(copied, 2, change, honest=honest)
        return wrong(copied, capsys)

    def first(body: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = body["splits"]["train"][0]
        return found

    assert "it is not what its own checksum is of" in told(lambda body: body.update(build_key="other"), honest=False)
    assert "dataset_id 00 does not follow" in told(lambda body: body.update(dataset_id="00"))
    assert "does not follow" in told(lambda body: first(body)["sums"].__setitem__(2, "0" * 32))
    assert f"{shard.path}: its checksums are not" in told(lambda body: first(body)["checksums"].__setitem__(2, "0" * 16))
    assert f"{shard.path}: its spans are not" in told(lambda body: first(body)["spans"].__setitem__(2, [0, 99]))
    assert f"{shard.path}: its offsets are not" in told(lambda body: first(body)["offsets"]["16"].update(label=3))
    assert f"{shard.path}: it has 8 row groups of 128 rows" in told(lambda body: first(body)["groups"].__setitem__(2, 15))
    assert "row groups of train are not of 16 rows each" in told(lambda body: first(body)["groups"].__setitem__(2, 15))
    assert "another content sum in row group 0, 1, 2" in told(lambda body: body.update(hash_seed=1))
    assert "it is of another version" in told(lambda body: body.update(report=body["report"].replace("2", "1")))
    assert "reports/9.json: the file is gone" in told(lambda body: body.update(report="reports/9.json"))


def test_a_manifest_without_a_checksum_is_of_an_earlier_program(copied: Config, capsys: Capture) -> None:
    edit(copied, 1, lambda body: body.pop("sha256"), honest=False)
    assert asked(copied, capsys, "verify", "--version=1").startswith("version 1: OK")
    edit(copied, 1, lambda body: body.pop("storage"), honest=False)
    assert f"{manifest_path(1)}: not a manifest (KeyError: 'storage')" in wrong(copied, capsys)


def test_the_order_is_seen_where_a_row_is_its_own_key(tmp_path: Path, capsys: Capture) -> None:
    """The row id is made of the hash that orders the rows."""
    make(tmp_path, range(100), key=())
    cfg = make(tmp_path, range(300), key=())
    assert asked(cfg, capsys, "verify").count("OK") == 2
    edit(cfg, 1, lambda body: body["splits"]["train"].reverse())
    edit(cfg, 2, lambda body: body["splits"]["train"].reverse())
    assert "version 2: the files of train are not in the order of their rows' hashes\n" in wrong(cfg, capsys)
    edit(cfg, 2, lambda body: body["splits"]["train"].reverse())
    rewritten(cfg, lambda table: table.take([1, 0, *range(2, len(table))]))
    assert "its rows are not in the order of their hashes" in wrong(cfg, capsys)


def test_other_formats_are_not_verified(copied: Config, capsys: Capture) -> None:
    edit(copied, 1, lambda body: body.update(format=2))
    told = asked(copied, capsys, "verify").splitlines()
    assert re.match(r"version 1: not verified: .*/manifests/000001.json: format 2 is older", told[0])
    assert told[1].startswith("version 2: OK")
    with pytest.raises(DataError, match="format 2 is older"):
        asked(copied, capsys, "verify", "--version=1")


# ---- diff --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_rows", [1, 50, changes.RANGE_ROWS])
def test_rows_are_counted_by_their_ids(range_rows: int, built: dict[str, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """In both, in one, and in another split than before: as sets of Python count them, however many ids are in memory."""
    monkeypatch.setattr(changes, "RANGE_ROWS", range_rows)
    cfg = built["packed"]
    store, versions = open_store(cfg.dataset), [version(cfg, n) for n in (1, 2)]
    old, new = ({s: set(stored(Path(cfg.dataset), v, s)["row_id"].tolist()) for s in SPLITS} for v in versions)
    found = changes.row_changes(store, versions[0], store, versions[1])
    assert found.both == {(a, b): len(old[a] & new[b]) for a in SPLITS for b in SPLITS}
    assert {s: found.only_old(s) for s in SPLITS} == {s: len(old[s] - set().union(*new.values())) for s in SPLITS}
    assert {s: found.only_new(s) for s in SPLITS} == {s: len(new[s] - set().union(*old.values())) for s in SPLITS}
    assert sum(found.both.values()) == 300
    assert found.moved == sum(len(old[a] & new[b]) for a in SPLITS for b in SPLITS if a != b) > 0


def test_diff_tells_all_that_differs(copied: Config, capsys: Capture) -> None:
    """The newest and the one before; the same the other way round when asked for."""
    told = asked(copied, capsys, "diff")
    assert f"old: {copied.dataset} version 1, dataset_id {version(copied, 1).dataset_id}\n" in told
    assert "  split.eval: 0.1 -> 0.3\n" in told
    assert "columns: equal\n" in told
    assert re.search(r"\n  x: fill \S+ -> \S+, mean \S+ -> \S+, std \S+ -> \S+\n", told)
    assert "300 rows are in both by their key (id, town); " in told
    assert re.search(r"  \d+ from train to eval\n", told)
    assert "  split.eval: 0.3 -> 0.1\n" in asked(copied, capsys, "diff", "--version=1", "--other=2")


def test_diff_knows_fields_that_were_added_later(copied: Config, capsys: Capture) -> None:
    """At their defaults they are no difference."""
    edit(copied, 1, lambda body: body["config"].pop("bad_rows"))
    assert "bad_rows" not in asked(copied, capsys, "diff")


def test_diff_of_what_is_equal(built: dict[str, Config], capsys: Capture) -> None:
    """A version and itself; and a dataset of the other storage, whose content is the same."""
    assert asked(built["packed"], capsys, "diff", "--other=2").splitlines()[2:] == [
        "equal: the same columns, fitted transform and rows, in the same order"
    ]
    told = asked(built["packed"], capsys, "diff", "--with", built["columns"].dataset)
    assert "\nequal: the same columns" in told
    assert "  storage: 'columns' -> 'packed'\n" in told
    assert "  x: stored_in 'x' -> 'packed_float32'\n" in told
    assert "rows, old" not in told


def test_diff_of_words_columns_and_keys(tmp_path: Path, capsys: Capture) -> None:
    """The first few words that came or went, but of sensitive columns; rows of another key are not compared."""
    columns = (ID, categorical("a"), categorical("b", sensitive=True))
    for number, extra in enumerate(((), (numeric("x"),))):
        text = table_text(
            "id,a,b,x,y", *((i, f"w{(i + 9 * number) % 30}", f"{WORD}{i % (3 + number)}", i, i % 2) for i in range(200))
        )
        cfg = small_config(tmp_path, text.replace("w0", f"v{number}"), (*columns, *extra), key=("id", "x")[: 1 + number])
        build(cfg)
    told = asked(cfg, capsys, "diff")
    assert "  a: 1 new: 'v1', 1 gone: 'v0'\n" in told
    assert "  b: 1 new (hidden)\n" in told
    assert "  x: is new\n" in told
    assert "  key x: is new\n" in told
    assert "rows cannot be told apart by their ids: key was ['id'], is ['id', 'x']\n" in told


# ---- all of it ---------------------------------------------------------------------------------------------------------


def test_a_dataset_in_an_object_store(built: dict[str, Config], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lines as of a folder; a damaged object is found, and nothing is written."""
    monkeypatch.setenv("COLUMNS", "200")
    cfg = built["packed"]
    with serving() as bucket:
        bucket.upload(Path(cfg.dataset), "two")
        remote = dataclasses.replace(cfg, dataset=address(bucket.port, "bucket/two"))
        for words in (["ls"], ["show"], ["diff"]):
            local, far = (asked(c, capsys, *words).splitlines() for c in (cfg, remote))
            assert [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", line.replace("s3://bucket/two", cfg.dataset)) for line in far] == [
                re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", line) for line in local
            ]
        assert asked(remote, capsys, "verify").count("OK") == 2
        assert "equal: " in asked(cfg, capsys, "diff", "--with", remote.dataset)
        path = version(cfg).splits["eval"][0].path
        bucket.break_(f"two/{path}", "replaced")
        assert f"version 2: {path}: its SHA-256 is not the manifest's" in wrong(remote, capsys)
        bucket.break_(f"two/{path}", "gone")
        assert f"version 2: {path}: the file is gone" in wrong(remote, capsys)
        left = [found["Key"] for found in bucket.client.list_objects_v2(Bucket="bucket", Prefix="two/")["Contents"]]
        files = (str(path.relative_to(cfg.dataset)) for path in Path(cfg.dataset).rglob("*") if path.is_file())
        assert left == sorted(f"two/{name}" for name in files if name != path)


def words(*more: str, dataset: str) -> list[str]:
    return ["data", *more, "--config", str(RECIPE), f"--config.dataset={dataset}"]


@pytest.mark.parametrize(
    "more, fragments",
    [
        (["list"], ["invalid choice: 'list'", "try `mlprod data --help`"]),
        ([], ["the following arguments are required: action"]),
        (["show", "--version=9"], ["has no dataset version 9; it has 1"]),
        (["show", "--split=dev"], ["invalid choice: 'dev'"]),
        (["show", "--rows=-1"], ["'-1' is not a whole number, 0 or more"]),
        (["verify", "--version=9"], ["has no dataset version 9"]),
        (["diff"], ["has no version before 1; give another by --version or --other"]),
        (["diff", "--other=7"], ["has no dataset version 7"]),
        (["diff", "--with=nowhere"], ["nowhere has no dataset version"]),
        (["diff", "--with=s3://a:b@bucket/x"], ["--with='s3://a:***@bucket/x' holds a password"]),
    ],
)
def test_mistakes_are_one_line(more: list[str], fragments: list[str], dataset: Path, capsys: Capture) -> None:
    refused(capsys, words(*more, dataset=str(dataset)), *fragments)


@pytest.mark.parametrize("action", ["ls", "show", "verify", "diff"])
def test_no_dataset_is_a_mistake(action: str, tmp_path: Path, capsys: Capture) -> None:
    refused(capsys, words(action, dataset=str(tmp_path / "none")), "has no dataset version", "run `mlprod etl`")
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_ends_with_exit_code_1(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    """And one line on stderr behind the lines that name what is wrong; `show` says which file it cannot read."""
    copy = shutil.copytree(dataset, tmp_path / "copy")
    path = manifest.read(open_store(str(copy))).splits["train"][0].path
    (copy / path).write_bytes(np.zeros(1000, np.uint8).tobytes())
    assert cli.run(words("verify", dataset=str(copy))) == 1
    told = capsys.readouterr()
    assert f"{path}: it has 1,000 bytes" in told.out
    assert told.err.count("\n") == 1
    assert "remove manifests/000001.json and run `mlprod etl`" in told.err
    refused(capsys, words("show", dataset=str(copy)), path, "`mlprod data verify` tells what is wrong")


def test_no_device_is_touched() -> None:
    """Nothing of it imports jax, or pandas: it starts as quickly as the config file does."""
    script = "import sys, mlprod.datasets; sys.exit(bool({'jax', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
