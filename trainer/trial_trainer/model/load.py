"""The base model and its LoRA adapter: any causal language model of transformers, any LoRA of PEFT."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as refuse_where_kernels_read_weights
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from trial_trainer.artifacts import open_store
from trial_trainer.base_model import local_path, longest_sample, name_for_people, say_too_long
from trial_trainer.contract import BaseModel, ParameterValue, Precision, TrainerSettings
from trial_trainer.dataset.store import Page, Question
from trial_trainer.errors import ArmError, BaseModelError, StudyError, UnsupportedAttentionError
from trial_trainer.model.fast_lora import DropoutMasks, use_fast_lora
from trial_trainer.model.memory import is_out_of_memory
from trial_trainer.model.packed_attention import IMPLEMENTATION, PackedAttention, attending, checking_masks
from trial_trainer.model.rows import Group, Row, build_row, separate

log = logging.getLogger(__name__)

DTYPES = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT32: torch.float32}
SHARED_PREFIX_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Relative distance of a page's logits, shared against separate, above which a model falls back to separate samples.
A branch that sees its neighbours is off by more than a tenth."""
UNSEEN_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-3}
"""Relative distance by which logits may move when a token changes that they must not see. On a CPU they do not move at
all, with experts too; an accelerator may sum another number of an expert's tokens in another order."""
LATER_TOKENS = 16
"""Changed at once, to see whether what stands before them moves."""
SHORT_PAGE_TOKENS = 48
"""Of a page, for the checks that need no long one."""
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
    keeps_logits: bool = True
    """Whether the model takes ``logits_to_keep``; False where it computes the logits of every token."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base weights."""
        return next(self.module.parameters()).dtype

    def set_training(self, is_training: bool) -> None:
        """Let the adapter's dropout draw masks, or not.

        The base model computes as in evaluation all the time: its own dropout, dropped layers and router noise, which a
        few published configurations still ask for, draw from generators that a checkpoint cannot bring back, and would
        act beside the arm's ``lora_dropout``.
        """
        self.module.eval()
        for layer in self.module.modules() if is_training else ():
            if isinstance(layer, LoraLayer):
                layer.training = True
                layer.lora_dropout.train()

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
        options = {} if row.position_ids is None else {"position_ids": row.position_ids}
        if self.keeps_logits:
            options["logits_to_keep"] = row.label_positions
        logits: Tensor = self.module(input_ids=row.input_ids, use_cache=False, **options).logits[0]
        return logits if self.keeps_logits else logits[row.label_positions]

    def _plain_logits(self, row: Row) -> Tensor:
        """Compute each sample in a forward pass of its own, by the model's own attention and positions."""
        found = []
        for segment in row.segments:
            inside = (row.label_positions >= segment.start) & (row.label_positions < segment.end)
            alone = replace(
                row,
                input_ids=row.input_ids[:, segment.start : segment.end],
                position_ids=None,
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


def cpu_multiplies_bfloat16() -> bool:
    """Say whether this CPU has instructions for products in bf16; without them a product takes a hundred times as long.

    CPUs without AVX-512 have none, and PyTorch's builds for macOS use none.
    """
    has_mkldnn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def load_base(base_model: BaseModel, settings: TrainerSettings, device: torch.device, page: Page) -> LoadedModel:
    """Load the base model and find out by a few short rows what can be done with it.

    Args:
        base_model: where its files are.
        settings: precision of the weights, and the longest sample.
        device: where to put it.
        page: any page of the dataset, for the checks.

    Raises:
        BaseModelError: where it cannot be loaded, is shorter than the samples, or an answer would see later tokens.
    """
    module = _from_pretrained(local_path(base_model), DTYPES[settings.precision])
    if module.dtype is torch.bfloat16 and device.type == "cpu" and not cpu_multiplies_bfloat16():
        # The same weights, of which this CPU computes a hundred products in the time of one.
        log.info("this CPU cannot multiply bf16: the weights are rounded to bf16, and their products computed in fp32")
        module.float()
    limit = longest_sample(module.config)
    if limit is not None and settings.max_length_tokens > limit:
        raise BaseModelError(say_too_long(base_model, settings.max_length_tokens, limit))
    module.requires_grad_(False).eval().to(device)
    takes_logits_to_keep = "logits_to_keep" in inspect.signature(module.forward).parameters
    loaded = LoadedModel(
        module=module,
        device=device,
        masks=DropoutMasks(device),
        shares_prefix=False,
        keeps_logits=takes_logits_to_keep,
    )
    _tell_own_dropout(module.config)
    short = _cut(page, SHORT_PAGE_TOKENS)
    try:
        _refuse_unless_causal(loaded, short, base_model)
        long = _lengthen(page, settings.max_length_tokens)
        if _can_share_prefix(loaded, short, long):
            return replace(loaded, shares_prefix=True)
        _generate_some(loaded, short)
    except (IndexError, TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        if _is_of_the_machine(error):
            raise
        raise BaseModelError(
            f"the base model {base_model.uri!r} must take token ids alone, samples of up to "
            f"{settings.max_length_tokens} tokens, and generate; it fails: {type(error).__name__}: {error}"
        ) from error
    log.warning("this model's attention cannot share a page's tokens: every question is computed with its page")
    return loaded


def _from_pretrained(path: str, dtype: torch.dtype) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    except (OSError, KeyError, RuntimeError, ValueError, ImportError) as error:
        if is_out_of_memory(error):
            raise
        raise BaseModelError(f"the base model in {path!r} cannot be loaded: {error}") from error


def _tell_own_dropout(config: Any) -> None:
    """Log which dropout of the model's own is switched off."""
    values = config.get_text_config().to_dict()
    asked = {
        name: value
        for name, value in sorted(values.items())
        if re.search("drop|pdrop|jitter", name) and isinstance(value, float) and value > 0
    }
    if asked:
        reported = ", ".join(f"{name} {value:g}" for name, value in asked.items())
        log.info("the model's own dropout is switched off, lora_dropout is the arm's: %s", reported)


# What the model can do ------------------------------------------------------------------------------------------------


def _cut(page: Page, tokens: int) -> Page:
    """Return a page with two questions of its own, and so many tokens before them at most."""
    return replace(page, prefix=page.prefix[:tokens], questions=(page.questions[0], page.questions[-1]))


def _lengthen(page: Page, tokens: int) -> Page:
    """Return a page with two questions of its own whose longest sample has so many tokens."""
    page = _cut(page, len(page.prefix))
    wanted = max(1, tokens - max(len(question.prompt) + len(question.answer) for question in page.questions))
    return replace(page, prefix=(page.prefix * (wanted // len(page.prefix) + 1))[:wanted])


def _changed(question: Question, page: Page) -> Question:
    """Return a question with other tokens, as many of them."""
    ids = {*page.prefix, *question.prompt, *question.answer}
    other = dict(zip(sorted(ids), sorted(ids)[1:] + sorted(ids)[:1], strict=True))
    return replace(
        question,
        prompt=tuple(other[token] for token in question.prompt),
        answer=tuple(other[token] for token in question.answer),
    )


@torch.no_grad()
def _refuse_unless_causal(loaded: LoadedModel, page: Page, base_model: BaseModel) -> None:
    """Change what follows an answer: the logits before it must not move."""
    question = page.questions[0]
    behind = (page.prefix * LATER_TOKENS)[:LATER_TOKENS]
    endings = [behind, tuple(token ^ 1 for token in behind)]
    rows = [
        build_row([Group(page=page, questions=(replace(question, answer=(*question.answer, *ending)),))], loaded.device)
        for ending in endings
    ]
    one, other = (loaded.logits(row)[: len(question.answer)].float() for row in rows)
    moved = _most_moved(one, other)
    if not moved <= UNSEEN_TOLERANCE[loaded.dtype]:
        raise BaseModelError(
            f"base_model.uri must name a causal language model, got {base_model.uri!r}, in which a token sees later "
            f"ones: logits move by {moved:.2g} of their length when only what follows them changes"
        )


@torch.no_grad()
def _generate_some(loaded: LoadedModel, page: Page) -> None:
    """Generate as `generate.answer_pages` does for a model that cannot share a page: what fails, fails now."""
    for question in page.questions:
        prompt = torch.tensor([[*page.prefix, *question.prompt]], device=loaded.device)
        loaded.module.generate(  # type: ignore[operator]
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=3, pad_token_id=0
        )


def _is_of_the_machine(error: Exception) -> bool:
    """Tell what memory or an accelerator fails at from what a model cannot do."""
    return is_out_of_memory(error) or (isinstance(error, RuntimeError) and "cuda" in str(error).lower())


@torch.no_grad()
def _can_share_prefix(loaded: LoadedModel, short: Page, long: Page) -> bool:
    """Compare pages computed once with the same questions computed each alone, by the model's own attention; where it
    fits, leave our attention in use.

    A row holds a page of the longest kind and a short one, since positions may be scaled by the longest of a row.
    """
    module: Any = loaded.module
    config = module.config
    if not module._can_set_attn_implementation() or _searches(module):
        return False
    own = {"": config._attn_implementation} | {
        name: sub._attn_implementation
        for name in getattr(config, "sub_configs", {})
        if (sub := getattr(config, name, None)) is not None
    }
    groups = [Group(page=page, questions=page.questions) for page in (long, short)]
    alone = separate(groups)
    expected = loaded.logits(build_row([alone[0], *alone[2:]], loaded.device)).float()
    try:
        module.set_attn_implementation(IMPLEMENTATION)
        problem = _find_difference(replace(loaded, shares_prefix=True), groups, expected)
    except (UnsupportedAttentionError, IndexError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        if _is_of_the_machine(error):
            raise
        problem = str(error)
    if problem is None:
        return True
    log.info("shared page tokens do not work with this model: %s", problem)
    module.set_attn_implementation(own)
    return False


def _searches(module: Any) -> bool:
    """Say whether the model's settings of generation ask for more than the best next token of one pass, as beams do."""
    settings = copy.deepcopy(getattr(module, "generation_config", None))
    if settings is None:
        return False
    settings.do_sample = False
    return settings.get_generation_mode() != "greedy_search" or settings.guidance_scale not in (None, 1)


def _find_difference(sharing: LoadedModel, groups: Sequence[Group], expected: Tensor) -> str | None:
    """Return in words what is different when tokens are shared, None where nothing is."""
    long, short = groups
    with checking_masks(long.tokens):
        sharing.logits(build_row([Group(page=short.page, questions=short.questions[:1])], sharing.device))
    row = build_row(groups, sharing.device)
    logits = sharing.logits(row).float()
    distance = _distance(logits[row.sample_of_label != 1], expected)
    if distance > SHARED_PREFIX_TOLERANCE[sharing.dtype]:
        return f"they change the logits by {distance:.3f}"
    first, second = short.questions
    kept = row.sample_of_label == 3
    neighbours = [
        replace(long, questions=(long.questions[0], _changed(long.questions[1], long.page))),
        replace(short, questions=(_changed(first, short.page), second)),
    ]
    again = sharing.logits(build_row(neighbours, sharing.device)).float()
    distance = _most_moved(again[kept], logits[kept])
    if distance > UNSEEN_TOLERANCE[sharing.dtype]:
        return f"a question's logits move by {distance:.3f} with its neighbours"
    return None


def _most_moved(found: Tensor, expected: Tensor) -> float:
    """Return how far the row that moved most is apart, relative to its length."""
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return how far two tensors are apart, relative to the length of the second."""
    return float((found - expected).norm() / expected.norm())


# The adapter ----------------------------------------------------------------------------------------------------------


def add_adapter(
    loaded: LoadedModel, arm: Mapping[str, ParameterValue], settings: TrainerSettings, seed: int
) -> LoadedModel:
    """Add a fresh LoRA adapter for an arm; its weights depend on the seed alone.

    Raises:
        ArmError: where the target modules do not exist, a value cannot be used, or the adapter is larger than memory.
    """
    rank = int(arm.get("lora_rank", 16))
    alpha = float(arm["lora_alpha_over_rank"]) * rank if "lora_alpha_over_rank" in arm else arm.get("lora_alpha", 32)
    names = _all_linear(loaded.module) if isinstance(settings.target_modules, str) else list(settings.target_modules)
    left_out = _find_left_out(loaded)
    _check_adapter_size(loaded, rank, None if isinstance(names, str) else names, left_out)
    torch.manual_seed(seed)
    try:
        config = LoraConfig(
            r=rank,
            lora_alpha=float(alpha),  # type: ignore[arg-type]
            lora_dropout=float(arm.get("lora_dropout", 0.0)),
            target_modules=names,
            exclude_modules=left_out,
            use_rslora=settings.rs_lora,
            task_type="CAUSAL_LM",
        )
        module = get_peft_model(loaded.module, config)
    except ValueError as error:
        raise ArmError(f"the adapter cannot be made: {error}") from error
    return _with_fast_lora(replace(loaded, module=module))


def _all_linear(module: nn.Module) -> str | list[str]:
    """Return PEFT's word for all linear layers, or their names where it would take experts too, which are one tensor
    for all: its adapter of a tensor knows no dropout."""
    config = LoraConfig(target_modules="all-linear")
    convert_peft_config_for_transformers(config, module, None)
    return sorted(config.target_modules or ()) if config.target_parameters else "all-linear"


def _find_left_out(loaded: LoadedModel) -> str | None:
    """Return a pattern of the layers that get no adapter, None where there are none.

    They are those that no text goes through, as the towers of images and sound; routers that return more than a tensor;
    and those whose weights a fused kernel reads past the adapter.
    """
    outputs: dict[nn.Module, Any] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        outputs[module] = output

    modules = dict(loaded.module.named_modules())
    hooks = [module.register_forward_hook(note) for module in modules.values()]
    try:
        with torch.no_grad():
            loaded.logits(_two_tokens(loaded.device))
    finally:
        for hook in hooks:
            hook.remove()
    # The modules that text goes through, and those that hold one; some are never called themselves.
    alive = {path for path, module in modules.items() if any(inner in outputs for inner in module.modules())}
    left_out: list[str] = []
    for path, module in modules.items():
        above = path.rpartition(".")[0]
        is_tower = (
            path not in alive
            and above in alive
            # One of many, as an expert that two tokens do not go to.
            and not isinstance(modules[above], nn.ModuleList | nn.ModuleDict)
            and any(_is_linear(layer) for layer in module.modules())
        )
        if is_tower:
            left_out.append(rf"{re.escape(path)}(\..+)?")
        elif _is_linear(module) and not isinstance(outputs.get(module, torch.empty(0)), Tensor):
            left_out.append(re.escape(path))
    left_out += sorted(rf"(.+\.)?{re.escape(name)}" for name in _read_by_kernels(loaded.module))
    if left_out:
        log.info("layers without an adapter: %s", ", ".join(left_out))
    return "|".join(left_out) or None


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _read_by_kernels(module: nn.Module) -> set[str]:
    """Return the names of layers that PEFT refuses, since kernels of this model read their weights alone."""
    refused = set()
    for path, layer in module.named_modules():
        name = path.rpartition(".")[2]
        if _is_linear(layer) and name not in refused:
            try:
                refuse_where_kernels_read_weights(LoraConfig(), module, name)
            except ValueError:
                refused.add(name)
    return refused


def _check_adapter_size(loaded: LoadedModel, rank: int, names: Sequence[str] | None, left_out: str | None) -> None:
    """Refuse an adapter that alone is larger than the device: systems that overcommit memory, as every node with a
    kubelet does, would give it out and kill the process, or one beside it, much later."""
    head = loaded.module.get_output_embeddings()  # type: ignore[operator]
    widths = sum(
        sum(layer.weight.shape)
        for path, layer in loaded.module.named_modules()
        if _is_linear(layer)
        and (layer is not head if names is None else any(f".{path}".endswith(f".{name}") for name in names))
        and not (left_out and re.fullmatch(left_out, path))
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
    loaded.set_training(False)
    use_fast_lora(loaded.module, loaded.masks, lambda: loaded.logits(_two_tokens(loaded.device)))
    return loaded


def _two_tokens(device: torch.device) -> Row:
    question = Question(attribute="", prompt=(0,), answer=(0,), answer_text="", gold=(), origin="")
    page = Page(id="", site="", url=None, prefix=(0,), questions=(question,))
    return build_row([Group(page=page, questions=page.questions)], device)


def adapter_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name, in a fixed order."""
    return {name: parameter for name, parameter in sorted(module.named_parameters()) if parameter.requires_grad}
