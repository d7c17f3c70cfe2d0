"""Nested parts of the training split."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from trial_trainer.dataset.store import HAND, Page, Question, count_samples
from trial_trainer.dataset.subset import take_samples
from trial_trainer.errors import StudyError


def a_page(number: int, site: str, attributes: str) -> Page:
    questions = tuple(
        Question(attribute=name, prompt=(1,), answer=(2,), answer_text=name, gold=(name,), origin=HAND)
        for name in attributes
    )
    return Page(id=f"p{number}", site=site, url=None, prefix=(number,), questions=questions)


# Twelve pages of four sites; "c" is rare.
PAGES = tuple(a_page(i, f"site{i % 4}", "abc" if i < 4 else "ab") for i in range(12))


def samples_of(pages: tuple[Page, ...]) -> set[tuple[str, str]]:
    return {(page.id, question.attribute) for page in pages for question in page.questions}


@pytest.mark.parametrize("balanced", [False, True])
def test_a_part_has_as_many_samples_as_asked_and_contains_the_smaller_ones(balanced: bool) -> None:
    parts = [samples_of(take_samples(PAGES, n, seed=3, balanced=balanced)) for n in range(1, count_samples(PAGES) + 1)]

    assert [len(part) for part in parts] == list(range(1, count_samples(PAGES) + 1))
    assert all(smaller < larger for smaller, larger in itertools.pairwise(parts))
    assert parts[-1] == samples_of(PAGES)


def test_sites_are_added_one_after_the_other() -> None:
    sites = [{page.site for page in take_samples(PAGES, n, seed=0)} for n in (1, 7, 14, 21, 28)]

    assert [len(found) for found in sites] == [1, 1, 2, 3, 4]


def test_another_seed_takes_others_and_the_same_seed_the_same_whatever_the_order_of_pages() -> None:
    taken = samples_of(take_samples(PAGES, 7, seed=0))

    assert taken == samples_of(take_samples(tuple(reversed(PAGES)), 7, seed=0))
    assert any(taken != samples_of(take_samples(PAGES, 7, seed=seed)) for seed in (1, 2, 3))


def test_balanced_parts_have_all_attributes_alike_until_one_has_no_more() -> None:
    def counts(samples: int) -> Counter[str]:
        return Counter(name for _, name in samples_of(take_samples(PAGES, samples, seed=1, balanced=True)))

    assert counts(9) == {"a": 3, "b": 3, "c": 3}
    assert counts(12) == {"a": 4, "b": 4, "c": 4}
    assert counts(18) == {"a": 7, "b": 7, "c": 4}


@pytest.mark.parametrize("samples", [0, -1, 29])
def test_more_than_there_is_is_refused(samples: int) -> None:
    with pytest.raises(StudyError, match=f"train_samples must be from 1 to the 28 training samples, got {samples}"):
        take_samples(PAGES, samples, seed=0)
