"""What is created on a cluster: golden manifests, and that a template is merged and never overwritten.

`PYTHONPATH=tests python tests/operator/cluster/test_job_manifest.py` writes the golden files anew; read their diff.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from builders.ledgers import a_study
from study_operator.cluster.job_manifest import Credentials, PodDefaults, build_job, build_service
from study_operator.reconcile.runner import JobKind, JobSpec
from study_operator.spec.study import CaBundle, Data, Storage, Study, Teacher
from trial_trainer.contract import LabelSource, Split, TrainerSettings

GOLDEN = Path(__file__).with_name("golden")
DEFAULTS = PodDefaults(image="registry.example/trainer@sha256:0123")
SECRET = Credentials(
    secret="bucket-credentials",
    keys={"AWS_ACCESS_KEY_ID": "accessKeyId", "AWS_SECRET_ACCESS_KEY": "secretAccessKey"},
)
TRIAL = JobSpec(name="s1-t003-r1", kind=JobKind.TRIAL, config='{"study": "s1"}', trial="t003", rung=1)
PREPARE = JobSpec(name="s1-prepare", kind=JobKind.PREPARE, config='{"study": "s1"}')
FINAL_EVALUATION = JobSpec(name="s1-final-evaluation", kind=JobKind.FINAL_EVALUATION, config='{"study": "s1"}')
TEMPLATE: dict[str, Any] = {
    "metadata": {
        "labels": {"team": "shop", "kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "low"},
        "annotations": {"kueue.x-k8s.io/podset-required-topology": "cloud.example/rack"},
    },
    "spec": {
        "serviceAccountName": "trainer",
        "terminationGracePeriodSeconds": 600,
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "initContainers": [{"name": "warm", "image": "busybox", "command": ["true"]}],
        "containers": [
            {"name": "sidecar", "image": "busybox"},
            {
                "name": "trainer",
                "image": "mine:1",
                "env": [{"name": "HF_HOME", "value": "/models/hub"}, {"name": "AWS_REGION", "value": "eu-west-1"}],
                "resources": {"limits": {"cpu": "8", "memory": "64Gi", "nvidia.com/mig-3g.40gb": "2"}},
                "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                "securityContext": {"readOnlyRootFilesystem": False},
            },
        ],
    },
}


def on_cluster(**changes: Any) -> Study:
    """Return a study whose artifacts lie in a bucket."""
    storage = Storage(
        uri="s3://ml-studies/shop",
        endpoint="https://minio.example",
        region="us-east-1",
        addressing_style="Path",
        secret_name="bucket-credentials",
    )
    return a_study(**{"uid": "0c7cad48-23d6-4cfa-9093-a4e1b62e915b", "storage": storage, **changes})


def _many(nodes: int, processes: int) -> dict[str, Any]:
    return {
        "nodes": nodes,
        "trainer": TrainerSettings(epochs=3, max_length_tokens=512, processes=processes),
        "storage": replace(on_cluster().storage, ca_bundle=CaBundle(config_map_name="ca"), secret_name=None),
    }


def cases() -> dict[str, Any]:
    """Return each golden manifest by the name of its file."""
    many = on_cluster(**_many(4, 8))
    own = on_cluster(trainer_template=TEMPLATE)
    return {
        "trial": build_job(on_cluster(), TRIAL, SECRET, DEFAULTS),
        "trial-with-template": build_job(own, TRIAL, SECRET, DEFAULTS),
        "prepare-with-template": build_job(own, PREPARE, SECRET, DEFAULTS),
        "final-evaluation": build_job(on_cluster(), FINAL_EVALUATION, SECRET, DEFAULTS),
        "trial-on-four-nodes": build_job(many, replace(TRIAL, processes=8), None, DEFAULTS),
        "service": build_service(many),
    }


@pytest.mark.parametrize("name", sorted(cases()))
def test_a_manifest_is_as_it_was_read_and_agreed_to(name: str) -> None:
    assert cases()[name] == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


def test_every_golden_file_is_one_of_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(cases())


def test_what_a_template_says_holds() -> None:
    job = build_job(on_cluster(trainer_template=TEMPLATE), TRIAL, SECRET, DEFAULTS)
    assert _lost(TEMPLATE, job["spec"]["template"]) == []


def _lost(given: Any, made: Any, path: str = "") -> list[str]:
    """Return where something that was given is not there any more."""
    if isinstance(given, dict):
        return [
            place
            for name, value in given.items()
            for place in ([f"{path}.{name}"] if name not in made else _lost(value, made[name], f"{path}.{name}"))
        ]
    if isinstance(given, list):
        return [
            place
            for i, item in enumerate(given)
            for place in ([f"{path}[{i}]"] if i >= len(made) else _lost(item, made[i], f"{path}[{i}]"))
        ]
    return [] if given == made else [f"{path}: {given!r} became {made!r}"]


def test_a_template_is_not_changed_by_what_is_made_of_it() -> None:
    template = copy.deepcopy(TEMPLATE)
    study = on_cluster(trainer_template=template)
    first = build_job(study, PREPARE, SECRET, DEFAULTS)
    build_job(study, TRIAL, SECRET, DEFAULTS)
    assert template == TEMPLATE
    assert build_job(study, PREPARE, SECRET, DEFAULTS) == first


def the_trainer(job: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in job["spec"]["template"]["spec"]["containers"] if c["name"] == "trainer")


@pytest.mark.parametrize(
    ("resources", "limits"),
    [
        pytest.param({}, {"nvidia.com/gpu": "2"}, id="nothing asked"),
        pytest.param(
            {"limits": {"memory": "1Gi"}}, {"memory": "1Gi", "nvidia.com/gpu": "2"}, id="no accelerator asked"
        ),
        pytest.param({"limits": {"amd.com/gpu": "1"}}, {"amd.com/gpu": "1"}, id="another maker's"),
        pytest.param({"limits": {"nvidia.com/gpu": "0"}}, {"nvidia.com/gpu": "0"}, id="none, on purpose"),
        pytest.param({"claims": [{"name": "gpu"}]}, None, id="a claim"),
    ],
)
def test_accelerators_are_asked_for_unless_the_template_does_it(resources: Any, limits: Any) -> None:
    template = {"spec": {"containers": [{"name": "trainer", "resources": resources}]}}
    job = build_job(on_cluster(trainer_template=template), replace(TRIAL, processes=2), SECRET, DEFAULTS)
    assert the_trainer(job)["resources"].get("limits") == limits


def test_the_template_of_prepare_is_its_own_where_it_has_one() -> None:
    data = Data(
        source="s3://pages",
        attributes=("price",),
        labels_from=LabelSource.MARKUP,
        split=Split(),
        template={"spec": {"containers": [{"name": "trainer", "image": "light:1", "args": ["--verbose"]}]}},
    )
    job = build_job(on_cluster(trainer_template=TEMPLATE, data=data), PREPARE, SECRET, DEFAULTS)
    assert (the_trainer(job)["image"], the_trainer(job)["args"]) == ("light:1", ["--verbose", "prepare"])
    assert "resources" not in the_trainer(job)


def test_no_value_of_a_secret_is_in_a_manifest() -> None:
    job = build_job(on_cluster(), TRIAL, SECRET, DEFAULTS)
    variables = {v["name"]: v for v in the_trainer(job)["env"]}
    for name, key in SECRET.keys.items():
        assert variables[name] == {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": "bucket-credentials", "key": key}},
        }


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["no template", "a template"])
def test_the_key_of_a_teacher_is_of_the_pod_that_prepares_alone(template: Any) -> None:
    teacher = Teacher(endpoint="https://llm.example/v1", model="large", secret_name="teacher", secret_key="key")
    study = on_cluster(trainer_template=template)
    study = replace(study, data=replace(study.data, labels_from=LabelSource.TEACHER, teacher=teacher))
    prepare = build_job(study, PREPARE, SECRET, DEFAULTS)
    assert [v for v in the_trainer(prepare)["env"] if v["name"] == "TEACHER_API_KEY"] == [
        {"name": "TEACHER_API_KEY", "valueFrom": {"secretKeyRef": {"name": "teacher", "key": "key"}}}
    ]
    for spec in (TRIAL, FINAL_EVALUATION):
        job = str(build_job(study, spec, SECRET, DEFAULTS))
        assert "TEACHER_API_KEY" not in job
        assert "'teacher'" not in job


def test_a_teacher_that_wants_no_key_gets_none() -> None:
    study = on_cluster()
    teacher = Teacher(endpoint="http://llm:8000/v1", model="large")
    study = replace(study, data=replace(study.data, labels_from=LabelSource.TEACHER, teacher=teacher))
    assert "TEACHER_API_KEY" not in str(build_job(study, PREPARE, SECRET, DEFAULTS))


def test_letters_that_mean_something_to_kubernetes_reach_the_trainer_as_they_are() -> None:
    job = build_job(on_cluster(), replace(TRIAL, config='{"dataset": "s3://b/$(HOME)/$x"}'), SECRET, DEFAULTS)
    value = next(v["value"] for v in the_trainer(job)["env"] if v["name"] == "TRIAL_CONFIG")
    assert value == '{"dataset": "s3://b/$$(HOME)/$$x"}'


def test_what_the_operator_never_sets() -> None:
    for case in cases().values():
        # It belongs to Kueue; and the operator itself decides when a Job goes, and how long it may take.
        assert not {"suspend", "ttlSecondsAfterFinished", "activeDeadlineSeconds"} & set(case["spec"])


def test_a_privileged_container_is_left_as_it_is() -> None:
    sidecar = {"name": "sidecar", "image": "x", "securityContext": {"privileged": True}}
    template = {"spec": {"containers": [sidecar, {"name": "trainer"}]}}
    job = build_job(on_cluster(trainer_template=template), TRIAL, SECRET, DEFAULTS)
    assert job["spec"]["template"]["spec"]["containers"][0] == sidecar


if __name__ == "__main__":
    for file, manifest in cases().items():
        (GOLDEN / f"{file}.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False, width=120))


def test_the_digest_is_a_label_of_the_job_and_its_pods() -> None:
    job = build_job(on_cluster(), replace(TRIAL, digest="0123456789abcdef"), SECRET, DEFAULTS)
    for metadata in (job["metadata"], job["spec"]["template"]["metadata"]):
        assert metadata["labels"]["finetune.study/digest"] == "0123456789abcdef"
