"""Whose fault it was: each row of the design's table with real Jobs on real controllers, and what Ax is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess, wait_until
from on_cluster.studies import RATES, StudyOnCluster, a_spec, created_jobs
from study_operator.cluster.study_store import manifest_of
from study_operator.ledger.status import parse_status
from study_operator.spec.parse import parse_study
from testcluster import scripts
from testcluster.bucket import S3Server
from testcluster.kube import Cluster
from testcluster.node import StandIn

DIVERGES, CANNOT_RUN, OUT_OF_MEMORY = 1, 2, 3
KILLED, INTERRUPTED, EVICTED, PREEMPTED, CRASHED, NO_MEASUREMENT = range(4, 10)


@pytest.mark.slow
def test_each_end_of_a_pod_is_counted_as_whose_fault_it_was(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    """Ten arms, of which the first works and each other ends in a way of its own, once."""
    firsts = {
        DIVERGES: scripts.exits(10),
        CANNOT_RUN: scripts.exits(11),
        OUT_OF_MEMORY: scripts.runs_out_of_memory(),
        KILLED: scripts.exits(137),
        INTERRUPTED: scripts.exits(143),
        # It does not hear that it is asked to stop; the next one does, and saves a checkpoint.
        EVICTED: scripts.Script(ending=scripts.Ending.EVICTED, stop_seconds=None),
        PREEMPTED: scripts.is_preempted(),
        CRASHED: scripts.exits(1),
        NO_MEASUREMENT: scripts.exits(0),
    }
    for number, script in firsts.items():
        stage.play[f"t{number:03d}-r0"] = [script]
    # As long as the Job is there it makes another pod, which ends as the first did. Only beside arms that have run, and
    # need no more, is that the arm's fault.
    stage.play["t003-r0"] = scripts.runs_out_of_memory()
    make_operator()
    spec = a_spec(s3, arms=10, parallel=10)
    spec["trainer"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "20Gi"}}
    study.apply(spec)
    study.wait_for_condition("Complete")

    # The arm's: measured at the worst value, or abandoned.
    assert study.states()[:4] == ["Completed", "Stopped", "Abandoned", "Abandoned"], study.describe()
    [measurement] = study.trial(DIVERGES)["measurements"]
    assert (measurement["value"], measurement["diverged"]) == ("0.0", True)
    assert measurement["metrics"]["invalid_output_rate"] == "1.0"
    assert "20Gi" in study.trial(OUT_OF_MEMORY)["message"]
    ends = {
        t["index"]: [(a["reason"], a.get("exitCode")) for a in t["attempts"] if a["rung"] == 0] for t in study.trials
    }
    assert ends[DIVERGES] == [("Diverged", 10)]
    assert ends[CANNOT_RUN] == [("ArmCannotRun", 11)]
    assert ends[OUT_OF_MEMORY][0] == ("OutOfMemory", 137)
    assert not study.live_pods(f"t{OUT_OF_MEMORY:03d}")
    # The environment's: tried again, until it is measured.
    assert {number: each[0] for number, each in ends.items() if number >= KILLED} == {
        KILLED: ("Killed", 137),
        INTERRUPTED: ("Interrupted", 143),
        EVICTED: ("Evicted", 137),
        PREEMPTED: ("Interrupted", 143),
        CRASHED: ("Crashed", 1),
        NO_MEASUREMENT: ("NoMeasurement", 0),
    }
    assert all(each[1:] == [("Succeeded", 0)] for number, each in ends.items() if number >= KILLED), ends
    assert all(study.trial(number)["state"] in ("Stopped", "Completed") for number in range(KILLED, 10))
    # A Job whose policy ignores a pod goes on by itself; the others were deleted and made again under the same name.
    made = created_jobs(cluster, namespace)
    again = {name for name in made if made.count(name) > 1}
    assert again == {f"shop-t{number:03d}-r0" for number in (CRASHED, NO_MEASUREMENT)}
    assert told_to_ax(study) == {
        **dict.fromkeys(range(10), ("COMPLETED", True)),
        CANNOT_RUN: ("ABANDONED", False),
        OUT_OF_MEMORY: ("ABANDONED", False),
    }


def told_to_ax(study: StudyOnCluster) -> dict[int, tuple[str, bool]]:
    """Return how Ax is told of each trial, and whether with a value: it is told all of it anew each time."""
    from study_operator.optimizer import ax

    parsed = parse_study(manifest_of(study.seen))
    entries = ax._entries(parsed, parse_status(study.status).ledger.trials)
    experiment = ax._build_experiment(parsed, entries)
    means = experiment.lookup_data().df
    valued = set(means[means["metric_name"] == "accuracy"]["trial_index"])
    return {index: (trial.status.name, index in valued) for index, trial in experiment.trials.items()}


def test_data_or_a_model_that_cannot_be_used_end_the_study_with_one_message(
    stage: Stage, make_operator: Callable[..., OperatorProcess], s3: S3Server, study: StudyOnCluster
) -> None:
    stage.play["t000-r0"] = scripts.Script(exit_code=12, message="the base model must be a causal language model")
    stage.play["t001-r0"] = scripts.runs()
    make_operator()
    study.apply(a_spec(s3, arms=4, parallel=2))
    study.wait_for_condition("Failed")
    assert study.condition("Failed")["reason"] == "StudyCannotRun"
    assert study.condition("Failed")["message"] == "trial t000: the base model must be a causal language model"
    assert study.condition("Stalled")["status"] == "True"
    # No accelerator is held any more, and none was taken for the other arms.
    wait_until(lambda: not study.live_pods())
    assert not any("-t002-" in name or "-t003-" in name for name in study.jobs())


def test_what_keeps_pods_from_starting_is_said_and_has_an_end(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    """A quota that is full, then an image that nobody has, for one trial at first and for another one for ever."""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full", "namespace": namespace},
        "spec": {"hard": {"requests.nvidia.com/gpu": "0"}},
    }
    cluster.apply(quota)
    stage.play["t000-r0"] = [scripts.cannot_pull()]
    stage.play["t001-r0"] = scripts.cannot_pull("manifest unknown")
    make_operator(limits={"stuckLimitSeconds": 4.0, "attemptsLimit": 3})
    study.apply(a_spec(s3, arms=3, parallel=3, maxFailedTrials=1))
    study.wait(lambda study: "QuotaExceeded" in study.condition("Complete")["message"])
    assert study.condition("Complete")["reason"] == "Exploring"
    assert "exceeded quota: full" in study.condition("Complete")["message"]
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/resourcequotas/full")
    study.wait_for_condition("Complete")
    assert study.states() == ["Completed", "Failed", "Completed"], study.describe()
    assert "ImagePullBackOff" in study.trial(1)["message"]
    assert "manifest unknown" in study.trial(1)["message"]
    reasons = [a["reason"] for a in study.trial(1)["attempts"]]
    assert len(reasons) == 3
    assert set(reasons) <= {"QuotaExceeded", "ImagePullBackOff"}


@pytest.mark.slow
def test_a_trial_on_a_lost_node_waits_until_its_pod_is_gone_and_goes_on_elsewhere(
    cluster: Cluster,
    namespace: str,
    make_nodes: Callable[..., StandIn],
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    stage = Stage(make_nodes, nodes=2, gpus=1)
    stage.play["t000-r0"] = [scripts.loses_its_node()]
    make_operator()
    study.apply(a_spec(s3, arms=2, parallel=2))
    # Kubernetes asks the pod to go, and cannot know whether it still runs: neither it nor we begin another one.
    study.wait(lambda study: "NodeLost" in study.trial(0).get("message", ""))
    assert "it is replaced once it is gone" in study.trial(0)["message"]
    # Until somebody who knows says that the machine is off. To delete the pod by force is not enough: it stays, without
    # an end that its Job could count.
    [pod] = [pod for pod in study.pods() if "deletionTimestamp" in pod["metadata"]]
    taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    cluster.kubectl("taint", "node", pod["spec"]["nodeName"], taint)
    study.wait_for_condition("Complete")
    first, *others = study.trial(0)["attempts"]
    assert first["reason"] == "NodeLost", study.describe()
    assert [a["reason"] for a in others] == ["Succeeded", "Succeeded"]
    made = created_jobs(cluster, namespace)
    assert len(made) == len(set(made))


def test_a_study_may_be_mended_that_names_what_is_not_there(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    make_operator()
    spec = a_spec(s3, arms=2, storage={"secretName": "nobodys"})
    spec["trainer"]["template"]["spec"]["containers"][0]["resorces"] = {}
    study.apply(spec)
    study.wait(lambda study: study.condition("Accepted")["status"] == "False")
    message = study.condition("Accepted")["message"]
    assert "`spec.storage.secretName` must name a Secret" in message and "resorces" in message
    assert study.condition("Stalled")["status"] == "True"
    assert not study.jobs()
    study.apply(a_spec(s3, arms=2))
    study.wait_for_condition("Complete")
    assert len(RATES) > len(study.trials) == 2


def test_a_clock_that_is_an_hour_off_shortens_no_wait(
    stage: Stage, make_operator: Callable[..., OperatorProcess], s3: S3Server, study: StudyOnCluster
) -> None:
    """Waits are from the end of an attempt, which the control plane tells, to a time that the operator reads."""
    stage.play["t000-r0"] = [scripts.exits(1)]
    make_operator(module="on_cluster.clock_ahead", limits={"backoffSeconds": 6.0})
    study.apply(a_spec(s3, arms=2, parallel=1))
    study.wait_for_condition("Complete")
    first, second = (a for a in study.trial(0)["attempts"] if a["rung"] == 0)
    ended, began = (datetime.fromisoformat(time) for time in (first["finishedAt"], second["startedAt"]))
    assert (first["reason"], second["reason"]) == ("Crashed", "Succeeded")
    # Both by the control plane's clock, which tells whole seconds, as the operator's view of it does.
    assert began - ended > timedelta(seconds=3)
    written = datetime.fromisoformat(study.condition("Complete")["lastTransitionTime"])
    assert abs(written - datetime.now(UTC)) < timedelta(minutes=5)
