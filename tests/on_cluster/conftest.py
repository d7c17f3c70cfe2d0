"""Fixtures: the CRD in the shared cluster, a bucket with a user, an operator in the test's namespace, a study."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.studies_on_a_server import install_crd
from on_cluster.operators import FAST, NAME, OperatorProcess, granted, read_access
from on_cluster.studies import BUCKET, StudyOnCluster, a_secret
from testcluster import scripts
from testcluster.bucket import S3Server, User
from testcluster.kube import Cluster
from testcluster.node import StandIn
from testcluster.scripts import Script
from testcluster.trainer import ScriptedTrainer


@pytest.fixture(scope="session")
def _crd(cluster: Cluster) -> None:
    install_crd(cluster)


@pytest.fixture
def user(s3: S3Server) -> User:
    """Somebody who may use the studies' bucket, which is there now."""
    someone = s3.add_user("trainer")
    s3.make_bucket(BUCKET, users=[someone])
    return someone


@pytest.fixture
def home(cluster: Cluster, namespace: str, user: User, _crd: None, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of an operator that may do what its manifests say; the bucket's Secret is there."""
    with granted(cluster, read_access(namespace)):
        cluster.apply(a_secret(namespace, user))
        yield cluster.service_account_kubeconfig(namespace, NAME, tmp_path)


@pytest.fixture
def make_operator(home: Path, namespace: str, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts operators of the test's namespace: `make_operator(limits={"backoffSeconds": 5})`."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def make(*, limits: Any = None, identities: Any = None, **options: Any) -> OperatorProcess:
            operator = OperatorProcess(
                home,
                tmp_path / f"operator-{next(numbers)}",
                config={"identities": identities or {}, "limits": {**FAST, **(limits or {})}},
                arguments=["--namespace", namespace, "--lease-namespace", namespace],
                **options,
            )
            stack.callback(operator.kill)
            return operator

        yield make


class Stage:
    """Nodes whose pods do what is said of their Job: `stage.play["t000-r0"] = scripts.exits(11)`; else their work.

    A list is for one pod after the other, and their work follows.
    """

    def __init__(self, make_nodes: Callable[..., StandIn], **options: Any) -> None:
        self.trainer = ScriptedTrainer()
        self.play: dict[str, Script | list[Script]] = {}
        """By the end of a Job's name; the longest that fits is played, from the next pod on."""
        self.nodes = make_nodes(script=self._choose, **options)

    def _choose(self, pod: Any) -> Script:
        job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        words = [word for word in self.play if job.endswith(word)]
        script = self.play[max(words, key=len)] if words else []
        if isinstance(script, Script):
            return script
        return script.pop(0) if script else scripts.works(self.trainer)


@pytest.fixture
def stage(make_nodes: Callable[..., StandIn]) -> Stage:
    """Scripted nodes of the test's namespace."""
    return Stage(make_nodes)


@pytest.fixture
def study(cluster: Cluster, namespace: str) -> StudyOnCluster:
    """A study of the test's namespace that is not there yet."""
    return StudyOnCluster(cluster, namespace, "shop")
