"""From a command line to a checked config: runs the config file, applies `--config.x.y=value`, validates.

Promise: every mistake in a file name, a field name or a value is one ConfigError with the nearest name or the rule.
`ml_collections.config_flags` parses and sets the values; what it lets pass (tuples' elements, choices, ranges) `validate`
refuses, and what it answers with a traceback is checked before.
"""

import dataclasses
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mlprod.config import Config, validate, walk
from mlprod.errors import ConfigError, nearest

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(=.*)?", re.DOTALL)


def run_file(path: str) -> Config:
    """Runs a config file and returns what its `get_config()` returns, unchecked.

    The file's folder is importable while it runs, so that `configs/gpu.py` can take a recipe from beside it.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config={path}: no such file; give the path of a Python file with get_config()")
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        names = runpy.run_path(path, run_name=Path(path).stem)
        if "get_config" not in names:
            raise ConfigError(f"{path} defines no get_config(); it must return a mlprod.config.Config")
        cfg = names["get_config"]()
    except (ConfigError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # whatever the user's file does wrong is the user's to read
        raise ConfigError(f"{path}: {_where(error, path)}{type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(cfg, Config):
        raise ConfigError(f"{path}: get_config() returned {type(cfg).__name__}, not mlprod.config.Config")
    return cfg


def _where(error: BaseException, path: str) -> str:
    """Returns `line N: ` for the innermost frame of `error` that lies in the file, or nothing."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _leaves(cfg: Config) -> list[str]:
    """Returns the dotted paths that a command line may set."""
    return [p for p, _, _, v in walk(cfg) if "[" not in p and not dataclasses.is_dataclass(v) and not callable(v)]


def _check_overrides(cfg: Config, argv: Sequence[str]) -> None:
    """Raises ConfigError for the first override whose field does not exist or is a whole section."""
    leaves = _leaves(cfg)
    for word in argv:
        match = _OVERRIDE.fullmatch(word)
        if match and match[2] not in leaves:
            below = [leaf for leaf in leaves if leaf.startswith(match[2] + ".")]
            if below:
                raise ConfigError(f"config.{match[2]} is a section; set one of its fields, such as --config.{below[0]}=...")
            raise ConfigError(f"config.{match[2]} does not exist{nearest(match[2], leaves)}")


def apply_overrides(cfg: Config, argv: Sequence[str]) -> Config:
    """Returns a copy of `cfg` with the `--config.x=value` words of `argv` applied, and validated.

    Raises:
        ConfigError: an unknown or ill-typed field, or a rule between fields that does not hold.
    """
    _check_overrides(cfg, argv)
    words = ["mlprod", *argv]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dataclass("config", cfg, flag_values=values, sys_argv=words)
    try:
        rest = values(words)[1:]
    except (flags.Error, KeyError, TypeError, AttributeError, ValueError, IndexError, SyntaxError) as error:
        raise ConfigError(" ".join(str(error).split()).removeprefix("flag --")) from error
    if rest:
        raise ConfigError(f"{rest[0]!r} is not understood; overrides look like --config.optim.peak_lr=1e-3")
    changed: Config = holder.value
    validate(changed)
    return changed


def load(path: str, overrides: Sequence[str] = ()) -> Config:
    """Returns the checked config of the file `path` with the command line's overrides applied."""
    return apply_overrides(run_file(path), overrides)
