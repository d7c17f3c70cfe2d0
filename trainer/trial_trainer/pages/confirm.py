"""What a page's markup says of its product, held against what the page shows.

Called by data preparation for every page whose labels come from markup, whether a source brought them or they were
just read. Markup may be stale or for machines only: a value that the page contradicts gives way to the page's own where
that is plain, and one that stands nowhere on the page and names an article or a brand is no label. What markup leaves
out of a product that it describes is filled in where the page says one thing only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from trial_trainer.pages import answers, markup
from trial_trainer.pages.availability import IN_STOCK, find_availability
from trial_trainer.pages.currencies import country_of, decimal_of, find_money_places, may_mean, meaning_of, read_number
from trial_trainer.pages.documents import Facts

_SHORT = 60
"""Characters: a button or a notice, not running text."""
_SENTENCE_END = re.compile(r"(?<=[.!?…。])\s+|\n")
_ARTICLE_NUMBER = re.compile(
    r"(?<![^\W\d_])(?:sku|asin|(?:product|item|article|style|model)\s*(?:code|no\.?|number|nr\.?|id|#)|item\s*(?=#)"
    r"|cod(?:ice)?\s*(?:produs|prodotto|articolo)|(?:art(?:ikel)?|bestell)\.?\s*-?(?:nr\.?|nummer)|r[ée]f(?:[ée]rence)?\.?"
    r"|c[óo]digo|id\s*(?:do\s*)?prod[ou][tc]t?o|num(?:ero|éro)\s*(?:oggetto|de\s*l[’']objet)(?:\s*ebay)?"
    r"|kod(?:\s*produktu)?|kód|šifra|tootekood|produkta\s*kods"
    r"|артикул|код(?:\s*товара)?|קוד מוצר|商品(?:編號|编号|番号))"
    r"\s*[:#.：–-]*\s*(?P<number>(?=\S*\d)[\w./-]{4,30})",
    re.IGNORECASE,
)
_MODEL_NAME = re.compile(r"[^\W\d_]{2,}(?:\s+\S+)+")
"""Words and numbers that begin with a word: "Galaxy A01"."""
_STARTING = re.compile(
    r"(?:start(?:ing|-)?\s*(?:price|bid|preis|gebot)|opening\s*bid|mise\s*à\s*prix|prix\s*de\s*départ|precio\s*de\s*salida"
    r"|base\s*d[’']asta|startbod|utropspris|cena\s*wywoławcza)\W{0,4}\Z",
    re.IGNORECASE,
)
"""What an auction prints before the price at which it began."""
_BIDS = re.compile(r"[1-9]\d*\s?(?:bids?|gebote?|offert[ae]|ench[èe]res?|pujas?|bud|ofert[ay]?)\b", re.IGNORECASE)
_DISCOUNT = re.compile(r"(?<!\d)(\d{1,2})(?:[.,]\d)?\s?%")
_FOR_SOME = re.compile(r"subscri|abonn|\babo\b|member|club|coupon|\bcode\b|gutschein", re.IGNORECASE)
"""Who gets a price that not everybody gets."""
_NEAR = 40
"""Characters between the old price and the new one, the discount between them or beside one of them."""


def confirm(message: Mapping[str, str], facts: Facts, url: str | None) -> dict[str, str]:
    """Return what a page's markup says as far as the page bears it out.

    Args:
        said: the markup's values by attribute.
        facts: what the page says of itself.
        url: its address.
    """
    country = country_of(url)
    found = {a: markup.clean_value(a, value) if a in answers.ATTRIBUTES else value for a, value in message.items()}
    found = markup.labels_of(facts, url) | {attribute: value for attribute, value in found.items() if value}
    place = f"{facts.text}\n{facts.title}\n{url or ''}"
    if "price" in found:
        found["price"] = _confirm_price(found["price"], facts, country)
        found.setdefault("currency", _find_currency(found["price"], facts.text, country))
    if "availability" in found or "price" in found:
        found["availability"] = _confirm_availability(found.get("availability", ""), facts)
    if not found.keys().isdisjoint(("name", "price", "sku")):
        found["sku"] = _confirm_sku(found.get("sku", ""), facts, place)
    if "brand" in found and answers.target("brand", found["brand"], place) is None:
        found["brand"] = ""
    return {attribute: value for attribute, value in found.items() if value}


# Price and currency ---------------------------------------------------------------------------------------------------


class _Printed(NamedTuple):
    """A price as the page prints it."""

    number: str
    mark: str
    amount: float | None
    start: int
    end: int


def _printed_prices(text: str, country: str | None) -> Iterator[_Printed]:
    decimal = decimal_of(text)
    for (number, mark), start, end in find_money_places(text):
        yield _Printed(number, mark, read_number(number, decimal=decimal, mark=mark, country=country), start, end)


def _confirm_price(message: str, facts: Facts, country: str | None) -> str:
    """Take the price now where the page prints what was said as the price before a discount, or as an auction's start.

    The page proves a discount by its percentage: 18.00, -5 %, 17.10. Only the first place after the heading counts, for
    other products stand further down. What an auction asks now is not told apart from its increments and estimates.
    """
    text = facts.text[max(facts.text.find(facts.heading), 0) :]
    amounts = answers.parse_price(message, decimal_of(facts.text), country)
    printed = list(_printed_prices(text, country))
    place = next((i for i, price in enumerate(printed) if amounts == (price.amount,)), None)
    if place is None:
        return message
    before = printed[place]
    around = text[max(0, before.start - 2 * _NEAR) : before.end + _NEAR]
    if _STARTING.search(text[max(0, before.start - _NEAR) : before.start]) and _BIDS.search(around):
        return ""
    beside = [*printed[max(0, place - 1) : place], *printed[place + 1 : place + 2]]
    return next((price.number for price in beside if _is_discounted(price, before, text)), message)


def _is_discounted(now: _Printed, before: _Printed, text: str) -> bool:
    first, second = sorted((now, before), key=lambda price: price.start)
    if not (now.amount and before.amount and 0 < now.amount < before.amount and second.start - first.end <= _NEAR):
        return False
    stretch = text[max(0, first.start - _NEAR // 2) : second.end + _NEAR // 2]
    percent = 100 * (1 - now.amount / before.amount)
    is_proven = any(abs(int(found[1]) - percent) < 1 for found in _DISCOUNT.finditer(stretch))
    return is_proven and _FOR_SOME.search(stretch) is None


def _find_currency(price: str, text: str, country: str | None) -> str:
    """Return the currency of the signs that the page prints beside a price; "" where they differ or stay open."""
    amounts = answers.parse_price(price, decimal_of(text), country)
    marks = {printed.mark for printed in _printed_prices(text, country) if amounts == (printed.amount,)}
    codes = {meaning_of(mark, country) if country or len(may_mean(mark)) == 1 else None for mark in marks}
    return (codes.pop() or "") if len(codes) == 1 else ""


# Availability and article number --------------------------------------------------------------------------------------


def _confirm_availability(message: str, facts: Facts) -> str:
    """Believe a page on which everything says that the product can be bought; a notice may be about one size of it."""
    sentences = (sentence for sentence in _SENTENCE_END.split(facts.text) if len(sentence) <= _SHORT)
    kinds = {kind for sentence in sentences for kind in find_availability(sentence)}
    return IN_STOCK if kinds == {IN_STOCK} else message


def _confirm_sku(message: str, facts: Facts, place: str) -> str:
    """Keep an article number that the page prints or its address holds, else take the one that it prints as such.

    A model's name ("OPTIPLEX 9010 TOWER") gives way to such a number, too.
    """
    labelled = _labelled_number(facts)
    is_printed = answers.target("sku", message, f"{facts.text}\n{facts.title}") is not None
    if labelled and (not is_printed or _MODEL_NAME.fullmatch(message)):
        return labelled
    return message if is_printed or answers.target("sku", message, place) else ""


def _labelled_number(facts: Facts) -> str:
    """Return the article number that a page prints with its label; "" where it prints none or several."""
    numbers = {found["number"].strip(".-/") for found in _ARTICLE_NUMBER.finditer(facts.text)}
    return numbers.pop() if len(numbers) == 1 else ""


# Against a person -----------------------------------------------------------------------------------------------------


def contradicts(attribute: str, value: str, accepted: Sequence[str], text: str, country: str | None) -> bool:
    """Say whether a value of markup is none of those that a person accepted; a bare "$" contradicts no dollar."""
    if attribute == "currency" and any(may_mean(value) & may_mean(other) for other in accepted):
        return False
    return not answers.is_correct(attribute, value, answers.spell_out(attribute, accepted, None, text, country))
