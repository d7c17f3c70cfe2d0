"""Jobs that the cluster does not take: it is said, nothing is counted, and the study goes on once it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess, wait_until
from on_cluster.studies import StudyOnCluster, a_spec, created_jobs
from testcluster.bucket import S3Server
from testcluster.kube import Cluster


def test_a_quota_on_jobs_and_pods_holds_a_study_up_and_never_stops_it(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    """No room at all, then room for two of the eight Jobs that the study needs, which counts those that have ended."""
    cluster.apply(a_quota(namespace, 0))
    wait_until(lambda: "used" in get_quota(cluster, namespace).get("status", {}))
    operator = make_operator()
    study.apply(a_spec(s3, arms=4, parallel=4))
    study.wait(lambda study: "QuotaExceeded" in study.condition("Complete")["message"])
    assert study.condition("Accepted")["status"] == "True"
    assert "exceeded quota: few, requested: count/jobs.batch=1" in study.condition("Complete")["message"]
    [reported] = wait_until(lambda: [event for event in study.events() if event["reason"] == "JobWaits"])
    assert reported["type"] == "Warning"
    assert "exceeded quota: few" in reported["message"]
    assert not created_jobs(cluster, namespace)
    # That there is no room now is nothing that somebody must act on.
    assert study.condition("JobsRefused")["status"] == study.condition("Stalled")["status"] == "False"

    cluster.apply(a_quota(namespace, 2))
    study.wait_for_condition("Complete")
    made = created_jobs(cluster, namespace)
    assert sorted(made) == sorted({*made}), "no Job twice"
    assert [[a["reason"] for a in trial["attempts"]] for trial in study.trials] == [
        ["Succeeded"] * (2 if trial["state"] == "Completed" else 1) for trial in study.trials
    ], study.describe()
    # Of more than two there was never room, so that all others had gone before.
    assert len(made) > 5
    wait_until(lambda: not study.jobs() and not study.pods())
    refused = [event for event in audited_jobs(cluster, namespace) if event["responseStatus"]["code"] == 403]
    assert len(refused) < 60, "refusals are not asked for without end"
    assert "Traceback" not in operator.log


def test_a_stricter_pod_security_level_in_the_middle_is_said_and_spends_no_attempt(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    def enforce(level: str | None) -> None:
        labels = {"pod-security.kubernetes.io/enforce": level}
        cluster.api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})

    operator = make_operator(limits={"refusalLimitSeconds": 1.0})
    spec = a_spec(s3, arms=3, parallel=1)
    spec["trainer"]["template"]["spec"]["hostNetwork"] = True
    study.apply(spec)
    study.wait(lambda study: study.measurements())
    enforce("baseline")
    study.wait(lambda study: "PodSecurityRefused" in study.condition("Complete")["message"])
    assert "hostNetwork" in study.condition("Complete")["message"]
    assert study.condition("Accepted")["status"] == "True"
    study.wait(lambda study: study.condition("Stalled")["status"] == "True")
    check_stalled(study, "PodSecurityRefused", "hostNetwork")
    enforce(None)
    study.wait_for_condition("Complete")
    ends = {attempt["reason"] for trial in study.trials for attempt in trial["attempts"]}
    assert ends == {"Succeeded"}, study.describe()
    made = created_jobs(cluster, namespace)
    assert len(made) == len({*made}), "no Job twice"
    assert "Traceback" not in operator.log


def test_a_webhook_that_is_away_is_said_with_its_words_and_waited_for(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    name = f"away-{namespace}"
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    operator = make_operator(limits={"refusalLimitSeconds": 1.0})
    study.apply(a_spec(s3, arms=2, parallel=2))
    study.wait(lambda study: study.condition("Prepared").get("status") == "True")
    cluster.api.create(path, a_webhook(name, namespace))
    try:
        study.wait(lambda study: "WebhookFailed" in study.condition("Complete").get("message", ""))
        assert 'failed calling webhook "teams.example.com"' in study.condition("Complete")["message"]
        study.wait(lambda study: study.condition("Stalled")["status"] == "True")
        check_stalled(study, "WebhookFailed", 'failed calling webhook "teams.example.com"')
    finally:
        cluster.api.delete(f"{path}/{name}")
    study.wait_for_condition("Complete")
    assert {a["reason"] for trial in study.trials for a in trial["attempts"]} == {"Succeeded"}
    assert study.condition("Stalled")["status"] == "False"
    wait_until(lambda: study.reasons() >= {"JobWaits", "StudyStalled", "StudyResumed"})
    assert "Traceback" not in operator.log


def check_stalled(study: StudyOnCluster, reason: str, words: str) -> None:
    """Check that a study says by which rule its Jobs are refused, and that it has not failed."""
    for kind in ("JobsRefused", "Stalled"):
        condition = study.condition(kind)
        assert (condition["status"], condition["reason"]) == ("True", reason), study.describe()
        assert words in condition["message"], study.describe()
    assert study.condition("Failed")["status"] == "False", study.describe()


def a_quota(namespace: str, most: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few", "namespace": namespace},
        "spec": {"hard": {"count/jobs.batch": str(most), "count/pods": str(most)}},
    }


def get_quota(cluster: Cluster, namespace: str) -> dict[str, Any]:
    return cluster.api.get(f"/api/v1/namespaces/{namespace}/resourcequotas/few") or {}


def a_webhook(name: str, namespace: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "teams.example.com",
                "clientConfig": {"url": "https://127.0.0.1:9/teams"},
                "rules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
                "timeoutSeconds": 1,
            }
        ],
    }


def audited_jobs(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    return [*cluster.audited(verb="create", resource="jobs", namespace=namespace)]
