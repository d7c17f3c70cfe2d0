"""Plain values into dataclasses and back: strict, with every problem at once. For the contract see test_contract.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import pytest

from trial_trainer.codec import JSON, Codec, Written, at_least, has_wrong, to_camel_case


class Colour(StrEnum):
    RED = "Red"
    BLUE = "Blue"


@dataclass(frozen=True, kw_only=True)
class Part:
    size: Annotated[int, at_least(1)]
    weight: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    first_part: Part
    more: tuple[Part, ...] = ()
    by_name: Mapping[str, Part | None] = field(default_factory=dict)
    colour: Colour | None = None
    is_new: bool = False
    limit: float | None


GOOD: dict[str, Any] = {"name": "a", "first_part": {"size": 1}, "limit": None}
CAMEL_CASE = Codec(key=to_camel_case, null_is_absent=True)


def sentences(raw: Any, codec: Codec = JSON, name: str = "") -> list[str]:
    """Return what is wrong with a `Whole`."""
    return [str(problem) for problem in codec.parse(Whole, raw, name)[1]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": 1}, "name must be a string, got 1"),
        ({"first_part": {"size": "1"}}, "first_part.size must be a whole number, got '1'"),
        ({"first_part": {"size": 1.0}}, "first_part.size must be a whole number, got 1.0"),
        ({"first_part": {"size": True}}, "first_part.size must be a whole number, got True"),
        ({"first_part": {"size": 0}}, "first_part.size must be at least 1, got 0"),
        ({"first_part": {"size": 1, "weight": False}}, "first_part.weight must be a number, got False"),
        ({"first_part": {"size": 1, "weight": float("nan")}}, "first_part.weight must be finite, got nan"),
        ({"more": [{"size": 1}, {}]}, "more[1].size must be given"),
        ({"more": {"size": 1}}, "more must be a list, got {'size': 1}"),
        ({"by_name": {"x": {"size": 1, "extra": 2}}}, "by_name['x'].extra is not a field"),
        ({"by_name": {1: None}}, "by_name[1] must have a string as its key, got 1"),
        ({"colour": "red"}, "colour must be one of Red, Blue, got 'red'"),
        ({"is_new": 1}, "is_new must be true or false, got 1"),
        ({"is_new": None}, "is_new must be true or false, got None"),
    ],
)
def test_what_only_looks_like_the_annotation_is_refused(change: dict[str, Any], sentence: str) -> None:
    assert sentences(GOOD | change) == [sentence]


@dataclass(frozen=True)
class Either:
    value: float | int | str | tuple[int, ...]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (True, "value must be a number or a string or a list, got True"),
        ([1, "2"], "value[1] must be a whole number, got '2'"),
        (float("inf"), "value must be finite, got inf"),
    ],
)
def test_of_several_kinds_the_one_is_meant_that_has_the_values_form(value: Any, sentence: str) -> None:
    assert [str(problem) for problem in JSON.parse(Either, {"value": value})[1]] == [sentence]


def test_every_problem_is_reported_with_its_path() -> None:
    raw = {"name": 1, "first_part": {"size": 0, "weight": "1"}, "more": [{"size": 1}, 5], "new": 1}
    assert sentences(raw, name="Whole") == [
        "Whole.new is not a field",
        "Whole.name must be a string, got 1",
        "Whole.first_part.size must be at least 1, got 0",
        "Whole.first_part.weight must be a number, got '1'",
        "Whole.more[1] must be an object, got 5",
        "Whole.limit must be given",
    ]


def test_a_field_that_is_not_known_is_told_from_one_that_is_wrong() -> None:
    value, problems = JSON.parse(Whole, GOOD | {"new": 1})
    assert value == Whole(name="a", first_part=Part(size=1), limit=None)
    assert [p.path for p in problems] == ["new"] and not has_wrong(problems)
    assert has_wrong(JSON.parse(Whole, GOOD | {"name": 1})[1])


def test_where_null_is_absent_it_stands_for_the_default() -> None:
    raw = {"name": "a", "firstPart": {"size": 1, "weight": None}, "isNew": None, "more": None}
    assert CAMEL_CASE.parse(Whole, raw) == (Whole(name="a", first_part=Part(size=1), limit=None), [])
    assert sentences({"name": None, "firstPart": {"size": 1}}, CAMEL_CASE) == ["name must be given"]


def test_a_long_value_is_shortened_in_the_sentence() -> None:
    (sentence,) = sentences(GOOD | {"name": ["x" * 10_000]})
    assert len(sentence) < 600 and sentence.endswith("…")


def test_what_is_rendered_is_parsed_and_what_is_empty_is_left_out() -> None:
    whole = Whole(
        name="a", first_part=Part(size=1), more=(Part(size=2),), colour=Colour.BLUE, by_name={"x": None}, limit=None
    )
    raw = CAMEL_CASE.render(Whole, whole)
    assert raw == {
        "name": "a",
        "firstPart": {"size": 1, "weight": 0.0},
        "more": [{"size": 2, "weight": 0.0}],
        "byName": {"x": None},
        "colour": "Blue",
        "limit": None,
    }
    assert CAMEL_CASE.parse(Whole, raw) == (whole, [])


@dataclass(frozen=True)
class Note:
    text: Annotated[str, Written(lambda text: text[:3])] = ""


def test_a_text_may_be_cut_where_it_is_written() -> None:
    assert JSON.render(Note, Note("12345")) == {"text": "123"}
    assert JSON.render(Note, Note()) == {}
