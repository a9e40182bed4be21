"""Whether a value is what a type hint says: for the fields of configs, ours and those of a user's own model.

Promise: elements of tuples and dicts are checked too; a hint that cannot be checked at run time is taken as it is.
"""

import dataclasses
import types
import typing
from typing import Any


def hints_of(cls: type) -> dict[str, Any]:
    """Returns {field: hint} of a dataclass; Any where the hints' names are known to the user's own file only."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {field.name: Any for field in dataclasses.fields(cls)}


def has_type(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`; an int passes for a float, a bool for neither."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return True
    if origin in (types.UnionType, typing.Union):
        return any(has_type(value, arg) for arg in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        return isinstance(value, tuple) and not _wrong_items(value, args)
    if origin is dict:
        return isinstance(value, dict) and all(has_type(k, args[0]) and has_type(v, args[1]) for k, v in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return isinstance(value, origin or hint) and (hint is bool or not isinstance(value, bool))
    except TypeError:
        return True


def _wrong_items(value: tuple[Any, ...], args: tuple[Any, ...]) -> list[tuple[Any, Any]]:
    """Returns the (element, its hint) that do not fit `tuple[X, ...]` or `tuple[X, Y]`; the whole where the length does not."""
    each = args[:1] * len(value) if args[1:] == (...,) else args
    if len(each) != len(value):
        return [(value, f"a tuple of {len(each)}")]
    return [(item, arg) for item, arg in zip(value, each, strict=True) if not has_type(item, arg)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def mismatch(value: Any, hint: Any) -> str:
    """Returns how a value differs from its hint, as `VALUE is str, not int`; '' where it does not."""
    if has_type(value, hint):
        return ""
    if isinstance(value, tuple) and typing.get_origin(hint) is tuple:
        item, wanted = _wrong_items(value, typing.get_args(hint))[0]
        return f"{_shown(value)}: {_shown(item)} is {type(item).__name__}, not {_name(wanted)}"
    return f"{_shown(value)} is {type(value).__name__}, not {_name(hint)}"


def _name(hint: Any) -> str:
    """Returns a hint as it is written in a config."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("mlprod.config.", "")
