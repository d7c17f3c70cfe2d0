"""Accelerator time spent, saved and reserved, summed from the attempts in the ledger.

Called by settle (what a measurement's rung took), by the planner (budgets) and by the status. Hours are
accelerator-hours; seconds are wall seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from study_operator.ledger.trial import GIVEN_UP, Attempt, Ledger, Measurement, Origin, Trial, TrialState
from study_operator.spec.study import Study
from trial_trainer.contract import RungMeasurement


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a study's trials have cost."""

    accelerator_hours: float
    saved_accelerator_hours: float | None
    """Estimate: what full-length runs of every measured trial would have cost more. Less than nothing where starting
    and evaluating a second time cost more than stopping early spared; None where no trainer tells its seconds."""
    active_seconds: float
    """Time with at least one trial running."""


def measure_usage(study: Study, ledger: Ledger, now: datetime | None) -> Usage:
    """Sum up the attempts; those that still run count up to ``now``, or not at all where it is None."""
    trials, folded = ledger.trials, ledger.folded
    attempts = [a for t in trials for a in t.attempts]
    seconds = sum(seconds_of(a, now) for a in attempts) + sum(
        t.earlier_attempts.seconds for t in trials if t.earlier_attempts is not None
    )
    active = union_seconds(attempts, now, folded.until if folded is not None else None)
    measured = [trial for trial in trials if trial.measurements]
    saved = [of_trial for trial in measured if (of_trial := _saved_seconds(trial)) is not None]
    return Usage(
        accelerator_hours=seconds * study.accelerators / 3600,
        saved_accelerator_hours=sum(saved) * study.accelerators / 3600 if saved or not measured else None,
        active_seconds=active + (folded.active_seconds if folded is not None else 0.0),
    )


def is_budget_exhausted(study: Study, ledger: Ledger, now: datetime) -> bool:
    """Say whether what is spent and the reserve for who continues reach a limit of the study."""
    trials = ledger.trials
    hours, deadline = study.budget.accelerator_hours, study.budget.active_deadline_seconds
    if hours is None and deadline is None:
        return False
    usage = measure_usage(study, ledger, now)
    each, count = _mean_remainder_seconds(trials), _count_continuing(study, trials)
    if hours is not None and usage.accelerator_hours + each * count * study.accelerators / 3600 >= hours:
        return True
    rounds = -(-count // study.parallel_trials)
    return deadline is not None and usage.active_seconds + each * rounds >= deadline


def with_seconds(measurement: Measurement, trial: Trial, result: RungMeasurement) -> Measurement:
    """Return a measurement with what its rung took, as far as the trainer tells.

    A trainer tells what its last attempt took. Where that went on from a checkpoint, its steps tell the speed; what
    was lost with an attempt is not counted.
    """
    first = trial.measurement(0)
    steps = measurement.step - (first.step if trial.rung and first is not None else 0)
    attempts = [a for a in trial.attempts if a.rung == trial.rung]
    is_only = len(attempts) <= 1 and not (
        trial.earlier_attempts is not None and trial.earlier_attempts.rung == trial.rung
    )
    trained = result.trained_steps if result.trained_steps is not None else steps if is_only else 0
    train = result.seconds.get("train", -1.0)
    if trained <= 0 or steps <= 0 or train < 0:
        return measurement
    reported = sum(seconds for phase, seconds in result.seconds.items() if phase != "train")
    wall = seconds_of(attempts[-1], None) if attempts else 0.0
    return replace(
        measurement,
        train_seconds=round(train / trained * steps, 1) if trial.rung == 0 else None,
        # The process starts before its first phase does. An attempt that only found the measurement took less.
        fixed_seconds=round(max(reported, wall - train, 0.0), 1),
    )


def _saved_seconds(trial: Trial) -> float | None:
    """Return what a straight run to full length would have cost more than what was done; None where nobody told."""
    first, final = trial.measurement(0), trial.measurement(1)
    if first is None or first.train_seconds is None or first.fixed_seconds is None:
        return None
    if first.diverged:
        return 0.0
    if trial.continuation is None:
        return _untrained_seconds(trial, first, first.train_seconds)
    if trial.state in GIVEN_UP or (final is not None and final.diverged):
        return 0.0
    # It starts and evaluates a second time, which a straight run does not.
    overhead = final.fixed_seconds if final is not None else None
    return -(overhead if overhead is not None else first.fixed_seconds)


def _untrained_seconds(trial: Trial, first: Measurement, seconds: float) -> float:
    return seconds * (trial.total_steps / first.step - 1)


def _mean_remainder_seconds(trials: Iterable[Trial]) -> float:
    remainders = [_remainder_seconds(t) for t in trials if (m := t.measurement(0)) and not m.diverged]
    return sum(remainders) / len(remainders) if remainders else 0.0


def _remainder_seconds(trial: Trial) -> float:
    """Estimate what a trial takes to its end: one more start and evaluation, and as many seconds a step of training.

    Where the trainer does not tell its seconds of training, all that the first rung took counts as training, which is
    never too little.
    """
    first = trial.measurement(0)
    if first is None or first.step <= 0:
        return 0.0
    if first.train_seconds is not None and first.fixed_seconds is not None:
        return first.fixed_seconds + _untrained_seconds(trial, first, first.train_seconds)
    spent = sum(seconds_of(a, None) for a in trial.attempts if a.rung == 0)
    if trial.earlier_attempts is not None:
        spent += trial.earlier_attempts.first_rung_seconds
    return _untrained_seconds(trial, first, spent)


def _count_continuing(study: Study, trials: Sequence[Trial]) -> int:
    has_baseline = study.baseline is not None and not any(
        t.origin is Origin.BASELINE and t.state in (TrialState.FAILED, TrialState.ABANDONED) for t in trials
    )
    return study.promotion.num_promoted + study.promotion.num_audited + has_baseline


def seconds_of(attempt: Attempt, now: datetime | None) -> float:
    end = attempt.finished_at or now
    return max(0.0, (end - attempt.started_at).total_seconds()) if end else 0.0


def union_seconds(attempts: Iterable[Attempt], now: datetime | None, since: datetime | None) -> float:
    """Return the time in which at least one attempt ran; what lies before ``since`` does not count."""
    spans = sorted((a.started_at, end) for a in attempts if (end := a.finished_at or now))
    total, reached = 0.0, since
    for start, end in spans:
        begin = start if reached is None or start > reached else reached
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return total
