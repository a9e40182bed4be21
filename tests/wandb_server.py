"""A local W&B server that can misbehave: as much of the protocol as a run needs, and every way not to answer.

It keeps what a run sent as the service does: a line of a history lies at the offset that it came with.
"""

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HTTP = "http" + "://"
MODES = ("well", "refusing", "forbidding", "silent", "slow")  # and down: no server at all
SLOW_S = 1.5


class Server(ThreadingHTTPServer):
    """Listens on a free port of loopback, in `mode`, which may change at any time."""

    daemon_threads = True

    def __init__(self, mode: str = "well") -> None:
        """Knows of no run yet."""
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.ended = mode, threading.Event()
        self.history: dict[str, list[dict[str, Any]]] = {}  # run id -> its rows
        self.sent: list[tuple[str, int]] = []  # (run id, offset) of each piece of a history, in their order
        self.bodies: list[str] = []  # everything that was said
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Its address."""
        return f"{HTTP}127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        """Nothing is to be had."""
        self._answer({})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        """A file."""
        body = self._body()
        with self.server.lock:
            self.server.bodies.append(body)
        self._answer({})

    def do_POST(self) -> None:
        """A question of GraphQL, or pieces of a run's files."""
        body = self._body()
        with self.server.lock:
            self.server.bodies.append(body)
        match self.server.mode:
            case "silent":
                self.server.ended.wait()
                self.close_connection = True
                return
            case "refusing" | "forbidding":
                self._answer({"error": "no"}, {"refusing": 500, "forbidding": 403}[self.server.mode])
                return
            case "slow":
                self.server.ended.wait(SLOW_S)
        given = json.loads(body or "{}")
        if self.path.endswith("/file_stream"):
            self._take(self.path.split("/")[-2], given)
            self._answer({})
        else:
            self._answer({"data": self._data(given["query"], given.get("variables") or {})})

    def _take(self, run: str, given: dict[str, Any]) -> None:
        piece = given.get("files", {}).get("wandb-history.jsonl")
        if piece:
            with self.server.lock:
                rows = self.server.history.setdefault(run, [])
                rows[piece["offset"] : piece["offset"] + len(piece["content"])] = map(json.loads, piece["content"])
                self.server.sent.append((run, piece["offset"]))

    def _data(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        project = {"id": "p", "name": "mlprod", "entity": {"id": "e", "name": "me"}}
        match found[1] if found else "":
            case "UpsertBucket":
                name = given.get("name") or given.get("id")
                bucket = {"id": "b", "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None}
                return {"upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": 0}, "inserted": True}}
            case "RunResumeStatus":
                return {"model": {**project, "bucket": self._bucket(given["name"])}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in given["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            case "Viewer":
                who = {"id": "v", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
                return {"viewer": who}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any] | None:
        rows = self.server.history.get(run)
        if rows is None:
            return None
        tail = json.dumps([json.dumps(row) for row in rows[-1:]])
        counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
        about = {"id": "b", "name": run, "displayName": run, "tags": [], "notes": "", "config": "{}", "summaryMetrics": "{}"}
        return {**about, **counts, "historyTail": tail, "eventsTail": "[]", "wandbConfig": '{"t": 1}'}

    def _body(self) -> str:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return (gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw).decode(errors="replace")

    def _answer(self, body: dict[str, Any], status: int = 200) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)


@contextmanager
def running(mode: str = "well") -> Iterator[Server]:
    """A server as long as the block takes."""
    server = Server(mode)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
