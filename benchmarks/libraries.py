"""How well extruct, price-parser and w3lib do what our own readers of markup, prices and bytes do, on our tests' rows.

    PYTHONPATH=tests:operator:trainer python benchmarks/libraries.py

Runs the tests of `tests/trainer/pages` that read labels from made pages, once as they are and once with extruct in
place of our reader, and counts the rows that pass; then reads the table of prices, and the pages whose encoding is
declared, with both readers. Every row was written for our readers, so theirs pass all of them: what the table says is
how much of it a library would bring along. Left out are the pages that are made to take long, on which extruct runs
for minutes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import extruct
import pytest
from price_parser import Price
from w3lib.encoding import html_to_unicode

from trial_trainer.pages import markup
from trial_trainer.pages.answers import parse_price
from trial_trainer.pages.decoding import decode

TESTS = Path(__file__).resolve().parent.parent / "tests" / "trainer" / "pages"
FILES = ("test_own_product.py", "test_markup.py")
SYNTAXES = ["json-ld", "microdata", "rdfa", "opengraph"]
PRODUCTS = ("Product", "http://schema.org/Product", "https://schema.org/Product")


def main() -> None:
    """Compare and print the three tables."""
    ours = count_rows()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(markup, "read_labels", read_with_extruct)
        theirs = count_rows()
    print("| labels from made pages | rows | ours | extruct |\n|---|---|---|---|")
    for test, rows in ours.items():
        if rows[True] + rows[False] > 1:
            print(f"| {test} | {rows.total()} | {rows[True]} | {theirs[test][True]} |")
    totals = [sum(rows[True] for rows in found.values()) for found in (ours, theirs)]
    print(f"| all of {len(ours)} tests | {sum(r.total() for r in ours.values())} | {totals[0]} | {totals[1]} |\n")

    sys.path.insert(0, str(TESTS))
    from test_values import PRICES

    right = {
        name: (parse_price(text) == prices, read_with_price_parser(text) == prices)
        for name, (text, prices) in PRICES.items()
    }
    print("| prices | rows | ours | price-parser |\n|---|---|---|---|")
    print(f"| as printed | {len(right)} | {sum(o for o, _ in right.values())} | {sum(t for _, t in right.values())} |")
    print("\nprice-parser reads differently: " + "; ".join(name for name, (_, theirs) in right.items() if not theirs))

    from test_decoding import DECLARATIONS, NAMES, a_page

    print("\n| pages that declare their encoding | rows | ours | w3lib |\n|---|---|---|---|")
    for how, declare in DECLARATIONS.items():
        read_right = Counter[str]()
        for name, (_, text, codec) in NAMES.items():
            before, declaration = declare(name)
            page = a_page(text, codec, declaration, before)
            read_right["ours"] += text in decode(page).text
            read_right["w3lib"] += text in html_to_unicode(None, page)[1]
        print(f"| {how} | {len(NAMES)} | {read_right['ours']} | {read_right['w3lib']} |")


class _Counter:
    """A plugin of pytest that counts passed (True) and failed rows by test."""

    def __init__(self) -> None:
        self.rows: dict[str, Counter[bool]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            test = report.nodeid.split("::")[-1].split("[")[0].removeprefix("test_").replace("_", " ")
            self.rows.setdefault(test, Counter())[report.passed] += 1


def count_rows() -> Mapping[str, Counter[bool]]:
    """Run the tests of labels, and count their rows."""
    counter = _Counter()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(
            ["-q", "-p", "no:cacheprovider", "-k", "not takes_long", *(str(TESTS / name) for name in FILES)],
            plugins=[counter],
        )
    return counter.rows


def read_with_extruct(html: bytes | str, url: str | None = None) -> dict[str, str]:
    """Return the labels of the first product that extruct finds, cleaned as ours are."""
    logging.getLogger("extruct").setLevel(logging.CRITICAL)
    text = html if isinstance(html, str) else html.decode("utf-8", "replace")
    try:
        found = extruct.extract(text, base_url=url, syntaxes=SYNTAXES, uniform=True, errors="log")
    # Some of these pages are made to break a reader, and each way counts as nothing read.
    except Exception:  # noqa: BLE001
        return {}
    for syntax in SYNTAXES:
        for product in _find_products(found.get(syntax, [])):
            labels = {a: markup.clean_value(a, str(raw)) for a, raw in _read_product(product)}
            return {attribute: value for attribute, value in labels.items() if value}
    return {}


def _find_products(values: Any) -> Iterator[Mapping[str, Any]]:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, dict):
            kinds = value.get("@type", ())
            if any(kind in PRODUCTS for kind in ([kinds] if isinstance(kinds, str) else kinds)):
                yield value
            yield from _find_products(value.get("@graph", []))


def _read_product(product: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    offer = _first(product.get("offers")) or {}
    offer = offer if isinstance(offer, dict) else {}
    rating = _first(product.get("aggregateRating"))
    for attribute, value in (
        ("name", product.get("name")),
        ("price", offer.get("price", offer.get("lowPrice"))),
        ("currency", offer.get("priceCurrency")),
        ("brand", product.get("brand")),
        ("sku", product.get("sku")),
        ("availability", offer.get("availability")),
        ("rating", rating.get("ratingValue") if isinstance(rating, dict) else None),
        ("description", product.get("description")),
    ):
        one = _first(value)
        one = one.get("name") if isinstance(one, dict) else one
        if one is not None:
            yield attribute, one


def _first(value: Any) -> Any:
    return (value[0] if value else None) if isinstance(value, list) else value


def read_with_price_parser(text: str) -> tuple[float, ...] | None:
    """Return the one price that price-parser reads, as our parser returns prices."""
    amount = Price.fromstring(text).amount_float
    return None if amount is None else (amount,)


if __name__ == "__main__":
    main()
