"""The second half of a build: rows in stored order become the files of a version, and the version is published.

fit (training split only; texts: tokenize and pack) -> write (row groups in order of the hash) -> report -> manifest, last.

Promise: what is fitted sees training rows alone; a version is there when its manifest is, and all that the manifest names is on
the disk before.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, singledispatch
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mlprod import __version__, compare, features, manifest
from mlprod.config import AnyLabel, Column, Config, EtlConfig, NextToken
from mlprod.errors import DataError
from mlprod.etl import bad_rows, fit, growth, index, newcomers, pack, page, report
from mlprod.etl.extract import Extracted
from mlprod.etl.growth import Parent
from mlprod.etl.label import check_labels
from mlprod.etl.schema import raw_column
from mlprod.etl.settle import LABEL
from mlprod.etl.shards import to_disk
from mlprod.etl.stored import SettledAll, Stored, sample
from mlprod.etl.tasks import Tasks
from mlprod.etl.write import FileWriter, Written, joined, stored_columns
from mlprod.hashing import HASH_VERSION
from mlprod.manifest import SPLITS, Manifest
from mlprod.store import open_store


@dataclass(frozen=True, kw_only=True)
class Build:
    """What is built: the same from the first task to the last."""

    cfg: Config  # as it was given
    etl: EtlConfig  # its `etl` as the tasks take it: every type known
    key: str  # see `run.build_key`
    source: Mapping[str, Any]  # what is to be kept of it
    began: float  # by `time.monotonic`
    parent: Parent | None  # the version that the rows are appended to


class Content(Protocol):
    """What the rows in stored order become, by what is learned of them."""

    @property
    def etl(self) -> EtlConfig:
        """Says which columns are stored."""
        ...

    @property
    def spec(self) -> features.FeatureSpec:
        """The transform, but for what `fitted` adds."""
        ...

    @property
    def rows(self) -> Stored:
        """What is written, in its order."""
        ...

    def fitted(self, written: Mapping[str, Written]) -> features.FeatureSpec:
        """Returns the whole transform; raises DataError where the training rows have nothing to learn from."""
        ...

    def keep(self, dataset: Path, version: int) -> None:
        """Writes what else belongs to the version."""
        ...

    def report(
        self, dataset: str, published: Manifest, written: Mapping[str, Written], counts: report.Counts, spec: features.FeatureSpec
    ) -> dict[str, Any]:
        """Returns the data report, but for the seconds."""
        ...


@dataclass(frozen=True)
class Examples:
    """Rows of features and a label."""

    etl: EtlConfig
    spec: features.FeatureSpec
    rows: Stored

    @cached_property
    def _sample(self) -> dict[str, pa.Table]:
        return sample(self.rows, self.etl.columns)

    def fitted(self, written: Mapping[str, Written]) -> features.FeatureSpec:
        """Returns the transform with what the written training rows tell."""
        spec = _scaled(self.spec, written["train"], self._sample["train"])
        check_labels(self.etl.label, spec.target)
        return spec

    def keep(self, dataset: Path, version: int) -> None:
        """Writes nothing."""

    def report(
        self, dataset: str, published: Manifest, written: Mapping[str, Written], counts: report.Counts, spec: features.FeatureSpec
    ) -> dict[str, Any]:
        """Returns the data report, but for the seconds."""
        return report.body(dataset, self.etl, published, written, counts, spec, self._sample)


@dataclass(frozen=True)
class Appended(Examples):
    """Rows that are appended to a version, by the transform that was fitted for it."""

    parent: Parent

    def fitted(self, written: Mapping[str, Written]) -> features.FeatureSpec:
        """Returns the transform of the version that is appended to."""
        return self.spec

    def report(
        self, dataset: str, published: Manifest, written: Mapping[str, Written], counts: report.Counts, spec: features.FeatureSpec
    ) -> dict[str, Any]:
        """Returns the report of the rows that are new, and of how they differ from those before, but for the seconds."""
        before = self.parent.version.splits["train"]
        new = [shard for split in written.values() for shard in split.shards]
        found = newcomers.differences(Path(dataset), published.columns, spec, before, new)
        return report.of_growth(dataset, self.etl, published, written, counts, found)


@singledispatch
def content_of(label: AnyLabel, etl: EtlConfig, tasks: Tasks, stored: Stored) -> Content:
    """Returns what the rows become.

    Raises:
        DataError: there are no training rows, or they have nothing to learn from.
    """
    return Examples(etl, _fit(etl, tasks, stored), stored)


content_of.register(NextToken, pack.packed)


Pieces = Sequence[tuple[Stored, str, int, int]]  # see `Stored.within`


def write_splits(
    etl: EtlConfig, spec: features.FeatureSpec, dataset: Path, folder: str, tasks: Tasks, stored: Stored
) -> dict[str, Written]:
    """Writes every split's rows in stored order, a task a file; returns what was written."""
    per_file = etl.group_rows * etl.file_groups
    files = [(code, n) for code in range(len(SPLITS)) for n in range(-(-stored.num_rows(code) // per_file))]
    named = {f"{SPLITS[code]}-{n:05d}": (code, n) for code, n in files}
    done = tasks.run(
        "write",
        {
            name: partial(_write_file, etl, spec, dataset, folder, stored.within(code, n * per_file, (n + 1) * per_file), code, n)
            for name, (code, n) in named.items()
        },
        rows=lambda left: sum(left["shard"]["groups"]),
    )
    return {
        split: joined([left for name, left in done.items() if named[name][0] == code], spec) for code, split in enumerate(SPLITS)
    }


def _write_file(
    etl: EtlConfig, spec: features.FeatureSpec, dataset: Path, folder: str, pieces: Pieces, code: int, number: int
) -> dict[str, Any]:
    """Writes file `number` of a split, of the rows [a, b) of each piece."""
    writer = FileWriter(etl, spec, dataset, folder, SPLITS[code], number, halves=pieces[0][0].work / "write")
    try:
        for stored, piece, a, b in pieces:
            writer.add(stored.rows(writer.needs, code, piece, a, b))
        return writer.close()
    except BaseException:
        writer.abandon()
        raise


def _fit(etl: EtlConfig, tasks: Tasks, stored: Stored) -> features.FeatureSpec:
    """Fits on the training split.

    Raises:
        DataError: a feature has no value in them.
    """
    train = SPLITS.index("train")
    names = [c.name for c in etl.columns if c.role == "feature"]
    with tasks.lines.phase("fit") as phase:

        def over(split: int, columns: Sequence[str]) -> fit.Over:
            return lambda act, most=None: tasks.map(act, islice(stored.of_split(split, columns), most), phase)

        target = features.Target(task=etl.label.task, column=etl.label.column)
        if target.task == "classes":
            labels = {split: over(code, [LABEL]) for code, split in enumerate(SPLITS) if stored.num_rows(code)}
            found = fit.classes(labels, Column(name=LABEL, type="string"))
            target = replace(target, classes=found[0], counts=found[1])
            check_labels(etl.label, target)
        return fit.fit(over(train, names), etl.columns, target)


QUANTILES = 64  # parts into which quantiles cut the values of a number


def _scaled(spec: features.FeatureSpec, train: Written, rows: pa.Table) -> features.FeatureSpec:
    """Returns the transform with means and deviations of the written training split, and quantiles of `rows`, its first."""
    fitted = [
        replace(train.scales[f.name].fitted(f, train.num_rows), quantiles=_quantiles(rows[f.name]))
        if isinstance(f, features.Feature) and f.kind == "numeric"
        else f
        for f in spec.features
    ]
    target = spec.target if spec.target.task == "classes" else train.label.of_target(spec.target, train.num_rows)
    return replace(spec, features=tuple(fitted), target=target)


def _quantiles(column: pa.ChunkedArray) -> tuple[float, ...]:
    """Returns the quantiles of a column's values as float32 has them; none where none is there."""
    raw = raw_column(column)
    values = np.sort(raw.values[raw.valid].astype(np.float32))
    if not len(values):
        return ()
    return tuple(values[(np.arange(QUANTILES + 1) * (len(values) - 1)) // QUANTILES].astype(float).tolist())


def publish(build: Build, tasks: Tasks, extracted: Extracted, settled: SettledAll) -> Manifest:
    """Fits, writes the splits, the fitted transform, the report and, last, the manifest that makes them a version.

    Raises:
        DataError: there are no training rows, a feature has no value in them, or they all have one label.
    """
    cfg, counts, dataset, parent, stored = build.cfg, extracted.counts, Path(build.cfg.dataset), build.parent, settled.stored
    if parent is None and not stored.num_rows(SPLITS.index("train")):
        raise DataError("the split left no training rows; lower config.etl.split.eval and .test, or split by a finer column")
    content = _appended(build, tasks, parent, stored) if parent else content_of(build.etl.label, build.etl, tasks, stored)
    etl = content.etl
    version = (manifest.versions(open_store(cfg.dataset)) or [0])[-1] + 1
    if not (tasks.work / "write").exists():
        shutil.rmtree(dataset / "files" / f"{version:06d}", ignore_errors=True)  # of another build that published nothing
    written = write_splits(etl, content.spec, dataset.absolute(), f"files/{version:06d}", tasks, content.rows)
    spec = content.fitted(written)
    columns, text = stored_columns(etl, spec), features.dumps(spec)
    splits = {name: (*(parent.version.splits[name] if parent else ()), *split.shards) for name, split in written.items()}
    to_disk(dataset / "files" / f"{version:06d}")
    path = parent.version.features if parent else f"features/{version:06d}.json"
    source = {**build.source, "indexes": _indexed(build, settled.index, dataset, version)}
    published = Manifest(
        format=manifest.FORMAT, version=version, parent=parent.version.version if parent else 0, build_key=build.key,
        dataset_id=manifest.content_id(columns, text, splits), config=compare.data_json(cfg.etl),
        group_rows=etl.group_rows, hash_version=HASH_VERSION, hash_seed=etl.hash_seed, storage=etl.storage, hash_order=True,
        columns=columns, splits=splits, features=path, features_sha256=manifest.sha256_text(text),
        report=f"reports/{version:06d}.json", source={**source, "rows_read": counts.read, "mlprod": __version__},
    )  # fmt: skip
    if parent is None:
        manifest.write_atomically(dataset / published.features, text)
    content.keep(dataset, version)
    if counts.quarantined:
        bad_rows.gather(extracted.bad_rows, dataset / report.quarantine(version))
    told = content.report(cfg.dataset, published, written, counts, spec)
    _write_report(dataset / published.report, {**told, "seconds": time.monotonic() - build.began})
    manifest.write(dataset, published)
    return published


def _appended(build: Build, tasks: Tasks, parent: Parent, stored: Stored) -> Content:
    """Returns what rows become that are appended to a version.

    Raises:
        DataError: one is of a class that the version does not know.
    """
    target = parent.spec.target
    if target.task == "classes":
        with tasks.lines.phase("fit") as phase:
            over = {
                split: partial(tasks.map, inputs=list(stored.of_split(code, [LABEL])), phase=phase)
                for code, split in enumerate(SPLITS)
            }
            found, _ = fit.classes(over, Column(name=LABEL, type="string"))
        new = sorted(set(found) - set(target.classes))
        if new:
            raise DataError(
                f"new rows are of {len(new)} class(es) of {target.column!r} that version {parent.version.version} does not know, "
                f"such as {new[0]!r}; build anew by config.etl.grow='refit'"
            )
    return Appended(build.etl, parent.spec, stored, parent)


def _indexed(build: Build, parts: Sequence[Path], dataset: Path, version: int) -> Mapping[str, str]:
    """Writes the index of the rows where later ones are to be appended; returns {path: SHA-256} of it and those before."""
    if build.etl.grow != "append":
        return {}
    return growth.lineage(build.parent, version, index.gather(parts, dataset / index.index_path(version)))


def _write_report(path: Path, told: Mapping[str, Any]) -> None:
    """Writes the data report as JSON and as a page."""
    manifest.write_atomically(path, json.dumps(told, indent=1, allow_nan=False))
    manifest.write_atomically(path.with_suffix(".html"), page.render(told))
