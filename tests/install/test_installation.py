"""The chart on a real API server: installed under restricted Pod Security, upgraded, rolled back, uninstalled.

The operator's pods are processes that have their service account's token and so the rights that the chart gives them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from install.conftest import Nodes, make_namespace
from install.helm import CHART, RELEASE, Helm, HelmError
from on_cluster.operators import FAST, HOME, wait_until
from on_cluster.studies import StudyOnCluster, a_secret, a_spec, created_jobs, read_keys
from testcluster.bucket import S3Server, User
from testcluster.demo import ON_LOOPBACK
from testcluster.kube import Cluster, ControlPlane

NAME = "finetune-study-operator"
USER = f"system:serviceaccount:{HOME}:{NAME}"
WAIT = ("--wait", "--timeout", "300s")
WATCHED = {
    "metrics": {part: {"enabled": True} for part in ("serviceMonitor", "prometheusRule", "dashboard")},
}
LEFT_ALONE = {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}
"""What is in every namespace."""


@pytest.fixture
def shop(plane: ControlPlane, user: User) -> str:
    """A restricted namespace with the bucket's Secret; the operator's is there too."""
    for name in (HOME, "shop-ml"):
        make_namespace(plane, name)
    plane.apply(a_secret("shop-ml", user))
    return "shop-ml"


def holder(plane: Cluster) -> str:
    """Return who holds the Lease."""
    lease = plane.api.get(f"/apis/coordination.k8s.io/v1/namespaces/{HOME}/leases/{NAME}")
    return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")


def find_left(plane: Cluster, namespace: str) -> set[str]:
    """Return what there is in a namespace that is not in every one."""
    kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,leases,poddisruptionbudgets,networkpolicies"
    kinds += ",servicemonitors,prometheusrules"
    return list_names(plane, kinds, "-n", namespace) - LEFT_ALONE


def find_left_of_cluster(plane: Cluster) -> set[str]:
    """Return what there is of ours outside of namespaces."""
    kinds = "clusterroles,clusterrolebindings,customresourcedefinitions,priorityclasses"
    return {each for each in list_names(plane, kinds) if "finetune" in each}


def list_names(plane: Cluster, *arguments: str) -> set[str]:
    """Return what kubectl gets, as kind and name."""
    items = json.loads(plane.kubectl("get", *arguments, "-o", "json").stdout)["items"]
    return {f"{each['kind']}/{each['metadata']['name']}" for each in items}


@pytest.mark.slow
def test_a_study_survives_upgrade_and_rollback_and_an_uninstallation_leaves_what_was_asked_for(
    plane: ControlPlane, plane_helm: Helm, nodes: Nodes, shop: str, s3: S3Server, prometheus_crds: Path
) -> None:
    helm = plane_helm
    for crd in prometheus_crds.glob("*.yaml"):
        plane.kubectl("apply", "--server-side", "-f", str(crd))
    values = {"secrets": {"namespaces": [shop]}, "config": {"limits": FAST, **ON_LOOPBACK}, **WATCHED}
    before = helm.package("0.0.9")
    notes = helm.run("install", RELEASE, before, "-n", HOME, *WAIT, values=values)
    # The two commands that it ends with.
    for line in notes.partition("NOTES:")[2].splitlines():
        if line.startswith("  kubectl "):
            plane.kubectl(*line.split()[1:])

    check_people(plane, shop)

    # An upgrade in the middle of a study.
    nodes.hold("shop-t001-r0")
    study = StudyOnCluster(plane, shop, "shop")
    study.apply(a_spec(s3, arms=3, parallel=2))
    study.wait(lambda study: study.states() == ["Paused", "Running", "Paused"])
    [pod] = study.live_pods("t001")
    first = holder(plane)
    helm.run("upgrade", RELEASE, CHART, "-n", HOME, *WAIT, values={**values, "replicas": 1})
    wait_until(lambda: holder(plane) not in ("", first))
    [deployment] = plane.api.list(f"/apis/apps/v1/namespaces/{HOME}/deployments")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"{NAME}:0.1.0"
    assert [each["metadata"]["uid"] for each in study.live_pods("t001")] == [pod["metadata"]["uid"]]
    # Rolled back, and then that too, while the same pod runs.
    for revision, version in (("1", "0.0.9"), ("2", "0.1.0")):
        last = holder(plane)
        helm.run("rollback", RELEASE, revision, "-n", HOME, *WAIT)
        wait_until(lambda last=last: holder(plane) not in ("", last))  # type: ignore[misc]
        [deployment] = plane.api.list(f"/apis/apps/v1/namespaces/{HOME}/deployments")
        assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"{NAME}:{version}"
        assert [each["metadata"]["uid"] for each in study.live_pods("t001")] == [pod["metadata"]["uid"]]
    nodes.release()
    study.wait_for_condition("Complete")
    # The operator has changed nothing that the chart says: who applies it again finds no difference.
    rendered = helm.render({**values, "replicas": 1}, namespace=HOME)
    fields = ("--server-side", "--field-manager=argocd-controller")
    assert plane.kubectl("diff", *fields, "-f", "-", text=rendered).stdout == ""
    jobs = created_jobs(plane, shop)
    assert len(jobs) == len(set(jobs)), "a Job was made twice"
    # All of it with the tokens of the pods of four revisions, and nothing was refused: the chart gives the rights
    # that it needs.
    asked = list(plane.audited(user=USER))
    pods = {event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0] for event in asked}
    assert len(pods) >= 5 and all(each.startswith(f"{NAME}-") for each in pods)
    assert [event["requestURI"] for event in plane.refused(USER)] == []

    # Uninstalled while a study runs: API, study and its pods stay, and go on as far as they can alone.
    nodes.hold("news-t000-r0")
    kept = StudyOnCluster(plane, shop, "news")
    kept.apply(a_spec(s3, arms=2, storage={"deletionPolicy": "Delete"}))
    kept.wait(lambda study: "Running" in study.states())
    wait_until(lambda: kept.live_pods("t000"))
    helm.run("uninstall", RELEASE, "-n", HOME, *WAIT)
    wait_until(lambda: not find_left(plane, HOME), why=lambda: f"{find_left(plane, HOME)}")
    assert find_left_of_cluster(plane) == {"CustomResourceDefinition/finetunestudies.finetune.study"}
    assert "Running" in kept.refresh().states() and kept.live_pods("t000")
    # What nobody lets go waits for somebody.
    study.delete()
    study.wait_until_gone()
    nodes.release()
    wait_until(lambda: not kept.live_pods("t000"))

    # Installed again, for this namespace alone, it takes over what it finds. API and studies are to go with it.
    values = {
        "replicas": 1,
        "config": {"limits": FAST, **ON_LOOPBACK},
        "watchNamespaces": [shop],
        "secrets": {"everywhere": True},
        "crds": {"keep": False},
    }
    helm.run("install", RELEASE, CHART, "-n", HOME, *WAIT, values=values)
    kept.wait_for_condition("Complete")
    nodes.hold("last-t000-r0")
    last = StudyOnCluster(plane, shop, "last")
    last.apply(a_spec(s3, arms=2, storage={"deletionPolicy": "Delete"}))
    last.wait(lambda study: "Running" in study.states())
    assert read_keys(s3, last.prefix()) and read_keys(s3, kept.prefix())
    assert not [each for each in find_left_of_cluster(plane) if each.startswith("ClusterRoleBinding/")]
    # Without an operator that lets them go nothing is uninstalled.
    scale(plane, 0)
    with pytest.raises(HelmError, match="timed out waiting for the condition"):
        helm.run("uninstall", RELEASE, "-n", HOME, "--timeout", "5s")
    assert f"Deployment/{NAME}" in find_left(plane, HOME)
    assert last.get() is not None
    scale(plane, 1)
    helm.run("uninstall", RELEASE, "-n", HOME, *WAIT)
    assert not read_keys(s3, last.prefix()) and not read_keys(s3, kept.prefix())
    assert read_keys(s3, study.prefix())
    wait_until(lambda: not find_left(plane, HOME), why=lambda: f"{find_left(plane, HOME)}")
    wait_until(lambda: not find_left_of_cluster(plane), why=lambda: f"{find_left_of_cluster(plane)}")
    # The Secret and its binding belong to whoever owns the namespace; the binding was the chart's.
    wait_until(lambda: find_left(plane, shop) == {"Secret/bucket-credentials"}, why=lambda: f"{find_left(plane, shop)}")


def scale(plane: ControlPlane, replicas: int) -> None:
    """Let there be so many replicas."""
    plane.kubectl("scale", f"deployment/{NAME}", "-n", HOME, f"--replicas={replicas}")
    selector = f"app.kubernetes.io/name={NAME}"
    wait_until(lambda: len(plane.api.list(f"/api/v1/namespaces/{HOME}/pods", labelSelector=selector)) == replicas)


def check_people(plane: ControlPlane, namespace: str) -> None:
    """Look at what Kubernetes' own roles let people do with studies."""
    for role in ("view", "edit", "admin"):
        plane.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}", "-n", namespace)

    def may(person: str, verb: str, *part: str) -> bool:
        asked = plane.kubectl("auth", "can-i", verb, "fts", *part, "-n", namespace, f"--as={person}", check=False)
        return asked.stdout.strip() == "yes"

    # A controller adds our rules to each of them, in any order.
    wait_until(lambda: may("view", "get") and may("edit", "delete") and may("admin", "delete"))
    for person in ("view", "edit", "admin"):
        assert may(person, "get")
        assert may(person, "create") == (person != "view")
        assert not may(person, "update", "--subresource=status")
    plane.kubectl("delete", "rolebinding", "view", "edit", "admin", "-n", namespace)
