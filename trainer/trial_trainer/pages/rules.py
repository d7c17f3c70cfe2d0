"""Two baselines that a trained model must beat: constants, and rules written by hand.

Both are read on the same questions as the model and printed beside it in every report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace

from trial_trainer.pages import markup
from trial_trainer.pages.availability import IN_STOCK
from trial_trainer.pages.currencies import find_money
from trial_trainer.pages.documents import Facts

_READ_FROM_MICRODATA = ("price", "currency", "brand", "sku", "rating")


def most_common_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the most common answer of each attribute, of (attribute, answer) pairs; of equals, the first in order."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for attribute, answer in pairs:
        counts[attribute][answer] += 1
    return {
        attribute: min(counter, key=lambda answer: (-counter[answer], answer))
        for attribute, counter in sorted(counts.items())
    }


def extract(facts: Facts, url: str | None = None) -> dict[str, str]:
    """Answer by rule: microdata where the page has it, else the h1, the first price after it, its sign, InStock.

    Args:
        facts: what the page says of itself.
        url: the page's address, by which its own product is known from others.
    """
    price, mark = _first_price(facts)
    found = {"name": facts.heading or facts.title, "price": price, "currency": mark, "availability": IN_STOCK}
    stated = markup.labels_of(replace(facts, json_ld=(), properties=()), url)
    found |= {attribute: stated[attribute] for attribute in _READ_FROM_MICRODATA if attribute in stated}
    return {attribute: value for attribute, value in found.items() if value}


def _first_price(facts: Facts) -> tuple[str, str]:
    """Find the first number beside a currency sign after the heading, else anywhere."""
    start = facts.text.find(facts.heading) if facts.heading else 0
    for position in (max(start, 0), 0):
        money = next(find_money(facts.text, position), None)
        if money is not None:
            return money.number, money.mark
    return "", ""
