"""What might have been measured with other sites and other seeds: the draws behind the intervals of data curves.

Called by `data_curve.py` and `curve_comparison.py`; knows nothing of curves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

CONFIDENCE = 0.90
LEAST_SITES = 5
"""With fewer no interval holds what it says (`docs/benchmarks.md`, Intervals)."""
REPLICATES = 400


def resample_sites(sites: Sequence[str], seed: int) -> list[Mapping[str, int]]:
    """Return for each replicate how often each site is drawn.

    The same sites and seed give the same draws, so that what is measured on the same questions can be compared
    replicate by replicate.
    """
    chance, drawn = random.Random(f"{seed}/sites"), list[Mapping[str, int]]()
    for _ in range(REPLICATES):
        weights = dict.fromkeys(sites, 0)
        for site in chance.choices(sites, k=len(sites)):
            weights[site] += 1
        drawn.append(weights)
    return drawn


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Of the mean of each size, beside the choice of sites."""

    deviations: tuple[float, ...]
    freedom: int
    """Degrees of freedom that they are known with; 0 where they are not."""

    @classmethod
    def pool(cls, values: Sequence[Sequence[float]]) -> Noise:
        """Return what the values of a size differ by, pooled over sizes: all runs answer the same questions."""
        freedom = sum(len(of_size) - 1 for of_size in values)
        squares = 0.0
        for of_size in values:
            mean = fmean(of_size)
            squares += math.fsum((value - mean) ** 2 for value in of_size)
        deviation = math.sqrt(squares / freedom) if freedom else 0.0
        return cls(deviations=tuple(deviation / math.sqrt(len(of_size)) for of_size in values), freedom=freedom)

    def draw(self, means: Sequence[float], chance: random.Random) -> list[float]:
        """Draw what the means might have been with other seeds."""
        if not self.freedom:
            return list(means)
        # Student's t, with one scale for all sizes, as it is one guess.
        scale = math.sqrt(self.freedom / chance.gammavariate(self.freedom / 2, 2))
        return [m + scale * d * chance.gauss(0, 1) for m, d in zip(means, self.deviations, strict=True)]


def find_ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the interval that most of the values lie in."""
    ordered = sorted(values)
    return quantile(ordered, (1 - CONFIDENCE) / 2), quantile(ordered, (1 + CONFIDENCE) / 2)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted numbers, which may be infinite: no two are mixed."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
