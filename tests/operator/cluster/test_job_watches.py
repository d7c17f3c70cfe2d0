"""Watches on a server that tells what is no event, by a stand-in for the API server on loopback."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from builders.odd_api_server import NO_EVENTS, Server, a_job, added, line
from study_operator.cluster import api, job_watches, streams
from study_operator.cluster.api import KubeError, path_of
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.job_status import describe_job
from study_operator.cluster.job_watches import Watches
from study_operator.metrics import Metrics
from study_operator.names import StudyKey
from study_operator.reconcile.runner import JobPhase

Raw = dict[str, Any]


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


@pytest.mark.parametrize("tale", NO_EVENTS)
def test_what_is_no_event_ends_neither_a_watch_nor_its_thread_and_everything_is_listed_again(
    server: Server, threads_that_died: list[str], monkeypatch: pytest.MonkeyPatch, tale: bytes
) -> None:
    monkeypatch.setattr(streams, "LINE_BYTES", 4096 if b"aaaa" in tale else streams.LINE_BYTES)
    reported = Told()
    memory = Memory(Metrics(), reported)
    for tales in server.tales.values():
        tales.append(tale)
    # What is told after the list, by the second watch.
    server.tales["jobs"].append(line("ADDED", a_job("s1-t002-r0", 13)))
    Watches(server.kube(), memory, ["team"]).start()

    assert reported.wait_for(lambda: names_of(memory) == {"s1-t000-r0", "s1-t002-r0"})
    assert threads_that_died == []
    assert server.asked.count(("jobs", "")) == 2


def test_a_version_that_is_refused_is_not_asked_for_for_ever(server: Server, threads_that_died: list[str]) -> None:
    reported = Told()
    memory = Memory(Metrics(), reported)
    server.tales["jobs"] += [(400, b'{"kind": "Status", "code": 400, "reason": "BadRequest"}'), added()]
    Watches(server.kube(), memory, ["team"]).start()

    assert reported.wait_for(lambda: len(names_of(memory)) == 2)
    assert server.asked.count(("jobs", "")) == 2
    assert threads_that_died == []


def test_of_a_page_that_is_too_large_a_smaller_one_is_asked_for(
    server: Server, threads_that_died: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (api, streams):
        monkeypatch.setattr(module, "ANSWER_BYTES", 10_000)
    server.lists["jobs"] = [a_job(f"s1-t{number:03d}-r0") for number in range(110)]
    memory = Memory(Metrics())
    kinds = Watches(server.kube(), memory, ["team"])
    kinds.start()
    wait_until_synced(kinds)

    assert len(names_of(memory)) == 110
    assert server.limits[:5] == [500, 250, 125, 62, 31]
    assert len(server.kube().list(path_of("batch/v1", "jobs", "team"))[0]) == 110
    assert threads_that_died == []


def test_an_object_that_is_too_large_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "ANSWER_BYTES", 10_000)
    server.lists["jobs"] = [a_job(annotations={"a": "b" * 10_000})]
    with pytest.raises(KubeError, match="at most 10000 bytes"):
        server.kube().list(path_of("batch/v1", "jobs", "team"))
    assert server.limits == [500, 250, 125, 62, 31, 15, 7, 3, 1]


def test_a_stream_that_ends_in_the_middle_of_a_line_goes_on_from_the_last_whole_event(
    server: Server, threads_that_died: list[str]
) -> None:
    reported = Told()
    memory = Memory(Metrics(), reported)
    server.tales["jobs"] += [added(11) + line("ADDED", a_job("lost", 12))[:-30], line("ADDED", a_job("seen", 12))]
    Watches(server.kube(), memory, ["team"]).start()

    assert reported.wait_for(lambda: names_of(memory) == {"s1-t000-r0", "s1-t001-r0", "seen"})
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
    reported = Told()
    memory = Memory(Metrics(), reported)
    server.lists["pods"] = [strange, a_pod("listed")]
    server.tales["pods"] = [line("ADDED", strange) + line("MODIFIED", strange) + line("ADDED", a_pod("told"))]
    Watches(server.kube(), memory, ["team"]).start()

    def pods() -> set[str]:
        return {pod.name for _, pods, _ in memory.jobs_of("team", "study-1") for pod in pods}

    assert reported.wait_for(lambda: pods() == {"listed", "told"})
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
    message = wait_for_trouble(kinds, is_there=True)
    assert message == "nobody follows /api/v1/namespaces/team/events any more"


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
    assert re.search(r"have been stuck for \d+ s", wait_for_trouble(kinds, is_there=True))
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
    assert (describe_job(job, pods).phase, describe_job(job, pods).orphans) == (JobPhase.RUNNING, ("p1",))
    # One that is on its way out is left to itself, and one that its Job still controls to that.
    leaving = [replace(pods[0], is_deleting=True)], [replace(pods[0], is_orphaned=False)]
    assert [describe_job(job, each).orphans for each in leaving] == [(), ()]
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


def test_a_job_that_changes_hands_is_nothing_to_its_first_study() -> None:
    memory = Memory(Metrics())
    memory.put_job(a_job())
    owner = {"kind": "FineTuneStudy", "uid": "study-2", "controller": True}
    memory.put_job(a_job(version=11, ownerReferences=[owner]))
    assert memory.jobs_of("team", "study-1") == []
    [(job, _, _)] = memory.jobs_of("team", "study-2")
    memory.forget_job(job)
    assert memory.jobs_of("team", "study-1") == memory.jobs_of("team", "study-2") == []


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


def test_of_many_refusals_of_a_job_the_latest_is_kept_in_whatever_order_they_are_listed() -> None:
    memory = Memory(Metrics())
    memory.put_job(a_job())
    for message, first, last in (("late", 10, 50), ("early", 5, 20)):
        event = {
            "kind": "Event",
            "metadata": {"name": message, "namespace": "team", "creationTimestamp": f"2026-01-01T12:00:{first:02}Z"},
            "reason": "FailedCreate",
            "message": message,
            "involvedObject": {"kind": "Job", "uid": "uid-of-s1-t000-r0"},
            "firstTimestamp": f"2026-01-01T12:00:{first:02}Z",
            "lastTimestamp": f"2026-01-01T12:00:{last}Z",
        }
        memory.see_refusal("ADDED", event)
    [(_, _, refusal)] = memory.jobs_of("team", "study-1")
    assert refusal is not None
    assert (refusal.message, refusal.first_at.second, refusal.last_at.second) == ("late", 5, 50)
