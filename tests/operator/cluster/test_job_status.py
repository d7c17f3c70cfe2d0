"""What Jobs and pods say, each row of "Whose fault" as Kubernetes tells it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from builders.ledgers import a_ledger, a_study, a_trial
from study_operator.cluster.job_status import PodState, Refusal, describe_job, read_job, read_pod, read_refusal
from study_operator.ledger.trial import TrialState
from study_operator.ledger.usage import is_budget_exhausted, measure_usage
from study_operator.reconcile.runner import JobKind, JobPhase, JobStatus
from study_operator.reconcile.settle import Results, settle, why_it_ended
from study_operator.spec.study import Budget

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
Raw = dict[str, Any]


def at(seconds: float) -> str:
    """Return a time as the API server writes it."""
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def a_job(*conditions: Raw, nodes: int = 1, **changes: Any) -> Raw:
    """Return a trial's Job that was created at the start and began a second later."""
    status: Raw = {"startTime": at(1), "conditions": list(conditions)}
    return {
        "metadata": {
            "name": "s1-t003-r0",
            "namespace": "team",
            "uid": "job-1",
            "resourceVersion": "10",
            "creationTimestamp": at(0),
            "labels": {"finetune.study/study": "s1", "finetune.study/kind": "trial"},
            "ownerReferences": [{"kind": "FineTuneStudy", "uid": "study-1", "controller": True}],
            **changes.pop("metadata", {}),
        },
        "spec": {"completions": nodes, "suspend": False, **changes.pop("spec", {})},
        "status": {**status, **changes.pop("status", {})},
    }


def a_pod(uid: str = "pod-1", *, created: float = 2, index: int = 0, **changes: Any) -> Raw:
    """Return a pod of that Job."""
    raw: Raw = {
        "metadata": {
            "name": f"s1-t003-r0-{uid}",
            "namespace": "team",
            "uid": uid,
            "resourceVersion": "20",
            "creationTimestamp": at(created),
            "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [{"kind": "Job", "uid": "job-1", "controller": True}],
            **changes.pop("metadata", {}),
        },
        "spec": {"containers": [{"name": "trainer", "resources": {"limits": {"memory": "32Gi"}}}]},
        "status": {"phase": "Pending", **changes.pop("status", {})},
    }
    assert not changes
    return raw


def of_index(index: int) -> Raw:
    return {"labels": {"batch.kubernetes.io/job-completion-index": str(index)}}


def container(state: Raw, name: str = "trainer") -> Raw:
    return {"containerStatuses": [{"name": name, "state": state}]}


def scheduled(seconds: float = 3) -> Raw:
    return {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(seconds)}


def running(uid: str = "pod-1", *, started: float = 10, **changes: Any) -> Raw:
    state = container({"running": {"startedAt": at(started)}})
    return a_pod(
        uid, status={"phase": "Running", **state, "conditions": [scheduled()], **changes.pop("status", {})}, **changes
    )


def ended(
    uid: str = "pod-1", code: int = 0, *, reason: str = "", message: str = "", started: float = 10, **changes: Any
) -> Raw:
    reason = reason or ("Completed" if code == 0 else "Error")
    state = {"exitCode": code, "reason": reason, "startedAt": at(started), "finishedAt": at(started + 60)}
    status = container({"terminated": {**state, "message": message}})
    phase = "Succeeded" if code == 0 else "Failed"
    return a_pod(uid, status={"phase": phase, **status, **changes.pop("status", {})}, **changes)


def disrupted(reason: str) -> Raw:
    return {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": at(65)}


def waiting(reason: str, message: str = "it said so") -> Raw:
    return a_pod(status={**container({"waiting": {"reason": reason, "message": message}}), "conditions": [scheduled()]})


COMPLETE = {"type": "Complete", "status": "True", "lastTransitionTime": at(80)}


def failed(reason: str = "PodFailurePolicy", message: str = "") -> Raw:
    return {"type": "Failed", "status": "True", "reason": reason, "message": message, "lastTransitionTime": at(80)}


def describe(job: Raw, *pods: Raw, gone: tuple[str, ...] = (), refusal: Refusal | None = None) -> JobStatus:
    """Read and describe."""
    state = read_job(job)
    assert state is not None
    read = [pod for raw in pods if (pod := read_pod(raw)) is not None]
    assert len(read) == len(pods)
    return describe_job(state, [replace(p, is_gone=p.uid in gone) for p in read], refusal)


@pytest.mark.parametrize(
    ("job", "pod", "why", "message"),
    [
        pytest.param(
            a_job(COMPLETE),
            ended(code=0),
            "NoMeasurement",
            "",
            id="done: whether there is a measurement says the bucket",
        ),
        pytest.param(
            a_job(failed()),
            ended(code=10, message="loss\nthe loss is nan\n"),
            "Diverged",
            "the loss is nan",
            id="diverged",
        ),
        pytest.param(
            a_job(failed()),
            ended(code=11, message="out of memory"),
            "ArmCannotRun",
            "out of memory",
            id="the arm cannot run",
        ),
        pytest.param(
            a_job(failed()), ended(code=12, message="no page"), "StudyCannotRun", "no page", id="the study cannot run"
        ),
        pytest.param(
            a_job(failed("BackoffLimitExceeded")),
            ended(code=1, message="bucket away"),
            "Crashed",
            "bucket away",
            id="a crash",
        ),
        pytest.param(
            a_job(failed("BackoffLimitExceeded")),
            ended(code=137, reason="OOMKilled"),
            "OutOfMemory",
            "the kernel killed it for lack of memory; its memory limit is 32Gi",
            id="out of memory",
        ),
        pytest.param(
            a_job(failed()),
            ended(code=1, reason="OOMKilled"),
            "OutOfMemory",
            "the kernel killed it for lack of memory; its memory limit is 32Gi",
            id="one of its processes out of memory",
        ),
        pytest.param(
            a_job(failed("BackoffLimitExceeded")),
            ended(code=128, reason="StartError", message="no such file"),
            "StartError",
            "no such file",
            id="a command that cannot be started",
        ),
        pytest.param(
            a_job(failed("BackoffLimitExceeded")),
            a_pod(status={"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU"}),
            "UnexpectedAdmissionError",
            "no GPU",
            id="refused by its node",
        ),
    ],
)
def test_a_job_that_ended_tells_whose_fault_it_was(job: Raw, pod: Raw, why: str, message: str) -> None:
    status = describe(job, pod)
    assert status.phase is JobPhase.FINISHED
    assert (why_it_ended(status), status.message) == (why, message)
    assert (status.name, status.kind, status.attempt) == ("s1-t003-r0", JobKind.TRIAL, "pod-1")


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        pytest.param(ended(code=143), "Interrupted", id="asked to stop, and it saved"),
        pytest.param(
            ended(code=143, status={"conditions": [disrupted("TerminationByKubelet")]}),
            "Interrupted",
            id="evicted in time",
        ),
        pytest.param(ended(code=137), "Killed", id="killed after the grace period"),
        pytest.param(
            ended(code=137, status={"conditions": [disrupted("TerminationByKubelet")]}), "Evicted", id="evicted"
        ),
        pytest.param(
            ended(code=137, status={"conditions": [disrupted("EvictionByEvictionAPI")]}), "Evicted", id="drained"
        ),
        pytest.param(
            ended(code=137, status={"conditions": [disrupted("PreemptionByScheduler")]}), "Preempted", id="preempted"
        ),
        pytest.param(
            a_pod(
                status={
                    "phase": "Failed",
                    **container({"running": {"startedAt": at(10)}}),
                    "conditions": [disrupted("DeletionByPodGC")],
                }
            ),
            "NodeLost",
            id="its node was declared dead",
        ),
        pytest.param(
            a_pod(status={"phase": "Failed", "reason": "Evicted", **container({"running": {"startedAt": at(10)}})}),
            "Evicted",
            id="evicted, as the kubelet says it",
        ),
        pytest.param(ended(code=137, reason="OOMKilled"), "OutOfMemory", id="out of memory"),
    ],
)
def test_a_pod_that_was_replaced_is_an_earlier_run_with_its_own_end(pod: Raw, why: str) -> None:
    status = describe(a_job(), pod, running("pod-2", created=70, started=75))
    assert (status.phase, status.attempt, status.started_at) == (
        JobPhase.RUNNING,
        "pod-2",
        START + timedelta(seconds=75),
    )
    (past,) = status.earlier
    assert (past.attempt, why_it_ended(past)) == ("pod-1", why)
    assert past.started_at == START + timedelta(seconds=10)


def test_a_job_whose_pod_failed_is_live_until_its_controller_has_decided() -> None:
    # A replacement may come.
    for code in (1, 143):
        status = describe(a_job(), ended(code=code))
        assert (status.phase, status.attempt, status.earlier) == (JobPhase.RUNNING, "pod-1", ())


def test_an_arm_that_is_out_of_memory_is_told_before_its_controller_makes_another_pod() -> None:
    status = describe(a_job(), ended(code=137, reason="OOMKilled"))
    assert (status.phase, status.attempt) == (JobPhase.PENDING, "job-1")
    assert [(p.attempt, why_it_ended(p)) for p in status.earlier] == [("pod-1", "OutOfMemory")]


def test_a_job_whose_pods_have_succeeded_has_ended_before_its_controller_says_so() -> None:
    status = describe(a_job(), ended(code=0))
    assert (status.phase, status.attempt, status.exit_code, status.reason) == (JobPhase.FINISHED, "pod-1", 0, "")
    assert status.finished_at == START + timedelta(seconds=70)
    assert status == describe(a_job({"type": "Complete", "status": "True", "lastTransitionTime": at(71)}), ended())

    one_of_two = describe(a_job(nodes=2), ended("pod-1"), running("pod-2", metadata=of_index(1)))
    assert (one_of_two.phase, one_of_two.attempt) == (JobPhase.RUNNING, "pod-1")
    both = describe(a_job(nodes=2), ended("pod-1"), ended("pod-2", metadata=of_index(1)))
    assert (both.phase, both.attempt, both.exit_code) == (JobPhase.FINISHED, "pod-1", 0)


def test_a_pod_that_is_taken_away_without_a_word_was_interrupted() -> None:
    deleting = running(metadata={"deletionTimestamp": at(50)})
    status = describe(a_job(), deleting, gone=("pod-1",))
    assert (status.phase, status.attempt) == (JobPhase.PENDING, "job-1")
    assert [(p.attempt, why_it_ended(p)) for p in status.earlier] == [("pod-1", "Interrupted")]
    lost = describe(a_job(), running(), gone=("pod-1",))
    assert [why_it_ended(p) for p in lost.earlier] == ["PodLost"]


def test_a_job_that_its_queue_has_suspended_waits_without_being_stuck() -> None:
    held = describe(a_job(spec={"suspend": True}, status={"startTime": None}))
    assert (held.phase, held.reason, held.is_stuck, held.waits_since) == (JobPhase.PENDING, "Queued", False, START)
    # Preempted by its queue: the run is over, and the Job is not.
    preempted = describe(a_job(spec={"suspend": True}), ended(code=143))
    assert (preempted.phase, preempted.attempt, preempted.reason) == (JobPhase.PENDING, "job-1", "Queued")
    assert [why_it_ended(p) for p in preempted.earlier] == ["Interrupted"]


def test_a_job_that_is_being_deleted_has_ended_once_its_pods_have() -> None:
    deleting = {"deletionTimestamp": at(50)}
    stopping = describe(a_job(metadata=deleting), running(metadata=deleting))
    assert (stopping.phase, stopping.attempt) == (JobPhase.RUNNING, "pod-1")
    stopped = describe(a_job(metadata=deleting), ended(code=143, metadata=deleting))
    assert (stopped.phase, stopped.attempt, stopped.exit_code) == (JobPhase.FINISHED, "pod-1", 143)
    assert stopped.finished_at == START + timedelta(seconds=70)


def test_a_pod_on_a_dead_node_is_waited_for_and_that_is_said() -> None:
    pod = running(
        metadata={"deletionTimestamp": at(66)},
        status={"conditions": [scheduled(), disrupted("DeletionByTaintManager")]},
    )
    status = describe(a_job(), pod)
    assert (status.phase, status.reason, status.is_stuck) == (JobPhase.RUNNING, "NodeLost", False)
    assert status.waits_since == START + timedelta(seconds=65)
    assert "it is replaced once it is gone" in status.message


@pytest.mark.parametrize(
    ("pod", "reason", "seconds", "is_stuck"),
    [
        pytest.param(waiting("ImagePullBackOff"), "ImagePullBackOff", 3, True, id="an image that cannot be pulled"),
        pytest.param(waiting("ErrImagePull"), "ImagePullBackOff", 3, True, id="the same, a moment before"),
        pytest.param(waiting("CreateContainerConfigError"), "CreateContainerConfigError", 3, True, id="a missing key"),
        pytest.param(waiting("ContainerCreating"), "ContainerCreating", 3, False, id="an image that is being pulled"),
        pytest.param(
            a_pod(
                status={
                    "conditions": [
                        {
                            "type": "PodScheduled",
                            "status": "False",
                            "reason": "Unschedulable",
                            "message": "0/3 nodes",
                            "lastTransitionTime": at(4),
                        }
                    ]
                }
            ),
            "Unschedulable",
            4,
            False,
            id="no free accelerator",
        ),
    ],
)
def test_why_a_pod_does_not_start_and_since_when(pod: Raw, reason: str, seconds: float, is_stuck: bool) -> None:
    status = describe(a_job(), pod)
    assert (status.phase, status.reason, status.is_stuck) == (JobPhase.PENDING, reason, is_stuck)
    assert status.waits_since == START + timedelta(seconds=seconds)
    assert status.started_at is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ('pods "x" is forbidden: exceeded quota: gpus, requested: 1, used: 8, limited: 8', "QuotaExceeded"),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot', "PodSecurityRefused"),
        ('admission webhook "a.b.c" denied the request: no such team', "AdmissionDenied"),
        ("ValidatingAdmissionPolicy 'teams' with binding 'all' denied request: no such team", "AdmissionDenied"),
        ('Internal error occurred: failed calling webhook "a.b.c": connection refused', "WebhookFailed"),
        ('pods "x" already exists', "FailedCreate"),
    ],
)
def test_a_pod_that_could_not_be_created_is_told_by_an_event(message: str, reason: str) -> None:
    refusal = read_refusal(
        {
            "metadata": {"creationTimestamp": at(5)},
            "reason": "FailedCreate",
            "message": f"Error creating: {message}",
            "involvedObject": {"kind": "Job", "uid": "job-1"},
            "firstTimestamp": at(4),
        }
    )
    status = describe(a_job(), refusal=refusal)
    assert (status.phase, status.reason, status.is_stuck) == (JobPhase.PENDING, reason, False)
    assert status.waits_since == START + timedelta(seconds=4)
    assert message in status.message
    # It has got its pod meanwhile.
    assert describe(a_job(), running(), refusal=refusal).reason == ""


def a_refusal(first: float, last: float) -> Refusal:
    """Return the refusal of an event that was counted between two times, in seconds after the start."""
    refusal = read_refusal(
        {
            "metadata": {"creationTimestamp": at(first)},
            "reason": "FailedCreate",
            "message": "Error creating: exceeded quota: gpus",
            "involvedObject": {"kind": "Job", "uid": "job-1"},
            "firstTimestamp": at(first),
            "lastTimestamp": at(last),
        }
    )
    assert refusal is not None
    return refusal


def test_a_refusal_before_the_newest_pod_does_not_count_once_that_pod_is_evicted() -> None:
    evicted = ended(created=60, code=137)
    status = describe(a_job(), evicted, gone=("pod-1",), refusal=a_refusal(first=4, last=50))
    assert (status.phase, status.reason, status.is_refused) == (JobPhase.PENDING, "", False)


def test_a_refusal_before_its_queue_let_the_job_in_again_does_not_count() -> None:
    job = a_job(status={"startTime": at(600)})
    assert not describe(job, refusal=a_refusal(first=4, last=50)).is_refused


@pytest.mark.parametrize("last", [60, 130])
def test_a_refusal_that_goes_on_after_the_newest_pod_counts_from_that_pod_on(last: float) -> None:
    evicted = ended(created=60, code=137)
    status = describe(a_job(), evicted, gone=("pod-1",), refusal=a_refusal(first=4, last=last))
    assert (status.reason, status.is_refused) == ("QuotaExceeded", True)
    assert status.waits_since == START + timedelta(seconds=60)


def test_the_last_time_of_a_refusal_is_read_from_a_series_too() -> None:
    refusal = read_refusal(
        {
            "metadata": {"creationTimestamp": at(4)},
            "reason": "FailedCreate",
            "involvedObject": {"kind": "Job", "uid": "job-1"},
            "eventTime": at(4),
            "series": {"count": 3, "lastObservedTime": at(90)},
        }
    )
    assert refusal is not None
    assert (refusal.first_at, refusal.last_at) == (START + timedelta(seconds=4), START + timedelta(seconds=90))


def test_the_exit_code_is_read_from_the_job_where_its_pod_is_gone() -> None:
    message = "Container trainer for pod team/s1-t003-r0-abc failed with exit code 11 matching FailJob rule at index 0"
    status = describe(a_job(failed(message=message)))
    assert (status.exit_code, status.attempt, why_it_ended(status)) == (11, "job-1", "ArmCannotRun")
    assert describe(a_job(COMPLETE)).exit_code == 0
    unknown = describe(a_job(failed("BackoffLimitExceeded", "Job has reached the specified backoff limit")))
    assert why_it_ended(unknown) == "BackoffLimitExceeded"


@pytest.mark.parametrize(
    ("pods", "why"),
    [
        pytest.param(
            [ended("a", 1), ended("b", 11, index=1)], "ArmCannotRun", id="who knows whose fault it was decides"
        ),
        pytest.param(
            [ended("a", 143), ended("b", 137, reason="OOMKilled", index=1)],
            "OutOfMemory",
            id="out of memory on one node",
        ),
        pytest.param(
            [ended("a", 143), ended("b", 1, index=1)], "Crashed", id="a crash outweighs who was stopped for it"
        ),
        pytest.param(
            [ended("a", 143), ended("b", 137, index=1, status={"conditions": [disrupted("DeletionByTaintManager")]})],
            "NodeLost",
            id="a lost node",
        ),
        pytest.param([ended("a", 143), ended("b", 143, index=1)], "Interrupted", id="all were asked to stop"),
    ],
)
def test_of_many_nodes_any_ranks_end_ends_the_attempt(pods: list[Raw], why: str) -> None:
    status = describe(a_job(failed("BackoffLimitExceeded"), nodes=2), *pods)
    assert (status.phase, why_it_ended(status), status.attempt) == (JobPhase.FINISHED, why, "a")
    assert status.earlier == ()


def test_a_node_that_waits_is_named_though_the_first_one_is_there() -> None:
    status = describe(
        a_job(nodes=2),
        a_pod("a", status={"conditions": [scheduled()]}),
        {**waiting("ErrImagePull"), "metadata": a_pod("b", index=1)["metadata"]},
    )
    assert (status.attempt, status.reason) == ("a", "ImagePullBackOff")


def test_what_is_not_ours_is_none() -> None:
    assert read_job(a_job(metadata={"labels": {}})) is None
    assert read_job(a_job(metadata={"ownerReferences": []})) is None
    assert read_pod(a_pod(metadata={"ownerReferences": []})) is None
    assert read_refusal({"reason": "FailedCreate", "involvedObject": {"kind": "ReplicaSet"}, "metadata": {}}) is None


def test_the_end_of_a_pod_is_kept_when_its_container_was_never_made() -> None:
    pod = read_pod(a_pod(status={"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"}))
    assert isinstance(pod, PodState)
    assert (pod.has_ended, pod.exit_code, pod.started_at) == (True, None, None)


def test_a_pod_that_was_thrown_out_tells_why_and_not_what_it_said_last() -> None:
    """As seen with a kubelet whose volume is full: no disruption, and last words that explain nothing."""
    why = 'Usage of EmptyDir volume "tmp" exceeds the limit "64Mi". '
    for code, reason in ((137, "Evicted"), (143, "")):
        raw = ended(code=code, message="step 0 of 2000", status={"reason": "Evicted", "message": why})
        end = describe(a_job(), raw, running("b", created=80, started=90)).earlier[0]
        assert (end.reason, end.message) == (reason, why.strip())


# --- Clocks -----------------------------------------------------------------------------------------------------

HOUR = 3600.0
EPOCH, YEAR_ONE = "1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"


def terminated(started: Any, finished: Any, *, code: int = 1, reason: str = "Error", **status: Any) -> Raw:
    """Return a pod that was scheduled three seconds after the start and whose container tells these times."""
    state = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": finished}
    return a_pod(status={"phase": "Failed", **container({"terminated": state}), "conditions": [scheduled()], **status})


def cost_seconds(job: Raw, *pods: Raw, now: float) -> float:
    """Return what a trial costs whose Job and pods the operator sees at one time, on one accelerator."""
    status = describe(job, *pods)
    study = a_study(budget=Budget(accelerator_hours=100.0))
    time = START + timedelta(seconds=now)
    name = "s1-t001-r0"
    ledger = settle(study, a_ledger(a_trial(0), a_trial(1)), {name: replace(status, name=name)}, Results(), time)
    assert not is_budget_exhausted(study, ledger, time)
    return measure_usage(study, ledger, time).accelerator_hours * 3600 / study.accelerators


ENDED = a_job(failed("BackoffLimitExceeded"))
"""Created at the start, and over after 80 seconds by the control plane's clocks."""


@pytest.mark.parametrize(
    ("pod", "seconds"),
    [
        pytest.param(terminated(at(10), at(70)), 60, id="a clock that is right"),
        pytest.param(terminated(EPOCH, at(12), code=128, reason="StartError"), 0, id="never started, so 1970"),
        pytest.param(terminated(EPOCH, None, code=128, reason="StartError"), 0, id="1970 and no end"),
        pytest.param(terminated(EPOCH, YEAR_ONE, code=128, reason="StartError"), 0, id="1970 and the year one"),
        pytest.param(terminated(EPOCH, EPOCH), 0, id="1970 twice"),
        pytest.param(terminated(YEAR_ONE, at(12)), 0, id="the year one"),
        pytest.param(terminated(None, None, code=137, reason="ContainerStatusUnknown"), 0, id="no times at all"),
        pytest.param(terminated("soon", "12:00"), 0, id="no times, but words"),
        pytest.param(terminated(at(10), None), 70, id="no end: that of its Job"),
        pytest.param(terminated(at(10), YEAR_ONE), 70, id="an end in the year one: that of its Job"),
        pytest.param(terminated(at(70), at(10)), 0, id="an end before the start"),
        pytest.param(terminated(at(10 + 3 * HOUR), at(70 + 3 * HOUR)), 60, id="a clock that is three hours ahead"),
        pytest.param(terminated(at(10 - 3 * HOUR), at(70 - 3 * HOUR)), 60, id="a clock that is three hours behind"),
        pytest.param(terminated(at(10), at(70 + 3 * HOUR)), 70, id="a clock that was set on the way, forwards"),
        pytest.param(terminated(at(10 + 3 * HOUR), at(70)), 0, id="a clock that was set on the way, backwards"),
        pytest.param(terminated("1970-01-01T00:05:00Z", at(70)), 67, id="a node that learnt the time on the way"),
        pytest.param(terminated("1970-01-01T00:05:00Z", "1970-01-01T00:06:00Z"), 60, id="a node that never learnt it"),
        pytest.param(terminated("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"), 0, id="the end of all times"),
        pytest.param(terminated(at(10)[:-1], at(70)[:-1]), 60, id="times without a zone"),
    ],
)
def test_an_attempt_costs_the_time_between_its_pods_start_and_its_jobs_end_at_most(pod: Raw, seconds: float) -> None:
    assert cost_seconds(ENDED, pod, now=300) == seconds
    # The operator may look much later.
    assert cost_seconds(ENDED, pod, now=300 + 12 * HOUR) == seconds


@pytest.mark.parametrize(
    ("started", "seconds"),
    [
        pytest.param(at(10), 290, id="a clock that is right"),
        pytest.param(EPOCH, 297, id="1970"),
        pytest.param(None, 297, id="no time"),
        pytest.param(YEAR_ONE, 297, id="the year one"),
        pytest.param(at(-3 * HOUR), 297, id="three hours behind"),
        pytest.param(at(3 * HOUR), 0, id="three hours ahead: it begins now"),
    ],
)
def test_what_runs_costs_from_its_pods_place_until_now_at_most(started: Any, seconds: float) -> None:
    pod = a_pod(
        status={"phase": "Running", **container({"running": {"startedAt": started}}), "conditions": [scheduled()]}
    )
    assert cost_seconds(a_job(), pod, now=300) == seconds


def test_a_run_that_was_replaced_costs_no_more_than_until_now() -> None:
    lost = ended(code=137, started=10 + 3 * HOUR)
    assert cost_seconds(a_job(), lost, running("pod-2", created=80, started=90), now=100) == pytest.approx(60 + 10)


def test_an_end_in_the_future_does_not_delay_the_next_attempt() -> None:
    name = "s1-t001-r0"
    job = replace(describe(ENDED, terminated(at(10 + 3 * HOUR), at(70 + 3 * HOUR))), name=name)
    now = START + timedelta(seconds=90)
    study = a_study()
    ledger = settle(study, a_ledger(a_trial(0), a_trial(1, state=TrialState.RUNNING)), {name: job}, Results(), now)
    (attempt,) = ledger.trials[1].attempts
    assert attempt.finished_at == START + timedelta(seconds=80)


@pytest.mark.parametrize("label", ["abc", "", "-1", "²", "7", "1" * 60, "0x1", " 1"])
def test_the_only_pod_of_a_job_on_one_node_is_its_first_whatever_index_its_template_gives_it(label: str) -> None:
    labels = {"labels": {"batch.kubernetes.io/job-completion-index": label}}
    status = describe(a_job(), running(metadata=labels))
    assert (status.phase, status.attempt) == (JobPhase.RUNNING, "pod-1")


def test_a_jobs_digest_is_that_of_its_label_and_empty_without_one() -> None:
    labels = {"finetune.study/kind": "trial", "finetune.study/digest": "0123"}
    assert describe(a_job(metadata={"labels": labels})).digest == "0123"
    assert describe(a_job(COMPLETE, metadata={"labels": labels})).digest == "0123"
    assert describe(a_job()).digest == ""
