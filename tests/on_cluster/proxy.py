"""A proxy between the operator and a server: it sees every request, and a test says what becomes of each."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import urllib3

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}


class Fate(StrEnum):
    """What becomes of a request."""

    FORWARD = "Forward"
    LOST = "Lost"
    """It does not reach the server, and there is no answer."""
    UNANSWERED = "Unanswered"
    """The server does what was asked, and the answer is lost."""
    CUT = "Cut"
    """The first part of the answer arrives: of a watch, what happens within the next second."""
    CONFLICT = "409"
    BUSY = "429"
    BROKEN = "503"


class Refusal(NamedTuple):
    """What an S3 server answers instead."""

    status: int
    code: str
    """Such as `AccessDenied`, as in S3's reference."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, before it is forwarded."""

    server: str
    """Which of several proxies saw it."""
    method: str
    path: str
    """With its query."""

    @property
    def is_watch(self) -> bool:
        """Whether its answer has no end."""
        return "watch=true" in self.path

    @property
    def kind(self) -> str:
        """What sort of request it is, for people: method and resource."""
        words = self.path.partition("?")[0].strip("/").split("/")
        if self.server != "kubernetes":
            return f"{self.server} {self.method}"
        place = words.index("namespaces") + 2 if "namespaces" in words else 2 if words[0] == "api" else 3
        resource = words[place] if place < len(words) else words[-1]
        parts = f"/{words[place + 2]}" if place + 2 < len(words) else ""
        verb = "WATCH" if self.is_watch else "LIST" if self.method == "GET" and place + 1 >= len(words) else self.method
        return f"{verb} {resource}{parts}"


Decide = Callable[[Call], Fate | Refusal]


class Proxy:
    """Forwards to one server.

    Args:
        server: Its address.
        name: For `Call.server`.
        decide: Called for each request, from many threads; may do anything before it answers.
        ca_file: Certificates by which the server is known.
    """

    def __init__(self, server: str, *, name: str, decide: Decide, ca_file: str | None = None) -> None:
        pool = urllib3.PoolManager(ca_certs=ca_file, maxsize=128, retries=False)
        self._watches: set[urllib3.BaseHTTPResponse] = set()

        class Handler(_Handler):
            upstream = server.rstrip("/")
            connections = pool
            watches = self._watches
            ask = staticmethod(lambda method, path: decide(Call(server=name, method=method, path=path)))

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name=f"proxy-{name}", daemon=True).start()

    @property
    def url(self) -> str:
        """The address at which it stands for the server."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def end_watches(self) -> None:
        """End every watch towards the server, as when the client's machine is gone."""
        for answer in list(self._watches):
            if (connected := getattr(answer.connection, "sock", None)) is not None:
                with contextlib.suppress(OSError):
                    # Of the socket, not of TLS, whose state the reading thread is in the middle of.
                    socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def stop(self) -> None:
        """Stop listening."""
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients are killed in the middle of requests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: str
    connections: urllib3.PoolManager
    watches: set[urllib3.BaseHTTPResponse]
    ask: Callable[[str, str], Fate | Refusal]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.ask(self.command, self.path)
        if fate is Fate.LOST:
            return self._hang_up()
        if isinstance(fate, Refusal):
            said = f"<Error><Code>{fate.code}</Code><Message>by the proxy</Message></Error>"
            return self._answer(fate.status, "application/xml", said)
        if fate in (Fate.CONFLICT, Fate.BUSY, Fate.BROKEN):
            return self._refuse(int(fate))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        headers.pop("Expect", None)
        try:
            answer = self.connections.request(
                self.command,
                self.upstream + self.path,
                body=body or None,
                headers=headers,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=5.0, read=None),
                retries=False,
            )
        except urllib3.exceptions.HTTPError:
            return self._hang_up()
        try:
            if fate is Fate.UNANSWERED:
                answer.read()
                return self._hang_up()
            self._pass_on(answer, is_cut=fate is Fate.CUT)
        except (OSError, urllib3.exceptions.HTTPError):
            self._hang_up()
        finally:
            answer.close()
        return None

    def _pass_on(self, answer: urllib3.BaseHTTPResponse, *, is_cut: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.headers.get("Content-Length")
        if length is not None or self.command == "HEAD":
            content = answer.read()
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
            if is_cut:
                self._hang_up()
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        alarm = threading.Timer(1.0, self._hang_up)
        if is_cut:
            alarm.start()
        self.watches.add(answer)
        try:
            for chunk in answer.stream(None, decode_content=False):
                if chunk:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        finally:
            alarm.cancel()
            self.watches.discard(answer)

    def _refuse(self, status: int) -> None:
        reason = {409: "Conflict", 429: "TooManyRequests"}.get(status, "ServiceUnavailable")
        said = f'{{"kind": "Status", "code": {status}, "reason": "{reason}", "message": "by the proxy"}}'
        self._answer(status, "application/json", said)

    def _answer(self, status: int, kind: str, said: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(said.encode())

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: N815  # as the base class calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""
