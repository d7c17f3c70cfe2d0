"""A stand-in for the API server on loopback, which lists and tells whatever a test wants."""

from __future__ import annotations

import http.server
import json
import threading
from collections import defaultdict
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from study_operator import names
from study_operator.cluster.api import Kube
from study_operator.metrics import Metrics

Raw = dict[str, Any]
Said = bytes | tuple[int, bytes]
"""The body of an answer; its status besides, where that is not 200."""

_VERSION = {"groupVersion": names.API_VERSION, "version": names.VERSION}
_NAMESPACES = {"name": "namespaces", "singularName": "namespace", "namespaced": False, "kind": "Namespace", "verbs": []}
DISCOVERY: dict[str, Raw] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": {"resources": [_NAMESPACES]},
    "/apis": {"groups": [{"name": names.GROUP, "versions": [_VERSION], "preferredVersion": _VERSION}]},
    f"/apis/{names.API_VERSION}": {},
}


def a_job(name: str = "s1-t000-r0", version: int = 10, **metadata: Any) -> Raw:
    """Return a trial's Job as the API server has it."""
    return {
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": f"uid-of-{name}",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T12:00:00Z",
            "labels": {"finetune.study/study": "s1", "finetune.study/kind": "trial"},
            "ownerReferences": [{"kind": "FineTuneStudy", "uid": "study-1", "controller": True}],
            **metadata,
        },
        "spec": {"completions": 1},
    }


def line(kind: str, body: Any) -> bytes:
    """Return an event as a watch tells it."""
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


def added(version: int = 11) -> bytes:
    return line("ADDED", a_job("s1-t001-r0", version))


class Server:
    """Lists what it is given, and tells each watch the next of its tales; after the last one, nothing more."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {"jobs": [a_job()], "pods": [], "events": []}
        self.tales: dict[str, list[Said]] = defaultdict(list, jobs=[], pods=[], events=[])
        self.answers: list[Said] = []
        """Of lists, before the right ones."""
        self.refusal: Said | None = None
        """What everything but the question for what there is is answered with."""
        self.resources: list[Raw] = []
        """What there is of the API group that is asked for."""
        self.discoveries: list[Said] = []
        """Of what there is, before the right answers."""
        self.asked: list[tuple[str, str]] = []
        """What was asked for, and from which version on; a list has none."""
        self.limits: list[int] = []
        """How many objects the pages might have that were asked for."""
        self.forbidden: set[str] = set()
        """Namespaces in which nothing may be listed."""
        self.closing = threading.Event()
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                plural = path.rpartition("/")[2]
                words = dict(word.split("=") for word in query.split("&") if "=" in word)
                stand_in.asked.append((plural, words.get("resourceVersion", "")))
                if stand_in.forbidden.intersection(path.split("/")):
                    self.send_error(403)
                elif path in DISCOVERY:
                    body = {"resources": stand_in.resources} | DISCOVERY[path]
                    self.say(stand_in.discoveries.pop(0) if stand_in.discoveries else json.dumps(body).encode())
                elif stand_in.refusal is not None:
                    self.say(stand_in.refusal)
                elif "watch" not in words:
                    self.say(stand_in.answers.pop(0) if stand_in.answers else stand_in.page(plural, words))
                elif stand_in.tales[plural]:
                    self.say(stand_in.tales[plural].pop(0))
                else:
                    self.send_response(200)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.wfile.flush()
                    stand_in.closing.wait()

            def say(self, message: Said) -> None:
                status, body = message if isinstance(message, tuple) else (200, message)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kube(self) -> Kube:
        settings = Configuration()
        settings.host = f"http://127.0.0.1:{self._server.server_port}"
        return Kube(ApiClient(settings), Metrics())

    def page(self, plural: str, words: dict[str, str]) -> bytes:
        """Return a page of a list."""
        items, begin, limit = self.lists.get(plural, []), int(words.get("continue", 0)), int(words["limit"])
        self.limits.append(limit)
        following = str(begin + limit) if begin + limit < len(items) else ""
        metadata = {"resourceVersion": "10", "continue": following}
        return json.dumps({"metadata": metadata, "items": items[begin : begin + limit]}).encode()

    def refuse(self, refusal: Said) -> None:
        """End all watches, and answer so from now on."""
        self.refusal = refusal
        self.closing.set()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


NO_EVENTS = [
    pytest.param(b"upstream connect error or disconnect/reset before headers\n", id="a proxy's word"),
    pytest.param(b"<html>\n<body>502 Bad Gateway</body>\n</html>\n", id="HTML"),
    pytest.param(added(12)[:-20] + b"\n", id="JSON that is cut off"),
    pytest.param(b"null\n", id="null"),
    pytest.param(b"[]\n", id="a list"),
    pytest.param(b"5\n", id="a number"),
    pytest.param(b'"ADDED"\n', id="a word"),
    pytest.param(b"{}\n", id="an empty object"),
    pytest.param(b"\xff\xfe\x00\n", id="no text"),
    pytest.param(b"[" * 100_000 + b"\n", id="brackets without end"),
    pytest.param(json.dumps({"kind": "Status", "status": "Failure", "code": 500}).encode() + b"\n", id="a bare status"),
    pytest.param(line("ERROR", {"kind": "Status", "code": 500, "message": "cannot decode"}), id="an error"),
    pytest.param(line("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}), id="a version that is too old"),
    pytest.param(line("ERROR", {"kind": "Status", "code": "many"}), id="an error whose code is no number"),
    pytest.param(line("ERROR", None), id="an error without a status"),
    pytest.param(line("ERROR", ["no"]), id="an error with a list"),
    pytest.param(line("RENAMED", a_job()), id="a kind of event that does not exist"),
    pytest.param(line("ADDED", None), id="an event without an object"),
    pytest.param(line("ADDED", {"metadata": None}), id="an object without metadata"),
    pytest.param(line("MODIFIED", {"metadata": {"resourceVersion": "12"}}), id="an object without a name"),
    pytest.param(line("DELETED", {"metadata": {"name": "x", "uid": "y"}}), id="an object without a version"),
    pytest.param(line("BOOKMARK", {"metadata": {}}), id="a bookmark without a version"),
    pytest.param(line("BOOKMARK", {"metadata": {"resourceVersion": "x y"}}), id="a bookmark whose version is none"),
    pytest.param(b'{"type": "ADDED", "object": {"x": "' + b"a" * 5000 + b'"}}\n', id="a line that is too long"),
    pytest.param(b"a" * 5000, id="a line that never ends"),
]
