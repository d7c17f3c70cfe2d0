"""Guarded connections to buckets: an end to everything that takes too long, and addresses that are not talked to.

boto3's time-outs are for one read of a socket: an endpoint that drips a byte every second holds a request, and its
thread, for as long as it likes. Here a time holds for all that a thread asks buckets for: what is under way then
is shut down, and what begins later is refused. And a name may resolve to any address, so that addresses are looked at
where they count: at the socket that was connected.

Called by `artifacts.py` alone. Botocore has no public place to hand in connections; that its own is still there is
tested.
"""

from __future__ import annotations

import contextlib
import heapq
import ipaddress
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AddressRefusedError(OSError):
    """A name resolved to an address that must not be talked to."""


@dataclass(eq=False)
class _Span:
    """What one thread asks buckets for within a time."""

    until: float
    connections: set[Any] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_over: bool = False

    def take(self, connection: Any) -> None:
        """Note that a connection is used, which may have been used by others before."""
        with self.lock:
            self._check()
            self.connections.add(connection)

    def check(self) -> None:
        """Raise where the time is over."""
        with self.lock:
            self._check()

    def end(self) -> None:
        """Shut down what is still in use."""
        with self.lock:
            self.is_over = True
            for connection in self.connections:
                # One that went back to its pool meanwhile may serve another thread.
                if connection.span is self and connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    def _check(self) -> None:
        if self.is_over:
            raise TimeoutError("the time for all requests is over")


_current = threading.local()


class _Clock:
    """Ends spans when their time has come, from one thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, _Span]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, span: _Span) -> None:
        """End a span in time."""
        with self._changed:
            heapq.heappush(self._heap, (span.until, next(self._numbers), span))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bucket-clock", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._heap or self._heap[0][0] > time.monotonic():
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                _, _, span = heapq.heappop(self._heap)
            span.end()


_clock = _Clock()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give all that this thread asks guarded clients for, from here on, so much time; an outer time stays in force."""
    outer: _Span | None = getattr(_current, "span", None)
    until = time.monotonic() + seconds
    if outer is not None and outer.until <= until:
        yield
        return
    span = _Span(until=until)
    _clock.watch(span)
    _current.span = span
    try:
        yield
    finally:
        _current.span = outer
        with span.lock:
            span.connections.clear()


def check_time() -> None:
    """Raise where this thread's time is over: what it was just given may be the half that came in until then.

    Raises:
        TimeoutError: where it is.
    """
    span: _Span | None = getattr(_current, "span", None)
    if span is not None:
        span.check()


def guard(client: Any, refused: Sequence[Network]) -> None:
    """Let a boto3 client make guarded connections only.

    Args:
        client: that has made none yet.
        refused: networks that it must not connect to.
    """
    from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnection, AWSHTTPSConnectionPool

    classes = {
        "http": (AWSHTTPConnectionPool, AWSHTTPConnection),
        "https": (AWSHTTPSConnectionPool, AWSHTTPSConnection),
    }
    known = client._endpoint.http_session._pool_classes_by_scheme
    for scheme, (pool, connection) in classes.items():
        guarded = type(f"Guarded{connection.__name__}", (_Guarded, connection), {"refused": tuple(refused)})
        known[scheme] = type(f"Guarded{pool.__name__}", (pool,), {"ConnectionCls": guarded})


class _Guarded:
    """What a connection does more than botocore's; comes before it in the order of classes."""

    refused: Sequence[Network] = ()
    span: _Span | None = None
    sock: Any
    host: str
    proxy: Any

    def request(self, *arguments: Any, **options: Any) -> Any:
        """Send one request, if there is time for it."""
        self.span = getattr(_current, "span", None)
        if self.span is not None:
            self.span.take(self)
        return super().request(*arguments, **options)  # type: ignore[misc]

    def connect(self) -> None:
        """Connect, if there is still time for it then."""
        super().connect()  # type: ignore[misc]
        if self.span is not None:
            self.span.check()

    def _new_conn(self) -> Any:
        """Look at the address before anything is said to it, so before TLS begins too."""
        sock = super()._new_conn()  # type: ignore[misc]
        address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
        # What a proxy reaches is the proxy's to allow.
        if self.proxy is None and any(as_plain(address) in network for network in self.refused):
            sock.close()
            raise AddressRefusedError(f"{self.host} is at {address}, which is not talked to")
        return sock


def as_plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that an IPv6 address stands for, where it stands for one."""
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
