"""Whether a search stagnates: its best measurement has not risen for so many trials that chance hardly explains it.

Told from the trials alone, by the status and by the optimizer: while a search stagnates, every second arm fills a gap
between those that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from study_operator.ledger.merit import LOSS, find_merit, list_ranking_metrics
from study_operator.ledger.ranking import satisfies_constraints
from study_operator.ledger.trial import Measurement, Trial
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study

LEAST_WINDOW = 6
"""Trials without a rise before a search is said to stagnate, and at least a quarter of all of them."""


@dataclass(frozen=True, kw_only=True)
class Stagnation:
    """How long the best measurement of the first rung has not risen."""

    best: str
    """Name of the trial that rose last; empty where nothing was measured, or all diverged."""
    value: float
    """Its measurement."""
    since: int
    """Trials measured after it, none of which rose above it by the error."""
    measured: int
    window: int
    error: float
    """One standard error of a paired difference: what a rise must reach."""

    @property
    def is_stagnating(self) -> bool:
        """Whether there was no rise for the whole window."""
        return self.since >= self.window


def find_stagnation(study: Study, trials: Sequence[Trial]) -> Stagnation:
    """Return how long the best has not risen, the trials taken in the order in which they were proposed.

    Arms answer the same questions. Of the noise of two measurements half is taken to be shared, as where gains are
    corrected (`gain.CARRIED`), so that the standard error of their difference is that of one of them: the median is
    taken. A rise is one by what trials are ranked by there; where that has no standard error, as the loss alone has
    none, any rise counts. Of equals, such as all that were right nowhere yet, one that loses less has risen. One that
    breaks an outcome constraint rises only above others that do, and one that diverged never.
    """
    window = max(LEAST_WINDOW, -(-study.num_trials // 4))
    measured = [(t, m) for t in sorted(trials, key=lambda t: t.index) if (m := t.measurement(0)) is not None]
    is_objective_ranked = study.objective.metric in list_ranking_metrics(study, 0)
    error = median([m.standard_error for _, m in measured if m.standard_error and is_objective_ranked] or [0.0])
    best: tuple[Trial, Measurement] | None = None
    since = 0
    for trial, measurement in measured:
        is_rise = not measurement.diverged and (best is None or _is_rise(study, best[1], measurement, error))
        best, since = ((trial, measurement), 0) if is_rise else (best, since + 1)
    return Stagnation(
        best=best[0].name if best is not None else "",
        value=best[1].value if best is not None else 0.0,
        since=since if best is not None else 0,
        measured=len(measured),
        window=window,
        error=error,
    )


def _is_rise(study: Study, best: Measurement, measurement: Measurement, error: float) -> bool:
    keeps, did_keep = (satisfies_constraints(study, m) for m in (measurement, best))
    if keeps != did_keep:
        return keeps
    merit, least = (find_merit(study, m) for m in (measurement, best))
    if merit == least:
        return measurement.metrics.get(LOSS, math.inf) < best.metrics.get(LOSS, math.inf)
    return merit > least and merit >= least + error


def describe_stagnation(study: Study, stand: Stagnation, *, is_over: bool) -> str:
    """Return one sentence on a search that stagnates, or stagnated when it was over."""
    metric = study.objective.metric
    value = f"{stand.value:.1%}" if is_share(metric) else f"{stand.value:.4g}"
    ranked_by = list_ranking_metrics(study, 0)
    better = f"were not better than its {metric} of {value}"
    if ranked_by != [metric]:
        better = f"did not rank above it by {' and '.join(ranked_by)}"
    if study.outcome_constraints:
        better += ", or broke an outcome constraint,"
    error = f"{stand.error * 100:.1f} points" if is_share(metric) else f"{stand.error:.2g}"
    by = f" by {error}, one standard error of a paired difference" if stand.error else ""
    away = "" if is_over else "; every second arm now fills a gap between all others"
    return f"{stand.since} trials since {stand.best} {better} on the first rung{by}{away}"
