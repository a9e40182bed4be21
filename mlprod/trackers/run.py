"""What a tracker may know of a run: its names and its config, without secrets and without the home folder of its user."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def redacted(tree: Any, name: str = "") -> Any:
    """Returns JSON data with who logs in to a URL, and what is named like a secret, hidden, and the home folder as `~`."""
    if isinstance(tree, Mapping):
        return {key: redacted(value, key) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redacted(value, name) for value in tree]
    if not isinstance(tree, str):
        return tree
    if tree and _NAME.fullmatch(name):
        return HIDDEN
    shown = _OPTION.sub(rf"\1={HIDDEN}", _IN_URL.sub(f"{HIDDEN}@", tree))
    home = str(Path.home())
    return f"~{shown.removeprefix(home)}" if shown == home or shown.startswith(f"{home}/") else shown
