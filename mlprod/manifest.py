"""The contract between ETL and training: what a dataset is, on disk and as dataclasses.

Promise: a version exists when its manifest does; the manifest is written last, by one rename, and never changed. Files
that a manifest names are never rewritten.
Price: one JSON file a version, read once at the start of a verb.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlprod.compare import data_json, differences
from mlprod.config import Config
from mlprod.errors import DataError

FORMAT = 1
SPLITS = ("train", "eval", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file: it belongs to one split and holds whole row groups."""

    path: str  # below the dataset's folder
    groups: tuple[int, ...]  # rows of each row group
    sums: tuple[str, ...]  # per group, 32 hex digits: sum mod 2^128 of mix(hash of the stored example, its index)
    bytes: int
    sha256: str

    @property
    def rows(self) -> int:
        """Rows in the file."""
        return sum(self.groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredColumn:
    """What is stored of one column: its place in the files and what training may assume of it."""

    name: str
    type: str  # of a raw value
    dtype: str  # of the stored array
    shape: tuple[int, ...]  # of one example's value
    role: str
    kind: str  # "numeric", "categorical" or "plain"
    stored_in: str  # Parquet column that holds it
    vocabulary_size: int  # rows of its embedding table; 0: none
    missing: str
    sensitive: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One version of a dataset."""

    format: int
    version: int
    parent: int  # 0: none
    build_key: str
    dataset_id: str
    config: Mapping[str, Any]  # the part of the config that decided the content
    group_rows: int
    hash_version: int
    hash_seed: int
    storage: str
    hash_order: bool  # stored in ascending order hash, so already well shuffled
    columns: tuple[StoredColumn, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    features: str  # path of the fitted transform
    features_sha256: str
    report: str  # path of the data report
    source: Mapping[str, Any]  # counts and watermark of what was read

    def group_sizes(self, split: str) -> tuple[int, ...]:
        """Rows of every row group of a split, in manifest order."""
        return tuple(rows for shard in self.splits[split] for rows in shard.groups)

    def num_rows(self, split: str) -> int:
        """Examples in a split."""
        return sum(self.group_sizes(split))


def canonical(tree: Any) -> str:
    """Returns JSON data as text that is the same for the same data: sorted keys, no spaces, no NaN."""
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_text(text: str) -> str:
    """Returns the SHA-256 of a text's UTF-8, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill at any moment, sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def content_id(columns: tuple[StoredColumn, ...], features: str, splits: Mapping[str, tuple[Shard, ...]]) -> str:
    """Returns the `dataset_id`: 32 hex digits over schema, fitted transform and every row group's rows and sum."""
    groups = {
        name: [[r, s] for shard in shards for r, s in zip(shard.groups, shard.sums, strict=True)]
        for name, shards in splits.items()
    }
    schema = [[c.name, c.type, c.dtype, list(c.shape), c.role, c.kind, c.vocabulary_size] for c in columns]
    return sha256_text(canonical({"schema": schema, "features": features, "groups": groups}))[:32]


def versions(dataset: Path) -> list[int]:
    """Returns the numbers of the dataset's versions, ascending."""
    return sorted(int(path.stem) for path in (dataset / "manifests").glob("*.json") if path.stem.isdecimal())


def manifest_path(dataset: Path, version: int) -> Path:
    """Returns where the manifest of a version lies."""
    return dataset / "manifests" / f"{version:06d}.json"


def write(dataset: Path, manifest: Manifest) -> None:
    """Publishes a version: from this rename on it exists."""
    write_atomically(
        manifest_path(dataset, manifest.version), json.dumps(dataclasses.asdict(manifest), indent=1, allow_nan=False)
    )


def _build(cls: Callable[..., Any], body: Mapping[str, Any], **changed: Any) -> Any:
    return cls(**{**{f.name: body[f.name] for f in dataclasses.fields(cls)}, **changed})  # type: ignore[arg-type]


def _shard(body: Mapping[str, Any]) -> Shard:
    shard: Shard = _build(Shard, body, groups=tuple(body["groups"]), sums=tuple(body["sums"]))
    return shard


def read(dataset: Path, version: int = 0) -> Manifest:
    """Reads a version (0: the newest).

    Raises:
        DataError: no version there, a newer format than known, or a file that is not a manifest.
    """
    known = versions(dataset)
    if not known or (version and version not in known):
        raise DataError(
            f"{dataset} has no dataset version{f' {version}' if version else ''}: run `mlprod etl` with the same config first"
        )
    path = manifest_path(dataset, version or known[-1])
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] > FORMAT:
            raise DataError(
                f"{path}: format {body['format']} is newer than {FORMAT}, the newest this version reads; update mlprod"
            )
        columns = tuple(_build(StoredColumn, c, shape=tuple(c["shape"])) for c in body["columns"])
        splits = {name: tuple(_shard(s) for s in shards) for name, shards in body["splits"].items()}
        manifest: Manifest = _build(Manifest, body, columns=columns, splits=splits)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest ({type(error).__name__}: {error}); remove it and run `mlprod etl`") from error


def open_for(cfg: Config) -> Manifest:
    """Reads the newest version of `cfg.dataset` and checks that it was built by the same data config.

    Raises:
        DataError: no dataset, or one whose data config differs; the first difference is named.
    """
    dataset = Path(cfg.dataset)
    manifest = read(dataset)
    changed = differences(manifest.config, data_json(cfg.etl))
    if changed:
        path = min(changed, key=lambda p: (not p.endswith(".name"), p.endswith("class"), p))  # a name tells most, a class least
        old, new = changed[path]
        raise DataError(
            f"{dataset} was built by another config: etl.{path} was {old!r}, now {new!r} ({len(changed)} difference(s)); "
            f"run `mlprod etl` to build a new version, or give config.dataset another folder"
        )
    for shard in (s for shards in manifest.splits.values() for s in shards):
        file = dataset / shard.path
        found = file.stat().st_size if file.is_file() else -1
        if found != shard.bytes:
            state = "is missing" if found < 0 else f"has {found} bytes"
            raise DataError(
                f"{file} {state}; the manifest says {shard.bytes} bytes: restore it, or remove {dataset} and run `mlprod etl`"
            )
    return manifest
