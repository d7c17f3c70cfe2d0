"""Raw product pages to compact text: `html` makes the tree, `blocks` walks it, `scoring` rates its lines.

`read_page` parses and walks a page once. Its `document` is lines, each with a score that says how likely it holds a
value somebody asks for; `Document.cut` keeps the best lines that fit a token budget, in the order of the page. Its
`facts` are the page's own markup and plain text, for labels and rules. A page that cannot be read is a `Skip`, a named
reason, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from lxml import etree
from parsel import Selector

from trial_trainer.pages.blocks import MAX_NAMES, OLD_PRICE, find_blocks, read_name
from trial_trainer.pages.embedded import read_embedded
from trial_trainer.pages.html import LEAST_TEXT_CHARACTERS, Skip, explain_no_text, parse_page, to_one_line
from trial_trainer.pages.nodes import Node, walk
from trial_trainer.pages.scoring import (
    Line,
    address_lines,
    find_heading,
    join_labels,
    read_title,
    score_blocks,
    title_lines,
)

CountTokens = Callable[[list[str]], list[int]]


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
        self._title = read_title(root)
        self._blocks = find_blocks(root)

    @cached_property
    def document(self) -> Document | Skip:
        """Its scored lines, or why it has none."""
        blocks = join_labels(self._blocks)
        if sum(len(block.text) for block in blocks) < LEAST_TEXT_CHARACTERS:
            return explain_no_text(self._root)
        heading = find_heading(blocks, self._title)
        before = (*address_lines(self._url), *title_lines(self._title, blocks, heading))
        return Document(lines=(*before, *score_blocks(blocks, self._title, heading)))

    @cached_property
    def facts(self) -> Facts:
        """Its own markup and its plain visible text."""
        root, blocks = self._root, self._blocks
        heading = find_heading(blocks, self._title)
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
    root = parse_page(html)
    return root if isinstance(root, Skip) else Page(root, url)


def extract(html: bytes | str, *, url: str | None = None) -> Document | Skip:
    """Read a page into scored lines, or say why it gives none."""
    page = read_page(html, url=url)
    return page if isinstance(page, Skip) else page.document


def _read_nodes(root: etree._Element) -> list[Node]:
    nodes = read_embedded(root, _is_named_old)
    for node, _ in walk(nodes):
        for values in node.values.values():
            values[:] = [to_one_line(value) if isinstance(value, str) else value for value in values]
    return nodes


def _is_canonical(link: etree._Element) -> bool:
    return "canonical" in (link.get("rel") or "").lower().split()


def _is_named_old(element: etree._Element) -> bool:
    """Say whether an element's names call the price in it an old one."""
    return any(read_name(name)[0] & OLD_PRICE for name in (element.get("class") or "").split()[:MAX_NAMES])


def _read_json_ld(root: etree._Element) -> Iterator[str]:
    for script in Selector(root=root, type="html").css("script[type]"):
        if script.attrib["type"].split(";")[0].strip().lower() == "application/ld+json" and script.root.text:
            yield script.root.text


def _read_properties(root: etree._Element) -> Iterator[tuple[str, str]]:
    for meta in Selector(root=root, type="html").css("meta[content]"):
        name, value = meta.attrib.get("property") or meta.attrib.get("name"), meta.attrib["content"]
        if name and value:
            yield name.strip().lower(), to_one_line(value)
