"""Buckets whose servers drip, are silent or pour: what is asked of them ends in time. And refused addresses."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from trial_trainer.artifacts import ArtifactError, ArtifactStore, S3Access, open_store, within

Behaviour = Callable[[socket.socket], None]


@contextmanager
def a_server(behave: Behaviour) -> Iterator[int]:
    """Start a server on loopback that does this with each connection; yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                behave(connection)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]


def a_store(port: int, host: str = "127.0.0.1", refused: tuple[str, ...] = ()) -> ArtifactStore:
    access = S3Access(
        is_from_environment=False,
        endpoint=f"http://{host}:{port}",
        addressing_style="path",
        access_key_id="key",
        secret_access_key="secret",
        refused_networks=refused,
    )
    return open_store("s3://bucket/study", access.impatient())


def asked(connection: socket.socket) -> None:
    connection.recv(65536)


def drip(connection: socket.socket, content: bytes) -> None:
    for letter in content:
        connection.send(bytes([letter]))
        time.sleep(0.02)


def is_silent(connection: socket.socket) -> None:
    asked(connection)
    time.sleep(60)


def drips_its_head(connection: socket.socket) -> None:
    asked(connection)
    drip(connection, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000)


def drips_its_body(connection: socket.socket) -> None:
    asked(connection)
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    drip(connection, b"x" * 100_000)


def lists_without_an_end(connection: socket.socket) -> None:
    number = 0
    while True:
        asked(connection)
        number += 1
        body = (
            f"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>study/{number}</Key></Contents>"
            f"<NextContinuationToken>{number}</NextContinuationToken></ListBucketResult>"
        ).encode()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@pytest.mark.parametrize("behave", [is_silent, drips_its_head, drips_its_body])
def test_a_read_ends_in_time_however_slow_the_answer_is(behave: Behaviour) -> None:
    with a_server(behave) as port:
        store, begun = a_store(port), time.monotonic()
        with pytest.raises(ArtifactError), within(0.5):
            store.read("measurement.json")
        # Far from the twenty seconds that one read of a socket may take.
        assert time.monotonic() - begun < 10


def test_a_list_without_an_end_ends_in_time() -> None:
    with a_server(lists_without_an_end) as port, pytest.raises(ArtifactError), within(0.5):
        [*a_store(port).list("")]


def test_what_begins_after_the_time_is_refused_and_a_new_time_is_a_new_one() -> None:
    def answers(connection: socket.socket) -> None:
        while True:
            asked(connection)
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with a_server(answers) as port:
        store = a_store(port)
        with within(0.2):
            assert store.read("a") == b"ok"
            time.sleep(0.4)
            with pytest.raises(ArtifactError):
                store.read("a")
        with within(5):
            assert store.read("a") == b"ok"
        assert store.read("a") == b"ok"


def test_a_connection_that_another_thread_uses_is_left_alone_when_a_time_is_over() -> None:
    may_answer = threading.Event()

    def answers(connection: socket.socket) -> None:
        asked(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        asked(connection)
        may_answer.wait(10)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with a_server(answers) as port:
        store, found = a_store(port), []
        with within(0.3):
            assert store.read("a") == b"ok"
            other = threading.Thread(target=lambda: found.append(store.read("b")))
            other.start()
            time.sleep(0.6)
        may_answer.set()
        other.join(10)
        assert found == [b"ok"]


def test_an_object_that_is_too_large_is_not_read() -> None:
    sent = 0

    def pours(connection: socket.socket) -> None:
        nonlocal sent
        asked(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3221225472\r\n\r\n")
        while True:
            sent += connection.send(b"x" * 65536)

    with a_server(pours) as port:
        with pytest.raises(ArtifactError, match="must have at most 1000 bytes") as caught:
            a_store(port).read("measurement.json", 1000)
        assert caught.value.reason == "ObjectTooLarge"
    # What fits into the buffers of two sockets.
    assert sent < 64 * 1024 * 1024


@pytest.mark.parametrize("most_bytes", [None, 1000])
def test_an_answer_that_is_cut_off_is_no_object(most_bytes: int | None) -> None:
    def hangs_up(connection: socket.socket) -> None:
        asked(connection)
        connection.send(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"step": 1')

    with a_server(hangs_up) as port:
        with pytest.raises(ArtifactError) as caught:
            a_store(port).read("measurement.json", most_bytes)
        assert caught.value.reason == "ObjectTruncated"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_that_is_refused_gets_not_a_byte_whatever_its_name(host: str) -> None:
    heard = []

    def listens(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))

    with a_server(listens) as port, pytest.raises(ArtifactError, match="which is not talked to") as caught:
        a_store(port, host, ("127.0.0.0/8", "::1/128")).read("measurement.json")
    assert caught.value.reason == "EndpointRefused"
    assert not any(heard)


def test_an_answer_that_is_none_of_s3_is_not_repeated() -> None:
    def tells_secrets(connection: socket.socket) -> None:
        asked(connection)
        body = b"<html>the metadata service's secret</html"
        connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with a_server(tells_secrets) as port, pytest.raises(ArtifactError) as caught:
        [*a_store(port).list("")]
    assert "secret" not in str(caught.value)
