"""Of all products that a page's markup describes, only its own gives labels: which one, and in which syntax, in tables."""
# ruff: noqa: E501  # rows of tables stand as pages write them

import json
import time
from typing import Any

import pytest

from trial_trainer.pages import markup

KETTLE: dict[str, Any] = {
    "@type": "Product",
    "name": "Blue Kettle 2000",
    "sku": "BK-2000",
    "brand": {"@type": "Brand", "name": "Acme"},
    "offers": {"@type": "Offer", "price": "19.99", "priceCurrency": "EUR"},
}
LABELS = {"name": "Blue Kettle 2000", "price": "19.99", "currency": "EUR", "brand": "Acme", "sku": "BK-2000"}
TOASTER: dict[str, Any] = {
    "@type": "Product",
    "name": "Red Toaster",
    "sku": "RT-1",
    "brand": "Zed",
    "offers": {"@type": "Offer", "price": "49.00", "priceCurrency": "GBP"},
}
URL = "https://shop.example/p/blue-kettle-2000"


def page(*bodies: Any, head: str = "", heading: str = "Blue Kettle 2000", rest: str = "") -> str:
    scripts = "".join(
        f'<script type="application/ld+json">{body if isinstance(body, str) else json.dumps(body)}</script>'
        for body in bodies
    )
    title = f"<title>{heading} | Shop</title>" if heading else ""
    return (
        f"<!doctype html><html><head>{title}{head}{scripts}</head><body>"
        f"{f'<h1>{heading}</h1>' if heading else ''}{rest}<p>Boils water quickly and quietly; steel and glass.</p></body>"
        "</html>"
    )


def labels(*bodies: Any, **around: str) -> dict[str, str]:
    return markup.read_labels(page(*bodies, **around))


# Which product --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bodies",
    [
        [TOASTER, KETTLE],
        [[TOASTER, {**TOASTER, "name": "Grey Iron", "sku": "GI"}, KETTLE]],
        [{"@graph": [{"@type": "WebPage", "mainEntity": KETTLE}, TOASTER]}],
        [{"@type": "ItemList", "itemListElement": [{"@type": "ListItem", "item": TOASTER}]}, KETTLE],
        [{"@type": "ItemList", "itemListElement": [TOASTER, KETTLE]}],
        [{**KETTLE, "isRelatedTo": [TOASTER], "isSimilarTo": TOASTER}],
        [{"isRelatedTo": [TOASTER], **KETTLE}],
        [{"@type": "Organization", "makesOffer": {"@type": "Offer", "itemOffered": TOASTER}}, KETTLE],
    ],
    ids=[
        "another before it", "three in a list", "main entity of the page", "a list of others", "in a list itself",
        "related to others", "related to others, told first", "what the site offers besides",
    ],
)  # fmt: skip
def test_the_product_of_the_heading_is_the_pages_own(bodies: list[Any]) -> None:
    assert labels(*bodies) == LABELS


@pytest.mark.parametrize(
    ("head", "own"),
    [
        (f'<link rel="canonical" href="{URL}">', {"url": URL}),
        (f'<meta property="og:url" content="{URL}">', {"offers": {**KETTLE["offers"], "url": URL}}),
        (f'<link rel="canonical" href="{URL}">', {"mainEntityOfPage": {"@type": "WebPage", "@id": URL}}),
        (f'<link rel="canonical" href="{URL}">', {"@id": f"{URL}#product"}),
        (f'<link rel="canonical" href="{URL}/">', {"url": "/p/blue-kettle-2000?utm_source=x"}),
        ('<meta property="og:title" content="Blue Kettle 2000">', {}),
    ],
    ids=["canonical", "og:url and the offer's", "mainEntityOfPage", "id", "relative with query", "og:title"],
)
def test_without_a_heading_the_address_or_the_title_says_which_is_the_pages_own(head: str, own: dict[str, Any]) -> None:
    assert labels(TOASTER, {**KETTLE, **own}, head=head, heading="") == LABELS


def test_the_address_that_the_source_knows_says_which_is_the_pages_own() -> None:
    html = page(TOASTER, {**KETTLE, "url": URL}, heading="")
    assert markup.read_labels(html, URL + "?utm_source=mail") == LABELS


@pytest.mark.parametrize(
    "bodies",
    [
        [TOASTER, {**TOASTER, "name": "Grey Iron", "sku": "GI"}],
        [{"@type": "ItemList", "itemListElement": [{"@type": "ListItem", "item": TOASTER}]}],
        [{"@type": "Product", "isRelatedTo": TOASTER}],
        [{**TOASTER, "url": "https://shop.example/p/red-toaster"}],
    ],
    ids=["two others", "a list of another", "related to another", "another with a page of its own"],
)
def test_a_page_that_is_about_none_of_its_products_gives_no_label(bodies: list[Any]) -> None:
    assert labels(*bodies, head=f'<link rel="canonical" href="{URL}">') == {}


def test_no_value_of_another_product_fills_what_the_pages_own_leaves_out() -> None:
    bare = {"@type": "Product", "name": "Blue Kettle 2000", "sku": "BK-2000"}
    assert labels(TOASTER, bare) == {"name": "Blue Kettle 2000", "sku": "BK-2000"}


def test_another_source_fills_in_what_the_first_leaves_out_only_if_it_describes_the_same_product() -> None:
    bare = {"@type": "Product", "name": "Blue Kettle 2000", "sku": "BK-2000"}
    item = (
        '<div itemscope itemtype="http://schema.org/Product"><b itemprop="name">{}</b><b itemprop="brand">{}</b></div>'
    )
    assert labels(bare, rest=item.format("Red Toaster", "Zed") + item.format("Blue Kettle", "Acme"))["brand"] == "Acme"
    assert "brand" not in labels(bare, rest=item.format("Red Toaster", "Zed"))


def test_an_application_of_the_site_is_not_what_its_page_sells() -> None:
    app = {"@type": "MobileApplication", "name": "Shop", "offers": {"@type": "Offer", "price": 0}}
    assert labels(app, KETTLE, heading="") == labels(KETTLE, app, heading="") == {}
    assert labels(app, KETTLE) == LABELS


@pytest.mark.parametrize(
    "kind",
    [
        "Product", "schema:Product", "https://schema.org/Product", "http://www.schema.org/Product", "ProductGroup",
        "Book", "Car", "Vehicle", "SoftwareApplication", "VideoGame", "Course", "IndividualProduct",
        ["Product", "Thing"], ["http://schema.org/Book", "Product"],
    ],
    ids=str,
)  # fmt: skip
def test_every_type_of_what_is_sold_is_a_product(kind: str | list[str]) -> None:
    assert labels({**KETTLE, "@type": kind}) == LABELS


# Offers and prices ----------------------------------------------------------------------------------------------------

NOW, LIST = {"price": "19.99", "priceCurrency": "EUR"}, {"price": "25.00", "priceCurrency": "EUR"}


@pytest.mark.parametrize(
    "offers",
    [
        {"priceSpecification": [{**LIST, "priceType": "https://schema.org/ListPrice"}, NOW]},
        {"priceSpecification": [{**LIST, "priceType": "https://schema.org/StrikethroughPrice"}, NOW]},
        {"priceSpecification": [{**LIST, "priceType": {"@id": "schema:SRP"}}, NOW]},
        {"priceSpecification": [{**LIST, "priceType": "MSRP"}, {**NOW, "priceType": "https://schema.org/SalePrice"}]},
        {"priceSpecification": [LIST, {**NOW, "priceType": "https://schema.org/SalePrice"}]},
        {**NOW, "priceSpecification": {**LIST, "priceType": "https://schema.org/ListPrice"}},
        {**LIST, "priceSpecification": [{**LIST, "priceType": "ListPrice"}, {**NOW, "priceType": "SalePrice"}]},
        {**LIST, "priceSpecification": [{**LIST, "priceType": "StrikethroughPrice"}, NOW]},
        {"priceSpecification": [{"@type": "DeliveryChargeSpecification", "price": "4.90", "priceCurrency": "EUR"}, NOW]},
        {"priceSpecification": [{"price": "3.33", "priceCurrency": "EUR", "referenceQuantity": {"value": 100}}, NOW]},
        {"priceSpecification": [{"price": "15.00", "priceCurrency": "EUR", "validForMemberTier": {}}, NOW]},
        {"priceSpecification": {"@type": "CompoundPriceSpecification", **NOW}},
        [{**LIST, "priceType": "https://schema.org/ListPrice"}, NOW],
        {"@type": "AggregateOffer", "lowPrice": "19.99", "highPrice": "25.00", "priceCurrency": "EUR"},
        {"@type": "AggregateOffer", "offers": [NOW, LIST]},
        {"@type": "AggregateOffer", "priceCurrency": "EUR", "offers": {"price": "19.99"}},
        {"@type": "AggregateOffer", "lowPrice": "19.99", "offers": [{"priceCurrency": "EUR"}]},
        {"price": {"@type": "MonetaryAmount", "value": 19.99, "currency": "EUR"}, "priceCurrency": "EUR"},
        [{"price": "", "priceCurrency": "EUR"}, NOW],
        {"price": "0.00", "priceCurrency": "EUR", "priceSpecification": NOW},
        {"@type": "AggregateOffer", "lowPrice": "0", "priceCurrency": "EUR", "offers": [NOW]},
        [{"price": "0", "priceCurrency": "EUR"}, NOW],
        {"priceSpecification": [{"price": "1.67", "priceCurrency": "EUR", "billingDuration": 12}, NOW]},
        {"priceSpecification": [{"price": "1.99", "priceCurrency": "EUR", "unitCode": "KGM"}, {**NOW, "unitCode": "C62"}]},
        [{"price": "25.00", "priceCurrency": "EUR", "availability": "OutOfStock"}, {**NOW, "availability": "InStock"}],
    ],
    ids=[
        "list price first", "strike-through first", "suggested price as a reference", "sale price last", "sale price named",
        "list price beside the price", "price is the list price, sale named", "price is struck through", "delivery",
        "for a hundred grams", "members only", "compound", "offers of two kinds", "from-to", "offers inside",
        "currency outside", "currency inside", "monetary amount", "empty first", "zero, then specified",
        "from zero", "an offer of zero first", "an instalment", "a kilogram's", "sold out first",
    ],
)  # fmt: skip
def test_the_price_is_the_one_to_pay_now(offers: Any) -> None:
    found = labels({**KETTLE, "offers": offers})
    assert (found["price"], found["currency"]) == ("19.99", "EUR")


def test_a_currency_that_stands_only_in_the_price_is_read_from_it() -> None:
    found = labels({**KETTLE, "offers": {"price": "€19.99"}})
    assert (found["price"], found["currency"]) == ("€19.99", "€")


@pytest.mark.parametrize(
    ("offers", "availability"),
    [
        ({"availability": "https://schema.org/OutOfStock"}, "OutOfStock"),
        ({"availability": "schema:InStock"}, "InStock"),
        ({"availability": {"@id": "http://schema.org/OutOfStock"}}, "OutOfStock"),
        ({"availability": ["http://schema.org/InStock"]}, "InStock"),
        ({"@type": "AggregateOffer", "lowPrice": 5, "offers": [{"availability": "OutOfStock"}]}, "OutOfStock"),
        (
            {"@type": "AggregateOffer", "lowPrice": 5,
             "offers": [{"availability": "OutOfStock"}, {"availability": "InStock"}]},
            "InStock",
        ),
        ([{"price": 5, "availability": "OutOfStock"}, {"price": 5, "availability": "InStock"}], "InStock"),
        ([{"price": 5, "availability": "OutOfStock"}, {"price": 6, "availability": "OutOfStock"}], "OutOfStock"),
        ({"price": 5, "availability": "{{ stock }}"}, None),
    ],
    ids=[
        "address", "prefix", "reference", "list", "inner offer", "any inner offer", "any of several", "none of several",
        "template",
    ],
)  # fmt: skip
def test_a_product_can_be_had_if_any_of_its_offers_can(offers: Any, availability: str | None) -> None:
    assert labels({**KETTLE, "offers": offers}).get("availability") == availability


def test_of_several_offers_the_one_at_the_pages_address_counts() -> None:
    offers = [
        {"price": "25.00", "priceCurrency": "EUR", "url": URL + "?size=l", "sku": "BK-L"},
        {"price": "19.99", "priceCurrency": "EUR", "url": URL + "?size=s", "sku": "BK-S"},
    ]
    html = page({**KETTLE, "sku": "", "offers": offers})
    found = markup.read_labels(html, URL + "?size=s")
    assert (found["price"], found["sku"]) == ("19.99", "BK-S")


def test_of_a_groups_variants_the_one_at_the_pages_address_counts() -> None:
    variants = [
        {"@type": "Product", "sku": f"BK-{size}", "name": f"Blue Kettle 2000 {size}", "url": f"{URL}?size={size}",
         "offers": {"price": price, "priceCurrency": "EUR"}}
        for size, price in (("l", "25.00"), ("s", "19.99"))
    ]  # fmt: skip
    group = {"@type": "ProductGroup", "name": "Blue Kettle 2000", "brand": "Acme", "hasVariant": variants}
    found = markup.read_labels(page(group), URL + "?size=s")
    assert (found["price"], found["sku"], found["brand"]) == ("19.99", "BK-s", "Acme")
    assert labels(group)["price"] == "25.00"


def test_of_a_groups_variants_the_one_of_the_heading_counts() -> None:
    variants = [
        {"@type": "Product", "sku": f"BK-{size}", "name": f"Blue Kettle 2000 {size}", "offers": {"price": price}}
        for size, price in (("S", "19.99"), ("L", "25.00"))
    ]
    group = {"@type": "ProductGroup", "name": "Blue Kettle 2000", "hasVariant": variants}
    assert labels(group, heading="Blue Kettle 2000 L")["price"] == "25.00"
    assert "sku" not in labels(group)


def test_variants_side_by_side_are_one_product() -> None:
    variants = [
        {**KETTLE, "sku": f"BK-{size}", "name": f"Blue {size}", "isVariantOf": {"@id": "#group"}} for size in ("s", "l")
    ]
    assert labels(*variants, heading="")["price"] == "19.99"


# References, names, brands --------------------------------------------------------------------------------------------


def test_references_are_followed() -> None:
    graph = [
        {"@type": "WebPage", "@id": "#page", "mainEntity": {"@id": "#product"}},
        {"@type": "Organization", "@id": "#acme", "name": "Acme"},
        {"@type": "Offer", "@id": "#offer", "price": "19.99", "priceCurrency": "EUR"},
        {**KETTLE, "@id": "#product", "brand": {"@id": "#acme"}, "offers": {"@id": "#offer"}},
    ]
    assert labels(TOASTER, {"@context": "https://schema.org", "@graph": graph}, heading="") == LABELS


def test_an_id_alone_is_a_reference_to_it() -> None:
    things = [{"@type": "Brand", "@id": "#acme", "name": "Acme"}, {"@id": "#offer", **KETTLE["offers"]}]
    assert labels({**KETTLE, "brand": "#acme", "offers": "#offer"}, *things) == LABELS


def test_what_is_told_of_one_id_in_two_scripts_is_of_one_product() -> None:
    one = {"@type": "Product", "@id": "#p", "name": "Blue Kettle 2000", "sku": "BK-2000"}
    two = {"@type": "Product", "@id": "#p", "brand": "Acme", "offers": KETTLE["offers"]}
    assert labels(one, two) == LABELS


def test_references_in_a_circle_end() -> None:
    graph = [{"@type": "Product", "@id": "#a", "name": "Blue Kettle 2000", "isVariantOf": {"@id": "#a"},
              "brand": {"@id": "#a"}, "offers": {"@id": "#a"}, "hasVariant": {"@id": "#a"}}]  # fmt: skip
    assert labels({"@graph": graph})["name"] == "Blue Kettle 2000"


@pytest.mark.parametrize(
    "brand",
    [
        "Acme",
        ["Acme", "Other"],
        ["", "Acme"],
        {"@type": "Brand", "name": "Acme"},
        {"@type": "Organization", "name": "Acme", "logo": "https://shop.example/acme.png"},
        [{"@type": "Brand", "name": "Acme"}],
        {"@type": "Thing", "name": ["Acme"]},
        {"@type": "Brand", "name": {"@value": "Acme", "@language": "en"}},
        {"@value": "Acme"},
        {"@list": ["Acme"]},
        "Brand: Acme",
        "Ver mais artigos da Marca: Acme",
    ],
    ids=str,
)
def test_a_brand_is_read_in_every_form(brand: Any) -> None:
    assert labels({**KETTLE, "brand": brand})["brand"] == "Acme"


def test_the_manufacturer_stands_in_for_the_brand() -> None:
    assert labels({**KETTLE, "brand": {"@id": "#acme"}, "manufacturer": {"name": "Acme"}})["brand"] == "Acme"


@pytest.mark.parametrize(
    "nothing",
    [
        "N/A", "n/a", "NA", "null", "undefined", "None", "-", "–", "", " ", "#acme", "[object Object]", "{{ product.brand }}",
        "${brand}", "<%= brand %>", "Product name", "Your product name", "Brand name", "nan", "https://shop.example/acme",
        None, True, False, [], {}, {"@id": "#acme"}, {"@type": "Brand"}, {"@type": "Brand", "name": "undefined"}, [None],
    ],
    ids=str,
)  # fmt: skip
def test_what_templates_leave_behind_is_no_value(nothing: Any) -> None:
    found = labels({**KETTLE, "brand": nothing, "sku": nothing, "description": nothing})
    assert found.keys() & {"brand", "sku"} == set()
    assert found.get("description", "https://shop.example/acme") == "https://shop.example/acme"
    assert found["name"] == "Blue Kettle 2000"


@pytest.mark.parametrize(
    ("rating", "label"),
    [
        ({"ratingValue": "4.50", "reviewCount": 3}, "4.50"),
        ({"ratingValue": 4.50, "reviewCount": 3}, "4.5"),
        ([{"ratingValue": "4.5"}], "4.5"),
        ({"ratingValue": "0", "reviewCount": "0"}, None),
        ({"ratingValue": "5", "reviewCount": "0"}, None),
        ({"ratingValue": 0}, None),
        ({"ratingValue": "NaN"}, None),
    ],
    ids=str,
)
def test_a_rating_that_nobody_gave_is_none(rating: Any, label: str | None) -> None:
    assert labels({**KETTLE, "aggregateRating": rating}).get("rating") == label


def test_values_keep_the_spelling_of_the_page() -> None:
    body = json.dumps(KETTLE).replace('"19.99"', "19.90").replace('"BK-2000"', "00123")
    assert labels(body) == {}, "a number must not begin with zeros"
    body = json.dumps(KETTLE).replace('"19.99"', "19.90").replace('"BK-2000"', "9007199254740993")
    assert labels(body) | {"name": ""} == LABELS | {"name": "", "price": "19.90", "sku": "9007199254740993"}


# How scripts are written ----------------------------------------------------------------------------------------------

BODY = json.dumps(KETTLE)


@pytest.mark.parametrize(
    "body",
    [
        f"\n// <![CDATA[\n{BODY}\n// ]]>\n",
        f"/* <![CDATA[ */ {BODY} /* ]]> */",
        f"<![CDATA[{BODY}]]>",
        f"<!--//--><![CDATA[//><!--\n{BODY}\n//--><!]]>",
        f"<!-- {BODY} -->",
        f"<!--\n{BODY}\n//-->",
        f"\ufeff{BODY}",
        f"{BODY};",
        f"// the product\n{BODY} // its end",
        f"/* the product */ {BODY} /* its end */",
        BODY.replace('"sku"', '// article number\n"sku"'),
        BODY.replace('"sku"', '/* article "number" */ "sku"'),
        BODY.replace("}", ",}"),
        BODY.replace(', "sku"', ',, "sku"'),
        f"\u200b[,{BODY}]",
        f"[{BODY}, ]",
        f"[{BODY}, // the last\n]",
        f"{json.dumps(TOASTER)}{BODY}",
        f"{json.dumps(TOASTER)},\n{BODY};",
        f"{BODY} and what is no JSON",
        f"[[{BODY}]]",
        BODY.replace("Acme", "Ac\tme").replace("Ac\tme", "Acme\n"),
        BODY.replace("Acme", "Acme\x00\x07"),
        BODY.replace('"Acme"', '"\\Acme"'),
        BODY.replace('"', "&quot;"),
        BODY.replace('"sku"', '"weight": NaN, "height": -Infinity, "sku"'),
        BODY.replace('"sku": "BK-2000"', '"sku": "OLD", "sku": "BK-2000"'),
        BODY.replace('"sku": "BK-2000"', '"sku": "BK-2000", "sku": ""'),
        BODY.replace('"@type"', '"type"').replace("{", '{"@context": {"type": "@type"}, ', 1),
        BODY.replace('"sku"', '"schema:sku"').replace('"price"', '"https://schema.org/price"'),
        BODY.replace('"sku"', '"s:sku"').replace("{", '{"@context": {"s": "http://schema.org/"}, ', 1),
        BODY.replace('"sku"', '"number"').replace("{", '{"@context": [{"number": "schema:sku"}], ', 1),
        BODY.replace("priceCurrency", "pricecurrency"),
        BODY.replace('"@type": "Product"', '"@type": "product"'),
        BODY.replace("Blue", "Blue&#32;").replace("&#32; ", "&#32;"),
    ],
    ids=[
        "CDATA after slashes and a space", "CDATA in comments", "bare CDATA", "CDATA as Drupal writes it", "comment",
        "comment with slashes", "byte order mark", "semicolon", "line comments around", "block comments around",
        "line comment inside", "block comment with quotes", "comma before a brace", "comma twice", "comma first", "comma before a bracket",
        "comma before a comment", "two objects", "two objects with a comma", "something after it", "list in a list",
        "line break in a string", "control characters", "backslash that escapes nothing", "quotes as entities",
        "not a number", "key twice", "key twice, empty last", "type by another name", "prefixed keys",
        "prefix of the context", "term of the context", "key in lower case", "type in lower case", "entity in a name",
    ],
)  # fmt: skip
def test_scripts_are_read_in_every_form(body: str) -> None:
    assert labels(body) == LABELS


def test_what_looks_like_a_comment_in_a_string_is_kept() -> None:
    body = json.dumps({**KETTLE, "description": "See //shop, /* really */ and [this,] too"})[:-1] + ",}"
    assert labels(body)["description"] == "See //shop, /* really */ and [this,] too"


@pytest.mark.parametrize(
    "body",
    [
        "[" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"@type":"Product","name":' + '{"name":' * 900 + '"x"' + "}" * 901,
        "/*" * 500_000,
        "//" * 500_000,
        "<!--" * 300_000,
        '"' * 500_001,
        '"\\' * 300_000,
        "," * 1_000_000,
        " " * 1_000_000 + "{" + " " * 1_000_000,
        "{" + ",    " * 200_000 + "}",
        "]]>" * 300_000,
        '{"price": ' + "9" * 500_000 + "}",
        json.dumps([{"@id": f"#{i}", "name": {"@id": f"#{i + 1}"}} for i in range(20_000)]),
    ],
    ids=[
        "open lists", "deep objects", "deep names", "open comments", "slashes", "open HTML comments", "quotes", "backslashes",
        "commas", "spaces", "commas with spaces", "ends of CDATA", "a long number", "a chain of references",
    ],
)  # fmt: skip
def test_no_script_raises_or_takes_long(body: str) -> None:
    start = time.process_time()
    labels(body)
    assert time.process_time() - start < 10


# Microdata ------------------------------------------------------------------------------------------------------------

OFFER = (
    '<span itemprop="offers" itemscope itemtype="https://schema.org/Offer"><span itemprop="price" content="19.99">€ 20'
    '</span><meta itemprop="priceCurrency" content="EUR"></span>'
)
NAME = '<b itemprop="name">Blue Kettle 2000</b>'
SKU = '<meta itemprop="sku" content="BK-2000">'
BRAND = '<span itemprop="brand">Acme</span>'


def item(inner: str, kind: str = "https://schema.org/Product", rest: str = "") -> str:
    return f'<div itemscope itemtype="{kind}" {rest}>{inner}</div>'


@pytest.mark.parametrize(
    "rest",
    [
        item(NAME + SKU + BRAND + OFFER),
        item(NAME + SKU + BRAND + OFFER, "http://www.schema.org/Product"),
        item(NAME + SKU + BRAND + OFFER, "http://data-vocabulary.org/Product"),
        item(NAME + SKU + '<a itemprop="brand" href="/acme">Acme</a>' + OFFER),
        item(NAME + SKU + '<a itemprop="brand" href="/acme"><img alt="Acme" src="acme.png"></a>' + OFFER),
        item(NAME + SKU + '<meta itemprop="brand" content="Acme">' + OFFER),
        item(NAME + SKU + '<img itemprop="brand" alt="Acme" src="acme.png">' + OFFER),
        item(SKU + OFFER + '<i itemprop="brand" itemscope><meta itemprop="name" content="Acme"></i>' + NAME),
        item(SKU + OFFER + '<i itemprop="brand" itemscope><a itemprop="url"><b itemprop="name">Acme</b></a></i>' + NAME),
        item(SKU + OFFER + '<i itemprop="brand"><meta itemprop="name" content="Acme"></i>' + NAME),
        item(SKU + OFFER + '<i itemprop="manufacturer" itemscope itemtype="https://schema.org/Organization">'
             '<b itemprop="name">Acme</b></i>' + NAME),
        item(NAME + SKU + BRAND + OFFER.replace('itemprop="offers" ', "")),
        item(NAME + SKU + BRAND + OFFER.replace("itemscope itemtype", "itemtype")),
        item(NAME + SKU + BRAND + '<data itemprop="price" value="19.99"></data><meta itemprop="priceCurrency" content="EUR">'),
        item(NAME + SKU + BRAND + OFFER.replace(' content="19.99">€ 20', "><del>€25.00</del> 19.99")),
        item(NAME + SKU + BRAND + OFFER.replace(' content="19.99">€ 20', '><i class="old-price">€25</i> <i>19.99</i>')),
        item(NAME + SKU + BRAND + OFFER.replace(' content="19.99">€ 20', ">19.99<script>var a = 1;</script>")),
        item(NAME + SKU, rest='itemref="more price"') + f'<p id="more">{BRAND}</p><div id="price">{OFFER}</div>',
        item(NAME + SKU + BRAND + OFFER + item(
            '<b itemprop="name">Red Toaster</b><b itemprop="price">49</b>', rest='itemprop="isRelatedTo"')),
        item(item('<b itemprop="name">Red Toaster</b><b itemprop="brand">Zed</b>') + NAME + SKU + BRAND + OFFER),
        item(item(NAME + SKU + BRAND + OFFER), "https://schema.org/WebPage"),
        item('<b itemprop="name">Red Toaster</b><b itemprop="brand">Zed</b><b itemprop="sku">RT</b>')
        + item(NAME + SKU + BRAND + OFFER),
        f"<div itemscope>{NAME}{SKU}{BRAND}{OFFER}</div>",
        item(NAME + SKU + BRAND + OFFER + item('<i itemprop="ratingValue">1</i><b itemprop="name">Me</b>',
             "https://schema.org/Review", 'itemprop="review"')),
        item(NAME + SKU, rest='itemid="#p"') + item(BRAND + OFFER, rest='itemid="#p"'),
    ],
    ids=[
        "plain", "www", "data-vocabulary", "brand in a link", "brand as a linked logo", "brand in a meta", "brand in a picture",
        "untyped brand before the name", "untyped brand with a link", "brand that only holds a name", "manufacturer",
        "offer without itemprop", "offer without itemscope", "price without an offer", "struck price", "old price by class",
        "script in the price", "itemref", "related product inside", "other product inside without itemprop",
        "inside a page item", "another product first", "no type", "review inside", "itemid twice",
    ],
)  # fmt: skip
def test_microdata_is_read_as_sites_write_it(rest: str) -> None:
    assert labels(rest=rest) == LABELS


@pytest.mark.parametrize(
    ("markup_of_availability", "availability"),
    [
        ('<link itemprop="availability" href="https://schema.org/OutOfStock">', "OutOfStock"),
        ('<a itemprop="availability" href="http://schema.org/InStock">On its way</a>', "InStock"),
        ('<meta itemprop="availability" content="PreOrder">', "PreOrder"),
        ('<span itemprop="availability">Sold out</span>', "OutOfStock"),
        ('<span itemprop="availability" content="https://schema.org/InStock">3 pieces</span>', "InStock"),
    ],
)
def test_availability_is_read_from_link_meta_and_text(markup_of_availability: str, availability: str) -> None:
    rest = item(NAME + OFFER.replace("</span>", markup_of_availability + "</span>"))
    assert labels(rest=rest)["availability"] == availability


def test_no_microdata_raises_or_takes_long() -> None:
    refs = " ".join(f"i{i}" for i in range(300))
    deep = "".join(f'<div itemscope itemprop="brand" id="i{i}" itemref="{refs}">' for i in range(250))
    wide = '<b itemprop="name">x</b>' * 20_000
    start = time.process_time()
    labels(rest=deep + wide)
    labels(rest=item("<p>" * 200 + '<b itemprop="price">1</b>' * 10_000))
    assert time.process_time() - start < 20


# RDFa -----------------------------------------------------------------------------------------------------------------

RDFA_NAME = '<b property="name">Blue Kettle 2000</b><meta property="sku" content="BK-2000">'
RDFA_BRAND = '<div property="brand" typeof="Brand"><i property="name">Acme</i></div>'
RDFA_OFFER = (
    '<div property="offers" typeof="Offer"><b property="price" content="19.99">€ 20</b>'
    '<meta property="priceCurrency" content="EUR"></div>'
)


def rdfa(inner: str, opening: str = 'vocab="https://schema.org/" typeof="Product"') -> str:
    return f"<div {opening}>{inner}</div>"


@pytest.mark.parametrize(
    "rest",
    [
        rdfa(RDFA_NAME + RDFA_BRAND + RDFA_OFFER),
        rdfa(RDFA_NAME + '<b property="brand">Acme</b>' + RDFA_OFFER),
        rdfa(
            (RDFA_NAME + RDFA_BRAND + RDFA_OFFER).replace('property="', 'property="schema:').replace('of="', 'of="schema:'),
            'prefix="schema: https://schema.org/" typeof="schema:Product"',
        ),
        rdfa(
            (RDFA_NAME + RDFA_BRAND + RDFA_OFFER).replace('property="', 'property="s:').replace('of="', 'of="s:'),
            'prefix="og: http://ogp.me/ns# s: http://schema.org/" typeof="s:Product"',
        ),
        rdfa(
            RDFA_NAME + '<i property="offers" resource="#o"></i><i property="brand" resource="#a"></i>',
            'vocab="http://schema.org/" typeof="Product" resource="#p"',
        )
        + '<div vocab="http://schema.org/"><div resource="#o" typeof="Offer"><b property="price">19.99</b>'
        '<b property="priceCurrency">EUR</b></div><div resource="#a" typeof="Brand"><b property="name">Acme</b></div></div>',
        rdfa(RDFA_NAME + RDFA_BRAND + RDFA_OFFER.replace('property="offers" ', 'rel="offers" ')),
        rdfa(RDFA_NAME + RDFA_BRAND + '<section rel="offers">' + RDFA_OFFER.replace('property="offers" ', "") + "</section>"),
        rdfa(RDFA_NAME, 'vocab="http://schema.org/" about="#p" typeof="Product"')
        + f'<div vocab="http://schema.org/" about="#p">{RDFA_BRAND}{RDFA_OFFER}</div>',
    ],
    ids=[
        "vocabulary", "brand as text", "schema prefix", "declared prefix", "references", "rel", "rel around", "about twice",
    ],
)  # fmt: skip
def test_rdfa_is_read(rest: str) -> None:
    assert labels(rest=rest) == LABELS


def test_open_graph_inside_rdfa_is_no_property_of_it() -> None:
    rest = rdfa(RDFA_NAME + '<meta property="og:description" content="Shop">' + '<meta property="dc:name" content="x">')
    assert labels(rest=rest) == {"name": "Blue Kettle 2000", "sku": "BK-2000", "description": "Shop"}


# Open Graph -----------------------------------------------------------------------------------------------------------


def meta(**contents: str) -> str:
    return "".join(f'<meta property="{name.replace("_", ":")}" content="{text}">' for name, text in contents.items())


def test_open_graph_alone_labels_the_page() -> None:
    head = meta(og_type="og:product", og_title="Blue Kettle 2000", og_price_amount="19,99", og_price_currency="EUR",
                product_brand="Acme", product_availability="instock")  # fmt: skip
    assert labels(head=head) == {
        "name": "Blue Kettle 2000", "price": "19,99", "currency": "EUR", "brand": "Acme", "availability": "InStock",
    }  # fmt: skip


def test_open_graph_of_an_article_or_a_list_labels_nothing() -> None:
    assert labels(head=meta(og_type="article", og_title="How to boil water")) == {}
    listing = {"@type": "ItemList", "itemListElement": [{"@type": "ListItem", "item": TOASTER}]}
    assert labels(listing, head=meta(og_type="website", og_title="Kettles and toasters")) == {}


def test_the_sale_price_of_open_graph_comes_before_the_usual_one() -> None:
    head = (
        '<meta property="product:price:amount" content="25"><meta property="product:sale_price:amount" content="19.99">'
    )
    assert labels(head=head)["price"] == "19.99"


def test_a_twitter_card_with_a_price_is_the_last_resort() -> None:
    head = '<meta name="twitter:label1" content="Price"><meta name="twitter:data1" content="€19.99">'
    found = labels({"@type": "Product", "name": "Blue Kettle 2000"}, head=head)
    assert (found["price"], found["currency"]) == ("€19.99", "€")
