"""What is asked, which answer is right, and which answer a text bears out."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trial_trainer.pages import answers
from trial_trainer.pages.answers import ATTRIBUTES, is_correct, is_valid, parse_price, spell_out, target
from trial_trainer.pages.currencies import find_money


def test_every_attribute_has_a_question_of_its_own() -> None:
    asked = [answers.question(attribute) for attribute in ATTRIBUTES]
    assert len(set(asked)) == len(ATTRIBUTES)
    assert all(question.endswith("?") for question in asked)


def test_an_attribute_without_a_question_is_asked_for_by_name() -> None:
    assert answers.question("shoe_size") == "What is the shoe size of the product?"


# Right and wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "answer", "accepted"),
    [
        ("price", "1.299,00", ["1299.0"]),
        ("price", "1.299,00 €", ["1299"]),
        ("price", "1,299.00", ["1299"]),
        ("price", "$1,299", ["1299"]),
        ("price", "1 299,00", ["1299"]),
        ("price", "1\u00a0299,00", ["1299"]),
        ("price", "1'299.50", ["1299.5"]),
        ("price", "24.990", ["24.99"]),
        ("price", "24.990", ["24990", "24.990"]),
        ("price", "19.-", ["19"]),
        ("price", "٩٩٫٥", ["99.5"]),
        ("price", "12", ["11", "12.00"]),
        ("rating", "4,5", ["4.5"]),
        ("rating", "4.5 out of 5", ["4.5"]),
        ("rating", "4.8", ["4.757894736842105"]),
        ("rating", "4.76", ["4.757894736842105"]),
        ("rating", "5", ["5.0"]),
        ("currency", "USD", ["$"]),
        ("currency", "CAD", ["$", "CAD"]),
        ("currency", "US $", ["$"]),
        ("currency", "$", ["USD"]),
        ("currency", "€", ["EUR"]),
        ("currency", "euro", ["€"]),
        ("currency", "zl", ["PLN"]),
        ("currency", "LEI", ["Lei"]),
        ("currency", "тг", ["тг."]),
        ("currency", "GALLEONS", ["galleons"]),
        ("brand", "CARAN D'ACHE", ["Caran d’Ache"]),
        ("brand", "Karcher", ["KÄRCHER"]),
        ("brand", "3M", ["3-M"]),
        ("brand", "L’atelier Nawbar", ["L&#8217;atelier Nawbar"]),
        ("sku", "4667999", ["466/7999"]),
        ("sku", "vei22g013 k11", ["VEI22G013-K11"]),
        ("availability", "InStock", ["http://schema.org/InStock"]),
        ("availability", "In stock", ["InStock"]),
        ("availability", "Ausverkauft", ["OutOfStock"]),
        ("availability", "OutStock", ["OutOfStock"]),
        ("name", "blue  chair “Oslo”", ['Blue chair "Oslo"']),
        ("description", "It is blue.", ["it is  blue."]),
        ("colour", "Blue", ["blue"]),
    ],
)
def test_an_answer_that_means_the_same_is_right(attribute: str, answer: str, accepted: Sequence[str]) -> None:
    assert is_correct(attribute, answer, accepted)
    assert is_valid(attribute, answer) or attribute == "currency"


@pytest.mark.parametrize(
    ("attribute", "answer", "accepted"),
    [
        ("price", "12", ["12.50"]),
        ("price", "12 or 13", ["12"]),
        ("price", "1.299,00", ["1.29"]),
        ("price", "free", ["0"]),
        ("price", "", [""]),
        ("rating", "5", ["4.7578"]),
        ("rating", "4.7", ["4.7578"]),
        ("rating", "good", ["5"]),
        ("currency", "€", ["$"]),
        ("currency", "R$", ["$"]),
        ("currency", "", [""]),
        ("brand", "Acme Inc", ["Acme"]),
        ("brand", "...", ["!!!"]),
        ("sku", "4667998", ["466/7999"]),
        ("sku", "-", ["/"]),
        ("availability", "InStock", ["OutOfStock"]),
        ("availability", "perhaps", ["perhaps"]),
        ("name", "Blue chair", ["Blue chairs"]),
        ("name", " ", [" "]),
        ("name", "none", []),
    ],
)
def test_an_answer_that_means_something_else_is_wrong(attribute: str, answer: str, accepted: Sequence[str]) -> None:
    assert not is_correct(attribute, answer, accepted)


@given(st.sampled_from(ATTRIBUTES), st.text(max_size=30))
def test_an_empty_answer_is_never_right(attribute: str, value: str) -> None:
    assert not is_correct(attribute, "", [value])
    assert not is_correct(attribute, "  ", [value])


@given(st.sampled_from(ATTRIBUTES), st.text(max_size=30))
def test_a_right_answer_can_be_evaluated_without_raising_and_is_not_empty(attribute: str, value: str) -> None:
    if is_correct(attribute, value, [value]):
        assert value.strip()
    is_valid(attribute, value)


@pytest.mark.parametrize(
    ("attribute", "answer"),
    [
        ("price", "call us"),
        ("price", "12 13"),
        ("rating", "good"),
        ("currency", "gold"),
        ("availability", "perhaps"),
        ("sku", "—"),
        ("sku", "x" * 81),
        ("brand", "!?"),
        *((attribute, "") for attribute in ATTRIBUTES),
        *((attribute, " \n") for attribute in ATTRIBUTES),
        *((attribute, answers.ABSENT) for attribute in ATTRIBUTES),
    ],
)
def test_an_answer_that_is_no_value_of_its_attribute_is_invalid(attribute: str, answer: str) -> None:
    assert not is_valid(attribute, answer)


def test_only_the_word_for_absence_says_absent() -> None:
    assert answers.is_absent(answers.ABSENT)
    assert answers.is_absent(" None. ")
    assert not answers.is_absent("")
    assert not answers.is_absent("nonesuch")


@given(st.integers(0, 10**9), st.integers(0, 99), st.sampled_from([(",", "."), (".", ","), (" ", ","), ("'", ".")]))
def test_every_notation_of_an_amount_is_read(whole: int, cents: int, notation: tuple[str, str]) -> None:
    grouping, decimal = notation
    text = f"{whole:,}".replace(",", grouping) + f"{decimal}{cents:02d}"
    assert parse_price(text) == (float(f"{whole}.{cents:02d}"),)


# Words and signs in running text --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number", "mark"),
    [
        ("Preis 1.299,00 € statt", "1.299,00", "€"),
        ("$24.990", "24.990", "$"),
        ("US $12.99 each", "12.99", "US $"),
        ("only Rs 23,450", "23,450", "Rs"),
        ("5,50zł", "5,50", "zł"),
        ("99 kr", "99", "kr"),
        ("CHF 19.50", "19.50", "CHF"),
        ("44 890 тг.", "44 890", "тг."),
        ("12 990 Ft", "12 990", "Ft"),
        ("99 ر.س", "99", "ر.س"),
    ],
)
def test_a_number_beside_a_currency_sign_is_money(text: str, number: str, mark: str) -> None:
    assert list(find_money(text)) == [(number, mark)]


@pytest.mark.parametrize("text", ["12 ft long", "A4 paper", "24 hours", "iPhone 16", "", "€", "5 years", "100%"])
def test_other_numbers_are_not_money(text: str) -> None:
    assert list(find_money(text)) == []


def test_a_sign_between_two_numbers_belongs_to_one_of_them() -> None:
    assert list(find_money("12 € 15 €")) == [("12", "€"), ("15", "€")]
    assert list(find_money("Kettle 2000\n€ 18,00")) == [("18,00", "€")]
    assert list(find_money("54,50\n€\n2 left")) == [("54,50", "€")]


# Targets --------------------------------------------------------------------------------------------------------------

PAGE = """\
acme.example/blue-chair/466-7999
# Blue chair “Oslo”
brand: ACME
4,8 / 5 (12 reviews)
price: 1.299,00 €
old price: 1.499,00 €
Art.-Nr. 466/7999
Auf Lager
Size 3, weight 15 kg"""


@pytest.mark.parametrize(
    ("attribute", "label", "answer"),
    [
        ("name", 'blue chair "Oslo"', "Blue chair “Oslo”"),
        ("brand", "Acme", "ACME"),
        ("price", "1299.0", "1.299,00"),
        ("currency", "EUR", "€"),
        ("sku", "4667999", "466-7999"),
        ("availability", "https://schema.org/InStock", "InStock"),
        ("rating", "4.7578", "4,8"),
        ("price", "15", None),
        ("price", "999", None),
        ("rating", "3", None),
        ("currency", "USD", None),
        ("brand", "Acm", None),
        ("sku", "46", None),
        ("availability", "OutOfStock", None),
        ("availability", "perhaps", None),
        ("name", "Blue table", None),
        ("name", " ", None),
        ("price", "free", None),
        ("currency", "gold", None),
    ],
)
def test_a_target_stands_in_the_text_as_it_is_printed_there(attribute: str, label: str, answer: str | None) -> None:
    assert target(attribute, label, PAGE) == answer


def test_a_name_is_taken_as_the_page_writes_it_and_not_as_its_address_does() -> None:
    assert target("brand", "Acme", "acme.example/p\nby Acme") == "Acme"


@given(st.sampled_from(ATTRIBUTES), st.text(min_size=1, max_size=20), st.text(max_size=60))
def test_a_target_is_always_a_right_and_valid_answer(attribute: str, label: str, rest: str) -> None:
    text = f"{rest}\n{label} {rest}"
    answer = target(attribute, label, text)
    if answer is not None:
        assert is_correct(attribute, answer, spell_out(attribute, [label], answer, text, None))
        assert attribute == "availability" or answer in text


@given(st.decimals(min_value=0, max_value=99999, places=2), st.sampled_from(["€", "$", "zł", "USD", "kr", "₹"]))
def test_a_price_and_its_sign_are_found_beside_each_other(amount: object, mark: str) -> None:
    text = f"Oslo 2000\n{amount} {mark}\n15 kg"
    assert target("price", str(amount), text) == str(amount)
    assert target("currency", mark, text) == mark
