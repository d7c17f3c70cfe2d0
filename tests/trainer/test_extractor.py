"""Whoever asks an adapter by the public entry is given the answers that were measured, from the same token ids."""

import gzip
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from builders.tiny_study import ROOT, build_study, write_pages
from trial_trainer.artifacts import open_store
from trial_trainer.base_model import load_tokenizer
from trial_trainer.contract import (
    ADAPTER,
    PREDICTIONS,
    BaseModel,
    LabelSource,
    Precision,
    PrepareConfig,
    Split,
    TrialConfig,
)
from trial_trainer.dataset.prepare import prepare
from trial_trainer.dataset.store import VALIDATION, read_index, read_split
from trial_trainer.errors import StudyError, TrainerError
from trial_trainer.extractor import Extractor, Record, _read_record
from trial_trainer.pages import answers
from trial_trainer.stop import StopRequest
from trial_trainer.training.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrialConfig:
    """A trial that has run, in the folders of a study."""
    directory = tmp_path_factory.mktemp("study")
    config = build_study(directory)
    config = replace(config, output=str(directory / "trials/t000/rungs/1"), rung=1)
    train(config, StopRequest())
    return config


@pytest.fixture(scope="module")
def extractor(trained: TrialConfig) -> Extractor:
    return Extractor.load(f"{trained.output}/{ADAPTER}", precision=Precision.FLOAT32)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    path = write_pages(tmp_path_factory.mktemp("pages") / "pages.jsonl")
    return {record["id"]: record for record in map(json.loads, path.read_text().splitlines())}


def measured_answers(trained: TrialConfig) -> dict[tuple[str, str], str]:
    text = open_store(trained.output).read(PREDICTIONS)
    assert text is not None
    rows = map(json.loads, text.decode().splitlines())
    return {(row["page"], row["attribute"]): row["answer"] for row in rows}


def test_token_ids_are_those_of_training(trained: TrialConfig, extractor: Extractor, records) -> None:
    compared = 0
    for page in read_split(open_store(trained.dataset), VALIDATION):
        record = Record(html=records[page.id]["html"], url=records[page.id]["url"])
        for question in page.questions:
            assert extractor.build_prompt(record, question.attribute) == (*page.prefix, *question.prompt)
            compared += 1
    assert compared >= 8


def test_answers_are_those_that_were_measured_one_by_one_and_in_a_batch(
    trained: TrialConfig, extractor: Extractor, records
) -> None:
    measured = measured_answers(trained)
    pages = sorted({page for page, _ in measured})
    batch = extractor.ask_all(
        [Record(html=records[page]["html"], url=records[page]["url"]) for page in pages], attributes=("name", "price")
    )
    assert batch[0] == extractor.ask(html=records[pages[0]]["html"], url=records[pages[0]]["url"])
    for page, found in zip(pages, batch, strict=True):
        for attribute, answer in found.items():
            known = measured[page, attribute]
            assert answer == (None if not known or answers.is_absent(known) else known)
    assert any(answer for found in batch for answer in found.values())


def test_sampling_settings_of_the_base_model_do_not_leak_in(
    trained: TrialConfig, extractor: Extractor, records
) -> None:
    settings = Path(trained.base_model.uri) / "generation_config.json"
    before = settings.read_text()
    settings.write_text(
        json.dumps({"do_sample": True, "temperature": 50.0, "top_k": 5, "max_new_tokens": 1, "eos_token_id": 2})
    )
    try:
        other = Extractor.load(f"{trained.output}/{ADAPTER}", precision=Precision.FLOAT32)
    finally:
        settings.write_text(before)
    page = records["p3"]
    assert other.ask(html=page["html"]) == extractor.ask(html=page["html"])


def test_an_address_that_a_page_gives_for_itself_is_its_address(extractor: Extractor) -> None:
    url = "https://shop3.example/de/kettle"
    head = f'<html><head><link rel="canonical" href="{url}"></head>'
    page = f"{head}<body><h1>Kettle</h1><p>Boils water, made of steel, for 12.50 and no more.</p></body></html>"
    alone = extractor.build_prompt(Record(html=page.encode()), "price")
    assert alone == extractor.build_prompt(Record(html=page.encode(), url=url), "price")
    assert alone != extractor.build_prompt(Record(html=page.encode(), url="https://other.example/"), "price")


def test_a_text_beside_its_page_is_asked_as_that_page(extractor: Extractor) -> None:
    text = "Kettle\nBoils water for 12.50"
    of_page = extractor.build_prompt(Record(html="<p>ignored</p>", text=text), "price")
    assert of_page != extractor.build_prompt(Record(text=text), "price")


@pytest.mark.parametrize(
    ("data", "is_page"),
    [
        (b"\xef\xbb\xbf<!doctype html><p>a", True),
        (b"  <html>", True),
        (b"<3 see you at 8", False),
        (b"a table for two", False),
    ],
)
def test_stdin_is_a_page_where_it_begins_like_one(monkeypatch: pytest.MonkeyPatch, data: bytes, is_page: bool) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert (_read_record("-", None).html is not None) == is_page


def test_a_text_is_asked_as_a_text(extractor: Extractor) -> None:
    assert set(extractor.ask(text="A kettle for 12.50", attributes=["price"])) == {"price"}
    page = "<html><body><h1>Kettle</h1><p>Boils water, made of steel, for 12.50 and no more.</p></body></html>"
    text = "Kettle\nBoils water, made of steel, for 12.50 and no more."
    assert extractor.build_prompt(Record(text=text), "price") != extractor.build_prompt(Record(html=page), "price")


def test_an_answer_tells_whether_the_page_or_text_was_cut(extractor: Extractor) -> None:
    lines = [f"Kettle {number} boils water for {number}.50." for number in range(200)]
    page = "<html><body><h1>Kettle</h1>{}</body></html>"
    records = [
        Record(text="\n".join(lines)),
        Record(text=lines[0]),
        Record(html=page.format("".join(f"<p>{line}</p>" for line in lines))),
        Record(html=page.format("<p>Boils water, made of steel, for 12.50 and no more.</p>")),
    ]
    found = extractor.ask_all(records, attributes=["price"])
    assert [answers.is_cut for answers in found] == [True, False, True, False]
    assert extractor.ask(text="\n".join(lines), attributes=["price"]).is_cut


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        pytest.param({}, "a record must have html or text", id="nothing"),
        pytest.param({"html": ""}, "the page cannot be read: Empty", id="an empty page"),
        pytest.param({"text": " \n"}, "the text cannot be read: Empty", id="an empty text"),
        pytest.param(
            {"text": "a", "attributes": ["colour"]},
            "attributes must be some of name, price, got 'colour'",
            id="an attribute that was not trained",
        ),
    ],
)
def test_what_cannot_be_asked_is_said(extractor: Extractor, asked, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        extractor.ask(**asked)


def test_an_adapter_elsewhere_needs_its_dataset(trained: TrialConfig, tmp_path: Path) -> None:
    alone = tmp_path / "adapter"
    alone.symlink_to(f"{trained.output}/{ADAPTER}")
    with pytest.raises(
        StudyError, match="the dataset must be given for an adapter that does not lie in a study's folder"
    ):
        Extractor.load(str(alone))
    assert Extractor.load(str(alone), dataset=trained.dataset, precision=Precision.FLOAT32).attributes == (
        "name",
        "price",
    )


@pytest.mark.slow
def test_token_ids_of_real_pages_and_texts_are_those_of_training_with_a_published_tokenizer(tmp_path: Path) -> None:
    samples, model = ROOT / "manifests/samples/data", BaseModel(uri=str(ROOT / ".cache/smollm2-135m-instruct"))
    source = samples / "wcxb-product-pages/pages.jsonl.gz"
    prepare(
        PrepareConfig(
            study="s",
            source=str(source),
            attributes=("name",),
            labels_from=LabelSource.MARKUP,
            split=Split(validation_percent=40, test_percent=0),
            seed=0,
            base_model=model,
            max_length_tokens=512,
            dataset=str(tmp_path / "dataset"),
            max_pages=24,
        )
    )
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        records = {record["id"]: record for record in map(json.loads, lines)}
    dataset = open_store(str(tmp_path / "dataset"))
    # Nothing is computed: token ids need no model.
    extractor = Extractor(None, load_tokenizer(model), read_index(dataset))  # type: ignore[arg-type]
    compared = 0
    for page in read_split(dataset, VALIDATION):
        record = Record(html=records[page.id]["html"], url=records[page.id]["url"])
        for question in page.questions:
            assert extractor.build_prompt(record, question.attribute) == (*page.prefix, *question.prompt)
            compared += 1
    assert compared >= 8


def test_what_is_not_there_is_named(trained: TrialConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="config"):
        Extractor.load(str(tmp_path / "no"), dataset=trained.dataset)
    with pytest.raises(TrainerError, match="nowhere"):
        Extractor.load(f"{trained.output}/{ADAPTER}", base_model=BaseModel(uri=str(tmp_path / "nowhere")))


def ask_by_command(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "trainer")}
    command = [sys.executable, "-m", "trial_trainer", "ask", *map(str, arguments)]
    return subprocess.run(command, input=stdin, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_an_adapter_whose_configuration_names_no_base_model_is_refused(
    trained: TrialConfig, tmp_path: Path, content: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(StudyError, match=r"adapter_config\.json must name its base model"):
        Extractor.load(str(tmp_path), dataset=trained.dataset)


@pytest.mark.slow
def test_the_command_answers_about_files_and_stdin(
    trained: TrialConfig, extractor: Extractor, records, tmp_path: Path
) -> None:
    page = tmp_path / "kettle.html"
    page.write_text(records["p3"]["html"])
    ended = ask_by_command(
        *("--precision", "Float32", f"{trained.output}/{ADAPTER}", page, "-"), stdin=b"A kettle for 12.50"
    )
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines == [
        {"file": str(page), "answers": extractor.ask(html=records["p3"]["html"]), "is_cut": False},
        {"file": "-", "answers": extractor.ask(text="A kettle for 12.50"), "is_cut": False},
    ]


@pytest.mark.slow
def test_the_command_names_the_file_that_cannot_be_read(trained: TrialConfig, tmp_path: Path) -> None:
    missing = tmp_path / "missing.html"
    ended = ask_by_command(f"{trained.output}/{ADAPTER}", missing)
    assert ended.returncode != 0
    assert ended.stderr.decode().splitlines()[-1] == (
        f"the file must be one that can be read, got {missing}: No such file or directory"
    )
