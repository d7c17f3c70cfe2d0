"""Taking leave of a study: first its Jobs go, then its prefix in the bucket, then the study itself.

Only a study whose `deletionPolicy` is `Delete` waits for that, held by a finalizer; the Jobs of any other go with it by
their owner references. Called by `cluster/controller.py`; every step may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.buckets import Buckets, StorageRefusedError
from study_operator.cluster.study_store import Studies, manifest_of, study_path
from study_operator.errors import ConflictError, OperatorError, StudyInvalidError
from study_operator.ledger.events import Event
from study_operator.names import StudyKey
from study_operator.reasons import EventReason
from study_operator.reconcile.job_specs import artifacts_uri
from study_operator.settings import Settings
from study_operator.spec.parse import parse_study
from study_operator.spec.study import DeletionPolicy, Study
from trial_trainer.artifacts import ArtifactError

log = logging.getLogger(__name__)


class WaitsError(OperatorError):
    """A study cannot go yet; one sentence says what it waits for."""

    reason = "DeletionWaits"


@dataclass(frozen=True)
class Farewell:
    """Holds studies back that leave something in a bucket, and lets them go. May be used by many threads."""

    kube: Kube
    studies: Studies
    buckets: Buckets
    settings: Settings

    def hold(self, study: Study, body: Raw) -> bool:
        """Put the finalizer on a study whose prefix is to be deleted with it, or take it off; say if that was needed.

        Raises:
            ConflictError: where the study was changed since it was read.
        """
        is_wanted = study.storage.deletion_policy is DeletionPolicy.DELETE
        if is_wanted == is_held(body):
            return False
        self._write_finalizer(body, is_wanted=is_wanted)
        return True

    def let_go(self, body: Raw, now: datetime) -> Sequence[Event]:
        """Delete what a deleted study leaves behind, and let it go; return what there is to tell.

        Raises:
            WaitsError: where its Jobs are still there, or its bucket cannot be used at the moment.
            ConflictError: where the study was changed since it was read.
            KubeError: where the API server does not answer.
        """
        self._delete_jobs(body)
        events: list[Event] = []
        try:
            study = parse_study(manifest_of(body))
            deleted = self.buckets.open(study).store.delete("")
            log.info("deleted %d objects of study %s: %s", deleted, study.name, artifacts_uri(study))
        except (StudyInvalidError, StorageRefusedError, ArtifactError) as error:
            until = datetime.fromisoformat(body["metadata"]["deletionTimestamp"])
            until += timedelta(seconds=self.settings.deletion_limit_seconds)
            if now < until:
                raise WaitsError(str(error)) from error
            message = f"what the study left in its bucket could not be deleted, and stays there: {error}"
            events.append(Event(reason=EventReason.BUCKET_NOT_DELETED, message=message, is_warning=True))
        self._write_finalizer(body, is_wanted=False)
        return events

    def _delete_jobs(self, body: Raw) -> None:
        """Delete the Jobs and wait for their pods, which might write into what is deleted next."""
        namespace, name = _key_of(body)
        path = path_of("batch/v1", "jobs", namespace)
        jobs, _ = self.kube.list(path, {"labelSelector": f"{names.STUDY_LABEL}={name}"})
        uid = body["metadata"]["uid"]
        ours = [job for job in jobs if any(o.get("uid") == uid for o in job["metadata"].get("ownerReferences", ()))]
        for job in ours:
            if "deletionTimestamp" not in job["metadata"]:
                job_name = job["metadata"]["name"]
                self.kube.delete(path_of("batch/v1", "jobs", namespace, job_name), uid=job["metadata"]["uid"])
        if ours:
            raise WaitsError(f"{len(ours)} Jobs of study {name} are being deleted")

    def _write_finalizer(self, body: Raw, *, is_wanted: bool) -> None:
        finalizers = [word for word in body["metadata"].get("finalizers", ()) if word != names.FINALIZER]
        if is_wanted:
            finalizers.append(names.FINALIZER)
        patch = {"metadata": {"resourceVersion": body["metadata"]["resourceVersion"], "finalizers": finalizers}}
        try:
            written = self.kube.patch(study_path(_key_of(body)), patch)
        except KubeError as error:
            if error.is_not_found or error.reason == "Conflict":
                raise ConflictError(error.message) from error
            raise
        if written["metadata"].get("finalizers") or "deletionTimestamp" not in written["metadata"]:
            self.studies.put(written)


def is_held(body: Raw) -> bool:
    """Say whether a study carries the finalizer."""
    return names.FINALIZER in body["metadata"].get("finalizers", ())


def _key_of(body: Raw) -> StudyKey:
    return body["metadata"]["namespace"], body["metadata"]["name"]
