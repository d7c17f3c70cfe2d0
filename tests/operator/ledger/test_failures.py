"""Where trials fail: a region only where the data say so, and a map whose intervals hold what they claim."""

import itertools
import math
import random
from dataclasses import replace
from statistics import fmean

import pytest
from scipy.stats import fisher_exact

from builders.ledgers import a_study, a_trial, paused
from study_operator.ledger.failures import FailureModel, describe_failures, find_failures, find_region, has_failed
from study_operator.ledger.trial import Origin, Trial

STUDY = a_study()


def a_read_trial(index: int, rate: float, alpha: float = 32.0, *, fails: bool = False, **kind: bool) -> Trial:
    """Return a trial with a first measurement, which diverged where it fails and nothing else is said."""
    changes = kind or {"diverged": fails}
    trial = paused(index, 0.0 if fails else 0.5, **changes)
    return replace(trial, arm={"learning_rate": rate, "lora_alpha": alpha, "lora_rank": 16})


def two_sides(failed_above: int = 9, failed_below: int = 1) -> list[Trial]:
    """Return ten trials above a learning rate of 1e-3 and fourteen below, with so many failures."""
    above = [a_read_trial(i, 1e-3 * (1.1 + 0.1 * i), fails=i < failed_above) for i in range(10)]
    return above + [a_read_trial(10 + i, 1e-3 / (1.1 + 0.1 * i), fails=i < failed_below) for i in range(14)]


def test_a_region_is_told_with_its_counts_and_the_failures_with_their_kinds() -> None:
    trials = two_sides()
    trials[0] = a_read_trial(0, 1.1e-3, fails=True, gibberish=True)
    failures = find_failures(STUDY, trials)
    assert failures is not None and failures.region is not None
    assert (failures.gibberish, len(failures.diverged)) == (("t000",), 9)
    region = failures.region
    # Rank 16 and alpha 32: the threshold is twice a learning rate between the highest below and the lowest above.
    assert 2e-3 / 1.2 < region.threshold < 2e-3 * 1.2
    assert region.failed_above >= 9 and region.above + region.below == 24
    first, second, third = describe_failures(failures)
    assert first == "Failures: of 24 measured trials 9 diverged and 1 wrote gibberish."
    assert second.startswith("Above learning rate × alpha / rank = 0.00")
    assert "trials failed, below it" in second
    assert third.startswith("A failure is as probable as not, or more, at")


@pytest.mark.parametrize(
    ("trials", "sentences"),
    [
        pytest.param(two_sides(0, 0), ["Failures: of 24 measured trials 0 diverged and 0 wrote gibberish."], id="none"),
        pytest.param(
            two_sides(2, 3),
            [
                "Failures: of 24 measured trials 5 diverged and 0 wrote gibberish.",
                "These trials show no region of learning rate × alpha / rank in which they fail.",
            ],
            id="anywhere",
        ),
        pytest.param(
            two_sides(10, 14),
            [
                "Failures: of 24 measured trials 24 diverged and 0 wrote gibberish.",
                "As all of them failed, they do not show where trials do not.",
            ],
            id="everywhere",
        ),
    ],
)
def test_without_a_region_that_is_said(trials: list[Trial], sentences: list[str]) -> None:
    failures = find_failures(STUDY, trials)
    assert failures is not None
    assert (failures.region, describe_failures(failures)) == (None, sentences)


def test_before_a_measurement_nothing_is_known() -> None:
    assert find_failures(STUDY, [a_trial(0)]) is None


def test_a_trial_that_was_merely_bad_did_not_fail() -> None:
    assert not has_failed(paused(1, 0.0))
    assert has_failed(paused(1, 0.0, gibberish=True)) and has_failed(paused(1, 0.0, diverged=True))


def test_the_p_of_the_best_threshold_is_corrected_exactly_for_its_choice() -> None:
    """Over all orders of three failures among nine trials, a p so small or smaller is as frequent as it says."""

    def smallest(failed: tuple[bool, ...]) -> float:
        tables = [
            [[sum(failed[m:]), 9 - m - sum(failed[m:])], [sum(failed[:m]), m - sum(failed[:m])]] for m in range(1, 7)
        ]
        return min(fisher_exact(table, alternative="greater").pvalue for table in tables)

    orders = [tuple(i in drawn for i in range(9)) for drawn in itertools.combinations(range(9), 3)]
    scores, all_smallest = [1.0 + i for i in range(9)], [smallest(order) for order in orders]
    for order, own in zip(orders, all_smallest, strict=True):
        expected = fmean(other <= own * (1 + 1e-9) for other in all_smallest)
        region = find_region(scores, order)
        if expected <= 0.05:
            assert region is not None and region.p == pytest.approx(expected)
        else:
            assert region is None


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_region_is_told_in_at_most_one_of_twenty_studies_without_one_even_of_a_search_that_avoids(
    share: float,
) -> None:
    """Failures by chance alone; the search goes where trials did not fail, as an optimizer does."""
    chance, found, studies = random.Random(round(10 * share)), 0, 400
    for _ in range(studies):
        scores, failed = list[float](), list[bool]()
        for i in range(24):
            sound = [s for s, has in zip(scores, failed, strict=True) if not has]
            is_spread = i < 8 or not sound
            scores.append(
                math.exp(chance.uniform(-9, -4)) if is_spread else chance.choice(sound) * chance.uniform(0.5, 2)
            )
            failed.append(chance.random() < share)
        found += any(failed) and not all(failed) and find_region(scores, failed) is not None
    assert found <= studies * 0.05 + 2 * math.sqrt(studies * 0.05 * 0.95)


def test_a_clear_region_is_found_in_most_studies() -> None:
    chance, found = random.Random(0), 0
    for _ in range(100):
        scores = [math.exp(chance.uniform(-9, -4)) for _ in range(24)]
        failed = [chance.random() < (0.9 if s > math.exp(-5.5) else 0.05) for s in scores]
        found += any(failed) and not all(failed) and find_region(scores, failed) is not None
    assert found >= 80


def test_the_map_s_intervals_hold_the_true_probability_in_nine_of_ten_places() -> None:
    chance, held, places = random.Random(1), 0, 0
    for _ in range(150):
        slope, middle = chance.gauss(0, 1.5), chance.gauss(0, 1)
        logs = [chance.uniform(-2, 2) for _ in range(30)]
        truth = [1 / (1 + math.exp(-(middle + slope * x))) for x in logs]
        failed = [chance.random() < p for p in truth]
        model = FailureModel.fit([(math.exp(x), 32.0, 16.0) for x in logs], failed)
        assert model.columns == (0,)
        for x in (-1.5, -0.5, 0.5, 1.5):
            probability, low, high = model.predict((math.exp(x), 32.0, 16.0))
            assert low <= probability <= high
            held += low <= 1 / (1 + math.exp(-(middle + slope * x))) <= high
            places += 1
    assert held >= 0.87 * places


def test_the_map_rises_to_where_trials_failed_and_counts_those_nearby() -> None:
    trials = [
        a_read_trial(i, rate, alpha, fails=rate * alpha > 0.05)
        for i, (rate, alpha) in enumerate(itertools.product((1e-4, 1e-3, 1e-2), (8.0, 32.0, 128.0)))
    ]
    failures = find_failures(STUDY, trials)
    assert failures is not None and len(failures.cells) == 9 and failures.ranks == (16,)
    by_place = {(c.learning_rate, c.alpha): c for c in failures.cells}
    assert by_place[1e-2, 128.0].probability > 0.5 > by_place[1e-4, 8.0].probability
    assert all((c.trials, c.failed) == (1, int(rate * alpha > 0.05)) for (rate, alpha), c in by_place.items())


@pytest.mark.parametrize(
    ("tried", "ranks"),
    [
        pytest.param((64, 4, 16), (4, 16, 64), id="each that was tried"),
        # Nine, eight times; the quartiles of those.
        pytest.param((4, 8, 12, 16, 24, 32, 48, 64, 128), (12, 24, 48), id="quartiles of many"),
    ],
)
def test_there_is_a_map_of_each_rank_or_of_the_quartiles(tried: tuple[int, ...], ranks: tuple[int, ...]) -> None:
    arms = itertools.product((1e-4, 1e-3, 1e-2, 1e-1), tried)
    read = [(a_read_trial(i, rate, fails=rate > 1e-3 and rank < 24), rank) for i, (rate, rank) in enumerate(arms)]
    trials = [replace(trial, arm={**trial.arm, "lora_rank": rank}) for trial, rank in read]
    failures = find_failures(STUDY, trials)
    assert failures is not None and failures.ranks == ranks
    assert {cell.rank for cell in failures.cells} == {*ranks}
    assert sum(cell.trials for cell in failures.cells) == len(trials) == len(failures.marks)
    mark = failures.marks[tried.index(16)]
    assert (mark.trial, mark.rank) == (trials[tried.index(16)].name, 16)
    assert abs(math.log(mark.map_rank / 16)) == min(abs(math.log(rank / 16)) for rank in ranks)


def test_what_always_goes_together_is_one_input() -> None:
    ranks = (4.0, 8.0, 16.0, 32.0)
    arms = [(1e-3, 2 * rank, rank) for rank in ranks] * 3
    assert FailureModel.fit(arms, [rank > 8 for rank in ranks] * 3).columns == (1,)


@pytest.mark.parametrize(
    "odd",
    [
        {"learning_rate": 0.0},
        {"lora_rank": 0},
        {"lora_alpha": "large"},
        {"lora_alpha": "inf"},
        {"learning_rate": 1e-200},
        {"lora_alpha": 1e300},
    ],
)
def test_arms_that_are_no_positive_numbers_have_no_map(odd: dict[str, float | str]) -> None:
    trials = [replace(t, arm={**t.arm, **odd}) if t.index in (0, 20) else t for t in two_sides()]
    failures = find_failures(STUDY, trials)
    assert failures is not None and (failures.region, failures.cells) == (None, ())
    # Nobody has looked for a region.
    assert describe_failures(failures) == ["Failures: of 24 measured trials 10 diverged and 0 wrote gibberish."]


def test_alpha_may_be_searched_as_a_multiple_of_the_rank() -> None:
    arms = [{n: v for n, v in t.arm.items() if n != "lora_alpha"} | {"lora_alpha_over_rank": 2.0} for t in two_sides()]
    ratios = [replace(t, arm=arm) for t, arm in zip(two_sides(), arms, strict=True)]
    assert find_failures(STUDY, ratios) == find_failures(STUDY, two_sides())


def test_with_rank_stabilised_adapters_the_root_of_the_rank_divides() -> None:
    plain = find_failures(STUDY, two_sides())
    stabilised = find_failures(replace(STUDY, trainer=replace(STUDY.trainer, rs_lora=True)), two_sides())
    assert plain is not None and stabilised is not None and plain.region is not None and stabilised.region is not None
    assert stabilised.region.threshold == pytest.approx(4 * plain.region.threshold)
    assert "alpha / √rank" in describe_failures(stabilised)[1]
    assert "no region of learning rate × alpha / √rank" in describe_failures(replace(stabilised, region=None))[1]


def test_what_the_search_avoided_counts_the_optimizers_arms_alone() -> None:
    trials = [replace(t, origin=Origin.BASELINE if t.index == 0 else t.origin) for t in two_sides(10, 0)]
    failures = find_failures(STUDY, trials)
    assert failures is not None and failures.avoided is not None
    # Of 23, nine are above, and all of them are among the first eleven.
    assert (failures.avoided.of_early, failures.avoided.of_late) == (11, 12)
    assert (failures.avoided.early, failures.avoided.late) == (9, 0)
