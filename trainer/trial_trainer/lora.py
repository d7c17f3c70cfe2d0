"""PEFT's LoRA layers, computed in three matrix products in the base model's type, with dropout that can be replayed.

PEFT keeps adapters in fp32 and computes them so, which on a CPU costs more than the base layer. Here the fp32 weights
are rounded to the base's type for the product, as autocast does, and their gradients come back in fp32.
"""

from __future__ import annotations

from typing import Any

import peft.tuners.lora as peft_lora
import torch
from torch import Tensor, nn


class DropoutMasks:
    """Draws dropout masks from a generator of its own, so that neither evaluating nor stopping shifts them."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator(device=device)
        self._last: tuple[Tensor, float, Tensor] | None = None

    def seed(self, seed: int) -> None:
        """Start the sequence of masks of one micro-batch."""
        self._generator.manual_seed(seed)
        self._last = None

    def mask_of(self, read: Tensor, probability: float) -> Tensor:
        """Return the mask of a layer's input: layers that read the same tensor one after the other (queries, keys and
        values; gate and up) share one, where PEFT draws one for each. Each layer's own dropout is the same in law."""
        if self._last is None or self._last[0] is not read or self._last[1] != probability:
            self._last = (read, probability, self.draw(read, probability))
        return self._last[2]

    def draw(self, like: Tensor, probability: float) -> Tensor:
        """Return a mask of ``like``'s shape and type: 0 with the probability, else 1 / (1 - probability).

        The probability is rounded to 1/65536: four draws come out of one 64-bit number, which is four times as fast
        as a draw each.
        """
        threshold = round(probability * 65536)
        words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64, device=like.device)
        words.random_(-(2**63), None, generator=self._generator)
        kept = words.view(torch.int16)[: like.numel()].view(like.shape) >= threshold - 32768
        return kept.to(like.dtype).mul_(65536 / (65536 - threshold))


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + s · (m ∘ x) Aᵀ Bᵀ for a frozen W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        mask: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a_low, b_low = a.to(x.dtype), (b * scaling).to(x.dtype)
        hidden = torch.mm(rows if mask is None else rows * mask.view_as(rows), a_low.t())
        output = torch.addmm(nn.functional.linear(rows, weight, bias), hidden, b_low.t())
        ctx.save_for_backward(rows, weight, a_low, b_low, hidden, mask)
        ctx.scaling = scaling
        return output.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a_low, b_low, hidden, mask = ctx.saved_tensors
        output = gradients[0].reshape(-1, weight.shape[0])
        hidden_gradient = torch.mm(output, b_low)
        masked = rows if mask is None else rows * mask.view_as(rows)
        a_gradient = torch.mm(hidden_gradient.t(), masked).float()
        b_gradient = torch.mm(output.t(), hidden).float().mul_(ctx.scaling)
        x_gradient = None
        if ctx.needs_input_grad[0]:
            through_base = torch.mm(output, weight)
            if mask is None:
                x_gradient = through_base.addmm_(hidden_gradient, a_low)
            else:
                x_gradient = through_base.addcmul_(torch.mm(hidden_gradient, a_low), mask.view_as(rows))
            x_gradient = x_gradient.view(*gradients[0].shape[:-1], weight.shape[1])
        return x_gradient, None, None, a_gradient, b_gradient, None, None


def use_fast_lora(model: nn.Module, masks: DropoutMasks) -> int:
    """Let every plain LoRA layer over a linear layer compute itself by `_LoraLinear`; return how many do.

    Layers of other kinds (embeddings, convolutions, quantized bases) keep PEFT's forward and its dropout.
    """
    count = 0
    for module in model.modules():
        if type(module) is peft_lora.Linear and type(module.base_layer) is nn.Linear and not module.use_dora["default"]:
            module.forward = _forward(module, masks)  # type: ignore[method-assign]
            count += 1
    return count


def _forward(module: peft_lora.Linear, masks: DropoutMasks) -> Any:
    base, a, b = module.base_layer, module.lora_A["default"], module.lora_B["default"]
    scaling = module.scaling["default"]
    probability = getattr(module.lora_dropout["default"], "p", 0.0)

    def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if module.disable_adapters:
            plain: Tensor = base(x)
            return plain
        mask = masks.mask_of(x, probability) if module.training and probability > 0 else None
        output: Tensor = _LoraLinear.apply(x, base.weight, base.bias, a.weight, b.weight, scaling, mask)
        return output

    return forward
