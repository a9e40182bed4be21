"""The smoke recipe with a model that some rows make fail; which, is given by overrides."""

from dataclasses import replace

from mlprod.config import Config
from tests.poisoned import PoisonedConfig
from tests.recipes.smoke import get_config as smoke


def get_config() -> Config:
    """Returns the recipe."""
    return replace(smoke(), name="poisoned", model=PoisonedConfig(hidden=(16, 16), dropout=0.1))
