"""Nested parts of a training split: what a trial of a data curve is trained on.

Called by `training.train`. All samples are put into one order that a seed decides, and a part of n samples is the first
n of it, so that each part contains every smaller one of the same seed. Sites are added one after the other: a larger
part has more sites, as more data would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from trial_trainer.dataset.shuffling import rank
from trial_trainer.dataset.store import Page, count_samples
from trial_trainer.errors import StudyError


def take_samples(pages: Sequence[Page], samples: int, *, seed: int, balanced: bool = False) -> tuple[Page, ...]:
    """Return pages with the first so many samples; a page keeps those of its questions that are among them.

    Args:
        pages: the training split.
        samples: how many.
        seed: decides the order of sites, and of pages within a site.
        balanced: take from all attributes in turn, so that each has as many samples as the others until it has no more.

    Raises:
        StudyError: where there are not so many samples.
    """
    if not 0 < samples <= count_samples(pages):
        raise StudyError(f"train_samples must be from 1 to the {count_samples(pages)} training samples, got {samples}")
    order = sorted(
        range(len(pages)), key=lambda i: (rank(seed, "site", pages[i].site), rank(seed, "page", pages[i].id))
    )
    sequence = [(page, question) for page in order for question in range(len(pages[page].questions))]
    if balanced:
        sequence = _take_in_turn(pages, sequence)
    kept: dict[int, list[int]] = defaultdict(list)
    for page, question in sequence[:samples]:
        kept[page].append(question)
    return tuple(
        replace(pages[page], questions=tuple(pages[page].questions[i] for i in sorted(kept[page])))
        for page in sorted(kept)
    )


def _take_in_turn(pages: Sequence[Page], sequence: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    by_attribute: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for page, question in sequence:
        by_attribute[pages[page].questions[question].attribute].append((page, question))
    rounds = zip_longest(*(by_attribute[name] for name in sorted(by_attribute)))
    return [sample for sample in chain.from_iterable(rounds) if sample is not None]
