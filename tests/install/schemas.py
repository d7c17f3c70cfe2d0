"""The API server's own types as JSON schemas, for kubeconform: nothing is fetched, and nothing can be out of date.

Stricter than the server is by itself: a field that a type does not have is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from testcluster.api import Api

LOCATION = "{{ .Group }}_{{ .ResourceAPIVersion }}_{{ .ResourceKind }}.json"
"""How kubeconform finds one."""

Schema = dict[str, Any]


def write_schemas(api: Api, directory: Path, crds: Iterator[Path]) -> None:
    """Write a schema of every kind that a server has, and of some CRDs."""
    definitions = {name: _close(each) for name, each in api.call("GET", "/openapi/v2")["definitions"].items()}
    definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = {"type": ["integer", "string"]}
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["number", "string"]}
    (directory / "definitions.json").write_text(json.dumps({"definitions": definitions}))
    for name, each in definitions.items():
        for kind in each.get("x-kubernetes-group-version-kind", ()):
            _write(
                directory,
                kind["group"],
                kind["version"],
                kind["kind"],
                {"$ref": f"definitions.json#/definitions/{name}"},
            )
    for file in crds:
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            schema = _close(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            _write(directory, spec["group"], version["name"], spec["names"]["kind"], schema)


def _write(directory: Path, group: str, version: str, kind: str, schema: Mapping[str, Any]) -> None:
    # What kubeconform calls the group of what has none.
    (directory / f"{group or version}_{version}_{kind.lower()}.json").write_text(json.dumps(schema))


def _close(schema: Any) -> Any:
    """Return a schema that has no room for fields that it does not name."""
    if isinstance(schema, list):
        return [_close(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _close(each) for name, each in schema.items()}
    if isinstance(ref := closed.get("$ref"), str):
        closed["$ref"] = ref.replace("#/definitions/", "definitions.json#/definitions/")
    if schema.get("x-kubernetes-int-or-string") is True:
        closed.pop("type", None)
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") is True or "additionalProperties" in schema
    # A type: what has fields of these names, as a CRD's own schema, has objects here.
    if schema.get("type") == "object" and "properties" in schema and not is_open:
        closed["additionalProperties"] = False
    return closed
