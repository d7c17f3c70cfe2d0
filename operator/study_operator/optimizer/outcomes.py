"""What the optimizer is given for each trial: scores of the objective, and finite means of constrained metrics.

Called by `ax`; knows nothing of Ax.

* Of the objective it is given normal scores: the quantile of the normal distribution at each trial's rank (Salinas et
  al. 2020, "A Quantile-based Approach for Hyperparameter Transfer Learning"). Losses of arms that learn nothing lie
  close together and others beyond all reason; fitted as they are, a few of them leave no shape to all the others.
* Trials rank as they do where some of them are promoted (`ledger.merit`): where none has been right once, they still
  differ by their loss.
* A diverged trial has the worst value that its metric knows in the ledger, which for a loss is the worst that was read,
  and may be the best. It ranks below all that did not diverge, and all such trials rank the same.
* Constrained metrics are given as they were measured, since bounds are values; the objective too, where it is one of
  them. Of those, a diverged trial lies on the wrong side of the bound and below the worst measurement by their whole
  spread, and at least by `LEAST_SHARE` for a share or by `LEAST_PART` of the median for any other metric. A share may
  so lie outside of 0 and 1, for the optimizer alone. Measurements beyond Tukey's fence (the worse quartile and 1.5
  times the distance of the quartiles) count as the fence.

Everything is a function of the ledger, so that the same ledger leads to the same proposal.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import TypeVar

from study_operator.errors import OperatorError
from study_operator.ledger.merit import find_place
from study_operator.ledger.trial import Trial
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study

LEAST_SHARE = 0.1
LEAST_PART = 0.1

Sortable = TypeVar("Sortable", tuple[float, float], tuple[bool, float, float])


class OutcomeError(OperatorError):
    """The ledger holds what the optimizer must not be given, or lacks what it needs."""

    reason = "OutcomeUnusable"


def find_means(study: Study, trials: Sequence[Trial]) -> Mapping[int, Mapping[str, float]]:
    """Return the means of every trial that was measured on the first rung, by index and metric.

    Raises:
        OutcomeError: where a measurement lacks a constrained metric, or a number is not finite.
    """
    measured = {trial.index: m for trial in trials if (m := trial.measurement(0)) is not None}
    for trial in trials:
        if trial.index in measured:
            _check(study, trial)
    means: dict[int, dict[str, float]] = {index: {} for index in measured}

    # The objective, by rank; the lowest place is the best.
    metric = study.objective.metric
    places = {i: find_place(study, m) for i, m in measured.items()}
    sign = study.objective.merit(1.0)
    for index, score in find_scores(places).items():
        means[index][metric] = -sign * score

    # Constrained metrics, as they were measured.
    for constraint in study.outcome_constraints:
        metric, sign = constraint.metric, -1 if constraint.is_upper else 1
        healthy = {index: sign * m.metrics[metric] for index, m in measured.items() if not m.diverged}
        beyond = [_find_worse(metric, [sign * constraint.bound])]
        beyond += [_find_worse(metric, list(_fence(healthy).values()))] if healthy else []
        for index in measured:
            means[index][metric] = sign * healthy.get(index, min(beyond))
    return means


def _check(study: Study, trial: Trial) -> None:
    measurement = trial.measurement(0)
    if measurement is None:
        return
    constrained = [constraint.metric for constraint in study.outcome_constraints]
    for metric in () if measurement.diverged else constrained:
        if metric not in measurement.metrics:
            raise OutcomeError(f"trial {trial.name} must measure {metric!r}, which outcomeConstraints names")
    known = {study.objective.metric: measurement.value}
    known |= {metric: measurement.metrics[metric] for metric in constrained if metric in measurement.metrics}
    for metric, value in known.items():
        if not math.isfinite(value):
            raise OutcomeError(f"trial {trial.name}: {metric} must be finite, got {value}")


def find_scores(values: Mapping[int, Sortable]) -> dict[int, float]:
    """Return the normal scores of values; equal ones have the score of the middle of their ranks."""
    ordered = sorted(values.values())
    ranks = {index: (bisect_left(ordered, v) + bisect_right(ordered, v) + 1) / 2 for index, v in values.items()}
    return {index: NormalDist().inv_cdf(rank / (len(ordered) + 1)) for index, rank in ranks.items()}


def _fence(merits: Mapping[int, float]) -> dict[int, float]:
    """Bring merits (the higher, the better) that lie far below the others up to Tukey's fence."""
    ordered = sorted(merits.values())
    if not ordered:
        return {}
    last = len(ordered) - 1
    low, high = ordered[math.floor(0.25 * last)], ordered[math.ceil(0.75 * last)]
    fence = low - 1.5 * (high - low)
    return {index: max(merit, fence) for index, merit in merits.items()}


def _find_worse(metric: str, merits: Sequence[float]) -> float:
    """Return a merit that is clearly below all of these."""
    least = LEAST_SHARE if is_share(metric) else LEAST_PART * abs(statistics.median(merits))
    return min(merits) - max(max(merits) - min(merits), least or LEAST_PART)
