"""JSON and YAML into dataclasses and back, by their annotations.

Strict: a field takes what its annotation says and nothing that only looks like it (no ``1`` for ``"1"``, no ``1.5`` or
``True`` for ``1``, no NaN). Everything that is wrong is said at once, each with its path, the rule and the value.
Standard library only, because the contract is, and a few microseconds an object: a tick of the operator reads hundreds.

Annotations are dataclasses, ``tuple[X, ...]``, ``Mapping[str, X]``, ``StrEnum``, ``str``, ``int``, ``float``, ``bool``,
``Any`` and unions of them, of which only ``X | None`` can be rendered. ``Annotated`` adds a `Rule`, or `Written`. The
rules of two fields together are a method ``find_broken_rules`` of their dataclass.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar

LARGEST_COUNT = 2**53
"""The largest whole number that JSON carries between any two languages."""

NOTHING: Any = object()
"""Stands for a value that is not there."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, which `str` makes a sentence of."""

    rule: str
    got: Any = NOTHING
    path: str = ""
    """Grows towards the front on the way out of nested values: ``.trainer.epochs``."""

    @property
    def is_unknown_field(self) -> bool:
        """Whether nothing is wrong but a field that nobody knows, which may be passed over."""
        return self.rule is UNKNOWN

    def __str__(self) -> str:
        got = "" if self.got is NOTHING else f", got {_shorten(repr(self.got))}"
        return f"{self.path} {self.rule}{got}".lstrip()


UNKNOWN = "is not a field"


def _shorten(text: str) -> str:
    return text if len(text) <= 500 else f"{text[:500]}…"


@dataclass(frozen=True)
class Rule:
    """A bound of a value, for ``Annotated``."""

    text: str
    """Begins with "must"."""
    holds: Callable[[Any], bool]


def at_least(low: float) -> Rule:
    """Return the rule of a number with a lower bound."""
    return Rule(f"must be at least {low}", lambda value: value >= low)


def between(low: float, high: float) -> Rule:
    """Return the rule of a number with two bounds, both allowed."""
    return Rule(f"must be from {low} to {high}", lambda value: low <= value <= high)


Count = Annotated[int, between(0, LARGEST_COUNT)]
Positive = Annotated[int, between(0, LARGEST_COUNT), at_least(1)]


@dataclass(frozen=True)
class Written:
    """How a text is changed before it is written, for ``Annotated``: for example cut to a length."""

    change: Callable[[Any], Any]


Parser = Callable[[Any, list[Problem]], Any]
Renderer = Callable[[Any], Any]
T = TypeVar("T")


class Codec:
    """One format: how its keys are spelled, and what it writes in another way than JSON does.

    Args:
        key: makes the key of a field's name.
        scalars: by annotation, the parser and the renderer of what has a form of its own.
        null_is_absent: whether null means that a field is not given.
    """

    def __init__(
        self,
        *,
        key: Callable[[str], str] = str,
        scalars: Mapping[Any, tuple[Parser, Renderer]] | None = None,
        null_is_absent: bool = False,
    ) -> None:
        self._key = key
        self._scalars = scalars or {}
        self._null_is_absent = null_is_absent
        # Made once for each annotation: looking into annotations costs as much as all the rest.
        self._parsers: dict[Any, Parser] = {}
        self._renderers: dict[Any, Renderer] = {}

    def parse(self, kind: type[T], raw: Any, name: str = "") -> tuple[T, list[Problem]]:
        """Parse plain values.

        Args:
            kind: what they must be.
            raw: dictionaries, lists, strings, numbers, booleans and None.
            name: what the paths of problems begin with.

        Returns:
            The value, and all that is wrong. Where more is wrong than fields that nobody knows, the value is None.
        """
        problems: list[Problem] = []
        value = self._parser(kind)(raw, problems)
        return value, [dataclasses.replace(p, path=f"{name}{p.path}".removeprefix(".")) for p in problems]

    def render(self, kind: Any, value: Any) -> Any:
        """Render a value; a field with a default is left out where it is None, false or empty."""
        return self._renderer(kind)(value)

    # --- Parsers ---------------------------------------------------------------------------------------------------

    def _parser(self, kind: Any) -> Parser:
        if kind not in self._parsers:
            self._parsers[kind] = self._make_parser(kind)
        return self._parsers[kind]

    def _make_parser(self, kind: Any) -> Parser:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind in self._scalars:
            return self._scalars[kind][0]
        if kind is Any:
            return lambda raw, _: raw
        if origin is Annotated:
            return _checked(self._parser(arguments[0]), [rule for rule in arguments[1:] if isinstance(rule, Rule)])
        if dataclasses.is_dataclass(kind):
            return self._dataclass_parser(typing.cast(Any, kind))
        if origin in (typing.Union, types.UnionType):
            return self._union_parser(arguments)
        if origin is tuple:
            return _sequence_parser(self._parser(arguments[0]), _plain_type(arguments[0]))
        if origin is not None:
            return _mapping_parser(self._parser(arguments[1]))
        if issubclass(kind, StrEnum):
            return _choice_parser(kind)
        return _SCALARS[kind]

    def _dataclass_parser(self, kind: type[Any]) -> Parser:
        hints = typing.get_type_hints(kind, include_extras=True)
        # What a key that is not there gives; and with it null, where that means the same.
        nothing = None if self._null_is_absent else NOTHING
        required = {f.name for f in dataclasses.fields(kind) if not _has_default(f)}
        if self._null_is_absent:
            required -= {name for name in required if type(None) in typing.get_args(hints[name])}
        # In the order of the fields. What is required and not given stays out of every value by its problem.
        absent: dict[str, Any] = {
            f.name: None if f.default is dataclasses.MISSING else f.default
            for f in dataclasses.fields(kind)
            if f.default_factory is dataclasses.MISSING
        }
        fields = [
            (f.name, key := self._key(f.name), f".{key}", _plain_type(hints[f.name]), self._parser(hints[f.name]))
            for f in dataclasses.fields(kind)
        ]
        keys = frozenset(key for _, key, *_ in fields)
        find_broken_rules: Callable[[Any], Iterator[Problem]] | None = getattr(kind, "find_broken_rules", None)
        build = _builder(kind)

        def parse(raw: Any, problems: list[Problem]) -> Any:
            if not isinstance(raw, dict):
                return _refuse(problems, "must be an object", raw)
            start = len(problems)
            if not raw.keys() <= keys:
                problems.extend(Problem(UNKNOWN, path=f".{name}") for name in raw if name not in keys)
            values = dict(absent)
            count = len(problems)
            for name, key, path, plain, parse_field in fields:
                item = raw.get(key, nothing)
                if type(item) is plain:
                    values[name] = item
                elif item is nothing:
                    if name in required:
                        problems.append(Problem("must be given", path=path))
                        count += 1
                else:
                    values[name] = parse_field(item, problems)
                    if len(problems) > count:
                        _put_under(path, problems, count)
                        count = len(problems)
            if len(problems) > start and has_wrong(problems[start:]):
                return None
            value = build(values)
            if find_broken_rules is not None:
                problems.extend(find_broken_rules(value))
            return value

        return parse

    def _union_parser(self, kinds: tuple[Any, ...]) -> Parser:
        others = tuple(kind for kind in kinds if kind is not type(None))
        inner = self._parser(others[0]) if len(others) == 1 else self._parser_by_shape(others)
        if len(others) == len(kinds):
            return inner
        return lambda raw, problems: None if raw is None else inner(raw, problems)

    def _parser_by_shape(self, kinds: tuple[Any, ...]) -> Parser:
        parsers: dict[type, Parser] = {}
        for kind in kinds:
            for shape in _shapes(kind):
                parsers.setdefault(shape, self._parser(kind))
        rule = f"must be {' or '.join(_name(kind) for kind in kinds if not (kind is int and float in kinds))}"

        def parse(raw: Any, problems: list[Problem]) -> Any:
            # Not `isinstance`: a boolean is an `int`.
            parse_kind = parsers.get(type(raw))
            return _refuse(problems, rule, raw) if parse_kind is None else parse_kind(raw, problems)

        return parse

    # --- Renderers -------------------------------------------------------------------------------------------------

    def _renderer(self, kind: Any) -> Renderer:
        if kind not in self._renderers:
            self._renderers[kind] = self._make_renderer(kind)
        return self._renderers[kind]

    def _make_renderer(self, kind: Any) -> Renderer:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if kind in self._scalars:
            return self._scalars[kind][1]
        if origin is Annotated:
            return next((mark.change for mark in arguments if isinstance(mark, Written)), self._renderer(arguments[0]))
        if dataclasses.is_dataclass(kind):
            return self._dataclass_renderer(kind)
        if origin in (typing.Union, types.UnionType):
            (inner,) = (self._renderer(argument) for argument in arguments if argument is not type(None))
            return lambda value: None if value is None else inner(value)
        if origin is tuple:
            item = self._renderer(arguments[0])
            return lambda value: [item(part) for part in value]
        if origin is not None:
            item = self._renderer(arguments[1])
            return lambda value: {name: item(part) for name, part in value.items()}
        return str if isinstance(kind, type) and issubclass(kind, StrEnum) else lambda value: value

    def _dataclass_renderer(self, kind: Any) -> Renderer:
        hints = typing.get_type_hints(kind, include_extras=True)
        fields = [
            (f.name, self._key(f.name), _plain_type(hints[f.name]), self._renderer(hints[f.name]), _has_default(f))
            for f in dataclasses.fields(kind)
        ]

        def render(value: Any) -> dict[str, Any]:
            raw, parts = {}, vars(value)
            for name, key, plain, render_field, has_default in fields:
                part = parts[name]
                # A zero is a number and not empty.
                if part or not has_default or (part == 0 and part is not False):
                    raw[key] = render_field(part) if plain is None else part
            return raw

        return render


JSON = Codec()
"""Keys are the fields' names, numbers are JSON's."""


def has_wrong(problems: Sequence[Problem]) -> bool:
    """Say whether more is wrong than that a field is not known."""
    return not all(problem.is_unknown_field for problem in problems)


def to_camel_case(name: str) -> str:
    """Return a field's name as Kubernetes spells it."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _put_under(path: str, problems: list[Problem], start: int) -> None:
    """Put a step of the path before those of the problems from one on."""
    problems[start:] = [dataclasses.replace(p, path=path + p.path) for p in problems[start:]]


def _refuse(problems: list[Problem], rule: str, raw: Any) -> Any:
    problems.append(Problem(rule, raw))
    return None


def _builder(kind: type[Any]) -> Callable[[dict[str, Any]], Any]:
    """Return what makes a value of all its fields."""
    has_factories = any(f.default_factory is not dataclasses.MISSING for f in dataclasses.fields(kind))
    if has_factories or hasattr(kind, "__post_init__") or hasattr(kind, "__slots__"):
        return lambda values: kind(**values)

    def build(values: dict[str, Any]) -> Any:
        # As a frozen dataclass's own `__init__` does it, field by field, it takes a quarter of the whole parsing.
        value = object.__new__(kind)
        vars(value).update(values)
        return value

    return build


def _plain_type(kind: Any) -> type | None:
    """Return the type whose values are taken and written as they are, which most fields' are: it saves the call."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = [k for k in (typing.get_args(kind) if is_union else (kind,)) if k is not type(None)]
    return kinds[0] if len(kinds) == 1 and kinds[0] in (str, int, bool) else None


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _checked(inner: Parser, rules: Sequence[Rule]) -> Parser:
    def parse(raw: Any, problems: list[Problem]) -> Any:
        before = len(problems)
        value = inner(raw, problems)
        if len(problems) == before:
            broken = next((rule.text for rule in rules if not rule.holds(value)), None)
            if broken is not None:
                _refuse(problems, broken, raw)
        return value

    return parse if rules else inner


def _sequence_parser(item: Parser, plain: type | None) -> Parser:
    def parse(raw: Any, problems: list[Problem]) -> Any:
        if not isinstance(raw, list):
            return _refuse(problems, "must be a list", raw)
        # A page has thousands of token ids.
        if plain is not None and {plain}.issuperset(map(type, raw)):
            return tuple(raw)
        values = []
        count = len(problems)
        for i, part in enumerate(raw):
            values.append(item(part, problems))
            if len(problems) > count:
                _put_under(f"[{i}]", problems, count)
                count = len(problems)
        return tuple(values)

    return parse


def _mapping_parser(item: Parser) -> Parser:
    def parse(raw: Any, problems: list[Problem]) -> Any:
        if not isinstance(raw, dict):
            return _refuse(problems, "must be an object", raw)
        values = {}
        count = len(problems)
        for name, part in raw.items():
            values[name] = item(part, problems)
            if type(name) is not str:
                _refuse(problems, "must have a string as its key", name)
            if len(problems) > count:
                _put_under(f"[{name!r}]", problems, count)
                count = len(problems)
        return values

    return parse


def _choice_parser(kind: type[StrEnum]) -> Parser:
    # A table is three times as fast as an enumeration's own look-up.
    members = {member.value: member for member in kind}
    rule = f"must be one of {', '.join(kind)}"

    def parse(raw: Any, problems: list[Problem]) -> Any:
        value = members.get(raw) if isinstance(raw, str) else None
        return _refuse(problems, rule, raw) if value is None else value

    return parse


def _scalar_parser(kind: type) -> Parser:
    rule = f"must be {_WORDS[kind]}"

    def parse(raw: Any, problems: list[Problem]) -> Any:
        # Not `isinstance`: a boolean is an `int`.
        return raw if type(raw) is kind else _refuse(problems, rule, raw)

    return parse


def _parse_number(raw: Any, problems: list[Problem]) -> Any:
    if type(raw) is int:
        if abs(raw) > LARGEST_COUNT:
            rule = f"must be a number that a double holds exactly, got one of {len(str(raw))} digits"
            return _refuse(problems, rule, NOTHING)
    elif type(raw) is not float:
        return _refuse(problems, "must be a number", raw)
    elif not math.isfinite(raw):
        return _refuse(problems, "must be finite", raw)
    return raw


_WORDS: Mapping[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}

_SCALARS: Mapping[type, Parser] = {**{kind: _scalar_parser(kind) for kind in (str, int, bool)}, float: _parse_number}


def _name(kind: Any) -> str:
    if _shapes(kind) == (list,):
        return "a list"
    return "an object" if _shapes(kind) == (dict,) else _WORDS[_bare(kind)]


def _shapes(kind: Any) -> tuple[type, ...]:
    """Return the types of plain values that an annotation may take."""
    kind, origin = _bare(kind), typing.get_origin(_bare(kind))
    if origin is tuple:
        return (list,)
    if origin is not None or dataclasses.is_dataclass(kind):
        return (dict,)
    if kind is float:
        return (float, int)
    return (str,) if issubclass(kind, StrEnum) else (kind,)


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
