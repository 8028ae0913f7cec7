"""A proxy before an S3 server that fails as the real one does: errors, pleas to slow down, cut
connections, delays."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = {"SlowDown": 0.06, "InternalError": 0.03, "cut": 0.03, "delay": 0.05}
"""Share of the requests that each befalls."""

_STATUS = {"SlowDown": 503, "InternalError": 500}
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FaultyServer(ThreadingHTTPServer):
    """Passes requests on to `target`, save those that a fault befalls."""

    daemon_threads = True

    def __init__(self, target: str, seed: int, faults: dict[str, float]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.faults = urlsplit(target), faults
        self.befell: Counter[str] = Counter()
        self.passed = 0
        self._random, self._lock = random.Random(seed), threading.Lock()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> str | None:
        """What befalls the next request."""
        with self._lock:
            drawn, sofar = self._random.random(), 0.0
            for name, share in self.faults.items():
                sofar += share
                if drawn < sofar:
                    self.befell[name] += 1
                    return name
            self.passed += 1
            return None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def _pass(self) -> None:
        fault = self.server.draw()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault in _STATUS:
            text = (
                f"<Error><Code>{fault}</Code><Message>Please try again.</Message></Error>".encode()
            )
            self._answer(_STATUS[fault], {"Content-Type": "application/xml"}, text)
            return
        if fault == "delay":
            time.sleep(0.2)
        with contextlib.closing(
            http.client.HTTPConnection(
                str(self.server.target.hostname), self.server.target.port, timeout=60
            )
        ) as there:
            there.request(self.command, self.path, body, dict(self.headers))
            answer = there.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP}
            if self.command == "HEAD":  # its length is that of what is not sent
                headers["Content-Length"] = answer.getheader("Content-Length") or "0"
            self._answer(answer.status, headers, answer.read())

    # the names that the library calls
    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def faulty(
    target: str, *, seed: int = 0, faults: dict[str, float] | None = None
) -> Iterator[FaultyServer]:
    """A proxy in a thread of this process."""
    with FaultyServer(target, seed, FAULTS if faults is None else faults) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
