"""The flights recipe on a TPU VM with 8 chips (v5e-8): parameters split over the 2 x 4 torus, one mesh axis per torus dimension.

pip install -c constraints.txt -e '.[tpu]'
python -m mlprod.train --config configs/tpu.py
"""

from flights import get_config as recipe

from mlprod.config import Config, MeshConfig, RuntimeConfig


def get_config() -> Config:
    """Returns the recipe for 8 chips; compiled programs are kept for the next start."""
    cfg = recipe()
    cfg.mesh = MeshConfig(fsdp=(2, 4))
    cfg.runtime = RuntimeConfig(platform="tpu", compile_cache="runs/compiled")
    return cfg
