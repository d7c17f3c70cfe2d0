"""Blocks to lines with scores: how likely each line holds a value that somebody asks for.

Labels are joined to their values, ratings and old prices are told apart, and the address and the title come first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, unquote, urlsplit

from lxml import etree

from trial_trainer.pages.availability import find_availability
from trial_trainer.pages.blocks import RATING_TEXT, Block
from trial_trainer.pages.currencies import find_money
from trial_trainer.pages.html import DIGIT, inner_text, to_one_line, to_printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a document's text, and how likely it holds a value (higher is likelier)."""

    text: str
    score: float


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


def join_labels(blocks: Sequence[Block]) -> list[Block]:
    """Put a label that stands alone ("Brand", "SKU:") on one line with the value after it."""
    joined: list[Block] = []
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
            joined[-1] = Block(
                label.text + separator + block.text, "tr", min(label.weight, block.weight), kind, block.is_old,
                block.is_exact, label.linked_characters + block.linked_characters, is_row=True,
            )  # fmt: skip
        else:
            joined.append(block)
    for block in joined:
        start = block.text[:_MOST_MONEY_CHARACTERS]
        block.has_money = DIGIT.search(start) is not None and next(find_money(start), None) is not None
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


def _find_bare_ratings(blocks: Sequence[Block]) -> None:
    """Take a bare "4.9" for a rating where the line before or after speaks of ratings."""
    for index, block in enumerate(blocks):
        if len(block.text) <= 4 and not block.kind and _BARE_RATING.fullmatch(block.text):
            around = [*blocks[max(0, index - 1) : index], *blocks[index + 1 : index + 3]]
            if any(len(near.text) <= 40 and _RATING_WORD.search(near.text) for near in around):
                block.kind = "rating"


def _settle_old_prices(blocks: Sequence[Block]) -> None:
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


def find_heading(blocks: Sequence[Block], title: str) -> int | None:
    """Find the line that names the product: the first h1, else the first line that the title begins with."""
    for index, block in enumerate(blocks):
        if block.tag == "h1":
            return index
    folded = title.casefold()
    for index, block in enumerate(blocks):
        if len(block.text) >= 8 and folded.startswith(block.text.casefold()):
            return index
    return None


def score_blocks(blocks: Sequence[Block], title: str, heading: int | None) -> list[Line]:
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


def _score_alone(block: Block, kind: str, distance: int) -> float:
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


def _kind_of(block: Block, title: str) -> str:
    """Say which attribute a line speaks of, by its label, its form or its element's names; "" for none."""
    text = block.text
    if len(text) > 120:
        return "price" if block.has_money else ""
    for kind, pattern in _LABELLED.items():
        if pattern.match(text):
            return kind
    if block.has_money:
        return "price"
    has_digit = DIGIT.search(text) is not None
    if has_digit and RATING_TEXT.search(text):
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


def _with_hint(block: Block, kind: str, rank: int) -> str:
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


_TRACKING = re.compile(r"utm_|gclid|fbclid|srsltid|msclkid|affil|campaign|ref|src", re.IGNORECASE)


def address_lines(url: str | None) -> list[Line]:
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
    address = to_one_line(to_printable(address))
    return [Line(text=_clip(address, 50), score=90.0)] if address else []


def _shorten(segment: str) -> str:
    """Keep the end of a long slug, where numbers stand; its words repeat the heading."""
    return segment if len(segment) <= 28 else "…" + segment[-16:]


def read_title(root: etree._Element) -> str:
    title = next(root.iter("title"), None)
    return "" if title is None else inner_text(title)


def title_lines(title: str, blocks: Sequence[Block], heading: int | None) -> list[Line]:
    """The page's title, less the heading that it repeats, unless a line of the page says the same."""
    if heading is not None:
        title = title.replace(blocks[heading].text, "", 1).strip(" \t|·•:–—-»,")
    if len(title) < 2 or any(block.text == title for block in blocks):
        return []
    return [Line(text=_clip(title, 40), score=50.0)]
