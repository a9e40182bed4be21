"""What `launch/` starts: the very commands, one exit code of many, signals that reach all, and nothing that stays behind.

Supervisors, `srun`, `scontrol` and `gcloud` are small fakes on PATH; a worker of a TPU slice is a folder.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mlprod.recipe import load
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "launch"
COMMAND = ("python", "-m", "mlprod.train", "--config", "it's a.py")
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
LIMIT_S = 20.0

# What a supervisor of a test does, as shell code: it is sourced by the fake.
READY = "echo $$ >ready.$me; until [ -e ready.0 ] && [ -e ready.1 ]; do sleep 0.01; done"
ENDS = "trap '' TERM; {ready}; exit {code}"
WAITS = "told=0; trap 'told=$((told + 1)); echo told $told' TERM; trap 'echo interrupted' INT; {ready}; echo waiting"
TOO_LONG = "[ $((turns += 1)) -lt 500 ]"  # so that none stays behind where a test fails
UNTIL_TOLD = WAITS + f"; while [ $told -lt {{times}} ] && {TOO_LONG}; do sleep 0.02; done; sleep 0.1; echo saved; exit 75"


def program(path: Path, text: str) -> Path:
    """Writes an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def environment(bin: Path, **more: str) -> dict[str, str]:
    """The variables of a script: fakes first on PATH, nothing of ours."""
    return {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHON": sys.executable, "TMPDIR": str(bin.parent), **more}


def until(what: str, there: Any) -> None:
    """Waits until `there()` holds."""
    deadline = time.monotonic() + LIMIT_S
    while not there():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and waits for its parent to look does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# ---- the commands ----


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    """About any script alone, at its default severity."""
    words = [Path(sys.executable).parent / "shellcheck", script]
    assert subprocess.run(words, check=False, capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("script", [*SCRIPTS, LAUNCH / "k8s-jobset.yaml"], ids=lambda path: path.name)
def test_a_script_begins_with_its_use(script: Path) -> None:
    """The first lines say what it is, with a command to copy."""
    head = re.match(r"(?:#.*\n)+", script.read_text(encoding="utf-8"))
    assert head is not None
    assert re.search(rf"^#     .*launch/{re.escape(script.name)}", head[0], re.MULTILINE)


@pytest.mark.parametrize(
    "golden, words, variables",
    [
        ("local", ["launch/local.sh", "--dry-run", "2", *COMMAND], {"PORT": "12345"}),
        ("local-any-port", ["launch/local.sh", "--dry-run", "1", *COMMAND], {}),
        ("slurm", ["sh", "launch/slurm.sbatch", "--dry-run", *COMMAND], {}),
        ("tpu-vm", ["launch/tpu_vm.sh", "--dry-run", "--name", "v5e", "--zone", "us-west4-a", "--", *COMMAND], {}),
        (
            "tpu-vm-slices",
            ["launch/tpu_vm.sh", "--dry-run", "--name", "v5e", "--zone", "us-west4-a", "--project", "ours", "--slices", "2"]
            + ["--workers", "2", "--python", "python3.11", "--", *COMMAND],
            {},
        ),
    ],
)
def test_a_dry_run_prints_the_commands(golden: str, words: Sequence[str], variables: Mapping[str, str], tmp_path: Path) -> None:
    """One a line, and does nothing else: a program that it would start is not even there, and no variable's value is printed."""
    for name in ("gcloud", "srun", "scontrol", "mlprod", "git", "tar"):
        program(tmp_path / "bin" / name, f"touch {tmp_path}/started")
    env = environment(tmp_path / "bin", WANDB_API_KEY="a-secret", **variables)
    done = subprocess.run(words, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (GOLDEN / f"{golden}.txt").read_text()
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["launch/local.sh"], ["launch/local.sh", "0", "true"], ["launch/local.sh", "2"], ["sh", "launch/slurm.sbatch"],
        ["launch/tpu_vm.sh", "--name", "v5e", "--", "true"], ["launch/tpu_vm.sh", "--name", "v5e", "--zone", "z"],
        ["launch/tpu_vm.sh", "--name", "v5e", "--zone", "z", "--slices", "two", "--", "true"], ["launch/tpu_vm.sh", "--zone"],
        ["launch/tpu_vm.sh", "--nam", "v5e"], ["sh", "launch/tpu_worker.sh"],
    ],
)  # fmt: skip
def test_a_wrong_call_ends_with_2(words: Sequence[str]) -> None:
    """With its usage on stderr."""
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "launch/" in done.stderr


# ---- local.sh ----


class Local:
    """`local.sh` with supervisors that do what a test says."""

    def __init__(self, folder: Path, *supervisors: str) -> None:
        """Writes the fakes; nothing is started yet."""
        self.folder = folder
        program(
            folder / "bin" / "mlprod",
            'printf "<%s>" "$@"; echo; while [ "$1" != --process-id ]; do shift; done; me=$2; . ./plan.$me',
        )
        for index, text in enumerate(supervisors):
            (folder / f"plan.{index}").write_text(text.replace("{ready}", READY))
        self.words = [LAUNCH / "local.sh", str(len(supervisors)), *COMMAND]
        self.env = environment(folder / "bin")

    def start(self) -> subprocess.Popen[str]:
        """Starts it, and returns once all supervisors are there."""
        process = subprocess.Popen(
            self.words, cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until("the supervisors", lambda: len(list(self.folder.glob("ready.*"))) == 2)
        return process

    def run(self, **variables: str) -> tuple[int, str]:
        """Returns exit code and output."""
        env = {**self.env, **variables}
        done = subprocess.run(
            self.words, cwd=self.folder, env=env, check=False, timeout=LIMIT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return done.returncode, done.stdout.decode()


@pytest.mark.parametrize(
    "codes, merged",
    [((0, 0), 0), ((0, 75), 75), ((75, 75), 75), ((75, 1), 1), ((0, 9), 1), ((1, 2), 2), ((75, 2), 2), ((2, 75), 2)],
)
def test_many_exit_codes_become_one(codes: tuple[int, int], merged: int, tmp_path: Path) -> None:
    """0 if all are 0, else 2 if one is, else 1 if one is anything but 75, else 75."""
    assert Local(tmp_path, *(ENDS.replace("{code}", str(code)) for code in codes)).run()[0] == merged


def test_every_supervisor_is_told_its_rank_and_its_lines_say_whose_they_are(tmp_path: Path) -> None:
    """Both streams, and a last line without an end."""
    code, output = Local(tmp_path, "echo one >&2; printf two", "echo three").run(PORT="12345")
    assert code == 0
    told = "<run><--coordinator><127.0.0.1:12345><--num-processes><2><--process-id><{}><-->"
    told += "<python><-m><mlprod.train><--config><it's a.py>"
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("[0]")] == [f"[0] {told.format(0)}", "[0] one", "[0] two"]
    assert [line for line in lines if line.startswith("[1]")] == [f"[1] {told.format(1)}", "[1] three"]
    assert len(lines) == 5


def test_a_port_that_nobody_gave_is_free_and_the_same_for_all(tmp_path: Path) -> None:
    """Found anew at each start."""
    _, output = Local(tmp_path, "exit 0", "exit 0").run()
    ports = re.findall(r"<--coordinator><127\.0\.0\.1:(\d+)>", output)
    assert len(ports) == 2
    assert len(set(ports)) == 1
    assert 1024 <= int(ports[0]) < 1 << 16


@pytest.mark.parametrize("number, times", [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGHUP, 1)])
def test_each_signal_is_passed_on_once(number: signal.Signals, times: int, tmp_path: Path) -> None:
    """As SIGTERM, to every supervisor; what they print afterwards still comes."""
    text = UNTIL_TOLD.replace("{times}", str(times))
    process = Local(tmp_path, text, text).start()
    assert process.stdout is not None
    output = ""
    for time_ in range(times):
        process.send_signal(number)
        while output.count(f"told {time_ + 1}") < 2:
            output += process.stdout.readline()
    output += process.stdout.read()
    assert process.wait(LIMIT_S) == 75
    assert output.count("saved") == 2
    assert output.count("told") == 2 * times


def test_ctrl_c_in_a_terminal_reaches_each_supervisor_once(tmp_path: Path) -> None:
    """As the SIGTERM that the script sends, not as the terminal's own signal too, which would be the second of two."""
    text = UNTIL_TOLD.replace("{times}", "1")
    local = Local(tmp_path, text, text)
    spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    words = [sys.executable, "-c", spawn, *local.words]
    process = subprocess.Popen(words, cwd=tmp_path, env=local.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    until("the supervisors", lambda: len(list(tmp_path.glob("ready.*"))) == 2)
    assert process.stdin is not None
    time.sleep(0.1)  # both wait now
    process.stdin.write(b"\x03")
    process.stdin.flush()
    assert process.stdout is not None
    output = process.stdout.read().decode()
    process.stdin.close()
    assert process.wait(LIMIT_S) == 75
    assert output.count("told 1") == 2
    assert "told 2" not in output
    assert "interrupted" not in output


def test_a_signal_that_comes_before_all_are_started_is_not_lost(tmp_path: Path) -> None:
    """Also those that start afterwards get it; one that it killed before it could listen counts as stopped."""
    text = UNTIL_TOLD.replace("{times}", "1").replace("{ready}", "touch ready.$me")
    local = Local(tmp_path, text, "sleep 5; exit 0")
    wait = 'if [ "${1##*/}" = 1 ]; then until [ -e go ]; do sleep 0.01; done; fi'
    program(tmp_path / "bin" / "mkfifo", f'{wait}; PATH=${{PATH#*:}} exec mkfifo "$1"')
    process = subprocess.Popen(local.words, cwd=tmp_path, env=local.env, stdout=subprocess.PIPE, text=True)
    until("the first supervisor", (tmp_path / "ready.0").exists)
    process.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    assert process.stdout is not None
    assert "[0] told 1\n" in process.stdout.read()
    assert process.wait(LIMIT_S) == 75


@pytest.mark.parametrize("code, merged", [(1, 1), (2, 2), (9, 1)])
def test_when_one_has_failed_the_others_are_told(code: int, merged: int, tmp_path: Path) -> None:
    """Once, so that they save and end."""
    merged_, output = Local(tmp_path, ENDS.replace("{code}", str(code)), UNTIL_TOLD.replace("{times}", "1")).run()
    assert merged_ == merged
    assert "[1] told 1\n[1] saved" in output
    assert f"[0] ended with exit code {code}" in output


@pytest.mark.parametrize("code", [0, 75])
def test_when_one_is_done_the_others_go_on(code: int, tmp_path: Path) -> None:
    """Also where it asks to be started again: the others have been told what it was told, or are told by it."""
    merged, output = Local(tmp_path, ENDS.replace("{code}", str(code)), f"{WAITS}; sleep 0.4; exit 0").run()
    assert merged == code
    assert "told" not in output


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """No child that a supervisor left, no folder of the script's own."""
    leaves = "sleep 60 & echo $! >left; exit 0"
    assert Local(tmp_path, leaves, "exit 0").run()[0] == 0
    until("the end of what was left", lambda: not alive(int((tmp_path / "left").read_text())))
    assert list(tmp_path.glob("mlprod-launch.*")) == []


# ---- slurm.sbatch ----


def sbatch_options() -> dict[str, str]:
    """The options in the script's own lines, as Slurm reads them: up to the first command."""
    head = re.match(r"(?:#.*\n)+", (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8"))
    assert head is not None
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", head[0], re.MULTILINE))


def test_slurm_is_asked_to_signal_the_supervisors_in_time() -> None:
    """Not the batch script, which would have to pass it on; with more time than a supervisor gives (30 s); one task a node."""
    options = sbatch_options()
    number, seconds = options["signal"].split("@")
    assert number == "TERM"
    assert int(seconds) >= 60
    assert options["ntasks-per-node"] == "1"
    assert options["open-mode"] == "append"
    assert "requeue" in options
    assert f"--cpus-per-task={options['cpus-per-task']} " in (GOLDEN / "slurm.txt").read_text()


@pytest.mark.parametrize("code", [0, 1, 2, 75, 137])
def test_a_slurm_job_is_queued_again_after_75_alone(code: int, tmp_path: Path) -> None:
    """Any code is passed on."""
    program(tmp_path / "bin" / "srun", f'for word; do echo "$word"; done >srun; exit {code}')
    program(tmp_path / "bin" / "scontrol", 'echo "$@" >scontrol')
    env = environment(tmp_path / "bin", SLURM_JOB_ID="42", SLURM_CPUS_PER_TASK="7")
    done = subprocess.run(["sh", LAUNCH / "slurm.sbatch", *COMMAND], cwd=tmp_path, env=env, check=False, capture_output=True)
    assert done.returncode == code
    words = (tmp_path / "srun").read_text().splitlines()
    assert words[words.index("mlprod") :] == ["mlprod", "run", "--", *COMMAND]
    assert {"--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=7"} < set(words)
    asked = tmp_path / "scontrol"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 42\n" if code == 75 else "")


# ---- tpu_vm.sh ----

GCLOUD = """
echo "$*" >>"$WORLD/calls"
shift 3; verb=$1 name=${2%:}
for word; do
    case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac
done
case $verb in
    describe) ls -d "$WORLD/workers/$2".* | wc -l ;;
    scp) for home in "$WORLD/workers/${3%:}".*; do cp "$2" "$home" || exit 1; done ;;
    ssh)
        [ "$worker" = all ] && worker='*'
        code=0
        for home in "$WORLD/workers/$name".$worker; do
            [ -e "$home/cut" ] && [ "${command##* }" = follow ] && exit 255
            times=1
            case $command in *" start "* | *" stop") times=2 ;; esac  # gcloud does a command again when the connection is lost
            for _ in $(seq $times); do  # a session of its own, as by sshd
                (cd "$home" && exec setsid -w sh -c "$command") || code=$?
            done
        done
        exit $code
        ;;
esac
"""
PYTHON = """
mkdir -p .venv/bin
printf '#!/bin/sh\\necho "$@" >>../pip\\n' >.venv/bin/python
printf '#!/bin/sh\\necho $$ >>../started; printf "<%%s>" "$@"; echo; . ../plan\\n' >.venv/bin/mlprod
chmod +x .venv/bin/python .venv/bin/mlprod
"""


class Slice:
    """`tpu_vm.sh` in a project of its own, and workers that are folders."""

    def __init__(self, folder: Path, **plans: str) -> None:
        """Makes them.

        Args:
            plans: what the supervisor of each worker does, by slice and worker: v5e_0.
        """
        self.folder, self.project = folder, folder / "project"
        program(folder / "bin" / "gcloud", GCLOUD)
        program(folder / "bin" / "python3", PYTHON)
        self.env = environment(folder / "bin", WORLD=str(folder))
        shutil.copytree(LAUNCH, self.project / "launch")
        (self.project / "tracked").write_text("as committed")
        for words in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *words], cwd=self.project, check=True)
        (self.project / "tracked").write_text("as it is now")
        (self.project / "untracked").touch()
        self.workers = {name: folder / "workers" / ".".join(name.rsplit("_", 1)) for name in plans}
        for name, home in self.workers.items():
            home.mkdir(parents=True)
            (home / "plan").write_text(plans[name].replace("{ready}; ", ""))

    def words(self, *options: str) -> list[str]:
        """Returns a command line."""
        return [str(self.project / "launch" / "tpu_vm.sh"), "--name", "v5e", "--zone", "z", *options]

    def run(self, *options: str) -> tuple[int, str]:
        """Returns exit code and output."""
        done = subprocess.run(
            self.words(*options), env=self.env, check=False, timeout=LIMIT_S, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return done.returncode, done.stdout.decode()

    def calls(self, verb: str) -> int:
        """Returns how often gcloud was asked for something that ends with this word."""
        return len(re.findall(rf" {verb}(?: --zone=z)?$", (self.folder / "calls").read_text(), re.MULTILINE))

    def pids(self) -> list[int]:
        """Returns the supervisors that were started, of all starts."""
        return [int(pid) for home in self.workers.values() for file in home.glob("started") for pid in file.read_text().split()]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    """Makes a slice; at the end nothing of it runs."""
    slices: list[Slice] = []

    def make(**plans: str) -> Slice:
        slices.append(Slice(tmp_path, **plans))
        return slices[-1]

    yield make
    for pid in [pid for each in slices for pid in each.pids()]:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_slice_gets_the_project_and_every_worker_the_command(made: Any) -> None:
    """Tracked files as they are now, the pinned packages, the command word for word; lines and exit codes come back."""
    tpu = made(v5e_0="echo one >&2; exit 0", v5e_1="echo two; exit 75")
    code, output = tpu.run("--", *COMMAND)
    assert code == 75
    told = "<run><--><python><-m><mlprod.train><--config><it's a.py>"
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("[0]")] == [f"[0] {told}", "[0] one"]
    assert [line for line in lines if line.startswith("[1] ")] == [f"[1] {told}", "[1] two", "[1] ended with exit code 75"]
    for home in tpu.workers.values():
        assert (home / "mlprod" / "tracked").read_text() == "as it is now"
        assert not (home / "mlprod" / "untracked").exists()
        assert "-m pip install --quiet -c constraints.txt -e .[tpu]" in (home / "pip").read_text()
    assert list(tpu.folder.glob("mlprod-launch.*")) == []


def test_several_slices_are_one_run(made: Any) -> None:
    """Lines say slice and worker; when one has failed, the workers of all slices are told."""
    waits = UNTIL_TOLD.replace("{times}", "1")
    plans = {"v5e-0_0": "sleep 0.3; exit 1", "v5e-0_1": waits, "v5e-1_0": waits, "v5e-1_1": waits}
    code, output = made(**plans).run("--slices", "2", "--", *COMMAND)
    assert code == 1
    for who in ("0.1", "1.0", "1.1"):
        assert f"[{who}] told 1\n[{who}] saved" in re.sub(rf"(?m)^(?!\[{who}\]).*\n", "", output)


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_reaches_the_workers_supervisors(times: int, made: Any) -> None:
    """Each by a call of its own, as one SIGTERM; the last lines and the exit codes come back."""
    waits = UNTIL_TOLD.replace("{times}", str(times))
    tpu = made(v5e_0=waits, v5e_1=waits)
    words = tpu.words("--", *COMMAND)
    process = subprocess.Popen(words, env=tpu.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = ""
    for sign in ("waiting", "told 1")[:times]:
        while output.count(sign) < 2:
            output += process.stdout.readline()
        process.send_signal(signal.SIGTERM)
    output += process.stdout.read()
    assert process.wait(LIMIT_S) == 75
    assert output.count("saved") == 2
    assert output.count("told") == 2 * times
    assert (tpu.calls("stop"), tpu.calls("kill")) == (1, times - 1)


def test_a_lost_connection_leaves_the_run_alone(made: Any) -> None:
    """It goes on, is not started twice, can be looked at again, ends when it is asked to, and then makes room."""
    tpu = made(v5e_0=UNTIL_TOLD.replace("{times}", "1"))
    (tpu.workers["v5e_0"] / "cut").touch()
    code, output = tpu.run("--", *COMMAND)
    assert code == 75
    assert "[0] connection lost" in output
    (pid,) = tpu.pids()
    assert alive(pid)
    code, output = tpu.run("--", *COMMAND)
    assert code == 2
    assert "a run goes on here" in output
    (tpu.workers["v5e_0"] / "cut").unlink()
    assert tpu.run("--stop")[0] == 0
    code, output = tpu.run("--follow")
    assert code == 75
    assert output.count("told 1") == output.count("saved") == 1
    assert tpu.calls("follow") == 2
    (tpu.workers["v5e_0"] / "plan").write_text("exit 0")
    assert tpu.run("--", *COMMAND)[0] == 0


def test_a_slice_without_workers_is_none(made: Any) -> None:
    """Nothing is copied, and nothing ends with 0, where gcloud does not say how many there are."""
    tpu = made()
    code, output = tpu.run("--", *COMMAND)
    assert code == 2
    assert "--workers" in output
    assert " scp " not in (tpu.folder / "calls").read_text()


def test_a_machine_that_went_is_worth_starting_again(made: Any) -> None:
    """A supervisor that is gone without a trace, as after a restart of its machine, counts as 75."""
    tpu = made(v5e_0="exit 0")
    shutil.copytree(tpu.project / "launch", tpu.workers["v5e_0"] / "mlprod" / "launch")
    state = tpu.workers["v5e_0"] / "mlprod" / ".run"
    state.mkdir()
    for name, text in (("pid", "4194305"), ("waiter", "4194305"), ("output", "the last line\n")):  # a number that none has
        (state / name).write_text(text)
    code, output = tpu.run("--follow")
    assert code == 75
    assert "[0] the last line" in output
    assert "without an exit code" in output


# ---- k8s-jobset.yaml ----


@pytest.fixture(scope="module")
def jobset() -> Any:
    """The manifest."""
    return yaml.safe_load((LAUNCH / "k8s-jobset.yaml").read_text(encoding="utf-8"))


def test_a_pod_is_one_supervised_process_of_the_slice(jobset: Any) -> None:
    """As many as the slice has hosts, each with its own number, and pod 0 under the name that JobSet gives it."""
    (group,) = jobset["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each for each in container["env"]}
    assert job["completionMode"] == "Indexed"
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    hosts = rows * columns // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == int(env["JAX_NUM_PROCESSES"]["value"]) == hosts
    name = jobset["metadata"]["name"]
    assert env["JAX_COORDINATOR_ADDRESS"]["value"] == f"{name}-{group['name']}-0-0.{name}:8482"
    index = env["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert container["command"] == ["mlprod", "run", "--"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_the_command_in_the_manifest_is_one(jobset: Any) -> None:
    """Its config file is there, and the overrides are fields of it."""
    words = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[:4] == ["python", "-m", "mlprod.train", "--config"]
    cfg = load(str(ROOT / words[4]), words[5:])
    assert cfg.dataset.startswith("/mnt/mlprod/")
    assert cfg.workdir.startswith("/mnt/mlprod/")


def test_the_manifest_knows_the_exit_codes(jobset: Any) -> None:
    """1 and 2 end the set, a disrupted pod counts nothing, and anything else starts the set again."""
    spec = jobset["spec"]
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    disrupted, failed = job["podFailurePolicy"]["rules"]  # in this order: an evicted pod may end with any code
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    container = job["template"]["spec"]["containers"][0]["name"]
    assert failed == {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": [1, 2]}}
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    policy = spec["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]


def test_a_pod_has_time_to_save(jobset: Any) -> None:
    """More than a supervisor gives its command (30 s)."""
    assert jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 40
