"""Whether a cluster can run a study that the schema accepts: every problem at once, before an accelerator is taken.

Each form of Job is created for a try (`dryRun=All`) with `fieldValidation=Strict`, and what the API server warns of is
read: a Pod Security violation of a Job is only a warning. What templates name is looked up. Called by
`cluster/controller.py` until a study is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from study_operator import names
from study_operator.cluster.api import Kube, KubeError, Raw, path_of
from study_operator.cluster.buckets import Buckets, StorageRefusedError
from study_operator.cluster.job_manifest import (
    RESERVED_VARIABLES,
    Credentials,
    PodDefaults,
    build_bare_job,
    build_job,
    build_service,
)
from study_operator.cluster.job_status import name_refusal
from study_operator.reasons import WaitReason
from study_operator.reconcile.runner import JobKind, JobSpec
from study_operator.spec.study import PodTemplate, Study


def find_problems(study: Study, kube: Kube, buckets: Buckets, defaults: PodDefaults) -> list[str]:
    """Return every reason why a study cannot run here, each a sentence.

    Raises:
        KubeError: where the API server does not answer.
    """
    problems = [*_find_places(study), *_find_template_problems(study, defaults)]
    credentials: Credentials | None = None
    try:
        credentials = buckets.open(study).credentials
    except StorageRefusedError as error:
        problems += error.problems
    problems += _find_missing(study, kube)
    problems += _try_jobs(study, kube, credentials, defaults)
    return list(dict.fromkeys(problems))


def _find_places(study: Study) -> Iterator[str]:
    """Say what only a laptop can reach."""
    for field, place in (("source", study.data.source), ("testSource", study.data.test_source)):
        if place is not None and place.startswith("file://"):
            yield f"`spec.data.{field}` must be an s3:// URI or a path on a mounted volume, got {place!r}"


def _templates_of(study: Study) -> Iterator[tuple[str, PodTemplate]]:
    yield "spec.trainer.template", study.trainer_template or {}
    if study.data.template is not None:
        yield "spec.data.template", study.data.template


def _find_template_problems(study: Study, defaults: PodDefaults) -> Iterator[str]:
    for field, template in _templates_of(study):
        pod = _child(template, "spec")
        if pod.get("automountServiceAccountToken"):
            yield f"`{field}.spec.automountServiceAccountToken` must not be true: a trial needs no token of the cluster"
        if pod.get("restartPolicy", "Never") != "Never":
            yield f"`{field}.spec.restartPolicy` must be 'Never', got {pod['restartPolicy']!r}"
        trainer = next((c for c in _objects(pod, "containers") if c.get("name") == "trainer"), {})
        if not trainer.get("image") and not defaults.image:
            yield f"`{field}.spec.containers` must give 'trainer' an image: this installation has no default"
        for variable in _objects(trainer, "env"):
            if variable.get("name") in RESERVED_VARIABLES:
                yield f"`{field}.spec.containers` must not set {variable['name']}, which the operator sets"


def _find_missing(study: Study, kube: Kube) -> Iterator[str]:
    """Look up what templates name, service accounts and volume claims, and the Secret of a teacher."""
    for field, template in _templates_of(study):
        pod = _child(template, "spec")
        account = pod.get("serviceAccountName")
        if isinstance(account, str) and not _exists(kube, study, "serviceaccounts", account):
            yield (
                f"`{field}.spec.serviceAccountName` must name a service account of namespace {study.namespace}, "
                f"got {account!r}, which does not exist"
            )
        for volume in _objects(pod, "volumes"):
            claim = _child(volume, "persistentVolumeClaim").get("claimName")
            if isinstance(claim, str) and not _exists(kube, study, "persistentvolumeclaims", claim):
                yield (
                    f"`{field}.spec.volumes` must name persistent volume claims of namespace {study.namespace}, "
                    f"got {claim!r}, which does not exist"
                )
    yield from _find_missing_key(study, kube)


def _find_missing_key(study: Study, kube: Kube) -> Iterator[str]:
    """Look up the Secret of a teacher. Whether it holds the key the kubelet tells: here none of its data are read."""
    teacher = study.data.teacher
    if teacher is None or teacher.secret_name is None:
        return
    try:
        is_there = _exists(kube, study, "secrets", teacher.secret_name)
    except KubeError as error:
        if error.status != 403:
            raise
        return
    if not is_there:
        yield (
            f"`spec.data.labels.teacher.secretName` must name a Secret of namespace {study.namespace}, "
            f"got {teacher.secret_name!r}, which does not exist"
        )


def _exists(kube: Kube, study: Study, plural: str, name: str) -> bool:
    return kube.get(path_of("v1", plural, study.namespace, name), only_metadata=True) is not None


def _child(raw: Any, name: str) -> Mapping[str, Any]:
    value = raw.get(name) if isinstance(raw, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _objects(raw: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the objects of a list; whatever else is there the API server refuses when a Job is tried."""
    items = raw.get(name)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _try_jobs(study: Study, kube: Kube, credentials: Credentials | None, defaults: PodDefaults) -> Iterator[str]:
    """Try to create each form of Job, without creating it."""
    trial = JobSpec(
        name=names.trial_job(study.name, "t000", 0),
        kind=JobKind.TRIAL,
        config="{}",
        trial="t000",
        processes=study.trainer.processes,
    )
    forms = {
        "spec.trainer.template": trial,
        "spec.data.template": JobSpec(name=names.prepare_job(study.name), kind=JobKind.PREPARE, config="{}"),
    }
    if study.nodes > 1:
        yield from _try(study, kube, "v1", "services", build_service(study), "spec.trainer.nodes")
    for field, spec in forms.items():
        try:
            body = build_job(study, spec, credentials, defaults)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # The templates are opaque to the schema: a list where an object belongs, for example. The API server says
            # what is wrong of the template as it is.
            template = dict(_templates_of(study)).get(field) or study.trainer_template
            bare = build_bare_job(study, spec, template or {})
            message = [*_try(study, kube, "batch/v1", "jobs", bare, field)]
            yield from message or [f"`{field}` must be a PodTemplateSpec: {error}"]
            continue
        yield from _try(study, kube, "batch/v1", "jobs", body, field)


def _try(study: Study, kube: Kube, api: str, plural: str, body: Raw, field: str) -> Iterator[str]:
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    name = body["metadata"]["name"]
    try:
        answer = kube.create(path_of(api, plural, study.namespace), body, query)
    except KubeError as error:
        if error.is_transient:
            raise
        if error.reason == "AlreadyExists":
            found = kube.get(path_of(api, plural, study.namespace, name))
            owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
            if found is not None and not any(owner.get("uid") == study.uid for owner in owners):
                yield f"`metadata.name` must be another one: {body['kind']} {name} belongs to somebody else"
            return
        if name_refusal(error.message) == WaitReason.QUOTA_EXCEEDED:
            # That there is no room at the moment is nothing of the study's.
            return
        yield f"`{field}` must give a valid {body['kind']}: {_in_words_of_the_study(error.message)}"
        return
    for warning in answer.warnings:
        yield f"`{field}` must give a {body['kind']} without warnings: {_in_words_of_the_study(warning)}"


def _in_words_of_the_study(message: str) -> str:
    """Turn paths of the Job into paths of the study's template."""
    return re.sub(r"spec\.template\.", "", message)
