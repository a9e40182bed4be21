"""The contract between ETL and training: what a dataset is, on disk and as dataclasses.

Promise: a version exists when its manifest does; the manifest is written last, by one rename, and never changed. Files
that a manifest names are never rewritten. A format of another version of the program is refused by name, never misread.
Price: one JSON file a version, read once at the start of a verb: about 90 bytes a row group.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlprod import documents
from mlprod.compare import completed, data_json, differences
from mlprod.config import DATA, Config
from mlprod.errors import DataError

FORMAT = 3  # 2: the bytes and checksum of every row group; 3: where in them the values are, so that nothing is decoded
SPLITS = ("train", "eval", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One Parquet file: it belongs to one split and holds whole row groups."""

    path: str  # below the dataset's folder
    groups: tuple[int, ...]  # rows of each row group
    sums: tuple[str, ...]  # per group, 32 hex digits: sum mod 2^128 of mix(hash of the stored example, its index)
    spans: tuple[tuple[int, int], ...]  # per group, the bytes [a, b) of the columns that training reads
    checksums: tuple[str, ...]  # per group, XXH3-64 of these bytes
    offsets: Mapping[int, Mapping[str, int]]  # rows of a group -> column -> the byte of its span at which the values begin
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
    kind: str  # "numeric", "categorical", "list", "sequence" or "plain"
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


class Folder(Protocol):
    """Where a dataset lies: a local folder or an object store. Paths are relative, with '/'."""

    location: str  # for people

    def read(self, path: str) -> bytes:
        """Returns a whole file; raises FileNotFoundError where there is none."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns {file name: bytes} of the files right below a folder; empty where there is none."""
        ...


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file so that a reader, or a kill at any moment, sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_synced(temporary, text)
    os.replace(temporary, path)


def write_synced(path: Path, text: str) -> None:
    """Writes a text file and waits until it is on the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def content_id(columns: tuple[StoredColumn, ...], features: str, splits: Mapping[str, tuple[Shard, ...]]) -> str:
    """Returns the `dataset_id`: 32 hex digits over schema, fitted transform and every row group's rows and sum."""
    groups = {
        name: [[r, s] for shard in shards for r, s in zip(shard.groups, shard.sums, strict=True)]
        for name, shards in splits.items()
    }
    schema = [[c.name, c.type, c.dtype, list(c.shape), c.role, c.kind, c.vocabulary_size] for c in columns]
    return sha256_text(canonical({"schema": schema, "features": features, "groups": groups}))[:32]


def versions(dataset: Folder) -> list[int]:
    """Returns the numbers of the dataset's versions, ascending."""
    stems = [name.removesuffix(".json") for name in dataset.sizes("manifests") if name.endswith(".json")]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def manifest_path(version: int) -> str:
    """Returns where the manifest of a version lies, below the dataset's folder."""
    return f"manifests/{version:06d}.json"


def vocabulary_path(version: int) -> str:
    """Returns where the tokenizer of a version of texts lies, where it has one of its own, below the dataset's folder."""
    return f"vocab/{version:06d}.json"


def write(dataset: Path, manifest: Manifest) -> None:
    """Publishes a version: from this rename on it exists."""
    body = json.loads(json.dumps(dataclasses.asdict(manifest), allow_nan=False))
    text = json.dumps(body | {"sha256": checksum(body)}, indent=1, allow_nan=False)
    write_atomically(dataset / manifest_path(manifest.version), text)


def checksum(body: Mapping[str, Any]) -> str:
    """Returns what a manifest's JSON data must have as its own `sha256`: over all else in it."""
    return sha256_text(canonical({name: value for name, value in body.items() if name != "sha256"}))


def _build(cls: Callable[..., Any], body: Mapping[str, Any], **changed: Any) -> Any:
    # `cls` is one of this module's dataclasses, which no type can say of a callable.
    return cls(**{**{f.name: body[f.name] for f in dataclasses.fields(cls)}, **changed})  # type: ignore[arg-type]


def shard_of(body: Mapping[str, Any]) -> Shard:
    """Returns a file's description from its JSON data; raises ValueError, KeyError or TypeError where it is none."""
    tuples = {name: tuple(body[name]) for name in ("groups", "sums", "checksums")}
    spans = tuple((int(a), int(b)) for a, b in body["spans"])
    offsets = {int(rows): {str(c): int(at) for c, at in columns.items()} for rows, columns in body["offsets"].items()}
    shard: Shard = _build(Shard, body, **tuples, spans=spans, offsets=offsets)
    if not len(shard.groups) == len(shard.sums) == len(shard.spans) == len(shard.checksums):
        raise ValueError(f"{shard.path}: its lists of row groups differ in length")
    return shard


def read(dataset: Folder, version: int = 0) -> Manifest:
    """Reads a version (0: the newest).

    Raises:
        DataError: no version there, another format than this program's, or a file that is not a manifest.
    """
    known = versions(dataset)
    if known and version and version not in known:
        raise DataError(f"{dataset.location} has no dataset version {version}; it has {', '.join(map(str, known))}")
    if not known:
        raise DataError(f"{dataset.location} has no dataset version: run `mlprod etl` with the same config first")
    path = manifest_path(version or known[-1])
    where = f"{dataset.location}/{path}"
    try:
        body = documents.parse(dataset.read(path))
        if body["format"] != FORMAT:
            age, way = ("newer", "update mlprod") if body["format"] > FORMAT else ("older", "`mlprod etl` builds a new version")
            raise DataError(f"{where}: format {body['format']} is {age} than {FORMAT}, which this mlprod reads; {way}")
        columns = tuple(_build(StoredColumn, c, shape=tuple(c["shape"])) for c in body["columns"])
        splits = {name: tuple(shard_of(s) for s in shards) for name, shards in body["splits"].items()}
        manifest: Manifest = _build(Manifest, body, columns=columns, splits=splits)
        _check(manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not a manifest ({type(error).__name__}: {error}); remove it and run `mlprod etl`") from error


def _check(manifest: Manifest) -> None:
    """Raises ValueError where a path leads elsewhere, or a number is none that a dataset can have."""
    shards = [shard for split in manifest.splits.values() for shard in split]
    places = {"features": [manifest.features], "reports": [manifest.report], "index": list(manifest.source.get("indexes", {}))}
    for folder, paths in {**places, "files": [shard.path for shard in shards]}.items():
        for path in paths:
            first, *rest = path.split("/")
            if first != folder or not rest or not all(rest) or {".", ".."} & set(rest) or not path.isprintable():
                raise ValueError(f"{path!r} is no file below {folder}/")
    counts = [manifest.version, manifest.parent, manifest.group_rows, *(c.vocabulary_size for c in manifest.columns)]
    counts += [size for c in manifest.columns for size in c.shape] + [shard.bytes for shard in shards]
    if not all(map(documents.is_count, counts)) or any(c.vocabulary_size >= 1 << 31 for c in manifest.columns):
        raise ValueError("a count is none")
    for shard in shards:
        for rows, (start, stop) in zip(shard.groups, shard.spans, strict=True):
            if not (documents.is_count(rows) and 0 <= start <= stop <= shard.bytes and rows <= stop - start):
                raise ValueError(f"{shard.path}: a row group of {rows} rows in bytes {start} to {stop} of {shard.bytes}")


def newest_format(dataset: Folder) -> int:
    """Returns the format of the newest version; 0 where there is none.

    Raises:
        DataError: a file that is not a manifest.
    """
    known = versions(dataset)
    if not known:
        return 0
    path = manifest_path(known[-1])
    try:
        return int(documents.parse(dataset.read(path))["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{dataset.location}/{path}: not a manifest ({type(error).__name__}: {error}); remove it and run `mlprod etl`"
        ) from error


def wanted_version(cfg: Config, dataset: Folder, dataset_id: str) -> int:
    """Returns the version that the config names, or else the one with an id; 0, the newest, where there is none."""
    if cfg.dataset_version or not dataset_id:
        return cfg.dataset_version
    for version in reversed(versions(dataset)):
        try:
            if documents.parse(dataset.read(manifest_path(version)))["dataset_id"] == dataset_id:
                return version
        except (ValueError, KeyError, TypeError):  # told of where it is read
            continue
    return 0


def open_for(cfg: Config, dataset: Folder, dataset_id: str = "") -> Manifest:
    """Reads a version of `cfg.dataset` and checks that it was built by the same data config and lies there whole.

    Args:
        dataset_id: of the version that a run began with; "": none did.

    Raises:
        DataError: no dataset, or one whose data config differs (the first difference is named), or a file that is gone or cut.
    """
    manifest = read(dataset, wanted_version(cfg, dataset, dataset_id))
    changed = differences(completed(manifest.config, cfg.etl, DATA), data_json(cfg.etl))
    if changed:
        path = min(changed, key=lambda p: (not p.endswith(".name"), p.endswith("class"), p))  # a name tells most, a class least
        old, new = changed[path]
        raise DataError(
            f"{dataset.location} was built by another config: etl.{path} was {old!r}, now {new!r} "
            f"({len(changed)} difference(s)); run `mlprod etl` to build a new version, or give config.dataset another folder"
        )
    for path, wrong in lacking(dataset, manifest).items():
        raise DataError(f"{dataset.location}/{path} {wrong}: restore it, or remove {dataset.location} and run `mlprod etl`")
    return manifest


def lacking(dataset: Folder, manifest: Manifest) -> dict[str, str]:
    """Returns {path: what is wrong} of the Parquet files of a version that are gone or of another size."""
    shards = [shard for split in manifest.splits.values() for shard in split]
    folders = {folder: dataset.sizes(folder) for folder in {shard.path.rpartition("/")[0] for shard in shards}}
    wrong = {}
    for shard in shards:
        folder, _, name = shard.path.rpartition("/")
        found = folders[folder].get(name, -1)
        if found != shard.bytes:
            state = "is missing" if found < 0 else f"has {found} bytes"
            wrong[shard.path] = f"{state}; the manifest says {shard.bytes} bytes"
    return wrong
