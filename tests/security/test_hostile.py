"""Files that were made to do harm end a verb with exit code 2 and one plain line, within seconds and little memory.

A case is a line: its kind, its name, what is done to a copy of a good dataset or run, and the verb that meets it.
"""

import ast
import gzip
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mlprod import cli, documents, features, manifest
from mlprod.errors import DataError
from mlprod.etl import files
from mlprod.store import Store, open_store
from tests import rows
from tests.refused import argv
from tests.security.bounds import bounded
from tests.test_layers import TREES

Capture = pytest.CaptureFixture[str]
DEEP = "[" * 100_000
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999")


def at(body: Any, path: str) -> tuple[Any, Any]:
    """What holds a value of JSON data, and its name there: `splits.train.0.path`."""
    *steps, last = (int(s) if s.isdecimal() else s for s in path.split("."))
    for step in steps:
        body = body[step]
    return body, last


def of_manifest(path: str, value: Any) -> Callable[[Path], None]:
    """Changes a value of the manifest."""

    def change(dataset: Path) -> None:
        file = dataset / "manifests" / "000001.json"
        body = json.loads(file.read_text())
        holder, name = at(body, path)
        holder[name] = value
        file.write_text(json.dumps(body))

    return change


def instead(name: str, text: str) -> Callable[[Path], None]:
    """Replaces the text of a file."""

    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def before(name: str, text: str) -> Callable[[Path], None]:
    """Puts text before all else in the object that a file holds."""

    def change(folder: Path) -> None:
        body = (folder / name).read_text()
        (folder / name).write_text(body.replace("{", "{" + text, 1))

    return change


def linked(name: str, target: str) -> Callable[[Path], None]:
    """Puts a link where a file or folder was; by `elsewhere`, `relative` and `twice` to a good copy outside of the dataset."""

    def change(dataset: Path) -> None:
        place, there = dataset / name, dataset.parent / "elsewhere"
        if target in ("elsewhere", "relative", "twice"):
            place.rename(there)
        else:
            place.unlink()
        if target == "twice":
            (dataset / "between").symlink_to(there)
        targets = {"elsewhere": there, "relative": os.path.relpath(there, place.parent), "twice": dataset / "between"}
        place.symlink_to(targets.get(target, target))

    return change


def moved(field: str, path: str) -> Callable[[Path], None]:
    """Puts a good file to where a path leads that the manifest then names; `{}`: the folder in which the dataset lies."""

    def change(dataset: Path) -> None:
        given = path.format(dataset.parent)
        holder, name = at(json.loads((dataset / MANIFEST).read_text()), field)
        to = Path(os.path.join(dataset, given))
        to.parent.mkdir(parents=True, exist_ok=True)
        (dataset / holder[name]).rename(to)
        of_manifest(field, given)(dataset)

    return change


FIRST, MANIFEST, FEATURES = "splits.train.0", "manifests/000001.json", "features/000001.json"
OUTSIDE = ("../secret", "../../etc/passwd", "files/../../secret", "files/./x", "files//x", "..", "files/..", "files\\..\\..\\x")
ABSOLUTE = ("/etc/passwd", "/", "//etc/passwd", "/dev/zero", "/proc/self/environ", "file:///etc/passwd", "C:\\x", "~/x")
CLIMBING = (
    "../x", "../../x", "files/../../x", "files/./../../x", "./../x", "files//../../x", "files/000001/../../../x",
    "../other/files/x",
)  # fmt: skip
ROOTED = (
    "{}/x",
    "/{}/x",
    "{}/./x",
    "{}/dataset/../x",
    "{}/dataset/files/../../x",
    "{}/other/files/x",
    "{}//x",
    "{}/dataset/files/x",
)
CLOSED = {"lists": "[" * 900 + "]" * 900, "objects": '{"a":' * 900 + "1" + "}" * 900}
HUGE = {
    f"{FIRST}.groups.0": 1 << 60, f"{FIRST}.bytes": 1 << 70, f"{FIRST}.spans.0": [0, 1 << 60], "columns.2.shape": [1 << 63],
    "columns.2.vocabulary_size": 1 << 40, "group_rows": 1 << 64, f"{FIRST}.spans.0.1": -1, "version": 1 << 80,
}  # fmt: skip
COUNTS = ("group_rows", "version", "parent", f"{FIRST}.bytes", f"{FIRST}.groups.0", "columns.2.vocabulary_size", "hash_seed")

CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"traversal: file {p}": (of_manifest(f"{FIRST}.path", p), "show") for p in OUTSIDE},
    **{f"traversal: a file at {p}": (moved(f"{FIRST}.path", p), "check") for p in CLIMBING},
    "traversal: features": (moved("features", "../features.json"), "show"),
    "traversal: report": (moved("report", "../report.json"), "show"),
    **{f"absolute: file {p}": (of_manifest(f"{FIRST}.path", p), "show") for p in ABSOLUTE},
    **{f"absolute: a file at {p}": (moved(f"{FIRST}.path", p), "check") for p in ROOTED},
    "absolute: features": (moved("features", "{}/features.json"), "show"),
    "absolute: report": (moved("report", "{}/report.json"), "show"),
    **{f"link: {n} out": (linked(n, "elsewhere"), "check") for n in ("files", "features", "manifests", MANIFEST, FEATURES)},
    "link: a version's files out": (linked("files/000001", "elsewhere"), "check"),
    **{f"link: {n} out, {how}": (linked(n, how), "check") for n in (MANIFEST, FEATURES) for how in ("relative", "twice")},
    "link: manifest to a device": (linked(MANIFEST, "/dev/zero"), "check"),
    "link: features to a device": (linked(FEATURES, "/dev/zero"), "check"),
    "link: features to a password file": (linked(FEATURES, "/etc/passwd"), "check"),
    "link: features to itself": (linked(FEATURES, "000001.json"), "check"),
    **{f"deep: {n}, {kind}": (instead(n, text), "show")
       for n in (MANIFEST, FEATURES) for kind, text in {
           "lists": DEEP, "objects": '{"a":' * 100_000}.items()},
    **{f"deep: {n}, closed {kind}": (before(n, f'"extra": {text},'), "show")
       for n in (MANIFEST, FEATURES) for kind, text in CLOSED.items()},
    **{f"twice: {n} {name}": (before(n, f'"{name}": 0,'), "show")
       for n, names in {MANIFEST: ("format", "splits", "features", "report", "group_rows", "config"),
                        FEATURES: ("features", "target")}.items() for name in names},
    **{f"huge: {path}": (of_manifest(path, value), "show") for path, value in HUGE.items()},
    "huge: a manifest of 1 TB": (lambda d: os.truncate(d / MANIFEST, 1 << 40), "show"),
    "huge: a transform of 1 TB": (lambda d: os.truncate(d / FEATURES, 1 << 40), "show"),
    **{f"number: {path}": (of_manifest(path, float("nan")), "show") for path in COUNTS},
    **{f"number: {n} in the manifest": (before(MANIFEST, f'"extra": {n},'), "show")
       for n in NUMBERS},
}  # fmt: skip


# Not so: what would be read until the memory is full, and what leads to nothing here, on another system or with other files.
NOTHING = ("1 TB", "device", "password file", "itself", *OUTSIDE, *ABSOLUTE)
HARMFUL = {name: case for name, case in CASES.items() if not name.endswith(NOTHING) or " at " in name}


FIRST_OF_KIND = {name.split(":")[0]: name for name in reversed(CASES)}  # one of each goes the whole way


def look(dataset: Path, verb: str) -> None:
    """Reads what a verb reads: manifest, transform and report, and for `check` whether the files are there, and their bytes."""
    store = open_store(str(dataset))
    found = manifest.read(store)
    features.loads(store.read(found.features).decode())
    documents.parse(store.read(found.report))
    if verb == "check":
        if manifest.lacking(store, found):
            raise DataError("a file is not as the manifest says")
        for shard in found.splits["train"]:
            assert store.read_into(shard.path, 0, memoryview(bytearray(4))) == 4


@pytest.mark.parametrize("change, verb", CASES.values(), ids=list(CASES))
def test_a_hostile_dataset(change: Callable[[Path], None], verb: str, dataset: Path, tmp_path: Path) -> None:
    """Refused, told on one line without control characters, in bounded time and memory."""
    mine = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    change(mine)
    with pytest.raises(DataError) as told, bounded():
        look(mine, verb)
    assert told.value.exit_code == 2
    assert cli.one_line(str(told.value)).isprintable()


@pytest.mark.parametrize("name", FIRST_OF_KIND.values())
def test_a_verb_refuses_it(name: str, dataset: Path, csv: Path, tmp_path: Path, capsys: Capture) -> None:
    """By the same readers."""
    change, verb = CASES[name]
    mine = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    change(mine)
    words = (f"--config.dataset={mine}", f"--config.etl.source.path={csv}", f"--config.workdir={tmp_path / 'run'}")
    capsys.readouterr()
    with bounded(seconds=20.0):
        code = cli.run(argv("check", *words) if verb == "check" else argv("data", "show", *words))
    told = capsys.readouterr().err
    assert code == 2, told[-1500:]
    assert told.startswith("mlprod: ")
    assert told.count("\n") == 1
    assert told[:-1].isprintable()


# ---- each guard is needed: without it, harm ----------------------------------------------------------------------------


def _joined(store: Store, path: str) -> str:
    """Where a file lies for who joins paths and looks no further."""
    return os.path.join(store._root, path)


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it would be written without a thought of strangers."""
    monkeypatch.setattr(documents, "parse", lambda raw, finite=True: json.loads(raw))
    monkeypatch.setattr(documents, "read", lambda path: path.read_bytes())
    monkeypatch.setattr(manifest, "_check", lambda found: None)
    monkeypatch.setattr(features, "_check", lambda found: None)
    monkeypatch.setattr(Store, "_where", _joined)


@pytest.mark.parametrize("change, verb", HARMFUL.values(), ids=list(HARMFUL))
def test_without_guards_it_does_harm(
    change: Callable[[Path], None], verb: str, unguarded: None, dataset: Path, tmp_path: Path
) -> None:  # fmt: skip
    """It is taken for true, or ends the program by a traceback."""
    mine = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    change(mine)
    with suppress(RecursionError, OverflowError):
        look(mine, verb)


def test_without_the_guard_of_paths_a_file_elsewhere_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `..`, and by a link."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "dataset" / "link").symlink_to(tmp_path / "secret")
    store = open_store(str(tmp_path / "dataset"))
    for path in ("../secret", "link"):
        with pytest.raises(DataError, match="leads out of the folder"):
            store.read(path)
    monkeypatch.setattr(Store, "_where", lambda self, path: f"{self._root}/{path}")
    assert store.read("../secret") == store.read("link") == b"secret"


def test_without_the_check_of_a_manifest_it_says_anything(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path, and a row group of more rows than there are atoms in a gram."""
    mine = Path(shutil.copytree(dataset, tmp_path / "dataset"))
    of_manifest("report", "/etc/passwd")(mine)
    of_manifest(f"{FIRST}.groups.0", 1 << 80)(mine)
    with pytest.raises(DataError):
        manifest.read(open_store(str(mine)))
    monkeypatch.setattr(manifest, "_check", lambda found: None)
    found = manifest.read(open_store(str(mine)))
    assert (mine / found.report).read_bytes(), "a file of the machine's"
    assert found.num_rows("train") >= 1 << 80


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', "[" * 200 + "]" * 200])
def test_without_the_guard_of_documents_all_is_taken(text: str) -> None:
    """The library itself takes it, in silence."""
    json.loads(text)
    with pytest.raises(ValueError, match=r"twice|finite|deeper"), bounded():
        documents.parse(text)


def test_a_packed_file_that_grows_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """It is refused while it is unpacked, and only part of it was ever on the disk; without the guard all of it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "ALWAYS_BYTES", 4 << 20)
    with gzip.open("rows.csv.gz", "wb", compresslevel=9) as file:
        file.write((rows.HEADER + "\n").encode())
        for _ in range(10):
            file.write(b"\n" * (1 << 20))
    assert Path("rows.csv.gz").stat().st_size < 1 << 20
    with bounded():
        assert cli.run(argv("etl", "--config.etl.source.path=rows.csv.gz")) == 2
    assert "rows.csv.gz becomes more than 4,194,304 bytes, 200 times its size" in capsys.readouterr().err
    monkeypatch.setattr(files, "TIMES", 1 << 20)
    assert files.copy_plain("rows.csv.gz", "utf-8", tmp_path / "copy")["bytes"] > 10 << 20


NAMES = ("\x1b[2Jgone", "a\rb", "\x07bell", "\u202eflip", "\x9b31m", "\x00nul", "\x1b]0;title\x07", "\x08\x08back")


@pytest.mark.parametrize("name", NAMES)
def test_no_error_acts_on_the_terminal(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A folder of a run may be called so."""
    monkeypatch.chdir(tmp_path)
    with bounded():
        assert cli.run(["compare", f"run{name}"]) in (1, 2)
    told = capsys.readouterr().err
    assert "\n" in told
    assert "\0" in name or told[:-1].isprintable()
    monkeypatch.setattr(cli, "one_line", str)
    if "\0" not in name:
        cli.run(["compare", f"run{name}"])
        assert not capsys.readouterr().err[:-1].isprintable()


# ---- swapped files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["", "link"])
def test_a_pipe_is_not_waited_for(through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused; a plain open stands until somebody writes."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    file = tmp_path / (through or "pipe")
    with pytest.raises(ValueError, match="no regular file"), bounded():
        documents.read(file)
    monkeypatch.setattr(documents, "open_regular", Path.open)
    reads = threading.Thread(target=partial(_quietly, documents.read, file), daemon=True)
    reads.start()
    reads.join(0.3)
    assert reads.is_alive()
    (tmp_path / "pipe").write_bytes(b"")  # lets it go
    reads.join()


def _quietly(act: Callable[[Path], object], path: Path) -> None:
    with suppress(ValueError):
        act(path)


@pytest.mark.parametrize("other", ["/dev/zero", "/dev/null", "a pipe", "a folder"])
def test_a_file_that_is_swapped_before_it_is_opened(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And swapped back: what was opened is looked at, not its name. Who looks at the name takes something else for the file."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("{}")
    if other.startswith("/"):
        bad.symlink_to(other)
    else:
        (os.mkfifo if other == "a pipe" else os.mkdir)(bad)
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *mode: real(bad if path == good else path, flags, *mode))
    with pytest.raises(ValueError, match="no regular file"), bounded():
        documents.read(good)
    monkeypatch.setattr(os, "fstat", lambda descriptor: os.stat(good))
    monkeypatch.setattr(documents, "_check_same", lambda path, body, there, since: None)
    if other == "a folder":
        with pytest.raises(IsADirectoryError):
            documents.read(good)
    else:
        assert documents.read(good) != b"{}"


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda file: file.write_bytes(b"bodymore"), "much longer": lambda file: file.write_bytes(b"m" * (8 << 20)),
    "shorter": lambda file: file.write_bytes(b"bo"), "empty": lambda file: file.write_bytes(b""),
    "of the same length": lambda file: file.write_bytes(b"evil"), "half of it": lambda file: file.write_bytes(b"boil"),
    "cut off": lambda file: os.truncate(file, 3), "longer, its time put back": lambda file: _put_back(file, b"evilevil"),
}  # fmt: skip


def _put_back(file: Path, body: bytes) -> None:
    """Writes a file and gives it the time of change that it had."""
    before = file.stat()
    file.write_bytes(body)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_file_that_changes_while_it_is_read(
    change: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a hard link, after it was looked at: refused; without the guard what nobody looked at is taken."""
    (tmp_path / "good").write_bytes(b"body")
    os.utime(tmp_path / "good", ns=(1, 1))
    os.link(tmp_path / "good", tmp_path / "link")
    real, calls = os.fstat, [0]

    def changed(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        calls[0] += 1
        if calls[0] == 2:  # the second look is for the length
            change(tmp_path / "link")
        return found

    monkeypatch.setattr(os, "fstat", changed)
    with pytest.raises(ValueError, match="changed while it was read"), bounded():
        documents.read(tmp_path / "good")
    (tmp_path / "good").write_bytes(b"body")
    monkeypatch.setattr(documents, "_check_same", lambda path, body, there, since: None)
    calls[0] = 0
    assert documents.read(tmp_path / "good") != b"body"


# ---- outputs -----------------------------------------------------------------------------------------------------------


def test_csv_is_written_in_one_place() -> None:
    """The one that no formula passes, see `test_sources.py`."""
    writers = ("to_csv", "csv.writer", "csv.DictWriter", "write_csv", "to_excel", "CSVWriter")
    assert {module for module, tree in TREES.items() for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(writers)} == {"mlprod.scores"}  # fmt: skip
