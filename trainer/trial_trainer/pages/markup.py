"""Labels from a page's own markup: JSON-LD, microdata, RDFa, Open Graph.

Called by data preparation for pages that come without labels. First it is decided once which of the described products
the page is about, by address, heading and title; then every value is read from that product and from no other, and a
page that is about none of them, such as a list, gives none. What markup says is weak: it may be stale, and what it
leaves out may well stand on the page, so a missing attribute here means silence, never absence.
"""

from __future__ import annotations

import html as entities
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from trial_trainer.pages import answers, documents
from trial_trainer.pages.availability import IN_STOCK, parse_availability
from trial_trainer.pages.currencies import find_money
from trial_trainer.pages.documents import Facts
from trial_trainer.pages.html import Skip
from trial_trainer.pages.json_ld import read_json_ld
from trial_trainer.pages.nodes import Node, Value, copy_nodes, link_references, walk


def read_labels(html: bytes | str, url: str | None = None) -> dict[str, str]:
    """Read the attribute values that a page's own markup states; none where the page cannot be read.

    Args:
        html: the raw page.
        url: the page's address, if it is known better than from the page.
    """
    page = documents.read_page(html)
    return {} if isinstance(page, Skip) else labels_of(page.facts, url)


def labels_of(facts: Facts, url: str | None = None) -> dict[str, str]:
    """Read the attribute values that a page's markup states, attribute by attribute from the first source that has it.

    JSON-LD is believed first, then microdata and RDFa as far as they describe the same product, then Open Graph.
    """
    page = _Page.of(facts, url)
    # Nodes are joined to each other below; those of the facts stay as the page has them, for who asks next.
    roots = [*read_json_ld(facts.json_ld), *copy_nodes(facts.nodes)]
    link_references(roots)
    candidates = _find_candidates(roots)
    own = _choose_own(candidates, page)
    sources = [_read_product(node, page) for node in own]
    if own or not candidates or page.is_product:
        sources.append(_read_open_graph(facts, page))
    found: dict[str, str] = {}
    for source in sources:
        for attribute, values in source.items():
            if attribute not in found:
                value = next((clean for raw in values if (clean := clean_value(attribute, raw))), "")
                found |= {attribute: value} if value else {}
    return {attribute: found[attribute] for attribute in answers.ATTRIBUTES if attribute in found}


# What a page says of itself -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Page:
    """By what a page's own product is known."""

    addresses: tuple[tuple[str, str], ...]
    """Path and query of the page's own addresses."""
    heading: frozenset[str]
    """Words of its h1."""
    titles: tuple[frozenset[str], ...]
    """Words of its h1, its title and Open Graph's title."""
    is_product: bool
    """Whether Open Graph says that the page is a product's."""

    @classmethod
    def of(cls, facts: Facts, url: str | None) -> _Page:
        properties = dict(reversed(facts.properties))
        addresses = (url or "", facts.canonical, properties.get("og:url", ""))
        heading = _words(facts.heading)
        titles = (heading, _words(facts.title), _words(properties.get("og:title", "")))
        return cls(
            addresses=tuple(dict.fromkeys(_address(text) for text in addresses if _address(text)[0])),
            heading=heading,
            titles=tuple(dict.fromkeys(words for words in titles if words)),
            is_product="product" in properties.get("og:type", "")
            or any(name in properties for name in ("og:price:amount", "product:price:amount")),
        )

    def has_address(self, text: str, *, is_exact: bool = False) -> bool:
        """Say whether an address is the page's own; if exact, with its query."""
        path, query = _address(text)
        return bool(path) and any(path == own and (not is_exact or query == asked) for own, asked in self.addresses)


def _address(text: str) -> tuple[str, str]:
    """Return the path and the query of an address; an empty path for the front page and for none at all."""
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        return "", ""
    path = unquote(parts.path).strip("/").casefold()
    return path, "&".join(sorted(f"{key}={value}" for key, value in parse_qsl(parts.query)))


_WORD = re.compile(r"[\u2e80-\ud7ff\u0e00-\u0e7f]|[^\W_\u2e80-\ud7ff\u0e00-\u0e7f]+")
"""A word, or a letter of a script without spaces."""


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(entities.unescape(text).casefold()))


# The page's own product -----------------------------------------------------------------------------------------------

_PRODUCT_TYPES = frozenset(
    "product productgroup individualproduct productmodel someproducts vehicle car motorcycle motorizedbicycle"
    " busorcoach drug dietarysupplement".split()
)
_OTHER_TYPES = frozenset(
    "book audiobook softwareapplication mobileapplication webapplication videogame course game movie musicalbum"
    " musicrelease creativeworkseries apartment house accommodation".split()
)
"""Things that are sold, and described on pages that sell something else."""
_TRANSPARENT = frozenset({"mainentity", "itemreviewed", "itemoffered", "about", "mainentityofpage", "item"})
"""Relations by which a product stays what its page is about; any other only mentions it."""
_OF_A_GROUP = frozenset({"hasvariant", "isvariantof", "workexample"})
"""Relations within one product."""
_SAME_NAME, _KNOWN_BY_NAME, _LISTED_BY_NAME = 0.6, 0.75, 0.9
"""Shares of words: two names are of one product; a name stands in the page's heading; a listed product's does."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One described product."""

    node: Node
    is_listed: bool
    """Whether it is only mentioned, in a list or as related to something."""
    is_main: bool
    """Whether the markup calls it what the page is about."""


def _find_candidates(roots: Sequence[Node]) -> list[_Candidate]:
    found: list[_Candidate] = []
    listed: set[int] = set()
    for node, parent in walk(roots):
        is_main = False
        if parent is not None:
            around, relation = parent
            is_main = relation == "mainentity"
            is_passed = relation in _TRANSPARENT or not around.types
            if "listitem" in around.types or id(around) in listed or not is_passed:
                listed.add(id(node))
            _hand_over(around, relation, node)
        if _is_product(node) and (parent is None or parent[1] not in _OF_A_GROUP):
            found.append(_Candidate(node=node, is_listed=id(node) in listed, is_main=is_main))
    return found


def _is_product(node: Node) -> bool:
    if node.types & (_PRODUCT_TYPES | _OTHER_TYPES):
        return bool(node.values)
    # Microdata without a type, with what only a product has.
    return not node.types and bool({"offers", "price", "sku", "mpn"} & node.values.keys())


def _hand_over(around: Node, relation: str, node: Node) -> None:
    """Give a product the offer or rating that names it from outside."""
    if relation == "itemoffered" and "offers" not in node.values and around.types & {"offer", "aggregateoffer"}:
        node.add("offers", around)
    if relation == "itemreviewed" and "aggregaterating" not in node.values and "aggregaterating" in around.types:
        node.add("aggregaterating", around)


def _choose_own(candidates: Sequence[_Candidate], page: _Page) -> list[Node]:
    """Return the page's own product, first as its best source describes it, then as others do; none if it has none."""
    if not candidates:
        return []
    ranked = sorted(candidates, key=lambda candidate: -_score(candidate, page))
    best = ranked[0]
    if not _is_known(best, page):
        mentioned = [candidate for candidate in ranked if not candidate.is_listed]
        best = mentioned[0] if mentioned else best
        if best.is_listed or _is_elsewhere(best, page):
            return []
        if any(not _is_same(best.node, other.node) for other in mentioned if _is_full(other.node)):
            return []
    others = [candidate.node for candidate in candidates if candidate is not best and not candidate.is_listed]
    return [best.node, *(node for node in others if _is_same(best.node, node))]


def _score(candidate: _Candidate, page: _Page) -> float:
    node = candidate.node
    score = 2 * _affinity(node, page) + _likeness(_name_words(node), page.heading)
    score += 3 * _has_own_address(node, page) + _is_chosen(node, page) + 2 * candidate.is_main
    score += 0.2 * bool(node.types & _PRODUCT_TYPES) + 0.1 * ("offers" in node.values)
    return score - 1.5 * candidate.is_listed - 1.0 * _is_elsewhere(candidate, page)


def _is_known(candidate: _Candidate, page: _Page) -> bool:
    """Say whether something of the page itself speaks for the product."""
    if _has_own_address(candidate.node, page) or candidate.is_main:
        return True
    if candidate.is_listed:
        return _likeness(_name_words(candidate.node), page.heading) >= _LISTED_BY_NAME
    return _affinity(candidate.node, page) >= _KNOWN_BY_NAME


def _is_elsewhere(candidate: _Candidate, page: _Page) -> bool:
    """Say whether a product has a page of its own, and nothing of this one speaks for it."""
    addresses = [_address(text)[0] for text in _strings(candidate.node.get("url"))]
    return (
        any(addresses)
        and bool(page.addresses)
        and not _has_own_address(candidate.node, page)
        and _affinity(candidate.node, page) < _KNOWN_BY_NAME
        and not candidate.is_main
    )


def _has_own_address(node: Node, page: _Page) -> bool:
    stated = [*_strings(node.get("url", "mainentityofpage")), node.id]
    stated += [inner.id for inner in node.nodes("mainentityofpage", "url")]
    stated += [text for offer in node.nodes("offers")[:1] for text in _strings(offer.get("url"))]
    return any(page.has_address(text.partition("#")[0]) for text in stated)


def _affinity(node: Node, page: _Page) -> float:
    """Return which share of the words of a product's name stands in the page's heading or title, at best."""
    words = _name_words(node)
    return max((len(words & title) / len(words) for title in page.titles), default=0.0) if words else 0.0


def _likeness(words: frozenset[str], others: frozenset[str]) -> float:
    return len(words & others) / len(words | others) if words and others else 0.0


def _name_words(node: Node) -> frozenset[str]:
    return _words(next(iter(_strings(node.get("name"))), ""))


def _is_full(node: Node) -> bool:
    return bool({"name", "offers", "price"} & node.values.keys())


def _is_same(node: Node, other: Node) -> bool:
    """Say whether two descriptions are of one product: by its group or its numbers, else by their names."""
    if node is other:
        return True
    if _groups(node) & _groups(other):
        return True
    for name in ("sku", "gtin13", "gtin", "mpn", "productid"):
        mine, others = ({text.casefold() for text in _strings(n.get(name))} for n in (node, other))
        if mine and others:
            return not mine.isdisjoint(others)
    words, others_words = _name_words(node), _name_words(other)
    if not words or not others_words:
        return True
    return len(words & others_words) / min(len(words), len(others_words)) >= _SAME_NAME


def _groups(node: Node) -> set[str]:
    around = [node, *node.nodes("isvariantof")]
    named = {text for one in around for text in _strings(one.get("productgroupid", "inproductgroupwithid"))}
    return named | {group.id for group in node.nodes("isvariantof") if group.id}


# A product's values ---------------------------------------------------------------------------------------------------


def _read_product(node: Node, page: _Page) -> dict[str, list[str]]:
    """Return what a product's description says of each attribute, the likelier first."""
    variant = _choose_variant(node, page)
    parts = [part for part in (variant, node, *node.nodes("isvariantof")) if part is not None]
    offer = _choose_offer(node, variant, page)
    price, holder = _read_price(offer)
    return {
        "name": _texts(parts, "name"),
        "price": price,
        "currency": [*_texts([holder, offer, *_inner_offers(offer)], "pricecurrency", "currency"), *_marks(price)],
        "brand": [*_texts(parts, "brand"), *_texts(parts, "manufacturer")],
        "sku": [*_texts(parts, "sku"), *_texts([offer], "sku"), *_texts(parts, "productid")],
        "availability": _read_availability(offer),
        "rating": _read_rating(parts),
        "description": _texts(parts, "description"),
    }


def _texts(nodes: Iterable[Node], *names: str) -> list[str]:
    """Return the texts of properties: of a value that is a thing, its name."""
    found: list[str] = []
    for node in nodes:
        for value in node.get(*names):
            found += [value] if isinstance(value, str) else _strings(value.get("name", "value"))[:1]
    return found


def _strings(values: Iterable[Value]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _is_chosen(node: Node, page: _Page) -> bool:
    """Say whether a variant or an offer is the one that the page's address names."""
    addresses = [*_strings(node.get("url")), node.id]
    addresses += [text for offer in node.nodes("offers") for text in _strings(offer.get("url"))]
    return any(page.has_address(text.partition("#")[0], is_exact=True) for text in addresses)


def _choose_variant(node: Node, page: _Page) -> Node | None:
    """Return the variant that the page's address names, else the one of its heading."""
    variants = node.nodes("hasvariant")
    chosen = [variant for variant in variants if _is_chosen(variant, page)]
    if not chosen and page.heading and _name_words(node) != page.heading:
        chosen = [variant for variant in variants if _name_words(variant) == page.heading]
        chosen = chosen if len(chosen) == 1 else []
    return next(iter(chosen), None)


def _choose_offer(node: Node, variant: Node | None, page: _Page) -> Node:
    """Return the offer to read: the one that the page's address names, else the first that can be had."""
    offers = (variant.nodes("offers") if variant is not None else []) or node.nodes("offers", "offer")
    if not offers:
        offers = [offer for inner in node.nodes("hasvariant", "workexample") for offer in inner.nodes("offers")]
    offers = [offer for offer in offers if not _is_list_price(offer)] or offers
    if not offers:
        return node
    chosen = [offer for offer in offers if _is_chosen(offer, page)]
    if len(chosen) == len(offers):
        chosen = []
    skus = {text.casefold() for text in _strings(node.get("sku"))}
    chosen = chosen or [offer for offer in offers if skus & {text.casefold() for text in _strings(offer.get("sku"))}]
    among = chosen or offers
    priced = [offer for offer in among if _is_priced(offer)] or among
    return next((offer for offer in priced if IN_STOCK in _availabilities([offer])), priced[0])


def _is_priced(offer: Node) -> bool:
    return any(clean_value("price", raw) and not _is_zero([raw]) for raw in _read_price(offer)[0])


def _inner_offers(offer: Node) -> list[Node]:
    return offer.nodes("offers")


# Prices ---------------------------------------------------------------------------------------------------------------

_LIST_PRICE = re.compile(
    r"listprice|strikethrough|srp|msrp|rrp|regularprice|invoiceprice|minimumadvertised", re.IGNORECASE
)
_SALE_PRICE = re.compile(r"saleprice", re.IGNORECASE)
_CHARGES = frozenset({"deliverychargespecification", "paymentchargespecification", "deliverytimesettings"})
_CONDITIONS = frozenset(
    "referencequantity eligiblequantity validformembertier membershippointsearned"
    " billingduration billingincrement".split()
)
"""What makes a specification one for a hundred grams, a dozen pieces, members only or a month."""
_PIECES = frozenset({"c62", "ea", "h87", "pce", "nmp", "pc", "piece", "unit"})
"""Codes of units (UN/CEFACT) that say "each"; any other is a measure."""


def _read_price(offer: Node) -> tuple[list[str], Node]:
    """Return an offer's prices, the one to pay now first, and the node that states the first one's currency."""
    specifications = [
        inner
        for inner in offer.nodes("pricespecification")
        if not inner.types & _CHARGES and inner.get("price", "minprice")
    ]
    now = [inner for inner in specifications if not _is_list_price(inner)]
    now.sort(key=lambda inner: (_has_kind(inner, _SALE_PRICE) is False, _is_conditional(inner)))
    own = _amounts(offer, "price")
    listed = {
        answers.parse_price(text)
        for inner in specifications
        if _is_list_price(inner)
        for text in _amounts(inner, "price")
    }
    is_stale = bool(own) and answers.parse_price(own[0]) in listed - {None}
    found = [(text, inner) for inner in now for text in _amounts(inner, "price", "minprice")]
    stated = [(text, offer) for text in own]
    ordered = [*found, *stated] if is_stale else [*stated, *found]
    ordered += [(text, offer) for text in _amounts(offer, "lowprice")]
    ordered += [(text, inner) for inner in _inner_offers(offer) for text in _amounts(inner, "price")]
    # Sites write 0 where they leave a price to another place.
    ordered.sort(key=lambda pair: _is_zero([pair[0]]))
    return [text for text, _ in ordered], next((node for _, node in ordered), offer)


def _is_conditional(specification: Node) -> bool:
    units = {text.casefold() for text in _strings(specification.get("unitcode"))}
    return bool(_CONDITIONS & specification.values.keys()) or bool(units - _PIECES)


def _amounts(node: Node, *names: str) -> list[str]:
    """Return the texts of a price; of a monetary amount, its value."""
    found: list[str] = []
    for value in node.get(*names):
        found += [value] if isinstance(value, str) else _strings(value.get("value", "price", "amount"))
    return found


def _is_list_price(node: Node) -> bool:
    return _has_kind(node, _LIST_PRICE)


def _has_kind(node: Node, pattern: re.Pattern[str]) -> bool:
    kinds = [*_strings(node.get("pricetype")), *(inner.id for inner in node.nodes("pricetype"))]
    return any(pattern.search(kind) for kind in kinds)


def _marks(prices: Iterable[str]) -> Iterator[str]:
    """Find the currency signs that stand in the prices themselves."""
    return (money.mark for price in prices for money in find_money(price))


# Availability and rating ----------------------------------------------------------------------------------------------


def _read_availability(offer: Node) -> list[str]:
    """Return what an offer says; of the offers within one that says nothing, any that is in stock speaks for all."""
    own = _availabilities([offer])
    inner = _availabilities(_inner_offers(offer))
    return own or ([IN_STOCK] if IN_STOCK in inner else inner)


def _availabilities(offers: Iterable[Node]) -> list[str]:
    stated = [
        text for offer in offers for value in offer.get("availability")
        for text in ([value] if isinstance(value, str) else [value.id, *_strings(value.get("name"))])
    ]  # fmt: skip
    return [kind for text in stated if (kind := parse_availability(text)) is not None]


def _read_rating(parts: Iterable[Node]) -> list[str]:
    """Return the average ratings; one of nobody's ratings is none."""
    return [
        text
        for part in parts
        for rating in (*part.nodes("aggregaterating"), part)
        if not _is_zero(rating.get("ratingcount", "reviewcount", "votes", "count"))
        for text in _strings(rating.get("ratingvalue", "rating", "average"))
        if not _is_zero([text])
    ]


def _is_zero(values: Iterable[Value]) -> bool:
    numbers = [number for text in _strings(values) for number in answers.parse_price(text) or ()]
    return bool(numbers) and not any(numbers)


# Open Graph -----------------------------------------------------------------------------------------------------------

_PROPERTIES_BY_ATTRIBUTE = {
    "name": ("og:title", "twitter:title"),
    "price": ("product:sale_price:amount", "product:price:amount", "og:price:amount"),
    "currency": ("product:sale_price:currency", "product:price:currency", "og:price:currency"),
    "brand": ("product:brand", "og:brand"),
    "sku": ("product:retailer_item_id", "product:sku"),
    "availability": ("product:availability", "og:availability"),
    "description": ("og:description", "twitter:description"),
}
_NO_PRODUCT = re.compile(r"article|blog|profile|video\.|music\.")
"""Open Graph's types of pages that sell nothing."""


def _read_open_graph(facts: Facts, page: _Page) -> dict[str, list[str]]:
    properties: dict[str, list[str]] = {}
    for name, value in facts.properties:
        properties.setdefault(name, []).append(value)
    if not page.is_product and _NO_PRODUCT.search(properties.get("og:type", [""])[0]):
        return {}
    found = {
        attribute: [value for name in names for value in properties.get(name, ())]
        for attribute, names in _PROPERTIES_BY_ATTRIBUTE.items()
    }
    for label, data in (("twitter:label1", "twitter:data1"), ("twitter:label2", "twitter:data2")):
        attribute = _TWITTER_LABELS.get(properties.get(label, [""])[0].strip().casefold())
        if attribute is not None:
            found[attribute] += properties.get(data, ())
    found["currency"] += _marks(found["price"])
    return found


_TWITTER_LABELS = {"price": "price", "availability": "availability", "brand": "brand"}


# One value ------------------------------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(
    r"n\W?a\W?|null|nil|undefined|none|nan|unknown|default(?: title)?|tbd|\W*|\[object \w+\]|#[a-z][\w-]*"
    r"|(?:your |my )?(?:product|brand|item)[ _-]?(?:name|title|description|sku|brand)?(?: here)?|lorem ipsum.*|0+",
    re.IGNORECASE,
)
"""What templates and programs leave where they have no value."""
_TEMPLATE = re.compile(r"\{\{.*?\}\}|\$\{.*?\}|<%.*?%>|\{%.*?%\}|%%\w+%%|\[\[.*?\]\]")
_LABEL = {
    "brand": r".*\b(?:brand|marca|marke|marque|merk|hersteller|manufacturer|бренд|производитель)\s*[:：]\s*",
    "sku": r"\s*(?:sku|mpn|ref(?:erence)?|art(?:ikel|icle)?\W{0,3}n(?:r|o|ummer|umber)?|product code)\.?\s*[:：#]\s*",
}
"""What stands before a value in its own text."""
_WORDS_AFTER_NUMBER = re.compile(r"(?P<number>(?=\S*\d)\S{5,60})(?=\s.*[a-zà-ÿ]{3})(?:\s+[^\W\d_]+,?)+")
"""An article number and what the article is: "TE502955-1293415 Housse de canapé"."""
_ADDRESS_TEXT = re.compile(r"https?://|//|www\.|/[\w./-]+\Z", re.IGNORECASE)


def clean_value(attribute: str, raw: str) -> str:
    """Return the value that a raw text of markup states; "" if it is none of the attribute's."""
    value = " ".join(re.sub(r"<[^>]{0,200}>", " ", entities.unescape(entities.unescape(raw))).split())
    label = _LABEL.get(attribute)
    if label is not None:
        value = re.sub(label, "", value, count=1, flags=re.IGNORECASE)
    if attribute == "sku" and (found := _WORDS_AFTER_NUMBER.fullmatch(value)) is not None:
        value = found["number"]
    if attribute == "availability":
        return parse_availability(value) or ""
    if attribute == "price":
        value = _one_price(value)
    elif (attribute != "currency" and _is_placeholder(value)) or (
        attribute in ("name", "brand", "sku") and _ADDRESS_TEXT.match(value)
    ):
        return ""
    return value if answers.is_valid(attribute, value) else ""


def _is_placeholder(value: str) -> bool:
    return _PLACEHOLDER.fullmatch(value) is not None or _TEMPLATE.search(value) is not None


def _one_price(value: str) -> str:
    """Return the price now of a text that holds several, such as before and after a sale: the lowest."""
    if answers.parse_price(value) is not None:
        return value
    numbers = [money.number for money in find_money(value)]
    amounts = [(amount, number) for number in numbers if (amount := answers.parse_price(number)) is not None]
    return min(amounts)[1] if amounts else value
