"""How good a measurement is: by what trials are ranked at a rung. Nothing else ranks them.

At full length by the study's objective, always. On an early rung by what `promotion.rankBy` says: the objective, or the
answers' loss on the validation set, which counts how sure each token is where accuracy counts only whether an answer is
right. It may rank better where questions are few. Of two that measured the same, the lower loss goes first on any rung:
where no arm has learnt enough to be right once, it is all that tells them apart.
"""

from __future__ import annotations

from study_operator.ledger.trial import Measurement
from study_operator.spec.metrics import METRICS, Direction
from study_operator.spec.study import RankBy, Study

LOSS = "validation_loss"


def name_metric(study: Study, rung: int) -> str:
    """Return the metric that trials are ranked by at a rung."""
    is_by_loss = study.promotion.rank_by is RankBy.VALIDATION_LOSS and rung < study.last_rung
    return LOSS if is_by_loss else study.objective.metric


def find_merit(study: Study, measurement: Measurement) -> float:
    """Return a number that is larger for a better measurement, among those of its rung."""
    metric = name_metric(study, measurement.rung)
    if metric == study.objective.metric:
        return study.objective.merit(measurement.value)
    # Settled measurements have it, but for one that was settled before anybody ranked by it.
    value = measurement.metrics.get(metric)
    if value is None:
        return float("-inf")
    return value if METRICS[metric] is Direction.MAXIMIZE else -value


def find_place(study: Study, measurement: Measurement) -> tuple[bool, float, float]:
    """Return what sorts the measurements of a rung, best first; only those of no loss, or the same, are equals."""
    loss = measurement.metrics.get(LOSS, float("inf"))
    return measurement.diverged, -find_merit(study, measurement), loss
