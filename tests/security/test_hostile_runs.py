"""The folder of a run that was made to do harm: its log, notes, evaluations, run JSON and arrays, and the pages made of them.

Refused by exit code 2 and one line, or taken for nothing, within seconds and little memory; each case is also seen without its
guard, doing the harm.
"""

import argparse
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
import pytest
import tensorstore as ts
from markupsafe import Markup, escape

from mlprod import cli, documents, locks, pieces, runtime, tracking
from mlprod.attempts import Attempts
from mlprod.checkpoint import leaves, saved
from mlprod.checkpoint.run_state import Damaged, RunState, encode, parse
from mlprod.checkpoint.saved import AllDamaged, SavedSteps
from mlprod.compare import as_json
from mlprod.errors import ConfigError, RestoreError, WorkdirError
from mlprod.etl import report as data_report
from mlprod.etl import work
from mlprod.ledger import Ledger
from mlprod.manifest import sha256_text
from mlprod.report import charts, compare, past, run
from tests import past_runs
from tests.refused import argv
from tests.security.bounds import bounded

Capture = pytest.CaptureFixture[str]
Change = Callable[[Path], object]
DEEP = "[" * 100_000
CLOSED = {"lists": "[" * 900 + "]" * 900, "objects": '{"a":' * 900 + "1" + "}" * 900, "a bit": "[" * 80 + "]" * 80}
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "5.5", '"5"', "1e19", "true", "[]", str(1 << 70))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps. Shared: do not change it."""
    cfg = past_runs.config(tmp_path_factory.mktemp("runs") / "run", steps=2)
    with past_runs.attempt(cfg, 0) as trackers:
        past_runs.steps(trackers, [1, 2])
        past_runs.evaluated(trackers, 2)
    return Path(cfg.workdir)


@pytest.fixture
def mine(good: Path, tmp_path: Path) -> Path:
    """A run of the test's own."""
    return Path(shutil.copytree(good, tmp_path / "run"))


def truncated(file: Path) -> None:
    """Makes a file of 1 TB that takes no room."""
    file.unlink(missing_ok=True)
    file.touch()
    os.truncate(file, 1 << 40)


def linked(target: str) -> Change:
    """Puts a link where a file was."""

    def change(file: Path) -> None:
        file.unlink(missing_ok=True)
        file.symlink_to(target)

    return change


def pipe(file: Path) -> None:
    """Puts a pipe where a file was."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def folder(file: Path) -> None:
    """Puts a folder where a file was."""
    file.unlink(missing_ok=True)
    file.mkdir()


ENDLESS: dict[str, Change] = {"1 TB": truncated, "a device": linked("/dev/zero"), "a pipe": pipe}


# ---- the log -----------------------------------------------------------------------------------------------------------

EVAL = '{"kind": "eval", "step": 2, "time": 1e9, "run": "r", "values": {"auc": [0.5, 1]}}'
START = '{"kind": "start", "step": 2, "time": 1e9, "run": "r"}'
LINES = {  # added to the log, and to the notes
    "deep": DEEP, "deep objects": '{"a":' * 100_000,
    **{f"deep, closed: {name}": EVAL.replace('"r"', text) for name, text in CLOSED.items()},
    **{f"twice: {name}": EVAL.replace("{", f'{{"{name}": {value}, ', 1)
       for name, value in (("step", "1"), ("kind", '"start"'), ("time", "1"), ("run", '"x"'), ("values", "{}"))},
    "twice: in values": EVAL.replace('"auc"', '"auc": [1, 1], "auc"'),
    "twice: in a start": START.replace("{", '{"step": 1, ', 1), "twice: nothing": EVAL.replace("{", '{"": 1, "": 2, ', 1),
    **{f"number: step {n}": EVAL.replace('"step": 2', f'"step": {n}') for n in NUMBERS},
    **{f"number: time {n}": EVAL.replace("1e9", n) for n in ("NaN", "1e300", "-1", "1e999", '"x"', "null", "1e12")},
    "no object": "[]", "a number": "1", "nothing": "null", "no values": '{"kind": 1}', "no JSON": "{",
}  # fmt: skip


def put_line(file: str, line: str) -> Change:
    """Adds a line to a file of a run."""

    def change(workdir: Path) -> None:
        with (workdir / file).open("a") as target:
            target.write(line + "\n")

    return change


def put(name: str, change: Change) -> Change:
    """Changes a file of a run."""
    return lambda workdir: change(workdir / name)


LOGS: dict[str, Change] = {
    **{f"log: {name}": put_line("log.jsonl", line) for name, line in LINES.items()},
    **{f"notes: {name}": put_line("attempts.jsonl", line.replace('"eval"', '"use"'))
       for name, line in LINES.items() if "values" not in name and "null" not in name},
    "log: a long line": put_line("log.jsonl", '{"a": "' + "a" * (17 << 20) + '"}'),
    **{f"{file}: {name}": put(file, change) for file in ("log.jsonl", "attempts.jsonl", "log-000001.jsonl")
       for name, change in {**ENDLESS, "a folder": folder}.items()},
    "log.jsonl: a link to itself": put("log.jsonl", linked("log.jsonl")),
}  # fmt: skip


def refused(words: list[str], capsys: Capture) -> str:
    """Runs a verb: exit code 2 and one plain line, in bounded time and memory."""
    capsys.readouterr()
    with bounded():
        code = cli.run(words)
    told = capsys.readouterr().err
    assert code == 2, told[-1500:]
    assert told.startswith("mlprod: ")
    assert told.count("\n") == 1
    assert told[:-1].isprintable()
    return told


@pytest.mark.parametrize("change", LOGS.values(), ids=list(LOGS))
def test_a_hostile_log(change: Change, mine: Path, capsys: Capture) -> None:
    """No page is made of the run, nor half of one."""
    change(mine)
    refused(["compare", str(mine), "--output", str(mine / "page.html")], capsys)
    assert not (mine / "page.html").exists()


@pytest.mark.parametrize("name", ["log: deep", "log: number: time 1e300", "notes: twice: step", "log.jsonl: 1 TB"])
def test_report_refuses_it_too(name: str, mine: Path, capsys: Capture) -> None:
    """By the same reader."""
    LOGS[name](mine)
    refused(argv("report", f"--config.workdir={mine}"), capsys)
    assert not (mine / "report.html").exists()


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers as they would be written without a thought of strangers."""
    monkeypatch.setattr(documents, "parse", lambda raw, finite=True: json.loads(raw))
    monkeypatch.setattr(documents, "is_count", lambda value: True)
    monkeypatch.setattr(documents, "open_regular", lambda path: path.open("rb"))
    monkeypatch.setattr(pieces, "LONGEST_LINE", 1 << 40)
    monkeypatch.setattr(past, "_placed", lambda line: line["step"])
    monkeypatch.setattr(past, "NO_RUN", ())
    monkeypatch.setattr(past, "told_of", lambda *runs: nullcontext())


NO_END = ("1 TB", "a device", "a pipe")
READ = {name: change for name, change in LOGS.items() if not name.endswith((*NO_END, "itself", "a folder"))}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", READ.values(), ids=list(READ))
def test_without_guards_a_log_does_harm(change: Change, unguarded: None, mine: Path, capsys: Capture) -> None:
    """It is taken for true, or ends the program by a traceback."""
    change(mine)
    assert cli.run(["compare", str(mine)]) in (0, 1), capsys.readouterr().err[-1500:]


def test_without_guards_a_log_has_no_end(mine: Path) -> None:
    """A pipe is waited for, a device and holes are read on and on."""
    for change in (truncated, linked("/dev/zero")):
        change(mine / "log.jsonl")
        with (mine / "log.jsonl").open("rb") as file:
            assert len(file.readline(32 << 20)) == 32 << 20
    pipe(mine / "log.jsonl")
    reads = threading.Thread(target=lambda: (mine / "log.jsonl").read_bytes(), daemon=True)
    reads.start()
    reads.join(0.3)
    assert reads.is_alive()
    (mine / "log.jsonl").write_bytes(b"")  # lets it go
    reads.join()


def test_a_piece_that_leads_nowhere(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken for one that is gone; who looks for it again never ends."""
    (mine / "log-000001.jsonl").symlink_to("nowhere")
    with bounded():
        assert past.read(mine).step == 2
    looks = []

    def again(reader: pieces.Reader) -> None:
        looks.append(reader)
        if len(looks) > 100:
            raise TimeoutError

    monkeypatch.setattr(pieces.Reader, "_skip_what_is_gone", again)
    with pytest.raises(TimeoutError):
        list(tracking.read_log(mine))


# ---- what is written into the folder -----------------------------------------------------------------------------------


def _log(workdir: Path) -> None:
    with closing(tracking.LocalLog(workdir, "r", 2, 1 << 30)) as log:
        log.log(tracking.Record(kind="start", step=2, position=0, values={}))


def _note(workdir: Path) -> None:
    with closing(Attempts(workdir, Ledger(), {})) as notes:
        notes.log(tracking.Record(kind="start", step=2, position=0, values={}))


def _hold(workdir: Path) -> None:
    with runtime.hold(workdir):
        pass


def _build(workdir: Path) -> None:
    with work.held(workdir):
        pass


def _report(workdir: Path) -> None:
    run.main(past_runs.config(workdir), argparse.Namespace(output=None))


WRITERS = {
    "log.jsonl": _log, "attempts.jsonl": _note, "lease": _hold, "work/lock": _build, "report.html": _report,
}  # fmt: skip


@pytest.mark.parametrize("target", ["elsewhere", "twice"])
@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_written_through_a_link(name: str, target: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's is as it was; without the guard it is cut, added to, or written over."""
    victim = mine.parent / "victim"
    body = (mine / "log.jsonl").read_bytes() + b"what a kill cut short"
    victim.write_bytes(body)
    (mine / name).parent.mkdir(exist_ok=True)
    (mine / "twice").symlink_to(victim)
    linked(str(victim if target == "elsewhere" else mine / "twice"))(mine / name)
    with pytest.raises(WorkdirError, match=r"is a link"), bounded():
        WRITERS[name](mine)
    assert victim.read_bytes() == body
    for module in (pieces, runtime, work):
        monkeypatch.setattr(module, "open_own", open)
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    monkeypatch.setattr(charts, "curves", lambda *args, **kwargs: Markup(""))
    WRITERS[name](mine)
    assert victim.read_bytes() != body


@pytest.mark.parametrize("name", ["lease", "log.jsonl"])
def test_training_refuses_a_link(name: str, dataset: Path, csv: Path, tmp_path: Path, capsys: Capture) -> None:
    """By exit code 2."""
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text("mine")
    linked(str(tmp_path / "victim"))(tmp_path / "run" / name)
    words = (f"--config.dataset={dataset}", f"--config.etl.source.path={csv}", f"--config.workdir={tmp_path / 'run'}")
    capsys.readouterr()
    with bounded(seconds=60.0, most=1 << 30):  # the steps are compiled before the log is opened
        assert cli.run(argv("train", *words)) == 2
    assert f"{name} is a link" in capsys.readouterr().err
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("change", [pipe, folder], ids=["a pipe", "a folder"])
@pytest.mark.parametrize("name", ["log.jsonl", "lease", "work/lock"])
def test_what_is_no_file_is_not_written(change: Change, name: str, mine: Path) -> None:
    """Nor waited for."""
    (mine / name).parent.mkdir(exist_ok=True)
    change(mine / name)
    with pytest.raises(WorkdirError, match="is a link, or no file"), bounded():
        WRITERS[name](mine)
    with pytest.raises(OSError, match=r"."):  # what would end the program by a traceback
        open(mine / name, "a+").close()


def test_a_lock_that_is_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody holds it, and whoever asks is not held up; else it would be waited for."""
    os.mkfifo(tmp_path / "lock")
    with bounded():
        assert locks.holder_of(tmp_path / "lock") == ""
    monkeypatch.setattr(os, "O_NONBLOCK", 0)
    asks = threading.Thread(target=locks.holder_of, args=(tmp_path / "lock",), daemon=True)
    asks.start()
    asks.join(0.3)
    assert asks.is_alive()
    (tmp_path / "lock").write_bytes(b"")  # lets it go
    asks.join()


# ---- evaluations -------------------------------------------------------------------------------------------------------

FOUND = '{"step": 12, "split": "test", "metrics": {"auc": 0.5}}'
EVALUATIONS = {
    "deep": FOUND.replace("0.5", DEEP), **{f"deep, closed: {n}": FOUND.replace("0.5", text) for n, text in CLOSED.items()},
    **{f"twice: {n}": FOUND.replace("{", f'{{"{n}": 1, ', 1) for n in ("step", "split", "metrics")},
    **{f"number: {n}": FOUND.replace("12", n) for n in NUMBERS},
}  # fmt: skip


@pytest.mark.parametrize("text", EVALUATIONS.values(), ids=list(EVALUATIONS))
def test_a_hostile_evaluation(text: str, mine: Path, request: pytest.FixtureRequest) -> None:
    """It is told of, and taken for none; without the guard it is taken for one, or is a traceback."""
    (mine / "evaluations").mkdir()
    (mine / "evaluations" / "test-00000012.json").write_text(text)
    with bounded():
        found = past.read(mine)
    assert found.evaluations == []
    assert len(found.notes) == 1
    request.getfixturevalue("unguarded")
    with suppress(RecursionError, TypeError):  # of the program itself: no line for people
        assert past.read(mine).evaluations


@pytest.mark.parametrize(
    "text",
    [FOUND.replace(old, new) for old, new in (("step", "x"), ("split", "x"), ('"test"', "[]"), ('{"auc": 0.5}', "[1]"))] + ["[]"],
)
def test_what_is_no_evaluation(text: str, mine: Path) -> None:
    """Something that one has is not there, or of another kind."""
    (mine / "evaluations").mkdir()
    (mine / "evaluations" / "test-00000012.json").write_text(text)
    found = past.read(mine)
    assert found.evaluations == []
    assert len(found.notes) == 1


@pytest.mark.parametrize("change", ENDLESS.values(), ids=list(ENDLESS))
def test_an_evaluation_without_end(change: Change, mine: Path) -> None:
    """As those of a log."""
    (mine / "evaluations").mkdir()
    change(mine / "evaluations" / "test-00000012.json")
    with bounded():
        found = past.read(mine)
    assert found.evaluations == []
    assert len(found.notes) == 1


FIGURES: dict[str, dict[str, Any]] = {
    "metric of text": {"metrics": {"auc": "x"}}, "metric of lists": {"metrics": {"auc": []}},
    "roc": {"figures": {"roc": "x"}}, "roc of text": {"figures": {"roc": [["a", "b"]]}},
    "thresholds": {"figures": {"thresholds": [[[]]]}}, "scores": {"figures": {"scores": [1]}},
    "scores of text": {"figures": {"scores": {"edges": ["a"], "positive": 1, "negative": []}}},
    "residuals": {"figures": {"residuals": {"edges": [1], "counts": [1, 2, 3]}}},
    "predicted": {"task": "regression", "figures": {"predicted": [[1]]}}, "figures": {"figures": [1]},
    "confusion": {"task": "classes", "figures": {"classes": ["a"], "confusion": [["x"]]}},
    "segments": {"by": {"color": [1]}}, "segments of text": {"by": {"color": [{"value": "a", "auc": "x"}]}}, "by": {"by": 1},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("told", FIGURES.values(), ids=list(FIGURES))
def test_figures_of_which_no_page_can_be_made(told: dict[str, Any], mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; without the guard it is a traceback."""
    cfg = past_runs.config(mine, steps=2)
    past_runs.evaluation(cfg, **told)
    monkeypatch.setattr(charts, "curves", lambda *args, **kwargs: Markup(""))  # of the steps: they are good
    options = argparse.Namespace(output=None)
    with pytest.raises(WorkdirError, match="no page can be made of it"), bounded():
        run.main(cfg, options)
    assert not (mine / "report.html").exists()
    monkeypatch.setattr(past, "told_of", lambda *runs: nullcontext())
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError, IndexError)):
        run.main(cfg, options)


def test_compare_refuses_them_too(mine: Path, capsys: Capture) -> None:
    """In its tables as in its page."""
    past_runs.evaluation(past_runs.config(mine), metrics={"auc": "x"})
    refused(["compare", str(mine)], capsys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", ["1e308", "5e-324", "Infinity"])
def test_values_as_far_apart_as_numbers_go(value: str, mine: Path) -> None:
    """A loss may be anything: a page is made, or none, in bounded time."""
    log = mine / "log.jsonl"
    log.write_text(log.read_text().replace('"loss": [0.5,', f'"loss": [{value},', 1))
    found = past.read(mine)
    with bounded():
        try:
            list(compare.curves([found]))
        except past.NO_RUN as error:
            with pytest.raises(WorkdirError), past.told_of(found):
                raise error


# ---- the run JSON ------------------------------------------------------------------------------------------------------

GOOD = RunState(
    run_id="r", attempt=1, step=5, next_example=320, dataset_id="d", order={}, config={}, environment={}, tracker_id=""
)
WRONG = ("NaN", "Infinity", "-Infinity", "1e999", "-1", "5.5", '"5"', "1e400", str(1 << 63), "true")
STATES = {
    **{f"number: {name} {n}": (f'"{name}":{value}', f'"{name}":{n}')
       for name, value in (("attempt", 1), ("next_example", 320)) for n in WRONG},
    **{f"number: step {n}": ('"step":5', f'"step":{n}') for n in ("5.0", "5e0", "50e-1")},  # equal to 5, and not it
    **{f"twice: {name}": ('"tracker_id"', f'"{name}":7,"tracker_id"')
       for name in ("attempt", "next_example", "dataset_id", "run_id", "order", "config")},
    "twice: inside": ('"order":{}', '"order":{"a":1,"a":2}'), "deep": ('"order":{}', '"order":' + DEEP),
    **{f"deep, closed: {name}": ('"order":{}', f'"order":{text}') for name, text in CLOSED.items()},
    **{f"number inside: {n}": ('"order":{}', f'"order":{{"seed":{n}}}') for n in WRONG[:4]},
}  # fmt: skip


def signed(text: str) -> bytes:
    """Returns a run JSON's file with a checksum that is right: who wrote it knew how."""
    return json.dumps({"text": text, "sha256": sha256_text(text)}).encode()


@pytest.mark.parametrize("old, new", STATES.values(), ids=list(STATES))
def test_a_hostile_run_json(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged; without the guard it is taken for true, or ends the program by a traceback."""
    text = encode(GOOD)["text"]
    assert parse(signed(text), 5) == GOOD
    bad = signed(text.replace(old, new))
    assert bad != signed(text)
    with pytest.raises(Damaged), bounded():
        parse(bad, 5)
    monkeypatch.setattr(documents, "parse", lambda raw, finite=True: json.loads(raw))
    monkeypatch.setattr(documents, "is_count", lambda value: True)
    try:
        assert repr(parse(bad, 5)) != repr(GOOD)
    except RecursionError:
        assert "[" * 800 in new


@pytest.mark.parametrize("change", ENDLESS.values(), ids=list(ENDLESS))
def test_a_run_json_without_end(change: Change, tmp_path: Path) -> None:
    """Neither read to its end nor waited for."""
    file = tmp_path / "checkpoints" / "00000001" / "run" / "metadata"
    file.parent.mkdir(parents=True)
    change(file)
    with bounded():
        assert {type(found) for found in SavedSteps(tmp_path).runs().values()} == {Damaged}


# ---- a run none of whose steps is good ---------------------------------------------------------------------------------

LEAF = {"shape": [1], "dtype": "float32", "digest": "0" * 32}


def of_leaves(table: dict[str, Any]) -> bytes:
    """Returns the file of a run JSON that has these arrays."""
    return signed(encode(RunState(**{**GOOD.__dict__, "leaves": table}))["text"])


METADATA: dict[str, Change] = {
    "text": lambda file: file.write_text("{}"), "noise": lambda file: file.write_bytes(bytes(range(256))),
    "deep": lambda file: file.write_text(DEEP), "nothing": lambda file: file.write_text(""), **ENDLESS,
    "a folder": lambda file: file.mkdir(), "a link to itself": linked("metadata"),
    "of a newer program": lambda file: file.write_bytes(signed(encode(GOOD)["text"].replace('"format":', '"format":9'))),
    "an array without end": lambda file: file.write_bytes(of_leaves({"params/w": {**LEAF, "shape": [1 << 40, 1 << 20]}})),
    "an array elsewhere": lambda file: file.write_bytes(of_leaves({"../../x": LEAF})),
}  # fmt: skip


def of_run(workdir: Path) -> Path:
    """Makes the folder of a saved step; returns where its run JSON belongs."""
    file = workdir / "checkpoints" / "00000005" / "run" / "metadata"
    file.parent.mkdir(parents=True)
    return file


@pytest.mark.parametrize("change", METADATA.values(), ids=list(METADATA))
def test_a_hostile_run_has_no_good_step(change: Change, tmp_path: Path) -> None:
    """Damaged, or of other arrays: errors of exit code 2, which no launcher takes for a reason to start again."""
    change(of_run(tmp_path))
    abstract, where = state_of(np.zeros(4, np.float32))
    with pytest.raises((AllDamaged, RestoreError, ConfigError)) as told, bounded():
        SavedSteps(tmp_path).restore_newest(abstract, where)
    assert told.value.exit_code == 2


@pytest.mark.parametrize("verb, name", [
    ("train", "deep"), ("train", "an array elsewhere"), ("evaluate", "a device"), ("evaluate", "of a newer program")
])  # fmt: skip
def test_a_hostile_run_is_refused(verb: str, name: str, dataset: Path, csv: Path, tmp_path: Path, capsys: Capture) -> None:
    """By each verb that reads it, and at once."""
    METADATA[name](of_run(tmp_path / "run"))
    words = (f"--config.dataset={dataset}", f"--config.etl.source.path={csv}", f"--config.workdir={tmp_path / 'run'}")
    capsys.readouterr()
    with bounded(seconds=20.0):
        assert cli.run(argv(verb, *words)) == 2, capsys.readouterr().err[-1500:]
    told = capsys.readouterr().err
    assert "Traceback" not in told
    words = ("00000005 is damaged", "newer than", "does not fit config.model", "holds a run on dataset_id")
    assert any(word in told for word in words), told


# ---- arrays ------------------------------------------------------------------------------------------------------------


def state_of(array: np.ndarray) -> tuple[Any, Any]:
    """Returns what a config wants of a state of one array: (shapes, shardings), over two devices where they share it."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    return {"params": {"w": jax.ShapeDtypeStruct(array.shape, array.dtype)}}, {"params": {"w": sharding}}


def write_array(step: Path, array: np.ndarray, chunk: list[int], shape: list[int] | None = None) -> None:
    """Writes an array as a checkpoint has it, in pieces of `chunk`; `shape`: that its description says it has."""
    store = {"driver": "ocdbt", "base": f"file://{step}/state/", "path": "params/w/"}
    about = {"shape": shape or list(array.shape), "chunks": chunk, "dtype": array.dtype.str}
    found = ts.open({"driver": "zarr", "kvstore": store, "metadata": about}, create=True, open=True).result()
    if array.size:
        found[tuple(slice(n) for n in array.shape)].write(array).result()


WANTED = np.arange(4, dtype=np.float32)
EIGHT = np.arange(8, dtype=np.float32)
ROW = {"shape": [4], "dtype": "float32"}
# (array, its pieces, the shape that is said there, the row of the run JSON)
ARRAYS: dict[str, tuple[np.ndarray, list[int], list[int] | None, dict[str, Any]]] = {
    "longer, and told so": (EIGHT, [8], None, {**ROW, "shape": [8]}),
    "longer, told as it should be": (EIGHT, [8], None, ROW),
    "of doubles, and told so": (WANTED.astype(np.float64), [4], None, {**ROW, "dtype": "float64"}),
    "of doubles, told as it should be": (WANTED.astype(np.float64), [4], None, ROW),
    "of integers": (WANTED.astype(np.int32), [4], None, ROW),
    "in pieces of 64 MiB": (WANTED, [1 << 24], None, ROW),
    "without end": (WANTED, [4], [1 << 40], ROW),
    "without end, and told so": (WANTED, [4], [1 << 40], {**ROW, "shape": [1 << 40]}),
    "of a rank more": (np.stack([WANTED, WANTED], axis=1), [4, 2], None, ROW),
    "of a rank more, and told so": (np.stack([WANTED, WANTED], axis=1), [4, 2], None, {**ROW, "shape": [4, 2]}),
    "with no pieces": (np.zeros(0, np.float32), [4], [4], ROW),
    "with half its pieces": (WANTED[:2], [2], [4], ROW),
}


def _opened(folder: str, path: str, described: Any) -> Any:
    """An array as who trusts its folder opens it."""
    store = {"driver": "ocdbt", "base": f"{folder}/", "path": f"{path}/"}
    return ts.open({"driver": "zarr", "kvstore": store}, read=True, open=True).result()


@pytest.mark.parametrize("array, chunk, shape, row", ARRAYS.values(), ids=list(ARRAYS))
def test_a_hostile_array(
    array: np.ndarray, chunk: list[int], shape: list[int] | None, row: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Refused before it is read, or by its digest; without the guard a part of it is taken, or it is a traceback."""
    step, (abstract, where) = of_run(tmp_path).parents[1], state_of(WANTED)
    write_array(step, array, chunk, shape)
    digest = leaves.digests({"w": jax.numpy.asarray(WANTED)})["w"]  # what who looks at nothing would find is right by it
    (step / "run" / "metadata").write_bytes(of_leaves({"params/w": {**row, "digest": digest}}))
    read = partial(SavedSteps(tmp_path).restore_part, 5, ["params"], abstract, where)
    with pytest.raises((Damaged, ConfigError)), bounded():
        read()
    monkeypatch.setattr(saved, "check_fits", lambda *args: None)
    monkeypatch.setattr(leaves, "open_leaf", _opened)
    if array.size < 4:
        monkeypatch.setattr(leaves, "digests", lambda found: dict.fromkeys(found, digest))
    if array.ndim > 1 or array.dtype == np.int32:
        with pytest.raises(ValueError, match=r"dtype|shape"):  # of JAX's: a traceback
            read()
        return
    found = np.asarray(read()[0]["params/w"])
    assert found.tolist() == (WANTED.tolist() if array.size >= 4 else [*array.tolist(), 0, 0, 0, 0][:4])


# ---- names in pages ----------------------------------------------------------------------------------------------------

MARKUP = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "</title><script>x</script>",
    "<iframe src=//x>", "<a href='javascript:x'>y</a>", "<style>*{display:none}</style>", "<!-- hidden", "<b>\x1b[2J",
    "<i>\x9b31m", "<u>\u202e", "<s>\x07\x08",
)  # fmt: skip
PLACES = {
    "report": ("name", "class", "metric", "split", "segment", "value", "dataset", "commit", "device", "file"),
    "compare": ("name", "metric", "split", "dataset", "commit", "device", "file"),
}  # fmt: skip


def _of(place: str) -> list[str]:
    return [f"{markup}{place}".replace("/" if place == "file" else "\0", "") for markup in MARKUP]


def hostile_run(workdir: Path) -> Path:
    """A run that has markup in every name that may stand in a page."""
    cfg = past_runs.config(workdir, name=" ".join(_of("name")), dataset=" ".join(_of("dataset")), steps=2)
    about = {"run": "r", "steps": 2, "dataset_id": "d1", "code": {"commit": " ".join(_of("commit"))}}
    about |= {"config": as_json(cfg), "environment": {"device_kind": " ".join(_of("device"))}}
    with past_runs.attempt(cfg, 0, noted=False) as trackers:
        past_runs.steps(trackers, [1, 2])
    with closing(Attempts(workdir, Ledger(), about)) as notes:
        notes.log(tracking.Record(kind="start", step=0, position=0, values={}))
    figures = {**past_runs.FIGURES["classes"], "classes": _of("class"), "confusion": [[1] * len(MARKUP)] * len(MARKUP)}
    by = {name: [{"value": value, "auc": 0.5} for value in _of("value")] for name in _of("segment")}
    for split in _of("split"):
        file = past_runs.evaluation(cfg, task="classes", split="x", step=1, metrics=dict.fromkeys(_of("metric"), 0.5),
                                    figures=figures, by=by)  # fmt: skip
        file.write_text(file.read_text().replace('"split": "x"', f'"split": {json.dumps(split)}'))
        file.rename(file.with_name(f"{len(list(file.parent.iterdir()))}.json"))
    for name in _of("file"):
        (workdir / "evaluations" / f"{name}.json").write_text("no JSON")
    return workdir


@pytest.fixture(scope="module")
def pages(good: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """{page: {"safe", "unescaped", "invisible": text}} of a run whose names are markup, with and without guards."""
    workdir = hostile_run(tmp_path_factory.mktemp("hostile") / "run")
    other = past.read(good)
    found, cfg = past.read(workdir), past_runs.config(workdir)

    def made() -> dict[str, str]:
        return {
            "report": run.rendered("page.html", run.view(found, cfg, workdir / "report.html")),
            "compare": run.rendered("compare.html", compare.view([found, other])),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "curves", lambda *args, **kwargs: Markup("<svg>"))
        patch.setattr(charts, "shares", lambda *args, **kwargs: Markup("<svg>"))
        with bounded():
            safe = made()
        with patch.context() as without:
            without.setattr(jinja2, "Environment", partial(_unescaped, jinja2.Environment))
            unescaped = made()
        with patch.context() as without:
            without.setattr(data_report, "visible", lambda text, longest=0: text)
            invisible = made()
    return {name: {"safe": safe[name], "unescaped": unescaped[name], "invisible": invisible[name]} for name in safe}


def _unescaped(engine: Any, **options: Any) -> Any:
    """The engine without its guard."""
    return engine(**{**options, "autoescape": False})


@pytest.mark.parametrize("page, place", [(page, place) for page, places in PLACES.items() for place in places])
def test_names_are_no_markup(page: str, place: str, pages: dict[str, dict[str, str]]) -> None:
    """Nor do they hold what cannot be seen; without the engine's escapes, or ours, they are and do."""
    made = pages[page]
    tagged = _of(place)
    assert not [name for name in tagged if data_report.visible(name) in made["safe"]]
    assert made["safe"].replace("\n", "").isprintable()
    assert [name for name in tagged if data_report.visible(name) not in made["unescaped"]] == []
    hidden = [escape(name) for name in tagged if not name.isprintable()]
    assert [name for name in hidden if name not in made["invisible"]] == []


def test_names_are_nothing_to_a_terminal(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:  # fmt: skip
    """That `compare` prints to; without the guard it would act on them."""
    workdir = hostile_run(tmp_path / "run")
    assert cli.run(["compare", str(workdir), str(good)]) == 0
    told = capsys.readouterr().out
    assert told.replace("\n", "").isprintable()
    assert all(word in told for word in ("x1b[2J", "u202e"))
    monkeypatch.setattr(compare, "visible", lambda text, longest=0: text)
    assert cli.run(["compare", str(workdir), str(good)]) == 0
    assert {"\x1b", "\x9b", "\u202e"} <= set(capsys.readouterr().out)
