"""What is flat in the curves of a soak, and what is not: from samples alone, so that it can be tested on made-up curves.

Memory, handles and threads belong to a process, so they are judged in the longest attempt, without its first part, in which
caches fill; what lies on the disk belongs to the run, and is judged over all. Of the first three the floor is judged, the least
of a quarter of the time: between two saves, and when an allocator has given back the up to 20 MB that it keeps of what threads
gave it. What leaks never comes back, and lifts the floor.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MB = 1e6
WARM_PART, WARM_S = 0.25, 45.0  # of an attempt that is left out: the larger, of half of it at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What was seen at a moment."""

    at: float  # seconds since the soak began
    attempt: int  # from 1
    step: int
    own: int  # bytes of memory that no file has: pages of libraries are a process's alone or not as others come and go
    rss: int
    others: int  # bytes resident of the processes that it started: W&B's
    handles: int
    threads: int
    temporary: int  # files in its own folder for temporary ones
    files: int  # in the run's folder, but W&B's and TensorBoard's
    kept: int  # their bytes, but the log's
    log: int  # bytes of all its pieces
    notes: int  # bytes of attempts.jsonl
    tracked: int  # bytes of W&B's and TensorBoard's files


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What is still flat."""

    log_bytes: int  # the log's own limit
    memory_per_hour: float = 12 * MB
    memory_noise: float = 1.5 * MB  # by which the floor moves without a leak; more in few minutes, while caches fill


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one thing is flat."""

    name: str
    early: float
    late: float
    slope: float  # per hour
    flat: bool
    rule: str


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns the median of the slopes between samples half the time apart: one burst does not move it."""
    half = len(x) // 2
    return statistics.median((y[i + half] - y[i]) / (x[i + half] - x[i]) for i in range(len(x) - half)) if half else 0.0


def settled(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the samples of the longest attempt without its beginning."""
    attempts: dict[int, list[Sample]] = {}
    for sample in samples:
        attempts.setdefault(sample.attempt, []).append(sample)
    longest = max(attempts.values(), key=lambda found: found[-1].at - found[0].at)
    lasted = longest[-1].at - longest[0].at
    warm = min(max(WARM_PART * lasted, WARM_S), lasted / 2)
    return [sample for sample in longest if sample.at >= longest[0].at + warm]


def verdicts(samples: Sequence[Sample], limits: Limits) -> list[Verdict]:
    """Returns what is to be flat, and whether it is."""
    within = settled(samples)
    hours = (within[-1].at - within[0].at) / 3600
    grown = limits.memory_noise + limits.memory_per_hour * hours
    found = [
        _verdict("memory of its own, the least", within, lambda s: s.own, grown, f"late - early <= {grown / MB:.1f} MB", min),
        _verdict(
            "memory of W&B's processes", within, lambda s: s.others, 10 * grown, f"late - early <= {10 * grown / MB:.0f} MB"
        ),
        _verdict("handles, the least", within, lambda s: s.handles, 1, "late - early <= 1", min),
        _verdict("threads, the least", within, lambda s: s.threads, 1, "late - early <= 1", min),
        _verdict("temporary files", within, lambda s: s.temporary, 0, "late - early <= 0"),
        _verdict("temporary files, all attempts", samples, lambda s: s.temporary, 4, "late - early <= 4"),
        _verdict("files in the run's folder", samples, lambda s: s.files, 6, "late - early <= 6"),
        _verdict("bytes kept in the run's folder", samples, lambda s: s.kept, 0.2 * MB, "late - early <= 0.2 MB"),
    ]
    most = max(sample.log for sample in samples)
    told = f"never more than tracking.log_bytes, {limits.log_bytes / MB:.2f} MB"
    log = _verdict("bytes of the log", samples, lambda s: s.log, 0, told)
    return [*found, Verdict(log.name, log.early, most, log.slope, most <= limits.log_bytes, told)]


def _verdict(
    name: str, samples: Sequence[Sample], of: Callable[[Sample], float], more: float, rule: str,
    middle: Callable[[Sequence[float]], float] = statistics.median,
) -> Verdict:  # fmt: skip
    """Compares the median of the second quarter with that of the last, or another middle."""
    values, quarter = [float(of(sample)) for sample in samples], max(len(samples) // 4, 1)
    early, late = middle(values[quarter : 2 * quarter] or values), middle(values[-quarter:])
    per_hour = 3600 * slope([sample.at for sample in samples], values)
    return Verdict(name, early, late, per_hour, late - early <= more, rule)
