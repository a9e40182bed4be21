"""What to mistrust in a dataset before a model is trained on it.

Promise: each warning is one line with the figure, its limit and the way out. What few rows may give by chance is no warning. A
`sensitive` column is warned about by its name and counts, never by a value.
Price: it sees what `profile` saw, so what is rare among many rows can escape it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlprod.config import Column
from mlprod.etl.alone import MEASURES, TELLS_ALL
from mlprod.etl.profile import Profile
from mlprod.features import Feature, FeatureSpec, Target

NEARLY_ALL = 0.95  # share of distinct values
FEW = 100  # rows in which values are often distinct without being a key
HALF = 0.5  # share of missing values
DRIFTED = 0.25  # population stability index


def warnings_of(
    columns: Sequence[Column], spec: FeatureSpec, profiles: Mapping[str, Profile], splits: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Returns the warnings, those of splits first, then column by column; `splits`: {split: its rows and mean label}."""
    fitted, rows = {f.name: f for f in (*spec.numeric, *spec.categorical)}, splits["train"]["rows"]
    found = [*_splits(splits, spec.target), *_classes(spec.target)]
    for c in columns:
        name, seen = f"column {_short(c.name)!r}", profiles[c.name]
        found += [f"{name} {line}" for line in _torn(seen)]
        if c.name in fitted:
            found += [f"{name} {line}" for line in _feature(c, fitted[c.name], seen, rows, spec.target)]
    return found


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:59] + "…"


def _splits(splits: Mapping[str, Mapping[str, Any]], target: Target) -> Iterator[str]:
    for name in ("eval", "test"):
        if not splits[name]["rows"]:
            yield f"the {name} split has no rows, so nothing can be measured on it; give it some by config.etl.split"
        elif target.task == "binary" and splits[name]["label_mean"] in (0, 1):
            label = int(splits[name]["label_mean"])
            yield (
                f"all {splits[name]['rows']:,} rows of the {name} split have label {label}, so no AUC can be told; "
                f"make it larger, or split by another column, by config.etl.split"
            )


def _classes(target: Target) -> Iterator[str]:
    for name, rows in zip(target.classes, target.counts, strict=True):
        if not rows:
            yield f"class {_short(name)!r} has no training rows, so no model can tell it; leave its rows out, or split otherwise"


def _feature(c: Column, feature: Feature, seen: Profile, train_rows: int, target: Target) -> Iterator[str]:
    """Yields what is wrong with a feature."""
    if _is_constant(feature, seen):
        yield "has one value in all training rows, which tells a model nothing; leave it out of config.etl.columns"
        return
    if _is_key(c, feature, seen, train_rows):
        there = seen.rows["train"] - seen.missing["train"]
        yield (
            f"looks like a key: {seen.distinct:,} different values in {there:,} training rows (the limit is {NEARLY_ALL:.0%}), "
            f"by which rows can only be learned by heart; leave it out, or give it the role 'input' or 'group'"
        )
    if seen.tells_all:
        limits = f"limits are {1 - TELLS_ALL:.2f} and {TELLS_ALL}" if target.task == "binary" else f"limit is {TELLS_ALL}"
        measured = f"{MEASURES[target.task]} {seen.alone:.4f} on {seen.rows['eval']:,} eval rows"
        yield (f"alone predicts the label: {measured} (the {limits}); leave it out unless it is known when the model is asked")
    if seen.psi is not None and seen.psi > max(DRIFTED, seen.psi_by_chance):
        yield (
            f"differs between train and eval: PSI {seen.psi:.3f} (the limit is {DRIFTED}); find out why, split in another way, "
            f"or leave it out"
        )


def _is_constant(feature: Feature, seen: Profile) -> bool:
    """Whether a model sees one value in all training rows: in those looked at, and by what was fitted on all."""
    if feature.kind == "numeric":  # missing ones are filled with the median
        return seen.distinct <= 1 and feature.mean == feature.fill
    return seen.distinct <= 1 and not seen.missing["train"] and (feature.buckets > 1 or len(feature.vocabulary) <= 1)


def _is_key(c: Column, feature: Feature, seen: Profile, train_rows: int) -> bool:
    """Whether nearly every value of an integer or categorical column is distinct, in the rows looked at and so in all.

    Of n rows looked at, n - d equal another: with D values in all about n^2 / 2D. A key has D near the number of rows.
    """
    there = seen.rows["train"] - seen.missing["train"]
    if there < FEW or not (c.type == "int64" or feature.kind == "categorical"):
        return False
    return seen.distinct > NEARLY_ALL * there and there * there >= (there - seen.distinct) * train_rows


def _torn(seen: Profile) -> Iterator[str]:
    """Yields whether more than half is missing in one split and not in another, by more than four deviations of the shares."""
    shares = {split: seen.missing[split] / rows for split, rows in seen.rows.items()}
    most, least = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
    by_chance = 4 * HALF * (1 / seen.rows[most] + 1 / seen.rows[least]) ** 0.5
    if shares[most] > HALF >= shares[least] and shares[most] - shares[least] > by_chance:
        yield (
            f"is missing in {shares[most]:.0%} of the {most} rows and in {shares[least]:.0%} of the {least} rows (the limit is "
            f"{HALF:.0%}); find out what changed, or leave it out"
        )
