"""Schema and parser agree: the same fields, the same bounds, the same defaults, the same words."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.some_manifests import FULL_MANIFEST, MANIFEST, a_manifest
from builders.studies_on_a_server import CRD, Studies
from study_operator.errors import StudyInvalidError
from study_operator.spec import fields
from study_operator.spec.parse import parse_study

SPEC: Mapping[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
ARMS = ("spec.baseline", "spec.startingArms[0]")


def fields_of(schema: Mapping[str, Any], path: str = "spec") -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Return every field of the schema, with its path in the full manifest and whether it is required."""
    for name, child in schema.get("properties", {}).items():
        at = f"{path}.{name}"
        yield at, child, name in schema.get("required", ())
        yield from fields_of(child, at)
        if child.get("type") == "array":
            yield f"{at}[0]", child["items"], False
            yield from fields_of(child["items"], f"{at}[0]")


PLACES = {
    "spec.parameters[0].searchSpace.uniform": "spec.parameters[2].searchSpace.uniform",
    "spec.parameters[0].searchSpace.categorical": "spec.parameters[1].searchSpace.categorical",
    "spec.warmStartFrom[0].uri": "spec.warmStartFrom[1].uri",
}
"""Where the full manifest has what the first item of a list has not."""


def place_of(path: str) -> str:
    for start, place in PLACES.items():
        if path.startswith(start):
            return place + path.removeprefix(start)
    return path


FIELDS = {place_of(path): (schema, is_required) for path, schema, is_required in fields_of(SPEC)}


def problems_of(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the parser says of a full manifest with some changes."""
    try:
        parse_study(a_manifest(changes, FULL_MANIFEST))
    except StudyInvalidError as error:
        return error.problems
    return ()


def of_kind(kind: str) -> list[str]:
    return [path for path, (schema, _) in FIELDS.items() if schema.get("type") == kind]


def is_about(problems: tuple[str, ...], path: str, rule: str = "") -> bool:
    return any(problem.startswith(f"`{path}` ") and rule in problem for problem in problems)


def test_the_parser_takes_the_fields_of_the_schema_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: set[str] = set()
    take = fields.Fields.take

    def note(self: Any, name: str, default: Any = None) -> Any:
        taken.add(self._join(name))
        return take(self, name, default)

    monkeypatch.setattr(fields.Fields, "take", note)
    parse_study(FULL_MANIFEST)
    parse_study(a_manifest({"spec.storage.caBundle": {"secretName": "a"}}, FULL_MANIFEST))
    ours = {path for path in taken if path.startswith("spec.") and not path.startswith(ARMS)} | set(ARMS[:1])
    ours = {path for path in ours if ".template.spec." not in path}
    theirs = {path for path in FIELDS if not path.endswith("]")}
    # The parser asks each parameter for every kind of search space.
    for is_of_parameters in (False, True):
        of_parser = {path.rpartition("]")[2] for path in ours if ("]" in path) is is_of_parameters}
        of_schema = {path.rpartition("]")[2] for path in theirs if ("]" in path) is is_of_parameters}
        assert of_parser == of_schema


@pytest.mark.parametrize("path", of_kind("integer"))
def test_whole_numbers_have_the_same_bounds(path: str) -> None:
    schema, _ = FIELDS[path]
    low, high = schema["minimum"], schema["maximum"]
    message = f"must be a whole number from {low} to {high}"
    for value in (low - 1, high + 1, str(low), float(low) + 0.5, True):
        assert is_about(problems_of({path: value}), path, message), value
    for value in (low, high):
        assert not is_about(problems_of({path: value}), path, message), value


@pytest.mark.parametrize("path", of_kind("string"))
def test_strings_have_the_same_bounds(path: str) -> None:
    schema, _ = FIELDS[path]
    if "enum" in schema:
        for word in schema["enum"]:
            assert not is_about(problems_of({path: word}), path, "must be one of"), word
        assert is_about(problems_of({path: "Other"}), path, f"must be one of {', '.join(schema['enum'])}")
        return
    most = schema["maxLength"]
    letter = "a" if "[a-z]" in schema.get("pattern", "") else "0"
    too_long = f"must have at most {most} characters"
    message = "must " if path == "spec.objective.metric" else too_long
    assert is_about(problems_of({path: letter * (most + 1)}), path, message)
    assert not is_about(problems_of({path: letter * most}), path, too_long)


@pytest.mark.parametrize("path", of_kind("array"))
def test_lists_have_the_same_bounds(path: str) -> None:
    schema, _ = FIELDS[path]
    least, most = schema.get("minItems", 0), schema["maxItems"]
    assert is_about(problems_of({path: [None] * (most + 1)}), path, f"must hold {least} to {most} items")
    assert not is_about(problems_of({path: [None] * most}), path, "items")
    if least:
        assert is_about(problems_of({path: [None] * (least - 1)}), path, f"must hold {least} to {most} items")


@pytest.mark.parametrize("path", [path for path in FIELDS if not path.endswith("]")])
def test_the_same_fields_are_required(path: str) -> None:
    _, is_required = FIELDS[path]
    if path in (
        "spec.storage.caBundle.secretName",
        "spec.data.labels.teacher",
        "spec.earlyEvaluation.checkpointPercent",
    ):
        # A rule says when it must be given, or must not.
        assert not is_required
        return
    assert is_about(problems_of({path: None}), path, "must be given") == is_required


def with_defaults(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return a value as an API server completes it."""
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    complete = dict(value)
    for name, child in schema.get("properties", {}).items():
        if name not in complete and "default" in child:
            complete[name] = copy.deepcopy(child["default"])
        if name in complete:
            complete[name] = with_defaults(complete[name], child)
    return complete


OPTIONAL = [
    path for path, (_, is_required) in FIELDS.items() if not is_required and "]" not in path and "caBundle" not in path
]


@given(st.sets(st.sampled_from(OPTIONAL)))
def test_defaults_are_the_same_whatever_is_left_out(left_out: set[str]) -> None:
    manifest = a_manifest({}, FULL_MANIFEST)
    for path in left_out:
        *keys, last = path.split(".")
        at: Any = manifest
        for key in keys:
            at = at.get(key, {})
        at.pop(last, None)
    completed = manifest | {"spec": with_defaults(manifest["spec"], SPEC)}
    assert outcome_of(completed) == outcome_of(manifest)


def outcome_of(manifest: Mapping[str, Any]) -> Any:
    """Return the study, or what is wrong with it: the values of lists and objects aside, which defaults complete."""
    try:
        return parse_study(manifest)
    except StudyInvalidError as error:
        return sorted(problem.partition(", got ")[0] for problem in error.problems)


def test_the_api_server_completes_a_short_study_as_the_parser_does(studies: Studies) -> None:
    created = studies.create(a_manifest({"metadata.name": "completed"}))
    assert created["spec"] == with_defaults(MANIFEST["spec"], SPEC)
    studies.delete("completed")


WORDS = [
    "1e-3",
    "16",
    "0",
    "+.5",
    "1.",
    "-1",
    "1e999",
    "accuracy",
    "accuracy/name",
    "s3://",
    "s3://b/c",
    "a b",
    "",
    "Given",
]
VALUES = st.recursive(
    st.booleans() | st.integers(-3, 600) | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "uri", "min", "max", "learning_rate"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(list(FIELDS)), VALUES, max_size=3))
def test_what_the_api_server_refuses_the_parser_refuses_too(studies: Studies, changes: Mapping[str, Any]) -> None:
    manifest = a_manifest({}, FULL_MANIFEST)
    for path, value in changes.items():
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):
            # One change may leave no place for another.
            manifest = a_manifest({path: value}, manifest)
    refusal = studies.find_refusal(manifest)
    # The other way round is not so: what is opaque to the schema only the parser reads.
    assert refusal == "" or isinstance(outcome_of(manifest), list), refusal


ODD_BUT_GOOD: list[dict[str, Any]] = [
    {"spec.parameters[2].searchSpace.uniform.min": "+.0"},
    {"spec.parameters[2].searchSpace.uniform.max": "1."},
    {"spec.parameters[2].searchSpace.uniform.max": "5E-01"},
    {"spec.parameters[1].searchSpace.categorical.values": ["4.", "1.6e1", "+64"]},
    {"spec.parameters[1].searchSpace.categorical": {"values": ["64", "4", "16"]}},
    {"spec.parameterConstraints": ["2*weight_decay<=1", "-weight_decay >= -0.9", "0.1 <= weight_decay + 2"]},
    {"spec.parameterConstraints": ["weight_decay - -1 <= 5", "- 2 * weight_decay + 1e-1<=5"]},
    {"spec.outcomeConstraints": ["validation_loss<=+2.5e0", "  accuracy/name >= .5 "]},
    {"spec.objective": {"metric": "accuracy/name"}, "spec.outcomeConstraints": ["accuracy >= 0.1"]},
    {"spec.objective": {}},
    {"spec.data.source": "./a:b//c"},
    {"spec.data.source": "file:///pages"},
    {"spec.data": {"source": "ready.jsonl", "labels": {"from": "Given"}}},
    {"spec.trainer.targetModules": ["model.layers.0.self_attn.q_proj"]},
    {"spec.trainer.template": {}},
    {"spec.budget": {}},
]


@pytest.mark.parametrize("changes", ODD_BUT_GOOD, ids=str)
def test_odd_forms_that_the_parser_takes_the_api_server_takes_too(studies: Studies, changes: dict[str, Any]) -> None:
    manifest = a_manifest(changes)
    parse_study(manifest)
    assert studies.find_refusal(manifest) == ""
