"""Kueue, the real controller: it admits, holds and preempts the Jobs of studies, and no clock runs meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from builders.studies_on_a_server import install_crd
from on_cluster.operators import FAST, NAME, OperatorProcess, granted, read_access, wait_until
from on_cluster.studies import StudyOnCluster, a_secret, a_spec, created_jobs
from testcluster import build, scripts
from testcluster.bucket import S3Server, User
from testcluster.fixtures import FindPrograms
from testcluster.kube import ControlPlane
from testcluster.kueue import Kueue
from testcluster.node import GPU, StandIn
from testcluster.trainer import ScriptedTrainer

QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
API = "kueue.x-k8s.io/v1beta2"
QUOTA = 2
"""Accelerators of the queue."""


class Bench:
    """A cluster with Kueue, one queue of two accelerators, and an operator."""

    def __init__(self, plane: ControlPlane, namespace: str, s3: S3Server) -> None:
        self.plane, self.namespace, self.s3 = plane, namespace, s3
        self.trainer = ScriptedTrainer()
        self.script: Callable[[Any], scripts.Script] = lambda pod: scripts.works(self.trainer)
        self.study = StudyOnCluster(plane, namespace, "shop")

    def hold(self, *, is_held: bool) -> None:
        """Let the queue admit nothing, and throw out what runs; or let it go on."""
        policy = "HoldAndDrain" if is_held else "None"
        self.plane.api.patch(f"/apis/{API}/clusterqueues/accelerators", {"spec": {"stopPolicy": policy}})

    def apply(self, **options: Any) -> StudyOnCluster:
        """Create a study whose Jobs go through the queue."""
        spec = a_spec(self.s3, **options)
        template = spec["trainer"]["template"]
        template["metadata"] = {"labels": {QUEUE_LABEL: "team", PRIORITY_LABEL: "low"}}
        template["spec"]["containers"][0]["resources"] = {"limits": {GPU: "1"}}
        self.study.apply(spec)
        return self.study

    def suspended(self) -> set[str]:
        """Return the Jobs that Kueue holds."""
        return {name for name, job in self.study.jobs().items() if job["spec"]["suspend"]}


@pytest.fixture(scope="module")
def plane(programs: FindPrograms, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of our own: Kueue's webhooks see every Job of a cluster."""
    kubernetes, kueue = programs(build.find_kubernetes), programs(lambda: build.build(build.KUEUE))
    with ControlPlane(tmp_path_factory.mktemp("queues"), kubernetes) as plane:
        install_crd(plane)
        with Kueue(plane, tmp_path_factory.mktemp("kueue"), kueue):
            wait_until(lambda: _applies(plane, *_queue()))
            yield plane


@pytest.fixture
def bench(plane: ControlPlane, s3: S3Server, user: User, tmp_path: Path) -> Iterator[Bench]:
    namespace = plane.create_namespace(f"team-{len(list(plane.api.list('/api/v1/namespaces')))}")
    bench = Bench(plane, namespace, s3)
    bench.hold(is_held=False)
    plane.apply(_local_queue(namespace), a_secret(namespace, user))
    with granted(plane, read_access(namespace)):
        home = plane.service_account_kubeconfig(namespace, NAME, tmp_path)
        operator = OperatorProcess(
            home,
            tmp_path / "operator",
            config={"limits": FAST},
            arguments=["--namespace", namespace, "--lease-namespace", namespace],
        )
        try:
            nodes = {"name": namespace, "pool": namespace, "gpus": 8, "directory": tmp_path / "nodes"}
            with StandIn(plane.kubeconfig, script=lambda pod: bench.script(pod), **nodes):
                yield bench
                assert operator.stop() == 0
        finally:
            operator.kill()


def _queue() -> list[dict[str, Any]]:
    flavor = {"name": "default", "resources": [{"name": GPU, "nominalQuota": QUOTA}]}
    preemption = {"withinClusterQueue": "LowerPriority"}
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [{"coveredResources": [GPU], "flavors": [flavor]}],
        "preemption": preemption,
    }
    return [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "default"}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": "accelerators"}, "spec": spec},
        *(
            {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
            for name, value in (("low", 10), ("high", 1000))
        ),
    ]


def _local_queue(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "LocalQueue",
        "metadata": {"name": "team", "namespace": namespace},
        "spec": {"clusterQueue": "accelerators"},
    }


@pytest.mark.slow
def test_trials_of_one_study_share_the_quota_of_their_queue(bench: Bench) -> None:
    running: list[int] = []

    def look(environment: Any) -> int:
        running.append(len([pod for pod in bench.study.live_pods() if pod["status"]["phase"] == "Running"]))
        return bench.trainer(environment)

    bench.script = lambda pod: scripts.works(look, after_seconds=1.0)
    study = bench.apply(arms=6, parallel=4)
    study.wait(lambda study: len(bench.suspended()) == 2 and "Queued" in study.condition("Complete")["message"])
    # Those that wait are no attempts, and nobody is blamed.
    waiting = [trial for trial in study.trials if trial.get("message", "").startswith("it waits: Queued")]
    assert [trial.get("attempts", []) for trial in waiting] == [[]] * len(waiting)
    study.wait_for_condition("Complete")
    assert max(running) == QUOTA
    ends = [attempt["reason"] for trial in study.trials for attempt in trial["attempts"]]
    assert set(ends) == {"Succeeded"}
    jobs = created_jobs(bench.plane, bench.namespace)
    assert len(jobs) == len(set(jobs))


@pytest.mark.slow
def test_while_the_queue_holds_everything_no_clock_runs(bench: Bench) -> None:
    bench.hold(is_held=True)
    study = bench.apply(arms=2, parallel=2, budget={"activeDeadlineSeconds": 20})
    study.wait(lambda study: "Queued" in study.condition("Complete")["message"])
    assert study.condition("Accepted")["status"] == "True"
    released = datetime.now(UTC).replace(microsecond=0)
    bench.hold(is_held=False)
    study.wait_for_condition("Complete")
    assert study.condition("Complete")["reason"] == "Completed"
    starts = [attempt["startedAt"] for trial in study.trials for attempt in trial["attempts"]]
    assert all(datetime.fromisoformat(start) >= released for start in starts)


@pytest.mark.slow
def test_a_preempted_trial_goes_on_where_it_was_and_counts_against_nobody(bench: Bench) -> None:
    first = {"t000-r0", "t001-r0"}

    def choose(pod: Any) -> scripts.Script:
        job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        word = job.removeprefix("shop-")
        if word in first:
            first.discard(word)
            return scripts.runs()
        return scripts.exits(0) if job == "urgent" else scripts.works(bench.trainer)

    bench.script = choose
    study = bench.apply(arms=2, parallel=2)
    study.wait(lambda study: study.states() == ["Running", "Running"])
    bench.plane.apply(_urgent_job(bench.namespace))
    bench.plane.api.wait_for(
        f"/apis/batch/v1/namespaces/{bench.namespace}/jobs",
        "urgent",
        lambda job: bool(job) and bool(job.get("status", {}).get("succeeded")),
        seconds=60.0,
    )
    # One made way, and the other was left alone.
    attempts = study.wait(lambda study: _count_ended(study) == 1).trials
    assert [a["reason"] for trial in attempts for a in trial["attempts"] if "finishedAt" in a] == ["Interrupted"]
    running = next(pod for pod in study.live_pods() if pod["status"]["phase"] == "Running")
    bench.plane.api.delete(f"/api/v1/namespaces/{bench.namespace}/pods/{running['metadata']['name']}")
    study.wait_for_condition("Complete")
    reasons = [[a["reason"] for a in trial["attempts"] if a["rung"] == 0] for trial in study.trials]
    assert sorted(reasons) == [["Interrupted", "Succeeded"]] * 2
    jobs = created_jobs(bench.plane, bench.namespace)
    assert jobs.count("shop-t000-r0") == jobs.count("shop-t001-r0") == 1


def _count_ended(study: StudyOnCluster) -> int:
    return sum("finishedAt" in attempt for trial in study.trials for attempt in trial.get("attempts", ()))


def _urgent_job(namespace: str) -> dict[str, Any]:
    """Return somebody else's Job, of a higher priority."""
    container = {"name": "main", "image": "any", "resources": {"limits": {GPU: "1"}}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "urgent",
            "namespace": namespace,
            "labels": {QUEUE_LABEL: "team", PRIORITY_LABEL: "high"},
        },
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


def _applies(plane: ControlPlane, *objects: dict[str, Any]) -> bool:
    try:
        plane.apply(*objects)
    except AssertionError:
        return False
    return True


@pytest.mark.slow
def test_a_queue_that_is_drained_in_the_middle_costs_a_study_nothing_but_time(bench: Bench) -> None:
    first = {"t000-r0", "t001-r0"}

    def choose(pod: Any) -> scripts.Script:
        word = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"].removeprefix("shop-")
        if word in first:
            first.discard(word)
            return scripts.runs()
        return scripts.works(bench.trainer)

    bench.script = choose
    study = bench.apply(arms=2, parallel=2)
    study.wait(lambda study: study.states() == ["Running", "Running"])
    wait_until(lambda: [pod["status"]["phase"] for pod in study.live_pods()] == ["Running", "Running"])
    bench.hold(is_held=True)
    wait_until(lambda: not study.live_pods() and len(bench.suspended()) == 2)
    study.wait(lambda study: "Queued" in study.condition("Complete")["message"])
    # The operator may learn of one eviction a look before the other: in the end no clock runs.
    study.wait(lambda study: all("finishedAt" in a for trial in study.trials for a in trial["attempts"]))
    bench.hold(is_held=False)
    study.wait_for_condition("Complete")
    reasons = [[a["reason"] for a in trial["attempts"] if a["rung"] == 0] for trial in study.trials]
    assert reasons == [["Interrupted", "Succeeded"]] * 2, study.describe()
    jobs = created_jobs(bench.plane, bench.namespace)
    assert len(jobs) == len(set(jobs))
