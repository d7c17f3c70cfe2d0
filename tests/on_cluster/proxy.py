"""A proxy between the operator and a server: it sees every request, and a test says what becomes of each."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
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
    """What the server answers instead, in its own form: an S3 server's XML, or a Status of Kubernetes."""

    status: int
    code: str
    """Such as `AccessDenied`, as in S3's reference, or the reason of a Status."""


@dataclass(frozen=True, kw_only=True)
class Instead:
    """What somebody between client and server answers instead, or a server that is out of its mind."""

    status: int = 200
    content_type: str = "application/json"
    body: str
    filler_bytes: int = 0
    """So many spaces follow."""


@dataclass(frozen=True, kw_only=True)
class Altered:
    """The server's own answer, but late, slowly, or with the time of another clock."""

    wait_seconds: float = 0.0
    """Before the answer begins."""
    drip_seconds: float = 0.0
    """Before each byte of its body."""
    skew_seconds: float = 0.0
    """By which its `Date` is wrong."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request, before it is forwarded."""

    server: str
    """Which of several proxies saw it."""
    method: str
    path: str
    """With its query."""
    body: bytes = field(default=b"", repr=False)

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


Treatment = Fate | Refusal | Instead | Altered
Decide = Callable[[Call], Treatment]

_STATUS_REASONS = {Fate.CONFLICT: "Conflict", Fate.BUSY: "TooManyRequests", Fate.BROKEN: "ServiceUnavailable"}
_FILLER_BYTES = 1024 * 1024


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
            is_kubernetes = name == "kubernetes"
            ask = staticmethod(
                lambda method, path, body: decide(Call(server=name, method=method, path=path, body=body))
            )

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
                    # Of the socket, not of TLS, whose state the measurement thread is in the middle of.
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
    is_kubernetes: bool
    ask: Callable[[str, str, bytes], Treatment]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.ask(self.command, self.path, body)
        if fate is Fate.LOST:
            return self._hang_up()
        if isinstance(fate, Fate) and fate in _STATUS_REASONS:
            fate = Refusal(int(fate), _STATUS_REASONS[fate])
        if isinstance(fate, Refusal):
            return self._refuse(fate)
        if isinstance(fate, Instead):
            return self._answer(fate)
        change = fate if isinstance(fate, Altered) else Altered()
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
            time.sleep(change.wait_seconds)
            self._pass_on(answer, change, is_cut=fate is Fate.CUT)
        except (OSError, urllib3.exceptions.HTTPError):
            self._hang_up()
        finally:
            answer.close()
        return None

    def _pass_on(self, answer: urllib3.BaseHTTPResponse, change: Altered, *, is_cut: bool) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() == "date" and change.skew_seconds:
                at = parsedate_to_datetime(value).timestamp() + change.skew_seconds
                self.send_header(name, format_datetime(datetime.fromtimestamp(at, UTC), usegmt=True))
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        length = answer.headers.get("Content-Length")
        if length is not None or self.command == "HEAD":
            content = answer.read()
            self.send_header("Content-Length", str(length if self.command == "HEAD" else len(content)))
            self.end_headers()
            self._write(content[: len(content) // 2] if is_cut else content, change)
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
                    self._write(b"%x\r\n%s\r\n" % (len(chunk), chunk), change)
            self.wfile.write(b"0\r\n\r\n")
        finally:
            alarm.cancel()
            self.watches.discard(answer)

    def _write(self, content: bytes, change: Altered) -> None:
        pieces = (content[at : at + 1] for at in range(len(content))) if change.drip_seconds else (content,)
        for piece in pieces:
            time.sleep(change.drip_seconds)
            self.wfile.write(piece)
            self.wfile.flush()

    def _refuse(self, refusal: Refusal) -> None:
        status, code = refusal
        if self.is_kubernetes:
            message = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": status}
            text = json.dumps({**message, "reason": code, "message": "by the proxy"})
            return self._answer(Instead(status=status, body=text))
        text = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>"
        return self._answer(Instead(status=status, content_type="application/xml", body=text))

    def _answer(self, answer: Instead) -> None:
        content = answer.body.encode(errors="surrogateescape")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(content) + answer.filler_bytes))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(content)
            for _ in range(0, answer.filler_bytes, _FILLER_BYTES):
                self.wfile.write(b" " * _FILLER_BYTES)
        except OSError:
            # Who has read enough of it.
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: N815  # as the base class calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""
