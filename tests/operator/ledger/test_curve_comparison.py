"""Two data curves of one arm: what variants gain at each size, and how far they move the saturation point."""

import math
import random
from dataclasses import replace

import pytest

from study_operator.ledger.curve_comparison import CurveComparison, compare_data_curves
from study_operator.ledger.data_curve import Curve, DataCurveError, SizeRun
from study_operator.spec.metrics import Direction

SIZES = (200, 400, 800, 1600, 3200, 6400)
TRUTH = Curve(limit=0.9, gap=30.0, delay=0.0, exponent=0.8)


def some_runs(
    first: int = 0, *, times: float = 1.0, gain: float = 0.0, noise: float = 0.002, seeds: int = 3, sites: int = 12
) -> list[SizeRun]:
    """Return runs of the true curve at so many times the data, and so much better.

    Sites differ by ten points, and seeds by noise: half of it is the same in all runs of a seed's part.
    """
    shared, own = random.Random(0), random.Random(first)
    hard = [shared.gauss(0, 0.1) for _ in range(sites)]
    runs = []
    for samples in SIZES:
        for seed in range(seeds):
            value = TRUTH.merit(times * samples) + gain + shared.gauss(0, noise) + own.gauss(0, noise)
            totals = {f"site{i}": (50 * (value + hard[i]), 50.0) for i in range(sites)}
            runs.append(SizeRun(samples=samples, seed=seed, sites=totals))
    return runs


def compare(plain: list[SizeRun], augmented: list[SizeRun], **changes: object) -> CurveComparison:
    settings = {"direction": Direction.MAXIMIZE, "is_share": True, "least_gain": 0.02, **changes}
    return compare_data_curves(plain, augmented, **settings)


def test_variants_that_stand_for_as_much_data_again_halve_the_saturation_point() -> None:
    found = compare(some_runs(1), some_runs(2, times=2.0))
    assert found.shift.ratio == pytest.approx(0.5, rel=0.15)
    assert found.shift.low < 0.5 < found.shift.high < 1
    assert found.shift.message == ""
    assert found.worth.times == pytest.approx(2, rel=0.06)
    assert 1.6 < found.worth.low < 2 < found.worth.high < 2.5
    assert found.plain.saturation.samples > found.augmented.saturation.samples
    assert [gain.samples for gain in found.gains] == list(SIZES)
    truth = [TRUTH.merit(2 * n) - TRUTH.merit(n) for n in SIZES]
    assert [gain.gain for gain in found.gains] == pytest.approx(truth, abs=0.01)
    # Where they gain ten points that is beyond doubt, and where next to nothing not.
    assert found.gains[0].low > 0.02
    assert found.gains[-1].low < 0.01


def test_variants_that_do_nothing_shift_nothing() -> None:
    found = compare(some_runs(1), some_runs(2))
    assert found.shift.low < 1 < found.shift.high
    assert found.worth.low < 1 < found.worth.high
    # Of six 90 % intervals one may miss.
    assert sum(gain.low < 0 < gain.high for gain in found.gains) >= 5


def test_what_sites_do_to_both_runs_of_a_pair_drops_out() -> None:
    found = compare(some_runs(1), some_runs(2, gain=0.01))
    size, gain = found.plain.sizes[0], found.gains[0]
    assert size.high - size.low > 5 * (gain.high - gain.low)


def test_where_the_same_sites_are_drawn_for_both_the_shift_is_sharper() -> None:
    def width(augmented: list[SizeRun]) -> float:
        shift = compare(plain, augmented).shift
        return shift.high - shift.low

    # Whose easy questions are learnt late, so that the saturation point depends on the sites.
    chance = random.Random(0)
    pulls = [chance.uniform(0.3, 3.0) for _ in range(12)]
    plain, augmented = (
        [
            SizeRun(
                samples=n,
                seed=k,
                sites={f"site{i}": (50 * TRUTH.merit(n * pull * times), 50.0) for i, pull in enumerate(pulls)},
            )
            for n in SIZES
            for k in range(2)
        ]
        for times in (1.0, 2.0)
    )
    # The same questions under other names, in another order.
    others = [replace(r, sites=dict(zip(reversed(r.sites), r.sites.values(), strict=True))) for r in augmented]
    assert width(augmented) < 0.8 * width(others)


def test_a_gain_on_a_loss_is_what_it_falls_by() -> None:
    sizes = {n: 1 + 100 / n for n in SIZES}
    plain = [SizeRun(samples=n, seed=k, sites={"": (v + 0.001 * k, 1.0)}) for n, v in sizes.items() for k in range(2)]
    augmented = [replace(run, sites={"": (run.value - 0.05, 1.0)}) for run in plain]
    found = compare(plain, augmented, direction=Direction.MINIMIZE, is_share=False)
    assert [gain.gain for gain in found.gains] == pytest.approx([0.05] * 6)


def test_a_run_that_lacks_its_pair_is_left_out_of_the_gain_and_stays_in_its_curve() -> None:
    plain, augmented = some_runs(1), some_runs(2)
    found = compare(plain[1:], augmented[:-3])
    assert [(gain.samples, gain.pairs) for gain in found.gains] == [(200, 2), *((n, 3) for n in SIZES[1:-1])]
    assert (found.plain.sizes[0].runs, found.augmented.sizes[0].runs) == (2, 3)


def test_one_pair_of_each_size_on_few_sites_has_no_intervals() -> None:
    found = compare(some_runs(1, seeds=1, sites=3), some_runs(2, seeds=1, sites=3))
    assert [(gain.low, gain.high) for gain in found.gains] == [(None, None)] * 6


@pytest.mark.parametrize(
    ("plain", "augmented", "message"),
    [
        pytest.param(
            [replace(run, sites={"": (0.2 + 0.1 * SIZES.index(run.samples), 1.0)}) for run in some_runs()],
            some_runs(1),
            "without variants the curve is not seen to saturate",
            id="one that gains with every doubling",
        ),
        pytest.param(
            some_runs(1)[:9],
            some_runs(2)[:9],
            "without variants the curve is not seen to saturate",
            id="too few sizes",
        ),
        pytest.param(
            some_runs(1),
            some_runs(2, times=40.0),
            "with variants the curve may have saturated before the smallest size, 200 samples",
            id="one that is flat",
        ),
    ],
)
def test_where_a_point_is_not_known_there_is_no_shift_and_a_sentence_says_why(
    plain: list[SizeRun], augmented: list[SizeRun], message: str
) -> None:
    shift = compare(plain, augmented).shift
    assert (shift.ratio, shift.low, shift.high) == (None, None, None)
    assert shift.message == message


def test_what_variants_stand_for_is_known_of_curves_that_do_not_saturate_too() -> None:
    def rising(times: float) -> list[SizeRun]:
        values = {n: 0.3 + 0.05 * math.log2(times * n / 200) for n in SIZES}
        return [replace(run, sites={"": (values[run.samples], 1.0)}) for run in some_runs()]

    found = compare(rising(1), rising(0.5))
    assert found.worth.times == pytest.approx(0.5, rel=0.06)
    assert found.shift.ratio is None


@pytest.mark.parametrize(
    ("plain", "augmented", "message"),
    [
        pytest.param(some_runs(1)[:9], some_runs(2)[:9], "without variants no curve is fitted", id="too few sizes"),
        pytest.param(some_runs(1), some_runs(2)[:9], "with variants no curve is fitted", id="too few with variants"),
        pytest.param(
            some_runs(1, times=1e4),
            some_runs(2, times=1e4),
            "the curve without variants is too flat, or too far from the one with them",
            id="no slope",
        ),
    ],
)
def test_where_it_is_not_known_what_variants_stand_for_a_sentence_says_why(
    plain: list[SizeRun], augmented: list[SizeRun], message: str
) -> None:
    worth = compare(plain, augmented).worth
    assert (worth.times, worth.low, worth.high) == (None, None, None)
    assert worth.message == message


def test_what_variants_stand_for_is_found_at_the_sizes_that_both_were_measured_at() -> None:
    def on(sizes: tuple[int, ...], truth: Curve) -> list[SizeRun]:
        return [SizeRun(samples=n, seed=k, sites={"": (truth.merit(n), 1.0)}) for n in sizes for k in range(2)]

    # Beyond the sizes that it was measured at, the one without variants would rise far above the other.
    rising, common = Curve(limit=0.97, gap=4.0, delay=0.0, exponent=0.4), SIZES[:5]
    found = compare(on(common, rising), on((*common, 25_600, 102_400), TRUTH))
    assert found.worth.times == pytest.approx(compare(on(common, rising), on(common, TRUTH)).worth.times, rel=0.01)
    apart = compare(on(common, rising), on(tuple(n + 1 for n in common), TRUTH)).worth
    assert (apart.times, apart.message) == (None, "no size was measured both without variants and with them")


def test_the_order_of_runs_does_not_matter_and_the_seed_decides_what_is_drawn() -> None:
    plain, augmented = some_runs(1), some_runs(2, times=2.0)
    found = compare(plain, augmented)
    assert found == compare(plain[::-1], augmented[::-1])
    assert found.gains != compare(plain, augmented, seed=1).gains


def test_a_curve_of_no_runs_cannot_be_compared() -> None:
    with pytest.raises(DataCurveError, match="at least one run"):
        compare(some_runs(1), [])
