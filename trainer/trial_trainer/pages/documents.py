"""Raw product pages to compact text: the only place, with `embedded`, that knows HTML trees.

`read_page` parses and walks a page once. Its `document` is lines, each with a score that says how likely it holds a
value somebody asks for; `Document.cut` keeps the best lines that fit a token budget, in the order of the page. Its
`facts` are the page's own markup and plain text, for labels and rules. A page that cannot be read is a `Skip`, a named
reason, never an exception.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import islice
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from lxml import etree
from parsel import Selector

from trial_trainer.pages.availability import find_availability
from trial_trainer.pages.currencies import find_money
from trial_trainer.pages.decoding import Decoded, decode, is_utf16
from trial_trainer.pages.embedded import read_embedded
from trial_trainer.pages.nodes import Node, walk

MAX_PAGE_BYTES = 50_000_000
"""Pages of this size and above are skipped: no product page is that large, and a tree takes ten times its bytes."""

CountTokens = Callable[[list[str]], list[int]]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a document's text, and how likely it holds a value (higher is likelier)."""

    text: str
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """The text of one page as lines in the page's order."""

    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """All lines, uncut."""
        return "\n".join(line.text for line in self.lines)

    def cut(self, max_tokens: int, count_tokens: CountTokens) -> str:
        """Keep the lines with the best scores that fit a budget, in the order of the page.

        Args:
            max_tokens: most tokens of the result as `count_tokens` counts them.
            count_tokens: counts the tokens of each of several texts; called once for the lines and once or twice more
                for the result.
        """
        ranked = sorted(range(len(self.lines)), key=lambda i: (-self.lines[i].score, i))
        ranked = self._likely_to_fit(ranked, max_tokens)
        counts = count_tokens([self.lines[i].text + "\n" for i in ranked])
        kept: list[int] = []
        left = max_tokens
        for index, tokens in zip(ranked, counts, strict=True):
            if tokens <= left:
                kept.append(index)
                left -= tokens
        while kept:
            text = "\n".join(self.lines[i].text for i in sorted(kept))
            if count_tokens([text])[0] <= max_tokens:
                return text
            kept.pop()
        return ""

    def _likely_to_fit(self, ranked: list[int], max_tokens: int) -> list[int]:
        """Drop the tail that cannot fit whatever the language: no text averages ten characters a token."""
        characters = 0
        for position, index in enumerate(ranked):
            characters += len(self.lines[index].text)
            if characters > 10 * max_tokens:
                return ranked[: position + 1]
        return ranked


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a page says of itself, for label reading and for the rule extractor."""

    title: str
    heading: str
    """The text of the page's main h1, or ""."""
    text: str
    """All visible text, a line for each block."""
    canonical: str
    """The address that its `link` calls canonical, or ""."""
    nodes: tuple[Node, ...]
    """What its microdata and RDFa describe."""
    json_ld: tuple[str, ...]
    """The raw bodies of its JSON-LD scripts."""
    properties: tuple[tuple[str, str], ...]
    """`meta` properties and names, as Open Graph writes them."""


class Page:
    """One page, parsed and walked once, however many questions are asked of it."""

    def __init__(self, root: etree._Element, url: str | None) -> None:
        self._root = root
        self._url = url
        self._title = _title(root)
        self._blocks = _walk(root)

    @cached_property
    def document(self) -> Document | Skip:
        """Its scored lines, or why it has none."""
        blocks = _join_labels(self._blocks)
        if sum(len(block.text) for block in blocks) < _LEAST_TEXT_CHARACTERS:
            return _why_no_text(self._root)
        heading = _heading_index(blocks, self._title)
        before = (*_address_line(self._url), *_title_line(self._title, blocks, heading))
        return Document(lines=(*before, *_score(blocks, self._title, heading)))

    @cached_property
    def facts(self) -> Facts:
        """Its own markup and its plain visible text."""
        root, blocks = self._root, self._blocks
        heading = _heading_index(blocks, self._title)
        return Facts(
            title=self._title,
            heading=blocks[heading].text if heading is not None and blocks[heading].tag == "h1" else "",
            text="\n".join(block.text for block in blocks),
            canonical=next((link.get("href", "") for link in root.iter("link") if _is_canonical(link)), ""),
            nodes=tuple(_read_nodes(root)),
            json_ld=tuple(_read_json_ld(root)),
            properties=tuple(_read_properties(root)),
        )


def read_page(html: bytes | str, *, url: str | None = None) -> Page | Skip:
    """Read a page, or say why it cannot be read."""
    root = _parse(html)
    return root if isinstance(root, Skip) else Page(root, url)


def extract(html: bytes | str, *, url: str | None = None) -> Document | Skip:
    """Read a page into scored lines, or say why it gives none."""
    page = read_page(html, url=url)
    return page if isinstance(page, Skip) else page.document


# From bytes to a tree -------------------------------------------------------------------------------------------------

_MAGIC = (
    *(b"%PDF", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"RIFF", b"\x00\x00\x01\x00"),
    *(b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd", b"\x7fELF"),
)
"""How PDFs, images, archives and programs begin."""
_TAG = re.compile(r"<[a-zA-Z!/]")
_DIGIT = re.compile(r"\d")
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
_LEAST_TEXT_CHARACTERS = 40


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


def _parse(html: bytes | str) -> etree._Element | Skip:
    if len(html) >= MAX_PAGE_BYTES:
        return Skip.TOO_LARGE
    decoded = read_text(html) if isinstance(html, bytes) else None
    if isinstance(decoded, Skip):
        return decoded
    text = _printable(decoded.text if decoded is not None else str(html))
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
        return self._leaf is not None and self._leaf[0] in _SILENT

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


def _printable(text: str) -> str:
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


def _why_no_text(root: etree._Element) -> Skip:
    return Skip.JAVASCRIPT_ONLY if next(root.iter("script", "noscript"), None) is not None else Skip.EMPTY


def _plain(text: str) -> str:
    """Leave what a reader sees of a text, on one line."""
    return " ".join(_UNSEEN.sub("", text).split())


# The walk: a tree to blocks of text -----------------------------------------------------------------------------------

_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp small span strike strong"
    " sub sup time tt u var wbr img picture svg input meter".split()
)
_SILENT = frozenset(
    "script style noscript template svg iframe head object embed canvas select textarea datalist audio video map"
    " math".split()
)
_STRUCK = frozenset({"del", "s", "strike"})
_BOILERPLATE_TAGS = {"nav": 0.15, "footer": 0.1, "header": 0.6, "aside": 0.4, "form": 0.9, "dialog": 0.3}

_BOILERPLATE_NAME = re.compile(
    r"nav(?!y)|menu|foot(?!wear)|cookie|consent|gdpr|newsletter|subscri|signup|login|social|share|related|recommend"
    r"|similar|upsell|up-sell|cross-?sell|carousel-?products|also-|recently|viewed|sponsor|advert|popup|modal|drawer"
    r"|mini-?cart|country|language|locale|sitemap|suggest|bestseller|product-?(?:list|grid)|other-|skip-|onetrust"
    r"|complementary|accessor|frequently|bundle|wishlist|search",
)
_REVIEWS_NAME = re.compile(r"reviews?-?(?:list|item|body|content|text)|comment|question|faq|customer-?review")
_OLD_PRICE_NAME = re.compile(
    r"(?<![a-z])old|(?<![a-z])was\b|list-?price|strike|line-through|before|rrp|uvp|msrp|crossed|original-?price|compare|saving"
    r"|base-?price|unit-?price|price-?(?:regular|standard)",
)
_KIND_NAME = re.compile(
    r"(?P<price>pri(?:ce|s|x|jz)|prei[sz]|precio|preço|prezzo|cena|hinta|amount)"
    r"|(?P<brand>brand|manufactur|(?<![a-z])marke(?!t)|(?<![a-z])marca|vendor|designer|hersteller|publisher)"
    r"|(?P<sku>(?<![a-z])sku|article-?n|product-?(?:id|code|num|no\b)|(?<![a-z])mpn|model-?n|item-?n|catalog-?n|artikel-?n"
    r"|(?<![a-z])reference|part-?num)"
    r"|(?P<availability>stock|availab|dispon|verf[uü]gbar|lieferbar|add-?to-?(?:cart|bag|basket)|buy-?(?:box|button|now)"
    r"|inventory)"
    r"|(?P<rating>(?<![a-z])rating|(?<![a-z])stars?\b|review-?(?:score|average|avg|summary|count)|(?<![a-z])score)",
)
_TELLING_NAME = re.compile("|".join(p.pattern for p in (_BOILERPLATE_NAME, _REVIEWS_NAME, _OLD_PRICE_NAME, _KIND_NAME)))
_KIND_BY_ITEMPROP = {
    "price": "price", "lowprice": "price", "brand": "brand", "manufacturer": "brand", "sku": "sku",
    "productid": "sku", "mpn": "sku", "availability": "availability", "ratingvalue": "rating", "name": "name",
}  # fmt: skip
_RATING_TEXT = re.compile(
    r"\d(?:[.,]\d+)?\s*(?:/|out of|von|sur|de|su|av|z|of|από|из)\s*(?:5|10)\b"
    r"|\d[.,]\d+\s*(?:stars?|sterne|★|⭐)",
    re.IGNORECASE,
)


class _Mark(NamedTuple):
    """What an element's class, id and itemprop say of the text inside it."""

    weight: float
    kind: str
    is_old: bool
    is_exact: bool


@dataclass(slots=True)
class _Block:
    """One line of text with what its place in the page says of it."""

    text: str
    tag: str
    weight: float
    kind: str
    is_old: bool
    is_exact: bool
    linked_characters: int
    is_row: bool = False
    """Whether it is a labelled value or a table row, put together from several blocks."""
    has_money: bool = False


_MAX_NAMES = 12
"""Most classes of an element that are read; utility-class frameworks write dozens, the telling ones first."""

_PLAIN, _BOILERPLATE, _REVIEWS, _OLD = 0, 1, 2, 4


@lru_cache(maxsize=65536)
def _read_name(name: str) -> tuple[int, str]:
    """Read one class or id: flags for boilerplate, reviews and old prices, and the kind of value it names."""
    # Patterns that ignore case try every alternative at every letter.
    name = name.lower()
    if not _TELLING_NAME.search(name):
        return _PLAIN, ""
    flags = (
        (_BOILERPLATE if _BOILERPLATE_NAME.search(name) else 0)
        | (_REVIEWS if _REVIEWS_NAME.search(name) else 0)
        | (_OLD if _OLD_PRICE_NAME.search(name) else 0)
    )
    found = _KIND_NAME.search(name)
    return flags, (found.lastgroup or "") if found is not None else ""


@lru_cache(maxsize=65536)
def _read_mark(tag: str, classes: str, identifier: str, itemprop: str) -> _Mark:
    """Read an element's own names."""
    names = classes.split()[:_MAX_NAMES]
    if 0 < len(identifier) < 60:
        names.append(identifier)
    flags, kind = _OLD if tag in _STRUCK else _PLAIN, ""
    for name in names:
        own_flags, own_kind = _read_name(name)
        flags |= own_flags
        kind = kind or own_kind
    weight = _BOILERPLATE_TAGS.get(tag, 1.0)
    if flags & _BOILERPLATE:
        weight = min(weight, 0.3)
    if flags & _REVIEWS:
        weight = min(weight, 0.4)
    is_old = bool(flags & _OLD)
    exact = next((_KIND_BY_ITEMPROP[name] for name in itemprop.lower().split() if name in _KIND_BY_ITEMPROP), "")
    return _Mark(weight, exact or kind, is_old, bool(exact))


_SAYS_NOTHING = _Mark(1.0, "", False, False)


class _Walker:
    """Collects blocks while elements open and close. Iterative: depth of the page costs no stack."""

    def __init__(self, exempt: frozenset[etree._Element]) -> None:
        self.blocks: list[_Block] = []
        self._exempt = exempt
        self._pieces: list[str] = []
        self._last = ""
        self._linked = 0
        self._links = 0
        self._marks: list[_Mark] = [_SAYS_NOTHING]
        self._tags: list[str] = ["body"]
        self._lines: list[str] = ["body"]
        """The tags that begin lines of their own, of `_tags`."""
        self._line_mark: _Mark | None = None
        self._line_tag = "body"
        self._rows: list[int] = []

    def open(self, element: etree._Element, tag: str) -> None:
        if tag not in _INLINE:
            self.flush()
        attributes = element.attrib
        mark = self._marks[-1]
        if attributes or tag in _BOILERPLATE_TAGS or tag in _STRUCK:
            own = _read_mark(tag, attributes.get("class", ""), attributes.get("id", ""), attributes.get("itemprop", ""))
            if own != _SAYS_NOTHING:
                weight = mark.weight if element in self._exempt else min(mark.weight, own.weight)
                if own.kind:
                    mark = _Mark(weight, own.kind, own.is_old or (mark.is_old and mark.kind == own.kind), own.is_exact)
                else:
                    mark = _Mark(weight, mark.kind, mark.is_old or own.is_old, mark.is_exact)
        if mark.is_old != self._marks[-1].is_old and mark.kind in ("price", "") and tag in _INLINE:
            self.flush()
        if tag == "wbr":
            self._last = ""
        if tag == "a":
            self._links += 1
        self._marks.append(mark)
        self._tags.append(tag)
        if tag not in _INLINE:
            self._lines.append(tag)
        if tag == "tr":
            self._rows.append(len(self.blocks))
        if tag == "img":
            alt = attributes.get("alt", "")
            if alt and len(alt) < 60 and mark.kind == "brand":
                self.add(f" {alt} ")
        else:
            label = attributes.get("aria-label") or attributes.get("title") or ""
            if (
                label
                and len(label) < 80
                and (_RATING_TEXT.search(label) or (mark.kind == "rating" and any(c.isdigit() for c in label)))
            ):
                self.add(f" {label} ")
        if element.text:
            self.add(element.text)

    def close(self, element: etree._Element, tag: str) -> None:
        if tag == "a":
            self._links -= 1
        if tag not in _INLINE:
            self.flush()
        if tag == "tr":
            self._merge_row(self._rows.pop())
        elif tag == "dd":
            self._merge_definition()
        mark = self._marks.pop()
        if mark.is_old != self._marks[-1].is_old and mark.kind in ("price", "") and tag in _INLINE:
            self.flush()
        self._tags.pop()
        if tag not in _INLINE:
            self._lines.pop()
        if tag == "br":
            self.flush()
        if element.tail:
            self.add(element.tail)

    def add(self, text: str) -> None:
        if not text or text.isspace():
            if self._pieces and text:
                self._pieces.append(" ")
                self._last = " "
            return
        mark = self._marks[-1]
        if self._last and self._needs_space(self._last, text[0]):
            self._pieces.append(" ")
        elif self._tags[-1] == "sup" and self._last.isdigit() and re.fullmatch(r"\s*\d\d\s*", text):
            self._pieces.append(".")
        self._pieces.append(text)
        self._last = text[-1]
        if self._links:
            self._linked += len(text)
        held = self._line_mark
        if held is None:
            self._line_mark = mark
            self._line_tag = self._lines[-1]
        elif mark.kind and (not held.kind or (mark.is_exact and not held.is_exact)):
            self._line_mark = _Mark(min(held.weight, mark.weight), mark.kind, mark.is_old, mark.is_exact)
        elif held.is_old and not mark.is_old:
            self._line_mark = _Mark(held.weight, held.kind, False, held.is_exact)

    @staticmethod
    def _needs_space(before: str, after: str) -> bool:
        """Set apart words that only a style sheet sets apart, but never split a number."""
        if before.isdigit() and after.isdigit():
            return False
        return before.isalnum() and after.isalnum()

    def flush(self) -> None:
        if self._pieces:
            text = _plain("".join(self._pieces))
            mark = self._line_mark
            if text and mark is not None:
                self.blocks.append(
                    _Block(text, self._line_tag, mark.weight, mark.kind, mark.is_old, mark.is_exact, self._linked)
                )
        self._pieces.clear()
        self._last = ""
        self._linked = 0
        self._line_mark = None

    def _merge_row(self, start: int) -> None:
        cells = len(self.blocks) - start
        if 2 <= cells <= 6 and sum(len(cell.text) for cell in self.blocks[start:]) <= 240:
            self._merge(start, ": " if cells == 2 else " | ")

    def _merge_definition(self) -> None:
        if len(self.blocks) >= 2 and self.blocks[-2].tag == "dt" and self.blocks[-1].tag == "dd":
            self._merge(len(self.blocks) - 2, ": ")

    def _merge(self, start: int, separator: str) -> None:
        parts = self.blocks[start:]
        first = parts[0]
        if separator == ": ":
            separator = " " if first.text.endswith((":", "：")) else ": "
        marked = next((part for part in parts if part.kind), first)
        self.blocks[start:] = [
            _Block(
                separator.join(part.text for part in parts), "tr" if len(parts) > 1 else first.tag,
                min(part.weight for part in parts), marked.kind, marked.is_old, marked.is_exact,
                sum(part.linked_characters for part in parts), is_row=True,
            )
        ]  # fmt: skip


def _walk(root: etree._Element) -> list[_Block]:
    holders = _ancestors_of_heading(root)
    walker = _Walker(holders)
    silent = None
    events = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in events:
        if event == "start":
            if element.tag in _SILENT or (_is_hidden(element) and element not in holders):
                silent = element
                events.skip_subtree()
            else:
                walker.open(element, element.tag)
        elif event == "end" and element is not silent:
            walker.close(element, element.tag)
        else:
            walker.add(element.tail or "")
    walker.flush()
    return walker.blocks


_HIDDEN_STYLE = re.compile(r"display\s*:\s*none")


def _is_hidden(element: etree._Element) -> bool:
    style = element.get("style")
    return element.get("hidden") is not None or (style is not None and _HIDDEN_STYLE.search(style) is not None)


def _ancestors_of_heading(root: etree._Element) -> frozenset[etree._Element]:
    """The page's own elements and those around its h1: whatever they are called, they hold the product."""
    heading = next((h for h in root.iter("h1") if h.text or len(h)), None)
    around = heading.iterancestors() if heading is not None else ()
    return frozenset([root, *root.iterchildren("body"), *around])


# Scores ---------------------------------------------------------------------------------------------------------------

_LABELS = {
    "sku": r"sku|article\s*(?:no|number|code)?|art\.?\s*(?:nr|no)|artikel(?:nummer|-?nr)?|item\s*(?:no|number|#|id|model)?|product\s*(?:code|id|no|number)|model(?:\s*(?:no|number|#))?|mpn|ref(?:erence|erencia|érence|\.)?(?:\s\w{1,12})?|código|codice|kód|kod|part\s*(?:no|number)|asin|style\s*(?:no|number|#|code)?|артикул|код|upc|ean|isbn(?:-1[03])?|numer|nr|\w{2,12}\s(?:part\s)?number|#|bh",  # noqa: E501
    "brand": r"brand|marke|marca|marque|merk|manufacturer|hersteller|producent|fabricant(?:e)?|fabrikant|značka|výrobce|výrobca|varumärke|merke|mærke|tuotemerkki|бренд|производитель|марка|виробник|märke|gyártó|márka|marka|designer|vendor|publisher|developer|by|von|ブランド|メーカー|品牌|العلامة التجارية|מותג|ยี่ห้อ",  # noqa: E501
    "availability": r"availability|verfügbarkeit|disponibilit[àé]|disponibilidad[e]?|beschikbaarheid|dostępność|dostupnost|dostupnosť|saatavuus|наличие|status",  # noqa: E501
    "price": r"price|preis|prix|precio|preço|prezzo|prijs|cena|pris|hinta|цена|ár|preț|fiyat|価格|售價|價格|السعر|מחיר|our price|now",  # noqa: E501
    "rating": r"rating|bewertung|average rating|overall rating|note|valoración|avaliação|ocena|hodnocení|рейтинг",
}  # fmt: skip
_LABELLED = {
    kind: re.compile(rf"(?:{labels})\s*(?:[.:#：]|\s)\s*\S", re.IGNORECASE) for kind, labels in _LABELS.items()
}
_LABEL_ALONE = re.compile(rf"(?:{'|'.join(_LABELS.values())})\s*[.:#：]*", re.IGNORECASE)
_SCORE_BY_KIND = {"price": 60.0, "brand": 60.0, "sku": 60.0, "availability": 45.0, "rating": 45.0, "name": 30.0}
_REACH_BY_KIND = {"rating": 240, "sku": 120}
"""How many lines below the heading halve a score: ratings and article numbers often stand far down. Else 60."""
_FADE_BY_KIND = {"price": 0.75, "brand": 0.6, "sku": 0.7, "availability": 0.5, "rating": 0.5, "name": 0.5, "": 1.0}
_MOST_MONEY_CHARACTERS = 1000
"""Of a line, in which a price is looked for: a longer line is a text."""


def _join_labels(blocks: Sequence[_Block]) -> list[_Block]:
    """Put a label that stands alone ("Brand", "SKU:") on one line with the value after it."""
    joined: list[_Block] = []
    for block in blocks:
        label = joined[-1] if joined else None
        if (
            label is not None
            and not label.is_row
            and not block.is_row
            and len(block.text) <= 60
            and _is_label(label.text)
        ):
            separator = " " if label.text.endswith((":", "：")) else ": "
            kind = block.kind or label.kind
            joined[-1] = _Block(
                label.text + separator + block.text, "tr", min(label.weight, block.weight), kind, block.is_old,
                block.is_exact, label.linked_characters + block.linked_characters, is_row=True,
            )  # fmt: skip
        else:
            joined.append(block)
    for block in joined:
        start = block.text[:_MOST_MONEY_CHARACTERS]
        block.has_money = _DIGIT.search(start) is not None and next(find_money(start), None) is not None
    _find_bare_ratings(joined)
    _settle_old_prices(joined)
    return joined


_BARE_RATING = re.compile(r"[0-5][.,]\d{1,2}|10[.,]0|[5-9][.,]\d")
_WHOLE_RATING = re.compile(r"\D{0,20}\d\b(?![.,]\d)")
"""A rating without a fraction: mostly one customer's, not the average."""
_RATING_WORD = re.compile(
    r"rating|review|star|bewertung|rezension|avis|note|opini|valoraci|recension|avalia|ocen|hodnoc|hodnot|beoordeling"
    r"|arvostel|anmeld|отзыв|оценк|рейтинг|відгук|レビュー|評価|리뷰|评|評|تقييم|ביקורות",
    re.IGNORECASE,
)


def _find_bare_ratings(blocks: Sequence[_Block]) -> None:
    """Take a bare "4.9" for a rating where the line before or after speaks of ratings."""
    for index, block in enumerate(blocks):
        if len(block.text) <= 4 and not block.kind and _BARE_RATING.fullmatch(block.text):
            around = [*blocks[max(0, index - 1) : index], *blocks[index + 1 : index + 3]]
            if any(len(near.text) <= 40 and _RATING_WORD.search(near.text) for near in around):
                block.kind = "rating"


def _settle_old_prices(blocks: Sequence[_Block]) -> None:
    """Believe that a price is an old one only where another stands close to it."""
    prices = [(i, b) for i, b in enumerate(blocks) if b.has_money]
    for position, (index, block) in enumerate(prices):
        if block.is_old:
            around = prices[max(0, position - 2) : position + 3]
            block.is_old = any(not b.is_old and abs(i - index) <= 4 for i, b in around)


@lru_cache(maxsize=65536)
def _is_label(text: str) -> bool:
    if len(text) > 30:
        return False
    return text.endswith((":", "：")) or _LABEL_ALONE.fullmatch(text) is not None


def _heading_index(blocks: Sequence[_Block], title: str) -> int | None:
    """Find the line that names the product: the first h1, else the first line that the title begins with."""
    for index, block in enumerate(blocks):
        if block.tag == "h1":
            return index
    folded = title.casefold()
    for index, block in enumerate(blocks):
        if len(block.text) >= 8 and folded.startswith(block.text.casefold()):
            return index
    return None


def _score(blocks: Sequence[_Block], title: str, heading: int | None) -> list[Line]:
    """Give each distinct line its score. Lines of one kind fade from the best on: the first price tells most."""
    start = heading if heading is not None else 0
    folded_title = title.casefold()
    seen: set[str] = set()
    found: list[tuple[float, int, str]] = []
    for index in [*range(start, len(blocks)), *range(start - 1, -1, -1)]:
        block = blocks[index]
        key = block.text.casefold()
        if key in seen:
            continue
        seen.add(key)
        kind = _kind_of(block, folded_title)
        found.append((_score_alone(block, kind, index - start), index, kind))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    count_by_kind: dict[str, int] = {}
    scored: list[tuple[int, Line]] = []
    for alone, index, kind in found:
        rank = count_by_kind.get(kind, 0)
        count_by_kind[kind] = rank + 1
        text = _clip(_with_hint(blocks[index], kind, rank), 60)
        if index == heading:
            scored.append((index, Line(text=f"# {text}", score=100.0)))
        else:
            scored.append((index, Line(text=text, score=alone * _FADE_BY_KIND.get(kind, 1.0) ** rank)))
    return [line for _, line in sorted(scored, key=lambda pair: pair[0])]


def _score_alone(block: _Block, kind: str, distance: int) -> float:
    """Score a line by what it says and where it stands, whatever else the page says.

    Args:
        block: the line.
        kind: the attribute that it speaks of, or "".
        distance: lines after the heading, negative before it.
    """
    near = 1 / (1 + distance / _REACH_BY_KIND.get(kind, 60)) if distance >= 0 else 0.4 / (1 - distance / 20)
    score = _SCORE_BY_KIND.get(kind, 14.0 if block.is_row else 8.0) * near * block.weight
    if block.is_exact or block.is_row:
        score *= 1.3
    if kind == "rating" and _WHOLE_RATING.match(block.text):
        score *= 0.3
    if block.is_old:
        score *= 0.5
    if block.linked_characters > 0.8 * len(block.text) and kind not in ("brand", "availability"):
        score *= 0.3
    return score * math.sqrt(30 / max(30, len(block.text)))


def _kind_of(block: _Block, title: str) -> str:
    """Say which attribute a line speaks of, by its label, its form or its element's names; "" for none."""
    text = block.text
    if len(text) > 120:
        return "price" if block.has_money else ""
    for kind, pattern in _LABELLED.items():
        if pattern.match(text):
            return kind
    if block.has_money:
        return "price"
    has_digit = _DIGIT.search(text) is not None
    if has_digit and _RATING_TEXT.search(text):
        return "rating"
    if len(text) <= 60 and find_availability(text):
        return "availability"
    match block.kind:
        case "sku" if has_digit and len(text) <= 40:
            return "sku"
        case "price" | "rating" if has_digit:
            return block.kind
        case "brand" | "name":
            return block.kind
        case "availability" if block.is_exact:
            return block.kind
    return "name" if len(text) >= 8 and text.casefold() in title else ""


def _with_hint(block: _Block, kind: str, rank: int) -> str:
    """Name the kind of a value that stands bare but whose element is named after it."""
    if (
        not kind
        or block.is_row
        or block.tag == "h1"
        or kind not in ("price", "brand", "sku", "rating")
        or len(block.text) > 60
    ):
        return block.text
    if kind != block.kind or _LABELLED[kind].match(block.text):
        return block.text
    if kind in ("brand", "sku") and rank > 2:
        return block.text
    return f"{'old ' if block.is_old and kind == 'price' else ''}{kind}: {block.text}"


def _clip(text: str, max_tokens: int) -> str:
    """Shorten a line to about so many tokens: four plain characters a token, one of any other script."""
    if len(text) <= max_tokens:
        return text
    cost = 0.0
    for position, character in enumerate(text):
        cost += 0.25 if character < "\x80" else 1.0
        if cost > max_tokens:
            return text[:position].rstrip()
    return text


# The lines before the first ------------------------------------------------------------------------------------------

_TRACKING = re.compile(r"utm_|gclid|fbclid|srsltid|msclkid|affil|campaign|ref|src", re.IGNORECASE)


def _address_line(url: str | None) -> list[Line]:
    """The page's address without its tracking: sites put article numbers there."""
    if not url:
        return []
    try:
        parts = urlsplit(url)
        query = [*parse_qsl(parts.query), *parse_qsl(parts.fragment)]
    except ValueError:
        return []
    host = (parts.netloc or "").removeprefix("www.")
    segments = [_shorten(unquote(segment)) for segment in parts.path.split("/") if segment]
    identifiers = [
        f"{key}={value}"
        for key, value in query
        if 4 <= len(value) <= 24 and any(c.isdigit() for c in value) and not _TRACKING.search(key)
    ]
    address = "/".join([host, *segments[-3:]]) + ("?" + "&".join(identifiers[:2]) if identifiers else "")
    address = _plain(_printable(address))
    return [Line(text=_clip(address, 50), score=90.0)] if address else []


def _shorten(segment: str) -> str:
    """Keep the end of a long slug, where numbers stand; its words repeat the heading."""
    return segment if len(segment) <= 28 else "…" + segment[-16:]


def _title(root: etree._Element) -> str:
    title = next(root.iter("title"), None)
    return "" if title is None else _inner_text(title)


def _title_line(title: str, blocks: Sequence[_Block], heading: int | None) -> list[Line]:
    """The page's title, less the heading that it repeats, unless a line of the page says the same."""
    if heading is not None:
        title = title.replace(blocks[heading].text, "", 1).strip(" \t|·•:–—-»,")
    if len(title) < 2 or any(block.text == title for block in blocks):
        return []
    return [Line(text=_clip(title, 40), score=50.0)]


# A page's own markup --------------------------------------------------------------------------------------------------


_MAX_TITLE_PIECES = 2_000


def _inner_text(element: etree._Element) -> str:
    return _plain("".join(islice(element.itertext(), _MAX_TITLE_PIECES)))


def _read_nodes(root: etree._Element) -> list[Node]:
    nodes = read_embedded(root, _is_named_old)
    for node, _ in walk(nodes):
        for values in node.values.values():
            values[:] = [_plain(value) if isinstance(value, str) else value for value in values]
    return nodes


def _is_canonical(link: etree._Element) -> bool:
    return "canonical" in (link.get("rel") or "").lower().split()


def _is_named_old(element: etree._Element) -> bool:
    """Say whether an element's names call the price in it an old one."""
    return any(_read_name(name)[0] & _OLD for name in (element.get("class") or "").split()[:_MAX_NAMES])


def _read_json_ld(root: etree._Element) -> Iterator[str]:
    for script in Selector(root=root, type="html").css("script[type]"):
        if script.attrib["type"].split(";")[0].strip().lower() == "application/ld+json" and script.root.text:
            yield script.root.text


def _read_properties(root: etree._Element) -> Iterator[tuple[str, str]]:
    for meta in Selector(root=root, type="html").css("meta[content]"):
        name, value = meta.attrib.get("property") or meta.attrib.get("name"), meta.attrib["content"]
        if name and value:
            yield name.strip().lower(), _plain(value)
