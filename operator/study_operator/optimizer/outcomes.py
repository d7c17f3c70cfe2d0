"""What the optimizer is given for each trial: finite means of the objective and of the constrained metrics.

Called by `ax`; knows nothing of Ax. In the ledger a diverged trial has the worst value that its metric knows,
which for a loss is the worst that was read, and may be the best. The optimizer must see that it is worse:

* measurements beyond Tukey's fence (the worse quartile and 1.5 times the distance of the quartiles) count as the fence,
  so that one collapsed measurement does not squash all others;
* a diverged trial is below the worst of them by their whole spread, and at least by `LEAST_SHARE` for a share or by
  `LEAST_PART` of the median for any other metric. A share may so lie outside of 0 and 1, for the optimizer alone;
* of a constrained metric it lies as far on the wrong side of the bound, too.

Everything is a function of the ledger, so that the same ledger leads to the same proposal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from study_operator.errors import OperatorError
from study_operator.ledger.trial import Trial
from study_operator.spec.metrics import WORST_VALUES, Direction, is_share
from study_operator.spec.study import Study

LEAST_SHARE = 0.1
LEAST_PART = 0.1


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

    # The objective, fenced in.
    metric, sign = study.objective.metric, 1 if study.objective.direction is Direction.MAXIMIZE else -1
    healthy = {index: sign * m.value for index, m in measured.items() if not m.diverged}
    fenced = _fence(healthy)
    worst = _find_worse(metric, list(fenced.values())) if fenced else sign * WORST_VALUES[metric.partition("/")[0]]
    for index in measured:
        means[index][metric] = sign * fenced.get(index, worst)

    # Constrained metrics, as they were read.
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
