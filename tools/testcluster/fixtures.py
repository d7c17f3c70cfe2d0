"""pytest's view of the test cluster: one for the whole run, a namespace and nodes for each test, fresh ones to break.

Where there is no Go the tests that need it are skipped, with one line that says so.
`KUBECONFIG` is honoured instead of a cluster of our own where it names a server on this machine: `make cluster` in one
terminal saves every run in another the start. `KUBEBUILDER_ASSETS` is honoured instead of programs of our own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from testcluster import build, shared
from testcluster.bucket import S3Server
from testcluster.kube import POOL_LABEL, Cluster, ControlPlane
from testcluster.node import StandIn

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


FindPrograms = Callable[[Callable[[], Path]], Path]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow whatever asks for a program that Go builds: a quick run of tests needs no Go."""
    for item in items:
        if isinstance(item, pytest.Function) and "programs" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def programs() -> FindPrograms:
    """Finds a directory of programs, built now if need be; where they can't be built the test is skipped."""

    def find_or_skip(find: Callable[[], Path]) -> Path:
        try:
            return find()
        except build.GoMissingError as error:
            pytest.skip(str(error))

    return find_or_skip


@pytest.fixture(scope="session")
def cluster(programs: FindPrograms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with no nodes, shared by all workers of this run; nobody may break it."""
    if (given := find_given_cluster()) is not None:
        _require_pools(given)
        yield given
        return
    programs(build.find_kubernetes)
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    with shared.borrow((base.parent if is_worker else base) / "cluster") as found:
        yield found


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own. Its pods go to nodes of its own: see `make_nodes`."""
    name = cluster.create_namespace(f"test-{secrets.token_hex(4)}")
    yield name
    cluster.delete_namespace(name)


@pytest.fixture
def make_nodes(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Callable[..., StandIn]]:
    """Makes stand-in nodes for the pods of the test's namespace: `make_nodes(gpus=2, script=lambda pod: exits(10))`."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def make(**options: Any) -> StandIn:
            name = f"{namespace}-{chr(ord('a') + next(numbers))}"
            stand_in = StandIn(cluster.kubeconfig, name=name, pool=namespace, directory=tmp_path / name, **options)
            return stack.enter_context(stand_in)

        yield make


@pytest.fixture
def make_control_plane(
    programs: FindPrograms, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., ControlPlane]]:
    """Makes control planes that a test may kill, freeze and restart: `make_control_plane(node_grace_seconds=8)`."""
    kubernetes = programs(build.find_kubernetes)
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> ControlPlane:
            directory = tmp_path_factory.mktemp("control-plane")
            return stack.enter_context(ControlPlane(directory, kubernetes, **options))

        yield make


@pytest.fixture
def s3(programs: FindPrograms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server of the test's own."""
    versitygw = programs(lambda: build.build(build.VERSITYGW)) / "versitygw"
    with S3Server(tmp_path_factory.mktemp("s3"), versitygw) as server:
        yield server


def pytest_report_header() -> list[str]:
    """Say it when a cluster that somebody has set is left alone."""
    given = os.environ.get("KUBECONFIG")
    if not given or find_given_cluster() is not None:
        return []
    return [f"cluster: KUBECONFIG ({given}) names no server on this machine, so that tests start one of their own"]


def find_given_cluster() -> Cluster | None:
    """Return the cluster of `KUBECONFIG`, if it is on this machine: tests make nodes there, and much else."""
    given = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    if not given or not Path(given).exists():
        return None
    kubectl = None
    with contextlib.suppress(build.BuildError):
        kubectl = build.find_kubernetes() / "kubectl"
    found = Cluster(Path(given), kubectl=kubectl)
    return found if urlsplit(found.url).hostname in LOOPBACK else None


def _require_pools(cluster: Cluster) -> None:
    """Skip where a namespace can't have nodes of its own: tests would get the pods of each other."""
    name = cluster.create_namespace(f"test-{secrets.token_hex(4)}")
    try:
        container = {"name": "none", "image": "none"}
        pod = cluster.api.create(
            f"/api/v1/namespaces/{name}/pods",
            {"metadata": {"name": "none"}, "spec": {"containers": [container]}},
            dryRun="All",
        )
        if POOL_LABEL not in pod["spec"].get("nodeSelector", {}):
            pytest.skip(f"the cluster of KUBECONFIG must run the admission plugin PodNodeSelector: {cluster.url}")
    finally:
        cluster.delete_namespace(name)
