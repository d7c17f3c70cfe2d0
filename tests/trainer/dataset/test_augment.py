"""Variants of training pages and texts."""

from __future__ import annotations

import pytest

from trial_trainer.contract import Edit
from trial_trainer.dataset.augment import Augmenter

PAGE = "\n".join(
    [
        "Address: shop.example",
        "Blue Kettle 2",
        "Free delivery from 50.00",
        "Price: 1,299.00",
        "Newsletter",
        "About us",
        "Contact",
        "Blue Kettle 2 by Acme",
        "Imprint",
        "Terms",
    ]
)
VALUES = {"name": "Blue Kettle 2", "price": "1,299.00", "brand": "Acme"}
OTHERS = {"name": ["Blue Kettle 2", "Red Pan"], "price": ["1,299.00", "7.50"], "brand": ["Acme", "Zenith"]}


def variants(*edits: Edit, text: str = PAGE, values: dict[str, str] = VALUES, copies: int = 40):
    augmenter = Augmenter(edits=edits, seed=0, others=OTHERS)
    return [augmenter.vary("p1", text, values, copy) for copy in range(copies)]


def test_lines_are_dropped_and_never_one_that_an_answer_stands_in() -> None:
    found = variants(Edit.DROP_LINES)

    assert len({variant.text for variant in found}) > 10
    for variant in found:
        lines = variant.text.split("\n")
        assert [line for line in PAGE.split("\n") if line in lines] == lines
        assert {"Address: shop.example", "Blue Kettle 2", "Price: 1,299.00", "Blue Kettle 2 by Acme"} <= set(lines)
        assert variant.values == VALUES


def test_neighbouring_lines_change_places_below_the_first() -> None:
    found = variants(Edit.SWAP_LINES)

    assert len({variant.text for variant in found}) > 10
    for variant in found:
        assert sorted(variant.text.split("\n")) == sorted(PAGE.split("\n"))
        assert variant.text.startswith("Address: shop.example\n")
        assert variant.values == VALUES


def test_a_value_is_replaced_wherever_it_stands_and_its_answer_follows() -> None:
    found = variants(Edit.REPLACE_VALUES)

    renamed = [variant for variant in found if variant.values["name"] == "Red Pan"]
    assert 5 < len(renamed) < 35
    for variant in renamed:
        assert "Blue Kettle" not in variant.text
        assert variant.text.count("Red Pan") == 2
    assert {variant.values["price"] for variant in found} == {"1,299.00", "7.50"}
    assert all("from 50.00" in variant.text for variant in found)


def test_a_value_that_is_part_of_another_answer_changes_in_both() -> None:
    text, values = "table tonight in an hour", {"time": "in an hour", "date": "tonight in an hour"}
    augmenter = Augmenter(edits=[Edit.REPLACE_VALUES], seed=0, others={"time": ["at 7"]})

    found = {tuple(sorted(augmenter.vary("t", text, values, copy).values.items())) for copy in range(20)}

    assert found == {
        (("date", "tonight in an hour"), ("time", "in an hour")),
        (("date", "tonight at 7"), ("time", "at 7")),
    }


def test_a_price_is_written_in_other_ways_that_mean_the_same() -> None:
    found = {variant.values["price"] for variant in variants(Edit.REFORMAT_VALUES)}

    assert found == {"1,299.00", "1299.00", "1,299", "1299"}


@pytest.mark.parametrize(
    ("date", "other"),
    [
        ("August 15, 2018", "15 August 2018"),
        ("Wed, Aug 15, 2018", "2018-08-15"),
        ("23rd August", "August 23"),
        ("Feb 29", "29 February"),
    ],
)
def test_a_date_is_written_in_other_ways(date: str, other: str) -> None:
    found = variants(Edit.REFORMAT_VALUES, text=f"a table on {date} please", values={"date": date}, copies=80)

    assert other in {variant.values["date"] for variant in found}
    assert all(variant.text == f"a table on {variant.values['date']} please" for variant in found)


@pytest.mark.parametrize("date", ["tomorrow", "in 4 days", "the 13th", "February 30, 2018"])
def test_what_is_no_date_of_a_calendar_stays(date: str) -> None:
    found = variants(Edit.REFORMAT_VALUES, text=f"a table {date}", values={"date": date})

    assert {variant.values["date"] for variant in found} == {date}


def test_a_value_that_is_said_by_more_than_its_words_stays() -> None:
    augmenter = Augmenter(edits=[Edit.REPLACE_VALUES], seed=0, others={"currency": ["EUR", "USD"]})

    assert all(augmenter.vary("p", "USD 5 $", {"currency": "USD"}, c).text == "USD 5 $" for c in range(20))


def test_the_same_seed_page_and_number_give_the_same_variant_and_others_differ() -> None:
    def texts(seed: int, page: str) -> list[str]:
        augmenter = Augmenter(edits=tuple(Edit), seed=seed, others=OTHERS)
        return [augmenter.vary(page, PAGE, VALUES, copy).text for copy in range(5)]

    assert texts(0, "a") == texts(0, "a")
    assert texts(0, "a") != texts(1, "a") != texts(0, "b")


def test_every_answer_stands_in_every_variant() -> None:
    for variant in variants(*Edit, copies=200):
        assert all(value in variant.text for value in variant.values.values())
