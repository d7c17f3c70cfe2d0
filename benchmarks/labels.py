"""How many labels that come from pages' markup are wrong, by the hand-made labels of the same pages.

    PYTHONPATH=operator:trainer python benchmarks/labels.py

Prints a Markdown table for the labelled pages in `manifests/samples/data`: the stored values of their markup as the
data set brings them, and as data preparation uses them after the page has been asked. `--list` names the wrong ones.
The raw pages are not part of the data set: their scripts and meta elements were taken out when it was made.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from trial_trainer.pages import confirm, documents, markup
from trial_trainer.pages.currencies import country_of
from trial_trainer.pages.html import Skip

PAGES = Path(__file__).resolve().parent.parent / "manifests/samples/data/zyte-product-pages/pages.jsonl.gz"
ATTRIBUTES = ("price", "currency", "brand", "sku", "availability")


def main() -> None:
    """Compare and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name every wrong value, before and after")
    is_listed = parser.parse_args().list
    with gzip.open(PAGES, "rt", encoding="utf-8") as lines:
        pages = [json.loads(line) for line in lines]
    found_by = {
        "as stored": [page["markup"] for page in pages],
        "cleaned": [{a: markup.clean_value(a, v) for a, v in page["markup"].items()} for page in pages],
        "confirmed by the page": [
            confirm.confirm(page["markup"], facts_of(page["html"]), page["url"]) for page in pages
        ],
    }
    print("| markup's values |" + "".join(f" {attribute} |" for attribute in ATTRIBUTES) + " all |")
    print("|---|" + "---|" * (len(ATTRIBUTES) + 1))
    for name, found in found_by.items():
        known, wrong = count_wrong(pages, found, is_listed=is_listed)
        cells = [f"{wrong[a]} of {known[a]}" for a in ATTRIBUTES]
        print(f"| {name} | {' | '.join(cells)} | {wrong.total()} of {known.total()} |")


def count_wrong(
    pages: list[dict[str, Any]], found: list[dict[str, str]], *, is_listed: bool
) -> tuple[Counter[str], Counter[str]]:
    """Count, by attribute, the values on pages that have a hand-made label too, and the wrong ones of them."""
    known: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for page, values in zip(pages, found, strict=True):
        for attribute in ATTRIBUTES:
            value, accepted = values.get(attribute), page["labels"].get(attribute)
            if value and accepted:
                known[attribute] += 1
                if confirm.contradicts(
                    attribute, value, accepted, facts_of(page["html"]).text, country_of(page["url"])
                ):
                    wrong[attribute] += 1
                    if is_listed:
                        print(f"{page['site']} {page['id'][:6]}: {attribute} {value!r}, by hand {accepted}")
    return known, wrong


@cache
def facts_of(html: str) -> documents.Facts:
    """What a page says of itself."""
    page = documents.read_page(html)
    assert not isinstance(page, Skip)
    return page.facts


if __name__ == "__main__":
    main()
