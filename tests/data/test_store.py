"""Datasets in an object store: the same bytes as in a folder, faults that pass and faults that stay. All on the loopback."""

import contextlib
import dataclasses
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
from pyarrow.fs import LocalFileSystem

from mlprod import manifest
from mlprod import store as stores
from mlprod.config import Config
from mlprod.data.loader import Batches, eval_order, train_order
from mlprod.data.reader import GroupReader
from mlprod.errors import DataError, TrainingError
from mlprod.manifest import SPLITS, Manifest
from mlprod.order import batches_per_epoch, drawn_positions
from mlprod.parallel import place
from mlprod.plan import make_plan, read_features
from mlprod.store import Store, open_store
from mlprod.tracking import read_log
from mlprod.train import train
from tests.conftest import MakeConfig, smoke_config
from tests.object_store import BUCKET, Bucket, Proxy, address, serving
from tests.plain import group_arrays

SECOND = 8  # the first row group of the second training file


@pytest.fixture(scope="module")
def bucket(dataset: Path) -> Iterator[Bucket]:
    """A server with the smoke dataset under "smoke". Shared: break other prefixes."""
    with serving() as found:
        found.upload(dataset, "smoke")
        yield found


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[Proxy]:
    """A proxy in front of the bucket, without faults."""
    with contextlib.closing(Proxy(bucket.port)) as proxy:
        yield proxy


@pytest.fixture
def remote(bucket: Bucket) -> Store:
    """The smoke dataset in the bucket."""
    return open_store(address(bucket.port))


@pytest.fixture
def local(dataset: Path) -> Store:
    """The smoke dataset's folder."""
    return open_store(str(dataset))


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as a store does, a hundredth as long."""
    for name, value in {"PAUSE_S": 0.01, "PATIENCE_S": 0.5, "TIMEOUT_S": 1.0, "GCS_RETRY_S": 1}.items():
        monkeypatch.setattr(stores, name, value)


def equal(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays have the same names, dtypes, shapes and bits."""
    told = [{k: (v.dtype, v.shape, v.tobytes()) for k, v in arrays.items()} for arrays in (found, wanted)]
    return told[0] == told[1]


def part(store: Store, path: str, start: int, size: int) -> bytes:
    """A file's bytes, fewer at its end."""
    out = bytearray(size)
    return bytes(out[: store.read_into(path, start, memoryview(out))])


def refused_read(reader: GroupReader, group: int) -> str:
    """The message of the error that reading a row group ends in: one line."""
    with pytest.raises(TrainingError) as caught:
        reader.read(group)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_plan(make_config: MakeConfig, dataset: str) -> str:
    """The message of the error that planning a run on a dataset ends in: one line."""
    with pytest.raises(DataError) as caught:
        make_plan(dataclasses.replace(make_config(), dataset=dataset), jax.devices()[:1])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The same dataset.


def test_the_manifest_in_a_bucket_is_the_local_one(remote: Store, local: Store, make_config: MakeConfig) -> None:
    """Its versions, what it says, the sizes of the files it names, and the fitted transform."""
    wanted = manifest.open_for(make_config(), local)
    assert manifest.versions(remote) == manifest.versions(local) == [1]
    assert manifest.read(remote) == manifest.read(remote, 1) == manifest.open_for(make_config(), remote) == wanted
    for folder in {shard.path.rpartition("/")[0] for shards in wanted.splits.values() for shard in shards}:
        assert remote.sizes(folder) == local.sizes(folder) != {}
    assert remote.sizes("nowhere") == {}
    assert remote.sizes("files") == local.sizes("files") == {}, "folders are no files"
    assert read_features(remote, wanted) == read_features(local, wanted)
    with pytest.raises(FileNotFoundError):
        remote.read("manifests/000002.json")


@pytest.mark.parametrize("split", SPLITS)
def test_row_groups_in_a_bucket_are_the_local_ones(split: str, remote: Store, local: Store, published: Manifest) -> None:
    """Every one, read by many threads."""
    there, here = GroupReader(remote, published, split), GroupReader(local, published, split)
    groups = range(len(published.group_sizes(split)))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda group: group_arrays(there, group), groups))
    assert all(equal(arrays, group_arrays(here, group)) for group, arrays in zip(groups, found, strict=True))


def test_an_epoch_from_a_bucket_is_the_local_one(
    remote: Store, local: Store, published: Manifest, make_config: MakeConfig
) -> None:
    """Every batch of training and of evaluation, values and ids, for a process that holds some rows."""
    cfg = make_config()
    for split, spec in (("train", train_order(cfg, published)), ("eval", eval_order(cfg, published))):
        positions = drawn_positions(0, batches_per_epoch(spec, published.group_sizes(split)), spec.global_batch)
        there, here = (Batches(s, published, split, spec, [(0, 24), (40, 64)], positions) for s in (remote, local))
        assert len(there) > 5
        assert all(equal(there[k], here[k]) for k in range(len(there)))


def log_of(cfg: Config) -> list[dict[str, Any]]:
    """What a run logged, less what differs between equal runs."""
    return [{k: v for k, v in line.items() if k not in ("run", "time")} for line in read_log(Path(cfg.workdir))]


def run_on(csv: Path, dataset: Path | str, workdir: Path) -> Config:
    """Four steps with evaluations and saves in between."""
    sections = {"model": {"hidden": (4,)}, "eval": {"every": 2}, "checkpoint": {"every": 3}, "tracking": {"progress": True}}
    cfg = smoke_config(csv, Path(), workdir, steps=4, **sections)
    cfg = dataclasses.replace(cfg, dataset=str(dataset))  # a path would lose a slash of an address
    train(cfg, jax.devices()[:1])
    return cfg


@pytest.fixture(scope="module")
def wanted_log(csv: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of the run on the local folder."""
    log = log_of(run_on(csv, dataset, tmp_path_factory.mktemp("local") / "run"))
    assert [line["kind"] for line in log] == ["start", "train", "train", "eval", "train", "train", "eval"]
    return log


def test_a_run_on_a_bucket_is_the_local_run(csv: Path, bucket: Bucket, wanted_log: list[dict[str, Any]], tmp_path: Path) -> None:
    """The same ids, losses and metrics, to the bit."""
    assert log_of(run_on(csv, address(bucket.port), tmp_path / "run")) == wanted_log


def test_a_slow_store_is_told_and_changes_nothing(
    csv: Path,
    proxy: Proxy,
    wanted_log: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While the first window is late a line says what the step waits for."""
    monkeypatch.setattr(place, "WAITING_EVERY_S", 0.5)
    proxy.first(10, 0.3)
    cfg = run_on(csv, address(proxy.server_port), tmp_path / "run")
    assert re.search(rf"the step has waited [0-9]+ s for data of {re.escape(cfg.dataset)}\n", capsys.readouterr().err)
    assert log_of(cfg) == wanted_log


@pytest.mark.usefixtures("hasty")
def test_a_run_goes_on_over_faults(
    csv: Path, proxy: Proxy, wanted_log: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each third request fails, in one way or another, from the first on."""
    monkeypatch.setattr(stores, "PATIENCE_S", 30.0)
    proxy.fault = lambda request: ("", "", "busy", "", "", "cut")[len(proxy.requests) % 6]
    assert log_of(run_on(csv, address(proxy.server_port), tmp_path / "run")) == wanted_log
    assert len(proxy.requests) > 60


def test_other_filesystems_through_fsspec(dataset: Path, published: Manifest, local: Store) -> None:
    """Python's filesystems give the same bytes, to many threads too."""
    fsspec.filesystem("memory").put(str(dataset), "/smoke", recursive=True)
    here = GroupReader(local, published, "train")
    for location in ("fsspec+memory://smoke", f"fsspec+file://{dataset}"):
        there = GroupReader(open_store(location), manifest.read(open_store(location)), "train")
        groups = [*range(len(published.group_sizes("train")))] * 3
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(group_arrays, [there] * len(groups), groups))
        assert all(equal(arrays, group_arrays(here, group)) for group, arrays in zip(groups, found, strict=True))


# Faults that pass.


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault, count", [("busy", 3), ("cut", 3), ("silent", 1), (0.3, 2)], ids=str)
def test_a_fault_that_passes_is_not_seen(
    fault: str | float, count: int, proxy: Proxy, published: Manifest, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are right, after just as many requests as it takes."""
    monkeypatch.setattr(stores, "PATIENCE_S", 5.0)
    reader = GroupReader(open_store(address(proxy.server_port)), published, "train")
    proxy.first(count, fault)
    assert equal(group_arrays(reader, SECOND), group_arrays(GroupReader(local, published, "train"), SECOND))
    assert proxy.requests.count("RANGE") == (1 if fault == 0.3 else 1 + count)


# Faults that stay.


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault, most", [("busy", 7), ("cut", 7), ("silent", 1)])
def test_an_outage_that_stays_is_one_error(fault: str, most: int, proxy: Proxy, published: Manifest) -> None:
    """It names the file and the row group, after few requests and little time; when the store is back, reading is too."""
    store = open_store(address(proxy.server_port))
    reader, shard = GroupReader(store, published, "train"), published.splits["train"][1]
    proxy.always(fault, only="RANGE")
    began = time.monotonic()
    message = refused_read(reader, SECOND)
    assert time.monotonic() - began < 3
    assert f"s3://{BUCKET}/smoke/{shard.path}, row group 0: OSError: AWS Error" in message
    assert 1 <= proxy.requests.count("RANGE") <= most
    proxy.always("")
    assert len(reader.read(SECOND)["label"]) == 64


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fault", ["busy", "cut", "silent"])
def test_an_outage_before_the_first_step(fault: str, proxy: Proxy, make_config: MakeConfig) -> None:
    """The plan ends in a line that names the dataset."""
    proxy.always(fault)
    began = time.monotonic()
    message = refused_plan(make_config, address(proxy.server_port))
    assert time.monotonic() - began < 3
    assert message.startswith(f"config.dataset='s3://{BUCKET}/smoke")
    assert "cannot be read: " in message
    assert len(proxy.requests) <= 7


class Clock:
    """Time that passes when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, for_s: float) -> None:
        self.now += for_s
        assert self.now < 1_000, "it would go on for ever"


class Failing:
    """A filesystem whose files cannot be opened; each attempt takes a while."""

    def __init__(self, clock: Clock, takes_s: float, error: OSError) -> None:
        self.clock, self.takes_s, self.error, self.attempts = clock, takes_s, error, 0

    def open_input_file(self, path: str) -> None:
        self.attempts += 1
        self.clock.now += self.takes_s
        raise self.error


@pytest.mark.parametrize("takes_s, attempts, total_s", [(0.0, 8, 31.75), (5.0, 5, 28.75), (12.0, 3, 36.75)])
def test_how_long_an_outage_is_sat_out(takes_s: float, attempts: int, total_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the constants as they are: some 30 s, and never longer than an attempt more."""
    clock = Clock()
    monkeypatch.setattr(stores, "time", clock)
    failing = Failing(clock, takes_s, OSError("the store is down"))
    store = Store("there", failing, "root", stores.PATIENCE_S)
    for call in (lambda: store.read("a"), lambda: store.read_into("a", 0, memoryview(bytearray(1)))):
        clock.now, failing.attempts = 0.0, 0
        with pytest.raises(OSError, match="the store is down"):
            call()
        assert (failing.attempts, clock.now) == (attempts, total_s)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("a"),
        PermissionError("a"),
        OSError("AWS Error ACCESS_DENIED during HeadObject operation"),
        OSError("AWS Error UNKNOWN (HTTP status 301) during ListObjectsV2 operation"),
        OSError("AWS Error UNKNOWN (HTTP status 400) during ListObjectsV2 operation: ExpiredToken"),
        OSError("google::cloud::Status(PERMISSION_DENIED: no"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_will_not_change_is_not_tried_again(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stores, "time", clock)
    failing = Failing(clock, 0.0, error)
    with pytest.raises(type(error)):
        Store("there", failing, "root", stores.PATIENCE_S).read("a")
    assert (failing.attempts, clock.now) == (1, 0.0)


def test_a_local_folder_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is not asked again."""
    clock = Clock()
    monkeypatch.setattr(stores, "time", clock)
    store = open_store("folder")
    store._fs = Failing(clock, 0.0, OSError("input/output error"))
    with pytest.raises(OSError, match="input/output error"):
        store.open("a")
    assert store._fs.attempts == 1


# Objects that are not what was written.


@pytest.fixture
def copied(dataset: Path, bucket: Bucket, tmp_path: Path) -> str:
    """A copy of the dataset in the bucket, to be broken."""
    bucket.upload(dataset, tmp_path.name)
    return tmp_path.name


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("opened", [False, True], ids=["before", "while open"])
@pytest.mark.parametrize("how", ["gone", "cut", "replaced"])
def test_a_broken_object_is_one_error_with_its_name(
    how: str, opened: bool, copied: str, bucket: Bucket, published: Manifest
) -> None:
    """Before its first row group is read, or after: then its size is known, and may be wrong."""
    shard = published.splits["train"][1]
    reader = GroupReader(open_store(address(bucket.port, f"{BUCKET}/{copied}")), published, "train")
    if opened:
        assert len(reader.read(SECOND)["label"]) == 64
    bucket.break_(f"{copied}/{shard.path}", how)
    told = {"gone": "the file is gone; restore it", "cut": "the file ends ", "replaced": "checksum "}[how]
    for group in (3, 7):
        message = refused_read(reader, SECOND + group)
        assert message.startswith(f"s3://{BUCKET}/{copied}/{shard.path}, row group {group}: {told}")
    assert len(reader.read(0)["label"]) == 64, "the others are whole"


@pytest.mark.usefixtures("hasty")
def test_an_object_cut_inside_a_group_while_open(copied: str, bucket: Bucket, published: Manifest) -> None:
    """Then the client's buffer has the right length, and only the checksum tells."""
    shard = published.splits["train"][1]
    key = f"{copied}/{shard.path}"
    reader = GroupReader(open_store(address(bucket.port, f"{BUCKET}/{copied}")), published, "train")
    assert len(reader.read(SECOND)["label"]) == 64
    start, stop = shard.spans[4]
    bucket.put(key, bucket.get(key)[: (start + stop) // 2])
    assert f"{shard.path}, row group 4: checksum " in refused_read(reader, SECOND + 4)
    assert len(reader.read(SECOND + 3)["label"]) == 64, "what lies before the cut is whole"


@pytest.mark.parametrize("how, told", [("gone", "is missing"), ("cut", "has [0-9]+ bytes"), ("replaced", "")])
def test_objects_are_counted_before_the_first_step(
    how: str, told: str, copied: str, bucket: Bucket, published: Manifest, make_config: MakeConfig
) -> None:
    """One listing tells which is missing or of another size; what has the size is found when it is read."""
    shard = published.splits["eval"][0]
    bucket.break_(f"{copied}/{shard.path}", how)
    store = open_store(address(bucket.port, f"{BUCKET}/{copied}"))
    if not told:
        assert manifest.open_for(make_config(), store) == published
        return
    with pytest.raises(DataError, match=rf"^s3://{BUCKET}/{copied}/{shard.path} {told}; the manifest says {shard.bytes} bytes"):
        manifest.open_for(make_config(), store)


# Addresses.


@pytest.mark.parametrize(
    "location, told",
    [
        ("foo://x", "Unrecognized filesystem type"),
        ("fsspec+nope://x", "Protocol not known: nope"),
        ("s3://", "it names no folder"),
        ("s3:///smoke", "Missing bucket name"),
        ("s3://bucket/smoke?endpoint_override=127.0.0.1:1&nonsense=1", "Unexpected query parameter in S3 URI: 'nonsense'"),
        ("s3://bucket/smoke?endpoint_override=127.0.0.1:1&allow_bucket_creation=true", "'allow_bucket_creation' is not used"),
        ("gs://bucket/smoke?nonsense=1", "Unexpected query parameter in GCS URI: 'nonsense'"),
        ("s3://a bucket/smoke", "Cannot parse URI"),
    ],
)
def test_an_address_that_is_none(location: str, told: str, make_config: MakeConfig) -> None:
    began = time.monotonic()
    message = refused_plan(make_config, location)
    assert message.startswith(f"config.dataset={location.partition('?')[0].rstrip('/')!r}: ")
    assert told in message
    assert message.endswith("give a folder, s3://, gs:// or fsspec+PROTOCOL://")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "secret", ["hush", "hu%2Fsh", "hu/sh", "hu/s@h", "hu?sh"], ids=["plain", "escaped", "slash", "at", "question"]
)
def test_an_address_with_a_password_is_refused_and_not_shown(secret: str, make_config: MakeConfig) -> None:
    """The config goes into checkpoints, logs and W&B: a password must not be in it."""
    for location in (f"s3://key:{secret}@bucket/smoke?region=us-east-1", f"fsspec+sftp://key:{secret}@host:22/smoke"):
        message = refused_plan(make_config, location)
        assert secret not in message
        assert secret[:2] not in message
        assert "key:***@" in message
        assert "credentials file" in message


def test_what_is_shown_of_an_address(bucket: Bucket) -> None:
    """The folder, without options: paths are written behind it."""
    assert open_store(address(bucket.port)).location == f"s3://{BUCKET}/smoke"
    assert open_store(address(bucket.port, f"{BUCKET}/smoke/")).location == f"s3://{BUCKET}/smoke"
    assert open_store("gs://anonymous@bucket/a:b@c").location == "gs://anonymous@bucket/a:b@c"
    assert open_store("fsspec+memory://smoke").location == "fsspec+memory://smoke"


def test_a_bucket_or_folder_that_is_not_there(bucket: Bucket, make_config: MakeConfig) -> None:
    """Said at once."""
    for folder in ("nowhere/smoke", f"{BUCKET}/nothing"):
        began = time.monotonic()
        assert refused_plan(make_config, address(bucket.port, folder)).startswith(f"s3://{folder} has no dataset version")
        assert time.monotonic() - began < 1


def test_a_store_that_denies(proxy: Proxy, make_config: MakeConfig) -> None:
    """Said at once: one request."""
    proxy.always("denied")
    message = refused_plan(make_config, address(proxy.server_port))
    assert "ACCESS_DENIED during ListObjectsV2 operation: told by the store; check the address and your access" in message
    assert len(proxy.requests) == 1


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("protocol", ["s3://", "gs://anonymous@"])
def test_a_server_that_is_not_there(protocol: str, make_config: MakeConfig) -> None:
    """Nobody listens: an error within the bound, whoever's client it is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    message = refused_plan(make_config, f"{protocol}{BUCKET}/smoke?scheme=http&endpoint_override=127.0.0.1:{port}")
    assert "cannot be read: " in message
    assert time.monotonic() - began < 5


# Open files.


def open_below(folder: Path) -> int:
    """How many files below a folder this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            count += os.readlink(link).startswith(f"{folder}/")
    return count


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 40 small files, each of its own bytes."""
    for i in range(40):
        (tmp_path / f"{i}.bin").write_bytes(bytes([i]) * 1000)
    return tmp_path


def test_few_files_are_open_at_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read: `OPEN_FILES` kept, and for a moment one more a thread; the bytes are right."""
    monkeypatch.setattr(stores, "OPEN_FILES", 5)
    counts = list[int]()

    def read(store: Store, i: int) -> bool:
        right = part(store, f"{i % 40}.bin", i % 7, 900) == bytes([i % 40]) * 900
        counts.append(open_below(many))
        return right

    store = open_store(str(many))
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [store] * 400, range(400)))
    assert max(counts) <= 5 + 8
    assert open_below(many) == 5
    for i in (0, 1, 2, 3, 4, 0, 5):  # the file used longest ago is let go
        assert read(store, i)
    assert list(store._open) == ["2.bin", "3.bin", "4.bin", "0.bin", "5.bin"]
    del store
    assert open_below(many) == 0


class Slow:
    """A file whose reads last until they are let go; it counts how many of its kind are alive."""

    alive = 0

    def __init__(self, go: threading.Event) -> None:
        type(self).alive += 1
        self.go, self.closed = go, False

    def size(self) -> int:
        return 10

    def read_at(self, size: int, start: int) -> bytes:
        assert self.go.wait(10)
        return b"" if self.closed else bytes(size)

    def __del__(self) -> None:
        type(self).alive -= 1
        self.closed = True


def test_a_file_let_go_finishes_the_read_under_way(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed after that, not before."""
    monkeypatch.setattr(stores, "OPEN_FILES", 2)
    go = threading.Event()
    opened = LocalFileSystem().open_input_file
    slow = SimpleNamespace(open_input_file=lambda path: Slow(go) if path.endswith("/slow") else opened(path))
    store = Store("there", slow, str(many), 0.0)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(part, store, "slow", 2, 3)
        while "slow" not in store._open:
            time.sleep(0.001)
        for i in range(3):
            part(store, f"{i}.bin", 0, 1)
        assert ("slow" in store._open, Slow.alive) == (False, 1)
        go.set()
        assert reading.result(10) == bytes(3)
        del reading
    assert Slow.alive == 0
