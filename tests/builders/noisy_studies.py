"""Studies whose arms answer questions by chance: what measurements say of arms that are known to be equal, or not.

All arms are asked the same questions, some of which are harder for all of them; at full length an arm is asked them
again. Used by `operator/test_gain.py` and by `benchmarks/selection.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from builders.ledgers import a_measurement, a_study, a_trial
from study_operator.ledger.ranking import draw
from study_operator.ledger.trial import Continuation, Trial, TrialState
from study_operator.spec.study import Promotion, Study
from trial_trainer.intervals import estimate_share

EARLY = 0.1
"""How much worse every arm is at the first measurement."""


@dataclass(frozen=True, kw_only=True)
class Noisy:
    """One study, read to some rung."""

    study: Study
    trials: tuple[Trial, ...]
    truths: tuple[float, ...]
    """The share of questions that each arm would answer right, were there endlessly many."""


def a_noisy_study(
    chance: np.random.Generator,
    truths: Sequence[float],
    *,
    questions: int = 117,
    shared: float = 0.6,
    carried: float = 0.5,
    promotion: Promotion | None = None,
) -> Noisy:
    """Return a study of so many arms, the first one being the baseline.

    Args:
        chance: where chance comes from.
        truths: how good each arm is.
        questions: of the validation set.
        shared: how much of the difficulty of a question is the same for all arms.
        carried: how much of what remains is the same for one arm at both rungs.
        promotion: who continues; None stops at the first measurement.
    """
    study = a_study(num_trials=len(truths), promotion=promotion or Promotion(num_promoted=1))
    own = chance.standard_normal((2, len(truths), questions))
    own[1] = math.sqrt(carried) * own[0] + math.sqrt(1 - carried) * own[1]
    ease = math.sqrt(shared) * chance.standard_normal(questions) + math.sqrt(1 - shared) * own
    bars = [[NormalDist().inv_cdf(1 - truth) for truth in row] for row in (_early(truths), truths)]
    right = (ease > np.array(bars)[:, :, None]).mean(axis=2)

    def read(index: int, rung: int) -> Trial:
        value = float(right[rung, index])
        error = math.sqrt(value * (1 - value) / (questions - 1))
        measured = a_measurement(rung, value, standard_error=error, n=questions)
        return replace(trials[index], measurements=(*trials[index].measurements, measured))

    trials = [a_trial(i, state=TrialState.PAUSED) for i in range(len(truths))]
    trials = [read(i, 0) for i in range(len(truths))]
    if promotion is not None:
        order = sorted(range(1, len(truths)), key=lambda i: -right[0, i])
        rest = order[promotion.num_promoted :]
        drawn = draw(rest, promotion.num_audited, seed=int(chance.integers(2**32)))
        ways = dict.fromkeys(order[: promotion.num_promoted], Continuation.PROMOTED) | {0: Continuation.BASELINE}
        for index, how in (ways | dict.fromkeys(drawn, Continuation.AUDITED)).items():
            certain = how is not Continuation.AUDITED
            trials[index] = replace(
                read(index, 1),
                rung=1,
                state=TrialState.COMPLETED,
                continuation=how,
                inclusion_probability=1.0 if certain else len(drawn) / len(rest),
            )
    return Noisy(study=study, trials=tuple(trials), truths=tuple(_early(truths) if promotion is None else truths))


def _early(truths: Sequence[float]) -> list[float]:
    return [max(0.01, truth - EARLY) for truth in truths]


def a_study_of_few_sites(chance: np.random.Generator, truths: Sequence[float], sites: int, *, own: float) -> Noisy:
    """Return a study that was read once, whose arms are better on some sites than on others, each on its own.

    Args:
        chance: where chance comes from.
        truths: how good each arm is.
        sites: of the validation set, of ten questions each.
        own: how much of the ease of a question is that of its site for one arm.
    """
    study, asked = a_study(num_trials=len(truths)), 10
    site, question = chance.standard_normal((len(truths), sites, 1)), chance.standard_normal((1, sites, asked))
    rest = chance.standard_normal((len(truths), sites, asked))
    ease = math.sqrt(own) * site + math.sqrt((1 - own) / 2) * (question + rest)
    bars = np.array([NormalDist().inv_cdf(1 - truth) for truth in truths])
    right = (ease > bars[:, None, None]).sum(axis=2)

    def read(index: int) -> Trial:
        estimate = estimate_share(right[index][:, None].astype(float), np.full((sites, 1), float(asked)))
        measured = a_measurement(
            0, estimate.value, standard_error=estimate.standard_error, n=sites * asked, sites=sites
        )
        return a_trial(index, state=TrialState.PAUSED, measurements=(measured,))

    return Noisy(study=study, trials=tuple(map(read, range(len(truths)))), truths=tuple(truths))
