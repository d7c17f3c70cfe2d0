"""How often 95 % intervals hold the truth, by the number of sites: ours, and what is done more often.

    PYTHONPATH=trainer python benchmarks/intervals.py
    PYTHONPATH=trainer python benchmarks/intervals.py --sites 5 10 --studies 200

Studies are simulated whose truth is known. A site is easy or hard as a whole: its rate is drawn from a beta
distribution (for pairs of predictors, its rates of gained and lost questions from a Dirichlet distribution), and its
questions are drawn at that rate. The correlation is that of two questions of one site. Every combination is a case:

* sizes of sites: equal (10 questions), uneven (log-normal, a standard deviation of 1), one giant among small ones
  (of 1.6), and uneven where sites with an easy page have three times the pages;
* one attribute, or five of which each site lacks each with a chance of 40 %;
* correlations of 0.05, 0.2 and 0.5;
* rates of 1, 2, 5, 10, 30, 50, 90 and 98 %; gains and losses of which some are rare.

For each number of sites it prints the share of studies whose interval holds the truth: in the median case and in the
lowest, which is simulated again with ten times as many studies, since the lowest of many is low by chance too. The
width is that of the median case, in percentage points. The usual way is the value ± 1.96 linearised standard errors for
a rate, and the percentiles of 1,000 resamples of the sites for a gain; it is simulated with a fifth of the studies.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trial_trainer.contract import LEAST_SITES
from trial_trainer.intervals import estimate_gain, estimate_share

SITES = (2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
SIZES = ("equal", "uneven", "giant", "easy sites are larger")
COLUMNS = (1, 5)
CORRELATIONS = (0.05, 0.2, 0.5)
RATES = (0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.9, 0.98)
GAINS = ((0.01, 0.01), (0.05, 0.01), (0.1, 0.1), (0.3, 0.05), (0.25, 0.25), (0.9, 0.02))
LACKING = 0.4
RESAMPLES = 1_000
AGAIN = 10

Array = NDArray[np.float64]
Bounds = tuple[float, float] | None
Method = Callable[[Array, Array, Array, np.random.Generator], Bounds]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of study: `gained` alone is a rate, with `lost` a paired difference."""

    sites: int
    sizes: str
    columns: int
    correlation: float
    gained: float
    lost: float | None

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Return gained and lost questions and their number, (site, column)."""
        rates, count = self._draw_sites(rng, self.sites)
        counts = np.repeat(count, self.columns, axis=1)
        if self.columns > 1:
            counts = np.where(rng.random(counts.shape) < LACKING, 0.0, counts)
            counts[0, counts.sum(axis=0) == 0] = 1.0
            asked = counts.sum(axis=1) > 0
            counts, rates = counts[asked], rates[asked]
        n = counts.astype(int)
        gained = rng.binomial(n, rates[:, :1])
        left = np.clip(rates[:, 1:2] / np.maximum(1 - rates[:, :1], 1e-12), 0, 1)
        return gained.astype(float), rng.binomial(n - gained, left).astype(float), counts

    def find_truth(self) -> float:
        """Return the rate, or the gain, over all sites that there could be, by their questions."""
        if self.sizes != "easy sites are larger":
            return self.gained - (self.lost or 0.0)
        rates, count = self._draw_sites(np.random.default_rng(1), 400_000)
        return float((count[:, 0] * (rates[:, 0] - rates[:, 1])).sum() / count.sum())

    def _draw_sites(self, rng: np.random.Generator, sites: int) -> tuple[Array, Array]:
        concentration = 1 / self.correlation - 1
        lost = self.lost or 0.0
        shares = np.array([self.gained, lost, 1 - self.gained - lost]) * concentration
        drawn = np.stack([rng.gamma(max(share, 1e-12), size=sites) for share in shares], axis=1)
        # Where all three underflow, the site is of the commonest kind.
        drawn[drawn.sum(axis=1) == 0, int(np.argmax(shares))] = 1.0
        rates = drawn / drawn.sum(axis=1, keepdims=True)
        match self.sizes:
            case "equal":
                count = np.full((sites, 1), 10.0)
            case "giant":
                count = np.minimum(np.ceil(rng.lognormal(1.0, 1.6, (sites, 1))), 400)
            case "uneven":
                count = np.minimum(np.ceil(rng.lognormal(1.0, 1.0, (sites, 1))), 80)
            case _:
                count = np.minimum(np.ceil(rng.lognormal(1.0, 1.0, (sites, 1))), 80)
                count *= np.where(rates[:, :1] > self.gained, 3.0, 1.0)
        return rates, count


@dataclass(frozen=True, kw_only=True)
class Found:
    """How one method did in one case."""

    case: Case
    held: float
    """Share of the studies whose interval holds the truth."""
    width: float
    """Mean, in percentage points."""


def ours(gained: Array, lost: Array, count: Array, _: np.random.Generator) -> Bounds:
    """The product's own interval of a gain."""
    estimate = estimate_gain(gained, lost, count)
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def ours_of_a_rate(gained: Array, _lost: Array, count: Array, _: np.random.Generator) -> Bounds:
    """The product's own interval of a rate."""
    estimate = estimate_share(gained, count)
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def standard_errors(gained: Array, _lost: Array, count: Array, _: np.random.Generator) -> Bounds:
    """The value ± 1.96 linearised standard errors with the factor G / (G - 1)."""
    n, sites = count.sum(axis=0), len(count)
    if sites < 2:
        return None
    ratio = gained.sum(axis=0) / n
    influence = ((gained - ratio * count) / n).mean(axis=1)
    margin = 1.96 * math.sqrt(sites / (sites - 1) * float(influence @ influence))
    return float(ratio.mean()) - margin, float(ratio.mean()) + margin


def resamples(gained: Array, lost: Array, count: Array, rng: np.random.Generator) -> Bounds:
    """The percentiles of the gains of resampled sites."""
    sites = len(count)
    if sites < 2:
        return None
    times = rng.multinomial(sites, np.full(sites, 1 / sites), size=RESAMPLES).astype(float)
    total, n = times @ (gained - lost), times @ count
    ratio = np.divide(total, n, out=np.zeros_like(total), where=n > 0)
    low, high = np.percentile(ratio.sum(axis=1) / (n > 0).sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


@functools.cache
def find_truth(case: Case) -> float:
    """Return a case's truth, which depends neither on the number of sites nor on the attributes."""
    return case.find_truth()


def simulate(case: Case, method: Method, studies: int, seed: int) -> Found | None:
    """Simulate studies of one case; None where the method gives no intervals."""
    rng, truth = np.random.default_rng(seed), find_truth(replace(case, sites=0, columns=0))
    held, widths = 0, []
    for _ in range(studies):
        bounds = method(*case.draw(rng), rng)
        if bounds is not None:
            held += bounds[0] - 1e-9 <= truth <= bounds[1] + 1e-9
            widths.append(100 * (bounds[1] - bounds[0]))
    if not widths:
        return None
    return Found(case=case, held=held / len(widths), width=statistics.fmean(widths))


def list_cases(sites: int, *, paired: bool) -> Iterator[Case]:
    """Yield every case with so many sites."""
    pairs: tuple[tuple[float, float | None], ...] = GAINS if paired else tuple((rate, None) for rate in RATES)
    for sizes, columns, correlation, (gained, lost) in itertools.product(SIZES, COLUMNS, CORRELATIONS, pairs):
        yield Case(sites=sites, sizes=sizes, columns=columns, correlation=correlation, gained=gained, lost=lost)


def describe(method: Method, sites: int, studies: int, *, paired: bool) -> tuple[str, str]:
    """Return the cells of one method, and its lowest case."""
    found = [simulate(case, method, studies, seed=2) for case in list_cases(sites, paired=paired)]
    known = [one for one in found if one is not None]
    if not known:
        return "too few sites", ""
    lowest = min(known, key=lambda one: one.held)
    lowest = simulate(lowest.case, method, studies * AGAIN, seed=3) or lowest
    median = statistics.median(one.held for one in known)
    width = statistics.median(one.width for one in known)
    return f"{median:.1%}, lowest {lowest.held:.1%}, width {width:.0f}", f"{lowest.case}"


def row(sites: int, studies: int) -> tuple[str, str]:
    """Return a row of the table, and the cases in which ours is lowest."""
    cells, lowest = [f"{sites}"], []
    for paired, usual, own in ((False, standard_errors, ours_of_a_rate), (True, resamples, ours)):
        cells.append(describe(usual, sites, max(studies // 5, 1), paired=paired)[0])
        text, case = describe(own, sites, studies, paired=paired)
        cells.append(text)
        lowest.append(case)
    return f"| {' | '.join(cells)} |", "\n".join(case for case in lowest if case)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=SITES)
    parser.add_argument("--studies", type=int, default=500, help="in each case")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show-lowest", action="store_true", help="print the cases in which ours is lowest")
    arguments = parser.parse_args()
    print(f"Below {LEAST_SITES} sites there are no intervals of ours.\n")
    print("| sites | rate ± 1.96 standard errors | ours | gain, resampled sites | ours |")
    print("|---|---|---|---|---|")
    with ProcessPoolExecutor(arguments.processes) as pool:
        rows = pool.map(row, arguments.sites, itertools.repeat(arguments.studies))
        for text, lowest in rows:
            print(text, flush=True)
            if arguments.show_lowest and lowest:
                print(lowest, flush=True)


if __name__ == "__main__":
    main()
