"""Attention in which the questions about one page share its tokens.

A row holds pages one behind the other, and nothing else: no padding. Each page is a *segment*: a prefix, then branches.
A prefix token sees the prefix up to itself; a branch token sees the whole prefix and its own branch up to itself. A
sample on its own is a segment without branches. Position ids go on from the prefix in each branch, so every sample is
computed as if it stood alone; what is saved is its page, computed once.

The function is registered with transformers under `IMPLEMENTATION`; models whose attention does not go through that
registry, or wants another mask than a causal one, are found by `model.load_base`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from trial_trainer.errors import UnsupportedAttentionError

IMPLEMENTATION = "shared_prefix"

ROWS_PER_BLOCK = 192
"""Query rows of one causal block on a CPU: a block never multiplies with keys that none of its rows may see."""


class Attention(Protocol):
    """Computes one layer's attention; a new one for each forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attend.

        Args:
            layer: index of the layer.
            query: (1, heads, tokens, head size), rotary positions applied.
            key: (1, key heads, tokens, head size).
            value: (1, key heads, tokens, value size).
            scaling: factor of the scores.

        Returns:
            (1, heads, tokens, value size)
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Where one page lies in a row."""

    start: int
    prefix_tokens: int
    branch_tokens: tuple[int, ...] = ()

    @property
    def branches_start(self) -> int:
        """Index of the first branch token in the row."""
        return self.start + self.prefix_tokens

    @property
    def end(self) -> int:
        """Index behind the last token in the row."""
        return self.branches_start + sum(self.branch_tokens)


_attending: list[Attention] = []
"""The innermost last."""
_checked_lengths: list[int] = []
"""As `_attending`, of `checking_masks`."""


@contextlib.contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Use this attention in every forward pass inside."""
    _attending.append(attention)
    try:
        yield
    finally:
        _attending.pop()


@contextlib.contextmanager
def checking_masks(longest: int) -> Iterator[None]:
    """Raise `UnsupportedAttentionError` in a forward pass inside, of one sample, whose model would have a token see
    less, or more, than all tokens before it in a sample of so many tokens."""
    _checked_lengths.append(longest)
    try:
        yield
    finally:
        _checked_lengths.pop()


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    if not _attending:
        raise UnsupportedAttentionError("a forward pass outside `attending`")
    # A mask is the model's own, or one that was found not to be causal.
    asked = [] if attention_mask is None else ["a mask of its own"]
    asked += [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    window = options.get("sliding_window")
    if window is not None and _checked_lengths and window < _checked_lengths[-1]:
        asked.append("sliding_window")
    if asked or dropout or not getattr(module, "is_causal", True):
        raise UnsupportedAttentionError(f"the model's attention asks for {', '.join(asked) or 'dropout'}")
    layer = getattr(module, "layer_idx", None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _attending[-1].attend(-1 if layer is None else layer, query, key, value, scale)
    return output.transpose(1, 2).contiguous(), None


def _stand_in_for_mask(
    *, q_length: int, kv_length: int, mask_function: Callable[..., Any], **_options: Any
) -> Tensor | None:
    """Make no mask, since the segments say all; while masks are checked, one of those that are not causal, for
    `_attend` to refuse: a window or a chunk hides the first token from the last of a long sample, and what looks ahead
    shows the first token the last. A model may make such masks without a layer that uses them."""
    if not _checked_lengths:
        return None
    batch = head = first = torch.tensor(0)
    last = torch.tensor(_checked_lengths[-1] - 1)
    is_causal = mask_function(batch, head, last, first) and not mask_function(batch, head, first, last)
    return None if is_causal else torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _stand_in_for_mask)


class PackedAttention:
    """Attention over a row of whole segments, differentiable."""

    def __init__(self, segments: Sequence[Segment], *, device: torch.device, dtype: torch.dtype) -> None:
        self._blocks = [block for segment in segments for block in _blocks(segment, device, dtype)]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See `Attention.attend`; ``layer`` does not matter."""
        return torch.cat([block.attend(query, key, value, scaling) for block in self._blocks], dim=2)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive query rows and the keys that they may see."""

    rows: slice
    keys: slice
    mask: Tensor | None
    """(rows, keys), added to the scores; None: causal, as many rows as keys."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        q, k, v = query[:, :, self.rows], key[:, :, self.keys], value[:, :, self.keys]
        if self.mask is None or query.device.type != "cpu":
            k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=self.mask, is_causal=self.mask is None, scale=scaling
            )
        return masked_attention(q, k, v, self.mask, scaling)


def _blocks(segment: Segment, device: torch.device, dtype: torch.dtype) -> Iterator[Block]:
    yield from prefix_blocks(segment, device, dtype)
    if segment.branch_tokens:
        yield Block(
            rows=slice(segment.branches_start, segment.end),
            keys=slice(segment.start, segment.end),
            mask=_branch_mask(segment, device, dtype),
        )


def prefix_blocks(segment: Segment, device: torch.device, dtype: torch.dtype) -> Iterator[Block]:
    """Yield the causal blocks of a segment's prefix."""
    prefix_end = segment.branches_start
    if device.type != "cpu":
        yield Block(rows=slice(segment.start, prefix_end), keys=slice(segment.start, prefix_end), mask=None)
        return
    for first in range(segment.start, prefix_end, ROWS_PER_BLOCK):
        last = min(first + ROWS_PER_BLOCK, prefix_end)
        mask = causal_mask(last - first, last - segment.start, device, dtype)
        yield Block(rows=slice(first, last), keys=slice(segment.start, last), mask=mask)


def causal_mask(rows: int, keys: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the (rows, keys) mask of the last ``rows`` tokens of ``keys``."""
    return torch.full((rows, keys), float("-inf"), device=device, dtype=dtype).triu_(keys - rows + 1)


def _branch_mask(segment: Segment, device: torch.device, dtype: torch.dtype) -> Tensor:
    rows, prefix = segment.end - segment.branches_start, segment.prefix_tokens
    mask = torch.full((rows, prefix + rows), float("-inf"), device=device, dtype=dtype)
    mask[:, :prefix] = 0
    start = 0
    for tokens in segment.branch_tokens:
        end = start + tokens
        mask[start:end, prefix + start : prefix + end] = causal_mask(tokens, tokens, device, dtype)
        start = end
    return mask


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attend by plain matrix products: on a CPU in bf16 twice as fast as torch's fused kernel, which computes in fp32.

    Heads that share a key are one product. Shapes as in `Attention.attend`, with a batch of any size; ``mask`` is
    broadcast to (batch, key heads, heads a key, rows, keys).
    """
    batch, heads, rows, size = query.shape
    key_heads, keys = key.shape[1], key.shape[2]
    grouped = (query * scaling).reshape(batch, key_heads, heads // key_heads * rows, size)
    scores = torch.matmul(grouped, key.transpose(-1, -2)).view(batch, key_heads, heads // key_heads, rows, keys)
    weights = torch.softmax(scores + mask, dim=-1).view(batch, key_heads, heads // key_heads * rows, keys)
    return torch.matmul(weights, value).view(batch, heads, rows, value.shape[-1])


def repeat_heads(states: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads up to the number of query heads."""
    repeats = heads // states.shape[1]
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)
