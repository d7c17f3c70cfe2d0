"""Random language models of every attention that matters, small enough to be made in a test, and pages for them."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from builders.tiny_tokenizer import build_tokenizer, save_tokenizer
from trial_trainer.contract import BaseModel, Precision, TrainerSettings
from trial_trainer.dataset.store import MARKUP, DatasetIndex, Page, Question
from trial_trainer.model.load import LoadedModel, adapter_parameters, add_adapter, load_base
from trial_trainer.model.rows import Group, build_row, micro_batches
from trial_trainer.training.train import answer_loss

VOCABULARY = len(build_tokenizer())
END_OF_TURN = 2
CPU = torch.device("cpu")
ARM = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.0}

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END_OF_TURN, "initializer_range": 0.3}
_BODY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = {"num_key_value_heads": 2}
_WINDOW = 12

SHARING: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_COMMON, **_BODY, **_GROUPED),
    "qwen2": lambda: Qwen2Config(**_COMMON, **_BODY, **_GROUPED),
    "qwen3": lambda: Qwen3Config(**_COMMON, **_BODY, **_GROUPED, head_dim=16),
    "gpt_neox": lambda: GPTNeoXConfig(**_COMMON, **_BODY),
    "phi": lambda: PhiConfig(**_COMMON, **_BODY),
    "gpt2": lambda: GPT2Config(
        **_COMMON, n_embd=32, n_layer=2, n_head=4, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=END_OF_TURN,
        pad_token_id=0,
        init_std=0.3,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        dropout=0.0,
    ),
}
"""Models whose attention goes through transformers' registry and asks for nothing else."""

SEPARATE: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "gemma2, capped scores": lambda: Gemma2Config(**_COMMON, **_BODY, **_GROUPED, head_dim=8, sliding_window=_WINDOW),
    "mistral, sliding window": lambda: MistralConfig(**_COMMON, **_BODY, **_GROUPED, sliding_window=_WINDOW),
    "mamba, no attention": lambda: MambaConfig(
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=END_OF_TURN,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        use_mambapy=False,
    ),
}
"""Models that must compute every question with its page."""


def save_random_model(directory: Path, name: str) -> str:
    """Write a random model with the tokenizer of bytes, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tokenizer(directory)
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config((SHARING | SEPARATE)[name]()).save_pretrained(directory)
    return str(directory)


def load_random_model(directory: Path, name: str, precision: Precision = Precision.FLOAT32) -> LoadedModel:
    """Write and load a random base model."""
    return load_base(
        BaseModel(uri=save_random_model(directory, name)), settings(precision=precision), CPU, a_page(0, questions=3)
    )


def with_adapter(loaded: LoadedModel, seed: int = 0, rs_lora: bool = False, **arm: float) -> LoadedModel:
    """Add an adapter whose second matrix is not zero, so that it does something and both get gradients."""
    adapted = add_adapter(loaded, ARM | arm, settings(rs_lora=rs_lora), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(adapted.module).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted


def settings(**changes: object) -> TrainerSettings:
    """Return settings in fp32."""
    return replace(TrainerSettings(epochs=2, max_length_tokens=512, precision=Precision.FLOAT32), **changes)


def a_question(number: int, draw: random.Random, *, derived: bool = True) -> Question:
    """Return a question and an answer of a few random bytes."""
    return Question(
        attribute=f"attribute {number}",
        prompt=tuple(draw.choices(range(3, VOCABULARY), k=draw.randint(1, 6))),
        answer=(*draw.choices(range(3, VOCABULARY), k=draw.randint(1, 7)), END_OF_TURN),
        answer_text="",
        gold=("",),
        origin=MARKUP,
        derived=derived,
    )


def a_page(number: int, *, questions: int, tokens: int | None = None) -> Page:
    """Return a page of random bytes, the same for the same number."""
    draw = random.Random(number)
    return Page(
        id=f"p{number}",
        site=f"site{number}",
        url=None,
        prefix=tuple(draw.choices(range(3, VOCABULARY), k=tokens or draw.randint(15, 60))),
        questions=tuple(a_question(n, draw) for n in range(questions)),
    )


def an_index(longest_answer_tokens: int) -> DatasetIndex:
    """Return an index that says how long answers may become and what ends them."""
    return DatasetIndex(
        tokenizer="",
        layout="",
        system="",
        end_of_turn=(END_OF_TURN,),
        max_length_tokens=512,
        page_tokens=400,
        longest_answer_tokens=longest_answer_tokens,
        attributes=(),
        constants={},
        digests={},
    )


def groups_of(pages: Sequence[Page]) -> list[Group]:
    """Return every sample of the pages, grouped by page."""
    return [Group(page=page, questions=page.questions) for page in pages]


def loss_and_gradients(
    loaded: LoadedModel, groups: Sequence[Group], row_tokens: int = 10**6
) -> tuple[float, dict[str, Tensor]]:
    """Return the summed loss of the groups and the adapter's gradients, over rows of at most so many tokens."""
    parameters = adapter_parameters(loaded.module)
    loaded.set_training(True)
    loaded.module.zero_grad()
    total = 0.0
    for batch in micro_batches(loaded.arrange(groups), row_tokens):
        row = build_row(batch, loaded.device)
        loss = answer_loss(loaded.logits(row), row)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def plain_loss(loaded: LoadedModel, groups: Sequence[Group]) -> Tensor:
    """Return the summed loss as transformers computes it: each sample alone, labels -100 where nothing is predicted."""
    losses = []
    for group in groups:
        for question in group.questions:
            prompt = (*group.page.prefix, *question.prompt)
            ids = torch.tensor([[*prompt, *question.answer]])
            labels = torch.tensor([[*[-100] * len(prompt), *question.answer]])
            losses.append(loaded.module(input_ids=ids, labels=labels, use_cache=False).loss)
    return torch.stack(losses).sum()


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return how far gradients are apart, relative to their length."""
    assert found.keys() == expected.keys()
    difference = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    length = sum(float(expected[name].double().square().sum()) for name in expected)
    assert length > 0
    return float((difference / length) ** 0.5)
