"""Answers are those of greedy decoding by transformers, token for token, whatever was drafted."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.tiny_models import (
    CPU,
    END_OF_TURN,
    SEPARATE,
    SHARING,
    a_page,
    an_index,
    load_random_model,
    save_random_model,
    settings,
    with_adapter,
)
from trial_trainer.base_model import load_tokenizer
from trial_trainer.contract import BaseModel, Precision, TrainerSettings
from trial_trainer.errors import StudyError
from trial_trainer.evaluation.decode import _argmax, _SteppingAttention, answer_pages
from trial_trainer.model.load import LoadedModel, load_base

PAGES = [a_page(number, questions=1 + number % 4) for number in range(5)]
LIMIT = 6
REPOSITORY = Path(__file__).resolve().parents[3]
REAL_MODEL = REPOSITORY / ".cache" / "smollm2-135m-instruct"


def generated(loaded, pages):
    """Return the answers of `model.generate`, each question alone."""
    found = []
    for page in pages:
        for question in page.questions:
            prompt = torch.tensor([[*page.prefix, *question.prompt]])
            ids = loaded.module.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=LIMIT,
                eos_token_id=END_OF_TURN,
                pad_token_id=0,
            )[0, prompt.shape[1] :].tolist()
            found.append(tuple(ids[: ids.index(END_OF_TURN)] if END_OF_TURN in ids else ids))
    return found


def answers(loaded, pages):
    return [answer.tokens for answer in answer_pages(loaded, pages, an_index(LIMIT))]


def drafted(pages, drafts):
    """Return the pages with these drafts, each followed by the end of turn."""
    left = iter(drafts)
    return [
        replace(page, questions=tuple(replace(q, answer=(*next(left), END_OF_TURN)) for q in page.questions))
        for page in pages
    ]


@pytest.mark.parametrize("name", [*SHARING, *SEPARATE])
def test_answers_equal_those_of_transformers_and_no_draft_changes_them(name, tmp_path):
    loaded = with_adapter(load_random_model(tmp_path, name))
    loaded.module.eval()

    found = answers(loaded, PAGES)
    right = drafted(PAGES, found)
    swapped = drafted(PAGES, found[::-1])
    half_right = drafted(PAGES, [(*tokens[:3], 9, 9) for tokens in found])

    assert answers(loaded, right) == answers(loaded, swapped) == answers(loaded, half_right) == found
    if loaded.shares_prefix:
        loaded.module.get_base_model().set_attn_implementation("eager")
    assert found == generated(loaded, PAGES)


@pytest.mark.parametrize(
    "published",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 4},
        {"bad_words_ids": [[9], [10, 11]]},
        {"suppress_tokens": [7, 8], "begin_suppress_tokens": [END_OF_TURN]},
        {"forced_eos_token_id": END_OF_TURN},
        {"sequence_bias": [[[20], 3.0]]},
        {"do_sample": True, "temperature": 0.2, "top_p": 0.5},
        {"num_beams": 3},
    ],
    ids=lambda published: ", ".join(published),
)
def test_answers_are_those_of_generate_by_the_settings_that_a_model_is_published_with(published, tmp_path, caplog):
    path = save_random_model(tmp_path, "qwen2")
    settings_file = Path(path, "generation_config.json")
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | published))
    loaded = with_adapter(load_base(BaseModel(uri=path), settings(), CPU, PAGES[0]))
    assert loaded.shares_prefix == ("num_beams" not in published)

    found = answers(loaded, PAGES)
    right = drafted(PAGES, found)

    assert answers(loaded, right) == found
    if loaded.shares_prefix:
        loaded.module.get_base_model().set_attn_implementation("eager")
    assert found == generated(loaded, PAGES)


@pytest.mark.slow
def test_in_bf16_neither_drafts_nor_pages_beside_it_change_an_answer_of_a_real_model(monkeypatch):
    # With AMX products round by how many rows they have (docs/models.md); oneDNN is told once in a process.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(check_answers_of_a_real_model_in_bf16)


def check_answers_of_a_real_model_in_bf16() -> None:
    limit = 40
    base_model = BaseModel(uri=str(REAL_MODEL))
    tokenizer = load_tokenizer(base_model)
    text = tokenizer.encode((REPOSITORY / "docs" / "study.md").read_text())
    asked = ("What is this about?", "Which numbers are named?", "Who may write it?", "What does it cost?")
    questions = [
        replace(question, prompt=tuple(tokenizer.encode(f"\n\nQuestion: {words}\nAnswer:")))
        for question, words in zip(a_page(0, questions=len(asked)).questions, asked, strict=True)
    ]
    pages = [
        replace(a_page(n, questions=0), prefix=tuple(text[170 * n :][: 100 + 57 * n]), questions=questions[: 1 + n % 4])
        for n in range(6)
    ]
    settings = TrainerSettings(epochs=1, max_length_tokens=512, precision=Precision.BFLOAT16)
    loaded = load_base(base_model, settings, torch.device("cpu"), pages[0])
    assert loaded.shares_prefix

    def found_for(pages):
        return [answer.tokens for answer in answer_pages(loaded, pages, an_index(limit))]

    found = found_for(pages)

    assert len(set(found)) > len(found) // 2
    assert found_for(drafted(pages, found[::-1])) == found
    assert [tokens for page in pages for tokens in found_for([page])] == found


def test_answers_come_in_the_order_of_the_dataset_and_within_the_limit(tmp_path):
    loaded = load_random_model(tmp_path, "llama")

    found = answer_pages(loaded, PAGES, an_index(2))

    expected = [(number, n) for number, page in enumerate(PAGES) for n in range(len(page.questions))]
    assert [(answer.page, answer.question) for answer in found] == expected
    assert all(len(answer.tokens) <= 2 and END_OF_TURN not in answer.tokens for answer in found)
    assert all(answer.finished or len(answer.tokens) == 2 for answer in found)


def test_among_equals_the_lowest_id_is_chosen_and_called_close():
    best, close = _argmax(torch.tensor([[0.0, 2.0, 2.0, 1.0], [3.0, 0.0, 0.0, 0.0]]), 1e-3)

    assert best.tolist() == [1, 0]
    assert close.tolist() == [True, False]


# --- Memory --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("pages_at_once", [1, 2])
def test_open_pages_that_do_not_fit_are_halved_and_no_answer_changes(tmp_path, monkeypatch, caplog, pages_at_once):
    loaded = with_adapter(load_random_model(tmp_path, "llama"))
    expected = answer_pages(loaded, PAGES, an_index(LIMIT))
    init = _SteppingAttention.__init__

    def limited(self, pages, *arguments):
        if len(pages) > pages_at_once:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        init(self, pages, *arguments)

    monkeypatch.setattr(_SteppingAttention, "__init__", limited)

    counts = []
    assert answer_pages(loaded, PAGES, an_index(LIMIT), counts.append) == expected
    assert counts == sorted(counts) and counts[-1] == len(expected)
    assert 1 <= len(caplog.messages) <= 6
    assert caplog.messages[-1].endswith(f"from now on {pages_at_once} open pages at once")


@pytest.mark.parametrize("name", ["llama", "mistral, sliding window"])
def test_a_page_that_does_not_fit_alone_is_the_studys_fault(tmp_path, monkeypatch, name):
    loaded = with_adapter(load_random_model(tmp_path, name))

    def fail(self, row):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(LoadedModel, "forward", fail)

    with pytest.raises(StudyError, match=r"the evaluation of one (page|question).* does not fit into memory"):
        answer_pages(loaded, PAGES, an_index(LIMIT))


def test_other_errors_of_an_evaluation_are_not_taken_for_memory(tmp_path, monkeypatch):
    loaded = load_random_model(tmp_path, "llama")
    monkeypatch.setattr(LoadedModel, "forward", lambda self, row: torch.zeros(2, 3) @ torch.zeros(2, 3))

    with pytest.raises(RuntimeError, match="mat1"):
        answer_pages(loaded, PAGES, an_index(LIMIT))
