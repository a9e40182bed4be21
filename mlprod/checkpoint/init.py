"""The first state of a run that begins from a trained one."""

from pathlib import Path

from mlprod.checkpoint.run_state import Damaged
from mlprod.checkpoint.saved import SavedSteps
from mlprod.config import InitConfig
from mlprod.errors import ConfigError, RestoreError
from mlprod.state import TrainState, flatten, unflatten


def begin_from(cfg: InitConfig, state: TrainState, abstract: TrainState, where: TrainState, features_sha256: str) -> TrainState:
    """Returns `state` with the arrays below `cfg.parts` as the run in `cfg.workdir` saved them, verified.

    Args:
        features_sha256: of the dataset's fitted transform.

    Raises:
        ConfigError: that run has no such step, its arrays are not those of the config, or it learned behind another transform.
        RestoreError: no step of it is what was saved.
    """
    saved = SavedSteps(Path(cfg.workdir))
    steps = [step for step in saved.steps() if cfg.step in (-1, step)]
    if not steps:
        which = "no saved step" if cfg.step < 0 else f"no saved step {cfg.step}"
        raise ConfigError(f"config.init.workdir={cfg.workdir!r} has {which}; it has {saved.steps()}; give a trained run's folder")
    why = ""
    for step in reversed(steps):
        try:
            leaves, run = saved.restore_part(step, cfg.parts, abstract, where)
        except Damaged as error:
            why = f"{saved.folder(step)} is damaged: {error}"
            continue
        if cfg.transform == "same" and run.features_sha256 not in ("", features_sha256):
            raise ConfigError(
                f"config.init.workdir={cfg.workdir!r} was trained on dataset_id {run.dataset_id}, whose fitted transform is "
                f"another: ids and scales mean other things here; append to that dataset (config.etl.grow), or set "
                f"config.init.transform='other'"
            )
        print(f"mlprod: {len(leaves)} arrays are those of run {run.run_id} at step {step}, trained on {run.dataset_id}")
        begun: TrainState = unflatten(abstract, flatten(state) | leaves)
        return begun
    raise RestoreError(f"config.init.workdir={cfg.workdir!r}: {why}")
