"""Fixtures: Helm and the linters, built as the cluster is, and a cluster that a test may install into."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import build
from cluster.bucket import S3Server, User
from cluster.fixtures import find_programs
from cluster.kube import ControlPlane
from install.helm import Helm
from on_cluster.studies import BUCKET


@pytest.fixture(scope="session")
def helm_program() -> Path:
    return find_programs(lambda: build.build(build.HELM)) / "helm"


@pytest.fixture
def helm(helm_program: Path, tmp_path: Path) -> Helm:
    """Helm without a cluster."""
    return Helm(helm_program, tmp_path)


@pytest.fixture(scope="session")
def linters() -> Path:
    """The directory of the linters."""
    return find_programs(lambda: build.build(build.LINTERS))


@pytest.fixture(scope="session")
def prometheus_crds() -> Path:
    """The directory with the CRDs of the Prometheus operator."""
    return find_programs(lambda: build.build(build.PROMETHEUS_OPERATOR))


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
