"""A report that is read while its run goes on: a server on this machine alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from r1jax.observe.report.page import embedded, render

HOST = "127.0.0.1"
LOCAL = (HOST, "localhost")


class Server(ThreadingHTTPServer):
    """Serves the page at ``/``, and at ``/data.json?since=SIGN`` its data, or status 204 while they are still those of SIGN.

    Args:
      port: 0 takes a free one.
      sign: names the state of the run's files; the data are collected again when it changes.
      collect: all of a page, see ``collect.collect``.
    """

    daemon_threads = True

    def __init__(self, port: int, sign: Callable[[], str], collect: Callable[[], dict[str, Any]]):
        self._sign, self._collect = sign, collect
        self._lock = threading.Lock()
        self._kept: dict[str, Any] = {}
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def data(self) -> dict[str, Any]:
        """As of now."""
        with self._lock:
            if (sign := self._sign()) != self._kept.get("live"):
                self._kept = self._collect() | {"live": sign}
            return self._kept


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        # A page elsewhere whose name was made to point here must not read the run.
        if self.headers.get("Host", "").rpartition(":")[0] not in LOCAL:
            return self._answer(403, b"ask for 127.0.0.1\n", "text/plain")
        url = urlsplit(self.path)
        if url.path not in ("/", "/data.json"):
            return self._answer(404, b"not found\n", "text/plain")
        try:
            data = self.server.data()
        except (ValueError, OSError) as error:  # a file in the middle of being replaced: the page asks again
            return self._answer(503, f"{error}\n".encode(), "text/plain")
        if url.path == "/":
            return self._answer(200, render(data).encode(), "text/html; charset=utf-8")
        if parse_qs(url.query).get("since") == [data["live"]]:
            return self._answer(204, b"", "application/json")
        return self._answer(200, embedded(data).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if status != 204:
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Nothing: the terminal is for people."""
