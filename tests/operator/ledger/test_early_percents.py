"""Which percent is enough: each is compared as if it were the only early rung; nothing is told of too few trials."""

import random
from dataclasses import replace

import pytest

from builders.ledgers import a_measurement, a_study, a_trial, continued, paused, stopped
from study_operator.ledger.agreement import measure_agreement
from study_operator.ledger.early_percents import compare_percents, describe_enough, list_extra_places
from study_operator.ledger.trial import Continuation, Measurement, Trial
from study_operator.spec.study import EarlyEvaluation, Promotion, Study

FINALS = {i: 0.3 + i / 100 for i in range(1, 25)}
"""By index, the baseline apart."""


def a_study_of(*extra: int, rungs: tuple[int, ...] = (20,)) -> Study:
    return a_study(
        promotion=Promotion(num_promoted=2, num_audited=3),
        early_evaluation=EarlyEvaluation(rungs=rungs, extra_percents=extra),
    )


def all_at_full_length(early: dict[int, float]) -> list[Trial]:
    """Return trials that were all drawn, with these measurements at 20 %, the baseline first."""
    best = sorted(early, key=lambda i: -early[i])[:2]
    ways = {i: Continuation.PROMOTED if i in best else Continuation.AUDITED for i in early}
    trials = [continued(paused(i, value), FINALS[i], ways[i]) for i, value in early.items()]
    return [continued(paused(0, 0.1), 0.2, Continuation.BASELINE), *trials]


def on_the_way(values: dict[int, float]) -> dict[int, Measurement]:
    return {0: a_measurement(0, 0.1)} | {i: a_measurement(0, value) for i, value in values.items()}


def shuffled(seed: int) -> dict[int, float]:
    values = list(FINALS.values())
    random.Random(seed).shuffle(values)
    return dict(zip(FINALS, values, strict=True))


def test_a_measurement_on_the_way_lies_in_the_rung_that_passes_its_step_unless_a_rung_ends_there() -> None:
    study, trial = a_study_of(10, 30, 49, 51, rungs=(20, 50)), a_trial(1, total_steps=100)
    places = [(10, 0, 10), (30, 1, 30), (49, 1, 49), (51, 2, 51)]
    assert list(list_extra_places(study, trial)) == places
    # Of ten steps the fifth ends a rung, and 49 % and 51 % are the fifth step, too.
    assert list(list_extra_places(study, replace(trial, total_steps=10))) == [(10, 0, 1), (30, 1, 3)]


def test_the_smallest_percent_after_which_all_are_reliable_is_enough() -> None:
    trials = all_at_full_length(FINALS)
    noise, perfect = on_the_way(shuffled(1)), on_the_way(FINALS)
    compared = compare_percents(a_study_of(5, 10, 50), trials, {5: noise, 10: perfect, 50: perfect})
    assert [one.agreement.percent for one in compared.percents] == [5, 10, 20, 50]
    assert [one.is_rung for one in compared.percents] == [False, False, True, False]
    assert [one.agreement.is_reliable for one in compared.percents] == [False, True, True, True]
    assert compared.enough == 10
    assert describe_enough(compared) == (
        "10 % is enough, and so is every later one: measurements at 10 % order 100% of the pairs of trials as those at "
        "full length do (90 % interval 92% to 100%, 300 pairs of 25 trials); reliable is 70% or more."
    )


def test_a_percent_before_one_that_is_not_reliable_is_not_enough() -> None:
    trials, perfect = all_at_full_length(FINALS), on_the_way(FINALS)
    compared = compare_percents(a_study_of(10, 50), trials, {10: perfect, 50: on_the_way(shuffled(1))})
    assert [one.agreement.is_reliable for one in compared.percents] == [True, True, False]
    assert compared.enough is None
    assert describe_enough(compared).startswith("50 % is too early: measurements at 50 % order")
    assert describe_enough(compared).endswith("Of the other percents these trials do not tell.")


def test_each_percent_is_compared_as_the_only_early_rung_would_be() -> None:
    """What a study with its rung at 10 % would have said of the same trials is what is said of 10 % here."""
    early = shuffled(2)
    at_ten = [
        replace(t, measurements=(replace(t.measurements[0], value=early.get(t.index, 0.1)), *t.measurements[1:]))
        for t in all_at_full_length(FINALS)
    ]
    expected = measure_agreement(a_study_of(rungs=(10,)), at_ten)
    compared = compare_percents(a_study_of(10), all_at_full_length(FINALS), {10: on_the_way(early)})
    assert compared.percents[0].agreement == expected
    assert expected.top_kept is not None and expected.regret is not None


def test_training_is_that_of_all_trials_up_to_there_and_of_those_at_full_length_from_there_on() -> None:
    trials = [*all_at_full_length({i: FINALS[i] for i in (1, 2, 3, 4, 5)}), *(stopped(i, 0.1) for i in range(6, 16))]
    compared = compare_percents(a_study_of(10), trials, {})
    # Sixteen trials of which six went on: 16 · 10 % + 6 · 90 %, and 16 · 20 % + 6 · 80 %.
    assert [one.full_runs for one in compared.percents] == pytest.approx([7.0, 8.0])
    assert compared.trials == 16


def test_trials_without_a_measurement_there_are_left_out_and_who_was_best_there_is_not_known() -> None:
    trials = all_at_full_length(FINALS)
    compared = compare_percents(a_study_of(10), trials, {10: dict(list(on_the_way(FINALS).items())[:12])})
    at_ten, at_rung = (one.agreement for one in compared.percents)
    assert (at_ten.full_length, at_rung.full_length) == (12, 25)
    assert (at_ten.top_kept, at_ten.regret) == (None, None)
    assert at_rung.top_kept is not None


def test_without_audited_trials_nothing_is_told_of_any_percent() -> None:
    trials = [
        continued(paused(0, 0.1), 0.2, Continuation.BASELINE),
        continued(paused(1, 0.5), 0.6),
        continued(paused(2, 0.4), 0.5),
        *(stopped(i, 0.1) for i in range(3, 9)),
    ]
    compared = compare_percents(a_study_of(10), trials, {10: on_the_way({1: 0.3, 2: 0.2})})
    assert [one.agreement.concordance for one in compared.percents] == [None, None]
    assert describe_enough(compared) == (
        "These trials do not tell which percent is enough: agreement is not estimable, n = 0 audited (at least 3 are "
        "needed)."
    )


def test_where_a_rung_ends_at_the_same_step_its_measurement_counts() -> None:
    # Of ten steps 15 % and 20 % are the second.
    trials = [
        replace(
            t, total_steps=10, measurements=tuple(replace(m, step=2 if m.rung == 0 else 10) for m in t.measurements)
        )
        for t in all_at_full_length(FINALS)
    ]
    early, rung = (one.agreement for one in compare_percents(a_study_of(15), trials, {}).percents)
    assert (early.concordance, early.pairs, early.full_length) == (rung.concordance, rung.pairs, 25)
