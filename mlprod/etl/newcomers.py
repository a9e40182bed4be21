"""How rows that are appended differ from those before: feature by feature, as they are stored.

Promise: both are seen behind the same transform, the first rows of each file, which are in the order of a hash: a random sample.
Price: a row group or some of each of the files that are looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlprod.etl.profile import decile_counts, drift
from mlprod.etl.write import stored_values
from mlprod.features import UNKNOWN, Feature, FeatureSpec
from mlprod.manifest import Shard, StoredColumn

SAMPLE_ROWS = 1 << 16
DRIFTED = 0.25  # population stability index
UNKNOWNS = 0.05  # share of new rows whose value is in no vocabulary


def differences(
    dataset: Path, columns: Sequence[StoredColumn], spec: FeatureSpec, before: Sequence[Shard], new: Sequence[Shard]
) -> list[dict[str, Any]]:
    """Returns {"name", "psi", "psi_by_chance", "unknown": (share before, share of the new)} of each feature."""
    old, now = (_sample(dataset, columns, shards) for shards in (before, new))
    return [{"name": f.name, **_of(f, old[f.name], now[f.name])} for f in spec.fitted]


def _sample(dataset: Path, columns: Sequence[StoredColumn], shards: Sequence[Shard]) -> Mapping[str, Any]:
    """Returns {column: values [B]} of the first row groups of files, at most about `SAMPLE_ROWS` rows in all."""
    few, parts = max(SAMPLE_ROWS // max(len(shards), 1), 1), []
    for shard in shards:
        with pq.ParquetFile(dataset / shard.path) as file:
            groups = range(max(1, min(len(shard.groups), few // shard.groups[0])))
            parts.append(file.read_row_groups(list(groups), use_threads=False))
    return stored_values(columns, pa.concat_tables(parts))


def _of(f: Feature, old: np.ndarray, new: np.ndarray) -> dict[str, Any]:
    if f.kind != "numeric":
        old, new = old.reshape(-1), new.reshape(-1)  # of lists, each of their ids
        size = int(max(old.max(), new.max())) + 1
        counts = [np.bincount(ids, minlength=size) for ids in (old, new)]
        shares = [float((ids == UNKNOWN).mean()) for ids in (old, new)]
        return {**drift(*counts), "unknown": shares if f.vocabulary else None}
    ordered = np.sort(old.astype(np.float64))
    deciles = np.unique(ordered[(np.arange(1, 10) * len(ordered)) // 10])
    return {**drift(*(decile_counts(values.astype(np.float64), deciles, 0) for values in (old, new))), "unknown": None}


def warnings(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields what is to be mistrusted of the new rows."""
    for f in found:
        if f["psi"] > DRIFTED and f["psi"] > f["psi_by_chance"]:
            yield (
                f"column {f['name']!r} has drifted: population stability index {f['psi']:.2f} between the rows before and the "
                f"new ones, more than {DRIFTED}; look at the source, or fit anew by config.etl.grow='refit'"
            )
        if f["unknown"] and f["unknown"][1] > max(UNKNOWNS, 2 * f["unknown"][0]):
            yield (
                f"column {f['name']!r}: {f['unknown'][1]:.1%} of the new rows have a value that is in no vocabulary (before "
                f"{f['unknown'][0]:.1%}); fit anew by config.etl.grow='refit'"
            )
