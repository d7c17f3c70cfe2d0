"""The manifests as they stand, on a cluster of their own: the operator may do what it does, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.studies_on_a_server import install_crd
from on_cluster.operators import FAST, HOME, MANIFESTS, NAME, OperatorProcess, read_manifests, wait_until
from on_cluster.studies import StudyOnCluster, a_secret, a_spec
from testcluster import scripts
from testcluster.bucket import S3Server, User
from testcluster.kube import Cluster, ControlPlane
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer

USER = f"system:serviceaccount:{HOME}:{NAME}"
CHECKED_ELSEWHERE = {("finetune.study", "finetunestudies/finalizers", "update")}
"""Nobody asks for it: an admission plugin looks whether one might. The last test takes it away."""

Right = tuple[str, str, str]


def read_rights() -> set[Right]:
    """Return every group, resource and verb that the manifests grant."""
    objects = read_manifests(MANIFESTS / "operator/access.yaml")
    return {
        (group, resource, verb)
        for each in objects
        for rule in each.get("rules", ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used_rights(cluster: Cluster) -> set[Right]:
    """Return every group, resource and verb that the operator has asked the API server for."""
    return {_right_of(event) for event in cluster.audited(user=USER) if "resource" in event.get("objectRef", {})}


def _right_of(event: dict[str, Any]) -> Right:
    reference = event["objectRef"]
    part = f"/{reference['subresource']}" if "subresource" in reference else ""
    return reference.get("apiGroup", ""), reference["resource"] + part, event["verb"]


@pytest.fixture
def installed(make_control_plane: Callable[..., ControlPlane]) -> Iterator[ControlPlane]:
    """A cluster on which somebody has applied the manifests, with nodes."""
    plane = make_control_plane()
    trainer = ScriptedTrainer()

    def play(pod: Any) -> scripts.Script:
        is_ours = pod["metadata"]["namespace"] != HOME
        return scripts.works(trainer, after_seconds=1.0) if is_ours else scripts.runs()

    install_crd(plane)
    plane.kubectl("apply", "--server-side", "-k", str(MANIFESTS / "operator"))
    with StandIn(plane.kubeconfig, nodes=2, script=play):
        yield plane


def start_operator(plane: ControlPlane, directory: Path) -> OperatorProcess:
    """Start an operator beside the cluster, as the service account of the manifests and at home where it is."""
    return OperatorProcess(
        plane.service_account_kubeconfig(HOME, NAME, directory),
        directory / "operator",
        config={"limits": FAST},
        arguments=["--lease-namespace", HOME],
    )


def test_the_operator_uses_every_right_that_the_manifests_give_and_needs_no_other(
    installed: ControlPlane, s3: S3Server, user: User, tmp_path: Path
) -> None:
    plane = installed
    # Two replicas under the restricted Pod Security Standard.
    plane.kubectl("rollout", "status", f"deployment/{NAME}", "-n", HOME, "--timeout=120s")
    [deployment] = plane.api.list(f"/apis/apps/v1/namespaces/{HOME}/deployments")
    assert deployment["status"]["availableReplicas"] == 2

    namespace = plane.create_namespace("shop-ml", labels={"pod-security.kubernetes.io/enforce": "restricted"})
    # Its pods go to any node.
    plane.api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"annotations": None}})
    plane.apply(a_secret(namespace, user))
    plane.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "certificates", "namespace": namespace},
            "data": {"ca.crt": (plane.directory / "ca.crt").read_text()},
        }
    )
    operator = start_operator(plane, tmp_path)
    try:
        use_everything(plane, namespace, s3, operator)
        assert operator.stop() == 0
    finally:
        operator.kill()
    # A watch is noted when it has ended.
    expected = read_rights() - CHECKED_ELSEWHERE
    wait_until(lambda: used_rights(plane) >= expected, seconds=10.0, why=lambda: f"{expected - used_rights(plane)}")
    assert used_rights(plane) == expected
    # What was refused: the Secret, until somebody let the operator read those of the namespace.
    assert {_right_of(event) for event in plane.refused(USER)} == {("", "secrets", "get")}


def use_everything(plane: ControlPlane, namespace: str, s3: S3Server, operator: OperatorProcess) -> None:
    """Let an operator do all that it can."""
    study = StudyOnCluster(plane, namespace, "shop")
    spec = a_spec(s3, arms=2, parallel=2, storage={"caBundle": {"configMapName": "certificates"}})
    spec["storage"]["deletionPolicy"] = "Delete"
    spec["trainer"]["nodes"] = 2
    pod = spec["trainer"]["template"]["spec"]
    pod |= {
        "serviceAccountName": "trainers",
        "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
    }
    study.apply(spec)
    study.wait(lambda study: study.condition("Accepted")["status"] == "False")
    message = study.condition("Accepted")["message"].splitlines()
    assert [line.partition(" must ")[0] for line in message] == [
        "`spec.storage.secretName`",
        "`spec.trainer.template.spec.serviceAccountName`",
        "`spec.trainer.template.spec.volumes`",
    ]
    assert "before a role that allows it is bound there" in message[0]
    for name in ("serviceAccountName", "volumes"):
        del pod[name]
    [binding] = read_manifests(MANIFESTS / "operator/per-namespace/secrets.yaml")
    plane.kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / "operator/per-namespace/secrets.yaml"))
    assert "namespace" not in binding["metadata"]
    study.apply(spec)
    study.wait(lambda study: "Running" in study.states())
    study.patch(suspend=True)
    study.wait(lambda study: study.condition("Suspended")["status"] == "True")
    study.patch(suspend=False)
    study.wait_for_condition("Complete")
    study.delete()
    study.wait_until_gone()


def test_without_the_right_to_update_finalizers_a_job_cannot_name_its_study_as_owner(
    installed: ControlPlane, s3: S3Server, user: User, tmp_path: Path
) -> None:
    role = next(
        each
        for each in read_manifests(MANIFESTS / "operator/access.yaml")
        if each["kind"] == "ClusterRole" and each["metadata"]["name"] == NAME
    )
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] != ["finetunestudies/finalizers"]]
    installed.api.replace(f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{NAME}", role)
    namespace = installed.create_namespace("shop-ml")
    installed.kubectl("apply", "-n", namespace, "-f", str(MANIFESTS / "operator/per-namespace/secrets.yaml"))
    installed.apply(a_secret(namespace, user))
    operator = start_operator(installed, tmp_path)
    try:
        study = StudyOnCluster(installed, namespace, "shop")
        study.apply(a_spec(s3, arms=2))
        study.wait(lambda study: study.condition("Accepted")["status"] == "False")
        assert "cannot set blockOwnerDeletion" in study.condition("Accepted")["message"]
    finally:
        operator.kill()
