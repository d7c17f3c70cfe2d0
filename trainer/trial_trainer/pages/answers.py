"""Questions about a product page, and when an answer to one is right.

The words of the task live here: which attributes there are, how they are asked, how their values are written in many
languages, and when two spellings mean the same. Pure functions of strings, used by data preparation (which label can
be derived from a text), by evaluation (which answer is right) and by the page reader (which lines hold values).
Nothing here knows HTML or a model.
"""

from __future__ import annotations

import html
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from trial_trainer.pages.availability import find_availability, parse_availability
from trial_trainer.pages.currencies import (
    NUMBER,
    currency_key,
    decimal_of,
    find_money,
    find_money_places,
    find_numbers,
    find_sign,
    may_mean,
    meaning_of,
    read_number,
)

ABSENT = "none"
"""The answer that says: the page has no such value. Only explicit nulls of hand-made labels are trained as this."""

ATTRIBUTES = ("name", "price", "currency", "brand", "sku", "availability", "rating", "description")
"""The attributes whose values have a meaning here; any other attribute is compared as plain text."""

QUESTION_BY_ATTRIBUTE = {
    "name": "What is the name of the product?",
    "price": "What is the price now, as a number?",
    "currency": "In which currency is the price?",
    "brand": "What is the brand of the product?",
    "sku": "What is the SKU (article number) of the product?",
    "availability": "Is the product InStock or OutOfStock?",
    "rating": "What is the average rating, as a number?",
    "description": "How is the product described?",
}


def question(attribute: str) -> str:
    """Return the question put to the model for an attribute."""
    known = QUESTION_BY_ATTRIBUTE.get(attribute)
    return known if known is not None else f"What is the {attribute.replace('_', ' ')} of the product?"


def question_of_text(attribute: str) -> str:
    """Return the question put to the model for an attribute of a text that is of no page: "First name?"."""
    return f"{attribute.replace('_', ' ').capitalize()}?"


def is_absent(answer: str) -> bool:
    """Say whether an answer states that the page has no such value."""
    return answer.strip().strip(".").casefold() == ABSENT


def is_valid(attribute: str, answer: str) -> bool:
    """Say whether an answer can be read as a value of the attribute at all. An empty answer can not."""
    text = answer.strip()
    if not text or is_absent(text):
        return False
    match attribute:
        case "price":
            return parse_price(text) is not None
        case "rating":
            return parse_rating(text) is not None
        case "currency":
            return bool(may_mean(text))
        case "availability":
            return parse_availability(text) is not None
        case "sku":
            return bool(_sku_key(text)) and len(text) <= 80
        case _:
            return bool(_text_key(text))


def is_correct(attribute: str, answer: str, accepted: Sequence[str]) -> bool:
    """Say whether an answer means one of the accepted values, spelling aside."""
    text = answer.strip()
    if not text:
        return False
    if attribute == "currency":
        return _is_accepted_currency(text, accepted)
    return any(_means(attribute, text, value) for value in accepted)


def _means(attribute: str, answer: str, value: str) -> bool:
    match attribute:
        case "price":
            said_price = parse_price(answer)
            return said_price is not None and said_price == parse_price(value)
        case "rating":
            return _same_rating(answer, value)
        case "availability":
            message, meant = parse_availability(answer), parse_availability(value)
            return message is not None and message == meant
        case "sku":
            return _same_sku(answer, value)
        case "brand":
            return bool(_text_key(answer)) and _text_key(answer) == _text_key(value)
        case _:
            return bool(_name_key(answer)) and _name_key(answer) == _name_key(value)


# Numbers --------------------------------------------------------------------------------------------------------------

_LONGEST_PRICE = 200
"""Characters; a longer text is no price."""
_UNIT = re.compile(
    r"(?:/|\b(?:per|pro|par|por|je|al|za|pr|each|na|за)\b)\s*(?:\d+(?:[.,]\d+)?\s*)?"
    r"(?:kg|g|gr|mg|lb|lbs|oz|ml|cl|dl|l|ltr|litre|liter|m|cm|m2|m²|ft|yd|st|stk|stück|pc|pcs|piece|pieza|unit|unidad"
    r"|pièce|item|ks|szt|шт|кг|л|month|mo|monat|mois|mes|mese|year|yr|jahr|night|person|pack|pair|tb|sheet)\b\.?",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"[-−]?(?<!\d)\d{1,4}(?:[.,]\d+)?\s?[%٪％]")
_RANGE = re.compile(
    r"[^\w.,]*(?:[-–—~〜～]|\b(?:to|bis|à|a|do|до|tot|till|hasta|até|och|から)\b)?[^\w.,]*", re.IGNORECASE
)
_IS_RANGE = re.compile(r"[-–—~〜～]|\b(?:to|bis|à|a|do|до|tot|till|hasta|até|から)\b", re.IGNORECASE)


@lru_cache(maxsize=65536)
def parse_price(text: str, decimal: str | None = None, country: str | None = None) -> tuple[float, ...] | None:
    """Read the price in a text, in any notation: one amount, or the two ends of a range.

    A unit ("per kg") and percentages are no part of it. None where the text holds no number, or several that are no
    range.

    Args:
        text: as printed.
        decimal: the decimal sign of its page, where it is known; see `currencies.read_number`.
        country: of the site, where it is known.
    """
    if len(text) > _LONGEST_PRICE:
        return None
    plain = _PERCENT.sub(" ", _UNIT.sub(" ", _visible(text)))
    places = list(find_money_places(plain))
    values: list[float] = []
    ends: list[tuple[int, int]] = []
    for number in find_numbers(plain):
        place = next((p for p in places if p.start <= number.start < p.end), None)
        printed, mark = (place.money.number, place.money.mark) if place is not None else (number.text, "")
        value = read_number(printed, decimal=decimal, mark=mark, country=country)
        if value is None:
            return None
        values.append(value)
        ends.append((place.start, max(place.end, number.end)) if place is not None else (number.start, number.end))
    if not values:
        return None
    if len(set(values)) == 1:
        return (values[0],)
    if len(values) == 2 and values[0] < values[1] and _is_range(plain[ends[0][1] : ends[1][0]]):
        return (values[0], values[1])
    return None


def _is_range(between: str) -> bool:
    return _IS_RANGE.search(between) is not None and _RANGE.fullmatch(between) is not None


class Rating(NamedTuple):
    """A rating as printed."""

    value: float
    scale: float | None
    """Its best value, where it is said: 5 in "4.5/5", 100 in "90 %"."""
    digits: int
    """After the decimal sign."""


_RATING_NUMBER = r"\d+(?:[.,٫]\d+)?|[.,]\d+"
_OF_SCALE = re.compile(
    rf"({_RATING_NUMBER})\s*(?:stars?|sterne|★|⭐)?\s*(?:/|\b(?:out\s+of|von|sur|de|su|av|z|of|van|из|από|dari|trên|sobre)\b)"
    r"\s*(5|10|20|100)(?![\d.,]\d|\d)",
    re.IGNORECASE,
)
_SCALE_FIRST = re.compile(rf"(5|10|100)\s*(?:つ星のうち|点満点中|점\s*만점에|점\s*중)\s*({_RATING_NUMBER})")
_OF_HUNDRED = re.compile(rf"({_RATING_NUMBER})\s*[%٪％]")
_ANY_RATING = re.compile(_RATING_NUMBER)


@lru_cache(maxsize=65536)
def parse_rating(text: str) -> Rating | None:
    """Read the rating in a text: "4.5", "4,5 von 5", "9/10", "90 %", "4.5 (12 reviews)"."""
    plain = _visible(text)
    for pattern, value_group, scale_group in ((_OF_SCALE, 1, 2), (_SCALE_FIRST, 2, 1)):
        found = pattern.search(plain)
        if found is not None:
            return _rating(found[value_group], float(found[scale_group]))
    percent = _OF_HUNDRED.search(plain)
    if percent is not None:
        return _rating(percent[1], 100.0)
    any_number = _ANY_RATING.search(plain)
    return None if any_number is None else _rating(any_number[0], None)


def _rating(printed: str, scale: float | None) -> Rating | None:
    number = re.sub(r"[,٫]", ".", printed)
    value = float(number)
    return Rating(value, scale, len(number.partition(".")[2])) if math.isfinite(value) else None


def _same_rating(answer: str, value: str) -> bool:
    """Compare ratings; a page that prints 4.8 means the 4.7578 of its markup, but 5 does not mean 4.7."""
    message, meant = parse_rating(answer), parse_rating(value)
    if message is None or meant is None:
        return False
    if message.scale is not None and meant.scale is not None and message.scale != meant.scale:
        return abs(message.value / message.scale - meant.value / meant.scale) < 1e-9
    if message.value == meant.value:
        return True
    return message.digits in (1, 2) and abs(message.value - meant.value) <= 0.5 * 10**-message.digits + 1e-9


# Text keys ------------------------------------------------------------------------------------------------------------

_FOLDED_LETTERS = str.maketrans(
    {"ø": "o", "đ": "d", "ð": "d", "ł": "l", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "ŧ": "t", "&": "and"}
)
_MARKS_OF_OWNERS = re.compile("[™®©℠]")
_SIGNIFICANT = frozenset("+%")
"""Signs that tell brands apart ("Disney+"), beside letters and digits."""


def _visible(text: str) -> str:
    """Drop what is not seen: soft hyphens, spaces without width, marks of direction."""
    return text if text.isascii() else "".join(c for c in text if unicodedata.category(c) != "Cf")


def _unescape(text: str) -> str:
    """Undo what sites leave in their markup: "L&#8217;atelier" is "L’atelier"."""
    return html.unescape(text) if "&" in text else text


@lru_cache(maxsize=65536)
def _text_key(text: str) -> str:
    """Fold case, accents, punctuation and spaces away; "&" is "and", and vowel signs are letters."""
    plain = _MARKS_OF_OWNERS.sub("", _visible(_unescape(text)))
    # Composed once more, й is a letter of its own and not an и with an accent.
    decomposed = unicodedata.normalize("NFKD", plain).casefold().replace("и\u0306", "й").translate(_FOLDED_LETTERS)
    return "".join(c for c in decomposed if c.isalnum() or c in _SIGNIFICANT or _is_vowel_sign(c))


def _is_vowel_sign(character: str) -> bool:
    """Say whether a mark belongs to its letter: any but the accents of Latin, Greek, Cyrillic, Hebrew and Arabic."""
    return unicodedata.category(character) in ("Mn", "Mc") and not (
        "\u0300" <= character <= "\u036f" or "\u0591" <= character <= "\u05c7" or "\u064b" <= character <= "\u0670"
    )


@lru_cache(maxsize=65536)
def _name_key(text: str) -> str:
    """Fold case, spaces, kinds of quotes and dashes, and the marks of owners."""
    plain = _MARKS_OF_OWNERS.sub("", _visible(_unescape(text)))
    folded = unicodedata.normalize("NFKC", plain).casefold().replace("×", "x").replace("\u2044", "/")
    folded = re.sub(r"[‘’‚‛′´`]", "'", re.sub(r"[“”„‟″«»]", '"', folded))
    folded = re.sub(r"[‐‑‒–—―−]", "-", folded.replace("''", '"'))
    return re.sub(r"\s+", " ", folded).strip()


def _sku_key(text: str) -> str:
    """Fold case, scripts of digits and separators, which sites set as they like ("466/7999" is "4667999")."""
    folded = unicodedata.normalize("NFKC", _visible(text)).casefold()
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in folded if c.isalnum())


def _same_sku(answer: str, value: str) -> bool:
    """Compare article numbers: the same letters and digits, and no two ways of dividing them.

    "466/7999" is "4667999", and "VEI-22G013 K11" is "VEI22G013-K11"; "12-3" is not "1-23", where each divides what the
    other joins. A UPC-A is the EAN-13 that begins with a zero.
    """
    message, meant = _sku_key(answer), _sku_key(value)
    if not message or not meant:
        return False
    if message != meant:
        return _is_gtin(message) and _is_gtin(meant) and message.zfill(14) == meant.zfill(14)
    cuts, other = _cuts(answer), _cuts(value)
    return cuts <= other or other <= cuts


def _cuts(text: str) -> frozenset[int]:
    """Return after how many letters and digits a separator stands, but at the ends."""
    parts = re.split(r"[\W_]+", unicodedata.normalize("NFKC", _visible(text)).casefold().strip())
    lengths = [len(part) for part in parts if part]
    return frozenset(itertools.accumulate(lengths[:-1]))


def _is_gtin(digits: str) -> bool:
    """Say whether digits are a GTIN-8, -12, -13 or -14 by their length and check digit (GS1 General Specifications)."""
    if len(digits) not in (8, 12, 13, 14) or not (digits.isascii() and digits.isdigit()):
        return False
    total = sum(int(d) * (3 if place % 2 == 0 else 1) for place, d in enumerate(digits.zfill(14)))
    return total % 10 == 0


# Currency -------------------------------------------------------------------------------------------------------------


def _is_accepted_currency(answer: str, accepted: Sequence[str]) -> bool:
    """Say whether an answer is one of the accepted signs and codes, or means what they mean.

    What says one currency alone ("CAD", "€") settles what the signs beside it mean; a sign that stands alone means what
    it means everywhere.
    """
    key = currency_key(answer)
    if any(key == currency_key(value) for value in accepted):
        return bool(key)
    settled = {code for value in accepted if len(codes := may_mean(value)) == 1 for code in codes}
    return meaning_of(answer) in (settled or {code for value in accepted if (code := meaning_of(value)) is not None})


# What a page accepts --------------------------------------------------------------------------------------------------


def spell_out(
    attribute: str, values: Sequence[str], answer: str | None, text: str, country: str | None
) -> tuple[str, ...]:
    """Return the accepted values of a page's question with what they mean on this page.

    "$" is "CAD", too, in a Canadian shop, and "1.299" is "1299" where commas are decimal: what `is_correct` cannot
    know of a bare answer stands beside the label, and so does the answer to train on.
    """
    spelled = list(values)
    for value in values:
        if attribute == "currency" and len(may_mean(value)) > 1:
            code = meaning_of(value, country)
            if code is not None and country is not None:
                spelled.append(code)
        elif attribute == "price":
            here = parse_price(value, decimal_of(text), country)
            if here is not None and here != parse_price(value):
                spelled.append("–".join(f"{amount:.10g}" for amount in here))
    if answer is not None and values and not is_correct(attribute, answer, spelled):
        spelled.append(answer)
    return tuple(dict.fromkeys(spelled))


# Targets --------------------------------------------------------------------------------------------------------------


def target(attribute: str, label: str, text: str, country: str | None = None) -> str | None:
    """Derive the answer to train on from a label and the text that the model will see.

    Args:
        attribute: what is asked.
        label: its value, as a person or markup writes it.
        text: the page's.
        country: of the site, as `currencies.country_of` tells it.

    Returns:
        The value in the form in which it stands in the text (a price as printed, the currency as the page's sign),
        a canonical word for availability, or None where the label cannot be derived from the text.
    """
    label = label.strip()
    if not label:
        return None
    match attribute:
        case "price":
            return _price_target(label, text, country)
        case "rating":
            return _rating_target(label, text)
        case "currency":
            return _currency_target(label, text, country)
        case "availability":
            return _availability_target(label, text)
        case "sku":
            return _find_folded(_sku_key(label), text, _fold_to_sku)
        case "brand":
            return _find_folded(_text_key(label), text, _fold_to_letters)
        case _:
            return _find_folded(_name_key(label), text, _fold_gently)


_STANDING_NUMBER = re.compile(rf"(?<![\w.,-])(?:{NUMBER})(?![\w%-])")


def _price_target(label: str, text: str, country: str | None) -> str | None:
    decimal = decimal_of(text)
    # A label may leave open what its separator means; of its values the page prints one.
    candidates = (parse_price(label, decimal, country), *(parse_price(label, sign) for sign in (None, ".", ",")))
    wanted = {price for price in candidates if price is not None}
    if any(len(price) == 2 for price in wanted):
        return _range_target(wanted, text, decimal, country)
    if not wanted:
        return None
    for money in find_money(text):
        if (read_number(money.number, decimal=decimal, mark=money.mark, country=country),) in wanted:
            return money.number
    for found in _STANDING_NUMBER.finditer(text):
        if len(found[0]) > 2 and (read_number(found[0], decimal=decimal, country=country),) in wanted:
            return found[0]
    return None


def _range_target(wanted: set[tuple[float, ...]], text: str, decimal: str | None, country: str | None) -> str | None:
    """Find a range of prices as printed, signs and all."""
    for line in text.splitlines():
        for first, second in itertools.pairwise(find_money_places(line)):
            stretch = line[first.start : second.end].strip()
            if parse_price(stretch, decimal, country) in wanted:
                return stretch
    return None


_RATING_CONTEXT = re.compile(
    r"rating|star|review|bewertung|avis|opini|recens|out of|/\s?(?:5|10)\b|★|отзыв|ocen", re.IGNORECASE
)


def _rating_target(label: str, text: str) -> str | None:
    """Find the rating as printed; a whole number counts only in a line that speaks of ratings."""
    fallback = None
    meant = parse_rating(label)
    for line in text.splitlines():
        speaks_of_ratings = _RATING_CONTEXT.search(line) is not None
        if speaks_of_ratings and meant is not None and meant.scale is not None:
            for found in (*_OF_SCALE.finditer(line), *_OF_HUNDRED.finditer(line)):
                if _same_rating(found[0], label):
                    return found[0]
        for found in _STANDING_NUMBER.finditer(line):
            number = found[0]
            if not _same_rating(number, label):
                continue
            if speaks_of_ratings:
                return number
            if not number.isdigit():
                fallback = fallback or number
    return fallback


def _currency_target(label: str, text: str, country: str | None) -> str | None:
    code = meaning_of(label, country)
    found = find_sign(code, text, country) if code is not None else None
    may = may_mean(label)
    if found is not None or len(may) == 1:
        return found
    marks = [money.mark for money in find_money(text)]
    if code is None:
        # A sign that stays open ("kr") is the answer where it is printed.
        found = next((mark for mark in marks if currency_key(mark) == currency_key(label)), None)
    # Else the page says what it stands for: "$12.99 CAD".
    return found or next((mark for mark in marks if len(may_mean(mark)) == 1 and may_mean(mark) < may), None)


def _availability_target(label: str, text: str) -> str | None:
    meant = parse_availability(label)
    if meant is None:
        return None
    return meant if meant in find_availability(text) else None


def _find_folded(key: str, text: str, fold: Callable[[str], str]) -> str | None:
    """Find the stretch of one line whose folded form is the key, standing between word borders.

    Capitals tell names from words and addresses, so of several stretches the one with the most is taken.
    """
    if not key:
        return None
    found = [stretch for line in text.splitlines() for stretch in _find_in_line(key, line, fold)]
    return max(found, key=lambda stretch: sum(c.isupper() for c in stretch), default=None)


def _find_in_line(key: str, line: str, fold: Callable[[str], str]) -> Iterator[str]:
    parts = [fold(character) for character in line]
    flat = "".join(parts)
    start = flat.find(key)
    if start < 0:
        return
    origin = [position for position, part in enumerate(parts) for _ in part]
    while start >= 0:
        first, last = origin[start], origin[start + len(key) - 1]
        if _stands_alone(line, first, last):
            yield line[first : last + 1]
        start = flat.find(key, start + 1)


@lru_cache(maxsize=16384)
def _fold_to_letters(character: str) -> str:
    return _text_key(character)


@lru_cache(maxsize=16384)
def _fold_to_sku(character: str) -> str:
    return _sku_key(character)


@lru_cache(maxsize=16384)
def _fold_gently(character: str) -> str:
    return " " if character.isspace() else _name_key(character)


def _stands_alone(line: str, first: int, last: int) -> bool:
    before_ok = first == 0 or not line[first - 1].isalnum() or not line[first].isascii()
    after_ok = last + 1 == len(line) or not line[last + 1].isalnum() or not line[last].isascii()
    return before_ok and after_ok
