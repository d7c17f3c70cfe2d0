"""The API server: requests on plain dicts; `streams.py` has the watches. The only importer of the `kubernetes` client.

Every request has a deadline and a largest answer, and none is tried again here: a tick that could not be finished is
run again from its start, with a back-off. `Kube.request` is the one place through which everything goes.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration

from study_operator.clocks import ServerClock
from study_operator.errors import OperatorError
from study_operator.metrics import Metrics

log = logging.getLogger(__name__)

Raw = dict[str, Any]

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
REQUEST_SECONDS = 60.0
"""For one whole answer, however slowly it comes in."""
OBJECT_BYTES = 4 * 1024 * 1024
"""The largest object. The API server takes none of more than 3 MiB, and many threads may be told one at once."""
ANSWER_BYTES = 16 * 1024 * 1024
"""The largest page of a list; of one that is larger, half is asked for."""
READ_BYTES = 64 * 1024
LIST_LIMIT = 500
"""Objects of a page, of which a Job of ours has some 8 KB."""
LIST_SECONDS = 300.0
"""For all pages of a list: the API server does not go on with one that is older."""
DEEPEST_OBJECT = 10_000
"""Objects within each other that the API server takes. Who reads JSON needs as deep a stack: what one tenant was let
write must not hide what others write."""
CONNECTIONS = 32
USER_AGENT = "finetune-study-operator"
JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
NOT_UNDERSTOOD = "NotUnderstood"
SAID_CHARACTERS = 4000
"""Of what a server says, at most so many are repeated."""
_CHANGES = ("ADDED", "MODIFIED", "DELETED")
METADATA_LIST_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class KubeError(OperatorError):
    """The API server refused a request, or could not be asked."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 where there was no answer."""
        self.reason = reason
        """The server's word, such as ``AlreadyExists``."""
        self.message = message

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later without anybody's doing."""
        # Of an API that was installed a moment ago its admission does not know yet who may own what.
        is_too_early = self.status == 403 and "cannot find RESTMapping" in self.message
        # Without a reason it is not the API server that speaks, but something between here and there.
        return is_too_early or not self.reason or self.status in (0, 401, 408, 410, 429) or self.status >= 500

    @property
    def is_not_found(self) -> bool:
        """Whether the API server says that there is no such object; the 404 of a proxy says nothing."""
        return self.status == 404 and self.reason == "NotFound"


class WatchBrokenError(KubeError):
    """A watch told what is no event of an object: only a list can tell what happened there."""


class AnswerTooLargeError(KubeError):
    """An answer of more bytes than any has."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(0, NOT_UNDERSTOOD, f"an answer of the API server must have at most {most_bytes} bytes")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the API server answered."""

    body: Raw
    warnings: tuple[str, ...] = ()
    """Texts of its ``Warning`` headers."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some of the objects of a collection."""

    items: list[Raw]
    version: str
    """To watch from, once all pages were read."""
    following: str
    """What to ask for the next page with; empty at the last one."""


def path_of(api: str, plural: str, namespace: str | None = None, name: str = "", part: str = "") -> str:
    """Return the path of a collection, an object, or a subresource.

    Args:
        api: group and version, such as ``batch/v1``; ``v1`` for the core group.
        plural: such as ``jobs``.
        namespace: None for all namespaces, or for what has none.
        name: of the object; empty for the collection.
        part: the subresource.
    """
    words = ["api" if "/" not in api else "apis", api]
    words += ["namespaces", namespace] if namespace else []
    words += [word for word in (plural, name, part) if word]
    return "/" + "/".join(words)


def url_of(server: str, path: str, query: Mapping[str, str] | None) -> str:
    """Return the URL of a request."""
    return f"{server}{path}" + (f"?{urlencode(query)}" if query else "")


def connect(metrics: Metrics) -> Kube:
    """Connect as the pod's service account, or as ``KUBECONFIG`` says; requests are counted.

    Raises:
        KubeError: where neither is there.
    """
    settings = Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise KubeError(0, "NoConfiguration", f"the API server's address must be known: {error}") from error
    settings.connection_pool_maxsize = CONNECTIONS
    return Kube(ApiClient(settings), metrics)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """How the API server is reached, for those who make their own requests."""

    server: str
    ca_file: str | None
    is_verified: bool
    certificate_file: str | None
    key_file: str | None
    token: str | None = field(repr=False)
    proxy: str | None = None
    tls_server_name: str | None = None


class Kube:
    """Requests to one API server. May be used by many threads."""

    def __init__(self, client: ApiClient, metrics: Metrics) -> None:
        self._client = client
        self.metrics = metrics
        self.clock = ServerClock()
        self._pool: urllib3.PoolManager = client.rest_client.pool_manager

    def connection(self) -> Connection:
        """Return how the API server is reached, with a fresh token."""
        settings = self._client.configuration
        headers: dict[str, str] = {}
        self._client.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        _, _, token = headers.get("authorization", "").partition(" ")
        return Connection(
            server=settings.host,
            ca_file=settings.ssl_ca_cert,
            is_verified=settings.verify_ssl,
            certificate_file=settings.cert_file,
            key_file=settings.key_file,
            token=token or None,
            proxy=self._pool.proxy.url if isinstance(self._pool, urllib3.ProxyManager) and self._pool.proxy else None,
            tls_server_name=settings.tls_server_name or None,
        )

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of the API server, as far as its name is known here."""
        host = urlsplit(self._client.configuration.host).hostname or ""
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError:
            return ()
        return tuple(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))

    def get(self, path: str, *, only_metadata: bool = False) -> Raw | None:
        """Return an object; None where there is none."""
        try:
            return _check_object(self.request("GET", path, accept=METADATA_ONLY if only_metadata else JSON).body)
        except KubeError as error:
            if error.is_not_found:
                return None
            raise

    def create(self, path: str, body: Raw, query: Mapping[str, str] | None = None) -> Answer:
        """Create an object in a collection."""
        answer = self.request("POST", path, body=body, query=query)
        _check_object(answer.body)
        return answer

    def replace(self, path: str, body: Raw) -> Raw:
        """Replace an object, or a subresource, whole."""
        return _check_object(self.request("PUT", path, body=body).body)

    def patch(self, path: str, body: Raw) -> Raw:
        """Merge a patch into an object; its ``metadata.resourceVersion`` is a condition where it is given."""
        return _check_object(self.request("PATCH", path, body=body, content_type=MERGE_PATCH).body)

    def delete(self, path: str, *, uid: str) -> bool:
        """Delete an object if it still is the one with this UID, dependants first; return whether it was there."""
        body = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self.request("DELETE", path, body=body)
        except KubeError as error:
            if error.is_not_found or error.reason == "Conflict":
                return False
            raise
        return True

    def list(
        self, path: str, query: Mapping[str, str] | None = None, *, only_metadata: bool = False
    ) -> tuple[list[Raw], str]:
        """Return all objects of a collection, consistent, and the version to watch from."""
        accept = METADATA_LIST_ONLY if only_metadata else JSON
        items: list[Raw] = []
        following, limit = "", LIST_LIMIT
        deadline = time.monotonic() + LIST_SECONDS
        while True:
            try:
                query_of_page = page_query(query, limit, following)
                body = self.request("GET", path, query=query_of_page, accept=accept, is_list=True).body
            except AnswerTooLargeError:
                limit = find_smaller(limit)
                continue
            answer = read_page(path, body)
            items += answer.items
            following = find_following(path, answer, following, deadline)
            if not following:
                return items, answer.version

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Raw | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        read_seconds: float = READ_SECONDS,
        is_list: bool = False,
    ) -> Answer:
        """Make one request.

        Raises:
            KubeError: where it is refused or there is no answer.
        """
        response = self._send(method, path, body, query, content_type, accept, read_seconds)
        try:
            content = _read_whole(response, ANSWER_BYTES if is_list else OBJECT_BYTES)
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error
        finally:
            # One that was read to its end is back in the pool already; one with a rest in it is of no use.
            response.close()
        if response.status >= 400:
            raise read_error(response.status, content)
        warnings = tuple(_parse_warning(text) for text in response.headers.getlist("Warning"))
        return Answer(body=read_object(content) if content else {}, warnings=warnings)

    def _send(
        self,
        method: str,
        path: str,
        body: Raw | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        read_seconds: float = READ_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept, "User-Agent": USER_AGENT}
        # Reads a service account's token anew once a minute.
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, None)
        if body is not None:
            headers["Content-Type"] = content_type
        url = url_of(self._client.configuration.host, path, query)
        begun, status = time.perf_counter(), 0
        try:
            response = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body, allow_nan=False).encode(),
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                retries=False,
                preload_content=False,
            )
            status = response.status
            self.clock.see(response.headers.get("Date"), time.perf_counter() - begun)
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(error) from error
        finally:
            self.metrics.observe_api_request(method, path, query, status, time.perf_counter() - begun)
        return response


class Whole:
    """The body of an answer, as its parts come in: neither too large nor too slow."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._deadline = time.monotonic() + REQUEST_SECONDS
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        """Take one part.

        Raises:
            KubeError: where the body is too large by now, or takes too long.
        """
        self._parts.append(part)
        self._size += len(part)
        if self._size > self._most_bytes:
            raise AnswerTooLargeError(self._most_bytes)
        if time.monotonic() > self._deadline:
            message = f"must be whole within {REQUEST_SECONDS:g} s, got {self._size} bytes by then"
            raise KubeError(0, "Unreachable", f"an answer of the API server {message}")

    def join(self) -> bytes:
        """Return the body."""
        return b"".join(self._parts)


def _read_whole(response: urllib3.BaseHTTPResponse, most_bytes: int) -> bytes:
    whole = Whole(most_bytes)
    while part := response.read1(READ_BYTES):
        whole.add(part)
    return whole.join()


def page_query(query: Mapping[str, str] | None, limit: int, following: str) -> dict[str, str]:
    """Return the query of one page of a list: of so many objects, from where the page before it ended."""
    return {**(query or {}), "limit": str(limit), **({"continue": following} if following else {})}


def find_smaller(limit: int) -> int:
    """Return of how many objects a page is asked for where one of so many was too large.

    Raises:
        AnswerTooLargeError: where it was of one.
    """
    if limit == 1:
        raise AnswerTooLargeError(ANSWER_BYTES)
    return limit // 2


def read_page(path: str, body: Raw) -> Page:
    """Return what one answer holds of a list.

    Raises:
        KubeError: where it is no list of objects.
    """
    found, metadata = body.get("items", ""), body.get("metadata")
    found = [] if found is None else found
    if not isinstance(metadata, dict) or not has_version(metadata) or not _are_objects(found):
        raise _not_understood(f"a list of objects from {path}", body)
    return Page(items=found, version=str(metadata["resourceVersion"]), following=metadata.get("continue") or "")


def find_following(path: str, page: Page, before: str, deadline: float) -> str:
    """Return what to ask for the next page of a list with; empty after the last one.

    Args:
        path: of the collection.
        page: the last page that was read.
        before: what it was asked for with.
        deadline: by the monotonic clock, when the whole list must have been read.

    Raises:
        KubeError: where the pages do not end.
    """
    if page.following and page.following == before:
        message = f"the API server must answer with another page of {path}, got the same one again"
        raise KubeError(0, NOT_UNDERSTOOD, message)
    if page.following and time.monotonic() > deadline:
        raise KubeError(0, "Unreachable", f"the list of {path} must be whole within {LIST_SECONDS:g} s")
    return page.following


def read_event(line: bytes) -> tuple[str, Raw]:
    """Return what kind of event a line of a watch tells of, and the object."""
    try:
        event: Any = read_object(line)
    except KubeError as error:
        raise WatchBrokenError(error.status, error.reason, error.message) from error
    kind, body = event.get("type"), event.get("object")
    if kind == "ERROR":
        # The status of an error, if the server keeps to its own rules.
        status = body if isinstance(body, dict) else {}
        code = status.get("code") if isinstance(status.get("code"), int) else 500
        message = str(status.get("message") or "the watch failed")[:SAID_CHARACTERS]
        raise WatchBrokenError(code or 500, str(status.get("reason") or ""), message)
    is_object = _are_objects([body]) if kind in _CHANGES else kind == "BOOKMARK" and isinstance(body, dict)
    metadata = body.get("metadata") if is_object else None
    # Of an object that is odd the watch goes on; a bookmark tells nothing else.
    is_known = isinstance(metadata, dict) and (
        has_version(metadata) if kind == "BOOKMARK" else bool(metadata.get("resourceVersion"))
    )
    if not is_known:
        strange = _not_understood("an event of a watch", event)
        raise WatchBrokenError(strange.status, strange.reason, strange.message)
    return str(kind), body


def read_object(content: bytes) -> Raw:
    """Return the object that an answer holds.

    Raises:
        KubeError: where it holds none.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _not_understood("a JSON object", content)
    return body


def _check_object(body: Raw) -> Raw:
    if not isinstance(body.get("metadata"), dict):
        raise _not_understood("an object with metadata", body)
    return body


def has_version(metadata: Raw) -> bool:
    """Say whether there is a version to watch from: of any other the API server says that it is broken itself."""
    return str(metadata.get("resourceVersion")).isdecimal()


def _are_objects(items: Any) -> bool:
    """Say whether these are objects of the API, by what each one has whatever its kind."""
    return isinstance(items, list) and all(
        isinstance(item, dict)
        and isinstance(metadata := item.get("metadata"), dict)
        and all(isinstance(metadata.get(name), str) and metadata[name] for name in ("name", "uid"))
        for item in items
    )


def _not_understood(wanted: str, got: Any) -> KubeError:
    """Return the error of an answer that is none: something between here and the API server may have made it."""
    # Of a large one no second copy.
    message = got[: 4 * SAID_CHARACTERS].decode(errors="replace") if isinstance(got, bytes) else repr(got)
    return KubeError(0, NOT_UNDERSTOOD, f"the API server must answer with {wanted}, got {message[:SAID_CHARACTERS]!r}")


def unreachable(error: Exception) -> KubeError:
    """Return the error of a request without a whole answer."""
    return KubeError(0, "Unreachable", f"the API server does not answer: {str(error) or type(error).__name__}")


def read_error(status: int, content: bytes) -> KubeError:
    """Return the error of an answer with a status from 400 on."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = {}
    if not isinstance(body, dict):
        body = {}
    message = str(
        body.get("message") or content[: 4 * SAID_CHARACTERS].decode(errors="replace") or f"HTTP status {status}"
    )
    return KubeError(status, str(body.get("reason") or ""), message[:SAID_CHARACTERS])


def _parse_warning(text: str) -> str:
    """Return the text of a ``Warning`` header: ``299 - "text"`` (RFC 7234, section 5.5)."""
    _, _, quoted = text.partition('"')
    return quoted.rpartition('"')[0].replace('\\"', '"').replace("\\\\", "\\") or text
