"""What an installation sets about the operator: a file of the chart's making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from study_operator.settings import DEFAULTS, Allowance, Settings


class ConfigurationError(Exception):
    """A flag or the configuration cannot be used; one sentence."""


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What an installation says, in the file that ``--config`` names."""

    trainer_image: str = ""
    """``trainerImage``: for pods whose template names no image."""
    identities: Mapping[str, tuple[Allowance, ...]] = field(default_factory=dict)
    """``identities``: by namespace, a list of ``{uri, endpoint}``: where the operator's own identity may be used."""
    endpoints: tuple[str, ...] | None = None
    """``endpoints``: patterns such as ``https://*.example`` of the endpoints that studies may name, besides AWS; None
    means any but those at addresses of this machine, of its link, or of the API server."""
    settings: Settings = DEFAULTS
    """``limits``: any of the fields of `Settings`, in camelCase."""


def read_installation(path: Path | None) -> Installation:
    """Read the installation's configuration.

    Raises:
        ConfigurationError: where it cannot be read or says something that is not known.
    """
    if path is None:
        return Installation()
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config must name a YAML file: {error}") from error
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{path} must hold an object, got {raw!r}")
    unknown = sorted(set(raw) - {"trainerImage", "identities", "endpoints", "limits"})
    if unknown:
        raise ConfigurationError(
            f"{path}: must hold trainerImage, identities, endpoints and limits only, got {', '.join(unknown)}"
        )
    image = raw.get("trainerImage") or ""
    if not isinstance(image, str):
        raise ConfigurationError(f"{path}: trainerImage must be a string, got {image!r}")
    return Installation(
        trainer_image=image,
        identities=_read_identities(path, raw.get("identities") or {}),
        endpoints=_read_endpoints(path, raw.get("endpoints")),
        settings=_read_limits(path, raw.get("limits") or {}),
    )


def _read_limits(path: Path, raw: Any) -> Settings:
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{path}: limits must be an object, got {raw!r}")
    known = {_in_camel_case(f.name): f for f in fields(Settings)}
    changes: dict[str, Any] = {}
    for name, value in raw.items():
        field_of_it = known.get(name)
        if field_of_it is None:
            raise ConfigurationError(f"{path}: limits must be some of {', '.join(known)}, got {name!r}")
        is_whole = isinstance(field_of_it.default, int)
        if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float) or value < is_whole:
            rule = "a whole number from 1" if is_whole else "a number from 0"
            raise ConfigurationError(f"{path}: limits.{name} must be {rule}, got {value!r}")
        changes[field_of_it.name] = value
    return replace(DEFAULTS, **changes)


def _in_camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _read_endpoints(path: Path, raw: Any) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list):
        raise ConfigurationError(f"{path}: endpoints must be a list, got {raw!r}")
    for i, item in enumerate(raw):
        if not isinstance(item, str) or not item.startswith(("http://", "https://")):
            rule = "must start with http:// or https://"
            raise ConfigurationError(f"{path}: endpoints[{i}] {rule}, got {item!r}")
    return tuple(raw)


def _read_identities(path: Path, raw: Any) -> dict[str, tuple[Allowance, ...]]:
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{path}: identities must be an object of namespaces, got {raw!r}")
    identities: dict[str, tuple[Allowance, ...]] = {}
    for namespace, places in raw.items():
        allowances = []
        for i, place in enumerate(places if isinstance(places, list) else [places]):
            where = f"{path}: identities.{namespace}[{i}]"
            if not isinstance(place, Mapping) or set(place) - {"uri", "endpoint"}:
                raise ConfigurationError(f"{where} must be an object of uri and endpoint, got {place!r}")
            uri, endpoint = place.get("uri"), place.get("endpoint")
            if not isinstance(uri, str) or not uri.startswith("s3://") or not uri.removeprefix("s3://").strip("/"):
                raise ConfigurationError(f"{where}.uri must start with s3:// and name a bucket, got {uri!r}")
            if endpoint is not None and not (
                isinstance(endpoint, str) and endpoint.startswith(("http://", "https://"))
            ):
                raise ConfigurationError(f"{where}.endpoint must start with http:// or https://, got {endpoint!r}")
            allowances.append(Allowance(uri=uri.rstrip("/"), endpoint=endpoint.rstrip("/") if endpoint else None))
        identities[str(namespace)] = tuple(allowances)
    return identities
