import math
import random

import pytest

from study_operator.ledger.data_curve import Curve, DataCurveError, Shape, SizeRun, fit_data_curve
from study_operator.spec.metrics import Direction

SIZES = (200, 400, 800, 1600, 3200, 6400)


def accuracies(values, sizes=SIZES, *, seeds=3, sites=12, spread=0.0, noise=0.0, first=0):
    """Return runs whose accuracy is as given, in the mean: sites differ by a spread, seeds by noise."""
    chance = random.Random(first)
    hard = [chance.gauss(0, spread) for _ in range(sites)]
    runs = []
    for samples, value in zip(sizes, values, strict=True):
        for seed in range(seeds):
            shift = chance.gauss(0, noise)
            # Fractions of right answers: what matters are sums and numbers.
            totals = {f"site{i}": (50 * (value + shift + hard[i]), 50) for i in range(sites)}
            runs.append(SizeRun(samples=samples, seed=seed, sites=totals))
    return runs


def losses(values, sizes=SIZES):
    return [SizeRun(samples=n, seed=0, sites={"": (v, 1)}) for n, v in zip(sizes, values, strict=True)]


def fit_accuracies(runs, least_gain=0.02, **settings):
    return fit_data_curve(runs, direction=Direction.MAXIMIZE, is_share=True, least_gain=least_gain, **settings)


def power(limit, gap, exponent, sizes=SIZES):
    return [limit - gap * n**-exponent for n in sizes]


# --- The curve itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 30.0])
@pytest.mark.parametrize("exponent", [0.2, 0.7])
def test_the_saturation_point_is_where_the_last_doubling_gains_the_stated_amount(delay: float, exponent: float) -> None:
    curve = Curve(limit=0.9, gap=30.0, delay=delay, exponent=exponent)
    point = curve.saturation(0.01)
    assert curve.merit(2 * point) - curve.merit(point) == pytest.approx(0.01)
    assert curve.merit(2.2 * point) - curve.merit(1.1 * point) < 0.01
    assert curve.saturation(100.0) < 1


def test_a_flat_curve_is_saturated_from_the_start() -> None:
    assert Curve(limit=0.9, gap=0.0, delay=0.0, exponent=0.5).saturation(0.01) == 0


def test_no_interval_of_a_share_leaves_0_to_1() -> None:
    noisy = accuracies([0.03, 0.3, 0.6, 0.8, 0.9, 0.97], noise=0.05, spread=0.1)
    sizes = fit_accuracies(noisy).sizes
    assert (sizes[0].low, sizes[-1].high) == (0.0, 1.0)


# --- What is claimed -------------------------------------------------------------------------------------------------


def test_a_curve_that_saturates_within_its_sizes_is_found_with_its_point() -> None:
    values = power(0.9, 30, 0.8)
    found = fit_accuracies(accuracies(values, noise=0.002, spread=0.05))
    truth = Curve(limit=0.9, gap=30, delay=0, exponent=0.8).saturation(0.02)
    assert found.saturation.shape is Shape.SATURATES
    assert found.saturation.low <= truth <= found.saturation.high < 4 * 6400
    assert found.saturation.samples == pytest.approx(truth, rel=0.3)
    assert found.curve.merit(6400) == pytest.approx(values[-1], abs=0.03)


def test_a_curve_that_was_flat_all_along_saturates_below_its_smallest_size() -> None:
    found = fit_accuracies(accuracies([0.8] * 6, noise=0.002))
    assert found.saturation.shape is Shape.SATURATES
    assert (found.saturation.samples, found.saturation.low) == (200, 200)


def test_a_curve_that_gains_as_much_with_each_doubling_still_gains() -> None:
    found = fit_accuracies(accuracies([0.5 + 0.05 * i for i in range(6)], noise=0.002))
    assert found.saturation.shape is Shape.STILL_GAINS
    assert found.saturation.samples is None
    assert found.saturation.low > 6400
    assert "6400 samples" in found.saturation.message


def test_noise_that_hides_the_form_makes_the_point_not_identifiable() -> None:
    values = power(0.95, 1.2, 0.25)
    assert fit_accuracies(accuracies(values, noise=0.001)).saturation.shape is not Shape.NOT_IDENTIFIABLE
    found = fit_accuracies(accuracies(values, seeds=2, noise=0.03, first=1))
    assert found.saturation.shape is Shape.NOT_IDENTIFIABLE
    assert found.saturation.samples is None
    assert "not identifiable from these sizes" in found.saturation.message


def test_a_curve_that_turns_down_is_not_forced_up() -> None:
    found = fit_accuracies(accuracies([0.6, 0.7, 0.78, 0.8, 0.77, 0.72], noise=0.004))
    assert found.saturation.shape is Shape.TURNS_DOWN
    assert found.curve is None
    assert found.predict(12_800) is None
    assert found.saturation.message == "6400 samples are worse than 1600"


def test_a_loss_that_turns_up_turns_down_in_merit() -> None:
    sizes = (*SIZES, 12_800, 25_600)
    found = fit_data_curve(
        losses([2.0, 1.6, 1.4, 1.3, 1.25, 1.3, 1.45, 1.7], sizes),
        direction=Direction.MINIMIZE,
        is_share=False,
        least_gain=0.05,
    )
    assert found.saturation.shape is Shape.TURNS_DOWN


def test_a_last_size_that_is_worse_by_chance_alone_seldom_turns() -> None:
    shapes = [fit_accuracies(accuracies([0.8] * 6, noise=0.02, first=i)).saturation.shape for i in range(20)]
    assert shapes.count(Shape.TURNS_DOWN) <= 3


def test_few_sizes_are_no_curve() -> None:
    found = fit_accuracies(accuracies([0.5, 0.6, 0.65, 0.66], SIZES[:4]))
    assert found.curve is None
    assert found.saturation.shape is Shape.NOT_IDENTIFIABLE
    assert "at least 5 sizes, got 4" in found.saturation.message
    assert [size.mean for size in found.sizes] == pytest.approx([0.5, 0.6, 0.65, 0.66])


# --- Intervals -------------------------------------------------------------------------------------------------------


def test_sites_that_differ_widen_what_is_known_of_a_size() -> None:
    values = power(0.9, 30, 0.8)
    alike, unlike = (fit_accuracies(accuracies(values, noise=0.002, spread=spread)).sizes[3] for spread in (0.001, 0.1))
    assert unlike.high - unlike.low > 5 * (alike.high - alike.low)


def test_seeds_that_differ_widen_the_curve() -> None:
    values = power(0.9, 30, 0.8)
    calm, noisy = (fit_accuracies(accuracies(values, noise=noise)).predict(25_600) for noise in (0.001, 0.01))
    assert noisy.high - noisy.low > 2 * (calm.high - calm.low)


def test_a_size_has_no_interval_without_seeds_or_sites() -> None:
    found = fit_accuracies(accuracies(power(0.9, 30, 0.8), seeds=1, sites=3))
    assert [(size.low, size.high) for size in found.sizes] == [(None, None)] * 6
    assert found.predict(12_800).high < 1


def test_a_share_is_never_foretold_above_one_and_a_loss_never_below_zero() -> None:
    rising = fit_accuracies(accuracies([0.5, 0.6, 0.7, 0.8, 0.9, 0.97], noise=0.005)).predict(10**9)
    assert rising.high <= 1
    falling = fit_data_curve(
        losses([2.0, 1.6, 1.2, 0.8, 0.4, 0.1]), direction=Direction.MINIMIZE, is_share=False, least_gain=0.05
    ).predict(10**9)
    assert 0 <= falling.low <= falling.value <= falling.high


def test_a_loss_is_the_mirror_of_its_merit() -> None:
    values = [2.0, 1.5, 1.2, 1.05, 0.98, 0.95]
    found = fit_data_curve(losses(values), direction=Direction.MINIMIZE, is_share=False, least_gain=0.05)
    assert found.predict(400).value == pytest.approx(1.5, abs=0.05)
    assert found.predict(12_800).value < 0.95
    assert found.saturation.shape is Shape.SATURATES


# --- Its input -------------------------------------------------------------------------------------------------------


def test_the_order_of_runs_does_not_matter_and_the_seed_decides_what_is_drawn() -> None:
    runs = accuracies(power(0.9, 30, 0.8), noise=0.01, spread=0.05)
    assert fit_accuracies(runs) == fit_accuracies(list(reversed(runs)))
    assert fit_accuracies(runs).drawn != fit_accuracies(runs, seed=1).drawn


def test_larger_sites_count_more() -> None:
    run = SizeRun(samples=10, seed=0, sites={"large": (90.0, 100), "small": (0.0, 10)})
    assert run.value == pytest.approx(90 / 110)


@pytest.mark.parametrize(
    ("runs", "least_gain", "message"),
    [
        ([], 0.01, "at least one run, got none"),
        ([SizeRun(samples=0, seed=0, sites={"": (1.0, 1)})], 0.01, "at least 1, got 0"),
        ([SizeRun(samples=5, seed=0, sites={"": (0.0, 0)})], 0.01, "5 samples must be measured on at least 1 question"),
        ([SizeRun(samples=5, seed=0, sites={"": (math.nan, 1)})], 0.01, "must be finite, got nan"),
        ([SizeRun(samples=5, seed=0, sites={"": (1.0, 1)})], 0.0, "greater than 0, got 0.0"),
    ],
    ids=["no runs", "no samples", "no questions", "not finite", "no gain"],
)
def test_what_is_no_data_curve_is_refused(runs, least_gain, message) -> None:
    with pytest.raises(DataCurveError, match=message):
        fit_accuracies(runs, least_gain)
