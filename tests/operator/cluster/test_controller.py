"""A controller's reconciliations on an API server of dicts: what it looks at, and how often."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from builders import ledgers
from builders.kube_of_dicts import KubeOfDicts
from builders.ledgers import NOW, a_ledger, a_measurement, a_trial
from study_operator import names
from study_operator.cluster.api import Kube, Raw
from study_operator.cluster.buckets import Bucket, Buckets
from study_operator.cluster.controller import DONE_SECONDS, Controller
from study_operator.cluster.job_cache import Memory
from study_operator.cluster.job_manifest import PodDefaults
from study_operator.cluster.parsed_studies import ParsedStudies
from study_operator.cluster.study_store import Studies, study_path
from study_operator.ledger import status
from study_operator.ledger.status import Reported, render_status
from study_operator.ledger.trial import Outcome, SearchEnd, TrialState
from study_operator.metrics import Metrics
from study_operator.reconcile.tick import report_key
from study_operator.reconcile.warm_start import NoSuchStudyError
from study_operator.settings import Settings
from study_operator.spec.study import Study
from trial_trainer.contract import Progress, to_json

KEY = ("team", "s1")
LABELS = {names.STUDY_LABEL: "s1", names.KIND_LABEL: "trial"}


@dataclass
class Store:
    """A bucket in which running trials tell how far they are."""

    uri: str = "s3://bucket/s1"
    reads: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    """Names of objects that are no JSON."""
    step: int = 0

    def read(self, key: str, most_bytes: int | None = None) -> bytes | None:
        self.reads.append(key)
        if key.rpartition("/")[2] in self.wrong:
            return b"nonsense"
        if not key.endswith("progress.json"):
            return None
        progress = Progress(
            step=self.step,
            stop_step=20,
            total_steps=100,
            loss=1.0,
            phase="train",
            eta_seconds=60.0,
            updated_at="2026-01-01T12:00:00Z",
        )
        return to_json(progress).encode()

    def write(self, key: str, data: bytes) -> None:
        return None


@dataclass
class OneBucket:
    """Opens the same store for every study."""

    store: Store

    def open(self, study: Study) -> Bucket:
        return Bucket(store=cast(Any, self.store), credentials=None)


class World:
    """A study with two trials whose pods run."""

    def __init__(self, settings: Settings, **spec: Any) -> None:
        self.now = NOW
        self.kube, self.store = KubeOfDicts(), Store()
        kube = cast(Kube, cast(Any, self.kube))
        self.studies, memory = Studies(kube), Memory(Metrics())
        trials = tuple(a_trial(index, state=TrialState.RUNNING) for index in range(2))
        ledger = a_ledger(*trials)
        study = ledgers.a_study(uid="study-1", num_trials=2)
        status = render_status(replace(study, generation=1), ledger, now=NOW)
        metadata = {"name": "s1", "namespace": "team", "uid": "study-1", "generation": 1}
        body = {"metadata": metadata, "spec": SPEC | spec, "status": status, "apiVersion": names.API_VERSION}
        self.studies.put(self.kube.put(study_path(KEY), {**body, "kind": names.KIND}))
        for trial in trials:
            memory.put_job(a_job(names.trial_job("s1", trial.name, 0)))
            memory.see_pod("ADDED", a_pod(names.trial_job("s1", trial.name, 0)))
        self.controller = Controller(
            kube=kube,
            studies=self.studies,
            memory=memory,
            buckets=cast(Buckets, OneBucket(self.store)),
            proposals=cast(Any, Nobody()),
            defaults=PodDefaults(image="trainer"),
            metrics=Metrics(),
            settings=settings,
            clock=lambda: self.now,
        )

    def finish(self) -> None:
        """Let the study have ended, and all that follows from it be done."""
        outcome = Outcome(failed=False, reason="Completed", message="")
        trials = [
            a_trial(index, state=TrialState.STOPPED, measurements=(a_measurement(0, 0.5),), message="")
            for index in (0, 1)
        ]
        ledger = a_ledger(*trials, search_end=SearchEnd.ALL_TRIALS_MEASURED, winner=0, outcome=outcome, cleaned_at=NOW)
        study = replace(ledgers.a_study(uid="study-1", num_trials=2), generation=1)
        status = render_status(study, ledger, now=NOW, reported=Reported(key=report_key(ledger), at=NOW))
        body = self.kube.objects[study_path(KEY)]
        self.studies.put(self.kube.put(study_path(KEY), {**body, "status": status}))
        for index in (0, 1):
            raw = a_job(names.trial_job("s1", f"t{index:03d}", 0))
            raw["metadata"]["resourceVersion"] = "20"
            raw["status"]["conditions"] = [{"type": "Complete", "status": "True", "lastTransitionTime": at(NOW)}]
            self.controller.memory.put_job(raw)

    def reconcile_for(self, seconds: int, *, every: int) -> None:
        """Reconcile the study again and again, while its trials go on."""
        for _ in range(0, seconds, every):
            self.store.step += 1
            self.controller.reconcile(KEY)
            self.now += timedelta(seconds=every)

    @property
    def written(self) -> int:
        return self.kube.requests.count(("PUT", study_path(KEY, "status")))

    @property
    def reads(self) -> int:
        return sum(key.endswith("progress.json") for key in self.store.reads)


class Nobody:
    """Proposes nothing: every arm is in the manifest."""

    def of(self, key: Any) -> None:
        return None

    def forget(self, key: Any) -> None:
        return None


SPEC = {
    "objective": {"metric": "accuracy", "direction": "Maximize"},
    "parameters": [{"name": "learning_rate", "searchSpace": {"logUniform": {"min": "1e-5", "max": "1e-2"}}}],
    "baseline": {"learning_rate": "1e-3"},
    "numTrials": 2,
    "parallelTrials": 2,
    "promotion": {"numPromoted": 1},
    "data": {"source": "s3://shop/pages/", "attributes": ["price"]},
    "trainer": {"baseModel": {"uri": "/model"}, "epochs": 3},
    "storage": {"uri": "s3://bucket/s1"},
}


def a_job(name: str) -> Raw:
    owner = {"kind": names.KIND, "uid": "study-1", "controller": True}
    return {"metadata": metadata_of(name, f"job-{name}", owner), "spec": {}, "status": {"startTime": at(NOW)}}


def a_pod(job: str) -> Raw:
    owner = {"kind": "Job", "uid": f"job-{job}", "controller": True}
    state = {"name": "trainer", "state": {"running": {"startedAt": at(NOW)}}}
    return {
        "metadata": metadata_of(f"{job}-abcde", f"pod-{job}", owner),
        "spec": {},
        "status": {"phase": "Running", "containerStatuses": [state]},
    }


def metadata_of(name: str, uid: str, owner: Raw) -> Raw:
    return {
        "name": name,
        "namespace": "team",
        "uid": uid,
        "resourceVersion": "10",
        "creationTimestamp": at(NOW),
        "labels": LABELS,
        "ownerReferences": [owner],
    }


def at(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def test_progress_is_read_and_written_once_a_minute_however_often_the_study_is_reconciled() -> None:
    world = World(Settings(progress_interval_seconds=60))
    world.reconcile_for(2, every=1)
    # What was seen of the attempts is written at once.
    begun = world.written

    world.reconcile_for(298, every=1)

    # After 60, 120, 180 and 240 seconds, of two trials.
    assert (world.reads, world.written - begun) == (4 * 2, 4)


def test_of_a_study_that_is_gone_nothing_is_kept_and_of_one_that_is_not_told_of_yet_everything() -> None:
    world = World(Settings())
    jobs = names.trial_job("s1", "t000", 0), names.trial_job("s1", "t001", 0)
    world.studies.drop(KEY, "study-1")

    assert world.controller.reconcile(KEY) is None
    assert all(world.controller.memory.find_job("team", job) for job in jobs)

    del world.kube.objects[study_path(KEY)]
    assert world.controller.reconcile(KEY) is None
    assert not any(world.controller.memory.find_job("team", job) for job in jobs)


def test_a_study_without_news_is_reconciled_by_the_slow_timer_and_that_is_enough() -> None:
    world = World(Settings(progress_interval_seconds=60))

    world.reconcile_for(600, every=60)

    assert world.reads == 9 * 2


def test_a_study_that_has_ended_is_reconciled_by_the_hour_or_when_its_jobs_expire() -> None:
    def wait_of(**spec: Any) -> float | None:
        world = World(Settings(), **spec)
        world.finish()
        # What is left to be said of it, and that its Jobs are gone where they are not kept.
        wait = next(wait for _ in range(5) if (wait := world.controller.reconcile(KEY)))
        assert len(world.controller.parsed) == 0
        return wait

    rests, expires = wait_of(), wait_of(ttlSecondsAfterFinished=600)
    assert rests is not None
    assert 0.75 * DONE_SECONDS <= rests <= 1.25 * DONE_SECONDS
    assert expires == 600


def test_a_study_is_parsed_again_when_it_has_changed_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Settings(progress_interval_seconds=60))
    world.reconcile_for(2, every=1)
    parsed = []
    monkeypatch.setattr(
        "study_operator.cluster.parsed_studies.parse_status", lambda raw: parsed.append(raw) or status.parse_status(raw)
    )

    world.reconcile_for(30, every=1)
    assert not parsed
    body = world.kube.objects[study_path(KEY)]
    world.studies.put(world.kube.put(study_path(KEY), {**body, "spec": {**body["spec"], "seed": 7}}))
    world.reconcile_for(3, every=1)
    assert len(parsed) == 1


def test_parsed_studies_are_bounded_by_their_trials() -> None:
    world = World(Settings())
    body, parsed = world.kube.objects[study_path(KEY)], ParsedStudies(most_trials=4)
    for name in ("a", "b", "c"):
        parsed.parse(("team", name), body)
    assert len(parsed) == 2
    assert parsed.parse(("team", "c"), body) is not None
    parsed.forget(("team", "c"))
    assert len(parsed) == 1


def test_what_a_job_wrote_and_nobody_can_use_is_counted() -> None:
    world = World(Settings())
    world.reconcile_for(2, every=1)
    world.store.wrong.add("measurement.json")
    raw = a_job(names.trial_job("s1", "t000", 0))
    raw["metadata"]["resourceVersion"] = "20"
    raw["status"]["conditions"] = [{"type": "Complete", "status": "True", "lastTransitionTime": at(NOW)}]
    world.controller.memory.put_job(raw)
    world.controller.reconcile(KEY)
    reported = world.controller.metrics.registry
    assert reported.get_sample_value("finetune_study_rejected_objects_total", {"namespace": "team"}) == 1


def test_a_study_that_another_one_names_is_found_before_a_watch_has_told_of_it() -> None:
    world = World(Settings())
    world.studies.drop(KEY, "study-1")

    found = world.controller._find_study(KEY)

    assert found is not None
    assert (found.study.uid, len(found.recorded.ledger.trials)) == ("study-1", 2)
    assert world.controller._find_study(("team", "s2")) is None
    assert world.controller._find_study(("other", "s1")) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metadata": {"deletionTimestamp": at(NOW)}}, "which is being deleted"),
        ({"spec": {"numTrials": 0}}, "whose spec is not valid: `spec.numTrials` must be"),
        ({"status": {"trials": 7}}, "which cannot be read: the study's status must be one that"),
    ],
    ids=["it goes", "its spec is wrong", "its status is another operator's"],
)
def test_a_named_study_that_cannot_be_learnt_from_is_not_found(change: dict[str, Any], why: str) -> None:
    world = World(Settings())
    body = world.kube.objects[study_path(KEY)]
    changed = {**body, **{name: {**body[name], **part} for name, part in change.items()}}
    world.studies.put(world.kube.put(study_path(KEY), changed))

    with pytest.raises(NoSuchStudyError, match=f"^{re.escape(why)}"):
        world.controller._find_study(KEY)
