"""Every file of a step, harmed in every way: the bits that were saved come back, or the step is refused. Nothing else passes."""

import math
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlprod.checkpoint.run_state import Damaged
from mlprod.plan import Plan
from tests.checkpoint.saved import Saved, assert_equal_bits

CORRUPTIONS = 300  # at least; a save has 18 to 21 files

Harm = Callable[[Path, random.Random], None]


def flip(path: Path, chance: random.Random) -> None:
    """One bit, anywhere."""
    raw = bytearray(path.read_bytes())
    if raw:
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def cut(path: Path, chance: random.Random) -> None:
    """Its end is gone."""
    os.truncate(path, chance.randrange(max(1, path.stat().st_size)))


def zero(path: Path, chance: random.Random) -> None:
    """As long as it was."""
    path.write_bytes(bytes(path.stat().st_size))


def remove(path: Path, chance: random.Random) -> None:
    """Gone."""
    path.unlink()


def grow(path: Path, chance: random.Random) -> None:
    """Bytes behind its end."""
    path.write_bytes(path.read_bytes() + chance.randbytes(7))


def swap(path: Path, chance: random.Random) -> None:
    """The file in its place in the step before; of data files, whose names are random, the one of the most similar size."""
    step = next(parent for parent in path.parents if parent.name == "00000003")
    other = step.with_name("00000002") / path.relative_to(step)
    if not other.exists():
        size = path.stat().st_size
        other = min((p for p in other.parent.iterdir() if p.is_file()), key=lambda p: abs(p.stat().st_size - size))
    shutil.copyfile(other, path)


KINDS: dict[str, Harm] = {
    "flipped bit": flip, "cut": cut, "zeroed": zero, "removed": remove, "grown": grow, "swapped": swap,
}  # fmt: skip


def harmed(folder: Path, whole: Path) -> Iterator[str]:
    """Harms each file of a step in each way, with as many flips of bits as CORRUPTIONS takes, yields how, and mends it."""
    chance, files = random.Random(3), sorted(p for p in folder.rglob("*") if p.is_file())
    kinds = [*KINDS, "cut", "cut"]
    kinds += ["flipped bit"] * (math.ceil(CORRUPTIONS / len(files)) - len(kinds))
    for path in files:
        for kind in kinds:
            KINDS[kind](path, chance)
            yield f"{kind}: {path.relative_to(folder)}"
            shutil.copyfile(whole / path.relative_to(folder), path)


def test_a_harmed_step_is_whole_or_refused(saved: Saved, plan: Plan, tmp_path: Path) -> None:
    """On the devices and read back on the host; a step that is read back as good restores."""
    store, kept = saved
    folder, whole, table = store.saved.folder(3), tmp_path / "whole", Counter[tuple[str, str]]()
    shutil.copytree(folder, whole)
    for what in harmed(folder, whole):
        read_back = _outcome(lambda: store.saved.verify(3))
        restored = "refused"
        try:
            state, _ = store.saved.restore(3, plan.abstract, plan.where)
        except Damaged:
            pass
        else:
            assert_equal_bits(state, kept[3])
            restored = "whole"
        assert read_back == restored, what
        table[what.split(":")[0], restored] += 1
    store.saved.verify(3)
    print(*(f"{kind}: {outcome} {count}" for (kind, outcome), count in sorted(table.items())), sep="\n")
    assert table.total() >= CORRUPTIONS
    assert all(table[kind, "refused"] for kind in KINDS if kind != "grown")


def _outcome(act: Callable[[], None]) -> str:
    try:
        act()
    except Damaged:
        return "refused"
    return "whole"


@pytest.mark.parametrize("harm", [cut, zero, remove, swap])
def test_the_step_before_is_used(harm: Harm, saved: Saved, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """The harmed step is set aside and its number is free."""
    store, kept = saved
    harm(store.saved.folder(3) / "run" / "metadata", random.Random(5))
    found = store.restore_newest(plan.abstract, plan.where)
    assert found is not None
    assert found[1].step == 2
    assert_equal_bits(found[0], kept[2])
    assert "00000003 is damaged" in capsys.readouterr().err
    assert store.saved.steps() == [1, 2]
