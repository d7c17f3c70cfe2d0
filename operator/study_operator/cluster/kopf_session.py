"""The session that kopf asks the API server with: what is no answer does not reach kopf.

kopf ends for good where a watch is refused, tells what is no event, or tells of any error but 410; it reads answers of
any size; and a token that was refused once it never uses again. Here all of that becomes what kopf goes on from by
itself: it lists everything again, or it asks again after a wait. Called by `study_watch.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from study_operator import names
from study_operator.cluster.api import (
    NOT_UNDERSTOOD,
    Kube,
    KubeError,
    WatchBrokenError,
    has_version,
    read_error,
    read_event,
    read_object,
    read_page,
)
from study_operator.cluster.streams import LIST_ANEW, make_session, read_lines, read_whole

log = logging.getLogger(__name__)

SHORTEST_WATCH_SECONDS = 0.5
"""kopf goes on with a watch that has ended at once, also where it has ended at once."""

GONE = json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}).encode() + b"\n"
"""The event after which kopf lists everything again."""


def open_session(kube: Kube) -> aiohttp.ClientSession:
    """Connect to an API server from the event loop that this is called in."""
    return make_session(kube, middlewares=[_Filter(kube)])


class _Filter:
    """Sees each request of a session, and its answer before kopf does."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._watched_at: dict[str, float] = {}
        """When each collection was last watched."""

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Make a request.

        Raises:
            aiohttp.ClientConnectionError: kopf asks again, after a wait that grows.
            aiohttp.ClientPayloadError: kopf lists everything again.
        """
        connection = self._kube.connection()
        if connection.token:
            request.headers["Authorization"] = f"Bearer {connection.token}"
        request.server_hostname = connection.tls_server_name
        if "watch" in request.url.query:
            return await self._watch(request, handler)
        response = await self._send(request, handler)
        try:
            response._body = await _read(request.url.path, response)
        except aiohttp.ClientPayloadError as error:
            raise aiohttp.ClientConnectionError(f"{request.url.path}: {error}") from error
        except KubeError as error:
            if error.status == 404 and await self._is_api_gone():
                response._body = b""
                return response
            if error.status == 410 and "continue" in request.url.query:
                raise aiohttp.ClientPayloadError(f"{request.url.path}: {error}") from error
            raise _unusable(error) from error
        return response

    async def _watch(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        path = request.url.path
        await asyncio.sleep(self._watched_at.get(path, 0.0) + SHORTEST_WATCH_SECONDS - time.monotonic())
        self._watched_at[path] = time.monotonic()
        response: Any = await self._send(request, handler)
        if response.status < 400:
            response.content = _Events(response.content, path)
            return response  # type: ignore[no-any-return]
        try:
            error = read_error(response.status, await read_whole(response))
        except KubeError as unread:
            error = unread
        is_gone = error.is_not_found or (error.status == 404 and await self._is_api_gone())
        if error.status not in LIST_ANEW and not is_gone:
            raise _unusable(error) from error
        log.info("studies are listed again: %s: %s", path, error)
        response.status, response.content = 200, _Gone(response.content)
        return response  # type: ignore[no-any-return]

    async def _is_api_gone(self) -> bool:
        """Say whether the API server knows no studies any more: of what it does not serve it says what proxies say."""
        try:
            answer = await asyncio.to_thread(self._kube.request, "GET", "/apis")
        except KubeError:
            return False
        groups = answer.body.get("groups")
        return isinstance(groups, list) and names.GROUP not in [
            group.get("name") for group in groups if isinstance(group, dict)
        ]

    async def _send(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        begun, status = time.perf_counter(), 0
        try:
            response = await handler(request)
            status = response.status
        except (aiohttp.ClientConnectionError, TimeoutError):
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise aiohttp.ClientConnectionError(str(error) or type(error).__name__) from error
        finally:
            seconds = time.perf_counter() - begun
            self._kube.metrics.observe_api_request("GET", request.url.path, request.url.query, status, seconds)
        return response


async def _read(path: str, response: ClientResponse) -> bytes:
    """Return an answer that has what kopf takes from it without looking, or says that there is no such thing.

    Raises:
        KubeError: where it is another one.
    """
    content = await read_whole(response)
    if response.status >= 400:
        error = read_error(response.status, content)
        if error.is_not_found:
            return content
        raise error
    body = read_object(content)
    if path.endswith(f"/{names.PLURAL}"):
        read_page(path, body)
    elif not any(isinstance(body.get(word), list) for word in ("versions", "groups", "resources")):
        raise KubeError(0, NOT_UNDERSTOOD, f"the API server must say what it serves at {path}, got {body!r:.500}")
    return content


def _unusable(error: KubeError) -> aiohttp.ClientConnectionError:
    """Return the error after which kopf asks again."""
    return aiohttp.ClientConnectionError(f"{error.status or ''} {error}".strip())


def _check_event(line: bytes) -> None:
    """Make sure that kopf can watch from an event on.

    Raises:
        WatchBrokenError: where it is none, or has no version.
    """
    _, raw = read_event(line)
    if not has_version(raw["metadata"]):
        message = f"a study must have a version, got {raw['metadata']['resourceVersion']!r:.80}"
        raise WatchBrokenError(0, NOT_UNDERSTOOD, message)


class _Content:
    """The body of an answer, of which kopf reads something else."""

    def __init__(self, content: aiohttp.StreamReader, path: str = "") -> None:
        self._content = content
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)


class _Events(_Content):
    """Events and nothing else; after what is none, the one that kopf lists again after."""

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Yield the lines."""
        try:
            async for line in read_lines(self._content):
                _check_event(line)
                yield line + b"\n"
        except WatchBrokenError as error:
            level = logging.DEBUG if error.status == 410 else logging.WARNING
            log.log(level, "studies are listed again: watch of %s: %s", self._path, error)
            yield GONE


class _Gone(_Content):
    """That one alone."""

    async def iter_chunked(self, _size: int) -> AsyncIterator[bytes]:
        """Yield it."""
        yield GONE
