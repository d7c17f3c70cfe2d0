"""PEFT's LoRA layers, computed in few matrix products in the base model's type, with dropout that can be replayed.

PEFT keeps adapters in fp32 and computes them so, which on a CPU costs more than the base layer. Here the fp32 weights
are rounded to the base's type for the product, as autocast does, and their gradients come back in fp32. Layers that
read the same tensor (queries, keys and values; gate and up) are computed together, by the first of them that is called:
one product with all their weights, and one dropout mask where PEFT draws one for each, which is the same in law for
each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import peft.tuners.lora as peft_lora
import torch
from torch import Tensor, nn


class DropoutMasks:
    """Draws dropout masks that depend on tokens alone: not on what lies beside them in a row, nor on who evaluates.

    Each token has a key, and each call of a layer a number; the token's mask is the sequence of SplitMix64 (Steele, Lea
    and Flood, "Fast splittable pseudorandom number generators", 2014) that starts from both. On a CPU that takes as
    long as torch's own generator, and it is the same on every device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._keys = torch.zeros(1, dtype=torch.int64, device=device)
        self._call = 0

    def seed(self, seed: int) -> None:
        """Start the masks of a pass whose tokens are known by their place alone."""
        self.start(torch.tensor([seed], device=self._device))

    def start(self, keys: Tensor) -> None:
        """Start the masks of one forward pass.

        Args:
            keys: (tokens,) of 64-bit integers, one for each token of the pass.
        """
        self._keys, self._call = keys, 0

    def draw(self, like: Tensor, probability: float) -> Tensor:
        """Return a mask of ``like``'s shape and type: 0 with the probability, else 1 / (1 - probability).

        The probability is rounded to 1/32768: four draws come out of one 64-bit number, and integer shifts make the
        mask, which is four times as fast as comparing and converting.
        """
        threshold = round(probability * 32768)
        kept = torch.tensor(32768 / (32768 - threshold), dtype=like.dtype)
        bits = _INTEGERS[like.element_size()]
        width = like.shape[-1]
        words = self._draw_words(like.numel() // width, (width + 3) // 4)
        # Fifteen bits each, from -16384 on; after the subtraction only what is dropped is negative.
        draws = words.view(torch.int16)[:, :width].bitwise_right_shift(1).sub_(threshold - 16384)
        dropped = draws.bitwise_right_shift_(15)
        # All ones where dropped: its complement keeps the bits of the factor, or none.
        mask = dropped.bitwise_not_().to(bits).bitwise_and_(int(kept.view(bits))).view(like.dtype)
        return mask.view(like.shape)

    def _draw_words(self, tokens: int, words: int) -> Tensor:
        """Return (tokens, words) of 64-bit numbers."""
        self._call += 1
        keys = self._keys
        if len(keys) != tokens:
            # A layer that sees other tokens than the row's, as an expert does: they are known by their place.
            keys = mix_bits(keys[:1] + torch.arange(tokens, device=self._device))
        states = mix_bits(keys + signed(self._call * _GOLDEN))
        return mix_bits(states[:, None] + torch.arange(1, words + 1, device=self._device) * signed(_GOLDEN))


_GOLDEN = 0x9E3779B97F4A7C15
_MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""SplitMix64: shifts and factors of its finalizer, and what it adds from one number to the next."""


def mix_bits(numbers: Tensor) -> Tensor:
    """Scatter the bits of 64-bit integers, in place: one bit of difference becomes thirty-two."""
    shifted = torch.empty_like(numbers)
    for shift, factor in _MIXING:
        # A signed number's shift fills up with its sign, which is cut off.
        torch.bitwise_right_shift(numbers, shift, out=shifted)
        numbers.bitwise_xor_(shifted.bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            numbers.mul_(signed(factor))
    return numbers


def signed(number: int) -> int:
    """Return the lowest 64 bits of a number as torch's integers hold them."""
    number &= 2**64 - 1
    return number - 2**64 if number >> 63 else number


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of a number's size in bytes."""


class _SeededDropout(nn.Module):
    """Dropout whose masks can be replayed."""

    def __init__(self, masks: DropoutMasks, probability: float) -> None:
        super().__init__()
        self.p = probability
        self._masks = masks

    def forward(self, x: Tensor) -> Tensor:
        return x * self._masks.draw(x, self.p) if self.training and self.p > 0 else x


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """What a group of layers that read the same tensor multiplies with; the base weights are frozen."""

    weight: Tensor
    """(sum of outputs, inputs): the base weights one below the other."""
    bias: Tensor | None
    outputs: tuple[int, ...]
    """Width of each layer's output."""
    scalings: tuple[float, ...]


class _LoraLinears(torch.autograd.Function):
    """yᵢ = x Wᵢᵀ + bᵢ + sᵢ (m ∘ x) Aᵢᵀ Bᵢᵀ for layers i that read the same x, with frozen Wᵢ and bᵢ."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stack: _Stack, low: tuple[Tensor, Tensor], mask: Tensor | None, *adapters: Tensor
    ) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        a_all, b_all = low
        hidden = torch.mm(rows if mask is None else rows * mask.view_as(rows), a_all.t())
        output = nn.functional.linear(x, stack.weight, stack.bias)
        by_rows = output.view(len(rows), -1).addmm_(hidden, b_all.t())
        ctx.save_for_backward(rows, a_all, b_all, hidden, mask)
        ctx.stack = stack
        if len(stack.outputs) == 1:
            # No view of it, since a few models add to what a layer returns in place.
            return (output,)
        return tuple(part.view(*x.shape[:-1], -1) for part in torch.split(by_rows, list(stack.outputs), dim=1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, a_all, b_all, hidden, mask = ctx.saved_tensors
        stack: _Stack = ctx.stack
        parts = [gradient.reshape(len(rows), -1) for gradient in gradients]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        hidden_gradient = torch.mm(output, b_all)
        a_gradients = torch.mm(hidden_gradient.t(), rows if mask is None else rows * mask.view_as(rows)).float()
        ranks = a_all.shape[0] // len(parts)
        adapters: list[Tensor] = []
        for part, a, h, scaling in zip(
            parts, torch.split(a_gradients, ranks), torch.split(hidden, ranks, dim=1), stack.scalings, strict=True
        ):
            adapters += [a, torch.mm(part.t(), h).float().mul_(scaling)]
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.mm(output, stack.weight)
            if mask is None:
                x_gradient.addmm_(hidden_gradient, a_all)
            else:
                x_gradient.addcmul_(torch.mm(hidden_gradient, a_all), mask.view_as(rows))
            x_gradient = x_gradient.view(*gradients[0].shape[:-1], stack.weight.shape[1])
        return x_gradient, None, None, None, *adapters


@torch.no_grad()
def _lower(adapters: Sequence[Tensor], stack: _Stack, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return all A, one below the other, and all scaled B as blocks of a diagonal, in the base's type."""
    a_all = torch.cat(list(adapters[::2])).to(dtype)
    if len(stack.outputs) == 1:
        return a_all, (adapters[1] * stack.scalings[0]).to(dtype)
    b_all = a_all.new_zeros(stack.weight.shape[0], a_all.shape[0])
    row = column = 0
    for b, scaling in zip(adapters[1::2], stack.scalings, strict=True):
        b_all[row : row + b.shape[0], column : column + b.shape[1]] = b * scaling
        row, column = row + b.shape[0], column + b.shape[1]
    return a_all, b_all


@dataclass(kw_only=True)
class _Group:
    """Layers that read the same tensor, one call after the other."""

    layers: Sequence[peft_lora.Linear]
    masks: DropoutMasks
    stack: _Stack
    probability: float
    _read: Tensor | None = None
    _waiting: dict[int, Tensor] = field(default_factory=dict)
    """Outputs of ``_read`` that were computed and not yet asked for, by number of the layer."""
    _low: tuple[Tensor, Tensor] | None = None
    """The adapters in the base's type, good as long as they have the versions of ``_low_of``."""
    _low_of: tuple[tuple[int, int], ...] = ()

    def output(self, number: int, x: Tensor) -> Tensor:
        """Return what one layer makes of its input; the first that is asked computes all."""
        if self._read is not x or number not in self._waiting:
            self._waiting = dict(enumerate(self._compute(x)))
            self._read = x
        output = self._waiting.pop(number)
        if not self._waiting:
            self._read = None
        return output

    def _compute(self, x: Tensor) -> tuple[Tensor, ...]:
        is_dropping = self.layers[0].training and self.probability > 0
        mask = self.masks.draw(x, self.probability) if is_dropping else None
        adapters: list[Any] = [
            parameter
            for layer in self.layers
            for parameter in (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        ]
        # An optimizer's step, and loading, change a tensor's version or its address.
        versions = tuple((adapter._version, adapter.data_ptr()) for adapter in adapters)
        if self._low is None or versions != self._low_of or self._low[0].dtype != x.dtype:
            self._low, self._low_of = _lower(adapters, self.stack, x.dtype), versions
        outputs: tuple[Tensor, ...] = _LoraLinears.apply(x, self.stack, self._low, mask, *adapters)
        return outputs


def use_fast_lora(model: nn.Module, masks: DropoutMasks, probe: Callable[[], object]) -> int:
    """Let every plain LoRA layer over a linear layer compute itself by `_LoraLinears`; return how many do.

    Layers of other kinds (GPT-2's transposed ones, embeddings, quantized bases) keep PEFT's forward, with dropout by
    the same masks.

    Args:
        model: with PEFT's adapter.
        masks: where dropout masks are drawn.
        probe: runs the model once, on anything: it shows which layers read the same tensor.
    """
    plain = [module for module in model.modules() if _is_plain(module)]
    for layer in model.modules():
        if isinstance(layer, peft_lora.LoraLayer) and layer not in plain:
            for name, dropout in layer.lora_dropout.items():
                layer.lora_dropout[name] = _SeededDropout(masks, _probability(dropout)).train(dropout.training)
    for layers in _find_groups(plain, probe):
        group = _Group(
            layers=layers, masks=masks, stack=_build_stack(layers), probability=_dropout_probability(layers[0])
        )
        for number, layer in enumerate(layers):
            layer.forward = _forward(layer, group, number)
    return len(plain)


def _is_plain(module: nn.Module) -> bool:
    return type(module) is peft_lora.Linear and type(module.base_layer) is nn.Linear and not module.use_dora["default"]


@torch.no_grad()
def _find_groups(layers: Sequence[Any], probe: Callable[[], object]) -> list[list[Any]]:
    """Group the layers that are called one after the other with the same tensor; one that is not called is alone."""
    groups: list[list[Any]] = []
    called: set[Any] = set()
    last: list[Tensor] = []

    def note(layer: Any, arguments: tuple[Tensor, ...]) -> None:
        if layer in called:
            return
        called.add(layer)
        if last and last[0] is arguments[0] and _are_alike(groups[-1][0], layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last[:] = arguments[:1]

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        probe()
    finally:
        for hook in hooks:
            hook.remove()
    return groups + [[layer] for layer in layers if layer not in called]


def _are_alike(one: Any, other: Any) -> bool:
    """Say whether two layers can be one product: of one type and place, one rank, one dropout, both with a bias or
    both without."""
    a, b = one.base_layer, other.base_layer
    return (
        (a.weight.dtype, a.weight.device, a.bias is None) == (b.weight.dtype, b.weight.device, b.bias is None)
        and one.r["default"] == other.r["default"]
        and _dropout_probability(one) == _dropout_probability(other)
    )


def _dropout_probability(layer: Any) -> float:
    return _probability(layer.lora_dropout["default"])


def _probability(dropout: nn.Module) -> float:
    return float(getattr(dropout, "p", 0.0))


def _build_stack(layers: Sequence[Any]) -> _Stack:
    """Lay the base weights one below the other; the layers keep views of them, so that nothing is held twice."""
    bases = [layer.base_layer for layer in layers]
    weight = bases[0].weight.data
    if len(bases) > 1:
        weight = torch.cat([base.weight.data for base in bases])
        for base, part in zip(bases, torch.split(weight, [base.out_features for base in bases]), strict=True):
            base.weight.data = part
    biases = [base.bias.data for base in bases if base.bias is not None]
    return _Stack(
        weight=weight,
        bias=torch.cat(biases) if biases else None,
        outputs=tuple(base.out_features for base in bases),
        scalings=tuple(float(layer.scaling["default"]) for layer in layers),
    )


def _forward(layer: Any, group: _Group, number: int) -> Any:
    def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if layer.disable_adapters:
            plain: Tensor = layer.base_layer(x)
            return plain
        return group.output(number, x)

    return forward
