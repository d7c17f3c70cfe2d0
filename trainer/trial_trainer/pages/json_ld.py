"""JSON-LD scripts to nodes, in all the forms that sites write and browsers' own parsers refuse.

Reading is by the book first. Only a script that is no JSON is mended: comments, commas before a closing bracket,
backslashes that escape nothing, entities, and several objects one after the other.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from trial_trainer.pages.nodes import Node, local_name

_MAX_NODES = 20_000
_HEAD = re.compile(r"\A(?:\s|[\ufeff\u200b]|;|<!--|-->|//|/\*|\*/|<!\[CDATA\[|>)+(?=[\[{\"])")
_TAIL = re.compile(r"(?:\s|;|/\*\s*\]\]>\s*\*/|(?://)?\s*-->|(?://)?\s*(?:<!)?\]\]>|//(?=\s*\Z))+\Z")
_TAIL_CHARACTERS = 100
_COMMENT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|//[^\n]*|/\*.*?(?:\*/|\Z)|<!--.*?(?:-->|\Z)', re.DOTALL)
_IDLE_COMMA = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|(?<=[{\[,])\s*,|,(?=\s*[}\]])', re.DOTALL)
"""Both match strings too, so that what looks alike in them is kept."""
_BACKSLASH = re.compile(r'\\(?:(["\\/bfnrt]|u[0-9a-fA-F]{4})|(.)|\Z)', re.DOTALL)
_BETWEEN_VALUES = re.compile(r"[\s,;\ufeff]*")


def read_json_ld(bodies: Iterable[str]) -> list[Node]:
    """Read the bodies of JSON-LD scripts into the things that they describe, in order."""
    found: list[Node] = []
    for body in bodies:
        values = _load(body)
        found += _to_nodes(values, _aliases(values))
    return found


def _load(body: str) -> list[Any]:
    """Read one script; several values where it holds several, those before the first that cannot be read."""
    text = _unwrap(body)
    found: list[Any] = []
    for mend in (str, _mend, lambda text: _mend(html.unescape(text))):
        values: list[Any] = []
        with suppress(ValueError, RecursionError):
            values.extend(_decode(mend(text)))
            return values
        found = found or values
    return found


def _unwrap(body: str) -> str:
    """Take off the comments and CDATA marks that hide a script from old browsers."""
    text = _HEAD.sub("", body)
    return text[:-_TAIL_CHARACTERS] + _TAIL.sub("", text[-_TAIL_CHARACTERS:])


def _decode(text: str) -> Iterator[Any]:
    position = _skip(text, 0)
    while position < len(text):
        value, position = _DECODER.raw_decode(text, position)
        yield value
        position = _skip(text, position)


def _skip(text: str, position: int) -> int:
    found = _BETWEEN_VALUES.match(text, position)
    return found.end() if found is not None else position


def _merge_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; of a key that stands twice the last value counts that is one."""
    merged: dict[str, Any] = {}
    for key, value in pairs:
        if key not in merged or value not in ("", None, [], {}):
            merged[key] = value
    return merged


_DECODER = json.JSONDecoder(
    strict=False, parse_float=str, parse_int=str, parse_constant=lambda _: None, object_pairs_hook=_merge_pairs
)
"""Numbers stay as they are written, NaN is no value, raw line breaks in strings are let through."""


def _mend(text: str) -> str:
    """Take comments and idle commas out of a script, and the backslashes that escape nothing."""
    text = _COMMENT.sub(lambda found: _mend_string(found[0]) if found[0].startswith('"') else " ", text)
    return _IDLE_COMMA.sub(lambda found: found[0] if found[0].startswith('"') else "", text)


def _mend_string(string: str) -> str:
    return _BACKSLASH.sub(lambda found: found[0] if found[1] else found[2] or "", string)


# Values to nodes ------------------------------------------------------------------------------------------------------


def _aliases(values: Iterable[Any]) -> dict[str, str]:
    """Read the names that contexts give to others: {"type": "@type", "title": "schema:name"}."""
    aliases: dict[str, str] = {}
    for value in _flat(values):
        context = value.get("@context") if isinstance(value, dict) else None
        for part in _flat([context]):
            if isinstance(part, dict):
                aliases |= {key: meant for key, meant in part.items() if isinstance(meant, str) and meant}
    return {
        key: meant if meant.startswith("@") else local_name(meant)
        for key, meant in aliases.items()
        if not key.startswith("@") and local_name(meant) and not meant.endswith(("/", "#"))
    }


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list):
            yield from (inner for inner in value if not isinstance(inner, list))
        else:
            yield value


def _to_nodes(values: list[Any], aliases: dict[str, str]) -> list[Node]:
    """Make nodes of JSON values. Iterative: the page decides how deep it is."""
    top: list[Any] = []
    waiting: list[tuple[Any, list[Any]]] = [(value, top) for value in reversed(values)]
    for _ in range(_MAX_NODES):
        if not waiting:
            break
        value, into = waiting.pop()
        if isinstance(value, list):
            waiting.extend((inner, into) for inner in reversed(value))
        elif isinstance(value, dict):
            _open(value, into, top, waiting, aliases)
        elif isinstance(value, str) and value.strip():
            into.append(value)
    return [node for node in top if isinstance(node, Node)]


def _open(
    value: dict[str, Any],
    into: list[Any],
    top: list[Any],
    waiting: list[tuple[Any, list[Any]]],
    aliases: dict[str, str],
) -> None:
    """Put an object's node where it belongs, and its values on the waiting list."""
    for wrapper in ("@value", "@list", "@set"):
        if wrapper in value:
            waiting.append((value[wrapper], into))
            return
    node = Node()
    into.append(node)
    for key, inner in reversed(list(value.items())):
        name = aliases.get(key) or (key if key.startswith("@") else local_name(key))
        if name == "@type":
            node.types = frozenset(local_name(kind) for kind in _flat([inner]) if isinstance(kind, str))
        elif name == "@id":
            node.id = inner if isinstance(inner, str) else ""
        elif name == "@graph":
            waiting.append((inner, top))
        elif name and not name.startswith("@"):
            waiting.append((inner, node.values.setdefault(name, [])))
