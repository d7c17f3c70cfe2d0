"""The baselines: constants and hand-written rules, as strong as they are said to be."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from trial_trainer.pages import answers, documents, rules
from trial_trainer.pages.html import Skip

ZYTE = Path(__file__).resolve().parents[3] / "manifests/samples/data/zyte-product-pages/pages.jsonl.gz"
HAND_LABELLED = ("price", "currency", "brand", "sku", "availability")


def extract(html: bytes | str, url: str | None = None) -> dict[str, str]:
    page = documents.read_page(html)
    assert not isinstance(page, Skip)
    return rules.extract(page.facts, url)


def test_the_constant_is_the_most_common_answer_of_each_attribute() -> None:
    pairs = [("brand", "Acme"), ("price", "5"), ("brand", "Acme"), ("brand", "Zed"), ("price", "4")]
    constants = {"brand": "Acme", "price": "4"}
    assert rules.most_common_answers(pairs) == constants
    assert rules.most_common_answers(reversed(pairs)) == constants


def test_the_rules_take_the_heading_the_first_price_after_it_and_its_sign() -> None:
    page = "<p>Free delivery from $50</p><h1>Blue chair</h1><p>now 12,50 €</p><p>was $20</p>"
    assert extract(page, "https://shop.example/1") == {
        "name": "Blue chair",
        "price": "12,50",
        "currency": "€",
        "availability": "InStock",
    }


def test_a_price_before_the_heading_is_better_than_none() -> None:
    assert extract("<p>Now for $50 only</p><h1>Blue chair</h1>")["price"] == "50"


def test_without_a_heading_the_title_names_the_product() -> None:
    assert extract("<title>Blue chair</title><p>It is blue</p>")["name"] == "Blue chair"


def test_microdata_is_believed_before_the_rules() -> None:
    page = (
        '<h1>Chair</h1><p>$50</p><b itemprop="price">45.00</b><b itemprop="brand">Acme</b><b itemprop="sku">A-7</b>'
        '<b itemprop="ratingValue">4.5</b><b itemprop="priceCurrency">gold</b>'
    )
    assert extract(page) == {
        "name": "Chair",
        "price": "45.00",
        "currency": "$",
        "availability": "InStock",
        "brand": "Acme",
        "sku": "A-7",
        "rating": "4.5",
    }


def read_pages() -> list[dict[str, Any]]:
    with gzip.open(ZYTE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def mean_accuracy(pages: list[dict[str, Any]], message: list[Mapping[str, str]]) -> float:
    shares = []
    for attribute in HAND_LABELLED:
        asked = [
            (p["labels"][attribute], s.get(attribute, ""))
            for p, s in zip(pages, message, strict=True)
            if p["labels"].get(attribute)
        ]
        shares.append(sum(answers.is_correct(attribute, answer, gold) for gold, answer in asked) / len(asked))
    return sum(shares) / len(shares)


@pytest.mark.slow
def test_the_rules_are_no_straw_man_on_the_labelled_pages() -> None:
    pages = read_pages()
    of_rules = mean_accuracy(pages, [extract(page["html"], page["url"]) for page in pages])
    constants = rules.most_common_answers(
        (a, v) for page in pages for a in HAND_LABELLED for v in page["labels"].get(a) or ()
    )
    of_constants = mean_accuracy(pages, [{a: constants.get(a, "") for a in HAND_LABELLED} for _ in pages])
    assert of_rules >= 0.47
    assert 0.2 <= of_constants < of_rules
