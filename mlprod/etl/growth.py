"""A source that has grown: which version its new rows are appended to, and what of it has to be read.

Promise: what was fitted stays as it was, and no row of a version before is written again or changes its split. What is read again
is known by the index of rows and left out; reading less only saves time.
Price: the index of the versions before is read once.
"""

import datetime as dt
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlprod import compare, manifest
from mlprod.config import DATA, EtlConfig, SqlSource
from mlprod.errors import DataError
from mlprod.etl import index
from mlprod.etl.files import files_of
from mlprod.etl.identity import Identity, files_in
from mlprod.etl.sql import rows_until
from mlprod.features import FeatureSpec, loads
from mlprod.hashing import HASH_VERSION
from mlprod.manifest import Manifest


@dataclass(frozen=True)
class Parent:
    """The version that rows are appended to."""

    version: Manifest
    spec: FeatureSpec
    index: index.Index


def parent_of(dataset: Path, etl: EtlConfig, newest: Manifest | None, excluded: str) -> Parent | None:
    """Returns the version to append to; None where a build begins anew, and says on stderr why where that may surprise.

    Args:
        newest: the newest version.
        excluded: see `exclude.identity`.

    Raises:
        DataError: what was fitted for it is gone.
    """
    if etl.grow != "append" or newest is None:
        return None
    why = _built_anew(etl, newest, excluded)
    if why:
        print(f"mlprod: {dataset} is built anew, not appended to: {why}", file=sys.stderr)
        return None
    try:
        spec = loads((dataset / newest.features).read_text())
    except OSError as error:
        raise DataError(
            f"{dataset / newest.features} cannot be read ({error.strerror}), so nothing can be appended to version "
            f"{newest.version}; restore it, or build anew by config.etl.grow='refit'"
        ) from error
    return Parent(newest, spec, index.of_version(dataset.absolute(), newest.source["indexes"]))


def _built_anew(etl: EtlConfig, newest: Manifest, excluded: str) -> str:
    """Returns why nothing can be appended to a version; "" where it can."""
    changed = compare.differences(compare.completed(newest.config, etl, DATA), compare.data_json(etl))
    if changed:
        return f"etl.{min(changed)} is not as it was for version {newest.version}"
    if newest.source.get("excluded_keys", "") != excluded:
        return f"config.etl.exclude_keys is not what it was for version {newest.version}"
    if not newest.source.get("indexes"):
        return f"version {newest.version} was built with grow='refit', so it has no index of its rows; later ones are appended"
    return "" if newest.hash_version == HASH_VERSION else "this mlprod hashes rows otherwise"


def key(base: str, parent: Parent | None) -> str:
    """Returns the `build_key` of a version: `base`, which says what the source holds now, and what it is appended to."""
    return base if parent is None else manifest.sha256_text(f"{base} {parent.version.dataset_id}")[:32]


def base_key(version: Manifest) -> str:
    """Returns what the source held when a version was built: see `key`."""
    return str(version.source.get("base_key", version.build_key))


@dataclass(frozen=True)
class Unread:
    """What of a source is read."""

    source: Any
    without: Collection[str] = ()  # files that a version before has read
    share: float = 1.0  # of the rows, about
    columns: Collection[str] = ()  # that a version before knows, so a source may lack them

    @property
    def nothing(self) -> bool:
        """Whether there is no file that a version before has not read."""
        return bool(self.without) and set(files_of(self.source.path)) <= set(self.without)


def unread(etl: EtlConfig, identity: Identity, parent: Parent | None) -> Unread:
    """Returns what has to be read for the rows that a version before has not.

    Raises:
        DataError: rows that are read again could not be told from new ones.
    """
    source: Any = etl.source
    if parent is None:
        return Unread(source)
    if isinstance(source, SqlSource):
        hide = any(c.sensitive and source.watermark == (c.source or c.name) for c in etl.columns)
        return _behind_watermark(source, parent, hide) if source.watermark else Unread(source)
    seen: Counter[str] = Counter(map(manifest.canonical, files_in(parent.version.source)))
    files = files_in(identity.description)
    sizes = dict(zip(files_of(source.path), files, strict=True))
    old = frozenset(name for name, file in sizes.items() if _counted(seen, manifest.canonical(file)))
    gone = seen.total()
    if gone:
        told = f"{gone} file(s) that version {parent.version.version} was built from are changed or gone"
        if etl.dedup == "none":
            raise DataError(
                f"{told}, and dedup='none' cannot tell their rows from new ones; build anew by config.etl.grow='refit'"
            )
        print(f"mlprod: {told}; rows that only they held stay in the dataset", file=sys.stderr)
    new = sum(file["bytes"] for name, file in sizes.items() if name not in old)
    return Unread(source, old, new / max(sum(file["bytes"] for file in files), 1), parent.version.source["schema"])


def _counted(seen: Counter[str], file: str) -> bool:
    """Returns whether a file is among those seen, and takes it out."""
    if not seen[file]:
        return False
    seen[file] -= 1
    return True


def _behind_watermark(source: SqlSource, parent: Parent, hide: bool) -> Unread:
    """Returns the rows from the newest watermark of a version on, or from `late` before it; `hide`: it is not told."""
    newest, rows = str(parent.version.source["watermark"]), int(parent.version.source["rows"])
    if newest == "None":  # there were no rows with one
        return Unread(source)
    there = rows_until(source, newest)
    if there != rows:
        told = f"{there - rows} row(s) came late" if there > rows else f"{rows - there} row(s) went"
        shown = "(hidden)" if hide else newest
        print(
            f"mlprod: {told} behind the watermark {shown}; config.etl.source.late={source.late:g} says how far behind it "
            f"rows are read again",
            file=sys.stderr,
        )
    start = earlier(newest, source.late)
    return Unread(replace(source, start=max(start, source.start, key=_point) if source.start else start))


def _point(watermark: str) -> float:
    """Returns where a watermark is among others: a number, or a time's seconds since 1970."""
    try:
        return float(watermark)
    except ValueError:
        time = dt.datetime.fromisoformat(watermark)
        return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()


def earlier(watermark: str, by: float) -> str:
    """Returns a watermark, a number or an ISO time, less `by`: its units, or seconds; of dates, whole days.

    Of times at least a second: SQLite compares texts, in which "00:59:00" is before "00:59:00.000000".
    """
    for number in (int, float):
        try:
            return str(number(watermark) - (int(by) if number is int else by))
        except ValueError:
            continue
    if len(watermark) == len("2024-01-01"):
        return str(dt.date.fromisoformat(watermark) - dt.timedelta(days=-(-by // 86_400)))
    return str(dt.datetime.fromisoformat(watermark) - dt.timedelta(seconds=max(by, 1.0)))


def lineage(parent: Parent | None, version: int, sha256: str) -> Mapping[str, str]:
    """Returns {path: SHA-256} of the indexes of a version: its own and those of the versions that it is appended to."""
    before = dict(parent.version.source["indexes"]) if parent else {}
    return before | ({index.index_path(version): sha256} if sha256 else {})
