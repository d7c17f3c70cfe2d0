"""From apply to the winner: the operator, real controllers, a bucket, and pods that keep the trial contract."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.tiny_study import save_model, write_pages
from on_cluster.operators import OperatorProcess, wait_until
from on_cluster.studies import BUCKET, StudyOnCluster, a_spec, created_jobs, read_json, read_keys
from testcluster import scripts
from testcluster.bucket import S3Server
from testcluster.kube import Cluster
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer


def test_a_study_goes_from_apply_to_its_winner(
    cluster: Cluster,
    namespace: str,
    make_nodes: Callable[..., StandIn],
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    trainer = ScriptedTrainer(accuracy=lambda config: 0.5 + float(config.arm["learning_rate"]) * (1 + config.rung))
    make_nodes(script=lambda pod: scripts.works(trainer))
    operator = make_operator()
    study.apply(a_spec(s3, arms=4, parallel=2, promoted=2))
    waited = cluster.kubectl(
        "wait", f"fts/{study.name}", "-n", namespace, "--for=condition=Complete", "--timeout=120s", check=False
    )
    study.refresh()
    assert waited.returncode == 0, (waited.stderr, study.status, operator.log[-4000:])

    # What it tells.
    conditions = {c["type"]: (c["status"], c["reason"]) for c in study.status["conditions"]}
    assert conditions == {
        "Accepted": ("True", "Valid"),
        "StorageReady": ("True", "Reachable"),
        "Prepared": ("True", "Prepared"),
        "Suspended": ("False", "NotSuspended"),
        "SearchComplete": ("True", "AllTrialsMeasured"),
        "Complete": ("True", "Completed"),
        "Failed": ("False", "NotFailed"),
        "JobsRefused": ("False", "NotRefused"),
        "Stalled": ("False", "Progressing"),
        "EarlyEvaluationReliable": ("Unknown", "TooFewTrials"),
        # The made-up final evaluation says nothing of the winner's first rung.
        "Overfitting": ("Unknown", "NotEvaluated"),
        "SearchStagnating": ("False", "TooFewTrials"),
    }
    assert study.states() == ["Completed", "Completed", "Stopped", "Completed"]
    assert [t.get("continuation") for t in study.trials] == ["Baseline", "Promoted", None, "Promoted"]
    assert study.status["winner"] == 3
    # An event is written after what it tells of.
    wait_until(lambda: "StudyCompleted" in study.reasons())
    # Where the namespace's service account takes its time, the first pod is refused for a moment.
    assert study.reasons() - {"JobWaits"} == {
        "DatasetPrepared",
        "TrialLaunched",
        "TrialMeasured",
        "SearchEnded",
        "TrialPromoted",
        "TrialContinued",
        "WinnerChosen",
        "StudyCompleted",
    }

    # Each Job once, with the study as its owner; what was promoted went on from its checkpoint.
    jobs = Counter(created_jobs(cluster, namespace))
    assert set(jobs.values()) == {1}
    assert set(jobs) == {
        "shop-prepare",
        *(f"shop-t00{number}-r0" for number in range(4)),
        *(f"shop-t00{number}-r1" for number in (0, 1, 3)),
        "shop-final-evaluation",
    }
    assert all(job["metadata"]["ownerReferences"][0]["uid"] == study.uid for job in study.jobs().values())
    assert sorted(trainer.resumed) == [("t000", 1, 12), ("t001", 1, 12), ("t003", 1, 12)]

    # Ledger and report are in the bucket, and nobody wrote an annotation.
    wait_until(lambda: is_reported(study, s3))
    keys = read_keys(s3, study.prefix())
    assert {f"{study.prefix()}{name}" for name in ("ledger.json", "report/report.json", "report/index.html")} <= {*keys}
    assert "annotations" not in study.seen["metadata"]
    assert "finalizers" not in study.seen["metadata"]

    # What Prometheus is told agrees with all that.
    reported = operator.scrape()
    of_study = (("namespace", namespace), ("study", "shop"))
    assert reported["finetune_study_operator_leader"] == {(): 1}
    assert reported["finetune_study_condition"][("condition", "Complete"), *of_study] == 1
    assert reported["finetune_study_trials"][*of_study[:1], ("state", "completed"), of_study[1]] == 3
    assert reported["finetune_study_attempts"][*of_study[:1], ("reason", "Succeeded"), of_study[1]] == 7
    assert reported["finetune_study_accelerator_hours"][of_study] == float(study.status["usage"]["acceleratorHours"])
    created = ("code", "201"), ("resource", "jobs"), ("verb", "create")
    # Two more were only tried, when the study was accepted: one that prepares, one that trains.
    assert reported["finetune_study_operator_api_request_seconds_count"][created] == sum(jobs.values()) + 2
    # Of the first trials two took a place that another had left, and so did all that went on.
    assert reported["finetune_study_slot_idle_seconds_count"][of_study[:1]] == 5
    assert sum(reported["finetune_study_queue_wait_seconds_count"].values()) == sum(jobs.values())
    assert (
        reported["finetune_study_operator_bucket_request_seconds_count"][("operation", "read"), ("outcome", "ok")] > 0
    )
    assert operator.stop() == 0


def is_reported(study: StudyOnCluster, s3: S3Server) -> bool:
    """Say whether the ledger in the bucket is the study's last."""
    ledger = read_json(s3, f"{study.prefix()}ledger.json")
    return [t["state"] for t in ledger["trials"]] == study.states() and ledger["winner"] == study.status["winner"]


@pytest.mark.slow
def test_the_real_trainer_in_pods_takes_a_study_to_its_winner(
    namespace: str,
    make_nodes: Callable[..., StandIn],
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
    tmp_path: Path,
) -> None:
    make_nodes()
    make_operator()
    spec = a_spec(s3, arms=2, parallel=2)
    spec["data"] = {
        **spec["data"],
        "source": f"s3://{BUCKET}/pages/pages.jsonl",
        "split": {"validationPercent": 40, "testPercent": 0},
    }
    spec["trainer"] |= {"baseModel": {"uri": str(save_model(tmp_path / "model"))}, "precision": "Float32"}
    s3.client().upload_file(str(write_pages(tmp_path / "pages.jsonl")), BUCKET, "pages/pages.jsonl")
    study.apply(spec)
    study.wait_for_condition("Complete", seconds=240)
    assert study.states() == ["Completed", "Completed"]
    measurements = [read_json(s3, f"{study.prefix()}trials/t001/rungs/{rung}/measurement.json") for rung in (0, 1)]
    assert [(r["step"], r["total_steps"]) for r in measurements] == [(r["stop"], r["total"]) for r in _ends(study)]
    # The second rung began where the first had stopped.
    assert measurements[1]["samples_seen"] == measurements[1]["step"] * 16
    assert study.status["usage"]["acceleratorHours"] > "0.0"


def _ends(study: StudyOnCluster) -> list[dict[str, int]]:
    trial = study.trial(1)
    return [{"stop": m["step"], "total": trial["totalSteps"]} for m in trial["measurements"]]
