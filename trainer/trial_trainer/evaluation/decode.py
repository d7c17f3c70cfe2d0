"""Greedy answers to all questions of many pages, without changing one token.

Pages are computed once. The gold answer is a draft: one forward pass of page, questions and drafts tells how much of
each draft greedy decoding would have written itself. A draft token is accepted only if it is the argmax, the lowest id
among equals. Where the draft ends being right, or the two best logits are closer than `MARGIN` (where one pass for many
tokens and one for a single token may round differently), decoding goes on token by token from there, for the open
questions of several pages at once, over the keys and values of the first pass.

A base model may publish settings of generation (`generation_config.json`): a repetition penalty, words it must not say.
`generate` obeys them, so whoever loads the adapter gets answers by them, and they are measured by them here, with the
logits processors that `generate` itself would use.

So that no answer depends on what is computed beside it, every token of a branch attends in one way, in both passes: its
page's keys and its own begin at multiples of `ALIGNMENT`, what fills up weighs nothing, and page and branch are two
products. A CPU then adds the same numbers in the same order, but for the model's own products with AMX, which round by
how many rows they have (`docs/models.md`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessorList

from trial_trainer.dataset.store import DatasetIndex, Page
from trial_trainer.errors import StudyError
from trial_trainer.model.load import LoadedModel
from trial_trainer.model.memory import free_memory, is_out_of_memory, must_fit
from trial_trainer.model.packed_attention import Block, Segment, attending, causal_mask, prefix_blocks
from trial_trainer.model.rows import Group, build_row, micro_batches, separate

log = logging.getLogger(__name__)

MARGIN = {torch.bfloat16: 0.25, torch.float32: 1e-3}
"""Distance of the two best logits under which a draft token is not trusted. bf16 logits between 16 and 32 are an
eighth apart, and a different order of summing moves them by one such step."""
ALIGNMENT = 32
"""Keys are laid out in multiples of it: a vector register of bf16 numbers, or two of fp32."""
ROW_TOKENS = {"cpu": 2048, "cuda": 32768}
PAGES_AT_ONCE = {"cpu": 32, "cuda": 64}
"""Pages whose open questions are decoded together: a step costs the reading of all weights, however many rows."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The model's answer to one question."""

    page: int
    question: int
    tokens: tuple[int, ...]
    """Generated ids without the end of turn."""
    finished: bool
    """Whether an end of turn came within the limit."""
    loss: float | None
    """Mean token cross-entropy (nats) of the gold answer; None where it does not stand in the page."""
    answer_tokens: int
    """Tokens that ``loss`` is a mean of."""


@dataclass(kw_only=True)
class _Branch:
    """One question while it is answered."""

    page: int
    question: int
    prompt: tuple[int, ...]
    draft: tuple[int, ...]
    limit: int
    """Most tokens of the answer."""
    loss: float | None
    context: Tensor | None
    """(1, prompt tokens), page and question, for the processors."""
    processors: LogitsProcessorList | None
    """What the base model's settings of generation make of logits; None: nothing."""
    tokens: list[int] = field(default_factory=list)
    finished: bool = False
    cached: int = 0
    """Branch tokens whose keys and values are valid."""
    next_input: int = 0
    """Token to feed next."""
    first: int = 0
    """Index of the branch's first token in its row."""

    def is_open(self) -> bool:
        return not self.finished and len(self.tokens) < self.limit

    def process(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return the (vocabulary,) scores behind so many tokens of the answer."""
        if self.processors is None or self.context is None:
            return logits
        ids = torch.cat([self.context, torch.tensor([list(tokens)], dtype=torch.long, device=logits.device)], dim=1)
        scores: Tensor = self.processors(ids, logits[None].float())[0]  # type: ignore[arg-type]
        return scores


@dataclass(kw_only=True)
class _OpenPage:
    """A page with open questions, and the keys and values of its first pass."""

    prefix_tokens: int
    keys: list[Tensor]
    """For each layer (key heads, prefix tokens, head size)."""
    values: list[Tensor]
    branches: list[_Branch]
    branch_keys: list[list[Tensor]]
    """For each branch and layer (key heads, cached tokens, head size)."""
    branch_values: list[list[Tensor]]


class _FirstPassAttention:
    """Attention over a row of pages and their branches, which keeps keys and values by layer."""

    def __init__(self, segments: Sequence[Segment], *, device: torch.device, dtype: torch.dtype) -> None:
        self._blocks: list[Block | _Branches] = []
        for segment in segments:
            self._blocks += [*prefix_blocks(segment, device, dtype), _build_branches(segment, device, dtype)]
        self.keys: list[Tensor] = []
        """For each layer (key heads, tokens, head size)."""
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See `Attention.attend`; layers come in order."""
        self.keys.append(key[0])
        self.values.append(value[0])
        return torch.cat([block.attend(query, key, value, scaling) for block in self._blocks], dim=2)


@dataclass(frozen=True, kw_only=True)
class _Branches:
    """The branches of a page: query rows behind each other, and keys as they lie aligned."""

    rows: slice
    keys: Tensor
    """(aligned keys,): where each lies in the row; what fills up stands for any key."""
    page_keys: int
    """How many of them are the page's."""
    mask: Tensor
    """(rows, aligned keys), added to the scores."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Return the (1, heads, rows, value size) output of the rows."""
        q, k, v = query[0, :, self.rows], key[0].index_select(1, self.keys), value[0].index_select(1, self.keys)
        heads, rows, size = q.shape
        grouped = (q * scaling).reshape(len(k), -1, size)
        scores = torch.matmul(grouped, k.transpose(-1, -2)).view(len(k), -1, rows, len(self.keys)).add_(self.mask)
        weights = torch.softmax(scores, dim=-1).view(len(k), -1, len(self.keys))
        output = torch.matmul(weights[..., : self.page_keys], v[:, : self.page_keys])
        output += torch.matmul(weights[..., self.page_keys :], v[:, self.page_keys :])
        return output.view(1, heads, rows, -1)


def _build_branches(segment: Segment, device: torch.device, dtype: torch.dtype) -> _Branches:
    page_keys = _align(segment.prefix_tokens)
    rows, columns = segment.end - segment.branches_start, page_keys + sum(map(_align, segment.branch_tokens))
    keys = torch.full((columns,), segment.start, device=device)
    keys[: segment.prefix_tokens] = torch.arange(segment.start, segment.branches_start, device=device)
    mask = torch.full((rows, columns), float("-inf"), device=device, dtype=dtype)
    mask[:, : segment.prefix_tokens] = 0
    row, column = 0, page_keys
    for tokens in segment.branch_tokens:
        first = segment.branches_start + row
        keys[column : column + tokens] = torch.arange(first, first + tokens, device=device)
        mask[row : row + tokens, column : column + tokens] = causal_mask(tokens, tokens, device, dtype)
        row, column = row + tokens, column + _align(tokens)
    return _Branches(rows=slice(segment.branches_start, segment.end), keys=keys, page_keys=page_keys, mask=mask)


def _align(tokens: int) -> int:
    return -(-tokens // ALIGNMENT) * ALIGNMENT


@torch.no_grad()
def answer_pages(
    loaded: LoadedModel, pages: Sequence[Page], index: DatasetIndex, tell: Callable[[int], None] | None = None
) -> list[Answered]:
    """Answer every question of every page, in dataset order.

    Args:
        loaded: the model; it is put into evaluation mode.
        pages: with drafts in ``Question.answer``.
        index: says what ends an answer and how long answers may become.
        tell: takes the number of questions that are answered, each time that some more are.
    """
    tell = tell or (lambda _: None)
    loaded.module.eval()
    stops = frozenset(index.end_of_turn)
    branches: list[_Branch] = []
    numbers = {id(page): number for number, page in enumerate(pages)}
    groups = [Group(page=page, questions=page.questions) for page in pages if page.questions]
    if not loaded.shares_prefix:
        separate: list[Answered] = []
        with must_fit("the evaluation of one question"):
            for group in groups:
                separate.extend(_answer_separately(loaded, numbers, group, index, stops))
                tell(len(separate))
        return separate
    groups.sort(key=lambda group: -group.tokens)
    is_processed = bool(groups) and _has_settings(loaded, groups[0], stops)
    row_tokens, at_once = ROW_TOKENS[loaded.device.type], PAGES_AT_ONCE[loaded.device.type]
    while groups:
        try:
            found = _answer_some(loaded, groups, numbers, index, stops, row_tokens, at_once, is_processed)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            found = None
        if found is not None:
            branches.extend(found)
            tell(len(branches))
            groups = groups[len({branch.page for branch in found}) :]
            continue
        # No answer depends on what is computed beside it, so that fewer pages give the same.
        if row_tokens <= groups[0].tokens and at_once == 1:
            raise StudyError(f"the evaluation of one page of {groups[0].tokens} tokens does not fit into memory")
        row_tokens, at_once = max(row_tokens // 2, 1), max(at_once // 2, 1)
        free_memory()
        log.warning("evaluation does not fit into memory; from now on %d open pages at once", at_once)
    branches.sort(key=lambda branch: (branch.page, branch.question))
    return [_answered(branch) for branch in branches]


def _answer_some(
    loaded: LoadedModel,
    groups: Sequence[Group],
    numbers: dict[int, int],
    index: DatasetIndex,
    stops: frozenset[int],
    row_tokens: int,
    at_once: int,
    is_processed: bool,
) -> list[_Branch]:
    """Answer the first of the pages, row by row, until so many have open questions or there are no more."""
    branches: list[_Branch] = []
    waiting: list[_OpenPage] = []
    for batch in micro_batches(groups, row_tokens):
        found, still_open = _verify(loaded, batch, numbers, index, stops, is_processed)
        branches.extend(found)
        waiting.extend(still_open)
        if len(waiting) >= at_once:
            break
    if waiting:
        _continue(loaded, waiting, stops, at_once)
    return branches


def _has_settings(loaded: LoadedModel, group: Group, stops: frozenset[int]) -> bool:
    prompt = torch.tensor([[*group.page.prefix, *group.questions[0].prompt]], device=loaded.device)
    names = [type(processor).__name__ for processor in _find_processors(loaded, prompt, 1, stops)]
    if names:
        log.info("answers are generated as the base model's generation_config.json asks: %s", ", ".join(names))
    return bool(names)


def _find_processors(loaded: LoadedModel, prompt: Tensor, limit: int, stops: frozenset[int]) -> LogitsProcessorList:
    """Let `generate` say what it would make of the logits behind a prompt: it is stopped before the first token."""
    found: list[LogitsProcessorList] = []

    def decode(_: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **_options: Any) -> Tensor:
        found.append(logits_processor)
        return input_ids

    _generate(loaded, prompt, limit, stops, custom_generate=decode)
    return found[0]


def _generate(loaded: LoadedModel, prompt: Tensor, limit: int, stops: frozenset[int], **options: Any) -> list[int]:
    """Generate as whoever loads the adapter does."""
    ids: list[int] = loaded.module.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=sorted(stops),
        pad_token_id=min(stops),
        **options,
    )[0, prompt.shape[1] :].tolist()
    return ids


def _answered(branch: _Branch) -> Answered:
    return Answered(
        page=branch.page,
        question=branch.question,
        tokens=tuple(branch.tokens),
        finished=branch.finished,
        loss=branch.loss,
        answer_tokens=len(branch.draft),
    )


# --- The first pass ----------------------------------------------------------------------------------------------


def _verify(
    loaded: LoadedModel,
    groups: list[Group],
    numbers: dict[int, int],
    index: DatasetIndex,
    stops: frozenset[int],
    is_processed: bool,
) -> tuple[list[_Branch], list[_OpenPage]]:
    row = build_row(groups, loaded.device)
    attention = _FirstPassAttention(_segments(groups), device=loaded.device, dtype=loaded.dtype)
    with attending(attention):
        logits = loaded.forward(row)
    best, is_close = _argmax(logits, MARGIN[logits.dtype])
    losses = F.cross_entropy(logits.float(), row.labels, reduction="none").cpu()
    best_ids, close = best.tolist(), is_close.tolist()
    all_branches: list[_Branch] = []
    open_pages: list[_OpenPage] = []
    label, start = 0, 0
    for group in groups:
        prefix = len(group.page.prefix)
        first = start + prefix
        mine: list[_Branch] = []
        for number, question in enumerate(group.questions):
            ends = label + len(question.answer)
            loss = float(losses[label:ends].mean()) if question.derived else None
            limit = index.limit_of(group.page, question)
            context = torch.tensor([[*group.page.prefix, *question.prompt]], device=loaded.device)
            branch = _Branch(
                page=numbers[id(group.page)],
                question=number,
                prompt=question.prompt,
                draft=question.answer,
                limit=limit,
                loss=loss,
                context=context if is_processed else None,
                processors=_find_processors(loaded, context, limit, stops) if is_processed else None,
                first=first,
            )
            if is_processed:
                scores = [branch.process(logits[label + n], branch.draft[:n]) for n in range(len(branch.draft))]
                answer_best, answer_close = _argmax(torch.stack(scores), MARGIN[logits.dtype])
                best_ids[label:ends], close[label:ends] = answer_best.tolist(), answer_close.tolist()
            _accept(branch, best_ids[label:ends], close[label:ends], stops)
            mine.append(branch)
            first += len(question.prompt) + len(question.answer) - 1
            label = ends
        all_branches.extend(mine)
        still_open = [branch for branch in mine if branch.is_open()]
        if still_open:
            open_pages.append(_open_page(attention, start, prefix, still_open))
        start = first
    return all_branches, open_pages


def _segments(groups: Sequence[Group]) -> list[Segment]:
    """Return where each page lies in the row that `build_row` makes; a question alone is a branch like any other."""
    segments, start = [], 0
    for group in groups:
        tokens = tuple(len(question.prompt) + len(question.answer) - 1 for question in group.questions)
        segments.append(Segment(start=start, prefix_tokens=len(group.page.prefix), branch_tokens=tokens))
        start += group.tokens
    return segments


def _argmax(logits: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the lowest id among the highest logits, and whether another logit is within the margin."""
    top = torch.topk(logits, 2, dim=-1).values.float()
    return _best(logits), top[:, 0] - top[:, 1] < margin


def _best(logits: Tensor) -> Tensor:
    """Return the lowest id among the highest logits; on a CPU `max` finds it six times as fast as `argmax`."""
    return logits.max(dim=-1).indices


def _accept(branch: _Branch, best: list[int], close: list[bool], stops: frozenset[int]) -> None:
    """Walk along the draft as far as greedy decoding would have written it."""
    for position, token in enumerate(branch.draft):
        if len(branch.tokens) == branch.limit:
            return
        if close[position]:
            # Ask again with the token before, alone.
            branch.cached = len(branch.prompt) + position - 1
            branch.next_input = branch.draft[position - 1] if position else branch.prompt[-1]
            return
        chosen = best[position]
        if chosen in stops:
            branch.finished = True
            return
        branch.tokens.append(chosen)
        if chosen != token:
            branch.cached = len(branch.prompt) + position
            branch.next_input = chosen
            return
    # The whole draft was right and did not end the turn: its last token is not computed yet.
    branch.cached = len(branch.prompt) + len(branch.draft) - 1
    branch.next_input = branch.draft[-1]


def _open_page(attention: _FirstPassAttention, start: int, prefix: int, branches: list[_Branch]) -> _OpenPage:
    def cut(states: list[Tensor], first: int, tokens: int) -> list[Tensor]:
        return [layer[:, first : first + tokens] for layer in states]

    return _OpenPage(
        prefix_tokens=prefix,
        keys=cut(attention.keys, start, prefix),
        values=cut(attention.values, start, prefix),
        branches=branches,
        branch_keys=[cut(attention.keys, branch.first, branch.cached) for branch in branches],
        branch_values=[cut(attention.values, branch.first, branch.cached) for branch in branches],
    )


# --- Token by token ----------------------------------------------------------------------------------------------


def _continue(loaded: LoadedModel, pages: list[_OpenPage], stops: frozenset[int], size: int) -> None:
    pages = sorted(pages, key=lambda page: -len(page.branches))
    for start in range(0, len(pages), size):
        attention = _SteppingAttention(pages[start : start + size], loaded.device, loaded.dtype)
        while attention.pages:
            _step(loaded, attention, stops)
            attention.drop_finished()


def _step(loaded: LoadedModel, attention: _SteppingAttention, stops: frozenset[int]) -> None:
    branches = attention.open_branches()
    # A product of one row goes another way, with another rounding: a last branch is computed twice.
    ids, positions = attention.inputs(branches if len(branches) > 1 else branches * 2)
    with attending(attention):
        logits = loaded.module(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    if branches[0][1].processors is not None:
        logits = torch.stack([b.process(logits[row], b.tokens) for row, (_, b) in enumerate(branches)])
    best = _best(logits).tolist()
    for (_, branch), chosen in zip(branches, best, strict=False):
        branch.cached += 1
        if chosen in stops:
            branch.finished = True
        else:
            branch.tokens.append(chosen)
            branch.next_input = chosen


class _SteppingAttention:
    """Attention of one new token for each open branch, over padded pages and branches.

    Branches lie in a grid of pages x slots, so that those of one page share a product with its keys. The model itself
    computes the open ones only; what stands in the other places of the grid is read by nobody.
    """

    def __init__(self, pages: list[_OpenPage], device: torch.device, dtype: torch.dtype) -> None:
        self.pages = pages
        self._slots = max(len(page.branches) for page in pages)
        self._device = device
        longest_prefix = _align(max(page.prefix_tokens for page in pages))
        room = _align(max(len(branch.prompt) + branch.limit for page in pages for branch in page.branches) + 1)
        self._branch_room = room
        self._page_keys = [_pad_pages([p.keys[i] for p in pages], longest_prefix) for i in range(len(pages[0].keys))]
        self._page_values = [
            _pad_pages([p.values[i] for p in pages], longest_prefix) for i in range(len(pages[0].keys))
        ]
        self._branch_keys = [self._pad_branches(i, "branch_keys") for i in range(len(pages[0].keys))]
        self._branch_values = [self._pad_branches(i, "branch_values") for i in range(len(pages[0].keys))]
        lengths = torch.tensor([page.prefix_tokens for page in pages], device=device)
        outside = torch.arange(longest_prefix, device=device)[None] >= lengths[:, None]
        self._page_mask = _hiding(outside, dtype)
        self._dtype = dtype
        self._layer = 0

    def open_branches(self) -> list[tuple[int, _Branch]]:
        """Return the branches that the next step goes on with, and their places in the grid."""
        return [
            (number * self._slots + slot, branch)
            for number, page in enumerate(self.pages)
            for slot, branch in enumerate(page.branches)
            if branch.is_open()
        ]

    def inputs(self, branches: Sequence[tuple[int, _Branch]]) -> tuple[Tensor, Tensor]:
        """Return (1, branches) ids and positions of the next step."""
        cached = [branch.cached for _, branch in branches]
        positions = [self.pages[place // self._slots].prefix_tokens + branch.cached for place, branch in branches]
        self._places = torch.tensor([place for place, _ in branches], device=self._device)
        self._cached = torch.tensor(cached, device=self._device)
        last = torch.zeros(len(self.pages) * self._slots, dtype=torch.long, device=self._device)
        last[self._places] = self._cached
        last = last.view(len(self.pages), self._slots, 1)
        outside = torch.arange(self._branch_room, device=self._device) > last
        branch_mask = _hiding(outside, self._dtype)
        page_mask = self._page_mask[:, None].expand(-1, self._slots, -1)
        # Added to the scores; its shape is pages, 1, slots, 1, prefix + room.
        self._mask = torch.cat([page_mask, branch_mask], dim=-1)[:, None, :, None]
        self._layer = 0
        ids = [branch.next_input for _, branch in branches]
        return torch.tensor([ids], device=self._device), torch.tensor([positions], device=self._device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:  # noqa: ARG002
        """See `Attention.attend`; layers come in the order in which the first pass captured them."""
        number, self._layer = self._layer, self._layer + 1
        pages, slots = len(self.pages), self._slots
        heads, key_heads, size = query.shape[1], key.shape[1], query.shape[3]
        per_key = heads // key_heads
        if number == 0:
            self._index(heads, key_heads)
        for states, new in ((self._branch_keys[number], key), (self._branch_values[number], value)):
            states.view(-1, new.shape[3]).index_copy_(0, self._cache_rows, new.reshape(-1, new.shape[3]))
        grid = query.new_zeros(pages * key_heads * slots * per_key, size)
        grid.index_copy_(0, self._query_rows, (query * scaling).reshape(-1, size))
        on_page = torch.matmul(
            grid.view(pages, key_heads, slots * per_key, size), self._page_keys[number].transpose(-1, -2)
        )
        on_branch = torch.matmul(
            grid.view(pages, key_heads, slots, per_key, size), self._branch_keys[number].transpose(-1, -2)
        )
        prefix = on_page.shape[-1]
        scores = torch.cat([on_page.view(pages, key_heads, slots, per_key, prefix), on_branch], dim=-1)
        weights = torch.softmax(scores.add_(self._mask), dim=-1)
        from_page = torch.matmul(
            weights[..., :prefix].reshape(pages, key_heads, slots * per_key, prefix), self._page_values[number]
        )
        output = from_page.view(pages, key_heads, slots, per_key, -1)
        output += torch.matmul(weights[..., prefix:], self._branch_values[number])
        return output.view(len(grid), -1).index_select(0, self._query_rows).view(1, heads, query.shape[2], -1)

    def _index(self, heads: int, key_heads: int) -> None:
        """Say where the open branches' queries lie, in a grid of (pages, key heads, slots, heads a key), and where
        their new keys go, in caches of (pages, key heads, slots, room)."""
        per_key = heads // key_heads
        head = torch.arange(heads, device=self._device)[:, None]
        key_head = torch.arange(key_heads, device=self._device)[:, None]
        page, slot = self._places // self._slots, self._places % self._slots
        in_grid = ((page * key_heads + head // per_key) * self._slots + slot) * per_key + head % per_key
        in_cache = ((page * key_heads + key_head) * self._slots + slot) * self._branch_room + self._cached
        self._query_rows, self._cache_rows = in_grid.flatten(), in_cache.flatten()

    def drop_finished(self) -> None:
        """Lay out the open branches anew, once they need three quarters of the grid or less."""
        still_open = [[slot for slot, b in enumerate(page.branches) if b.is_open()] for page in self.pages]
        live = [number for number, slots in enumerate(still_open) if slots]
        slots = max(map(len, still_open), default=0)
        if live and 4 * len(live) * slots > 3 * len(self.pages) * self._slots:
            return
        kept = [still_open[number] for number in live]
        pages = torch.tensor(live, dtype=torch.long, device=self._device)
        # (pages, slots): where each branch lay; what fills a short page up is read by nobody.
        places = torch.tensor([[*k, *[0] * (slots - len(k))] for k in kept], dtype=torch.long, device=self._device)
        for states in (self._page_keys, self._page_values):
            states[:] = [tensor.index_select(0, pages) for tensor in states]
        for states in (self._branch_keys, self._branch_values):
            states[:] = [
                tensor.transpose(1, 2)[pages[:, None], places].transpose(1, 2).contiguous() for tensor in states
            ]
        self._page_mask = self._page_mask.index_select(0, pages)
        self.pages = [self.pages[number] for number in live]
        for page, slots_kept in zip(self.pages, kept, strict=True):
            page.branches = [page.branches[slot] for slot in slots_kept]
        self._slots = slots

    def _pad_branches(self, layer: int, name: str) -> Tensor:
        """Return (pages, key heads, slots, room, size)."""
        sample = getattr(self.pages[0], name)[0][layer]
        shape = (len(self.pages), sample.shape[0], self._slots, self._branch_room, sample.shape[2])
        padded: Tensor = sample.new_zeros(shape)
        for number, page in enumerate(self.pages):
            for slot, states in enumerate(getattr(page, name)):
                padded[number, :, slot, : states[layer].shape[1]] = states[layer]
        return padded


def _hiding(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores so that these keys weigh nothing."""
    return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill_(keys, float("-inf"))


def _pad_pages(states: list[Tensor], tokens: int) -> Tensor:
    """Return (pages, key heads, tokens, size)."""
    padded = states[0].new_zeros((len(states), states[0].shape[0], tokens, states[0].shape[2]))
    for number, state in enumerate(states):
        padded[number, :, : state.shape[1]] = state
    return padded


# --- Models that cannot share a page's tokens ----------------------------------------------------------------------


def _answer_separately(
    loaded: LoadedModel, numbers: dict[int, int], group: Group, index: DatasetIndex, stops: frozenset[int]
) -> list[Answered]:
    answers = []
    for number, alone in enumerate(separate([group])):
        question = alone.questions[0]
        limit = index.limit_of(alone.page, question)
        row = build_row([alone], loaded.device)
        loss = F.cross_entropy(loaded.logits(row).float(), row.labels).item() if question.derived else None
        prompt = torch.tensor([[*alone.page.prefix, *question.prompt]], device=loaded.device)
        generated = _generate(loaded, prompt, limit, stops)
        ends = next((n for n, token in enumerate(generated) if token in stops), None)
        answers.append(
            Answered(
                page=numbers[id(group.page)],
                question=number,
                tokens=tuple(generated[: limit if ends is None else ends]),
                finished=ends is not None,
                loss=loss,
                answer_tokens=len(question.answer),
            )
        )
    return answers
