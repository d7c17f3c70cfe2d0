"""The overlays, as people and GitOps tools apply them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from install.conftest import Nodes, make_namespace
from install.helm import by_name
from on_cluster.operators import FAST, HOME, MANIFESTS
from on_cluster.studies import StudyOnCluster, a_secret, a_spec
from study_operator import names
from testcluster.bucket import S3Server, User
from testcluster.demo import ON_LOOPBACK
from testcluster.kube import Cluster, ControlPlane

NAME = "finetune-study-operator"
USER = f"system:serviceaccount:{HOME}:{NAME}"
GITOPS = ("--server-side", "--field-manager=argocd-controller")


def build(cluster: Cluster, directory: Path) -> dict[str, dict[str, Any]]:
    """Return the objects of a kustomization."""
    return by_name(yaml.safe_load_all(cluster.kubectl("kustomize", str(directory)).stdout))


def test_for_the_cluster_there_is_all_that_the_files_say(cluster: Cluster) -> None:
    objects = build(cluster, MANIFESTS / "overlays/cluster-wide")
    files = [MANIFESTS / "crd/crd.yaml", *(MANIFESTS / "operator").glob("*.yaml")]
    message = by_name(
        each for file in files for each in yaml.safe_load_all(file.read_text()) if each and "metadata" in each
    )
    config = {name for name in objects if name.startswith("ConfigMap/")}
    assert objects.keys() - config == message.keys()
    assert len(config) == 1
    # Kustomize changes names, and may take one for another.
    for name, each in message.items():
        for part in ("rules", "roleRef", "subjects"):
            assert objects[name].get(part) == each.get(part), name


def test_in_named_namespaces_the_same_rules_hold_and_none_for_the_cluster(cluster: Cluster) -> None:
    wide = build(cluster, MANIFESTS / "overlays/cluster-wide")
    named = build(cluster, MANIFESTS / "overlays/namespaced")
    ours = {name for name in named if name.startswith("ClusterRole")}
    assert ours == {f"ClusterRole/{NAME}-view", f"ClusterRole/{NAME}-edit"}
    for part, role in (("studies", NAME), ("bucket-secrets", f"{NAME}-secrets")):
        assert named[f"Role/shop-ml/{NAME}-{part}"]["rules"] == wide[f"ClusterRole/{role}"]["rules"]
        binding = named[f"RoleBinding/shop-ml/{NAME}-{part}"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": HOME}]
    [container] = named[f"Deployment/{HOME}/{NAME}"]["spec"]["template"]["spec"]["containers"]
    assert "--namespace=shop-ml" in container["args"]


@pytest.fixture
def repository(plane: ControlPlane, tmp_path: Path) -> Path:
    """What a GitOps tool applies: an overlay of an overlay, with a configuration of its own."""
    (tmp_path / "operator.yaml").write_text(json.dumps({"limits": FAST, **ON_LOOPBACK}))
    overlay = os.path.relpath(MANIFESTS / "overlays/namespaced", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps(
            {
                "resources": [overlay],
                "configMapGenerator": [
                    {"name": f"{NAME}-config", "namespace": HOME, "behavior": "replace", "files": ["operator.yaml"]}
                ],
            }
        )
    )
    return tmp_path


@pytest.mark.slow
def test_what_gitops_applies_is_fought_over_by_nobody(
    plane: ControlPlane, nodes: Nodes, repository: Path, s3: S3Server, user: User
) -> None:
    for name in ("shop-ml", "news-ml"):
        make_namespace(plane, name)
        plane.apply(a_secret(name, user))
    plane.kubectl("apply", *GITOPS, "-k", str(repository))
    plane.kubectl("rollout", "status", f"deployment/{NAME}", "-n", HOME, "--timeout=300s")
    spec = a_spec(s3, arms=2, storage={"deletionPolicy": "Delete"})
    study, other = (StudyOnCluster(plane, name, "shop") for name in ("shop-ml", "news-ml"))
    manifests = json.dumps(
        {"apiVersion": "v1", "kind": "List", "items": [a_manifest(each, spec) for each in (study, other)]}
    )
    plane.kubectl("apply", *GITOPS, "-f", "-", text=manifests)
    # The last that is written of a study.
    study.wait(lambda study: study.status.get("cleanedAt"))
    assert study.condition("Complete")["status"] == "True"
    # Nobody looks at the other namespace, and nobody tried to.
    assert "status" not in other.refresh().seen
    assert [event["requestURI"] for event in plane.refused(USER)] == []

    # The operator has written all that it writes; applied again nothing is different, and nothing is taken back.
    before = study.refresh().seen["metadata"]["resourceVersion"]
    assert plane.kubectl("diff", *GITOPS, "-k", str(repository)).stdout == ""
    assert plane.kubectl("diff", *GITOPS, "-f", "-", text=manifests).stdout == ""
    plane.kubectl("apply", *GITOPS, "-k", str(repository))
    plane.kubectl("apply", *GITOPS, "-f", "-", text=manifests)
    assert study.refresh().seen["metadata"]["resourceVersion"] == before
    assert study.seen["metadata"]["finalizers"] == [names.FINALIZER]
    fields = [each for each in study.seen["metadata"]["managedFields"] if each["manager"] != "argocd-controller"]
    assert set().union(*(paths_of(each["fieldsV1"]) for each in fields)) == {"f:metadata.f:finalizers", "f:status"}
    # What the tool prunes goes.
    study.delete()
    study.wait_until_gone()


def a_manifest(study: StudyOnCluster, spec: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": study.name, "namespace": study.namespace}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": dict(spec)}


def paths_of(fields: Mapping[str, Any]) -> set[str]:
    """Return what somebody owns: of the metadata each field, of the rest each part."""
    metadata = {f"f:metadata.{name}" for name in fields.get("f:metadata", {})}
    return metadata | (fields.keys() - {"f:metadata"})
