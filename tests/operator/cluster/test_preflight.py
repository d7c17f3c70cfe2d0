"""What an accepted study must hold on a cluster, looked at before anything runs."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from builders.kube_of_dicts import KubeOfDicts
from builders.some_manifests import a_manifest
from study_operator.cluster.api import Answer, Kube, KubeError, Raw
from study_operator.cluster.buckets import Bucket, Buckets
from study_operator.cluster.job_manifest import Credentials, PodDefaults
from study_operator.cluster.preflight import find_problems
from study_operator.spec.parse import parse_study
from study_operator.spec.study import Study


class OneBucket:
    """Opens a bucket for every study."""

    def open(self, study: Study) -> Bucket:
        return Bucket(store=cast(Any, None), credentials=Credentials(secret="keys", keys={}))


class KubeThatDecodes(KubeOfDicts):
    """Refuses what no Job can hold, roughly as an API server does."""

    def create(self, path: str, body: Raw, query: Mapping[str, str] | None = None) -> Answer:
        pod = body["spec"].get("template", {}).get("spec", {})
        for name in ("containers", "volumes"):
            items = pod.get(name, [])
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise KubeError(400, "BadRequest", f"cannot unmarshal spec.template.spec.{name}")
        return Answer(body=body)


TRAINER = {"name": "trainer", "image": "trainer:1"}


@pytest.mark.parametrize(
    ("pod", "sentence"),
    [
        ({"containers": [TRAINER], "volumes": 5}, "cannot unmarshal spec.volumes"),
        ({"containers": [TRAINER, "x"]}, "cannot unmarshal spec.containers"),
        ({"containers": [TRAINER], "volumes": ["x"]}, "cannot unmarshal spec.volumes"),
        ({"containers": [{**TRAINER, "env": 5}]}, "must be a PodTemplateSpec: "),
        ({"containers": [{**TRAINER, "env": ["x"]}]}, "must be a PodTemplateSpec: "),
        ({"containers": [{**TRAINER, "resources": ["x"]}]}, "must be a PodTemplateSpec: "),
        ({"containers": [{**TRAINER, "volumeMounts": "x"}]}, "must be a PodTemplateSpec: "),
        ({"containers": [TRAINER], "terminationGracePeriodSeconds": "soon"}, "must be a PodTemplateSpec: "),
        ({"containers": [TRAINER], "securityContext": []}, "must be a PodTemplateSpec: "),
    ],
    ids=[
        "volumes that are a number",
        "a container that is a word",
        "a volume that is a word",
        "variables that are a number",
        "a variable that is a word",
        "resources that are a list",
        "mounts that are a word",
        "a grace period that is a word",
        "a security context that is a list",
    ],
)
def test_a_template_that_is_none_is_refused_in_a_sentence(pod: Mapping[str, Any], sentence: str) -> None:
    study = parse_study(a_manifest({"spec.trainer.template": {"spec": pod}, "spec.storage.secretName": "keys"}))
    problems = find_problems(
        study, cast(Kube, KubeThatDecodes()), cast(Buckets, OneBucket()), PodDefaults(image="trainer:1")
    )
    assert [problem for problem in problems if problem.startswith("`spec.trainer.template`") and sentence in problem]


def a_taught_study() -> Study:
    labels = {"from": "Teacher", "teacher": {"endpoint": "https://llm/v1", "model": "large", "secretName": "teacher"}}
    template = {"spec": {"containers": [TRAINER]}}
    return parse_study(a_manifest({"spec.data.labels": labels, "spec.trainer.template": template}))


def problems_of(study: Study, kube: KubeOfDicts) -> list[str]:
    return find_problems(study, cast(Kube, kube), cast(Buckets, OneBucket()), PodDefaults())


def test_the_secret_of_a_teacher_must_exist_where_the_operator_may_look() -> None:
    kube, path = KubeThatDecodes(), "/api/v1/namespaces/default/secrets/teacher"
    rule = "must name a Secret of namespace default, got 'teacher', which does not exist"
    assert problems_of(a_taught_study(), kube) == [f"`spec.data.labels.teacher.secretName` {rule}"]
    kube.put(path, {"metadata": {"name": "teacher"}})
    assert problems_of(a_taught_study(), kube) == []
    kube.objects.clear()
    kube.forbidden.add(path)
    assert problems_of(a_taught_study(), kube) == []


def test_no_template_gives_a_pod_the_key_of_a_teacher() -> None:
    env = [{"name": "TEACHER_API_KEY", "valueFrom": {"secretKeyRef": {"name": "teacher", "key": "apiKey"}}}]
    template = {"spec": {"containers": [{**TRAINER, "env": env}]}}
    study = parse_study(a_manifest({"spec.trainer.template": template}))
    assert problems_of(study, KubeThatDecodes()) == [
        "`spec.trainer.template.spec.containers` must not set TEACHER_API_KEY, which the operator sets"
    ]
