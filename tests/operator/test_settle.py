"""Whose fault an end was, and what follows from it; that seeing something twice changes nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest

from ledgers import (
    NOW,
    a_job,
    a_ledger,
    a_measurement,
    a_reading,
    a_study,
    a_trial,
    by_name,
    continued,
    ended,
    minimizing,
    paused,
    running,
)
from study_operator.runner import JobKind, JobPhase, JobStatus
from study_operator.settings import Settings
from study_operator.settle import Results, list_awaited, settle
from study_operator.study import Study
from study_operator.trial import (
    Attempt,
    EndReason,
    Ledger,
    Outcome,
    Stage,
    StageState,
    Trial,
    TrialState,
    count_attempts_against,
    retry_at,
)
from trial_trainer.contract import DatasetSummary, SplitSummary

LATER = NOW + timedelta(minutes=5)


def settle_one(
    trial: Trial, job: JobStatus | None, results: Results | None = None, study: Study | None = None
) -> Trial:
    """Settle a ledger of one trial."""
    jobs = by_name([job] if job else [])
    return settle(study or a_study(), a_ledger(trial), jobs, results or Results(), LATER).trials[0]


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        pytest.param(ended(10), TrialState.PAUSED, "Diverged", id="a loss that exploded is measured"),
        pytest.param(ended(11), TrialState.ABANDONED, "ArmCannotRun", id="an arm that cannot run is abandoned"),
        pytest.param(ended(137, reason="OOMKilled"), TrialState.ABANDONED, "OutOfMemory", id="out of memory: the arm"),
        pytest.param(ended(12), TrialState.FAILED, "StudyCannotRun", id="data that cannot be used: the study"),
        pytest.param(ended(0), TrialState.PENDING, "NoReading", id="done without a reading: the environment"),
        pytest.param(ended(143), TrialState.PENDING, "Interrupted", id="stopped by somebody: the environment"),
        pytest.param(ended(137), TrialState.PENDING, "Crashed", id="killed after the grace period: the environment"),
        pytest.param(ended(1, reason="NodeLost"), TrialState.PENDING, "NodeLost", id="a lost node: the environment"),
        pytest.param(ended(None, reason="Evicted"), TrialState.PENDING, "Evicted", id="an eviction: the environment"),
        pytest.param(None, TrialState.PENDING, "JobGone", id="a job that is gone: the environment"),
    ],
)
def test_whose_fault_an_end_was(job: JobStatus | None, state: TrialState, reason: str) -> None:
    trial = settle_one(running(a_trial(0)), job)
    assert (trial.state, trial.attempts[-1].reason) == (state, reason)
    assert not trial.attempts[-1].is_open


def test_a_reading_is_a_measurement_whatever_the_exit_code_says() -> None:
    before = running(a_trial(0))
    results = Results(readings={(0, 0): a_reading(before, 0, accuracy=0.43, validation_loss=1.2)})
    for job in (ended(0), ended(1), ended(143), None):
        trial = settle_one(before, job, results)
        assert trial.state is TrialState.PAUSED
        assert [m.value for m in trial.measurements] == [0.43]
        assert trial.measurements[0].checkpoint == "trials/t000/rungs/0/checkpoints/20-a1"
        assert trial.attempts[-1].reason == EndReason.SUCCEEDED


def test_the_ledger_keeps_what_holds_for_every_answer_and_what_is_constrained() -> None:
    study = a_study(outcome_constraints=("accuracy/price >= 0.5",))
    read = {"accuracy": 0.4, "validation_loss": 1.2, "accuracy/price": 0.6, "accuracy/brand": 0.2}
    before = running(a_trial(0))
    results = Results(readings={(0, 0): a_reading(before, 0, **read)})
    measurement = settle_one(before, ended(0), results, study=study).measurements[0]
    assert (measurement.value, measurement.standard_error, measurement.n) == (0.4, 0.02, 100)
    assert measurement.metrics == {"validation_loss": 1.2, "accuracy/price": 0.6}


def test_a_reading_of_full_length_completes_the_trial() -> None:
    before = running(continued(paused(0, 0.3), None))
    results = Results(readings={(0, 1): a_reading(before, 1)})
    trial = settle_one(before, ended(0, "s1-t000-r1"), results)
    assert trial.state is TrialState.COMPLETED
    assert [m.rung for m in trial.measurements] == [0, 1]


def test_a_reading_without_the_objective_is_the_studys_fault() -> None:
    before = running(a_trial(0))
    trial = settle_one(before, ended(0), Results(readings={(0, 0): a_reading(before, 0, validation_loss=1.0)}))
    assert trial.state is TrialState.FAILED
    assert trial.attempts[-1].reason == EndReason.STUDY_CANNOT_RUN
    assert trial.message == "the reading must hold the objective's metric accuracy, got validation_loss"


def test_a_reading_that_is_there_is_found_although_the_job_was_never_seen() -> None:
    trial = settle_one(a_trial(0), None, Results(readings={(0, 0): a_reading(a_trial(0), 0)}))
    assert trial.state is TrialState.PAUSED


def test_a_live_job_is_not_asked_for_its_reading() -> None:
    ledger = a_ledger(running(a_trial(0)), a_trial(1), paused(2, 0.3))
    awaited = list_awaited(a_study(), ledger, by_name([a_job()]))
    assert [t.index for t in awaited] == [1]


def test_a_job_that_is_seen_running_opens_one_attempt() -> None:
    once = settle_one(a_trial(0), a_job())
    assert once.state is TrialState.RUNNING
    assert [a.id for a in once.attempts] == ["a1"]
    assert settle_one(once, a_job()) is once


def test_an_end_that_was_settled_is_not_settled_again() -> None:
    once = settle_one(running(a_trial(0)), ended(1))
    assert settle_one(once, ended(1)) is once


def test_a_job_that_was_believed_gone_and_is_there_goes_on_with_its_attempt() -> None:
    gone = settle_one(running(a_trial(0)), None)
    back = settle_one(gone, a_job())
    assert back.state is TrialState.RUNNING
    assert [(a.id, a.is_open, a.reason) for a in back.attempts] == [("a1", True, "")]


def test_a_job_that_was_believed_gone_and_has_ended_is_counted_once() -> None:
    gone = settle_one(running(a_trial(0)), None)
    trial = settle_one(gone, ended(11))
    assert trial.state is TrialState.ABANDONED
    assert [a.reason for a in trial.attempts] == ["ArmCannotRun"]


def test_another_run_of_a_job_closes_the_run_before() -> None:
    trial = settle_one(running(a_trial(0)), a_job(attempt="a2", started_at=LATER))
    assert [(a.id, a.is_open) for a in trial.attempts] == [("a1", False), ("a2", True)]
    assert trial.attempts[0].finished_at == LATER


def test_the_environment_may_end_an_attempt_only_so_often() -> None:
    settings = Settings(attempts_limit=3)
    trial = a_trial(0)
    for n in range(3):
        job = ended(1, attempt=f"a{n}", message="no such device")
        trial = settle(a_study(), a_ledger(trial), by_name([job]), Results(), LATER, settings).trials[0]
    assert trial.state is TrialState.FAILED
    assert trial.message == ("the environment ended 3 attempts, the last with Crashed (exit code 1): no such device")


def test_interruptions_with_a_checkpoint_have_a_limit_of_their_own() -> None:
    settings = Settings(attempts_limit=2, interruptions_limit=4)
    trial = a_trial(0)
    states = []
    for n in range(4):
        job = ended(143, attempt=f"a{n}")
        trial = settle(a_study(), a_ledger(trial), by_name([job]), Results(), LATER, settings).trials[0]
        states.append(trial.state)
    assert states == [TrialState.PENDING] * 3 + [TrialState.FAILED]


@pytest.mark.parametrize("code", [143, 137, 0, 1])
def test_an_end_that_we_asked_for_counts_against_nobody(code: int) -> None:
    asked = settle_one(running(a_trial(0)), a_job(), study=a_study(suspend=True))
    assert asked.attempts[-1].reason == EndReason.ASKED_TO_STOP
    trial = settle_one(asked, ended(code))
    assert trial.state is TrialState.PENDING
    assert count_attempts_against(trial.attempts, 0) == (0, 0)
    assert retry_at(trial, Settings()) is None


def test_an_arm_that_ran_out_of_memory_while_we_asked_it_to_stop_is_abandoned() -> None:
    asked = settle_one(running(a_trial(0)), a_job(), study=a_study(suspend=True))
    assert settle_one(asked, ended(11)).state is TrialState.ABANDONED


def test_a_study_that_has_ended_asks_what_runs_to_stop() -> None:
    ledger = a_ledger(running(a_trial(0)), outcome=Outcome(failed=True, reason="StudyCannotRun", message=""))
    trial = settle(a_study(), ledger, by_name([a_job()]), Results(), LATER).trials[0]
    assert trial.attempts[-1].reason == EndReason.ASKED_TO_STOP


def test_waits_between_attempts_double_up_to_a_limit() -> None:
    settings = Settings(backoff_seconds=10, backoff_limit_seconds=35)
    attempts: tuple[Attempt, ...] = ()
    waits = []
    for n in range(4):
        crashed = Attempt(rung=0, started_at=NOW, finished_at=NOW, exit_code=1, reason="Crashed", id=str(n))
        attempts = (*attempts, crashed)
        due = retry_at(a_trial(0, attempts=attempts), settings)
        assert due is not None
        waits.append((due - NOW).total_seconds())
    assert waits == [10, 20, 35, 35]


def test_faults_of_the_first_rung_do_not_count_on_the_second() -> None:
    crashed = Attempt(rung=0, started_at=NOW, finished_at=NOW, exit_code=1, reason="Crashed", id="x")
    assert count_attempts_against((crashed, crashed), 0) == (2, 0)
    assert count_attempts_against((crashed, crashed), 1) == (0, 0)


def test_a_diverged_trial_has_no_accuracy_and_nothing_but_invalid_output() -> None:
    trial = settle_one(running(a_trial(0)), ended(10, message="loss 9.1 after 3 steps"))
    measurement = trial.measurements[0]
    assert (measurement.value, measurement.diverged, measurement.checkpoint) == (0.0, True, "")
    assert measurement.metrics == {"invalid_output_rate": 1.0}
    assert trial.message == "loss 9.1 after 3 steps"


def test_a_diverged_loss_is_the_worst_that_was_read_also_when_a_worse_one_comes_later() -> None:
    study = minimizing()
    diverged = settle_one(running(a_trial(0)), ended(10), study=study)
    alone = settle(study, a_ledger(diverged), {}, Results(), LATER).trials[0]
    assert alone.measurements[0].value == 10.8
    second = settle(study, a_ledger(diverged, paused(1, 1.5)), {}, Results(), LATER).trials[0]
    assert second.measurements[0].value == 1.5
    third = settle(study, a_ledger(second, paused(1, 1.5), paused(2, 2.5)), {}, Results(), LATER).trials[0]
    assert (third.measurements[0].value, third.measurements[0].metrics["accuracy"]) == (2.5, 0.0)


def test_what_diverges_late_keeps_its_first_reading() -> None:
    trial = settle_one(running(continued(paused(0, 0.3), None)), ended(10, "s1-t000-r1"))
    assert trial.state is TrialState.COMPLETED
    assert [(m.rung, m.value, m.diverged) for m in trial.measurements] == [(0, 0.3, False), (1, 0.0, True)]


def test_a_trial_that_is_measured_is_left_alone() -> None:
    trial = paused(0, 0.3)
    assert settle_one(trial, ended(1, attempt="other")) is trial


# --- Prepare and judge -------------------------------------------------------------------------------------------


def a_summary() -> DatasetSummary:
    """Return a dataset without a test set."""
    split = SplitSummary(pages=10, samples=40, sites=5, tokens=4000, samples_by_attribute={"price": 10})
    return DatasetSummary(
        study="s1",
        splits={"train": split, "validation": split},
        skipped_pages={},
        dropped_labels={},
        pages_in_test_shops=0,
        warnings=(),
        fingerprint="00ff",
    )


def settle_prepare(job: JobStatus | None, results: Results | None = None, ledger: Ledger | None = None) -> Ledger:
    """Settle a study that is being prepared."""
    jobs = by_name([job] if job else [])
    return settle(a_study(), ledger or Ledger(), jobs, results or Results(), LATER, Settings(attempts_limit=2))


def test_a_summary_completes_the_preparation_and_tells_what_to_plan_with() -> None:
    ledger = settle_prepare(ended(0, "s1-prepare", kind=JobKind.PREPARE), Results(summary=a_summary()))
    assert ledger.prepare.state is StageState.COMPLETED
    assert ledger.dataset is not None
    assert (ledger.dataset.train, ledger.dataset.validation, ledger.dataset.test) == (40, 40, 0)


@pytest.mark.parametrize(
    ("code", "state", "message"),
    [
        pytest.param(12, StageState.FAILED, "no page has a price", id="data that cannot be used ends it"),
        pytest.param(
            1, StageState.PENDING, "an attempt ended with Crashed (exit code 1): no page has a price", id="a crash"
        ),
        pytest.param(
            0, StageState.PENDING, "an attempt ended with NoReading (exit code 0): no page has a price", id="no summary"
        ),
    ],
)
def test_how_a_preparation_ends(code: int, state: StageState, message: str) -> None:
    stage = settle_prepare(ended(code, "s1-prepare", message="no page has a price")).prepare
    assert (stage.state, stage.message) == (state, message)


def test_a_preparation_is_tried_only_so_often() -> None:
    ledger = settle_prepare(ended(1, "s1-prepare", attempt="a1"))
    ledger = settle_prepare(ended(1, "s1-prepare", attempt="a2"), ledger=ledger)
    assert ledger.prepare.state is StageState.FAILED
    assert ledger.prepare.message == "the environment ended 2 attempts, the last with Crashed (exit code 1)"


def test_a_suspended_preparation_counts_against_nobody() -> None:
    job = a_job("s1-prepare", kind=JobKind.PREPARE)
    ledger = settle(a_study(suspend=True), Ledger(), by_name([job]), Results(), LATER)
    assert ledger.prepare.attempts[-1].reason == EndReason.ASKED_TO_STOP
    ledger = settle_prepare(None, ledger=ledger)
    assert (ledger.prepare.state, ledger.prepare.message) == (StageState.PENDING, "")


def test_a_judgement_completes_the_judging() -> None:
    trial = continued(paused(0, 0.3), 0.5)
    ledger = a_ledger(trial, winner=0, judge=Stage(state=StageState.RUNNING))
    settled = settle(a_study(), ledger, {}, Results(is_judged=True), LATER)
    assert settled.judge.state is StageState.COMPLETED


def test_a_pending_job_is_no_attempt() -> None:
    job = a_job(phase=JobPhase.PENDING, started_at=None)
    trial = a_trial(0)
    assert settle_one(trial, job) is trial


def test_measurements_of_others_are_not_touched() -> None:
    other = replace(paused(1, 0.3), measurements=(a_measurement(0, 0.3),))
    ledger = a_ledger(running(a_trial(0)), other)
    assert settle(a_study(), ledger, by_name([ended(0)]), Results(), LATER).trials[1] is other
