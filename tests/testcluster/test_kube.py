"""The control plane is a real one: it authorizes, admits, audits, and keeps its data when it is killed."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testcluster.api import Api, ApiError, UnreachableError
from testcluster.kube import Cluster, ControlPlane


def a_pod(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "trainer", "image": "none"}], **spec}}


def a_config_map(name: str = "a") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": "value"}}


def wait_until_may(cluster: Cluster, account: str, verb: str, resource: str) -> None:
    """Wait until the authorizer, which learns of roles by a watch of its own, lets a service account do something."""
    user, namespace = f"--as=system:serviceaccount:{account}", account.partition(":")[0]
    deadline = time.monotonic() + 20.0
    while cluster.kubectl("auth", "can-i", verb, resource, user, "-n", namespace, check=False).stdout.strip() != "yes":
        assert time.monotonic() < deadline, f"{account} may not {verb} {resource}"
        time.sleep(0.05)


def test_it_tells_its_version_and_explains_its_fields(cluster: Cluster) -> None:
    version = json.loads(cluster.kubectl("version", "-o", "json").stdout)
    assert version["serverVersion"]["gitVersion"] == version["clientVersion"]["gitVersion"] == "v1.36.3"
    assert "podFailurePolicy" in cluster.kubectl("explain", "job.spec").stdout


def test_a_service_account_may_do_what_its_role_says_and_nothing_else(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    cluster.kubectl("-n", namespace, "create", "serviceaccount", "reader")
    account = Api(cluster.service_account_kubeconfig(namespace, "reader", tmp_path))
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    with pytest.raises(ApiError, match="cannot list resource") as refused:
        account.list(jobs)
    assert (refused.value.code, refused.value.reason) == (403, "Forbidden")
    cluster.kubectl("-n", namespace, "create", "role", "reader", "--verb=list", "--resource=jobs.batch")
    binding = f"--serviceaccount={namespace}:reader"
    cluster.kubectl("-n", namespace, "create", "rolebinding", "reader", "--role=reader", binding)
    wait_until_may(cluster, f"{namespace}:reader", "list", "jobs.batch")
    assert account.list(jobs) == []
    with pytest.raises(ApiError, match="cannot create resource"):
        account.create(jobs, {"metadata": {"name": "a"}})


def test_an_owner_that_one_may_not_finalize_can_not_block_deletion(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    owner = cluster.api.create(maps, a_config_map("owner"))
    cluster.kubectl("-n", namespace, "create", "serviceaccount", "writer")
    cluster.kubectl("-n", namespace, "create", "role", "writer", "--verb=create,get", "--resource=configmaps")
    binding = f"--serviceaccount={namespace}:writer"
    cluster.kubectl("-n", namespace, "create", "rolebinding", "writer", "--role=writer", binding)
    wait_until_may(cluster, f"{namespace}:writer", "create", "configmaps")
    account = Api(cluster.service_account_kubeconfig(namespace, "writer", tmp_path))
    owned = a_config_map("owned")
    owned["metadata"]["ownerReferences"] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": "owner",
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": True,
        }
    ]
    with pytest.raises(ApiError, match="cannot set blockOwnerDeletion if an ownerReference refers to a resource"):
        account.create(maps, owned)


def test_a_restricted_namespace_refuses_a_pod_that_is_not(cluster: Cluster, namespace: str) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", namespace, label)
    with pytest.raises(ApiError, match='violates PodSecurity "restricted:latest"'):
        cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", a_pod())


def test_pods_of_a_namespace_go_to_its_own_nodes(cluster: Cluster, namespace: str) -> None:
    pod = cluster.api.create(f"/api/v1/namespaces/{namespace}/pods", a_pod(), dryRun="All")
    assert pod["spec"]["nodeSelector"] == {"finetune.study/test-pool": namespace}


def test_requests_of_people_are_noted_one_by_one(cluster: Cluster, namespace: str) -> None:
    if cluster.audit_log is None:
        pytest.skip("the cluster of KUBECONFIG is not ours, and tells no requests")
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.api.create(maps, a_config_map("a"))
    cluster.api.create(maps, a_config_map("b"))
    cluster.api.patch(f"{maps}/a", {"data": {"key": "other"}})
    mine = [event["verb"] for event in cluster.audited(namespace=namespace, resource="configmaps", user="test-admin")]
    assert sorted(mine) == ["create", "create", "patch"]


def test_waiting_ends_when_the_object_says_so_and_tells_what_it_saw(cluster: Cluster, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.api.create(maps, a_config_map())
    assert cluster.api.wait_for(maps, "none", lambda found: found is None) is None
    with pytest.raises(TimeoutError, match='"key": "value"'):
        cluster.api.wait_for(maps, "a", lambda found: found is None, seconds=0.5)


def test_data_and_address_survive_every_kill(make_control_plane: Callable[..., ControlPlane]) -> None:
    plane = make_control_plane()
    maps = "/api/v1/namespaces/default/configmaps"
    plane.api.create(maps, a_config_map())
    for name in ("scheduler", "controller-manager", "etcd", "apiserver"):
        before = plane.pid(name)
        plane.restart(name)
        assert plane.pid(name) != before
    found = plane.api.get(f"{maps}/a")
    assert found is not None and found["data"] == {"key": "value"}
    plane.kill("apiserver")
    with pytest.raises(UnreachableError):
        plane.api.get(f"{maps}/a")
    plane.start("apiserver")
    # The controllers have found it again: a namespace gets its account.
    plane.create_namespace("later")


def test_a_person_with_a_certificate_has_the_rights_of_their_groups(
    make_control_plane: Callable[..., ControlPlane],
) -> None:
    plane = make_control_plane()
    role = "--clusterrole=view"
    plane.kubectl("create", "rolebinding", "viewers", "-n", "default", role, "--group=team-a")
    alice = Api(plane.user_kubeconfig("alice", ["team-a"]))
    bob = Api(plane.user_kubeconfig("bob"))
    assert alice.list("/api/v1/namespaces/default/configmaps")
    with pytest.raises(ApiError, match='User "bob" cannot list resource "configmaps"'):
        bob.list("/api/v1/namespaces/default/configmaps")


def test_nothing_is_left_running_when_it_ends(make_control_plane: Callable[..., ControlPlane]) -> None:
    plane = make_control_plane()
    pids = [plane.pid(name) for name in ("etcd", "apiserver", "controller-manager", "scheduler")]
    plane.stop_all()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
