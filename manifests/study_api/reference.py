"""The reference of the API as a page: one section for each object, with its fields and what its rules say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from study_api.kinds import Schema
from study_operator.spec.fields import NUMBER

HEAD = """# API reference

Made by `python manifests/generate.py` of the same source as `manifests/crd/crd.yaml`; `kubectl explain fts.spec`
shows the same texts. [The manifest](study.md) tells the same in one table, and what a laptop makes of each field.

`{kind}` (`{api}`), plural `{plural}`, short name `{short}`, category `{category}`.

A rule under an object is told by the API server when the object is written; what only the operator can know is told in
the condition `Accepted`.
"""


def render_reference(crd: dict[str, Any]) -> str:
    """Return the page."""
    spec = crd["spec"]
    version = spec["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    head = HEAD.format(
        kind=spec["names"]["kind"],
        api=f"{spec['group']}/{version['name']}",
        plural=spec["names"]["plural"],
        short=spec["names"]["shortNames"][0],
        category=spec["names"]["categories"][0],
    )
    parts = [head, "\n".join(["## The object", "", schema["description"], "", *_say_rules(schema)])]
    for part in ("spec", "status"):
        parts += [_render_object(path, at) for path, at in _objects_of(schema["properties"][part], part)]
    columns = [f"| {c['name'].upper()} | {c['description']} |" for c in version["additionalPrinterColumns"]]
    parts.append("\n".join(["## Columns of `kubectl get fts`", "", "| column | shows |", "|---|---|", *columns]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _objects_of(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Return every object with named fields, outermost first."""
    if "properties" not in schema:
        return
    yield path, schema
    for name, child in schema["properties"].items():
        if child.get("type") == "array":
            yield from _objects_of(child["items"], f"{path}.{name}[]")
        else:
            yield from _objects_of(child, f"{path}.{name}")


def _render_object(path: str, schema: Schema) -> str:
    lines = [f"## {path}", "", schema["description"], "", "| field | type | default | meaning |", "|---|---|---|---|"]
    required = schema.get("required", ())
    for name, child in schema["properties"].items():
        default = "required" if name in required else _say_default(child)
        meaning = " ".join([child["description"], *_rules_of(child)])
        cells = (f"`{name}`", _say_type(child, f"{path}.{name}"), default, meaning)
        lines.append(f"| {' | '.join(_escape(cell) for cell in cells)} |")
    return "\n".join([*lines, "", *_say_rules(schema)])


def _say_default(schema: Schema) -> str:
    default = schema.get("default")
    if default is None or default == {}:
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _say_type(schema: Schema, path: str) -> str:
    match schema.get("type"):
        case "string" if "enum" in schema:
            return "one of " + ", ".join(f"`{word}`" for word in schema["enum"])
        case "string" if schema.get("format") == "date-time":
            return "time"
        case "string" if schema.get("pattern") == f"^{NUMBER}$":
            return f"number in quotes, up to {schema['maxLength']} characters"
        case "string":
            return f"string, up to {schema['maxLength']:,} characters"
        case "integer":
            return f"integer, {schema['minimum']:,} to {schema['maximum']:,}" if "maximum" in schema else "integer"
        case "array":
            items = schema["items"]
            each = "" if "properties" in items else f", each: {_say_type(items, path)}"
            count = f"{schema.get('minItems', 0)} to {schema['maxItems']} items"
            return f"{_say_link('list', f'{path}[]', items)}, {count}{each}"
        case "object" if "additionalProperties" in schema:
            each = _say_type(schema["additionalProperties"], path)
            return f"map, up to {schema['maxProperties']} names, each: {each}"
        case "object":
            return _say_link("object", path, schema)
        case "boolean":
            return "boolean"
        case _:
            return "any"


def _say_link(word: str, path: str, schema: Schema) -> str:
    """Return a link to the section of an object: its anchor is what GitHub makes of the heading."""
    anchor = re.sub(r"[^a-z0-9]", "", path.lower())
    return f"[{word}](#{anchor})" if "properties" in schema else word


def _rules_of(schema: Schema) -> list[str]:
    """Return what the rules of a field with a value of its own say."""
    if "properties" in schema:
        return []
    own = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    each = [f"each {rule['message']}" for rule in schema.get("items", {}).get("x-kubernetes-validations", ())]
    if "properties" in schema.get("items", {}):
        each = []
    return [f"It {message}." if message.startswith("must") else f"{message.capitalize()}." for message in own + each]


def _say_rules(schema: Schema) -> list[str]:
    """Return the rules of an object; what holds for many fields is said once."""
    fields_of: dict[str, list[str]] = {}
    for rule in schema.get("x-kubernetes-validations", ()):
        fields_of.setdefault(rule["message"], []).append(rule.get("fieldPath", "").removeprefix("."))
    return [
        f"- {', '.join(f'`{field}`' for field in named if field) or 'It'} {message}."
        for message, named in fields_of.items()
    ]


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
