"""How well early measurements foretold the final ones: concordance, rank correlations, missed winners, top-k kept.

Estimates for the whole study from the trials that ran to their end. Promoted trials and the baseline ran for certain,
audited ones with the probability that the ledger keeps, so each pair of trials weighs 1 / (probability that both were
measured): Horvitz and Thompson (1952), "A generalization of sampling without replacement from a finite universe".
Those that were not promoted from one early rung are one stratum, of which some were drawn; draws of two strata are
independent.

A trial that diverged beats nobody and is beaten by nobody: it is counted where that is what is asked (an audited one is
no winner), and left out of the pairs.

Kendall's rank correlation is the concordance on another scale. Of Spearman's, what Kendall's interval allows is its
interval: Durbin and Stuart (1951), "Inversions and rank correlation coefficients", Journal of the Royal Statistical
Society B 13(2).
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from study_operator.ledger.merit import find_merit, find_place, list_ranking_metrics
from study_operator.ledger.ranking import choose_winner, satisfies_constraints
from study_operator.ledger.trial import GIVEN_UP, Continuation, Origin, Trial, TrialState
from study_operator.spec.study import Study

LEAST_AUDITED = 3
CONFIDENCE = 0.95
RELIABLE_CONFIDENCE = 0.90
"""Of what is asked in two halves: whether it is enough, and whether it is not."""
LEAST_CONCORDANCE = 0.7
"""Of pairs: where early measurements order so many as the final ones do, they are called reliable."""

Bounds = tuple[float, float]
Place = tuple[bool, float, float]
"""`merit.find_place`: the best first."""


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
class TopKept:
    """How many of the k best at the early measurement are among the k best of all trials at full length."""

    k: int
    low: int
    high: int
    """The 90 % interval; both are the same where every trial ran to its end."""


@dataclass(frozen=True, kw_only=True)
class Regret:
    """By how much the best of all was better, at full length, than the best of those that were best early."""

    value: float
    """In the unit of the metric that measures them at full length; never negative."""
    is_exact: bool
    """Whether every trial ran to its end. Else one that was stopped may have been better still."""


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
    """The metrics that early measurements are ranked by, where it is not the objective alone."""
    audited: int
    """Audited trials that have both measurements, or diverged before."""
    full_length: int
    """Trials that have both measurements and did not diverge: those that pairs are made of."""
    least_audited: int | None = None
    """Audited ones among these, of the early rung that has too few and the fewest; None where none has too few."""
    promoted: int = 0
    has_baseline: bool = False
    """Whether the baseline is one of them."""
    left_out: LeftOut = LeftOut()
    concordance: float | None = None
    """Share of pairs that both measurements order alike, as trials rank where some go on; equals count one half."""
    concordance_low: float = 0.0
    concordance_high: float = 1.0
    """Its 95 % interval."""
    concordance_90: Bounds = (0.0, 1.0)
    """Its 90 % interval."""
    pairs: int = 0
    spearman: float | None = None
    """Spearman's rank correlation of the two measurements."""
    spearman_90: Bounds = (-1.0, 1.0)
    missed_winners: MissedWinners | None = None
    top_kept: TopKept | None = None
    regret: Regret | None = None
    k: int = 0
    is_complete: bool = False
    """Whether every trial that could ran to its end, or diverged."""

    @property
    def kendall(self) -> float | None:
        """Kendall's rank correlation: pairs ordered alike minus pairs ordered otherwise, as a share of all."""
        return None if self.concordance is None else 2 * self.concordance - 1

    @property
    def kendall_90(self) -> Bounds:
        """Its 90 % interval."""
        low, high = self.concordance_90
        return 2 * low - 1, 2 * high - 1

    @property
    def top_k_kept(self) -> float | None:
        """Share of the early top k in the final top k, where every trial ran to its end."""
        kept = self.top_kept
        return kept.low / kept.k if kept is not None and kept.low == kept.high and self.is_complete else None

    @property
    def is_reliable(self) -> bool | None:
        """Whether early measurements order trials as final ones do; None where these trials do not tell."""
        low, high = self.concordance_90
        if self.concordance is None or low < LEAST_CONCORDANCE <= high:
            return None
        return low >= LEAST_CONCORDANCE


def measure_agreement(study: Study, trials: Sequence[Trial], rung: int = 0) -> Agreement:
    """Compare the measurements of an early rung with the final ones."""
    ended = [t for t in trials if t.measurement(study.last_rung) or (t.stratum is not None and t.has_diverged)]
    sound = [t for t in ended if not t.has_diverged]
    audited = [t for t in ended if t.stratum is not None]
    strata = _find_strata(trials, sound)
    too_few = [s.paired for s in strata.values() if s.paired < min(LEAST_AUDITED, s.population)]
    choice, metrics = _find_choice(study, trials, rung), list_ranking_metrics(study, rung)
    is_complete = all(_is_known(study, t) for t in _list_able(trials))
    is_complete = is_complete and all(s.drawn == s.population for s in strata.values())
    known = Agreement(
        percent=study.early_evaluation.rungs[rung],
        is_only=study.last_rung == 1,
        ranked_by=" with ".join(metrics) if metrics != [study.objective.metric] else "",
        audited=len(audited),
        full_length=len(sound),
        least_audited=min(too_few, default=None),
        promoted=sum(t.continuation is Continuation.PROMOTED for t in sound),
        has_baseline=any(t.continuation is Continuation.BASELINE for t in sound),
        left_out=_count_left_out(trials),
        top_kept=_count_kept(study, trials, choice, strata) if choice else None,
        regret=_find_regret(study, trials, choice, is_exact=is_complete) if choice else None,
        k=study.promotion.num_promoted,
        is_complete=is_complete,
    )
    if len(audited) >= LEAST_AUDITED:
        known = replace(known, missed_winners=_missed_winners(study, sound, audited, strata))
    known_by = _count_known_by(sound, strata, is_complete=is_complete)
    if known_by < LEAST_AUDITED:
        return known
    concordance, pairs = _concordance(study, sound, rung, strata)
    low, high = concordance_interval(concordance, known_by)
    known = replace(known, concordance=concordance, concordance_low=low, concordance_high=high, pairs=pairs)
    known = replace(known, concordance_90=concordance_interval(concordance, known_by, RELIABLE_CONFIDENCE))
    spearman = _find_spearman(study, sound, rung, strata)
    low, high = bound_spearman(*known.kendall_90)
    return replace(known, spearman=spearman, spearman_90=(min(low, spearman), max(high, spearman)))


def _count_known_by(sound: Sequence[Trial], strata: Mapping[int, _Stratum], *, is_complete: bool) -> int:
    """Return of how many drawn trials the pairs are known: no more is known than of the stratum of which least is."""
    if is_complete:
        return len(sound)
    if any(s.paired < min(LEAST_AUDITED, s.population) for s in strata.values()):
        return 0
    paired = sum(s.paired for s in strata.values())
    return min((s.paired for s in strata.values() if s.paired < s.population), default=paired)


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


def is_reliable(agreements: Sequence[Agreement]) -> bool | None:
    """Say whether trials are ranked reliably on every early rung; None where these trials do not tell."""
    found = [agreement.is_reliable for agreement in agreements]
    return False if False in found else None if None in found else True


def describe_reliability(agreement: Agreement) -> str:
    """Return the figures by which an early measurement is called reliable."""
    if agreement.concordance is None:
        return f"at {agreement.percent} % agreement is not estimable: {describe_lack(agreement)}"
    low, high = agreement.concordance_90
    return (
        f"measurements at {agreement.percent} % order {agreement.concordance:.0%} of the pairs of trials as those at "
        f"full length do (90 % interval {low:.0%} to {high:.0%}, {agreement.pairs} pairs of {agreement.full_length} "
        f"trials); reliable is {LEAST_CONCORDANCE:.0%} or more"
    )


def describe_lack(agreement: Agreement) -> str:
    """Return why an agreement is not estimable."""
    if agreement.is_only or agreement.least_audited is None:
        audited = agreement.full_length - agreement.promoted - agreement.has_baseline
        return f"n = {audited} audited (at least {LEAST_AUDITED} are needed)"
    return f"n = {agreement.least_audited} audited from one early rung (at least {LEAST_AUDITED} are needed from each)"


def _describe_concordance(agreement: Agreement) -> str:
    left_out = _describe_left_out(agreement.left_out)
    early = "early" if agreement.is_only else f"{agreement.percent} %"
    early += f" {agreement.ranked_by}" if agreement.ranked_by else ""
    if agreement.concordance is None:
        return f"Agreement of {early} and final measurements: not estimable, {describe_lack(agreement)}.{left_out}"
    audited = agreement.full_length - agreement.promoted - agreement.has_baseline
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


def concordance_interval(concordance: float, audited: int, confidence: float = CONFIDENCE) -> Bounds:
    """Return a conservative interval of the concordance for arms like these.

    That of Clopper and Pearson (1934) for three independent comparisons by every two audited trials: pairs that share
    a trial tell less than their number, and the many that were stopped are known by the audited alone. With so many it
    covers in at least 96 of 100 simulated studies, whatever the measurements are like (`benchmarks/selection.py`).
    """
    n = audited + audited // 2
    x = concordance * n
    tail = (1 - confidence) / 2
    return _lowest_share(math.floor(x + 1e-9), n, tail), 1 - _lowest_share(n - math.ceil(x - 1e-9), n, tail)


def bound_spearman(low: float, high: float) -> Bounds:
    """Return what Spearman's rank correlation may be where Kendall's lies between two bounds."""
    least = (3 * low - 1) / 2 if low >= 0 else (low**2 + 2 * low - 1) / 2
    most = (1 + 2 * high - high**2) / 2 if high >= 0 else (1 + 3 * high) / 2
    return max(-1.0, least), min(1.0, most)


def _lowest_share(found: int, n: int, tail: float) -> float:
    """Return the smallest probability under which as many as ``found`` of ``n`` are not too improbable."""
    if found == 0:
        return 0.0
    low, high = 0.0, 1.0
    ways = [(x, math.comb(n, x)) for x in range(found, n + 1)]
    for _ in range(40):
        middle = (low + high) / 2
        upper = sum(way * middle**x * (1 - middle) ** (n - x) for x, way in ways)
        low, high = (middle, high) if upper < tail else (low, middle)
    return low


@functools.lru_cache(maxsize=1024)
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
        ((_find_place(study, t, rung), _find_place(study, t, study.last_rung), t.stratum) for t in sound),
        key=lambda measurement: measurement[:2],
    )
    agreeing = total = 0.0
    before: dict[int | None, list[Place]] = {kind: [] for kind in kinds}
    for _, tied in itertools.groupby(measurements, key=lambda measurement: measurement[0]):
        alike = list(tied)
        # Hundreds of trials are tens of thousands of pairs: those with all that began better are counted at once.
        for _, final, kind in alike:
            for other, finals in before.items():
                weight = weights[kind, other]
                agreeing += weight * (bisect.bisect_left(finals, final) + bisect.bisect_right(finals, final)) / 2
                total += weight * len(finals)
        for (_, _, one), (_, _, other) in itertools.combinations(alike, 2):
            agreeing += weights[one, other] / 2
            total += weights[one, other]
        for _, final, kind in alike:
            bisect.insort(before[kind], final)
    return agreeing / total, math.comb(len(sound), 2)


def _find_probability(strata: Mapping[int, _Stratum], one: int | None, other: int | None) -> float:
    """Return the probability with which two trials of these strata both ran to their end; None runs for certain."""
    single = [strata[kind].drawn / strata[kind].population if kind is not None else 1.0 for kind in (one, other)]
    if one is None or one != other or strata[one].population == 1:
        return single[0] * single[1]
    # Two drawn from one urn are not independent: the probability of both is that of drawing both. One alone is no pair.
    stratum = strata[one]
    return single[0] * (max(2, stratum.drawn) - 1) / (stratum.population - 1)


def _find_spearman(study: Study, sound: Sequence[Trial], rung: int, strata: Mapping[int, _Stratum]) -> float:
    """Return the correlation of weighted mid-ranks; 0 where all are alike in one of the measurements."""
    weights = [1 / _find_probability(strata, t.stratum, None) for t in sound]
    early, final = (_rank_midway([_find_place(study, t, at) for t in sound], weights) for at in (rung, study.last_rung))
    together, one, other = (
        math.fsum(w * a * b for w, a, b in zip(weights, *pair, strict=True))
        for pair in ((early, final), (early, early), (final, final))
    )
    return max(-1.0, min(1.0, together / math.sqrt(one * other))) if one > 0 and other > 0 else 0.0


def _rank_midway(places: Sequence[Place], weights: Sequence[float]) -> list[float]:
    """Return for each place the weight before it minus the weight after it: twice its mid-rank less the mean's."""
    weight_by_place: dict[Place, float] = {}
    for place, weight in zip(places, weights, strict=True):
        weight_by_place[place] = weight_by_place.get(place, 0.0) + weight
    total, before, ranks = math.fsum(weights), 0.0, dict[Place, float]()
    for place in sorted(weight_by_place):
        ranks[place] = 2 * before + weight_by_place[place] - total
        before += weight_by_place[place]
    return [ranks[place] for place in places]


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
    """Say whether a trial would have been chosen before another by more than its age, as in `choose_winner`."""
    return _choice_place(study, trial, study.last_rung)[:-1] < _choice_place(study, winner, study.last_rung)[:-1]


def _list_able(trials: Sequence[Trial]) -> list[Trial]:
    """Return those that an early rung may promote: all that began well, without the baseline."""
    return [t for t in trials if (m := t.measurement(0)) and not m.diverged and t.origin is not Origin.BASELINE]


def _is_known(study: Study, trial: Trial) -> bool:
    """Say whether it is known how a trial ends."""
    return trial.has_diverged or trial.measurement(study.last_rung) is not None


def _find_choice(study: Study, trials: Sequence[Trial], rung: int) -> list[Trial] | None:
    """Return the early top k, the best at full length first; None where one of them is not known to its end.

    None also where not all were measured on the rung, where there are no more than k trials, and where fewer than k
    kept the constraints there, so that fewer are promoted.
    """
    able, k = _list_able(trials), study.promotion.num_promoted
    ranked = sorted(able, key=lambda trial: _choice_place(study, trial, rung))
    if len(able) <= k or not all(t.measurement(rung) for t in able):
        return None
    if not all(_is_known(study, t) and satisfies_constraints(study, t.measurement(rung)) for t in ranked[:k]):
        return None
    return sorted(ranked[:k], key=lambda trial: _choice_place(study, trial, study.last_rung))


def _choice_place(study: Study, trial: Trial, rung: int) -> tuple[bool, bool, Place, int]:
    """Return what sorts trials as they are chosen on a rung: those that break a constraint go behind those that keep
    all, and behind them those that diverged or never got there."""
    measurement = trial.measurement(rung)
    if measurement is None or measurement.diverged:
        return True, True, (True, 0.0, 0.0), trial.index
    return False, not satisfies_constraints(study, measurement), find_place(study, measurement), trial.index


def _count_kept(
    study: Study, trials: Sequence[Trial], choice: Sequence[Trial], strata: Mapping[int, _Stratum]
) -> TopKept | None:
    """Bound how many of the early top k are in the final top k.

    j of the others are in the final top k where j of them are better than the j-th of the choice from below. How many
    are is known of those that ran, and of the rest by the audited ones: they are a simple random sample of their
    stratum, also without those that are themselves in the early top k. That at least j are in it is said from j = 1
    on, one after the other, so that each bound needs no correction for their number.
    """
    chosen = {t.index for t in choice}
    others = [t for t in _list_able(trials) if t.index not in chosen]
    certain = [t for t in others if t.stratum is None and _is_known(study, t)]
    seen = {kind: [t for t in others if t.stratum == kind and _is_known(study, t)] for kind in strata}
    # Those that were stopped on a rung are of its stratum.
    if any(not seen.get(t.rung) for t in others if t.state is TrialState.STOPPED) or not all(seen.values()):
        return None
    populations = {kind: strata[kind].population - sum(t.stratum == kind for t in choice) for kind in seen}
    confidence = 1 - (1 - RELIABLE_CONFIDENCE) / max(1, len(seen))
    low = high = 0
    is_low_open = True
    for j, threshold in enumerate(reversed(choice), start=1):
        place = _choice_place(study, threshold, study.last_rung)
        least = most = sum(_choice_place(study, t, study.last_rung) < place for t in certain)
        for kind, drawn in seen.items():
            found = sum(_choice_place(study, t, study.last_rung) < place for t in drawn)
            bounds = hypergeometric_interval(populations[kind], len(drawn), found, confidence)
            least, most = least + bounds[0], most + bounds[1]
        is_low_open = is_low_open and least >= j
        low, high = (j if is_low_open else low), (j if most >= j else high)
    k = len(choice)
    return TopKept(k=k, low=k - high, high=k - low)


def _find_regret(study: Study, trials: Sequence[Trial], choice: Sequence[Trial], *, is_exact: bool) -> Regret | None:
    """Return by how much the best of all is better at full length than the best of the choice and the baseline.

    None where the one keeps the constraints and the other does not: no objective tells how much worse that is.
    """
    chosen = {t.index for t in choice}
    best_of = [
        choose_winner(study, (t for t in trials if t.index in chosen or t.origin is Origin.BASELINE)),
        choose_winner(study, trials),
    ]
    chosen_best, best = (None if trial is None else trial.measurement(study.last_rung) for trial in best_of)
    if chosen_best is None or best is None:
        return None
    if satisfies_constraints(study, chosen_best) != satisfies_constraints(study, best):
        return None
    lack = find_merit(study, best) - find_merit(study, chosen_best)
    return Regret(value=max(0.0, lack), is_exact=is_exact)


def _find_place(study: Study, trial: Trial, rung: int) -> Place:
    measurement = trial.measurement(rung)
    if measurement is None:
        raise ValueError(f"trial {trial.name} must be measured at rung {rung}")
    return find_place(study, measurement)
