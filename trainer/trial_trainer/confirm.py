"""What a page's markup says of its product, held against what the page shows.

Called by data preparation for every page whose labels come from markup, whether a source brought them or they were
just read. Markup may be stale or for machines only: a value that the page contradicts gives way to the page's own where
that is plain, and one that stands nowhere on the page and names an article or a brand is no label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trial_trainer import answers, documents, markup
from trial_trainer.availability import IN_STOCK, find_availability
from trial_trainer.currencies import may_mean
from trial_trainer.documents import Facts, Skip

_SHORT_LINE = 60
"""Characters: a button or a notice, not running text."""
_ARTICLE_NUMBER = re.compile(
    r"(?:sku|(?:product|item|article|style|model)\s*(?:code|no\.?|number|nr\.?|id|#)|cod(?:ice)?\s*(?:produs|prodotto|articolo)"
    r"|art(?:ikel)?\.?\s*-?(?:nr\.?|nummer)|r[ée]f(?:[ée]rence)?\.?|c[óo]digo|kod(?:\s*produktu)?|kód|артикул|קוד מוצר)"
    r"\s*[:#.：]*\s*(?P<number>(?=\S*\d)[\w./-]{4,30})",
    re.IGNORECASE,
)


def confirm(said: Mapping[str, str], html: bytes | str, url: str | None) -> dict[str, str]:
    """Return what a page's markup says as far as the page bears it out.

    Args:
        said: the markup's values by attribute.
        html: the page.
        url: its address.
    """
    facts = documents.inspect(html)
    if isinstance(facts, Skip):
        return dict(said)
    found = {a: markup.clean_value(a, value) if a in answers.ATTRIBUTES else value for a, value in said.items()}
    found = markup.labels_of(facts, url) | {attribute: value for attribute, value in found.items() if value}
    place = f"{facts.text}\n{facts.title}\n{url or ''}"
    if "availability" in found:
        found["availability"] = _confirm_availability(found["availability"], facts)
    if "sku" in found and answers.target("sku", found["sku"], f"{facts.text}\n{facts.title}") is None:
        found["sku"] = _labelled_number(facts) or (found["sku"] if answers.target("sku", found["sku"], place) else "")
    if "brand" in found and answers.target("brand", found["brand"], place) is None:
        found["brand"] = ""
    return {attribute: value for attribute, value in found.items() if value}


def _confirm_availability(said: str, facts: Facts) -> str:
    """Believe a page on which everything says that the product can be bought; a notice may be about one size of it."""
    kinds = {kind for line in facts.text.splitlines() if len(line) <= _SHORT_LINE for kind in find_availability(line)}
    return IN_STOCK if kinds == {IN_STOCK} else said


def contradicts(attribute: str, value: str, accepted: Sequence[str], text: str, country: str | None) -> bool:
    """Say whether a value of markup is none of those that a person accepted; a bare "$" contradicts no dollar."""
    if attribute == "currency" and any(may_mean(value) & may_mean(other) for other in accepted):
        return False
    return not answers.is_correct(attribute, value, answers.spell_out(attribute, accepted, None, text, country))


def _labelled_number(facts: Facts) -> str:
    """Return the article number that a page prints with its label; "" where it prints none or several."""
    numbers = {found["number"].strip(".-/") for found in _ARTICLE_NUMBER.finditer(facts.text)}
    return numbers.pop() if len(numbers) == 1 else ""
