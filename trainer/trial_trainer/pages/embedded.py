"""Microdata and RDFa of an HTML tree to nodes.

Read as sites write them, not as the specifications have them: a type without `itemscope` opens an item too, and so does
a brand or offer that holds properties; an offer inside a product is the product's, with or without `itemprop`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise

from lxml import etree

from trial_trainer.pages.nodes import Node, Value, local_name

_MAX_ELEMENTS = 5_000
_MAX_VALUE_PIECES = 2_000
_ITEMS_BY_THEIR_PROPERTY = frozenset({"brand", "manufacturer", "offers", "aggregaterating", "review", "seller"})
_PROPERTY_BY_TYPE = {
    "offer": "offers", "aggregateoffer": "offers", "offer-aggregate": "offers",
    "aggregaterating": "aggregaterating", "review-aggregate": "aggregaterating", "brand": "brand",
}  # fmt: skip
"""What an item without `itemprop` is to the item around it."""
_ADDRESSES = frozenset({"url", "availability", "itemcondition", "image", "pricetype", "mainentityofpage", "sameas"})
_PRICES = frozenset({"price", "lowprice", "pricespecification"})
_SILENT = frozenset({"script", "style", "template"})
_STRUCK = frozenset({"del", "s", "strike"})

IsOld = Callable[[etree._Element], bool]


def read_embedded(root: etree._Element, is_old: IsOld) -> list[Node]:
    """Read the things that a page's microdata and RDFa describe, in order.

    Args:
        root: the page.
        is_old: says whether an element's text is no value of now, such as the price before a sale.
    """
    return [*_read_microdata(root, is_old), *_read_rdfa(root, is_old)]


# Microdata ------------------------------------------------------------------------------------------------------------


def _read_microdata(root: etree._Element, is_old: IsOld) -> list[Node]:
    marked = list(islice(_select(root, "itemprop", "itemscope", "itemtype"), _MAX_ELEMENTS))
    node_by_element = {element: _open_item(element) for element in _find_items(marked)}
    owners = _Owners(node_by_element)
    has_references = any(element.get("itemref") for element in node_by_element)
    element_by_id = {element.get("id"): element for element in _select(root, "id")} if has_references else {}
    for element, node in node_by_element.items():
        for identifier in (element.get("itemref") or "").split():
            if identifier in element_by_id:
                owners.settle(element_by_id[identifier], node)

    top: list[Node] = []
    stray = Node()
    for element in marked:
        value: Value | None = node_by_element.get(element)
        owner = owners.of(element)
        names = [local_name(name) for name in (element.get("itemprop") or "").split()]
        if isinstance(value, Node) and not names:
            name = next((_PROPERTY_BY_TYPE[kind] for kind in value.types if kind in _PROPERTY_BY_TYPE), "")
            if owner is None or owner is value or not (name or "product" in owner.types):
                top.append(value)
            else:
                owner.add(name, value)
        elif value is None or owner is not value:
            for name in names:
                (stray if owner is None else owner).add(name, value or _read_value(element, name, is_old))
    return [*top, stray] if stray.values else top


def _select(root: etree._Element, *attributes: str) -> Iterator[etree._Element]:
    condition = " or ".join(f"@{attribute}" for attribute in attributes)
    return iter(root.xpath(f"descendant-or-self::*[{condition}]"))


def _find_items(marked: list[etree._Element]) -> Iterator[etree._Element]:
    for element, following in pairwise([*marked, None]):
        if element.get("itemscope") is not None or element.get("itemtype"):
            yield element
        elif local_name(element.get("itemprop") or "") in _ITEMS_BY_THEIR_PROPERTY and _is_inside(following, element):
            # In the order of the page, the next marked element is inside this one or none is.
            yield element


def _is_inside(element: etree._Element | None, around: etree._Element) -> bool:
    return element is not None and any(ancestor is around for ancestor in islice(element.iterancestors(), 20))


def _open_item(element: etree._Element) -> Node:
    types = frozenset(local_name(kind) for kind in (element.get("itemtype") or "").split())
    return Node(types=types, id=str(element.get("itemid") or ""))


class _Owners:
    """Which item an element's property belongs to: the nearest around it, unless another item refers to it."""

    def __init__(self, node_by_element: dict[etree._Element, Node]) -> None:
        self._nodes = node_by_element
        self._settled: dict[etree._Element, Node | None] = {}

    def settle(self, element: etree._Element, node: Node) -> None:
        """Give an element, and all in it that has no nearer item, to an item."""
        self._settled.setdefault(element, node)

    def of(self, element: etree._Element) -> Node | None:
        path = []
        owner: Node | None = None
        current: etree._Element | None = element
        while current is not None:
            if current is not element and current in self._nodes:
                owner = self._nodes[current]
                break
            if current in self._settled:
                owner = self._settled[current]
                break
            path.append(current)
            current = current.getparent()
        self._settled.update((passed, owner) for passed in path)
        return owner


def _read_value(element: etree._Element, name: str, is_old: IsOld) -> str:
    for attribute in ("content", "datetime", *(("href", "src") if name in _ADDRESSES else ())):
        value = element.get(attribute)
        if value:
            return " ".join(str(value).split())
    is_left_out = _is_silent if name not in _PRICES else lambda inner: _is_silent(inner) or _is_struck(inner, is_old)
    text = _text_without(element, is_left_out) or _text_without(element, _is_silent)
    if text:
        return text
    stated = next((str(element.get(name)) for name in ("value", "alt") if element.get(name)), "")
    # A logo's text stands for its link; the link's address is no value.
    return stated or next((str(inner.get("alt")) for inner in element.iter("img") if inner.get("alt")), "")


def _is_silent(element: etree._Element) -> bool:
    return element.tag in _SILENT


def _is_struck(element: etree._Element, is_old: IsOld) -> bool:
    return element.tag in _STRUCK or is_old(element)


def _text_without(element: etree._Element, is_left_out: Callable[[etree._Element], bool]) -> str:
    """Return an element's text without that of some elements in it."""
    if len(element) == 0:
        return " ".join((element.text or "").split())
    pieces: list[str] = []
    events = etree.iterwalk(element, events=("start", "end", "comment"))
    for event, inner in islice(events, _MAX_VALUE_PIECES):
        if event == "start":
            if inner is not element and is_left_out(inner):
                events.skip_subtree()
            else:
                pieces.append(inner.text or "")
        elif inner is not element:
            pieces.append(inner.tail or "")
    return " ".join("".join(pieces).split())


# RDFa -----------------------------------------------------------------------------------------------------------------

_SCHEMA = re.compile(r"https?://(?:www\.)?schema\.org/?", re.IGNORECASE)
_PREFIX = re.compile(r"([\w-]+):\s+https?://(?:www\.)?schema\.org/?", re.IGNORECASE)


def _read_rdfa(root: etree._Element, is_old: IsOld) -> list[Node]:
    if next(_select(root, "typeof"), None) is None:
        return []
    prefixes = {"schema"}
    for element in islice(_select(root, "prefix"), 20):
        prefixes.update(found[1] for found in _PREFIX.finditer(element.get("prefix")))
    marked = list(islice(_select(root, "typeof", "property", "about", "resource", "rel"), _MAX_ELEMENTS))
    node_by_element = {element: _open_subject(element) for element in marked if _is_subject(element)}
    owners = _Owners(node_by_element)
    top: list[Node] = []
    for element in marked:
        node, owner = node_by_element.get(element), owners.of(element)
        names = _terms(element.get("property"), prefixes)
        if node is not None and not names:
            names = _terms(_relation_around(element, node_by_element), prefixes)
        if owner is None or not names:
            if node is not None:
                top.append(node)
            continue
        for name in names:
            owner.add(name, node or _reference(element) or _read_value(element, name, is_old))
    return top


def _is_subject(element: etree._Element) -> bool:
    """Say whether an element opens a thing: by a type, or by naming what the properties in it are about."""
    names = element.get("about") or (element.get("resource") and not element.get("property"))
    return element.get("typeof") is not None or bool(names)


def _open_subject(element: etree._Element) -> Node:
    types = frozenset(local_name(kind) for kind in (element.get("typeof") or "").split())
    return Node(types=types, id=str(element.get("about") or element.get("resource") or ""))


def _reference(element: etree._Element) -> Node | None:
    identifier = element.get("resource")
    return Node(id=str(identifier)) if identifier and not element.get("content") else None


def _relation_around(element: etree._Element, subjects: Iterable[etree._Element]) -> str | None:
    """Return the `rel` that joins a thing to the one around it."""
    for around in (element, *element.iterancestors()):
        if around is not element and around in subjects:
            return None
        if around.get("rel"):
            return str(around.get("rel"))
    return None


def _terms(names: str | None, prefixes: set[str]) -> list[str]:
    """Return the names that are of schema.org or of no vocabulary; Open Graph's properties are others."""
    terms = []
    for name in (names or "").split():
        prefix = "" if _SCHEMA.match(name) else name.rpartition(":")[0]
        if not prefix or prefix in prefixes:
            terms.append(local_name(name))
    return terms
