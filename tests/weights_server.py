"""A web server for weights that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from vidmatte.models.table import Download

BODY = bytes(np.random.default_rng(0).integers(0, 256, 700_000, np.uint8))


@dataclass
class Behaviour:
    """What the server does next, and what it was asked."""

    body: bytes = BODY
    cut_after: list[int] = field(default_factory=list)
    content_type: str = "application/octet-stream"
    ranges: bool = True
    length: bool = True
    asked: list[str | None] = field(default_factory=list)
    location: str | None = None  # where every request is sent on to, but those for /moved
    declared: str | None = None  # a Content-Length that lies
    pause_s: float = 0.0  # after every 100 bytes


@dataclass
class Server:
    url: str
    behaviour: Behaviour

    def source(self, path: str = "weights.pth", body: bytes = BODY) -> Download:
        return Download(self.url + path, hashlib.sha256(body).hexdigest(), "this test")


def handler(behaviour: Behaviour) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.asked.append(asked)
            if self.path == "/missing":
                self.send_error(404)
                return
            if behaviour.location is not None and self.path != "/moved":
                self.send_response(302)
                self.send_header("Location", behaviour.location)
                self.end_headers()
                return
            start = int(re.findall(r"\d+", asked)[0]) if asked and behaviour.ranges else 0
            if start and start >= len(behaviour.body):
                self.send_error(416)
                return
            rest = behaviour.body[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", behaviour.content_type)
            if behaviour.length:
                self.send_header("Content-Length", behaviour.declared or str(len(rest)))
            self.end_headers()
            cut = behaviour.cut_after.pop(0) if behaviour.cut_after else len(rest)
            if not behaviour.pause_s:
                self.wfile.write(rest[:cut])
                return
            with contextlib.suppress(ConnectionError):
                for at in range(0, cut, 100):
                    self.wfile.write(rest[at : at + 100])
                    time.sleep(behaviour.pause_s)

        def log_message(self, format: str, *args: Any) -> None:
            """Stay quiet."""

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run a server on a free port of this machine."""
    behaviour = Behaviour()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(behaviour)) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield Server(f"http://127.0.0.1:{httpd.server_port}/", behaviour)
        httpd.shutdown()
        thread.join()
