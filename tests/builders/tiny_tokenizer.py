"""Tokenizers of one token a byte, made in a moment: for tests that are not about a real model's vocabulary."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Any roles in any order, as ChatML has it."""

ALTERNATING = (
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""User and assistant in turn and no system, as Gemma has it."""

ALTERNATING_WITH_SYSTEM = (
    "{% for m in messages %}"
    "{% if m.role != 'system' and (m.role == 'user') != (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A system turn, then user and assistant in turn, as Llama 2 has it."""

WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}" + CHAT
)

DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Takes a system turn and says nothing of it."""

WITHOUT_END_OF_TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PROMPT_IS_NO_PREFIX = (
    "{% if add_generation_prompt %}<|im_start|>now answer\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)

EMPTY_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Puts a thought that is empty before the last answer and none in the generation prompt, as Qwen 3 has it."""

OPENED_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Begins a thought in the generation prompt and takes all thoughts out of answers, as DeepSeek R1 has it."""

REFUSES_ALL = "{{ raise_exception('closed today') }}"


LINE_BREAK_AND_SPACE = ("Ċ", "Ġ")
"""Two bytes that every large vocabulary has a token for, which spans the end of a prompt and an indented answer."""


def build_tokenizer(
    chat_template: str | None = CHAT,
    *,
    end_of_sequence: str | None = "<|im_end|>",
    merges: Sequence[tuple[str, str]] = (),
):
    """Build a tokenizer whose tokens are the 256 bytes, three special ones, and merges of two bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = special + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    backend = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not merges)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|im_start|>", eos_token=end_of_sequence)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def save_tokenizer(directory: Path, chat_template: str | None = CHAT, **settings: str | None) -> Path:
    """Write a tokenizer as the directory of a model that has no weights."""
    build_tokenizer(chat_template, **settings).save_pretrained(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory
