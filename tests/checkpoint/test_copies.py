"""Copies of the saved steps in an object store: a lost machine, a store that fails, and who may write. All on the loopback."""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jax
import pytest

from mlprod import cli
from mlprod import store as stores
from mlprod.checkpoint import lease
from mlprod.checkpoint.copies import RUN, Copies
from mlprod.checkpoint.lease import Lease
from mlprod.checkpoint.saved import SavedSteps
from mlprod.checkpoint.store import Store
from mlprod.config import CheckpointConfig, Config
from mlprod.errors import CheckpointError, WorkdirError
from mlprod.plan import Plan
from mlprod.store import open_store
from mlprod.train import train
from tests.checkpoint.saved import ALL, Kept, assert_equal_bits, at, fresh, run_state
from tests.conftest import RECIPE, MakeConfig
from tests.object_store import BUCKET, Bucket, Proxy, address, serving

NAME = "00000003"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """A server of the tests' own."""
    with serving() as found:
        yield found


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[Proxy]:
    """A proxy in front of the bucket, without faults."""
    with closing(Proxy(bucket.port)) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as a store and a lease do, much shorter."""
    for name, value in {"PAUSE_S": 0.01, "PATIENCE_S": 0.3, "TIMEOUT_S": 1.0}.items():
        monkeypatch.setattr(stores, name, value)
    for name, value in {"BEAT_S": 0.1, "SILENCE_S": 1.5, "SETTLE_S": 0.01}.items():
        monkeypatch.setattr(lease, name, value)


@pytest.fixture
def copies(bucket: Bucket, tmp_path: Path) -> Copies:
    """A folder of the test's own in the bucket, without a proxy."""
    return Copies(address(bucket.port, f"{BUCKET}/{tmp_path.name}"))


def through(proxy: Proxy, tmp_path: Path) -> str:
    """The address of the same folder behind the proxy."""
    return address(proxy.server_port, f"{BUCKET}/{tmp_path.name}")


def keeping_all(location: str) -> CheckpointConfig:
    """All steps stay, and are copied."""
    return dataclasses.replace(ALL, copies=location)


def save(store: Store, plan: Plan, *steps: int) -> None:
    """Begins to save steps, one after the other was written."""
    for step in steps:
        store.save(at(fresh(plan, seed=step), step), run_state(step))
        store.finish_save()


def files(folder: Path, step: int) -> dict[str, bytes]:
    """The files of a local step."""
    at = SavedSteps(folder).folder(step)
    return {path.relative_to(at).as_posix(): path.read_bytes() for path in at.rglob("*") if path.is_file()}


def copied(copies: Copies, step: int) -> dict[str, bytes]:
    """The files of a copied step."""
    paths = [path for path in copies.store.tree() if path.startswith(f"{step:08d}/")]
    return {path.partition("/")[2]: copies.store.read(path) for path in paths}


def config(make_config: MakeConfig, workdir: str, location: str, **kept: object) -> Config:
    """Twelve steps of the smoke run, a save every fourth."""
    return make_config(workdir, steps=12, checkpoint={"every": 4, "keep_last": 100, "copies": location, **kept})


def digests(workdir: Path, step: int) -> dict[str, str]:
    """Of a saved step's arrays, which are read again."""
    saved = SavedSteps(workdir)
    saved.verify(step)
    return {path: row["digest"] for path, row in saved.read_run(step).leaves.items()}


# The machine is lost.


def test_a_run_goes_on_on_another_machine(
    make_config: MakeConfig,
    proxy: Proxy,
    copies: Copies,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the newest copy, to the bits of the straight run; each third request fails, in one way or another."""
    monkeypatch.setattr(stores, "PATIENCE_S", 30.0)
    proxy.fault = lambda request: ("", "", "busy", "", "", "cut")[len(proxy.requests) % 6]
    train(config(make_config, "straight", ""), jax.devices()[:1])
    train(config(make_config, "lost", through(proxy, tmp_path)), jax.devices()[:1])
    assert copies.steps() == [4, 8, 12]
    assert all(copied(copies, step) == files(tmp_path / "lost", step) for step in copies.steps())
    copies.remove([8, 12])  # as if it had been lost after step 4
    train(config(make_config, "found", through(proxy, tmp_path)), jax.devices()[:1])
    assert "mlprod: step 4 was brought from s3://" in capsys.readouterr().err
    assert digests(tmp_path / "found", 12) == digests(tmp_path / "straight", 12)
    assert SavedSteps(tmp_path / "found").steps() == [4, 8, 12]
    assert copies.steps() == [4, 8, 12]
    assert len(proxy.requests) > 200


def test_evaluate_on_another_machine(make_config: MakeConfig, copies: Copies, bucket: Bucket, tmp_path: Path) -> None:
    """The newest step is brought, or the one that is asked for."""
    location = address(bucket.port, f"{BUCKET}/{tmp_path.name}")
    train(config(make_config, "run", location), jax.devices()[:1])
    cfg = config(make_config, "run", location)
    given = [f"--config.{name}={value}" for name, value in (("dataset", cfg.dataset), ("etl.source.path", cfg.etl.source.path))]
    given += [f"--config.workdir={tmp_path / 'other'}", f"--config.checkpoint.copies={location}", "--config.steps=12"]
    command = ["evaluate", "--config", str(RECIPE), *given, "--split", "eval"]
    assert cli.run([*command, "--step", "8"]) == 0
    assert SavedSteps(tmp_path / "other").steps() == [8]
    assert cli.run([*command, "--step", "7"]) == 2
    shutil.rmtree(tmp_path / "other")
    assert cli.run(command) == 0
    assert SavedSteps(tmp_path / "other").steps() == [12]


def test_a_damaged_copy_is_named_and_the_one_before_is_used(
    plan: Plan, copies: Copies, bucket: Bucket, saved_once: tuple[Path, Kept], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So is a local step that is damaged: its copy takes its place."""
    location = address(bucket.port, f"{BUCKET}/{tmp_path.name}")
    copies.copy(SavedSteps(saved_once[0]), [1, 2, 3])
    for path, body in copied(copies, 3).items():
        if "/d/" in path:
            copies.store.write(f"{NAME}/{path}", bytes(255 - byte for byte in body))
    strict = dataclasses.replace(keeping_all(location), strict=True)
    with Store(tmp_path / "strict", strict) as store, pytest.raises(CheckpointError, match=r"step 3 .* damaged: .*strict is set"):
        store.restore_newest(plan.abstract, plan.where)
    with Store(tmp_path / "other", keeping_all(location)) as store:
        found = store.restore_newest(plan.abstract, plan.where)
        assert found is not None
        assert_equal_bits(found[0], saved_once[1][2])
        assert "the copy of step 3 in s3://" in capsys.readouterr().err
        (store.saved.folder(2) / RUN).write_bytes(b"{}")
        found = store.restore_newest(plan.abstract, plan.where)
        assert found is not None
        assert_equal_bits(found[0], saved_once[1][2])
        assert len(list((store.saved.root / "damaged").iterdir())) == 1


def test_a_step_copied_in_part_is_none_and_is_copied_anew(copies: Copies, saved_once: tuple[Path, Kept]) -> None:
    """What a kill left there, and a step of the same number from before a rollback."""
    saved = SavedSteps(saved_once[0])
    copies.store.write(f"{NAME}/state/stray", b"of an earlier try")
    copies.store.write("00000002/run/metadata", b"of another step")
    copies.store.write("00000002/state/stray", b"of another step")
    copies.store.write("notes/00000009/run/metadata", b"not ours")
    assert copies.steps() == [2]
    copies.copy(saved, [1, 2, 3])
    assert all(copied(copies, step) == files(saved_once[0], step) for step in (1, 2, 3))
    before = copies.store.tree()
    copies.copy(saved, [1, 2, 3])
    assert copies.store.tree() == before
    copies.remove([2])
    assert copies.steps() == [1, 3]
    assert "notes/00000009/run/metadata" in copies.store.tree()


def test_copies_stay_as_steps_do(plan: Plan, tmp_path: Path) -> None:
    """The last ones, the pinned ones; on another machine too, which has none of the older ones itself; a rollback's go."""
    cfg = CheckpointConfig(keep_last=2, pins=(2,), copies=str(tmp_path / "copies"))
    copies = Copies(cfg.copies)
    with Store(tmp_path / "one", cfg) as store:
        save(store, plan, 1, 2, 3, 4, 5)
        store.finish()
        assert store.saved.steps() == copies.steps() == [2, 4, 5]
    with Store(tmp_path / "two", cfg) as store:
        assert store.restore_newest(plan.abstract, plan.where) is not None
        save(store, plan, 6)
        store.finish()
        assert (store.saved.steps(), copies.steps()) == ([5, 6], [2, 5, 6])
        store.forget_after(64 * 5)
        assert (store.saved.steps(), copies.steps()) == ([5], [2, 5])


# The store is away.


def test_an_outage_is_told_and_what_it_missed_is_copied(
    plan: Plan, proxy: Proxy, copies: Copies, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on; at its end the copies are waited for; the same command copies what is missing."""
    cfg = keeping_all(through(proxy, tmp_path))
    with Store(tmp_path / "run", cfg) as store:
        save(store, plan, 1)
        proxy.always("busy")
        save(store, plan, 2, 3)
        assert capsys.readouterr().err.count("is tried again with the next save") >= 1
        assert copies.steps() == [1]
        proxy.always("")
        save(store, plan, 4)
        assert copies.steps() == [1, 2, 3, 4]
        proxy.always("busy")
        save(store, plan, 5)
        with pytest.raises(CheckpointError, match=r"step 5 is not copied to s3://.*SLOW_DOWN.*the same command copies it"):
            store.finish()
    proxy.always("")
    assert store._lease is not None
    assert store._lease._thread is not None
    store._lease._thread.join(40.0)  # its last try may take so long; a process that ends does not wait for it
    with Store(tmp_path / "run", cfg) as store:
        assert store.restore_newest(plan.abstract, plan.where) is not None
        store.finish()
    assert copies.steps() == [1, 2, 3, 4, 5]


def test_a_store_that_is_not_there_or_denies(
    plan: Plan, proxy: Proxy, bucket: Bucket, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said in a line before the first step, by `check` too."""
    for location, told in (
        (address(bucket.port, "nowhere/run"), "cannot be written"),
        (f"s3://key:hush@{BUCKET}/run", "holds a password"),
        ("foo://x", "Unrecognized filesystem"),
        (str(RECIPE), "cannot be written"),
    ):
        cfg = config(make_config, "run", location)
        given = [f"--config.dataset={cfg.dataset}", f"--config.etl.source.path={cfg.etl.source.path}", "--config.steps=12"]
        given += [f"--config.workdir={cfg.workdir}", f"--config.checkpoint.copies={location}"]
        for verb in ("check", "train"):
            assert cli.run([verb, "--config", str(RECIPE), *given]) == 2
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert line.startswith("mlprod: config.checkpoint.copies="), line
            assert told in line
            assert "hush" not in line
    proxy.always("denied")
    with pytest.raises(WorkdirError, match=r"config.checkpoint.copies='s3://bucket/run' cannot be .*ACCESS_DENIED"):
        Store(tmp_path / "run", keeping_all(address(proxy.server_port, f"{BUCKET}/run"))).__enter__()


# Who may write.


@pytest.fixture(params=["folder", "bucket"])
def shared(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> str:
    """Where two machines may meet."""
    return str(tmp_path / "shared") if request.param == "folder" else address(bucket.port, f"{BUCKET}/{tmp_path.name}")


def test_a_second_trainer_is_refused(shared: str, tmp_path: Path) -> None:
    """With the name of the one that holds it, until that gives it back."""
    first, second = (Lease(open_store(shared), tmp_path / name) for name in ("one", "two"))
    first.take()
    with pytest.raises(WorkdirError, match=r"is held by process [0-9]+ on .*; wait for it, stop it"):
        second.take()
    first.check()
    first.release()
    first._follow()  # a beat that was under way: it is not renewed
    assert lease.NAME not in open_store(shared).sizes("")
    began = time.monotonic()
    second.take()
    second.release()
    assert time.monotonic() - began < lease.SILENCE_S
    assert open_store(shared).tree() == {}


def test_a_silent_holder_is_replaced_and_ends_when_it_wakes(
    shared: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waited out first; started again in its own folder it need not wait; what it still wanted to copy stays with it."""
    monkeypatch.setattr(lease, "BEAT_S", 1000.0)
    sleeper = Store(tmp_path / "one", keeping_all(shared))
    sleeper.__enter__()
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    began = time.monotonic()
    with Store(tmp_path / "two", keeping_all(shared)) as store:
        assert time.monotonic() - began >= lease.SILENCE_S
        save(store, plan, 1)
        assert sleeper._lease is not None
        sleeper._lease._follow()
        with pytest.raises(CheckpointError, match=r"was taken over by process [0-9]+ on .* silent"):
            sleeper.check()
        sleeper.__exit__(CheckpointError, CheckpointError(), None)
        assert Copies(shared).steps() == [1]
    store.finish()
    began = time.monotonic()
    again = Lease(open_store(shared), tmp_path / "two")
    open_store(shared).write(lease.NAME, json.dumps({**again._who, "token": "before", "beat": 3}).encode())
    again.take()
    again.release()
    assert time.monotonic() - began < lease.SILENCE_S


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"token": 1}', b"\xff"])
def test_a_lease_that_is_none_holds_nothing(body: bytes, tmp_path: Path) -> None:
    """Such as one that a full disk cut."""
    store = open_store(str(tmp_path / "shared"))
    store.write(lease.NAME, body)
    taken = Lease(store, tmp_path / "one")
    taken.take()
    taken.release()
    assert store.tree() == {}
