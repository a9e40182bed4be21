"""The config reference, `docs/config.md`: every section and field as `config.py` and the model families declare them.

    python -m mlprod.reference > docs/config.md

Promise: nothing is said there that the code does not say; a test compares.
"""

import dataclasses
import math
import sys
import typing
from collections.abc import Iterator
from typing import Any

from mlprod import config
from mlprod.hints import hints_of
from mlprod.models.mlp import MLPConfig
from mlprod.models.tabular import TabularConfig

HEAD = """# Every field of a config

A config file is Python with a `get_config()` that returns a `Config`. Any field can be set on the command line:
`--config.optim.peak_lr=1e-3`, tuples as `--config.mesh.fsdp="(4, 2)"`. A value without a default must be given.

**Resume**: `must` stays the same when a run is resumed, `may` is free to change, `data` is part of the dataset: another
value is another dataset. Written by `python -m mlprod.reference`.
"""
MODELS = (MLPConfig, TabularConfig)


def sections() -> Iterator[type]:
    """Yields the dataclasses of a config, the whole first, then as the file has them; model families last."""
    found = [x for x in vars(config).values() if isinstance(x, type) and dataclasses.is_dataclass(x)]
    yield config.Config
    yield from (x for x in found if x is not config.Config)
    yield from MODELS


def text() -> str:
    """Returns the reference as Markdown."""
    parts = [HEAD]
    for section in sections():
        parts.append(f"\n## {section.__name__}\n\n{' '.join((section.__doc__ or '').split())}\n")
        parts.append("\n| field | type | default | resume | what it is |\n| --- | --- | --- | --- | --- |\n")
        parts += [f"| `{f.name}` | {' | '.join(_cells(section, f))} |\n" for f in dataclasses.fields(section)]
    return "".join(parts)


def _cells(section: type, field: dataclasses.Field[Any]) -> Iterator[str]:
    meta = field.metadata
    yield f"`{_type(hints_of(section)[field.name])}`".replace("|", "\\|")
    yield _default(field).replace("|", "\\|")
    yield meta.get("rule", "")
    told = [meta.get("doc", "")]
    if meta.get("choices"):
        told.append("one of " + ", ".join(f"`{choice!r}`" for choice in meta["choices"]))
    low, high = meta.get("low", -math.inf), meta.get("high", math.inf)
    if (low, high) != (-math.inf, math.inf):
        told.append(f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}")
    if meta.get("unit"):
        told.append(f"in {meta['unit']}")
    yield "; ".join(told).replace("|", "\\|")


def _type(hint: Any) -> str:
    """Returns a type as a reader writes it."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("mlprod.config.", "").replace("typing.", "").replace("collections.abc.", "")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return f"`{value.__name__}`" if callable(value) else f"`{value!r}`"
    if field.default_factory is not dataclasses.MISSING:
        return f"`{getattr(field.default_factory, '__name__', '')}()`"
    return ""


if __name__ == "__main__":
    sys.stdout.write(text())
