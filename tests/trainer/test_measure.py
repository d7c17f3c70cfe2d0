"""Measures of answers: what counts as right, standard errors by hand, intervals that cover."""

import math
from dataclasses import replace

import numpy as np
import pytest

from trial_trainer.dataset import HAND, MARKUP, Page, Question
from trial_trainer.measure import (
    WORST_LOSS,
    Prediction,
    accuracy_by_attribute,
    all_asked,
    build_prediction,
    false_value_rate,
    hand_labelled,
    invalid_output_rate,
    measure,
    paired_gain,
)


def a_prediction(answer: str = "Kettle", gold: str | None = "Kettle", **changes) -> Prediction:
    prediction = Prediction(
        page="p0",
        site="shop",
        attribute="name",
        answer=answer,
        finished=True,
        gold=() if gold is None else (gold,),
        origin=HAND,
        loss=None,
        answer_tokens=0,
    )
    return replace(prediction, **changes)


def some_predictions(right_by_site: dict[str, list[int]], **changes) -> list[Prediction]:
    """One question a page, right where the list has a 1."""
    return [
        a_prediction("Kettle" if right else "Pot", site=site, page=f"{site}/{i}", **changes)
        for site, rights in right_by_site.items()
        for i, right in enumerate(rights)
    ]


# What counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "right", "invalid"),
    [
        pytest.param(a_prediction("kettle "), 1, 0, id="another spelling of the value is right"),
        pytest.param(a_prediction("Pot"), 0, 0, id="another value is wrong and valid"),
        pytest.param(a_prediction("none"), 0, 0, id="to deny a value that is there is wrong and valid"),
        pytest.param(a_prediction(""), 0, 1, id="a silent model gives an invalid output"),
        pytest.param(a_prediction("Kettle", finished=False), 0, 1, id="what was cut off is not right"),
        pytest.param(a_prediction("?!"), 0, 1, id="signs alone are no name"),
        pytest.param(a_prediction("dear", "12.50", attribute="price"), 0, 1, id="a price without a number is invalid"),
        pytest.param(a_prediction("$12,50", "12.5", attribute="price"), 1, 0, id="a price is compared as a number"),
        pytest.param(a_prediction("+", "+", attribute="completion"), 1, 0, id="a right free-form sign is valid"),
        pytest.param(a_prediction("A  b", "a b", attribute="completion"), 1, 0, id="free-form answers are normalised"),
        pytest.param(a_prediction("none", "none", attribute="completion"), 1, 0, id="a free-form none may be right"),
    ],
)
def test_an_answer_counts_as_right_and_as_invalid_by_its_meaning(prediction, right, invalid) -> None:
    metrics = measure([prediction])
    assert (metrics["accuracy"].value, metrics["invalid_output_rate"].value) == (right, invalid)


@pytest.mark.parametrize(
    ("answer", "is_false"),
    [
        pytest.param("Kettle", 1, id="a value where there is none"),
        pytest.param("?!", 1, id="a value that can't be read, too"),
        pytest.param("None.", 0, id="none, however it is written"),
        pytest.param("", 0, id="silence"),
    ],
)
def test_a_false_value_is_any_value_said_where_gold_says_none(answer, is_false) -> None:
    rate = false_value_rate([a_prediction(answer, gold=None), a_prediction("Pot")])
    assert (rate.value, rate.n) == (is_false, 1)


def test_questions_without_a_value_have_no_part_in_accuracy() -> None:
    metric = all_asked([a_prediction(), a_prediction("Pot", gold=None), a_prediction("none", gold=None)])
    assert (metric.value, metric.n) == (1.0, 1)


def test_an_opponent_may_be_silent_and_a_model_may_not() -> None:
    predictions = [a_prediction(""), a_prediction("?!"), a_prediction(), a_prediction()]
    assert invalid_output_rate(predictions).value == 0.5
    assert invalid_output_rate(predictions, may_be_silent=True).value == 0.25


def test_the_hand_labelled_mean_reads_only_labels_that_people_made() -> None:
    predictions = [
        a_prediction(attribute="name", origin=MARKUP, answer="Pot"),
        a_prediction(attribute="brand"),
        a_prediction(attribute="brand", answer="Pot"),
        a_prediction(attribute="sku", answer="Kettle"),
    ]
    assert (hand_labelled(predictions).value, hand_labelled(predictions).n) == (0.75, 3)
    assert (all_asked(predictions).value, all_asked(predictions).n) == (0.5, 4)


def test_each_attribute_weighs_the_same_however_often_it_was_asked() -> None:
    predictions = [a_prediction(attribute="name")] * 9 + [a_prediction(attribute="brand", answer="Pot")]
    assert all_asked(predictions).value == 0.5
    assert {name: m.value for name, m in accuracy_by_attribute(predictions).items()} == {"name": 1.0, "brand": 0.0}


def test_a_reading_holds_the_metrics_of_the_contract_by_name() -> None:
    predictions = [a_prediction(loss=0.5, answer_tokens=3), a_prediction("none", gold=None, attribute="price")]
    metrics = measure(predictions)
    assert set(metrics) == {
        "accuracy",
        "false_value_rate",
        "invalid_output_rate",
        "validation_loss",
        "accuracy/name",
        "accuracy/price",
    }
    assert (metrics["accuracy/price"].value, metrics["accuracy/price"].n) == (0.0, 0)
    assert metrics["accuracy"].value == 1.0, "an attribute without a value has no part in the mean"


def test_each_answer_weighs_the_same_in_the_loss_and_underived_ones_nothing() -> None:
    metrics = measure(
        [
            a_prediction(loss=1.0, answer_tokens=1),
            a_prediction(loss=2.0, answer_tokens=50, gold=None),
            a_prediction(loss=None),
        ]
    )
    assert (metrics["validation_loss"].value, metrics["validation_loss"].n) == (1.5, 2)


def test_without_any_loss_there_is_no_loss_to_compare() -> None:
    assert "validation_loss" not in measure([a_prediction()])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e300])
def test_a_loss_that_is_no_number_counts_as_the_worst_one(loss) -> None:
    predictions = [a_prediction(loss=loss, answer_tokens=1), a_prediction(loss=0.0, answer_tokens=1, site="other")]
    metrics = measure(predictions)
    assert metrics["validation_loss"].value == WORST_LOSS / 2
    assert all(math.isfinite(m.value) and math.isfinite(m.standard_error or 0.0) for m in metrics.values())


def test_nothing_asked_is_zero_of_zero() -> None:
    metrics = measure([])
    assert set(metrics) == {"accuracy", "false_value_rate", "invalid_output_rate"}
    assert {(m.value, m.standard_error, m.n) for m in metrics.values()} == {(0.0, None, 0)}


def test_a_prediction_takes_its_page_and_gold_from_the_dataset() -> None:
    question = Question(
        attribute="name", prompt=(1,), answer=(2,), answer_text="Kettle", gold=("Kettle",), origin=MARKUP
    )
    page = Page(id="p0", site="shop", url=None, prefix=(), questions=(question,))
    built = build_prediction(page, question, answer="Pot", finished=False, loss=0.5, answer_tokens=2)
    assert built == a_prediction("Pot", finished=False, origin=MARKUP, loss=0.5, answer_tokens=2)


# Standard errors -------------------------------------------------------------------------------------------------


def test_the_standard_error_is_the_linearised_one_computed_by_hand() -> None:
    # 3 of 4 right. Residuals of the sites: a: 2 - 0.75 x 2 = 0.5; b: 1 - 0.75 = 0.25; c: 0 - 0.75 = -0.75.
    metric = all_asked(some_predictions({"a": [1, 1], "b": [1], "c": [0]}))
    assert metric.value == 0.75
    assert metric.standard_error == pytest.approx(math.sqrt(3 / 2 * (0.5**2 + 0.25**2 + 0.75**2)) / 4)


def test_the_standard_error_of_a_mean_of_attributes_keeps_a_site_together() -> None:
    # name: 1 of 2 (a right, b wrong), brand: 1 of 1 (a). Site a: (0.5/2 + 0/1)/2 = 0.125, site b: (-0.5/2)/2 = -0.125.
    predictions = [*some_predictions({"a": [1], "b": [0]}), a_prediction(attribute="brand", site="a")]
    metric = all_asked(predictions)
    assert metric.value == 0.75
    assert metric.standard_error == pytest.approx(math.sqrt(2 * (0.125**2 + 0.125**2)))


def test_one_page_a_site_gives_the_textbook_standard_error() -> None:
    rights = np.array([1, 0, 0, 1, 1, 1, 0, 1])
    metric = all_asked(some_predictions({f"s{i}": [right] for i, right in enumerate(rights)}))
    assert metric.standard_error == pytest.approx(np.std(rights, ddof=1) / math.sqrt(len(rights)))


def test_pages_of_one_shop_are_no_independent_witnesses() -> None:
    few = some_predictions({"a": [1], "b": [0], "c": [1]})
    copied = some_predictions({"a": [1] * 9, "b": [0] * 9, "c": [1] * 9})
    assert all_asked(copied).standard_error == pytest.approx(all_asked(few).standard_error)


def test_one_site_has_no_standard_error() -> None:
    assert all_asked(some_predictions({"a": [1, 0, 1]})).standard_error is None


# Paired gains ----------------------------------------------------------------------------------------------------


def test_a_gain_is_the_difference_of_the_two_means() -> None:
    a = some_predictions({"s": [1, 1], "t": [1], "u": [0]})
    b = some_predictions({"s": [1, 0], "t": [0], "u": [1]})
    gain = paired_gain(a, b, measure="all_asked", seed=0)
    assert gain.difference == pytest.approx(all_asked(a).value - all_asked(b).value) == 0.25
    assert (gain.n, gain.sites) == (4, 3)
    assert gain.low <= gain.difference <= gain.high


def test_a_gain_is_the_same_for_the_same_seed_and_opposite_the_other_way_round() -> None:
    rng = np.random.default_rng(1)
    a, b = (some_predictions({f"s{i}": list(rng.random(1 + i % 7) < odds) for i in range(30)}) for odds in (0.6, 0.4))
    gain = paired_gain(a, b, measure="all_asked", seed=7)
    assert gain == paired_gain(a, list(reversed(b)), measure="all_asked", seed=7)
    assert gain != paired_gain(a, b, measure="all_asked", seed=8)
    back = paired_gain(b, a, measure="all_asked", seed=7)
    assert (back.difference, back.low, back.high) == pytest.approx((-gain.difference, -gain.high, -gain.low))


def test_what_both_predictors_get_wrong_cancels() -> None:
    hard = {f"s{i}": [i % 2] for i in range(40)}
    a, b = some_predictions(hard), some_predictions(hard)
    gain = paired_gain(a, b, measure="all_asked", seed=0)
    assert (gain.difference, gain.low, gain.high) == (0, 0, 0)


def test_the_hand_labelled_gain_leaves_markup_out() -> None:
    hand = some_predictions({"s": [1], "t": [1]}), some_predictions({"s": [0], "t": [0]})
    markup = some_predictions({"s": [0], "u": [0]}, origin=MARKUP, attribute="rating")
    right = some_predictions({"s": [1], "u": [1]}, origin=MARKUP, attribute="rating")
    gain = paired_gain(hand[0] + markup, hand[1] + right, measure="hand_labelled", seed=0)
    assert (gain.difference, gain.n, gain.sites) == (1.0, 2, 2)


@pytest.mark.parametrize(
    ("predictions", "difference"),
    [
        pytest.param([], 0.0, id="no questions"),
        pytest.param([a_prediction("none", gold=None)], 0.0, id="no question with a value"),
        pytest.param([a_prediction(), a_prediction(page="p1")], 1.0, id="one site"),
    ],
)
def test_an_interval_that_cannot_be_estimated_excludes_nothing(predictions, difference) -> None:
    wrong = [replace(p, answer="Pot") for p in predictions]
    gain = paired_gain(predictions, wrong, measure="all_asked", seed=0)
    assert (gain.difference, gain.low, gain.high) == (difference, -1.0, 1.0)


def test_an_attribute_that_only_one_site_has_leaves_every_number_finite() -> None:
    a = [*some_predictions({f"s{i}": [1] for i in range(5)}), a_prediction(attribute="sku", site="s0")]
    b = [replace(p, answer="Pot") if p.site in ("s0", "s1") else p for p in a]
    gain = paired_gain(a, b, measure="all_asked", seed=0)
    assert gain.difference == pytest.approx((2 / 5 + 1) / 2)
    assert all(math.isfinite(value) for value in (gain.low, gain.high))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        pytest.param([], r"2 have one answer only, first 'name' of page 'p0'", id="answers are missing"),
        pytest.param(
            [a_prediction()], r"1 have one answer only, first 'name' of page 'p0'", id="asked twice, said once"
        ),
        pytest.param(
            [a_prediction(), a_prediction(page="p1")],
            r"2 have one answer only, first 'name' of page 'p0'",
            id="other page",
        ),
        pytest.param(
            [a_prediction(), a_prediction(gold="Pot")], r"same labels; 'name' of page 'p0' has gold", id="other gold"
        ),
        pytest.param([a_prediction(), a_prediction(site="t")], r"same labels.*Hand, t", id="other site"),
    ],
)
def test_predictors_that_were_asked_different_questions_are_not_compared(other, message) -> None:
    with pytest.raises(ValueError, match=message):
        paired_gain([a_prediction(), a_prediction()], other, measure="all_asked", seed=0)


def count_covered(studies: int, *, forget_sites: bool) -> tuple[int, int]:
    """Simulate studies of 40 shops; count intervals of a gain and of an accuracy that hold the truth."""
    rng = np.random.default_rng(5)
    by_interval = by_error = 0
    for study in range(studies):
        a: list[Prediction] = []
        b: list[Prediction] = []
        for site in range(40):
            # Shops are easy or hard as a whole, and not the same ones for both predictors.
            odds_a, odds_b = 0.6 + rng.uniform(-0.4, 0.4), 0.4 + rng.uniform(-0.4, 0.4)
            pages = int(rng.integers(1, 12))
            a += some_predictions({f"s{site}": list(rng.random(pages) < odds_a)})
            b += some_predictions({f"s{site}": list(rng.random(pages) < odds_b)})
        if forget_sites:
            a, b = ([replace(p, site=p.page) for p in predictions] for predictions in (a, b))
        gain = paired_gain(a, b, measure="all_asked", seed=study)
        by_interval += gain.low <= 0.2 <= gain.high
        metric = all_asked(a)
        by_error += abs(metric.value - 0.6) <= 1.96 * (metric.standard_error or 0.0)
    return by_interval, by_error


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    assert all(0.90 <= covered / 120 <= 0.99 for covered in count_covered(120, forget_sites=False))


def test_intervals_that_forget_the_shops_hold_it_too_seldom() -> None:
    assert all(covered / 30 < 0.88 for covered in count_covered(30, forget_sites=True))
