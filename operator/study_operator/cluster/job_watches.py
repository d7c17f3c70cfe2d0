"""What the cluster has of us: Jobs, their pods and their FailedCreate events, as the watches told.

One thread lists and then follows them all, however many namespaces there are; selectors work on the server, so that a
cluster's other ten thousand pods cost nothing. Of each object only what matters is kept (`cluster/job_status.py`).
Called by `cluster/job_runner.py`, which puts into this memory what it has just created itself: whatever a watch has not
told yet, an operator never forgets its own Jobs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, WatchBrokenError, path_of
from study_operator.cluster.job_status import (
    JobState,
    PodState,
    Refusal,
    read_job,
    read_lost_job,
    read_pod,
    read_refusal,
)
from study_operator.cluster.streams import Streams, open_streams
from study_operator.metrics import Metrics
from study_operator.names import StudyKey

log = logging.getLogger(__name__)

Read = TypeVar("Read")

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 15.0
"""Between two tries to list or watch while the API server does not answer."""
LISTS_AT_A_TIME = 8
BEAT_SECONDS, STUCK_SECONDS = 5.0, 60.0
"""The loop has a turn every few seconds; where it has had none for so long, the process is not well."""


_Key = tuple[str, str]
"""Namespace and name."""
_Uid = tuple[str, str]
"""Namespace and UID: a UID alone is what anybody may write into an object of their own."""


class Memory:
    """Jobs, pods and refusals as last seen. May be used by many threads."""

    def __init__(self, metrics: Metrics, on_change: Callable[[StudyKey], None] = lambda _key: None) -> None:
        """Make an empty memory.

        Args:
            metrics: where it is counted how long pods were waited for.
            on_change: told which study has news; called from the watches' threads.
        """
        self._metrics = metrics
        self._on_change = on_change
        self._lock = threading.RLock()
        self._jobs: dict[_Key, JobState] = {}
        self._keys: dict[_Uid, _Key] = {}
        """Namespace and name of a Job by its UID."""
        self._owned: defaultdict[_Uid, dict[_Key, None]] = defaultdict(dict)
        """The Jobs of each study, in the order in which they came, by the study's UID."""
        self._doubtful: set[_Key] = set()
        """Jobs that a watch or a list no longer knows. Only a look at the API server makes them gone."""
        self._pods: defaultdict[_Uid, dict[str, PodState]] = defaultdict(dict)
        """By UID of the Job, then of the pod; pods that are gone are kept for as long as their Job."""
        self._jobs_of_pods: dict[_Uid, str] = {}
        """UID of the Job by that of the pod: one that is left behind no longer names it."""
        self._refusals: dict[_Uid, Refusal] = {}

    def jobs_of(self, namespace: str, owner: str) -> list[tuple[JobState, Sequence[PodState], Refusal | None]]:
        """Return each Job that a study controls, with its pods and why its last pod could not be created."""
        with self._lock:
            jobs = [self._jobs[key] for key in self._owned.get((namespace, owner), ())]
            return [
                (
                    job,
                    tuple(self._pods.get((namespace, job.uid), {}).values()),
                    self._refusals.get((namespace, job.uid)),
                )
                for job in jobs
            ]

    def doubtful_of(self, namespace: str, owner: str) -> list[JobState]:
        """Return the Jobs of a study of which nobody knows whether they are gone."""
        with self._lock:
            return [self._jobs[key] for key in self._owned.get((namespace, owner), ()) if key in self._doubtful]

    def find_job(self, namespace: str, name: str) -> JobState | None:
        """Return a Job by its name."""
        with self._lock:
            return self._jobs.get((namespace, name))

    # Jobs.

    def put_job(self, raw: Raw) -> None:
        """Take in a Job, unless a newer state of it is known."""
        job = _read(read_job, raw)
        if job is None or isinstance(job, _Unreadable):
            return
        with self._lock:
            key = (job.namespace, job.name)
            known = self._jobs.get(key)
            self._doubtful.discard(key)
            if known is not None and known.uid == job.uid and known.version >= job.version:
                return
            if known is not None and known.uid != job.uid:
                self._forget(known)
            self._keep(job)
        self._tell(job)

    def _keep(self, job: JobState) -> None:
        key = (job.namespace, job.name)
        self._jobs[key] = job
        self._keys[job.namespace, job.uid] = key
        self._owned[job.namespace, job.owner][key] = None

    def find_job_again(self, job: JobState, raw: Raw | None) -> None:
        """Take in how the API server has a Job that a watch no longer knows; None: not at all.

        One that has lost its labels is followed by looking again and again: no watch will tell of it.
        """
        metadata = raw["metadata"] if raw is not None else {}
        if metadata.get("uid") != job.uid:
            self._lose_job(job)
        if raw is None:
            return
        labels = metadata.get("labels") or {}
        ours = {names.STUDY_LABEL: job.study, names.KIND_LABEL: job.kind.lower()}
        is_stripped = metadata["uid"] == job.uid and any(labels.get(name) != value for name, value in ours.items())
        self.put_job({**raw, "metadata": {**metadata, "labels": {**labels, **ours}}} if is_stripped else raw)
        if is_stripped:
            with self._lock:
                self._doubtful.add((job.namespace, job.name))

    def doubt_job(self, namespace: str, name: str, uid: str) -> None:
        """Note that a Job may be gone."""
        with self._lock:
            job = self._jobs.get((namespace, name))
            if job is None or job.uid != uid or job.is_gone:
                return
            self._doubtful.add((namespace, name))
        self._tell(job)

    def _lose_job(self, job: JobState) -> None:
        """Note that a Job is gone. It is kept until somebody has read how its pods ended, which may be later."""
        with self._lock:
            known = self._jobs.get((job.namespace, job.name))
            if known is not None and known.uid == job.uid:
                self._doubtful.discard((job.namespace, job.name))
                self._jobs[job.namespace, job.name] = replace(known, is_gone=True)

    def forget_job(self, job: JobState) -> None:
        """Forget a Job that is gone, and its pods."""
        with self._lock:
            if (job.namespace, job.uid) in self._keys:
                self._forget(job)

    def forget_study(self, key: StudyKey) -> None:
        """Forget the Jobs of a study that is gone: nobody will ask for them."""
        with self._lock:
            for job in [job for job in self._jobs.values() if (job.namespace, job.study) == key]:
                self._forget(job)

    def miss_jobs(self, namespace: str | None, listed: Set[str]) -> None:
        """Doubt the Jobs whose UIDs are not in a whole list: they may be gone."""
        with self._lock:
            missing = [j for j in self._jobs.values() if j.uid not in listed and namespace in (None, j.namespace)]
        for job in missing:
            self.doubt_job(job.namespace, job.name, job.uid)

    def see_job(self, kind: str, raw: Raw) -> None:
        """Take in one event of a watch."""
        if kind == "DELETED":
            metadata = raw["metadata"]
            self.doubt_job(metadata["namespace"], metadata["name"], metadata["uid"])
        else:
            self.put_job(raw)

    def _forget(self, job: JobState) -> None:
        key, uid, owner = (job.namespace, job.name), (job.namespace, job.uid), (job.namespace, job.owner)
        self._jobs.pop(key, None)
        self._keys.pop(uid, None)
        self._owned[owner].pop(key, None)
        if not self._owned[owner]:
            del self._owned[owner]
        self._doubtful.discard(key)
        for pod in self._pods.pop(uid, ()):
            self._jobs_of_pods.pop((job.namespace, pod), None)
        self._refusals.pop(uid, None)

    # Pods.

    def miss_pods(self, namespace: str | None, listed: Set[str]) -> None:
        """Take the pods whose UIDs are not in a whole list for gone."""
        with self._lock:
            for (of, _), pods in self._pods.items():
                if namespace in (None, of):
                    pods.update({p.uid: replace(p, is_gone=True) for p in pods.values() if p.uid not in listed})

    def see_pod(self, kind: str, raw: Raw) -> None:
        """Take in one event of a watch.

        A pod that its Job left behind (it was deleted with ``--cascade=orphan``, or its pods take their time) still is
        that Job's: it goes on training, and until it has ended nothing may begin beside it. Where nobody has seen the
        Job, as after a restart, the pod stands for it.
        """
        namespace = raw["metadata"]["namespace"]
        with self._lock:
            left_behind = self._jobs_of_pods.get((namespace, raw["metadata"]["uid"]), "")
        pod = _read(lambda raw: read_pod(raw, left_behind), raw)
        if pod is None or isinstance(pod, _Unreadable):
            return
        job = (namespace, pod.job)
        with self._lock:
            known = self._pods[job].get(pod.uid)
            if known is not None and (known.is_gone or known.version > pod.version):
                return
            if kind == "DELETED":
                pod = replace(pod, is_gone=True)
                if job not in self._keys:
                    for uid in self._pods.pop(job, ()):
                        self._jobs_of_pods.pop((namespace, uid), None)
                    return
            if known is not None and known.started_at is None and pod.started_at is not None:
                self._count_wait(job, pod, pod.started_at)
            self._pods[job][pod.uid] = pod
            self._jobs_of_pods[namespace, pod.uid] = pod.job
            if job not in self._keys and not pod.has_ended:
                self._infer_job(raw)
        labels = raw["metadata"].get("labels") or {}
        self._on_change((namespace, labels.get(names.STUDY_LABEL, "")))

    def _infer_job(self, raw: Raw) -> None:
        """Take the word of a pod that there was a Job, until somebody has looked; none where its name has another."""
        job = _read(read_lost_job, raw)
        if job is None or isinstance(job, _Unreadable) or (job.namespace, job.name) in self._jobs:
            return
        self._keep(job)
        self._doubtful.add((job.namespace, job.name))

    def _count_wait(self, uid: _Uid, pod: PodState, started_at: datetime) -> None:
        key = self._keys.get(uid)
        if key is not None:
            job = self._jobs[key]
            is_first = all(o.uid == pod.uid for o in self._pods[uid].values() if o.index == pod.index)
            since = job.created_at if is_first else pod.created_at
            self._metrics.observe_wait(job.namespace, job.kind, (started_at - since).total_seconds())

    # Refusals.

    def see_refusal(self, kind: str, raw: Raw) -> None:
        """Take in one event of a watch."""
        refusal = _read(read_refusal, raw)
        if refusal is None or isinstance(refusal, _Unreadable) or kind == "DELETED":
            return
        with self._lock:
            uid = (raw["metadata"]["namespace"], refusal.job)
            key = self._keys.get(uid)
            if key is None:
                return
            job, known = self._jobs[key], self._refusals.get(uid)
            first = min(known.first_at, refusal.first_at) if known else refusal.first_at
            self._refusals[uid] = replace(refusal, first_at=first)
        self._tell(job)

    def _tell(self, job: JobState) -> None:
        self._on_change((job.namespace, job.study))


class _Unreadable:
    """What an object is taken for that cannot be read: nothing was seen, and the others go on."""


def _read(read: Callable[[Raw], Read], raw: Raw) -> Read | _Unreadable:
    try:
        return read(raw)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        metadata = raw["metadata"]
        name = f"{raw.get('kind') or 'object'} {metadata.get('namespace')}/{metadata['name']}"
        log.warning("cannot read %s: %s: %.500s", name, type(error).__name__, error)
        return _Unreadable()


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One collection that is watched."""

    path: str
    query: Mapping[str, str]
    take_event: Callable[[str, Raw], None]
    miss: Callable[[str | None, Set[str]], None]
    """Told the UIDs of all objects that a list held."""
    namespace: str | None
    is_synced: asyncio.Event = field(default_factory=asyncio.Event)
    """It was listed once."""


class Watches:
    """The thread that keeps a `Memory` up to date: of each namespace by itself, or of all together."""

    def __init__(
        self,
        kube: Kube,
        memory: Memory,
        namespaces: Sequence[str],
        *,
        on_synced: Callable[[str | None], None] = lambda _namespace: None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Prepare the watches.

        Args:
            kube: the API server.
            memory: what is kept up to date.
            namespaces: those to watch; empty means all.
            on_synced: told of a namespace of which everything was listed once; of None where all are watched together.
            pause: waits for so many seconds.
        """
        self._kube = kube
        self._on_synced = on_synced
        self._pause = pause
        # Jobs first: of others' pods and events nothing is kept.
        self._kinds = {namespace: _kinds_of(memory, namespace) for namespace in namespaces or (None,)}
        self._told_at = dict.fromkeys((kind.path for kind in self._all()), time.monotonic())
        """When each collection was last listed, or its watch told anything."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._beat_at = time.monotonic()
        """When the loop last had a turn."""
        self._lists = asyncio.Semaphore(LISTS_AT_A_TIME)

    def start(self) -> None:
        """Start the thread."""
        self._told_at = dict.fromkeys(self._told_at, time.monotonic())
        self._beat_at = time.monotonic()
        threading.Thread(target=lambda: asyncio.run(self._run()), name="watches", daemon=True).start()

    def is_synced(self, namespace: str) -> bool:
        """Say whether everything of a namespace was listed once."""
        return all(kind.is_synced.is_set() for kind in self._kinds.get(namespace, self._kinds.get(None, [])))

    def list_unsynced(self) -> list[str]:
        """Return the collections that could not be listed yet."""
        return [kind.path for kind in self._all() if not kind.is_synced.is_set()]

    def silence_seconds(self) -> float:
        """Return how long ago the quietest watch was told anything."""
        return time.monotonic() - min(self._told_at.values())

    def find_trouble(self) -> str:
        """Say what is wrong since `start`, or nothing: a watch that nobody follows, or a loop that is stuck."""
        ended = next((path for path, task in list(self._tasks.items()) if task.done()), None)
        if ended is not None:
            return f"nobody follows {ended} any more"
        seconds = time.monotonic() - self._beat_at
        return f"the watches have been stuck for {seconds:.0f} s" if seconds > STUCK_SECONDS else ""

    def _all(self) -> list[_Kind]:
        return [kind for kinds in self._kinds.values() for kind in kinds]

    async def _run(self) -> None:
        async with open_streams(self._kube) as streams, asyncio.TaskGroup() as tasks:
            for kinds in self._kinds.values():
                for before, kind in zip([None, *kinds], kinds, strict=False):
                    self._tasks[kind.path] = tasks.create_task(self._follow(streams, before, kind))
            while True:
                self._beat_at = time.monotonic()
                await asyncio.sleep(BEAT_SECONDS)

    async def _list(self, streams: Streams, kind: _Kind) -> str:
        """Take in a whole list, page by page; return the version to watch from."""
        listed, version = set[str](), ""
        # Each page is a megabyte or more until it is taken in.
        async with self._lists:
            async for page in streams.pages(kind.path, kind.query):
                for raw in page.items:
                    kind.take_event("ADDED", raw)
                    listed.add(raw["metadata"]["uid"])
                version = page.version
                self._told_at[kind.path] = time.monotonic()
        kind.miss(kind.namespace, listed)
        if not kind.is_synced.is_set():
            kind.is_synced.set()
            if all(k.is_synced.is_set() for k in self._kinds[kind.namespace]):
                self._on_synced(kind.namespace)
        return version

    async def _follow(self, streams: Streams, before: _Kind | None, kind: _Kind) -> None:
        if before is not None:
            await before.is_synced.wait()
        version, wait = "", FIRST_WAIT_SECONDS
        while True:
            begun = time.monotonic()
            try:
                if not version:
                    version = await self._list(streams, kind)
                async for event, raw in streams.watch(kind.path, version, kind.query):
                    version = raw["metadata"]["resourceVersion"]
                    self._told_at[kind.path] = time.monotonic()
                    if event != "BOOKMARK":
                        kind.take_event(event, raw)
            except WatchBrokenError as error:
                # What happened meanwhile is not told, or not to be understood: look at everything again.
                version = ""
                log.log(logging.DEBUG if error.status == 410 else logging.WARNING, "watch of %s: %s", kind.path, error)
            except KubeError as error:
                level = logging.DEBUG if error.is_transient else logging.WARNING
                log.log(level, "cannot watch %s: %s", kind.path, error)
            except Exception:
                # A watch that nobody follows would leave the operator blind, and alive.
                version = ""
                log.exception("cannot follow %s; it is listed again", kind.path)
            if time.monotonic() - begun > wait:
                # It went well for a while: something on the way ends connections that are idle, and nobody is to blame.
                wait = FIRST_WAIT_SECONDS
            # Not all replicas of an operator, and not all watches, at once.
            await self._pause(wait * random.uniform(0.5, 1.5))
            wait = min(LONGEST_WAIT_SECONDS, wait * 2)


def _kinds_of(memory: Memory, namespace: str | None) -> list[_Kind]:
    ours = {"labelSelector": f"{names.STUDY_LABEL},{names.KIND_LABEL}"}
    refusals = {"fieldSelector": "involvedObject.kind=Job,reason=FailedCreate"}
    kinds = (
        ("batch/v1", "jobs", ours, memory.see_job, memory.miss_jobs),
        ("v1", "pods", ours, memory.see_pod, memory.miss_pods),
        ("v1", "events", refusals, memory.see_refusal, lambda _namespace, _listed: None),
    )
    return [
        _Kind(path=path_of(version, plural, namespace), query=query, take_event=take, miss=miss, namespace=namespace)
        for version, plural, query, take, miss in kinds
    ]
