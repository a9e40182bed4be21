"""The flights recipe on 8 simulated CPU devices, with everything that makes a run repeatable and quick to look at.

    python -m mlprod.train --config configs/debug.py

On one GPU instead: --config.runtime.platform=cuda --config.mesh.fsdp=1 (deterministic operations stay on).
"""

from flights import get_config as recipe

from mlprod.config import Config, MeshConfig, RuntimeConfig


def get_config() -> Config:
    """Returns the recipe with 200 steps, evaluated and saved often."""
    cfg = recipe()
    cfg.workdir, cfg.steps, cfg.epochs = "runs/flights-debug", 200, 0.0
    cfg.eval.every, cfg.checkpoint.every, cfg.tracking.wandb = 50, 50, "off"
    cfg.mesh = MeshConfig(fsdp=(8,))
    cfg.runtime = RuntimeConfig(platform="", num_cpu_devices=8, deterministic=True)
    return cfg
