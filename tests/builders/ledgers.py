"""Builders of ledgers and of what is seen of jobs, for tests of the core. What a test is not about has a default."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from study_operator.ledger.trial import (
    Attempt,
    Continuation,
    DatasetCounts,
    Ledger,
    Measurement,
    Origin,
    Stage,
    StageState,
    Trial,
    TrialState,
)
from study_operator.reasons import EndReason
from study_operator.reconcile.runner import JobKind, JobPhase, JobStatus
from study_operator.spec.metrics import Direction
from study_operator.spec.study import (
    Data,
    EarlyEvaluation,
    LogUniform,
    Objective,
    Parameter,
    Promotion,
    Storage,
    Study,
)
from trial_trainer.contract import BaseModel, LabelSource, Metric, RungMeasurement, Split, TrainerSettings

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BASELINE = {"learning_rate": 1e-3}


def a_study(**changes: Any) -> Study:
    """Return a study of four trials and a baseline arm; one is promoted, two run at a time."""
    study = Study(
        name="s1",
        namespace="team",
        uid="0123456789ab",
        objective=Objective(metric="accuracy", direction=Direction.MAXIMIZE),
        parameters=(Parameter(name="learning_rate", search_space=LogUniform(min=1e-5, max=1e-2)),),
        baseline=BASELINE,
        num_trials=4,
        parallel_trials=2,
        max_failed_trials=1,
        promotion=Promotion(num_promoted=1),
        data=Data(source="/pages", attributes=("price",), labels_from=LabelSource.MARKUP, split=Split()),
        base_model=BaseModel(uri="/model"),
        trainer=TrainerSettings(epochs=3, max_length_tokens=512),
        storage=Storage(uri="/bucket"),
    )
    return replace(study, **changes)


def minimizing(study: Study | None = None) -> Study:
    """Return the study with the validation loss for its objective."""
    objective = Objective(metric="validation_loss", direction=Direction.MINIMIZE)
    return replace(study or a_study(), objective=objective)


def a_trial(index: int, **changes: Any) -> Trial:
    """Return a trial that waits for its first job; index 0 is the baseline."""
    trial = Trial(
        index=index,
        arm=BASELINE if index == 0 else {"learning_rate": 1e-4 * index},
        origin=Origin.SUGGESTED if index else Origin.BASELINE,
        total_steps=100,
    )
    return replace(trial, **changes)


def of_three_rungs(study: Study | None = None, **promotion: Any) -> Study:
    """Return the study with two early rungs, at 20 % and 50 %."""
    study = study or a_study()
    values = {"num_promoted": 1, "promoted_percents": (50,), **promotion}
    return replace(study, early_evaluation=EarlyEvaluation(rungs=(20, 50)), promotion=Promotion(**values))


def a_measurement(rung: int, value: float, **changes: Any) -> Measurement:
    """Return a measurement of a rung, of two unless the step is another."""
    measurement = Measurement(
        rung=rung,
        step=(20, 100, 100)[rung],
        value=value,
        standard_error=0.02,
        n=100,
        metrics={"invalid_output_rate": 0.1},
        checkpoint="/checkpoint",
        train_seconds=None if rung else 300.0,
        fixed_seconds=300.0,
    )
    return replace(measurement, **changes)


def running(trial: Trial) -> Trial:
    """Return the trial with an attempt under way."""
    attempt = Attempt(rung=trial.rung, started_at=NOW, id="a1")
    return replace(trial, state=TrialState.RUNNING, attempts=(*trial.attempts, attempt))


def paused(index: int, value: float, **changes: Any) -> Trial:
    """Return a trial with its first measurement, after ten minutes."""
    attempt = Attempt(
        rung=0,
        started_at=NOW - timedelta(minutes=10),
        finished_at=NOW,
        exit_code=0,
        reason=EndReason.SUCCEEDED,
        id=f"of-{index}",
    )
    return a_trial(
        index, state=TrialState.PAUSED, attempts=(attempt,), measurements=(a_measurement(0, value, **changes),)
    )


def continued(
    trial: Trial, value: float | None, how: Continuation = Continuation.PROMOTED, probability: float = 1.0
) -> Trial:
    """Return a trial on its way to full length, or with its final measurement."""
    trial = replace(trial, rung=1, continuation=how, inclusion_probability=probability)
    if value is None:
        return replace(trial, state=TrialState.PENDING)
    final = a_measurement(1, value)
    return replace(trial, state=TrialState.COMPLETED, measurements=(*trial.measurements, final))


def stopped(index: int, value: float) -> Trial:
    """Return a trial that ended with its first measurement."""
    return replace(paused(index, value), state=TrialState.STOPPED)


def a_ledger(*trials: Trial, **changes: Any) -> Ledger:
    """Return the ledger of a study whose dataset is prepared."""
    ledger = Ledger(
        trials=trials,
        prepare=Stage(state=StageState.COMPLETED),
        dataset=DatasetCounts(fingerprint="00ff", train_samples=320, validation_samples=80, test_samples=100),
    )
    return replace(ledger, **changes)


def a_job(name: str = "s1-t000-r0", **changes: Any) -> JobStatus:
    """Return a running job, its attempt being a1."""
    job = JobStatus(name=name, kind=JobKind.TRIAL, phase=JobPhase.RUNNING, attempt="a1", started_at=NOW)
    return replace(job, **changes)


def ended(exit_code: int | None, name: str = "s1-t000-r0", **changes: Any) -> JobStatus:
    """Return a job that ended a minute after it began."""
    return a_job(
        name,
        **{"phase": JobPhase.FINISHED, "finished_at": NOW + timedelta(minutes=1), "exit_code": exit_code, **changes},
    )


def by_name(jobs: Sequence[JobStatus]) -> Mapping[str, JobStatus]:
    """Return jobs as settle and plan take them."""
    return {job.name: job for job in jobs}


def a_rung_measurement(trial: Trial, rung: int, **values: float) -> RungMeasurement:
    """Return what a rung of a trial wrote."""
    values = values or {"accuracy": 0.4}
    return RungMeasurement(
        study="s1",
        trial=trial.name,
        rung=rung,
        step=(20, 100, 100)[rung],
        total_steps=100,
        checkpoint="checkpoints/20-a1",
        metrics={name: Metric(value=value, standard_error=0.02, n=100) for name, value in values.items()},
        samples_seen=160,
        tokens_per_second=300.0,
        peak_memory_bytes=1,
        seconds={"train": 60.0},
    )
