"""Writes examples as Parquet row groups of exactly `group_rows` rows, cut by us and never by a chunk.

Promise: equal content gives equal sums, so an equal `dataset_id`; statistics are added exactly, over row groups
in stored order.
Price: `AT_ONCE` rows in memory, fewer where they are wide, and hashing every stored value once (about 2 us a row of 25 columns).

Storage: features lie packed, one FixedSizeBinary column per dtype: a reader decodes one column instead of dozens, 4 to 5 times
faster; lists and sequences of ids do so in either storage. Keys, label and row id stay ordinary columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlprod.config import Column, EtlConfig
from mlprod.etl.label import stored_labels
from mlprod.etl.schema import ARROW, combined, hashable, raw_column
from mlprod.etl.settle import LABEL, ROW_ID
from mlprod.etl.shards import ShardWriter
from mlprod.features import Feature, FeatureSpec, Target, apply
from mlprod.features import Sequence as Ids
from mlprod.hashing import FixedValues, Hash128, hash_columns, hash_sum, matrix_words, mix_hash
from mlprod.manifest import Shard, StoredColumn, shard_of

AT_ONCE, VALUES_AT_ONCE = 1 << 16, 1 << 20  # rows, and ids, that are encoded and hashed together, where a group has not more
PACKED = {
    "numeric": ("packed_float32", np.dtype(np.float32)),
    "categorical": ("packed_int32", np.dtype(np.int32)),
    "list": ("packed_int32", np.dtype(np.int32)),
    "sequence": ("packed_int32", np.dtype(np.int32)),
}
TRAINED_ROLES = ("label", "weight", "row_id")  # besides the features


def stored_columns(etl: EtlConfig, spec: FeatureSpec) -> tuple[StoredColumn, ...]:
    """Returns what the files hold: features (numeric, categorical, lists, sequences, each in spec order), label, then plain."""
    declared = {column.name: column for column in etl.columns}

    def feature(f: Feature) -> StoredColumn:
        c, (packed, dtype) = declared[f.name], PACKED[f.kind]
        place = packed if etl.storage == "packed" or f.kind == "list" else f.name
        size, shape = (f.num_ids if f.kind != "numeric" else 0), (f.length,) if f.kind == "list" else ()
        stored = _stored(c, dtype=dtype.name, kind=f.kind, stored_in=place, vocabulary_size=size)
        return replace(stored, shape=shape)

    label = Column(name="label", type="float64", role="label")
    row_id = Column(name="row_id", type="int64", role="input")
    weight = [c for c in etl.columns if c.role == "weight"]
    plain = [c for c in etl.columns if c.role not in ("feature", "input", "weight")]
    keys = [replace(declared[name], role="key") for name in etl.key]  # a feature may be part of the key as well
    return (
        *(feature(f) for f in spec.fitted),
        *(_sequence(f) for f in spec.sequences),
        _stored(label, dtype="float32", kind="plain", stored_in="label"),
        *(_stored(c, dtype="float32", kind="plain", stored_in=c.name) for c in weight),
        *(_stored(c, dtype=c.type, kind="plain", stored_in=c.name) for c in plain),
        *(_stored(c, dtype=c.type, kind="plain", stored_in=f"key_{c.name}") for c in keys),
        replace(_stored(row_id, dtype="uint64", kind="plain", stored_in="row_id"), type="uint64", role="row_id"),
    )


def _stored(c: Column, *, dtype: str, kind: str, stored_in: str, vocabulary_size: int = 0) -> StoredColumn:
    return StoredColumn(
        name=c.name, type=c.type, dtype=dtype, shape=(), role=c.role, kind=kind, stored_in=stored_in,
        vocabulary_size=vocabulary_size, missing=c.missing, sensitive=c.sensitive,
    )  # fmt: skip


def _sequence(f: Ids) -> StoredColumn:
    place, dtype = PACKED[f.kind]
    return StoredColumn(
        name=f.name, type="int64", dtype=dtype.name, shape=(f.length,), role="feature", kind=f.kind, stored_in=place,
        vocabulary_size=f.num_ids, missing="refuse", sensitive=False,
    )  # fmt: skip


def rows_at_once(columns: Sequence[StoredColumn]) -> int:
    """Returns how many rows are encoded and hashed together, where a row group has not more."""
    return max(min(AT_ONCE, VALUES_AT_ONCE // max(math.prod(c.shape) for c in columns)), 1)


def trained_columns(columns: Sequence[StoredColumn]) -> set[str]:
    """Returns the names of the Parquet columns that training reads."""
    return {c.stored_in for c in columns if c.kind in PACKED or c.role in TRAINED_ROLES}


def _packed(arrays: Sequence[np.ndarray], dtype: np.dtype) -> pa.Array:
    """Returns arrays [B] or [B, W] of one dtype as one FixedSizeBinary column, row-major."""
    rows = np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1).astype(dtype, copy=False)
    width = rows.shape[1] * dtype.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(rows.tobytes())])


def unpacked(column: pa.Array, dtype: np.dtype) -> np.ndarray:
    """Returns [B, F] numbers of a FixedSizeBinary column."""
    width = column.type.byte_width
    values = np.frombuffer(column.buffers()[1], dtype, len(column) * width // dtype.itemsize, column.offset * width)
    return values.reshape(len(column), -1)


def stored_values(columns: Sequence[StoredColumn], table: pa.Table) -> dict[str, np.ndarray | pa.Array]:
    """Returns {column: its values [B], of lists and sequences [B, W]} of a table as stored: numpy of what is trained, else Arrow.

    A key is told apart from a feature of its name by the Parquet column that holds it.
    """
    found: dict[str, np.ndarray | pa.Array] = {}
    for place, dtype in dict.fromkeys(PACKED.values()):
        members = [c for c in columns if c.stored_in == place]
        if members:
            matrix = unpacked(combined(table[place]), dtype)
            ends = np.cumsum([math.prod(c.shape) for c in members])
            parts = zip(members, np.split(matrix, ends[:-1], axis=1), strict=True)
            found |= {c.name: part.reshape(len(part), *c.shape) for c, part in parts}
    for c in columns:
        if c.kind in PACKED and c.stored_in != c.name:
            continue
        column = combined(table[c.stored_in])
        found[c.stored_in] = column.to_numpy() if c.kind in PACKED or c.role in TRAINED_ROLES else column
    return found


def content_sums(columns: Sequence[StoredColumn], table: pa.Table, size: int, seed: int) -> list[str]:
    """Returns the content sum of each row group of `size` rows of a table as it is stored: 32 hex digits each."""
    values = stored_values(columns, table)
    hashed = {name: _words(v) if isinstance(v, np.ndarray) else hashable(v) for name, v in values.items()}
    examples = hash_columns(hashed, table.num_rows, seed)
    content = mix_hash(examples, np.arange(table.num_rows, dtype=np.uint64) % np.uint64(size))
    groups = [slice(start, start + size) for start in range(0, table.num_rows, size)]
    return [f"{hash_sum(Hash128(content.hi[group], content.lo[group])):032x}" for group in groups]


def exact_sums(values: np.ndarray) -> list[float]:
    """Returns the sum of each row of float64[G, B], rounded once: the same in any order and on any machine.

    Each value is cut into two integers of 50 bits by a power of two of its row; what is smaller than 2^-100 of the row's largest
    does not count. `math.fsum`, which takes ten times as long, differs by less than that.
    """
    shift = 50 - np.frexp(np.abs(values).max(axis=1, initial=0.0))[1]
    half = shift // 2  # two products, for 2^shift may be no float64; `ldexp` of every value takes thrice as long
    scaled = values * np.ldexp(1.0, half)[:, None]
    scaled *= np.ldexp(1.0, shift - half)[:, None]
    high = np.rint(scaled)
    scaled -= high
    scaled *= 2.0**50
    low = np.rint(scaled, out=scaled)
    starts = np.arange(0, values.shape[1], 4096)  # so many values of 50 bits have a sum of 62
    sums = [np.add.reduceat(part.astype(np.int64), starts, axis=1).tolist() for part in (high, low)]
    totals = [(sum(h) << 50) + sum(w) for h, w in zip(*sums, strict=True)]
    return [math.ldexp(float(total), -50 - int(by)) for total, by in zip(totals, shift, strict=True)]


@dataclass(kw_only=True)
class Scale:
    """Exact sums of one numeric feature's distance from its fill value, from which mean and scale follow."""

    sums: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add(self, distance: np.ndarray) -> None:
        """Adds the distances of row groups, float64[G, B]."""
        self.sums += exact_sums(distance)
        self.squares += exact_sums(distance * distance)

    def moments(self, num_rows: int) -> tuple[float, float]:
        """Returns (mean, standard deviation) of the distances; that of a constant is 0."""
        mean = math.fsum(self.sums) / num_rows
        std = math.sqrt(max(math.fsum(self.squares) / num_rows - mean * mean, 0.0))
        return mean, std if std > 1e-9 * (1 + abs(mean)) else 0.0

    def fitted(self, feature: Feature, num_rows: int) -> Feature:
        """Returns the feature with mean and standard deviation; the deviation of a constant is 1."""
        mean, std = self.moments(num_rows)
        return replace(feature, mean=feature.fill + mean, std=std or 1.0)

    def of_target(self, target: Target, num_rows: int) -> Target:
        """Returns the target with mean and standard deviation of its labels."""
        mean, std = self.moments(num_rows)
        return replace(target, mean=mean, std=std)


@dataclass(frozen=True)
class Written:
    """A split as it was written: its files, and sums over each of its row groups."""

    shards: tuple[Shard, ...]
    scales: Mapping[str, Scale]
    label: Scale  # from 0

    @property
    def num_rows(self) -> int:
        """Rows in its files."""
        return sum(shard.rows for shard in self.shards)

    @property
    def label_mean(self) -> float:
        """Of its labels: the share of positives; 0 where it has no rows."""
        return math.fsum(self.label.sums) / max(self.num_rows, 1)


def joined(files: Sequence[Mapping[str, Any]], spec: FeatureSpec) -> Written:
    """Returns the split whose files these are: what `FileWriter.close` returned, in order."""
    scales = {name: Scale() for name in (LABEL, *(f.name for f in spec.numeric))}
    for file in files:
        for name, scale in scales.items():
            scale.sums += file["scales"][name]["sums"]
            scale.squares += file["scales"][name]["squares"]
    return Written(tuple(shard_of(file["shard"]) for file in files), scales, scales.pop(LABEL))


class FileWriter:
    """Writes one file of a split: takes settled rows in stored order and cuts row groups."""

    def __init__(
        self, etl: EtlConfig, spec: FeatureSpec, dataset: Path, folder: str, split: str, number: int, halves: Path
    ) -> None:
        """`folder`: of the files, below `dataset`; `number`: of the file in its split; `halves`: see `ShardWriter`."""
        self._etl, self._spec = etl, spec
        self._columns = stored_columns(etl, spec)
        self._schema = self._arrow_schema()
        name = f"{folder}/{split}-{number:05d}.parquet"
        self._file = ShardWriter(dataset, name, self._schema, trained_columns(self._columns), halves)
        stored = {c.name for c in self._columns} - {"label", "row_id"}
        sequences = [f.name for f in spec.sequences]
        self.needs = [*(c.name for c in etl.columns if c.name in stored), *sequences, LABEL]  # of rows it takes, besides row ids
        self._at_once = rows_at_once(self._columns)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.scales = {name: Scale() for name in (LABEL, *(f.name for f in spec.numeric))}

    def _arrow_schema(self) -> pa.Schema:
        fields = {}
        for c in self._columns:
            if c.kind in PACKED and c.stored_in != c.name:
                width = sum(4 * math.prod(other.shape) for other in self._columns if other.stored_in == c.stored_in)
                fields[c.stored_in] = pa.binary(width)
            else:
                fields[c.stored_in] = ARROW[c.type] if c.dtype in ARROW and c.kind == "plain" else pa.type_for_alias(c.dtype)
        return pa.schema([pa.field(name, kind) for name, kind in fields.items()])

    def add(self, rows: pa.Table) -> None:
        """Takes settled rows that follow those taken before in stored order."""
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        size = self._etl.group_rows
        ready = self._pending_rows // size * size
        if ready < max(size, self._at_once):
            return
        table, step = pa.concat_tables(self._pending), max(size, self._at_once // size * size)
        for start in range(0, ready, step):
            self._write_groups(table.slice(start, min(step, ready - start)), size)
        self._pending, self._pending_rows = [table.slice(ready)], table.num_rows - ready

    def close(self) -> dict[str, Any]:
        """Writes what is left, the last group shorter; returns what is to be known of the file as JSON data: see `joined`."""
        size = self._etl.group_rows
        if self._pending_rows:
            table, whole = pa.concat_tables(self._pending), self._pending_rows // size * size
            for part, of in ((table.slice(0, whole), size), (table.slice(whole), table.num_rows - whole)):
                if part.num_rows:
                    self._write_groups(part, of)
        return {
            "shard": asdict(self._file.close()),
            "scales": {name: asdict(scale) for name, scale in self.scales.items()},
        }  # fmt: skip

    def abandon(self) -> None:
        """Removes what was written."""
        self._file.abandon()

    def _write_groups(self, rows: pa.Table, size: int) -> None:
        """Writes row groups of `size` rows each."""
        encoded = self._encoded(rows)
        arrays = {f.name: encoded["numeric"][:, i] for i, f in enumerate(self._spec.numeric)}
        names = [f.name for f in (*self._spec.categorical, *self._spec.matrices)]
        arrays |= {name: encoded[name] for name in names}
        arrays |= {"label": stored_labels(self._spec.target, rows[LABEL]), "row_id": rows[ROW_ID].to_numpy()}
        weights = [c.name for c in self._columns if c.role == "weight"]
        arrays |= {name: pc.cast(rows[name], pa.float32(), safe=False).to_numpy() for name in weights}
        raw = [c for c in self._columns if c.kind == "plain" and c.stored_in not in arrays]
        plain = {c.stored_in: rows[c.name].combine_chunks() for c in raw}
        for f in self._spec.numeric:
            self.scales[f.name].add((arrays[f.name].astype(np.float64) - f.fill).reshape(-1, size))
        self.scales[LABEL].add(arrays["label"].astype(np.float64).reshape(-1, size))
        table = self._table(arrays, plain)
        for i, content_sum in enumerate(content_sums(self._columns, table, size, self._etl.hash_seed)):
            self._file.add(table.slice(i * size, size), content_sum)

    def _encoded(self, rows: pa.Table) -> dict[str, np.ndarray]:
        """Returns what `features.apply` makes of the rows, and the sequences as they are: int32[B, W]."""
        columns = {f.name: raw_column(rows[f.name]) for f in self._spec.fitted}
        encoded = apply(self._spec, columns) if columns else {}
        return encoded | {f.name: unpacked(combined(rows[f.name]), PACKED[f.kind][1]) for f in self._spec.sequences}

    def _table(self, arrays: Mapping[str, np.ndarray], plain: Mapping[str, pa.Array]) -> pa.Table:
        """Returns row groups as they are stored."""
        columns: dict[str, pa.Array] = {}
        for c in self._columns:
            if c.stored_in in columns:
                continue
            if c.kind in PACKED and c.stored_in != c.name:
                members = [arrays[o.name] for o in self._columns if o.stored_in == c.stored_in]
                columns[c.stored_in] = _packed(members, PACKED[c.kind][1])
            else:
                columns[c.stored_in] = plain[c.stored_in] if c.stored_in in plain else pa.array(arrays[c.name])
        return pa.table(columns, schema=self._schema)


def _words(array: np.ndarray) -> FixedValues:
    """Returns stored values [B] of a 4- or 8-byte dtype as words, rows [B, W] of them as a word each."""
    array = np.ascontiguousarray(array)
    if array.ndim > 1:
        odd = array.shape[1] * array.dtype.itemsize % 8 // array.dtype.itemsize
        whole = np.pad(array, ((0, 0), (0, odd))).view(np.uint64)
        return FixedValues(matrix_words(whole), np.ones(len(array), bool))
    unsigned = array.view(np.uint32 if array.dtype.itemsize == 4 else np.uint64)
    return FixedValues(unsigned.astype(np.uint64), np.ones(len(array), bool))
