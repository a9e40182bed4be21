"""The flights recipe on the GPUs of one machine: parameters split over all of them.

pip install -c constraints.txt -e '.[gpu]'
python -m mlprod.train --config configs/gpu.py
"""

from flights import get_config as recipe

from mlprod.config import Config, MeshConfig, RuntimeConfig


def get_config() -> Config:
    """Returns the recipe for GPUs."""
    cfg = recipe()
    cfg.mesh = MeshConfig(data=-1, layout="fsdp")
    cfg.runtime = RuntimeConfig(platform="cuda")
    return cfg
