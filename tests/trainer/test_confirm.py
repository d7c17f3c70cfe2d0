"""What markup says is held against what its page shows."""

import pytest

from trial_trainer.confirm import confirm, contradicts

REST = "<p>Boils water quickly and quietly; made of steel and glass, with a lid that locks.</p>"


def page(body: str) -> str:
    return f"<html><body><h1>Blue Kettle 2000</h1>{body}{REST}</body></html>"


@pytest.mark.parametrize(
    ("attribute", "said", "body", "label"),
    [
        ("availability", "OutOfStock", "<button>Add to cart</button>", "InStock"),
        ("availability", "OutOfStock", "<p>Sold out</p>", "OutOfStock"),
        ("availability", "InStock", "<p>Size S: sold out</p>", "InStock"),
        ("availability", "NOT A STATE", "", None),
        ("sku", "10134622", "<p>Product code: 141677</p>", "141677"),
        ("sku", "141677", "<p>Product code: 141677</p>", "141677"),
        ("sku", "10134622", "<p>Product code: 141677</p><p>Product code: 151678</p>", None),
        ("sku", "10134622", "", None),
        ("sku", "BK-2000", "", "BK-2000"),
        ("brand", "Ali", "<p>Alibaba</p>", None),
        ("brand", "Acme", "<p>By ACME</p>", "Acme"),
        ("brand", "Marca: Acme", "<p>Acme</p>", "Acme"),
        ("price", "71,91 € 79,90 €", "", "71,91"),
        ("price", "499€ 499€ 499", "", "499€ 499€ 499"),
        ("price", "null", "", None),
        ("color", "blue", "", "blue"),
    ],
)
def test_a_value_stays_only_as_the_page_bears_it_out(attribute: str, said: str, body: str, label: str | None) -> None:
    url = "https://shop.example/p/blue-kettle-BK-2000.html"
    assert confirm({attribute: said}, page(body), url).get(attribute) == label


def test_what_the_page_still_describes_fills_in_what_its_source_left_out() -> None:
    body = '<div itemtype="https://schema.org/Offer"><b itemprop="price">€19.99</b></div>'
    assert confirm({"name": "Blue Kettle 2000"}, page(body), None)["name"] == "Blue Kettle 2000"
    item = f'<div itemscope itemtype="https://schema.org/Product"><i itemprop="name">Blue Kettle 2000</i>{body}</div>'
    assert confirm({}, page(item), None)["price"] == "€19.99"


def test_a_page_that_cannot_be_read_takes_nothing_away() -> None:
    assert confirm({"price": "5"}, "", None) == {"price": "5"}


@pytest.mark.parametrize(
    ("attribute", "value", "accepted", "is_contradicted"),
    [
        ("currency", "CAD", ["$"], False),
        ("currency", "CAD", ["€"], True),
        ("price", "19.99", ["19,99"], False),
        ("price", "25", ["19.99"], True),
        ("availability", "InStock", ["OutOfStock"], True),
    ],
)
def test_markup_contradicts_a_person(attribute: str, value: str, accepted: list[str], is_contradicted: bool) -> None:
    assert contradicts(attribute, value, accepted, "", None) is is_contradicted
