"""A page's bytes to a tree: what is text at all, in which encoding, and how deep a tree may be.

A page that cannot be read is a `Skip`, a named reason, never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from itertools import islice

from lxml import etree

from trial_trainer.pages.decoding import Decoded, decode, is_utf16

MAX_PAGE_BYTES = 50_000_000
"""Pages of this size and above are skipped: no product page is that large, and a tree takes ten times its bytes."""


class Skip(StrEnum):
    """Why a page gives no document."""

    EMPTY = "Empty"
    """No byte, or no visible text at all."""
    TOO_LARGE = "TooLarge"
    """At least `MAX_PAGE_BYTES` bytes."""
    BINARY = "Binary"
    """An image, an archive, a PDF: not text."""
    BROKEN = "Broken"
    """Text, but no HTML element in it."""
    JAVASCRIPT_ONLY = "JavaScriptOnly"
    """The page builds itself with JavaScript and has next to no text without it."""


_MAGIC = (
    *(b"%PDF", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"RIFF", b"\x00\x00\x01\x00"),
    *(b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\x7fELF"),
)
"""How PDFs, images, archives and programs begin."""
_TAG = re.compile(r"<[a-zA-Z!/]")
DIGIT = re.compile(r"\d")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_END_OF_PAGE = re.compile(r"</html[^<>]{0,100}>", re.IGNORECASE)
"""What follows it belongs to the page, too, as browsers have it; libxml2 would leave it out."""
_MOST_LEVELS = 1000
"""Elements within each other. libxml2 builds no tree deeper than 2,048, and no page means anything by so many."""
_MOST_ATTRIBUTES = 200
_LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{20000}")
"""May have thousands of attributes, each of which libxml2 compares with all before it."""
_NAME = re.compile(r"[a-z_][a-z0-9_.-]*", re.IGNORECASE)
_UNSEEN = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
    r"|(?<![\u0600-\U0010ffff])[\u200c\u200d]+|[\u200c\u200d]+(?![\u0600-\U0010ffff])"
)
"""What nobody sees: controls, soft hyphens, marks of width and direction; joiners only where they join nothing, since
Persian, Indic scripts and emoji are spelled with them."""
LEAST_TEXT_CHARACTERS = 40


def read_text(html: bytes, charset: str | None = None) -> Decoded | Skip:
    """Decode a page, or say why there is nothing to decode.

    Args:
        html: the page as it was sent.
        charset: what the server said of its encoding, if anybody wrote it down.
    """
    if len(html) >= MAX_PAGE_BYTES:
        return Skip.TOO_LARGE
    if not html.strip(b"\x00 \t\r\n"):
        return Skip.EMPTY
    if _is_binary(html) and not is_utf16(html, charset):
        return Skip.BINARY
    return decode(html, charset)


def parse_page(html: bytes | str) -> etree._Element | Skip:
    if len(html) >= MAX_PAGE_BYTES:
        return Skip.TOO_LARGE
    decoded = read_text(html) if isinstance(html, bytes) else None
    if isinstance(decoded, Skip):
        return decoded
    text = to_printable(decoded.text if decoded is not None else str(html))
    if not text:
        return Skip.EMPTY
    if not _TAG.search(text):
        return Skip.BROKEN
    try:
        root = _build_tree(text)
    except etree.XMLSyntaxError:
        # No element and no text, a comment at most.
        return Skip.EMPTY
    except (etree.LxmlError, ValueError):
        return Skip.BROKEN
    return root if root is not None and isinstance(root.tag, str) else Skip.EMPTY


class _Flattener:
    """Builds a tree in which everything deeper than `_MOST_LEVELS` stands side by side on the last level.

    It is a target of lxml's parser, which hands it one tag after the other whatever their depth and number.
    """

    def __init__(self) -> None:
        self._builder = etree.TreeBuilder()
        self._depth = 0
        self._leaf: tuple[str, int] | None = None

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > _MOST_LEVELS:
            if self._is_silent():
                return
            self._close_leaf()
            self._leaf = (tag, self._depth)
        few = dict(islice(((k, v) for k, v in attributes.items() if _NAME.fullmatch(k)), _MOST_ATTRIBUTES))
        self._builder.start(self._name(tag), few)

    def end(self, tag: str) -> None:
        if self._depth <= _MOST_LEVELS:
            self._builder.end(self._name(tag))
        elif self._leaf == (tag, self._depth):
            self._close_leaf()
        self._depth -= 1

    def data(self, text: str) -> None:
        if self._leaf is None or not self._is_silent() or self._leaf[1] == self._depth:
            self._builder.data(text)

    def close(self) -> etree._Element:
        return self._builder.close()

    def _is_silent(self) -> bool:
        return self._leaf is not None and self._leaf[0] in SILENT

    def _close_leaf(self) -> None:
        if self._leaf is not None:
            self._builder.end(self._name(self._leaf[0]))
            self._leaf = None

    @staticmethod
    def _name(tag: str) -> str:
        """Return a name that a tree takes."""
        return tag if _NAME.fullmatch(tag) else "span"


def _build_tree(text: str) -> etree._Element:
    data = text.encode()
    if _LONG_TAG.search(text) is None:
        parser = etree.HTMLParser(encoding="utf-8", huge_tree=True)
        root = etree.fromstring(data, parser=parser)
        if all(error.type != etree.ErrorTypes.ERR_RESOURCE_LIMIT for error in parser.error_log):
            return root
    return etree.fromstring(data, parser=etree.HTMLParser(encoding="utf-8", huge_tree=True, target=_Flattener()))


def to_printable(text: str) -> str:
    """Drop what no tree and no tokenizer takes: control characters and lone surrogates."""
    text = _END_OF_PAGE.sub("", _CONTROL.sub("", text.replace("\f", " ")))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.strip()


def _is_binary(data: bytes) -> bool:
    if data.lstrip(b" \t\r\n").startswith(_MAGIC):
        return True
    head = data[:8192]
    control = sum(head.count(bytes([code])) for code in range(32) if code not in (9, 10, 12, 13, 27))
    return control > len(head) * 0.05


def explain_no_text(root: etree._Element) -> Skip:
    return Skip.JAVASCRIPT_ONLY if next(root.iter("script", "noscript"), None) is not None else Skip.EMPTY


def to_one_line(text: str) -> str:
    """Leave what a reader sees of a text, on one line."""
    return " ".join(_UNSEEN.sub("", text).split())


SILENT = frozenset(
    "script style noscript template svg iframe head object embed canvas select textarea datalist audio video map"
    " math".split()
)
_MAX_TITLE_PIECES = 2_000


def inner_text(element: etree._Element) -> str:
    return to_one_line("".join(islice(element.itertext(), _MAX_TITLE_PIECES)))
