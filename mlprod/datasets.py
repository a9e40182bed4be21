"""The verb `data`: which versions a dataset has, what is in one, whether it is what was written, and what differs between two.

Promise: nothing of the dataset is changed and no device is touched: it may be asked while a build or a run goes on. No value of a
sensitive column is shown.
Price: `verify` reads every byte, `diff` every row id, `show` one row group, `ls` the manifests.
"""

import argparse
import datetime as dt
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mlprod import audit, changes, documents, features, manifest
from mlprod.changes import HIDDEN
from mlprod.compare import flatten
from mlprod.config import Config, EtlConfig
from mlprod.console import PhaseLines
from mlprod.cores import num_cores
from mlprod.errors import DamageError, DataError
from mlprod.etl import report, tokenize
from mlprod.etl.tokenize import Tokenizer
from mlprod.etl.work import holder
from mlprod.etl.write import stored_values
from mlprod.features import FeatureSpec
from mlprod.manifest import FORMAT, SPLITS, Manifest, StoredColumn
from mlprod.store import Store, is_remote, open_store

LONGEST, LONGEST_TEXT = 60, 400  # characters of a value, and of a text, that are shown
BESIDE = 5  # rows that are shown beside each other

Values = Mapping[str, np.ndarray | pa.Array]


def main(cfg: Config, options: argparse.Namespace) -> None:
    """Does what `options.action` says.

    Raises:
        DataError: there is no dataset, no such version, or it cannot be read.
        DamageError: `verify` found something that is not what was written.
    """
    store, console = open_store(cfg.dataset), Console(highlight=False)
    try:
        if options.action == "ls":
            ls(store, cfg.dataset, console)
        elif options.action == "show":
            show(store, manifest.read(store, options.version), options.split, options.rows, console)
        elif options.action == "verify":
            verify(store, cfg, options.version, console)
        else:
            new = manifest.read(store, options.version)
            other, old = _other(store, new, options.other, options.folder)
            diff(cfg.etl, other, old, store, new, console)
    except OSError as error:
        told = " ".join(str(error).split())
        raise DataError(f"{store.location} cannot be read: {told}; see that it is there and may be read by this user") from error


def _line(console: Console, text: str) -> None:
    """Prints a line as it is, whatever its length."""
    console.print(Text(report.visible(text)), soft_wrap=True)


def _table(*names: str) -> Table:
    """Returns an empty table whose cells are folded, never cut."""
    columns = (Column(name, overflow="fold") for name in names)
    return Table(*columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _row(table: Table, *cells: str) -> None:
    """Adds a row as it is: brackets in a name mean nothing, what is no letter of a text is spelled out."""
    table.add_row(*(Text(cell if cell.isprintable() else repr(cell)) for cell in cells))


# ---- ls ----------------------------------------------------------------------------------------------------------------


def ls(store: Store, dataset: str, console: Console) -> None:
    """Prints a row a version, and what lies in the work folder."""
    versions = manifest.versions(store)
    work = [] if is_remote(dataset) else list(_work(Path(dataset)))
    if not versions and not work:
        raise DataError(f"{store.location} has no dataset version: run `mlprod etl` with the same config first")
    table = _table("version", "dataset_id", "published", "rows", "files", "MB", "built as", "state")
    for version in versions:
        _row(table, str(version), *_listed(store, version))
    if versions:
        console.print(table)
    for line in work:
        _line(console, line)


def _listed(store: Store, version: int) -> list[str]:
    """Returns the cells of a version, but for its number; those of one that cannot be read say so."""
    _, changed_ns = store.stamp(manifest.manifest_path(version))
    published = f"{dt.datetime.fromtimestamp(changed_ns / 1e9):%Y-%m-%d %H:%M}"
    try:
        found = manifest.read(store, version)
        lacking, by = manifest.lacking(store, found), found.source["mlprod"]
        shards = [shard for split in found.splits.values() for shard in split]
        rows = " / ".join(f"{found.num_rows(split):,}" for split in SPLITS)
    except (DataError, KeyError, TypeError, AttributeError):
        other = _other_format(store, version)
        return ["", published, "", "", "", f"format {other}" if other else "", "not read by this mlprod" if other else "damaged"]
    megabytes = f"{sum(shard.bytes for shard in shards) / 1e6:,.1f}"
    built = f"{found.storage}, mlprod {by}, format {found.format}"
    state = f"{len(lacking)} file(s) gone or cut" if lacking else "whole"
    return [found.dataset_id[:12], published, rows, str(len(shards)), megabytes, built, state]


def _other_format(store: Store, version: int) -> int:
    """Returns the format of a manifest of another one than this program's; 0 where it is not such a manifest."""
    try:
        found = documents.parse(store.read(manifest.manifest_path(version)))["format"]
    except (DataError, ValueError, KeyError, TypeError):
        return 0
    return found if isinstance(found, int) and found != FORMAT else 0


def _work(dataset: Path) -> Iterator[str]:
    """Yields a line for every build that is under way, or was killed."""
    folders = sorted(path for path in (dataset / "work").glob("*") if path.is_dir())
    holding = holder(dataset) if folders else ""
    for folder in folders:
        size, changed = _tree(folder)
        if not changed:
            continue  # published meanwhile
        state = f"under way, by {holding}" if holding else "stopped; `mlprod etl` goes on with it, or removes it"
        yield f"work/{folder.name}: {size / 1e6:,.1f} MB, changed {dt.datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}, {state}"


def _tree(folder: Path) -> tuple[int, float]:
    """Returns the bytes of a folder's files and when it or one was last changed; what goes meanwhile does not count."""
    size, changed = 0, 0.0
    for path in [folder, *folder.rglob("*")]:
        with suppress(FileNotFoundError):
            found = path.stat()
            size, changed = size + (found.st_size if path.is_file() else 0), max(changed, found.st_mtime)
    return size, changed


# ---- show --------------------------------------------------------------------------------------------------------------


def show(store: Store, published: Manifest, split: str, count: int, console: Console) -> None:
    """Prints what a version is, its columns, its report, and the first rows of a split."""
    spec = _features(store, published)
    _line(console, f"{store.location} version {published.version}")
    for name, text in _identity(published).items():
        _line(console, f"  {name}: {text}")
    console.print(_columns(published, spec))
    _show_report(store, published, console)
    if count:
        _show_rows(store, published, spec, split, count, console)


def _features(store: Store, published: Manifest) -> FeatureSpec:
    try:
        return features.loads(store.read(published.features).decode())
    except (DataError, UnicodeDecodeError, FileNotFoundError) as error:
        told = "is gone" if isinstance(error, FileNotFoundError) else "is not a fitted transform"
        raise DataError(
            f"{store.location}/{published.features} {told}; restore it, or remove {manifest.manifest_path(published.version)} "
            f"and run `mlprod etl`"
        ) from error


def _identity(published: Manifest) -> dict[str, str]:
    """Returns what decided the content, by its name."""
    config, hidden = published.config, changes.sensitive(published)
    source = flatten(dict(published.source))
    if config["source"].get("watermark") in hidden:
        source["watermark"] = HIDDEN
    split = {k: v for k, v in config["split"].items() if k != "class"}
    if split.get("column") in hidden:
        split |= dict.fromkeys(("eval", "test"), HIDDEN)
    return {
        "dataset_id": published.dataset_id, "build_key": published.build_key,
        "source": f"{config['source']['class']}, " + ", ".join(f"{k} {v}" for k, v in source.items()),
        "label": ", ".join(str(v) for k, v in flatten(config["label"]).items() if k != "class"),
        "key": ", ".join(config["key"]) or "none", "dedup": config["dedup"],
        "split": f"{config['split']['class']}, " + ", ".join(f"{k} {v}" for k, v in split.items()),
        "rows": ", ".join(f"{published.num_rows(name):,} {name}" for name in SPLITS),
        "storage": f"{published.storage}, row groups of {published.group_rows:,} rows",
    }  # fmt: skip


def _columns(published: Manifest, spec: FeatureSpec) -> Table:
    """Returns a row a stored column: its type, what it became, and what was fitted."""
    fitted = {f.name: f for f in spec.fitted}
    table = _table("column", "type", "stored as", "role", "ids", "fill", "mean", "std")
    for c in published.columns:
        f = fitted.get(c.name) if c.kind != "plain" else None
        numbers = [f"{f.fill:g}", f"{f.mean:.5g}", f"{f.std:.5g}"] if f and f.kind == "numeric" else ["", "", ""]
        if c.sensitive and f:
            numbers = [HIDDEN if text else "" for text in numbers]
        role = f"{c.role}, sensitive" if c.sensitive else c.role
        _row(table, c.name, c.type, c.dtype, role, f"{c.vocabulary_size:,}" if c.vocabulary_size else "", *numbers)
    return table


def _show_report(store: Store, published: Manifest, console: Console) -> None:
    try:
        report.show(documents.parse(store.read(published.report)))
    except (DataError, FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        _line(console, f"{published.report}: the report cannot be read ({type(error).__name__}); the rows do not depend on it")


def _show_rows(store: Store, published: Manifest, spec: FeatureSpec, split: str, count: int, console: Console) -> None:
    if not published.num_rows(split):
        _line(console, f"{split} has no rows")
        return
    values, of_group = _first_rows(store, published, split, count)
    num_rows = min(count, of_group)
    cut = f"; --rows={count} is more than its first row group" if count > of_group else ""
    _line(console, f"first {num_rows:,} of {published.num_rows(split):,} rows of {split}, as they are stored{cut}")
    if spec.sequences:
        _show_texts(values, tokenize.of_dataset(store, published), console)
        return
    words = {f.name: f.words for f in (*spec.categorical, *spec.lists)}
    shown = {c.stored_in if c.role == "key" else c.name: _texts(c, values, words) for c in published.columns}
    for start in range(0, num_rows, BESIDE):
        stop = min(start + BESIDE, num_rows)
        table = _table("row", *(str(i) for i in range(start, stop)))
        for name, texts in shown.items():
            _row(table, name, *texts[start:stop])
        console.print(table)


def _show_texts(values: Values, tokenizer: Tokenizer, console: Console) -> None:
    """Prints a table a row: the text of each of its segments."""
    for row, (tokens, segments) in enumerate(zip(values["tokens"], values["segments"], strict=True)):
        table = _table("segment", "tokens", f"text of row {row}")
        for segment in np.unique(segments[segments > 0]).tolist():
            ids = tokens[segments == segment].tolist()
            _row(table, str(segment), f"{len(ids):,}", report.visible(tokenizer.decode(ids), LONGEST_TEXT))
        console.print(table)
        predicted, padding = int(values["label"][row]), int((segments == 0).sum())
        _line(console, f"  row_id {int(values['row_id'][row]):016x}: {predicted:,} tokens to predict, {padding:,} of padding")


def _first_rows(store: Store, published: Manifest, split: str, count: int) -> tuple[Values, int]:
    """Returns {column: the first rows' values}, see `stored_values`, and how many rows the row group has: only that is read."""
    shard = published.splits[split][0]
    try:
        with pq.ParquetFile(store.open(shard.path)) as file:
            group = file.read_row_group(0, use_threads=False)
    except (FileNotFoundError, pa.ArrowException) as error:
        raise DataError(
            f"{store.location}/{shard.path} cannot be read ({type(error).__name__}); `mlprod data verify` tells what is wrong"
        ) from error
    return stored_values(published.columns, group.slice(0, count)), group.num_rows


def _texts(c: StoredColumn, values: Values, words: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a column's values as people read them: a category's word, `(null)` for what is not there."""
    stored = values[c.stored_in if c.kind == "plain" else c.name]
    if c.sensitive:
        return [HIDDEN] * len(stored)
    if c.kind == "categorical":
        return [_short(words[c.name][i]) for i in stored]
    if c.kind == "list":
        return [_short(", ".join(words[c.name][i] for i in ids)) for ids in stored]
    found = stored if isinstance(stored, np.ndarray) else stored.to_pylist()
    return ["(null)" if value is None else _short(str(value)) for value in found]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


# ---- verify ------------------------------------------------------------------------------------------------------------


def verify(store: Store, cfg: Config, version: int, console: Console) -> None:
    """Reads versions again (0: all) and prints what is wrong with each, or that nothing is; raises DamageError where any is."""
    known = manifest.versions(store)
    if not known or (version and version not in known):
        manifest.read(store, version)  # raises
    damaged = []
    for number in [version] if version else known:
        lines = audit.wrong_checksum(store, number)
        try:
            lines = lines or _verified(store, cfg, manifest.read(store, number), console)
        except DataError as error:  # of `read`
            if not _other_format(store, number):
                lines = [str(error)]
            elif version:
                raise
            else:
                _line(console, f"version {number}: not verified: {error}")
        damaged += [number] * bool(lines)
        for line in lines:
            _line(console, f"version {number}: {line}")
    if damaged:
        raise DamageError(
            f"{store.location}: version(s) {', '.join(map(str, damaged))} are not what was written; restore what is named from a "
            f"copy, or remove {manifest.manifest_path(damaged[0])} and run `mlprod etl`"
        )


def _verified(store: Store, cfg: Config, published: Manifest, console: Console) -> list[str]:
    """Returns what is wrong with a version; says OK where nothing is."""
    began = time.monotonic()
    shards = [shard for split in published.splits.values() for shard in split]
    size = sum(shard.bytes for shard in shards)
    with PhaseLines(wanted=cfg.tracking.progress) as lines, lines.phase(f"version {published.version}", size, "MB") as phase:
        wrong = audit.wrong_with(store, cfg.dataset, published, cfg.etl.workers or num_cores(), phase.add)
    if not wrong:
        _line(
            console,
            f"version {published.version}: OK, {len(shards)} files, {sum(len(shard.groups) for shard in shards):,} row groups, "
            f"{sum(shard.rows for shard in shards):,} rows, {size / 1e9:.3f} GB in {time.monotonic() - began:.1f} s; "
            f"dataset_id {published.dataset_id}",
        )
    return wrong


# ---- diff --------------------------------------------------------------------------------------------------------------


def _other(store: Store, new: Manifest, version: int, folder: str) -> tuple[Store, Manifest]:
    """Returns the version that `new` is compared with, and where it lies."""
    if folder:
        store = open_store(folder, "--with")
        return store, manifest.read(store, version)
    earlier = [number for number in manifest.versions(store) if number < new.version]
    if not version and not earlier:
        raise DataError(
            f"{store.location} has no version before {new.version}; give another by --version or --other, or another "
            f"dataset's folder by --with"
        )
    return store, manifest.read(store, version or earlier[-1])


def diff(etl: EtlConfig, old_store: Store, old: Manifest, new_store: Store, new: Manifest, console: Console) -> None:
    """Prints what differs between two versions; rows are counted by their ids. `etl`: see `changes.config_changes`."""
    _line(console, f"old: {old_store.location} version {old.version}, dataset_id {old.dataset_id}")
    _line(console, f"new: {new_store.location} version {new.version}, dataset_id {new.dataset_id}")
    hidden = changes.sensitive(old, new)
    equal = old.dataset_id == new.dataset_id
    if equal:
        _line(console, "equal: the same columns, fitted transform and rows, in the same order")
    config = {path: f"{a} -> {b}" for path, (a, b) in changes.config_changes(old, new, etl).items()}
    fitted = changes.transform_changes(_features(old_store, old), _features(new_store, new), hidden)
    for title, told in (("config", config), ("columns", changes.column_changes(old, new)), ("fitted transform", fitted)):
        if told or not equal:
            _line(console, f"{title}: {'' if told else 'equal'}".rstrip())
        for name, text in told.items():
            _line(console, f"  {name}: {text}")
    if not equal:
        _show_changed_rows(old_store, old, new_store, new, console)


def _show_changed_rows(old_store: Store, old: Manifest, new_store: Store, new: Manifest, console: Console) -> None:
    unlike = changes.unlike_ids(old, new)
    found = None if unlike else changes.row_changes(old_store, old, new_store, new)
    table = _table("split", "rows, old", "rows, new", "only in old", "only in new")
    for split in SPLITS:
        only = [f"{found.only_old(split):,}", f"{found.only_new(split):,}"] if found else ["", ""]
        _row(table, split, f"{old.num_rows(split):,}", f"{new.num_rows(split):,}", *only)
    console.print(table)
    if found is None:
        _line(console, f"rows cannot be told apart by their ids: {unlike}")
        return
    told = f"key ({', '.join(new.config['key'])})" if new.config["key"] else "values"
    if any(c.kind == "sequence" for c in new.columns):
        told = "first tokens, which are the same of the same documents"
    _line(console, f"{sum(found.both.values()):,} rows are in both by their {told}; {found.moved:,} of them in another split")
    for (a, b), rows in found.both.items():
        if a != b and rows:
            _line(console, f"  {rows:,} from {a} to {b}")
