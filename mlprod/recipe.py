"""From a command line to a checked config: runs the config file, applies `--config.x.y=value`, validates.

Promise: every mistake in a file name, a field name or a value is one ConfigError with the nearest name or the rule.
`ml_collections.config_flags` parses and sets the values; what it lets pass (tuples' elements, choices, ranges) `validate`
refuses, and what it answers with a traceback is checked before.
"""

import dataclasses
import re
import runpy
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from mlprod import config as sections
from mlprod.config import Config, walk
from mlprod.errors import ConfigError, nearest
from mlprod.validation import validate

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(=.*)?", re.DOTALL)
_NO_FIELD = re.compile(r"'(\w+)' object has no attribute '(\w+)'|(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


def run_file(path: str) -> Config:
    """Runs a config file and returns what its `get_config()` returns, unchecked.

    The file's folder is importable while it runs, so that `configs/gpu.py` can take a recipe from beside it.
    """
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "no such file"
        raise ConfigError(f"--config={path}: {what}; give the path of a Python file with get_config()")
    with _folder_importable(path):
        cfg = _config_of(path)
    if not isinstance(cfg, Config):
        raise ConfigError(f"{path}: get_config() returned {type(cfg).__name__}, not mlprod.config.Config")
    return cfg


def _config_of(path: str) -> Any:
    try:
        names = runpy.run_path(path, run_name=Path(path).stem)
        if "get_config" not in names:
            raise ConfigError(f"{path} defines no get_config(); it must return a mlprod.config.Config")
        return names["get_config"]()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's file does wrong is the user's to read
        told = f"{path}: {_where(error, path)}{type(error).__name__}: {error}{_meant(error)}"
        raise ConfigError(told if path.endswith(".py") else f"{told}; is it a Python file with get_config()?") from error


@contextmanager
def _folder_importable(path: str) -> Iterator[None]:
    folder = str(Path(path).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def function_of(path: str, name: str) -> Callable[..., Any]:
    """Returns the function `name` at the top of a config file, which is run anew: for a process that cannot be sent functions."""
    with _folder_importable(path):
        found: Callable[..., Any] = runpy.run_path(path, run_name=Path(path).stem)[name]
    return found


def _where(error: BaseException, path: str) -> str:
    """Returns `line N: ` for the innermost frame of `error` that lies in the file, or nothing."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""


def _meant(error: BaseException) -> str:
    """Returns which field may be meant by a name that one of the config's sections does not have; '' for other errors."""
    found = _NO_FIELD.search(str(error))
    section = vars(sections).get(found[1] or found[3]) if found else None
    if found and isinstance(section, type) and dataclasses.is_dataclass(section):
        return nearest(found[2] or found[4], [field.name for field in dataclasses.fields(section)])
    return ""


def _settable(hint: Any, value: Any) -> bool:
    """Whether a command line may set a field: not sections, functions, dicts and tuples of sections."""
    sections = any(dataclasses.is_dataclass(arg) for arg in typing.get_args(hint))
    return not (sections or dataclasses.is_dataclass(value) or callable(value) or isinstance(value, dict))


def _parses(hint: Any, text: str) -> bool:
    """Whether the text of an override is a number, where the field is one."""
    try:
        if hint is float:
            float(text)
        if hint is int:
            int(text, 0 if text[:2].lower() in ("0x", "0o") else 10)
    except ValueError:
        return False
    return True


def _known(path: str, leaves: Sequence[str]) -> str:
    """Returns the field most like `path`, or what there is in the innermost of its sections: all fields would fill the screen."""
    if get_close_matches(path, leaves, cutoff=0.5):
        return nearest(path, leaves)
    parts = path.split(".")
    sections = (".".join(parts[:i]) + "." for i in range(len(parts) - 1, 0, -1))
    section = next((name for name in sections if any(leaf.startswith(name) for leaf in leaves)), "")
    return nearest("", {leaf.removeprefix(section).split(".")[0] for leaf in leaves if leaf.startswith(section)})


def _check_overrides(cfg: Config, argv: Sequence[str]) -> None:
    """Raises ConfigError for the first override of a field that does not exist or that a command line cannot set."""
    fields = {path: (hint, value) for path, _, hint, value in walk(cfg) if "[" not in path}
    leaves = [path for path, pair in fields.items() if _settable(*pair)]
    for match in filter(None, map(_OVERRIDE.fullmatch, argv)):
        path, text = match[2], match[3]
        below = [leaf for leaf in leaves if leaf.startswith(f"{path}.")]
        if below:
            raise ConfigError(f"config.{path} is a section; set one of its fields, such as --config.{below[0]}=...")
        if path not in leaves and path.split("[")[0] in fields:
            raise ConfigError(f"config.{path} can only be set in the config file")
        if path not in leaves:
            raise ConfigError(f"config.{path} does not exist{_known(path, leaves)}")
        if fields[path][0] is bool and text and text[1:].lower() not in ("true", "false", "1", "0", "t", "f"):
            raise ConfigError(f"config.{path}{text} must be true or false")
        if text and not _parses(fields[path][0], text[1:]):
            told = "a whole number" if fields[path][0] is int else "a number"
            raise ConfigError(f"config.{path}{text} must be {told}, such as {fields[path][1]}")
        if text is None and fields[path][0] is not bool and match.string == argv[-1]:
            raise ConfigError(f"{match.string} has no value; write {match.string}=...")


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
