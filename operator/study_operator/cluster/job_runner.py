"""Runs one study's jobs as Jobs of Kubernetes.

Made anew by `controller.py` for each tick and keeps nothing: what is known of the cluster lies in `job_cache.Memory`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.job_manifest import Credentials, PodDefaults, build_job, build_service
from study_operator.cluster.job_status import JobState, describe_job, name_refusal
from study_operator.errors import LaunchRefusedError
from study_operator.reasons import WaitReason
from study_operator.reconcile.runner import JobKind, JobPhase, JobSpec, JobStatus
from study_operator.spec.study import Study

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClusterRunner:
    """The jobs of one study as Kubernetes Jobs, for one reconciliation."""

    kube: Kube
    memory: Memory
    study: Study
    credentials: Credentials | None
    defaults: PodDefaults
    listed: list[JobState] = field(default_factory=list)
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
                self.listed.append(job)
        return statuses

    def forget_gone(self) -> bool:
        """Forget the Jobs that are gone, now that it is written down how they ended; say whether there were any.

        Their names are free then.
        """
        for job in self.listed:
            self.memory.forget_job(job)
        return bool(self.listed)

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
                raise LaunchRefusedError(word or error.reason or WaitReason.JOB_REFUSED, error.message) from error
        found = self.kube.get(path_of(api, plural, namespace, name))
        if found is None:
            raise KubeError(0, "Vanished", f"{plural} {name} has just been deleted")
        owners = found["metadata"].get("ownerReferences") or ()
        if not any(owner.get("controller") and owner.get("uid") == self.study.uid for owner in owners):
            message = f"{body['kind']} {name} belongs to somebody else; delete it, or give the study another name"
            raise LaunchRefusedError(WaitReason.NAME_TAKEN, message)
        return found
