"""How often 95 % intervals of a gain hold what it is under another training seed: of one seed, and of further ones.

    PYTHONPATH=trainer python benchmarks/seed_intervals.py [--studies 500]

Studies are simulated whose truth is known: the mean gain over all sites and all training seeds that there could be. A
question is answered right with a chance whose logit is the sum of

* what its site and the question itself add for both arms, of a standard deviation of 1 each;
* what its site adds for one arm alone (0.3);
* what the training seed adds for one arm alone, which is a case: 0, 0.1, 0.3 or 0.6, and half of it again for each
  site.

At an accuracy of 60 % a standard deviation of 0.1 is about 1.6 points, 0.3 about 5. Every combination of these, of 10,
30 and 80 sites with 3 to 12 questions, and of gains of 0 and about 8 points is a case.

One seed, chosen: each of 24 equal arms is trained under its own seed, and the best on a validation set of as many sites
is read on the test set. Its interval, of pages alone, is the one that a study without further seeds has.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from trial_trainer.intervals import TAIL, estimate_gain, estimate_gain_over_seeds

Array = NDArray[np.float64]
Bounds = tuple[float, float]

SITES = (10, 30, 80)
SPREADS = (0.0, 0.1, 0.3, 0.6)
GAINS = (0.0, 0.5)
SEEDS = (3, 5, 10)
ARMS = 24
OWN, CENTRE, SHARED = 0.3, 0.5, 1.0
RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of study."""

    sites: int
    spread: float
    """Of seeds, in logits."""
    gain: float
    """Of the winner's arm, in logits."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a study reads: right answers of winner and baseline, (seed, site, question); absent questions are masked."""

    winner: Array
    baseline: Array
    asked: Array

    @property
    def tables(self) -> tuple[Array, Array, Array]:
        """Gained and lost questions, (seed, site, 1), and their number, (site, 1)."""
        gained = (self.winner * (1 - self.baseline) * self.asked).sum(axis=2)[:, :, None]
        lost = (self.baseline * (1 - self.winner) * self.asked).sum(axis=2)[:, :, None]
        return gained, lost, self.asked.sum(axis=1)[:, None]


def _share(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


def draw(case: Case, rng: np.random.Generator, seeds: int) -> Draw:
    """Read a test set with both arms under so many seeds."""
    asked = (np.arange(12) < rng.integers(3, 13, case.sites)[:, None]).astype(float)
    common = rng.normal(0, SHARED, (case.sites, 1)) + rng.normal(0, SHARED, asked.shape)

    def answers(shift: float) -> Array:
        seed = rng.normal(0, case.spread, (seeds, 1, 1)) + rng.normal(0, case.spread / 2, (seeds, case.sites, 1))
        logits = CENTRE + shift + common + rng.normal(0, OWN, (case.sites, 1)) + seed
        return (rng.random(logits.shape) < _share(logits)).astype(float)

    return Draw(winner=answers(case.gain), baseline=answers(0.0), asked=asked)


@functools.cache
def find_truth(case: Case) -> float:
    """Return the gain over all sites and seeds."""
    rng = np.random.default_rng(1)
    spread = np.sqrt(2 * SHARED**2 + OWN**2 + case.spread**2 * 1.25)
    noise = rng.normal(0, spread, 2_000_000)
    return float((_share(CENTRE + case.gain + noise) - _share(CENTRE + noise)).mean())


def of_one_seed(case: Case, rng: np.random.Generator, _: int) -> Bounds | None:
    """The interval of pages alone, of the first seed."""
    gained, lost, count = draw(case, rng, 1).tables
    estimate = estimate_gain(gained[0], lost[0], count)
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def ours(case: Case, rng: np.random.Generator, seeds: int) -> Bounds | None:
    """The product's own interval over sites and seeds."""
    estimate = estimate_gain_over_seeds(*draw(case, rng, seeds).tables)
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def of_sites_alone(case: Case, rng: np.random.Generator, seeds: int) -> Bounds | None:
    """The interval of pages alone, of the mean over seeds."""
    gained, lost, count = draw(case, rng, seeds).tables
    estimate = estimate_gain(gained.mean(axis=0), lost.mean(axis=0), count)
    return None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def summed(case: Case, rng: np.random.Generator, seeds: int) -> Bounds | None:
    """The plain sum of both variances with Satterthwaite's degrees of freedom, symmetric."""

    gained, lost, count = draw(case, rng, seeds).tables
    pages = estimate_gain(gained.mean(axis=0), lost.mean(axis=0), count)
    differences = (gained - lost).sum(axis=(1, 2)) / count.sum()
    of_sites, of_seeds = (pages.standard_error or 0.0) ** 2, differences.var(ddof=1) / seeds
    total = of_sites + of_seeds
    degrees = total**2 / (of_sites**2 / (case.sites - 1) + of_seeds**2 / (seeds - 1)) if total else 1.0
    margin = float(stdtrit(degrees, 1 - TAIL)) * float(np.sqrt(total))
    return pages.value - margin, pages.value + margin


def resamples(case: Case, rng: np.random.Generator, seeds: int) -> Bounds | None:
    """The percentiles of resampled sites and, apart from them, resampled seeds (Owen's pigeonhole bootstrap, 2007)."""
    gained, lost, count = draw(case, rng, seeds).tables
    gain, n = (gained - lost)[:, :, 0], count[:, 0]
    sites = rng.multinomial(case.sites, np.full(case.sites, 1 / case.sites), size=RESAMPLES)
    drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    values = np.einsum("rk,ks,rs->r", drawn, gain, sites) / (sites @ n)
    low, high = np.percentile(values, [100 * TAIL, 100 * (1 - TAIL)])
    return float(low), float(high)


Method = Callable[[Case, np.random.Generator, int], Bounds | None]
METHODS: dict[str, Method] = {
    "sites alone": of_sites_alone,
    "sites and seeds resampled": resamples,
    "variances summed": summed,
    "ours": ours,
}


def simulate(case: Case, method: Method, seeds: int, studies: int, seed: int) -> tuple[float, float]:
    """Return the share of studies whose interval holds the truth, and the mean width in points."""
    rng, truth = np.random.default_rng(seed), find_truth(case)
    bounds = [found for _ in range(studies) if (found := method(case, rng, seeds)) is not None]
    if not bounds:
        return math.nan, math.nan
    held = statistics.fmean(low - 1e-9 <= truth <= high + 1e-9 for low, high in bounds)
    return held, statistics.fmean(100 * (high - low) for low, high in bounds)


def describe(method: Method, seeds: int, studies: int) -> str:
    """Return the cell of one method: its median and its lowest case, which is simulated again."""
    cases = [Case(sites=s, spread=p, gain=g) for s, p, g in itertools.product(SITES, SPREADS, GAINS)]
    found = [(simulate(case, method, seeds, studies, seed=2), case) for case in cases]
    lowest = min(found, key=lambda one: one[0][0])[1]
    again, _ = simulate(lowest, method, seeds, 4 * studies, seed=3)
    held = statistics.median(h for (h, _), _ in found)
    width = statistics.median(w for (_, w), _ in found)
    return f"{held:.1%}, lowest {again:.1%}, width {width:.0f}"


def row(seeds: int, studies: int) -> str:
    """Return a row of the table."""
    if seeds == 1:
        return f"| 1 | {describe(of_one_seed, 1, studies)} | | | |"
    return f"| {seeds} | {' | '.join(describe(method, seeds, studies) for method in METHODS.values())} |"


def choose(case: Case, rng: np.random.Generator) -> tuple[float, bool, bool]:
    """Train equal arms under a seed each and read the best on the test set; say what its interval holds.

    Returns:
        The gain of the chosen run on the test set; whether its interval of pages holds zero, which is what the arm
        gains under another seed; and whether that of three further seeds does.
    """
    noise = np.sqrt(0.6 * 0.4 / (7.5 * case.sites))
    runs = rng.normal(0, case.spread, ARMS)
    best = runs[int(np.argmax(_share(CENTRE + runs) + rng.normal(0, noise, ARMS)))]
    read = draw(Case(sites=case.sites, spread=0.0, gain=best - rng.normal(0, case.spread)), rng, 1).tables
    alone = estimate_gain(read[0][0], read[1][0], read[2])
    further = estimate_gain_over_seeds(*draw(case, rng, 3).tables)

    def holds(low: float | None, high: float | None) -> bool:
        return low is not None and high is not None and low <= 0 <= high

    return alone.value, holds(alone.low, alone.high), holds(further.low, further.high)


def chosen_row(sites: int, spread: float, studies: int) -> str:
    """Return a row of the second table."""
    rng, case = np.random.default_rng(4), Case(sites=sites, spread=spread, gain=0.0)
    gains, alone, further = zip(*(choose(case, rng) for _ in range(studies)), strict=True)
    mean = 100 * statistics.fmean(gains)
    return f"| {sites} | {spread} | {mean:+.1f} | {statistics.fmean(alone):.1%} | {statistics.fmean(further):.1%} |"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="in each case")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    print(f"| seeds | {' | '.join(METHODS)} |")
    print(f"|---|{'---|' * len(METHODS)}", flush=True)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for text in pool.map(row, (1, *SEEDS), itertools.repeat(arguments.studies)):
            print(text, flush=True)
    print("\n| sites | spread of seeds | gain of the chosen run | its interval holds 0 | that of three further seeds |")
    print("|---|---|---|---|---|")
    for sites, spread in itertools.product((30, 80), SPREADS):
        print(chosen_row(sites, spread, arguments.studies), flush=True)


if __name__ == "__main__":
    main()
