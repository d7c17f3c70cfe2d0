"""What variants of training pages gain, and how much data they stand for: two data curves of one arm, side by side.

Called with what runs without variants and with them measured, both on the same nested parts of the training data.

The *gain* at a size is the mean difference of pairs: two runs of one seed see the same part of the data in the same
order and answer the same questions, so that what a site and a seed do to both drops out.

What variants are *worth* in data is one number for all sizes: how many times the data the curve without variants must
have to lie, at each size, as near as it can to the one with them. The *shift* is the ratio of the two saturation
points, which each curve has by itself; where a curve is nearly flat its place is far less sure than its height. Each
replicate draws the same sites for both curves; their noise of seeds is drawn apart, which is cautious where a part that
is good for one run is good for its pair.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from study_operator.ledger.data_curve import (
    HORIZON,
    Curve,
    DataCurve,
    Saturation,
    Shape,
    SizeRun,
    fit_data_curve,
    sign_of,
)
from study_operator.ledger.resampling import LEAST_SITES, REPLICATES, Noise, find_ends, resample_sites
from study_operator.spec.metrics import Direction

NAMES = {False: "plain", True: "augmented"}
"""Of the two curves, by whether they are with variants: what their noise of seeds is drawn by."""


@dataclass(frozen=True, kw_only=True)
class SizeGain:
    """What variants gain at one size, greater than 0 where they are better."""

    samples: int
    pairs: int
    """Seeds with a run of each kind."""
    gain: float
    """In the metric's unit."""
    low: float | None
    """Of the interval over sites and seeds; None where there are neither enough sites nor two pairs of any size."""
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Shift:
    """The saturation point with variants, as a multiple of the one without: below 1 they stand for data."""

    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    message: str = ""
    """Why there is no ratio: the end of a sentence for a person."""


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What variants stand for, in times the data: above 1 as much is measured without them on so much more."""

    times: float | None = None
    low: float | None = None
    high: float | None = None
    message: str = ""
    """Why there is no number: the end of a sentence for a person."""


@dataclass(frozen=True, kw_only=True)
class CurveComparison:
    """Two data curves of one arm."""

    plain: DataCurve
    """Without variants."""
    augmented: DataCurve
    gains: tuple[SizeGain, ...]
    """At each size with a pair."""
    worth: Worth
    shift: Shift


def compare_data_curves(
    plain: Sequence[SizeRun],
    augmented: Sequence[SizeRun],
    *,
    direction: Direction,
    is_share: bool,
    least_gain: float,
    seed: int = 0,
) -> CurveComparison:
    """Return both curves, the gain at each size, what variants are worth in data, and the shift.

    Args:
        plain: runs without variants.
        augmented: runs with them.
        direction: which way the metric is better.
        is_share: whether the metric lies between 0 and 1; else its best value is 0 where it is minimized.
        least_gain: of a doubling, in the metric's unit: less is called saturated.
        seed: of what is resampled. The same arguments give the same result.

    Raises:
        DataCurveError: where one of the two has no runs, or a run no samples, no questions, or no finite value.
    """
    curves = [
        fit_data_curve(runs, direction=direction, is_share=is_share, least_gain=least_gain, seed=seed, name=name)
        for name, runs in ((NAMES[False], plain), (NAMES[True], augmented))
    ]
    return CurveComparison(
        plain=curves[0],
        augmented=curves[1],
        gains=_measure_gains(plain, augmented, sign_of(direction), seed),
        worth=_find_worth(*curves),
        shift=_find_shift(*curves),
    )


# The gain at each size.


def _measure_gains(
    plain: Sequence[SizeRun], augmented: Sequence[SizeRun], sign: int, seed: int
) -> tuple[SizeGain, ...]:
    by_size = _find_pairs(plain, augmented)
    if not by_size:
        return ()
    differences = [[sign * (two.value - one.value) for one, two in pairs] for _, pairs in by_size]
    means, noise, chance = [fmean(d) for d in differences], Noise.pool(differences), random.Random(f"{seed}/gains")
    sites = sorted({site for _, pairs in by_size for pair in pairs for run in pair for site in run.sites})
    has_sites = len(sites) >= LEAST_SITES
    resampled = (
        [
            [sign * fmean(two.value_on(weights) - one.value_on(weights) for one, two in pairs) for _, pairs in by_size]
            for weights in resample_sites(sites, seed)
        ]
        if has_sites
        else [means] * REPLICATES
    )
    drawn = [noise.draw(of_replicate, chance) for of_replicate in resampled]
    gains = []
    for at, (samples, pairs) in enumerate(by_size):
        low, high = find_ends([of_replicate[at] for of_replicate in drawn])
        is_known = has_sites or noise.freedom >= 1
        gains.append(
            SizeGain(
                samples=samples,
                pairs=len(pairs),
                gain=means[at],
                low=low if is_known else None,
                high=high if is_known else None,
            )
        )
    return tuple(gains)


def _find_pairs(
    plain: Sequence[SizeRun], augmented: Sequence[SizeRun]
) -> list[tuple[int, list[tuple[SizeRun, SizeRun]]]]:
    """Return the pairs of runs of each size that has some, by size and seed."""
    others = {(run.samples, run.seed): run for run in augmented}
    pairs: dict[int, list[tuple[SizeRun, SizeRun]]] = {}
    for run in sorted(plain, key=lambda run: (run.samples, run.seed)):
        other = others.get((run.samples, run.seed))
        if other is not None:
            pairs.setdefault(run.samples, []).append((run, other))
    return list(pairs.items())


# What they are worth in data.

TIMES = tuple(2 ** (i / 12) for i in range(-48, 49))
"""From a sixteenth to sixteen times the data."""


def _find_worth(plain: DataCurve, augmented: DataCurve) -> Worth:
    if plain.curve is None or augmented.curve is None:
        return Worth(message=f"{'without' if plain.curve is None else 'with'} variants no curve is fitted")
    # Where both were measured: else one of them is a guess.
    sizes = sorted({size.samples for size in plain.sizes} & {size.samples for size in augmented.sizes})
    if not sizes:
        return Worth(message="no size was measured both without variants and with them")
    low, high = find_ends([_match(one, two, sizes) for one, two in zip(plain.drawn, augmented.drawn, strict=True)])
    if low <= TIMES[0] or high >= TIMES[-1]:
        return Worth(message="the curve without variants is too flat, or too far from the one with them")
    times = _match(plain.curve, augmented.curve, sizes)
    return Worth(times=times, low=min(low, times), high=max(high, times))


def _match(plain: Curve, augmented: Curve, sizes: Sequence[int]) -> float:
    """Return at how many times the data one curve lies nearest to the other."""
    merits = [augmented.merit(samples) for samples in sizes]

    def miss(times: float) -> float:
        return math.fsum((plain.merit(times * n) - merit) ** 2 for n, merit in zip(sizes, merits, strict=True))

    return min(TIMES, key=miss)


# The shift.


def _find_shift(plain: DataCurve, augmented: DataCurve) -> Shift:
    for name, found in (("without", plain.saturation), ("with", augmented.saturation)):
        if found.shape is not Shape.SATURATES:
            return Shift(message=f"{name} variants the curve is not seen to saturate")
    brackets = [
        _divide(_bracket(two, augmented), _bracket(one, plain))
        for one, two in zip(_saturate(plain), _saturate(augmented), strict=True)
    ]
    low, high = find_ends([bracket[0] for bracket in brackets])[0], find_ends([bracket[1] for bracket in brackets])[1]
    ratio = (augmented.saturation.samples or 0.0) / (plain.saturation.samples or math.inf)
    if low > 0 and math.isfinite(high):
        return Shift(ratio=ratio, low=min(low, ratio), high=max(high, ratio))
    # Both saturate, so that what is not known lies below the smallest size.
    name = "with" if _is_early(augmented.saturation, augmented) else "without"
    smallest = (augmented if name == "with" else plain).sizes[0].samples
    return Shift(message=f"{name} variants the curve may have saturated before the smallest size, {smallest} samples")


def _saturate(curve: DataCurve) -> list[float]:
    """Return the saturation point of each replicate."""
    return [drawn.saturation(curve.saturation.least_gain) for drawn in curve.drawn]


def _is_early(found: Saturation, curve: DataCurve) -> bool:
    return found.low is not None and found.low <= curve.sizes[0].samples


def _bracket(point: float, curve: DataCurve) -> tuple[float, float]:
    """Return what is known of a point: outside of the sizes and the horizon only on which side it lies."""
    smallest, horizon = float(curve.sizes[0].samples), HORIZON * curve.sizes[-1].samples
    if point < smallest:
        return 0.0, smallest
    return (horizon, math.inf) if point > horizon else (point, point)


def _divide(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] / other[1], one[1] / other[0] if other[0] else math.inf
