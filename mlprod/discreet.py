"""What is told of errors where rows have sensitive columns: no text that may quote a value, in a traceback neither.

Promise: of an error that quotes a database, a library or the user's code, what is wrong, where and how to go on is told, and no
value. What nobody foresaw is told by its type and its place in the program.
Price: then a bug is looked for without the text of its error, and a crash without a core file; on rows that are not sensitive
both are there.
"""

import resource
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mlprod.config import EtlConfig
from mlprod.errors import DataError, MlprodError, QuotingError, wordless

WHY = "its text is hidden: it may hold a value of a sensitive column"


def is_sensitive(etl: EtlConfig) -> bool:
    """Whether some column of the rows is sensitive."""
    return any(column.sensitive for column in etl.columns)


def without_core_files(etl: EtlConfig) -> None:
    """Lets this process, and those that it starts, leave no core file where a column is sensitive: one holds all rows in memory.

    The limit is 1 byte and not 0: where Linux pipes cores to a program, it does so at any limit but 1.
    """
    if is_sensitive(etl):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))


@contextmanager
def discreet(wanted: bool) -> Iterator[None]:
    """Lets no error of what reads rows quote a value; errors stay as they are where that is not wanted, see `is_sensitive`.

    Raises:
        MlprodError: the same, or of an error that quotes what others say, a DataError without that.
        Wordless: stands for any other.
    """
    try:
        yield
    except Exception as error:
        if not wanted:
            raise
        raise _without_values(error) from wordless(error.__cause__ or error.__context__, WHY)


def _without_values(error: Exception) -> Exception:
    """Returns what is raised in place of an error."""
    if isinstance(error, QuotingError):
        return DataError(error.without).with_traceback(error.__traceback__)
    ours = isinstance(error, MlprodError) or type(error).__module__.startswith("jax")
    if ours or (isinstance(error, OSError) and error.errno):  # of which a file, or a device, is told
        return error
    twin = wordless(error, WHY)
    assert twin is not None
    return twin


def hidden(section: Mapping[str, Any], names: Collection[str] = ()) -> tuple[str, ...]:
    """Returns the paths of a saved section `etl` below which values of sensitive columns stand.

    Args:
        names: of columns that are sensitive beside those that the section says.
    """
    sensitive = {*names, *(c["name"] for c in section.get("columns", ()) if c.get("sensitive"))}
    at = {"split": ("column", "eval", "test"), "source": ("watermark", "start", "stop"), "label": ("column", "value", "above")}
    found = [f"{part}.{name}" for part, (by, *values) in at.items() if _of(section, part, by) in sensitive for name in values]
    rules = [i for i, rule in enumerate(section.get("rules", ())) if rule.get("column") in sensitive and "values" in rule]
    return (*found, *(f"rules[{i}].values" for i in rules))


def _of(section: Mapping[str, Any], part: str, name: str) -> Any:
    inner = section.get(part)
    return inner.get(name) if isinstance(inner, Mapping) else None
