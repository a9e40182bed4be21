"""An S3 server of this machine, and a proxy in front of it that fails as stores do. All on the loopback."""

import dataclasses
import http.client
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config as ClientConfig
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


class Proxy(ThreadingHTTPServer):
    """Stands in front of a server. `fault`: (request) -> "", "busy", "denied", "cut", "silent", or seconds to wait first."""

    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.upstream, self.requests, self.over = upstream, list[str](), threading.Event()
        self.fault: Callable[[str], str | float] = lambda request: ""
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
        self.thread.join()

    def first(self, count: int, fault: str | float) -> None:
        """From now on the first `count` ranged requests meet a fault."""
        self.requests.clear()
        self.fault = lambda request: fault if request == "RANGE" and self.requests.count("RANGE") <= count else ""

    def always(self, fault: str | float, only: str = "") -> None:
        """From now on all requests, or all of a kind, meet a fault."""
        self.requests.clear()
        self.fault = lambda request: fault if only in ("", request) else ""


class _Relay(BaseHTTPRequestHandler):
    """One request of a `Proxy`."""

    server: Proxy

    def do_GET(self) -> None:
        request = "RANGE" if "Range" in self.headers else self.command
        self.server.requests.append(request)
        fault = self.server.fault(request)
        if fault == "silent":
            self.server.over.wait()
            return
        if fault in ("busy", "denied"):
            self._answer_error(*{"busy": (503, "SlowDown"), "denied": (403, "AccessDenied")}[fault])
            return
        time.sleep(fault if isinstance(fault, float) else 0.0)
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        passed_on = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "transfer-encoding")}
        upstream.request(self.command, self.path, body=self._sent() or None, headers=passed_on)
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("date", "server", "connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _sent(self) -> bytes:
        """The body of the request."""
        if self.headers.get("Expect") == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _answer_error(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>told by the store</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket of a server of the tests' own."""

    client: Any
    port: int

    def upload(self, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def break_(self, key: str, how: str) -> None:
        """Makes an object "gone", "cut" or "replaced" by another of the same size."""
        body = self.get(key)
        if how == "gone":
            self.client.delete_object(Bucket=BUCKET, Key=key)
        else:
            self.put(key, body[: len(body) // 4] if how == "cut" else bytes(len(body)))


def address(port: int, folder: str = f"{BUCKET}/smoke") -> str:
    """The address of a folder on a server of this machine."""
    return f"s3://{folder}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


@contextmanager
def serving() -> Iterator[Bucket]:
    """A server with an empty bucket. Any credentials will do; none is looked for anywhere else."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells every request
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        direct = ClientConfig(proxies={}, retries={"max_attempts": 1})
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", config=direct)
        client.create_bucket(Bucket=BUCKET)
        yield Bucket(client, port)
        client.close()
        server.stop()
