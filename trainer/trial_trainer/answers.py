"""Questions about a product page, and when an answer to one is right.

The words of the task live here: which attributes there are, how they are asked, how their values are written in many
languages, and when two spellings mean the same. Pure functions of strings, used by data preparation (which label can
be derived from a text), by evaluation (which answer is right) and by the page reader (which lines hold values).
Nothing here knows HTML or a model.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from trial_trainer.availability import find_availability, parse_availability

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

# Currencies -----------------------------------------------------------------------------------------------------------

SYMBOLS_BY_CURRENCY: dict[str, tuple[str, ...]] = {
    "AED": ("AED", "د.إ", "Dhs", "درهم"),
    "ARS": ("ARS", "$", "AR$"),
    "AUD": ("AUD", "$", "A$", "AU$"),
    "BGN": ("BGN", "лв", "лв."),
    "BHD": ("BHD", "د.ب"),
    "BRL": ("BRL", "R$"),
    "BYN": ("BYN", "Br", "руб", "руб.", "р."),
    "CAD": ("CAD", "$", "C$", "CA$", "CDN$"),
    "CHF": ("CHF", "Fr.", "fr.", "SFr.", "Fr"),
    "CLP": ("CLP", "$", "CLP$"),
    "CNY": ("CNY", "¥", "￥", "元", "RMB", "CN¥"),
    "COP": ("COP", "$", "COL$"),
    "CZK": ("CZK", "Kč"),
    "DKK": ("DKK", "kr", "Kr", "KR", "kr."),
    "EGP": ("EGP", "E£", "ج.م", "جنيه"),
    "EUR": ("EUR", "€", "Euro", "EURO", "euros"),
    "GBP": ("GBP", "£", "UK£"),
    "HKD": ("HKD", "HK$", "$"),
    "HRK": ("HRK", "kn", "Kn", "KN"),
    "HUF": ("HUF", "Ft"),
    "IDR": ("IDR", "Rp"),
    "ILS": ("ILS", "₪", "NIS"),
    "INR": ("INR", "₹", "Rs", "Rs."),
    "ISK": ("ISK", "kr", "Kr", "KR", "kr."),
    "JPY": ("JPY", "¥", "￥", "円"),
    "KRW": ("KRW", "₩", "원"),
    "KWD": ("KWD", "د.ك"),
    "KZT": ("KZT", "₸", "тг", "тг.", "тенге"),
    "MAD": ("MAD", "DH", "Dhs"),
    "MXN": ("MXN", "$", "MX$", "Mex$"),
    "MYR": ("MYR", "RM"),
    "NGN": ("NGN", "₦"),
    "NOK": ("NOK", "kr", "Kr", "KR", "kr.", ",-"),
    "NZD": ("NZD", "$", "NZ$"),
    "PEN": ("PEN", "S/", "S/."),
    "PHP": ("PHP", "₱"),
    "PKR": ("PKR", "Rs", "Rs.", "₨"),
    "PLN": ("PLN", "zł", "zl"),
    "QAR": ("QAR", "ر.ق", "QR"),
    "RON": ("RON", "lei", "leu"),
    "RSD": ("RSD", "din", "дин"),
    "RUB": ("RUB", "₽", "руб", "руб.", "р."),
    "SAR": ("SAR", "ر.س", "﷼", "SR", "ريال"),
    "SEK": ("SEK", "kr", "Kr", "KR", "kr.", ":-"),
    "SGD": ("SGD", "S$", "$"),
    "THB": ("THB", "฿", "บาท"),
    "TRY": ("TRY", "₺", "TL"),
    "TWD": ("TWD", "NT$", "$", "元", "NTD"),
    "UAH": ("UAH", "₴", "грн", "грн."),
    "USD": ("USD", "$", "US$", "US $", "dollars"),
    "UYU": ("UYU", "$U", "$"),
    "VND": ("VND", "₫", "đ"),
    "ZAR": ("ZAR", "R"),
}
"""What pages print for each currency (ISO 4217 code). A symbol may stand for several currencies."""


def _currency_key(text: str) -> str:
    """Fold what is written for a currency, so that "Lei", "lei" and "US $", "US$" are one."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).casefold().rstrip(".")


CURRENCIES_BY_SYMBOL: dict[str, frozenset[str]] = {
    key: frozenset(
        code for code, symbols in SYMBOLS_BY_CURRENCY.items() if key in {_currency_key(symbol) for symbol in symbols}
    )
    for key in {_currency_key(symbol) for symbols in SYMBOLS_BY_CURRENCY.values() for symbol in symbols}
}
"""The currencies that a folded symbol or code may mean."""


def _symbol_pattern(symbols: Iterable[str]) -> str:
    """Build a pattern for any of the symbols, longest first; letters must not run on into a word.

    Case is ignored but in signs of one or two letters: "12 Ft" is a price, "12 ft" is a length.
    """
    parts = []
    for symbol in sorted(set(symbols), key=lambda s: (-len(s), s)):
        escaped = re.escape(symbol).replace(r"\ ", r"\s?")
        before = r"(?<![^\W\d_])" if symbol[0].isalpha() else ""
        after = r"(?![^\W\d_])" if symbol[-1].isalpha() else ""
        is_short = len(symbol) <= 2 and symbol.isascii()
        parts.append(before + (escaped if is_short else f"(?i:{escaped})") + after)
    return "|".join(parts)


NUMBER = r"\d{1,3}(?:[.,'’\u00a0\u202f ]\d{3})+(?:[.,]\d{1,2})?(?!\d)|\d+(?:[.,]\d+)?"
"""A number as pages print it: 1299, 1.299,00, 1,299.00, 1 299,00, 24.990."""

_NUMBER = re.compile(NUMBER)
_STANDING_NUMBER = re.compile(rf"(?<![\w.,-])(?:{NUMBER})(?![\w%-])")
_DASHES = {",-", ":-"}
_ONLY_BEFORE = {"R", "Br"}
_ALL_SYMBOLS = {symbol for symbols in SYMBOLS_BY_CURRENCY.values() for symbol in symbols}
_MARK_BEFORE = re.compile(rf"(?:{_symbol_pattern(_ALL_SYMBOLS - _DASHES)})\s{{0,2}}\Z")
_MARK_AFTER = re.compile(rf"\s{{0,2}}({_symbol_pattern(_ALL_SYMBOLS - _ONLY_BEFORE)})")


class Money(NamedTuple):
    """A number beside a currency sign, as printed."""

    number: str
    mark: str


def find_money(text: str, start: int = 0) -> Iterator[Money]:
    """Find the numbers that stand beside a currency sign, which is how prices are recognised in running text."""
    used = start
    for found in _NUMBER.finditer(text, start):
        first, end = found.span()
        before = _MARK_BEFORE.search(text[max(used, first - 9) : first])
        if before is not None:
            yield Money(found[0], before[0].strip())
            used = end
            continue
        after = _MARK_AFTER.match(text, end)
        if after is not None and (first == 0 or not text[first - 1].isalnum()):
            yield Money(found[0], after[1])
            used = after.end()


def question(attribute: str) -> str:
    """Return the question put to the model for an attribute."""
    known = QUESTION_BY_ATTRIBUTE.get(attribute)
    return known if known is not None else f"What is the {attribute.replace('_', ' ')} of the product?"


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
            return bool(parse_numbers(text))
        case "rating":
            return _NUMBER.search(text) is not None
        case "currency":
            return _currency_key(text) in CURRENCIES_BY_SYMBOL
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
    return any(_means(attribute, text, value) for value in accepted)


def _means(attribute: str, answer: str, value: str) -> bool:
    match attribute:
        case "price":
            return not parse_numbers(answer).isdisjoint(parse_numbers(value))
        case "rating":
            return _same_rating(answer, value)
        case "currency":
            return _same_currency(answer, value)
        case "availability":
            said, meant = parse_availability(answer), parse_availability(value)
            return said is not None and said == meant
        case "sku":
            return bool(_sku_key(answer)) and _sku_key(answer) == _sku_key(value)
        case "brand":
            return bool(_text_key(answer)) and _text_key(answer) == _text_key(value)
        case _:
            return bool(answer) and _name_key(answer) == _name_key(value)


# Numbers --------------------------------------------------------------------------------------------------------------


_ARABIC_SEPARATORS = {0x066B: ".", 0x066C: ","}


@lru_cache(maxsize=65536)
def parse_numbers(text: str) -> frozenset[float]:
    """Read the number in a text, in any notation.

    Returns:
        Its possible values: none when the text holds no number or more than one; two when the notation leaves open
        whether a group of three digits is a fraction ("24.990" is 24.99 or 24990).
    """
    found = _NUMBER.findall(unicodedata.normalize("NFKC", text).translate(_ARABIC_SEPARATORS))
    if len(found) != 1:
        return frozenset()
    number = re.sub(r"[\s'’]", "", found[0])
    dots, commas = number.count("."), number.count(",")
    separator, other = (".", ",") if number.rfind(".") > number.rfind(",") else (",", ".")
    if dots and commas:
        spellings = {number.replace(other, "").replace(separator, ".")}
    elif dots + commas != 1:
        spellings = {number.replace(separator, "")}
    else:
        spellings = {number.replace(separator, ".")}
        whole, _, tail = number.partition(separator)
        if len(tail) == 3 and len(whole) <= 3 and int(whole) > 0:
            spellings.add(whole + tail)
    return frozenset(value for value in map(float, spellings) if math.isfinite(value))


def _same_rating(answer: str, value: str) -> bool:
    """Compare ratings; a page that prints 4.8 means the 4.7578 of its markup, but 5 does not mean 4.7."""
    first = _NUMBER.search(answer)
    if first is None:
        return False
    digits = len(re.split(r"[.,]", first[0])[-1]) if re.search(r"[.,]", first[0]) else 0
    said, meant = parse_numbers(first[0]), parse_numbers(value)
    if not said.isdisjoint(meant):
        return True
    return digits in (1, 2) and any(abs(s - m) <= 0.5 * 10**-digits + 1e-9 for s in said for m in meant)


# Text keys ------------------------------------------------------------------------------------------------------------


def _unescape(text: str) -> str:
    """Undo what shops leave in their markup: "L&#8217;atelier" is "L’atelier"."""
    return html.unescape(text) if "&" in text else text


@lru_cache(maxsize=65536)
def _text_key(text: str) -> str:
    """Fold case, diacritics, punctuation and spaces away."""
    decomposed = unicodedata.normalize("NFKD", _unescape(text)).casefold()
    return "".join(c for c in decomposed if c.isalnum())


@lru_cache(maxsize=65536)
def _name_key(text: str) -> str:
    """Fold case, spaces and kinds of quotes and dashes."""
    folded = unicodedata.normalize("NFKC", _unescape(text)).casefold()
    folded = re.sub(r"[‘’‚‛′´`]", "'", re.sub(r"[“”„‟″«»]", '"', folded))
    folded = re.sub(r"[‐‑‒–—―]", "-", folded)
    return re.sub(r"\s+", " ", folded).strip()


def _sku_key(text: str) -> str:
    """Fold case and separators, which shops set as they like ("466/7999" is "4667999")."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())


# Currency ---------------------------------------------------------------------------------------------------------


def _same_currency(answer: str, value: str) -> bool:
    said, meant = _currency_key(answer), _currency_key(value)
    if said == meant:
        return bool(said)
    said_codes = CURRENCIES_BY_SYMBOL.get(said, frozenset())
    meant_codes = CURRENCIES_BY_SYMBOL.get(meant, frozenset())
    return not said_codes.isdisjoint(meant_codes)


# Targets --------------------------------------------------------------------------------------------------------------


def target(attribute: str, label: str, text: str) -> str | None:
    """Derive the answer to train on from a label and the text that the model will see.

    Returns:
        The value in the form in which it stands in the text (a price as printed, the currency as the page's sign),
        a canonical word for availability, or None where the label cannot be derived from the text.
    """
    label = label.strip()
    if not label:
        return None
    match attribute:
        case "price":
            return _price_target(label, text)
        case "rating":
            return _rating_target(label, text)
        case "currency":
            return _currency_target(label, text)
        case "availability":
            return _availability_target(label, text)
        case "sku":
            return _find_folded(_sku_key(label), text, _fold_to_sku)
        case "brand":
            return _find_folded(_text_key(label), text, _fold_to_letters)
        case _:
            return _find_folded(_name_key(label), text, _fold_gently)


def _price_target(label: str, text: str) -> str | None:
    wanted = parse_numbers(label)
    if not wanted:
        return None
    for money in find_money(text):
        if not parse_numbers(money.number).isdisjoint(wanted):
            return money.number
    for found in _STANDING_NUMBER.finditer(text):
        if len(found[0]) > 2 and not parse_numbers(found[0]).isdisjoint(wanted):
            return found[0]
    return None


_RATING_CONTEXT = re.compile(
    r"rating|star|review|bewertung|avis|opini|recens|out of|/\s?(?:5|10)\b|★|отзыв|ocen", re.IGNORECASE
)


def _rating_target(label: str, text: str) -> str | None:
    """Find the rating as printed; a whole number counts only in a line that speaks of ratings."""
    fallback = None
    for line in text.splitlines():
        speaks_of_ratings = _RATING_CONTEXT.search(line) is not None
        for found in _STANDING_NUMBER.finditer(line):
            number = found[0]
            if not _same_rating(number, label):
                continue
            if speaks_of_ratings:
                return number
            if not number.isdigit():
                fallback = fallback or number
    return fallback


def _currency_target(label: str, text: str) -> str | None:
    codes = CURRENCIES_BY_SYMBOL.get(_currency_key(label))
    if codes is None:
        return None
    for money in find_money(text):
        if not CURRENCIES_BY_SYMBOL.get(_currency_key(money.mark), frozenset()).isdisjoint(codes):
            return money.mark
    return None


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
