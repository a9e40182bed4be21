"""What a tracker may know of a run: its names and its config, without secrets, values of rows and the home folder of its user."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlprod import discreet
from mlprod.validation import SECRETS

HIDDEN = "***"
_IN_URL = re.compile(r"(?<=://)[^/@\s]*@")
_OPTION = re.compile(rf"(?<=[?&;])({SECRETS})=[^&;\s]*", re.IGNORECASE)
_NAME = re.compile(rf"({SECRETS}|\w*api_?key)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run as it begins an attempt."""

    workdir: Path
    name: str
    run_id: str
    attempt: int
    step: int  # that it goes on from
    config: Mapping[str, Any]  # JSON data, redacted


def of_config(saved: Mapping[str, Any]) -> Any:
    """Returns a config as a tracker may know it: see `redacted`; what it says of the values of sensitive columns is hidden."""
    return redacted(saved, hidden=[f"etl.{path}" for path in discreet.hidden(saved.get("etl", {}))])


def redacted(tree: Any, name: str = "", path: str = "", hidden: Collection[str] = ()) -> Any:
    """Returns JSON data with who logs in to a URL, and what is named like a secret, hidden, and the home folder as `~`.

    Args:
        name: of the innermost field that `tree` is of.
        path: of `tree`, dotted.
        hidden: paths of what is hidden too.
    """
    if path in hidden and tree:
        return HIDDEN
    if isinstance(tree, Mapping):
        return {key: redacted(value, key, f"{path}.{key}" if path else key, hidden) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redacted(value, name, f"{path}[{i}]", hidden) for i, value in enumerate(tree)]
    if not isinstance(tree, str):
        return tree
    if tree and _NAME.fullmatch(name):
        return HIDDEN
    shown = _OPTION.sub(rf"\1={HIDDEN}", _IN_URL.sub(f"{HIDDEN}@", tree))
    home = str(Path.home())
    return f"~{shown.removeprefix(home)}" if shown == home or shown.startswith(f"{home}/") else shown
