"""A process that runs command lines one after the other, and writes down where its threads stand: what a dump of it would tell.

    python -m tests.security.verbs COMMANDS.json

The file holds a list of command lines; each is printed with the exit code that it ended with.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from mlprod import cli
from mlprod.processes import watchdog


def main(path: str) -> None:
    """Runs them all."""
    dumps = Path("dumps")
    dumps.mkdir(exist_ok=True)
    with (dumps / "faulthandler.txt").open("a") as crashes, (dumps / "watchdog.txt").open("a") as stacks:
        faulthandler.enable(crashes)

        over = threading.Event()

        def dump() -> None:
            traced = "TRACED" not in os.environ
            while not over.wait(0.5):
                if not traced and callable(signal.getsignal(signal.SIGUSR1)):  # a run has begun that listens
                    traced = True
                    os.kill(os.getpid(), signal.SIGUSR1)
                faulthandler.dump_traceback(crashes)
                print(watchdog._stacks(), file=stacks, flush=True)

        thread = threading.Thread(target=dump, daemon=True)
        thread.start()
        for argv in json.loads(Path(path).read_text()):
            began = time.monotonic()
            code = cli.run(argv)
            print(f"ENDED {code}: {' '.join(argv)} ({time.monotonic() - began:.1f} s)", flush=True)
        over.set()
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
