"""A base model's URI becomes a directory, or a sentence that says why not; S3 is moto."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from transformers import BloomConfig, Gemma3Config, GPT2Config, LlamaConfig, MambaConfig, MptConfig, Qwen2Config

from builders.tiny_tokenizer import CHAT, build_tokenizer, save_tokenizer
from trial_trainer.artifacts import open_store
from trial_trainer.base_model import digest_tokenizer, load_tokenizer, local_path, longest_sample
from trial_trainer.contract import BaseModel
from trial_trainer.errors import BaseModelError


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="models")
        yield "s3://models"


def upload(directory: Path, uri: str) -> None:
    store = open_store(uri)
    for path in directory.rglob("*"):
        if path.is_file():
            store.upload(path.relative_to(directory).as_posix(), path)


def test_a_directory_is_itself_by_path_and_by_file_uri(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert local_path(BaseModel(uri=str(tmp_path))) == str(tmp_path)
    assert local_path(BaseModel(uri=f"file://{tmp_path}")) == str(tmp_path)


def test_a_model_in_a_bucket_is_fetched_once(bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRIAL_MODEL_CACHE", str(tmp_path / "cache"))
    directory = save_tokenizer(tmp_path / "model")
    (directory / "deep").mkdir()
    (directory / "deep" / "part.bin").write_bytes(b"\x00\x01")
    upload(directory, f"{bucket}/tiny")
    model = BaseModel(uri=f"{bucket}/tiny")
    path = Path(local_path(model))
    assert (path / "deep" / "part.bin").read_bytes() == b"\x00\x01"
    assert load_tokenizer(model).encode("a") == build_tokenizer().encode("a")
    open_store(f"{bucket}/tiny").delete("")
    assert local_path(model) == str(path)


def test_a_fetch_that_was_cut_off_is_done_again(bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRIAL_MODEL_CACHE", str(tmp_path / "cache"))
    upload(save_tokenizer(tmp_path / "model"), f"{bucket}/tiny")
    model = BaseModel(uri=f"{bucket}/tiny")
    real_download = type(open_store(bucket)).download

    def die_at_the_tokenizer(self, key, target):
        if key == "tokenizer.json":
            raise KeyboardInterrupt
        return real_download(self, key, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(open_store(bucket)), "download", die_at_the_tokenizer)
        with pytest.raises(KeyboardInterrupt):
            local_path(model)
    assert list((tmp_path / "cache").iterdir()) == []
    assert (Path(local_path(model)) / "tokenizer.json").is_file()


def test_another_revision_of_the_same_bucket_is_another_directory(bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRIAL_MODEL_CACHE", str(tmp_path / "cache"))
    upload(save_tokenizer(tmp_path / "model"), f"{bucket}/tiny")
    model = BaseModel(uri=f"{bucket}/tiny")
    assert local_path(model) != local_path(replace(model, revision="2"))


def test_a_prefix_without_a_model_is_refused(bucket, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRIAL_MODEL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BaseModelError) as caught:
        local_path(BaseModel(uri=f"{bucket}/nothing"))
    assert str(caught.value) == "base_model.uri must hold a config.json, got 's3://models/nothing'"


def test_a_bucket_that_is_not_there_is_named(bucket) -> None:
    with pytest.raises(BaseModelError, match=r"base model s3://nowhere/a cannot be fetched: .*NoSuchBucket"):
        local_path(BaseModel(uri="s3://nowhere/a"))


def test_a_hub_model_that_is_not_cached_is_named_with_its_revision(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseModelError, match=r"base model hf://nobody/nothing at revision 'v2' cannot be fetched: "):
        local_path(BaseModel(uri="hf://nobody/nothing", revision="v2"))


def test_a_hub_model_needs_an_owner_and_a_name() -> None:
    with pytest.raises(BaseModelError, match=r"base model hf://a/b/c at revision 'main' cannot be fetched: "):
        local_path(BaseModel(uri="hf://a/b/c"))


def test_the_digest_knows_the_vocabulary_and_the_template(tmp_path) -> None:
    saved = load_tokenizer(BaseModel(uri=str(save_tokenizer(tmp_path / "model"))))
    shutil.rmtree(tmp_path / "model")
    other = load_tokenizer(BaseModel(uri=str(save_tokenizer(tmp_path / "other", CHAT + " "))))
    again = load_tokenizer(BaseModel(uri=str(save_tokenizer(tmp_path / "again"))))
    assert digest_tokenizer(saved) == digest_tokenizer(again) != digest_tokenizer(other)


ROPE = {"rope_theta": 10000.0}
YARN = ROPE | {"rope_type": "yarn", "original_max_position_embeddings": 32768}
STRETCHED = ROPE | {"rope_type": "linear", "factor": 4.0}
LLAMA_3 = ROPE | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (GPT2Config(n_positions=1024), 1024),
        (MptConfig(max_seq_len=2048), 2048),
        (BloomConfig(), None),
        (MambaConfig(), None),
        (
            LlamaConfig(max_position_embeddings=4096, rope_parameters=STRETCHED),
            16384,
        ),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters=YARN | {"factor": 4.0}), 131072),
        (Qwen2Config(max_position_embeddings=131072, rope_parameters=YARN | {"factor": 4.0}), 131072),
        (LlamaConfig(max_position_embeddings=131072, rope_parameters=LLAMA_3), 131072),
        (Gemma3Config(text_config={"max_position_embeddings": 8192}), 8192),
    ],
    ids=[
        *("rotary", "learnt", "a limit of ALiBi's", "ALiBi without a limit", "recurrent", "stretched", "yarn"),
        *("yarn, told stretched", "Llama 3", "text and images"),
    ],
)
def test_the_longest_sample_is_what_the_configuration_says(config, limit) -> None:
    assert longest_sample(config) == limit
