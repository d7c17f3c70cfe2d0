"""One study on Kubernetes: its jobs are Jobs, its status is the status subresource.

Called by `cluster/controller.py` for each tick. Runner and status store are made anew for it and keep nothing: what is
known of the cluster lies in `job_watches.Memory` and `Studies`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.job_manifest import Credentials, PodDefaults, build_job, build_service
from study_operator.cluster.job_status import JobState, describe_job, name_refusal
from study_operator.cluster.job_watches import Memory
from study_operator.errors import ConflictError, LaunchRefusedError, StatusRefusedError
from study_operator.names import StudyKey
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec, JobStatus
from study_operator.spec.study import Study

log = logging.getLogger(__name__)


TOO_LARGE = ("request is too large", "larger than max")
"""What etcd, and its client, say of an object that is; the API server answers as if something in itself were broken."""


def study_path(key: StudyKey, part: str = "") -> str:
    """Return the path of a study."""
    return path_of(names.API_VERSION, names.PLURAL, key[0], key[1], part)


def manifest_of(body: Raw) -> Raw:
    """Return what a person wrote of a study, with what the API server has added that a study needs."""
    return {name: body[name] for name in ("apiVersion", "kind", "metadata", "spec") if name in body}


class Studies:
    """The studies as last seen. May be used by many threads."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._lock = threading.Lock()
        self._bodies: dict[StudyKey, Raw] = {}

    def get(self, key: StudyKey) -> Raw | None:
        """Return a study; None where it is not known, or gone."""
        with self._lock:
            return self._bodies.get(key)

    def bodies(self) -> list[Raw]:
        """Return every known study as last seen."""
        with self._lock:
            return list(self._bodies.values())

    def put(self, body: Raw) -> None:
        """Take in a study, unless a newer state of it is known."""
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        key = (metadata["namespace"], metadata["name"])
        with self._lock:
            known = self._bodies.get(key)
            is_same = known is not None and known["metadata"]["uid"] == metadata["uid"]
            if known is None or not is_same or _version(known) < int(metadata["resourceVersion"]):
                self._bodies[key] = {**body, "metadata": metadata}

    def drop(self, key: StudyKey, uid: str) -> None:
        """Forget a study that is gone."""
        with self._lock:
            known = self._bodies.get(key)
            if known is not None and known["metadata"]["uid"] == uid:
                del self._bodies[key]

    def sweep(self, namespace: str | None) -> list[StudyKey]:
        """Compare what is known with the API server; return the studies that are gone or newer there.

        Raises:
            KubeError: where there is no answer.
        """
        with self._lock:
            # One that is made while the list is on its way is not in it.
            known = {key: body["metadata"] for key, body in self._bodies.items() if namespace in (None, key[0])}
        items, _ = self._kube.list(path_of(names.API_VERSION, names.PLURAL, namespace), only_metadata=True)
        there = {(m["namespace"], m["name"]): m for m in (item["metadata"] for item in items)}
        gone = [key for key, metadata in known.items() if there.get(key, {}).get("uid") != metadata["uid"]]
        for key in gone:
            self.drop(key, known[key]["uid"])
        behind = [
            key
            for key, metadata in there.items()
            if key in gone or key not in known or int(known[key]["resourceVersion"]) < int(metadata["resourceVersion"])
        ]
        for key in behind:
            self.refresh(key)
        return list(dict.fromkeys([*gone, *behind]))

    def refresh(self, key: StudyKey) -> Raw | None:
        """Look at the API server, and return the study as it is there."""
        body = self._kube.get(study_path(key))
        if body is None:
            with self._lock:
                self._bodies.pop(key, None)
            return None
        self.put(body)
        return self.get(key)


def _version(body: Raw) -> int:
    return int(body["metadata"]["resourceVersion"])


@dataclass(frozen=True)
class ClusterStatuses:
    """The status of one study, with the API server's own optimistic locking."""

    kube: Kube
    studies: Studies
    body: Raw
    """The study as this tick sees it; its ``resourceVersion`` is the version of the status."""

    def read(self) -> tuple[Mapping[str, Any] | None, str]:
        """Return the status (None before the first write) and its version."""
        return self.body.get("status") or None, self.body["metadata"]["resourceVersion"]

    def confirm(self, version: str) -> None:
        """Make sure that the study was not changed since this tick saw it.

        Raises:
            ConflictError: where it was, or is gone or being deleted.
        """
        now = self.kube.get(study_path(self._key), only_metadata=True)
        metadata = now["metadata"] if now is not None else {}
        if metadata.get("uid") != self.body["metadata"]["uid"] or "deletionTimestamp" in metadata:
            raise ConflictError(f"study {self._key[1]} is being deleted")
        if metadata["resourceVersion"] != version:
            raise ConflictError(f"study {self._key[1]} is at {metadata['resourceVersion']}, but {version} was read")

    def write(self, status: Mapping[str, Any], version: str) -> str:
        """Write the status if the study is still the one that was read; return the new version.

        Raises:
            ConflictError: where it is not.
            StatusRefusedError: where the API server does not take this one.
        """
        metadata = {**self.body["metadata"], "resourceVersion": version}
        body = {**self.body, "metadata": metadata, "status": dict(status)}
        try:
            written = self.kube.replace(study_path(self._key, "status"), body)
        except KubeError as error:
            if error.is_not_found or error.reason == "Conflict":
                raise ConflictError(error.message) from error
            if not error.is_transient or any(words in error.message for words in TOO_LARGE):
                raise StatusRefusedError(error.message) from error
            raise
        self.studies.put(written)
        return str(written["metadata"]["resourceVersion"])

    @property
    def _key(self) -> StudyKey:
        return self.body["metadata"]["namespace"], self.body["metadata"]["name"]


@dataclass(frozen=True)
class ClusterRunner:
    """The jobs of one study as Kubernetes Jobs, for one visit."""

    kube: Kube
    memory: Memory
    study: Study
    credentials: Credentials | None
    defaults: PodDefaults
    told: list[JobState] = field(default_factory=list)
    """Jobs that are gone, of which `jobs` has told how they ended."""

    def jobs(self) -> Sequence[JobStatus]:
        """Return every Job of the study, also one that is gone but for pods that still run, or that nobody told of yet.

        One that a watch calls gone is looked for before it is believed.
        """
        study = self.study
        for job in self.memory.doubtful_of(study.namespace, study.uid):
            raw = self.kube.get(path_of("batch/v1", "jobs", study.namespace, job.name))
            self.memory.find_job_again(job, raw)
        statuses = []
        for job, pods, refusal in self.memory.jobs_of(study.namespace, study.uid):
            status = describe_job(job, pods, refusal)
            statuses.append(status)
            if job.is_gone and status.phase is JobPhase.FINISHED:
                self.told.append(job)
        return statuses

    def forget_gone(self) -> bool:
        """Forget the Jobs that are gone, now that it is written down how they ended; say whether there were any.

        Their names are free then.
        """
        for job in self.told:
            self.memory.forget_job(job)
        return bool(self.told)

    def launch(self, spec: JobSpec) -> None:
        """Create a Job; a no-op where it is there.

        Raises:
            LaunchRefusedError: where the API server does not take it, or somebody else has a Job of that name.
            KubeError: where there is no answer.
        """
        if spec.kind is JobKind.TRIAL and self.study.nodes > 1:
            self._ensure("v1", "services", build_service(self.study))
        raw = self._ensure("batch/v1", "jobs", build_job(self.study, spec, self.credentials, self.defaults))
        self.memory.put_job(raw)

    def delete(self, name: str) -> None:
        """Delete a Job and, before it, its pods."""
        job = self.memory.find_job(self.study.namespace, name)
        if job is None or job.is_deleting or job.owner != self.study.uid:
            return
        if not self.kube.delete(path_of("batch/v1", "jobs", job.namespace, name), uid=job.uid):
            self.memory.doubt_job(job.namespace, name, job.uid)

    def _ensure(self, api: str, plural: str, body: Raw) -> Raw:
        """Create an object, or return the one of ours that is there."""
        name, namespace = body["metadata"]["name"], self.study.namespace
        try:
            return self.kube.create(path_of(api, plural, namespace), body).body
        except KubeError as error:
            word = name_refusal(error.message) if error.status else ""
            if error.is_transient and not word:
                raise
            if error.reason != "AlreadyExists":
                raise LaunchRefusedError(word or error.reason or "JobRefused", error.message) from error
        found = self.kube.get(path_of(api, plural, namespace, name))
        if found is None:
            raise KubeError(0, "Vanished", f"{plural} {name} has just been deleted")
        owners = found["metadata"].get("ownerReferences") or ()
        if not any(owner.get("controller") and owner.get("uid") == self.study.uid for owner in owners):
            said = f"{body['kind']} {name} belongs to somebody else; delete it, or give the study another name"
            raise LaunchRefusedError("NameTaken", said)
        return found
