"""A proxy in front of a server on the loopback that cuts connections, or falls silent while they stay open."""

import socket
from contextlib import suppress
from threading import Event, Thread


def free_port() -> int:
    """Returns a port of the loopback on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Proxy:
    """Stands in front of a server on the loopback. `cuts`: of so many connections that got `after` bytes, closed then; with
    `silent` they stay open, and nothing more is passed on."""

    def __init__(self, port: int, after: int = 0, cuts: int = 0, *, silent: bool = False) -> None:
        """Listens on a port of its own. `cuts` is counted down; -1: always."""
        self._server, self._after, self.cuts, self._silent = port, after, cuts, silent
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._ends = list[socket.socket]()
        self._closed = Event()
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
                if answers and self._after <= passed and self.cuts:
                    self.cuts -= 1
                    if self._silent:
                        self._closed.wait()
                    break
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Takes no more connections, and ends those there are."""
        self._closed.set()
        for end in (self._listening, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
