"""Labels from a page's own markup: JSON-LD, microdata, Open Graph.

Called by data preparation for pages that come without labels. What markup says is weak: it may be stale, and what it
leaves out may well stand on the page, so a missing attribute here means silence, never absence.
"""

from __future__ import annotations

import html as entities
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trial_trainer import answers, documents
from trial_trainer.availability import parse_availability
from trial_trainer.documents import Facts, Skip

_MAX_NODES = 20_000
_PRODUCT_TYPES = frozenset(
    "product productgroup individualproduct productmodel vehicle car book softwareapplication videogame course".split()
)


def read_labels(html: bytes | str) -> dict[str, str]:
    """Read the attribute values that a page's own markup states; none where the page cannot be read.

    JSON-LD is believed first, then microdata, then Open Graph, attribute by attribute.
    """
    facts = documents.inspect(html)
    return {} if isinstance(facts, Skip) else labels_of(facts)


def labels_of(facts: Facts) -> dict[str, str]:
    """Read the attribute values that a page's markup states."""
    found: dict[str, str] = {}
    for source in (_from_json_ld(facts), _from_microdata(facts), _from_open_graph(facts)):
        for attribute, raw in source.items():
            value = _clean(attribute, raw)
            if value and attribute not in found:
                found[attribute] = value
    return {attribute: found[attribute] for attribute in answers.ATTRIBUTES if attribute in found}


def _clean(attribute: str, raw: str) -> str:
    """Normalise a raw value; "" if it is none of the attribute's values."""
    value = " ".join(re.sub(r"<[^>]{0,200}>", " ", entities.unescape(raw)).split())
    if attribute == "availability":
        return parse_availability(value) or ""
    return value if answers.is_valid(attribute, value) else ""


# JSON-LD --------------------------------------------------------------------------------------------------------------


def _from_json_ld(facts: Facts) -> dict[str, str]:
    for body in facts.json_ld:
        for node in _nodes(_load(body)):
            if _types(node) & _PRODUCT_TYPES:
                return _read_product(node)
    return {}


def _load(body: str) -> Any:
    """Read a JSON-LD script; shops wrap it in comments and leave raw line breaks in its strings."""
    text = body.strip().removeprefix("<!--").removesuffix("-->").strip()
    text = text.removeprefix("//<![CDATA[").removesuffix("//]]>").strip().removesuffix(";")
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _nodes(root: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a JSON value, outer before inner. Iterative: the page decides how deep it is."""
    waiting = [root]
    for _ in range(_MAX_NODES):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(reversed(list(node.values())))
        elif isinstance(node, list):
            waiting.extend(reversed(node))


def _types(node: Mapping[str, Any]) -> set[str]:
    kinds = node.get("@type")
    return {
        str(kind).rstrip("/").rsplit("/", 1)[-1].lower() for kind in (kinds if isinstance(kinds, list) else [kinds])
    }


def _read_product(node: Mapping[str, Any]) -> dict[str, str]:
    offer = _first_offer(node)
    price = offer.get("price", offer.get("lowPrice"))
    specification = _first_object(offer.get("priceSpecification"))
    return {
        "name": _text(node.get("name")),
        "price": _text(price if price is not None else specification.get("price")),
        "currency": _text(offer.get("priceCurrency") or specification.get("priceCurrency")),
        "brand": _text(node.get("brand") or node.get("manufacturer")),
        "sku": _text(node.get("sku") or offer.get("sku") or node.get("productID")),
        "availability": _text(offer.get("availability")),
        "rating": _text(_first_object(node.get("aggregateRating")).get("ratingValue")),
        "description": _text(node.get("description")),
    }


def _first_offer(node: Mapping[str, Any]) -> Mapping[str, Any]:
    offer = _first_object(node.get("offers"))
    if not offer and node.get("hasVariant"):
        offer = _first_object(_first_object(node["hasVariant"]).get("offers"))
    if "price" not in offer and "lowPrice" not in offer and offer.get("offers"):
        inner = _first_object(offer["offers"])
        return {**offer, **inner}
    return offer


def _first_object(value: Any) -> Mapping[str, Any]:
    candidates = value if isinstance(value, list) else [value]
    return next((candidate for candidate in candidates if isinstance(candidate, dict)), {})


def _text(value: Any) -> str:
    """The text of a JSON-LD value: a scalar, the name of an object, the first of a list."""
    if isinstance(value, list):
        return _text(value[0]) if value else ""
    if isinstance(value, dict):
        return _text(value.get("name") or value.get("@value") or value.get("@id"))
    if isinstance(value, bool) or value is None:
        return ""
    return str(value)


# Microdata and Open Graph ---------------------------------------------------------------------------------------------

_ATTRIBUTE_BY_ITEMPROP = {
    "name": "name", "price": "price", "lowPrice": "price", "priceCurrency": "currency", "brand": "brand",
    "manufacturer": "brand", "sku": "sku", "productID": "sku", "availability": "availability",
    "ratingValue": "rating", "description": "description",
}  # fmt: skip
_SCOPES_BY_ATTRIBUTE = {
    "name": _PRODUCT_TYPES,
    "brand": _PRODUCT_TYPES | {"brand", "organization", ""},
    "sku": _PRODUCT_TYPES | {"offer", ""},
    "description": _PRODUCT_TYPES,
    "rating": frozenset({"aggregaterating"}),
}


def _from_microdata(facts: Facts) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in facts.items:
        attribute = _ATTRIBUTE_BY_ITEMPROP.get(item.name)
        if attribute is None or attribute in found or not item.value:
            continue
        scopes = _SCOPES_BY_ATTRIBUTE.get(attribute)
        if scopes is None or item.scope.lower() in scopes:
            found[attribute] = item.value
    return found


_ATTRIBUTE_BY_PROPERTY = {
    "og:title": "name", "product:price:amount": "price", "og:price:amount": "price",
    "product:price:currency": "currency", "og:price:currency": "currency", "product:brand": "brand",
    "og:brand": "brand", "product:retailer_item_id": "sku", "product:sku": "sku",
    "product:availability": "availability", "og:availability": "availability", "og:description": "description",
}  # fmt: skip


def _from_open_graph(facts: Facts) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in facts.properties:
        attribute = _ATTRIBUTE_BY_PROPERTY.get(name)
        if attribute is not None:
            found.setdefault(attribute, value)
    return found
