"""The Kubernetes API as plain dicts, over the connection that the official client makes of a kubeconfig.

Models cost more than they give here: tests compare what the server says, and a node serves a thousand pods.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import client, config

Object = dict[str, Any]

PATCHES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}


RETRY_SECONDS = 0.1
CHANGING = ("apiserver is shutting down", "storage is (re)initializing")
"""What an API server says of a kind whose CRD is being changed, before it does anything."""
CHANGING_SECONDS = 10.0


class ApiError(Exception):
    """The server refused. `reason` is one word of Kubernetes, `message` its sentence."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message


class UnreachableError(Exception):
    """The server does not answer, or broke off in the middle."""


class Api:
    """One identity's view of an API server. Safe to use from many threads."""

    def __init__(self, kubeconfig: Path, *, connections: int = 16) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
        configuration.connection_pool_maxsize = connections
        self._client = client.ApiClient(configuration)
        self._pool = self._client.rest_client.pool_manager
        self._host = configuration.host
        token = configuration.get_api_key_with_prefix("BearerToken", "authorization")
        self._headers = {"Accept": "application/json"} | ({"Authorization": token} if token else {})

    @property
    def url(self) -> str:
        """The address of the server."""
        return str(self._host)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.clear()

    # Path and query as in the API's reference: `api.get("/api/v1/namespaces/shop/pods/a")`.

    def get(self, path: str, **query: str | int) -> Object | None:
        """Return an object or list; None where there is none."""
        try:
            return self.call("GET", path, query=query)
        except ApiError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise

    def list(self, path: str, **query: str | int) -> list[Object]:
        """Return the items of a list."""
        return self.call("GET", path, query=query)["items"]  # type: ignore[no-any-return]

    def create(self, path: str, body: Mapping[str, Any], **query: str | int) -> Object:
        """Create an object."""
        return self.call("POST", path, body, query=query)

    def replace(self, path: str, body: Mapping[str, Any], **query: str | int) -> Object:
        """Replace an object."""
        return self.call("PUT", path, body, query=query)

    def patch(self, path: str, body: Any, *, kind: str = "merge", **query: str | int) -> Object:
        """Patch an object: `merge`, `strategic`, `json`, or `apply` (which wants a `fieldManager`)."""
        return self.call("PATCH", path, body, query=query, content_type=PATCHES[kind])

    def delete(self, path: str, body: Mapping[str, Any] | None = None, **query: str | int) -> bool:
        """Delete an object or a collection; False where there is none."""
        try:
            self.call("DELETE", path, body, query=query)
        except ApiError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return False
            raise
        return True

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, str | int] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """Make one request; again only where the server serves a changed CRD a moment later.

        Raises:
            ApiError: The server refused.
            UnreachableError: The server does not answer.
        """
        response = self._request_served(method, path, body, query or {}, content_type)
        try:
            data = response.data
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(str(error)) from error
        return json.loads(data) if data[:1] == b"{" else {"text": data.decode()}

    @contextlib.contextmanager
    def watch(self, path: str, *, resource_version: str, **query: str | int) -> Iterator[Watch]:
        """Watch a list from a version on; the connection is closed at the end of the block.

        Raises:
            ApiError: The server refused.
            UnreachableError: The server does not answer.
        """
        query = {**query, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version}
        response = self._request("GET", path, None, query, "", timeout=None)
        stream = Watch(response)
        try:
            yield stream
        finally:
            stream.stop()
            response.close()

    def wait_for(
        self, path: str, name: str, is_so: Callable[[Object | None], bool], *, seconds: float = 120.0
    ) -> Object | None:
        """Return an object of a list, or None where it is gone, as soon as something holds for it.

        Raises:
            TimeoutError: It did not come to hold; the message shows the object as it was last.
        """
        deadline = time.monotonic() + seconds
        selector = f"metadata.name={name}"
        seen: Object | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                found = self.call("GET", path, query={"fieldSelector": selector})
                seen = next(iter(found["items"]), None)
                if is_so(seen):
                    return seen
                version = found["metadata"]["resourceVersion"]
                with self.watch(path, resource_version=version, fieldSelector=selector) as events:
                    alarm = threading.Timer(left, events.stop)
                    alarm.start()
                    try:
                        for event in events:
                            if event["type"] == "BOOKMARK":
                                continue
                            if event["type"] == "ERROR":
                                break
                            seen = None if event["type"] == "DELETED" else event["object"]
                            if is_so(seen):
                                return seen
                    finally:
                        alarm.cancel()
            except (UnreachableError, ApiError) as error:
                # A server that starts says "storage is (re)initializing" for a while.
                if isinstance(error, ApiError) and error.code != HTTPStatus.TOO_MANY_REQUESTS and error.code < 500:
                    raise
                time.sleep(RETRY_SECONDS)
        raise TimeoutError(f"{path}/{name} after {seconds:g} s: {json.dumps(seen)[:4000]}")

    def _request_served(
        self, method: str, path: str, body: Any, query: Mapping[str, str | int], content_type: str
    ) -> urllib3.BaseHTTPResponse:
        until = time.monotonic() + CHANGING_SECONDS
        while True:
            try:
                return self._request(method, path, body, query, content_type, timeout=30.0)
            except ApiError as error:
                if error.message not in CHANGING or time.monotonic() > until:
                    raise
            time.sleep(RETRY_SECONDS)

    def _request(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, str | int],
        content_type: str,
        timeout: float | None,
    ) -> urllib3.BaseHTTPResponse:
        url = self._host + quote(path, safe="/:") + (f"?{urlencode(query)}" if query else "")
        headers = self._headers if body is None else {**self._headers, "Content-Type": content_type}
        try:
            response = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=5.0, read=timeout),
                retries=False,
                preload_content=False,
            )
            if response.status < HTTPStatus.BAD_REQUEST:
                return response
            text = response.data.decode(errors="replace")
        except urllib3.exceptions.HTTPError as error:
            raise UnreachableError(str(error)) from error
        try:
            status = json.loads(text)
        except ValueError:
            status = {}
        raise ApiError(response.status, status.get("reason", ""), status.get("message", text))


class Watch:
    """The events of a watch, until it is stopped from any thread or the server ends it."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self._is_stopped = False

    def __iter__(self) -> Iterator[Object]:
        buffer = b""
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            for chunk in self._response.stream():
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if self._is_stopped:
                        return
                    yield json.loads(line)

    def stop(self) -> None:
        """End the iteration, also while it waits."""
        self._is_stopped = True
        connection = self._response.connection
        if (connected := getattr(connection, "sock", None)) is not None:
            with contextlib.suppress(OSError):
                # Of the socket, not of TLS, whose state the measurement thread is in the middle of.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)
