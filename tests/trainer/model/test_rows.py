"""The order of samples, and how a step's pages are dealt out."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.tiny_models import CPU, a_page, groups_of
from trial_trainer.model.rows import build_row, fit_rows, micro_batches, separate, share_among_ranks, step_groups

PAGES = [a_page(number, questions=1 + number % 4) for number in range(9)]
SAMPLES = sum(len(page.questions) for page in PAGES)

ORDER = ["p1", "p4", "p3", "p5", "p8", "p0", "p2", "p6", "p7"]
"""Of the pages, in epoch 1 of seed 0."""

batch_sizes = st.integers(1, SAMPLES)
seeds = st.integers(0, 10**6)


def samples(groups):
    """Return (page, attribute) pairs in order."""
    return [(group.page.id, question.attribute) for group in groups for question in group.questions]


def epoch_row(epoch, batch_size, seed):
    steps = SAMPLES // batch_size
    return [
        sample
        for step in range(epoch * steps, (epoch + 1) * steps)
        for sample in samples(step_groups(PAGES, step=step, batch_size=batch_size, seed=seed))
    ]


@settings(max_examples=25)
@given(batch_size=batch_sizes, seed=seeds, epoch=st.integers(0, 3))
def test_an_epoch_takes_each_sample_at_most_once_and_drops_only_the_remainder(batch_size, seed, epoch):
    row = epoch_row(epoch, batch_size, seed)

    assert max(Counter(row).values()) == 1
    assert SAMPLES - len(row) == SAMPLES % batch_size


@settings(max_examples=25)
@given(batch_size=batch_sizes, seed=seeds)
def test_every_step_has_batch_size_samples(batch_size, seed):
    for step in range(2 * (SAMPLES // batch_size)):
        assert len(samples(step_groups(PAGES, step=step, batch_size=batch_size, seed=seed))) == batch_size


@settings(max_examples=25)
@given(batch_size=batch_sizes, seed=seeds, epoch=st.integers(0, 2))
def test_arms_of_every_batch_size_walk_along_the_same_row(batch_size, seed, epoch):
    whole = epoch_row(epoch, 1, seed)

    assert epoch_row(epoch, batch_size, seed) == whole[: len(whole) - SAMPLES % batch_size]


@settings(max_examples=25)
@given(seed=seeds)
def test_the_questions_of_a_page_lie_behind_each_other(seed):
    row = [page for page, _ in epoch_row(0, 1, seed)]

    turns = sum(one != other for one, other in itertools.pairwise(row))
    assert turns == len(PAGES) - 1


def test_epochs_and_seeds_have_orders_of_their_own_and_each_is_repeatable():
    orders = {(seed, epoch): tuple(epoch_row(epoch, 1, seed)) for seed in range(3) for epoch in range(3)}

    assert len(set(orders.values())) == 9
    assert all(tuple(epoch_row(epoch, 1, seed)) == order for (seed, epoch), order in orders.items())


def test_the_order_is_the_same_on_every_machine():
    order = list(dict.fromkeys(page for page, _ in epoch_row(1, 1, 0)))

    assert order == ORDER


def test_a_page_cut_by_a_steps_edge_is_in_both_steps():
    seen = Counter(
        group.page.id for step in range(SAMPLES // 3) for group in step_groups(PAGES, step=step, batch_size=3, seed=0)
    )

    assert max(seen.values()) > 1


@settings(max_examples=25)
@given(seed=seeds, batch_size=batch_sizes, ranks=st.integers(1, 6))
def test_dealing_to_ranks_loses_nothing(seed, batch_size, ranks):
    groups = step_groups(PAGES, step=0, batch_size=batch_size, seed=seed)

    shares = share_among_ranks(groups, ranks)

    assert len(shares) == ranks
    assert Counter(sample for share in shares for sample in samples(share)) == Counter(samples(groups))


@settings(max_examples=25)
@given(seed=seeds, ranks=st.integers(2, 5))
def test_ranks_differ_by_no_more_than_the_longest_group(seed, ranks):
    groups = step_groups(PAGES, step=0, batch_size=SAMPLES, seed=seed)
    loads = [sum(group.tokens for group in share) for share in share_among_ranks(groups, ranks)]

    assert max(loads) - min(loads) <= max(group.tokens for group in groups)


@settings(max_examples=25)
@given(limit=st.integers(1, 400))
def test_rows_keep_order_and_stay_under_the_limit_unless_one_group_is_longer(limit):
    groups = groups_of(PAGES)

    rows = list(micro_batches(groups, limit))

    assert [group for row in rows for group in row] == groups
    assert all(len(row) == 1 or sum(group.tokens for group in row) <= limit for row in rows)


def test_separate_samples_are_the_same_samples():
    apart = separate(groups_of(PAGES))

    assert samples(apart) == samples(groups_of(PAGES))
    assert all(len(group.questions) == 1 for group in apart)


@pytest.mark.parametrize("arranged", [groups_of(PAGES), separate(groups_of(PAGES))], ids=["shared", "separate"])
def test_a_row_holds_what_its_groups_say(arranged):
    row = build_row(arranged, CPU)
    ids, positions = row.input_ids[0].tolist(), row.position_ids[0].tolist()

    assert row.tokens == sum(group.tokens for group in arranged) == row.segments[-1].end
    assert row.samples == SAMPLES
    sample = 0
    for group in arranged:
        for question in group.questions:
            mine = (row.sample_of_label == sample).nonzero().flatten()
            prompt_end = len(group.page.prefix) + len(question.prompt)
            fed = row.label_positions[mine].tolist()
            assert tuple(row.labels[mine].tolist()) == question.answer
            assert [positions[at] for at in fed] == list(range(prompt_end - 1, prompt_end - 1 + len(question.answer)))
            assert [ids[at] for at in fed] == [question.prompt[-1], *question.answer[:-1]]
            sample += 1
    for group, segment in zip(arranged, row.segments, strict=True):
        assert tuple(ids[segment.start :][: len(group.page.prefix)]) == group.page.prefix
        assert positions[segment.start] == 0


def test_a_row_computes_no_token_that_predicts_nothing_but_context():
    row = build_row(groups_of([PAGES[3]]), CPU)

    assert row.label_positions.max() == row.tokens - 1
    assert torch.equal(row.label_positions, row.label_positions.sort().values)


@pytest.mark.parametrize("row_tokens", [1, 60, 150, 10**6])
def test_rows_that_must_fit_hold_every_sample_once_and_are_longer_only_where_one_sample_is(row_tokens):
    groups = groups_of(PAGES)

    rows = list(fit_rows(groups, row_tokens))

    found = [(group.page.id, question) for row in rows for group in row for question in group.questions]
    assert found == [(group.page.id, question) for group in groups for question in group.questions]
    for row in rows:
        samples = sum(len(group.questions) for group in row)
        assert samples == 1 or sum(group.tokens for group in row) <= row_tokens


# --- Variants of pages --------------------------------------------------------------------------------------------

VARIANTS = {
    page.id: tuple(replace(page, prefix=(*page.prefix, 1000 + copy)) for copy in range(3)) for page in PAGES[:8]
}


def read_of(page_id: str, epoch: int, *, seed: int = 0) -> set[tuple[int, ...]]:
    """Return what an epoch reads of a page."""
    steps = range(epoch * SAMPLES, (epoch + 1) * SAMPLES)
    groups = [g for s in steps for g in step_groups(PAGES, step=s, batch_size=1, seed=seed, variants=VARIANTS)]
    return {group.page.prefix for group in groups if group.page.id == page_id}


def test_an_epoch_reads_a_page_or_one_of_its_variants_and_no_other_in_the_same_epoch():
    found = [read_of("p3", epoch) for epoch in range(24)]

    assert all(len(prefixes) == 1 for prefixes in found)
    assert set().union(*found) == {PAGES[3].prefix, *(variant.prefix for variant in VARIANTS["p3"])}
    assert all(read_of("p8", epoch) == {PAGES[8].prefix} for epoch in range(3))


def test_variants_change_neither_the_order_nor_the_number_of_samples():
    for step in range(2 * SAMPLES // 3):
        plain = step_groups(PAGES, step=step, batch_size=3, seed=5)
        assert samples(step_groups(PAGES, step=step, batch_size=3, seed=5, variants=VARIANTS)) == samples(plain)


def test_a_page_of_which_a_part_is_trained_on_asks_its_variants_that_part():
    part = [replace(PAGES[3], questions=PAGES[3].questions[1:2])]
    for step in range(6):
        (group,) = step_groups(part, step=step, batch_size=1, seed=0, variants=VARIANTS)
        assert [question.attribute for question in group.questions] == [PAGES[3].questions[1].attribute]
