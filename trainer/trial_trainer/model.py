"""The base model and its LoRA adapter: any causal language model of transformers, any LoRA of PEFT."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from trial_trainer.artifacts import open_store
from trial_trainer.attention import IMPLEMENTATION, PackedAttention, UnsupportedAttentionError, attending
from trial_trainer.base_model import BaseModelError, local_path, name_for_people
from trial_trainer.contract import BaseModel, ParameterValue, Precision, TrainerSettings
from trial_trainer.data import Group, Row, build_row, separate
from trial_trainer.dataset import Page, Question
from trial_trainer.errors import ArmError, StudyError
from trial_trainer.lora import DropoutMasks, use_fast_lora
from trial_trainer.memory import is_out_of_memory

log = logging.getLogger(__name__)

DTYPES = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT32: torch.float32}
PLAIN_ATTENTION = "sdpa"
SHARED_PREFIX_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Relative distance of a page's logits, shared against separate, above which a model falls back to separate samples.
A branch that sees its neighbours is off by more than a tenth."""
ADAPTER_NUMBER_BYTES = 16
"""Of each number of an adapter while it is trained: itself, its gradient and AdamW's two moments, in fp32."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready for rows of pages."""

    module: nn.Module
    device: torch.device
    masks: DropoutMasks
    shares_prefix: bool = True
    """Whether questions share their page's tokens; False where the model's attention cannot."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base weights."""
        return next(self.module.parameters()).dtype

    def arrange(self, groups: Sequence[Group]) -> list[Group]:
        """Return the groups as this model can compute them."""
        return list(groups) if self.shares_prefix else separate(groups)

    def logits(self, row: Row) -> Tensor:
        """Return the (labels, vocabulary) logits where the row has a label, in the model's type."""
        if not self.shares_prefix:
            return self._plain_logits(row)
        with attending(PackedAttention(row.segments, device=self.device, dtype=self.dtype)):
            return self.forward(row)

    def forward(self, row: Row) -> Tensor:
        """Return the same by the attention in use, which the caller has set."""
        if row.mask_keys is not None:
            self.masks.start(row.mask_keys)
        output = self.module(
            input_ids=row.input_ids,
            position_ids=row.position_ids,
            logits_to_keep=row.label_positions,
            use_cache=False,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _plain_logits(self, row: Row) -> Tensor:
        """Compute each sample in a forward pass of its own, by the model's own attention."""
        found = []
        for segment in row.segments:
            inside = (row.label_positions >= segment.start) & (row.label_positions < segment.end)
            alone = replace(
                row,
                input_ids=row.input_ids[:, segment.start : segment.end],
                position_ids=row.position_ids[:, segment.start : segment.end],
                label_positions=row.label_positions[inside] - segment.start,
                mask_keys=None if row.mask_keys is None else row.mask_keys[segment.start : segment.end],
            )
            found.append(self.forward(alone))
        return torch.cat(found)


def choose_device() -> torch.device:
    """Return this process's accelerator, or the CPU."""
    from accelerate import PartialState

    device = PartialState().device
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def load_base(base_model: BaseModel, settings: TrainerSettings, device: torch.device, page: Page) -> LoadedModel:
    """Load the base model and find out whether questions can share a page's tokens with it.

    Args:
        base_model: where its files are.
        settings: precision of the weights.
        device: where to put it.
        page: any page of the dataset, for the check.

    Raises:
        BaseModelError: where it cannot be loaded.
    """
    path = local_path(base_model)
    dtype = DTYPES[settings.precision]
    module = _from_pretrained(path, dtype, IMPLEMENTATION) or _from_pretrained(path, dtype, PLAIN_ATTENTION)
    if module is None:
        module = _from_pretrained(path, dtype, None)
    if module is None:
        raise BaseModelError(f"base_model.uri must name a causal language model, got {base_model.uri!r}")
    module.requires_grad_(False).eval().to(device)
    loaded = LoadedModel(module=module, device=device, masks=DropoutMasks(device))
    if not _can_share_prefix(loaded, page):
        log.warning("this model's attention cannot share a page's tokens: every question is computed with its page")
        return replace(loaded, shares_prefix=False)
    return loaded


def _from_pretrained(path: str, dtype: torch.dtype, attention: str | None) -> Any:
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True, **options)
    except (OSError, KeyError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise BaseModelError(f"the base model in {path!r} cannot be loaded: {error}") from error
    except (ValueError, ImportError) as error:
        if attention is None:
            raise BaseModelError(f"the base model in {path!r} cannot be loaded: {error}") from error
        return None


@torch.no_grad()
def _can_share_prefix(loaded: LoadedModel, page: Page) -> bool:
    """Compare a page computed once with the same questions computed each alone, by the model's own attention."""
    questions = (page.questions * 2)[:2]
    group = Group(page=page, questions=questions)
    if getattr(loaded.module.config, "_attn_implementation", None) != IMPLEMENTATION:
        return False
    try:
        shared = loaded.logits(build_row([group], loaded.device)).float()
    except (UnsupportedAttentionError, TypeError, RuntimeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        log.info("shared page tokens do not work with this model: %s", error)
        _use_plain_attention(loaded.module)
        return False
    _use_plain_attention(loaded.module)
    plain = replace(loaded, shares_prefix=False)
    separated = plain.logits(build_row(separate([group]), loaded.device)).float()
    distance = float((shared - separated).norm() / separated.norm())
    if distance > SHARED_PREFIX_TOLERANCE[loaded.dtype]:
        log.info("shared page tokens change this model's logits by %.3f", distance)
        return False
    loaded.module.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
    return True


def _use_plain_attention(module: Any) -> None:
    """Go back to the model's own attention; those that cap their scores or have sinks know no fused one."""
    try:
        module.set_attn_implementation(PLAIN_ATTENTION)
    except (ValueError, ImportError):
        module.set_attn_implementation("eager")


def add_adapter(
    loaded: LoadedModel, arm: Mapping[str, ParameterValue], settings: TrainerSettings, seed: int
) -> LoadedModel:
    """Add a fresh LoRA adapter for an arm; its weights depend on the seed alone.

    Raises:
        ArmError: where the target modules do not exist, a value cannot be used, or the adapter is larger than memory.
    """
    rank = int(arm.get("lora_rank", 16))
    alpha = float(arm["lora_alpha_over_rank"]) * rank if "lora_alpha_over_rank" in arm else arm.get("lora_alpha", 32)
    names = settings.target_modules
    _check_adapter_size(loaded, rank, None if isinstance(names, str) else names)
    torch.manual_seed(seed)
    try:
        config = LoraConfig(
            r=rank,
            lora_alpha=float(alpha),  # type: ignore[arg-type]
            lora_dropout=float(arm.get("lora_dropout", 0.0)),
            target_modules="all-linear" if isinstance(names, str) else list(names),
            use_rslora=settings.rs_lora,
            task_type="CAUSAL_LM",
        )
        module = get_peft_model(loaded.module, config)
    except ValueError as error:
        raise ArmError(f"the adapter cannot be made: {error}") from error
    return _with_fast_lora(replace(loaded, module=module))


def _check_adapter_size(loaded: LoadedModel, rank: int, names: Sequence[str] | None) -> None:
    """Refuse an adapter that alone is larger than the device: systems that overcommit memory, as every node with a
    kubelet does, would give it out and kill the process, or one beside it, much later."""
    head = loaded.module.get_output_embeddings()  # type: ignore[operator]
    widths = sum(
        layer.in_features + layer.out_features
        for path, layer in loaded.module.named_modules()
        if isinstance(layer, nn.Linear)
        and (layer is not head if names is None else any(f".{path}".endswith(f".{name}") for name in names))
    )
    needed, there_is = rank * widths * ADAPTER_NUMBER_BYTES, _memory_bytes(loaded.device)
    if needed > there_is:
        raise ArmError(
            f"lora_rank {rank} makes an adapter that takes {needed / 2**30:,.1f} GiB of memory to train, "
            f"more than the {there_is / 2**30:,.1f} GiB of {loaded.device.type}"
        )


def _memory_bytes(device: torch.device) -> int:
    """Return how much memory the device has in all."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def save_adapter(module: nn.Module, base_model: BaseModel, directory: Path) -> None:
    """Save an adapter for plain PEFT, which names its base model as people can fetch it and not where it lies here."""
    module.save_pretrained(str(directory))  # type: ignore[operator]
    name, revision = name_for_people(base_model, module.get_base_model().name_or_path)  # type: ignore[operator]
    path = directory / "adapter_config.json"
    config = {**json.loads(path.read_text()), "base_model_name_or_path": name, "revision": revision}
    path.write_text(json.dumps(config, indent=2, sort_keys=True))
    card = ModelCard.load(directory / "README.md")
    tags = [tag for tag in card.data.tags or () if not tag.startswith(_BASE_MODEL_TAG)]
    card.data.base_model, card.data.tags = name, [f"{_BASE_MODEL_TAG}{name}", *tags]
    card.save(directory / "README.md")


_BASE_MODEL_TAG = "base_model:adapter:"


def load_adapter(loaded: LoadedModel, uri: str, directory: Path) -> LoadedModel:
    """Put a saved adapter on a base model, downloading it into a directory.

    Raises:
        StudyError: where there is no whole adapter.
    """
    store = open_store(uri)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not store.download(name, directory / name):
            raise StudyError(f"the adapter {uri} must hold {name}")
    module = PeftModel.from_pretrained(loaded.module, str(directory))
    module.eval()
    return _with_fast_lora(replace(loaded, module=module))


def _with_fast_lora(loaded: LoadedModel) -> LoadedModel:
    """Let the adapter's layers compute themselves; two tokens show which of them read the same tensor."""
    question = Question(attribute="", prompt=(0,), answer=(0,), answer_text="", gold=(), origin="")
    page = Page(id="", site="", url=None, prefix=(0,), questions=(question,))
    row = build_row([Group(page=page, questions=page.questions)], loaded.device)
    is_training = loaded.module.training
    loaded.module.eval()
    use_fast_lora(loaded.module, loaded.masks, lambda: loaded.logits(row))
    loaded.module.train(is_training)
    return loaded


def adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in sorted(module.named_parameters()) if parameter.requires_grad}
