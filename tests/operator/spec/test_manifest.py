"""Reading a manifest from a file: relative paths, and what is said of files that are none."""

import re
from pathlib import Path

import pytest

from builders.kubectl_values import KUBECTL_VALUES
from study_operator.spec.manifest import ManifestError, read_manifest


def test_paths_are_relative_to_the_manifest_and_uris_stay(tmp_path, monkeypatch):
    (tmp_path / "studies").mkdir()
    manifest = tmp_path / "studies" / "study.yaml"
    manifest.write_text(
        "spec:\n"
        "  data: {source: pages, testSource: s3://shop/audited}\n"
        "  trainer: {baseModel: {uri: ../models/small}}\n"
        "  storage: {uri: /var/runs}\n"
        "  warmStartFrom: [{uri: runs/default/first-0a1b2c3d}, {study: first}]\n"
    )
    monkeypatch.chdir("/")

    spec = read_manifest(manifest)["spec"]

    assert spec["data"] == {"source": str(tmp_path / "studies" / "pages"), "testSource": "s3://shop/audited"}
    assert spec["trainer"]["baseModel"]["uri"] == str(tmp_path / "models" / "small")
    assert spec["storage"]["uri"] == "/var/runs"
    earlier = str(tmp_path / "studies" / "runs" / "default" / "first-0a1b2c3d")
    assert spec["warmStartFrom"] == [{"uri": earlier}, {"study": "first"}]


def test_a_value_that_is_not_a_path_is_left_for_the_parser(tmp_path):
    manifest = tmp_path / "study.yaml"
    manifest.write_text("spec: {data: [1], trainer: {baseModel: 7}, storage: {uri: ''}}\n")

    assert read_manifest(manifest) == {"spec": {"data": [1], "trainer": {"baseModel": 7}, "storage": {"uri": ""}}}


@pytest.mark.parametrize(("text", "value"), list(KUBECTL_VALUES.items()))
def test_a_value_is_what_kubectl_makes_of_it(tmp_path: Path, text: str, value: object) -> None:
    manifest = tmp_path / "study.yaml"
    manifest.write_text(f"spec: {{min: {text}}}\n")
    found = read_manifest(manifest)["spec"]["min"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_those_of_json(tmp_path: Path) -> None:
    manifest = tmp_path / "study.yaml"
    manifest.write_text("spec: {1: a, y: b, 0.5: c, 'true ': d}\n")
    assert read_manifest(manifest)["spec"] == {"1": "a", "true": "b", "0.5": "c", "true ": "d"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("spec: &x {a: *x}", "found unconstructable recursive node"),
        ("spec: {y: a, 'true': b}", "the key 'true' must be given once"),
        ("spec: {[1]: a}", "a key must be a string, got [1]"),
        ("spec: {~: a}", "a key must be a string, got None"),
        ("spec: {a: .nan}", "a value must be one that JSON has, got .nan"),
    ],
)
def test_what_json_has_not_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    manifest = tmp_path / "study.yaml"
    manifest.write_text(f"{text}\n")
    with pytest.raises(ManifestError, match=re.escape(rule)):
        read_manifest(manifest)


def test_an_alias_is_taken_in(tmp_path: Path) -> None:
    manifest = tmp_path / "study.yaml"
    manifest.write_text("spec:\n  one: &one {a: 1, b: 2}\n  other: {<<: *one, b: 3}\n")
    assert read_manifest(manifest)["spec"]["other"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(b"", "must hold one manifest, got 0", id="an empty file"),
        pytest.param(b"# nothing\n", "must hold one manifest, got 0", id="comments alone"),
        pytest.param(b"a: 1\n---\nb: 2\n", "must hold one manifest, got 2", id="two manifests"),
        pytest.param(b"- a\n", "must hold an object, got list", id="a list"),
        pytest.param(b"hello\n", "must hold an object, got str", id="a word"),
        pytest.param(
            b"a: [1, 2\n", "must be YAML: line 2, column 1: expected ',' or ']', but got '<stream end>'", id="open"
        ),
        pytest.param(
            b"a: 1\na: 2\n", "must be YAML: line 2, column 1: the key 'a' must be given once", id="a key twice"
        ),
        pytest.param(
            b"a: {b: {c: 1, c: 1}}\n",
            "must be YAML: line 1, column 15: the key 'c' must be given once",
            id="a key twice, deep inside",
        ),
        pytest.param(
            b"a: !!python/object:os.system {}\n",
            "must be YAML: line 1, column 4: could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object:os.system'",
            id="a Python object",
        ),
        pytest.param(
            b"\xff\xfe\x00",
            "must be a readable text file: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
            id="binary",
        ),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_with_a_sentence(tmp_path, content, sentence):
    manifest = tmp_path / "study.yaml"
    manifest.write_bytes(content)

    with pytest.raises(ManifestError) as refusal:
        read_manifest(manifest)

    assert str(refusal.value) == f"{manifest} {sentence}"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        pytest.param("nowhere.yaml", "must exist", id="absent"),
        pytest.param(".", "must be a file, got a directory", id="a directory"),
    ],
)
def test_a_path_without_a_file_is_refused_with_a_sentence(tmp_path: Path, name, sentence):
    with pytest.raises(ManifestError) as refusal:
        read_manifest(tmp_path / name)

    assert str(refusal.value) == f"{tmp_path / name} {sentence}"
