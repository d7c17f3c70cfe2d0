"""Fixtures: Helm and the linters, built as the cluster is, and a cluster that a test may install into."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from install.helm import Helm
from on_cluster.studies import BUCKET
from testcluster import build, scripts
from testcluster.bucket import S3Server, User
from testcluster.containers import OPERATOR_IMAGE
from testcluster.fixtures import FindPrograms
from testcluster.kube import ControlPlane
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture(scope="session")
def helm_program(programs: FindPrograms) -> Path:
    return programs(lambda: build.build(build.HELM)) / "helm"


@pytest.fixture
def helm(helm_program: Path, tmp_path: Path) -> Helm:
    """Helm without a cluster."""
    return Helm(helm_program, tmp_path)


@pytest.fixture(scope="session")
def linters(programs: FindPrograms) -> Path:
    """The directory of the linters."""
    return programs(lambda: build.build(build.LINTERS))


@pytest.fixture(scope="session")
def kapply(programs: FindPrograms) -> Path:
    """A program that tells what kstatus makes of objects."""
    return programs(lambda: build.build(build.KSTATUS)) / "kapply"


@pytest.fixture(scope="session")
def prometheus_crds(programs: FindPrograms) -> Path:
    """The directory with the CRDs of the Prometheus operator."""
    return programs(lambda: build.build(build.PROMETHEUS_OPERATOR))


@pytest.fixture
def plane(make_control_plane: Callable[..., ControlPlane]) -> ControlPlane:
    """A cluster of the test's own: what is installed belongs to no namespace."""
    return make_control_plane()


@pytest.fixture
def plane_helm(helm_program: Path, plane: ControlPlane, tmp_path: Path) -> Helm:
    """Helm on that cluster."""
    return Helm(helm_program, tmp_path, kubeconfig=plane.kubeconfig)


@pytest.fixture
def user(s3: S3Server) -> User:
    """Somebody who may use the studies' bucket, which is there now."""
    someone = s3.add_user("trainer")
    s3.make_bucket(BUCKET, users=[someone])
    return someone


class Nodes:
    """Nodes whose operators are processes, and whose trainers do their work; from `hold` to `release` they wait."""

    def __init__(self, plane: ControlPlane) -> None:
        self._work = ScriptedTrainer()
        self._may_end = threading.Event()
        self._held = ""
        self.stand_in = StandIn(plane.kubeconfig, nodes=2, script=self._choose)

    def _choose(self, pod: Any) -> scripts.Script | None:
        if OPERATOR_IMAGE in pod["spec"]["containers"][0]["image"]:
            return None
        is_held = self._held and self._held in pod["metadata"]["labels"].get("batch.kubernetes.io/job-name", "")
        return scripts.works(self._wait_and_work if is_held else self._work)

    def _wait_and_work(self, environment: Mapping[str, str]) -> int | None:
        self._may_end.wait()
        return self._work(environment)

    def hold(self, job: str) -> None:
        """Let pods of Jobs with this in their name wait."""
        self._held = job
        self._may_end.clear()

    def release(self) -> None:
        """Let them work."""
        self._held = ""
        self._may_end.set()


@pytest.fixture
def nodes(plane: ControlPlane) -> Iterator[Nodes]:
    made = Nodes(plane)
    with made.stand_in:
        try:
            yield made
        finally:
            made.release()


def make_namespace(plane: ControlPlane, name: str) -> None:
    """Make a restricted namespace whose pods go to any node."""
    plane.api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": RESTRICTED}})
    plane.api.wait_for(f"/api/v1/namespaces/{name}/serviceaccounts", "default", lambda found: found is not None)
