"""How much better than the baseline the best arm is, corrected for its having been chosen as the best.

The best of many measurements is too good by chance: with 24 equal arms and a hundred questions it lies seven points
above the baseline's. Called by the status and by the report with the ledger alone.

Once the test set is read, the gain is the paired difference on it: the winner was chosen by validation, so nothing has
to be corrected. Where winner and baseline were trained under further seeds it is the mean over these. Before, the
estimate is the best arm's measurement, drawn towards the mean of the arms that cannot be told from it as far as noise
explains how they differ (James and Stein, 1961; which arms: Gupta, 1965), minus the baseline's. The interval is
simultaneous over all arms that were read (Bonferroni), so it covers whichever was chosen, at either rung. A standard
error of few sites is itself a guess, so quantiles are Student's with one degree of freedom less than there are sites.
Measurements carry standard errors and no covariances: the noise that all arms share, being asked the same questions, is
counted as if it were each arm's own, which makes the interval too wide and never too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from statistics import NormalDist, fmean

from study_operator.ledger.merit import LOSS
from study_operator.ledger.ranking import choose_winner, satisfies_constraints
from study_operator.ledger.trial import GainOnTest, Ledger, Measurement, Origin, Trial
from study_operator.spec.metrics import is_share
from study_operator.spec.study import Study
from trial_trainer.contract import LEAST_SEEDS, FinalEvaluation

CONFIDENCE = 0.95
CARRIED = 0.5
"""Share of an arm's first-rung noise that is expected again at full length: it answers the same questions, as another
model. Nobody can know it from two measurements; the simulations go from none to nine tenths."""

NORMAL_FROM = 200
"""Degrees of freedom from which Student's quantiles are taken for the normal ones."""


class GainSource(StrEnum):
    """What a gain was read on."""

    TEST = "Test"
    """Unbiased: the winner was chosen before, by validation."""
    VALIDATION = "Validation"
    """The measurements that the arm was chosen by; corrected for that."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The best arm against the baseline, in the objective's unit."""

    trial: str
    estimate: float
    low: float | None
    """Of the 95 % interval; None where the measurements have no standard errors, and then nothing is corrected
    either."""
    high: float | None
    source: GainSource
    best_of: int | None
    """On validation: how many arms were read, of which this is the best."""
    uncorrected: float | None
    """On validation: the difference of the two measurements."""
    seeds: int | None = None
    """Further training seeds that it is the mean over; None: of the study's own seed alone."""


def find_best(study: Study, trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial so far: the winner by validation, or else the best measurement on the furthest rung.

    One that breaks a constraint where it was measured last is the best only where all do.
    """
    winner = choose_winner(study, trials)
    if winner is not None:
        return winner
    last = [(t, t.measurements[-1]) for t in trials if t.measurements and not t.has_diverged]
    return min(last, key=lambda found: _find_standing(study, *found))[0] if last else None


def _find_standing(study: Study, trial: Trial, measurement: Measurement) -> tuple[bool, int, float, float, int]:
    """Return what sorts trials, best first: by the objective, whatever decides who goes on, equals by their loss."""
    merit, loss = study.objective.merit(measurement.value), measurement.metrics.get(LOSS, math.inf)
    return not satisfies_constraints(study, measurement), -measurement.rung, -merit, loss, trial.index


def find_gain(study: Study, ledger: Ledger) -> Gain | None:
    """Return the gain of the best trial so far; None where there is nothing to compare, or the baseline is the best."""
    best = find_best(study, ledger.trials)
    baseline = next((t for t in ledger.trials if t.origin is Origin.BASELINE), None)
    if best is None or baseline is None or best is baseline:
        return None
    test = ledger.test_gain
    if test is not None and ledger.winner == best.index and study.objective.metric == "accuracy":
        return Gain(
            trial=best.name,
            estimate=test.difference,
            low=test.low,
            high=test.high,
            source=GainSource.TEST,
            best_of=None,
            uncorrected=None,
            seeds=test.seeds,
        )
    return measure_validation_gain(study, ledger.trials, best, baseline)


def measure_validation_gain(study: Study, trials: Sequence[Trial], best: Trial, baseline: Trial) -> Gain | None:
    """Estimate the best arm's gain from the measurements that it was chosen by."""
    measurement = best.measurements[-1]
    reference = baseline.measurement(measurement.rung)
    if reference is None or reference.diverged:
        return None
    searched = _list_searched(study, trials, best, baseline)
    uncorrected = measurement.value - reference.value
    estimate, low, high = uncorrected, None, None
    errors = _Errors.of((*searched, baseline))
    if errors is not None:
        sign, merit = study.objective.merit(1.0), study.objective.merit(uncorrected)
        sites = min((m.sites for m in (measurement, reference) if m.sites), default=None)
        tail = (1 - CONFIDENCE) / 2
        critical = student_quantile(1 - tail / len(searched), sites)
        error = math.hypot(errors.find(measurement), errors.find(reference))
        # Noise of the best is more likely up than down: upwards no arm but itself is allowed for.
        worst, most = merit - critical * error, merit + student_quantile(1 - tail, sites) * error
        corrected = _correct(study, searched, best, baseline, measurement.rung, critical, errors)
        estimate = sign * min(max(corrected, worst), merit)
        low, high = sorted((sign * worst, sign * most))
    return Gain(
        trial=best.name,
        estimate=estimate,
        low=low,
        high=high,
        source=GainSource.VALIDATION,
        best_of=len(searched),
        uncorrected=uncorrected,
    )


def _list_searched(study: Study, trials: Sequence[Trial], best: Trial, baseline: Trial) -> list[Trial]:
    """Return the arms of which the best was chosen. Where that keeps the constraints, those that break one, however
    good, were no choice."""
    measured = [t for t in trials if t is not baseline and not t.has_diverged and t.measurements]
    if not satisfies_constraints(study, best.measurements[-1]):
        return measured
    return [t for t in measured if t is best or all(satisfies_constraints(study, m) for m in t.measurements)]


def describe_gain(gain: Gain, metric: str) -> str:
    """Return a gain as short as it can be told with what it rests on: ``+1.2 (-3.4 to +5.8) best of 24, one seed``."""
    scale, form = (100, "+.1f") if is_share(metric) else (1, "+.3g")
    text = format(gain.estimate * scale, form)
    if gain.low is not None and gain.high is not None:
        text += f" ({format(gain.low * scale, form)} to {format(gain.high * scale, form)})"
    else:
        text += " (no interval)"
    text += " on test" if gain.source is GainSource.TEST else f" best of {gain.best_of}"
    return f"{text}, {'one seed' if gain.seeds is None else f'{gain.seeds} seeds'}"


def find_test_gain(final_evaluation: FinalEvaluation) -> GainOnTest | None:
    """Return what the test set says of winner and baseline, by the hand-labelled mean where people labelled it.

    Of further seeds where there are enough of them for an interval; else of the winner's own run.
    """
    for mean in ("hand_labelled", "all_asked"):
        of_seeds = final_evaluation.seed_gains.get(f"{mean}/winner-baseline")
        if of_seeds is not None and of_seeds.n and len(of_seeds.by_seed) >= LEAST_SEEDS:
            return GainOnTest(
                mean=mean,
                difference=of_seeds.difference,
                low=of_seeds.low,
                high=of_seeds.high,
                n=of_seeds.n,
                seeds=len(of_seeds.by_seed),
            )
        gain = final_evaluation.gains.get(f"{mean}/winner-baseline")
        if gain is not None and gain.n:
            return GainOnTest(mean=mean, difference=gain.difference, low=gain.low, high=gain.high, n=gain.n)
    return None


def _correct(
    study: Study,
    searched: Sequence[Trial],
    best: Trial,
    baseline: Trial,
    rung: int,
    critical: float,
    errors: _Errors,
) -> float:
    """Return the difference in merit at a rung, without what chance is expected to have added by the choice."""
    arms = (*searched, baseline)
    read = points = _points(study, arms, 0, errors)
    drawn = _draw_together(points, critical)
    for later in range(1, rung + 1):
        # Who was promoted was chosen by the measurement before, and answers the same questions again.
        before, read = read, _points(study, arms, later, errors)
        noise = {i: before[i].merit - drawn.merits[i] for i in read}
        points = read | {
            t.index: _Point(read[t.index].merit - CARRIED * noise[t.index], read[t.index].error)
            for t in searched
            if t.index in read
        }
        drawn = _draw_together(points, critical)
    merit, reference = drawn.merits[best.index], points[baseline.index].merit
    if baseline.index in drawn.alike:
        # Any of these might have been the best. That it was not the baseline says as much of its noise.
        reference += (points[best.index].merit - merit) / max(1, len(drawn.alike) - 1)
    return merit - reference


@dataclass(frozen=True)
class _Point:
    merit: float
    error: float


@dataclass(frozen=True)
class _Drawn:
    merits: Mapping[int, float]
    alike: Collection[int]
    """Those that cannot be told from the best."""


def _points(study: Study, trials: Sequence[Trial], rung: int, errors: _Errors) -> dict[int, _Point]:
    measurements = {t.index: m for t in trials if (m := t.measurement(rung)) is not None and not m.diverged}
    return {i: _Point(study.objective.merit(m.value), errors.find(m)) for i, m in measurements.items()}


@dataclass(frozen=True)
class _Errors:
    """Standard errors of measurements. A measurement may have none where others have: every site answered alike."""

    largest: float

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> _Errors | None:
        known = [m.standard_error for t in trials for m in t.measurements if m.standard_error]
        return cls(max(known)) if known else None

    def find(self, measurement: Measurement) -> float:
        return measurement.standard_error or self.largest


def _draw_together(points: Mapping[int, _Point], critical: float) -> _Drawn:
    """Draw the arms that cannot be told from the best towards their mean."""
    best = max(points.values(), key=lambda p: p.merit)
    alike = {i: p for i, p in points.items() if best.merit - p.merit <= critical * math.hypot(best.error, p.error)}
    mean, kept = fmean(p.merit for p in alike.values()), 1.0
    if len(alike) > 1:
        spread = math.fsum((p.merit - mean) ** 2 for p in alike.values()) / (len(alike) - 1)
        kept = max(0.0, 1 - fmean(p.error**2 for p in alike.values()) / spread) if spread > 0 else 0.0
    merits = {i: mean + kept * (p.merit - mean) if i in alike else p.merit for i, p in points.items()}
    return _Drawn(merits, frozenset(alike))


@lru_cache(maxsize=4096)
def student_quantile(probability: float, sites: int | None) -> float:
    """Return the quantile of a mean over so many sites, above the median; None where nobody counted them."""
    normal = NormalDist().inv_cdf(probability)
    degrees = NORMAL_FROM if sites is None else max(1, sites - 1)
    if degrees >= NORMAL_FROM:
        return normal
    low, high = normal, 2 * normal
    while _student_share(high, degrees) < probability:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < probability else (low, middle)
    return high


def _student_share(t: float, degrees: int) -> float:
    """Return the share of Student's distribution below a positive number (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2 == 1
    term = cosine if is_odd else 1.0
    total = 0.0 if degrees == 1 else term
    for i in range(3 if is_odd else 2, degrees, 2):
        term *= cosine**2 * (i - 1) / i
        total += term
    middle = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return (1 + middle) / 2
