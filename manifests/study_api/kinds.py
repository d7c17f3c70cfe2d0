"""The kinds of fields that the schema is made of. Each has a description and bounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from study_operator.spec import limits
from study_operator.spec.fields import NUMBER, OBJECT_NAME, SCHEME
from study_operator.spec.limits import Whole

Schema = dict[str, Any]

OWNED_WHOLE: Schema = {"x-kubernetes-map-type": "atomic"}
NULL: Schema = {"nullable": True}


def text(about: str, longest: int, *, least: int = 0, pattern: str = "", **more: Any) -> Schema:
    """A string of bounded length."""
    schema: Schema = {"description": about, "type": "string", "maxLength": longest}
    if least:
        schema["minLength"] = least
    if pattern:
        schema["pattern"] = f"^{pattern}$"
    return schema | more


def choice(about: str, values: Iterable[str], **more: Any) -> Schema:
    """One of some words."""
    return {"description": about, "type": "string", "enum": [str(value) for value in values]} | more


def whole(about: str, bounds: Whole, **more: Any) -> Schema:
    """A whole number between bounds."""
    schema: Schema = {
        "description": about,
        "type": "integer",
        "format": "int32" if bounds.high <= limits.MAX_INT32 else "int64",
        "minimum": bounds.low,
        "maximum": bounds.high,
    }
    if bounds.default is not None:
        schema["default"] = bounds.default
    return schema | more


def number(about: str, **more: Any) -> Schema:
    """A number that may be fractional, as a string."""
    return text(about, limits.NUMBER_LENGTH, pattern=NUMBER, **more)


def flag(about: str, **more: Any) -> Schema:
    """True or false."""
    return {"description": about, "type": "boolean"} | more


def listing(about: str, items: Schema, most: int, *, least: int = 0, **more: Any) -> Schema:
    """A list of bounded length, owned as a whole."""
    schema: Schema = {"description": about, "type": "array", "maxItems": most, "x-kubernetes-list-type": "atomic"}
    if least:
        schema["minItems"] = least
    return schema | {"items": items} | more


def mapping(about: str, values: Schema, most: int, **more: Any) -> Schema:
    """Values by names that are not fields."""
    return {"description": about, "type": "object", "maxProperties": most, "additionalProperties": values} | more


def fields(about: str, properties: Mapping[str, Schema], required: Sequence[str] = (), **more: Any) -> Schema:
    """An object with named fields."""
    schema: Schema = {"description": about, "type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = list(required)
    return schema | more


def rule(expression: str, message: str, at: str = "", *, forbids: bool = False) -> Schema:
    """A rule in CEL, with a sentence for people."""
    raw: Schema = {"rule": expression, "message": message}
    if at:
        raw["fieldPath"] = at
    if forbids:
        raw["reason"] = "FieldValueForbidden"
    return raw


def rules(*given: Schema) -> Schema:
    """Several rules, as a schema has them."""
    return {"x-kubernetes-validations": list(given)}


def say(words: Iterable[str], joined_by: str) -> str:
    """Return words as a sentence has them: `one, two or three`."""
    *most, last = words
    return f"{', '.join(most)} {joined_by} {last}"


def place(about: str, schemes: Sequence[str] = ("s3", "file")) -> Schema:
    """A path, or a URI of one of some schemes."""
    message = " or ".join(f"{scheme}://" for scheme in schemes)
    return text(
        about,
        limits.PLACE_LENGTH,
        least=1,
        **rules(
            rule(
                f"!self.matches('^{SCHEME}') || self.matches('^({'|'.join(schemes)})://.*[^/]')",
                f"must be a path or start with {message} and name something",
            )
        ),
    )


def object_name(about: str, **more: Any) -> Schema:
    """The name of a Kubernetes object."""
    return text(about, limits.OBJECT_NAME_LENGTH, least=1, pattern=OBJECT_NAME, **more)


def pod_template(about: str) -> Schema:
    """A pod template. What is in it the API server's own Job says; equality in rules sees all of it."""
    opaque = {"x-kubernetes-preserve-unknown-fields": True}
    most = f"at most {limits.TEMPLATE_BYTES // 1024} KiB as JSON"
    return fields(
        f"{about} It is a PodTemplateSpec of {most}; when the study is accepted the API server is asked whether it "
        "would take Jobs made of it, and the condition Accepted tells what is wrong.",
        {
            "metadata": {"description": "Labels and annotations of the pods, as in any pod template.", **opaque},
            "spec": {
                "description": "The pod, as in any pod template. Where it has containers, one is named trainer: it "
                "runs the trainer, and it is where accelerators are asked for.",
                **opaque,
            },
        },
        **OWNED_WHOLE,
    )
