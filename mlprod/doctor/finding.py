"""One thing that was looked at: what it is, what was found, and the way out where something is wrong."""

from collections.abc import Iterable
from typing import NamedTuple


class Finding(NamedTuple):
    """A line of the doctor's report."""

    what: str
    told: str
    mend: str = ""  # the way out; '' where nothing is wrong
    stops: bool = False  # a run would fail because of it; otherwise it may

    @property
    def state(self) -> str:
        """Returns "ok", "warning" or "wrong"."""
        return ("wrong" if self.stops else "warning") if self.mend else "ok"

    def line(self) -> str:
        """Returns the finding as one line."""
        told = "; ".join(filter(None, (self.told, self.mend)))
        return f"{self.state:<8} {self.what:<24} {' '.join(told.split())}"


def amount(size: float) -> str:
    """Returns bytes for people: `3.1 GB`, `20 MB`."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.0f} MB"


def first(names: Iterable[str], most: int = 5) -> str:
    """Returns the first names, and how many more there are."""
    all_names = list(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more
