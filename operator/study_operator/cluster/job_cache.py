"""What the cluster has of us: Jobs, their pods and their FailedCreate events, as the watches told.

Of each object only what matters is kept (`job_status.py`). Filled by `job_watches.py`, and by `job_runner.py` with what
it has just created itself: whatever a watch has not told yet, an operator never forgets its own Jobs.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from study_operator import names
from study_operator.cluster.api import Raw
from study_operator.cluster.job_status import (
    JobState,
    PodState,
    Refusal,
    read_job,
    read_lost_job,
    read_pod,
    read_refusal,
)
from study_operator.metrics import Metrics
from study_operator.names import StudyKey

log = logging.getLogger(__name__)

_Value = TypeVar("_Value")

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
        known = self._jobs.get(key)
        if known is not None and known.owner != job.owner:
            self._owned[known.namespace, known.owner].pop(key, None)
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
        ours = {names.STUDY_LABEL: job.study, names.KIND_LABEL: job.kind.label}
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
            former_job = self._jobs_of_pods.get((namespace, raw["metadata"]["uid"]), "")
        pod = _read(lambda raw: read_pod(raw, former_job), raw)
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
            if known is not None:
                # A list gives events in no order of time.
                latest = max(refusal, known, key=lambda one: one.last_at)
                refusal = replace(latest, first_at=min(known.first_at, refusal.first_at))
            self._refusals[uid] = refusal
        self._tell(job)

    def _tell(self, job: JobState) -> None:
        self._on_change((job.namespace, job.study))


class _Unreadable:
    """What an object is taken for that cannot be read: nothing was seen, and the others go on."""


def _read(read: Callable[[Raw], _Value], raw: Raw) -> _Value | _Unreadable:
    try:
        return read(raw)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        metadata = raw["metadata"]
        name = f"{raw.get('kind') or 'object'} {metadata.get('namespace')}/{metadata['name']}"
        log.warning("cannot read %s: %s: %.500s", name, type(error).__name__, error)
        return _Unreadable()
