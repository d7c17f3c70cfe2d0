"""How good a measurement is: by what trials are ranked at a rung. Nothing else ranks them.

At full length by the study's objective, always. On an early rung by what `promotion.rankBy` says: the objective, the
answers' loss on the validation set, or both. The loss counts how sure each token is where accuracy counts only whether
an answer is right: it may rank better where questions are few. Of two that measured the same, the lower loss goes first
on any rung: where no arm has learnt enough to be right once, it is all that tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from study_operator.ledger.trial import Measurement
from study_operator.spec.study import RankBy, Study

LOSS = "validation_loss"

NAT = 0.1
"""What a nat per token of loss counts beside an objective that is a share: ten points of it. Chosen by ten recorded
LoRA arms, on which 0.05 to 0.2 ranked alike (`benchmarks/ranking.py`)."""


def list_ranking_metrics(study: Study, rung: int) -> Sequence[str]:
    """Return the metrics that trials are ranked by at a rung."""
    objective = study.objective.metric
    match study.promotion.rank_by:
        case RankBy.VALIDATION_LOSS if rung < study.last_rung:
            return [LOSS]
        case RankBy.OBJECTIVE_AND_LOSS if rung < study.last_rung:
            return [*dict.fromkeys([objective, LOSS])]
        case _:
            return [objective]


def find_merit(study: Study, measurement: Measurement) -> float:
    """Return a number that is larger for a better measurement, among those of its rung."""
    objective, metrics = study.objective.metric, list_ranking_metrics(study, measurement.rung)
    merit = study.objective.merit(measurement.value)
    if LOSS not in metrics or objective == LOSS:
        return merit
    # Settled measurements have a loss, but for one that was settled before anybody ranked by it.
    loss = measurement.metrics.get(LOSS, math.inf)
    return merit - NAT * loss if objective in metrics else -loss


def find_place(study: Study, measurement: Measurement) -> tuple[bool, float, float]:
    """Return what sorts the measurements of a rung, best first.

    Equals are those that diverged, and of the others those that measured the same with no loss, or the same.
    """
    if measurement.diverged:
        return True, 0.0, 0.0
    return False, -find_merit(study, measurement), measurement.metrics.get(LOSS, math.inf)
