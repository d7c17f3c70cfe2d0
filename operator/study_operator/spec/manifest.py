"""Reads a study's manifest from a file. The command line's edge: what comes out is a plain dict for `parse_study`.

Relative paths in a manifest are relative to the manifest's own directory, so that a study does not depend on where the
command was started. They leave here absolute; URIs with a scheme leave as they came.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from study_operator.errors import OperatorError
from study_operator.spec.kubectl_yaml import load_documents

PATH_FIELDS = (("data", "source"), ("data", "testSource"), ("trainer", "baseModel", "uri"), ("storage", "uri"))
"""Fields of the spec that hold a path or a URI."""


class ManifestError(OperatorError):
    """The manifest cannot be read: which file, and why."""

    reason = "ManifestUnreadable"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read one manifest, with absolute paths.

    Raises:
        ManifestError: where the file cannot be read or is not one YAML object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestError(f"{path} must exist") from None
    except IsADirectoryError:
        raise ManifestError(f"{path} must be a file, got a directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} must be a readable text file: {error}") from None
    try:
        documents = [document for document in load_documents(text) if document is not None]
    except yaml.YAMLError as error:
        raise ManifestError(f"{path} must be YAML: {_describe(error)}") from None
    if len(documents) != 1:
        raise ManifestError(f"{path} must hold one manifest, got {len(documents)}")
    if not isinstance(documents[0], dict):
        raise ManifestError(f"{path} must hold an object, got {type(documents[0]).__name__}")
    raw: dict[str, Any] = documents[0]
    spec, directory = raw.get("spec"), path.absolute().parent
    for keys in PATH_FIELDS:
        _make_absolute(spec, keys, directory)
    earlier = spec.get("warmStartFrom") if isinstance(spec, Mapping) else None
    for item in earlier if isinstance(earlier, list) else ():
        _make_absolute(item, ("uri",), directory)
    return raw


def _make_absolute(raw: Any, keys: tuple[str, ...], directory: Path) -> None:
    for key in keys[:-1]:
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    if not isinstance(raw, dict):
        return
    value = raw.get(keys[-1])
    # What is not a string, or empty, is for the parser to refuse.
    if isinstance(value, str) and value and "://" not in value:
        raw[keys[-1]] = os.path.normpath(directory / Path(value).expanduser())


def _describe(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error).replace("\n", " ")
