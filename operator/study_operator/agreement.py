"""How well first-rung readings foretold the final ones: concordance, missed winners, top-k kept.

Estimates for the whole study from the trials that ran to their end. Promoted trials and the baseline ran for certain,
audited ones with the probability that the ledger keeps, so each pair of trials weighs 1 / (probability that both were
measured): Horvitz and Thompson (1952), "A generalization of sampling without replacement from a finite universe".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from study_operator.study import Study
from study_operator.trial import Continuation, Origin, Trial

LEAST_AUDITED = 3
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class MissedWinners:
    """Stopped trials that would have ended better than the worst promoted one."""

    estimate: float
    low: int
    high: int
    population: int
    """Trials among which the audited were drawn."""
    audited: int
    found: int


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Early against final readings; each part is None where it cannot be estimated."""

    audited: int
    """Audited trials that have both readings."""
    full_length: int
    """Trials that have both readings."""
    concordance: float | None = None
    """Share of pairs that both readings order alike; a tie counts one half."""
    pairs: int = 0
    missed_winners: MissedWinners | None = None
    top_k_kept: float | None = None
    k: int = 0


def measure_agreement(study: Study, trials: Sequence[Trial]) -> Agreement:
    """Compare the readings of both rungs. A trial that diverged late has a final reading, the worst."""
    both = [t for t in trials if t.measurement(0) and t.measurement(1)]
    audited = [t for t in both if t.continuation is Continuation.AUDITED]
    known = Agreement(audited=len(audited), full_length=len(both))
    k = study.promotion.num_promoted
    kept = _top_k_kept(study, trials, k)
    if len(audited) < LEAST_AUDITED:
        return replace(known, top_k_kept=kept, k=k)
    population = _population(trials)
    concordance, pairs = _concordance(study, both, population, sum(_is_audited(t) for t in trials))
    return replace(
        known,
        concordance=concordance,
        pairs=pairs,
        missed_winners=_missed_winners(study, both, audited, population),
        top_k_kept=kept,
        k=k,
    )


def describe_agreement(agreement: Agreement) -> list[str]:
    """Return what is known, as sentences."""
    sentences = []
    if agreement.concordance is None:
        sentences.append(
            f"Agreement of early and final readings: not estimable, n = {agreement.audited} audited "
            f"(at least {LEAST_AUDITED} are needed)."
        )
    else:
        sentences.append(
            f"Early and final readings order {agreement.concordance:.0%} of the pairs of trials alike "
            f"({agreement.pairs} pairs of {agreement.full_length} full-length trials, "
            "weighted by 1 / inclusion probability)."
        )
    if (missed := agreement.missed_winners) is not None:
        sentences.append(
            f"Estimated missed winners: {missed.estimate:.1f} (95 % interval {missed.low} to {missed.high}) of "
            f"{missed.population} trials that were not promoted; {missed.found} of {missed.audited} audited ones beat "
            "the worst promoted trial."
        )
    if agreement.top_k_kept is not None:
        sentences.append(
            f"Of the early top {agreement.k}, {agreement.top_k_kept:.0%} are in the final top {agreement.k}."
        )
    sentences.append("Both readings are of the same validation pages, so their page noise is shared.")
    return sentences


def hypergeometric_interval(population: int, drawn: int, found: int) -> tuple[int, int]:
    """Return the exact interval for how many of a population are winners, after ``found`` of ``drawn`` were.

    All counts that neither tail refuses at (1 - confidence) / 2, as Clopper and Pearson (1934) do for proportions.
    """
    tail = (1 - CONFIDENCE) / 2
    kept = []
    for winners in range(found, population - (drawn - found) + 1):
        chances = [_chance(population, winners, drawn, x) for x in range(drawn + 1)]
        if sum(chances[found:]) > tail and sum(chances[: found + 1]) > tail:
            kept.append(winners)
    return min(kept), max(kept)


def _chance(population: int, winners: int, drawn: int, found: int) -> float:
    ways = math.comb(winners, found) * math.comb(population - winners, drawn - found)
    return ways / math.comb(population, drawn)


def _is_audited(trial: Trial) -> bool:
    return trial.continuation is Continuation.AUDITED


def _population(trials: Sequence[Trial]) -> int:
    """Return among how many trials the audited were drawn: their number over their probability."""
    drawn = [t for t in trials if _is_audited(t)]
    return round(len(drawn) / (drawn[0].inclusion_probability or 1.0))


def _concordance(study: Study, both: Sequence[Trial], population: int, drawn: int) -> tuple[float | None, int]:
    joint = drawn * (drawn - 1) / (population * (population - 1)) if population > 1 else 1.0
    agreeing = total = 0.0
    pairs = 0
    for one, other in itertools.combinations(both, 2):
        single = (one.inclusion_probability or 1.0) * (other.inclusion_probability or 1.0)
        # Two drawn from one urn are not independent: the probability of both is that of drawing both.
        weight = 1 / (joint if _is_audited(one) and _is_audited(other) else single)
        early, final = (_sign(_merit(study, one, r) - _merit(study, other, r)) for r in (0, 1))
        agreeing += weight * (0.5 if not early or not final else float(early == final))
        total += weight
        pairs += 1
    return (agreeing / total if total else None), pairs


def _missed_winners(
    study: Study, both: Sequence[Trial], audited: Sequence[Trial], population: int
) -> MissedWinners | None:
    promoted = [_merit(study, t, 1) for t in both if t.continuation is Continuation.PROMOTED]
    if not promoted:
        return None
    found = sum(_merit(study, t, 1) > min(promoted) for t in audited)
    low, high = hypergeometric_interval(population, len(audited), found)
    return MissedWinners(
        estimate=population / len(audited) * found,
        low=low,
        high=high,
        population=population,
        audited=len(audited),
        found=found,
    )


def _top_k_kept(study: Study, trials: Sequence[Trial], k: int) -> float | None:
    """Return the share of the early top k in the final top k, where every measured trial ran to its end."""
    measured = [t for t in trials if t.measurement(0) and t.origin is not Origin.BASELINE]
    if len(measured) <= k or not all(t.measurement(1) for t in measured):
        return None
    early, final = (
        {t.index for t in sorted(measured, key=lambda t, rung=rung: (-_merit(study, t, rung), t.index))[:k]}  # type: ignore[misc]
        for rung in (0, 1)
    )
    return len(early & final) / k


def _merit(study: Study, trial: Trial, rung: int) -> float:
    measurement = trial.measurement(rung)
    if measurement is None:
        raise ValueError(f"trial {trial.name} must be measured at rung {rung}")
    return study.objective.merit(measurement.value)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
