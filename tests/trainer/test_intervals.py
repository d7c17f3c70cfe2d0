"""Standard errors and intervals of shares in sites: by hand, at the edges, and whether they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trial_trainer.contract import LEAST_SEEDS, LEAST_SITES
from trial_trainer.intervals import estimate_gain, estimate_gain_over_seeds, estimate_mean, estimate_share


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def share(right: list[float], asked: list[float]):
    return estimate_share(column(*right), column(*asked))


# Standard errors -------------------------------------------------------------------------------------------------


def test_the_standard_error_is_cr2_computed_by_hand() -> None:
    # 6 of 10 right. Residuals 2 - 0.6 x 4 = -0.4, 2 - 1.8 = 0.2, 0.4, -0.6, 0.4; leverages 0.4, 0.3, 0.1, 0.1, 0.1.
    squares = 0.4**2 / 0.6 + 0.2**2 / 0.7 + (0.4**2 + 0.6**2 + 0.4**2) / 0.9
    estimate = share([2, 2, 1, 0, 1], [4, 3, 1, 1, 1])
    assert estimate.value == 0.6
    assert estimate.standard_error == pytest.approx(math.sqrt(squares) / 10)


def test_cr2_is_the_variance_of_least_squares_with_a_column_for_each_attribute() -> None:
    """The closed form against the matrices of Bell and McCaffrey's definition."""
    rng = np.random.default_rng(3)
    count = rng.integers(0, 4, (7, 3)) + (np.arange(7)[:, None] == 0)
    total = rng.binomial(count, 0.4)
    rows = [(s, k, i < total[s, k]) for s in range(7) for k in range(3) for i in range(count[s, k])]
    site, y = np.array([r[0] for r in rows]), np.array([r[2] for r in rows], dtype=float)
    x = np.array([[float(r[1] == k) for k in range(3)] for r in rows])
    inverse, contrast = np.linalg.inv(x.T @ x), np.full(3, 1 / 3)
    residual = y - x @ (inverse @ x.T @ y)
    variance = 0.0
    for s in range(7):
        xs = x[site == s]
        values, vectors = np.linalg.eigh(np.eye(len(xs)) - xs @ inverse @ xs.T)
        adjusted = vectors @ np.diag(values**-0.5) @ vectors.T @ residual[site == s]
        variance += float(contrast @ inverse @ xs.T @ adjusted) ** 2
    estimate = estimate_share(total.astype(float), count.astype(float))
    assert estimate.standard_error == pytest.approx(math.sqrt(variance))


def test_one_question_a_site_gives_the_textbook_standard_error() -> None:
    rights = [1, 0, 0, 1, 1, 1, 0, 1]
    expected = np.std(rights, ddof=1) / math.sqrt(8)
    assert share(rights, [1] * 8).standard_error == pytest.approx(expected)
    assert estimate_mean(column(*rights), column(*[1] * 8)).standard_error == pytest.approx(expected)


def test_an_attribute_that_one_site_alone_has_may_be_anything_elsewhere() -> None:
    count = np.array([[2.0, 1.0]] + [[2.0, 0.0]] * 9)
    total = np.array([[1.0, 1.0]] + [[1.0, 0.0]] * 9)
    both, without = estimate_share(total, count), estimate_share(total[:, :1], count[:, :1])
    assert both.standard_error == pytest.approx(math.sqrt(0.25 / 4))
    assert both.high - both.low > 0.9
    assert without.high - without.low < 0.5


# At the edges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [1, 2, 3, LEAST_SITES - 1])
def test_too_few_sites_have_no_interval(sites) -> None:
    estimate = share([1.0] * (sites - 1) + [0.0], [2.0] * sites)
    gain = estimate_gain(column(*[1.0] * sites), column(*[0.0] * sites), column(*[2.0] * sites))
    for one in (estimate, gain):
        assert (one.standard_error, one.low, one.high) == (None, None, None)


@pytest.mark.parametrize(
    ("sites", "high"),
    [
        pytest.param(5, 0.522, id="five sites"),
        pytest.param(20, 0.168, id="twenty sites"),
        pytest.param(100, 0.036, id="a hundred sites"),
    ],
)
def test_a_rate_of_nought_is_as_sure_as_its_number_of_sites(sites, high) -> None:
    """Clopper and Pearson's interval for none of so many, however many questions a site has."""
    for asked in (1.0, 50.0):
        none = share([0.0] * sites, [asked] * sites)
        every = share([asked] * sites, [asked] * sites)
        assert (none.value, none.standard_error, none.low) == (0.0, None, 0.0)
        assert none.high == pytest.approx(high, abs=0.001)
        assert (every.high, every.low) == pytest.approx((1.0, 1 - none.high))


def test_a_site_with_most_of_the_questions_is_worth_little_more_than_itself() -> None:
    even, uneven = share([0.0] * 10, [10.0] * 10), share([0.0] * 10, [91.0] + [1.0] * 9)
    assert even.high < 0.35
    assert uneven.high > 0.9


def test_a_difference_of_nought_on_every_site_is_not_certain() -> None:
    nothing = column(*[0.0] * 20)
    gain = estimate_gain(nothing, nothing, column(*[5.0] * 20))
    assert (gain.value, gain.standard_error) == (0.0, None)
    assert (gain.low, gain.high) == pytest.approx((-0.168, 0.168), abs=0.001)


def test_sites_that_happen_to_agree_are_no_better_than_independent_questions() -> None:
    estimate = share([1.0] * 10, [2.0] * 10)
    assert (estimate.value, estimate.standard_error) == (0.5, None)
    assert estimate.low < 0.28 and estimate.high > 0.72


COUNTS = arrays.arrays(np.int64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 30))


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.integers(0, 2**32 - 1))
def test_whatever_the_numbers_an_interval_is_within_bounds_and_holds_its_estimate(count, seed) -> None:
    count = count[count.sum(axis=1) > 0][:, count.sum(axis=0) > 0]
    if not count.size:
        return
    rng = np.random.default_rng(seed)
    gained = rng.binomial(count, rng.random())
    lost = rng.binomial(count - gained, rng.random())
    estimate = estimate_share(gained.astype(float), count.astype(float))
    gain = estimate_gain(gained.astype(float), lost.astype(float), count.astype(float))
    for one, least in ((estimate, 0.0), (gain, -1.0)):
        assert (one.low is None) == (len(count) < LEAST_SITES)
        if one.low is not None:
            assert least <= one.low <= one.value + 1e-9 and one.value - 1e-9 <= one.high <= 1.0
            assert one.high - one.low > 0


# Whether they hold the truth -------------------------------------------------------------------------------------


def draw(rng, sites: int, rate: float, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Return right answers and questions of sites that are easy or hard as a whole, and of uneven size."""
    count = np.ceil(rng.lognormal(1.0, 1.0, (sites, 1)))
    concentration = 1 / correlation - 1
    odds = rng.beta(rate * concentration, (1 - rate) * concentration, (sites, 1))
    return rng.binomial(count.astype(int), odds).astype(float), count


@pytest.mark.parametrize("sites", [LEAST_SITES, 10, 30])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.95])
def test_nineteen_of_twenty_intervals_of_a_share_hold_the_truth(sites, rate) -> None:
    rng = np.random.default_rng(sites)
    held = 0
    for _ in range(300):
        estimate = estimate_share(*draw(rng, sites, rate, correlation=0.3))
        held += estimate.low <= rate <= estimate.high
    assert held / 300 >= 0.93


@pytest.mark.parametrize("sites", [LEAST_SITES, 10, 30])
@pytest.mark.parametrize(("gain", "loss"), [(0.05, 0.01), (0.2, 0.15), (0.6, 0.02)])
def test_nineteen_of_twenty_intervals_of_a_gain_hold_the_truth(sites, gain, loss) -> None:
    rng = np.random.default_rng(sites)
    held = 0
    for _ in range(300):
        count = np.ceil(rng.lognormal(1.0, 1.0, (sites, 1)))
        odds = rng.dirichlet(np.array([gain, loss, 1 - gain - loss]) * 3, sites)
        counts = rng.multinomial(count[:, 0].astype(int), odds).astype(float)
        estimate = estimate_gain(counts[:, :1], counts[:, 1:2], count)
        held += estimate.low <= gain - loss <= estimate.high
    assert held / 300 >= 0.93


def test_intervals_that_forget_the_sites_hold_it_too_seldom() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(100):
        total, count = draw(rng, 30, 0.5, correlation=0.5)
        questions = np.repeat([1.0, 0.0], [int(total.sum()), int((count - total).sum())])
        estimate = estimate_share(questions[:, None], np.ones((len(questions), 1)))
        held += estimate.low <= 0.5 <= estimate.high
    assert held < 85


# Over seeds ------------------------------------------------------------------------------------------------------


def many_sites(gains: list[int], sites: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a test set of one question a site, of which so many more are gained than lost under each seed."""
    gained, lost = np.zeros((len(gains), sites, 1)), np.zeros((len(gains), sites, 1))
    for seed, gain in enumerate(gains):
        gained[seed, : gain + 40] = 1.0
        lost[seed, gain + 40 : gain + 80] = 1.0
    return gained, lost, np.ones((sites, 1))


def test_the_gain_over_seeds_is_the_mean_and_its_error_that_of_sites_and_seeds() -> None:
    gained, lost, count = many_sites([40, 60, 80])
    estimate = estimate_gain_over_seeds(gained, lost, count)
    of_sites = estimate_gain(gained.mean(axis=0), lost.mean(axis=0), count)
    assert estimate.value == pytest.approx(0.15)
    # The gains are 10, 15 and 20 %: a standard deviation of 5 %.
    assert estimate.standard_error == pytest.approx(math.hypot(of_sites.standard_error, 0.05 / math.sqrt(3)))
    assert estimate.low < of_sites.low < of_sites.high < estimate.high


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not() -> None:
    equal, apart = (estimate_gain_over_seeds(*many_sites(gains)) for gains in ([60] * 3, [0, 60, 120]))
    assert equal.value == pytest.approx(apart.value)
    # Where seeds are most of the noise the quantile is Student's with two degrees of freedom, 4.3.
    assert apart.high - apart.value > 3.5 * 0.15 / math.sqrt(3)
    assert equal.high - equal.low < 0.15


@pytest.mark.parametrize(("seeds", "sites"), [(LEAST_SEEDS - 1, 200), (LEAST_SEEDS, LEAST_SITES - 1)])
def test_of_too_few_seeds_or_sites_there_is_no_interval(seeds: int, sites: int) -> None:
    ones, count = np.ones((seeds, sites, 1)), np.full((sites, 1), 2.0)
    estimate = estimate_gain_over_seeds(ones, 0 * ones, count)
    assert (estimate.value, estimate.standard_error, estimate.low, estimate.high) == (0.5, None, None, None)


def test_where_no_answer_changes_the_interval_is_that_of_a_difference_of_pages() -> None:
    zeros, count = np.zeros((3, 10, 1)), np.full((10, 1), 4.0)
    estimate, of_pages = estimate_gain_over_seeds(zeros, zeros, count), estimate_gain(zeros[0], zeros[0], count)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.0, of_pages.low, of_pages.high))
