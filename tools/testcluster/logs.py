"""The part of a kubelet that `kubectl logs` asks: the output of a pod's processes, also while they run."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from testcluster.kube import Authority

FOLLOW_SECONDS = 0.2

FindLog = Callable[[str, str, str], "tuple[Path, Callable[[], bool]] | None"]
"""Gives a container's log and whether more may come, by namespace, pod and container."""


class LogServer:
    """Serves the logs of all stand-in nodes of one process over TLS, as the API server wants it."""

    def __init__(self, directory: Path, find: FindLog) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        certificate, key = Authority.load(directory).issue("stand-in", ())
        (directory / "kubelet.pem").write_bytes(certificate + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "kubelet.pem")

        class Handler(_Handler):
            find_log = staticmethod(find)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, name="logs", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port of loopback that it listens on."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    find_log: FindLog

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        options = {key: values[-1] for key, values in parse_qs(url.query).items()}
        match url.path.strip("/").split("/"):
            case ["containerLogs", namespace, pod, container]:
                found = self.find_log(namespace, pod, container)
            case _:
                found = None
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND, "stand-in nodes know the logs of processes only")
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        file, may_grow = found
        for piece in _read(file, options, may_grow if options.get("follow") == "true" else lambda: False):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


def _read(file: Path, options: dict[str, str], may_grow: Callable[[], bool]) -> Iterator[bytes]:
    """Yield what a log holds, from the last lines that were asked for, and what comes after."""
    content = file.read_bytes() if file.exists() else b""
    position = len(content)
    if (lines := options.get("tailLines")) is not None:
        content = b"".join(content.splitlines(keepends=True)[-int(lines) or len(content) :])
    if content:
        yield content
    is_last = False
    while not is_last:
        # What is written before the end is seen after it.
        is_last = not may_grow()
        if file.exists() and (more := file.read_bytes()[position:]):
            position += len(more)
            yield more
        elif not is_last:
            time.sleep(FOLLOW_SECONDS)
