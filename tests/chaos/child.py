"""What a chaos process runs. Imported once by the fork server, so that a start costs half a second instead of seven."""

import os
import sys
from collections.abc import Sequence

from mlprod import cli, recipe, train  # noqa: F401 (imported for the children to find them loaded)
from mlprod.etl import run as etl_run  # noqa: F401


def command(argv: Sequence[str], output: str) -> None:
    """Runs a command line as its own process would, its output in a file, and ends with its exit code."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = cli.run(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)
    sys.exit(0)
