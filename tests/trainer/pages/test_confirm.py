"""What markup says is held against what its page shows."""

import pytest

from trial_trainer.pages.confirm import confirm, contradicts
from trial_trainer.pages.documents import Facts, Page, read_page

REST = "<p>Boils water quickly and quietly; made of steel and glass, with a lid that locks.</p>"


def page(body: str) -> Facts:
    read = read_page(f"<html><body><h1>Blue Kettle 2000</h1>{body}{REST}</body></html>")
    assert isinstance(read, Page)
    return read.facts


@pytest.mark.parametrize(
    ("attribute", "message", "body", "label"),
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
        ("availability", "SoldOut", "<p>Vabandame, toode pole hetkel saadaval. Laos on teisi.</p>", "OutOfStock"),
        ("sku", "KETTLE PRO 2000", "<p>Model: Kettle Pro 2000</p><p>Item #22405.</p>", "22405"),
        ("sku", "KETTLE PRO 2000", "<p>Model: Kettle Pro 2000</p>", "KETTLE PRO 2000"),
        ("sku", "TE5029-12 Wasserkocher, Glas", "<p>TE5029-12 Wasserkocher</p>", "TE5029-12"),
        ("sku", "VEI-22G013 K11", "<p>VEI-22G013 K11</p>", "VEI-22G013 K11"),
    ],
)
def test_a_value_stays_only_as_the_page_bears_it_out(
    attribute: str, message: str, body: str, label: str | None
) -> None:
    url = "https://shop.example/p/blue-kettle-BK-2000.html"
    assert confirm({attribute: message}, page(body), url).get(attribute) == label


@pytest.mark.parametrize(
    ("body", "label"),
    [
        pytest.param("<p>€ 17,10</p><p>€ 18,00 -5%</p>", "17,10", id="the discount takes it to the price before it"),
        pytest.param("<p>EUR18.00</p><p>-50%</p><p>EUR9.00</p>", "9.00", id="and to the price after it"),
        pytest.param("<p>€ 18,00</p><p>€ 17,10</p>", "18.00", id="no discount is printed"),
        pytest.param("<p>€ 18,00 -20%</p><p>€ 17,10</p>", "18.00", id="the discount is another one"),
        pytest.param("<p>€ 18,00</p><p>Subscribe, save 5%: € 17,10</p>", "18.00", id="for subscribers only"),
        pytest.param("<p>€ 18,00</p><p>€ 21,00 -14%</p>", "18.00", id="it is the price after the discount"),
        pytest.param(f"<p>€ 18,00</p><p>{'x ' * 30}</p><p>€ 17,10 -5%</p>", "18.00", id="another product's"),
        pytest.param("<p>$40, 2 bids</p><p>Starting price $18</p>", None, id="an auction has begun"),
        pytest.param("<p>0 bids</p><p>Starting bid: $18</p>", "18.00", id="nobody has bid yet"),
        pytest.param("", "18.00", id="the page prints no price"),
    ],
)
def test_a_price_that_the_page_prints_as_past_gives_way(body: str, label: str | None) -> None:
    assert confirm({"price": "18.00"}, page(body), None).get("price") == label


@pytest.mark.parametrize(
    ("body", "url", "currency"),
    [
        ("<p>€ 18,00</p>", "https://shop.example/kettle", "EUR"),
        ("<p>$18.00</p>", "https://shop.example/kettle", None),
        ("<p>$18.00</p>", "https://shop.ca/kettle", "CAD"),
        ("<p>€ 18.00</p><p>£18.00</p>", "https://shop.example/kettle", None),
        ("<p>€ 21.00</p>", "https://shop.example/kettle", None),
    ],
)
def test_the_sign_beside_a_price_fills_in_its_currency(body: str, url: str, currency: str | None) -> None:
    assert confirm({"price": "18.00"}, page(body), url).get("currency") == currency


@pytest.mark.parametrize(
    ("message", "body", "availability"),
    [
        ({"price": "18.00"}, "<button>Add to cart</button>", "InStock"),
        ({"price": "18.00"}, "<button>Add to cart</button><p>Size S: sold out</p>", None),
        ({"price": "18.00"}, "<p>Sold out</p>", None),
        ({"price": "18.00"}, "<p>The listing has ended</p><button>Add to cart</button>", None),
        ({"name": "Blue Kettle 2000"}, "<button>Add to cart</button>", None),
        ({}, "<button>Add to cart</button>", None),
    ],
)
def test_only_a_priced_product_of_which_all_says_so_is_filled_in_as_in_stock(
    message: dict[str, str], body: str, availability: str | None
) -> None:
    assert confirm(message, page(body), None).get("availability") == availability


@pytest.mark.parametrize(
    ("label", "number"),
    [
        ("eBay item number:</p><p>302474151804", "302474151804"),
        ("Item #418295", "418295"),
        ("Product Code - 39139301", "39139301"),
        ("ID Produto: 1236291", "1236291"),
        ("Bestellnummer 79961", "79961"),
        ("Numero oggetto eBay: 133588510845", "133588510845"),
        ("Numéro de l'objet eBay : 293565036718", "293565036718"),
        ("Код: 01245", "01245"),
        ("Штрихкод: 4607012345678", None),
        ("〈商品編號：M67296549〉", "M67296549"),
        ("Promo code: SAVE", None),
        ("Item #418295, item #418296", None),
    ],
)
def test_the_one_article_number_that_a_page_prints_as_such_fills_in(label: str, number: str | None) -> None:
    assert confirm({"name": "Blue Kettle 2000"}, page(f"<p>{label}</p>"), None).get("sku") == number
    assert "sku" not in confirm({}, page(f"<p>{label}</p>"), None)


def test_what_the_page_still_describes_fills_in_what_its_source_left_out() -> None:
    body = '<div itemtype="https://schema.org/Offer"><b itemprop="price">€19.99</b></div>'
    assert confirm({"name": "Blue Kettle 2000"}, page(body), None)["name"] == "Blue Kettle 2000"
    item = f'<div itemscope itemtype="https://schema.org/Product"><i itemprop="name">Blue Kettle 2000</i>{body}</div>'
    assert confirm({}, page(item), None)["price"] == "€19.99"


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
