"""Reads YAML as kubectl does, so that a manifest means the same on one machine and on a cluster.

kubectl turns YAML into JSON with sigs.k8s.io/yaml, whose plain scalars are those of go-yaml 2: `y`, `n`, `on` and `off`
are booleans as in YAML 1.1, `1e-4` and `0o17` numbers as in 1.2, dates and `1:30` strings. A float without a fraction
leaves as an integer, because JSON has one kind of number. Called by `manifest.py`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from decimal import Decimal
from typing import Any

import yaml

BOOLEANS = {
    **dict.fromkeys((form for word in ("y", "yes", "true", "on") for form in (word, word.title(), word.upper())), True),
    **dict.fromkeys(
        (form for word in ("n", "no", "false", "off") for form in (word, word.title(), word.upper())), False
    ),
}
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
NOT_FINITE = re.compile(r"\.(nan|NaN|NAN)|[-+]?\.(inf|Inf|INF)")
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
_MOST_DIGITS = 64
"""Of an integer of 64 bits, in base two."""
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LARGEST_WHOLE = 1e21
"""From here on JSON writes a float with an exponent."""


def load_documents(text: str) -> Iterator[Any]:
    """Yield the documents of a text.

    Raises:
        yaml.YAMLError: where it is no YAML, has a tag or a number that JSON has not, or gives a key twice.
    """
    yield from yaml.load_all(text, Loader=_Loader)


def parse_number(plain: str) -> int | float | None:
    """Return the number that a plain scalar is; None where it is none, or too large to be one."""
    if not plain[:1].isdecimal() and plain[:1] not in ("-", "+", "."):
        return None
    plain = plain.replace("_", "")
    if (match := _INTEGER.fullmatch(plain)) is not None:
        base, digits = next((base, match[name]) for name, base in _BASES.items() if match[name] is not None)
        if len(digits) <= _MOST_DIGITS:
            number = int(match["sign"] + digits, base)
            if -(2**63) <= number < 2**63:
                return number
    if _FLOAT.fullmatch(plain) is None:
        return None
    value = float(plain)
    if value in (float("inf"), float("-inf")):
        return None
    # Of a whole number that a float cannot hold JSON has the shortest digits that stand for the float.
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < _LARGEST_WHOLE else value


class _Loader(yaml.SafeLoader):
    """Takes no key twice: the second would win without a word."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        """Return the tag of a node that has none."""
        if kind is not yaml.ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        if value == "<<":
            return "tag:yaml.org,2002:merge"
        if value in NULLS:
            return "tag:yaml.org,2002:null"
        if value in BOOLEANS:
            return "tag:yaml.org,2002:bool"
        if NOT_FINITE.fullmatch(value) or parse_number(value) is not None:
            return "tag:yaml.org,2002:float"
        return "tag:yaml.org,2002:str"

    def construct_document(self, node: yaml.Node) -> Any:
        """Return a document's value, at once and not piece by piece: so one that holds itself is refused."""
        self.deep_construct = True
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return an object, its keys as JSON has them."""
        del deep
        self._refuse_twins(node)
        self.flatten_mapping(node)
        return {self._name_key(key): self.construct_object(value, deep=True) for key, value in node.value}

    def _refuse_twins(self, node: yaml.MappingNode) -> None:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self._name_key(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} must be given once", problem_mark=key_node.start_mark
                )
            seen.add(key)

    def _name_key(self, node: yaml.Node) -> str:
        key = self.construct_object(node, deep=True)
        if isinstance(key, bool):
            return "true" if key else "false"
        if isinstance(key, str | int | float):
            return str(key)
        raise yaml.constructor.ConstructorError(
            problem=f"a key must be a string, got {key!r}", problem_mark=node.start_mark
        )

    def construct_scalar_of_json(self, node: yaml.ScalarNode) -> Any:
        """Return a boolean or a number."""
        value = self.construct_scalar(node)
        found = BOOLEANS.get(value, parse_number(value))
        if found is None:
            raise yaml.constructor.ConstructorError(
                problem=f"a value must be one that JSON has, got {value}", problem_mark=node.start_mark
            )
        return found


for _kind in ("bool", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar_of_json)
for _kind in ("timestamp", "merge"):
    # As a value; as a key `<<` takes in what its alias names.
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar)  # type: ignore[type-var]
