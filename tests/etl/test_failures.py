"""Builds that fail: one line with the cause and the way out; what is done is kept, the same command ends with the same bytes."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mlprod import cli, manifest
from mlprod.config import Config, CsvSource
from mlprod.errors import BuildError, DataError, WorkdirError
from mlprod.etl import extract, publish, spill
from mlprod.etl import stored as stored_rows
from mlprod.etl.run import build
from mlprod.etl.work import LEAST_SHARE
from mlprod.manifest import Manifest
from mlprod.store import open_store
from tests.conftest import MakeConfig
from tests.disks import fill, small_disk
from tests.plain import numbered, small_config
from tests.refused import argv, refused

NOBODY = 65534
PHASES: dict[str, tuple[ModuleType, int]] = {  # where it happens: a function, and which of its calls
    "extract_part": (extract, 2),
    "settle_bucket": (stored_rows, 3),
    "sort_bucket": (stored_rows, 2),
    "_write_file": (publish, 2),
    "_write_report": (publish, 1),
}


def cut_finely(cfg: Config, dataset: Path) -> Config:
    """Returns a config of many tasks, done one after the other, whose dataset is elsewhere."""
    return dataclasses.replace(cfg, dataset=str(dataset), etl=dataclasses.replace(cfg.etl, chunk_rows=1000, workers=1))


def before(patch: pytest.MonkeyPatch, name: str, harm: Callable[[], Any]) -> None:
    """Has a harm done before a phase's function does its work, and has buckets cut finely."""
    module, at = PHASES[name]
    real, calls = getattr(module, name), list[int]()

    def harmed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            harm()
        return real(*args, **kwargs)

    patch.setattr(module, name, harmed)
    patch.setattr(spill, "num_bits", lambda *_: 3)


def fails(cfg: Config, name: str, harm: Callable[[], Any], *fragments: str) -> str:
    """Builds while something is harmed in a phase; returns the one line that the build ends with."""
    with pytest.MonkeyPatch.context() as patch:
        before(patch, name, harm)
        with pytest.raises(BuildError) as ended:
            build(cfg)
    told = str(ended.value)
    assert "\n" not in told
    assert [fragment for fragment in fragments if fragment not in told] == [], told
    assert manifest.versions(open_store(cfg.dataset)) == []
    return told


def done(dataset: Path) -> dict[str, int]:
    """Returns {task: when it was written down} of the tasks that are done."""
    return {str(path): path.stat().st_mtime_ns for path in dataset.glob("work/*/*/*/*.json")}


def goes_on(cfg: Config, published: Manifest, capsys: pytest.CaptureFixture[str]) -> int:
    """Builds again: the same dataset. Returns how many tasks were taken over, all that had been done."""
    tasks = len(done(Path(cfg.dataset)))
    capsys.readouterr()
    assert build(cfg) == (published, True)
    assert [path.name for path in (Path(cfg.dataset) / "work").iterdir()] == ["lock"]
    told = capsys.readouterr().err
    assert (f"mlprod: {tasks} task(s) had been done by an attempt before\n" in told) == (tasks > 0)
    return tasks


@pytest.mark.parametrize("name", PHASES)
def test_a_disk_that_fills_up(
    name: str, make_config: MakeConfig, published: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In every phase: No space left on device; with space again the tasks that are left are done."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        cfg = cut_finely(make_config(), disk / "d")
        fails(cfg, name, lambda: fill(disk), "No space left on device", "make space", "the same command goes on", str(disk))
        (disk / "filler").unlink()
        assert goes_on(cfg, published, capsys) >= 1


def test_a_disk_that_fills_up_ends_the_command_with_1(tmp_path: Path, csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, no traceback; on a disk that is full from the beginning, 2."""
    with small_disk(tmp_path / "disk", "8m") as disk:
        paths = [f"--config.{field}={value}" for field, value in (("dataset", disk / "d"), ("etl.source.path", csv))]
        with pytest.MonkeyPatch.context() as patch:
            before(patch, "sort_bucket", lambda: fill(disk))
            assert cli.run(argv("etl", *paths)) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"mlprod: building {disk / 'd'} failed: ")
        assert told.count("\n") == 1
        fill(disk)  # what was half written is gone
        refused(capsys, argv("etl", *paths), str(disk), "its disk has 0 bytes free", "make space")


def test_the_space_of_half_a_file_is_free_at_once(tmp_path: Path) -> None:
    """Of a spill that fails on a full disk: not only when the file is collected."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        empty = shutil.disk_usage(disk).free
        table = pa.table({"x": np.zeros(1 << 19)})
        spilled = spill.Spill(disk / "x.arrow")
        with pytest.raises(OSError, match="No space left"), spilled as out:
            out.add(table, np.zeros(table.num_rows, np.uint16))
        assert shutil.disk_usage(disk).free == empty
        assert list(disk.iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_a_row_is_read(tmp_path: Path) -> None:
    """Needed and free bytes, and the folder; a disk on which the build just fits is not refused."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        cfg = dataclasses.replace(small_config(tmp_path, numbered(60_000)), dataset=str(disk / "d"))
        needed = 60_000 * (2 * 16 + 96) // LEAST_SHARE
        with pytest.raises(WorkdirError, match=rf"{disk}/d'.* bytes free, .* needs 1[0-9]{{2}},[0-9]{{3}} at the very least"):
            build(cfg)
        assert needed > 65_536
        assert [path.name for path in (disk / "d" / "work").iterdir()] == ["lock"]


# ---- the source --------------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that any user reaches: what pytest makes is private."""
    with TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Root, whom no mode stops, is another user in the block, to whom the folder belongs."""
    root = os.geteuid() == 0
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *((NOBODY, NOBODY) if root else (-1, -1)))
    try:
        if root:
            os.seteuid(NOBODY)
        yield
    finally:
        if root:
            os.seteuid(0)


def in_files(cfg: Config, csv: Path, folder: Path) -> Config:
    """Returns a config whose source is the smoke rows in three files."""
    folder.mkdir()
    header, *lines = csv.read_text(encoding="utf-8").splitlines(keepends=True)
    for i in range(3):
        (folder / f"{i}.csv").write_text(header + "".join(lines[i::3]), encoding="utf-8")
    source = CsvSource(path=str(folder / "*.csv"))
    return dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, source=source))


def same_bytes(published: Manifest) -> Manifest:
    """Returns what of a manifest does not tell of the source."""
    return dataclasses.replace(published, build_key="", source={})


@pytest.mark.parametrize("how", ["vanishes", "is forbidden"])
def test_a_file_that_goes_while_it_is_read(
    how: str, csv: Path, make_config: MakeConfig, published: Manifest, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file and the cause are named; when it is back, the parts of the others are not read again."""
    cfg, last = in_files(cut_finely(make_config(), place / "d"), csv, place / "rows"), place / "rows" / "2.csv"
    with without_rights(place):
        if how == "vanishes":
            fails(cfg, "extract_part", lambda: last.rename(place / "away"), f"there is no file '{last}'", "the same command")
            (place / "away").rename(last)
        else:
            fails(cfg, "extract_part", lambda: last.chmod(0), f"{last} cannot be read: Permission denied", "the same command")
            last.chmod(0o600)
        tasks = len(done(place / "d"))
        again, _ = build(cfg)
    assert same_bytes(again) == same_bytes(published)
    assert f"mlprod: {tasks} task(s) had been done by an attempt before\n" in capsys.readouterr().err
    assert tasks >= 1


def test_a_file_that_cannot_be_read_at_first_is_input(csv: Path, make_config: MakeConfig, place: Path) -> None:
    """Exit code 2 and not 1: nothing was done. Gone between attempts, a file named by its path is missed."""
    cfg, last = in_files(cut_finely(make_config(), place / "d"), csv, place / "rows"), place / "rows" / "2.csv"
    with without_rights(place):
        last.chmod(0)
        with pytest.raises(DataError, match=f"{last} cannot be read: Permission denied"):
            build(cfg)
    last.unlink()
    alone = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, source=CsvSource(path=str(last))))
    with pytest.raises(DataError, match=f"there is no file '{last}'"):
        build(alone)
    assert not (place / "d").exists()


def test_a_source_in_a_folder_that_is_forbidden_is_input(place: Path) -> None:
    """By its path and by a pattern."""
    (place / "closed").mkdir(mode=0o600)
    (place / "closed" / "rows.csv").write_text(numbered(5))
    with without_rights(place):
        for name in ("rows.csv", "*.csv"):
            cfg = small_config(place, source=CsvSource(path=str(place / "closed" / name)))
            with pytest.raises(DataError, match=r"closed/.* cannot be read: Permission denied"):
                build(cfg)


# ---- the folders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what, name", [("work", "extract_part"), ("work", "_write_file"), (".", "sort_bucket")])
def test_a_folder_that_is_removed(
    what: str, name: str, make_config: MakeConfig, published: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work folder, or the whole dataset's: told, and the next attempt begins anew."""
    cfg = cut_finely(make_config(), tmp_path / "d")
    fails(cfg, name, lambda: shutil.rmtree(tmp_path / "d" / what), "No such file or directory", "was a folder of", "anew")
    assert goes_on(cfg, published, capsys) == 0


@pytest.mark.parametrize("name", ["extract_part", "sort_bucket", "_write_report"])
def test_a_folder_that_is_forbidden(
    name: str, csv: Path, make_config: MakeConfig, published: Manifest, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the build runs: told, and gone on from; before it, it is input that is wrong."""
    cfg, source = cut_finely(make_config(), place / "d"), CsvSource(path=str(shutil.copy(csv, place / "rows.csv")))
    cfg = dataclasses.replace(cfg, etl=dataclasses.replace(cfg.etl, source=source))
    with without_rights(place):
        changed = list[Path]()

        def forbid() -> None:
            changed.extend(path for path in ((place / "d"), *(place / "d").rglob("*")) if path.is_dir())
            for path in changed:
                path.chmod(0o500)

        fails(cfg, name, forbid, "Permission denied", "let this user read and write there", "the same command goes on")
        with pytest.raises(WorkdirError, match="cannot be written: Permission denied"):
            build(cfg)
        for path in changed:
            path.chmod(0o700)
        goes_on(cfg, published, capsys)
