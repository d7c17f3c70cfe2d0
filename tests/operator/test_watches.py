"""Watches on a server that tells what is no event, by a stand-in for the API server on loopback."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from study_operator.cluster import job_watches, streams
from study_operator.cluster.api import Kube, KubeError, path_of
from study_operator.cluster.job_status import describe_job
from study_operator.cluster.job_watches import Memory, Watches
from study_operator.metrics import Metrics
from study_operator.names import StudyKey
from study_operator.reconcile.runner import JobPhase

Raw = dict[str, Any]


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


def a_pod(name: str, **changes: Any) -> Raw:
    """Return a running pod of that Job."""
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-of-{name}",
        "resourceVersion": "20",
        "creationTimestamp": "2026-01-01T12:00:01Z",
        "labels": {"finetune.study/study": "s1"},
        "ownerReferences": [{"kind": "Job", "uid": "uid-of-s1-t000-r0", "controller": True}],
        **changes.pop("metadata", {}),
    }
    state = {"name": "trainer", "state": {"running": {"startedAt": "2026-01-01T12:00:05Z"}}}
    return {
        "kind": "Pod",
        "metadata": metadata,
        "spec": {},
        "status": {"phase": "Running", "containerStatuses": [state]},
        **changes,
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
        self.tales: dict[str, list[bytes]] = {"jobs": [], "pods": [], "events": []}
        self.answers: list[bytes] = []
        """Of lists, before the right ones."""
        self.asked: list[tuple[str, str]] = []
        """What was asked for, and from which version on; a list has none."""
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
                elif "watch" not in words:
                    body = {"metadata": {"resourceVersion": "10"}, "items": stand_in.lists.get(plural, [])}
                    self.say(stand_in.answers.pop(0) if stand_in.answers else json.dumps(body).encode())
                elif stand_in.tales[plural]:
                    self.say(stand_in.tales[plural].pop(0))
                else:
                    self.send_response(200)
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.wfile.flush()
                    stand_in.closing.wait()

            def say(self, body: bytes) -> None:
                self.send_response(200)
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

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class Told:
    """Waits for news of a study without asking again and again."""

    def __init__(self) -> None:
        self._news = threading.Condition()

    def __call__(self, _key: StudyKey) -> None:
        with self._news:
            self._news.notify_all()

    def wait_for(self, is_so: Callable[[], bool]) -> bool:
        with self._news:
            return self._news.wait_for(is_so, timeout=20)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def threads_that_died(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    died: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(f"{args.thread}: {args.exc_value!r}"))
    monkeypatch.setattr(job_watches, "FIRST_WAIT_SECONDS", 0.01)
    return died


def wait_until_synced(kinds: Watches) -> None:
    deadline = time.monotonic() + 20
    while kinds.list_unsynced():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def names_of(memory: Memory) -> set[str]:
    return {job.name for job, _, _ in memory.jobs_of("team", "study-1")}


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
    pytest.param(b'{"type": "ADDED", "object": {"x": "' + b"a" * 5000 + b'"}}\n', id="a line that is too long"),
    pytest.param(b"a" * 5000, id="a line that never ends"),
]


@pytest.mark.parametrize("tale", NO_EVENTS)
def test_what_is_no_event_ends_neither_a_watch_nor_its_thread_and_everything_is_listed_again(
    server: Server, threads_that_died: list[str], monkeypatch: pytest.MonkeyPatch, tale: bytes
) -> None:
    monkeypatch.setattr(streams, "LINE_BYTES", 4096 if b"aaaa" in tale else streams.LINE_BYTES)
    told = Told()
    memory = Memory(Metrics(), told)
    for tales in server.tales.values():
        tales.append(tale)
    # What is told after the list, by the second watch.
    server.tales["jobs"].append(line("ADDED", a_job("s1-t002-r0", 13)))
    Watches(server.kube(), memory, ["team"]).start()

    assert told.wait_for(lambda: names_of(memory) == {"s1-t000-r0", "s1-t002-r0"})
    assert threads_that_died == []
    assert server.asked.count(("jobs", "")) == 2


def test_a_stream_that_ends_in_the_middle_of_a_line_goes_on_from_the_last_whole_event(
    server: Server, threads_that_died: list[str]
) -> None:
    told = Told()
    memory = Memory(Metrics(), told)
    server.tales["jobs"] += [added(11) + line("ADDED", a_job("lost", 12))[:-30], line("ADDED", a_job("seen", 12))]
    Watches(server.kube(), memory, ["team"]).start()

    assert told.wait_for(lambda: names_of(memory) == {"s1-t000-r0", "s1-t001-r0", "seen"})
    assert [version for plural, version in server.asked if plural == "jobs"][:3] == ["", "10", "11"]
    assert threads_that_died == []


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"<html>\n", id="HTML"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b'{"kind": "Status", "status": "Failure", "metadata": {}}', id="a status"),
        pytest.param(b'{"metadata": {"resourceVersion": "9"}, "items": {}}', id="items that are no list"),
        pytest.param(b'{"metadata": {"resourceVersion": "9"}, "items": [null]}', id="an item that is null"),
        pytest.param(
            b'{"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {}}]}', id="an item without a name"
        ),
        pytest.param(b'{"metadata": {"resourceVersion": "9"}, "items": [', id="an answer that is cut off"),
    ],
)
def test_a_list_that_is_none_is_asked_for_again(server: Server, threads_that_died: list[str], answer: bytes) -> None:
    memory = Memory(Metrics())
    server.answers.append(answer)
    kinds = Watches(server.kube(), memory, ["team"])
    kinds.start()

    wait_until_synced(kinds)
    assert names_of(memory) == {"s1-t000-r0"}
    assert threads_that_died == []


@pytest.mark.parametrize(
    "answer", [b"<html>", b"null", b"[]", b"", b"{}", b'{"kind": "Status"}', b'{"metadata": null}', b"[" * 100_000]
)
def test_an_answer_that_is_no_object_is_an_error_of_the_way_there(server: Server, answer: bytes) -> None:
    server.answers.append(answer)
    with pytest.raises(KubeError) as caught:
        server.kube().get(path_of("batch/v1", "jobs", "team", "s1-t000-r0"))
    assert (caught.value.is_transient, caught.value.reason) == (True, "NotUnderstood")
    assert len(caught.value.message) < 5000


@pytest.mark.parametrize(
    "strange",
    [
        pytest.param(a_pod("strange", metadata={"resourceVersion": "new"}), id="a version that is no number"),
        pytest.param(a_pod("strange", metadata={"creationTimestamp": "soon"}), id="a time that is none"),
        pytest.param(a_pod("strange", metadata={"creationTimestamp": None}), id="no time"),
        pytest.param(a_pod("strange", metadata={"ownerReferences": ["me"]}), id="an owner that is a word"),
        pytest.param(a_pod("strange", status=["Running"]), id="a status that is a list"),
        pytest.param(a_pod("strange", status={"containerStatuses": [None]}), id="a container that is null"),
        pytest.param(a_pod("strange", status={"conditions": [{}]}), id="a condition without a type"),
        pytest.param(a_pod("strange", spec={"containers": [{"name": "trainer", "resources": 5}]}), id="resources"),
    ],
)
def test_an_object_that_cannot_be_read_hides_no_other(
    server: Server, threads_that_died: list[str], strange: Raw
) -> None:
    told = Told()
    memory = Memory(Metrics(), told)
    server.lists["pods"] = [strange, a_pod("listed")]
    server.tales["pods"] = [line("ADDED", strange) + line("MODIFIED", strange) + line("ADDED", a_pod("told"))]
    Watches(server.kube(), memory, ["team"]).start()

    def pods() -> set[str]:
        return {pod.name for _, pods, _ in memory.jobs_of("team", "study-1") for pod in pods}

    assert told.wait_for(lambda: pods() == {"listed", "told"})
    assert threads_that_died == []
    # Nor is it listed again and again for it.
    assert server.asked.count(("pods", "")) == 1


@pytest.mark.parametrize("label", ["abc", "", "-1", "²", "9" * 63])
def test_a_pod_with_any_index_in_its_labels_is_seen(server: Server, threads_that_died: list[str], label: str) -> None:
    memory = Memory(Metrics())
    labels = {"batch.kubernetes.io/job-completion-index": label, "finetune.study/study": "s1"}
    server.lists["pods"] = [a_pod("odd", metadata={"labels": labels, "annotations": labels})]
    kinds = Watches(server.kube(), memory, ["team"])
    kinds.start()

    wait_until_synced(kinds)
    ((_, pods, _),) = memory.jobs_of("team", "study-1")
    assert [pod.name for pod in pods] == ["odd"]
    assert threads_that_died == []


def test_a_watch_that_ends_at_once_again_and_again_is_asked_for_ever_more_rarely(
    server: Server, threads_that_died: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    done = threading.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) >= 8:
            done.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(job_watches, "FIRST_WAIT_SECONDS", 100.0)
    monkeypatch.setattr(job_watches, "LONGEST_WAIT_SECONDS", 800.0)
    server.tales["jobs"] = [b""] * 20
    Watches(server.kube(), Memory(Metrics()), ["team"], pause=pause).start()

    assert done.wait(20)
    first, *_, last = pauses
    assert 50 <= first <= 150 and 400 <= last <= 1200
    assert threads_that_died == []


def test_a_namespace_that_cannot_be_listed_holds_up_no_other(server: Server, threads_that_died: list[str]) -> None:
    synced: list[str | None] = []
    done = threading.Event()

    def on_synced(namespace: str | None) -> None:
        synced.append(namespace)
        done.set()

    server.forbidden.add("gone")
    kinds = Watches(server.kube(), Memory(Metrics()), ["gone", "team"], on_synced=on_synced)
    kinds.start()
    assert done.wait(20)
    assert synced == ["team"]
    assert (kinds.is_synced("team"), kinds.is_synced("gone")) == (True, False)
    assert {path.split("/")[-2] for path in kinds.list_unsynced()} == {"gone"}
    done.clear()
    server.forbidden.clear()
    assert done.wait(20)
    assert synced == ["team", "gone"]
    assert (kinds.list_unsynced(), threads_that_died) == ([], [])


def test_where_all_namespaces_are_watched_together_each_is_synced_when_all_are(server: Server) -> None:
    kinds = Watches(server.kube(), Memory(Metrics()), [])
    assert not kinds.is_synced("team")
    kinds.start()
    wait_until_synced(kinds)
    assert kinds.is_synced("team") and kinds.is_synced("any")


def test_a_hundred_namespaces_take_one_thread(server: Server, threads_that_died: list[str]) -> None:
    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if "process_request" not in thread.name]

    before = ours()
    kinds = Watches(server.kube(), Memory(Metrics()), [f"team-{number}" for number in range(100)])
    kinds.start()
    wait_until_synced(kinds)
    # And one that looks up names.
    assert len(set(ours()) - set(before)) <= 2
    assert (kinds.find_trouble(), threads_that_died) == ("", [])


def wait_for_trouble(kinds: Watches, *, is_there: bool) -> str:
    deadline = time.monotonic() + 20
    while bool(kinds.find_trouble()) != is_there:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return kinds.find_trouble()


def test_a_watch_that_nobody_follows_any_more_is_trouble(server: Server, threads_that_died: list[str]) -> None:
    def end(_namespace: str | None) -> None:
        raise asyncio.CancelledError

    kinds = Watches(server.kube(), Memory(Metrics()), ["team"], on_synced=end)
    assert kinds.find_trouble() == ""
    kinds.start()
    said = wait_for_trouble(kinds, is_there=True)
    assert said == "nobody follows /api/v1/namespaces/team/events any more"


def test_what_ends_the_loop_is_seen_by_the_process(server: Server, threads_that_died: list[str]) -> None:
    class Unforeseen(BaseException):
        pass

    def end_all(_namespace: str | None) -> None:
        raise Unforeseen

    Watches(server.kube(), Memory(Metrics()), ["team"], on_synced=end_all).start()
    deadline = time.monotonic() + 20
    while not threads_that_died:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "watches" in threads_that_died[0]


def test_a_loop_that_is_stuck_is_trouble_for_as_long_as_it_is(
    server: Server, threads_that_died: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_watches, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(job_watches, "STUCK_SECONDS", 1.0)
    release = threading.Event()
    kinds = Watches(server.kube(), Memory(Metrics()), ["team"], on_synced=lambda _namespace: release.wait(20) and None)
    kinds.start()
    assert "have been stuck for 1 s" in wait_for_trouble(kinds, is_there=True)
    release.set()
    wait_for_trouble(kinds, is_there=False)
    assert threads_that_died == []


def test_a_pod_stands_for_its_job_that_nobody_has_seen_until_it_has_ended() -> None:
    """As after a restart, of a Job that was deleted without its pod."""
    labels = {
        "finetune.study/study": "s1",
        "finetune.study/study-uid": "study-1",
        "finetune.study/kind": "trial",
        "batch.kubernetes.io/job-name": "s1-t000-r0",
        "batch.kubernetes.io/controller-uid": "uid-of-s1-t000-r0",
    }
    orphan = a_pod("p1", metadata={"labels": labels, "ownerReferences": []})
    memory = Memory(Metrics())
    memory.see_pod("ADDED", orphan)
    # It is looked for before it is believed to be gone.
    [job] = memory.doubtful_of("team", "study-1")
    memory.find_job_again(job, None)
    [(job, pods, _)] = memory.jobs_of("team", "study-1")
    assert (job.name, job.is_gone, [pod.uid for pod in pods]) == ("s1-t000-r0", True, ["uid-of-p1"])
    assert describe_job(job, pods).phase is JobPhase.RUNNING
    # To another study of that name it is nothing.
    assert memory.jobs_of("team", "study-2") == []
    ended = {**orphan, "status": {"phase": "Succeeded"}}
    ended["metadata"] = {**orphan["metadata"], "resourceVersion": "30"}
    memory.see_pod("MODIFIED", ended)
    [(job, pods, _)] = memory.jobs_of("team", "study-1")
    assert describe_job(job, pods).phase is JobPhase.FINISHED
    memory.forget_job(job)
    memory.see_pod("ADDED", ended)
    assert memory.jobs_of("team", "study-1") == []


def test_the_job_that_is_there_counts_more_than_a_pod_without_one() -> None:
    memory = Memory(Metrics())
    memory.put_job(a_job(uid="uid-of-another"))
    labels = {
        "finetune.study/study": "s1",
        "finetune.study/study-uid": "study-1",
        "finetune.study/kind": "trial",
        "batch.kubernetes.io/job-name": "s1-t000-r0",
        "batch.kubernetes.io/controller-uid": "uid-of-s1-t000-r0",
    }
    memory.see_pod("ADDED", a_pod("p1", metadata={"labels": labels, "ownerReferences": []}))
    assert [job.uid for job, _, _ in memory.jobs_of("team", "study-1")] == ["uid-of-another"]
