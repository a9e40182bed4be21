"""The run JSON: the host's part of a run, saved with the arrays as one step.

Promise: canonical text with its own SHA-256: a flipped bit refuses the step. A later version reads what this one writes; a newer
format is refused by name.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mlprod import documents
from mlprod.errors import CheckpointError, RestoreError
from mlprod.manifest import canonical, sha256_text

FORMAT = 1


class Damaged(CheckpointError):
    """A saved step is not what was saved; the reason is its text."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The host's part of a run: all that decides how it goes on, besides the device arrays."""

    run_id: str
    attempt: int
    step: int
    next_example: int  # position: examples drawn or skipped
    dataset_id: str
    order: Mapping[str, Any]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    tracker_id: str
    skipped: tuple[tuple[int, int], ...] = ()  # examples [a, b) that are left out: as the config says, or after bad numbers
    ledger: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)  # of an evaluation of this very step
    progress: Mapping[str, float] = field(default_factory=dict)  # of the evaluations so far, see `early_stop.py`
    features_sha256: str = ""  # of the fitted transform; "": of a run that did not say
    leaves: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # path -> shape, dtype, digest
    format: int = FORMAT


def encode(run: RunState) -> dict[str, str]:
    """Returns the JSON object that is saved."""
    text = canonical(asdict(run))
    return {"text": text, "sha256": sha256_text(text)}


def parse(raw: bytes, step: int) -> RunState:
    """Returns the run JSON that was saved with `step`, from its file; what an older format lacks has its default.

    Raises:
        Damaged: it is not what was saved, or speaks of another step.
        RestoreError: its format is newer than known.
    """
    try:
        body = documents.parse(raw)
        text = body["text"]
        if sha256_text(text) != body["sha256"]:
            raise Damaged("the run JSON's SHA-256 differs")
        tree = documents.parse(text)
        if tree["format"] > FORMAT:
            raise RestoreError(f"step {step} has format {tree['format']}, newer than {FORMAT}; update mlprod")
        if tree["step"] != step:
            raise Damaged(f"the run JSON speaks of step {tree['step']}")
        if not all(documents.is_count(tree[name]) for name in ("attempt", "step", "next_example")):
            raise Damaged("the run JSON has a count that is none")
        tree["skipped"] = tuple(map(tuple, tree["skipped"]))
        return RunState(**{f.name: tree[f.name] for f in fields(RunState) if f.name in tree})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"the run JSON is none: {type(error).__name__}") from error
