"""How a metric grows with the training data: a saturating curve, the size at which it saturates, and how sure that is.

Called with what runs of nested training sets measured; knows nothing of trials. The curve is the rectified power law of
Lin et al. (2024, "Selecting Large Language Model to Fine-tune via Rectified Scaling Law", arXiv 2402.02314, eq. 4),

    f(n) = limit - gap / (delay + n ** exponent)

of merit (a loss counts negative), with ``gap >= 0`` and a limit that the metric may have: it rises, ever slower in the
end, and needs some data before it does. A curve that turns down is none of these, is said to do so, and is not fitted.

Three kinds of noise are drawn anew for an interval. *Sites* are resampled, the same for all sizes, because all runs
answer the same questions. *Seeds*: the mean of a size varies by what its seeds differ by, pooled over sizes, with
Student's t because few seeds tell it. *Form*: where the curve leaves more than that, or there is one seed for each
size, what it leaves counts as noise.

Where the metric saturates is a statement about sizes that nobody ran, unless these reach so far. It is given only where
its interval ends before `HORIZON` times the largest size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from study_operator.errors import OperatorError
from study_operator.ledger.resampling import (
    CONFIDENCE,
    LEAST_SITES,
    REPLICATES,
    Noise,
    find_ends,
    quantile,
    resample_sites,
)
from study_operator.spec.metrics import Direction

LEAST_SIZES = 5
"""Four numbers describe a curve."""
HORIZON = 4.0
"""Times the largest size: how far a curve is believed."""
FORM_FACTOR = 2.0
"""Times what a curve leaves, for what it does not know beyond its sizes: where it is off, it is off the same way at
neighbouring sizes, and follows them. Chosen on half of the real curves of `benchmarks/data_curve.py`."""

EXPONENTS = tuple(0.05 * 1.13**i for i in range(26))
"""From a curve that is a line over the logarithm of the size to one that is done after a doubling."""
DELAYS = (0.0, 0.1, 0.3, 0.7, 1.5, 3.0, 6.0, 12.0, 30.0)
"""In units of the smallest size's own ``n ** exponent``."""


class DataCurveError(OperatorError):
    """What was measured is no data curve."""

    reason = "DataCurveUnusable"


@dataclass(frozen=True, kw_only=True)
class SizeRun:
    """One run on a subset of the training data."""

    samples: int
    seed: int
    sites: Mapping[str, tuple[float, float]]
    """Sum of the metric over a site's validation questions, and their number, or both weighted. One site where none are
    known."""

    @property
    def value(self) -> float:
        """The metric over all questions."""
        return math.fsum(total for total, _ in self.sites.values()) / sum(n for _, n in self.sites.values())

    def value_on(self, weights: Mapping[str, int]) -> float:
        """Return the metric where each site counts so many times."""
        total = count = 0.0
        for site, (part, n) in self.sites.items():
            total += weights[site] * part
            count += weights[site] * n
        # A run none of whose sites was drawn, which takes a run that lacks most sites.
        return total / count if count else self.value


@dataclass(frozen=True, kw_only=True)
class Curve:
    """``limit - gap / (delay + n ** exponent)``, of merit."""

    limit: float
    gap: float
    delay: float
    exponent: float

    def merit(self, samples: float) -> float:
        """Return the merit at a size."""
        return self.limit - self.gap / (self.delay + math.pow(samples, self.exponent))

    def saturation(self, least_gain: float) -> float:
        """Return the size beyond which no doubling gains as much; 0 where none ever does.

        ``f(2n) - f(n) = gap (k - 1) x / ((delay + x) (delay + k x))`` with ``x = n ** exponent`` and ``k = 2 **
        exponent``: below the larger root of a quadratic in ``x`` a doubling gains that much, down to the smaller one.
        """
        k = math.pow(2, self.exponent)
        a, b, c = least_gain * k, least_gain * self.delay * (1 + k) - self.gap * (k - 1), least_gain * self.delay**2
        square = b * b - 4 * a * c
        if square < 0 or b >= 0:
            return 0.0
        root = (-b + math.sqrt(square)) / (2 * a)
        return math.exp(min(700.0, math.log(root) / self.exponent))


@dataclass(frozen=True, kw_only=True)
class SizeMean:
    """What the runs of one size measured."""

    samples: int
    runs: int
    mean: float
    low: float | None
    """Of the interval over sites and seeds; None where there are neither enough sites nor two seeds of any size."""
    high: float | None


class Shape(StrEnum):
    """What can be said of a curve."""

    SATURATES = "Saturates"
    """The saturation point and its interval lie within the horizon."""
    STILL_GAINS = "StillGains"
    """At the largest size, doubling the data still gains as much as was asked for, or more."""
    TURNS_DOWN = "TurnsDown"
    """The largest size is worse than a smaller one."""
    NOT_IDENTIFIABLE = "NotIdentifiable"
    """These sizes and seeds do not tell."""


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """The size beyond which doubling the data gains less than a stated amount."""

    shape: Shape
    least_gain: float
    samples: float | None = None
    """None unless it saturates. Not beyond the smallest size where every doubling gains less."""
    low: float | None = None
    high: float | None = None
    """None where the interval is open above."""
    message: str = ""
    """One sentence for a person where no number can be given."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The metric at a size, as the curve has it, with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class DataCurve:
    """What is known of a metric over sizes of the training data."""

    sizes: tuple[SizeMean, ...]
    curve: Curve | None
    """None where it turns down or there are too few sizes."""
    saturation: Saturation
    direction: Direction
    drawn: tuple[Curve, ...] = ()
    """One for each replicate: what the curve might be as well."""

    def predict(self, samples: float) -> Prediction | None:
        """Return the metric at a size; None where there is no curve."""
        if self.curve is None:
            return None
        sign = sign_of(self.direction)
        low, high = find_ends([sign * curve.merit(samples) for curve in self.drawn])
        return Prediction(value=sign * self.curve.merit(samples), low=low, high=high)


def fit_data_curve(
    runs: Sequence[SizeRun],
    *,
    direction: Direction,
    is_share: bool,
    least_gain: float,
    seed: int = 0,
    name: str = "",
) -> DataCurve:
    """Return what runs on several sizes say of the metric as a function of the size.

    Args:
        runs: one or more of each size, in any order.
        direction: which way the metric is better.
        is_share: whether the metric lies between 0 and 1; else its best value is 0 where it is minimized.
        least_gain: of a doubling, in the metric's unit: less is called saturated.
        seed: of what is resampled. The same arguments give the same result.
        name: of the curve, where there is another one of the same sites: with one seed and two names, their replicates
            draw the same sites and each its own noise of seeds.

    Raises:
        DataCurveError: where a run has no samples, no questions, or a value that is not finite.
    """
    _check(runs, least_gain)
    data = _Data.of(runs, direction)
    chance, noise = random.Random(f"{seed}/seeds/{name}"), data.seed_noise()
    resampled = data.resample_sites(seed)
    replicates = [noise.draw(means, chance) for means in resampled]
    most = 1.0 if is_share else math.inf if direction is Direction.MINIMIZE else None
    sizes = data.describe(replicates, has_interval=data.has_sites or noise.freedom >= 1, most=most)
    if len(data.sizes) < LEAST_SIZES:
        message = f"a curve needs at least {LEAST_SIZES} sizes, got {len(data.sizes)}"
        return DataCurve(sizes=sizes, curve=None, saturation=_unknown(least_gain, message), direction=direction)

    # Does it rise at all? A size that is beaten by chance alone is no turn.
    better = data.find_better_than_last(resampled, chance, noise)
    if better is not None:
        message = f"{data.sizes[-1]} samples are worse than {better}"
        turned = Saturation(shape=Shape.TURNS_DOWN, least_gain=least_gain, message=message)
        return DataCurve(sizes=sizes, curve=None, saturation=turned, direction=direction)

    # The curve, and what it might be as well.
    best_merit = (
        1.0 if direction is Direction.MAXIMIZE and is_share else 0.0 if direction is Direction.MINIMIZE else None
    )
    fitter = _Fitter(data.sizes, best_merit)
    curve = fitter.fit(data.means)
    noise = data.form_noise(curve, noise)
    drawn = tuple(fitter.fit(noise.draw(means, chance)) for means in resampled)
    saturation = _find_saturation(curve, drawn, data.sizes, least_gain)
    return DataCurve(sizes=sizes, curve=curve, saturation=saturation, direction=direction, drawn=drawn)


def _check(runs: Sequence[SizeRun], least_gain: float) -> None:
    if not least_gain > 0:
        raise DataCurveError(f"the least gain must be greater than 0, got {least_gain!r}")
    if not runs:
        raise DataCurveError("a data curve must have at least one run, got none")
    for run in runs:
        if run.samples < 1:
            raise DataCurveError(f"the number of samples must be at least 1, got {run.samples}")
        if sum(n for _, n in run.sites.values()) < 1:
            raise DataCurveError(f"a run on {run.samples} samples must be measured on at least 1 question, got none")
        if not math.isfinite(run.value):
            raise DataCurveError(f"what a run on {run.samples} samples measured must be finite, got {run.value}")


def _find_saturation(curve: Curve, drawn: Sequence[Curve], sizes: Sequence[int], least_gain: float) -> Saturation:
    low, high = find_ends([other.saturation(least_gain) for other in drawn])
    point = curve.saturation(least_gain)
    horizon = HORIZON * sizes[-1]
    if max(point, high) <= horizon:
        return Saturation(
            shape=Shape.SATURATES,
            least_gain=least_gain,
            samples=max(point, float(sizes[0])),
            low=max(min(low, point), float(sizes[0])),
            high=max(high, point, float(sizes[0])),
        )
    if low > sizes[-1]:
        message = f"at {sizes[-1]} samples doubling the data still gains {least_gain:g} or more"
        return Saturation(shape=Shape.STILL_GAINS, least_gain=least_gain, low=low, message=message)
    message = f"it may lie anywhere from {max(low, sizes[0]):.0f} samples on"
    return _unknown(least_gain, message, low=max(low, float(sizes[0])))


def _unknown(least_gain: float, message: str, low: float | None = None) -> Saturation:
    return Saturation(
        shape=Shape.NOT_IDENTIFIABLE,
        least_gain=least_gain,
        low=low,
        message=f"not identifiable from these sizes: {message}",
    )


# What was measured, and its noise.


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Runs by size, as merits."""

    sizes: tuple[int, ...]
    runs: tuple[tuple[SizeRun, ...], ...]
    sites: tuple[str, ...]
    means: tuple[float, ...]
    sign: int

    @classmethod
    def of(cls, runs: Sequence[SizeRun], direction: Direction) -> _Data:
        sizes = tuple(sorted({run.samples for run in runs}))
        # In one order, whatever order they came in.
        by_size = tuple(tuple(sorted((r for r in runs if r.samples == s), key=lambda r: r.seed)) for s in sizes)
        sign = sign_of(direction)
        return cls(
            sizes=sizes,
            runs=by_size,
            sites=tuple(sorted({site for run in runs for site in run.sites})),
            means=tuple(sign * fmean(run.value for run in of_size) for of_size in by_size),
            sign=sign,
        )

    @property
    def has_sites(self) -> bool:
        return len(self.sites) >= LEAST_SITES

    def seed_noise(self) -> Noise:
        """Return what seeds differ by."""
        return Noise.pool([[run.value for run in runs] for runs in self.runs])

    def form_noise(self, curve: Curve, seeds: Noise) -> Noise:
        """Return the noise of means about a curve: what seeds make of it, or more where the curve leaves more."""
        freedom = max(1, len(self.sizes) - 4)
        left = math.fsum((mean - curve.merit(n)) ** 2 for n, mean in zip(self.sizes, self.means, strict=True))
        deviation = FORM_FACTOR * math.sqrt(left / freedom)
        if seeds.freedom and deviation <= max(seeds.deviations):
            return seeds
        deviations = tuple(max(deviation, seed) for seed in seeds.deviations)
        return Noise(deviations=deviations, freedom=max(freedom, seeds.freedom))

    def resample_sites(self, seed: int) -> list[Sequence[float]]:
        """Return for each replicate the mean of each size over other sites; the same where there are too few."""
        if not self.has_sites:
            return [self.means] * REPLICATES
        return [
            [self.sign * fmean(run.value_on(weights) for run in runs) for runs in self.runs]
            for weights in resample_sites(self.sites, seed)
        ]

    def describe(
        self, replicates: Sequence[Sequence[float]], *, has_interval: bool, most: float | None
    ) -> tuple[SizeMean, ...]:
        """Return the mean of each size with its interval, no wider than from 0 to the most that the metric can be.

        A metric without such limits has None.
        """
        least, most = (-math.inf, math.inf) if most is None else (0.0, most)
        described = []
        for at, (samples, runs, mean) in enumerate(zip(self.sizes, self.runs, self.means, strict=True)):
            ends = find_ends([self.sign * means[at] for means in replicates])
            low, high = (min(max(end, least), most) for end in ends) if has_interval else (None, None)
            described.append(SizeMean(samples=samples, runs=len(runs), mean=self.sign * mean, low=low, high=high))
        return tuple(described)

    def find_better_than_last(
        self, resampled: Sequence[Sequence[float]], chance: random.Random, seeds: Noise
    ) -> int | None:
        """Return the best smaller size that is better than the largest beyond noise; None where there is none.

        Bonferroni over the smaller sizes. Where there is one seed for each size, third differences tell the noise:
        those of a smooth curve are small (Seifert et al., 1993, "Nonparametric estimation of residual variance
        revisited").
        """
        best = max(range(len(self.sizes)), key=lambda at: self.means[at])
        if best == len(self.sizes) - 1:
            return None
        noise = seeds
        if not seeds.freedom:
            thirds = [d - 3 * c + 3 * b - a for a, b, c, d in zip(*(self.means[i:] for i in range(4)), strict=False)]
            deviation = math.sqrt(math.fsum(third**2 for third in thirds) / (20 * len(thirds)))
            noise = Noise(deviations=(deviation,) * len(self.sizes), freedom=len(thirds))
        drawn = [noise.draw(means, chance) for means in resampled]
        losses = sorted(means[-1] - means[best] for means in drawn)
        level = (1 - CONFIDENCE) / 2 / (len(self.sizes) - 1)
        return self.sizes[best] if quantile(losses, 1 - level) < 0 else None


# The fit.


@dataclass(frozen=True)
class _Form:
    """One exponent and delay. Limit and gap are then linear least squares."""

    exponent: float
    delay: float
    heights: tuple[float, ...]
    """1 / (delay + n ** exponent) at each size, above their mean."""
    mean_height: float
    square: float


class _Fitter:
    """Least squares over a grid of exponents and delays."""

    def __init__(self, sizes: Sequence[int], best_merit: float | None) -> None:
        self._best_merit = best_merit
        self._forms = [_form(sizes, exponent, delay) for exponent in EXPONENTS for delay in DELAYS]

    def fit(self, means: Sequence[float]) -> Curve:
        """Return the best curve through the means of the sizes."""
        middle = fmean(means)
        centred = [mean - middle for mean in means]
        spread = math.fsum(c * c for c in centred)
        least, best = math.inf, Curve(limit=middle, gap=0.0, delay=0.0, exponent=1.0)
        for form in self._forms:
            # It rises: the more is missing, the lower the merit.
            gap = max(0.0, -sum(map(float.__mul__, form.heights, centred)) / form.square)
            limit = middle + gap * form.mean_height
            left = spread - gap * gap * form.square
            if self._best_merit is not None and limit > self._best_merit:
                # As high as the metric goes: then only the gap is free.
                limit = self._best_merit
                gap, left = _fit_gap(form, [limit - middle - c for c in centred])
            if left < least:
                least, best = left, Curve(limit=limit, gap=gap, delay=form.delay, exponent=form.exponent)
        return best


def _fit_gap(form: _Form, missing: Sequence[float]) -> tuple[float, float]:
    """Return the gap that explains best what is missing to the limit, and the squares that it leaves."""
    heights = [height + form.mean_height for height in form.heights]
    gap = max(0.0, sum(map(float.__mul__, heights, missing)) / sum(height * height for height in heights))
    return gap, sum((m - gap * height) ** 2 for m, height in zip(missing, heights, strict=True))


def _form(sizes: Sequence[int], exponent: float, delay: float) -> _Form:
    delay *= float(sizes[0]) ** exponent
    heights = [1 / (delay + n**exponent) for n in sizes]
    mean_height = fmean(heights)
    above = tuple(height - mean_height for height in heights)
    return _Form(exponent, delay, above, mean_height, math.fsum(h * h for h in above))


def sign_of(direction: Direction) -> int:
    """Return what makes a merit of a value of the metric: 1 or -1."""
    return 1 if direction is Direction.MAXIMIZE else -1
