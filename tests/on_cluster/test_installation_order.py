"""Whatever comes first: the operator, its CRD, a namespace or the role that is bound there."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.studies_on_a_server import CRD_FILE, install_crd
from on_cluster.operators import FAST, NAME, OperatorProcess, granted, read_access
from on_cluster.studies import StudyOnCluster, a_secret, a_spec
from testcluster import scripts
from testcluster.bucket import S3Server, User
from testcluster.kube import Cluster, ControlPlane
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer

Start = Callable[..., OperatorProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts operators at home in a namespace, which watch that one and others."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start(cluster: Cluster, home: str, *others: str) -> OperatorProcess:
            watched: list[str] = [word for name in (*others, home) for word in ("--namespace", name)]
            operator = OperatorProcess(
                cluster.service_account_kubeconfig(home, NAME, tmp_path),
                tmp_path / f"operator-{next(numbers)}",
                config={"limits": FAST},
                arguments=[*watched, "--lease-namespace", home],
            )
            stack.callback(operator.kill)
            return operator

        yield start


def is_done(study: StudyOnCluster) -> bool:
    return study.condition("Complete")["status"] == "True"


@pytest.mark.slow
def test_an_operator_waits_for_its_crd_and_starts_anew_where_it_is_deleted_and_restored(
    make_control_plane: Callable[..., ControlPlane], start: Start, s3: S3Server, user: User
) -> None:
    plane = make_control_plane()
    namespace = plane.create_namespace("shop-ml")
    trainer = ScriptedTrainer()
    script = scripts.works(trainer, after_seconds=0.2)
    # The roles name a resource that nobody knows yet, which is allowed.
    with granted(plane, read_access(namespace)), StandIn(plane.kubeconfig, pool=namespace, script=lambda pod: script):
        plane.apply(a_secret(namespace, user))
        first = start(plane, namespace)
        first.wait_until_says("waiting for the CRD to be installed")
        assert first.ask_health() == 200
        install_crd(plane)
        study = StudyOnCluster(plane, namespace, "shop")
        study.apply(a_spec(s3, arms=2))
        study.wait(is_done)

        plane.kubectl("delete", "-f", str(CRD_FILE))
        assert first.wait() == 1
        assert "studies can't be watched any more" in first.log
        # As its Deployment would.
        second = start(plane, namespace)
        second.wait_until_says("waiting for the CRD to be installed")
        install_crd(plane)
        again = StudyOnCluster(plane, namespace, "again")
        again.apply(a_spec(s3, arms=2))
        again.wait(is_done)


def bound_in(access: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    """Return the manifests with the operator's role bound in one namespace alone."""
    return [
        {**each, "kind": "RoleBinding", "metadata": {**each["metadata"], "namespace": namespace}}
        if each["kind"] == "ClusterRoleBinding"
        else each
        for each in access
    ]


@pytest.mark.usefixtures("_crd")
def test_a_namespace_that_is_missing_or_not_bound_yet_holds_up_no_other(
    cluster: Cluster,
    namespace: str,
    make_nodes: Callable[..., StandIn],
    start: Start,
    s3: S3Server,
    user: User,
) -> None:
    trainer = ScriptedTrainer()
    make_nodes(script=lambda pod: scripts.works(trainer, after_seconds=0.2))
    access = bound_in(read_access(namespace), namespace)
    with contextlib.ExitStack() as stack:
        stack.enter_context(granted(cluster, access))
        unbound = cluster.create_namespace(f"{namespace}-later")
        stack.callback(cluster.delete_namespace, unbound)
        for name in (namespace, unbound):
            cluster.apply(a_secret(name, user))
        operator = start(cluster, namespace, f"{namespace}-missing", unbound)
        study, later = StudyOnCluster(cluster, namespace, "shop"), StudyOnCluster(cluster, unbound, "shop")
        study.apply(a_spec(s3, arms=2))
        later.apply(a_spec(s3, arms=2))
        study.wait(is_done)
        assert later.refresh().status == {}
        # What was asked for too early is asked for again.
        kinds = ("RoleBinding",)
        cluster.apply(
            *(
                {**each, "metadata": {**each["metadata"], "namespace": unbound}}
                for each in access
                if each["kind"] in kinds and each["roleRef"]["kind"] == "ClusterRole"
            )
        )
        later.wait(lambda study: study.condition("Accepted")["status"] == "True")
        assert operator.ask_health() == 200
