"""The tick as a whole: it acts only on what is written, writes once, and gives way."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders.desk import Desk, a_desk, a_proposal, conditions_of, run
from builders.ledgers import (
    NOW,
    a_job,
    a_ledger,
    a_rung_measurement,
    a_study,
    a_trial,
    continued,
    ended,
    paused,
    running,
    stopped,
)
from study_operator.ledger.bucket_copy import render_copy
from study_operator.ledger.status import render_status
from study_operator.ledger.trial import (
    Ledger,
    Outcome,
    SearchEnd,
    Stage,
    StageState,
    Trial,
    TrialState,
    count_attempts_against,
)
from study_operator.optimizer.designer import ProposalPendingError
from study_operator.reasons import EndReason, Problem
from study_operator.reconcile.job_specs import build_job_of
from study_operator.reconcile.runner import JobKind, JobPhase
from study_operator.settings import Settings
from study_operator.spec.study import Study, WarmStart
from trial_trainer.artifacts import ArtifactError
from trial_trainer.contract import (
    DatasetSummary,
    FinalEvaluation,
    FinalEvaluationConfig,
    PrepareConfig,
    Progress,
    SplitSummary,
    TrialConfig,
    from_json,
    to_json,
)

MEASUREMENT_KEY = "trials/t000/rungs/0/measurement.json"


OVER = Outcome(failed=False, reason="Completed", message="t001 won")


def test_the_first_tick_writes_and_only_the_second_launches() -> None:
    desk = a_desk()
    assert not run(desk).is_idle
    assert desk.log == ["write"]
    run(desk)
    assert desk.log == ["write", "launch s1-prepare"]


def test_a_tick_that_changes_nothing_writes_nothing() -> None:
    desk = a_desk(a_ledger(running(a_trial(0)), running(a_trial(1))), a_job(), a_job("s1-t001-r0"))
    result = run(desk)
    assert desk.log == []
    assert result.is_idle
    assert not result.is_done


def test_an_end_is_written_before_the_job_is_deleted_and_its_next_attempt_launched() -> None:
    study = a_study(num_trials=1)
    desk = a_desk(a_ledger(running(a_trial(0))), ended(1))
    result = run(desk, study, now=NOW + timedelta(minutes=1))
    assert desk.log == ["write"]
    assert result.wake_at == NOW + timedelta(minutes=1, seconds=10)
    late = NOW + timedelta(minutes=2)
    run(desk, study, now=late)
    assert desk.log == ["write", "delete s1-t000-r0"]
    desk.statuses.clear()
    run(desk, study, now=late)
    assert desk.log == ["write", "delete s1-t000-r0", "launch s1-t000-r0"]


def test_suspending_is_written_before_jobs_are_deleted() -> None:
    study = a_study(suspend=True)
    desk = a_desk(a_ledger(running(a_trial(0))), a_job())
    run(desk, study)
    assert desk.log == ["write"]
    run(desk, study)
    assert desk.log == ["write", "delete s1-t000-r0"]


def test_a_conflict_drops_the_tick() -> None:
    desk = a_desk(a_ledger(), proposals=[a_proposal()], is_written_behind=True)
    result = run(desk)
    assert result.is_dropped
    assert not result.is_idle
    assert (result.events, desk.ledger.trials) == ((), ())


def test_a_tick_that_read_an_old_status_touches_no_job() -> None:
    launching = a_desk(a_ledger(a_trial(0)), is_written_behind=True)
    assert run(launching).is_dropped
    deleting = a_desk(a_ledger(running(a_trial(0))), a_job(), is_written_behind=False)
    run(deleting, a_study(suspend=True))
    deleting.is_written_behind = True
    assert run(deleting, a_study(suspend=True)).is_dropped
    assert (launching.log, deleting.log) == ([], ["write"])


def test_while_the_bucket_is_unreachable_nothing_is_decided_and_a_condition_reports_it() -> None:
    desk = a_desk(a_ledger(a_trial(0), running(a_trial(1))), is_bucket_away=True)
    result = run(desk)
    assert desk.log == ["write"]
    storage = next(c for c in result.status["conditions"] if c["type"] == "StorageReady")
    assert (storage["status"], storage["message"]) == ("False", "s3://bucket: timed out")
    # It is looked at again soon, and ever more seldom.
    waits = []
    for seconds in (0, 1, 20, 300):
        later = NOW + timedelta(seconds=seconds)
        again = run(desk, now=later)
        assert again.is_idle and again.wake_at is not None
        waits.append((again.wake_at - later).total_seconds())
    assert waits == [1, 1, 20, 60]
    desk.is_bucket_away = False
    run(desk)
    assert desk.ledger.trials[1].state is TrialState.PENDING


def test_a_job_without_a_result_is_the_buckets_fault_while_writes_are_refused() -> None:
    trials = (running(a_trial(0)), running(a_trial(1)), a_trial(2))
    desk = a_desk(a_ledger(*trials), ended(1), a_job("s1-t001-r0"), is_read_only=True)
    study = a_study(parallel_trials=3)
    for _ in range(10):
        result = run(desk, study)
    storage = next(c for c in result.status["conditions"] if c["type"] == "StorageReady")
    assert (storage["status"], storage["reason"]) == ("False", "AccessDenied")
    # Its end is not settled, and nothing else begins; what must stop is stopped.
    assert [t.state for t in desk.ledger.trials] == [TrialState.RUNNING, TrialState.RUNNING, TrialState.PENDING]
    assert not result.is_settled
    assert not desk.launched
    run(desk, replace(study, suspend=True))
    run(desk, replace(study, suspend=True))
    assert [line for line in desk.log if line.startswith("delete")] == ["delete s1-t001-r0"]

    desk.is_read_only = False
    result = run(desk, study)
    first = desk.ledger.trials[0]
    assert (first.state, first.attempts[0].reason) == (TrialState.PENDING, EndReason.STORAGE_FAILED)
    assert count_attempts_against(first.attempts, 0) == (0, 0)
    assert result.is_settled
    # The next one of its kind is its own again.
    desk.statuses[0] = ended(1, attempt="a2")
    run(desk, study)
    assert desk.ledger.trials[0].attempts[-1].reason == EndReason.CRASHED


@pytest.mark.parametrize(("seconds", "reason"), [(30, EndReason.CRASHED), (90, EndReason.STORAGE_FAILED)])
def test_a_job_that_ended_during_a_bucket_outage_is_the_buckets_fault(seconds: int, reason: str) -> None:
    desk = a_desk(a_ledger(running(a_trial(0)), a_trial(1)), a_job(), a_job("s1-t001-r0"), is_read_only=True)
    run(desk, storage_problem=Problem("AccessDenied", "nobody may write"))
    run(desk, now=NOW + timedelta(seconds=seconds))
    desk.is_read_only = False
    desk.statuses[0] = ended(1)
    run(desk, now=NOW + timedelta(minutes=2))
    assert desk.ledger.trials[0].attempts[0].reason == reason


def test_a_job_that_started_in_the_second_the_bucket_became_ready_is_not_the_buckets_fault() -> None:
    desk = a_desk(a_ledger(running(a_trial(0)), a_trial(1)), a_job(), a_job("s1-t001-r0"))
    run(desk, storage_problem=Problem("AccessDenied", "nobody may write"))
    run(desk, now=NOW + timedelta(seconds=0.7))
    desk.statuses[0] = ended(1, finished_at=NOW)
    run(desk, now=NOW + timedelta(seconds=2))
    assert desk.ledger.trials[0].attempts[0].reason == EndReason.CRASHED


def test_a_storage_condition_dated_in_the_future_is_ignored() -> None:
    desk = a_desk(a_ledger(running(a_trial(0)), a_trial(1)), a_job(), a_job("s1-t001-r0"))
    run(desk, storage_problem=Problem("AccessDenied", "nobody may write"))
    run(desk, now=NOW + timedelta(hours=1))
    desk.statuses[0] = ended(1)
    run(desk, now=NOW + timedelta(minutes=2))
    assert desk.ledger.trials[0].attempts[0].reason == EndReason.CRASHED


def test_a_bucket_that_cannot_be_opened_is_reported_while_trials_run() -> None:
    desk = a_desk(a_ledger(running(a_trial(0)), a_trial(1)), a_job())
    result = run(desk, storage_problem=Problem("StorageRefused", "the Secret is gone"))
    storage = next(c for c in result.status["conditions"] if c["type"] == "StorageReady")
    assert (storage["status"], storage["message"]) == ("False", "the Secret is gone")
    assert not desk.launched


def test_a_measurement_is_settled_with_its_trial_and_rung() -> None:
    trial = running(a_trial(0))
    desk = a_desk(a_ledger(trial), ended(0))
    desk.objects["trials/t000/rungs/0/measurement.json"] = to_json(a_rung_measurement(trial, 0, accuracy=0.43)).encode()
    run(desk)
    assert [m.value for m in desk.ledger.trials[0].measurements] == [0.43]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="half a measurement"),
        pytest.param(to_json(a_rung_measurement(a_trial(7), 0)).encode(), id="another trial's"),
        pytest.param(to_json(a_rung_measurement(a_trial(0), 1)).encode(), id="another rung's"),
        pytest.param(b'{"accuracy": NaN}', id="not a number"),
    ],
)
def test_a_file_that_is_not_a_measurement_of_this_rung_is_ignored(content: bytes) -> None:
    desk = a_desk(a_ledger(running(a_trial(0))), ended(0))
    desk.objects["trials/t000/rungs/0/measurement.json"] = content
    run(desk)
    assert desk.ledger.trials[0].attempts[-1].reason == "NoMeasurement"


def test_a_result_of_another_version_of_the_contract_is_named_in_the_study() -> None:
    trial = running(a_trial(0))
    desk = a_desk(a_ledger(trial), ended(0))
    measurement = replace(a_rung_measurement(trial, 0, accuracy=0.43), contract_version=1)
    desk.objects["trials/t000/rungs/0/measurement.json"] = to_json(measurement).encode()
    run(desk)
    (settled,) = desk.ledger.trials
    assert settled.attempts[-1].reason == "NoMeasurement"
    assert "RungMeasurement.contract_version must be 2, got 1" in settled.message


def digest_of_trial(trial: Trial) -> str:
    """Return the digest that a trial's results must carry."""
    return build_job_of(a_study(), a_ledger(trial), trial).digest


def put_measurement(desk: Desk, trial: Trial, **changes: Any) -> None:
    """Lay a measurement of 0.43 where the trial's must be."""
    desk.objects[MEASUREMENT_KEY] = to_json(replace(a_rung_measurement(trial, 0, accuracy=0.43), **changes)).encode()


def test_a_measurement_of_another_arm_is_reported_and_deleted() -> None:
    trial = a_trial(0)
    desk = a_desk(a_ledger(trial))
    put_measurement(desk, trial, digest="of another")
    study = a_study(num_trials=1)
    result = run(desk, study)
    assert desk.log == ["write"]
    message = f"must be {digest_of_trial(trial)}, got of another"
    assert desk.ledger.trials[0].message.startswith(f"refused: {MEASUREMENT_KEY} is of another arm, data or model")
    assert desk.ledger.trials[0].message.endswith(message)
    assert [(e.reason, e.is_warning) for e in result.events] == [("ResultRefused", True)]
    assert result.events[0].message == f"trial t000: {desk.ledger.trials[0].message}"
    # Once it is written, and once.
    result = run(desk, study)
    assert desk.log == ["write", f"delete {MEASUREMENT_KEY}", "launch s1-t000-r0"]
    assert result.events == []
    config = from_json(TrialConfig, desk.launched[0].config)
    assert config.digest == desk.launched[0].digest == digest_of_trial(trial)
    assert config.dataset_fingerprint == "00ff"
    # Its own is taken, and nothing is said any more.
    put_measurement(desk, trial, digest=config.digest)
    desk.statuses.append(ended(0, digest=config.digest))
    run(desk, study)
    assert [m.value for m in desk.ledger.trials[0].measurements] == [0.43]
    assert desk.ledger.trials[0].message == ""


def test_a_measurement_without_a_digest_counts_where_the_trial_is_known_to_have_run() -> None:
    new, ran = a_desk(a_ledger(a_trial(0))), a_desk(a_ledger(running(a_trial(0))))
    has_job = a_desk(a_ledger(a_trial(0)), ended(0))
    for desk in (new, ran, has_job):
        put_measurement(desk, a_trial(0))
        run(desk)
    assert [len(desk.ledger.trials[0].measurements) for desk in (new, ran, has_job)] == [0, 1, 1]
    assert (
        new.ledger.trials[0].message
        == f"refused: {MEASUREMENT_KEY} has no digest, and was there before the job had run"
    )


def test_a_measurement_at_another_step_is_refused() -> None:
    trial = running(a_trial(0))
    desk = a_desk(a_ledger(trial), ended(0))
    put_measurement(desk, trial, step=40)
    run(desk)
    assert desk.ledger.trials[0].message == f"refused: {MEASUREMENT_KEY} must be read at step 20, got 40"
    assert desk.ledger.trials[0].attempts[-1].reason == "NoMeasurement"


@pytest.mark.parametrize("phase", [JobPhase.PENDING, JobPhase.RUNNING, JobPhase.FINISHED])
def test_a_job_of_another_arm_is_deleted_and_not_adopted(phase: JobPhase) -> None:
    trial = a_trial(0)
    foreign = a_job(phase=phase, digest="of another", exit_code=11 if phase is JobPhase.FINISHED else None)
    desk = a_desk(a_ledger(trial), foreign)
    result = run(desk)
    assert [e.reason for e in result.events] == ["ResultRefused"]
    trial = desk.ledger.trials[0]
    assert (trial.state, trial.attempts) == (TrialState.PENDING, ())
    message = "refused: job s1-t000-r0 is of another arm, data or model, with the digest of another"
    assert trial.message == message
    run(desk)
    assert [line for line in desk.log if "t000" in line] == ["delete s1-t000-r0"]
    desk.statuses.clear()
    run(desk)
    assert [line for line in desk.log if "t000" in line] == ["delete s1-t000-r0", "launch s1-t000-r0"]


def test_a_running_job_of_another_arm_is_deleted_and_occupies_a_slot_until_then() -> None:
    study = a_study(num_trials=3, parallel_trials=1)
    measured, waiting = paused(0, 0.3), a_trial(1)
    desk = a_desk(a_ledger(measured, waiting), a_job("s1-t000-r1", digest="of another"))
    run(desk, study)
    run(desk, study)
    assert [line for line in desk.log if "s1-t" in line] == ["delete s1-t000-r1"] * 2
    desk.statuses.clear()
    run(desk, study)
    assert desk.log[-1] == "launch s1-t001-r0"


def test_a_job_of_its_own_arm_is_adopted() -> None:
    trial = a_trial(0)
    desk = a_desk(a_ledger(trial), a_job(digest=digest_of_trial(trial)))
    run(desk)
    assert desk.ledger.trials[0].state is TrialState.RUNNING


def test_a_dataset_of_another_source_is_reported_deleted_and_prepared_again() -> None:
    desk = a_desk(Ledger())
    summary = replace(a_summary(), digest="of another")
    desk.objects["dataset/summary.json"] = to_json(summary).encode()
    result = run(desk)
    assert [(e.reason, e.message.partition(" is of ")[0]) for e in result.events] == [
        ("ResultRefused", "the dataset: refused: dataset/summary.json")
    ]
    run(desk)
    assert desk.log == ["write", "delete dataset/summary.json", "launch s1-prepare"]
    config = from_json(PrepareConfig, desk.launched[0].config)
    desk.objects["dataset/summary.json"] = to_json(replace(summary, digest=config.digest)).encode()
    run(desk)
    assert desk.ledger.prepare.state is StageState.COMPLETED


def test_a_final_evaluation_of_another_winner_is_reported_deleted_and_repeated() -> None:
    trials = (continued(paused(0, 0.3), 0.4), continued(paused(1, 0.2), 0.6))
    desk = a_desk(a_ledger(*trials, search_end=SearchEnd.ALL_TRIALS_MEASURED, winner=1))
    final_evaluation = FinalEvaluation(
        study="s1", winner="t001", predictors={}, gains={}, seconds={}, digest="of another"
    )
    desk.objects["final-evaluation/final-evaluation.json"] = to_json(final_evaluation).encode()
    result = run(desk)
    assert [e.reason for e in result.events] == ["ResultRefused"]
    assert desk.ledger.final_evaluation.message.startswith(
        "refused: final-evaluation/final-evaluation.json is of another arm, data or model"
    )
    run(desk)
    assert desk.log == ["write", "delete final-evaluation/final-evaluation.json", "launch s1-final-evaluation"]
    config = from_json(FinalEvaluationConfig, desk.launched[0].config)
    assert config.winner.digest == build_job_of(a_study(), a_ledger(*trials), trials[1]).digest
    desk.objects["final-evaluation/final-evaluation.json"] = to_json(
        replace(final_evaluation, digest=config.digest)
    ).encode()
    run(desk)
    assert desk.ledger.final_evaluation.state is StageState.COMPLETED


def a_summary() -> DatasetSummary:
    """Return the summary of 40 samples a split."""
    split = SplitSummary(pages=10, samples=40, sites=5, tokens=4000, samples_by_attribute={"price": 10})
    return DatasetSummary(
        study="s1",
        splits={"train": split, "validation": split, "test": split},
        skipped_pages={},
        dropped_labels={},
        pages_of_test_sites=0,
        warnings=(),
        fingerprint="00ff",
    )


def test_the_sample_counts_of_the_prepared_dataset_are_recorded() -> None:
    desk = a_desk(Ledger(), ended(0, "s1-prepare", kind=JobKind.PREPARE))
    desk.objects["dataset/summary.json"] = to_json(a_summary()).encode()
    result = run(desk)
    assert desk.ledger.dataset is not None
    assert desk.ledger.dataset.train_samples == 40
    assert [e.reason for e in result.events] == ["DatasetPrepared"]


def test_nothing_is_proposed_before_the_earlier_studies_are_read() -> None:
    study = a_study(warm_start_from=(WarmStart(uri="/bucket/team/earlier-01234567"),), baseline=None)
    desk = a_desk(Ledger(), ended(0, "s1-prepare", kind=JobKind.PREPARE), proposals=[a_proposal()])
    desk.objects["dataset/summary.json"] = to_json(a_summary()).encode()
    earlier = a_ledger(*(paused(index, 0.1 * index) for index in range(3)))
    desk.objects["dataset/earlier/0.json"] = render_copy(a_study(), render_status(a_study(), earlier, now=NOW))

    result = run(desk, study)
    assert desk.ledger.dataset is not None
    assert (desk.ledger.trials, result.is_idle) == ((), False)
    run(desk, study)
    assert len(desk.ledger.trials) == 1


def test_the_test_set_is_read_only_after_the_winner_is_written() -> None:
    trials = (continued(paused(0, 0.3), 0.4), continued(paused(1, 0.2), 0.6))
    desk = a_desk(a_ledger(*trials, search_end=SearchEnd.ALL_TRIALS_MEASURED))
    study = a_study(promotion=replace(a_study().promotion, num_promoted=1))
    run(desk, study)
    assert (desk.log, desk.ledger.winner) == (["write"], 1)
    run(desk, study)
    assert desk.log == ["write", "launch s1-final-evaluation"]
    config = from_json(FinalEvaluationConfig, desk.launched[0].config)
    assert config.winner.adapter == "/bucket/team/s1-01234567/trials/t001/rungs/1/adapter"
    assert config.baseline is not None
    assert config.baseline.trial == "t000"


def test_a_study_is_done_once_its_outcome_is_written_and_its_jobs_are_gone() -> None:
    over = a_ledger(running(a_trial(0)), outcome=Outcome(failed=True, reason="StudyCannotRun", message="no price"))
    desk = a_desk(over, a_job())
    assert not run(desk).is_done
    assert not run(desk).is_done
    assert desk.log == ["write", "delete s1-t000-r0"]
    desk.statuses.clear()
    assert not run(desk).is_done
    assert run(desk).is_done


def test_jobs_are_deleted_after_their_ttl_and_the_study_stays() -> None:
    study = a_study(ttl_seconds_after_finished=3600)
    ledger = a_ledger(stopped(0, 0.3), outcome=OVER, cleaned_at=NOW)
    desk = a_desk(ledger, ended(0, attempt="of-0", finished_at=NOW), study=study)
    result = run(desk, study, now=NOW + timedelta(minutes=59))
    assert (desk.log, result.wake_at) == ([], NOW + timedelta(hours=1))
    run(desk, study, now=NOW + timedelta(hours=1))
    assert desk.log == ["delete s1-t000-r0"]
    desk.statuses.clear()
    result = run(desk, study, now=NOW + timedelta(hours=2))
    assert (len(desk.log), result.wake_at) == (1, None)


def test_progress_of_running_trials_is_written_on_request() -> None:
    trials = (running(a_trial(0)), running(a_trial(1)), running(a_trial(2)))
    desk = a_desk(a_ledger(*trials), a_job(), a_job("s1-t001-r0"), a_job("s1-t002-r0"))
    fresh = Progress(
        step=7,
        stop_step=20,
        total_steps=100,
        loss=1.25,
        phase="train",
        eta_seconds=12.6,
        updated_at=(NOW + timedelta(seconds=5)).isoformat(),
        digest=digest_of_trial(trials[0]),
    )
    old = replace(fresh, updated_at=(NOW - timedelta(hours=1)).isoformat())
    desk.objects["trials/t000/progress.json"] = to_json(fresh).encode()
    # Of an earlier run: it says nothing of this one.
    desk.objects["trials/t001/progress.json"] = to_json(old).encode()
    # Of another arm: neither.
    desk.objects["trials/t002/progress.json"] = to_json(replace(fresh, digest="of another")).encode()
    assert run(desk).is_idle
    result = run(desk, is_progress_wanted=True)
    assert result.status["progress"] == [
        {
            "trial": "t000",
            "rung": 0,
            "step": 7,
            "stopStep": 20,
            "totalSteps": 100,
            "phase": "train",
            "updatedAt": "2026-01-01T12:00:05+00:00",
            "loss": "1.25",
            "etaSeconds": 13,
        }
    ]
    # Nothing new, and nothing asked: nothing is written.
    assert run(desk, is_progress_wanted=True).is_idle
    assert run(desk).is_idle
    desk.statuses[0] = ended(1)
    assert run(desk).status["progress"] is None


def test_a_study_whose_jobs_are_refused_by_policy_stalls_after_an_hour_and_resumes_by_itself() -> None:
    study = a_study(parallel_trials=1, num_trials=1)
    desk = a_desk(a_ledger(a_trial(0)), refusal="denied by team-quota at 10:00", refused_as="AdmissionDenied")
    result = run(desk, study)
    assert conditions_of(result)["JobsRefused"] == ("True", "AdmissionDenied")
    assert conditions_of(result)["Stalled"] == ("False", "Progressing")
    # It is said when the time has come, though nothing else happens; the same in other words is no news.
    desk.refusal = "denied by team-quota at 10:01"
    result = run(desk, study, now=NOW + timedelta(minutes=59))
    assert (result.is_idle, result.is_refused, result.wake_at) == (True, True, NOW + timedelta(hours=1))
    result = run(desk, study, now=NOW + timedelta(hours=1))
    stalled = next(c for c in result.status["conditions"] if c["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "AdmissionDenied")
    assert stalled["message"].startswith(f"the cluster has refused its jobs since {NOW.isoformat()[:19]}")
    assert stalled["message"].endswith("and is asked again: denied by team-quota at 10:00")
    assert [(e.reason, e.is_warning) for e in result.events] == [("StudyStalled", True)]
    assert (conditions_of(result)["Failed"], result.is_refused) == (("False", "NotFailed"), True)
    assert run(desk, study, now=NOW + timedelta(hours=2)).is_idle
    # It was tried each time.
    desk.refusal = ""
    result = run(desk, study, now=NOW + timedelta(hours=3))
    assert desk.launched
    assert conditions_of(result)["JobsRefused"] == ("False", "NotRefused")
    assert conditions_of(result)["Stalled"] == ("False", "Progressing")
    assert [e.reason for e in result.events] == ["StudyResumed"]
    assert not desk.ledger.trials[0].attempts


def test_suspending_a_stalled_study_emits_no_resumed_event() -> None:
    study = a_study(parallel_trials=1, num_trials=1)
    desk = a_desk(a_ledger(a_trial(0)), refusal="denied by team-quota", refused_as="AdmissionDenied")
    run(desk, study)
    assert [e.reason for e in run(desk, study, now=NOW + timedelta(hours=1)).events] == ["StudyStalled"]
    result = run(desk, replace(study, suspend=True), now=NOW + timedelta(hours=2))
    assert conditions_of(result)["JobsRefused"] == ("False", "NotRefused")
    assert "StudyResumed" not in [e.reason for e in result.events]


def test_an_orphaned_pod_is_reported_with_the_command_that_deletes_it() -> None:
    study = a_study(parallel_trials=1, num_trials=1)
    desk = a_desk(a_ledger(running(a_trial(0))), a_job(orphans=("s1-t000-r0-abcde",)))
    command = "1 pod runs on without its Job, until somebody types: kubectl delete pod -n team s1-t000-r0-abcde"
    complete = next(c for c in run(desk, study).status["conditions"] if c["type"] == "Complete")
    assert "kubectl" not in complete["message"], "it is the trial's attempt, and awaited"
    result = run(desk, replace(study, suspend=True))
    complete = next(c for c in result.status["conditions"] if c["type"] == "Complete")
    assert (complete["reason"], complete["message"]) == ("Suspended", command)
    assert [(e.message, e.is_warning) for e in result.events if e.reason == "PodOrphaned"] == [(command, True)]
    again = run(desk, replace(study, suspend=True))
    assert (again.is_idle, list(again.events)) == (True, [])
    desk.statuses.clear()
    complete = next(c for c in run(desk, replace(study, suspend=True)).status["conditions"] if c["type"] == "Complete")
    assert complete["message"] == ""
    # Of a study whose status is lost it is all that is known.
    desk = a_desk(None, a_job(orphans=("s1-t000-r0-abcde",)))
    assert [event.message for event in run(desk, study).events] == [command]


def test_an_exceeded_quota_never_stalls_a_study() -> None:
    desk = a_desk(a_ledger(a_trial(0)), refusal="exceeded quota")
    for hours in (0, 1, 100):
        result = run(desk, now=NOW + timedelta(hours=hours))
        assert conditions_of(result)["JobsRefused"] == ("False", "NotRefused")
        assert conditions_of(result)["Stalled"] == ("False", "Progressing")


def test_a_refused_pod_stalls_the_study_unless_another_job_runs() -> None:
    kept_out = a_job(
        phase=JobPhase.PENDING,
        started_at=None,
        reason="PodSecurityRefused",
        message="violates PodSecurity",
        waits_since=NOW,
        is_refused=True,
    )
    desk = a_desk(a_ledger(a_trial(0), running(a_trial(1))), kept_out, a_job("s1-t001-r0"))
    assert conditions_of(run(desk))["JobsRefused"] == ("False", "NotRefused"), "it may be a matter of a moment"
    settings = Settings()
    said_at = NOW + timedelta(seconds=settings.waiting_said_after_seconds)
    assert conditions_of(run(desk, now=said_at))["JobsRefused"] == ("True", "PodSecurityRefused")
    late = said_at + timedelta(seconds=settings.refusal_limit_seconds)
    assert conditions_of(run(desk, now=late))["Stalled"] == ("False", "Progressing")
    desk.statuses[1] = ended(1, "s1-t001-r0")
    assert conditions_of(run(desk, now=late))["Stalled"] == ("True", "PodSecurityRefused")
    desk.statuses[0] = a_job()
    assert conditions_of(run(desk, now=late))["Stalled"] == ("False", "Progressing")


@pytest.mark.parametrize("suspend", [False, True], ids=["it goes on", "suspended"])
def test_a_refusal_persists_while_the_bucket_is_unreachable_and_ends_on_suspension(*, suspend: bool) -> None:
    study = a_study(parallel_trials=1, num_trials=1, suspend=suspend)
    desk = a_desk(a_ledger(a_trial(0)), refusal="no", refused_as="AdmissionDenied")
    run(desk, replace(study, suspend=False))
    desk.is_bucket_away = True
    assert conditions_of(run(desk, study))["JobsRefused"] == ("True", "AdmissionDenied")
    desk.is_bucket_away = False
    assert conditions_of(run(desk, study))["JobsRefused"][0] == str(not suspend)


def test_no_job_is_launched_by_the_tick_that_accepts_a_study() -> None:
    desk = a_desk(Ledger())
    refused = {**(desk.status or {})}
    refused["conditions"] = [{**c, "status": "False"} if c["type"] == "Accepted" else c for c in refused["conditions"]]
    desk.status = refused
    run(desk)
    assert desk.log == ["write"]
    run(desk)
    assert desk.log == ["write", "launch s1-prepare"]


def test_reports_are_written_at_most_once_a_minute_and_always_at_the_end() -> None:
    reports: list[str] = []

    def reporter(study: Study, ledger: Ledger, status: Mapping[str, Any]) -> None:
        reports.append(f"{study.name} {sum(len(t.measurements) for t in ledger.trials)} {status['winner']}")

    settings = Settings(report_interval_seconds=60)
    trials = (paused(0, 0.3), running(a_trial(1)))
    desk = a_desk(a_ledger(*trials), a_job("s1-t001-r0"))
    study = a_study(num_trials=2)
    run(desk, study, reporter=reporter, settings=settings)
    assert reports == ["s1 1 None"]
    desk.objects["trials/t001/rungs/0/measurement.json"] = to_json(a_rung_measurement(a_trial(1), 0)).encode()
    desk.statuses[:] = [ended(0, "s1-t001-r0")]
    result = run(desk, study, reporter=reporter, settings=settings)
    assert result.wake_at == NOW + timedelta(seconds=60)
    run(desk, study, reporter=reporter, settings=settings, now=NOW + timedelta(seconds=59))
    assert reports == ["s1 1 None"]
    run(desk, study, reporter=reporter, settings=settings, now=NOW + timedelta(seconds=60))
    assert reports[1:] == ["s1 2 None"]

    over = a_desk(replace(desk.ledger, winner=0, outcome=Outcome(failed=False, reason="Completed", message="")))
    assert not run(over, study, reporter=reporter, settings=settings).is_done
    assert reports[2:] == ["s1 2 0"]
    assert run(over, study, reporter=reporter, settings=settings).is_done


def test_a_study_has_not_ended_while_its_report_waits_for_the_optimizer() -> None:
    is_thinking = True

    def reporter(study: Study, ledger: Ledger, status: Mapping[str, Any]) -> None:
        if is_thinking:
            raise ProposalPendingError

    outcome = Outcome(failed=False, reason="Completed", message="")
    trials = (stopped(0, 0.3), stopped(1, 0.2))
    desk = a_desk(a_ledger(*trials, winner=0, outcome=outcome, cleaned_at=NOW))
    study = a_study(num_trials=2)
    results = [run(desk, study, reporter=reporter) for _ in range(3)]
    assert not any(result.is_done for result in results)
    assert results[-1].is_idle and results[-1].status["reported"] is None
    assert next(c for c in results[-1].status["conditions"] if c["type"] == "StorageReady")["status"] == "True"
    is_thinking = False
    run(desk, study, reporter=reporter)
    assert run(desk, study, reporter=reporter).is_done


def test_a_report_that_could_not_be_written_is_retried() -> None:
    def reporter(study: Study, ledger: Ledger, status: Mapping[str, Any]) -> None:
        raise ArtifactError(f"{study.name}: {len(ledger.trials)} of {len(status)}")

    desk = a_desk(a_ledger(paused(0, 0.3), running(a_trial(1))), a_job("s1-t001-r0"))
    result = run(desk, a_study(num_trials=2), reporter=reporter)
    assert result.status["reported"] is None
    assert next(c for c in result.status["conditions"] if c["type"] == "StorageReady")["status"] == "False"


def test_the_summary_of_a_finished_preparation_is_not_read_again() -> None:
    ledger = a_ledger(running(a_trial(0)), running(a_trial(1)), prepare=Stage(state=StageState.COMPLETED))
    desk = a_desk(ledger, a_job(), a_job("s1-t001-r0"), is_bucket_away=True)
    # Nothing is awaited, so nothing is read: the bucket may be away.
    assert run(desk).is_idle


def test_a_status_that_the_api_server_refuses_is_written_shortened_with_its_whole_ledger() -> None:
    desk = a_desk(a_ledger(running(a_trial(0))), ended(1, message="x" * 170))
    desk.takes = lambda status: all(len(trial.get("message", "")) <= 100 for trial in status["trials"])
    result = run(desk)
    assert (desk.log[-2:], result.is_idle) == (["refused", "write"], False)
    [trial] = desk.ledger.trials
    assert (trial.state, trial.attempts[0].reason, len(trial.message) < 100) == (TrialState.PENDING, "Crashed", True)
    accepted = next(c for c in result.status["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("True", "StatusShortened")
    assert "may not be more than 100" in accepted["message"]
    assert "StatusShortened" in {event.reason for event in result.events}
    # What is short is taken, and then all is as ever.
    desk.statuses[0] = ended(1)
    desk.takes = None
    accepted = next(c for c in run(desk).status["conditions"] if c["type"] == "Accepted")
    assert accepted["reason"] == "Valid"


def test_if_the_api_server_refuses_every_form_the_old_ledger_stays_and_one_event_reports_it() -> None:
    desk = a_desk(a_ledger(running(a_trial(0))), ended(1))
    desk.takes = lambda status: not status["trials"][0]["attempts"][0].get("finishedAt")
    result = run(desk)
    assert desk.log[-3:] == ["refused", "refused", "write"]
    stalled = {c["type"]: c for c in result.status["conditions"]}
    assert (stalled["Accepted"]["reason"], stalled["Stalled"]["status"]) == ("StatusRefused", "True")
    assert desk.ledger.trials[0].state is TrialState.RUNNING
    assert not result.is_settled
    assert [event.reason for event in result.events] == ["StatusRefused"]
    written = desk.log.count("write")
    again = run(desk)
    assert (desk.log.count("write"), again.is_idle, list(again.events)) == (written, True, [])
    desk.takes = None
    run(desk)
    assert desk.ledger.trials[0].state is TrialState.PENDING
