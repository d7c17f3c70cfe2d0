"""How well first-rung measurements foretold the final ones: concordance, missed winners, top-k kept.

Estimates for the whole study from the trials that ran to their end. Promoted trials and the baseline ran for certain,
audited ones with the probability that the ledger keeps, so each pair of trials weighs 1 / (probability that both were
measured): Horvitz and Thompson (1952), "A generalization of sampling without replacement from a finite universe".

A trial that diverged beats nobody and is beaten by nobody: it is counted where that is what is asked (an audited one is
no winner), and left out of the pairs.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from study_operator.ledger.ranking import choose_winner, rank, satisfies_constraints
from study_operator.ledger.trial import GIVEN_UP, Continuation, Origin, Trial
from study_operator.spec.study import Study

LEAST_AUDITED = 3
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class MissedWinners:
    """Stopped trials that would have ended better than the best of those that were chosen to continue."""

    winner: str
    """Name of the best of the promoted trials and the baseline: the winner, had nothing been audited."""
    estimate: float
    low: int
    high: int
    population: int
    """Trials among which the audited were drawn."""
    audited: int
    found: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Trials with a first measurement, or none, that say nothing of agreement."""

    diverged: int = 0
    """On either rung."""
    failed: int = 0
    """On either rung, abandoned ones among them."""
    under_way: int = 0
    """To full length."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Early against final measurements; each part is None where it cannot be estimated."""

    audited: int
    """Audited trials that have both measurements, diverged ones among them."""
    full_length: int
    """Trials that have both measurements and did not diverge: those that pairs are made of."""
    promoted: int = 0
    has_baseline: bool = False
    """Whether the baseline is one of them."""
    left_out: LeftOut = LeftOut()
    concordance: float | None = None
    """Share of pairs that both measurements order alike; a tie counts one half."""
    concordance_low: float = 0.0
    concordance_high: float = 1.0
    """Its 95 % interval."""
    pairs: int = 0
    missed_winners: MissedWinners | None = None
    top_k_kept: float | None = None
    k: int = 0


def measure_agreement(study: Study, trials: Sequence[Trial]) -> Agreement:
    """Compare the measurements of both rungs."""
    both = [t for t in trials if t.measurement(0) and t.measurement(1)]
    sound = [t for t in both if not t.has_diverged]
    audited, paired = [t for t in both if _is_audited(t)], sum(_is_audited(t) for t in sound)
    k = study.promotion.num_promoted
    known = Agreement(
        audited=len(audited),
        full_length=len(sound),
        promoted=sum(t.continuation is Continuation.PROMOTED for t in sound),
        has_baseline=any(t.continuation is Continuation.BASELINE for t in sound),
        left_out=_count_left_out(trials),
        top_k_kept=_top_k_kept(study, trials, k),
        k=k,
    )
    if len(audited) < LEAST_AUDITED:
        return known
    population = _population(trials)
    known = replace(known, missed_winners=_missed_winners(study, sound, audited, population))
    if paired < LEAST_AUDITED:
        return known
    concordance, pairs = _concordance(study, sound, population, sum(_is_audited(t) for t in trials))
    low, high = concordance_interval(concordance, paired)
    return replace(known, concordance=concordance, concordance_low=low, concordance_high=high, pairs=pairs)


def describe_agreement(agreement: Agreement) -> list[str]:
    """Return what is known, as sentences."""
    sentences = [_describe_concordance(agreement)]
    if (missed := agreement.missed_winners) is not None:
        sentences.append(
            f"Estimated missed winners: {missed.estimate:.1f} (95 % interval {missed.low} to {missed.high}) of the "
            f"{missed.population} trials that were not promoted: {missed.found} of {missed.audited} audited ones ended "
            f"better than {missed.winner}, the best of the promoted trials and the baseline."
        )
    if agreement.top_k_kept is not None:
        sentences.append(
            f"Of the early top {agreement.k}, {agreement.top_k_kept:.0%} are in the final top {agreement.k}."
        )
    if agreement.concordance is not None or missed is not None or agreement.top_k_kept is not None:
        sentences.append("Both measurements are of the same validation pages, so their page noise is shared.")
    return sentences


def _describe_concordance(agreement: Agreement) -> str:
    audited = agreement.full_length - agreement.promoted - agreement.has_baseline
    left_out = _describe_left_out(agreement.left_out)
    if agreement.concordance is None:
        return (
            f"Agreement of early and final measurements: not estimable, n = {audited} audited "
            f"(at least {LEAST_AUDITED} are needed).{left_out}"
        )
    baseline = ", the baseline" if agreement.has_baseline else ""
    return (
        f"Early and final measurements order {agreement.concordance:.0%} of the pairs of trials alike (95 % interval "
        f"{agreement.concordance_low:.0%} to {agreement.concordance_high:.0%}; {agreement.pairs} pairs of "
        f"{agreement.full_length} full-length trials: {agreement.promoted} promoted, {audited} audited{baseline}; the "
        f"audited ones weigh for those that were not drawn).{left_out}"
    )


def _describe_left_out(left_out: LeftOut) -> str:
    counts = {"diverged": left_out.diverged, "failed": left_out.failed, "still running": left_out.under_way}
    reported = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f" Left out of the pairs: {reported}." if reported else ""


def concordance_interval(concordance: float, audited: int) -> tuple[float, float]:
    """Return a conservative interval of the concordance for arms like these.

    That of Clopper and Pearson (1934) for three independent comparisons by every two audited trials: pairs that share
    a trial tell less than their number, and the many that were stopped are known by the audited alone. With so many it
    covers in at least 96 of 100 simulated studies, whatever the measurements are like (`benchmarks/selection.py`).
    """
    n = audited + audited // 2
    x = concordance * n
    return _lowest_share(math.floor(x + 1e-9), n), 1 - _lowest_share(n - math.ceil(x - 1e-9), n)


def _lowest_share(found: int, n: int) -> float:
    """Return the smallest probability under which as many as ``found`` of ``n`` are not too improbable."""
    if found == 0:
        return 0.0
    tail, low, high = (1 - CONFIDENCE) / 2, 0.0, 1.0
    ways = [(x, math.comb(n, x)) for x in range(found, n + 1)]
    for _ in range(40):
        middle = (low + high) / 2
        upper = sum(way * middle**x * (1 - middle) ** (n - x) for x, way in ways)
        low, high = (middle, high) if upper < tail else (low, middle)
    return low


def hypergeometric_interval(population: int, drawn: int, found: int) -> tuple[int, int]:
    """Return the exact interval for how many of a population are winners, after ``found`` of ``drawn`` were.

    All counts that neither tail refuses at (1 - confidence) / 2, as Clopper and Pearson (1934) do for proportions.
    """
    counts = range(found, population - (drawn - found) + 1)
    # More winners make few found less probable, and many found more.
    first = bisect.bisect_left(counts, 1, key=lambda winners: _is_likely(population, winners, drawn, found, drawn))
    end = bisect.bisect_left(counts, 1, key=lambda winners: not _is_likely(population, winners, drawn, 0, found))
    return counts[first], counts[end - 1]


def _is_likely(population: int, winners: int, drawn: int, least: int, most: int) -> bool:
    """Say whether it is likely enough to find from ``least`` to ``most`` winners among those drawn."""
    losers = population - winners
    possible = range(max(least, drawn - losers), min(most, winners) + 1)
    ways = sum(math.comb(winners, x) * math.comb(losers, drawn - x) for x in possible)
    return ways / math.comb(population, drawn) > (1 - CONFIDENCE) / 2


def _is_audited(trial: Trial) -> bool:
    return trial.continuation is Continuation.AUDITED


def _count_left_out(trials: Sequence[Trial]) -> LeftOut:
    return LeftOut(
        diverged=sum(t.has_diverged for t in trials),
        failed=sum(t.state in GIVEN_UP for t in trials if not t.has_diverged),
        under_way=sum(t.is_busy for t in trials),
    )


def _population(trials: Sequence[Trial]) -> int:
    """Return among how many trials the audited were drawn: their number over their probability."""
    drawn = [t for t in trials if _is_audited(t)]
    return round(len(drawn) / (drawn[0].inclusion_probability or 1.0))


def _concordance(study: Study, sound: Sequence[Trial], population: int, drawn: int) -> tuple[float, int]:
    single = drawn / population
    # Two drawn from one urn are not independent: the probability of both is that of drawing both.
    joint = single * (drawn - 1) / (population - 1) if population > 1 else 1.0
    weights = [[1.0, 1 / single], [1 / single, 1 / joint]]
    measurements = sorted((_merit(study, t, 0), _merit(study, t, 1), _is_audited(t)) for t in sound)
    agreeing = total = 0.0
    worse_before: tuple[list[float], list[float]] = [], []
    for _, tied in itertools.groupby(measurements, key=lambda measurement: measurement[0]):
        alike = list(tied)
        # Hundreds of trials are tens of thousands of pairs: those with all that began worse are counted at once.
        for _, final, is_audited in alike:
            for finals, weight in zip(worse_before, weights[is_audited], strict=True):
                agreeing += weight * (bisect.bisect_left(finals, final) + bisect.bisect_right(finals, final)) / 2
                total += weight * len(finals)
        for (_, _, one), (_, _, other) in itertools.combinations(alike, 2):
            agreeing += weights[one][other] / 2
            total += weights[one][other]
        for _, final, is_audited in alike:
            bisect.insort(worse_before[is_audited], final)
    return agreeing / total, math.comb(len(sound), 2)


def _missed_winners(
    study: Study, sound: Sequence[Trial], audited: Sequence[Trial], population: int
) -> MissedWinners | None:
    """Estimate how many of those that were not chosen would have beaten the best of those that were."""
    winner = choose_winner(study, (t for t in sound if not _is_audited(t)))
    if winner is None:
        return None
    found = sum(_beats(study, t, winner) for t in audited)
    low, high = hypergeometric_interval(population, len(audited), found)
    return MissedWinners(
        winner=winner.name,
        estimate=population / len(audited) * found,
        low=low,
        high=high,
        population=population,
        audited=len(audited),
        found=found,
    )


def _beats(study: Study, trial: Trial, winner: Trial) -> bool:
    """Say whether a trial would have been chosen before another: the rule of `ranking.choose_winner`."""
    if trial.has_diverged:
        return False
    keeps, winner_keeps = (satisfies_constraints(study, t.measurement(1)) for t in (trial, winner))
    return keeps if keeps != winner_keeps else _merit(study, trial, 1) > _merit(study, winner, 1)


def _top_k_kept(study: Study, trials: Sequence[Trial], k: int) -> float | None:
    """Return the share of the early top k in the final top k, where every trial that could ran to its end."""
    able = [t for t in trials if (m := t.measurement(0)) and not m.diverged and t.origin is not Origin.BASELINE]
    if len(able) <= k or not all(t.measurement(1) for t in able):
        return None
    early, final = ({t.index for t in rank(study, able, rung)[:k]} for rung in (0, 1))
    return len(early & final) / k


def _merit(study: Study, trial: Trial, rung: int) -> float:
    measurement = trial.measurement(rung)
    if measurement is None:
        raise ValueError(f"trial {trial.name} must be measured at rung {rung}")
    return study.objective.merit(measurement.value)
