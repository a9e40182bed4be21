"""The contract on disk: what is a version and what is not, and what its id stands for."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlprod import manifest
from mlprod.errors import DataError
from mlprod.etl.run import build
from mlprod.manifest import canonical, content_id, open_for, read, versions, write_atomically
from mlprod.store import Store, open_store


@pytest.fixture
def copied(dataset, tmp_path):
    """The smoke dataset, the test's own to change."""
    return shutil.copytree(dataset, tmp_path / "copy")


def store(folder: Path) -> Store:
    """A folder as what `manifest` reads from."""
    return open_store(str(folder))


def edit(dataset, **changed):
    """Changes fields of the newest manifest on disk."""
    path = dataset / manifest.manifest_path(versions(store(dataset))[-1])
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_written_and_read_it_is_the_same(published, tmp_path):
    manifest.write(tmp_path, published)
    assert read(store(tmp_path)) == published
    assert read(store(tmp_path), published.version) == published


def test_a_manifest_holds_a_checksum_of_itself(published, tmp_path):
    """Over its JSON data, whatever their order; a file that has none, of an earlier program, is read as well."""
    manifest.write(tmp_path, published)
    body = json.loads((tmp_path / manifest.manifest_path(published.version)).read_text())
    assert body["sha256"] == manifest.checksum(body) == manifest.checksum(dict(reversed(body.items())))
    assert body["sha256"] != manifest.checksum(body | {"group_rows": 1})
    del body["sha256"]
    (tmp_path / manifest.manifest_path(published.version)).write_text(json.dumps(body))
    assert read(store(tmp_path)) == published


def test_the_newest_version_is_read(published, tmp_path):
    for number in (1, 2, 10):
        manifest.write(tmp_path, dataclasses.replace(published, version=number))
    (tmp_path / "manifests" / "1-old.json").touch()
    assert versions(store(tmp_path)) == [1, 2, 10], "a file of another name is no version"
    assert [read(store(tmp_path), v).version for v in (0, 1, 2, 10)] == [10, 1, 2, 10]
    with pytest.raises(DataError, match="has no dataset version 3"):
        read(store(tmp_path), 3)


def test_without_a_manifest_there_is_no_version(tmp_path):
    with pytest.raises(DataError, match="has no dataset version"):
        read(store(tmp_path / "nothing"))


def test_a_half_written_manifest_is_no_version(published, tmp_path, monkeypatch):
    """A kill before the rename leaves the versions there were."""
    manifest.write(tmp_path, published)
    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            manifest.write(tmp_path, dataclasses.replace(published, version=2))
    assert len(list((tmp_path / "manifests").iterdir())) == 2, "the temporary file is there"
    assert versions(store(tmp_path)) == [1]
    assert read(store(tmp_path)) == published


def test_a_text_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(manifest.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, "ü\n")
    assert path.read_bytes() == "ü\n".encode()


@pytest.mark.parametrize(
    "step, told", [(1, r"format 4 is newer than 3.*update mlprod"), (-1, r"format 2 is older than 3.*mlprod etl")]
)
def test_another_format_is_refused_by_name(step, told, copied):
    """Never misread: what an older format lacks would have to be guessed."""
    edit(copied, format=manifest.FORMAT + step)
    with pytest.raises(DataError, match=rf"000001\.json: {told}"):
        read(store(copied))


def test_a_dataset_of_an_older_format_is_built_anew_by_itself(make_config, copied, published):
    """Its build key is another one; the old version stays, the new one is read."""
    cfg = dataclasses.replace(make_config(), dataset=str(copied))
    edit(copied, format=1, build_key="of an older program")
    found, fresh = build(cfg)
    assert (fresh, found.version, found.dataset_id) == (True, 2, published.dataset_id)
    assert open_for(cfg, store(copied)) == found


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": "1"}', '{"format": 3, "columns": [], "splits": {}}'])
def test_what_is_no_manifest_is_refused_by_name(text, copied):
    (copied / manifest.manifest_path(1)).write_text(text)
    with pytest.raises(DataError, match=r"000001\.json: not a manifest"):
        read(store(copied))


def test_another_config_is_refused_with_the_field(make_config, published):
    """Fields that do not decide the content may differ."""
    cfg = make_config()
    assert open_for(cfg, store(cfg.dataset)) == published
    other = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, chunk_rows=7, memory_bytes=1 << 20))
    assert open_for(other, store(cfg.dataset)) == published
    changed = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, group_rows=128))
    with pytest.raises(DataError, match=r"another config: etl\.group_rows was 64, now 128 \(1 difference"):
        open_for(changed, store(changed.dataset))
    columns = (*cfg.etl.columns[:2], dataclasses.replace(cfg.etl.columns[2], missing="refuse"), *cfg.etl.columns[3:])
    with pytest.raises(DataError, match=r"etl\.columns\[2\]\.missing was 'fill', now 'refuse'"):
        open_for(dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, columns=columns)), store(cfg.dataset))


def test_another_hook_is_refused(make_config):
    def transform(rows):
        return rows.assign(product=rows["x"])

    cfg = make_config()
    with pytest.raises(DataError, match=r"etl\.transform\.sha256"):
        open_for(dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, transform=transform)), store(cfg.dataset))


def test_a_cut_or_missing_file_is_refused_by_name(make_config, copied, published):
    cfg = dataclasses.replace(make_config(), dataset=str(copied))
    shard = published.splits["eval"][0]
    path = copied / shard.path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{shard.path} has {shard.bytes - 1} bytes; the manifest says {shard.bytes}"):
        open_for(cfg, store(cfg.dataset))
    path.unlink()
    with pytest.raises(DataError, match=rf"{shard.path} is missing"):
        open_for(cfg, store(cfg.dataset))


def test_the_id_stands_for_content_and_not_for_files(published):
    """Other paths, sizes and checksums are the same content; another schema, transform, row count or sum is not."""

    def id_of(columns=published.columns, features="text", splits=published.splits):
        return content_id(columns, features, splits)

    def with_shard(**changed):
        first, *others = published.splits["train"]
        return {**published.splits, "train": (dataclasses.replace(first, **changed), *others)}

    shard, (first, *others) = published.splits["train"][0], published.columns
    assert id_of(splits=with_shard(path="elsewhere", bytes=1, sha256="")) == id_of()
    assert id_of(columns=(dataclasses.replace(first, stored_in="x", sensitive=True), *others)) == id_of()
    changes = [
        {"features": "another"},
        {"splits": with_shard(groups=(shard.groups[0] - 1, *shard.groups[1:]))},
        {"splits": with_shard(sums=(shard.sums[1], shard.sums[0], *shard.sums[2:]))},
        {"splits": {**published.splits, "train": published.splits["eval"], "eval": published.splits["train"]}},
        *(
            {"columns": (dataclasses.replace(first, **{field: "other"}), *others)}
            for field in ("name", "type", "dtype", "role", "kind")
        ),
        {"columns": (dataclasses.replace(first, shape=(2,)), *others)},
        {"columns": (dataclasses.replace(first, vocabulary_size=1), *others)},
    ]
    assert len({id_of(), *(id_of(**change) for change in changes)}) == 1 + len(changes)


@settings(deadline=None, max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda t: st.lists(t) | st.dictionaries(st.text(), t)))
def test_canonical_text_is_the_same_for_the_same_data(tree):
    def turned(node):
        """The same data, its keys in the other order."""
        if isinstance(node, dict):
            return {k: turned(node[k]) for k in reversed(node)}
        return [turned(item) for item in node] if isinstance(node, list) else node

    assert canonical(turned(tree)) == canonical(tree)
    assert json.loads(canonical(tree)) == tree


def test_a_nan_has_no_canonical_text():
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": float("nan")})


def test_a_files_checksum_is_sha256(tmp_path):
    raw = bytes(range(256)) * 1000
    (tmp_path / "file").write_bytes(raw)
    assert manifest.sha256_file(tmp_path / "file") == hashlib.sha256(raw).hexdigest()
    assert manifest.sha256_text("ü") == hashlib.sha256("ü".encode()).hexdigest()
