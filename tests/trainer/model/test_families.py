"""What is promised of a base model, family by family: trained as it answers, continued to the bit, loaded by anybody.

Random models of two layers stand for their families: what differs between families is in the layers, not in weights.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from builders import tiny_study
from builders.model_families import FAMILIES, POSITIONS, save_random_model
from builders.tiny_study import digest
from trial_trainer.artifacts import open_store
from trial_trainer.contract import BaseModel, LabelSource, PrepareConfig, Split, TrainerSettings, TrialConfig
from trial_trainer.dataset.store import TRAIN, VALIDATION, DatasetIndex, read_index, read_split
from trial_trainer.evaluation.decode import answer_pages
from trial_trainer.model.load import load_adapter, load_base
from trial_trainer.model.rows import Group, build_row
from trial_trainer.stop import StopRequest
from trial_trainer.training.train import train

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
ARM = {"learning_rate": 1e-2, "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "batch_size": 4}
STEPS, EARLY = 5, 2
MOST_TOKENS = 6
LENGTH = POSITIONS - 32

each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    return tiny_study.write_pages(tmp_path_factory.mktemp("pages") / "pages.jsonl", count=24)


def a_trial(directory: Path, model: Path, pages: Path) -> TrialConfig:
    """Prepare a dataset with the model's tokenizer; return a trial that trains on it to the end."""
    from trial_trainer.dataset.prepare import prepare

    base_model = BaseModel(uri=str(model))
    prepare(
        PrepareConfig(
            study="s",
            source=str(pages),
            attributes=("name", "price"),
            labels_from=LabelSource.MARKUP,
            split=Split(validation_percent=40, test_percent=0),
            seed=0,
            base_model=base_model,
            max_length_tokens=LENGTH,
            dataset=str(directory / "dataset"),
        )
    )
    return TrialConfig(
        study="s",
        trial="t000",
        rung=0,
        seed=0,
        arm=ARM,
        base_model=base_model,
        dataset=str(directory / "dataset"),
        output=str(directory / "whole"),
        total_steps=STEPS,
        stop_step=STEPS,
        trainer=TrainerSettings(epochs=4, max_length_tokens=LENGTH, precision="Float32"),
    )


def outcome(config: TrialConfig) -> dict:
    output = Path(config.output)
    checkpoint = output / json.loads((output / "measurement.json").read_bytes())["checkpoint"]
    return {
        "adapter": digest(output / "adapter/adapter_model.safetensors"),
        "moments": digest(checkpoint / "optimizer.safetensors"),
        "predictions": digest(output / "predictions.jsonl"),
    }


def ask(model, prompt, stops, limit) -> tuple[int, ...]:
    """Answer as whoever loads the adapter does."""
    ids = torch.tensor([prompt])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=list(stops),
        max_new_tokens=limit,
        do_sample=False,
    )[0, ids.shape[1] :].tolist()
    return tuple(found[: next((n for n, token in enumerate(found) if token in stops), len(found))])


@each_family
def test_a_family_is_trained_as_it_answers(name, pages, tmp_path, monkeypatch) -> None:
    family = FAMILIES[name]
    # Random models seldom end their answers.
    monkeypatch.setattr(DatasetIndex, "limit_of", lambda *_: MOST_TOKENS)
    whole = a_trial(tmp_path, save_random_model(tmp_path / "model", family), pages)

    # Two rungs are one whole run.
    early = replace(whole, output=str(tmp_path / "early"), stop_step=EARLY)
    promoted = replace(whole, output=str(tmp_path / "promoted"), rung=1, resume_from=early.output)
    for config in (whole, early, promoted):
        train(config, StopRequest())
    assert outcome(promoted) == outcome(whole)
    assert outcome(early) != outcome(whole)

    store = open_store(whole.dataset)
    asked, index = read_split(store, VALIDATION), read_index(store)
    page = max(read_split(store, TRAIN), key=lambda page: len(page.questions))
    base = load_base(whole.base_model, whole.trainer, CPU, page)
    assert base.shares_prefix == family.shares_prefix
    adapted = load_adapter(base, f"{whole.output}/adapter", tmp_path)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(whole.base_model.uri, dtype=torch.float32), f"{whole.output}/adapter"
    )
    plain.eval()

    # Plain PEFT gives the logits that were trained, and no answer sees what follows it or stands beside it.
    row = build_row(adapted.arrange([Group(page=page, questions=page.questions)]), CPU)
    logits = adapted.logits(row)
    for number, question in enumerate(page.questions):
        ids = torch.tensor([[*page.prefix, *question.prompt, *question.answer]])
        expected = plain(input_ids=ids, use_cache=False).logits[0, -len(question.answer) - 1 : -1]
        assert torch.allclose(logits[row.sample_of_label == number], expected, rtol=1e-4, atol=1e-4)
    first, second = page.questions
    later = (first.answer[-2] ^ 1, first.answer[-1])
    changed = replace(page, questions=(replace(first, answer=(*first.answer[:-2], *later)), second))
    again = build_row(adapted.arrange([Group(page=changed, questions=changed.questions)]), CPU)
    moved = (adapted.logits(again) - logits).abs()
    before = torch.arange(len(logits)) < len(first.answer) - 1
    assert float(moved[before].max()) < 1e-5
    assert float(moved[row.sample_of_label == 1].max()) < 1e-5

    # Answers that were measured are those of `generate`.
    answered = answer_pages(adapted, asked, index)
    found = {(a.page, a.question): a.tokens for a in answered}
    expected = {
        (p, q): ask(plain, (*page.prefix, *question.prompt), index.end_of_turn, MOST_TOKENS)
        for p, page in enumerate(asked)
        for q, question in enumerate(page.questions)
    }
    assert found == expected


def test_the_page_of_models_says_of_each_family_whether_it_shares_a_page() -> None:
    lines = (REPOSITORY / "docs/models.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 5][2:]
    table = {name: shares for name, _, shares, _ in rows}

    assert table == {name: "yes" if family.shares_prefix else "no" for name, family in FAMILIES.items()}
    assert [kind for _, kind, *_ in rows] == [f"`{FAMILIES[name].kind}`" for name in table]
