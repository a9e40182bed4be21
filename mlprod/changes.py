"""What differs between two versions of a dataset, or two datasets: config, columns, fitted transform, rows.

Promise: rows are counted exactly by their row ids, which are all that is read of the files; memory is bounded (`RANGE_ROWS`
ids of each version), whatever the number of rows. No value of a sensitive column is in what is returned.
Price: the ids are read once a range of them: 100 million rows twelve times, 0.8 GB each. They are not compared with
checksums; that is `verify`'s.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mlprod import discreet
from mlprod.compare import completed, differences
from mlprod.config import DATA, EtlConfig
from mlprod.errors import DataError
from mlprod.features import Feature, FeatureSpec
from mlprod.features import Sequence as Ids
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import Store

RANGE_ROWS = 1 << 23  # whose ids are in memory at once, of each version
LOOKED_UP = 1 << 18  # ids that are looked up together
WORDS = 5  # of a vocabulary that are told
HIDDEN = "(hidden)"


# ---- config, columns, transform ----------------------------------------------------------------------------------------


def sensitive(*versions: Manifest) -> set[str]:
    """Returns the names of the columns that are sensitive in any of these versions."""
    stored = {c.name for version in versions for c in version.columns if c.sensitive}
    return stored | {c["name"] for version in versions for c in version.config["columns"] if c["sensitive"]}


def config_changes(old: Manifest, new: Manifest, now: EtlConfig) -> dict[str, tuple[str, str]]:
    """Returns {dotted path: (old, new)} of the configs' differences, as text.

    Args:
        now: the config at hand, by which fields are known that mlprod had not when a version was built.
    """
    hidden = [path for version in (old, new) for path in discreet.hidden(version.config, sensitive(version))]

    def told(path: str, value: Any) -> str:
        return HIDDEN if value is not None and path.startswith(tuple(hidden)) else repr(value)

    changed = differences(*(completed(version.config, now, DATA) for version in (old, new)))
    return {path: (told(path, a), told(path, b)) for path, (a, b) in changed.items()}


def column_changes(old: Manifest, new: Manifest) -> dict[str, str]:
    """Returns {column: what became of it} of the stored columns that differ; keys are told apart from features."""
    before, after = ({_place(c.name, c.role): asdict(c) for c in version.columns} for version in (old, new))
    found = {}
    for name in sorted(before.keys() | after.keys()):
        changed = differences(before.get(name, {}), after.get(name, {}))
        if name not in before or name not in after:
            found[name] = "is new" if name in after else "is gone"
        elif changed:
            found[name] = ", ".join(f"{what} {a!r} -> {b!r}" for what, (a, b) in changed.items())
    return found


def _place(name: str, role: str) -> str:
    return f"key {name}" if role == "key" else name


def transform_changes(old: FeatureSpec, new: FeatureSpec, hidden: Collection[str]) -> dict[str, str]:
    """Returns {feature: what was fitted otherwise} of the features that both have; `hidden`: of which no value is told."""
    before = {f.name: f for f in old.features}
    pairs = [(before[f.name], f) for f in new.features if f.name in before]
    return {f.name: _fitted(was, f, f.name in hidden) for was, f in pairs if was != f}


def _fitted(old: Feature | Ids, new: Feature | Ids, hidden: bool) -> str:
    if isinstance(old, Ids) or isinstance(new, Ids):
        return ", ".join(f"{name} {a!r} -> {b!r}" for name, (a, b) in differences(asdict(old), asdict(new)).items())
    if old.kind != new.kind:
        return f"{old.kind} -> {new.kind}"
    if new.kind == "numeric":
        changed = [name for name in ("fill", "mean", "std") if getattr(old, name) != getattr(new, name)]
        values = {name: "" if hidden else f" {getattr(old, name):.9g} -> {getattr(new, name):.9g}" for name in changed}
        return ", ".join(f"{name}{told}" for name, told in values.items()) + (f" {HIDDEN}" if hidden else "")
    came, went = set(new.vocabulary) - set(old.vocabulary), set(old.vocabulary) - set(new.vocabulary)
    return ", ".join(_words(sign, words, hidden) for sign, words in (("new", came), ("gone", went)) if words)


def _words(sign: str, words: Collection[str], hidden: bool) -> str:
    few = f" {HIDDEN}" if hidden else ": " + ", ".join(map(repr, sorted(words)[:WORDS])) + (", ..." if len(words) > WORDS else "")
    return f"{len(words):,} {sign}{few}"


# ---- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RowChanges:
    """How many rows of two versions have the same id. `both`: {(split in the old, in the new): rows}."""

    old: Mapping[str, int]  # split -> rows
    new: Mapping[str, int]
    both: Mapping[tuple[str, str], int]

    @property
    def moved(self) -> int:
        """Rows that are in both, in another split than before."""
        return sum(rows for (a, b), rows in self.both.items() if a != b)

    def only_old(self, split: str) -> int:
        """Rows of a split that the new version has in none."""
        return self.old[split] - sum(self.both[split, other] for other in SPLITS)

    def only_new(self, split: str) -> int:
        """Rows of a split that the old version had in none."""
        return self.new[split] - sum(self.both[other, split] for other in SPLITS)


def unlike_ids(old: Manifest, new: Manifest) -> str:
    """Returns why equal row ids would not mean equal rows; "" where they do."""
    for what, a, b in (
        ("key", old.config["key"], new.config["key"]), ("hash_seed", old.hash_seed, new.hash_seed),
        ("hash version", old.hash_version, new.hash_version),
    ):  # fmt: skip
        if a != b:
            return f"{what} was {a}, is {b}"
    return ""


def row_changes(old_store: Store, old: Manifest, new_store: Store, new: Manifest) -> RowChanges:
    """Counts the rows of two versions that have the same id.

    Raises:
        DataError: a file ends too early.
        OSError: a file cannot be read.
    """
    most = max(sum(version.num_rows(split) for split in SPLITS) for version in (old, new))
    both = dict.fromkeys(((a, b) for a in SPLITS for b in SPLITS), 0)
    for low, high in _ranges(-(-most // RANGE_ROWS)):
        before = {split: _sorted_ids(old_store, old, split, low, high) for split in SPLITS}
        for b in SPLITS:
            ids = _sorted_ids(new_store, new, b, low, high)
            for a in SPLITS:
                both[a, b] += _num_shared(ids, before[a])
    rows = [{split: version.num_rows(split) for split in SPLITS} for version in (old, new)]
    return RowChanges(rows[0], rows[1], both)


def _ranges(count: int) -> Iterator[tuple[int, int]]:
    """Yields `count` ranges [low, high] of 64-bit words, all of them; ids are hashes, so each has as many."""
    edges = [(i << 64) // max(count, 1) for i in range(max(count, 1) + 1)]
    yield from ((a, b - 1) for a, b in pairwise(edges))


def _sorted_ids(store: Store, version: Manifest, split: str, low: int, high: int) -> np.ndarray:
    """Returns the row ids of a split within [low, high], ascending, uint64[K]: their bytes alone are read."""
    parts = [np.zeros(0, np.uint64)]
    for shard in version.splits[split]:
        for rows, (start, _) in zip(shard.groups, shard.spans, strict=True):
            ids = np.empty(rows, np.uint64)
            if store.read_into(shard.path, start + shard.offsets[rows]["row_id"], ids.view(np.uint8).data) != ids.nbytes:
                raise DataError(f"{store.location}/{shard.path} ends too early; `mlprod data verify` reads all files again")
            parts.append(ids[(ids >= np.uint64(low)) & (ids <= np.uint64(high))])
    found = np.concatenate(parts)
    found.sort()
    return found


def _num_shared(ids: np.ndarray, among: np.ndarray) -> int:
    """Returns how many of `ids` are in `among`; both ascending."""
    if not len(among):
        return 0
    found = 0
    for start in range(0, len(ids), LOOKED_UP):
        part = ids[start : start + LOOKED_UP]
        at = np.minimum(np.searchsorted(among, part), len(among) - 1)
        found += int(np.count_nonzero(among[at] == part))
    return found
