"""Accelerator time spent, saved and reserved, summed from the attempts in the ledger.

Called by the planner (budgets) and by the status. Hours are accelerator-hours; seconds are wall seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from study_operator.study import Study
from study_operator.trial import Attempt, Origin, Trial, TrialState


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a study's trials have cost."""

    accelerator_hours: float
    saved_accelerator_hours: float
    """Estimate: what full-length runs of the measured trials that did not continue would have taken more."""
    active_seconds: float
    """Time with at least one trial running."""


def measure_usage(study: Study, trials: Sequence[Trial], now: datetime | None) -> Usage:
    """Sum up the attempts; those that still run count up to ``now``, or not at all where it is None."""
    attempts = [a for t in trials for a in t.attempts]
    seconds = sum(_seconds(a, now) for a in attempts)
    saved = sum(_remainder_seconds(t) for t in trials if _is_stopped_early(t))
    return Usage(
        accelerator_hours=seconds * study.accelerators / 3600,
        saved_accelerator_hours=saved * study.accelerators / 3600,
        active_seconds=_union_seconds(attempts, now),
    )


def is_budget_exhausted(study: Study, trials: Sequence[Trial], now: datetime) -> bool:
    """Say whether what is spent and the reserve for who continues reach a limit of the study."""
    hours, deadline = study.budget.accelerator_hours, study.budget.active_deadline_seconds
    if hours is None and deadline is None:
        return False
    usage = measure_usage(study, trials, now)
    each, count = _mean_remainder_seconds(trials), _count_continuing(study, trials)
    if hours is not None and usage.accelerator_hours + each * count * study.accelerators / 3600 >= hours:
        return True
    rounds = -(-count // study.parallel_trials)
    return deadline is not None and usage.active_seconds + each * rounds >= deadline


def _is_stopped_early(trial: Trial) -> bool:
    first = trial.measurement(0)
    is_waiting = trial.continuation is None and trial.state in (TrialState.PAUSED, TrialState.STOPPED)
    return is_waiting and first is not None and not first.diverged


def _mean_remainder_seconds(trials: Iterable[Trial]) -> float:
    remainders = [_remainder_seconds(t) for t in trials if (m := t.measurement(0)) and not m.diverged]
    return sum(remainders) / len(remainders) if remainders else 0.0


def _remainder_seconds(trial: Trial) -> float:
    """Estimate the rest of a trial from its first rung: as many seconds a step."""
    first = trial.measurement(0)
    if first is None or first.step <= 0:
        return 0.0
    spent = sum(_seconds(a, None) for a in trial.attempts if a.rung == 0)
    return spent * (trial.total_steps / first.step - 1)


def _count_continuing(study: Study, trials: Sequence[Trial]) -> int:
    has_baseline = study.baseline is not None and not any(
        t.origin is Origin.BASELINE and t.state in (TrialState.FAILED, TrialState.ABANDONED) for t in trials
    )
    return study.promotion.num_promoted + study.promotion.num_audited + has_baseline


def _seconds(attempt: Attempt, now: datetime | None) -> float:
    end = attempt.finished_at or now
    return max(0.0, (end - attempt.started_at).total_seconds()) if end else 0.0


def _union_seconds(attempts: Iterable[Attempt], now: datetime | None) -> float:
    spans = sorted((a.started_at, end) for a in attempts if (end := a.finished_at or now))
    total, reached = 0.0, None
    for start, end in spans:
        since = start if reached is None or start > reached else reached
        if end > since:
            total += (end - since).total_seconds()
            reached = end
    return total
