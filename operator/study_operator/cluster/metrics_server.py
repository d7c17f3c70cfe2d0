"""`/metrics`: in plain HTTP, or with TLS; to anybody, or to whom the API server lets read it.

Certificates lie in a directory as a Secret of type kubernetes.io/tls is mounted, and are read anew when they change.
Who scrapes shows a token of the cluster: the API server says whose it is (TokenReview), and whether he may ``get`` the
path ``/metrics`` (SubjectAccessReview). Its answers are kept for a short while. Called by `cluster/operator.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from study_operator.cluster.api import Kube, KubeError, path_of
from study_operator.errors import OperatorError

log = logging.getLogger(__name__)

PATH = "/metrics"
CLIENT_SECONDS = 20.0
"""For each read of a client's request, its handshake among them, and each write of the answer."""
ALLOWED_SECONDS, REFUSED_SECONDS = 60.0, 10.0
"""How long the API server's word on a token is kept: that he may, and that he may not."""
MOST_TOKENS = 1000
MOST_REVIEWS = 4
"""Asked of the API server at a time; who comes then is told to come again."""
TOKEN_CHARACTERS = 16 * 1024


class CertificateError(OperatorError):
    """The certificate or its key cannot be used; one sentence."""

    reason = "CertificateUnusable"


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """A certificate and its key, in a directory."""

    directory: Path

    def read(self) -> ssl.SSLContext:
        """Return what connections are served with by what lies there now.

        Raises:
            CertificateError: where it cannot be used.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.directory / "tls.crt", self.directory / "tls.key")
        except (OSError, ssl.SSLError) as error:
            raise CertificateError(
                f"{self.directory} must hold a certificate, tls.crt, and its key, tls.key: {error}"
            ) from error
        return context

    def version(self) -> tuple[int, ...]:
        """Return what changes when the files do; the kubelet puts others in their place."""
        try:
            stats = [(self.directory / name).stat() for name in ("tls.crt", "tls.key")]
        except OSError:
            return ()
        return tuple(number for stat in stats for number in (stat.st_ino, stat.st_mtime_ns, stat.st_size))


class Reviewer:
    """Asks the API server who may scrape. May be used by many threads."""

    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, HTTPStatus]] = OrderedDict()
        """Until when a token's answer holds, by its hash."""
        self._reviews = threading.BoundedSemaphore(MOST_REVIEWS)

    def review(self, authorization: str) -> HTTPStatus:
        """Return what a request with such a header is answered with: 200, 401, 403, or 503 where nobody knows."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > TOKEN_CHARACTERS:
            return HTTPStatus.UNAUTHORIZED
        key = hashlib.sha256(token.encode()).digest()
        with self._lock:
            until, status = self._known.get(key, (float("-inf"), HTTPStatus.UNAUTHORIZED))
            if self._clock() < until:
                return status
        if not self._reviews.acquire(blocking=False):
            return HTTPStatus.SERVICE_UNAVAILABLE
        try:
            status = self._ask(token)
        except KubeError as error:
            log.warning("nobody knows who may scrape the metrics: %s", error)
            return HTTPStatus.SERVICE_UNAVAILABLE
        finally:
            self._reviews.release()
        seconds = ALLOWED_SECONDS if status is HTTPStatus.OK else REFUSED_SECONDS
        with self._lock:
            self._known[key] = (self._clock() + seconds, status)
            self._known.move_to_end(key)
            while len(self._known) > MOST_TOKENS:
                self._known.popitem(last=False)
        return status

    def _ask(self, token: str) -> HTTPStatus:
        whose = self._create("authentication.k8s.io/v1", "TokenReview", {"token": token})
        user = whose.get("user")
        if whose.get("authenticated") is not True or not isinstance(user, dict) or not user.get("username"):
            return HTTPStatus.UNAUTHORIZED
        may = self._create(
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
            {
                "user": user["username"],
                "uid": user.get("uid") or "",
                "groups": user.get("groups") or [],
                "extra": user.get("extra") or {},
                "nonResourceAttributes": {"path": PATH, "verb": "get"},
            },
        )
        return HTTPStatus.OK if may.get("allowed") is True else HTTPStatus.FORBIDDEN

    def _create(self, api: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": api, "kind": kind, "metadata": {}, "spec": spec}
        status = self._kube.create(path_of(api, f"{kind.lower()}s"), body).body.get("status")
        return status if isinstance(status, dict) else {}


def serve_metrics(
    port: int,
    registry: CollectorRegistry,
    *,
    certificates: Certificates | None = None,
    review: Callable[[str], HTTPStatus] | None = None,
    host: str = "",
) -> ThreadingHTTPServer:
    """Answer scrapes on a port from now on; return the server, whose ``server_port`` says which one it is.

    Args:
        port: where to listen; 0 means any free one.
        registry: what is told.
        certificates: what TLS is spoken with; None means plain HTTP.
        review: evaluates the header ``Authorization``; None means that anybody may ask.
        host: the address to listen at; empty means all.

    Raises:
        CertificateError: where the certificate cannot be used.
        OSError: where nobody can listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        """Answers scrapes."""

        timeout = CLIENT_SECONDS

        def do_GET(self) -> None:  # the name that the base class looks for
            """Answer one scrape."""
            if self.path.partition("?")[0] != PATH:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            status = HTTPStatus.OK if review is None else review(self.headers.get("Authorization", ""))
            if status is not HTTPStatus.OK:
                self.send_response(status)
                if status is HTTPStatus.UNAUTHORIZED:
                    self.send_header("WWW-Authenticate", "Bearer")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            content = encode(registry)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            if "gzip" in self.headers.get("Accept-Encoding", ""):
                content = gzip.compress(content, compresslevel=4)
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name for it
            """Log nothing: a scrape comes every few seconds."""

    server = _Server((host, port), Handler, certificates)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], certificates: Certificates | None
    ) -> None:
        self._certificates = certificates
        self._lock = threading.Lock()
        self._version: tuple[int, ...] = ()
        if certificates is not None:
            self._version = certificates.version()
            self._context = certificates.read()
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection, in a thread of its own: nobody waits for another's handshake."""
        request.settimeout(CLIENT_SECONDS)
        if self._certificates is None:
            super().finish_request(request, client_address)
            return
        with self._renew(self._certificates).wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)
            # A client that was not told of the end cannot tell it from a cut.
            try:
                secured.unwrap()
            except (OSError, ValueError):
                return

    def _renew(self, certificates: Certificates) -> ssl.SSLContext:
        with self._lock:
            version = certificates.version()
            if version != self._version:
                try:
                    self._context = certificates.read()
                except CertificateError as error:
                    # Where the files are changed one after the other, the next connection finds both.
                    log.warning("metrics are served with the old certificate: %s", error)
                else:
                    self._version = version
                    log.info("metrics are served with another certificate")
            return self._context

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # the base class's names
        """Say in a line what went wrong with one client."""
        log.debug("a scrape from %s failed: %r", client_address, sys.exc_info()[1])

    def server_bind(self) -> None:
        """Bind, without asking the name service who this machine is."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
