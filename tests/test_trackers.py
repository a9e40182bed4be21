"""Trackers follow the log: each step once after any way back, at their own pace, and nobody's secrets."""

import getpass
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from mlprod.config import TrackingConfig
from mlprod.errors import ConfigError, MlprodError, Preempted, TrainingError
from mlprod.trackers import open as open_module
from mlprod.trackers.follow import Follower
from mlprod.trackers.open import open_trackers
from mlprod.trackers.run import TrackedRun, redacted
from mlprod.tracking import LocalLog, Record, Trackers, read_log
from mlprod.train import train
from tests import wandb_file
from tests.conftest import MakeConfig
from tests.tensorboard_file import curves
from tests.wandb_server import Server, running

ID = "abc123def456"


def opened(folder: Path, step: int = 0, attempt: int = 1, good: Sequence[int] = (), **tracking: Any) -> Trackers:
    """The trackers of an attempt that goes on from a step."""
    cfg = TrackingConfig(**{"wandb": "off", **tracking})
    return open_trackers(cfg, folder, "name", ID, attempt, {"seed": 0}, (), step, good)


def value(step: int, attempt: int = 1) -> float:
    """The loss of a step; what float32 holds, so that it can be compared."""
    return step + attempt / 8


def take(trackers: Trackers, first: int, last: int, attempt: int = 1) -> None:
    """Logs a start and the steps from `first` to `last`, with an evaluation every 5 steps."""
    trackers.log(Record(kind="start", step=first - 1, position=0, values={}))
    for step in range(first, last + 1):
        trackers.log(Record(kind="train", step=step, position=step, values={"loss": (value(step, attempt), 1.0)}))
        if step % 5 == 0:
            trackers.log(Record(kind="eval", step=step, position=step, values={"auc": (value(step, attempt), 9.0)}))


@dataclass(kw_only=True)
class Mine:
    """A tracker of the user's own, as a config has it: it keeps what it gets, and may be slow or fail."""

    got: list[Record] = field(default_factory=list)
    after: int = 0
    stuck: threading.Event | None = None
    wrong: str = ""
    code: int | None = None  # that it was closed with

    def open(self, run: TrackedRun) -> "Mine":
        """Opens it for a run: it is its own tracker."""
        return self

    def log(self, record: Record) -> None:
        """Keeps the record, when it comes to it."""
        if self.stuck is not None:
            self.stuck.wait()
        if self.wrong:
            raise OSError(self.wrong)
        self.got.append(record)

    def close(self, code: int = 0) -> None:
        """Keeps the code."""
        self.code = code

    def steps(self, kind: str) -> list[int]:
        """The steps it got."""
        return [record.step for record in self.got if record.kind == kind]


# ---- a tracker and the log ---------------------------------------------------------------------------------------------


def test_a_tracker_gets_every_record_as_it_was_logged(tmp_path: Path) -> None:
    """Kind, step, values with weights, ids and time; in their order."""
    mine = Mine()
    with opened(tmp_path, others=(mine,)) as trackers:
        take(trackers, 1, 7)
        trackers.log(given := Record(kind="train", step=8, position=64, values={"loss": (0.5, 64.0)}, ids="00ff"))
    assert mine.got[-1] == given
    assert mine.steps("train") == list(range(1, 9))
    assert [record.time for record in mine.got] == [line["time"] for line in read_log(tmp_path) if line["kind"] != "start"]


@pytest.mark.parametrize("after", [0, 8, 12])
def test_after_a_way_back_a_tracker_gets_each_step_once(after: int, tmp_path: Path) -> None:
    """As the last attempt that took it logged it, from behind the step that the tracker has."""
    for attempt, (first, last) in enumerate([(1, 12), (9, 10), (6, 9), (10, 11)], 1):
        with opened(tmp_path, first - 1, attempt) as trackers:
            take(trackers, first, last, attempt)
    mine = Mine(after=after)
    with opened(tmp_path, 10, 5, others=(mine,)) as trackers:
        take(trackers, 11, 14, 5)
    by = dict.fromkeys(range(1, 6), 1) | dict.fromkeys(range(6, 10), 3) | {10: 4} | dict.fromkeys(range(11, 15), 5)
    losses = {record.step: record.values["loss"][0] for record in mine.got if record.kind == "train"}
    assert losses == {step: value(step, attempt) for step, attempt in by.items() if step > after}
    assert mine.steps("train") == sorted(losses)
    assert mine.steps("eval") == [step for step in (5, 10) if step > after]


def test_a_way_back_inside_an_attempt_is_one_too(tmp_path: Path) -> None:
    """After bad numbers: what was behind where it went back to does not count for who reads the log later."""
    with opened(tmp_path) as trackers:
        take(trackers, 1, 8)
        for step in (5, 6):
            trackers.log(Record(kind="train", step=step, position=step, values={"loss": (value(step, 2), 1.0)}))
    mine = Mine()
    with opened(tmp_path, 6, 2, others=(mine,)):
        pass
    assert mine.steps("train") == [1, 2, 3, 4, 5, 6]
    assert mine.got[-1].values["loss"] == (value(6, 2), 1.0)
    assert mine.steps("eval") == [], "that of step 5 was of the way that was given up"


def test_a_line_that_is_being_written_is_left_until_it_is_whole(tmp_path: Path) -> None:
    """Half of it is no record."""
    log = LocalLog(tmp_path, ID, 1, 1 << 32)
    mine = Mine()
    follower = Follower("Mine", lambda: mine, tmp_path / "log.jsonl", 0, ())
    assert follower.wait_open(5.0)
    line = json.dumps({"kind": "train", "step": 1, "position": 1, "time": 1.0, "values": {}, "ids": ""}).encode() + b"\n"
    with (tmp_path / "log.jsonl").open("ab", buffering=0) as file:
        file.write(line[:20])
        time.sleep(0.8)
        assert mine.got == []
        file.write(line[20:])
    follower.end(0)
    assert follower.wait_end(5.0)
    assert mine.steps("train") == [1]
    log.close()


ENDS = {None: 0, Preempted("asked to"): 75, TrainingError("NaN"): 1, KeyError("a bug"): 1, KeyboardInterrupt(): 75}


@pytest.mark.parametrize("error, code", ENDS.items(), ids=repr)
def test_a_tracker_hears_how_the_run_ends(error: BaseException | None, code: int, tmp_path: Path) -> None:
    """By its exit code."""
    mine = Mine()
    with suppress(*[type(error)] if error else []), opened(tmp_path, others=(mine,)):
        if error:
            raise error
    assert mine.code == code


def test_a_tracker_that_hangs_keeps_nobody_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another gets everything; the log has everything; the end is bounded and told."""
    stuck, well = Mine(stuck=threading.Event()), Mine()
    trackers = opened(tmp_path, others=(stuck, well), finish_s=0.3)
    began = time.monotonic()
    with trackers:
        take(trackers, 1, 500)
        assert time.monotonic() - began < 0.3
    assert time.monotonic() - began < 1.0
    assert "Mine did not take everything within 0.3 s (config.tracking.finish_s)" in capsys.readouterr().err
    assert well.steps("train") == list(range(1, 501))
    assert sum(line["kind"] == "train" for line in read_log(tmp_path)) == 500
    assert stuck.stuck is not None
    stuck.stuck.set()


def test_a_run_that_stops_or_fails_waits_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is short, and the error is its own."""
    monkeypatch.setattr(open_module, "HURRY_S", 0.3)
    stuck, began = Mine(stuck=threading.Event()), time.monotonic()

    def stopped() -> None:
        with opened(tmp_path, others=(stuck,), finish_s=30.0) as trackers:
            take(trackers, 1, 5)
            raise Preempted("asked to")

    with pytest.raises(Preempted, match="asked to"):
        stopped()
    assert time.monotonic() - began < 2.0
    assert stuck.stuck is not None
    stuck.stuck.set()


def test_a_tracker_that_is_slow_to_open_gets_the_lines_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The start waits as long as the config says, and says so."""

    @dataclass
    class Slow(Mine):
        def open(self, run: TrackedRun) -> Mine:
            time.sleep(0.6)
            return self

    slow, began = Slow(), time.monotonic()
    trackers = opened(tmp_path, others=(slow,), start_s=0.2)
    assert 0.2 <= time.monotonic() - began < 0.5
    assert "Slow is not ready after 0.2 s (config.tracking.start_s)" in capsys.readouterr().err
    with trackers:
        take(trackers, 1, 20)
    assert slow.steps("train") == list(range(1, 21))


def test_a_tracker_that_fails_is_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run goes on, and its exit is its own."""
    with opened(tmp_path, others=(Mine(wrong="no route"),)) as trackers:
        take(trackers, 1, 20)
    assert f"Mine is switched off: OSError: no route; {tmp_path}/log.jsonl has every line" in capsys.readouterr().err
    assert sum(line["kind"] == "train" for line in read_log(tmp_path)) == 20


def test_saved_steps_are_told_once_they_were_read_back(tmp_path: Path) -> None:
    """Not while they are being saved: the list of the good ones is what a tracker hears of."""
    mine, good = Mine(), [3]
    with opened(tmp_path, 3, 2, good, others=(mine,)) as trackers:
        take(trackers, 4, 9, 2)
        good.append(6)
    assert mine.steps("checkpoint") == [3, 6]


def test_a_training_run_gives_its_trackers_what_it_logs_and_saves(make_config: MakeConfig) -> None:
    """Two starts: the second goes on from step 20, and has the whole curve; a saved step is told when it was read back."""
    first, second = Mine(), Mine()
    saved = {"every": 10, "keep_last": 9}
    train(make_config(steps=20, checkpoint=saved, tracking={"others": (first,)}), jax.devices()[:1])
    cfg = make_config(steps=30, checkpoint=saved, tracking={"others": (second,), "tensorboard": True})
    train(cfg, jax.devices()[:1])
    assert first.steps("train") == list(range(1, 21))
    assert first.steps("checkpoint") == [10, 20]
    assert second.steps("train") == list(range(1, 31))
    assert second.steps("checkpoint") == [20, 30]
    shown = dict(curves(Path(cfg.workdir) / "tensorboard")["train/loss"])
    assert shown == pytest.approx({r.step: r.values["loss"][0] for r in second.got if r.kind == "train"}, rel=1e-6)


def test_the_tracker_of_the_docs_is_one(tmp_path: Path) -> None:
    """What docs/tracking.md shows, run as a config file would: the whole curve, over a resume."""
    text = (Path(__file__).parents[1] / "docs" / "tracking.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    cfg = SimpleNamespace(tracking=TrackingConfig(wandb="off"))
    exec(block, {"dataclass": dataclass, "cfg": cfg})
    for attempt, (first, last) in enumerate([(1, 4), (3, 6)], 1):
        with opened(tmp_path, first - 1, attempt, others=cfg.tracking.others) as trackers:
            take(trackers, first, last, attempt)
    rows = [line.split(",") for line in (tmp_path / "curve.csv").read_text().split()]
    assert [(int(r[0]), float(r[3])) for r in rows if r[1] == "train"] == expected({1: (1, 2), 2: (3, 6)})


# ---- TensorBoard -------------------------------------------------------------------------------------------------------


def expected(upto: dict[int, tuple[int, int]]) -> list[tuple[int, float]]:
    """The points of {attempt: (first, last) that count}."""
    return [(step, value(step, attempt)) for attempt, (first, last) in upto.items() for step in range(first, last + 1)]


def test_tensorboard_has_neither_gap_nor_double_point(tmp_path: Path) -> None:
    """After a resume from an older step, and after a way back inside an attempt; no hostname in a name."""
    with opened(tmp_path, tensorboard=True) as trackers:
        take(trackers, 1, 12)
    assert curves(tmp_path / "tensorboard")["train/loss"] == expected({1: (1, 12)})
    with opened(tmp_path, 7, 2, tensorboard=True) as trackers:
        take(trackers, 8, 20, 2)
        for step in range(16, 19):
            trackers.log(Record(kind="train", step=step, position=step, values={"loss": (value(step, 3), 1.0)}))
    found = curves(tmp_path / "tensorboard")
    assert found["train/loss"] == expected({1: (1, 7), 2: (8, 15), 3: (16, 18)})
    assert found["eval/auc"] == [(5, value(5)), (10, value(10, 2)), (15, value(15, 2))]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert re.fullmatch(r"events\.out\.tfevents\.\d+\.2", file.name)


def test_tensorboard_without_its_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line with the way out."""
    monkeypatch.setitem(sys.modules, "tensorboardX.proto", None)
    with pytest.raises(ConfigError, match=r"config.tracking.tensorboard=True needs .*pip install 'mlprod\[tensorboard\]'"):
        opened(tmp_path, tensorboard=True)


# ---- W&B ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home folder of a user without a key; W&B's own process is of this test alone."""
    import wandb

    wandb.teardown()  # of another test's: else the name of its socket would be put back when it is gone
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    yield tmp_path / "home"
    wandb.teardown()


@pytest.fixture
def server(wandb_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that is well, and a user who is logged in there."""
    with running() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield server
        import wandb

        wandb.teardown()


def losses(rows: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """The curve that rows of a history show."""
    return [(row["_step"], row["train/loss"]) for row in rows if "train/loss" in row]


def folders(workdir: Path) -> list[Path]:
    """W&B's offline folders of the run."""
    return sorted((workdir / "wandb").glob(f"offline-run-*-{ID}*"))


def sync(folder: Path) -> None:
    """`wandb sync`, as a user would call it."""
    subprocess.run([sys.executable, "-m", "wandb", "sync", str(folder)], check=True, capture_output=True, timeout=60)


def test_offline_a_resumed_run_is_one_curve_also_when_it_is_synced_twice(tmp_path: Path, server: Server) -> None:
    """One folder, each step once at its own time; `wandb sync` begins at the first row, so that a later one replaces it."""
    with opened(tmp_path, wandb="offline") as trackers:
        take(trackers, 1, 12)
    sync(folders(tmp_path)[0])
    assert losses(server.history[ID]) == expected({1: (1, 12)})
    with opened(tmp_path, 7, 2, wandb="offline") as trackers:
        take(trackers, 8, 20, 2)
    (folder,) = folders(tmp_path)
    rows = wandb_file.history(folder / f"run-{ID}.wandb")
    assert losses(rows) == expected({1: (1, 7), 2: (8, 20)})
    times = {line["step"]: line["time"] for line in read_log(tmp_path) if line["kind"] == "train"}
    assert {row["_step"]: row["_timestamp"] for row in rows} == pytest.approx(times, abs=0.1)
    server.sent.clear()
    sync(folder)
    assert losses(server.history[ID]) == expected({1: (1, 7), 2: (8, 20)})
    assert server.sent[0] == (ID, 0)


def test_online_a_resumed_run_is_one_curve_whatever_the_service_missed(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has steps 1 to 6 of 12; an attempt offline; then it gets what it lacks, and no step twice."""
    import wandb

    with opened(tmp_path, wandb="online") as trackers:
        take(trackers, 1, 12)
    del server.history[ID][6:]  # the rest was lost on its way, as by a kill
    with opened(tmp_path, 9, 2, wandb="offline") as trackers:
        take(trackers, 10, 15, 2)
    wandb.teardown()
    with opened(tmp_path, 8, 3, wandb="online") as trackers:
        take(trackers, 9, 20, 3)
    assert losses(server.history[ID]) == expected({1: (1, 8), 3: (9, 20)})
    assert folders(tmp_path) == [], "what was offline went there too"
    assert len(list((tmp_path / "wandb").glob(f"run-*-{ID}"))) == 1, "the folder of the first attempt is of no use any more"
    with opened(tmp_path, 14, 4, wandb="online") as trackers:  # it has the steps that are taken again
        take(trackers, 15, 25, 4)
    assert losses(server.history[ID]) == expected({1: (1, 8), 3: (9, 20), 4: (21, 25)})
    assert "Tried to log to step" not in capsys.readouterr().err, "nothing is sent that W&B would leave out"


def test_a_service_that_goes_away_gets_the_rest_at_the_next_start(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end is bounded and told; the same run started again sends what is missing, though it has nothing more to do."""
    import wandb

    with opened(tmp_path, wandb="online") as trackers:
        take(trackers, 1, 12)
    with opened(tmp_path, 10, 2, wandb="online", finish_s=3.0) as trackers:
        server.mode = "silent"
        take(trackers, 11, 29, 2)
        began = time.monotonic()
    assert time.monotonic() - began < 3.5
    told = "W&B is switched off: TimeoutError: not everything was taken in time; the same command, started again, sends"
    assert told in capsys.readouterr().err
    wandb.teardown()
    server.mode = "well"
    with opened(tmp_path, 29, 3, wandb="online"):
        pass
    assert losses(server.history[ID]) == expected({1: (1, 12), 2: (13, 29)})


@pytest.mark.parametrize("error, code", [(None, 0), (Preempted("asked to"), 75), (TrainingError("NaN"), 1)], ids=repr)
def test_the_service_knows_how_the_run_ended(error: MlprodError | None, code: int, tmp_path: Path, wandb_home: Path) -> None:
    """A run that was stopped is marked before, so that its code does not read as a failure."""
    with suppress(MlprodError), opened(tmp_path, wandb="offline") as trackers:
        take(trackers, 1, 3)
        if error:
            raise error
    found = wandb_file.records(folders(tmp_path)[0] / f"run-{ID}.wandb")
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [code]
    assert any(record.HasField("preempting") for record in found) is (code == 75)


@pytest.mark.parametrize("error, code", [(None, 0), (Preempted("asked to"), 75)], ids=repr)
def test_the_service_hears_it_online(error: MlprodError | None, code: int, tmp_path: Path, server: Server) -> None:
    """In the last of what it is sent."""
    with suppress(MlprodError), opened(tmp_path, wandb="online") as trackers:
        take(trackers, 1, 3)
        if error:
            raise error
    (last,) = (json.loads(body) for body in server.bodies if '"complete":true' in body)
    assert last["exitcode"] == code
    assert any('"preempting":true' in body for body in server.bodies) is (code == 75)


def test_an_artifact_is_a_step_that_was_read_back(tmp_path: Path, wandb_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the whole folder, when it is asked for; a step that is gone by then is told."""
    for name in ("00000003/state/a", "00000006/state/a", "00000009/state/a"):
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    for asked, steps in ((False, []), (True, [3, 6])):
        good = [3]
        with opened(tmp_path, good=good, wandb="offline", checkpoints=asked) as trackers:
            take(trackers, 1, 9)
            good += [6, 8]  # 9 is still to be read back, 8 was thrown away
        (folder,) = folders(tmp_path)
        found = [r.request.log_artifact.artifact for r in wandb_file.records(folder / f"run-{ID}.wandb") if r.HasField("request")]
        found += [r.artifact for r in wandb_file.records(folder / f"run-{ID}.wandb") if r.HasField("artifact")]
        assert [json.loads(artifact.metadata)["step"] for artifact in found] == steps
        assert all([entry.path for entry in artifact.manifest.contents] == ["state/a"] for artifact in found)
    assert "step 8 is no artifact, it is gone already" in capsys.readouterr().err


# ---- nobody's secrets --------------------------------------------------------------------------------------------------

HOST, PASSWORD, SECRET = "canary-host-7141", "canary-password-7141", "canary-environment-7141"
PROBE = """
import os, socket, sys
from pathlib import Path
host, password = os.environ["A_HOST"], os.environ["A_PASSWORD"]
socket.gethostname = lambda: host
from mlprod.config import TrackingConfig
from mlprod.trackers.open import open_trackers
from mlprod.tracking import Record
config = {"url": f"postgresql://bob:{password}@db/x", "api_key": password, "workdir": str(Path.home() / "runs")}
cfg = TrackingConfig(wandb=sys.argv[1], machine=sys.argv[2] == "asked", tensorboard=True)
with open_trackers(cfg, Path("run"), "name", "abc123def456", 1, config) as trackers:
    print("canary-printed-7141")
    trackers.log(Record(kind="train", step=1, position=1, values={"loss": (0.5, 1.0)}))
"""


def probed(folder: Path, mode: str, asked: str) -> bytes:
    """Runs a program in a repository with a telling remote, and returns all that is left of its run, names included."""
    (folder / "run").mkdir(parents=True)
    (folder / "canary-program-7141.py").write_text(PROBE)
    for command in (
        ["init", "-q"], ["remote", "add", "origin", f"ssh://bob:{PASSWORD}@git.canary-remote-7141.example/x.git"],
        ["config", "user.email", "canary-mail-7141@example.com"], ["config", "user.name", "canary-name-7141"], ["add", "-A"],
        ["commit", "-qm", "all"],
    ):  # fmt: skip
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    env = {
        **os.environ,
        "A_SECRET": SECRET,
        "A_HOST": HOST,
        "A_PASSWORD": PASSWORD,
        "USER": "canary-user-7141",
        "LOGNAME": "canary-user-7141",
    }
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    env["HOME"] = str(folder / "canary-home-7141")
    command = [sys.executable, "canary-program-7141.py", mode, asked]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=60)
    paths = [path.relative_to(folder) for path in (folder / "run").rglob("*") if path.is_file()]
    sent = [path for path in paths if path.parts[-2] != "logs"]  # W&B's notes on its own doing stay here
    return b"\n".join(str(path).encode() + (folder / path).read_bytes() for path in sent)


def leaks(sent: bytes, folder: Path) -> list[str]:
    """What of the machine, its user and their secrets is in there."""
    canaries = {HOST, PASSWORD, SECRET, getpass.getuser() + "@", sys.executable, str(folder), socket.gethostname() + "-"}
    return sorted(
        {word for word in canaries if word.encode() in sent} | set(re.findall(r"canary-\w+-7141", sent.decode("latin-1")))
    )


def test_nothing_of_the_machine_or_its_user_is_kept_or_sent(tmp_path: Path, server: Server) -> None:
    """Offline in the files that `wandb sync` sends, online in what the server hears; TensorBoard's files too."""
    offline = probed(tmp_path / "a", "offline", "not asked")
    assert b"loss" in offline
    assert leaks(offline, tmp_path) == []
    probed(tmp_path / "b", "online", "not asked")
    heard = "\n".join(server.bodies).encode()
    assert b"loss" in heard
    assert leaks(heard, tmp_path) == []


def test_what_is_asked_for_is_sent(tmp_path: Path, server: Server) -> None:
    """So that the test above is seen to look where it would be; secrets are not even then."""
    probed(tmp_path / "a", "online", "asked")
    found = leaks("\n".join(server.bodies).encode(), tmp_path)
    assert {HOST, "canary-remote-7141", "canary-program-7141"} <= set(found)
    assert not {PASSWORD, SECRET} & set(found)


@pytest.mark.parametrize(
    "given, shown",
    [
        ({"url": "postgresql://bob:pw@db/x"}, {"url": "postgresql://***@db/x"}),
        ({"url": "mysql://db/x?user=bob&Token=abc&a=1"}, {"url": "mysql://db/x?user=bob&Token=***&a=1"}),
        ({"db_password": "pw", "a": [{"API_KEY": "k"}]}, {"db_password": "***", "a": [{"API_KEY": "***"}]}),
        ({"url": "$URL", "secret": "", "n": 3, "on": True}, {"url": "$URL", "secret": "", "n": 3, "on": True}),
    ],
)
def test_a_config_is_redacted(given: Any, shown: Any) -> None:
    """Who logs in to a URL, and what is named like a secret; numbers, and what is not there, stay."""
    assert redacted(given) == shown
