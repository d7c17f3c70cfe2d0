"""What an installation sets about the operator: a file of the chart's making."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from study_operator.errors import OperatorError
from study_operator.settings import DEFAULTS, Allowance, Endpoint, Settings
from study_operator.spec.kubectl_yaml import load_documents
from trial_trainer.codec import Codec, to_camel_case


class ConfigurationError(OperatorError):
    """A flag or the configuration cannot be used; one sentence, with everything that is wrong."""

    reason = "ConfigurationInvalid"


@dataclass(frozen=True, kw_only=True)
class Installation:
    """What an installation says, in the file that ``--config`` names; its fields in camelCase."""

    trainer_image: str = ""
    """For pods whose template names no image."""
    identities: Mapping[str, tuple[Allowance, ...]] = field(default_factory=dict)
    """By namespace: where the operator's own identity may be used."""
    endpoints: tuple[Endpoint, ...] | None = None
    """Patterns such as ``https://*.example`` of the endpoints that studies may name, besides AWS; None means any but
    those at addresses of this machine, of its link, or of the API server."""
    limits: Settings = DEFAULTS


# A key without a value, as YAML writes an empty object, is null.
_YAML = Codec(key=to_camel_case, null_is_absent=True)


def read_installation(path: Path | None) -> Installation:
    """Read the installation's configuration.

    Raises:
        ConfigurationError: where it cannot be read or says something that is not known.
    """
    if path is None:
        return Installation()
    try:
        documents = [each for each in load_documents(path.read_text(encoding="utf-8")) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config must name a YAML file: {error}") from error
    if len(documents) > 1:
        raise ConfigurationError(f"{path} must hold one document, got {len(documents)}")
    installation, problems = _YAML.parse(Installation, documents[0] if documents else {})
    if problems:
        raise ConfigurationError(f"{path}: {'; '.join(map(str, problems))}")
    return replace(
        installation,
        identities={
            namespace: tuple(_without_slashes(place) for place in places)
            for namespace, places in installation.identities.items()
        },
    )


def _without_slashes(place: Allowance) -> Allowance:
    return Allowance(uri=place.uri.rstrip("/"), endpoint=place.endpoint.rstrip("/") if place.endpoint else None)
