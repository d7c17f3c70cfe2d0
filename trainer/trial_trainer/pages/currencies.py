"""Currencies: how they are written, whose they are, and the numbers that stand beside their signs.

Pure functions of strings. A sign may stand for many currencies ("$" for two dozen). Which one is meant is known from
the country of the site, else from what the sign means everywhere ("$" is the US dollar), else it stays open.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit

_TABLE: dict[str, tuple[tuple[str, ...], str]] = {
    "AED": (("د.إ", "Dh", "Dhs", "Dhs.", "درهم"), "AE"),
    "AFN": (("؋",), "AF"),
    "ALL": (("Lekë", "L"), "AL"),
    "AMD": (("֏", "դր."), "AM"),
    "AOA": (("Kz",), "AO"),
    "ARS": (("$", "AR$"), "AR"),
    "AUD": (("$", "A$", "AU$", "AUD$"), "AU CC CX HM KI NF NR TV"),
    "AWG": (("Afl.",), "AW"),
    "AZN": (("₼", "ман", "man."), "AZ"),
    "BAM": (("KM",), "BA"),
    "BBD": (("$", "Bds$"), "BB"),
    "BDT": (("৳", "Tk", "Tk."), "BD"),
    "BGN": (("лв", "лв."), ""),
    "BHD": (("د.ب", "BD"), "BH"),
    "BIF": (("FBu",), "BI"),
    "BMD": (("$", "BD$"), "BM"),
    "BND": (("$", "B$"), "BN"),
    "BOB": (("Bs", "Bs."), "BO"),
    "BRL": (("R$", "reais"), "BR"),
    "BSD": (("$", "B$"), "BS"),
    "BTN": (("Nu.",), "BT"),
    "BWP": (("P",), "BW"),
    "BYN": (("Br", "руб", "руб.", "р."), "BY"),
    "BZD": (("$", "BZ$"), "BZ"),
    "CAD": (("$", "C$", "CA$", "CDN$"), "CA"),
    "CDF": (("FC",), "CD"),
    "CHF": (("Fr.", "SFr.", ".-", ".–", ",-"), "CH LI"),
    "CLP": (("$", "CLP$"), "CL"),
    "CNY": (("¥", "元", "RMB", "CN¥"), "CN"),
    "COP": (("$", "COL$"), "CO"),
    "CRC": (("₡",), "CR"),
    "CUP": (("$", "$MN"), "CU"),
    "CVE": (("Esc",), "CV"),
    "CZK": (("Kč", ",-"), "CZ"),
    "DJF": (("Fdj",), "DJ"),
    "DKK": (("kr", "kr.", ",-"), "DK FO GL"),
    "DOP": (("RD$", "$"), "DO"),
    "DZD": (("د.ج", "DA"), "DZ"),
    "EGP": (("E£", "ج.م", "جنيه"), "EG"),
    "ERN": (("Nfk",), "ER"),
    "ETB": (("ብር", "Br"), "ET"),
    "EUR": (("€", "euro", "euros", ",-"),
     "AD AT AX BE BG BL CY DE EE ES FI FR GF GP GR HR IE IT LT LU LV MC ME MF MQ MT NL PM PT RE SI SK SM TF VA XK YT"),
    "FJD": (("$", "FJ$"), "FJ"),
    "FKP": (("£", "FK£"), "FK"),
    "GBP": (("£", "UK£", "GB£"), "GB GG GS IM JE"),
    "GEL": (("₾", "ლარი"), "GE"),
    "GHS": (("GH₵", "GH¢", "₵"), "GH"),
    "GIP": (("£",), "GI"),
    "GMD": (("D",), "GM"),
    "GNF": (("FG",), "GN"),
    "GTQ": (("Q",), "GT"),
    "GYD": (("$", "G$"), "GY"),
    "HKD": (("HK$", "$"), "HK"),
    "HNL": (("L",), "HN"),
    "HRK": (("kn",), ""),
    "HTG": (("G",), "HT"),
    "HUF": (("Ft",), "HU"),
    "IDR": (("Rp",), "ID"),
    "ILS": (("₪", "NIS", "ש״ח", "שח"), "IL PS"),
    "INR": (("₹", "Rs", "Rs."), "BT IN"),
    "IQD": (("د.ع",), "IQ"),
    "IRR": (("ریال", "﷼", "تومان"), "IR"),
    "ISK": (("kr", "kr."), "IS"),
    "JMD": (("J$", "$"), "JM"),
    "JOD": (("د.أ", "JD"), "JO PS"),
    "JPY": (("¥", "円", "JP¥"), "JP"),
    "KES": (("KSh", "Ksh", "KSh.", "Ksh."), "KE"),
    "KGS": (("сом",), "KG"),
    "KHR": (("៛",), "KH"),
    "KMF": (("CF",), "KM"),
    "KPW": (("₩",), "KP"),
    "KRW": (("₩", "원"), "KR"),
    "KWD": (("د.ك", "KD"), "KW"),
    "KYD": (("$", "CI$"), "KY"),
    "KZT": (("₸", "тг", "тг.", "тенге"), "KZ"),
    "LAK": (("₭",), "LA"),
    "LBP": (("ل.ل", "LL"), "LB"),
    "LKR": (("රු.", "රු", "Rs", "Rs."), "LK"),
    "LRD": (("$", "L$"), "LR"),
    "LSL": (("M",), "LS"),
    "LYD": (("د.ل", "LD"), "LY"),
    "MAD": (("DH", "Dhs", "د.م"), "EH MA"),
    "MDL": (("L", "lei", "leu"), "MD"),
    "MGA": (("Ar",), "MG"),
    "MKD": (("ден", "ден."), "MK"),
    "MMK": (("K", "Ks"), "MM"),
    "MNT": (("₮",), "MN"),
    "MOP": (("MOP$",), "MO"),
    "MRU": (("أ.م.", "UM"), "MR"),
    "MUR": (("Rs", "Rs.", "₨"), "MU"),
    "MVR": (("ރ.", "Rf"), "MV"),
    "MWK": (("MK",), "MW"),
    "MXN": (("$", "MX$", "Mex$"), "MX"),
    "MYR": (("RM",), "MY"),
    "MZN": (("MTn", "MT"), "MZ"),
    "NAD": (("$", "N$"), "NA"),
    "NGN": (("₦",), "NG"),
    "NIO": (("C$",), "NI"),
    "NOK": (("kr", "kr.", ",-"), "BV NO SJ"),
    "NPR": (("नेरू", "रू", "Rs", "Rs.", "₨", "NRs"), "NP"),
    "NZD": (("$", "NZ$"), "CK NU NZ PN TK"),
    "OMR": (("ر.ع.",), "OM"),
    "PAB": (("B/.",), "PA"),
    "PEN": (("S/", "S/."), "PE"),
    "PGK": (("K",), "PG"),
    "PHP": (("₱", "Php"), "PH"),
    "PKR": (("Rs", "Rs.", "₨"), "PK"),
    "PLN": (("zł", "zl", "zlotych", "złotych"), "PL"),
    "PYG": (("₲", "Gs", "Gs."), "PY"),
    "QAR": (("ر.ق", "QR"), "QA"),
    "RON": (("lei", "leu"), "RO"),
    "RSD": (("din", "дин"), "RS"),
    "RUB": (("₽", "руб", "руб.", "р.", "RUR"), "RU"),
    "RWF": (("RF", "FRw"), "RW"),
    "SAR": (("ر.س", "﷼", "SR", "ريال"), "SA"),
    "SBD": (("$", "SI$"), "SB"),
    "SCR": (("SR", "Rs", "₨"), "SC"),
    "SDG": (("ج.س.",), "SD"),
    "SEK": (("kr", "kr.", ":-", ",-"), "SE"),
    "SGD": (("S$", "$"), "SG"),
    "SHP": (("£",), "SH"),
    "SLE": (("Le",), "SL"),
    "SOS": (("S", "Sh.So."), "SO"),
    "SRD": (("$",), "SR"),
    "SSP": (("£", "SS£"), "SS"),
    "STN": (("Db",), "ST"),
    "SYP": (("ل.س", "£S"), "SY"),
    "SZL": (("E",), "SZ"),
    "THB": (("฿", "บาท", "Baht"), "TH"),
    "TJS": (("сомонӣ", "SM"), "TJ"),
    "TMT": (("m",), "TM"),
    "TND": (("د.ت", "DT"), "TN"),
    "TOP": (("T$",), "TO"),
    "TRY": (("₺", "TL", "YTL"), "TR"),
    "TTD": (("TT$", "$"), "TT"),
    "TWD": (("NT$", "$", "元", "NTD", "圓"), "TW"),
    "TZS": (("TSh", "TSh."), "TZ"),
    "UAH": (("₴", "грн", "грн.", "гривень"), "UA"),
    "UGX": (("USh", "USh."), "UG"),
    "USD": (("$", "US$", "U$S", "dollars"), "AS BQ EC FM GU HT IO MH MP PA PR PW SV TC TL UM US VG VI ZW"),
    "UYU": (("$U", "$"), "UY"),
    "UZS": (("soʻm", "so'm", "сўм", "сум"), "UZ"),
    "VES": (("Bs.S", "Bs", "Bs."), "VE"),
    "VND": (("₫", "đ", "vnđ", "đồng"), "VN"),
    "VUV": (("VT",), "VU"),
    "WST": (("WS$",), "WS"),
    "XAF": (("FCFA", "F CFA", "CFA"), "CF CG CM GA GQ TD"),
    "XCD": (("$", "EC$"), "AG AI DM GD KN LC MS VC"),
    "XCG": (("Cg.",), "CW SX"),
    "XOF": (("F CFA", "FCFA", "CFA"), "BF BJ CI GW ML NE SN TG"),
    "XPF": (("FCFP", "F"), "NC PF WF"),
    "YER": (("ر.ي", "﷼"), "YE"),
    "ZAR": (("R",), "LS NA ZA"),
    "ZMW": (("K", "ZK"), "ZM"),
    "ZWG": (("ZiG",), "ZW"),
}  # fmt: skip
"""By ISO 4217 code: what pages print for the currency, and the countries (ISO 3166) that pay with it.

Codes and countries are those of Unicode CLDR, which a test compares; signs are CLDR's and what pages print.
"""

SYMBOLS_BY_CURRENCY: dict[str, tuple[str, ...]] = {code: (code, *symbols) for code, (symbols, _) in _TABLE.items()}
"""What pages print for each currency, its code first. A symbol may stand for several currencies."""

FUNDS = frozenset("BOV CHE CHW CLF COU MXV USN UYI UYW VED XAD XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XUA".split())
"""Codes of ISO 4217 that no country pays with."""

_CURRENCIES_BY_COUNTRY: dict[str, frozenset[str]] = {
    country: frozenset(code for code, (_, countries) in _TABLE.items() if country in countries.split())
    for country in {country for _, countries in _TABLE.values() for country in countries.split()}
}
_PRINCIPAL = {
    "$": "USD", "£": "GBP", "₩": "KRW", "c$": "CAD", "lei": "RON", "leu": "RON", "руб": "RUB", "р": "RUB", "sr": "SAR",
    "dhs": "AED", ":-": "SEK", "ден": "MKD", "сум": "UZS",
}  # fmt: skip
"""What a sign of several currencies means where no country is known. "kr", "Rs" and "¥" stay open."""
_DECIMAL_COMMA = frozenset(
    "AD AL AM AO AR AT AX AZ BA BE BF BG BI BJ BL BR BY CD CF CG CI CL CM CO CR CV CY CZ DE DJ DK DZ EC EE ES FI FO FR"
    " GA GE GF GL GN GP GQ GR GW HR HU ID IS IT KG KZ LA LT LU LV MA MC MD ME MF MK MQ MR MZ NC NL NO PF PL PM PT PY RE"
    " RO RS RU RW SC SE SI SJ SK SM SN SR ST TG TJ TL TM TN TR UA UY UZ VA VE VN WF XK YT".split()
)
"""Countries that write 1.299,00 or 1 299,00 (CLDR)."""
_COMMA_CURRENCIES = frozenset(
    code
    for code, (_, lands) in _TABLE.items()
    if 2 * len(_DECIMAL_COMMA.intersection(lands.split())) > len(lands.split())
)
"""Those that are paid in such countries mostly."""
_THREE_DECIMALS = frozenset("BHD IQD JOD KWD LYD OMR TND".split())
"""Currencies of a thousand small ones: in them 24.990 has a fraction."""


def currency_key(text: str) -> str:
    """Fold what is written for a currency, so that "Lei", "lei" and "US $", "US$" are one."""
    folded = unicodedata.normalize("NFKC", text)
    folded = "".join(c for c in folded if unicodedata.category(c) != "Cf" and not c.isspace())
    return folded.casefold().rstrip(".")


CURRENCIES_BY_SYMBOL: dict[str, frozenset[str]] = {
    key: frozenset(
        code for code, symbols in SYMBOLS_BY_CURRENCY.items() if key in {currency_key(symbol) for symbol in symbols}
    )
    for key in {currency_key(symbol) for symbols in SYMBOLS_BY_CURRENCY.values() for symbol in symbols}
} | {currency_key(code): frozenset({code}) for code in FUNDS}
"""The currencies that a folded symbol or code may mean."""


@lru_cache(maxsize=4096)
def may_mean(text: str) -> frozenset[str]:
    """Return the currencies that a sign, a code or both beside each other may mean ("USD $", "€ (EUR)", "Rs. INR")."""
    key = currency_key(text)
    known = CURRENCIES_BY_SYMBOL.get(key) or CURRENCIES_BY_SYMBOL.get(key.strip("~*:()[]"))
    if known is not None:
        return known
    # "MXN$", which else would be read as the end of it, "N$".
    if key[:3].upper() in SYMBOLS_BY_CURRENCY and key[3:] in CURRENCIES_BY_SYMBOL:
        return CURRENCIES_BY_SYMBOL[key[:3]] & CURRENCIES_BY_SYMBOL[key[3:]]
    parts = [part for part in _PARTS.split(unicodedata.normalize("NFKC", text)) if part and not part.isspace()]
    meanings = [CURRENCIES_BY_SYMBOL.get(currency_key(part), frozenset()) for part in parts]
    return frozenset.intersection(*meanings) if meanings else frozenset()


def meaning_of(text: str, country: str | None = None) -> str | None:
    """Return the one currency that a sign or code stands for; None where it is none, or ambiguous.

    Args:
        text: as printed.
        country: of the site, as `country_of` tells it.
    """
    codes = may_mean(text)
    own = codes & _CURRENCIES_BY_COUNTRY.get(country or "", frozenset())
    if len(own) == 1:
        return next(iter(own))
    if len(codes) == 1:
        return next(iter(codes))
    principal = _PRINCIPAL.get(currency_key(text))
    return principal if principal in codes else None


# Where a site is ------------------------------------------------------------------------------------------------------

_ANYWHERE = frozenset("ad ag ai as bz cc cd co dj eu fm gg io la me ms nu sc sh sr st su tk tv vc ws".split())
"""Top-level domains of countries that sites of all countries use."""
_LOCALE = re.compile(r"[a-z]{2}[-_]([a-z]{2})")
_COMMERCE = frozenset({"com", "co", "net", "org"})


@lru_cache(maxsize=4096)
def country_of(address: str | None) -> str | None:
    """Return the country (ISO 3166) that a page's address names: by "/en-ca/", "/ca/en/" or the top-level domain."""
    if not address:
        return None
    try:
        parts = urlsplit(address.casefold() if "//" in address else f"//{address.casefold()}")
        host = parts.hostname or ""
    except ValueError:
        return None
    labels = host.split(".")
    folders = [segment for segment in parts.path.split("/") if segment][:2]
    for part in (*labels[:-1], *folders):
        named = _LOCALE.fullmatch(part)
        if named is not None and named[1].upper() in _CURRENCIES_BY_COUNTRY:
            return named[1].upper()
    if len(folders) == 2 and all(len(folder) == 2 for folder in folders):
        named_country = next((f.upper() for f in folders if f.upper() in _CURRENCIES_BY_COUNTRY), None)
        if named_country is not None:
            return named_country
    domain = "gb" if labels[-1] == "uk" else labels[-1]
    is_anyones = domain in _ANYWHERE and not (len(labels) > 2 and labels[-2] in _COMMERCE)
    return None if is_anyones or domain.upper() not in _CURRENCIES_BY_COUNTRY else domain.upper()


# Numbers --------------------------------------------------------------------------------------------------------------

_SPACE = r"\u0020\u00a0\u2000-\u200a\u202f\u205f\u3000"
_COMMA, _POINT, _APOSTROPHE = ",，٬", ".．", "'’ʼ′´`‘"
NUMBER = (
    rf"\d{{1,2}}(?:[{_COMMA}]\d{{2}})+[{_COMMA}]\d{{3}}(?:[{_POINT}]\d+)?(?!\d)"
    rf"|\d{{1,3}}(?:[{_COMMA}]\d{{3}})+(?:[{_POINT}٫]\d+)?(?!\d)"
    rf"|\d{{1,3}}(?:[{_POINT}]\d{{3}})+(?:[{_COMMA}]\d+)?(?!\d)"
    rf"|\d{{1,3}}(?:(?:[{_SPACE}]|[{_APOSTROPHE}])\d{{3}})+(?:[{_POINT}{_COMMA}٫]\d+)?(?!\d)"
    rf"|\d+(?:[{_POINT}{_COMMA}٫]\d+)?"
    rf"|(?<![\w{_POINT}{_COMMA}])[{_POINT}{_COMMA}٫]\d{{1,2}}(?![\d{_POINT}{_COMMA}])"
)
"""A number as pages print it: 1299, 1.299,00, 1,299.00, 1 299,00, 1'299.00, 1,29,900.00, 24.990, ,89."""

_NUMBER = re.compile(NUMBER)
_GROUPED_OR_EXACT = re.compile(rf"[{_POINT}{_COMMA}{_APOSTROPHE}]\d")


class Number(NamedTuple):
    """A number in a text."""

    text: str
    """As printed, with its minus."""
    start: int
    end: int


def find_numbers(text: str) -> Iterator[Number]:
    """Find the numbers of a text. A minus belongs to a number that it touches and that nothing stands before."""
    for found in _NUMBER.finditer(text):
        start = found.start()
        before = text[start - 2] if start > 1 else " "
        has_minus = start > 0 and text[start - 1] in "-−" and (before in " \t\n(:" or _is_sign(before))
        yield Number(("-" if has_minus else "") + found[0], start - has_minus, found.end())


def _is_sign(character: str) -> bool:
    """Say whether a character is a currency's sign."""
    return unicodedata.category(character) == "Sc"


def read_number(
    printed: str, *, decimal: str | None = None, mark: str = "", country: str | None = None
) -> float | None:
    """Return the value of one printed number.

    One separator before exactly three digits may begin a fraction or a group of thousands: "1.299". What decides is, in
    this order, `decimal`, the country, the currency beside it; without any of them a comma groups and a point does not,
    as in markup and in every programming language.

    Args:
        printed: as `find_numbers` finds it.
        decimal: the decimal sign of the page, where it is known.
        mark: the currency sign or code beside the number.
        country: of the site.
    """
    digits = "".join(map(_plain, re.sub(rf"[{_SPACE}{_APOSTROPHE}]", "", printed)))
    dots, commas = digits.count("."), digits.count(",")
    separator, other = (".", ",") if digits.rfind(".") > digits.rfind(",") else (",", ".")
    if "٫" in digits:
        value = digits.replace(",", "").replace("٫", ".")
    elif dots and commas:
        value = digits.replace(other, "").replace(separator, ".")
    elif dots + commas > 1:
        value = digits.replace(separator, "")
    elif dots + commas == 0:
        value = digits
    else:
        whole, _, tail = digits.lstrip("-").partition(separator)
        is_open = len(tail) == 3 and 1 <= len(whole) <= 3 and not whole.startswith("0")
        groups = is_open and _is_grouping(separator, decimal, mark, country)
        value = digits.replace(separator, "" if groups else ".")
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number - number == 0 else None


def _plain(character: str) -> str:
    """Write digits of any script and wide separators in ASCII; the Arabic decimal sign stays what it is."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return {"，": ",", "٬": ",", "．": ".", "−": "-"}.get(character, character)


def _is_grouping(separator: str, decimal: str | None, mark: str, country: str | None) -> bool:
    currency = meaning_of(mark, country) if mark else None
    meant = {currency} if currency is not None else may_mean(mark)
    if decimal is None and country is not None:
        decimal = "," if country in _DECIMAL_COMMA else "."
    if decimal is not None:
        return separator != decimal
    if mark == ",-":
        return separator == "."
    if currency in _THREE_DECIMALS:
        return separator == "," and currency not in _COMMA_CURRENCIES
    # All that "kr" may mean have decimal commas.
    return separator == "," or (bool(meant) and meant <= _COMMA_CURRENCIES)


_CLEAR_DECIMAL = re.compile(
    rf"(?P<cents>[{_POINT}{_COMMA}])\d{{1,2}}\Z|[{_POINT}]\d{{3}}(?P<comma>[{_COMMA}])\d+\Z"
    rf"|[{_COMMA}]\d{{3}}(?P<point>[{_POINT}])\d+\Z"
)


def decimal_of(text: str) -> str | None:
    """Return the decimal sign that the prices of a text use, as far as they tell; None for a draw."""
    votes: Counter[str] = Counter()
    for money in find_money(text):
        clear = _CLEAR_DECIMAL.search(money.number)
        if clear is not None:
            votes["," if clear[clear.lastgroup or 0] in _COMMA else "."] += 1
    comma, point = votes[","], votes["."]
    return None if comma == point else "," if comma > point else "."


# Money in running text ------------------------------------------------------------------------------------------------

_DASHES = frozenset({",-", ":-", ".-", ".–"})
_ONLY_BEFORE = frozenset({"R", "Br"})
_LIKE_WORDS = frozenset(
    "ALL AMD BAM BIF BOB COP CUP DOP GEL GIP LAK MAD MOP MUR NAD PEN RON SAR SLE SOS TOP TRY".split()
)
"""Codes that are words, too: beside "10" they are none, beside "19.99" they are."""
_LIKE_UNITS = frozenset(
    "E D F G K L M m P Q S BD KD KM CF DA DT FC FG JD LD LL MK MT RF SM UM VT Ar Db Le Ks Tk Tk. Esc Kz Nu. Rf ZK Gs"
    " Gs. L$ Cg. SR man. ман LEK".split()
)
"""Signs that mean other things more often; beside a number they count only where the label is that currency."""


def _is_code(symbol: str) -> bool:
    return symbol in SYMBOLS_BY_CURRENCY


_IN_SMALL_LETTERS = frozenset(
    "AED ARS AUD BGN BRL CAD CHF CLP CNY CZK DKK EGP EUR GBP HKD HRK HUF IDR ILS INR ISK JPY KRW KWD MXN MYR NGN NOK"
    " NZD PHP PKR PLN QAR RSD RUB SEK SGD THB TWD UAH USD VND ZAR".split()
)
"""Codes that are found in small letters, too."""


def _symbol_pattern(symbols: Iterable[str]) -> str:
    """Build a pattern for any of the symbols, longest first; letters must not run on into a word.

    Case is ignored but in codes that are rare and in signs of one or two letters: "12 Ft" is a price, "12 ft" a length.
    """
    parts = []
    for symbol in sorted(set(symbols), key=lambda s: (-len(s), s)):
        escaped = re.escape(symbol).replace("\\ ", r"\s?")
        before = r"(?<![^\W\d_])" if symbol[0].isalpha() else ""
        after = r"(?![^\W\d_])" if symbol[-1].isalpha() else ""
        is_exact = (len(symbol) <= 2 and symbol.isascii()) or (_is_code(symbol) and symbol not in _IN_SMALL_LETTERS)
        parts.append(before + (escaped if is_exact else f"(?i:{escaped})") + after)
    return "|".join(parts)


_ALL_SYMBOLS = frozenset(symbol for symbols in SYMBOLS_BY_CURRENCY.values() for symbol in symbols) | {
    "US $", "AU $", "CA $", "Kr", "KR", "Kn", "KN", "Fr", "fr.", "EURO", "￥", "CHF Fr.",
}  # fmt: skip
_IN_TEXT = _ALL_SYMBOLS - _LIKE_UNITS
_MARK_AFTER = re.compile(
    rf"(?:[,.:][-–—])?\s{{0,2}}({_symbol_pattern(_IN_TEXT - _ONLY_BEFORE - _DASHES)})|([,:][-–]|\.[-–](?!\d))"
)
_FIRST = frozenset(c for s in _IN_TEXT - _DASHES for c in (s[0], s[0].lower(), s[0].upper()))
"""Characters that a sign may begin with: a look at one spares most numbers the pattern."""


def _patterns_by_last_character() -> dict[str, re.Pattern[str]]:
    symbols_by_last = defaultdict(set)
    for symbol in _IN_TEXT - _DASHES:
        for character in (symbol[-1], symbol[-1].lower(), symbol[-1].upper()):
            symbols_by_last[character].add(symbol)
    return {c: re.compile(rf"({_symbol_pattern(s)})\s{{0,2}}\Z") for c, s in symbols_by_last.items()}


_MARK_BEFORE = _patterns_by_last_character()
"""What a sign before a number matches, by its last character, which spares trying all signs at every place."""
_SIGNS = sorted((s for s in _ALL_SYMBOLS if not (s.isascii() and s.isalpha())), key=lambda s: (-len(s), s))
_PARTS = re.compile(rf"({'|'.join(map(re.escape, _SIGNS))})|[\s()/~*:,\-–]+")
"""Between the parts of "USD $" and "Rs. INR"."""


class Money(NamedTuple):
    """A number beside a currency sign, as printed."""

    number: str
    mark: str


class _Place(NamedTuple):
    money: Money
    start: int
    end: int


def find_money(text: str, start: int = 0) -> Iterator[Money]:
    """Find the numbers that stand beside a currency sign, which is how prices are recognised in running text."""
    for place in find_money_places(text, start):
        yield place.money


def find_money_places(text: str, start: int = 0) -> Iterator[_Place]:
    """Find the same, and where number and sign lie."""
    used = start
    for found in _NUMBER.finditer(text, start):
        first, end = found.span()
        sign = text[first - 1] if first > used and text[first - 1] in "-−" else ""
        edge = first - len(sign)
        beside = text[max(used, edge - 9) : edge]
        pattern = _MARK_BEFORE.get(beside.rstrip()[-1:])
        before = pattern.search(beside) if pattern is not None else None
        if before is not None and _is_money(before[1], found[0]):
            begin = edge - len(before[0])
            mark, begin, end = _with_code(text, before[1].strip(), found[0], max(used, begin - 5), begin, end)
            is_negative = bool(sign) or _is_minus(text, begin - 1)
            yield _Place(Money(("-" if is_negative else "") + found[0], mark), begin - is_negative, end)
            used = end
            continue
        after = _MARK_AFTER.match(text, end) if _may_begin_sign(text[end : end + 3]) else None
        if after is not None and _is_of_next_line(after, text):
            continue
        if after is not None and (first == 0 or not text[first - 1].isalnum()) and _is_money(after[1] or "", found[0]):
            mark = after[1] or after[2].replace("–", "-")
            mark, _, end = _with_code(text, mark, found[0], first, first, after.end())
            is_negative = bool(sign) and _is_minus(text, first - 1)
            yield _Place(Money(("-" if is_negative else "") + found[0], mark), first - is_negative, end)
            used = end


_CODE_BEFORE = re.compile(r"(?<![^\W\d_])[A-Z]{3}\s?\Z")
_CODE_AFTER = re.compile(r"\s{0,2}([A-Z]{3})(?![^\W_])")


def _with_code(text: str, mark: str, number: str, least: int, begin: int, end: int) -> tuple[str, int, int]:
    """Join a sign of several currencies with the code that stands by it: "MXN$ 12", "$12.99 CAD".

    Returns:
        What tells the currency as printed, and where both begin and end.
    """
    if len(may_mean(mark)) < 2:
        return mark, begin, end
    before = _CODE_BEFORE.search(text[least:begin])
    if before is not None and _settles(before[0].strip(), mark, number):
        return text[begin - len(before[0]) : begin] + mark, begin - len(before[0]), end
    after = _CODE_AFTER.match(text, end)
    if after is not None and _settles(after[1], mark, number):
        return after[1], begin, after.end()
    return mark, begin, end


def _settles(code: str, mark: str, number: str) -> bool:
    return code in may_mean(mark) and _is_money(code, number)


def _is_of_next_line(after: re.Match[str], text: str) -> bool:
    """Say whether a sign stands before a number of the line below: "Kettle 2000", "€ 18,00"."""
    return "\n" in after[0] and text[after.end() : after.end() + 2].lstrip(" \u00a0")[:1].isdecimal()


def _may_begin_sign(beside: str) -> bool:
    if beside[:1] in (",", ".", ":"):
        return beside[1:2] in ("-", "–", "—")
    return beside.lstrip()[:1] in _FIRST


def _is_minus(text: str, position: int) -> bool:
    return position >= 0 and text[position] in "-−" and (position == 0 or text[position - 1] in " \t\n(:")


def _is_money(mark: str, number: str) -> bool:
    return mark not in _LIKE_WORDS or _GROUPED_OR_EXACT.search(number) is not None


@lru_cache(maxsize=256)
def _rare_sign(code: str) -> re.Pattern[str] | None:
    signs = [s for s in SYMBOLS_BY_CURRENCY.get(code, ()) if s in _LIKE_UNITS or s in _LIKE_WORDS]
    if not signs:
        return None
    any_of = "|".join(re.escape(sign) for sign in sorted(signs, key=lambda s: -len(s)))
    return re.compile(rf"(?<!\w)({any_of})\s?(?=\d)|(?<=\d)\s?({any_of})(?!\w)")


def find_sign(code: str, text: str, country: str | None = None) -> str | None:
    """Find what a text prints for a currency: a sign beside a number that means it there, else its code alone."""
    for money in find_money(text):
        if meaning_of(money.mark, country) == code and money.mark not in _DASHES:
            return money.mark
    rare = _rare_sign(code)
    found = rare.search(text) if rare is not None else None
    if found is not None:
        return found[1] or found[2]
    if code not in _LIKE_WORDS and re.search(rf"(?<!\w){code}(?!\w)", text):
        return code
    return None


def is_left_open(code: str, text: str, country: str | None = None) -> bool:
    """Say whether a text prints a sign that may mean a currency, and nothing tells that it does."""
    return find_sign(code, text, country) is None and any(code in may_mean(money.mark) for money in find_money(text))
