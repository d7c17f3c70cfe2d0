"""Labels come from what a page says of itself, and from nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trial_trainer.pages import markup
from trial_trainer.pages.answers import ATTRIBUTES

PRODUCT: dict[str, Any] = {
    "@context": "https://schema.org",
    "@type": "Product",
    "name": "Blue chair &amp; table",
    "brand": {"@type": "Brand", "name": "Acme"},
    "sku": "A-77",
    "description": "<p>It is  blue.</p>",
    "aggregateRating": {"ratingValue": 4.5, "reviewCount": 3},
    "offers": {"price": "19.99", "priceCurrency": "EUR", "availability": "http://schema.org/OutOfStock"},
}
LABELS = {
    "name": "Blue chair & table",
    "price": "19.99",
    "currency": "EUR",
    "brand": "Acme",
    "sku": "A-77",
    "availability": "OutOfStock",
    "rating": "4.5",
    "description": "It is blue.",
}


def script(body: str) -> str:
    return f'<html><head><script type="application/ld+json">{body}</script></head><body><p>Text</p></body></html>'


def test_json_ld_labels_every_attribute() -> None:
    assert markup.read_labels(script(json.dumps(PRODUCT))) == LABELS


@pytest.mark.parametrize(
    "body",
    [
        json.dumps([{"@type": "BreadcrumbList"}, PRODUCT]),
        json.dumps({"@graph": [{"@type": "WebPage"}, PRODUCT]}),
        json.dumps({**PRODUCT, "@type": ["Thing", "http://schema.org/Product"]}),
        json.dumps({**PRODUCT, "offers": [PRODUCT["offers"], {"price": "99"}]}),
        json.dumps({**PRODUCT, "offers": {"@type": "AggregateOffer", "offers": [PRODUCT["offers"]]}}),
        json.dumps({**PRODUCT, "brand": ["Acme", "Other"]}),
        "<!--" + json.dumps(PRODUCT) + "-->",
        "//<![CDATA[\n" + json.dumps(PRODUCT) + "\n//]]>",
        json.dumps(PRODUCT) + ";",
        json.dumps(PRODUCT, indent=1).replace("Blue chair", "Blue\nchair"),
    ],
    ids=["list", "graph", "types", "offers", "aggregate", "brands", "comment", "cdata", "semicolon", "raw line break"],
)
def test_json_ld_is_read_in_every_form_sites_write(body: str) -> None:
    assert markup.read_labels(script(body)) == LABELS


def test_the_lowest_price_of_several_offers_stands_for_all() -> None:
    offers = {"lowPrice": 5, "highPrice": 9, "priceCurrency": "USD"}
    labels = markup.read_labels(script(json.dumps({**PRODUCT, "offers": offers})))
    assert (labels["price"], labels["currency"]) == ("5", "USD")
    assert "availability" not in labels


def test_a_price_of_nothing_is_a_price() -> None:
    labels = markup.read_labels(script(json.dumps({**PRODUCT, "offers": {"price": 0, "priceCurrency": "EUR"}})))
    assert labels["price"] == "0"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[[[[]]]]",
        '"Product"',
        '{"@type": "Organization", "name": "Acme"}',
        '{"@type": 7}',
        '{"@type": "Product"}',
        '{"@type": "Product", "name": null, "offers": 7, "brand": [], "aggregateRating": "x", "sku": true}',
        "[" * 5000 + "]" * 5000,
        '{"@type": "Product", "name": ' + '{"name": ' * 200 + "1" + "}" * 200 + "}",
    ],
)
def test_json_ld_that_names_no_product_labels_nothing_but_what_it_says(body: str) -> None:
    assert markup.read_labels(script(body)) in ({}, {"name": "1"})


def test_values_that_are_none_of_their_attribute_are_left_out() -> None:
    offers = {"price": "call us", "priceCurrency": "gold", "availability": "perhaps"}
    labels = markup.read_labels(script(json.dumps({"@type": "Product", "name": "Chair", "offers": offers})))
    assert labels == {"name": "Chair"}


def test_microdata_labels_the_product_and_not_what_stands_around_it() -> None:
    page = """
      <div itemscope itemtype="https://schema.org/Organization"><b itemprop="name">Shop</b></div>
      <div itemscope itemtype="https://schema.org/Product">
        <h1 itemprop="name">Chair</h1><span itemprop="brand">Acme</span><meta itemprop="sku" content="A-77">
        <div itemprop="offers" itemscope itemtype="https://schema.org/Offer">
          <span itemprop="price" content="19.99">19,99 €</span><meta itemprop="priceCurrency" content="EUR">
          <link itemprop="availability" href="https://schema.org/InStock">
        </div>
        <div itemscope itemtype="https://schema.org/Review"><i itemprop="ratingValue">1</i></div>
        <div itemscope itemtype="https://schema.org/AggregateRating"><i itemprop="ratingValue">4.5</i></div>
      </div>"""
    assert markup.read_labels(page) == {
        "name": "Chair",
        "price": "19.99",
        "currency": "EUR",
        "brand": "Acme",
        "sku": "A-77",
        "availability": "InStock",
        "rating": "4.5",
    }


def test_open_graph_fills_in_what_the_other_markup_leaves_out() -> None:
    page = script(json.dumps({"@type": "Product", "name": "Chair"})).replace(
        "</head>",
        '<meta property="og:title" content="Chair | Shop"><meta property="product:price:amount" content="5.00">'
        '<meta property="product:price:currency" content="GBP">'
        '<meta name="product:availability" content="instock"></head>',
    )
    assert markup.read_labels(page) == {
        "name": "Chair",
        "price": "5.00",
        "currency": "GBP",
        "availability": "InStock",
    }


@pytest.mark.parametrize("page", ["", b"", b"%PDF-1.4", "no page", "<p>A page without markup</p>"])
def test_a_page_without_markup_has_no_labels(page: bytes | str) -> None:
    assert markup.read_labels(page) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["@type", "name", "offers", "price", "brand", "aggregateRating", "@graph"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_json_raises_and_only_attributes_are_labelled(value: Any) -> None:
    labels = markup.read_labels(
        script(json.dumps({"@type": "Product", "offers": value, "name": value, "brand": value}))
    )
    assert set(labels) <= set(ATTRIBUTES)
    assert all(labels.values())
