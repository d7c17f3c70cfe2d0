"""kopf itself, on a server whose answers are none: it goes on, and sees every study."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from builders.odd_api_server import DISCOVERY, NO_EVENTS, Raw, Said, Server, line
from study_operator import names
from study_operator.cluster import api, kopf_session, streams, study_watch
from study_operator.cluster.study_store import Studies
from study_operator.cluster.study_watch import run_kopf

STUDIES = names.PLURAL


def a_study(name: str, version: int) -> Raw:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-of-{name}", "resourceVersion": str(version)},
        "spec": {},
    }


def a_status(code: int, reason: str) -> Said:
    return code, json.dumps({"kind": "Status", "status": "Failure", "code": code, "reason": reason}).encode()


class Kopf:
    """kopf in a thread of its own, until the server says that there are no studies."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._news = threading.Condition()
        self.ended: Exception | None = None
        self.studies = Studies(server.kube())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            run_kopf(self._server.kube(), self.studies, self._wake, namespaces=["team"])
        except Exception as error:  # noqa: BLE001  # whatever it ends with is what the test looks at
            self.ended = error
        self._wake(None)

    def _wake(self, _key: Any) -> None:
        with self._news:
            self._news.notify_all()

    def names(self) -> set[str]:
        return {body["metadata"]["name"] for body in self.studies.bodies()}

    def wait_for(self, names: set[str]) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.names() == names or not self._thread.is_alive(), timeout=60)
        assert self.ended is None

    def end(self) -> None:
        """Let the studies' definition be gone, with which kopf ends."""
        self._server.refuse(a_status(404, "NotFound"))
        assert self.has_ended()

    def has_ended(self) -> bool:
        """Wait until it has."""
        self._thread.join(60)
        return not self._thread.is_alive()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(study_watch, "LIST_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(kopf_session, "SHORTEST_WATCH_SECONDS", 0.01)
    monkeypatch.setattr(study_watch._Backoffs, "__iter__", lambda _: iter([0.01] * 1000))
    server = Server()
    resource = {"name": STUDIES, "singularName": "finetunestudy", "namespaced": True, "kind": names.KIND}
    server.resources = [{**resource, "verbs": ["get", "list", "watch"]}]
    server.lists[STUDIES] = [a_study("listed", 10)]
    yield server
    server.close()


REFUSED = [
    pytest.param(a_status(400, "BadRequest"), id="400"),
    pytest.param(a_status(401, "Unauthorized"), id="401"),
    pytest.param(a_status(403, "Forbidden"), id="403"),
    pytest.param(a_status(410, "Expired"), id="410"),
    pytest.param(a_status(429, "TooManyRequests"), id="429"),
    pytest.param(a_status(500, "InternalError"), id="500"),
    pytest.param((404, b"404 page not found\n"), id="404 of a proxy"),
    pytest.param((418, b"<html>"), id="418 in HTML"),
]


@pytest.mark.parametrize("tale", [*NO_EVENTS, *REFUSED, b""])
def test_whatever_a_watch_is_told_kopf_goes_on(server: Server, monkeypatch: pytest.MonkeyPatch, tale: Said) -> None:
    monkeypatch.setattr(streams, "LINE_BYTES", 4096 if b"aaaa" in tale else streams.LINE_BYTES)
    server.tales[STUDIES] += [tale, line("ADDED", a_study("told", 12))]
    kopf = Kopf(server)

    kopf.wait_for({"listed", "told"})
    kopf.end()


NO_LISTS = [
    b"<html>",
    b"null",
    b"[]",
    b"",
    b"{}",
    b'{"kind": "Status"}',
    b'{"metadata": null, "items": null}',
    b"[" * 9999,
]


@pytest.mark.parametrize("answer", [*NO_LISTS, *REFUSED])
def test_a_list_that_is_none_is_asked_for_again(server: Server, answer: Said) -> None:
    server.answers.append(answer)
    kopf = Kopf(server)

    kopf.wait_for({"listed"})
    kopf.end()


@pytest.mark.parametrize("answer", [b"<html>", b"{}", a_status(401, "Unauthorized")])
def test_what_there_is_on_the_server_is_asked_for_again(server: Server, answer: Said) -> None:
    server.discoveries.append(answer)
    kopf = Kopf(server)

    kopf.wait_for({"listed"})
    kopf.end()


def test_an_expired_page_of_a_list_lets_it_begin_anew(server: Server) -> None:
    first = {"metadata": {"resourceVersion": "10", "continue": "on"}, "items": [a_study("listed", 10)]}
    server.answers += [json.dumps(first).encode(), a_status(410, "Expired")]
    server.lists[STUDIES].append(a_study("on the next page", 10))
    kopf = Kopf(server)

    kopf.wait_for({"listed", "on the next page"})
    kopf.end()


def test_an_answer_of_any_size_is_not_read_to_its_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "ANSWER_BYTES", 50_000)
    monkeypatch.setattr(streams, "ANSWER_BYTES", 50_000)
    server.answers.append(b"{" + b" " * 100_000)
    kopf = Kopf(server)

    kopf.wait_for({"listed"})
    kopf.end()


def test_a_definition_that_is_gone_ends_kopf_so_that_the_process_begins_anew(server: Server) -> None:
    kopf = Kopf(server)
    kopf.wait_for({"listed"})
    kopf.end()
    assert "404" in str(kopf.ended.__cause__)


def test_where_the_whole_api_is_gone_kopf_ends_too_although_its_404_might_be_a_proxys(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    kopf = Kopf(server)
    kopf.wait_for({"listed"})
    monkeypatch.setitem(DISCOVERY, "/apis", {"groups": [{"name": "apps", "versions": []}]})
    server.refuse((404, b"404 page not found\n"))
    assert kopf.has_ended()
    assert "404" in str(kopf.ended.__cause__)
