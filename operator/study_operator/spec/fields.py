"""A manifest's fields, read one by one; each problem is a sentence with field, rule and value.

Not `trial_trainer.codec`: here a default or a bound may depend on another field, a wrong field gives a harmless value
so that rules across fields are checked all the same, and the sentences are those of the CRD.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from study_operator.spec import limits
from study_operator.spec.limits import Whole

# The forms of strings, in the regular expressions that Python, RE2 and JSON Schema have in common.
NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,2})?"

STUDY_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"

OBJECT_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

ATTRIBUTE = r"[a-z][a-z0-9_]*"

MODULE = r"[A-Za-z0-9_.]+"

SCHEME = r"[A-Za-z][-+.A-Za-z0-9]*:"

ENDPOINT = r"https?://[^/\s@?#]+/?"

BASE_URL = r"https?://[^/\s@?#]+(/[^\s@?#]*)?"

REGION = r"[a-z0-9-]+"

DATA_KEY = r"[-._a-zA-Z0-9]+"

E = TypeVar("E", bound=StrEnum)

_REQUIRED: Any = object()


class Fields:
    """One object of a manifest: takes its fields one by one, and notes every problem with its path.

    A wrong field gives a harmless value of the right type, so that the reading goes on.
    """

    def __init__(self, raw: Any, path: str, problems: list[str]) -> None:
        self._path = path
        self._problems = problems
        self._taken: set[str] = set()
        self.is_object = isinstance(raw, Mapping)
        """False where there is no object, which has been said: then nothing more is said of its fields."""
        if not self.is_object and raw is not None:
            self._note(path or "the manifest", "must be an object", raw)
        self.raw: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}

    def has(self, name: str) -> bool:
        """Say whether a field is given; null is as not given."""
        return self.take(name) is not None

    def take(self, name: str, default: Any = None) -> Any:
        """Return a field unread."""
        self._taken.add(name)
        value = self.raw.get(name)
        return default if value is None else value

    def refuse(self, field: str, rule: str, value: Any = _REQUIRED) -> None:
        """Note a problem; the value is the field's own unless it is given."""
        shown = self.raw.get(field) if value is _REQUIRED else value
        self._note(self._join(field), rule, shown)

    def done(self, *, known: Sequence[str] = (), rule: str = "must not be given, because it is not a field") -> None:
        """Note every field that nobody took, and the field that its name is nearly that of."""
        absent = [name for name in self._taken if name not in self.raw]
        for name in self.raw:
            if name not in self._taken and name not in known and self._path != "metadata":
                nearest = difflib.get_close_matches(str(name), sorted(absent), n=1, cutoff=0.65)
                meant = f" (did you mean {nearest[0]}?)" if nearest else ""
                self._note(self._join(str(name)), f"{rule}{meant}", self.raw[name])

    def child(self, name: str, default: Any = _REQUIRED) -> Fields:
        """Return an object inside this one."""
        value = self._required(name, default, "an object")
        return Fields(value, self._join(name), self._problems)

    def nested(self, field: str, raw: Any) -> Fields:
        """Return an object that was found under this one."""
        if raw is None:
            self.refuse(field, "must be an object")
        return Fields(raw, self._join(field), self._problems)

    def text(
        self, name: str, default: Any = _REQUIRED, *, pattern: str = r"(?s:.+)", longest: int = limits.PLACE_LENGTH
    ) -> str:
        """Return a string."""
        value = self._required(name, default, "a string")
        if value is None:
            return ""
        if not isinstance(value, str):
            self.refuse(name, "must be a string")
            return ""
        if len(value) > longest:
            self.refuse(name, f"must have at most {longest} characters")
        elif not re.fullmatch(pattern, value):
            self.refuse(name, "must not be empty" if not value else f"must match ^{pattern}$")
        return value

    def place(self, name: str, schemes: Sequence[str] = ("s3", "file")) -> str:
        """Return a path, or a URI of one of the schemes."""
        value = self.text(name)
        scheme, separator, rest = value.partition("://")
        message = " or ".join(f"{s}://" for s in schemes)
        is_known = bool(separator) and scheme in schemes and bool(rest.strip("/"))
        if re.match(SCHEME, value) and not is_known:
            self.refuse(name, f"must be a path or start with {message} and name something")
        return value

    def words(self, name: str, most: int, *, pattern: str, longest: int) -> tuple[str, ...]:
        """Return a list of different words."""
        words: list[str] = []
        for i, item in enumerate(self.sequence(name, 0, most, ())):
            if not isinstance(item, str) or not re.fullmatch(pattern, item):
                self.refuse(f"{name}[{i}]", f"must match ^{pattern}$", item)
            elif len(item) > longest:
                self.refuse(f"{name}[{i}]", f"must have at most {longest} characters", item)
            elif item in words:
                self.refuse(f"{name}[{i}]", "must be given once", item)
            else:
                words.append(item)
        return tuple(words)

    def whole(self, name: str, bounds: Whole, *, is_required: bool = False) -> Any:
        """Return a whole number within bounds, or their default."""
        value = self._required(name, _REQUIRED if is_required else bounds.default, "a whole number")
        if value is None:
            return 0 if is_required else None
        if not bounds.allows(value):
            self.refuse(name, f"must be {bounds.says()}")
            return bounds.low if is_required else bounds.default
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float | None:
        """Return a number that is written as a string."""
        value = self._required(name, default, "a number in quotes")
        if value is None or (value is default and name not in self.raw):
            return None if value is None else float(value)
        return self.number_of(name, value)

    def number_of(self, field: str, value: Any) -> float | None:
        """Read a number that is written as a string."""
        if not isinstance(value, str):
            rule = (
                f"must be a number in quotes, such as {str(value)!r}"
                if _is_number(value)
                else "must be a number in quotes"
            )
            self.refuse(field, rule, value)
            return None
        if not re.fullmatch(NUMBER, value):
            self.refuse(field, "must be a finite number", value)
            return None
        if len(value) > limits.NUMBER_LENGTH:
            self.refuse(field, f"must have at most {limits.NUMBER_LENGTH} characters", value)
            return None
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            self.refuse(name, "must be true or false")
            return default
        return value

    def choice(self, name: str, kind: type[E], default: E) -> E:
        """Return one of an enumeration's words.

        Of another word the one that it is nearly, so that nothing is refused for what only follows from that.
        """
        value = self.take(name, default)
        if isinstance(value, str) and value in list(kind):
            return kind(value)
        words = {word.lower(): word for word in kind}
        nearest = difflib.get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
        meant = f" (did you mean {words[nearest[0]]}?)" if nearest else ""
        self.refuse(name, f"must be one of {', '.join(kind)}{meant}")
        return words[nearest[0]] if nearest else default

    def sequence(self, name: str, least: int, most: int, default: Any = _REQUIRED) -> Sequence[Any]:
        """Return a list of bounded length."""
        value = self._required(name, default, "a list")
        if value is None or value is default:
            return ()
        if not isinstance(value, list | tuple):
            self.refuse(name, "must be a list")
            return ()
        if not least <= len(value) <= most:
            self.refuse(name, f"must hold {least} to {most} items", len(value))
            return value[:most]
        return value

    def _required(self, name: str, default: Any, kind: str) -> Any:
        value = self.take(name, None if default is _REQUIRED else default)
        # Of something that is no object at all, nothing more is to be said.
        if value is None and default is _REQUIRED and self.is_object:
            self._note(self._join(name), f"must be given: {kind}", None)
        return value

    def _join(self, field: str) -> str:
        if not field:
            return self._path
        return f"{self._path}.{field}" if self._path else field

    def _note(self, path: str, rule: str, value: Any) -> None:
        got = "" if value is None else f", got {_shorten(value)}"
        self._problems.append(f"`{path}` {rule}{got}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
