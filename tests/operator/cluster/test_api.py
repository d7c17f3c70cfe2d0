"""What the API server's answers mean to whoever asked."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from study_operator.cluster import api as kube_module
from study_operator.cluster import streams
from study_operator.cluster.api import Kube, KubeError, WatchBrokenError
from study_operator.metrics import Metrics

Write = Callable[[bytes], Any]

TOO_EARLY = (
    'jobs.batch "shop-prepare" is forbidden: cannot set blockOwnerDeletion in this case because cannot find RESTMapping'
    ' for APIVersion finetune.study/v1alpha1 Kind FineTuneStudy: no matches for kind "FineTuneStudy"'
)


@pytest.mark.parametrize(
    ("status", "reason", "message", "is_transient"),
    [
        (0, "Unreachable", "the API server does not answer", True),
        (429, "TooManyRequests", "too many requests", True),
        (503, "ServiceUnavailable", "not yet", True),
        (403, "Forbidden", TOO_EARLY, True),
        (403, "Forbidden", 'jobs.batch is forbidden: User "operator" cannot create resource "jobs"', False),
        (403, "", "<html>Please sign in to the network.</html>", True),
        (404, "NotFound", "not found", False),
        (404, "", "404 page not found", True),
        (422, "Invalid", "spec is invalid", False),
    ],
)
def test_what_may_pass_by_itself_is_told_from_what_somebody_must_mend(
    status: int, reason: str, message: str, is_transient: bool
) -> None:
    assert KubeError(status, reason, message).is_transient is is_transient


@contextmanager
def a_server_that_answers(write_answer: Callable[[Write], None]) -> Iterator[Kube]:
    """Start a server on loopback whose answers to everything are written by the test; yield who asks it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                write_answer(self.wfile.write)
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    settings = Configuration()
    settings.host = f"http://127.0.0.1:{server.server_port}"
    try:
        yield Kube(ApiClient(settings), Metrics())
    finally:
        server.shutdown()
        server.server_close()


def whole(content: bytes) -> Callable[[Write], None]:
    return lambda write: write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))


@pytest.mark.parametrize(
    "content",
    [
        b"<html><body>Please sign in</body></html>",
        b"",
        b"null",
        b"[]",
        b'"ok"',
        b"{}",
        b'{"kind": "Lease", "metadata": [1]}',
        b'{"kind": "Lease", "metadata": null}',
        b'{"kind": "Lease", "spec": {',
        b'{"kind": "Lease", "spec": "\xff\xfe"}',
        b'{"a":' * 100_000,
    ],
    ids=[
        "HTML",
        "nothing",
        "null",
        "a list",
        "a string",
        "an object of no kind",
        "metadata that is a list",
        "metadata that is null",
        "half a document",
        "no UTF-8",
        "deeper than Python's stack",
    ],
)
def test_an_answer_that_is_no_object_is_no_answer(content: bytes) -> None:
    with a_server_that_answers(whole(content)) as kube, pytest.raises(KubeError) as caught:
        kube.get("/apis/coordination.k8s.io/v1/namespaces/home/leases/operator")
    assert caught.value.is_transient
    assert caught.value.message.startswith("the API server must answer with ")


def test_connections_are_used_again_after_whole_answers() -> None:
    with a_server_that_answers(whole(b'{"kind": "Lease", "metadata": {}}')) as kube:
        for _ in range(3):
            kube.get("/lease")
        pools = kube._client.rest_client.pool_manager.pools
        assert [pools.get(key).num_connections for key in pools.keys()] == [1]  # noqa: SIM118


def test_an_answer_that_drips_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "REQUEST_SECONDS", 0.3)

    def drip(write: Write) -> None:
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            write(b"x")
            time.sleep(0.02)

    with a_server_that_answers(drip) as kube, pytest.raises(KubeError, match=r"must be whole within 0\.3 s"):
        kube.get("/lease")


def test_an_answer_without_an_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "OBJECT_BYTES", 200_000)

    def pour(write: Write) -> None:
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            write(b"x" * 10_000)

    with a_server_that_answers(pour) as kube, pytest.raises(KubeError, match="must have at most 200000 bytes"):
        kube.get("/lease")


@pytest.mark.parametrize(
    "content", [b"404 page not found\n", b"<html>Not Found</html>", b"null", b'{"kind": "Status"}']
)
def test_that_an_object_is_gone_is_believed_from_the_api_server_alone(content: bytes) -> None:
    def write_answer(write: Write) -> None:
        write(b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))

    with a_server_that_answers(write_answer) as kube:
        for ask in (kube.get, lambda path: kube.delete(path, uid="1")):
            with pytest.raises(KubeError) as caught:
                ask("/apis/batch/v1/namespaces/shop/jobs/shop-t000-r0")
            assert caught.value.is_transient


def test_a_list_whose_pages_never_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    same = whole(b'{"kind": "List", "metadata": {"resourceVersion": "1", "continue": "on"}, "items": []}')
    for read in (lambda kube: kube.list("/api/v1/pods"), read_pages):
        with a_server_that_answers(same) as kube, pytest.raises(KubeError, match="must answer with another page"):
            read(kube)
    monkeypatch.setattr(kube_module, "LIST_SECONDS", 0.2)
    numbers = itertools.count()

    def write_another(write: Write) -> None:
        metadata = b'{"resourceVersion": "1", "continue": "%d"}' % next(numbers)
        whole(b'{"kind": "List", "metadata": %s, "items": []}' % metadata)(write)

    with a_server_that_answers(write_another) as kube, pytest.raises(KubeError, match=r"must be whole within 0\.2 s"):
        kube.list("/api/v1/pods")
    monkeypatch.setattr(streams, "LIST_SECONDS", 0.2)
    with a_server_that_answers(write_another) as kube, pytest.raises(KubeError, match="must be whole within"):
        read_pages(kube)


def read_pages(kube: Kube) -> None:
    """Read a list as the watches do."""

    async def read() -> None:
        async with streams.open_streams(kube) as opened:
            async for _ in opened.pages("/api/v1/pods"):
                pass

    asyncio.run(read())


def test_a_watch_that_drips_and_tells_nothing_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "WATCH_IDLE_SECONDS", 0.3)

    def drip(write: Write) -> None:
        write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            write(b"x")
            time.sleep(0.02)

    with a_server_that_answers(drip) as kube, pytest.raises(WatchBrokenError, match=r"no event within 0\.3 s"):
        asyncio.run(watch(kube))


async def watch(kube: Kube) -> None:
    """Follow a watch to its end."""
    async with streams.open_streams(kube) as opened:
        async for _ in opened.watch("/api/v1/pods", "1"):
            pass
