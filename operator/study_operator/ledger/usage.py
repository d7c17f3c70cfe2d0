"""Accelerator time spent, saved and reserved, summed from the attempts in the ledger, and old attempts made into sums.

Called by settle (folding, what a reading's rung took), by the planner (budgets) and by the status. Hours are
accelerator-hours; seconds are wall seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from study_operator.ledger.trial import (
    GIVEN_UP,
    Attempt,
    EarlierAttempts,
    Folded,
    Ledger,
    Measurement,
    Origin,
    Stage,
    StageState,
    Trial,
    TrialState,
    count_attempts_against,
)
from study_operator.spec.study import Study
from trial_trainer.contract import Reading

ATTEMPTS_KEPT = 200
"""Of all trials together. An attempt takes 200 bytes of an object that must stay below a megabyte, and a study that is
preempted every hour for a weekend, or suspended every night, makes thousands."""

STAGE_ATTEMPTS_KEPT = 20
"""Of prepare and of judge, each."""


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
    seconds = sum(_seconds(a, now) for a in attempts) + sum(t.earlier.seconds for t in trials if t.earlier is not None)
    active = _union_seconds(attempts, now, folded.until if folded is not None else None)
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


def fold_attempts(ledger: Ledger, most: int = ATTEMPTS_KEPT, most_of_stage: int = STAGE_ATTEMPTS_KEPT) -> Ledger:
    """Return the ledger with its oldest ended attempts folded into sums, as many as it has too many.

    No usage changes by it, and no count. What runs stays, and so does the last attempt of a rung that is not over: the
    wait for the next one begins with its end.
    """
    prepare, judge = (_fold_stage(stage, most_of_stage) for stage in (ledger.prepare, ledger.judge))
    if prepare is not ledger.prepare or judge is not ledger.judge:
        ledger = replace(ledger, prepare=prepare, judge=judge)
    excess = sum(len(t.attempts) for t in ledger.trials) - most
    if excess <= 0:
        return ledger
    ended = [(end, t.index, i) for t in ledger.trials for i, end in _foldable(t.attempts, t.rung if t.is_busy else -1)]
    oldest = sorted(ended)[:excess]
    if not oldest:
        return ledger
    chosen = defaultdict[int, set[int]](set)
    for _, index, i in oldest:
        chosen[index].add(i)
    until, before = oldest[-1][0], ledger.folded
    active = _union_seconds(
        (_cut(a, until) for t in ledger.trials for a in t.attempts if a.started_at < until),
        None,
        before.until if before is not None else None,
    )
    return replace(
        ledger,
        trials=tuple(_fold(t, chosen[t.index]) if t.index in chosen else t for t in ledger.trials),
        folded=Folded(
            until=max(until, before.until) if before is not None else until,
            active_seconds=active + (before.active_seconds if before is not None else 0.0),
        ),
    )


def _foldable(attempts: Sequence[Attempt], rung: int) -> list[tuple[int, datetime]]:
    """Return position and end of the attempts that may go; of the rung, the last one stays."""
    last = max((i for i, a in enumerate(attempts) if a.rung == rung), default=-1)
    return [(i, a.finished_at) for i, a in enumerate(attempts) if a.finished_at is not None and i != last]


def _fold_stage(stage: Stage, most: int) -> Stage:
    is_over = stage.state in (StageState.COMPLETED, StageState.FAILED)
    excess = len(stage.attempts) - most
    if excess <= 0:
        return stage
    return _fold(stage, {i for i, _ in _foldable(stage.attempts, -1 if is_over else 0)[:excess]})


OfAttempts = TypeVar("OfAttempts", Trial, Stage)


def _fold(of: OfAttempts, positions: set[int]) -> OfAttempts:
    """Move attempts, given by their positions, into the sums."""
    going = [a for i, a in enumerate(of.attempts) if i in positions]
    if not going:
        return of
    before = of.earlier
    rung = max(a.rung for a in going)
    if before is not None:
        rung = max(rung, before.rung)
    faults, interruptions = count_attempts_against(going, rung, before)
    earlier = EarlierAttempts(
        attempts=len(going) + (before.attempts if before is not None else 0),
        seconds=sum(_seconds(a, None) for a in going) + (before.seconds if before is not None else 0.0),
        first_rung_seconds=sum(_seconds(a, None) for a in going if a.rung == 0)
        + (before.first_rung_seconds if before is not None else 0.0),
        rung=rung,
        faults=faults,
        interruptions=interruptions,
    )
    return replace(of, attempts=tuple(a for i, a in enumerate(of.attempts) if i not in positions), earlier=earlier)


def _cut(attempt: Attempt, until: datetime) -> Attempt:
    """Return the part of an attempt that lies before a time."""
    end = attempt.finished_at
    return attempt if end is not None and end <= until else replace(attempt, finished_at=until)


def with_seconds(measurement: Measurement, trial: Trial, reading: Reading) -> Measurement:
    """Return a measurement with what its rung took, as far as the trainer tells.

    A trainer tells what its last attempt took. Where that went on from a checkpoint, its steps tell the speed; what
    was lost with an attempt is not counted.
    """
    first = trial.measurement(0)
    steps = measurement.step - (first.step if trial.rung and first is not None else 0)
    attempts = [a for a in trial.attempts if a.rung == trial.rung]
    is_only = len(attempts) <= 1 and not (trial.earlier is not None and trial.earlier.rung == trial.rung)
    trained = reading.trained_steps if reading.trained_steps is not None else steps if is_only else 0
    train = reading.seconds.get("train", -1.0)
    if trained <= 0 or steps <= 0 or train < 0:
        return measurement
    told = sum(seconds for phase, seconds in reading.seconds.items() if phase != "train")
    wall = _seconds(attempts[-1], None) if attempts else 0.0
    return replace(
        measurement,
        train_seconds=round(train / trained * steps, 1) if trial.rung == 0 else None,
        # The process starts before its first phase does. An attempt that only found the reading took less.
        fixed_seconds=round(max(told, wall - train, 0.0), 1),
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
    spent = sum(_seconds(a, None) for a in trial.attempts if a.rung == 0)
    if trial.earlier is not None:
        spent += trial.earlier.first_rung_seconds
    return _untrained_seconds(trial, first, spent)


def _count_continuing(study: Study, trials: Sequence[Trial]) -> int:
    has_baseline = study.baseline is not None and not any(
        t.origin is Origin.BASELINE and t.state in (TrialState.FAILED, TrialState.ABANDONED) for t in trials
    )
    return study.promotion.num_promoted + study.promotion.num_audited + has_baseline


def _seconds(attempt: Attempt, now: datetime | None) -> float:
    end = attempt.finished_at or now
    return max(0.0, (end - attempt.started_at).total_seconds()) if end else 0.0


def _union_seconds(attempts: Iterable[Attempt], now: datetime | None, since: datetime | None) -> float:
    """Return the time in which at least one attempt ran; what lies before ``since`` does not count."""
    spans = sorted((a.started_at, end) for a in attempts if (end := a.finished_at or now))
    total, reached = 0.0, since
    for start, end in spans:
        begin = start if reached is None or start > reached else reached
        if end > begin:
            total += (end - begin).total_seconds()
            reached = end
    return total
