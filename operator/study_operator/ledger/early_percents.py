"""Is an earlier percent enough? What promoting by the measurements at each percent would have been worth.

The rungs' measurements are in the ledger; those at `earlyEvaluation.extraPercents` are in the bucket, and are handed
in. Each percent is looked at as if the study had had its only early rung there (`agreement.py`): with the same trials
at full length, which were drawn as they were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from study_operator.ledger.agreement import (
    LEAST_CONCORDANCE,
    Agreement,
    describe_lack,
    describe_reliability,
    measure_agreement,
)
from study_operator.ledger.trial import Measurement, Trial
from study_operator.spec.study import EarlyEvaluation, Study, step_at


@dataclass(frozen=True, kw_only=True)
class EarlyPercent:
    """What the measurements at one percent of the full length foretold."""

    agreement: Agreement
    is_rung: bool
    """Whether trials were promoted by it. Else it was measured on the way."""
    full_runs: float
    """What the training of this study costs with its only early rung here, in runs of full length."""


@dataclass(frozen=True, kw_only=True)
class EarlyPercents:
    """All percents at which trials were measured before their end."""

    percents: tuple[EarlyPercent, ...]
    """Ascending."""
    trials: int
    """Measured ones."""
    enough: int | None
    """The smallest percent that is reliable itself and after which all are; None where these trials do not tell."""


def list_extra_places(study: Study, trial: Trial) -> Iterator[tuple[int, int, int]]:
    """Yield percent, rung and step of each measurement on the way of a trial, those apart that a rung ends with."""
    for percent in study.early_evaluation.extra_percents:
        step = step_at(trial.total_steps, percent)
        ends = [study.stop_step(trial.total_steps, rung) for rung in range(study.last_rung + 1)]
        if step not in ends:
            yield percent, next(rung for rung, end in enumerate(ends) if step < end), step


def compare_percents(
    study: Study, trials: Sequence[Trial], extra: Mapping[int, Mapping[int, Measurement]]
) -> EarlyPercents:
    """Compare what was measured at each percent with what was measured at full length.

    Args:
        study: the study.
        trials: all of them, those that the promotion stopped too.
        extra: by percent and index of the trial, what was measured on the way; of trials at full length at least.
    """
    rungs = study.early_evaluation.rungs
    found = [
        EarlyPercent(
            agreement=measure_agreement(study, trials, rungs.index(percent))
            if percent in rungs
            else _measure_on_the_way(study, trials, percent, extra.get(percent, {})),
            is_rung=percent in rungs,
            full_runs=_count_full_runs(study, trials, percent),
        )
        for percent in sorted({*rungs, *study.early_evaluation.extra_percents})
    ]
    return EarlyPercents(
        percents=tuple(found),
        trials=sum(bool(t.measurements) for t in trials),
        enough=_find_enough([one.agreement for one in found]),
    )


def describe_enough(compared: EarlyPercents) -> str:
    """Return one sentence on which percent is enough, or that these trials do not tell."""
    agreements = {one.agreement.percent: one.agreement for one in compared.percents}
    if compared.enough is not None:
        after = "" if compared.enough == max(agreements) else ", and so is every later one"
        return f"{compared.enough} % is enough{after}: {describe_reliability(agreements[compared.enough])}."
    too_early = [a for a in agreements.values() if a.is_reliable is False]
    if too_early:
        others = "" if len(too_early) == len(agreements) else " Of the other percents these trials do not tell."
        return f"{too_early[-1].percent} % is too early: {describe_reliability(too_early[-1])}.{others}"
    if all(a.concordance is None for a in agreements.values()):
        lack = describe_lack(compared.percents[-1].agreement)
        return f"These trials do not tell which percent is enough: agreement is not estimable, {lack}."
    return (
        "These trials do not tell which percent is enough: the 90 % intervals of the concordance reach to both sides "
        f"of {LEAST_CONCORDANCE:.0%}. More audited trials make them narrower."
    )


def _find_enough(agreements: Sequence[Agreement]) -> int | None:
    """Return the smallest percent after which all are reliable.

    From the last one downwards, up to the first that is not seen to be: a claim on one percent is made only where those
    on all later ones are, so that looking at many makes none of them more likely by chance (fixed sequence).
    """
    enough = None
    for agreement in reversed(agreements):
        if agreement.is_reliable is not True:
            break
        enough = agreement.percent
    return enough


def _measure_on_the_way(
    study: Study, trials: Sequence[Trial], percent: int, measured: Mapping[int, Measurement]
) -> Agreement:
    """Return the agreement of a study whose only early rung is at this percent."""
    rungs = EarlyEvaluation(rungs=(percent,))
    early = {t.index: m for t in trials if (m := measured.get(t.index) or _find_at(t, percent)) is not None}
    seen = [_with_only_early(study, trial, early.get(trial.index)) for trial in trials]
    agreement = measure_agreement(replace(study, early_evaluation=rungs), seen)
    agreement = replace(agreement, is_only=study.last_rung == 1)
    if all(t.index in early or t.has_diverged for t in trials if t.measurements):
        return agreement
    # Who would have been among the best here is not known of those that were stopped.
    return replace(agreement, top_kept=None, regret=None, is_complete=False)


def _find_at(trial: Trial, percent: int) -> Measurement | None:
    """Return what was measured there because a rung ends at the same step."""
    step = step_at(trial.total_steps, percent)
    return next((m for m in trial.measurements if m.step == step and not m.diverged), None)


def _with_only_early(study: Study, trial: Trial, early: Measurement | None) -> Trial:
    """Return the trial as if it had been measured there and at its end alone; of one that was not, without an end."""
    last = trial.measurement(study.last_rung) if early is not None else None
    kept = (early or trial.measurement(0), next((m for m in trial.measurements[1:] if m.diverged), last))
    return replace(trial, measurements=tuple(replace(m, rung=i) for i, m in enumerate(kept) if m is not None))


def _count_full_runs(study: Study, trials: Sequence[Trial], percent: int) -> float:
    """Return the training of all trials up to a percent, and from there of those that went to full length."""
    measured = sum(bool(t.measurements) for t in trials)
    continued = sum(t.rung == study.last_rung for t in trials)
    return (measured * percent + continued * (100 - percent)) / 100
