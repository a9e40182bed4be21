"""Keeps orbax from asking tensorstore for JSON data: each answer stays in memory for ever. The door to a private module of orbax.

tensorstore (0.1.80 to 0.1.86) gives what it returns as JSON data one reference too many. Orbax asks at every save and restore for
its counters, 10 to 20 KB, to tell how many bytes were written, which nobody here looks at; and for each array for the address of
the step's folder, 0.3 KB, which it has just made itself.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import tensorstore

try:
    from orbax.checkpoint._src.serialization import tensorstore_utils
except ImportError:  # another orbax has it elsewhere, or does not ask
    tensorstore_utils = None


def ask_for_none() -> None:
    """Has orbax count 0 bytes, after which it tells of none, and take the address of a local folder as it made it."""
    if hasattr(tensorstore_utils, "get_tensorstore_raw_bytes"):
        tensorstore_utils.get_tensorstore_raw_bytes = _no_bytes
    if hasattr(tensorstore_utils, "ts"):
        tensorstore_utils.ts = SimpleNamespace(**{**vars(tensorstore), "KvStore": _Addresses()})


def _no_bytes(*_: Any, **__: Any) -> int:
    return 0


class _Addresses:
    """tensorstore's KvStore, but for how an address is made."""

    def Spec(self, given: Mapping[str, Any]) -> Any:
        """See `_address`."""
        return _address(given)

    def __getattr__(self, name: str) -> Any:
        """As there."""
        return getattr(tensorstore.KvStore, name)


def _address(given: Mapping[str, Any]) -> Any:
    """Returns what tensorstore makes of an address; of a local folder's, whose JSON form it is already, only that."""
    return SimpleNamespace(to_json=lambda: given) if given["driver"] == "file" else tensorstore.KvStore.Spec(given)
