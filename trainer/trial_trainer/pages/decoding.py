"""Bytes of a page to text, as browsers do it (HTML standard, 13.2.3.2, "determining the character encoding").

First a byte order mark, then what the server said, then what the page says of itself, then a guess, which the result
names as one. A byte that its encoding doesn't know becomes one replacement character and spoils nothing else. We differ
from browsers once: a page that is UTF-8 from end to end is UTF-8 whatever it says, since whoever stored it has often
converted it and left its declaration alone. w3lib.encoding follows the standard less far and does not guess
(`benchmarks/libraries.py`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import webencodings


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A page as text."""

    text: str
    encoding: str
    """Its name in the WHATWG Encoding standard ("windows-1252")."""
    is_guessed: bool
    """Whether it is none that a byte order mark, the server or the page itself names, and not plainly UTF-8."""


def decode(data: bytes, charset: str | None = None) -> Decoded:
    """Decode a page.

    Args:
        data: the page as it was sent.
        charset: what the server said: the name of an encoding, or the whole value of a Content-Type header.
    """
    for mark, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return Decoded(text=_read(data[len(mark) :], name), encoding=name, is_guessed=False)
    declared = _find_in_header(charset) or find_declared(data)
    name = _UTF_8 if _is_utf8(data, declared) else declared or _guess(data)
    is_guessed = name != (declared or _UTF_8) or (declared is None and not _is_valid_utf8(data))
    return Decoded(text=_read(data, name), encoding=name, is_guessed=is_guessed)


def is_utf16(data: bytes, charset: str | None = None) -> bool:
    """Say whether a page is in two-byte units, which look like no text."""
    return (_find_in_header(charset) or "").startswith("utf-16") or data.startswith((*_UTF_16_MARKS, b"<\0", b"\0<"))


_UTF_8 = "utf-8"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", _UTF_8), (b"\xff\xfe", "utf-16le"), (b"\xfe\xff", "utf-16be"))
_DEFAULT = "windows-1252"
_SEVERAL_BYTES = frozenset({"gbk", "gb18030", "big5", "euc-jp", "shift_jis", "euc-kr"})
_LEAST_CHARACTERS = 8
"""Of UTF-8 against a declared encoding of two-byte characters: one pair of GBK in seven is a character of UTF-8 too."""


def _is_utf8(data: bytes, declared: str | None) -> bool:
    """Say whether a page is UTF-8: as declared, or by its characters."""
    if declared == _UTF_8 or declared is None:
        return declared == _UTF_8 or (not _ESCAPE_TO_JAPANESE.search(data) and _is_mostly_utf8(data))
    if declared.startswith("utf-16") or data.isascii() or not _is_valid_utf8(data):
        return False
    characters = sum(1 for _ in _UTF_8_CHARACTER.finditer(data))
    return declared not in _SEVERAL_BYTES or characters >= _LEAST_CHARACTERS


def _is_valid_utf8(data: bytes) -> bool:
    try:
        data.decode(_UTF_8)
    except UnicodeDecodeError:
        return False
    return True


_UTF_8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")


def _is_mostly_utf8(data: bytes) -> bool:
    """Say whether a page is UTF-8 but for a few bytes: in any other encoding they are the most."""
    rest, right = _UTF_8_CHARACTER.subn(b"", data)
    return right >= sum(byte > 0x7F for byte in rest)


def _read(data: bytes, name: str) -> str:
    if name in ("gbk", "gb18030"):
        return data.decode("gb18030", "gb18030-as-browsers")
    encoding = webencodings.lookup(name)
    if encoding is None:
        raise LookupError(name)
    text: str = encoding.codec_info.decode(data, "replace")[0]
    return text


def _read_euro(error: UnicodeError) -> tuple[str, int]:
    """Read the byte 80 of GB 18030 as the euro sign, which Python's codec doesn't know."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return ("€", error.start + 1) if error.object[error.start] == 0x80 else ("\ufffd", error.end)


codecs.register_error("gb18030-as-browsers", _read_euro)


# What the server and the page say -------------------------------------------------------------------------------------

_HEADER_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s;,"']+)""", re.IGNORECASE)
_CONTENT_CHARSET = re.compile(rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.IGNORECASE)
_XML_DECLARATION = re.compile(rb"""\s*<\?xml\b[^>]*?\bencoding\s*=\s*(?:"([^">]*)"|'([^'>]*)')""")
_REST_OF_TAG = rb"""(?:[^>"']|"[^"]*"|'[^']*')*"""
_PIECE = re.compile(
    rb"<!--.*?(?:-->|\Z)"
    rb"|<(script|style|title)\b.*?(?:</\1|\Z)"
    rb"|<meta[\s/](?P<meta>" + _REST_OF_TAG + rb")"
    rb"|<(?P<body>body)\b"
    rb"|</?[a-z]" + _REST_OF_TAG + rb"|<[!?/][^>]*",
    re.IGNORECASE | re.DOTALL,
)
"""What the search for a declaration steps over or stops at."""
_ATTRIBUTE = re.compile(rb"""([^\s=/"'>]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>]+)))?""")
_SURELY_READ_BYTES, _HEAD_BYTES = 1024, 65_536
"""Within the first a declaration counts wherever it stands, up to the second only before the body begins."""


def find_declared(data: bytes) -> str | None:
    """Return the encoding that a page declares for itself, or None.

    A page that could be read this far is not UTF-16, whatever it says: that means UTF-8.
    """
    if data.startswith((b"<\0", b"\0<")):
        return "utf-16be" if data.startswith(b"\0") else "utf-16le"
    head = data[:_HEAD_BYTES]
    for piece in _PIECE.finditer(head):
        if piece["body"] is not None and piece.start() >= _SURELY_READ_BYTES:
            break
        if piece["meta"] is not None and (name := _read_meta(piece["meta"])) is not None:
            return name
    xml = _XML_DECLARATION.match(head[:_SURELY_READ_BYTES])
    return _as_declared(xml[1] or xml[2] or b"") if xml is not None else None


def _read_meta(text: bytes) -> str | None:
    charset = content = None
    is_content_type = False
    for attribute in _attributes(text):
        match attribute:
            case (b"charset", value) if charset is None:
                charset = value
            case (b"content", value) if content is None:
                found = _CONTENT_CHARSET.search(value)
                content = next((group for group in found.groups() if group), None) if found is not None else None
            case (b"http-equiv", value):
                is_content_type = value.strip().lower() == b"content-type"
    if charset is None and is_content_type:
        charset = content
    return _as_declared(charset) if charset is not None else None


def _attributes(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    for found in _ATTRIBUTE.finditer(text):
        yield found[1].lower(), found[2] or found[3] or found[4] or b""


def _as_declared(label: bytes) -> str | None:
    name = _name_of(label.decode("ascii", "replace"))
    if name in ("utf-16le", "utf-16be"):
        return _UTF_8
    return _DEFAULT if name == "x-user-defined" else name


def _find_in_header(charset: str | None) -> str | None:
    if charset is None:
        return None
    found = _HEADER_CHARSET.search(charset)
    return _name_of(found[1] if found is not None else charset)


def _name_of(label: str) -> str | None:
    """Return the standard's name of an encoding; None where browsers know none of that name."""
    encoding = webencodings.lookup(label.strip(" \t\r\n\f\"'")) if label.isascii() else None
    return encoding.name if encoding is not None and encoding.name != "replacement" else None


# Guesses --------------------------------------------------------------------------------------------------------------

_ESCAPE_TO_JAPANESE = re.compile(rb"\x1b\$[@B]")
_LANGUAGE = re.compile(
    rb"""<html\b[^>]{0,2000}?\blang\s*=\s*["']?\s*([a-z]{2,3})(?:[-_]([a-z]{2,4}))?""", re.IGNORECASE
)
_CENTRAL_EUROPEAN, _CYRILLIC = ("windows-1250", "iso-8859-2"), ("windows-1251", "koi8-r")
_BY_LANGUAGE = {
    **dict.fromkeys(("bs", "cs", "hr", "hu", "pl", "ro", "sk", "sl"), _CENTRAL_EUROPEAN),
    **dict.fromkeys(("ba", "be", "bg", "kk", "ky", "mk", "ru", "sah", "sr", "tg", "tt", "uk"), _CYRILLIC),
    **dict.fromkeys(("et", "lt", "lv"), ("windows-1257",)),
    **dict.fromkeys(("az", "ku", "tr"), ("windows-1254",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("windows-1256",)),
    "el": ("windows-1253",),
    "he": ("windows-1255",),
    "ja": ("shift_jis", "euc-jp"),
    "ko": ("euc-kr",),
    "th": ("windows-874",),
    "vi": ("windows-1258",),
    "zh": ("gbk", "big5"),
}  # fmt: skip
"""Encodings before UTF-8 by language (the standard's table of defaults by locale, with each one's rival)."""
_COMMON = {
    "windows-1255": re.compile(rb"[\xe0-\xfa]"),
    "euc-kr": re.compile(rb"[\xa1\xa3\xb0-\xc8][\xa1-\xfe]"),
    "euc-jp": re.compile(rb"[\xa1\xa3-\xa5\xb0-\xcf][\xa1-\xfe]"),
    "gbk": re.compile(rb"[\xa1\xa3\xb0-\xd7][\xa1-\xfe]"),
    "shift_jis": re.compile(rb"[\x81-\x83\x88-\x97][\x40-\x7e\x80-\xfc]"),
    "big5": re.compile(rb"[\xa1\xa4-\xc6][\x40-\x7e\xa1-\xfe]"),
    "windows-1251": re.compile(rb"[\xc0-\xff\xa8\xb8\xb2\xb3\xaa\xba\xaf\xbf]"),
    "koi8-r": re.compile(rb"[\xc0-\xff\xa3\xb3]"),
    "windows-1253": re.compile(rb"[\xa2\xb8-\xba\xbc\xbe-\xd1\xd3-\xfe]"),
    "windows-1256": re.compile(rb"[\xc7-\xd6\xd8-\xdb\xdd-\xdf\xe1\xe3-\xe6\xec\xed]"),
    "windows-874": re.compile(rb"[\xa1-\xda\xe0-\xee]"),
}
"""The letters that a text is mostly written with, by encoding of other than Latin letters. Among those that fit a text
equally the first is meant: the ones with fewer letters come before those that hold them."""
_MARKUP = re.compile(rb"<(script|style)\b.*?(?:</\1|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_FOREIGN_WORD = re.compile(rb"[\x80-\xff]{4,}|(?:[\x81-\x9f][\x40-\xfc]|[\x81-\xfe][\x40-\x60\x7b-\xfe]){3,}")
"""Latin letters with accents never stand so close."""
_MOST_GUESSED_BYTES = 20_000


def _guess(data: bytes) -> str:
    """Guess an encoding by the page's language, else by its letters; Latin letters are Windows-1252."""
    if _ESCAPE_TO_JAPANESE.search(data):
        return "iso-2022-jp"
    words = _MARKUP.sub(b" ", data)
    found = _LANGUAGE.search(data[:_HEAD_BYTES])
    language, region = (part.decode().lower() for part in found.groups(b"")) if found is not None else ("", "")
    candidates = _BY_LANGUAGE.get(language, ())
    if candidates == _CENTRAL_EUROPEAN:
        # Only the former has letters here.
        return candidates[0] if re.search(rb"[\x80-\x9f]", words) else candidates[1]
    if language == "zh" and region:
        candidates = ("big5",) if region in ("tw", "hk", "mo", "hant") else ("gbk",)
    if not candidates:
        candidates = tuple(_COMMON) if _is_foreign(words) else ()
    return _likeliest(words, candidates) or _DEFAULT


def _is_foreign(words: bytes) -> bool:
    """Say whether most of what is no ASCII belongs to words of other letters than Latin ones."""
    return 2 * sum(len(word) for word in _FOREIGN_WORD.findall(words)) > sum(byte > 0x7F for byte in words)


def _likeliest(words: bytes, candidates: Iterable[str]) -> str | None:
    """Return the encoding in which a text is written with common letters most, among those that can read all of it."""
    foreign = [word for word in words.split() if not word.isascii()]
    sample = b" ".join(foreign)[:_MOST_GUESSED_BYTES]
    fitting = [name for name in candidates if "\ufffd" not in _read(words, name)]
    return max(fitting, key=lambda name: _commonness(sample, name), default=None)


def _commonness(sample: bytes, name: str) -> int:
    """Count the bytes of common letters, less capitals within words: mistaken letters are often mistaken in case."""
    common = _COMMON.get(name)
    capitals = sum(one.isalpha() and other.isupper() for one, other in pairwise(_read(sample, name)))
    return sum(map(len, common.findall(sample))) - 2 * capitals if common is not None else 0
