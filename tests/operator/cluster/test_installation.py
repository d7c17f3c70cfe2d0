"""The installation's file: what it may say, and what is refused in which words."""

import re
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
    assert (installation.trainer_image, installation.identities, installation.limits) == ("", {}, DEFAULTS)
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
    assert (installation.limits.attempts_limit, installation.limits.backoff_seconds) == (10, 0.5)
    assert installation.endpoints == ("https://*.example",)
    assert installation.limits.stuck_limit_seconds == DEFAULTS.stuck_limit_seconds
    assert installation.identities == {"shop-ml": (Allowance(uri="s3://ml/shop", endpoint="https://minio.example"),)}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", " must be an object, got [1]"),
        ("limits: [1]", "limits must be an object, got [1]"),
        ("limits: {attempts: 3}", "limits.attempts is not a field"),
        ("limits: {attemptsLimit: 0}", "limits.attemptsLimit must be at least 1, got 0"),
        ("limits: {attemptsLimit: 2.5}", "limits.attemptsLimit must be a whole number, got 2.5"),
        ("limits: {attemptsLimit: '3'}", "limits.attemptsLimit must be a whole number, got '3'"),
        ("limits: {backoffSeconds: -1}", "limits.backoffSeconds must be at least 0, got -1"),
        ("limits: {backoffSeconds: true}", "limits.backoffSeconds must be a number, got True"),
        ("image: a", "image is not a field"),
        ("trainerImage: 1.2", "trainerImage must be a string, got 1.2"),
        ("endpoints: https://minio.example", "endpoints must be a list, got 'https://minio.example'"),
        ("endpoints: [minio.example]", "endpoints[0] must start with http:// or https://, got 'minio.example'"),
        (
            "identities: {a: [{uri: 's3://'}]}",
            "identities['a'][0].uri must start with s3:// and name a bucket, got 's3://'",
        ),
        ("identities: {a: [{}]}", "identities['a'][0].uri must be given"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read(tmp_path, text)
    assert str(refusal.value) == f"{tmp_path / 'operator.yaml'}: {sentence.strip()}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("limits: {backoffSeconds: .inf}", "a value must be one that JSON has, got .inf"),
        ("trainerImage: a\ntrainerImage: b", "the key 'trainerImage' must be given once"),
        ("trainerImage: a\n---\ntrainerImage: b", "must hold one document, got 2"),
    ],
)
def test_a_file_that_does_not_say_one_thing_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(rule)):
        read(tmp_path, text)


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read(tmp_path, "image: a\nendpoints: [b]\nlimits: {attemptsLimit: 0, cleanedAtOnce: x}\n")
    assert str(refusal.value).partition(": ")[2].split("; ") == [
        "image is not a field",
        "endpoints[0] must start with http:// or https://, got 'b'",
        "limits.attemptsLimit must be at least 1, got 0",
        "limits.cleanedAtOnce must be a whole number, got 'x'",
    ]
