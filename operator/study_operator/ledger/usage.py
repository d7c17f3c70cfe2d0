"""Accelerator time spent, saved and reserved, summed from the attempts in the ledger.

Called by settle (what a measurement's rung took), by the planner (budgets) and by the status. Hours are
accelerator-hours; seconds are wall seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from study_operator.ledger.trial import GIVEN_UP, Attempt, Ledger, Measurement, Origin, Trial
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
    trials, runs, folded = ledger.trials, ledger.runs, ledger.folded
    attempts = [a for t in runs for a in t.attempts]
    seconds = sum(seconds_of(a, now) for a in attempts) + sum(
        t.earlier_attempts.seconds for t in runs if t.earlier_attempts is not None
    )
    active = union_seconds(attempts, now, folded.until if folded is not None else None)
    measured = [trial for trial in trials if trial.measurements]
    saved = [of_trial for trial in measured if (of_trial := _saved_seconds(study, trial)) is not None]
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
    # What each rung to come takes, and how many trials will be on it.
    reserve = [
        (_mean_seconds(study, trials, rung), count) for rung, count in enumerate(_count_continuing(study, trials), 1)
    ]
    reserved_hours = sum(each * count for each, count in reserve) * study.accelerators / 3600
    if hours is not None and usage.accelerator_hours + reserved_hours >= hours:
        return True
    reserved_seconds = sum(each * -(-count // study.parallel_trials) for each, count in reserve)
    return deadline is not None and usage.active_seconds + reserved_seconds >= deadline


def count_affordable(
    study: Study, ledger: Ledger, of: Callable[[Trial], Trial], wanted: Sequence[tuple[Trial, int]], now: datetime
) -> int:
    """Return how many further runs the budget has room for, beside the confirmations and runs of the curve that run.

    Args:
        study: the study.
        ledger: its ledger.
        of: tells the trial whose arm one of those has that run.
        wanted: of each further run, in the order in which they would begin, the trial whose arm it has and its steps.
        now: the time.
    """
    hours, deadline = study.budget.accelerator_hours, study.budget.active_deadline_seconds
    if hours is None and deadline is None:
        return len(wanted)
    usage = measure_usage(study, ledger, now)
    # What those that run still need.
    left = [
        max(0.0, _seconds_from_start(of(run), run.total_steps) - sum(seconds_of(a, now) for a in run.attempts))
        for run in (*ledger.confirmations, *ledger.curve)
        if run.is_busy
    ]
    for count, (trial, steps) in enumerate(wanted):
        left.append(_seconds_from_start(trial, steps))
        reserved_hours = sum(left) * study.accelerators / 3600
        if hours is not None and usage.accelerator_hours + reserved_hours >= hours:
            return count
        if deadline is not None and usage.active_seconds + _seconds_in_slots(left, study.parallel_trials) >= deadline:
            return count
    return len(wanted)


def _seconds_from_start(trial: Trial, steps: int) -> float:
    """Estimate what a run of a trial's arm takes; nothing where that was not measured, and the budget does not tell."""
    first = trial.measurement(0)
    return 0.0 if first is None or first.step <= 0 else _seconds_of_steps(trial, first, steps)


def _seconds_in_slots(seconds: Sequence[float], slots: int) -> float:
    """Return what runs take that begin in this order, each in the slot that is free first."""
    ends = [0.0] * slots
    for each in seconds:
        heapq.heapreplace(ends, ends[0] + each)
    return max(ends)


def with_seconds(measurement: Measurement, trial: Trial, result: RungMeasurement) -> Measurement:
    """Return a measurement with what its rung took, as far as the trainer tells.

    A trainer tells what its last attempt took. Where that went on from a checkpoint, its steps tell the speed; what
    was lost with an attempt is not counted.
    """
    before = trial.measurement(trial.rung - 1)
    steps = measurement.step - (before.step if before is not None else 0)
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


def _saved_seconds(study: Study, trial: Trial) -> float | None:
    """Return what a straight run to full length would have cost more than what was done; None where nobody told."""
    first = trial.measurement(0)
    if first is None or first.train_seconds is None or first.fixed_seconds is None:
        return None
    if trial.has_diverged or trial.state in GIVEN_UP:
        return 0.0
    # It starts and evaluates once more on each later rung, which a straight run does not.
    later = [m.fixed_seconds for m in trial.measurements if m.rung > 0]
    begun = [*later, *([None] if trial.measurement(trial.rung) is None else [])]
    overhead = sum(first.fixed_seconds if seconds is None else seconds for seconds in begun)
    untrained = trial.total_steps - study.stop_step(trial.total_steps, trial.rung)
    return first.train_seconds * untrained / first.step - overhead


def _mean_seconds(study: Study, trials: Iterable[Trial], rung: int) -> float:
    known = [_estimate_seconds(study, t, m, rung) for t in trials if (m := t.measurement(0)) and not m.diverged]
    return sum(known) / len(known) if known else 0.0


def _estimate_seconds(study: Study, trial: Trial, first: Measurement, rung: int) -> float:
    """Estimate what a later rung takes: one more start and evaluation, and as many seconds a step of training.

    Where the trainer does not tell its seconds of training, all that the first rung took counts as training, which is
    never too little.
    """
    if first.step <= 0:
        return 0.0
    return _seconds_of_steps(
        trial, first, study.stop_step(trial.total_steps, rung) - study.stop_step(trial.total_steps, rung - 1)
    )


def _seconds_of_steps(trial: Trial, first: Measurement, steps: int) -> float:
    """Estimate what a run of some steps takes from its start, by the first measurement of a trial with the same arm."""
    if first.train_seconds is not None and first.fixed_seconds is not None:
        return first.fixed_seconds + first.train_seconds * steps / first.step
    spent = sum(seconds_of(a, None) for a in trial.attempts if a.rung == 0)
    if trial.earlier_attempts is not None:
        spent += trial.earlier_attempts.first_rung_seconds
    return spent * steps / first.step


def _count_continuing(study: Study, trials: Sequence[Trial]) -> list[int]:
    """Return how many trials will be on each rung after the first, a baseline that failed not among them."""
    is_lost = any(t.origin is Origin.BASELINE and t.state in GIVEN_UP for t in trials)
    audited, baseline = study.promotion.num_audited, study.baseline is not None and not is_lost
    counts = enumerate(study.count_promoted(len(trials)), 1)
    return [promoted + audited * rung + baseline for rung, promoted in counts]


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
