"""The flights recipe on a TPU slice of any shape: parameters split over all its chips, one mesh axis per torus dimension.

pip install -c constraints.txt -e '.[tpu]'
python -m mlprod.train --config configs/tpu.py
mlprod check --config configs/tpu.py --topology v5e:4x4       # on any machine: would it fit? See docs/tpu.md
"""

from flights import get_config as recipe

from mlprod.config import Config, MeshConfig, RuntimeConfig


def get_config() -> Config:
    """Returns the recipe for one slice."""
    cfg = recipe()
    cfg.mesh = MeshConfig(fsdp=(-1,))
    cfg.runtime = RuntimeConfig(platform="tpu")
    return cfg
