"""A version of a dataset, read again: is it what was written?

Promise: a file that the manifest names and that has one bit flipped, was cut, removed or swapped, is told; and so is a manifest
whose own checksum, or whose `dataset_id`, does not follow from what lies there. A few row groups are in memory a thread,
whatever the size of the dataset.
Price: every byte is read twice, from the page cache the second time, and every stored value is hashed; a remote file is first
copied to this machine's folder for temporary files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mlprod import documents, features, manifest
from mlprod.errors import DataError
from mlprod.etl.settle import key_words
from mlprod.etl.shards import described
from mlprod.etl.tokenize import sha256_of
from mlprod.etl.write import content_sums, rows_at_once, trained_columns
from mlprod.features import FeatureSpec
from mlprod.hashing import HASH_VERSION
from mlprod.manifest import Manifest, Shard, content_id, sha256_file, sha256_text
from mlprod.store import Store, is_remote

TOLD = 8  # row groups that are named
FOREIGN = (AssertionError, ValueError, KeyError, IndexError, OSError, pa.ArrowException)  # of a file that we did not write


def wrong_with(store: Store, dataset: str, published: Manifest, threads: int, tell: Callable[[int], None]) -> list[str]:
    """Returns a line for everything that a version's manifest names and that is not what was written; none where all is.

    Args:
        dataset: where `store` is: a folder or an address.
        tell: is given the bytes of each file that was read.
    """
    found = [*_hashes(published), *_features(store, published), *_report(store, published), *_indexes(store, published)]
    for split, shards in published.splits.items():
        found += _groups(published, split)
        with ThreadPoolExecutor(threads) as pool:
            read = list(pool.map(partial(_file, store, dataset, published, tell), shards))
        found += [line for lines, _ in read for line in lines]
        runs = [np.concatenate([pair for _, pair in run]) for _, run in _by_version(shards, read)]
        if not any(lines for lines, _ in read) and not all(map(_ascending, runs)):
            found.append(f"the files of {split} are not in the order of their rows' hashes")
    return found


# ---- the small files ---------------------------------------------------------------------------------------------------


def wrong_checksum(store: Store, version: int) -> list[str]:
    """Returns a line where a manifest, of whatever format, is not what its own checksum is of."""
    path = manifest.manifest_path(version)
    try:
        body = documents.parse(store.read(path))
        wanted = manifest.checksum(body)
        fits = body.get("sha256", wanted) == wanted
    except (DataError, ValueError, AttributeError):
        fits = False
    return [] if fits else [f"{path}: it is not what its own checksum is of; what it names was not read"]


def _hashes(published: Manifest) -> Iterator[str]:
    if published.hash_version != HASH_VERSION:
        path = manifest.manifest_path(published.version)
        yield f"{path}: hashes of version {published.hash_version}; this mlprod knows {HASH_VERSION} and can check no content"


def _features(store: Store, published: Manifest) -> Iterator[str]:
    try:
        text = store.read(published.features).decode()
    except (OSError, UnicodeDecodeError) as error:
        yield f"{published.features}: {_told(error)}"
        return
    if sha256_text(text) != published.features_sha256:
        yield f"{published.features}: its SHA-256 is not the manifest's"
    elif content_id(published.columns, text, published.splits) != published.dataset_id:
        path = manifest.manifest_path(published.version)
        yield f"{path}: dataset_id {published.dataset_id} does not follow from its columns, row groups and fitted transform"
    else:
        yield from _vocabulary(store, published, features.loads(text))


def _vocabulary(store: Store, published: Manifest, spec: FeatureSpec) -> Iterator[str]:
    """Says where the tokenizer of a version of texts is not the one that made them."""
    path = manifest.vocabulary_path(published.version)
    for wanted in {f.vocabulary for f in spec.sequences if f.vocabulary}:
        try:
            if sha256_of(store.read(path)) != wanted:
                yield f"{path}: its SHA-256 is not the one that {published.features} names"
        except OSError as error:
            yield f"{path}: {_told(error)}"


def _report(store: Store, published: Manifest) -> Iterator[str]:
    """The manifest has no checksum of the report: it must be JSON, and of this version."""
    try:
        body = documents.parse(store.read(published.report))
        of = body["version"], body["dataset_id"]
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        yield f"{published.report}: {_told(error)}"
        return
    if of != (published.version, published.dataset_id):
        yield f"{published.report}: it is of another version"


def _by_version(shards: Sequence[Shard], things: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Yields (folder, what belongs to its files): a version's own files lie in one, those of the versions before in others."""
    pairs = zip(shards, things, strict=True)
    for folder, run in groupby(pairs, key=lambda pair: pair[0].path.rpartition("/")[0]):
        yield folder, [thing for _, thing in run]


def _groups(published: Manifest, split: str) -> Iterator[str]:
    shards = published.splits[split]
    runs = [[rows for groups in run for rows in groups] for _, run in _by_version(shards, [shard.groups for shard in shards])]
    if any(_misshapen(sizes, published.group_rows) for sizes in runs):
        yield f"{manifest.manifest_path(published.version)}: row groups of {split} are not of {published.group_rows} rows each"


def _misshapen(sizes: Sequence[int], group_rows: int) -> bool:
    """Whether any row group but a version's last is not full."""
    return any(rows != group_rows for rows in sizes[:-1]) or any(not 0 < rows <= group_rows for rows in sizes[-1:])


def _indexes(store: Store, published: Manifest) -> Iterator[str]:
    for path, wanted in published.source.get("indexes", {}).items():
        try:
            if sha256_of(store.read(path)) != wanted:
                yield f"{path}: its SHA-256 is not the manifest's"
        except OSError as error:
            yield f"{path}: {_told(error)}"


# ---- the rows ----------------------------------------------------------------------------------------------------------

Checked = tuple[list[str], np.ndarray]  # what is wrong with a file; of its rows' hashes the first and the last, if known


def _file(store: Store, dataset: str, published: Manifest, tell: Callable[[int], None], shard: Shard) -> Checked:
    """Reads a file of rows again."""
    try:
        with _here(store, dataset, shard.path) as path:
            wrong, ends = _bytes(path, shard), np.zeros(0, np.uint64)
            if not wrong:  # a file that is not ours is not decoded
                wrong, ends = _rows(path, shard, published)
    except FOREIGN as error:
        wrong, ends = [_told(error)], np.zeros(0, np.uint64)
    tell(shard.bytes)
    return [f"{shard.path}: {line}" for line in wrong], ends


@contextmanager
def _here(store: Store, dataset: str, path: str) -> Iterator[Path]:
    """Yields a file of the dataset as one of this machine."""
    if not is_remote(dataset):
        yield Path(dataset) / path
        return
    with TemporaryDirectory(prefix="mlprod-") as folder:
        store.fetch(path, Path(folder) / "copy")
        yield Path(folder) / "copy"


def _bytes(path: Path, shard: Shard) -> list[str]:
    size = path.stat().st_size
    if size != shard.bytes:
        return [f"it has {size:,} bytes, the manifest says {shard.bytes:,}"]
    if sha256_file(path) != shard.sha256:
        return [f"its SHA-256 is not the manifest's; {_where(path, shard)}"]
    return []


def _where(path: Path, shard: Shard) -> str:
    """Returns in which row groups the bytes differ that training reads."""
    damaged = []
    with path.open("rb") as file:
        for i, ((start, stop), wanted) in enumerate(zip(shard.spans, shard.checksums, strict=True)):
            file.seek(start)
            if xxhash.xxh3_64_hexdigest(file.read(stop - start)) != wanted:
                damaged.append(i)
    return f"training reads row group {_some(damaged)} of it" if damaged else "training reads nothing of what differs"


def _rows(path: Path, shard: Shard, published: Manifest) -> Checked:
    """Compares what the manifest says of a file's row groups with the file, and their content sums with the stored values."""
    trained = trained_columns(published.columns)
    with pq.ParquetFile(path) as file:
        sizes = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        if sizes != shard.groups:
            return [
                f"it has {len(sizes)} row groups of {sum(sizes):,} rows, the manifest {len(shard.groups)} of {shard.rows:,}"
            ], (np.zeros(0, np.uint64))
        found = described(path, sizes, [field for field in file.schema_arrow if field.name in trained])
        wrong = [f"its {name} are not the manifest's" for name, value in found.items() if value != getattr(shard, name)]
        sums, orders = [], []
        for size, groups in _together(sizes, rows_at_once(published.columns)):
            table = file.read_row_groups(groups, use_threads=False)
            sums += content_sums(published.columns, table, size, published.hash_seed)
            orders.append(_order(table["row_id"].to_numpy(), published))
    damaged = [i for i, pair in enumerate(zip(sums, shard.sums, strict=True)) if pair[0] != pair[1]]
    if damaged:
        wrong.append(f"its values have another content sum in row group {_some(damaged)}")
    order = np.concatenate([np.zeros(0, np.uint64), *orders])
    if not _ascending(order):
        wrong.append("its rows are not in the order of their hashes")
    return wrong, order[[0, -1]] if len(order) else order


def _together(sizes: Iterable[int], rows: int) -> Iterator[tuple[int, list[int]]]:
    """Yields (rows of a group, indices) of row groups that are read together: equally large ones, so many rows or one group."""
    for size, run in groupby(enumerate(sizes), key=lambda pair: pair[1]):
        indices = [i for i, _ in run]
        step = max(rows // max(size, 1), 1)
        yield from ((size, indices[a : a + step]) for a in range(0, len(indices), step))


def _order(row_ids: np.ndarray, published: Manifest) -> np.ndarray:
    """Returns uint64[B], the first half of the hashes by which rows are ordered; [0] where row ids do not tell them.

    They do where there is no key, and each row is there once: then an id is made of the row's hash alone. Of packed texts they
    are the first half.
    """
    told: np.ndarray = row_ids[row_ids != 0]  # 0 may stand for the pad's
    if any(c.kind == "sequence" for c in published.columns):
        return told
    if published.config["key"] or published.config["dedup"] != "exact":
        return np.zeros(0, np.uint64)
    return key_words(told)


def _ascending(words: np.ndarray) -> bool:
    return bool((words[1:] >= words[:-1]).all())


def _some(numbers: list[int]) -> str:
    more = f" and {len(numbers) - TOLD} more" if len(numbers) > TOLD else ""
    return ", ".join(map(str, numbers[:TOLD])) + more


def _told(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    return f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
