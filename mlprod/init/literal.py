"""Values of a config as Python text."""

import dataclasses
import json
from typing import Any


def literal(value: Any) -> str:
    """Returns a config's value as Python text: strings in double quotes, dataclasses by their fields that are not the default."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if dataclasses.is_dataclass(value):
        changed = (f for f in dataclasses.fields(value) if not is_default(f, getattr(value, f.name)))
        return f"{type(value).__name__}({', '.join(f'{f.name}={literal(getattr(value, f.name))}' for f in changed)})"
    return repr(value)


def is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """Returns whether a field that has a value need not be written."""
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return bool(value == field.default)
