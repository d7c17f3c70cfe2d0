"""What is told of Jobs that are gone: memory and runner on an API server of dicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from builders.kube_of_dicts import KubeOfDicts
from builders.some_studies import a_study
from study_operator.cluster.api import Kube, Raw, path_of
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.job_manifest import PodDefaults
from study_operator.cluster.job_runner import ClusterRunner
from study_operator.metrics import Metrics
from study_operator.reconcile.runner import JobPhase, JobStatus

STUDY = replace(a_study(), namespace="team", name="s1", uid="study-1")
JOB = path_of("batch/v1", "jobs", "team", "s1-t003-r0")


def a_job(uid: str = "job-1", version: int = 10) -> Raw:
    """Return a trial's Job."""
    return {
        "metadata": {
            "name": "s1-t003-r0",
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T12:00:00Z",
            "labels": {"finetune.study/study": "s1", "finetune.study/kind": "trial"},
            "ownerReferences": [{"kind": "FineTuneStudy", "uid": "study-1", "controller": True}],
        },
        "spec": {},
        "status": {"startTime": "2026-01-01T12:00:01Z"},
    }


def a_pod(state: Raw, phase: str = "Running", *, version: int = 20, owned: bool = True) -> Raw:
    """Return the pod of that Job."""
    owner = {"kind": "Job", "uid": "job-1", "controller": True}
    return {
        "metadata": {
            "name": "s1-t003-r0-abcde",
            "namespace": "team",
            "uid": "pod-1",
            "resourceVersion": str(version),
            "creationTimestamp": "2026-01-01T12:00:02Z",
            "labels": {"finetune.study/study": "s1", "finetune.study/kind": "trial"},
            "ownerReferences": [owner] if owned else [],
        },
        "spec": {},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]},
    }


RUNNING = a_pod({"running": {"startedAt": "2026-01-01T12:00:03Z"}})
STOPPED = a_pod(
    {
        "terminated": {
            "exitCode": 143,
            "reason": "Error",
            "startedAt": "2026-01-01T12:00:03Z",
            "finishedAt": "2026-01-01T12:01:00Z",
        }
    },
    "Failed",
    version=21,
)


class World:
    """A Job that has just been deleted while its pod runs, and of which the watch has told."""

    def __init__(self) -> None:
        self.kube, self.memory = KubeOfDicts(), Memory(Metrics())
        self.memory.put_job(a_job())
        self.memory.see_pod("ADDED", RUNNING)
        self.memory.see_job("DELETED", a_job(version=30))

    def reconcile(self, *, is_settled: bool = True) -> JobStatus | None:
        """Return what one reconciliation is told of the Job."""
        kube = cast(Kube, cast(Any, self.kube))
        runner = ClusterRunner(kube, self.memory, STUDY, None, PodDefaults(image="trainer"))
        jobs = runner.jobs()
        if is_settled:
            runner.forget_gone()
        return jobs[0] if jobs else None


def test_a_job_that_is_gone_lives_while_its_pod_does_and_is_told_once_by_how_that_ended() -> None:
    world = World()

    assert [getattr(world.reconcile(), "phase", None) for _ in range(2)] == [JobPhase.RUNNING] * 2

    world.memory.see_pod("MODIFIED", STOPPED)
    end = world.reconcile()
    assert end is not None
    assert (end.phase, end.attempt, end.exit_code) == (JobPhase.FINISHED, "pod-1", 143)
    assert world.reconcile() is None


def test_how_a_job_ended_is_told_until_it_is_written_down() -> None:
    world = World()
    world.memory.see_pod("MODIFIED", STOPPED)

    codes = [getattr(world.reconcile(is_settled=False), "exit_code", None) for _ in range(3)]

    assert codes == [143] * 3
    world.reconcile()
    assert world.reconcile() is None


def test_a_pod_that_vanishes_lets_its_job_go() -> None:
    world = World()

    world.memory.see_pod("DELETED", RUNNING)

    end = world.reconcile()
    assert end is not None
    assert (end.phase, end.exit_code) == (JobPhase.FINISHED, None)
    assert world.reconcile() is None


def test_a_pod_that_its_job_orphaned_is_waited_for() -> None:
    world = World()

    world.memory.see_pod("MODIFIED", a_pod({"running": {"startedAt": "2026-01-01T12:00:03Z"}}, version=22, owned=False))
    assert [getattr(world.reconcile(), "phase", None) for _ in range(2)] == [JobPhase.RUNNING] * 2

    world.memory.see_pod(
        "MODIFIED", a_pod(STOPPED["status"]["containerStatuses"][0]["state"], "Failed", version=23, owned=False)
    )
    end = world.reconcile()
    assert end is not None
    assert (end.phase, end.exit_code) == (JobPhase.FINISHED, 143)
    assert world.reconcile() is None


def test_a_pod_of_another_namespace_that_names_the_job_is_none_of_its_pods() -> None:
    world = World()
    forged = a_pod({"terminated": {"exitCode": 10}}, "Failed", version=99)
    forged["metadata"] |= {"namespace": "other", "uid": "pod-1"}

    world.memory.see_pod("ADDED", forged)
    world.memory.see_pod("ADDED", {**forged, "metadata": {**forged["metadata"], "uid": "pod-2"}})

    assert [getattr(world.reconcile(), "phase", None) for _ in range(2)] == [JobPhase.RUNNING] * 2


def test_a_job_that_lost_its_labels_is_followed_to_its_end() -> None:
    world = World()
    bare = a_job(version=31)
    bare["metadata"]["labels"] = {}
    world.kube.put(JOB, bare)
    assert [getattr(world.reconcile(), "phase", None) for _ in range(2)] == [JobPhase.RUNNING] * 2

    # What a watch would have told is looked for at each reconciliation.
    world.memory.see_pod("MODIFIED", STOPPED)
    end = {
        "type": "Failed",
        "status": "True",
        "reason": "BackoffLimitExceeded",
        "lastTransitionTime": "2026-01-01T12:01:01Z",
    }
    world.kube.put(JOB, {**bare, "status": {**bare["status"], "conditions": [end]}})
    job = world.reconcile()
    assert job is not None
    assert (job.phase, job.exit_code) == (JobPhase.FINISHED, 143)


def test_a_job_that_is_there_after_all_goes_on() -> None:
    world = World()
    world.kube.put(JOB, a_job())

    assert [getattr(world.reconcile(), "phase", None) for _ in range(2)] == [JobPhase.RUNNING] * 2


def test_of_a_study_that_is_gone_nothing_is_kept() -> None:
    world = World()

    world.memory.forget_study(("team", "other"))
    assert world.reconcile() is not None
    world.memory.forget_study(("team", "s1"))

    assert world.reconcile() is None
    assert not world.memory.doubtful_of("team", "study-1")
    # What a watch tells afterwards of its last pod is of no Job that anybody knows.
    world.memory.see_pod("DELETED", STOPPED)
    assert world.reconcile() is None


def test_another_job_of_that_name_takes_its_place() -> None:
    world = World()
    world.kube.put(JOB, a_job("job-2"))

    job = world.reconcile()

    assert job is not None
    assert (job.phase, job.attempt) == (JobPhase.PENDING, "job-2")
