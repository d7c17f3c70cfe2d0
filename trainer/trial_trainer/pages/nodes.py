"""Things that a page describes in its markup, whatever the syntax: one kind of node for all of them.

`json_ld` and `embedded` make nodes, `markup` reads them. Names are folded here: "schema:priceCurrency",
"https://schema.org/priceCurrency" and "pricecurrency" are one property.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

Value: TypeAlias = "str | Node"


@dataclass(eq=False, kw_only=True, slots=True)
class Node:
    """One described thing, or a mere reference to it where it has neither a type nor a property."""

    types: frozenset[str] = frozenset()
    """Local names of its types, in lower case."""
    id: str = ""
    values: dict[str, list[Value]] = field(default_factory=dict)
    """Values by the property's local name, in lower case."""

    def get(self, *names: str) -> list[Value]:
        """Return all values of the properties, in the order of the names."""
        return [value for name in names for value in self.values.get(name, ())]

    def nodes(self, *names: str) -> list[Node]:
        """Return the properties' values that are things themselves."""
        return [value for value in self.get(*names) if isinstance(value, Node)]

    def add(self, name: str, value: Value) -> None:
        """Add a value of a property."""
        self.values.setdefault(name, []).append(value)


def local_name(name: str) -> str:
    """Return the name of a type or property without vocabulary and prefix, in lower case."""
    return re.split(r"[/#:]", name.strip().rstrip("/#:"))[-1].lower()


_RELATIONS = frozenset("aggregaterating brand hasvariant isvariantof mainentity manufacturer offers".split())
"""Properties whose values are things."""


def link_references(roots: Iterable[Node]) -> None:
    """Put what is told of one id at several places into every node of that id.

    Afterwards a node that only named an id holds what is known of it, and stays empty where nothing is.
    """
    by_id: dict[str, list[Node]] = {}
    nodes = [node for node, _ in walk(roots)]
    for node in nodes:
        if node.id:
            by_id.setdefault(node.id, []).append(node)
    for node in nodes:
        for name in _RELATIONS & node.values.keys():
            # Some write the id itself for a reference to it.
            node.values[name] = [
                by_id[value][0] if isinstance(value, str) and value in by_id else value for value in node.values[name]
            ]
    for same in by_id.values():
        values: dict[str, list[Value]] = {}
        for node in same:
            for name, found in node.values.items():
                values.setdefault(name, found)
        types = frozenset().union(*(node.types for node in same))
        for node in same:
            node.types, node.values = types, values


def copy_nodes(roots: Iterable[Node]) -> list[Node]:
    """Return copies of nodes and of all that they lead to."""
    roots = list(roots)
    nodes = [node for node, _ in walk(roots)]
    copies = {id(node): Node(types=node.types, id=node.id) for node in nodes}
    for node in nodes:
        copies[id(node)].values = {
            name: [copies[id(value)] if isinstance(value, Node) else value for value in values]
            for name, values in node.values.items()
        }
    return [copies[id(root)] for root in roots]


def walk(roots: Iterable[Node]) -> Iterator[tuple[Node, tuple[Node, str] | None]]:
    """Walk over all nodes once, outer before inner, each with its parent and the property that leads to it.

    Iterative, and told nodes apart by identity: a page decides how deep its markup is, and whether it runs in circles.
    """
    waiting: list[tuple[Node, tuple[Node, str] | None]] = [(node, None) for node in reversed(list(roots))]
    seen: set[int] = set()
    while waiting:
        node, parent = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node, parent
        inner = [
            (value, (node, name)) for name, values in node.values.items() for value in values if isinstance(value, Node)
        ]
        waiting.extend(reversed(inner))
