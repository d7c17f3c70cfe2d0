"""What a bucket's server may answer instead of an object: it is said in a condition, and nothing is lost by it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from on_cluster.conftest import Stage
from on_cluster.operators import OperatorProcess, wait_until
from on_cluster.proxy import Call, Fate, Proxy, Refusal
from on_cluster.studies import BUCKET, SECRET, StudyOnCluster, a_secret, a_spec, created_jobs
from testcluster import scripts
from testcluster.bucket import S3Server, User
from testcluster.kube import Cluster
from testcluster.node import StandIn
from testcluster.trainer import ScriptedTrainer

TROUBLES = {
    "ClockSkewed": (
        Refusal(403, "RequestTimeTooSkewed"),
        "the clocks of this machine and of the server must agree to 15 minutes",
    ),
    "AccessDenied": (Refusal(403, "AccessDenied"), "the credentials do not allow it"),
    "CredentialsExpired": (Refusal(400, "ExpiredToken"), "the credentials have expired"),
    "BucketMissing": (Refusal(404, "NoSuchBucket"), "the bucket must exist"),
    "ObjectTruncated": (Fate.CUT, "the answer was cut off"),
    "StorageUnreachable": (Fate.LOST, "cannot be used"),
}
"""By the reason that must be told: what becomes of every request, and words of the sentence."""


@pytest.mark.slow
def test_each_trouble_with_a_bucket_is_said_and_passes_without_a_trace(
    cluster: Cluster,
    namespace: str,
    make_nodes: Callable[..., StandIn],
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    study: StudyOnCluster,
) -> None:
    trouble: list[Fate | Refusal] = []

    def decide(call: Call) -> Fate | Refusal:
        if not trouble or (trouble[0] is Fate.CUT and call.method != "GET"):
            return Fate.FORWARD
        return trouble[0]

    proxy = Proxy(s3.endpoint, name="s3", decide=decide)
    trainer = ScriptedTrainer()
    # A trial ends when it may, so that its measurement is there when the bucket is not.
    may_end: set[str] = set()
    waiting = scripts.Script(
        work=lambda environment: wait_for_leave(environment, may_end) or trainer(environment),
    )
    make_nodes(script=lambda pod: waiting)
    try:
        operator = make_operator()
        spec = a_spec(s3, arms=len(TROUBLES), parallel=1, storage={"endpoint": proxy.url})
        [container] = spec["trainer"]["template"]["spec"]["containers"]
        # Pods reach the bucket as ever.
        container["env"] = [{"name": "AWS_ENDPOINT_URL_S3", "value": s3.endpoint}]
        study.apply(spec)
        for number, (reason, (fate, sentence)) in enumerate(TROUBLES.items()):
            study.wait(lambda study, number=number: study.trial(number).get("state") == "Running")
            trouble.append(fate)
            may_end.add(f"t{number:03d}")
            study.wait(lambda study, reason=reason: study.condition("StorageReady")["reason"] == reason)
            reported = study.condition("StorageReady")
            assert (reported["status"], sentence in reported["message"]) == ("False", True), reported
            assert "Traceback" not in operator.log, operator.log
            # Nothing is decided meanwhile.
            assert study.trial(number)["state"] == "Running"
            trouble.clear()
            study.wait(lambda study: study.condition("StorageReady")["status"] == "True")
        may_end.add("all")
        study.wait_for_condition("Complete")
    finally:
        may_end.add("all")
        proxy.stop()
    assert {(number, 0) for number in range(len(TROUBLES))} <= {*study.measurements()}
    assert len(created_jobs(cluster, namespace)) == len({*created_jobs(cluster, namespace)})
    ends = [(trial.get("index"), attempt) for trial in study.trials for attempt in trial["attempts"]]
    assert {attempt["reason"] for _, attempt in ends} == {"Succeeded"}, (ends, study.status["conditions"], operator.log)


def wait_for_leave(environment: dict[str, str], may_end: set[str]) -> None:
    """Wait until a trial may end; what prepares and what evaluates may at once."""
    config = environment.get("TRIAL_CONFIG", "")
    if config:
        wait_until(lambda: "all" in may_end or any(f'"{trial}"' in config for trial in may_end))


def test_a_bucket_that_takes_nothing_and_a_secret_that_goes_hold_a_study_up_and_cost_no_attempt(
    cluster: Cluster,
    namespace: str,
    stage: Stage,
    make_operator: Callable[..., OperatorProcess],
    s3: S3Server,
    user: User,
    study: StudyOnCluster,
) -> None:
    s3.client().put_bucket_policy(Bucket=BUCKET, Policy=a_policy(user, "s3:GetObject", "s3:ListBucket"))
    operator = make_operator(limits={"attemptsLimit": 1})
    study.apply(a_spec(s3, arms=2, parallel=2))
    wait_until(lambda: study.jobs().get("shop-prepare", {}).get("status", {}).get("failed"))
    study.wait(lambda study: study.condition("StorageReady")["reason"] == "AccessDenied")
    assert not any("finishedAt" in attempt for attempt in study.status["prepare"].get("attempts") or ())
    s3.client().put_bucket_policy(Bucket=BUCKET, Policy=a_policy(user, "s3:*"))
    stage.play["-r0"] = scripts.runs()
    study.wait(lambda study: study.states() == ["Running"] * 2)
    assert study.condition("StorageReady")["status"] == "True"
    assert [a["reason"] for a in study.status["prepare"]["attempts"]] == ["StorageFailed", "Succeeded"]
    assert created_jobs(cluster, namespace).count("shop-prepare") == 2

    # Nothing of the bucket is asked for while trials run, and that its Secret is gone is said all the same.
    operator.kill()
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/secrets/{SECRET}")
    make_operator(limits={"attemptsLimit": 1})
    study.wait(lambda study: study.condition("StorageReady")["reason"] == "StorageRefused")
    assert f"'{SECRET}', which does not exist" in study.condition("StorageReady")["message"]
    cluster.apply(a_secret(namespace, user))
    stage.play.clear()
    for pod in study.live_pods():
        stage.nodes.evict(namespace, pod["metadata"]["name"])
    study.wait_for_condition("Complete")
    assert study.condition("StorageReady")["status"] == "True"


def a_policy(user: User, *actions: str) -> str:
    """Return what allows a user this and nothing else."""
    places = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
    statement = {"Effect": "Allow", "Principal": {"AWS": [user.access_key]}, "Action": [*actions], "Resource": places}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
