"""How well early measurements foretold the final ones: concordance, missed winners, top-k kept.

Estimates for the whole study from the trials that ran to their end. Promoted trials and the baseline ran for certain,
audited ones with the probability that the ledger keeps, so each pair of trials weighs 1 / (probability that both were
measured): Horvitz and Thompson (1952), "A generalization of sampling without replacement from a finite universe".
Those that were not promoted from one early rung are one stratum, of which some were drawn; draws of two strata are
independent.

A trial that diverged beats nobody and is beaten by nobody: it is counted where that is what is asked (an audited one is
no winner), and left out of the pairs.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from study_operator.ledger.merit import find_merit, name_metric
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
    """Trials among which the audited were drawn, on all early rungs."""
    audited: int
    found: int


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Trials with a first measurement, or none, that say nothing of agreement."""

    diverged: int = 0
    """On any rung."""
    failed: int = 0
    """On any rung, abandoned ones among them."""
    under_way: int = 0
    """To full length."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Early against final measurements; each part is None where it cannot be estimated."""

    percent: int
    """Where the early measurement was made."""
    is_only: bool = True
    """Whether the study has no other early rung."""
    ranked_by: str = ""
    """The metric of the early measurements, where it is not the objective's."""
    audited: int
    """Audited trials that have both measurements, or diverged before."""
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


def measure_agreement(study: Study, trials: Sequence[Trial], rung: int = 0) -> Agreement:
    """Compare the measurements of an early rung with the final ones."""
    ended = [t for t in trials if t.measurement(study.last_rung) or (t.stratum is not None and t.has_diverged)]
    sound = [t for t in ended if not t.has_diverged]
    audited = [t for t in ended if t.stratum is not None]
    strata = _find_strata(trials, sound)
    k = study.promotion.num_promoted
    known = Agreement(
        percent=study.early_evaluation.rungs[rung],
        is_only=study.last_rung == 1,
        ranked_by=metric if (metric := name_metric(study, rung)) != study.objective.metric else "",
        audited=len(audited),
        full_length=len(sound),
        promoted=sum(t.continuation is Continuation.PROMOTED for t in sound),
        has_baseline=any(t.continuation is Continuation.BASELINE for t in sound),
        left_out=_count_left_out(trials),
        top_k_kept=_top_k_kept(study, trials, rung, k),
        k=k,
    )
    if len(audited) < LEAST_AUDITED:
        return known
    known = replace(known, missed_winners=_missed_winners(study, sound, audited, strata))
    paired = sum(s.paired for s in strata.values())
    if paired < LEAST_AUDITED or any(s.paired < min(LEAST_AUDITED, s.population) for s in strata.values()):
        return known
    concordance, pairs = _concordance(study, sound, rung, strata)
    # No more is known than of the stratum of which least is.
    known_by = min((s.paired for s in strata.values() if s.paired < s.population), default=paired)
    low, high = concordance_interval(concordance, known_by)
    return replace(known, concordance=concordance, concordance_low=low, concordance_high=high, pairs=pairs)


def describe_agreements(agreements: Sequence[Agreement]) -> list[str]:
    """Return what is known of each early rung, as sentences."""
    sentences = [_describe_concordance(agreement) for agreement in agreements]
    # How many were missed does not depend on the rung.
    missed = agreements[-1].missed_winners
    if missed is not None:
        sentences.append(
            f"Estimated missed winners: {missed.estimate:.1f} (95 % interval {missed.low} to {missed.high}) of the "
            f"{missed.population} trials that were not promoted: {missed.found} of {missed.audited} audited ones ended "
            f"better than {missed.winner}, the best of the promoted trials and the baseline."
        )
    kept = [(a, a.top_k_kept) for a in agreements if a.top_k_kept is not None]
    for agreement, share in kept:
        early = "early top" if agreement.is_only else f"top at {agreement.percent} %:"
        sentences.append(f"Of the {early} {agreement.k}, {share:.0%} are in the final top {agreement.k}.")
    if kept or missed is not None or any(a.concordance is not None for a in agreements):
        sentences.append("Both measurements are of the same validation pages, so their page noise is shared.")
    return sentences


def _describe_concordance(agreement: Agreement) -> str:
    audited = agreement.full_length - agreement.promoted - agreement.has_baseline
    left_out = _describe_left_out(agreement.left_out)
    early = "early" if agreement.is_only else f"{agreement.percent} %"
    early += f" {agreement.ranked_by}" if agreement.ranked_by else ""
    if agreement.concordance is None:
        return (
            f"Agreement of {early} and final measurements: not estimable, n = {audited} audited "
            f"(at least {LEAST_AUDITED} are needed{'' if agreement.is_only else ' of each early rung'}).{left_out}"
        )
    baseline = ", the baseline" if agreement.has_baseline else ""
    interval = f"{agreement.concordance_low:.0%} to {agreement.concordance_high:.0%}"
    return (
        f"{early[0].upper()}{early[1:]} and final measurements order {agreement.concordance:.0%} of the pairs of "
        f"trials alike (95 % interval {interval}; {agreement.pairs} pairs of {agreement.full_length} full-length "
        f"trials: {agreement.promoted} promoted, {audited} audited{baseline}; the audited ones weigh for those that "
        f"were not drawn).{left_out}"
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


def hypergeometric_interval(population: int, drawn: int, found: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """Return the exact interval for how many of a population are winners, after ``found`` of ``drawn`` were.

    All counts that neither tail refuses at (1 - confidence) / 2, as Clopper and Pearson (1934) do for proportions.
    """
    counts = range(found, population - (drawn - found) + 1)
    tail = (1 - confidence) / 2

    def is_likely(winners: int, least: int, most: int) -> bool:
        """Say whether it is likely enough to find from ``least`` to ``most`` winners among those drawn."""
        losers = population - winners
        possible = range(max(least, drawn - losers), min(most, winners) + 1)
        ways = sum(math.comb(winners, x) * math.comb(losers, drawn - x) for x in possible)
        return ways / math.comb(population, drawn) > tail

    # More winners make few found less probable, and many found more.
    first = bisect.bisect_left(counts, 1, key=lambda winners: is_likely(winners, found, drawn))
    end = bisect.bisect_left(counts, 1, key=lambda winners: not is_likely(winners, 0, found))
    return counts[first], counts[end - 1]


@dataclass(frozen=True)
class _Stratum:
    """Those that were not promoted from one early rung."""

    population: int
    """Among so many was drawn: the number drawn over its probability."""
    drawn: int
    paired: int
    """Drawn ones with both measurements, which did not diverge."""


def _find_strata(trials: Sequence[Trial], sound: Sequence[Trial]) -> dict[int, _Stratum]:
    """Return the strata by rung, of those from which anybody was drawn."""
    drawn = [(t.stratum, t.inclusion_probability or 1.0) for t in trials if t.stratum is not None]
    counts = Counter(stratum for stratum, _ in drawn)
    paired = Counter(t.stratum for t in sound)
    return {
        stratum: _Stratum(round(counts[stratum] / probability), counts[stratum], paired[stratum])
        for stratum, probability in drawn
    }


def _count_left_out(trials: Sequence[Trial]) -> LeftOut:
    return LeftOut(
        diverged=sum(t.has_diverged for t in trials),
        failed=sum(t.state in GIVEN_UP for t in trials if not t.has_diverged),
        under_way=sum(t.is_busy for t in trials),
    )


def _concordance(study: Study, sound: Sequence[Trial], rung: int, strata: Mapping[int, _Stratum]) -> tuple[float, int]:
    kinds = [None, *strata]
    weights = {(one, other): 1 / _find_probability(strata, one, other) for one in kinds for other in kinds}
    measurements = sorted(
        ((_merit(study, t, rung), _merit(study, t, study.last_rung), t.stratum) for t in sound),
        key=lambda measurement: measurement[:2],
    )
    agreeing = total = 0.0
    worse_before: dict[int | None, list[float]] = {kind: [] for kind in kinds}
    for _, tied in itertools.groupby(measurements, key=lambda measurement: measurement[0]):
        alike = list(tied)
        # Hundreds of trials are tens of thousands of pairs: those with all that began worse are counted at once.
        for _, final, kind in alike:
            for other, finals in worse_before.items():
                weight = weights[kind, other]
                agreeing += weight * (bisect.bisect_left(finals, final) + bisect.bisect_right(finals, final)) / 2
                total += weight * len(finals)
        for (_, _, one), (_, _, other) in itertools.combinations(alike, 2):
            agreeing += weights[one, other] / 2
            total += weights[one, other]
        for _, final, kind in alike:
            bisect.insort(worse_before[kind], final)
    return agreeing / total, math.comb(len(sound), 2)


def _find_probability(strata: Mapping[int, _Stratum], one: int | None, other: int | None) -> float:
    """Return the probability with which two trials of these strata both ran to their end; None runs for certain."""
    single = [strata[kind].drawn / strata[kind].population if kind is not None else 1.0 for kind in (one, other)]
    if one is None or one != other or strata[one].population == 1:
        return single[0] * single[1]
    # Two drawn from one urn are not independent: the probability of both is that of drawing both. One alone is no pair.
    stratum = strata[one]
    return single[0] * (max(2, stratum.drawn) - 1) / (stratum.population - 1)


def _missed_winners(
    study: Study, sound: Sequence[Trial], audited: Sequence[Trial], strata: Mapping[int, _Stratum]
) -> MissedWinners | None:
    """Estimate how many of those that were not chosen would have beaten the best of those that were."""
    winner = choose_winner(study, (t for t in sound if t.stratum is None))
    by_stratum = {rung: [t for t in audited if t.stratum == rung] for rung in strata}
    if winner is None or not all(by_stratum.values()):
        return None
    estimate, low, high = 0.0, 0, 0
    for rung, stratum in strata.items():
        seen = by_stratum[rung]
        found = sum(_beats(study, t, winner) for t in seen)
        estimate += stratum.population / len(seen) * found
        # The sum of the bounds is a bound of the sum where all hold at once (Bonferroni).
        confidence = 1 - (1 - CONFIDENCE) / len(strata)
        bounds = hypergeometric_interval(stratum.population, len(seen), found, confidence)
        low, high = low + bounds[0], high + bounds[1]
    return MissedWinners(
        winner=winner.name,
        estimate=estimate,
        low=low,
        high=high,
        population=sum(s.population for s in strata.values()),
        audited=len(audited),
        found=sum(_beats(study, t, winner) for t in audited),
    )


def _beats(study: Study, trial: Trial, winner: Trial) -> bool:
    """Say whether a trial would have been chosen before another: the rule of `ranking.choose_winner`."""
    if trial.has_diverged:
        return False
    last = study.last_rung
    keeps, winner_keeps = (satisfies_constraints(study, t.measurement(last)) for t in (trial, winner))
    return keeps if keeps != winner_keeps else _merit(study, trial, last) > _merit(study, winner, last)


def _top_k_kept(study: Study, trials: Sequence[Trial], rung: int, k: int) -> float | None:
    """Return the share of the early top k in the final top k, where every trial that could ran to its end."""
    able = [t for t in trials if (m := t.measurement(0)) and not m.diverged and t.origin is not Origin.BASELINE]
    if len(able) <= k or not all(t.measurement(study.last_rung) for t in able):
        return None
    early, final = ({t.index for t in rank(study, able, at)[:k]} for at in (rung, study.last_rung))
    return len(early & final) / k


def _merit(study: Study, trial: Trial, rung: int) -> float:
    measurement = trial.measurement(rung)
    if measurement is None:
        raise ValueError(f"trial {trial.name} must be measured at rung {rung}")
    return find_merit(study, measurement)
