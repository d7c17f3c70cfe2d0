"""Whose fault an end was, and what follows from it; that seeing something twice changes nothing."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders.ledgers import (
    NOW,
    a_job,
    a_ledger,
    a_measurement,
    a_rung_measurement,
    a_study,
    a_trial,
    by_name,
    continued,
    ended,
    minimizing,
    paused,
    running,
)
from builders.some_studies import a_final_evaluation
from study_operator.ledger.trial import (
    Folded,
    Ledger,
    Outcome,
    Stage,
    StageState,
    Trial,
    TrialState,
    count_attempts_against,
    retry_at,
)
from study_operator.reasons import EndReason
from study_operator.reconcile.runner import EndedAttempt, JobKind, JobPhase, JobStatus
from study_operator.reconcile.settle import Results, list_awaited, settle
from study_operator.settings import Settings
from study_operator.spec.study import OutcomeConstraint, Promotion, RankBy, Study
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
        pytest.param(
            ended(137, reason="OOMKilled"), TrialState.PENDING, "OutOfMemory", id="killed for memory: not known whose"
        ),
        pytest.param(ended(12), TrialState.FAILED, "StudyCannotRun", id="data that cannot be used: the study"),
        pytest.param(ended(0), TrialState.PENDING, "NoMeasurement", id="done without a measurement: the environment"),
        pytest.param(ended(143), TrialState.PENDING, "Interrupted", id="stopped by somebody: the environment"),
        pytest.param(ended(137), TrialState.PENDING, "Crashed", id="killed after the grace period: the environment"),
        pytest.param(ended(1, reason="NodeLost"), TrialState.PENDING, "NodeLost", id="a lost node: the environment"),
        pytest.param(ended(None, reason="Evicted"), TrialState.PENDING, "Evicted", id="an eviction: the environment"),
        pytest.param(None, TrialState.PENDING, "JobGone", id="a job that is gone: the environment"),
    ],
)
def test_the_end_of_a_job_sets_the_trials_state_and_reason(
    job: JobStatus | None, state: TrialState, reason: str
) -> None:
    trial = settle_one(running(a_trial(0)), job)
    assert (trial.state, trial.attempts[-1].reason) == (state, reason)
    assert not trial.attempts[-1].is_open


def test_a_measurement_counts_whatever_the_exit_code() -> None:
    before = running(a_trial(0))
    results = Results(measurements={(0, 0): a_rung_measurement(before, 0, accuracy=0.43, validation_loss=1.2)})
    for job in (ended(0), ended(1), ended(143), None):
        trial = settle_one(before, job, results)
        assert trial.state is TrialState.PAUSED
        assert [m.value for m in trial.measurements] == [0.43]
        assert trial.measurements[0].checkpoint == "trials/t000/rungs/0/checkpoints/20-a1"
        assert trial.attempts[-1].reason == EndReason.SUCCEEDED


def test_the_ledger_keeps_metrics_of_all_answers_and_constrained_ones() -> None:
    study = a_study(outcome_constraints=(OutcomeConstraint(metric="accuracy/price", is_upper=False, bound=0.5),))
    read = {"accuracy": 0.4, "validation_loss": 1.2, "accuracy/price": 0.6, "accuracy/brand": 0.2}
    before = running(a_trial(0))
    results = Results(measurements={(0, 0): a_rung_measurement(before, 0, **read)})
    measurement = settle_one(before, ended(0), results, study=study).measurements[0]
    assert (measurement.value, measurement.standard_error, measurement.n) == (0.4, 0.02, 100)
    assert measurement.metrics == {"validation_loss": 1.2, "accuracy/price": 0.6}


@pytest.mark.parametrize(
    ("sites", "kept"),
    [
        pytest.param(None, None, id="a trainer that does not tell"),
        pytest.param(7, 7, id="few"),
        pytest.param(999, 999, id="many"),
        pytest.param(40_000, None, id="so many that the error is known"),
    ],
)
def test_the_ledger_keeps_the_number_of_sites_below_a_thousand(sites: int | None, kept: int | None) -> None:
    before = running(a_trial(0))
    measurement = a_rung_measurement(before, 0)
    measurement = replace(measurement, metrics={"accuracy": replace(measurement.metrics["accuracy"], sites=sites)})
    assert settle_one(before, ended(0), Results(measurements={(0, 0): measurement})).measurements[0].sites == kept


@pytest.mark.parametrize(
    ("study", "empty"),
    [
        pytest.param(a_study(), "accuracy", id="the objective"),
        pytest.param(
            a_study(outcome_constraints=(OutcomeConstraint(metric="false_value_rate", is_upper=True, bound=0.1),)),
            "false_value_rate",
            id="a constrained metric",
        ),
        pytest.param(
            a_study(promotion=Promotion(num_promoted=1, rank_by=RankBy.OBJECTIVE_AND_LOSS)),
            "validation_loss",
            id="what trials are ranked by",
        ),
    ],
)
def test_what_is_needed_but_measured_on_no_question_is_the_studys_fault(study, empty) -> None:
    before = running(a_trial(0))
    measurement = a_rung_measurement(before, 0, accuracy=0.4, false_value_rate=0.0, validation_loss=0.5)
    nothing = replace(measurement.metrics[empty], value=0.0, n=0)
    results = Results(measurements={(0, 0): replace(measurement, metrics={**measurement.metrics, empty: nothing})})
    trial = settle_one(before, ended(0), results, study=study)
    assert trial.state is TrialState.FAILED
    assert trial.attempts[-1].reason == EndReason.STUDY_CANNOT_RUN
    assert trial.message == f"the validation set must hold at least 1 question that {empty} is a mean of, got none"


def test_a_metric_measured_on_no_question_is_not_kept() -> None:
    before = running(a_trial(0))
    measurement = a_rung_measurement(before, 0, accuracy=0.4, false_value_rate=0.0, invalid_output_rate=0.1)
    nothing = replace(measurement.metrics["false_value_rate"], n=0)
    results = Results(
        measurements={(0, 0): replace(measurement, metrics={**measurement.metrics, "false_value_rate": nothing})}
    )
    assert settle_one(before, ended(0), results).measurements[0].metrics == {"invalid_output_rate": 0.1}


def test_a_measurement_of_full_length_completes_the_trial() -> None:
    before = running(continued(paused(0, 0.3), None))
    results = Results(measurements={(0, 1): a_rung_measurement(before, 1)})
    trial = settle_one(before, ended(0, "s1-t000-r1"), results)
    assert trial.state is TrialState.COMPLETED
    assert [m.rung for m in trial.measurements] == [0, 1]


def test_a_measurement_without_the_objective_is_the_studys_fault() -> None:
    before = running(a_trial(0))
    trial = settle_one(
        before, ended(0), Results(measurements={(0, 0): a_rung_measurement(before, 0, validation_loss=1.0)})
    )
    assert trial.state is TrialState.FAILED
    assert trial.attempts[-1].reason == EndReason.STUDY_CANNOT_RUN
    assert trial.message == "the measurement must hold the metric accuracy that is the objective, got validation_loss"


@pytest.mark.parametrize("rank_by", [RankBy.VALIDATION_LOSS, RankBy.OBJECTIVE_AND_LOSS])
def test_a_measurement_without_the_metric_that_ranks_is_the_studys_fault(rank_by: RankBy) -> None:
    before = running(a_trial(0))
    study = a_study(promotion=Promotion(num_promoted=1, rank_by=rank_by))
    results = Results(measurements={(0, 0): a_rung_measurement(before, 0, accuracy=0.4)})
    (trial,) = settle(study, a_ledger(before), by_name([ended(0)]), results, NOW).trials
    assert trial.state is TrialState.FAILED
    assert (
        trial.message == "the measurement must hold the metric validation_loss that trials are ranked by, got accuracy"
    )


def test_a_checkpoint_key_too_long_for_the_ledger_is_the_studys_fault() -> None:
    before = running(a_trial(0))
    measurement = replace(a_rung_measurement(before, 0), checkpoint="k" * 65)
    trial = settle_one(before, ended(0), Results(measurements={(0, 0): measurement}))
    assert trial.state is TrialState.FAILED
    assert trial.message == "the measurement's checkpoint must have at most 64 characters, got 65"


def test_a_measurement_is_found_although_its_job_was_never_observed() -> None:
    trial = settle_one(a_trial(0), None, Results(measurements={(0, 0): a_rung_measurement(a_trial(0), 0)}))
    assert trial.state is TrialState.PAUSED


def test_the_measurement_of_a_running_job_is_not_read() -> None:
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


def test_a_job_believed_gone_that_reappears_continues_its_attempt() -> None:
    gone = settle_one(running(a_trial(0)), None)
    back = settle_one(gone, a_job())
    assert back.state is TrialState.RUNNING
    assert [(a.id, a.is_open, a.reason) for a in back.attempts] == [("a1", True, "")]


def test_a_job_believed_gone_that_ended_is_counted_once() -> None:
    gone = settle_one(running(a_trial(0)), None)
    trial = settle_one(gone, ended(11))
    assert trial.state is TrialState.ABANDONED
    assert [a.reason for a in trial.attempts] == ["ArmCannotRun"]


def test_another_run_of_a_job_closes_the_run_before() -> None:
    trial = settle_one(running(a_trial(0)), a_job(attempt="a2", started_at=LATER))
    assert [(a.id, a.is_open) for a in trial.attempts] == [("a1", False), ("a2", True)]
    assert trial.attempts[0].finished_at == LATER


def test_a_trial_fails_after_the_limit_of_environment_faults() -> None:
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
def test_an_attempt_that_the_operator_stopped_is_not_counted(code: int) -> None:
    asked = settle_one(running(a_trial(0)), a_job(), study=a_study(suspend=True))
    assert asked.attempts[-1].reason == EndReason.ASKED_TO_STOP
    trial = settle_one(asked, ended(code))
    assert trial.state is TrialState.PENDING
    assert count_attempts_against(trial.attempts, 0) == (0, 0)
    assert retry_at(trial, Settings()) is None


def test_a_job_that_had_not_started_at_suspension_is_not_counted() -> None:
    trial = settle_one(a_trial(0), ended(137, started_at=None), study=a_study(suspend=True))
    assert [a.reason for a in trial.attempts] == [EndReason.ASKED_TO_STOP]
    assert count_attempts_against(trial.attempts, 0) == (0, 0)


def test_an_arm_that_runs_out_of_memory_while_being_stopped_is_abandoned() -> None:
    asked = settle_one(running(a_trial(0)), a_job(), study=a_study(suspend=True))
    assert settle_one(asked, ended(11)).state is TrialState.ABANDONED


def test_running_jobs_are_asked_to_stop_when_the_study_ends() -> None:
    ledger = a_ledger(running(a_trial(0)), outcome=Outcome(failed=True, reason="StudyCannotRun", message=""))
    trial = settle(a_study(), ledger, by_name([a_job()]), Results(), LATER).trials[0]
    assert trial.attempts[-1].reason == EndReason.ASKED_TO_STOP


def test_a_diverged_trial_gets_the_worst_value_of_every_share() -> None:
    trial = settle_one(running(a_trial(0)), ended(10, message="loss 9.1 after 3 steps"))
    measurement = trial.measurements[0]
    assert (measurement.value, measurement.diverged, measurement.checkpoint) == (0.0, True, "")
    assert measurement.metrics == {"invalid_output_rate": 1.0}
    assert trial.message == "loss 9.1 after 3 steps"


def test_a_diverged_trial_gets_the_worst_measured_loss_even_if_a_worse_one_follows() -> None:
    study = minimizing()
    diverged = settle_one(running(a_trial(0)), ended(10), study=study)
    alone = settle(study, a_ledger(diverged), {}, Results(), LATER).trials[0]
    assert alone.measurements[0].value == 10.8
    second = settle(study, a_ledger(diverged, paused(1, 1.5)), {}, Results(), LATER).trials[0]
    assert second.measurements[0].value == 1.5
    third = settle(study, a_ledger(second, paused(1, 1.5), paused(2, 2.5)), {}, Results(), LATER).trials[0]
    assert (third.measurements[0].value, third.measurements[0].metrics["accuracy"]) == (2.5, 0.0)


@pytest.mark.parametrize(
    ("metrics", "is_gibberish"),
    [
        ({"accuracy": 0.0, "gibberish_rate": 0.5}, True),
        ({"accuracy": 0.0, "gibberish_rate": 0.49}, False),
        ({"accuracy": 0.01, "gibberish_rate": 0.9}, False),
        ({"accuracy": 0.0, "invalid_output_rate": 0.9, "gibberish_rate": 0.1}, False),
        ({"accuracy": 0.0, "invalid_output_rate": 0.9}, False),
    ],
    ids=["half of them", "less than half", "one is right", "merely invalid", "a trainer that does not tell"],
)
def test_gibberish_is_measured_and_not_counted_as_divergence(metrics: dict[str, float], is_gibberish: bool) -> None:
    before = running(a_trial(0))
    trial = settle_one(before, ended(0), Results(measurements={(0, 0): a_rung_measurement(before, 0, **metrics)}))
    measurement = trial.measurements[0]
    assert (trial.state, measurement.diverged) == (TrialState.PAUSED, False)
    assert (measurement.gibberish, measurement.value) == (is_gibberish, metrics["accuracy"])
    assert bool(measurement.checkpoint)
    assert trial.message.startswith("gibberish: no answer is right, and") is is_gibberish


def test_a_trial_that_diverges_on_the_second_rung_keeps_its_first_measurement() -> None:
    trial = settle_one(running(continued(paused(0, 0.3), None)), ended(10, "s1-t000-r1"))
    assert trial.state is TrialState.COMPLETED
    assert [(m.rung, m.value, m.diverged) for m in trial.measurements] == [(0, 0.3, False), (1, 0.0, True)]


def test_a_measured_trial_is_not_settled_again() -> None:
    trial = paused(0, 0.3)
    assert settle_one(trial, ended(1, attempt="other")) is trial


# --- Prepare and final evaluation -------------------------------------------------------------------------------------


def a_summary() -> DatasetSummary:
    """Return a dataset without a test set."""
    split = SplitSummary(pages=10, samples=40, sites=5, tokens=4000, samples_by_attribute={"price": 10})
    return DatasetSummary(
        study="s1",
        splits={"train": split, "validation": split},
        skipped_pages={},
        dropped_labels={},
        pages_of_test_sites=0,
        warnings=(),
        fingerprint="00ff",
    )


def settle_prepare(job: JobStatus | None, results: Results | None = None, ledger: Ledger | None = None) -> Ledger:
    """Settle a study that is being prepared."""
    jobs = by_name([job] if job else [])
    return settle(a_study(), ledger or Ledger(), jobs, results or Results(), LATER, Settings(attempts_limit=2))


def test_a_dataset_summary_completes_the_preparation() -> None:
    ledger = settle_prepare(ended(0, "s1-prepare", kind=JobKind.PREPARE), Results(summary=a_summary()))
    assert ledger.prepare.state is StageState.COMPLETED
    assert ledger.dataset is not None
    assert (ledger.dataset.train_samples, ledger.dataset.validation_samples, ledger.dataset.test_samples) == (40, 40, 0)


@pytest.mark.parametrize(
    ("code", "state", "message"),
    [
        pytest.param(12, StageState.FAILED, "no page has a price", id="data that cannot be used ends it"),
        pytest.param(
            1, StageState.PENDING, "an attempt ended with Crashed (exit code 1): no page has a price", id="a crash"
        ),
        pytest.param(
            0,
            StageState.PENDING,
            "an attempt ended with NoMeasurement (exit code 0): no page has a price",
            id="no summary",
        ),
    ],
)
def test_the_exit_code_of_a_preparation_sets_its_state(code: int, state: StageState, message: str) -> None:
    stage = settle_prepare(ended(code, "s1-prepare", message="no page has a price")).prepare
    assert (stage.state, stage.message) == (state, message)


def test_a_preparation_fails_after_the_limit_of_attempts() -> None:
    ledger = settle_prepare(ended(1, "s1-prepare", attempt="a1"))
    ledger = settle_prepare(ended(1, "s1-prepare", attempt="a2"), ledger=ledger)
    assert ledger.prepare.state is StageState.FAILED
    assert ledger.prepare.message == "the environment ended 2 attempts, the last with Crashed (exit code 1)"


def test_a_suspended_preparation_is_not_counted() -> None:
    job = a_job("s1-prepare", kind=JobKind.PREPARE)
    ledger = settle(a_study(suspend=True), Ledger(), by_name([job]), Results(), LATER)
    assert ledger.prepare.attempts[-1].reason == EndReason.ASKED_TO_STOP
    ledger = settle_prepare(None, ledger=ledger)
    assert (ledger.prepare.state, ledger.prepare.message) == (StageState.PENDING, "")


def test_its_result_completes_the_final_evaluation() -> None:
    trial = continued(paused(0, 0.3), 0.5)
    ledger = a_ledger(trial, winner=0, final_evaluation=Stage(state=StageState.RUNNING))
    settled = settle(a_study(), ledger, {}, Results(final_evaluation=a_final_evaluation()), LATER)
    assert settled.final_evaluation.state is StageState.COMPLETED
    assert settled.test_gain is not None
    assert (settled.test_gain.mean, settled.test_gain.n) == ("hand_labelled", 500)
    assert settled.test_gain.difference == pytest.approx(0.04)


def test_a_pending_job_is_no_attempt() -> None:
    job = a_job(phase=JobPhase.PENDING, started_at=None)
    trial = a_trial(0)
    assert settle_one(trial, job) is trial


def test_settling_one_trial_leaves_the_others_unchanged() -> None:
    other = replace(paused(1, 0.3), measurements=(a_measurement(0, 0.3),))
    ledger = a_ledger(running(a_trial(0)), other)
    assert settle(a_study(), ledger, by_name([ended(0)]), Results(), LATER).trials[1] is other


# --- A cluster replaces a pod under the same job -----------------------------------------------------------------


def a_past(attempt: str = "a1", exit_code: int | None = 143, reason: str = "") -> EndedAttempt:
    """Return a run that ended a minute after it began, while its job goes on."""
    return EndedAttempt(
        attempt=attempt, started_at=NOW, finished_at=NOW + timedelta(minutes=1), exit_code=exit_code, reason=reason
    )


def replaced(*past: EndedAttempt, **changes: object) -> JobStatus:
    """Return a job whose second pod has run for a minute."""
    return a_job(**{"attempt": "a2", "started_at": NOW + timedelta(minutes=2), "earlier": past, **changes})


def test_a_replaced_run_is_closed_with_its_own_end_and_the_trial_goes_on() -> None:
    trial = settle_one(running(a_trial(0)), replaced(a_past()))
    assert trial.state is TrialState.RUNNING
    assert [(a.id, a.reason, a.is_open) for a in trial.attempts] == [("a1", "Interrupted", False), ("a2", "", True)]
    assert trial.attempts[0].finished_at == NOW + timedelta(minutes=1)
    assert settle_one(trial, replaced(a_past())) is trial


def test_attempts_that_were_never_observed_running_are_recorded() -> None:
    pending = {"phase": JobPhase.PENDING, "started_at": None, "attempt": "a3"}
    trial = settle_one(a_trial(0), replaced(a_past("a1"), a_past("a2", 137, "NodeLost"), **pending))
    assert trial.state is TrialState.PENDING
    assert [(a.id, a.reason) for a in trial.attempts] == [("a1", "Interrupted"), ("a2", "NodeLost")]
    assert count_attempts_against(trial.attempts, 0) == (1, 1)


def sized(index: int, *, batch_size: int, lora_rank: int = 8, **changes: Any) -> Trial:
    """Return a trial whose arm takes so much memory."""
    arm = {"learning_rate": 1e-4, "batch_size": batch_size, "lora_rank": lora_rank}
    return a_trial(index, arm=arm, **changes)


def that_ran(trial: Trial) -> Trial:
    """Return the trial with its first measurement."""
    return replace(trial, state=TrialState.PAUSED, measurements=(a_measurement(0, 0.3),))


KILL = ended(137, reason="OOMKilled", message="the kernel killed it for lack of memory; its memory limit is 16Gi")


@pytest.mark.parametrize(
    ("other", "state", "why"),
    [
        (
            that_ran(sized(1, batch_size=4)),
            TrialState.ABANDONED,
            "trial t001, which needs no more, has run in the same memory",
        ),
        (
            that_ran(sized(1, batch_size=16, lora_rank=4)),
            TrialState.ABANDONED,
            "trial t001, which needs no more, has run in the same memory",
        ),
        (
            running(sized(1, batch_size=4)),
            TrialState.PENDING,
            "no smaller arm has run in the same memory yet, so that it is not known to be the arm's fault",
        ),
        (
            that_ran(sized(1, batch_size=4, lora_rank=64)),
            TrialState.PENDING,
            "no smaller arm has run in the same memory yet, so that it is not known to be the arm's fault",
        ),
    ],
    ids=[
        "a smaller batch has run",
        "a smaller rank has run",
        "none has a measurement yet",
        "smaller in one, larger in one",
    ],
)
def test_an_oom_kill_is_the_arms_fault_only_if_a_smaller_arm_has_run(other: Trial, state: TrialState, why: str) -> None:
    ledger = a_ledger(running(sized(0, batch_size=16)), other)
    trial = settle(a_study(), ledger, by_name([KILL]), Results(), LATER).trials[0]
    assert trial.state is state
    assert "the kernel killed it for lack of memory; its memory limit is 16Gi" in trial.message
    assert why in trial.message
    assert trial.attempts[-1].reason == EndReason.OUT_OF_MEMORY


def test_an_oom_kill_on_the_second_rung_is_not_the_fault_of_an_arm_that_ran_on_the_first() -> None:
    promoted = running(continued(that_ran(sized(0, batch_size=16)), None))
    ledger = a_ledger(promoted, that_ran(sized(1, batch_size=4)))
    kill = replace(KILL, name="s1-t000-r1")
    trial = settle(a_study(), ledger, by_name([kill]), Results(), LATER).trials[0]
    assert trial.state is TrialState.PENDING
    assert "it has run in the same memory before, so that it is not the arm's fault" in trial.message


def test_oom_kills_of_unknown_cause_count_as_environment_faults() -> None:
    settings = Settings(attempts_limit=2)
    trial = sized(0, batch_size=16)
    for n in range(2):
        job = replace(KILL, attempt=f"a{n}")
        trial = settle(a_study(), a_ledger(trial), by_name([job]), Results(), LATER, settings).trials[0]
    assert trial.state is TrialState.FAILED
    assert "its memory limit is 16Gi" in trial.message
    assert "the environment ended 2 attempts" in trial.message


def test_an_arm_that_ran_out_of_memory_is_abandoned_although_its_next_attempt_started() -> None:
    job = replaced(a_past(exit_code=137, reason="OOMKilled"))
    ledger = a_ledger(running(sized(0, batch_size=16)), that_ran(sized(1, batch_size=4)))
    trial = settle(a_study(), ledger, by_name([job]), Results(), LATER).trials[0]
    assert trial.state is TrialState.ABANDONED
    # What the next run costs until it is stopped is still counted.
    assert [(a.id, a.reason) for a in trial.attempts] == [("a1", "OutOfMemory"), ("a2", "AskedToStop")]
    over = settle_one(trial, None)
    assert not any(a.is_open for a in over.attempts)
    assert over.state is TrialState.ABANDONED


def test_the_limit_of_attempts_holds_although_the_cluster_keeps_replacing_pods() -> None:
    limit = Settings().attempts_limit
    past = [a_past(f"a{i}", 137, "NodeLost") for i in range(limit)]
    below, at = (settle_one(a_trial(0), replaced(*past[:n], attempt="new")) for n in (limit - 1, limit))
    assert (below.state, at.state) == (TrialState.RUNNING, TrialState.FAILED)
    assert at.message == f"the environment ended {limit} attempts, the last with NodeLost (exit code 137)"


def test_a_replaced_attempt_that_was_folded_is_not_counted_again() -> None:
    until = NOW + timedelta(minutes=1)
    ledger = a_ledger(a_trial(0), folded=Folded(until=until, active_seconds=60.0))
    later = replace(a_past("a2"), finished_at=until + timedelta(seconds=1))
    jobs = by_name([replaced(a_past("a1"), later, attempt="a3")])
    trial = settle(a_study(), ledger, jobs, Results(), LATER).trials[0]
    assert [a.id for a in trial.attempts] == ["a2", "a3"]


def test_replaced_attempts_count_for_prepare_and_final_evaluation_too() -> None:
    prepare = Stage(state=StageState.RUNNING, attempts=running(a_trial(0)).attempts)
    job = replaced(a_past(), name="s1-prepare", kind=JobKind.PREPARE)
    ledger = settle(a_study(), Ledger(prepare=prepare), by_name([job]), Results(), LATER)
    assert [(a.id, a.reason) for a in ledger.prepare.attempts] == [("a1", "Interrupted"), ("a2", "")]
    assert ledger.prepare.state is StageState.RUNNING


# --- Jobs that cannot start ----------------------------------------------------------------------------------------


def waiting(minutes: float, reason: str = "ImagePullBackOff", *, is_stuck: bool = True, **changes: object) -> JobStatus:
    """Return a job whose pod could not start for so long."""
    return a_job(
        **{
            "phase": JobPhase.PENDING,
            "started_at": None,
            "reason": reason,
            "message": "no such image",
            "waits_since": LATER - timedelta(minutes=minutes),
            "is_stuck": is_stuck,
            **changes,
        }
    )


def test_a_waiting_job_is_reported_after_two_minutes() -> None:
    assert settle_one(a_trial(0), waiting(1.9)).message == ""
    trial = settle_one(a_trial(0), waiting(2))
    assert (trial.state, trial.message) == (TrialState.PENDING, "it waits: ImagePullBackOff: no such image")
    # The environment's words change all the time; each change would be a write.
    assert settle_one(trial, waiting(3, message="back-off 40s")) is trial
    assert settle_one(trial, waiting(3, "ErrImagePull")).message == "it waits: ErrImagePull: no such image"
    assert settle_one(trial, a_job()).message == ""


def test_a_stuck_job_counts_as_a_failed_attempt_after_a_limit() -> None:
    before = settle_one(a_trial(0), waiting(14.9))
    assert before.attempts == ()
    trial = settle_one(before, waiting(15))
    assert trial.state is TrialState.PENDING
    assert [(a.id, a.reason, a.started_at, a.finished_at) for a in trial.attempts] == [
        ("a1", "ImagePullBackOff", LATER, LATER)
    ]
    assert trial.message == "attempt 1 ended with ImagePullBackOff: no such image; it is tried again"
    # Until it is deleted nothing more is said or counted, whatever becomes of it.
    assert settle_one(trial, waiting(16)) is trial
    assert settle_one(trial, a_job()) is trial


def test_a_queued_job_may_wait_without_a_limit() -> None:
    trial = settle_one(a_trial(0), waiting(10_000, "Queued", is_stuck=False))
    assert trial.attempts == ()
    assert trial.message == "it waits: Queued: no such image"


def test_a_stuck_preparation_fails_in_the_end() -> None:
    ledger = Ledger()
    for number in range(Settings().attempts_limit):
        job = waiting(15, name="s1-prepare", kind=JobKind.PREPARE, attempt=f"a{number}")
        assert ledger.prepare.state is StageState.PENDING
        ledger = settle(a_study(), ledger, by_name([job]), Results(), LATER)
    assert ledger.prepare.state is StageState.FAILED
    assert ledger.prepare.message == ("the environment ended 6 attempts, the last with ImagePullBackOff: no such image")


@pytest.mark.parametrize(("trained_steps", "message"), [(100, "it began at its first step"), (80, ""), (None, "")])
def test_a_promoted_trial_that_restarted_from_step_zero_is_reported(trained_steps: int | None, message: str) -> None:
    trial = running(continued(paused(0, 0.3), None))
    measurement = replace(a_rung_measurement(trial, 1), trained_steps=trained_steps)
    settled = settle(a_study(), a_ledger(trial), {}, Results(measurements={(0, 1): measurement}), NOW).trials[0]
    assert settled.state is TrialState.COMPLETED
    assert settled.message.partition(": ")[0] == message
