"""Keeps orbax from asking tensorstore for its counters at every save and restore: each answer stays in memory for ever.

tensorstore (0.1.80 to 0.1.86) gives what it returns as JSON data one reference too many. Its counters are 10 to 20 KB, twice a
save. Orbax asks only to tell how many bytes were written, which nobody here looks at. The door to a private module of orbax.

What is left: orbax asks for the JSON form of an address for each array that it writes or reads, 0.3 KB that stay.
"""

from typing import Any

try:
    from orbax.checkpoint._src.serialization import tensorstore_utils
except ImportError:  # another orbax has it elsewhere, or does not ask
    tensorstore_utils = None


def ask_for_none() -> None:
    """Has orbax count 0 bytes, after which it tells of none."""
    if hasattr(tensorstore_utils, "get_tensorstore_raw_bytes"):
        tensorstore_utils.get_tensorstore_raw_bytes = _no_bytes


def _no_bytes(*_: Any, **__: Any) -> int:
    return 0
