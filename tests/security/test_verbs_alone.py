"""Each verb by a command line of its own, as people start it, and what the process list then says; `init` and `run` too.

`init` has no config in which a column could be sensitive: what it writes is a config, whose reasons name the ends of numbers.
"""

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from mlprod import cli
from mlprod.tracking import read_log
from tests import postgres_server
from tests.security import planted
from tests.security.canaries import Finder
from tests.security.test_failing_runs import LIMIT_S, LONG, MLPROD, assert_nothing_left, planted_machine, trained, until
from tests.security.test_what_leaves import CONFIG, FINDER, POSTGRES, fill_table

URL = f"postgresql://bob:{planted.TOKEN}@127.0.0.1:1/x"


@pytest.mark.parametrize(
    "argv, told",
    [
        (["init", URL, "--target=y"], "DATA holds a password"),
        (["init", "postgresql://bob:$DB_PASSWORD@127.0.0.1:1/x?sslpassword=$DB_OPTION", "--target=y", "--table=t"], "refused"),
        (["init", "rows.csv", "--target=who"], "--target=who is text with 60 different values"),
        (["init", "rows.csv", "--target=y", "--time=mail"], "--time=mail is string"),
        (["init", "rows.csv", "--target=note", "--task=binary"], "--target=note has 5 different values"),
        (["run", URL], "the command stands behind --"),
        (["run", "--", URL], "cannot be started"),
        (["run", "--restarts=0", "--", sys.executable, "-c", "import sys; sys.exit(3)", URL], ""),
    ],
)
def test_mistakes_of_verbs_without_config(
    argv: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No value, and no secret."""
    for name, value in planted.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    planted.write(tmp_path / "rows.csv")
    assert cli.run([*argv[:1], "--debug", *argv[1:]]) != 0
    printed = "".join(capfd.readouterr())
    assert told in printed
    assert FINDER.in_bytes("", printed.encode()) == set()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv"]


def test_what_init_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The ends of numbers are in the config that it writes, in the reasons, and nowhere else."""
    monkeypatch.chdir(tmp_path)
    planted.write(tmp_path / "rows.csv", 400)
    assert cli.run(["init", "rows.csv", "--target=note", "--name=made", "--key=who", "--time=born"]) == 0
    assert FINDER.in_bytes("", "".join(capsys.readouterr()).encode()) == set()
    (tmp_path / "rows.csv").unlink()
    found = FINDER.below(tmp_path)
    assert {f.place for f in found} == {"configs/made.py"}
    assert {f.canary for f in found} == {"least", "greatest", "serial"}  # the greatest of its column


@pytest.mark.chaos
def test_the_process_list_of_each_verb(tmp_path: Path) -> None:
    """A password in a variable stays there: each verb is a process, and what it starts is looked at too."""
    with ExitStack() as stack:
        port = stack.enter_context(postgres_server.postgres())
        fill_table(port)
        url = f"postgresql://postgres:$PGPW@127.0.0.1:{port}/postgres"
        change = POSTGRES.replace("PORT", str(port))
        m = stack.enter_context(planted_machine(tmp_path / "m", change, PGPW=postgres_server.PASSWORD))
        given = (*CONFIG, f"--config.etl.source.url={url}")
        verbs = (
            ["init", url, "--table=t", "--target=y", "--name=made"], ["doctor", *given], ["etl", *given, "--dry-run"],
            ["etl", *given],
            ["check", *given], ["train", *given], ["evaluate", *given], ["predict", *given, "--output=predictions.parquet"],
            ["data", "show", *given], ["checkpoints", "show", *given], ["report", *given],
            ["compare", "run-sql", "run-sql", "--output=compare.html"],
            ["run", "--restarts=0", "--", MLPROD, "train", *given, "--config.workdir=run-again"],
        )  # fmt: skip
        for verb in verbs:
            with m.start(MLPROD, *verb) as process:
                assert process.wait(LIMIT_S) == 0, m.told()
        assert_nothing_left(m, asked=True)
        lines = (m.root / "processes.txt").read_text().splitlines()
        seen = {verb[0] for verb in verbs if any(f"{MLPROD} {verb[0]} " in line for line in lines)}
        assert seen == {verb[0] for verb in verbs}
        assert any("wandb" in line and MLPROD not in line for line in lines)


@pytest.mark.chaos
def test_run_starts_training_again(tmp_path: Path) -> None:
    """Its command is killed, then it is asked to stop: what both print, the pulse, and the process list."""
    with planted_machine(tmp_path / "m") as m:
        assert set(m.run(["etl", *CONFIG]).values()) == {0}
        with m.start(MLPROD, "run", "--pause-s=0.1", "--", sys.executable, MLPROD, *LONG) as process:
            until(process, lambda: trained(m, 20))
            (child,) = psutil.Process(process.pid).children()
            child.kill()
            until(process, lambda: "start 2" in m.told())
            before = len(list(read_log(m.here / "run")))
            until(process, lambda: len(list(read_log(m.here / "run"))) > before + 5)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(LIMIT_S) == 75, m.told()
        assert_nothing_left(m)


def test_a_secret_on_a_command_line_is_found() -> None:
    """As the search of a process list must."""
    assert Finder(planted.SECRETS).in_bytes("", f"mlprod init {URL}".encode()) != set()
