"""A real MariaDB of this machine, out of its Debian package, on the loopback: a data folder and a port of its own."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql

from tests.postgres_server import NOBODY, PASSWORD, as_nobody
from tests.proxy import free_port

USER = "reader"
MISSING = (
    ""
    if shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    else "no MariaDB here; make servers installs it"
)


def _binary(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert found is not None, f"no {name}"
    return found


def _answers(port: int) -> bool:
    try:
        pymysql.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD).close()
    except pymysql.err.OperationalError:
        return False
    return True


@contextmanager
def mariadb() -> Iterator[int]:
    """Runs a server whose user `reader` has `PASSWORD` and may do all; yields its port on the loopback."""
    folder = Path(tempfile.mkdtemp(prefix="mlprod-mariadb-"))  # not pytest's, whose folders are closed to others
    (folder / "users.sql").write_text(
        f"CREATE USER '{USER}'@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO '{USER}'@'127.0.0.1';\n"
    )
    if os.geteuid() == 0:
        for path in (folder, folder / "users.sql"):
            os.chown(path, NOBODY, NOBODY)
    rows, log, port = folder / "rows", folder / "log", free_port()
    try:
        install = [_binary("mariadb-install-db"), "--no-defaults", f"--datadir={rows}", "--skip-test-db", "--skip-name-resolve"]
        subprocess.run(install, check=True, capture_output=True, **as_nobody())
        command = [
            _binary("mariadbd"), "--no-defaults", f"--datadir={rows}", "--bind-address=127.0.0.1", f"--port={port}",
            f"--socket={rows}/s", f"--pid-file={rows}/pid", f"--init-file={folder}/users.sql", "--skip-name-resolve",
            "--skip-log-bin", "--performance-schema=OFF", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M",
            "--character-set-server=utf8mb4", "--default-time-zone=+05:30",
        ]  # fmt: skip
        with open(log, "wb") as file:
            server = subprocess.Popen(command, stdout=file, stderr=file, **as_nobody())
        try:
            while not _answers(port):
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
