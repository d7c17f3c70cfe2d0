"""The installation's file: what it may say, and what is refused in which words."""

from pathlib import Path

import pytest

from study_operator.cluster.installation import ConfigurationError, read_installation
from study_operator.settings import DEFAULTS, Allowance


def read(directory: Path, text: str) -> object:
    file = directory / "operator.yaml"
    file.write_text(text)
    return read_installation(file)


def test_what_is_not_said_is_built_in(tmp_path: Path) -> None:
    installation = read_installation(None)
    assert (installation.trainer_image, installation.identities, installation.settings) == ("", {}, DEFAULTS)
    assert read(tmp_path, "") == installation


def test_limits_and_identities_are_taken_as_they_are_said(tmp_path: Path) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text(
        "trainerImage: registry.example/trainer:1\n"
        "limits: {attemptsLimit: 10, backoffSeconds: 0.5}\n"
        "identities: {shop-ml: [{uri: s3://ml/shop/, endpoint: https://minio.example/}]}\n"
        "endpoints: ['https://*.example']\n"
    )
    installation = read_installation(file)
    assert (installation.settings.attempts_limit, installation.settings.backoff_seconds) == (10, 0.5)
    assert installation.endpoints == ("https://*.example",)
    assert installation.settings.stuck_limit_seconds == DEFAULTS.stuck_limit_seconds
    assert installation.identities == {"shop-ml": (Allowance(uri="s3://ml/shop", endpoint="https://minio.example"),)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limits: [1]", "limits must be an object"),
        ("limits: {attempts: 3}", r"limits must be some of attemptsLimit, .*, got 'attempts'"),
        ("limits: {attemptsLimit: 0}", "limits.attemptsLimit must be a whole number from 1, got 0"),
        ("limits: {attemptsLimit: 2.5}", "limits.attemptsLimit must be a whole number from 1, got 2.5"),
        ("limits: {backoffSeconds: -1}", "limits.backoffSeconds must be a number from 0, got -1"),
        ("limits: {backoffSeconds: true}", "limits.backoffSeconds must be a number from 0, got True"),
        ("image: a", "must hold trainerImage, identities, endpoints and limits only, got image"),
        ("endpoints: https://minio.example", "endpoints must be a list, got 'https://minio.example'"),
        ("endpoints: [minio.example]", r"endpoints\[0\] must start with http:// or https://, got 'minio.example'"),
        ("identities: {a: [{uri: 's3://'}]}", r"identities.a\[0\].uri must start with s3:// and name a bucket"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, text)
