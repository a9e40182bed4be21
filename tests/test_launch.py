"""The launch scripts do what their first lines say."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def run(tmp_path: Path, codes: str, restarts: int) -> tuple[int, int]:
    """Runs a command that ends with each of `codes` in turn; returns (exit code, how often it was started)."""
    (tmp_path / "codes").write_text(codes)
    command = f'c=$(head -n1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; echo x >> {tmp_path}/started; exit "$c"'
    environment = {"PATH": "/usr/bin:/bin", "RESTARTS": str(restarts), "PAUSE_S": "0"}
    done = subprocess.run(
        [ROOT / "launch" / "restart.sh", "sh", "-c", command], env=environment, check=False, capture_output=True
    )
    return done.returncode, len((tmp_path / "started").read_text().split())


@pytest.mark.parametrize(
    "codes, restarts, ends",
    [("0\n", 5, (0, 1)), ("75\n75\n0\n", 5, (0, 3)), ("75\n1\n0\n", 5, (1, 2)), ("2\n", 5, (2, 1)), ("75\n75\n75\n", 1, (75, 2))],
)
def test_restart_goes_on_only_after_75(codes: str, restarts: int, ends: tuple[int, int], tmp_path: Path) -> None:
    """75 is started again, anything else is passed on, and the number of restarts is bounded."""
    assert run(tmp_path, codes, restarts) == ends
