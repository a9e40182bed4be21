"""Which versions of a dataset stay.

Promise: a version that goes loses its manifest first, so that none is ever there in part; what a version names that stays, stays.
The newest version always does.
Price: whoever reads a version that goes, such as a run that trains on it, loses its files.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from mlprod import manifest
from mlprod.store import open_store

FOLDERS = ("files", "features", "vocab", "reports", "quarantine", "index")


def prune(dataset: Path, keep: int) -> list[int]:
    """Removes the versions before the newest `keep` (0: none), and the files that none names any more; returns the former."""
    store = open_store(str(dataset))
    known = manifest.versions(store)
    gone = known[:-keep] if keep else []
    for version in gone:
        (dataset / manifest.manifest_path(version)).unlink()
    if gone:
        named = set().union(*(_named(dataset, version) for version in known[-keep:]))
        for path in _there(dataset):
            if str(path.relative_to(dataset)) not in named:
                path.unlink()
        for folder in (dataset / "files").iterdir():
            if not any(folder.iterdir()):
                folder.rmdir()
    return gone


def _there(dataset: Path) -> Iterator[Path]:
    """Yields the files of all versions."""
    for name in FOLDERS:
        yield from [path for path in (dataset / name).rglob("*") if path.is_file()]


def _named(dataset: Path, version: int) -> set[str]:
    """Returns the files that belong to a version."""
    body = json.loads((dataset / manifest.manifest_path(version)).read_text())
    shards = {shard["path"] for shards in body["splits"].values() for shard in shards}
    report = str(Path(body["report"]).with_suffix(""))
    beside = {f"{report}.json", f"{report}.html", f"quarantine/{version:06d}.jsonl", manifest.vocabulary_path(version)}
    return shards | beside | {body["features"], *body["source"].get("indexes", {})}
