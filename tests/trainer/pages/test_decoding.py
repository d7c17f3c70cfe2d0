"""Pages become text as browsers read them, and a byte that is wrong spoils itself alone."""

import time
from collections.abc import Callable

import pytest

from trial_trainer.pages.decoding import decode, find_declared

GERMAN, RUSSIAN, CHINESE, KOREAN, JAPANESE = "19,99 € – “für”", "Цена 99 руб.", "价格：镕 99", "가격 뷁 똠", "価格①髙"


def a_page(text: str, codec: str, declaration: str, before: str = "") -> bytes:
    return f"{before}<html><head>{declaration}</head><body><p>".encode() + text.encode(codec) + b"</p></body></html>"


# What is declared -----------------------------------------------------------------------------------------------------

NAMES = {
    # As declared: what browsers read, a text that tells, and Python's codec of the same letters.
    "iso-8859-1": ("windows-1252", GERMAN, "cp1252"),
    "latin1": ("windows-1252", GERMAN, "cp1252"),
    "ISO_8859-1:1987": ("windows-1252", GERMAN, "cp1252"),
    "us-ascii": ("windows-1252", GERMAN, "cp1252"),
    "ASCII": ("windows-1252", GERMAN, "cp1252"),
    "x-user-defined": ("windows-1252", GERMAN, "cp1252"),
    "iso-8859-9": ("windows-1254", "şık ğ “", "cp1254"),
    "tis-620": ("windows-874", "ราคา “99”", "cp874"),
    "x-cp1251": ("windows-1251", RUSSIAN, "cp1251"),
    "koi8": ("koi8-r", RUSSIAN, "koi8-r"),
    "gb2312": ("gbk", CHINESE, "gb18030"),
    "gb_2312-80": ("gbk", CHINESE, "gb18030"),
    "gb18030": ("gb18030", CHINESE, "gb18030"),
    "shift_jis": ("shift_jis", JAPANESE, "cp932"),
    "x-sjis": ("shift_jis", JAPANESE, "cp932"),
    "iso-2022-jp": ("iso-2022-jp", "価格", "iso2022_jp"),
    "euc-kr": ("euc-kr", KOREAN, "cp949"),
    "ks_c_5601-1987": ("euc-kr", KOREAN, "cp949"),
    "x-x-big5": ("big5", "價格", "big5hkscs"),
    "utf-16": ("utf-8", GERMAN, "utf-8"),
    "unicode-1-1-utf-8": ("utf-8", GERMAN, "utf-8"),
}
DECLARATIONS: dict[str, Callable[[str], tuple[str, str]]] = {
    "as a charset": lambda name: ("", f"<meta charset={name}>"),
    "as a content type": lambda name: ("", f"<META content='text/html; charset={name}' HTTP-EQUIV=Content-Type>"),
    "in an XML declaration": lambda name: (f'<?xml version="1.0" encoding="{name}"?>', ""),
    "after one in a comment": lambda name: ("", f'<!-- <meta charset="iso-8859-7"> --><meta charset="{name}"/>'),
    "after one in a script": lambda name: ("", f"<script>a='<meta charset=iso-8859-7>'</script><meta charset={name}>"),
    "after one in an attribute": lambda name: ("", f"<link title='<meta charset=iso-8859-7>'><meta charset={name}>"),
    "after one that nobody knows": lambda name: ("", f"<meta charset=klingon><meta charset={name}>"),
    "far down in the head": lambda name: ("", f"<style>{'a{} ' * 5000}</style><meta charset={name}>"),
}


@pytest.mark.parametrize("declare", DECLARATIONS.values(), ids=DECLARATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_declared_name_means_what_browsers_read_by_it(name, declare) -> None:
    encoding, text, codec = NAMES[name]
    before, declaration = declare(name)
    decoded = decode(a_page(text, codec, declaration, before))
    assert (decoded.encoding, decoded.is_guessed) == (encoding, False)
    assert f"<p>{text}</p>" in decoded.text


@pytest.mark.parametrize(
    "declaration",
    [
        '<meta name="description" content="text/html; charset=koi8-r">',
        "<meta charset=utf-7>",
        "<meta charset=base64>",
        "<meta charset=''>",
        "<!-- <meta charset=koi8-r>",
        "<p title='<meta charset=koi8-r>'>",
        f"{'<p>x</p>' * 200}<body><meta charset=koi8-r>",
    ],
)
def test_what_is_no_declaration_is_none(declaration) -> None:
    assert find_declared(declaration.encode()) is None


def test_a_meta_element_goes_before_the_xml_declaration() -> None:
    assert find_declared(b'<?xml version="1.0" encoding="koi8-r"?><meta charset=windows-1251>') == "windows-1251"


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("windows-1251", "windows-1251"),
        ("text/html; charset=windows-1251", "windows-1251"),
        ('text/html;Charset="CP1251"; x=y', "windows-1251"),
        ("text/html", "koi8-r"),
        ("none", "koi8-r"),
        (None, "koi8-r"),
    ],
)
def test_what_the_server_says_goes_before_what_the_page_says(charset, encoding) -> None:
    assert decode(a_page("Цена", encoding, "<meta charset=koi8-r>"), charset).encoding == encoding


@pytest.mark.parametrize(("codec", "encoding"), [("utf-8-sig", "utf-8"), ("utf-16", "utf-16le")])
def test_a_byte_order_mark_goes_before_everything(codec, encoding) -> None:
    text = f"<meta charset=koi8-r><p>{RUSSIAN}"
    decoded = decode(text.encode(codec), "windows-1251")
    assert (decoded.text, decoded.encoding) == (text, encoding)


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_two_byte_units_are_seen_without_a_mark(codec) -> None:
    assert decode(f"<p>{RUSSIAN}</p>".encode(codec)).text == f"<p>{RUSSIAN}</p>"


# Wrong bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "declaration", "text"),
    [
        ("utf-8", "<meta charset=utf-8>", GERMAN),
        ("utf-8", "", GERMAN),
        ("utf-8", "", "only one é"),
        ("utf-8", "", CHINESE),
        ("gb18030", "<meta charset=gbk>", CHINESE),
        ("cp949", "<meta charset=euc-kr>", KOREAN),
    ],
)
def test_one_wrong_byte_is_one_replacement_character(codec, declaration, text) -> None:
    data = a_page(text, codec, declaration).replace(b"<body>", b"<body>x \xff y")
    decoded = decode(data)
    assert decoded.text == data.replace(b"\xff", b"?").decode(codec).replace("x ? y", "x � y")


def test_the_euro_sign_of_chinese_windows_is_read() -> None:
    assert decode(b"<meta charset=gb2312>\x80 99").text.endswith("€ 99")


@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1251", "shift_jis"])
def test_a_page_that_was_converted_and_left_its_declaration_alone_is_utf_8(declared) -> None:
    decoded = decode(a_page("Größe für Spätzle und Klöße: 9 € — ünï", "utf-8", f"<meta charset={declared}>"))
    assert (decoded.encoding, decoded.is_guessed) == ("utf-8", True)
    assert "Größe für Spätzle" in decoded.text


def test_a_few_chinese_characters_that_look_like_utf_8_are_as_declared() -> None:
    assert "联通" in decode(a_page("联通", "gbk", "<meta charset=gbk>")).text


# Guesses --------------------------------------------------------------------------------------------------------------

WITHOUT_DECLARATION = {
    "windows-1252": ("de", "Wasserkocher blau, 19,99 € – neu. Für große Küchen."),
    "windows-1251": ("ru", "Чайник синий. В наличии, цена 1 299 руб. Быстро кипятит воду"),
    "koi8-r": ("ru", "Чайник синий. В наличии, цена 1 299 руб. Быстро кипятит воду"),
    "gbk": ("zh-CN", "蓝色电热水壶 价格：199元 有货 快速烧水，钢和玻璃制成"),
    "big5": ("zh-TW", "藍色電熱水壺 價格：199元 有貨 快速燒水，鋼和玻璃製成"),
    "shift_jis": ("ja", "青い電気ケトル 価格：1,999円 在庫あり すばやくお湯を沸かします。"),
    "euc-jp": ("ja", "青い電気ケトル 価格：1,999円 在庫あり すばやくお湯を沸かします。"),
    "euc-kr": ("ko", "파란 전기 주전자 가격: 19,900원 재고 있음 물을 빠르게 끓입니다."),
    "iso-2022-jp": ("ja", "青い電気ケトル 価格"),
}


@pytest.mark.parametrize("encoding", WITHOUT_DECLARATION)
@pytest.mark.parametrize("has_language", [True, False], ids=["with a language", "without one"])
def test_an_encoding_that_nobody_names_is_guessed_and_the_guess_is_named(encoding, has_language) -> None:
    language, text = WITHOUT_DECLARATION[encoding]
    attribute = f" lang={language}" if has_language else ""
    data = f"<html{attribute}><title>Shop</title><p>".encode() + text.encode(encoding)
    decoded = decode(data)
    assert decoded.text.endswith(text)
    assert decoded.encoding == encoding
    assert decoded.is_guessed


@pytest.mark.parametrize(
    ("language", "codec", "text"),
    [
        ("cs", "cp1250", "Rychlovarná konvice, žluťoučký kůň, skladem – víko"),
        ("cs", "iso-8859-2", "Rychlovarná konvice, žluťoučký kůň, skladem"),
        ("pl", "iso-8859-2", "Świeży czajnik, dostępny"),
        ("tr", "cp1254", "Mavi su ısıtıcısı, şık"),
        ("el-GR", "cp1253", "Διαθέσιμο, τιμή 19,99 €"),
        ("he", "cp1255", "קומקום כחול"),
        ("ar", "cp1256", "غلاية زرقاء"),
        ("th", "cp874", "ราคา 199 บาท"),
    ],
)
def test_the_language_of_a_page_tells_which_letters_its_bytes_are(language, codec, text) -> None:
    assert decode(f'<html class=a lang="{language}"><p>'.encode() + text.encode(codec)).text.endswith(text)


def test_plain_letters_and_valid_utf_8_are_no_guess() -> None:
    assert not decode(b"<p>plain").is_guessed
    assert not decode("<p>fünf".encode()).is_guessed


# Time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [b"<meta ", b"<!--", b"<", b"<html ", b'<p a="', b"<script", b"\xe9 ", b"<?xml "])
def test_decoding_takes_time_by_length_and_not_by_its_square(piece) -> None:
    def seconds(length: int) -> float:
        data = b"<p>\xe9" + piece * (length // len(piece))
        started = time.process_time()
        decode(data)
        return time.process_time() - started

    # Eight times as long is 64 times as slow where time goes by the square.
    least = min(seconds(100_000) for _ in range(3))
    assert min(seconds(800_000) for _ in range(3)) < 32 * max(least, 0.002)
