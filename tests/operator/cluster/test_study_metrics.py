"""What Prometheus is told: of requests, of the bucket, of the studies, and of places that wait."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from builders.some_studies import ARM, a_study
from study_operator.cluster.buckets import CountedStore
from study_operator.cluster.idle_slots import Slots
from study_operator.cluster.study_metrics import StudyCollector
from study_operator.ledger.trial import Attempt, Ledger, Origin, Outcome, Trial, TrialState
from study_operator.metrics import Metrics
from study_operator.reconcile.actions import Launch
from trial_trainer.artifacts import ArtifactError, open_store

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("method", "path", "query", "verb", "resource"),
    [
        ("GET", "/api/v1/namespaces/shop-ml/secrets/bucket", {}, "get", "secrets"),
        ("GET", "/apis/batch/v1/jobs", {"limit": "500"}, "list", "jobs"),
        ("GET", "/apis/batch/v1/namespaces/shop-ml/jobs", {"watch": "true"}, "watch", "jobs"),
        ("POST", "/apis/batch/v1/namespaces/shop-ml/jobs", {"dryRun": "All"}, "create", "jobs"),
        (
            "PUT",
            "/apis/finetune.study/v1alpha1/namespaces/shop-ml/finetunestudies/shop/status",
            {},
            "update",
            "finetunestudies/status",
        ),
        ("DELETE", "/apis/batch/v1/namespaces/shop-ml/jobs/shop-t000-r0", {}, "delete", "jobs"),
    ],
)
def test_a_request_is_counted_by_the_verb_and_the_resource_of_its_right(
    method: str, path: str, query: dict[str, str], verb: str, resource: str
) -> None:
    metrics = Metrics()

    metrics.observe_api_request(method, path, query, 503, 0.25)

    labels = {"verb": verb, "resource": resource, "code": "503"}
    assert metrics.registry.get_sample_value("finetune_study_operator_api_request_seconds_count", labels) == 1
    assert metrics.registry.get_sample_value("finetune_study_operator_api_request_seconds_sum", labels) == 0.25


def test_operations_on_a_bucket_are_counted_and_errors_by_their_reason(tmp_path: Any) -> None:
    metrics = Metrics()
    store = CountedStore(open_store(str(tmp_path)), metrics)

    class Away:
        def list(self, prefix: str) -> Any:
            raise ArtifactError("the bucket is away", "StorageUnreachable")
            yield

    store.write("a/b", b"1")
    assert [*store.list("a")] == ["a/b"]
    assert (store.read("a/b"), store.read("a/c")) == (b"1", None)
    with pytest.raises(ArtifactError):
        [*CountedStore(cast(Any, Away()), metrics).list("a")]

    def count(operation: str, outcome: str = "ok") -> float | None:
        labels = {"operation": operation, "outcome": outcome}
        return metrics.registry.get_sample_value("finetune_study_operator_bucket_request_seconds_count", labels)

    assert (count("write"), count("list"), count("read")) == (1, 1, 2)
    assert count("list", "StorageUnreachable") == 1


def test_a_study_is_told_by_its_status() -> None:
    attempts = [
        {"startedAt": "2026-01-01T11:00:00Z", "finishedAt": "2026-01-01T11:10:00.5Z", "reason": "Evicted"},
        {"startedAt": "2026-01-01T11:30:00Z"},
    ]
    body = {
        "metadata": {"namespace": "shop-ml", "name": "shop", "creationTimestamp": "2026-01-01T10:00:00Z"},
        "spec": {"numTrials": 40, "parallelTrials": 4},
        "status": {
            "conditions": [
                {"type": "StorageReady", "status": "False", "reason": "AccessDenied"},
                {"type": "Accepted", "status": "True"},
            ],
            "trialCounts": {"running": 1, "stopped": 2, "total": 3},
            "trials": [{"attempts": attempts, "earlierAttempts": {"attempts": 7}}],
            "usage": {"acceleratorHours": "1.5", "savedAcceleratorHours": "12.25"},
            "best": {"metric": "accuracy", "value": "0.875"},
            "progress": [{"updatedAt": "2026-01-01T11:40:00Z"}, {"updatedAt": "soon"}],
        },
    }
    fresh = {"metadata": {**body["metadata"], "name": "new"}, "spec": {"numTrials": 8}}
    metrics = Metrics()
    metrics.registry.register(StudyCollector(lambda: [body, fresh]))

    def value(name: str, study: str = "shop", **labels: str) -> float | None:
        found = {"namespace": "shop-ml", "study": study, **labels}
        return metrics.registry.get_sample_value(f"finetune_study_{name}", found)

    assert (value("condition", condition="StorageReady"), value("condition", condition="Accepted")) == (0, 1)
    assert [value("trials", state=state) for state in ("running", "stopped", "failed")] == [1, 2, 0]
    assert (value("spec_trials"), value("slots")) == (40, 4)
    assert (value("attempts", reason="Evicted"), value("attempts", reason="Folded")) == (1, 7)
    assert (value("accelerator_hours"), value("saved_accelerator_hours")) == (1.5, 12.25)
    assert (value("best_value", metric="accuracy"), value("baseline_value", metric="accuracy")) == (0.875, None)
    assert value("last_activity_timestamp_seconds") == datetime(2026, 1, 1, 11, 40, tzinfo=UTC).timestamp()
    assert value("last_activity_timestamp_seconds", "new") == datetime(2026, 1, 1, 10, tzinfo=UTC).timestamp()
    assert b"finetune_study_operator_leader 0.0" in generate_latest(metrics.registry)


def a_trial(index: int, state: TrialState, *ends: float | None, rung: int = 0) -> Trial:
    """Return a trial with attempts that ended so many seconds before now; None: one still runs."""
    attempts = tuple(
        Attempt(
            rung=rung,
            started_at=NOW - timedelta(seconds=100),
            finished_at=None if end is None else NOW - timedelta(seconds=end),
            id=str(number),
        )
        for number, end in enumerate(ends)
    )
    return Trial(
        index=index, arm=ARM, origin=Origin.SUGGESTED, state=state, rung=rung, total_steps=100, attempts=attempts
    )


STUDY = replace(a_study(), parallel_trials=2)
LAUNCHES = (Launch(index=2, rung=0, reason="new"), Launch(index=3, rung=0, reason="new"))


def test_places_are_empty_from_the_end_of_one_trial_to_the_launch_of_the_next() -> None:
    running = tuple(a_trial(index, TrialState.RUNNING, None) for index in range(2))
    ended = tuple(a_trial(index, TrialState.PAUSED, seconds) for index, seconds in enumerate((3.0, 8.0)))
    new = tuple(a_trial(index, TrialState.PENDING) for index in (2, 3))
    slots = Slots()

    assert slots.see(STUDY, Ledger(trials=running), (), NOW) == []
    assert slots.see(STUDY, Ledger(trials=ended), (), NOW) == []
    assert slots.see(STUDY, Ledger(trials=(*ended, *new)), LAUNCHES, NOW + timedelta(seconds=1)) == [4.0, 9.0]
    assert slots.see(STUDY, Ledger(trials=(*ended, *new)), LAUNCHES, NOW) == []


def test_a_trial_that_is_launched_again_takes_nobodys_place_and_nobody_waits_for_a_suspended_study() -> None:
    running = (a_trial(0, TrialState.RUNNING, None), a_trial(1, TrialState.RUNNING, None))
    one_left = (a_trial(0, TrialState.PAUSED, 5.0), a_trial(1, TrialState.PENDING, 7.0))
    again = (Launch(index=1, rung=0, reason="its last attempt ended early"),)
    slots = Slots()
    slots.see(STUDY, Ledger(trials=running), (), NOW)

    assert slots.see(STUDY, Ledger(trials=one_left), again, NOW) == []
    assert list(slots.freed) == [NOW - timedelta(seconds=5)]

    slots.see(replace(STUDY, suspend=True), Ledger(trials=one_left), (), NOW)
    assert not slots.freed
    outcome = Outcome(failed=False, reason="Completed", message="done")
    assert slots.see(STUDY, Ledger(trials=one_left, outcome=outcome), (), NOW) == []
