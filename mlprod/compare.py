"""Configs as JSON data, and what differs between two of them: what a dataset and a run remember of their config.

Promise: the same config gives the same JSON; a function is told by its source, a class by its name. Nothing is ever executed
from it.
"""

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

from mlprod.config import DATA, MAY, Config, EtlConfig, walk


def as_json(value: Any) -> Any:
    """Returns `value` (a config tree) as JSON data: dataclasses as objects with their class, functions by source hash."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **body}
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if callable(value):
        return {"function": value.__name__, "sha256": hashlib.sha256(inspect.getsource(value).encode()).hexdigest()}
    return value


def data_json(etl: EtlConfig) -> Any:
    """Returns the part of the config that decides a dataset's content (rule `data`), as JSON data."""

    def keep(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [f for f in dataclasses.fields(value) if f.metadata["rule"] == DATA]
            return {"class": type(value).__name__, **{f.name: keep(getattr(value, f.name)) for f in fields}}
        return [keep(item) for item in value] if isinstance(value, tuple) else as_json(value)

    return keep(etl)


def completed(saved: Any, now: Any, rule: str = "") -> Any:
    """Returns the JSON data of a saved config with the fields that the program has had since, at their defaults.

    A field's default is what the program did before it had the field, so a config saved then says the same.

    Args:
        now: the config, or section, that it is to be compared with.
        rule: of the fields that were saved; "": all.
    """
    if isinstance(now, tuple) and isinstance(saved, list) and len(now) == len(saved):
        return [completed(a, b, rule) for a, b in zip(saved, now, strict=True)]
    if not (dataclasses.is_dataclass(now) and isinstance(saved, dict) and saved.get("class") == type(now).__name__):
        return saved
    fields = [f for f in dataclasses.fields(now) if not rule or f.metadata["rule"] == rule]
    there = {f.name: completed(saved[f.name], getattr(now, f.name), rule) for f in fields if f.name in saved}
    return {**saved, **there, **{f.name: as_json(_default(f)) for f in fields if f.name not in saved and _has_default(f)}}


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Returns {dotted path: leaf} of JSON data."""
    if isinstance(tree, dict):
        pairs = [(f"{path}.{k}" if path else k, v) for k, v in tree.items()]
    elif isinstance(tree, list):
        pairs = [(f"{path}[{i}]", v) for i, v in enumerate(tree)]
    else:
        return {path: tree}
    return {k: leaf for here, v in pairs for k, leaf in flatten(v, here).items()}


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted path: (old, new)} of the leaves in which two JSON trees differ; a leaf not there is None."""
    a, b = flatten(old), flatten(new)
    return {path: (a.get(path), b.get(path)) for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)}


def rule_of(cfg: Config, path: str) -> str:
    """Returns the resume rule of a dotted path: that of the field, or of the nearest section above that has one."""
    rules = {here: str(field.metadata.get("rule", MAY)) for here, field, _, _ in walk(cfg)}
    while path and path not in rules:
        path = path.rpartition(".")[0]
    return rules.get(path, MAY)
