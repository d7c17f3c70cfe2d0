"""Where trials fail: those that diverged or wrote gibberish, over learning rate, alpha and rank.

Two questions are asked of the measured trials, and each is answered only where they tell.

* *Is there a threshold* of learning rate × alpha / rank, by which an adapter's steps grow (with rank-stabilised LoRA,
  alpha / √rank), above which they fail? Of every threshold the one-sided exact test of Fisher (1935, "The Design of
  Experiments"); the smallest p is corrected for the choice of the threshold by its exact distribution over all orders
  of the same failures (Miller and Siegmund 1982, "Maximally selected chi square statistics", Biometrics 38, for what
  the correction is about).
* *How probable is a failure* at other arms? A logistic regression on the logarithms, with a weak normal prior and
  inputs scaled to a deviation of one half, after Gelman et al. (2008, "A weakly informative default prior distribution
  for logistic and other regression models", Annals of Applied Statistics 2). Its intervals are those of the normal
  approximation around the posterior's mode.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import quantiles
from typing import TYPE_CHECKING

from study_operator.ledger.trial import Origin, Trial
from study_operator.spec.study import Arm, Study, complete_arm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LEAST_TRIALS = 8
"""Fewer have no map."""
LEAST_ABOVE = 3
"""Trials above a threshold."""
LEVEL = 0.05
"""Chance of telling a region where there is none."""
LEAST_SHARE = 0.5
"""Of the trials above a threshold, that a region needs to have failed."""
PRIOR_DEVIATION = 5.0
"""Of all coefficients. With 2.5 the 90 % intervals held the truth in 88 of 100 places (`benchmarks/failures.py`)."""
SMALLEST, LARGEST = 1e-60, 1e60
"""Of learning rate, alpha and rank: beyond, their products and quotients are no numbers."""
MOST_VALUES = 5
"""On each axis of the map, and ranks that have one."""
NORMAL_90 = 1.6449


@dataclass(frozen=True, kw_only=True)
class Region:
    """Above a threshold of learning rate × alpha / rank most trials failed, and fewer below."""

    threshold: float
    above: int
    failed_above: int
    below: int
    failed_below: int
    p: float
    """Chance of so clear a division if failures had nothing to do with it, corrected for the threshold's choice."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the map of one rank."""

    rank: float
    learning_rate: float
    alpha: float
    probability: float
    """Of a failure."""
    low: float
    high: float
    """Its 90 % interval."""
    trials: int
    """Those that lie nearest to this place."""
    failed: int


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where a measured trial lies on the map."""

    trial: str
    rank: float
    """As it was tried."""
    map_rank: float
    """The one of the map that is nearest."""
    learning_rate: float
    alpha: float
    has_failed: bool


@dataclass(frozen=True, kw_only=True)
class Avoided:
    """How many of the optimizer's arms lie where the map gives a failure one half or more, early and late."""

    early: int
    of_early: int
    late: int
    of_late: int


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What is known of failing trials."""

    trials: int
    """Measured ones."""
    diverged: tuple[str, ...]
    gibberish: tuple[str, ...]
    """Names; of those that did not diverge."""
    is_rank_stabilised: bool
    is_placed: bool = True
    """Whether each has a learning rate, alpha and rank that are positive numbers; else no region is looked for."""
    region: Region | None = None
    ranks: tuple[float, ...] = ()
    """That there is a map of: those that were tried, or where they are many, their quartiles. None without a map."""
    cells: tuple[Cell, ...] = ()
    """By rank, learning rate and alpha."""
    marks: tuple[Mark, ...] = ()
    """The measured trials, where there is a map."""
    avoided: Avoided | None = None

    @property
    def failed(self) -> int:
        """How many failed in either way."""
        return len(self.diverged) + len(self.gibberish)


def find_failures(study: Study, trials: Sequence[Trial]) -> Failures | None:
    """Return what the measured trials tell; None before there is one."""
    measured = [t for t in trials if t.measurements]
    if not measured:
        return None
    failed = [has_failed(t) for t in measured]
    is_stabilised = study.trainer.rs_lora
    known = Failures(
        trials=len(measured),
        diverged=tuple(t.name for t in measured if t.has_diverged),
        gibberish=tuple(t.name for t, has in zip(measured, failed, strict=True) if has and not t.has_diverged),
        is_rank_stabilised=is_stabilised,
    )
    arms = [arm for t in measured if (arm := _read_arm(t.arm)) is not None]
    known = replace(known, is_placed=len(arms) == len(measured))
    if not known.is_placed or not any(failed) or all(failed):
        return known
    scores = [rate * alpha / (math.sqrt(rank) if is_stabilised else rank) for rate, alpha, rank in arms]
    known = replace(known, region=find_region(scores, failed))
    if len(measured) < LEAST_TRIALS:
        return known
    model, ranks = FailureModel.fit(arms, failed), _list_ranks([rank for _, _, rank in arms])
    likely = [
        model.predict(arm)[0] >= LEAST_SHARE
        for t, arm in zip(measured, arms, strict=True)
        if t.origin is Origin.SUGGESTED
    ]
    marks = tuple(
        Mark(
            trial=t.name,
            rank=rank,
            map_rank=_nearest(ranks, rank),
            learning_rate=rate,
            alpha=alpha,
            has_failed=has,
        )
        for t, (rate, alpha, rank), has in zip(measured, arms, failed, strict=True)
    )
    cells = _draw_maps(model, marks, ranks)
    return replace(known, ranks=ranks, cells=cells, marks=marks, avoided=_count_avoided(likely))


def has_failed(trial: Trial) -> bool:
    """Say whether a trial diverged or wrote gibberish on any rung."""
    return trial.has_diverged or any(measurement.gibberish for measurement in trial.measurements)


def describe_failures(failures: Failures) -> list[str]:
    """Return what is known in sentences."""
    counts = f"{len(failures.diverged)} diverged and {len(failures.gibberish)} wrote gibberish"
    sentences = [f"Failures: of {failures.trials} measured trials {counts}."]
    region = failures.region
    if not failures.failed or not failures.is_placed:
        return sentences
    if failures.failed == failures.trials:
        return [*sentences, "As all of them failed, they do not show where trials do not."]
    scale = "alpha / √rank" if failures.is_rank_stabilised else "alpha / rank"
    if region is None:
        return [*sentences, f"These trials show no region of learning rate × {scale} in which they fail."]
    sentences.append(
        f"Above learning rate × {scale} = {region.threshold:.2g}, {region.failed_above} of {region.above} trials "
        f"failed, below it {region.failed_below} of {region.below} (p = {region.p:.2g}, corrected for the threshold's "
        "choice)."
    )
    avoided = failures.avoided
    if avoided is not None and avoided.of_early and avoided.of_late:
        sentences.append(
            f"A failure is as probable as not, or more, at {avoided.early} of the optimizer's first {avoided.of_early} "
            f"arms and at {avoided.late} of its last {avoided.of_late}."
        )
    return sentences


def find_region(scores: Sequence[float], failed: Sequence[bool]) -> Region | None:
    """Return the threshold above which trials fail, where there is one.

    Args:
        scores: by what a threshold divides, positive.
        failed: of the same trials; some failed and some did not.
    """
    ordered = sorted(zip(scores, failed, strict=True), key=lambda one: -one[0])
    n, failures = len(ordered), sum(failed)
    # A threshold lies between two trials that differ.
    cuts = [m for m in range(LEAST_ABOVE, n) if ordered[m - 1][0] > ordered[m][0]]
    found = [sum(has for _, has in ordered[:m]) for m in range(n + 1)]
    if not cuts:
        return None
    tails = {m: _list_tails(n, failures, m) for m in cuts}
    best = min(cuts, key=lambda m: tails[m][found[m]])
    p = _correct(n, failures, tails, tails[best][found[best]])
    if p > LEVEL or found[best] < LEAST_SHARE * best:
        return None
    return Region(
        threshold=math.sqrt(ordered[best - 1][0] * ordered[best][0]),
        above=best,
        failed_above=found[best],
        below=n - best,
        failed_below=failures - found[best],
        p=p,
    )


def _list_tails(n: int, failures: int, above: int) -> list[float]:
    """Return for each number of failures above a threshold the chance of so many or more: Fisher's one-sided p."""

    def log_ways(of: int, drawn: int) -> float:
        return math.lgamma(of + 1) - math.lgamma(drawn + 1) - math.lgamma(of - drawn + 1)

    tails, total = [0.0] * (failures + 1), 0.0
    for x in range(min(above, failures), max(0, above - (n - failures)) - 1, -1):
        total += math.exp(log_ways(failures, x) + log_ways(n - failures, above - x) - log_ways(n, above))
        tails[x] = total
    # So few are impossible, and as good as certain to be exceeded.
    return [total if x < above - (n - failures) else tail for x, tail in enumerate(tails)]


def _correct(n: int, failures: int, tails: Mapping[int, Sequence[float]], smallest: float) -> float:
    """Return the chance that the smallest p of all thresholds is so small, over all orders of the failures.

    The chance that an order passes no threshold at which it is as striking, one trial after the other from the top.
    """
    chance = [1.0] + [0.0] * failures
    """By the number of failures so far."""
    for m in range(1, n + 1):
        left = n - m + 1
        fails = [share * (failures - a) / left for a, share in enumerate(chance)]
        chance = [share - fails[a] + (fails[a - 1] if a else 0.0) for a, share in enumerate(chance)]
        if m in tails:
            chance = [0.0 if tails[m][a] <= smallest * (1 + 1e-9) else share for a, share in enumerate(chance)]
    return max(0.0, 1 - math.fsum(chance))


@dataclass(frozen=True, kw_only=True, eq=False)
class FailureModel:
    """A logistic regression of failures on the logarithms of learning rate, alpha and rank."""

    columns: tuple[int, ...]
    """Which of the three it uses: those that varied, and not only together with others."""
    centre: Array
    scale: Array
    mode: Array
    covariance: Array

    @classmethod
    def fit(cls, arms: Sequence[tuple[float, float, float]], failed: Sequence[bool]) -> FailureModel:
        """Fit it.

        Args:
            arms: learning rate, alpha and rank of each trial.
            failed: whether each failed.
        """
        import numpy as np

        logs = np.log(np.array(arms, dtype=float))
        centred = logs - logs.mean(axis=0)
        columns: list[int] = []
        for column in range(3):
            if np.linalg.matrix_rank(centred[:, [*columns, column]], tol=1e-6) > len(columns):
                columns.append(column)
        centre, scale = logs.mean(axis=0)[columns], 2 * logs.std(axis=0)[columns]
        x = np.column_stack([np.ones(len(logs)), (logs[:, columns] - centre) / scale])
        y = np.array(failed, dtype=float)
        precision = np.eye(x.shape[1]) / PRIOR_DEVIATION**2

        def loss(at: Array) -> float:
            return float(np.logaddexp(0, x @ at).sum() - y @ (x @ at) + at @ precision @ at / 2)

        # Newton's method, with half steps where a whole one goes too far: the posterior has one mode.
        mode = np.zeros(x.shape[1])
        for _ in range(100):
            p = 1 / (1 + np.exp(-(x @ mode)))
            hessian = (x.T * (p * (1 - p))) @ x + precision
            step = np.linalg.solve(hessian, x.T @ (y - p) - precision @ mode)
            size = 1.0
            while loss(mode + size * step) > loss(mode) + 1e-12 and size > 1e-6:
                size /= 2
            mode = mode + size * step
            if float(np.abs(step).max()) < 1e-9:
                break
        p = 1 / (1 + np.exp(-(x @ mode)))
        covariance = np.linalg.inv((x.T * (p * (1 - p))) @ x + precision)
        return cls(columns=tuple(columns), centre=centre, scale=scale, mode=mode, covariance=covariance)

    def predict(self, arm: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return the probability of a failure with the ends of its 90 % interval."""
        import numpy as np

        logs = np.log(np.array(arm, dtype=float))[list(self.columns)]
        x = np.concatenate([[1.0], (logs - self.centre) / self.scale])
        middle, margin = float(x @ self.mode), NORMAL_90 * math.sqrt(float(x @ self.covariance @ x))
        return _share_of(middle), _share_of(middle - margin), _share_of(middle + margin)


def _share_of(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))


def _read_arm(arm: Arm) -> tuple[float, float, float] | None:
    """Return learning rate, alpha and rank, with what a study does not search at its default.

    None where they are no positive numbers: a trainer of one's own may call anything by these names.
    """
    complete = complete_arm(arm)
    try:
        rate, rank = float(complete["learning_rate"]), float(complete["lora_rank"])
        alpha = float(complete["lora_alpha"] if "lora_alpha" in complete else complete["lora_alpha_over_rank"])
    except ValueError:
        return None
    alpha *= 1 if "lora_alpha" in complete else rank
    return (rate, alpha, rank) if all(SMALLEST < value < LARGEST for value in (rate, alpha, rank)) else None


def _list_ranks(tried: Sequence[float]) -> tuple[float, ...]:
    """Return the ranks that there is a map of."""
    distinct = sorted(set(tried))
    if len(distinct) <= MOST_VALUES:
        return tuple(distinct)
    return tuple(dict.fromkeys(quantiles(tried, n=4, method="inclusive")))


def _draw_maps(model: FailureModel, marks: Sequence[Mark], ranks: Sequence[float]) -> tuple[Cell, ...]:
    rates, alphas = _list_values([m.learning_rate for m in marks]), _list_values([m.alpha for m in marks])
    here: dict[tuple[float, float, float], list[bool]] = {}
    for mark in marks:
        place = mark.map_rank, _nearest(rates, mark.learning_rate), _nearest(alphas, mark.alpha)
        here.setdefault(place, []).append(mark.has_failed)
    cells = []
    for rank, rate, alpha in itertools.product(ranks, rates, alphas):
        probability, low, high = model.predict((rate, alpha, rank))
        found = here.get((rank, rate, alpha), [])
        cells.append(
            Cell(
                rank=rank,
                learning_rate=rate,
                alpha=alpha,
                probability=probability,
                low=low,
                high=high,
                trials=len(found),
                failed=sum(found),
            )
        )
    return tuple(cells)


def _list_values(values: Sequence[float]) -> list[float]:
    """Return the places of an axis: the values that were tried, or as many as are drawn from the least to the most."""
    tried = sorted(set(values))
    if len(tried) <= MOST_VALUES:
        return tried
    low, high = math.log(tried[0]), math.log(tried[-1])
    return [math.exp(low + (high - low) * i / (MOST_VALUES - 1)) for i in range(MOST_VALUES)]


def _nearest(places: Sequence[float], value: float) -> float:
    return min(places, key=lambda place: abs(math.log(place / value)))


def _count_avoided(likely: Sequence[bool]) -> Avoided:
    """Count the arms at which a failure is likely, in the first and in the second half of the search."""
    half = len(likely) // 2
    return Avoided(early=sum(likely[:half]), of_early=half, late=sum(likely[half:]), of_late=len(likely) - half)
