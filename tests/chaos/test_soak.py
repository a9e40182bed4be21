"""A soak in its short form, and what its verdicts are worth: curves that were made up, flat and not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.flat import MB, Limits, Sample, settled, verdicts
from tests.chaos.soak import LOG_BYTES, planned, soaked, table

FLAT = Sample(
    at=0.0, attempt=1, step=0, own=300_000_000, rss=500_000_000, others=40_000_000, handles=50, threads=40, temporary=3,
    files=90, kept=500_000, log=3_000_000, notes=9_000, tracked=1_000_000,
)  # fmt: skip
LIMITS = Limits(log_bytes=4_000_000)
Change = Callable[[int], dict[str, int]]


def samples(change: Change) -> list[Sample]:
    """Ten minutes, one a second: a first attempt of eight, then one of two; memory is noisy and has a warm start."""
    found = []
    for i in range(600):
        noise = (i * 7919 % 100) * 20_000
        warm = min(i, 60) * 1_000_000
        sample = replace(FLAT, at=float(i), attempt=1 if i < 480 else 2, own=200_000_000 + warm + noise)
        found.append(replace(sample, **change(i)))
    return found


def not_flat(change: Change) -> list[str]:
    """What is said not to be flat."""
    return [verdict.name for verdict in verdicts(samples(change), LIMITS) if not verdict.flat]


def test_what_is_flat_is_flat() -> None:
    """With noise, a warm start, and bursts of handles at every save."""
    assert not_flat(lambda i: {}) == []
    assert not_flat(lambda i: {"handles": 50 + 8 * (i % 10 == 0), "threads": 40 + 5 * (i % 7 == 0)}) == []


@pytest.mark.parametrize(
    "name, change",
    [
        ("memory of its own, the least", lambda i: {"own": FLAT.own + 60_000 * i}),
        ("handles, the least", lambda i: {"handles": 50 + i // 60}),
        ("threads, the least", lambda i: {"threads": 40 + i // 60}),
        ("temporary files", lambda i: {"temporary": 3 + i // 100}),
        ("files in the run's folder", lambda i: {"files": 90 + i // 20}),
        ("bytes kept in the run's folder", lambda i: {"kept": 500_000 + 2_000 * i}),
        ("bytes of the log", lambda i: {"log": 3_900_000 + 500 * i}),
    ],
)
def test_what_grows_is_seen(name: str, change: Change) -> None:
    """A leak of 60 kB a second, one handle a minute, a file in 20 s."""
    assert name in not_flat(change)


def test_memory_is_judged_in_the_longest_attempt_without_its_start() -> None:
    """Three quarters of eight minutes."""
    within = settled(samples(lambda i: {}))
    assert {sample.attempt for sample in within} == {1}
    assert (within[0].at, within[-1].at) == (120.0, 479.0)


def test_a_soak_ends_its_attempts_in_every_way() -> None:
    """Also the short one; half of the time is one attempt's."""
    for seconds in (180.0, 1800.0):
        attempts = planned(seconds)
        assert {attempt.end for attempt in attempts} == {"SIGTERM", "SIGKILL", "SIGINT", "full"}
        assert {attempt.policy for attempt in attempts} == {"skip", "rollback"}
        assert sum(attempt.lasts_s for attempt in attempts) == pytest.approx(seconds)
        assert attempts[0].lasts_s == seconds / 2


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_three_minutes(tmp_path: Path) -> None:
    """Memory, handles, threads, temporary files and disk are flat; the log has its bound; every end is as it should be."""
    soak, found, wrong = soaked(tmp_path, 180.0)
    print(table(soak, found))
    outputs = [path.read_text(errors="replace")[-2000:] for path in sorted(tmp_path.glob("attempt-*.out"))]
    assert wrong == [], "\n".join(outputs)
    assert max(sample.log for sample in soak.samples) <= LOG_BYTES
    assert soak.samples[-1].own < 1000 * MB
