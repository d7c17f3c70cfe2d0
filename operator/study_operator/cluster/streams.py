"""Lists and watches of many collections of one API server, read by one thread: an event loop instead of a thread each.

Called by `job_watches.py`, and in parts by `kopf_session.py`. Everything else asks the API server by `api.Kube`, whose
errors these are.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp
from aiohttp import ClientMiddlewareType
from yarl import URL

from study_operator.cluster.api import (
    ANSWER_BYTES,
    CONNECT_SECONDS,
    JSON,
    LIST_LIMIT,
    LIST_SECONDS,
    NOT_UNDERSTOOD,
    READ_SECONDS,
    USER_AGENT,
    AnswerTooLargeError,
    Connection,
    Kube,
    KubeError,
    Page,
    Raw,
    WatchBrokenError,
    Whole,
    find_following,
    find_smaller,
    page_query,
    read_error,
    read_event,
    read_object,
    read_page,
    unreachable,
    url_of,
)

WATCH_IDLE_SECONDS = 80.0
"""The API server sends a bookmark about once a minute: a watch that is silent for longer is dead."""
WATCH_SECONDS = 600
"""How long the API server keeps one watch open."""
LINE_BYTES = 8 * 1024 * 1024
"""The longest event of a watch; etcd takes objects of 1.5 MiB."""

TLS_BUFFER_BYTES = 8 * 1024
"""asyncio gives each TLS connection a quarter of a megabyte to read into. What is longer is read in parts."""

LIST_ANEW = (400, 410)
"""Statuses of a watch whose version is none, or too old: only a list has another one."""

_TROUBLE = (aiohttp.ClientError, TimeoutError, OSError)


def use_small_buffers() -> None:
    """Let every TLS connection of this process's event loops take little memory: an idle watch needs hardly any."""
    SSLProtocol.max_size = TLS_BUFFER_BYTES


@contextlib.asynccontextmanager
async def open_streams(kube: Kube) -> AsyncIterator[Streams]:
    """Connect to an API server from the event loop that this is called in."""
    async with make_session(kube) as session:
        yield Streams(kube, session)


def make_session(kube: Kube, *, middlewares: Sequence[ClientMiddlewareType] = ()) -> aiohttp.ClientSession:
    """Make the connections of one event loop: without a limit, because each watch takes one for as long as it lasts."""
    connection = kube.connection()
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=_make_context(connection)),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": JSON, "User-Agent": USER_AGENT},
        proxy=connection.proxy,
        middlewares=middlewares,
    )


class Streams:
    """Reads lists and watches, any number at a time."""

    def __init__(self, kube: Kube, session: aiohttp.ClientSession) -> None:
        self._kube = kube
        self._session = session

    async def pages(self, path: str, query: Mapping[str, str] | None = None) -> AsyncIterator[Page]:
        """Yield all objects of a collection, consistent, some at a time.

        Raises:
            KubeError: where it is refused or there is no answer.
        """
        following, limit = "", LIST_LIMIT
        deadline = time.monotonic() + LIST_SECONDS
        while True:
            try:
                async with self._answer(path, page_query(query, limit, following), READ_SECONDS) as response:
                    content = await read_whole(response)
            except AnswerTooLargeError:
                limit = find_smaller(limit)
                continue
            page = read_page(path, read_object(content))
            yield page
            following = find_following(path, page, following, deadline)
            if not following:
                return

    async def watch(
        self, path: str, version: str, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, Raw]]:
        """Yield what happens in a collection from a version on, until the server ends the watch.

        Raises:
            WatchBrokenError: where the version is too old, the server tells of an error, or what it tells is no event.
            KubeError: where it is refused or there is no answer.
        """
        asked = {
            **(query or {}),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        try:
            async with self._answer(path, asked, WATCH_IDLE_SECONDS) as response:
                async for line in read_lines(response.content):
                    yield read_event(line)
        except KubeError as error:
            if error.status in LIST_ANEW and not isinstance(error, WatchBrokenError):
                raise WatchBrokenError(error.status, error.reason, error.message) from error
            raise

    @contextlib.asynccontextmanager
    async def _answer(
        self, path: str, query: Mapping[str, str], read_seconds: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and yield the answer before its body is read."""
        connection = self._kube.connection()
        begun, status = time.perf_counter(), 0
        try:
            try:
                response = await self._session.get(
                    URL(url_of(connection.server, path, query), encoded=True),
                    headers={"Authorization": f"Bearer {connection.token}"} if connection.token else None,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=read_seconds),
                    server_hostname=connection.tls_server_name,
                    allow_redirects=False,
                )
                status = response.status
            finally:
                self._kube.metrics.observe_api_request("GET", path, query, status, time.perf_counter() - begun)
            async with response:
                if status >= 400:
                    raise read_error(status, await read_whole(response))
                yield response
        except _TROUBLE as error:
            raise unreachable(error) from error


def _make_context(connection: Connection) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=connection.ca_file)
    if not connection.is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if connection.certificate_file is not None:
        context.load_cert_chain(connection.certificate_file, connection.key_file)
    return context


async def read_whole(response: aiohttp.ClientResponse) -> bytes:
    """Return the body of an answer.

    Raises:
        KubeError: where it is too large, or takes too long.
    """
    whole = Whole(ANSWER_BYTES)
    async for part in response.content.iter_any():
        whole.add(part)
    return whole.join()


async def read_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a watch; what follows the last line break was cut off, and is none.

    Raises:
        WatchBrokenError: where one is too long, or takes too long.
    """
    parts: list[bytes] = []
    length = 0
    deadline = time.monotonic() + WATCH_IDLE_SECONDS
    async for chunk in content.iter_any():
        first, *others = chunk.split(b"\n")
        parts.append(first)
        length += len(first)
        if length > LINE_BYTES:
            raise WatchBrokenError(0, NOT_UNDERSTOOD, f"a watch told an event of more than {LINE_BYTES} bytes")
        if not others and time.monotonic() > deadline:
            raise WatchBrokenError(0, "Unreachable", f"a watch told no event within {WATCH_IDLE_SECONDS:g} s")
        if others:
            deadline = time.monotonic() + WATCH_IDLE_SECONDS
            lines = [b"".join(parts), *others[:-1]]
            parts, length = [others[-1]], len(others[-1])
            for line in lines:
                if line.strip():
                    yield line
