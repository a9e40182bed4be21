"""The console script: `mlprod VERB --config FILE [--config.field=value ...]`.

Promise: every verb ends with an exit code of the table in the README; the user's mistakes are one line on stderr.
Price: a verb's module is imported only when it is called, so that `mlprod --help` takes a fraction of a second.
"""

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlprod import interrupt
from mlprod.config import AUTO, Config, kept_programs
from mlprod.discreet import discreet, is_sensitive, without_core_files
from mlprod.errors import DataError, MlprodError, UserError, nearest, one_line
from mlprod.processes.rank import find_rank
from mlprod.validation import without_passwords

VERBS = {
    "init": "write a config for a table: a file of rows, or a database",
    "etl": "build the dataset of the config; does nothing when it is built",
    "train": "train, or go on with a run that was stopped",
    "evaluate": "metrics of a checkpoint on a split",
    "predict": "raw rows to scores, one output row per input row",
    "check": "everything that can be wrong, before a device is paid for",
    "doctor": "what this machine has, and what is wrong with it; needs no config",
    "checkpoints": "list, show or verify what a run has saved",
    "data": "list, show, verify or compare the versions of a dataset",
    "report": "a run as one page: curves, evaluations, time, data, config",
    "run": "start a command, and again while that is worth it; any command, its exit codes made ours",
    "compare": "what differs between runs, and their metrics beside each other",
}
WITHOUT_CONFIG = {  # verb -> its module
    "init": "mlprod.init.run", "compare": "mlprod.report.compare", "run": "mlprod.processes.supervise",
}  # fmt: skip
GO_ON = ("etl", "train")  # verbs that go on where they were stopped
WITHOUT_DEVICE = {"data": "mlprod.datasets", "report": "mlprod.report.run"}
AtOnce = Callable[[Callable[..., Any]], Callable[..., Any]]
USAGE = "usage: mlprod VERB --config FILE [--config.field=value ...] [options]"


TPU_COMPILER_ONLY = {  # for a process that compiles for TPUs and has none
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else its lock file lets one process of the machine have it
    "TPU_SKIP_MDS_QUERY": "1",  # else it asks the network what machine this is
    "TPU_LOG_DIR": "disabled",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override] # the base ends the process, this raises
        raise UserError(f"{message}; try `{self.prog} --help`")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _file(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must name a file")
    return text


def _parser(verb: str) -> argparse.ArgumentParser:
    fields = "" if verb in WITHOUT_CONFIG else "Fields are set by --config.field=value."
    parser = _Parser(prog=f"mlprod {verb}", description=VERBS[verb], allow_abbrev=False, epilog=fields)
    if verb == "init":
        _add_init(parser)
    elif verb == "run":
        _add_run(parser)
    elif verb == "compare":
        parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its config file")
        parser.add_argument("--output", type=_file, metavar="FILE", help="also write the curves of all, as a page")
    else:
        parser.add_argument(
            "--config", required=verb != "doctor", default="", metavar="FILE", help="Python file with get_config()"
        )
    parser.add_argument("--debug", action="store_true", help="show a traceback with every error")
    if verb == "etl":
        parser.add_argument("--dry-run", action="store_true", help="show what would be made of the first rows; build nothing")
        parser.add_argument(
            "--executor", default="", metavar="WHERE", help="as --config.etl.executor: threads, processes or dask://HOST:PORT"
        )
    if verb in ("evaluate", "predict"):
        parser.add_argument("--step", type=_whole, default=-1, help="of the checkpoint (default: the newest)")
    if verb == "checkpoints":
        parser.add_argument("action", choices=("ls", "show", "verify"), help="list the steps, show one, or read them again")
        parser.add_argument("--step", type=_whole, default=-1, help="one step (default of show: the newest; of verify: all)")
    if verb == "data":
        parser.add_argument(
            "action", choices=("ls", "show", "verify", "diff"),
            help="list the versions, show one, read them again, or tell what differs between two",
        )  # fmt: skip
        parser.add_argument("--version", type=_whole, default=0, help="one version (default: the newest; of verify: all)")
        parser.add_argument("--split", default="train", choices=("train", "eval", "test"), help="whose first rows are shown")
        parser.add_argument("--rows", type=_whole, default=5, help="of it that are shown, of its first row group (default: 5)")
        parser.add_argument("--other", type=_whole, default=0, help="version that diff compares with (default: the one before)")
        parser.add_argument(
            "--with", dest="folder", default="", metavar="FOLDER", help="of another dataset, whose version that is"
        )
    if verb == "report":
        parser.add_argument("--output", type=_file, metavar="FILE", help="page to write (default: WORKDIR/report.html)")
    if verb == "check":
        parser.add_argument("--processes", type=_whole, default=0, help="the run will have (default: as many as here)")
        parser.add_argument(
            "--topology", default="", metavar="CHIP:SHAPE", help="compile for a TPU slice, such as v5e:4x4, on this machine"
        )
        parser.add_argument("--num-slices", type=_whole, default=1, help="of that shape (default: 1)")
    if verb == "evaluate":
        parser.add_argument("--split", default="eval", choices=("train", "eval", "test"))
        parser.add_argument(
            "--by", action="append", default=[], metavar="COLUMN", help="metrics by the values of a stored column too"
        )
        parser.add_argument(
            "--scores", default="", metavar="FILE", help="write row ids, labels and scores to this file (Parquet, or .csv)"
        )
    if verb == "predict":
        parser.add_argument("--input", default="", metavar="CSV|URL", help="rows (default: the config's own source)")
        parser.add_argument("--output", required=True, type=_file, metavar="FILE", help="file to write: Parquet, or .csv")
        parser.add_argument("--limit", type=_whole, default=0, help="score at most so many rows (default: all)")
    return parser


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="CSV, Parquet, JSON lines or SQLite file, folder, pattern, or database URL")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="what is to be predicted")
    parser.add_argument("--time", default="", metavar="COLUMN", help="when a row was: the newest rows are held out")
    parser.add_argument("--key", default=[], action="append", metavar="COLUMN", help="identifies a row; may be given again")
    parser.add_argument("--table", default="", metavar="NAME", help="of a database with several tables")
    parser.add_argument("--task", default="", choices=("binary", "regression", "classes"), help="default: by the target's values")
    parser.add_argument("--name", default="", help="of the config and its run (default: the data's)")
    parser.add_argument("--folder", default="configs", help="where the config is written (default: configs)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mlprod run [options] -- COMMAND ..."
    parser.add_argument("--process-id", default="", metavar="I", help="of this process, from 0 (default: as the launcher says)")
    parser.add_argument("--num-processes", default="", metavar="N", help="of the run")
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="where process 0 waits for the others")
    parser.add_argument(
        "--restarts", type=_whole, default=1 << 30, help="at most; 0: only make the exit code ours (default: any)"
    )
    parser.add_argument("--deaths", type=_whole, default=3, help="in a row without a new step, then it is 1 (default: 3)")
    parser.add_argument("--pause-s", type=float, default=1.0, help="before the first restart; doubles in vain (default: 1)")
    parser.add_argument("--grace-s", type=float, default=30.0, help="from SIGTERM until the command is killed (default: 30)")
    parser.add_argument("--silent-s", type=float, default=45.0, help="without a sign of life until it is killed (default: 45)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="behind --")


def _help() -> str:
    verbs = "\n".join(f"  {name:<13}{told}" for name, told in VERBS.items())
    codes = "Exit codes: 0 done, 2 bad input, 1 failed, 75 start again."
    return f"{USAGE}\n\n{verbs}\n\n`mlprod VERB --help` lists a verb's options. {codes}"


def _ensure_dataset(cfg: Config, config_file: str, overrides: Sequence[str]) -> None:
    """Builds the dataset in a child process when there is none, so that the trainer never holds the ETL's memory."""
    if "://" in cfg.dataset or any((Path(cfg.dataset) / "manifests").glob("[0-9]*.json")) or find_rank().count > 1:
        return  # a remote one is built elsewhere; so is that of several processes, which tell each other that it is not there
    print(f"mlprod: {cfg.dataset} is not built yet; running `mlprod etl`", file=sys.stderr)
    code = subprocess.run([sys.executable, "-m", "mlprod.etl", "--config", config_file, *overrides], check=False).returncode
    if code:
        error = DataError(f"`mlprod etl` ended with exit code {code}; see its line above")
        error.exit_code = code if code > 0 else 1
        raise error


def has_tpu_compiler() -> bool:
    """Whether there is a libtpu: installed, or named by `TPU_LIBRARY_PATH`."""
    return Path(os.environ.get("TPU_LIBRARY_PATH", "")).is_file() or importlib.util.find_spec("libtpu") is not None


def _check_slice(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Checks a run on TPU slices in a child process, whose compiler talks on stderr and may end it.

    Raises:
        MlprodError: what the child said, with its exit code.
    """
    slices = importlib.import_module("mlprod.parallel.chips").parse_slices(options.topology, options.num_slices)
    if not has_tpu_compiler():
        raise UserError(
            f"--topology={slices.name} needs the compiler of TPUs: pip install -c constraints.txt -e '.[tpu]', "
            f"or set TPU_LIBRARY_PATH to a libtpu.so"
        )
    words = ["--config", options.config, "--topology", slices.name, "--num-slices", str(slices.number)]
    words += ["--processes", str(options.processes), *overrides]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **TPU_COMPILER_ONLY}
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as told:
        child = [sys.executable, "-m", "mlprod.topology", *words]
        code = subprocess.run(child, check=False, env=environment, stderr=told).returncode
        told.seek(0)
        lines = told.read().splitlines()
    if code:
        ours = [line.removeprefix("mlprod: ") for line in lines if line.startswith("mlprod: ")]
        if options.debug or not ours:
            print("\n".join(lines), file=sys.stderr)
        error = MlprodError(ours[-1] if ours else f"the compiler for {slices.name} ended with exit code {code}; see above")
        error.exit_code = code if ours else 1
        raise error


def _run(verb: str, options: argparse.Namespace, overrides: Sequence[str], at_once: AtOnce) -> None:
    load = at_once(importlib.import_module)
    if verb in WITHOUT_CONFIG:
        load(WITHOUT_CONFIG[verb]).main(options)
        return
    if verb == "doctor" and not options.config:
        if overrides:
            raise UserError(f"{overrides[0]} needs --config FILE")
        load("mlprod.doctor.run").main(None)
        return
    recipe = load("mlprod.recipe")
    given = [f"--config.etl.executor={options.executor}"] if verb == "etl" and options.executor else []
    cfg = at_once(recipe.load)(options.config, [*overrides, *given])
    without_core_files(cfg.etl)  # before rows are read, or a process is started that reads them
    if verb == "etl":
        module = load("mlprod.etl.dry_run" if options.dry_run else "mlprod.etl.run")
        with discreet(is_sensitive(cfg.etl)):
            module.main(cfg)
        return
    if verb == "train":
        began = time.monotonic()
        _ensure_dataset(cfg, options.config, overrides)
        built_s = time.monotonic() - began
        load("mlprod.train").main(cfg, built_s)
        return
    if verb == "doctor":  # devices are looked at in a child process
        load("mlprod.doctor.run").main(cfg)
        return
    if verb in WITHOUT_DEVICE:
        load(WITHOUT_DEVICE[verb]).main(cfg, options)
        return
    if verb == "check" and options.topology:
        _check_slice(options, overrides)
        return
    scores = verb in ("evaluate", "predict") and Path(cfg.workdir).is_dir()
    programs = kept_programs(cfg) if scores or cfg.runtime.compile_cache != AUTO else ""  # who only looks makes no folder
    load("mlprod.runtime").start(cfg.runtime, programs)
    module = load(f"mlprod.{verb}")
    with discreet(verb == "predict" and is_sensitive(cfg.etl)):  # it reads rows as they are
        module.main(cfg, options)


def run(argv: Sequence[str], at_once: AtOnce = lambda act: act) -> int:
    """Runs a command line and returns its exit code; errors are told on stderr. `at_once`: see `CtrlC.at_once`."""
    debug = "--debug" in argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(_help())
            return 0
        if argv[0] not in VERBS:
            raise UserError(f"there is no verb {argv[0]!r}{nearest(argv[0], VERBS)}")
        parser = _parser(argv[0])
        options, overrides = parser.parse_known_args(list(argv[1:]))
        if argv[0] in WITHOUT_CONFIG and overrides:
            parser.error(f"there is no option {overrides[0]}")
        for word in overrides:
            if word.startswith("--") and not word.startswith(("--config.", "--noconfig.")):
                parser.error(f"there is no option {word}")
        _run(argv[0], options, overrides, at_once)
    except MlprodError as error:
        if debug:
            print(without_passwords(traceback.format_exc()), end="", file=sys.stderr)
        print(f"mlprod: {without_passwords(one_line(str(error)))}", file=sys.stderr)  # libraries quote with line breaks
        return error.exit_code
    except KeyboardInterrupt:
        told, code = _stopped(argv[0])
        print(f"mlprod: {told}", file=sys.stderr)
        return code
    except SystemExit as stop:  # argparse's --help; the supervisor's, with its command's code
        return int(stop.code or 0)
    except Exception:
        print(without_passwords(traceback.format_exc()), end="", file=sys.stderr)
        return 1
    return 0


def _stopped(verb: str) -> tuple[str, int]:
    """Returns what is said of a verb that Ctrl-C has stopped, and its exit code."""
    if verb in GO_ON:
        return "stopped by Ctrl-C; the same command goes on from what is done", interrupt.AGAIN
    return "stopped by Ctrl-C", interrupt.STOPPED


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. An error ends the process at once: threads of a broken save may wait for minutes otherwise."""
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv else ""
    if verb == "run":  # its command has its own time
        code = run(argv)
    else:
        told, code = _stopped(verb)
        with interrupt.CtrlC(code, told) as ctrl_c:
            code = run(argv, ctrl_c.at_once)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    return code
