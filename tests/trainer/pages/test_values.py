"""A table of values as pages, labels and models write them, and which of them mean the same."""

import contextlib

import pytest
from babel import core as babel_core

from trial_trainer.pages.answers import is_correct, is_valid, parse_price, parse_rating, spell_out, target
from trial_trainer.pages.currencies import country_of, decimal_of, find_money, meaning_of

PRICES: dict[str, tuple[str, tuple[float, ...] | None]] = {
    "a whole number": ("1299", (1299,)),
    "cents after a point": ("12.50", (12.5,)),
    "cents after a comma": ("12,50", (12.5,)),
    "one digit after a point": ("12.5", (12.5,)),
    "a point groups, a comma is decimal": ("1.299,00", (1299,)),
    "a comma groups, a point is decimal": ("1,299.00", (1299,)),
    "two groups by commas": ("1,234,567", (1234567,)),
    "two groups by points": ("1.234.567", (1234567,)),
    "two groups by points and cents": ("1.234.567,89", (1234567.89,)),
    "a space groups": ("1 299,00", (1299,)),
    "a space groups twice": ("1 234 567", (1234567,)),
    "a no-break space groups": ("1\u00a0299,00", (1299,)),
    "a narrow no-break space groups": ("1\u202f299,00", (1299,)),
    "a thin space groups": ("1\u2009299,00", (1299,)),
    "a figure space groups": ("1\u2007299.00", (1299,)),
    "an apostrophe groups": ("1'299.50", (1299.5,)),
    "a curly apostrophe groups": ("1’299.50", (1299.5,)),
    "a modifier apostrophe groups": ("1ʼ299", (1299,)),
    "an acute accent groups": ("1´299.–", (1299,)),
    "a Swiss price": ("CHF 1'299.–", (1299,)),
    "a Swiss price without cents": ("CHF 19.-", (19,)),
    "lakhs": ("₹1,29,999", (129999,)),
    "lakhs and paise": ("Rs. 1,29,999.00", (129999,)),
    "crores": ("₹ 1,25,00,000", (12500000,)),
    "ten lakhs": ("12,34,567", (1234567,)),
    "a leading comma": (",89 €", (0.89,)),
    "a leading point": ("$.89", (0.89,)),
    "a leading point alone": (".89", (0.89,)),
    "zero euros": ("0,89 €", (0.89,)),
    "a dash for cents after a comma": ("1.299,-", (1299,)),
    "a dash for cents and a sign": ("1.299,- €", (1299,)),
    "a long dash for cents": ("19,–", (19,)),
    "a colon and a dash for cents": ("99:-", (99,)),
    "a point and three digits alone is a fraction": ("1.299", (1.299,)),
    "a comma and three digits alone is a thousand": ("1,299", (1299,)),
    "a point and three digits of euros is a thousand": ("1.299 €", (1299,)),
    "a sign before a point and three digits of euros": ("€1.299", (1299,)),
    "a point and three digits of dollars is a fraction": ("$1.299", (1.299,)),
    "a comma and three digits of dollars is a thousand": ("$1,299", (1299,)),
    "a point and three digits of zlotys is a thousand": ("1.299 zł", (1299,)),
    "a point and three digits of any crowns is a thousand": ("1.299 kr.", (1299,)),
    "a point and three digits of Norwegian crowns": ("NOK 1.299", (1299,)),
    "a point and three digits of a peso with its code": ("COP$ 24.990", (24990,)),
    "a point and three digits of reais is a thousand": ("R$ 1.299", (1299,)),
    "a point and three digits of Chilean pesos": ("CLP 24.990", (24990,)),
    "a point and three digits of Kuwaiti dinars is a fraction": ("24.990 KWD", (24.99,)),
    "a comma and three digits of Kuwaiti dinars is a thousand": ("1,299 KWD", (1299,)),
    "a comma and three digits of Tunisian dinars is a fraction": ("24,990 TND", (24.99,)),
    "a point and three digits of rupiah is a thousand": ("Rp 24.990", (24990,)),
    "a point and three digits of pounds is a fraction": ("£1.299", (1.299,)),
    "nothing before three digits is no thousand": ("0.299 €", (0.299,)),
    "four digits after a point": ("24.9900", (24.99,)),
    "six digits after a point": ("19.990000", (19.99,)),
    "a point, groups and four decimals": ("1,299.0000", (1299,)),
    "a negative": ("-5.00", (-5,)),
    "a negative before its sign": ("-$5.00", (-5,)),
    "a negative after its sign": ("$-5.00", (-5,)),
    "a negative with a minus sign": ("−5,00 €", (-5,)),
    "a range": ("£12.99–£15.99", (12.99, 15.99)),
    "a range with spaces": ("£12.99 - £15.99", (12.99, 15.99)),
    "a range of bare numbers": ("12.99-15.99", (12.99, 15.99)),
    "a range in words": ("$12.99 to $15.99", (12.99, 15.99)),
    "a range in German": ("12,99 € bis 15,99 €", (12.99, 15.99)),
    "a range in French": ("12,99 € à 15,99 €", (12.99, 15.99)),
    "a range in Japanese": ("1,299円～1,599円", (1299, 1599)),
    "a range that is one price": ("£12.99–£12.99", (12.99,)),
    "the least of a range": ("from £12.99", (12.99,)),
    "the least of a range in German": ("ab 12,99 €", (12.99,)),
    "the least of a range in French": ("à partir de 12,99 €", (12.99,)),
    "a price per kilogram": ("£2.50 per kg", (2.5,)),
    "a price per 100 grams": ("2,50 € / 100 g", (2.5,)),
    "a price per litre": ("1,99 €/l", (1.99,)),
    "a price for each": ("$3.99 each", (3.99,)),
    "a price by the month": ("9,99 € pro Monat", (9.99,)),
    "a tax beside it": ("119,00 € inkl. 19 % MwSt.", (119,)),
    "a code before it": ("USD 12.99", (12.99,)),
    "a code after it": ("12.99 USD", (12.99,)),
    "code and sign": ("US$ 12.99 USD", (12.99,)),
    "the same price twice": ("499€ 499€", (499,)),
    "Arabic-Indic digits": ("٩٩٫٥", (99.5,)),
    "Arabic-Indic digits with groups": ("١٬٢٩٩٫٥٠", (1299.5,)),
    "Persian digits": ("۱۲۹۹", (1299,)),
    "Devanagari digits": ("₹१२९", (129,)),
    "wide digits": ("１２９９円", (1299,)),
    "a wide comma": ("１，２９９円", (1299,)),
    "a soft hyphen inside": ("1\u00ad299", (1299,)),
    "marks of direction": ("\u200f99.50\u200e", (99.5,)),
    "a word joiner": ("12\u2060.50", (12.5,)),
    "two prices": ("12 or 13", None),
    "an old price beside the new": ("was £20 now £15", None),
    "two amounts for one": ("2 for £5", None),
    "words alone": ("free", None),
    "few left": ("Few left", None),
    "nothing": ("", None),
    "a version": ("1.2.3.4 5", None),
    "an endless number": ("9" * 400, None),
    "a range that falls": ("£15.99–£12.99", None),
}
"""A price as printed, and what it amounts to; two numbers are a range."""

RIGHT: dict[str, dict[str, tuple[str, str]]] = {
    "price": {
        "other notations of one amount": ("1.299,00", "1,299.00"),
        "without cents": ("1299", "1,299.00"),
        "with its sign": ("1.299,00 €", "1299.0"),
        "lakhs and plain digits": ("1,29,999", "129999"),
        "lakhs and their sign": ("₹1,29,999", "₹1,29,999"),
        "a range and itself": ("£12.99–£15.99", "£12.99–£15.99"),
        "a range otherwise written": ("12.99 to 15.99", "£12.99–£15.99"),
        "a unit beside it": ("2.50", "£2.50 per kg"),
        "an open notation and itself": ("1.299", "1.299"),
        "an open notation and its fraction": ("24.990", "24.99"),
        "a currency settles an open notation": ("1.299 €", "1299"),
        "from": ("12.99", "from £12.99"),
    },
    "rating": {
        "a comma": ("4,5", "4.5"),
        "of five and itself": ("4.5/5", "4.5/5"),
        "of five and bare": ("4.5", "4.5/5"),
        "out of five": ("4.5 out of 5", "4.5"),
        "out of five stars": ("4.5 stars out of 5", "4.5/5"),
        "von fünf": ("4,5 von 5", "4.5/5"),
        "sur cinq": ("4,5 sur 5", "4.5"),
        "of ten is half as much of five": ("9/10", "4.5/5"),
        "percent and of five": ("90%", "4.5/5"),
        "percent and of a hundred": ("90 %", "90/100"),
        "Japanese puts the scale first": ("5つ星のうち4.5", "4.5"),
        "Korean puts the scale first": ("5점 만점에 4.5", "4.5"),
        "a number of reviews after it": ("4.5 (123 reviews)", "4.5"),
        "rounded to one digit": ("4.8", "4.757894736842105"),
        "rounded to two digits": ("4.76", "4.757894736842105"),
        "a whole number": ("5", "5.0"),
        "three digits are a fraction": ("4,588", "4.588"),
    },
    "currency": {
        "code and sign": ("USD", "$"),
        "sign and code": ("$", "USD"),
        "small letters": ("usd", "USD"),
        "code beside sign": ("USD $", "$"),
        "sign beside code": ("£ GBP", "GBP"),
        "pounds, both": ("GBP £", "£"),
        "a dollar that says whose": ("US$", "USD"),
        "a code before its sign": ("MXN$", "MXN"),
        "a dollar that says whose, with a space": ("US $", "$"),
        "Canadian, spelled out": ("C$", "CAD"),
        "Canadian, code beside sign": ("CAD $", "CAD"),
        "Australian": ("A$", "AUD"),
        "Singaporean": ("S$", "SGD"),
        "Hongkong": ("HK$", "HKD"),
        "Taiwanese": ("NT$", "TWD"),
        "Brazilian": ("R$", "BRL"),
        "euros in words": ("euro", "€"),
        "euros in brackets": ("EUR (€)", "€"),
        "an open sign and itself": ("kr", "kr"),
        "an open sign and its code": ("SEK kr", "SEK"),
        "rupees and their code": ("Rs. INR", "₹"),
        "an abbreviation with its point": ("тг", "тг."),
        "an ending that is no part of it": ("원", "원~"),
        "without an accent": ("zl", "PLN"),
        "capitals": ("LEI", "Lei"),
        "an old code of the rouble": ("₽", "RUR"),
        "lari": ("₾", "GEL"),
        "manat": ("₼", "AZN"),
        "Kenyan shillings": ("KSh", "KES"),
        "guarani": ("₲", "PYG"),
        "taka": ("৳", "BDT"),
        "tugrik": ("₮", "MNT"),
        "riel": ("៛", "KHR"),
        "kip": ("₭", "LAK"),
        "colones": ("₡", "CRC"),
        "dram": ("֏", "AMD"),
        "a mark of direction in it": ("ر.س\u200f", "ر.س"),
        "a no-break space in it": ("US\u00a0$", "US$"),
        "a full-width yen": ("￥", "¥"),
        "what no table has": ("GALLEONS", "galleons"),
    },
    "brand": {
        "case": ("ACME", "Acme"),
        "an accent": ("Karcher", "KÄRCHER"),
        "a stroke through o": ("Orsted", "Ørsted"),
        "a stroke through l": ("Lodz", "Łódź"),
        "a ligature": ("Laerdal", "Lærdal"),
        "sharp s": ("Weiss", "Weiß"),
        "a Turkish capital": ("ISTIKBAL", "İstikbal"),
        "a trade mark": ("Apple", "Apple™"),
        "a registered mark": ("Roomba", "Roomba®"),
        "an ampersand in words": ("H and M", "H&M"),
        "an ampersand with spaces": ("H & M", "H&M"),
        "an escaped ampersand": ("C&A", "C&amp;A"),
        "punctuation": ("CARAN D'ACHE", "Caran d’Ache"),
        "a hyphen": ("3M", "3-M"),
        "a soft hyphen": ("Samsonite", "Sam\u00adsonite"),
        "a space without width": ("Samsonite", "Sam\u200bsonite"),
        "a mark of direction": ("Samsonite", "\u200eSamsonite"),
        "a byte order mark": ("Samsonite", "\ufeffSamsonite"),
        "wide letters": ("SONY", "ＳＯＮＹ"),
        "half-width katakana": ("ソニー", "ｿﾆｰ"),
        "a dollar before it": ("metabrand", "$metabrand"),
        "yo is ye": ("Елочка", "Ёлочка"),
    },
    "name": {
        "case and spaces": ("blue  chair", "Blue chair"),
        "quotes": ("Chair “Oslo”", 'Chair "Oslo"'),
        "dashes": ("Switch – OLED", "Switch - OLED"),
        "a registered mark": ("Crusher ANC 2", "Crusher® ANC 2"),
        "a trade mark": ("Switch", "Switch™"),
        "a soft hyphen": ("Hochdruckreiniger", "Hochdruck\u00adreiniger"),
        "a space without width": ("Blue chair", "Blue\u200b chair"),
        "a no-break space": ("Blue chair", "Blue\u00a0chair"),
        "a times sign": ("10 x 20 cm", "10 × 20 cm"),
        "two quotes for inches": ("24'' screen", '24" screen'),
        "a fraction": ("1/2 inch", "½ inch"),
        "a minus for a dash": ("AB-2", "AB−2"),
        "an escaped apostrophe": ("L’atelier", "L&#8217;atelier"),
        "a ligature of print": ("office", "oﬃce"),
    },
    "sku": {
        "a separator more": ("4667999", "466/7999"),
        "other separators": ("vei22g013 k11", "VEI22G013-K11"),
        "separators more and less": ("VEI-22G013 K11", "VEI22G013-K11"),
        "points": ("002.937.72", "00293772"),
        "a space without width": ("AB12", "AB\u200b12"),
        "Arabic-Indic digits": ("١٢٣٤", "1234"),
        "wide letters": ("ＡＢ１２", "AB12"),
        "UPC-A and EAN-13": ("036000291452", "0036000291452"),
        "EAN-13 and GTIN-14": ("4006381333931", "04006381333931"),
        "a leading hash": ("#12345", "12345"),
    },
}
"""By attribute: an answer and the value that it means."""

WRONG: dict[str, dict[str, tuple[str, str]]] = {
    "price": {
        "a thousand is no fraction": ("1299", "1.299"),
        "a fraction is no thousand": ("1.299", "1299"),
        "a negative": ("-5.00", "5.00"),
        "cents": ("12", "12.50"),
        "half of a range": ("12.99", "£12.99–£15.99"),
        "another range": ("£12.99–£16.99", "£12.99–£15.99"),
        "a lakh less": ("29,999", "₹1,29,999"),
        "ten times as much": ("1,29,999", "1299990"),
        "one of two": ("12 or 13", "12"),
        "in words": ("free", "0"),
    },
    "rating": {
        "not rounded so far": ("5", "4.7578"),
        "rounded wrongly": ("4.7", "4.7578"),
        "of ten": ("4.5/10", "4.5/5"),
        "percent of a rating of five": ("90%", "4.5"),
        "in words": ("good", "5"),
    },
    "currency": {
        "a dollar alone is not Canadian": ("$", "CAD"),
        "nor is a Canadian one meant by it": ("CAD", "$"),
        "nor Australian": ("$", "AUD"),
        "two dollars": ("US$", "CAD"),
        "francs of two unions": ("CFA", "XOF"),
        "a crown alone is not Swedish": ("kr", "SEK"),
        "two crowns": ("NOK", "SEK"),
        "rupees alone are not Indian": ("Rs", "INR"),
        "a yen alone is not Chinese": ("¥", "CNY"),
        "pounds of Egypt": ("£", "EGP"),
        "pounds of Gibraltar": ("£", "GIP"),
        "real and dollar": ("R$", "$"),
        "euro and dollar": ("€", "$"),
        "sign and code that disagree": ("USD €", "USD"),
        "nothing": ("", ""),
    },
    "brand": {
        "an ampersand less": ("CA", "C&A"),
        "a plus less": ("Disney", "Disney+"),
        "a word more": ("Acme Inc", "Acme"),
        "й is no и": ("Русскии", "Русский"),
        "vowel signs of Hindi": ("टाट", "टाटा"),
        "voiced kana": ("カンタ", "ガンダ"),
        "punctuation alone": ("...", "!!!"),
    },
    "name": {
        "a letter more": ("Blue chairs", "Blue chair"),
        "an accent": ("Café", "Cafe"),
        "nothing that is seen": ("\u200b", "\u200b"),
    },
    "sku": {
        "divided elsewhere": ("12-3", "1-23"),
        "divided elsewhere twice": ("12-34-5", "1-23-45"),
        "a leading zero of no GTIN": ("00123", "123"),
        "a wrong check digit": ("036000291453", "0036000291453"),
        "another digit": ("4667998", "466/7999"),
        "separators alone": ("-", "/"),
    },
}
"""By attribute: an answer and a value that it does not mean."""


def rows(table: dict[str, dict[str, tuple[str, str]]]) -> list:
    return [
        pytest.param(attribute, answer, value, id=f"{attribute}: {name}")
        for attribute, cases in table.items()
        for name, (answer, value) in cases.items()
    ]


@pytest.mark.parametrize(("printed", "price"), PRICES.values(), ids=PRICES)
def test_a_price_is_read_in_every_notation(printed: str, price: tuple[float, ...] | None) -> None:
    assert parse_price(printed) == price
    assert is_valid("price", printed) == (price is not None)
    assert is_correct("price", printed, [printed]) == (price is not None)


@pytest.mark.parametrize(("attribute", "answer", "value"), rows(RIGHT))
def test_an_answer_that_means_the_value_is_right(attribute: str, answer: str, value: str) -> None:
    assert is_correct(attribute, answer, [value])
    assert is_correct(attribute, value, [value])


@pytest.mark.parametrize(("attribute", "answer", "value"), rows(WRONG))
def test_an_answer_that_means_something_else_is_wrong(attribute: str, answer: str, value: str) -> None:
    assert not is_correct(attribute, answer, [value])


def test_the_tables_hold_at_least_two_hundred_values() -> None:
    assert len(PRICES) + len(rows(RIGHT)) + len(rows(WRONG)) >= 200


# What the page settles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "decimal"),
    [
        ("1.299 € statt 1.499,00 €", ","),
        ("19,99 € and 12,50 €", ","),
        ("$1,299.00", "."),
        ("$12.50", "."),
        ("$24.990", None),
        ("$12.50 and 12,50 €", None),
        ("", None),
    ],
)
def test_the_clear_prices_of_a_page_tell_its_decimal_sign(text: str, decimal: str | None) -> None:
    assert decimal_of(text) == decimal


@pytest.mark.parametrize(
    ("label", "text", "country", "answer"),
    [
        pytest.param("1299", "Preis: 1.299 €", None, "1.299", id="the currency"),
        pytest.param("1299", "$ 1.299", "CL", "1.299", id="the country"),
        pytest.param("1299", "$1.299 and $12,50", None, "1.299", id="the other prices"),
        pytest.param("1.299", "Preis: 1.299 €", None, "1.299", id="a label as printed"),
        pytest.param("23.450", "Rs 23,450", "PK", "23,450", id="a label in another notation"),
        pytest.param("1299", "$1.299 a gallon, $3.50", "US", None, id="a fraction of a dollar"),
        pytest.param("5", "Voucher: -5.00 €", None, None, id="a discount"),
        pytest.param("£12.99–£15.99", "Now £12.99 – £15.99", "GB", "£12.99 – £15.99", id="a range"),
    ],
)
def test_what_an_open_number_means_is_settled_by(
    label: str, text: str, country: str | None, answer: str | None
) -> None:
    assert target("price", label, text, country) == answer
    if answer is not None:
        accepted = spell_out("price", [label], answer, text, country)
        assert is_correct("price", answer, accepted)
        assert is_correct("price", label, accepted)


@pytest.mark.parametrize(
    ("label", "text", "country", "answer", "right", "wrong"),
    [
        ("CAD", "$19.99", "CA", "$", ["CAD", "$", "C$"], ["USD", "US$"]),
        ("$", "$19.99", "CA", "$", ["CAD", "$"], ["USD", "AUD"]),
        ("$", "$19.99", None, "$", ["USD", "$", "US$"], ["CAD"]),
        ("USD", "$19.99", None, "$", ["USD", "$"], ["CAD", "C$"]),
        ("USD", "$19.99", "CA", None, ["USD", "US$"], ["CAD"]),
        ("CAD", "$19.99", None, None, ["CAD", "C$"], ["USD"]),
        ("CAD", "$19.99 CAD", None, "CAD", ["CAD", "C$"], ["USD"]),
        ("$", "$19.99 CAD", None, "CAD", ["CAD", "$"], ["USD"]),
        ("USD", "$19.99 CAD", None, None, ["USD"], ["CAD"]),
        ("MXN", "MXN$ 19.99", None, "MXN$", ["MXN", "MXN$"], ["USD"]),
        ("kr", "199 kr SEK", None, "SEK", ["SEK", "kr"], ["NOK"]),
        ("SEK", "199 kr", "SE", "kr", ["SEK", "kr"], ["NOK", "€"]),
        ("SEK", "199 kr", None, None, ["SEK"], ["kr", "NOK"]),
        ("kr", "199 kr", None, "kr", ["kr", "Kr."], ["NOK", "SEK"]),
        ("Rs", "Rs 199", "PK", "Rs", ["PKR", "Rs."], ["INR", "₹"]),
        ("CNY", "¥199", "CN", "¥", ["CNY", "¥"], ["JPY"]),
        ("GEL", "GEL 100", None, "GEL", ["GEL", "₾"], ["USD"]),
        ("ZMW", "K250", None, "K", ["ZMW"], ["USD"]),
        ("€", "12 €", "DE", "€", ["EUR", "€"], ["$"]),
    ],
)
def test_a_sign_means_what_the_site_s_country_pays_with(
    label: str, text: str, country: str | None, answer: str | None, right: list[str], wrong: list[str]
) -> None:
    assert target("currency", label, text, country) == answer
    accepted = spell_out("currency", [label], answer, text, country)
    assert [message for message in right if not is_correct("currency", message, accepted)] == []
    assert [message for message in wrong if is_correct("currency", message, accepted)] == []


@pytest.mark.parametrize(
    ("address", "country"),
    [
        ("https://www.shop.ca/kettle", "CA"),
        ("https://www.shop.co.uk/kettle", "GB"),
        ("https://shop.com/en-ca/kettle", "CA"),
        ("https://www.ikea.com/ca/en/p/kettle", "CA"),
        ("https://en-au.shop.com/kettle", "AU"),
        ("shop.de", "DE"),
        ("https://shop.com/kettle", None),
        ("https://shop.co/kettle", None),
        ("https://shop.com.co/kettle", "CO"),
        ("https://shop.io", None),
        ("https://shop.tv", None),
        ("https://[broken", None),
        ("", None),
        (None, None),
    ],
)
def test_the_country_of_a_site_is_told_by_its_address(address: str | None, country: str | None) -> None:
    assert country_of(address) == country


@pytest.mark.parametrize(
    ("text", "number", "mark"),
    [
        ("MRP Rs. 1,29,900.00", "1,29,900.00", "Rs."),
        ("Price: ,89 €", ",89", "€"),
        ("$.89", ".89", "$"),
        ("19.99 ₾", "19.99", "₾"),
        ("KES 1,299", "1,299", "KES"),
        ("1.299,- €", "1.299", "€"),
        ("CHF 1'299.–", "1'299", "CHF"),
        ("1\u202f299,00\u00a0€", "1\u202f299,00", "€"),
        ("Coupon -$5.00", "-5.00", "$"),
        ("ALL 19.99", "19.99", "ALL"),
        ("MXN$1,299", "1,299", "MXN$"),
        ("ARS $ 24.990", "24.990", "ARS $"),
        ("-$12.99 CAD", "-12.99", "CAD"),
        ("12,99$ CAD", "12,99", "CAD"),
        ("ALL $12", "12", "$"),
        ("MEGACAD $12", "12", "$"),
        ("$12.99 CADENCE", "12.99", "$"),
    ],
)
def test_money_is_found_in_running_text(text: str, number: str, mark: str) -> None:
    assert list(find_money(text)) == [(number, mark)]


@pytest.mark.parametrize(
    "text", ["TOP 10", "TRY 12 months", "ALL 3", "AMD 7950", "12 km", "P 12", "5 m", "E 27", "K 3", "BD 25"]
)
def test_words_and_units_that_are_codes_and_signs_too_are_no_money(text: str) -> None:
    assert list(find_money(text)) == []


@pytest.mark.parametrize(
    ("label", "text", "answer"),
    [
        ("4.5/5", "Rating: 4,5 von 5", "4,5 von 5"),
        ("4.5", "4.5 out of 5 stars", "4.5"),
        ("90%", "Reviews: 90 % positive", "90 %"),
        ("9/10", "Average rating 9/10", "9/10"),
        ("9/10", "Size 9", None),
    ],
)
def test_a_rating_with_its_scale_is_found_as_printed(label: str, text: str, answer: str | None) -> None:
    assert target("rating", label, text) == answer
    assert parse_rating(label) is not None


def test_every_currency_that_a_country_pays_with_is_known_with_its_sign() -> None:
    countries = babel_core.get_global("territory_currencies")
    paid = {(code, land) for land, spans in countries.items() for code, _, end, tender in spans if tender and not end}
    paid = {(code, land) for code, land in paid if land not in ("EU", "IC", "EA", "TA", "CP", "DG", "AC")}
    assert {code for code, _ in paid if meaning_of(code) != code} == set()
    assert {(code, land) for code, land in paid if meaning_of(code, land) != code} == set()
    unread = set()
    for code, land in paid:
        with contextlib.suppress(babel_core.UnknownLocaleError):
            sign = babel_core.Locale.parse(f"und_{land}").currency_symbols.get(code, code).strip("\u200b")
            if sign and meaning_of(sign, land) != code:
                unread.add((code, land, sign))
    assert unread == set()


def test_a_long_row_of_digits_and_separators_is_read_in_time_that_grows_with_it() -> None:
    for text in ("1," * 10_000, "1 " * 10_000, "$1," * 5_000, "1.299," * 10_000, "-" * 50_000, "9" * 50_000):
        list(find_money(text))
        parse_price(text)
