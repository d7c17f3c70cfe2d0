"""A page's tree to blocks of text: one walk, which leaves out what nobody sees and marks what a block is for.

A block knows how prominent it is, whether it lies in navigation or reviews, and which kind of value its element's names
speak of. Nothing is scored here: `scoring` makes lines of blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from lxml import etree

from trial_trainer.pages.html import SILENT, to_one_line

_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q s samp small span strike strong"
    " sub sup time tt u var wbr img picture svg input meter".split()
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
RATING_TEXT = re.compile(
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
class Block:
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


MAX_NAMES = 12
"""Most classes of an element that are read; utility-class frameworks write dozens, the telling ones first."""
_PLAIN, _BOILERPLATE, _REVIEWS, OLD_PRICE = 0, 1, 2, 4


@lru_cache(maxsize=65536)
def read_name(name: str) -> tuple[int, str]:
    """Read one class or id: flags for boilerplate, reviews and old prices, and the kind of value it names."""
    # Patterns that ignore case try every alternative at every letter.
    name = name.lower()
    if not _TELLING_NAME.search(name):
        return _PLAIN, ""
    flags = (
        (_BOILERPLATE if _BOILERPLATE_NAME.search(name) else 0)
        | (_REVIEWS if _REVIEWS_NAME.search(name) else 0)
        | (OLD_PRICE if _OLD_PRICE_NAME.search(name) else 0)
    )
    found = _KIND_NAME.search(name)
    return flags, (found.lastgroup or "") if found is not None else ""


@lru_cache(maxsize=65536)
def _read_mark(tag: str, classes: str, identifier: str, itemprop: str) -> _Mark:
    """Read an element's own names."""
    names = classes.split()[:MAX_NAMES]
    if 0 < len(identifier) < 60:
        names.append(identifier)
    flags, kind = OLD_PRICE if tag in _STRUCK else _PLAIN, ""
    for name in names:
        own_flags, own_kind = read_name(name)
        flags |= own_flags
        kind = kind or own_kind
    weight = _BOILERPLATE_TAGS.get(tag, 1.0)
    if flags & _BOILERPLATE:
        weight = min(weight, 0.3)
    if flags & _REVIEWS:
        weight = min(weight, 0.4)
    is_old = bool(flags & OLD_PRICE)
    exact = next((_KIND_BY_ITEMPROP[name] for name in itemprop.lower().split() if name in _KIND_BY_ITEMPROP), "")
    return _Mark(weight, exact or kind, is_old, bool(exact))


_SAYS_NOTHING = _Mark(1.0, "", False, False)


class _Walker:
    """Collects blocks while elements open and close. Iterative: depth of the page costs no stack."""

    def __init__(self, exempt: frozenset[etree._Element]) -> None:
        self.blocks: list[Block] = []
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
                and (RATING_TEXT.search(label) or (mark.kind == "rating" and any(c.isdigit() for c in label)))
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
            text = to_one_line("".join(self._pieces))
            mark = self._line_mark
            if text and mark is not None:
                self.blocks.append(
                    Block(text, self._line_tag, mark.weight, mark.kind, mark.is_old, mark.is_exact, self._linked)
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
            Block(
                separator.join(part.text for part in parts), "tr" if len(parts) > 1 else first.tag,
                min(part.weight for part in parts), marked.kind, marked.is_old, marked.is_exact,
                sum(part.linked_characters for part in parts), is_row=True,
            )
        ]  # fmt: skip


def find_blocks(root: etree._Element) -> list[Block]:
    holders = _ancestors_of_heading(root)
    walker = _Walker(holders)
    silent = None
    events = etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in events:
        if event == "start":
            if element.tag in SILENT or (_is_hidden(element) and element not in holders):
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
