"""Which samples an optimizer step takes, and how they are laid out in rows.

The order is one row of samples for each epoch: pages in a permutation drawn from (seed, epoch), the questions of a page
behind each other. A step takes the next ``batch_size`` samples of that row; what remains of an epoch is dropped. Where
pages have variants, each epoch reads a page or one of its variants, drawn from (seed, epoch, page). Ranks and
micro-batches then share the step's pages in any way without changing its loss.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from trial_trainer.dataset.store import Page, Question, count_samples
from trial_trainer.model.fast_lora import mix_bits
from trial_trainer.model.packed_attention import Segment

MICRO_BATCH_TOKENS = {"cpu": 1536, "cuda": 16384}
"""Tokens of one row: on a CPU two pages of 512 tokens with their questions, on an accelerator what fills it."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of one page that share its tokens."""

    page: Page
    questions: tuple[Question, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are computed: the page once, and each branch without its last token, which nothing follows."""
        branches = sum(len(question.prompt) + len(question.answer) - 1 for question in self.questions)
        return len(self.page.prefix) + branches


@dataclass(frozen=True, kw_only=True)
class Row:
    """Groups laid out for one forward pass."""

    input_ids: Tensor
    """(1, tokens)"""
    position_ids: Tensor | None
    """(1, tokens); None: one sample, whose positions the model counts itself."""
    segments: tuple[Segment, ...]
    label_positions: Tensor
    """(labels,): index in the row of the token that predicts each label."""
    labels: Tensor
    """(labels,): the answers' token ids, with the end of turn."""
    sample_of_label: Tensor
    """(labels,): index of the sample, in the order of the groups."""
    samples: int
    mask_keys: Tensor | None = None
    """(tokens,): what each token's dropout masks are drawn from; None where nothing is dropped."""

    @property
    def tokens(self) -> int:
        """Tokens computed; none is padding."""
        return self.input_ids.shape[1]


def step_groups(
    pages: Sequence[Page],
    *,
    step: int,
    batch_size: int,
    seed: int,
    variants: Mapping[str, Sequence[Page]] = MappingProxyType({}),
) -> list[Group]:
    """Return the samples of one optimizer step (counted from 0), grouped by page.

    Args:
        pages: the training split.
        step: of the whole run.
        batch_size: samples of a step.
        seed: of the order, and of the variants.
        variants: by a page's id, pages that ask the same attributes.
    """
    steps_an_epoch = count_samples(pages) // batch_size
    epoch, within = divmod(step, steps_an_epoch)
    chosen = _epoch_order(pages, seed, epoch)[within * batch_size : (within + 1) * batch_size]
    groups: dict[int, list[int]] = {}
    for page_index, question_index in chosen:
        groups.setdefault(page_index, []).append(question_index)
    return [
        _build_group(pages[page], questions, variants.get(pages[page].id, ()), f"{seed}/{epoch}")
        for page, questions in groups.items()
    ]


def _build_group(page: Page, questions: Sequence[int], variants: Sequence[Page], seed: str) -> Group:
    """Return samples of a page, read in the page or in one of its variants."""
    asked = tuple(page.questions[question] for question in questions)
    if not variants:
        return Group(page=page, questions=asked)
    read = random.Random(f"variant/{seed}/{page.id}").choice((page, *variants))
    by_attribute = {question.attribute: question for question in read.questions}
    return Group(page=read, questions=tuple(by_attribute[question.attribute] for question in asked))


def _epoch_order(pages: Sequence[Page], seed: int, epoch: int) -> list[tuple[int, int]]:
    order = list(range(len(pages)))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return [(page, question) for page in order for question in range(len(pages[page].questions))]


def draw_groups(pages: Sequence[Page], *, samples: int, seed: int) -> list[Group]:
    """Draw whole pages with at least so many samples, or all there are: by the seed, the same for every arm."""
    order = [page for page in pages if page.questions]
    random.Random(f"drawn/{seed}").shuffle(order)
    drawn: list[Group] = []
    while order and sum(len(group.questions) for group in drawn) < samples:
        page = order.pop()
        drawn.append(Group(page=page, questions=page.questions))
    return drawn


def separate(groups: Sequence[Group]) -> list[Group]:
    """Give every sample its page's tokens for itself, for models whose attention cannot share them."""
    return [Group(page=group.page, questions=(question,)) for group in groups for question in group.questions]


def share_among_ranks(groups: Sequence[Group], ranks: int) -> list[list[Group]]:
    """Deal groups to ranks so that the tokens are about even: the longest first, each to the least loaded rank."""
    shares: list[list[Group]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for group in sorted(groups, key=lambda group: -group.tokens):
        least = loads.index(min(loads))
        shares[least].append(group)
        loads[least] += group.tokens
    return shares


def micro_batches(groups: Sequence[Group], max_tokens: int) -> Iterator[list[Group]]:
    """Fill rows with groups up to a number of tokens; a longer group has a row of its own."""
    batch: list[Group] = []
    tokens = 0
    for group in groups:
        if batch and tokens + group.tokens > max_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(group)
        tokens += group.tokens
    if batch:
        yield batch


def fit_rows(groups: Sequence[Group], max_tokens: int) -> Iterator[list[Group]]:
    """Fill rows like `micro_batches`, but deal a longer group's questions out to rows, each with the page's tokens."""
    return micro_batches([part for group in groups for part in _split(group, max_tokens)], max_tokens)


def _split(group: Group, max_tokens: int) -> Iterator[Group]:
    part: tuple[Question, ...] = ()
    for question in group.questions:
        if part and Group(page=group.page, questions=(*part, question)).tokens > max_tokens:
            yield Group(page=group.page, questions=part)
            part = ()
        part = (*part, question)
    yield Group(page=group.page, questions=part)


def build_row(groups: Sequence[Group], device: torch.device, mask_seed: str | None = None) -> Row:
    """Lay groups out behind each other. A sample alone in its group is one segment without branches.

    Args:
        groups: what the row holds.
        device: where to put it.
        mask_seed: what dropout masks are drawn from, beside page, question and place: a token has the same masks in
            whatever row it lies, and a page the same for all its questions.
    """
    ids: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    label_positions: list[int] = []
    labels: list[int] = []
    sample_of_label: list[int] = []
    mask_keys: list[Tensor] = []
    samples = 0
    for group in groups:
        start, prefix = len(ids), len(group.page.prefix)
        ids.extend(group.page.prefix)
        positions.extend(range(prefix))
        branches: list[int] = []
        if mask_seed is not None:
            mask_keys.append(_mask_keys(f"{mask_seed}/{group.page.id}", prefix))
        for question in group.questions:
            first = len(ids)
            branch = (*question.prompt, *question.answer[:-1])
            ids.extend(branch)
            positions.extend(range(prefix, prefix + len(branch)))
            branches.append(len(branch))
            if mask_seed is not None:
                number = group.page.questions.index(question)
                mask_keys.append(_mask_keys(f"{mask_seed}/{group.page.id}/{number}", len(branch)))
            predicting = first + len(question.prompt) - 1
            label_positions.extend(range(predicting, predicting + len(question.answer)))
            labels.extend(question.answer)
            sample_of_label.extend([samples] * len(question.answer))
            samples += 1
        if len(branches) == 1:
            segments.append(Segment(start=start, prefix_tokens=prefix + branches[0]))
        else:
            segments.append(Segment(start=start, prefix_tokens=prefix, branch_tokens=tuple(branches)))
    return Row(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        segments=tuple(segments),
        label_positions=torch.tensor(label_positions, device=device),
        labels=torch.tensor(labels, device=device),
        sample_of_label=torch.tensor(sample_of_label, device=device),
        samples=samples,
        mask_keys=torch.cat(mask_keys).to(device) if mask_seed is not None else None,
    )


def _mask_keys(seed: str, tokens: int) -> Tensor:
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big", signed=True)
    return mix_bits(torch.arange(tokens) + start)
