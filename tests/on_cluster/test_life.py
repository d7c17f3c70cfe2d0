"""The life of a study: suspended, resumed, changed while it runs, over, deleted."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from on_cluster.conftest import Stage
from on_cluster.operators import NAME, OperatorProcess, wait_until
from on_cluster.studies import BUCKET, SECRET, StudyOnCluster, a_spec, created_jobs, read_keys
from study_operator import names
from testcluster import scripts
from testcluster.bucket import S3Server
from testcluster.kube import Cluster


def test_a_suspended_study_frees_its_accelerators_and_goes_on_from_there(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    stage.play["-r0"] = scripts.runs(stop_seconds=0.2)
    make_operator()
    study.apply(a_spec(s3, arms=4, parallel=1))
    study.wait(lambda study: study.states() == ["Running"])
    # More at once: the free slots are filled at once. The last one pulls its image for minutes.
    stage.play["t003-r0"] = scripts.Script(start_seconds=600.0)
    study.patch(parallelTrials=4)
    study.wait(lambda study: study.states() == ["Running"] * 3 + ["Pending"])
    assert len(study.live_trials()) == 4
    wait_until(lambda: [*pod_phases(study)] == ["Pending"] + ["Running"] * 3)
    study.patch(suspend=True)
    study.wait(lambda study: study.states() == ["Pending"] * 4 and all(t.get("attempts") for t in study.trials))
    assert study.condition("Suspended")["status"] == "True"
    assert study.condition("Complete")["reason"] == "Suspended"
    # Each was asked to stop and had the time for its checkpoint; none of it counts against anybody.
    attempts = [[(a["reason"], a["exitCode"]) for a in trial["attempts"]] for trial in study.trials]
    # Of one that was to start a kubelet says that it was killed.
    assert attempts == [[("AskedToStop", 143)]] * 3 + [[("AskedToStop", 137)]]
    wait_until(lambda: not study.live_pods() and not study.live_trials())
    launched = len(created_jobs(cluster, namespace))
    # Nothing begins while it is suspended, whatever else is changed.
    generation = study.refresh().seen["metadata"]["generation"]
    study.patch(parallelTrials=2)
    study.wait(lambda study: study.status["observedGeneration"] == generation + 1)
    assert len(created_jobs(cluster, namespace)) == launched
    stage.play.clear()
    study.patch(suspend=False)
    study.wait_for_condition("Complete")
    assert study.condition("Suspended")["status"] == "False"
    assert [[a["reason"] for a in t["attempts"] if a["rung"] == 0] for t in study.trials] == [
        ["AskedToStop", "Succeeded"],
        ["AskedToStop", "Succeeded"],
        ["AskedToStop", "Succeeded"],
        ["AskedToStop", "Succeeded"],
    ]


def pod_phases(study: StudyOnCluster) -> list[str]:
    """Return the phases of its live pods of trials, sorted."""
    return sorted(pod["status"]["phase"] for pod in study.live_pods() if names.TRIAL_LABEL in pod["metadata"]["labels"])


@pytest.mark.parametrize(
    "budget", [{"activeDeadlineSeconds": 1}, {"acceleratorHours": "0.0005"}], ids=["time", "hours"]
)
def test_a_budget_lowered_while_it_runs_ends_the_search_and_a_time_to_live_takes_the_jobs(
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
    budget: dict[str, Any],
) -> None:
    stage.play["-r0"] = scripts.works(stage.trainer, after_seconds=1.5)
    stage.play["t002-r0"] = scripts.runs()
    make_operator()
    study.apply(a_spec(s3, arms=6, parallel=1, ttlSecondsAfterFinished=3600))
    study.wait(lambda study: study.trial(2).get("state") == "Running")
    study.patch(budget=budget)
    # What runs is not cut off; it makes way for nothing new.
    study.wait(lambda study: study.status["observedGeneration"] == study.seen["metadata"]["generation"])
    assert study.states() == ["Paused", "Paused", "Running"]
    stage.play["t002-r0"] = scripts.works(stage.trainer)
    [pod] = study.live_pods("t002")
    stage.nodes.evict(study.namespace, pod["metadata"]["name"])
    study.wait_for_condition("Complete")
    assert study.condition("Complete")["reason"] == "BudgetExhausted"
    assert study.condition("SearchComplete")["reason"] == "BudgetExhausted"
    assert study.states() == ["Completed", "Completed", "Stopped"]
    assert {"shop-prepare", "shop-t000-r0", "shop-t001-r1", "shop-final-evaluation"} <= {*study.jobs()}
    assert float(study.status["usage"]["acceleratorHours"]) > 0.0005
    # Checkpoints that nobody needs went with the end; Jobs go when their time is over, the study stays.
    study.wait(lambda study: study.status.get("cleanedAt"))
    keys = [key.removeprefix(f"{study.prefix()}trials/") for key in read_keys(s3, f"{study.prefix()}trials/")]
    assert {key[: len("t000/rungs/0")] for key in keys if "/checkpoints/" in key} == {"t000/rungs/1", "t001/rungs/1"}
    study.patch(ttlSecondsAfterFinished=0)
    wait_until(lambda: not study.jobs())
    assert study.refresh().condition("Complete")["status"] == "True"


@pytest.mark.slow
def test_trials_that_are_added_while_it_runs_are_proposed_by_the_optimizer(
    stage: Stage, make_operator: Callable[..., OperatorProcess], s3: S3Server, study: StudyOnCluster
) -> None:
    stage.play["t001-r0"] = scripts.runs(stop_code=1)
    make_operator()
    study.apply(a_spec(s3, arms=2, parallel=2))
    study.wait(lambda study: study.states() == ["Paused", "Running"])
    study.patch(numTrials=3)
    study.wait(lambda study: len(study.trials) == 3)
    assert study.trial(2)["origin"] == "Suggested"
    assert study.trial(2)["generationNode"] == "Sobol"
    stage.play["t001-r0"] = scripts.works(stage.trainer)
    [pod] = study.live_pods("t001")
    stage.nodes.evict(study.namespace, pod["metadata"]["name"])
    # The first promotion is the point from which the number of trials is fixed.
    study.wait_for_condition("Complete")
    study.patch(numTrials=9)
    study.wait(lambda study: study.condition("Accepted")["reason"] == "NumTrialsIgnored")
    assert study.condition("Accepted")["status"] == "True"
    assert len(study.trials) == 3


def test_what_a_deleted_study_leaves_behind_is_what_was_asked_for(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
) -> None:
    stage.play["-r1"] = scripts.runs()
    operator = make_operator(limits={"deletionLimitSeconds": 3.0})
    kept, gone, stuck = (StudyOnCluster(cluster, namespace, name) for name in ("kept", "gone", "stuck"))
    kept.apply(a_spec(s3, arms=2))
    for study in (gone, stuck):
        study.apply(a_spec(s3, arms=2, storage={"deletionPolicy": "Delete"}))
    for study in (kept, gone, stuck):
        study.wait(lambda study: "Running" in study.states() and study.trial(0)["rung"] == 1)
        assert read_keys(s3, study.prefix())
    assert "finalizers" not in kept.seen["metadata"]
    assert gone.seen["metadata"]["finalizers"] == [names.FINALIZER]

    # Retain: Jobs and pods go, the bucket stays.
    kept.delete()
    kept.wait_until_gone()
    wait_until(lambda: not kept.jobs() and not kept.pods())
    assert read_keys(s3, kept.prefix())
    # Delete: the study goes last, after its pods and its prefix, and of others' nothing is touched.
    gone.delete()
    gone.wait_until_gone()
    assert not gone.jobs() and not gone.pods()
    assert not read_keys(s3, gone.prefix())
    assert read_keys(s3, kept.prefix()) and read_keys(s3, stuck.prefix())
    # Without its Secret nobody can delete anything; the study says so and does not stay for ever.
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    s3.client().put_bucket_policy(Bucket=BUCKET, Policy=NOBODY)
    stuck.delete()
    stuck.wait_until_gone()
    wait_until(lambda: "BucketNotDeleted" in stuck.reasons(), why=lambda: operator.log)
    assert not stuck.jobs()
    assert read_keys(s3, stuck.prefix())


NOBODY = """{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": {"AWS": ["trainer"]},
"Action": ["s3:*"], "Resource": ["arn:aws:s3:::ml-studies", "arn:aws:s3:::ml-studies/*"]}]}"""


def test_somebody_who_applies_the_manifest_again_every_second_gets_into_no_fight(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    """As Argo CD does that heals itself, with a field manager of its own and by force."""
    stage.play["-r0"] = scripts.works(stage.trainer, after_seconds=1.0)
    operator = make_operator()
    manifest = json.dumps(study.manifest(a_spec(s3, arms=3, parallel=1)))
    flags = ("--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-")
    is_over = threading.Event()
    applied: list[str] = []

    def heal() -> None:
        while not is_over.wait(1.0):
            applied.append(cluster.kubectl("apply", *flags, text=manifest).stdout)

    cluster.kubectl("apply", *flags, text=manifest)
    healer = threading.Thread(target=heal)
    healer.start()
    try:
        study.wait_for_condition("Complete")
    finally:
        is_over.set()
        healer.join()
    assert study.condition("Complete")["reason"] == "Completed", study.describe()
    assert len(applied) >= 3
    # It is applied as it stands: no new generation, and no write of the operator that met another one.
    assert study.seen["metadata"]["generation"] == 1
    writes = list(cluster.audited(verb="update", resource="finetunestudies", namespace=namespace))
    assert {event["responseStatus"]["code"] for event in writes} == {200}
    managers = {(entry["manager"], entry.get("subresource", "")) for entry in study.seen["metadata"]["managedFields"]}
    assert ("argocd-controller", "") in managers
    assert {manager for manager, part in managers if part == "status"} == {NAME}
    made = created_jobs(cluster, namespace)
    assert len(made) == len({*made}), "no Job twice"
    assert "Traceback" not in operator.log
