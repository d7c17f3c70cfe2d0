"""A search whose best no longer rises: what counts as a rise, after how many trials it is said, and in which words."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from builders.ledgers import NOW, a_ledger, a_study, a_trial, minimizing, paused
from study_operator.ledger.stagnation import describe_stagnation, find_stagnation
from study_operator.ledger.status import render_status
from study_operator.ledger.trial import SearchEnd, Trial
from study_operator.spec.study import OutcomeConstraint, Promotion, RankBy


def measured(*values: float, **changes: Any) -> list[Trial]:
    """Return trials with these first measurements, each with a standard error of 2 points."""
    return [paused(index, value, **changes) for index, value in enumerate(values)]


@pytest.mark.parametrize(
    ("num_trials", "since", "expected"),
    [
        pytest.param(24, 5, False, id="one fewer than six"),
        pytest.param(24, 6, True, id="six of twenty-four"),
        pytest.param(40, 9, False, id="one fewer than a quarter of forty"),
        pytest.param(40, 10, True, id="a quarter of forty"),
        pytest.param(41, 10, False, id="a quarter is rounded up"),
    ],
)
def test_it_stagnates_after_six_trials_or_a_quarter_of_all_without_a_rise(
    num_trials: int, since: int, expected: bool
) -> None:
    stand = find_stagnation(a_study(num_trials=num_trials), measured(0.4, 0.6, *[0.5] * since))
    assert (stand.best, stand.since, stand.is_stagnating) == ("t001", since, expected)


@pytest.mark.parametrize(
    ("last", "best"),
    [
        pytest.param(0.619, "t000", id="by less than a standard error"),
        pytest.param(0.621, "t007", id="by more"),
    ],
)
def test_a_rise_is_one_of_a_standard_error(last: float, best: str) -> None:
    assert find_stagnation(a_study(num_trials=24), measured(0.6, *[0.5] * 6, last)).best == best


def test_small_rises_add_up() -> None:
    values = [0.600, 0.608, 0.616, 0.624, 0.5, 0.5, 0.5]
    stand = find_stagnation(a_study(num_trials=24), measured(*values))
    assert (stand.best, stand.since) == ("t003", 3)


def test_where_no_error_is_known_any_rise_counts_and_an_equal_value_is_none() -> None:
    unknown = measured(0.6, *[0.5] * 5, 0.601, 0.601, standard_error=None)
    stand = find_stagnation(a_study(num_trials=24), unknown)
    assert (stand.best, stand.since, stand.error) == ("t006", 1, 0.0)


@pytest.mark.parametrize(("fall", "best"), [(0.1, "t007"), (0.0, "t000"), (-0.1, "t000")])
def test_of_equals_one_that_loses_less_has_risen(fall: float, best: str) -> None:
    trials = [paused(i, 0.0, metrics={"validation_loss": 3 - fall * i}) for i in range(8)]
    stand = find_stagnation(a_study(num_trials=24), trials)
    assert (stand.best, stand.value, stand.is_stagnating) == (best, 0.0, best == "t000")


@pytest.mark.parametrize(("broken", "best"), [((0,), "t008"), ((), "t000"), (range(9), "t000")])
def test_one_that_breaks_a_constraint_rises_only_above_others_that_do(broken: Sequence[int], best: str) -> None:
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.05)
    study = a_study(num_trials=24, outcome_constraints=(constraint,))
    values = [0.9, *(0.3 + 0.05 * i for i in range(8))]
    trials = [
        paused(i, value, metrics={"invalid_output_rate": 0.5 if i in broken else 0.0}) for i, value in enumerate(values)
    ]
    assert find_stagnation(study, trials).best == best


@pytest.mark.parametrize(
    ("rank_by", "fall", "best", "ranked_by"),
    [
        pytest.param(RankBy.VALIDATION_LOSS, 0.001, "t008", "", id="any fall of the loss"),
        pytest.param(RankBy.VALIDATION_LOSS, -0.001, "t000", "validation_loss", id="the loss rises"),
        # A nat counts as ten points: from one to the next 2.9 points up, and 0.05 down.
        pytest.param(RankBy.OBJECTIVE_AND_LOSS, 0.3, "t008", "", id="both together rise by an error"),
        pytest.param(RankBy.OBJECTIVE_AND_LOSS, 0.005, "t000", "accuracy and validation_loss", id="both together fall"),
    ],
)
def test_a_rise_is_one_by_what_ranks_on_the_first_rung(rank_by: RankBy, fall: float, best: str, ranked_by: str) -> None:
    study = a_study(num_trials=24, promotion=Promotion(num_promoted=1, rank_by=rank_by))
    trials = [paused(i, 0.5 - 0.001 * i, metrics={"validation_loss": 3 - fall * i}) for i in range(9)]
    stand = find_stagnation(study, trials)
    assert stand.best == best
    if ranked_by:
        assert describe_stagnation(study, stand, is_over=True).startswith(
            f"8 trials since t000 did not rank above it by {ranked_by} on the first rung"
        )


def test_what_broke_a_constraint_is_no_rise_and_the_sentence_says_so() -> None:
    constraint = OutcomeConstraint(metric="invalid_output_rate", is_upper=True, bound=0.2)
    study = a_study(num_trials=24, outcome_constraints=(constraint,))
    broken = [paused(i, 0.6, metrics={"invalid_output_rate": 0.9}) for i in range(1, 9)]
    stand = find_stagnation(study, [paused(0, 0.2, metrics={"invalid_output_rate": 0.0}), *broken])
    assert describe_stagnation(study, stand, is_over=True).startswith(
        "8 trials since t000 were not better than its accuracy of 20.0%, or broke an outcome constraint, "
    )


def test_of_a_loss_a_fall_is_a_rise() -> None:
    stand = find_stagnation(minimizing(a_study(num_trials=24)), measured(0.6, 0.5, *[0.7] * 6))
    assert (stand.best, stand.value, stand.is_stagnating) == ("t001", 0.5, True)


def test_a_trial_that_diverged_was_tried_and_one_that_runs_was_not_yet() -> None:
    diverged = [replace(t, index=i + 1) for i, t in enumerate(measured(*[0.0] * 6, diverged=True))]
    stand = find_stagnation(a_study(num_trials=24), [*measured(0.6), *diverged, a_trial(7)])
    assert (stand.since, stand.measured) == (6, 7)
    alone = find_stagnation(a_study(num_trials=24), diverged)
    assert (alone.best, alone.is_stagnating) == ("", False)


def test_the_condition_says_so_with_its_numbers() -> None:
    def condition(*values: float, **changes: Any) -> dict[str, Any]:
        status = render_status(a_study(num_trials=24), a_ledger(*measured(*values, **changes)), now=NOW)
        return next(c for c in status["conditions"] if c["type"] == "SearchStagnating")

    assert (condition()["status"], condition()["reason"]) == ("False", "TooFewTrials")
    assert condition(*[0.1 * i for i in range(9)])["reason"] == "Rising"
    # Of trials that all diverged none has risen.
    assert condition(*[0.0] * 9, diverged=True)["reason"] == "TooFewTrials"
    found = condition(0.4, 0.6, *[0.5] * 6)
    assert (found["status"], found["reason"]) == ("True", "NoRise")
    assert found["message"] == (
        "6 trials since t001 were not better than its accuracy of 60.0% on the first rung by 2.0 points, one standard "
        "error of a paired difference; every second arm now fills a gap between all others"
    )
    unknown = measured(0.6, *[0.5] * 6, standard_error=None)
    sentence = describe_stagnation(
        a_study(num_trials=24), find_stagnation(a_study(num_trials=24), unknown), is_over=False
    )
    assert "were not better than its accuracy of 60.0% on the first rung; every" in sentence
    loss = minimizing(a_study(num_trials=24))
    assert "its validation_loss of 0.5 on" in describe_stagnation(
        loss, find_stagnation(loss, measured(0.5, *[1] * 6)), is_over=False
    )


def test_of_a_search_that_is_over_nothing_is_said_of_its_next_arms() -> None:
    ledger = a_ledger(*measured(0.6, *[0.5] * 6), search_end=SearchEnd.ALL_TRIALS_MEASURED)
    status = render_status(a_study(num_trials=7), ledger, now=NOW)
    found = next(c for c in status["conditions"] if c["type"] == "SearchStagnating")
    assert found["status"] == "True"
    assert found["message"] == (
        "6 trials since t000 were not better than its accuracy of 60.0% on the first rung by 2.0 points, one standard "
        "error of a paired difference"
    )
