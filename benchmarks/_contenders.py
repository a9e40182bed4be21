"""One contender, measured once: a process that makes a loader, draws its batches and prints one line of JSON.

    python benchmarks/_contenders.py JOB      # JOB: a `Job` as JSON; `loader.py` starts one for every run

Promise: the clock starts when everything is imported and the manifest is read. Whoever draws touches each batch, one number of
each array, and does nothing else. Each contender counts the rows that it hands over: whole batches, so up to one less.
Price: memory is the process's peak over what it held after the imports: it includes windows, prefetched batches, Arrow's pool
and, of the gather, the rows themselves. Other modules are imported only where a contender needs them: memory again.
"""

import json
import resource
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from _datasets import Arrays, packed_arrays, parquet_files

from mlprod import manifest
from mlprod.config import Config, LoaderConfig
from mlprod.data.loader import Stream, train_batches, train_order
from mlprod.data.reader import GroupReader
from mlprod.order import batches_per_epoch
from mlprod.store import open_store

SCAN_THREADS = 2  # as many as the loader reads with

Counts = Iterator[int]  # rows of each batch that was drawn and touched


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What one process measures."""

    contender: str
    folder: str  # of the dataset
    batch: int
    position: int = 0  # example position of the first batch; for mlprod only
    epochs: int = 1  # of a contender that goes on by itself, in one stream; others begin again
    num_rows: int = 0  # stop after so many; 0: at the last epoch's end

    def as_json(self) -> str:
        """Returns it as one line of text."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one process found. Times between batches are NaN where there was no second batch."""

    rows_per_s: float  # from the first `next` on
    first_epoch_rows_per_s: float  # NaN where there was no more than one; fresh memory and caches are paid in it
    cpu_s: float  # of all the process's threads, a million rows; hardly depends on what else the machine does
    first_s: float  # from making the loader to its first batch
    peak_bytes: int  # over what the process held after its imports
    p50_s: float  # between batches
    p99_s: float
    max_s: float
    num_rows: int


def touched(batches: Iterator[Mapping[str, Any]]) -> Counts:
    """Yields the rows of each batch after reading one number of each of its arrays; of numpy or torch, [B, ...]."""
    for batch in batches:
        for values in batch.values():
            if 0 not in values.shape:
                values[(0,) * values.ndim].item()
        yield len(batch["label"])


def loader_config(batch: int) -> Config:
    """Returns a config with the loader's own defaults; the parts that loading does not read are left empty."""
    nothing: Any = None
    return Config(
        name="",
        workdir="",
        dataset="",
        etl=nothing,
        model=nothing,
        loader=LoaderConfig(global_batch=batch, threads=2, prefetch=4),
    )


def training_stream(folder: str, batch: int, position: int = 0, steps: int = 0, epochs: int = 1) -> Callable[[], Stream]:
    """Returns what makes mlprod's training batches, all rows of them: `steps` from `position` on, 0: the epochs'."""
    cfg, store = loader_config(batch), open_store(folder)
    published = manifest.read(store)

    def start() -> Stream:
        spec = train_order(cfg, published)
        num_batches = steps or epochs * batches_per_epoch(spec, published.group_sizes("train"))
        positions = range(position, position + num_batches * batch, batch)
        return train_batches(cfg, store, published, spec, [(0, batch)], positions)

    return start


def mlprod_loader(job: Job) -> Callable[[], Counts]:
    """The loader as training uses it."""
    start = training_stream(job.folder, job.batch, job.position, epochs=job.epochs)
    return lambda: touched(start())


def mlprod_unchecked(job: Job) -> Callable[[], Counts]:
    """The same without comparing what was read with its checksum."""

    def unchecked(reader: GroupReader, shard: manifest.Shard, index: int) -> np.ndarray:
        start, stop = shard.spans[index]
        data = reader._scratch.take("group", stop - start)
        reader._store.read_into(shard.path, start, data.data)
        return data

    GroupReader._checked = unchecked  # type: ignore[method-assign] # the contender is this very change
    return mlprod_loader(job)


def scan(job: Job) -> Callable[[], Counts]:
    """Threads that decode row group after row group in stored order, and drop them: no batches, no checks, no arrays."""
    paths = parquet_files(Path(job.folder))

    def work(groups: list[tuple[Path, int]], claim: Iterator[int]) -> None:
        files: dict[Path, pq.ParquetFile] = {}  # a thread's own: one decodes for one thread at a time
        while (i := next(claim)) < len(groups):
            path, group = groups[i]
            file = files.get(path) or files.setdefault(path, pq.ParquetFile(path, pre_buffer=False))
            file.read_row_group(group, use_threads=False)

    def start() -> Counts:
        footers = {path: pq.read_metadata(path) for path in paths}
        groups, claim = [(path, i) for path in paths for i in range(footers[path].num_row_groups)], count()
        threads = [threading.Thread(target=work, args=(groups, claim)) for _ in range(SCAN_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield sum(footer.num_rows for footer in footers.values())

    return start


def gather(job: Job) -> Callable[[], Counts]:
    """All rows in memory, and numpy takes each batch out of them in the order of one permutation an epoch."""
    rows = _in_memory(Path(job.folder))

    def start() -> Iterator[Arrays]:
        order = np.random.default_rng(0).permutation(len(rows["label"]))
        for at in range(0, len(order) - job.batch + 1, job.batch):
            yield {name: np.take(values, order[at : at + job.batch], axis=0) for name, values in rows.items()}

    return lambda: touched(start())


def torch_packed(job: Job) -> Callable[[], Counts]:
    """See `_torch_loaders.packed`."""
    import _torch_loaders

    paths = parquet_files(Path(job.folder))
    return lambda: touched(iter(_torch_loaders.packed(paths, job.batch)))


def torch_columns(job: Job) -> Callable[[], Counts]:
    """See `_torch_loaders.columns`."""
    import _torch_loaders

    paths = parquet_files(Path(job.folder))
    return lambda: touched(iter(_torch_loaders.columns(paths, job.batch)))


CONTENDERS: dict[str, Callable[[Job], Callable[[], Counts]]] = {
    "mlprod": mlprod_loader,
    "mlprod, columns storage": mlprod_loader,
    "mlprod, no checksums": mlprod_unchecked,
    "mlprod, restored": mlprod_loader,
    "torch, packed files": torch_packed,
    "torch, columns": torch_columns,
    "raw scan": scan,
    "in-memory gather": gather,
}


def measured(job: Job) -> Run:
    """Makes the contender and draws its batches."""
    if job.contender.startswith("torch"):
        import _torch_loaders  # noqa: F401  # before memory is measured
    base = memory("VmRSS")
    start = CONTENDERS[job.contender](job)
    times, drawn = [], [0]
    began, cpu = time.perf_counter(), time.process_time()
    counts = start()
    asked = time.perf_counter()
    again = job.contender.startswith("mlprod")
    for rows in counts if again else chain(counts, *(start() for _ in range(job.epochs - 1))):
        times.append(time.perf_counter())
        drawn.append(drawn[-1] + rows)
        if job.num_rows and drawn[-1] >= job.num_rows:
            break
    cpu, num_rows = time.process_time() - cpu, drawn[-1]
    first = bisect_left(drawn, num_rows // job.epochs)
    gaps = np.diff(times) if len(times) > 1 else np.full(1, np.nan)
    p50, p99 = np.quantile(gaps, (0.5, 0.99))
    return Run(
        rows_per_s=num_rows / (times[-1] - asked),
        first_epoch_rows_per_s=drawn[first] / (times[first - 1] - asked) if job.epochs > 1 else float("nan"),
        cpu_s=cpu / num_rows * 1e6, first_s=times[0] - began,
        peak_bytes=memory("VmHWM") - base, p50_s=float(p50), p99_s=float(p99), max_s=float(gaps.max()), num_rows=num_rows,
    )  # fmt: skip


def memory(word: str) -> int:
    """Returns this process's bytes, now ("VmRSS") or at their peak ("VmHWM").

    getrusage tells a peak as well, but a child's begins with its parent's: it stands in only where there is no /proc.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{word}:"))


def _in_memory(folder: Path) -> Arrays:
    """Returns all rows of packed files, read group by group, so that no more than one is held twice."""
    files = [pq.ParquetFile(path) for path in parquet_files(folder)]
    whole: Arrays = {}
    at, num_rows = 0, sum(file.metadata.num_rows for file in files)
    for file in files:
        for group in range(file.num_row_groups):
            rows = packed_arrays(file.read_row_group(group))
            whole = whole or {name: np.empty((num_rows, *v.shape[1:]), v.dtype) for name, v in rows.items()}
            for name, values in rows.items():
                whole[name][at : at + len(values)] = values
            at += len(rows["label"])
    return whole


if __name__ == "__main__":
    print(json.dumps(asdict(measured(Job(**json.loads(sys.argv[1]))))))
