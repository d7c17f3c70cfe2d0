"""Measures of answers: what counts as right, what is a mean of what, which predictions make a pair."""

import math
from dataclasses import replace

import numpy as np
import pytest

from trial_trainer.contract import LEAST_SITES
from trial_trainer.dataset.store import HAND, MARKUP, Page, Question
from trial_trainer.evaluation.measure import (
    MOST_SITES,
    NOTHING_ASKED,
    WORST_LOSS,
    Prediction,
    accuracy_by_attribute,
    all_asked,
    build_prediction,
    false_value_rate,
    gibberish_rate,
    hand_labelled,
    invalid_output_rate,
    measure,
    paired_gain,
    sum_by_site,
    validation_loss,
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


def test_an_baseline_may_be_silent_and_a_model_may_not() -> None:
    predictions = [a_prediction(""), a_prediction("?!"), a_prediction(), a_prediction()]
    assert invalid_output_rate(predictions).value == 0.5
    assert invalid_output_rate(predictions, may_be_silent=True).value == 0.25


@pytest.mark.parametrize(
    ("prediction", "is_gibberish"),
    [
        pytest.param(a_prediction("the the the the the the"), 1, id="a word again and again"),
        pytest.param(a_prediction("!!!!!!!!!!!!"), 1, id="a character again and again"),
        pytest.param(a_prediction("Kettle\n" * 5), 1, id="an answer that does not stop"),
        pytest.param(a_prediction("Pot of of of of of of of of of of"), 1, id="half of it one word again and again"),
        pytest.param(a_prediction("7:............................", finished=False), 1, id="cut off while it repeats"),
        pytest.param(a_prediction(""), 1, id="silence"),
        pytest.param(a_prediction("?!"), 1, id="no letter"),
        pytest.param(a_prediction("I am sorry, but as a", finished=False), 0, id="an untrained model's, cut off"),
        pytest.param(a_prediction("the", attribute="price"), 0, id="no price"),
        pytest.param(a_prediction("Pot"), 0, id="merely wrong"),
        pytest.param(a_prediction("no no no"), 0, id="thrice is no repetition"),
        pytest.param(a_prediction("A large pot with a lid, and four four four cups"), 0, id="a part of it"),
        pytest.param(a_prediction("none"), 0, id="none where there is a value"),
        pytest.param(a_prediction("$", gold="€", attribute="currency"), 0, id="another currency"),
        pytest.param(a_prediction("🙁", gold="🙂"), 0, id="another label without a letter"),
        pytest.param(a_prediction("壶"), 0, id="another script"),
        pytest.param(a_prediction("aaaaaaaaaa", gold="aaaaaaaaaa"), 0, id="right, whatever it looks like"),
    ],
)
def test_gibberish_says_nothing_or_repeats_itself_and_is_told_from_merely_wrong(
    prediction: Prediction, is_gibberish: int
) -> None:
    assert gibberish_rate([prediction], has_unlearnt=False).value == is_gibberish


@pytest.mark.parametrize(
    ("prediction", "is_gibberish"),
    [
        pytest.param(a_prediction("qzx vroom Ke gh", finished=False), 1, id="cut off at the limit"),
        pytest.param(a_prediction("the", attribute="price"), 1, id="no price"),
        pytest.param(a_prediction("Pot"), 0, id="merely wrong"),
    ],
)
def test_of_a_model_that_is_worse_than_untrained_each_invalid_answer_is_gibberish(
    prediction: Prediction, is_gibberish: int
) -> None:
    assert gibberish_rate([prediction], has_unlearnt=True).value == is_gibberish


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


def test_a_measurement_holds_the_metrics_of_the_contract_by_name() -> None:
    predictions = [a_prediction(loss=0.5, answer_tokens=3), a_prediction("none", gold=None, attribute="price")]
    metrics = measure(predictions)
    assert set(metrics) == {
        "accuracy",
        "false_value_rate",
        "invalid_output_rate",
        "gibberish_rate",
        "cut_answer_rate",
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
    assert set(metrics) == {
        "accuracy",
        "false_value_rate",
        "invalid_output_rate",
        "gibberish_rate",
        "cut_answer_rate",
    }
    assert set(metrics.values()) == {NOTHING_ASKED}
    assert (NOTHING_ASKED.n, NOTHING_ASKED.standard_error, NOTHING_ASKED.low) == (0, None, None)


def test_a_prediction_takes_its_page_and_gold_from_the_dataset() -> None:
    question = Question(
        attribute="name", prompt=(1,), answer=(2,), answer_text="Kettle", gold=("Kettle",), origin=MARKUP
    )
    page = Page(id="p0", site="shop", url=None, prefix=(), questions=(question,))
    built = build_prediction(page, question, answer="Pot", finished=False, loss=0.5, answer_tokens=2)
    assert built == a_prediction("Pot", finished=False, origin=MARKUP, loss=0.5, answer_tokens=2)


# Standard errors -------------------------------------------------------------------------------------------------


def test_pages_of_one_site_are_no_independent_witnesses() -> None:
    few = some_predictions({"a": [1], "b": [0], "c": [1], "d": [1], "e": [0]})
    copied = [replace(p, page=f"{p.page}/{copy}") for p in few for copy in range(9)]
    one, nine = all_asked(few), all_asked(copied)
    assert nine.standard_error == pytest.approx(one.standard_error)
    assert (one.n, one.sites, nine.n, nine.sites) == (5, 5, 45, 5)
    assert (nine.low, nine.high) == pytest.approx((one.low, one.high), abs=0.02)


def test_a_loss_has_a_standard_error_and_no_interval() -> None:
    predictions = [a_prediction(site=f"s{i}", loss=loss, answer_tokens=1) for i, loss in enumerate([1, 2, 3, 4, 5.0])]
    loss = validation_loss(predictions)
    assert loss.standard_error == pytest.approx(np.std([1, 2, 3, 4, 5], ddof=1) / math.sqrt(5))
    assert (loss.low, loss.high, loss.sites) == (None, None, 5)


@pytest.mark.parametrize("sites", [1, 2, LEAST_SITES - 1])
def test_too_few_sites_have_neither_a_standard_error_nor_an_interval(sites) -> None:
    right = some_predictions({f"s{i}": [1, i % 2] for i in range(sites)})
    wrong = [replace(p, answer="Pot") for p in right]
    metric, gain = all_asked(right), paired_gain(right, wrong, measure="all_asked")
    assert (metric.standard_error, metric.low, metric.high, metric.sites) == (None, None, None, sites)
    assert gain is not None and (gain.low, gain.high, gain.sites) == (None, None, sites)
    assert gain.difference == metric.value > 0


# Paired gains ----------------------------------------------------------------------------------------------------


def test_a_gain_is_the_difference_of_the_two_means() -> None:
    more = {f"v{i}": [1] for i in range(4)}
    a = some_predictions({"s": [1, 1], "t": [1], "u": [0]} | more)
    b = some_predictions({"s": [1, 0], "t": [0], "u": [1]} | more)
    gain = paired_gain(a, b, measure="all_asked")
    assert gain.difference == pytest.approx(all_asked(a).value - all_asked(b).value) == 0.125
    assert (gain.n, gain.sites) == (8, 7)
    assert gain.low < gain.difference < gain.high


def test_a_gain_is_the_same_whatever_the_order_and_opposite_the_other_way_round() -> None:
    rng = np.random.default_rng(1)
    a, b = (some_predictions({f"s{i}": list(rng.random(1 + i % 7) < odds) for i in range(30)}) for odds in (0.6, 0.4))
    gain = paired_gain(a, b, measure="all_asked")
    turned = paired_gain(a[::-1], b, measure="all_asked")
    back = paired_gain(b, a, measure="all_asked")
    assert (turned.difference, turned.low, turned.high) == pytest.approx((gain.difference, gain.low, gain.high))
    assert (back.difference, back.low, back.high) == pytest.approx((-gain.difference, -gain.high, -gain.low))


def test_what_both_predictors_get_wrong_cancels() -> None:
    """Two that answer alike may still differ on other sites, the less the more sites were seen."""
    margins = []
    for sites in (20, 80):
        hard = {f"s{i}": [i % 2] for i in range(sites)}
        gain = paired_gain(some_predictions(hard), some_predictions(hard), measure="all_asked")
        assert gain.difference == 0 and gain.low == -gain.high
        margins.append(gain.high)
    single = all_asked(some_predictions(hard))
    assert 0 < margins[1] < margins[0] / 3
    assert margins[1] < (single.high - single.low) / 2


def test_the_hand_labelled_gain_leaves_markup_out() -> None:
    hand = some_predictions({"s": [1], "t": [1]}), some_predictions({"s": [0], "t": [0]})
    markup = some_predictions({"s": [0], "u": [0]}, origin=MARKUP, attribute="rating")
    right = some_predictions({"s": [1], "u": [1]}, origin=MARKUP, attribute="rating")
    gain = paired_gain(hand[0] + markup, hand[1] + right, measure="hand_labelled")
    assert (gain.difference, gain.n, gain.sites) == (1.0, 2, 2)


@pytest.mark.parametrize(
    "predictions",
    [
        pytest.param([], id="no questions"),
        pytest.param([a_prediction("none", gold=None)], id="no question with a value"),
        pytest.param([a_prediction(origin=MARKUP)], id="no hand label"),
    ],
)
def test_a_mean_of_nothing_has_no_gain(predictions) -> None:
    assert paired_gain(predictions, predictions, measure="hand_labelled") is None


def test_an_attribute_that_only_one_site_has_leaves_every_number_finite() -> None:
    a = [*some_predictions({f"s{i}": [1] for i in range(5)}), a_prediction(attribute="sku", site="s0")]
    b = [replace(p, answer="Pot") if p.site in ("s0", "s1") else p for p in a]
    gain = paired_gain(a, b, measure="all_asked")
    assert gain.difference == pytest.approx((2 / 5 + 1) / 2)
    assert -1 <= gain.low < gain.difference < gain.high <= 1


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
        paired_gain([a_prediction(), a_prediction()], other, measure="all_asked")


def test_answers_that_were_cut_off_are_counted() -> None:
    predictions = [a_prediction(), a_prediction(finished=False), a_prediction(), a_prediction()]
    assert measure(predictions)["cut_answer_rate"].value == 0.25
    assert measure(predictions)["accuracy"].value == 0.75


# By site ---------------------------------------------------------------------------------------------------------


def totals(sums) -> tuple[float, float]:
    return sum(s.total for s in sums.values()), sum(s.weight for s in sums.values())


def test_the_sums_of_sites_make_up_the_metric_however_attributes_are_spread() -> None:
    predictions = [
        *some_predictions({"a": [1, 1, 0], "b": [0], "c": [1]}, loss=0.5),
        *some_predictions({"a": [0], "b": [1, 1]}, attribute="brand", loss=2.0),
        a_prediction(gold=None, site="d"),
    ]
    found = sum_by_site(predictions)
    total, weight = totals(found["accuracy"])
    assert weight == pytest.approx(8)
    assert total / weight == pytest.approx(all_asked(predictions).value)
    # Half of the weight is name's, of 5 questions, and half brand's, of 3: 3 × 4/5 + 1 × 4/3, 2 × 4/5 of it right.
    assert found["accuracy"]["a"].weight == pytest.approx(3 * 4 / 5 + 4 / 3)
    assert found["accuracy"]["a"].total == pytest.approx(2 * 4 / 5)
    assert set(found["accuracy"]) == {"a", "b", "c"}
    total, weight = totals(found["validation_loss"])
    assert total / weight == pytest.approx(validation_loss(predictions).value)


def test_of_many_sites_groups_are_told_that_add_up_to_the_same() -> None:
    predictions = some_predictions({f"s{i}": [i % 3 == 0] for i in range(3 * MOST_SITES)})
    (sums,) = sum_by_site(predictions).values()
    assert len(sums) <= MOST_SITES
    total, weight = totals(sums)
    assert total / weight == pytest.approx(all_asked(predictions).value)
    assert sum_by_site(predictions[::-1])["accuracy"].keys() == sums.keys()


def test_nothing_asked_adds_nothing() -> None:
    assert sum_by_site([a_prediction(gold=None)]) == {}
