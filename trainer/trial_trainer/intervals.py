"""Standard errors and 95 % intervals of shares whose questions lie in sites. Pure functions of sums over sites.

The estimator is a mean of ratios: for each attribute (a column) the sum of a quantity over the number of questions,
then the mean over the columns. Pages of one site look alike, and there are often few sites of very different size.
`benchmarks/intervals.py` measures how often the intervals hold the truth.

* Variance: CR2, the cluster-robust variance that is unbiased where questions are independent, with the degrees of
  freedom of Bell and McCaffrey (2002), "Bias reduction in standard errors for linear regression with multi-stage
  samples", Survey Methodology 28(2). Their working model needs a correlation within a site; we take 1, which gives the
  fewest degrees of freedom.
* A share: Clopper and Pearson's interval at an effective number of questions, as in Korn and Graubard (1998),
  "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
  Survey Methodology 24(2). We differ where a rate is near 0 or 1: with few right (or wrong) answers the variance can
  hardly be estimated, so the effective number goes towards that of fully correlated sites.
* A paired difference: the share of questions gained minus the share lost, each with such an interval, joined as in Zou
  and Donner (2008), "Construction of confidence limits about effect measures", Statistics in Medicine 27(10).
* A paired difference over training seeds: sites and seeds are crossed, two sources of noise. Their variances add up;
  what a site and a seed do together is in both, so the sum is too large rather than too small (Cameron, Gelbach and
  Miller, 2011, "Robust inference with multiway clustering", Journal of Business & Economic Statistics 29(2), take it
  out again, which needs many of both). Its degrees of freedom are Satterthwaite's (1946), "An approximate distribution
  of estimates of variance components", Biometrics Bulletin 2(6). Where few answers change, the variance of sites can
  hardly be estimated, and the margin goes towards that of the paired difference above.
  `benchmarks/seed_intervals.py` measures how often it holds the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trial_trainer.contract import LEAST_SEEDS, LEAST_SITES

TAIL = 0.025
"""Chance that an interval of 95 % misses on one side."""

FULL_CORRELATION_ANSWERS = 0.3
"""Sites' worth of right (or wrong) answers at which the estimated effective number of questions and that of fully
correlated sites weigh the same: of 0.1, 0.3, 0.6, 1 and 2 the smallest that held 93 % in every simulated case."""


LARGEST_VARIANCE = 0.25
"""Of a quantity between 0 and 1."""

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean of ratios with what is known of its error; None where there are too few sites to know it."""

    value: float
    standard_error: float | None
    """None also where no site differs from the mean: no error was seen, which does not mean that there is none."""
    low: float | None = None
    high: float | None = None


def estimate_mean(total: Array, count: Array) -> Estimate:
    """Estimate the mean of a quantity without bounds, such as a loss: with a standard error, without an interval.

    Args:
        total: sums of the quantity, (site, column).
        count: numbers of questions, (site, column); no site and no column is without questions.
    """
    design = _Design.of(count)
    value, influence = design.linearise(total)
    return Estimate(value=value, standard_error=_standard_error(design, float(influence @ influence)))


def estimate_change(total: Array, count: Array) -> Estimate:
    """Estimate the mean of paired differences without bounds, such as of losses, with its interval.

    The interval is Student's with Bell and McCaffrey's degrees of freedom.
    """
    from scipy.special import stdtrit

    design = _Design.of(count)
    estimate = estimate_mean(total, count)
    if estimate.standard_error is None:
        return estimate
    margin = float(stdtrit(design.degrees_of_freedom, 1 - TAIL)) * estimate.standard_error
    return Estimate(
        value=estimate.value,
        standard_error=estimate.standard_error,
        low=estimate.value - margin,
        high=estimate.value + margin,
    )


def estimate_share(total: Array, count: Array) -> Estimate:
    """Estimate the mean of a quantity between 0 and 1, with its interval."""
    design = _Design.of(count)
    value, influence = design.linearise(total)
    variance = design.variance(influence)
    error = _standard_error(design, variance)
    if len(count) < LEAST_SITES:
        return Estimate(value=value, standard_error=error)
    low, high = _share_interval(value, variance, design)
    return Estimate(value=value, standard_error=error, low=low, high=high)


def estimate_gain(gained: Array, lost: Array, count: Array) -> Estimate:
    """Estimate the share of questions gained minus the share of questions lost, with its interval."""
    design = _Design.of(count)
    (gain, for_it), (loss, against_it) = design.linearise(gained), design.linearise(lost)
    error = _standard_error(design, design.variance(for_it - against_it))
    if len(count) < LEAST_SITES:
        return Estimate(value=gain - loss, standard_error=error)
    variances = design.variance(for_it), design.variance(against_it)
    correlation = float(for_it @ against_it) / math.sqrt(math.prod(variances)) if all(variances) else 0.0
    gain_low, gain_high = _share_interval(gain, variances[0], design)
    loss_low, loss_high = _share_interval(loss, variances[1], design)
    return Estimate(
        value=gain - loss,
        standard_error=error,
        low=max(gain - loss - _join(gain - gain_low, loss_high - loss, correlation), -1.0),
        high=min(gain - loss + _join(gain_high - gain, loss - loss_low, correlation), 1.0),
    )


def estimate_gain_over_seeds(gained: Array, lost: Array, count: Array) -> Estimate:
    """Estimate the same difference as the mean over training seeds, with an interval over other sites and other seeds.

    Args:
        gained: sums of questions gained under each seed, (seed, site, column).
        lost: likewise of questions lost.
        count: numbers of questions, (site, column), which are the same under each seed.

    Returns:
        The estimate; without an interval where there are fewer than `LEAST_SEEDS`, or too few sites.
    """
    from scipy.special import stdtrit

    design = _Design.of(count)
    pages = estimate_gain(gained.mean(axis=0), lost.mean(axis=0), count)
    differences = np.array([design.linearise(won - gone)[0] for won, gone in zip(gained, lost, strict=True)])
    seeds = len(differences)
    if seeds < LEAST_SEEDS or pages.low is None or pages.high is None:
        return Estimate(value=pages.value, standard_error=None)
    changed, influence = (gained + lost).mean(axis=0), design.linearise((gained - lost).mean(axis=0))[1]
    of_sites, of_seeds = design.variance(influence), float(differences.var(ddof=1)) / seeds
    total = of_sites + of_seeds
    squares = of_sites**2 / design.degrees_of_freedom + of_seeds**2 / (seeds - 1)
    quantile = float(stdtrit(total**2 / squares, 1 - TAIL)) if squares else 0.0
    doubt = FULL_CORRELATION_ANSWERS / (FULL_CORRELATION_ANSWERS + design.sites * design.linearise(changed)[0])

    def margin(of_pages: float) -> float:
        return math.sqrt(quantile**2 * (of_seeds + (1 - doubt) * of_sites) + doubt * of_pages**2)

    return Estimate(
        value=pages.value,
        standard_error=math.sqrt(total) or None,
        low=max(pages.value - margin(pages.value - pages.low), -1.0),
        high=min(pages.value + margin(pages.high - pages.value), 1.0),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Design:
    """What the numbers of questions tell of an estimate, whatever was answered."""

    count: Array
    weight: Array
    """What a residual of a site and column contributes to the estimate, corrected for its leverage (CR2)."""
    lone_columns: int
    """Columns with a single site, whose difference from other sites nothing tells."""
    degrees_of_freedom: float
    sites: float
    """Effective number: 1 over the sum of squared shares that sites have in the estimate (Kish, 1965)."""
    questions: float
    """Effective number if all questions were independent."""

    @classmethod
    def of(cls, count: Array) -> _Design:
        columns, n = count.shape[1], count.sum(axis=0)
        leverage = count / n
        lone = leverage == 1.0
        weight = np.where(lone, 0.0, 1 / np.sqrt(np.where(lone, 1.0, 1 - leverage))) / (n * columns)
        # How the sites' influences depend on the sites' own effects, all of whose questions err alike.
        effects = np.diag((weight * count).sum(axis=1)) - (weight * leverage) @ count.T
        covariance = effects @ effects.T
        squares = float((covariance**2).sum())
        shares = leverage.mean(axis=1)
        return cls(
            count=count,
            weight=weight,
            lone_columns=int(lone.any(axis=0).sum()),
            degrees_of_freedom=float(np.trace(covariance)) ** 2 / squares if squares else 1.0,
            sites=1 / float(shares @ shares),
            questions=columns**2 / float((1 / n).sum()),
        )

    def linearise(self, total: Array) -> tuple[float, Array]:
        """Return the mean of ratios and what each site contributes to its error; the squares sum to its variance."""
        ratio = total.sum(axis=0) / self.count.sum(axis=0)
        influence: Array = (self.weight * (total - ratio * self.count)).sum(axis=1)
        return float(ratio.mean()), influence

    def variance(self, influence: Array) -> float:
        """Return the variance of a mean of quantities between 0 and 1."""
        unknown: float = self.lone_columns * LARGEST_VARIANCE / self.count.shape[1] ** 2
        return float(influence @ influence) + unknown


def _standard_error(design: _Design, variance: float) -> float | None:
    return math.sqrt(variance) if variance > 0 and len(design.count) >= LEAST_SITES else None


def _share_interval(share: float, variance: float, design: _Design) -> tuple[float, float]:
    from scipy.special import betaincinv

    n = _effective_questions(share, variance, design)
    right, wrong = share * n, (1 - share) * n
    low = float(betaincinv(right, wrong + 1, TAIL)) if right > 0 else 0.0
    high = float(betaincinv(right + 1, wrong, 1 - TAIL)) if wrong > 0 else 1.0
    return min(low, share), max(high, share)


def _effective_questions(share: float, variance: float, design: _Design) -> float:
    """Return of how many independent questions the share is as good as the mean."""
    from scipy.special import ndtri, stdtrit

    if share in (0.0, 1.0):
        return design.sites
    estimated = design.questions
    if variance > 0:
        wider = float(stdtrit(design.degrees_of_freedom, 1 - TAIL) / ndtri(1 - TAIL))
        estimated = min(estimated, share * (1 - share) / variance / wider**2)
    rarer_answers = design.sites * min(share, 1 - share)
    doubt = FULL_CORRELATION_ANSWERS / (FULL_CORRELATION_ANSWERS + rarer_answers)
    return max(1 / ((1 - doubt) / estimated + doubt / min(estimated, design.sites)), 1.0)


def _join(one: float, other: float, correlation: float) -> float:
    """Return the margin of a difference of two estimates from their margins towards it."""
    return math.sqrt(max(one**2 + other**2 - 2 * correlation * one * other, 0.0))
