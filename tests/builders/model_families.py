"""Random models of the families that transformers knows, as small as their layers allow, with no download."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedModel

from builders.tiny_tokenizer import (
    ALTERNATING,
    ALTERNATING_WITH_SYSTEM,
    CHAT,
    EMPTY_THOUGHT,
    OPENED_THOUGHT,
    build_tokenizer,
)

POSITIONS = 512

_COMMON = {"vocab_size": len(build_tokenizer()), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_BODY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}
_GROUPED = {"num_key_value_heads": 2}
_HEADS_OF_8 = {"head_dim": 8}
_OLD_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
_LAYERS_AND_HEADS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_STATES = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of model."""

    kind: str
    """Its ``model_type``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    shares_prefix: bool = True
    """Whether the questions of a page can share its tokens."""
    template: str | None = CHAT
    generation: Mapping[str, Any] = field(default_factory=dict)
    """Settings of generation that it is published with."""


FAMILIES: Mapping[str, Family] = {
    "Llama": Family(kind="llama", config=_COMMON | _BODY | _GROUPED, template=ALTERNATING_WITH_SYSTEM),
    "Llama, tied head, no pad token": Family(
        kind="llama", config=_COMMON | _BODY | _GROUPED | {"tie_word_embeddings": True, "pad_token_id": None}
    ),
    "Mistral, window not longer than two samples": Family(
        kind="mistral", config=_COMMON | _BODY | _GROUPED | {"sliding_window": 64}, shares_prefix=False
    ),
    "Mistral, longer window": Family(kind="mistral", config=_COMMON | _BODY | _GROUPED | {"sliding_window": 4096}),
    "Mixtral": Family(kind="mixtral", config=_COMMON | _BODY | _GROUPED | _LOCAL_EXPERTS),
    "Qwen 2, repetition penalty": Family(
        kind="qwen2",
        config=_COMMON | _BODY | _GROUPED,
        generation={"repetition_penalty": 1.1, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    ),
    "Qwen 2 MoE": Family(
        kind="qwen2_moe", config=_COMMON | _BODY | _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 24}
    ),
    "Qwen 3, empty thought": Family(
        kind="qwen3", config=_COMMON | _BODY | _GROUPED | _HEADS_OF_8, template=EMPTY_THOUGHT
    ),
    "Qwen 3 MoE": Family(kind="qwen3_moe", config=_COMMON | _BODY | _GROUPED | _EXPERTS | _HEADS_OF_8),
    "Qwen 3 Next": Family(
        kind="qwen3_next",
        config=_COMMON
        | _BODY
        | _GROUPED
        | _EXPERTS
        | _HEADS_OF_8
        | {
            "shared_expert_intermediate_size": 24,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        shares_prefix=False,
    ),
    "DeepSeek V3, opened thought": Family(
        kind="deepseek_v3",
        config=_COMMON
        | _BODY
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        template=OPENED_THOUGHT,
    ),
    "Gemma": Family(kind="gemma", config=_COMMON | _BODY | {"num_key_value_heads": 1, "head_dim": 8}),
    "Gemma 2": Family(
        kind="gemma2",
        config=_COMMON | _BODY | _GROUPED | _HEADS_OF_8 | {"sliding_window": 64},
        shares_prefix=False,
        template=ALTERNATING,
    ),
    "Gemma 3, text": Family(
        kind="gemma3_text",
        config=_COMMON | _BODY | _GROUPED | _HEADS_OF_8 | {"sliding_window": 64},
        shares_prefix=False,
        template=ALTERNATING,
    ),
    "Gemma 3, text and images": Family(kind="gemma3", shares_prefix=False, template=ALTERNATING),
    "Phi": Family(kind="phi", config=_COMMON | _BODY),
    "Phi 3": Family(kind="phi3", config=_COMMON | _BODY | _GROUPED),
    "Phi 3.5 MoE": Family(kind="phimoe", config=_COMMON | _BODY | _GROUPED | _LOCAL_EXPERTS),
    "GPT-2": Family(kind="gpt2", config=_COMMON | _OLD_NAMES, template=None),
    "GPT-Neo": Family(
        kind="gpt_neo",
        config=_COMMON
        | {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": POSITIONS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
        shares_prefix=False,
    ),
    "GPT-NeoX": Family(kind="gpt_neox", config=_COMMON | _BODY, template=None),
    "GPT-J": Family(kind="gptj", config=_COMMON | _OLD_NAMES | {"rotary_dim": 4}, shares_prefix=False),
    "GPT BigCode": Family(kind="gpt_bigcode", config=_COMMON | _OLD_NAMES),
    "OPT": Family(
        kind="opt",
        config=_COMMON
        | _LAYERS_AND_HEADS
        | {"word_embed_proj_dim": 32, "ffn_dim": 48, "max_position_embeddings": POSITIONS, "layerdrop": 0.1},
    ),
    "BLOOM": Family(kind="bloom", config=_COMMON | {"hidden_size": 32, "n_layer": 2, "n_head": 4}, shares_prefix=False),
    "Falcon, one key head": Family(kind="falcon", config=_COMMON | _LAYERS_AND_HEADS, shares_prefix=False),
    "Falcon, new decoder": Family(
        kind="falcon",
        config=_COMMON | _LAYERS_AND_HEADS | {"num_kv_heads": 2, "new_decoder_architecture": True},
        shares_prefix=False,
    ),
    "Falcon, ALiBi": Family(
        kind="falcon",
        config=_COMMON | _LAYERS_AND_HEADS | {"alibi": True, "multi_query": False},
        shares_prefix=False,
    ),
    "MPT": Family(
        kind="mpt",
        config={
            "vocab_size": _COMMON["vocab_size"],
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": POSITIONS,
            "expansion_ratio": 2,
        },
        shares_prefix=False,
    ),
    "StableLM": Family(kind="stablelm", config=_COMMON | _BODY | _GROUPED),
    "Cohere": Family(kind="cohere", config=_COMMON | _BODY | _GROUPED),
    "Cohere 2": Family(kind="cohere2", config=_COMMON | _BODY | _GROUPED | {"sliding_window": 64}, shares_prefix=False),
    "OLMo 2": Family(kind="olmo2", config=_COMMON | _BODY | _GROUPED),
    "StarCoder 2": Family(kind="starcoder2", config=_COMMON | _BODY | _GROUPED),
    "Granite": Family(kind="granite", config=_COMMON | _BODY | _GROUPED),
    "Granite 4 hybrid": Family(
        kind="granitemoehybrid",
        config=_COMMON
        | _BODY
        | _GROUPED
        | _LOCAL_EXPERTS
        | _STATES
        | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 24},
        shares_prefix=False,
    ),
    "SmolLM 3": Family(kind="smollm3", config=_COMMON | _BODY | _GROUPED),
    "Persimmon": Family(kind="persimmon", config=_COMMON | _BODY),
    "gpt-oss": Family(
        kind="gpt_oss",
        config=_COMMON | _BODY | _GROUPED | _HEADS_OF_8 | _LOCAL_EXPERTS | {"sliding_window": 64},
        shares_prefix=False,
    ),
    "Llama 4, text": Family(
        kind="llama4_text",
        config=_COMMON
        | _BODY
        | _GROUPED
        | _HEADS_OF_8
        | {
            "num_local_experts": 4,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 64,
            "num_experts_per_tok": 1,
        },
        shares_prefix=False,
    ),
    "Mamba": Family(
        kind="mamba",
        config=_COMMON | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        shares_prefix=False,
    ),
    "Mamba 2": Family(
        kind="mamba2",
        config=_COMMON
        | {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "expand": 2,
            "n_groups": 1,
            "chunk_size": 16,
        },
        shares_prefix=False,
    ),
    "Jamba": Family(
        kind="jamba",
        config=_COMMON
        | _BODY
        | _GROUPED
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 4,
            "use_mamba_kernels": False,
        },
        shares_prefix=False,
    ),
    "LFM 2": Family(
        kind="lfm2",
        config=_COMMON | _BODY | _GROUPED | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
        shares_prefix=False,
    ),
    "RWKV 4": Family(
        kind="rwkv",
        config={
            "vocab_size": _COMMON["vocab_size"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 32,
            "attention_hidden_size": 32,
            "num_hidden_layers": 2,
            "context_length": POSITIONS,
        },
        shares_prefix=False,
    ),
}


def save_random_model(directory: Path, family: Family) -> Path:
    """Write a random model whose logits differ enough for a greedy answer to be the same however it is summed."""
    directory.mkdir(parents=True)
    build_tokenizer(family.template).save_pretrained(directory)
    torch.manual_seed(7)
    model = _build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    for name, value in family.generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(directory)
    return directory


def _build(family: Family) -> PreTrainedModel:
    if family.kind != "gemma3":
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family.kind, **family.config))
    text = _COMMON | _BODY | _GROUPED | _HEADS_OF_8 | {"sliding_window": 64}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens = {"mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **tokens))
