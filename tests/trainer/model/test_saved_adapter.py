"""A saved adapter names its base model as anybody can fetch it, and loads with plain PEFT by the report's own lines."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from moto import mock_aws
from peft import AutoPeftModelForCausalLM

from builders.some_studies import a_report, a_study
from builders.tiny_models import CPU, a_page, save_random_model, settings, with_adapter
from study_operator.report.report import loading_lines
from trial_trainer.artifacts import open_store
from trial_trainer.contract import BaseModel, Precision
from trial_trainer.model.load import LoadedModel, load_base, save_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A random base model with its tokenizer."""
    directory = tmp_path / "models" / "tiny"
    save_random_model(directory, "llama")
    return directory


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, in which `acme/tiny` lies at one commit, which is `main` and `v1`."""
    cache = tmp_path / "hub"
    repository = cache / "models--acme--tiny"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture
def bucket(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of the model in a bucket."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("TRIAL_MODEL_CACHE", str(tmp_path / "cache"))
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="models")
        store = open_store("s3://models/llama/tiny")
        for path in model.iterdir():
            store.upload(path.name, path)
        yield store.uri


def load(base_model: BaseModel, precision: Precision = Precision.FLOAT32) -> LoadedModel:
    return with_adapter(load_base(base_model, settings(precision=precision), CPU, a_page(0, questions=2)))


def save(loaded: LoadedModel, base_model: BaseModel, directory: Path) -> dict[str, Any]:
    """Save an adapter and return its configuration."""
    save_adapter(loaded.module, base_model, directory)
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return config


def logits(module: Any) -> torch.Tensor:
    module.get_base_model().set_attn_implementation("eager")
    module.eval()
    with torch.no_grad():
        return module(torch.arange(4, 20)[None]).logits


def check_no_directory_of_this_machine(directory: Path, *places: Path) -> None:
    for path in directory.iterdir():
        for place in places:
            assert str(place).encode() not in path.read_bytes(), f"{path.name} names {place}"


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        pytest.param(None, COMMIT, id="no revision"),
        pytest.param("main", COMMIT, id="a branch"),
        pytest.param("v1", COMMIT, id="a tag"),
        pytest.param(COMMIT, COMMIT, id="a commit"),
    ],
)
def test_of_the_hub_it_names_owner_and_model_and_the_commit_that_was_trained(
    hub: Path, tmp_path: Path, revision: str | None, expected: str
) -> None:
    base_model = BaseModel(uri="hf://acme/tiny", revision=revision)
    loaded = load(base_model)
    config = save(loaded, base_model, tmp_path / "adapter")

    assert (config["base_model_name_or_path"], config["revision"]) == ("acme/tiny", expected)
    assert "base_model: acme/tiny\n" in (tmp_path / "adapter/README.md").read_text()
    check_no_directory_of_this_machine(tmp_path / "adapter", hub, tmp_path / "models")
    # It can be fetched by that name.
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", cache_dir=hub, dtype=torch.float32)
    assert torch.allclose(logits(plain), logits(loaded.module), atol=1e-5)


def test_of_a_bucket_it_names_the_uri(bucket: str, tmp_path: Path) -> None:
    base_model = BaseModel(uri=bucket)
    config = save(load(base_model), base_model, tmp_path / "adapter")

    assert (config["base_model_name_or_path"], config["revision"]) == ("s3://models/llama/tiny", None)
    assert "base_model: s3://models/llama/tiny\n" in (tmp_path / "adapter/README.md").read_text()
    check_no_directory_of_this_machine(tmp_path / "adapter", tmp_path)


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["a path", "a file URI"])
def test_of_a_directory_it_names_the_path_and_plain_peft_loads_both(model: Path, tmp_path: Path, scheme: str) -> None:
    base_model = BaseModel(uri=f"{scheme}{model}")
    loaded = load(base_model)
    config = save(loaded, base_model, tmp_path / "adapter")

    assert (config["base_model_name_or_path"], config["revision"]) == (str(model), None)
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert torch.allclose(logits(plain), logits(loaded.module), atol=1e-5)


@pytest.mark.parametrize("precision", Precision)
def test_the_reports_lines_load_what_was_trained_in_the_precision_that_it_was_trained_in(
    model: Path, tmp_path: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trial_trainer.model.load.cpu_multiplies_bfloat16", lambda: True)
    base_model = BaseModel(uri=str(model))
    loaded = load(base_model, precision)
    save(loaded, base_model, tmp_path / "adapter")
    study = replace(a_study(), base_model=base_model, trainer=settings(precision=precision))

    names: dict[str, Any] = {}
    exec(loading_lines(a_report(study=study, adapter=str(tmp_path / "adapter"))), names)

    assert names["model"].get_base_model().dtype == loaded.dtype
    expected = logits(loaded.module).float()
    distance = float((logits(names["model"]).float() - expected).norm() / expected.norm())
    assert distance < {Precision.FLOAT32: 1e-5, Precision.BFLOAT16: 5e-2}[precision]
    assert names["tokenizer"].encode("a")


def test_the_reports_lines_of_two_buckets_run_once_their_commands_have(
    bucket: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_model = BaseModel(uri=bucket)
    loaded = load(base_model)
    save(loaded, base_model, tmp_path / "here" / "adapter")
    report = a_report(study=replace(a_study(), base_model=base_model), adapter="s3://runs/a/adapter")
    lines = loading_lines(report)
    assert lines.splitlines()[:2] == [
        "# First: aws s3 cp --recursive s3://models/llama/tiny base-model",
        "# First: aws s3 cp --recursive s3://runs/a/adapter adapter",
    ]

    # As the commands leave them.
    shutil.copytree(model, tmp_path / "here" / "base-model")
    monkeypatch.chdir(tmp_path / "here")
    names: dict[str, Any] = {}
    exec(lines, names)
    assert names["model"].peft_config["default"].base_model_name_or_path == bucket
