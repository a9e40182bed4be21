"""W&B, and the only door to it.

Promise: a run has one curve there, whose steps are the run's own, with neither gap nor double point after any resume. The service
takes no step twice and none that goes back, so it is given what it lacks: online, the log's lines behind the last step that it
says it has; offline, all of them in a new folder. Either takes the place of the run's older folders here. Without a key, or where
the service cannot be reached at the start, the run is offline, and `wandb sync` sends it later.
It is told what the run is and how it goes; what the machine, its user and the repository are, only where the config says so.
Price: a second and 60 MB at the start, about 0.15 ms a record, all beside the loop.

What went back is shown there as it was first: after a resume on the same hardware the same bits; on other hardware other
rounding; after bad numbers the way that was given up. The log and the report have what counts.
"""

import netrc
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from mlprod.config import TrackingConfig
from mlprod.errors import Preempted
from mlprod.trackers.run import TrackedRun
from mlprod.tracking import Record

START_PART, FINISH_PART = 0.4, 0.7  # of the limits, so that there is time left to do without the service


def _logged_in() -> bool:
    """Whether W&B has a key: in the environment or the user's netrc."""
    try:
        return bool(os.environ.get("WANDB_API_KEY")) or any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


class Wandb:
    """A run there. Its methods are called by one thread, which it may keep waiting."""

    def __init__(self, cfg: TrackingConfig, run: TrackedRun) -> None:
        """Goes on with the run there, or begins it; offline where the service cannot be reached in time."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to third parties
        import wandb  # the door is lazy: a second and 60 MB that a run without it does not pay

        self._wandb, self._workdir, self._checkpoints = wandb, run.workdir, cfg.checkpoints
        mode = ("online" if _logged_in() else "offline") if cfg.wandb == "auto" else cfg.wandb
        about: dict[str, Any] = {"project": cfg.project, "id": run.run_id, "name": run.name, "config": dict(run.config)}
        given = {**about, "dir": str(run.workdir), "settings": wandb.Settings(**_settings(cfg))}
        try:
            # Offline it begins anew: `wandb sync` would put what is resumed behind what the service has, under other steps.
            resume = {"resume": "allow"} if mode == "online" else {}
            # `mode` is one of the four that W&B declares as literals: the config checks it.
            self._run = wandb.init(mode=mode, **resume, **given)  # type: ignore[arg-type]
        except wandb.Error as error:
            told = " ".join(str(error).split())
            print(f"mlprod: W&B cannot be reached ({told}); logging offline", file=sys.stderr, flush=True)
            wandb.teardown()  # its process still holds the run's id
            self._run = wandb.init(mode="offline", **given)
        self.after = max(self._run.starting_step - 1, 0)
        self._reached = self.after
        folder = Path(self._run.dir).parent
        for older in (run.workdir / "wandb").glob(f"*run-*-{run.run_id}*"):  # online too: 425 bytes a step, an attempt
            if older.name != folder.name:
                shutil.rmtree(older, ignore_errors=True)

    def log(self, record: Record) -> None:
        """Sends the values as `kind/name`, at the run's step; a checkpoint as an artifact, where the config says so."""
        if record.kind == "checkpoint" and self._checkpoints:
            self._send_checkpoint(record.step)
        elif record.values and record.step >= self._reached:
            self._reached = record.step
            values = {f"{record.kind}/{name}": value for name, (value, _) in record.values.items()}
            self._run.log({**values, "_timestamp": record.time}, step=record.step)

    def _send_checkpoint(self, step: int) -> None:
        artifact = self._wandb.Artifact(f"checkpoint-{self._run.id}", type="checkpoint", metadata={"step": step})
        try:
            artifact.add_dir(str(self._workdir / "checkpoints" / f"{step:08d}"))
        except (OSError, ValueError) as error:
            print(f"mlprod: step {step} is no artifact, it is gone already ({error})", file=sys.stderr, flush=True)
        else:
            self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def close(self, code: int = 0) -> None:
        """Finishes the run there, as finished, preempted or failed.

        Raises:
            TimeoutError: the service did not take everything in time.
        """
        if code == Preempted.exit_code:
            self._run.mark_preempting()
        try:
            self._run.finish(exit_code=code)
        except TimeoutError as error:
            raise TimeoutError(
                "not everything was taken in time; the same command, started again, sends what is missing"
            ) from error


def _settings(cfg: TrackingConfig) -> dict[str, Any]:
    """Returns how W&B is to behave: within the limits, and, unless it may, with no eyes for the machine."""
    limits = {
        "init_timeout": max(START_PART * cfg.start_s, 0.1), "finish_timeout": max(FINISH_PART * cfg.finish_s, 0.1),
        "finish_timeout_raises": True,
    }  # fmt: skip
    quiet = {"console": "off", "silent": True, **limits}
    if cfg.machine:
        return {**quiet, "save_code": True}
    nobody = {"host": "-", "username": "-", "email": "-", "program": "-"}
    blind = {
        "x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False,
        "disable_git": True, "disable_code": True, "save_code": False,
    }  # fmt: skip
    return {**quiet, **nobody, **blind}
