"""`/healthz`: whether this process is well, also where it is the one that waits its turn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

log = logging.getLogger(__name__)


def serve_health(port: int, find_trouble: Callable[[], str], host: str = "") -> ThreadingHTTPServer:
    """Answer on a port from now on; return the server, whose ``server_port`` says which one where 0 was asked for.

    Args:
        port: where to listen; 0 means any free one.
        find_trouble: returns what is wrong, or nothing.
        host: the address to listen at; empty means all.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers probes."""

        def do_GET(self) -> None:  # the name that the base class looks for
            """Answer one probe."""
            if self.path != "/healthz":
                self.send_error(404)
                return
            trouble = find_trouble()
            content = (trouble or "ok").encode()
            self.send_response(500 if trouble else 200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name for it
            """Log nothing: a probe comes every few seconds."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
