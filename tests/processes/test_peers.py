"""Three processes that have met: barriers that name who is late, one answer to a question, and an end for all."""

from pathlib import Path

import pytest

from tests.chaos.gang import free_port
from tests.chaos.harness import CONTEXT
from tests.processes import child


def three(act: str, tmp_path: Path) -> tuple[list[int], list[str], str]:
    """Runs three processes; returns their exit codes, what each wrote down, and what they printed."""
    port, output = free_port(), tmp_path / "printed"
    started = [CONTEXT.Process(target=child.run, args=(act, i, 3, port, str(output), (60.0, 10.0))) for i in range(3)]
    for process in started:
        process.start()
    for process in started:
        process.join(60.0)
    said = [Path(f"{output}.{i}") for i in range(3)]
    return [p.exitcode for p in started], [path.read_text() if path.exists() else "" for path in said], output.read_text()


def test_a_barrier_names_who_is_late(tmp_path: Path) -> None:
    """With its name and its limit, to all that did come."""
    _, said, _ = three("meet", tmp_path)
    assert said == ["processes that did not come to 'second' within 1 s: 1", "", said[0]]


def test_what_all_must_have_is_compared(tmp_path: Path) -> None:
    """Whoever differs from process 0 is named to all, with both values."""
    codes, said, _ = three("compare", tmp_path)
    assert codes == [0, 0, 0]
    assert said == ["process 2 has colour red, process 0 has blue; give all the same"] * 3


@pytest.mark.smoke
def test_when_one_fails_all_end(tmp_path: Path) -> None:
    """With its exit code and its line, though they wait for it at a barrier for longer."""
    codes, said, printed = three("fail", tmp_path)
    assert codes == [1, 1, 1]
    assert said == ["", "", ""]
    for other in (0, 2):
        line = f"mlprod: process {other} of 3: process 1 ended with exit code 1, so this one ends too: it went wrong"
        assert line in printed
