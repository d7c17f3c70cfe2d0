"""A status that the API server does not take: by a bound, a policy, or etcd's limit. Nobody's pods run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from builders.studies_on_a_server import Studies, install_crd
from on_cluster.operators import FAST, NAME, OperatorProcess, granted, read_access, wait_until
from on_cluster.studies import StudyOnCluster, a_secret, a_spec
from study_operator.ledger.status import render_status
from study_operator.ledger.trial import DatasetCounts, Ledger, Origin, Stage, StageState, Trial, TrialState
from study_operator.spec.parse import parse_study
from testcluster.api import ApiError
from testcluster.bucket import S3Server, User
from testcluster.kube import ControlPlane

REQUEST_BYTES = 300_000
"""What etcd takes at most. The CRD fits, and an annotation may be almost as large."""
MESSAGE_LENGTH = 100
"""Of a trial, at most. What the operator says of a quota is longer."""
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
POLICIES, BINDINGS = f"{ADMISSION}/validatingadmissionpolicies", f"{ADMISSION}/validatingadmissionpolicybindings"


@pytest.mark.slow
def test_a_status_that_the_api_server_refuses_is_written_shorter_or_not_and_that_is_said(
    make_control_plane: Callable[..., ControlPlane], s3: S3Server, user: User, tmp_path: Path
) -> None:
    plane = make_control_plane(flags={"etcd": [f"--max-request-bytes={REQUEST_BYTES}"]})
    install_crd(plane)
    namespace = plane.create_namespace("shop-ml")
    studies = Studies(plane, namespace)
    bounded, ruled, large = (StudyOnCluster(plane, namespace, name) for name in ("bounded", "ruled", "large"))
    waiting = a_ledger(Trial(index=0, arm={"learning_rate": 1e-3}, origin=Origin.BASELINE, total_steps=100))
    bound_messages(plane)
    for study in (bounded, ruled):
        write(studies, study, a_spec(s3, arms=2, parallel=1), waiting)
    wait_until(lambda: is_refused(studies, ruled, message="x" * (MESSAGE_LENGTH + 1)))
    forbid_news(plane, ruled)
    wait_until(lambda: is_refused(studies, ruled, message="news"))
    write(
        studies,
        large,
        {**a_spec(s3, arms=2, parallel=1), "numTrials": 400},
        a_ledger(*map(a_useless_trial, range(400))),
    )
    fill(plane, large)

    # No Job may be made, which each trial says, in words that are too long here; and 400 arms that cannot run are the
    # study's end, which makes the largest study larger.
    plane.api.create(
        f"/api/v1/namespaces/{namespace}/resourcequotas",
        {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}},
    )
    with granted(plane, read_access(namespace)):
        plane.apply(a_secret(namespace, user))
        operator = OperatorProcess(
            plane.service_account_kubeconfig(namespace, NAME, tmp_path),
            tmp_path / "operator",
            config={"limits": FAST},
            arguments=["--namespace", namespace, "--lease-namespace", namespace],
        )
        try:
            check_shortened(bounded, f"may not be more than {MESSAGE_LENGTH}")
            bounded.wait(lambda study: study.trial(0).get("message", "").startswith("it waits: QuotaExceeded"))
            check_shortened(large, "etcdserver: request is too large")
            large.wait(lambda study: study.condition("Failed")["status"] == "True")
            assert large.condition("Failed")["reason"] == "NothingTrains"
            assert len(large.trials) == 400, "the ledger is whole"

            ruled.wait(lambda study: study.condition("Accepted")["status"] == "False")
            assert ruled.condition("Accepted")["reason"] == "StatusRefused"
            assert "no news, please" in ruled.condition("Accepted")["message"]
            assert ruled.condition("Stalled")["status"] == "True"
            assert "message" not in ruled.trial(0), "the ledger is the last that was taken"
            plane.api.delete(f"{BINDINGS}/no-news")
            plane.api.delete(f"{POLICIES}/no-news")
            wait_until(lambda: not is_refused(studies, ruled, message="news"))
            ruled.patch(parallelTrials=2)
            ruled.wait(lambda study: study.condition("Accepted")["status"] == "True")
            ruled.wait(lambda study: study.trial(0).get("message", "").startswith("it waits: QuotaExceeded"))
            assert ruled.condition("Stalled")["status"] == "False"
            assert "Traceback" not in operator.log
        finally:
            operator.kill()


def check_shortened(study: StudyOnCluster, words: str) -> None:
    """Check that it was said that a status was cut short, with the server's words.

    The condition says it for as long as the whole status is refused, and what was cut may be all that was too much.
    """
    [reported] = wait_until(lambda: [event for event in study.events() if event["reason"] == "StatusShortened"])
    assert reported["type"] == "Warning"
    assert words in reported["message"]


def a_ledger(*trials: Trial) -> Ledger:
    counts = DatasetCounts(fingerprint="f", train_samples=100, validation_samples=100, test_samples=0)
    return Ledger(trials=trials, prepare=Stage(state=StageState.COMPLETED), dataset=counts)


def a_useless_trial(index: int) -> Trial:
    return Trial(
        index=index,
        arm={"learning_rate": 1e-3},
        origin=Origin.BASELINE if index == 0 else Origin.SUGGESTED,
        state=TrialState.ABANDONED,
        total_steps=100,
        message="x" * MESSAGE_LENGTH,
    )


def write(studies: Studies, study: StudyOnCluster, spec: Mapping[str, Any], ledger: Ledger) -> None:
    """Create a study with a ledger."""
    created = studies.create(study.manifest(spec))
    studies.write_status(created, render_status(parse_study(created), ledger, now=datetime.now(UTC)))


def bound_messages(plane: ControlPlane) -> None:
    """Let the API take no long message of a trial."""
    trials = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/trials"
    change = {"op": "replace", "path": f"{trials}/items/properties/message/maxLength", "value": MESSAGE_LENGTH}
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunestudies.finetune.study"
    plane.api.patch(path, [change], kind="json")


def forbid_news(plane: ControlPlane, study: StudyOnCluster) -> None:
    """Let nobody change the ledger of a study."""
    rule = {"apiGroups": ["finetune.study"], "apiVersions": ["*"], "operations": ["UPDATE"]}
    same = f"object.metadata.name != '{study.name}' || object.status.trials == oldObject.status.trials"
    plane.api.create(
        POLICIES,
        {
            "metadata": {"name": "no-news"},
            "spec": {
                "matchConstraints": {"resourceRules": [{**rule, "resources": ["finetunestudies/status"]}]},
                "validations": [{"expression": same, "message": "no news, please"}],
            },
        },
    )
    binding = {"policyName": "no-news", "validationActions": ["Deny"]}
    plane.api.create(BINDINGS, {"metadata": {"name": "no-news"}, "spec": binding})


def is_refused(studies: Studies, study: StudyOnCluster, message: str) -> bool:
    """Say whether the API server refuses a message of the first trial."""
    body = studies.get(study.name)
    status = {**body["status"], "trials": [{**body["status"]["trials"][0], "message": message}]}
    path = f"{study.collection}/{study.name}/status"
    return find_refusal(lambda: studies.cluster.api.replace(path, {**body, "status": status}, dryRun="All")) != ""


def find_refusal(ask: Callable[[], object]) -> str:
    try:
        ask()
    except ApiError as error:
        return error.message
    return ""


def fill(plane: ControlPlane, study: StudyOnCluster) -> None:
    """Make a study as large as etcd takes it, to a few hundred bytes."""
    fits, does_not = 0, 250_000
    while does_not - fits > 200:
        size = (fits + does_not) // 2
        padding = {"metadata": {"annotations": {"padding": "x" * size}}}
        refusal = find_refusal(lambda: plane.api.patch(f"{study.collection}/{study.name}", padding))  # noqa: B023
        assert not refusal or "request is too large" in refusal
        fits, does_not = (fits, size) if refusal else (size, does_not)
    assert 0 < fits < 249_000
