"""Who may scrape, and with which certificate he is answered."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import urllib3
from prometheus_client import CollectorRegistry, Gauge

from study_operator.cluster import metrics_server, operator
from study_operator.cluster.api import Answer, Kube, KubeError
from study_operator.cluster.metrics_server import MOST_REVIEWS, CertificateError, Certificates, Reviewer, serve_metrics
from testcluster.kube import Authority


class Reviews:
    """Stands for an API server that knows tokens."""

    def __init__(self) -> None:
        self.users: dict[str, Mapping[str, Any]] = {
            "of-prometheus": {"username": "prometheus", "uid": "1", "groups": ["scrapers"], "extra": {"node": ["a"]}},
            "of-somebody": {"username": "somebody"},
        }
        self.readers = {"prometheus"}
        self.asked: list[Mapping[str, Any]] = []
        self.is_away = False
        self.gate = threading.Event()
        self.gate.set()

    def create(self, path: str, body: Mapping[str, Any]) -> Answer:
        self.gate.wait(20)
        if self.is_away:
            raise KubeError(0, "Unreachable", "the API server does not answer")
        self.asked.append(body)
        spec = body["spec"]
        if path == "/apis/authentication.k8s.io/v1/tokenreviews":
            user = self.users.get(spec["token"])
            return Answer(body={"metadata": {}, "status": {"authenticated": True, "user": user} if user else {}})
        assert path == "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        return Answer(body={"metadata": {}, "status": {"allowed": spec["user"] in self.readers}})


@pytest.fixture
def reviews() -> Reviews:
    return Reviews()


def a_reviewer(reviews: Reviews, **options: Any) -> Reviewer:
    return Reviewer(cast(Kube, reviews), **options)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer of-prometheus", 200),
        ("bearer of-prometheus", 200),
        ("Bearer of-somebody", 403),
        ("Bearer of-nobody", 401),
        ("Bearer ", 401),
        ("", 401),
        ("Basic of-prometheus", 401),
        (f"Bearer {'a' * 20_000}", 401),
    ],
)
def test_who_may_read_the_path_may_scrape(reviews: Reviews, header: str, status: int) -> None:
    assert a_reviewer(reviews).review(header) == status


def test_all_that_is_known_of_a_user_is_evaluated(reviews: Reviews) -> None:
    a_reviewer(reviews).review("Bearer of-prometheus")
    _, access = reviews.asked
    assert access["spec"] == {
        "user": "prometheus",
        "uid": "1",
        "groups": ["scrapers"],
        "extra": {"node": ["a"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


def test_an_answer_holds_for_a_while_and_not_for_good(reviews: Reviews) -> None:
    now = 0.0
    reviewer = a_reviewer(reviews, clock=lambda: now)

    def statuses() -> tuple[int, ...]:
        return tuple(reviewer.review(f"Bearer {token}") for token in ("of-prometheus", "of-somebody", "of-nobody"))

    assert statuses() == (200, 403, 401)
    asked = len(reviews.asked)
    reviews.readers = {"somebody"}
    reviews.users["of-nobody"] = {"username": "somebody"}
    now = 9.0
    assert (statuses(), len(reviews.asked)) == ((200, 403, 401), asked)
    now = 11.0
    assert statuses() == (200, 200, 200)
    now = 61.0
    assert statuses() == (403, 200, 200)


def test_nobody_scrapes_while_nobody_knows_who_may_and_that_is_not_kept(reviews: Reviews) -> None:
    reviewer = a_reviewer(reviews)
    reviews.is_away = True
    assert reviewer.review("Bearer of-prometheus") == 503
    reviews.is_away = False
    assert reviewer.review("Bearer of-prometheus") == 200


def test_strange_answers_let_nobody_in(reviews: Reviews, monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (None, [], {"authenticated": "yes", "user": {"username": "a"}}, {"authenticated": True, "user": "a"}):
        answer = Answer(body={"metadata": {}, "status": status})
        monkeypatch.setattr(reviews, "create", lambda _path, _body, answer=answer: answer)
        assert a_reviewer(reviews).review("Bearer x") == 401


def test_a_flood_of_tokens_does_not_flood_the_api_server(reviews: Reviews, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "MOST_TOKENS", 10)
    reviewer = a_reviewer(reviews)
    reviews.gate.clear()
    answers: list[HTTPStatus] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(reviewer.review(f"Bearer {n}"))) for n in range(20)]
    for thread in threads:
        thread.start()
    while len(answers) < 20 - MOST_REVIEWS:
        threading.Event().wait(0.005)
    assert set(answers) == {HTTPStatus.SERVICE_UNAVAILABLE}
    reviews.gate.set()
    for thread in threads:
        thread.join()
    assert answers.count(HTTPStatus.UNAUTHORIZED) == MOST_REVIEWS == len(reviews.asked)
    for number in range(100, 150):
        reviewer.review(f"Bearer {number}")
    assert len(reviewer._known) == 10


# --- The server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("a_gauge", "Of a test.", registry=registry).set(7)
    return registry


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "ca").mkdir()
    return Authority.load(tmp_path / "ca")


def write_pair(directory: Path, pair: tuple[bytes, bytes]) -> None:
    """Put other files in the place of the old ones, as the kubelet does."""
    directory.mkdir(exist_ok=True)
    for name, content in zip(("tls.crt", "tls.key"), pair, strict=True):
        (directory / f".{name}").write_bytes(content)
        (directory / f".{name}").replace(directory / name)


@pytest.fixture
def secured(
    tmp_path: Path, authority: Authority, registry: CollectorRegistry, reviews: Reviews
) -> Iterator[ThreadingHTTPServer]:
    write_pair(tmp_path / "tls", authority.issue("first", ()))
    server = serve_metrics(
        0,
        registry,
        certificates=Certificates(directory=tmp_path / "tls"),
        review=a_reviewer(reviews).review,
        host="127.0.0.1",
    )
    yield server
    server.shutdown()
    server.server_close()


def served_as(port: int, ca: Path) -> str:
    """Return whose certificate a new connection is shown, once it is trusted."""
    context = ssl.create_default_context(cafile=str(ca))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        message = cast(Any, connection.getpeercert())
        return str(dict(pair for (pair,) in message["subject"])["commonName"])


def test_plain_metrics_are_told_to_anybody_and_compressed_for_whom_wants_it(registry: CollectorRegistry) -> None:
    server = serve_metrics(0, registry, host="127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}"
    plain = urllib3.request("GET", f"{url}/metrics", retries=False, timeout=10.0)
    assert (plain.status, b"a_gauge 7.0" in plain.data) == (200, True)
    assert plain.headers["Content-Type"].startswith("text/plain")
    packed = urllib3.request(
        "GET", f"{url}/metrics", headers={"Accept-Encoding": "gzip"}, decode_content=False, retries=False, timeout=10.0
    )
    assert gzip.decompress(packed.data) == plain.data
    assert urllib3.request("GET", f"{url}/other", retries=False, timeout=10.0).status == 404
    server.shutdown()
    server.server_close()


def test_tls_and_a_token_are_asked_for_where_they_must_be(secured: ThreadingHTTPServer, tmp_path: Path) -> None:
    with urllib3.PoolManager(ca_certs=str(tmp_path / "ca/ca.crt"), retries=False, timeout=10.0) as pool:
        url = f"https://127.0.0.1:{secured.server_port}/metrics"
        assert pool.request("GET", url).headers["WWW-Authenticate"] == "Bearer"
        for token, status in (("of-prometheus", 200), ("of-somebody", 403), ("of-nobody", 401)):
            answer = pool.request("GET", url, headers={"Authorization": f"Bearer {token}"})
            assert (answer.status, b"a_gauge" in answer.data) == (status, status == 200)
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", url.replace("https", "http"), retries=False, timeout=10.0)


def test_another_certificate_is_served_without_a_restart_and_a_broken_one_never(
    secured: ThreadingHTTPServer, tmp_path: Path, authority: Authority
) -> None:
    port, ca = secured.server_port, tmp_path / "ca/ca.crt"
    assert served_as(port, ca) == "first"
    # Half of another pair, as it may be seen between two writes.
    certificate, key = authority.issue("second", ())
    (tmp_path / "tls/tls.crt").write_bytes(certificate)
    assert served_as(port, ca) == "first"
    (tmp_path / "tls/tls.key").write_bytes(key)
    assert served_as(port, ca) == "second"
    (tmp_path / "tls/tls.crt").unlink()
    assert served_as(port, ca) == "second"
    write_pair(tmp_path / "tls", authority.issue("third", ()))
    assert served_as(port, ca) == "third"


def test_a_client_that_is_silent_holds_up_no_other(secured: ThreadingHTTPServer, tmp_path: Path) -> None:
    with socket.create_connection(("127.0.0.1", secured.server_port)):
        assert served_as(secured.server_port, tmp_path / "ca/ca.crt") == "first"


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key"])
def test_certificates_that_are_none_are_refused_at_the_start(
    tmp_path: Path, authority: Authority, registry: CollectorRegistry, missing: str
) -> None:
    write_pair(tmp_path, authority.issue("first", ()))
    (tmp_path / missing).write_text("none")
    with pytest.raises(CertificateError, match=r"must hold a certificate, tls\.crt, and its key, tls\.key"):
        serve_metrics(0, registry, certificates=Certificates(directory=tmp_path), host="127.0.0.1")


def test_tokens_are_not_asked_for_in_the_clear(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operator, "connect", lambda _metrics: None)
    assert operator.main(["--metrics-authentication"]) == 2
    assert "--metrics-authentication must be given with --metrics-certificates" in capsys.readouterr().err
